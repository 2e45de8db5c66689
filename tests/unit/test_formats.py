"""Label readers: every format gives the same labels, and nothing is left out without a line about it."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitp.core.errors import ConfigError, DataError
from vitp.data.formats import LABEL_FORMATS, option_names, read_labels
from vitp.data.formats.detect import detect_format
from vitp.data.formats.splits import assign_fractions
from vitp.records.geometry import area, as_points


def image(path: Path, width: int = 100, height: int = 80) -> Path:
    """Write an image that no other test image equals: equal ones would stay together."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(str(path).encode()))
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return path


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def boxes(labelled: object) -> dict[str, list[tuple]]:
    return {i.id: [(o.category, o.box) for o in i.objects] for i in labelled.items}  # type: ignore[attr-defined]


# --- VOC


def voc(root: Path, stem: str, objects: str, size: tuple[int, int] = (100, 80)) -> None:
    image(root / "JPEGImages" / f"{stem}.jpg")
    text(
        root / "Annotations" / f"{stem}.xml",
        f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>{objects}</annotation>",
    )


def voc_object(name: str, *box: float, difficult: int = 0) -> str:
    corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{corners}</bndbox></object>"


def test_voc_splits_boxes_and_findings(tmp_path: Path) -> None:
    voc(tmp_path, "a", voc_object("ship", 10, 20, 30.5, 40) + voc_object("ship", 5, 5, 5, 9))
    voc(tmp_path, "b", voc_object("car", -20, 0, 30, 40, difficult=1) + voc_object("car", 200, 0, 230, 40))
    voc(tmp_path, "c", "", size=(80, 100))
    voc(tmp_path, "d", "")
    voc(tmp_path, "e", "")
    for name, stems in {"train": "a", "trainval": "a\nb", "test": "c\nd\nx"}.items():
        text(tmp_path / "ImageSets" / "Main" / f"{name}.txt", stems)
    with pytest.raises(DataError, match=r'test.txt:3: "x" means no image of the set; .*-o partial=true'):
        read_labels("voc", tmp_path)
    found = read_labels("voc", tmp_path, partial=True)
    assert boxes(found) == {
        "JPEGImages/a": [("ship", (10, 20, 30.5, 40))],
        "JPEGImages/b": [("car", (0, 0, 30, 40))],
        "JPEGImages/d": [],
    }
    assert [i.split for i in found.items] == ["train", "train", "test"]
    assert found.object_classes == ("car", "ship")
    assert found.items[1].objects[0].difficult
    assert [line for line in found.understood if line.startswith("objects")] == [
        "objects: car 1 (1 difficult), ship 1"
    ]
    assert [line.split(": ")[0] for line in found.findings] == [
        "Annotations/a.xml:object 2",
        "Annotations/b.xml:object 1",
        "Annotations/b.xml:object 2",
        "Annotations/c.xml",
        "ImageSets/Main/test.txt",
        "JPEGImages/e.jpg",
    ]
    assert detect_format(tmp_path) == "voc"
    assert boxes(read_labels("voc", tmp_path, one_based=True, partial=True))["JPEGImages/a"][0][1] == (
        9,
        19,
        30.5,
        40,
    )


def test_voc_broken_xml_names_file_and_row(tmp_path: Path) -> None:
    voc(tmp_path, "a", "<object>\n<name>")
    with pytest.raises(DataError, match=r"a\.xml:2: is not XML"):
        read_labels("voc", tmp_path)
    voc(tmp_path, "a", voc_object("ship", 1, 2, 3, 4).replace("<xmax>3</xmax>", "<xmax>three</xmax>"))
    with pytest.raises(DataError, match=r"a\.xml: object 1 has no readable bndbox"):
        read_labels("voc", tmp_path)


# --- DOTA and YOLO


def test_dota_headers_floats_orientation_and_findings(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        image(tmp_path / split / "images" / "p.png")
    text(
        tmp_path / "train" / "labelTxt" / "p.txt",
        "imagesource:GoogleEarth\ngsd:0.15\n"
        "10 20.00000000000003 10 40 30 40 30 20 small-vehicle 1\n"  # anticlockwise in the image
        "10 10 20 20 20 10 10 20 ship 0\n"  # crossed
        "50 50 50 50 50 50 50 50 ship 0\n",
    )
    text(tmp_path / "valid" / "labelTxt" / "p.txt", "imagesource:x\n")
    text(tmp_path / "valid" / "labelTxt" / "q.txt", "")
    found = read_labels("dota", tmp_path)
    vehicle, ship = found.items[0].objects
    assert vehicle.quad == (10, 20.00000000000003, 30, 20, 30, 40, 10, 40)
    assert vehicle.box == (10, 20, 30, 40)
    assert vehicle.difficult
    assert not ship.difficult
    assert area(as_points(ship.quad)) == pytest.approx(100, rel=1e-5)
    assert [(i.id, i.split) for i in found.items] == [
        ("train/images/p", "train"),
        ("valid/images/p", "val"),
    ]
    assert found.items[1].objects == ()
    assert [line.split(": ")[0] for line in found.findings] == [
        "valid/labelTxt/q.txt",
        "train/labelTxt/p.txt:4",
        "train/labelTxt/p.txt:5",
        "valid/labelTxt/p.txt",
    ]
    assert len(read_labels("dota", tmp_path, drop_empty=True)) == 1
    assert detect_format(tmp_path) == "dota"
    only = read_labels("dota", tmp_path, classes="ship")
    assert [o.category for o in only.items[0].objects] == ["ship"]
    assert [o.box for o in only.items[0].ignored] == [(10, 20, 30, 40)]
    assert 'p.txt:3: class "small-vehicle" was not asked for; its place is ignored' in only.findings[1]


@pytest.mark.parametrize("row", ["1 2 3 4 5 6 7 ship", "1 2 3 4 5 6 7 x ship 0", "1 2 3 4 5 6 7 8 ship 0 0"])
def test_dota_wrong_rows_name_file_and_row(tmp_path: Path, row: str) -> None:
    image(tmp_path / "images" / "p.png")
    text(tmp_path / "labelTxt" / "p.txt", f"1 1 9 1 9 9 1 9 ship 0\n{row}\n")
    with pytest.raises(DataError, match=r"p\.txt:2: is not a DOTA row"):
        read_labels("dota", tmp_path)


def test_yolo_boxes_oriented_boxes_and_polygons(tmp_path: Path) -> None:
    image(tmp_path / "images" / "train" / "a.png")
    image(tmp_path / "images" / "val" / "b.png")
    text(
        tmp_path / "labels" / "train" / "a.txt",
        "0 0.5 0.5 0.2 0.5\n"
        "1 0.1 0.1 0.3 0.1 0.3 0.2 0.1 0.2\n"
        "1 0.1 0.1 0.3 0.1 0.2 0.5\n"
        "2 0.5 0.5 0.1 0.1\n"
        "0 0.5 0.5 0 0.1\n",
    )
    text(tmp_path / "labels" / "val" / "b.txt", "")
    text(tmp_path / "data.yaml", "names:\n  0: car\n  1: ship\n")
    found = read_labels("yolo", tmp_path)
    first, second, third = found.items[0].objects
    assert first.box == pytest.approx((40, 20, 60, 60))
    assert second.polygons[0] == pytest.approx((10, 8, 30, 8, 30, 16, 10, 16))
    assert second.box == pytest.approx((10, 8, 30, 16))
    assert third.polygons[0] == pytest.approx((10, 8, 30, 8, 20, 40))
    assert third.quad is None
    assert [(i.split, len(i.objects)) for i in found.items] == [("train", 3), ("val", 0)]
    assert "labels/train/a.txt:4: class number 2 is not one of 0–1; its place is ignored" in found.findings
    assert [label.box for label in found.items[0].ignored] == [pytest.approx((45, 36, 55, 44))]
    assert len(found.findings) == 3
    assert detect_format(tmp_path) == "yolo"


@pytest.mark.parametrize("row", ["0 0.5 0.5 0.2", "0 .5 .5 .2 .2 .9", "a 0.5 0.5 0.2 0.2", "0 0.5 0.5 0.2 w"])
def test_yolo_wrong_rows_and_missing_names(tmp_path: Path, row: str) -> None:
    image(tmp_path / "a.png")
    text(tmp_path / "a.txt", f"\n{row}\n")
    with pytest.raises(DataError, match="no class names found"):
        read_labels("yolo", tmp_path)
    with pytest.raises(DataError, match=r"a\.txt:2: is not a YOLO row"):
        read_labels("yolo", tmp_path, classes="car")


# --- class folders, pairs, captions


def test_class_folders(tmp_path: Path) -> None:
    for split, name, count in (("train", "port", 2), ("train", "farm", 1), ("test", "port", 1)):
        for k in range(count):
            image(tmp_path / split / name / f"{k}.png")
    (tmp_path / "train" / "void").mkdir()
    found = read_labels("folders", tmp_path)
    assert [(i.id, i.scene, i.split) for i in found.items] == [
        ("test/port/0", "port", "test"),
        ("train/farm/0", "farm", "train"),
        ("train/port/0", "port", "train"),
        ("train/port/1", "port", "train"),
    ]
    assert found.scene_classes == ("farm", "port")
    assert found.findings == ("train/void: class folder without images",)
    assert detect_format(tmp_path) == "folders"


def test_pairs(tmp_path: Path) -> None:
    change = np.zeros((80, 100), np.uint8)
    change[10:20, 10:30] = 255
    for stem in ("p", "q", "r"):
        image(tmp_path / "train" / "A" / f"{stem}.png")
        image(tmp_path / "train" / "B" / f"{stem}.png", 100, 80 if stem != "q" else 60)
        (tmp_path / "train" / "label").mkdir(exist_ok=True)
        if stem != "r":
            Image.fromarray(change).save(tmp_path / "train" / "label" / f"{stem}.png")
    found = read_labels("pairs", tmp_path)
    (pair,) = found.items
    assert pair.second_image == str(tmp_path / "train" / "B" / "p.png")
    assert pair.change().dtype == bool
    assert pair.change().sum() == 200
    assert found.findings == (
        "train/A/q.png: the dates and the mask differ in size (100×80, 100×60, 100×80); left out",
        "train/A/r.png: no mask; left out",
    )
    assert detect_format(tmp_path) == "pairs"


CAPTION_FILES = {
    "c.jsonl": '{"image": "a.png", "caption": "A port."}\n\n{"image": "a.png", "text": "Two  ships."}\n',
    "c.json": '{"a.png": ["A port.", "Two ships."]}',
    "c.csv": 'filename,caption,split\na.png,"A port.",test\na.png,Two ships.,test\n',
    "karpathy.json": json.dumps(
        {
            "images": [
                {
                    "filename": "a.png",
                    "split": "test",
                    "sentences": [{"raw": "A port."}, {"raw": "Two ships."}],
                }
            ]
        }
    ),
}


@pytest.mark.parametrize("name", CAPTION_FILES)
def test_caption_tables(tmp_path: Path, name: str) -> None:
    image(tmp_path / "images" / "a.png")
    text(tmp_path / name, CAPTION_FILES[name])
    found = read_labels("captions", tmp_path, val=0, test=0)
    assert found.items[0].captions == ("A port.", "Two ships.")
    assert found.items[0].split == ("test" if "test" in CAPTION_FILES[name] else "train")
    assert detect_format(tmp_path) == "captions"
    assert detect_format(tmp_path / name) == "captions"


def test_caption_text_files_and_findings(tmp_path: Path) -> None:
    for stem in "abc":
        image(tmp_path / f"{stem}.png")
    text(tmp_path / "a.txt", "A port.\n\nIt is small.\n")
    text(tmp_path / "b.txt", "  \n")
    found = read_labels("captions", tmp_path)
    assert [i.captions for i in found.items] == [("A port.", "It is small.")]
    assert found.findings == ("b.txt: empty; image left out", "c.png: no text file; image left out")
    assert detect_format(tmp_path) == "captions"


def test_caption_rows_that_cannot_be_understood(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    text(tmp_path / "c.jsonl", '{"image": "a.png", "caption": "x"}\n{"image": "a.png"\n')
    with pytest.raises(DataError, match=r"c\.jsonl:2: is not JSON"):
        read_labels("captions", tmp_path)
    for damage, words in (("\\ud83d", "half a character"), ("\\u0000", "a NUL")):
        text(tmp_path / "c.jsonl", f'{{"image": "a.png", "caption": "x {damage}"}}\n')
        with pytest.raises(DataError, match=rf"c\.jsonl:1: holds {words}"):
            read_labels("captions", tmp_path)
    text(tmp_path / "c.jsonl", '{"picture": "a.png", "words": "x"}\n')
    with pytest.raises(DataError, match=r"c\.jsonl:1: row names no image .* image_column"):
        read_labels("captions", tmp_path)
    found = read_labels("captions", tmp_path, image_column="picture", caption_column="words")
    assert found.items[0].captions == ("x",)


# --- splits, options, detection


@settings(deadline=None)
@given(
    groups=st.lists(st.sampled_from(["", "a", "b", "c", "d", "e"]), min_size=1, max_size=60),
    val=st.floats(0, 0.4),
    test=st.floats(0, 0.4),
    seed=st.integers(0, 5),
)
def test_groups_stay_together_and_shares_are_met(
    groups: list[str], val: float, test: float, seed: int
) -> None:
    splits = assign_fractions(groups, val=val, test=test, seed=seed)
    assert splits == assign_fractions(groups, val=val, test=test, seed=seed)
    for group in set(groups) - {""}:
        assert len({s for s, g in zip(splits, groups, strict=True) if g == group}) == 1
    wanted = 1 + (val > 0) + (test > 0)
    if len(set(groups) - {""}) + groups.count("") >= wanted:
        assert len(set(splits)) == wanted


def test_shares_of_single_images_are_exact() -> None:
    assert Counter(assign_fractions([""] * 100, val=0.1, test=0.2, seed=3)) == {
        "train": 70,
        "val": 10,
        "test": 20,
    }
    assert assign_fractions([""] * 50, val=0.2, test=0, seed=0) != assign_fractions(
        [""] * 50, val=0.2, test=0, seed=1
    )
    with pytest.raises(ConfigError, match="leave nothing for training"):
        assign_fractions(["a"], val=0.5, test=0.5, seed=0)


@pytest.mark.parametrize(
    ("name", "content"),
    [("s.json", '{"train": ["0.png"], "valid": ["1"]}'), ("s.txt", "# split\n0.png train\nport/1,val\n")],
)
def test_split_file(tmp_path: Path, name: str, content: str) -> None:
    for k in range(3):
        image(tmp_path / "set" / "port" / f"{k}.png")
    file = text(tmp_path / name, content)
    found = read_labels("folders", tmp_path / "set", split_file=file)
    assert [(i.id, i.split) for i in found.items] == [("port/0", "train"), ("port/1", "val")]
    assert found.findings == (f"port/2.png: not in the split file {name}; image left out",)
    text(file, "nonsense\n")
    with pytest.raises(DataError, match=name):
        read_labels("folders", tmp_path / "set", split_file=file)


def test_group_regex(tmp_path: Path) -> None:
    for scene in range(6):
        for k in range(4):
            image(tmp_path / "port" / f"P{scene}_{k}.png")
    found = read_labels("folders", tmp_path, group_regex=r"^(P\d+)_", val=0.2, test=0.2)
    splits = {(i.group, i.split) for i in found.items}
    assert len(splits) == 6
    assert Counter(split for _, split in splits)["train"] == 4
    with pytest.raises(DataError, match="no file name matches"):
        read_labels("folders", tmp_path, group_regex="^Q")
    with pytest.raises(ConfigError, match="not a regular expression"):
        read_labels("folders", tmp_path, group_regex="(")


def test_unknown_formats_options_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'no label format "cocoo".*did you mean "coco"'):
        read_labels("cocoo", tmp_path)
    with pytest.raises(ConfigError, match=r'no option "group_regx".*did you mean "group_regex"'):
        read_labels("voc", tmp_path, group_regx="x")
    with pytest.raises(DataError, match=r"no label format recognised \(looked for .*labelTxt"):
        detect_format(tmp_path)
    with pytest.raises(DataError, match="doesn't exist"):
        read_labels("voc", tmp_path / "nowhere")
    for name in LABEL_FORMATS:
        assert ("split_file" in option_names(name)) == (name not in ("scenes", "vitp"))


def test_unreadable_images_are_reported(tmp_path: Path) -> None:
    image(tmp_path / "port" / "a.png")
    text(tmp_path / "port" / "b.png", "not an image")
    found = read_labels("folders", tmp_path)
    assert len(found) == 1
    assert found.findings == ("port/b.png: is not an image that can be read; image left out",)


def year(folder: Path) -> None:
    (folder / "Annotations").mkdir(parents=True)
    (folder / "JPEGImages").mkdir()
    for k in range(4):
        Image.new("RGB", (16, 16), (40 * k, 9, 9)).save(folder / "JPEGImages" / f"{k}.png")
        box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
        text = f"<annotation><object><name>ship</name>{box}</object></annotation>"
        (folder / "Annotations" / f"{k}.xml").write_text(text)


@pytest.mark.parametrize("inner", ["VOC2007", "VOCdevkit/VOC2007"])
def test_voc_in_one_folder_below_is_read_and_several_are_refused(tmp_path: Path, inner: str) -> None:
    year(tmp_path / inner)
    labelled = read_labels("auto", tmp_path)
    assert len(labelled.items) == 4
    assert f"the set is the folder {inner}" in labelled.understood
    year((tmp_path / inner).with_name("VOC2012"))
    for fmt in ("auto", "voc"):
        with pytest.raises(DataError, match=r"VOC2007.*VOC2012"):
            read_labels(fmt, tmp_path)


@pytest.mark.parametrize("option", [{}, {"images": "images/default"}])
def test_coco_images_in_sub_folders_are_found_where_their_name_is_unique(
    tmp_path: Path, option: dict[str, str]
) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "images" / "default").mkdir(parents=True)
    for k in range(4):
        Image.new("RGB", (16, 16), (40 * k, 9, 9)).save(tmp_path / "images" / "default" / f"{k}.png")
    content = {
        "images": [{"id": k, "file_name": f"{k}.png", "width": 16, "height": 16} for k in range(4)],
        "annotations": [
            {"id": k, "image_id": k, "category_id": 1, "bbox": [1, 1, 8, 8], "iscrowd": 0} for k in range(4)
        ],
        "categories": [{"id": 1, "name": "ship"}],
    }
    (tmp_path / "annotations" / "instances_default.json").write_text(json.dumps(content))
    assert len(read_labels("coco", tmp_path, **option).items) == 4
    (tmp_path / "images" / "other").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "images" / "other" / "0.png")
    if option:
        assert len(read_labels("coco", tmp_path, **option).items) == 4
        with pytest.raises(DataError, match="is no folder"):
            read_labels("coco", tmp_path, images="nowhere")
        return
    with pytest.raises(DataError, match=r"0\.png may be"):
        read_labels("coco", tmp_path)
