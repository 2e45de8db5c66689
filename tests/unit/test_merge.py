"""Two compiled sets become one: splits stay, corrections count, what has two readings is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.raster_files import write_raster
from vitp.core.errors import ConfigError, DataError
from vitp.data.compile import compile_labels
from vitp.data.formats.vitp_labels import read_compiled
from vitp.data.merge import MergeOptions, merge_sets
from vitp.records.labels import LabelledImage

Row = tuple[str, int, str, tuple[float, float, float, float]]
"""Name of an image, seed of its pixels, class and box of its object ("": none)."""

BOX = (4.0, 4.0, 20.0, 16.0)


def coco(root: Path, rows: list[Row], classes: str = "ship,tank", **options: Any) -> Path:
    """Compile a COCO set of pictures, and return the folder of what was compiled."""
    images, annotations, names = [], [], classes.split(",")
    for number, (name, seed, category, box) in enumerate(rows):
        path = root / "images" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 255, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        images.append({"id": number, "file_name": f"{name}.png", "width": 48, "height": 40})
        if category:
            x1, y1, x2, y2 = box
            place = {"bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]]}
            row = {"id": number, "image_id": number, "category_id": names.index(category), **place}
            annotations.append(row)
    (root / "annotations.json").write_text(
        json.dumps(
            {
                "images": images,
                "annotations": annotations,
                "categories": [{"id": number, "name": name} for number, name in enumerate(names)],
            }
        )
    )
    out = root.parent / f"{root.name}-compiled"
    compile_labels(root, "coco", out, **{"val": 0.2, "test": 0.2} | options)
    return out


def items_of(folder: Path) -> dict[str, LabelledImage]:
    return {item.id: item for item in read_compiled(folder).items}


OLD: list[Row] = [(f"i{n}", n, "ship" if n % 2 else "tank", BOX) for n in range(12)]


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coco(tmp_path_factory.mktemp("merge") / "old", OLD)


def test_splits_stay_corrections_count_and_new_images_are_drawn(old: Path, tmp_path: Path) -> None:
    moved = (6.0, 6.0, 22.0, 18.0)
    rows: list[Row] = [
        ("renamed", 3, "ship", BOX),  # an old image under another name, unchanged
        ("also", 4, "tank", moved),  # corrected
        ("gone", 5, "", BOX),  # corrected: there is nothing
        *((f"i{n}", 100 + n, "ship", BOX) for n in range(10)),  # new ones with names of old ones
    ]
    merged = merge_sets(old, coco(tmp_path / "new", rows), tmp_path / "out")
    assert (merged.replaced, merged.unchanged, merged.kept) == (["images/i4", "images/i5"], ["images/i3"], 9)
    assert len(merged.added) == 10 and not set(merged.added) & set(items_of(old))
    before, after = items_of(old), items_of(tmp_path / "out")
    assert len(after) == 22
    assert all(after[name].split == item.split for name, item in before.items())
    assert after["images/i4"].objects is not None and after["images/i4"].objects[0].box == moved
    assert after["images/i5"].objects == () and after["images/i3"] == before["images/i3"]
    assert {after[name].split for name in merged.added} == {"train", "val", "test"}
    assert all(Path(item.image).is_file() for item in after.values())
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    told = summary["options"]["merged"]
    assert told["old"]["content_hash"] == json.loads((old / "summary.json").read_text())["content_hash"]
    assert told["new"]["label_format"] == "coco" and told["replaced"] == merged.replaced
    assert summary["understood"][0].startswith("10 added (") and "2 replaced (images/i4, images/i5)" in str(
        summary
    )
    assert str(tmp_path) not in json.dumps(told)
    # The same again changes nothing more, and what was merged can be merged.
    again = merge_sets(tmp_path / "out", tmp_path / "new-compiled", tmp_path / "again")
    assert not again.added and not again.replaced and len(again.unchanged) == 13
    assert {name: item.split for name, item in items_of(tmp_path / "again").items()} == {
        name: item.split for name, item in after.items()
    }


def test_groups_are_never_split(old: Path, tmp_path: Path) -> None:
    first = coco(tmp_path / "a", [(f"s{n % 4}_{n}", n, "ship", BOX) for n in range(12)], group_regex=r"^s\d")
    rows: list[Row] = [(f"s{n % 6}_{n + 50}", n + 50, "tank", BOX) for n in range(12)]
    second = coco(tmp_path / "b", rows, group_regex=r"^s\d")
    merge_sets(first, second, tmp_path / "out", MergeOptions(seed=3))
    sides: dict[str, set[str]] = {}
    for item in items_of(tmp_path / "out").values():
        sides.setdefault(item.group, set()).add(item.split)
    assert len(sides) == 6 and all(len(own) == 1 for own in sides.values())
    # A new image that is in a group with old ones of two splits can't be anywhere.
    copies: list[Row] = [("s9_0", 1000, "ship", BOX), *((f"s9_{n}", n, "ship", BOX) for n in range(1, 12))]
    third = coco(tmp_path / "c", copies, group_regex=r"^s\d", splits="drawn")
    with pytest.raises(DataError, match=r"s9_0 belongs to .* and .*, which are in different splits"):
        merge_sets(old, third, tmp_path / "torn")
    assert not (tmp_path / "torn").exists()


@pytest.mark.parametrize(("splits", "expected"), [("train", {"train"}), ("test", {"test"}), ("own", {"val"})])
def test_new_images_go_where_they_are_sent(
    old: Path, tmp_path: Path, splits: Any, expected: set[str]
) -> None:
    rows: list[Row] = [(f"n{n}", 200 + n, "ship", BOX) for n in range(5)]
    rows.append(("t", 300, "ship", BOX))
    split_file = tmp_path / "splits.txt"
    split_file.write_text("".join(f"n{n}.png val\n" for n in range(5)) + "t.png train\n")
    new = coco(tmp_path / "new", rows, split_file=split_file)
    merged = merge_sets(old, new, tmp_path / "out", MergeOptions(splits=splits))
    after = items_of(tmp_path / "out")
    assert {after[name].split for name in merged.added if "/n" in name} == expected
    drawn = merge_sets(old, new, tmp_path / "drawn", MergeOptions(val=0, test=0))
    assert {items_of(tmp_path / "drawn")[name].split for name in drawn.added} == {"train"}


def test_one_image_with_two_labels_is_refused_by_name(old: Path, tmp_path: Path) -> None:
    rows: list[Row] = [("x", 77, "ship", BOX), ("y", 77, "tank", BOX), ("z", 78, "tank", BOX)]
    new = coco(tmp_path / "new", rows)
    with pytest.raises(DataError, match="images/y shows images/x, with other labels; keep the labels of one"):
        merge_sets(old, new, tmp_path / "out")
    rows[1] = ("y", 77, "ship", BOX)
    merged = merge_sets(old, coco(tmp_path / "equal", rows), tmp_path / "out")
    assert merged.repeated == ["images/y"] and merged.added == ["images/x", "images/z"]


def test_classes_with_two_readings_are_refused(old: Path, tmp_path: Path) -> None:
    rows: list[Row] = [("x", 77, "Ship", BOX), ("y", 78, "crane", BOX)]
    with pytest.raises(DataError, match='class "Ship" may be the old set\'s "ship", or another one'):
        merge_sets(old, coco(tmp_path / "a", rows, "Ship,crane"), tmp_path / "out")
    rows[0] = ("x", 77, "ship", BOX)
    new = coco(tmp_path / "b", rows, "crane,ship")
    with pytest.raises(DataError, match=r"tank only in old and crane only in b; .*--complete .*-o classes="):
        merge_sets(old, new, tmp_path / "out")
    merge_sets(old, new, tmp_path / "out", MergeOptions(complete=True))
    assert read_compiled(tmp_path / "out").object_classes == ("ship", "tank", "crane")


def test_masks_count_the_classes_of_both(tmp_path: Path) -> None:
    rows: list[Row] = [("a", 1, "ship", BOX), ("b", 2, "tank", BOX), ("c", 3, "ship", BOX)]
    first = coco(tmp_path / "first", rows, "ship,tank", semantic=True, val=0, test=0)
    rows = [("d", 4, "crane", BOX), ("e", 5, "tank", BOX), ("a", 1, "ship", BOX)]
    second = coco(tmp_path / "second", rows, "crane,tank,ship", semantic=True, val=0, test=0)
    merged = merge_sets(first, second, tmp_path / "out", MergeOptions(complete=True))
    assert merged.unchanged == ["images/a"]  # the same pixels, although the numbers were others
    read = read_compiled(tmp_path / "out")
    assert read.semantic_classes == ("background", "ship", "tank", "crane")
    masks = {item.id[-1]: item.semantic() for item in read.items if item.semantic is not None}
    assert {name: read.semantic_classes[mask.max()] for name, mask in masks.items()} == {
        "a": "ship", "b": "tank", "c": "ship", "d": "crane", "e": "tank",
    }  # fmt: skip


def test_ground_that_touches_stays_on_one_side(tmp_path: Path) -> None:
    def placed(root: Path, columns: list[int], seed: int) -> Path:
        for row in range(2):
            for column in columns:
                name = root / "images" / f"r{row}c{column}.tif"
                name.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.random.default_rng(seed + 10 * row + column).integers(
                    0, 255, (3, 16, 16), dtype=np.uint8
                )
                corner = (1.0, 0.0, 500_000.0 + 16 * column, 0.0, -1.0, 5_000_000.0 - 10_000 * row)
                write_raster(name, pixels, ("EPSG:32633", corner))
                (root / "masks").mkdir(exist_ok=True)
                mask = np.zeros((16, 16), np.uint8)
                mask[: 4 + column, :4] = 1
                Image.fromarray(mask).save(root / "masks" / f"{name.stem}.png")
        split_file = root / "s.txt"
        names = [f"r{row}c{column}" for row in range(2) for column in columns]
        split_file.write_text("".join(f"{n} {'train' if n[1] == '0' else 'test'}\n" for n in names))
        out = root.parent / f"{root.name}-compiled"
        compile_labels(
            root, "masks", out, split_file=split_file, classes="land=0,sea=1", bands="1,2,3", range="0,255"
        )
        return out

    first = placed(tmp_path / "one", [0], 0)
    second = placed(tmp_path / "two", [1, 40], 500)
    merged = merge_sets(first, second, tmp_path / "out", MergeOptions(splits="val"))
    after = {name.rpartition("/")[2]: item.split for name, item in items_of(tmp_path / "out").items()}
    assert after["r0c1"] == after["r0c0"] == "train" and after["r1c1"] == after["r1c0"] == "test"
    assert after["r0c40"] == after["r1c40"] == "val" and len(merged.added) == 4


def test_patients_with_numbers_alone_may_be_the_same_ones(tmp_path: Path) -> None:
    def patients(root: Path, seed: int) -> Path:
        rows: list[Row] = [(f"patient{n // 2:02d}/scan{n}", seed + n, "ship", BOX) for n in range(8)]
        return coco(root, rows)

    first, second = patients(tmp_path / "a", 0), patients(tmp_path / "b", 50)
    assert {item.group for item in items_of(first).values()} == {f"patient-{n:04d}" for n in range(1, 5)}
    with pytest.raises(DataError, match=r"is of a patient who has a number alone.*--other-patients"):
        merge_sets(first, second, tmp_path / "out")
    merge_sets(first, second, tmp_path / "out", MergeOptions(other_patients=True))
    groups: dict[str, set[str]] = {}
    for item in items_of(tmp_path / "out").values():
        groups.setdefault(item.group, set()).add(item.split)
    assert len(groups) == 8 and all(len(own) == 1 for own in groups.values())


def test_what_cannot_be_merged_leaves_nothing(old: Path, tmp_path: Path) -> None:
    for wrong in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError):
            merge_sets(old, wrong, tmp_path / "out")
    with pytest.raises(ConfigError, match="is one of the sets that are read"):
        merge_sets(old, old, old, force=True)
    with pytest.raises(ConfigError, match=r"is 1\.5; give a share"):
        merge_sets(old, old, tmp_path / "out", MergeOptions(val=1.5))
    assert not (tmp_path / "out").exists()
