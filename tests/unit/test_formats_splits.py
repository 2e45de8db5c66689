"""Splits that a set brings along are honoured, in every format; VOC in all its layouts and shapes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitp.core.errors import ConfigError, DataError
from vitp.data.formats import read_labels
from vitp.data.formats.detect import detect_format
from vitp.data.formats.split_lists import SplitEntry
from vitp.data.formats.splits import match_entries
from vitp.data.formats.walk import split_of
from vitp.records.labels import LabelledSet

QUAD = "5 6 25 6 25 30 5 30 ship 0\n"
OBJECT = (
    "<object><name>ship</name>"
    "<bndbox><xmin>5</xmin><ymin>6</ymin><xmax>25</xmax><ymax>30</ymax></bndbox></object>"
)


def image(path: Path, number: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((48, 64, 3), 40 + number, np.uint8)).save(path)
    return path


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def splits(found: LabelledSet) -> dict[str, str]:
    return {Path(item.image).stem: item.split for item in found.items}


def write(fmt: str, root: Path, count: int = 4) -> Path:
    """Write a set of single images without splits."""
    for i in range(count):
        name = f"im{i}"
        if fmt == "dota":
            image(root / "images" / f"{name}.png", i)
            text(root / "labelTxt" / f"{name}.txt", QUAD)
        elif fmt == "voc":
            image(root / "JPEGImages" / f"{name}.png", i)
            text(root / "Annotations" / f"{name}.xml", f"<annotation>{OBJECT}</annotation>")
        elif fmt == "yolo":
            image(root / f"{name}.png", i)
            text(root / f"{name}.txt", "0 .5 .5 .2 .2")
            text(root / "obj.names", "ship")
        elif fmt == "folders":
            image(root / f"class {i % 2}" / f"{name}.png", i)
        else:
            image(root / "images" / f"{name}.png", i)
            mask = np.zeros((48, 64), np.uint8)
            mask[: 9 + i] = 1
            (root / "masks").mkdir(exist_ok=True)
            Image.fromarray(mask).save(root / "masks" / f"{name}.png")
    return root


FORMATS = ["dota", "voc", "yolo", "folders", "masks"]
OPTIONS = {"masks": {"classes": "none=0,ship=1"}}


@pytest.mark.parametrize("fmt", FORMATS)
def test_lists_are_the_splits(tmp_path: Path, fmt: str) -> None:
    write(fmt, tmp_path)
    folder = {"voc": "ImageSets/Main", "folders": "splits"}.get(fmt, "")
    text(tmp_path / folder / "train.txt", "im0.png\nim1.png\n")
    text(tmp_path / folder / "valid.txt", "# held out\nim2\nim9\n")
    with pytest.raises(DataError, match=r'valid\.txt:3: "im9" means no image of the set; .*-o partial=true'):
        read_labels(fmt, tmp_path, **OPTIONS.get(fmt, {}))
    found = read_labels(fmt, tmp_path, partial=True, **OPTIONS.get(fmt, {}))
    assert splits(found) == {"im0": "train", "im1": "train", "im2": "val"}
    assert any("im3.png: not in the lists train.txt, valid.txt; image left out" in f for f in found.findings)
    assert any(
        "1 entry means no labelled image of the set (the first in row 3: im9)" in f for f in found.findings
    )
    assert "splits: train 2, val 1; from the lists train.txt, valid.txt" in found.understood
    text(tmp_path / folder / "valid.txt", "im2\nim1\n")
    with pytest.raises(
        DataError, match=r"im1\.png: is in train \(.*train\.txt:2\) and in val \(.*valid\.txt:2\)"
    ):
        read_labels(fmt, tmp_path, **OPTIONS.get(fmt, {}))


@pytest.mark.parametrize("fmt", FORMATS)
def test_splits_are_drawn_where_nothing_names_them(tmp_path: Path, fmt: str) -> None:
    write(fmt, tmp_path, 10)
    found = read_labels(fmt, tmp_path, **OPTIONS.get(fmt, {}))
    assert sorted(splits(found).values()) == ["test", *["train"] * 8, "val"]
    assert "splits: train 8, val 1, test 1; drawn (val=0.1, test=0.1, seed=0)" in found.understood
    text(tmp_path / "test.txt", "a text of ours\n")
    with pytest.raises(DataError, match=r'test\.txt:1: "a text of ours" means no image .*-o splits=drawn'):
        read_labels(fmt, tmp_path, **OPTIONS.get(fmt, {}))
    again = read_labels(fmt, tmp_path, splits="drawn", **OPTIONS.get(fmt, {}))
    assert splits(again) == splits(found)


def test_what_is_held_out_alone_is_listed(tmp_path: Path) -> None:
    write("dota", tmp_path)
    text(tmp_path / "test.txt", "im1.png\n")
    assert splits(read_labels("dota", tmp_path)) == {
        "im0": "train",
        "im1": "test",
        "im2": "train",
        "im3": "train",
    }


def test_list_that_contradicts_a_folder_is_refused(tmp_path: Path) -> None:
    for i, split in enumerate(("train", "val")):
        image(tmp_path / split / "images" / f"im{i}.png", i)
        text(tmp_path / split / "labelTxt" / f"im{i}.txt", QUAD)
    text(tmp_path / "train.txt", "im0\n")
    assert splits(read_labels("dota", tmp_path)) == {"im0": "train"}
    text(tmp_path / "train.txt", "im0\nim1\n")
    with pytest.raises(DataError, match=r"im1\.png: is in the list of train and in the folder of val"):
        read_labels("dota", tmp_path)
    chosen = text(tmp_path / "mine.json", '{"train": ["im1"], "val": ["im0"]}')
    assert splits(read_labels("dota", tmp_path, split_file=chosen)) == {"im1": "train", "im0": "val"}


def test_split_file_with_an_image_in_two_splits_is_refused(tmp_path: Path) -> None:
    write("dota", tmp_path)
    for name, content in (
        ("s.json", '{"train": ["im1.png"], "val": ["im1"]}'),
        ("s.csv", "im1.png,train\nim1,val\n"),
    ):
        with pytest.raises(DataError, match=rf"im1\.png: is in train \({name}.*\) and in val \({name}"):
            read_labels("dota", tmp_path, split_file=text(tmp_path / name, content))


def entries(*names: str, split: str = "train") -> list[SplitEntry]:
    return [SplitEntry((name,), split, f"list:{row}") for row, name in enumerate(names, 1)]


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("a/x.png", "a/x.png"),
        ("./a/x", "a/x.png"),
        ("../set/a/x.png", "a/x.png"),
        ("C:\\me\\a\\x.png", "a/x.png"),
        ("y", "b/y.tif"),
        ("elsewhere/y.tif", "b/y.tif"),
        ("two words", "two words.jpg"),
        ("c.d", "b/c.d.png"),
        ("z.png", None),
    ],
)
def test_names_of_lists_mean_images(name: str, place: str | None) -> None:
    images = ["a/x.png", "b/x.png", "b/y.tif", "two words.jpg", "b/c.d.png"]
    found, missing = match_entries(entries(name), images)
    assert [image for image, split in zip(images, found, strict=True) if split] == ([place] if place else [])
    assert len(missing) == (place is None)


def test_name_that_means_two_images_is_refused() -> None:
    with pytest.raises(DataError, match=r'"x\.png" may be a/x\.png or b/x\.png'):
        match_entries(entries("x.png"), ["a/x.png", "b/x.png"])


def test_path_of_another_folder_does_not_mean_an_image_that_is_listed(tmp_path: Path) -> None:
    rows = [*entries("train/x.png"), *entries("val/x.png", split="val")]
    found, missing = match_entries(rows, ["val/x.png"])
    assert found == ["val"]
    assert [entry.names[0] for entry in missing] == ["train/x.png"]


@pytest.mark.parametrize(
    ("word", "split"),
    [("train2017", "train"), ("VAL_2014", "val"), ("test", "test"), ("train3", None), ("2017", None)],
)
def test_words_for_splits(word: str, split: str | None) -> None:
    assert split_of(word) == split


# --- VOC


def voc(labels: Path, images: Path, stem: str, content: str = OBJECT) -> None:
    image(images / f"{stem}.png", len(stem))
    text(labels / f"{stem}.xml", f"<annotation><filename>{stem}.png</filename>{content}</annotation>")


@pytest.mark.parametrize(
    ("labels", "images"),
    [
        ("{split}/Annotations", "{split}/JPEGImages"),
        ("{split}/annotations", "{split}/images"),
        ("{split}", "{split}"),
        ("{split}/Annotations", "{split}"),
        ("Annotations/{split}", "JPEGImages/{split}"),
        ("ANNOTATIONS/{split}", "jpegimages/{split}"),
    ],
)
def test_voc_by_split(tmp_path: Path, labels: str, images: str) -> None:
    for split, stem in (("train", "a"), ("train", "bb"), ("valid", "ccc")):
        voc(tmp_path / labels.format(split=split), tmp_path / images.format(split=split), stem)
    assert detect_format(tmp_path) == "voc"
    assert splits(read_labels("auto", tmp_path)) == {"a": "train", "bb": "train", "ccc": "val"}


@pytest.mark.parametrize(
    "folders", [("", ""), ("annotations", "jpegimages"), ("ANNOTATIONS", ""), ("xml", "imgs")]
)
def test_voc_folders_in_any_case(tmp_path: Path, folders: tuple[str, str]) -> None:
    voc(tmp_path / folders[0], tmp_path / folders[1], "two words")
    assert detect_format(tmp_path) == "voc"
    assert splits(read_labels("auto", tmp_path, val=0, test=0)) == {"two words": "train"}


def test_other_xml_beside_images_is_no_voc(tmp_path: Path) -> None:
    image(tmp_path / "scene.tif")
    text(tmp_path / "scene.xml", "<metadata/>")
    with pytest.raises(DataError, match="no label format recognised"):
        detect_format(tmp_path)


def test_voc_flags_behind_names(tmp_path: Path) -> None:
    write("voc", tmp_path)
    text(tmp_path / "ImageSets" / "Main" / "train.txt", "im0  1\nim1 -1\n")
    text(tmp_path / "ImageSets" / "Main" / "val.txt", "im2  0\nim3\n")
    text(tmp_path / "ImageSets" / "Main" / "trainval.txt", "im0\nim1\nim2\nim3\n")
    assert splits(read_labels("voc", tmp_path)) == {
        "im0": "train",
        "im1": "train",
        "im2": "val",
        "im3": "val",
    }


def test_voc_one_file_for_one_image(tmp_path: Path) -> None:
    voc(tmp_path / "Annotations", tmp_path / "JPEGImages", "a")
    image(tmp_path / "JPEGImages" / "a.jpg")
    found = read_labels("voc", tmp_path, val=0, test=0)  # <filename> says which
    assert [Path(item.image).name for item in found.items] == ["a.png"]
    assert "JPEGImages: 1 image has no annotation (the first: a.jpg); left out" in found.findings
    text(tmp_path / "Annotations" / "a.xml", f"<annotation>{OBJECT}</annotation>")
    with pytest.raises(DataError, match=r"a\.xml: may belong to JPEGImages/a\.jpg or to JPEGImages/a\.png"):
        read_labels("voc", tmp_path)


def rotated(angle: object, width: float = 20, height: float = 10) -> str:
    values = {"cx": 32, "cy": 24, "w": width, "h": height, "angle": angle}
    return (
        "<object><name>ship</name><robndbox>"
        + "".join(f"<{key}>{value}</{key}>" for key, value in values.items())
        + "</robndbox></object>"
    )


@pytest.mark.parametrize(
    ("angle", "quad"),
    [
        (0, (22, 19, 42, 19, 42, 29, 22, 29)),
        (math.pi / 2, (37, 14, 37, 34, 27, 34, 27, 14)),
        # A little clockwise: the right end goes down in the image.
        (math.atan2(3, 4), (27, 14, 43, 26, 37, 34, 21, 22)),
    ],
)
def test_rotated_boxes_of_voc(tmp_path: Path, angle: float, quad: tuple[float, ...]) -> None:
    voc(tmp_path / "Annotations", tmp_path / "JPEGImages", "a", rotated(angle))
    (label,) = read_labels("voc", tmp_path).items[0].objects or ()
    assert label.quad == pytest.approx(quad)
    voc(tmp_path / "Annotations", tmp_path / "JPEGImages", "a", rotated(math.degrees(angle)))
    (label,) = read_labels("voc", tmp_path, angles="degrees").items[0].objects or ()
    assert label.quad == pytest.approx(quad)


def test_rotated_boxes_in_degrees_are_refused_where_not_told(tmp_path: Path) -> None:
    voc(tmp_path / "Annotations", tmp_path / "JPEGImages", "a", rotated(45))
    with pytest.raises(
        DataError, match=r"a\.xml: the angle 45 of object 1 is no angle in radians.*angles=degrees"
    ):
        read_labels("voc", tmp_path)
    with pytest.raises(ConfigError, match="choose radians or degrees"):
        read_labels("voc", tmp_path, angles="grad")


@pytest.mark.parametrize(
    "polygon",
    [
        "<polygon><x1>5</x1><y1>6</y1><x2>25</x2><y2>6</y2><x3>25</x3><y3>30</y3></polygon>",
        "<polygon><pt><x>5</x><y>6</y></pt><pt><x>25</x><y>6</y></pt><pt><x>25</x><y>30</y></pt></polygon>",
    ],
)
@pytest.mark.parametrize("box", [True, False])
def test_polygons_of_voc(tmp_path: Path, polygon: str, box: bool) -> None:
    content = (
        OBJECT.replace("</object>", f"{polygon}</object>") if box else OBJECT[: OBJECT.index("<bndbox>")]
    )
    content = content if box else f"{content}{polygon}</object>"
    voc(tmp_path / "Annotations", tmp_path / "JPEGImages", "a", content)
    (label,) = read_labels("voc", tmp_path).items[0].objects or ()
    assert label.polygons == ((5, 6, 25, 6, 25, 30),)
    assert label.box == (5, 6, 25, 30)
