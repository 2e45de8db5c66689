"""YOLO folders as they come: what rows mean, names as they are written, data.yaml followed, labels that are lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitp.core.errors import ConfigError, DataError
from vitp.data.formats import read_labels
from vitp.data.formats.detect import detect_format
from vitp.records.labels import LabelledSet

ROW = "0 .5 .5 .2 .2\n"
QUAD = "0 .1 .1 .3 .1 .3 .2 .1 .2\n"
POSE = "0 .5 .5 .2 .2 .4 .4 2 .45 .45 0\n"
WHOLE = {"val": 0, "test": 0}


def image(path: Path, number: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((48, 64, 3), 40 + number, np.uint8)).save(path)
    return path


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def yolo(
    root: Path, *rows: str, yaml: str = "names: [ship, car]\n", inside: str = "", stem: str = "im"
) -> Path:
    for i, row in enumerate(rows):
        image(root / "images" / inside / f"{stem}{i}.png", i)
        text(root / "labels" / inside / f"{stem}{i}.txt", row)
    text(root / "data.yaml", yaml)
    return root


def test_folders_of_images_without_label_files_are_named_and_left_out(tmp_path: Path) -> None:
    """Images that nobody labelled are none in which there is nothing."""
    root = yolo(tmp_path, ROW, ROW, ROW)
    for i in range(2):
        image(root / "unlabelled" / "later" / f"new{i}.png", 9 + i)
    found = read_labels("yolo", root, **WHOLE)
    assert found.findings == ("unlabelled/later: 2 images without a folder of label files; left out",)
    assert [item.id for item in found.items] == [f"images/im{i}" for i in range(3)]


def places(found: LabelledSet) -> dict[str, str]:
    return {item.id.removeprefix("images/"): item.split for item in found.items}


# --- rows


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("0 30 20 10 10", "30 looks like pixels, but YOLO rows are shares of the image"),
        ("0 .5 .5 1.2 .2", "1.2 looks like pixels"),
        ("0 .5 .5 -.2 .2", "-0.2 is below 0"),
        ("0 nan .5 .2 .2", "a coordinate is not a number"),
        ("0 .5 .5 inf .2", "a coordinate is not a number"),
    ],
)
def test_image_that_lost_its_label_is_left_out(tmp_path: Path, row: str, why: str) -> None:
    found = read_labels("yolo", yolo(tmp_path, ROW, ROW, row), **WHOLE)
    assert sorted(places(found)) == ["im0", "im1"]
    assert any(line.startswith(f"labels/im2.txt:1: {why}") for line in found.findings)


@pytest.mark.parametrize("number", ["2", "-1", "999999999999999999999"])
def test_class_out_of_range_is_ignored_in_its_place(tmp_path: Path, number: str) -> None:
    found = read_labels("yolo", yolo(tmp_path, ROW, ROW, f"{number} .5 .5 .5 .5"), **WHOLE)
    item = found.items[2]
    assert item.objects == ()
    assert [label.box for label in item.ignored] == [(16, 12, 48, 36)]


@pytest.mark.parametrize("row", ["0 30 20 10 10", "7 .5 .5 .2 .2", "0 .5 .5 .2 nan"])
@pytest.mark.parametrize("count", [1, 4])
def test_set_whose_labels_are_all_lost_is_refused(tmp_path: Path, row: str, count: int) -> None:
    yolo(tmp_path, *([row] * count), "")
    with pytest.raises(DataError, match=f"none of the {count} labels .*can be used"):
        read_labels("yolo", tmp_path, **WHOLE)


def test_folder_of_a_split_whose_labels_are_all_lost_is_refused(tmp_path: Path) -> None:
    yolo(tmp_path, *([ROW] * 9), inside="train")
    yolo(tmp_path, *(["0 30 20 10 10"] * 3), inside="val")
    with pytest.raises(DataError, match="labels/val: none of the 3 labels can be used"):
        read_labels("yolo", tmp_path)


def test_rounding_and_float_classes_are_read(tmp_path: Path) -> None:
    found = read_labels("yolo", yolo(tmp_path, "1.0 .5 .5 1.000001 1.0\n0.0 .5 .5 .2 .2"), **WHOLE)
    car, ship = found.items[0].objects or ()
    assert (car.category, car.box, ship.category) == ("car", (0, 0, 64, 48), "ship")


@pytest.mark.parametrize("number", ["1.5", "nan", "9" * 5000, "x"])
def test_class_that_is_no_number_is_refused(tmp_path: Path, number: str) -> None:
    with pytest.raises(DataError, match=r"im0\.txt:1: is not a YOLO row") as caught:
        read_labels("yolo", yolo(tmp_path, f"{number} .5 .5 .2 .2"), **WHOLE)
    assert len(str(caught.value)) < 500


def test_points_are_small_regions_where_asked_for(tmp_path: Path) -> None:
    yolo(tmp_path, ROW, "0 .5 .5 0 0", "0 .5 .5 .1 0")
    assert [len(i.objects or ()) for i in read_labels("yolo", tmp_path, **WHOLE).items] == [1, 0, 0]
    found = read_labels("yolo", tmp_path, point_size=8, **WHOLE)
    assert [len(i.objects or ()) for i in found.items] == [1, 1, 0]
    assert (found.items[1].objects or ())[0].box == (28, 20, 36, 28)


def test_nine_columns_are_oriented_boxes_unless_the_set_has_outlines(tmp_path: Path) -> None:
    yolo(tmp_path, ROW + QUAD, QUAD)
    found = read_labels("yolo", tmp_path, **WHOLE)
    assert [label.quad is not None for label in found.items[0].objects or ()] == [False, True]
    assert any(line.startswith("rows of 9 columns: oriented boxes") for line in found.understood)
    found = read_labels("yolo", tmp_path, rows="polygons", **WHOLE)
    assert [len(label.polygons) for label in found.items[0].objects or ()] == [0, 1]
    text(tmp_path / "labels" / "im1.txt", "0 .1 .1 .3 .1 .3 .2 .2 .3 .1 .2")
    found = read_labels("yolo", tmp_path, **WHOLE)
    assert [label.quad for label in found.items[0].objects or ()] == [None, None]
    assert any("outlines" in line for line in found.understood)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            POSE,
            r"11 columns: boxes with 2 keypoints \(rows=pose .*or outlines of 5 corners \(rows=polygons\)",
        ),
        (
            "0 .5 .5 .2 .2 .45 .45 .5 .5 .55 .55",
            r"11 columns: boxes with 3 keypoints .*outlines of 5 corners",
        ),
        (
            "0 .5 .5 .2 .2 .4 .4 2",
            r"8 columns: boxes with 1 keypoints \(rows=pose reads the boxes\); say which",
        ),
        ("0 .5 .5 .2 .2 0 0 0 .5 .5 1 .4 .4 2", r"14 columns: boxes with 3 keypoints"),
        ("0 .5 .5 .2 .2 .9", "is not a YOLO row .6 columns: the last is a confidence"),
        (QUAD.strip() + " .9", "is not a YOLO row .10 columns"),
    ],
)
def test_rows_with_two_readings_are_refused(tmp_path: Path, row: str, message: str) -> None:
    yolo(tmp_path, row, row)
    assert detect_format(tmp_path) == "yolo"
    with pytest.raises(DataError, match=message):
        read_labels("yolo", tmp_path, **WHOLE)


@pytest.mark.parametrize("yaml", ["names: [a]\nkpt_shape: [2, 3]\n", "names: [a]\n"])
def test_keypoints_are_left_out_of_boxes(tmp_path: Path, yaml: str) -> None:
    yolo(tmp_path, POSE + ROW, yaml=yaml)
    options = {} if "kpt_shape" in yaml else {"rows": "pose"}
    found = read_labels("yolo", tmp_path, **options, **WHOLE)
    (label,) = found.items[0].objects or ()  # both rows are the same box
    assert label.box == pytest.approx((25.6, 19.2, 38.4, 28.8))
    assert any("keypoints" in line and "not used" in line for line in found.understood)


def test_keypoints_that_differ_from_kpt_shape_are_refused(tmp_path: Path) -> None:
    yolo(tmp_path, POSE, yaml="names: [a]\nkpt_shape: [17, 3]\n")
    with pytest.raises(DataError, match=r"is not a YOLO row .11 columns"):
        read_labels("yolo", tmp_path)
    for shape in ("17", "[17, 4]", "[x, 3]", "[0, 3]"):
        text(tmp_path / "data.yaml", f"names: [a]\nkpt_shape: {shape}\n")
        with pytest.raises(DataError, match=r"data\.yaml: kpt_shape: is not the number of keypoints"):
            read_labels("yolo", tmp_path)


def test_unknown_kind_of_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="choose one of auto, boxes"):
        read_labels("yolo", yolo(tmp_path, ROW), rows="obb")
    with pytest.raises(DataError, match=r"is not a YOLO row .9 columns"):
        read_labels("yolo", yolo(tmp_path, QUAD), rows="boxes")


# --- names


@pytest.mark.parametrize(
    ("written", "names"),
    [
        ("[no, on]", ("no", "on")),
        ("{0: yes, 1: off}", ("yes", "off")),
        ("[1, 2.0, 0x1F]", ("1", "2.0", "0x1F")),
        ("['null', \"~\"]", ("null", "~")),
        ("\n  0: 2024-01-01\n  1: 1_000", ("2024-01-01", "1_000")),
        ("[' ship ', null-hypothesis]", ("ship", "null-hypothesis")),
    ],
)
def test_names_are_what_is_written(tmp_path: Path, written: str, names: tuple[str, ...]) -> None:
    found = read_labels("yolo", yolo(tmp_path, ROW, yaml=f"names: {written}\n"), **WHOLE)
    assert found.object_classes == names


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("names: [null, on]", r"names\[0\]: class 0 has no name"),
        ("names: [a, ~]", r"names\[1\]: class 1 has no name"),
        ("names: [[a], b]", r"names\[0\]: class 0 has no name"),
        ("names: {0: a, 2: b}", "class 1 is missing"),
        ("names: {ship: 0}", '"ship" is not the number of a class'),
        ("names: ship", "has no list of class names"),
        ("names: [a, b]\nnc: 3", "there are 2 names, but nc says 3"),
        ("names: [a, b]\ntrain: {a: b}", "data.yaml: train: is neither a folder"),
        ("[a, b]", "holds no keys such as names"),
        ("names: [a, b", "is not YAML"),
    ],
)
def test_data_yaml_that_says_nothing_clear_is_refused(tmp_path: Path, yaml: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_labels("yolo", yolo(tmp_path, ROW, yaml=yaml + "\n"))
    assert "\n" not in str(caught.value)


def test_alias_bomb_in_data_yaml_is_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    yolo(tmp_path, ROW, yaml="\n".join([*lines, "names: *a9"]))
    with pytest.raises(DataError, match=r"data\.yaml: is not YAML"):
        read_labels("yolo", tmp_path)


def test_row_without_a_name_in_a_list_of_names_is_refused(tmp_path: Path) -> None:
    yolo(tmp_path, ROW)
    (tmp_path / "data.yaml").unlink()
    text(tmp_path / "classes.txt", "ship\n\ncar\n")
    with pytest.raises(DataError, match=r"classes\.txt:2: a class has no name"):
        read_labels("yolo", tmp_path)
    text(tmp_path / "classes.txt", "\ufeffship\ncar\n\n")
    assert read_labels("yolo", tmp_path, **WHOLE).object_classes == ("ship", "car")


def test_byte_order_mark_line_ends_and_spaces_in_names(tmp_path: Path) -> None:
    yolo(tmp_path, ROW, "\ufeff0 .5 .5 .2 .2\r\n\r\n", stem="my image ")
    text(tmp_path / "labels" / "my image 0.txt", "\ufeff" + ROW)
    assert detect_format(tmp_path) == "yolo"
    found = read_labels("yolo", tmp_path, **WHOLE)
    assert [len(item.objects or ()) for item in found.items] == [1, 1]


# --- layouts


@pytest.mark.parametrize(
    ("folders", "yaml"),
    [
        (("train2017", "val2017"), "train: images/train2017\nval: images/val2017\n"),
        (("train2017", "val2017"), ""),
        (("set_a", "set_b"), "train: images/set_a\nval: images/set_b\n"),
        (("set_a", "set_b"), "path: .\ntrain: [./images/set_a]\nval: [images/set_b/]\n"),
        (("set_a", "set_b"), "path: ../other/machine\ntrain: images/set_a\nval: images/set_b\ntest: null\n"),
        (("deep/er/train", "deep/er/val"), ""),
    ],
)
def test_folders_of_the_splits(tmp_path: Path, folders: tuple[str, str], yaml: str) -> None:
    for folder in folders:
        yolo(tmp_path, ROW, yaml="names: [ship]\n" + yaml, inside=folder, stem=folder.replace("/", "_"))
    assert detect_format(tmp_path) == "yolo"
    found = read_labels("auto", tmp_path)
    assert sorted(places(found).values()) == ["train", "val"]
    assert "train" in next(i.split for i in found.items if Path(i.image).parent.name == Path(folders[0]).name)


def test_images_in_sub_folders_without_splits(tmp_path: Path) -> None:
    for folder in ("s0", "s1"):
        yolo(tmp_path, ROW, inside=folder)
    assert places(read_labels("auto", tmp_path, **WHOLE)) == {"s0/im0": "train", "s1/im0": "train"}


@pytest.mark.parametrize("beside", [False, True])
def test_splits_first(tmp_path: Path, beside: bool) -> None:
    for i, split in enumerate(("train", "valid")):
        image(tmp_path / split / ("" if beside else "images") / "a.png", i)
        text(tmp_path / split / ("" if beside else "labels") / "a.txt", ROW)
    yaml = "names: [a]\ntrain: ../train/images\nval: ../valid/images\ntest: ../test/images\n"
    text(tmp_path / "data.yaml", "names: [a]\n" if beside else yaml)
    assert sorted(places(read_labels("auto", tmp_path)).values()) == ["train", "val"]


def test_image_outside_of_data_yaml_is_left_out(tmp_path: Path) -> None:
    for folder in ("set_a", "set_b", "set_c", "test"):
        yolo(tmp_path, ROW, yaml="names: [a]\ntrain: images/set_a\nval: images/set_b\n", inside=folder)
    found = read_labels("yolo", tmp_path)
    assert places(found) == {"set_a/im0": "train", "set_b/im0": "val", "test/im0": "test"}
    assert "images/set_c/im0.png: not in data.yaml; image left out" in found.findings
    assert any(line == "splits: train 1, val 1, test 1; from data.yaml" for line in found.understood)


@pytest.mark.parametrize("val", ["images", "images/sub", "./images/"])
def test_one_folder_for_two_splits_is_refused(tmp_path: Path, val: str) -> None:
    yolo(tmp_path, ROW, yaml=f"names: [a]\ntrain: images\nval: {val}\n", inside="sub")
    with pytest.raises(DataError, match="train and val name the same images"):
        read_labels("yolo", tmp_path)


@pytest.mark.parametrize(
    "names", ["./images/im{}.png", "images/im{}.png", "/home/me/set/images/im{}.png", "im{}"]
)
@pytest.mark.parametrize("entry", ["{}.txt", "[./{}.txt]"])
def test_lists_of_data_yaml(tmp_path: Path, names: str, entry: str) -> None:
    yaml = f"path: .\ntrain: {entry.format('mine')}\nval: {entry.format('other')}\nnames: [a]\n"
    yolo(tmp_path, *([ROW] * 5), yaml=yaml)
    text(tmp_path / "mine.txt", "\n".join(names.format(i) for i in (0, 1, 2)))
    text(tmp_path / "other.txt", "\r\n".join(names.format(i) for i in (3, 9)))
    with pytest.raises(DataError, match=r"other\.txt:2: .*im9.* means no image of the set"):
        read_labels("yolo", tmp_path)
    found = read_labels("yolo", tmp_path, partial=True)
    assert places(found) == {"im0": "train", "im1": "train", "im2": "train", "im3": "val"}
    assert any(line.startswith("other.txt: 1 entry means no labelled image") for line in found.findings)
    assert "images/im4.png: not in data.yaml; image left out" in found.findings
    text(tmp_path / "other.txt", names.format(2))
    with pytest.raises(DataError, match=r"im2\.png: is in train \(mine\.txt:3\) and in val \(other\.txt:1\)"):
        read_labels("yolo", tmp_path)


def test_one_image_under_two_names_is_refused(tmp_path: Path) -> None:
    yolo(tmp_path, ROW, ROW)
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "images" / "im0.png")
    text(tmp_path / "labels" / "link.txt", ROW)
    with pytest.raises(DataError, match=r"link\.png: is the same file as images/im0\.png"):
        read_labels("yolo", tmp_path)


def test_one_label_file_for_two_images_is_refused(tmp_path: Path) -> None:
    image(yolo(tmp_path, ROW) / "images" / "im0.jpg")
    with pytest.raises(
        DataError, match=r"labels/im0\.txt: belongs to images/im0\.jpg and to images/im0\.png"
    ):
        read_labels("yolo", tmp_path)


def test_link_that_leads_in_a_circle_ends(tmp_path: Path) -> None:
    yolo(tmp_path, ROW)
    (tmp_path / "images" / "again").symlink_to(tmp_path / "images")
    assert places(read_labels("yolo", tmp_path, **WHOLE)) == {"im0": "train"}


def test_numbers_that_run_from_1_are_refused(tmp_path: Path) -> None:
    yolo(tmp_path, "1 .5 .5 .2 .2", "2 .5 .5 .2 .2", yaml="names: [ship, car]")
    with pytest.raises(DataError, match=r"run from 1 to 2, those of data\.yaml from 0 to 1"):
        read_labels("yolo", tmp_path)
    found = read_labels("yolo", tmp_path, classes="unused,ship,car")
    assert [item.objects[0].category for item in found.items] == ["ship", "car"]


def test_corners_in_the_place_of_centre_and_size_are_refused(tmp_path: Path) -> None:
    yolo(tmp_path, *["0 .6 .6 .9 .9", "0 .5 .7 .8 .95", "0 .2 .2 .3 .3"], yaml="names: [ship]")
    with pytest.raises(DataError, match=r"2 of 3 boxes reach outside .* two corners"):
        read_labels("yolo", tmp_path)


@pytest.mark.parametrize("row", ["0,.5,.5,.2,.2", "ship .5 .5 .2 .2", "# a comment"])
def test_rows_of_no_format_are_shown(tmp_path: Path, row: str) -> None:
    yolo(tmp_path, row, row, yaml="names: [ship]")
    with pytest.raises(DataError, match=rf'the first row of the text files is "{row}"'):
        detect_format(tmp_path)
