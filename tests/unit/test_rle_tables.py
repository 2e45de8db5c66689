"""Tables of run-length masks: which pixels they say, what is read of an image in several rows, what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitp.core.errors import DataError
from vitp.data.formats import detect_format, read_labels
from vitp.records.labels import LabelledSet, ObjectLabel
from vitp.records.regions import rasterise

SIZE = (20, 12)


def runs(mask_HW: np.ndarray, *, order: str = "F", first: int = 1) -> str:
    """Return a mask as start and length of each run, counted one pixel after the other."""
    found: list[list[int]] = []
    for number in np.flatnonzero(mask_HW.flatten(order)).tolist():
        if found and sum(found[-1]) == number:
            found[-1][1] += 1
        else:
            found.append([number, 1])
    return " ".join(f"{start + first} {length}" for start, length in found)


def masks() -> list[np.ndarray]:
    """Return a rectangle, an L with a hole, one that touches the lower edge, and the first pixel."""
    made = np.zeros((4, SIZE[1], SIZE[0]), bool)
    made[0, 2:5, 3:9] = True
    made[1, 4:11, 11:18] = True
    made[1, 4:6, 11:13] = made[1, 7, 14] = False
    made[2, 8:12, 0:9] = True
    made[3, 0, 0] = True
    return list(made)


def table(root: Path, head: str, rows: list[str], images: int = 4) -> Path:
    """Write images of one colour and a table."""
    (root / "train").mkdir(parents=True)
    for i in range(images):
        Image.new("RGB", SIZE, (50 * i, 10, 10)).save(root / "train" / f"im{i}.png")
    (root / "train_masks.csv").write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    return root


def drawn(label: ObjectLabel) -> np.ndarray:
    return rasterise(label.polygons, SIZE[::-1], label.holes)


def objects(found: LabelledSet) -> dict[str, tuple[ObjectLabel, ...] | None]:
    return {Path(item.image).stem: item.objects for item in found.items}


@pytest.mark.parametrize(
    ("name", "order", "first", "options"),
    [
        ("im{}.png", "F", 1, {}),
        ("im{}", "F", 1, {}),
        ("im{}.png", "C", 1, {"order": "rows"}),
        ("im{}.png", "F", 0, {"first": 0}),
    ],
)
def test_runs_are_the_pixels_that_they_say(
    tmp_path: Path, name: str, order: str, first: int, options: dict[str, object]
) -> None:
    """Two objects in one image, one in another, and two images in which there is nothing."""
    own = masks()
    texts = [runs(mask, order=order, first=first) for mask in own]
    rows = [
        f"{name.format(i)},{text}" for i, text in ((0, texts[0]), (0, texts[1]), (1, texts[2]), (3, texts[3]))
    ]
    root = table(tmp_path / "set", "ImageId,EncodedPixels", [*rows, f"{name.format(2)},"])
    assert detect_format(root) == detect_format(root / "train_masks.csv") == "rle"
    found = read_labels("auto", root, **options)
    shown = objects(found)
    assert {stem: len(labels or ()) for stem, labels in shown.items()} == {
        "im0": 2,
        "im1": 1,
        "im2": 0,
        "im3": 1,
    }
    assert shown["im2"] == ()
    for stem, k, expected in (("im0", 0, own[0]), ("im0", 1, own[1]), ("im1", 0, own[2]), ("im3", 0, own[3])):
        label = (shown[stem] or ())[k]
        assert label.category == "object"
        np.testing.assert_array_equal(drawn(label), expected)
    said = "\n".join(found.understood)
    line = "column by column" if order == "F" else "row by row"
    assert f"EncodedPixels holds runs (start, length) {line}, counted from {first}; -o order=" in said
    assert 'names no classes: all are "object"; -o classes=NAME' in said


def test_classes_splits_and_words_for_nothing(tmp_path: Path) -> None:
    own = [runs(mask) for mask in masks()]
    rows = [
        f"im0,{own[0]},cell,train",
        f"im0,{own[1]},crack,train",
        "im1,-1,,val",
        "im2,nan,cell,test",
        f"im3,{own[2]},crack,train",
    ]
    found = read_labels("auto", table(tmp_path / "set", "image_id,rle,class,split", rows))
    assert [(label.category, label.box) for label in found.items[0].objects or ()] == [
        ("cell", (3.0, 2.0, 9.0, 5.0)),
        ("crack", (11.0, 4.0, 18.0, 11.0)),
    ]
    assert [item.objects for item in found.items[1:3]] == [(), ()]
    assert [item.split for item in found.items] == ["train", "val", "test", "train"]
    assert found.object_classes == ("cell", "crack")
    assert found.findings == ()
    both = read_labels("rle", tmp_path / "set", semantic="both")
    assert both.semantic_classes[1:] == ("cell", "crack")


@pytest.mark.parametrize(
    ("numbers", "names"), [("1 2", "abb"), ("0 1", "abb"), ("2 2", "bbb"), ("1 1", "bbb")]
)
def test_names_of_numbers_begin_at_0_or_1(tmp_path: Path, numbers: str, names: str) -> None:
    own = [runs(mask) for mask in masks()]
    one, two = numbers.split()
    rows = [f"im0,{one},{own[0]}", f"im1,{two},{own[1]}", f"im2,{two},{own[2]}", "im3,1,"]
    root = table(tmp_path / "set", "ImageId,ClassId,EncodedPixels", rows)
    found = read_labels("auto", root, classes="a,b")
    assert "".join(label.category for item in found.items for label in item.objects or ()) == names


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("239 4", "run 1 (239 4) doesn't lie in the 240 pixels of its image of 20×12"),
        ("3 4 900 2", "run 2 (900 2) doesn't lie in the 240 pixels"),
        ("3 4 5", "holds 3 numbers, but runs are pairs of start and length"),
        ("3 4 6 2", "run 2 begins before run 1 ends"),
        ("30 4 6 2", "run 2 begins before run 1 ends"),
        ("3 0", "run 1 (3 0) doesn't lie in"),
        ("3 99999999999999999999", "which is no list of whole numbers"),
        ("PQ012", 'holds "PQ012", which is no list of whole numbers'),
    ],
)
def test_runs_that_can_not_be_used_are_named_by_their_row(tmp_path: Path, text: str, words: str) -> None:
    """Their image is unlabelled, never one in which there is nothing."""
    own = [runs(mask) for mask in masks()]
    rows = [f"im0,{own[0]}", f"im1,{own[1]}", f"im2,{own[2]}", f"im3,{text}"]
    found = read_labels("auto", table(tmp_path / "set", "ImageId,EncodedPixels", rows))
    assert any(line.startswith("train_masks.csv:5: ") and words in line for line in found.findings)
    assert all(item.objects for item in found.items)
    assert "im3" not in objects(found)


def test_a_table_whose_runs_are_all_wrong_is_refused(tmp_path: Path) -> None:
    """As of masks that were drawn on larger images."""
    rows = [f"im{i},{900 + i} 5" for i in range(4)]
    with pytest.raises(DataError, match=r"none of the 4 labels can be used.*:2: run 1 \(900 5\)"):
        read_labels("auto", table(tmp_path / "set", "ImageId,EncodedPixels", rows))


@pytest.mark.parametrize(
    ("write", "words", "fix"),
    [
        (
            lambda mask: runs(mask, first=0),
            r"train_masks.csv:5: a run begins at 0 \(and in 1 rows\)",
            "-o first=0",
        ),
        (
            lambda mask: runs(mask, order="C"),
            "pixels seem to be counted row by row",
            "-o order=rows reads them so, -o order=columns",
        ),
    ],
)
def test_runs_that_fit_another_reading_alone_are_refused(
    tmp_path: Path, write: Callable[[np.ndarray], str], words: str, fix: str
) -> None:
    rows = [f"im{i},{write(mask)}" for i, mask in enumerate(masks())]
    root = table(tmp_path / "set", "ImageId,EncodedPixels", rows)
    with pytest.raises(DataError) as caught:
        read_labels("auto", root)
    assert re.search(words, str(caught.value)) and fix in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_tables_are_no_runs(tmp_path: Path) -> None:
    """Numbers of classes, four numbers of boxes, and texts."""
    rows = [f"im{i},{i % 2}" for i in range(4)]
    assert detect_format(table(tmp_path / "classes", "image_id,label", rows)) == "classes"
    rows = [f'im{i}.png,"3 4 {i + 5} 6",a' for i in range(4)]
    assert detect_format(table(tmp_path / "boxes", "image,bbox,class", rows)) == "boxes"
    rows = [f"im{i}.png,a cat of {i} years" for i in range(4)]
    assert detect_format(table(tmp_path / "texts", "image,caption", rows)) == "captions"
