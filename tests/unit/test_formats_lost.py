"""A label that can't be used never says "there is nothing here": places are ignored, images left out, sets refused."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.lost_label_toys import GOOD, by_name, coco, image, text
from vitp.core.errors import DataError
from vitp.data.formats import read_labels
from vitp.data.formats.detect import detect


def voc(root: Path, *objects: str, size: str = "<width>64</width><height>48</height>") -> Path:
    for i, content in enumerate(objects):
        image(root / "JPEGImages" / f"im{i}.png", i)
        body = f"<annotation><size>{size}</size>{content}</annotation>"
        text(root / "Annotations" / f"im{i}.xml", body)
    return root


def voc_object(name: str, *box: object, more: str = "") -> str:
    corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=False))
    return f"<object><name>{name}</name>{f'<bndbox>{corners}</bndbox>' if box else ''}{more}</object>"


def dota(root: Path, *rows: str) -> Path:
    for i, row in enumerate(rows):
        image(root / "images" / f"im{i}.png", i)
        text(root / "labelTxt" / f"im{i}.txt", row)
    return root


@pytest.mark.parametrize(
    "bad",
    [
        voc_object("ship", 25, 6, 5, 30),
        voc_object("ship", "nan", 6, 25, 30),
        voc_object("ship"),
        voc_object("ship", 500, 500, 510, 510),
        voc_object(
            "ship", more="<robndbox><cx>nan</cx><cy>9</cy><w>9</w><h>9</h><angle>0</angle></robndbox>"
        ),
    ],
)
def test_voc_image_that_lost_its_label_is_left_out(tmp_path: Path, bad: str) -> None:
    good = voc_object("ship", 5, 6, 25, 30)
    found = read_labels("voc", voc(tmp_path, good, good, bad))
    assert sorted(by_name(found)) == ["im0", "im1"]
    assert any(line.startswith("Annotations/im2.xml:object 1: ship ") for line in found.findings)


def test_voc_object_without_class_is_ignored(tmp_path: Path) -> None:
    good = voc_object("ship", 5, 6, 25, 30)
    item = by_name(read_labels("voc", voc(tmp_path, good, voc_object("", 5, 6, 25, 30))))["im1"]
    assert item.objects == ()
    assert [label.box for label in item.ignored] == [(5, 6, 25, 30)]


@pytest.mark.parametrize("size", ["<width>abc</width>", "<width>inf</width>", "<height>4 8</height>"])
def test_voc_size_that_is_no_number_is_one_line(tmp_path: Path, size: str) -> None:
    with pytest.raises(DataError, match=r"im0\.xml: size: (width|height) is "):
        read_labels("voc", voc(tmp_path, voc_object("ship", 1, 2, 3, 4), size=size))


def test_dota_image_that_lost_its_label_is_left_out(tmp_path: Path) -> None:
    good = "5 6 25 6 25 30 5 30 ship 0\n"
    dota(tmp_path, good, good, good.replace("25", "nan"), good + good.replace("30", "inf"))
    assert sorted(by_name(read_labels("dota", tmp_path))) == ["im0", "im1"]


def test_one_label_outside_is_left_out_but_most_make_the_image_unknown(tmp_path: Path) -> None:
    good, far = "5 6 25 6 25 30 5 30 ship 0\n", "500 500 510 500 510 510 500 510 ship 0\n"
    dota(tmp_path, good, good + far, good + far + far.replace("510", "520"))
    found = by_name(read_labels("dota", tmp_path))
    assert sorted(found) == ["im0", "im1"]
    assert len(found["im1"].objects or ()) == 1


@pytest.mark.parametrize(
    ("row", "name", "difficult"),
    [
        ("small vehicle 1", "small vehicle", True),
        ("small vehicle", "small vehicle", False),
        ("ship 2", "ship", True),
        ("ship 1.0", "ship", True),
        ("ship 0", "ship", False),
        ("7", "7", False),
    ],
)
def test_dota_class_and_flag(tmp_path: Path, row: str, name: str, difficult: bool) -> None:
    dota(tmp_path, "\ufeffimagesource:x\r\nacquisition dates:2017\r\n5 6 25 6 25 30 5 30 " + row + "\r\n")
    (label,) = read_labels("dota", tmp_path).items[0].objects or ()
    assert (label.category, label.difficult) == (name, difficult)


@pytest.mark.parametrize("row", ["ship -1", "ship nan", "ship inf", "ship 1 2", "small nan 1"])
def test_dota_flag_that_is_none_is_refused(tmp_path: Path, row: str) -> None:
    with pytest.raises(DataError, match=r"im0\.txt:1: is not a DOTA row"):
        read_labels("dota", dota(tmp_path, f"5 6 25 6 25 30 5 30 {row}"))


def test_set_whose_labels_are_all_lost_is_refused(tmp_path: Path) -> None:
    rows = [{**row, "category_id": 9} for row in GOOD]
    with pytest.raises(
        DataError, match=r"instances_train\.json: none of the 3 labels can be used \(the first: .*9"
    ):
        read_labels("coco", coco(tmp_path, rows))


def test_class_whose_labels_are_all_lost_is_refused(tmp_path: Path) -> None:
    # Where most have no place, they may be classes of whole images, which is another refusal.
    rows = [GOOD[0], {**GOOD[0], "bbox": [1, 2, 3, 4]}, *({**row, "bbox": None} for row in GOOD[1:])]
    with pytest.raises(DataError, match='none of the 2 labels of the class "car" can be used'):
        read_labels("coco", coco(tmp_path, rows))
    rows = [GOOD[0], *({**row, "bbox": [5, 5, 0, 0]} for row in GOOD[1:])]
    with pytest.raises(DataError, match=r'none of the 2 labels of the class "car" can be used .*has no area'):
        read_labels("coco", coco(tmp_path, rows))


@pytest.mark.parametrize(("count", "lost", "refused"), [(10, 5, False), (10, 6, True), (9, 6, False)])
def test_set_that_lost_more_than_half_is_refused(
    tmp_path: Path, count: int, lost: int, refused: bool
) -> None:
    rows = [
        {"image_id": 3 if i < lost else 1, "category_id": 1, "bbox": [i, i, -9 if i < lost else 9, 9]}
        for i in range(count)
    ]
    coco(tmp_path, rows)
    if refused:
        with pytest.raises(DataError, match="6 of 10 labels can't be used"):
            read_labels("coco", tmp_path)
    else:
        found = by_name(read_labels("coco", tmp_path))
        assert {name: len(item.objects or ()) for name, item in found.items()} == {
            "im0": count - lost,
            "im1": 0,
        }


@pytest.mark.parametrize("fmt", ["coco", "voc", "dota"])
def test_shares_where_pixels_belong_are_refused(tmp_path: Path, fmt: str) -> None:
    if fmt == "coco":
        coco(tmp_path, [{**row, "bbox": [0.1, 0.2, 0.5, 0.5]} for row in GOOD[:1]])
    elif fmt == "voc":
        voc(tmp_path, voc_object("ship", 0.1, 0.1, 0.5, 0.9))
    else:
        dota(tmp_path, "0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5 ship 0")
    with pytest.raises(DataError, match="all boxes lie within the first pixel"):
        read_labels(fmt, tmp_path)


@pytest.mark.parametrize(
    ("place", "content"),
    [
        ("annotations.json", '{"images": [{"id": 1'),
        ("annotations/train.json", "{" * 5),
        ("a/0.xml", "<annotation><filename>x</fil"),
        ("Annotations/0.xml", ""),
        ("labels/0.txt", None),
        ("a/0.xml", "<annotation></annotation>"),
    ],
)
def test_a_label_file_that_cannot_be_read_is_named(tmp_path: Path, place: str, content: str | None) -> None:
    for k in range(6):
        path = tmp_path / "ab"[k % 2] / f"{k}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (40 * k, 9, 9)).save(path)
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    if content is None:
        os.mkfifo(path)
    else:
        path.write_text(content)
    with pytest.raises(DataError, match=path.name):
        read_labels("auto", tmp_path)


def test_a_link_that_leads_in_a_circle_is_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    for k in range(6):
        path = tmp_path / "ab"[k % 2] / f"{k}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (40 * k, 9, 9)).save(path)
    (tmp_path / "a" / "0.png").unlink()
    (tmp_path / "a" / "0.png").symlink_to("0.png")
    found = read_labels("folders", tmp_path)
    assert len(found.items) == 5 and any("0.png" in line for line in found.findings)
    assert len(read_labels("images", tmp_path).items) == 5


@pytest.mark.parametrize(
    "place",
    [
        "Annotations/0.xml",
        "a/0.json",
        "a/0.odgt",
        "a/images.npy",
        "a_bbx_gt.txt",
        "0.csv",
        "metadata.parquet",
        *("0.txt", "a/0.tif", "a/0.geojson", "a/0.dcm", "labels/0.txt", "labelTxt/0.txt", "a/0.nii"),
    ],
)
def test_finding_the_format_waits_for_no_pipe(tmp_path: Path, place: str) -> None:
    for k in range(6):
        path = tmp_path / "ab"[k % 2] / f"{k}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (40 * k, 9, 9)).save(path)
    (tmp_path / place).parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / place)
    found: list[str] = []

    def look() -> None:
        try:
            found.append(detect(tmp_path).format)
        except DataError as error:
            found.append(str(error))

    # Opening a pipe that nobody writes to waits for ever, so the look is in a thread that ends with the tests.
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(20)
    assert found and (found[0] in ("folders", "widerface", "voc", "geo") or Path(place).name in found[0])


def test_a_pipe_in_the_place_of_a_label_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for k in range(2):
        Image.new("RGB", (8, 8), (40 * k, 9, 9)).save(tmp_path / "images" / f"{k}.png")
    (tmp_path / "labels" / "0.txt").write_text("0 .5 .5 .5 .5\n")
    os.mkfifo(tmp_path / "labels" / "1.txt")
    (tmp_path / "data.yaml").write_text("names: [ship]\n")
    with pytest.raises(DataError, match="named pipe"):
        read_labels("yolo", tmp_path)
    (tmp_path / "data.yaml").write_text("names: [ship\nval: {]\n")
    with pytest.raises(DataError, match=r"data\.yaml: is not YAML \(line 2: [^\n<^]*\)") as caught:
        read_labels("yolo", tmp_path)
    assert "unicode" not in str(caught.value)


def _photo(path: Path, number: int, *, broken: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if broken:
        path.write_bytes(b"no image")
    else:
        Image.fromarray(np.full((20, 20, 3), number, np.uint8)).save(path)


def test_class_whose_images_are_all_unreadable_is_refused(tmp_path: Path) -> None:
    for k in range(4):
        _photo(tmp_path / "port" / f"p{k}.png", k)
        _photo(tmp_path / "farm" / f"f{k}.png", 9 + k, broken=True)
    with pytest.raises(
        DataError, match=r'none of the 4 labels of the class "farm" .*farm/f0.png: is not an image'
    ):
        read_labels("auto", tmp_path)
    _photo(tmp_path / "farm" / "f0.png", 77)
    found = read_labels("auto", tmp_path)
    assert len(found) == 5 and "labels: 5 used, 3 can't be used" in found.understood


@pytest.mark.parametrize(("good", "refused"), [(6, False), (5, True)])
def test_masks_of_another_size_are_lost_labels(tmp_path: Path, good: int, refused: bool) -> None:
    for k in range(12):
        _photo(tmp_path / "images" / f"{k}.png", k)
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(np.eye(20 if k < good else 24, dtype=np.uint8) * 255).save(
            tmp_path / "masks" / f"{k}.png"
        )
    if refused:
        with pytest.raises(DataError, match=r"7 of 12 labels can't be used .*is 24×24 but its image 20×20"):
            read_labels("auto", tmp_path)
    else:
        assert len(read_labels("auto", tmp_path)) == good


@pytest.mark.parametrize("fmt", ["coco", "voc", "yolo", "dota", "masks", "classes"])
def test_set_most_of_whose_labelled_images_are_missing_is_refused(tmp_path: Path, fmt: str) -> None:
    names = [f"{k}.png" for k in range(12)]
    for k, name in enumerate(names):
        folder = {"voc": "JPEGImages"}.get(fmt, "images")
        if k < 5:
            _photo(tmp_path / folder / name, k)
        stem = name.removesuffix(".png")
        if fmt == "voc":
            box = "<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
            _text(
                tmp_path / "Annotations" / f"{stem}.xml",
                f"<annotation><object><name>a</name>{box}</object></annotation>",
            )
        elif fmt == "yolo":
            _text(tmp_path / "labels" / f"{stem}.txt", "0 .5 .5 .2 .2")
        elif fmt == "dota":
            _text(tmp_path / "labelTxt" / f"{stem}.txt", "2 2 9 2 9 9 2 9 a 0")
        elif fmt == "masks":
            (tmp_path / "masks").mkdir(exist_ok=True)
            Image.fromarray(np.eye(20, dtype=np.uint8) * 255).save(tmp_path / "masks" / name)
    _text(tmp_path / "classes.txt", "a=0\nb=255\n" if fmt == "masks" else "a\n")
    if fmt == "coco":
        images = [{"id": k, "file_name": name, "width": 20, "height": 20} for k, name in enumerate(names)]
        rows = [{"id": k, "image_id": k, "category_id": 1, "bbox": [2, 2, 9, 9]} for k in range(12)]
        content = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "a"}]}
        _text(tmp_path / "annotations" / "instances.json", json.dumps(content))
    if fmt == "classes":
        _text(
            tmp_path / "l.csv",
            "image,label\n" + "".join(f"{name},{'ab'[k % 2]}\n" for k, name in enumerate(names)),
        )
    with pytest.raises(
        DataError, match=r"7 of 12 labelled images aren't there \(the first: .*-o partial=true"
    ):
        read_labels(fmt, tmp_path)
    assert len(read_labels(fmt, tmp_path, partial=True)) == 5


def _text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def test_coco_corners_in_the_place_of_sizes_are_refused(tmp_path: Path) -> None:
    corners = [[30, 20, 60, 44], [5, 6, 40, 40], [40, 10, 63, 30]]
    coco(tmp_path, [{"image_id": i % 2 + 1, "category_id": 1, "bbox": box} for i, box in enumerate(corners)])
    with pytest.raises(DataError, match=r"2 of 3 boxes reach outside .* two corners"):
        read_labels("coco", tmp_path)
    # Objects that fill their images, with boxes that reach a little beyond the border.
    close = [[6, 5, 61, 46], [3, 4, 64, 47], [5, 2, 62, 49]]
    coco(tmp_path, [{"image_id": i % 2 + 1, "category_id": 1, "bbox": box} for i, box in enumerate(close)])
    assert sum(len(item.objects or ()) for item in read_labels("coco", tmp_path).items) == 3


def test_voc_files_that_name_the_images_of_each_other_are_refused(tmp_path: Path) -> None:
    names = {"a": "b.png", "b": "c.png", "c": "a.png", "d": "d.png"}
    for number, (stem, named) in enumerate(names.items()):
        image(tmp_path / f"JPEGImages/{stem}.png", number)
        content = f"<annotation><filename>{named}</filename>{voc_object('ship', 5, 6, 25, 30)}</annotation>"
        text(tmp_path / f"Annotations/{stem}.xml", content)
    with pytest.raises(
        DataError, match=r"a\.xml: is called like JPEGImages/a\.png, but <filename> is that of .*b\.png"
    ):
        read_labels("voc", tmp_path)
    # Copies keep the name of the image that they were made from.
    for stem in ("a", "b", "c"):
        file = tmp_path / f"Annotations/{stem}.xml"
        file.write_text(file.read_text().replace(names[stem], "d.png"))
    assert len(read_labels("voc", tmp_path)) == 4
    # So do copies of copies, whose names hold that of the one before.
    for stem, named in (("d_turned", "d"), ("small_d_turned", "d_turned")):
        image(tmp_path / f"JPEGImages/{stem}.png", len(stem))
        content = (
            f"<annotation><filename>{named}.png</filename>{voc_object('ship', 5, 6, 25, 30)}</annotation>"
        )
        text(tmp_path / f"Annotations/{stem}.xml", content)
    assert len(read_labels("voc", tmp_path)) == 6
