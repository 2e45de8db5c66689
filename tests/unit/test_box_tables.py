"""Tables with a row for each box: what their numbers are, by their names or by what fits the images."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from vitp.core.errors import DataError
from vitp.data.formats import read_labels
from vitp.data.formats.detect import detect_format
from vitp.records.labels import LabelledSet

SIZE = (64, 48)


def table(root: Path, head: str, rows: list[str], name: str = "labels.csv", folder: str = "images") -> Path:
    """Write four pictures of 64 × 48 px and a table; a row may hold `{i}` for the number of the picture."""
    for i in range(4):
        (root / folder).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE, (60 * i, 10, 10)).save(root / folder / f"im{i}.png")
    lines = [row.format(i=i) for row in rows for i in range(4)]
    (root / name).write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    return root


def boxes(found: LabelledSet) -> set[tuple[str, tuple[float, ...]]]:
    return {(label.category, label.box) for item in found.items for label in item.objects or ()}


@pytest.mark.parametrize(
    ("head", "row", "said"),
    [
        (
            "filename,width,height,class,xmin,ymin,xmax,ymax",
            "im{i}.png,64,48,bolt,4,6,24,16",
            "right and bottom",
        ),
        ("image;label;x1;y1;x2;y2", "im{i}.png;bolt;4,0;6,0;24,0;16,0", "right and bottom"),
        ("image,x,y,w,h,label", "im{i}.png,4,6,20,10,bolt", "left, top, width and height"),
        (
            "ImageID,XMin,XMax,YMin,YMax,LabelName",
            "im{i},0.0625,0.375,0.125,0.333333333333333,bolt",
            "shares",
        ),
        ("image,cx,cy,w,h,class", "im{i}.png,14,11,20,10,bolt", "centre, width and height"),
        # As corners the box would end before it begins.
        (
            "image_id,bbox,class",
            'im{i},"[4.0, 6.0, 20.0, 10.0]",bolt\nim{i},"[40, 30, 8, 8]",bolt',
            "width and height",
        ),
        # As a size it would reach outside.
        (
            "image_id,bbox,class",
            'im{i},"[4, 6, 24, 16]",bolt\nim{i},"[40, 30, 48, 38]",bolt',
            "right and bottom",
        ),
    ],
)
def test_boxes_are_read_by_the_names_of_their_columns_or_by_what_fits(
    tmp_path: Path, head: str, row: str, said: str
) -> None:
    root = table(tmp_path, head, [row])
    assert detect_format(root) == "boxes"
    found = read_labels("auto", root)
    assert found.object_classes == ("bolt",)
    first = {box for _, box in boxes(found) if box[0] < 30}
    assert len(first) == 1 and next(iter(first)) == pytest.approx((4, 6, 24, 16))
    assert any(said in line for line in found.understood)


@pytest.mark.parametrize(
    ("head", "row", "why"),
    [
        ("image,bbox,class", 'im{i}.png,"[4, 6, 20, 10]",bolt', "both fit all images"),
        ("image,bbox,class", 'im{i}.png,"[60, 40, 50, 40]",bolt', "neither fits all images"),
        ("image,x,y,w,h,class", "im{i}.png,32,24,60,44,bolt", "none when they are centre, width and height"),
        ("image,width,height,x,y,class", "im{i}.png,64,48,10,20,bolt", "the labels are points"),
        ("image,x1,y1,x2,y2", "im{i}.png,4,6,24,16", "has no column of classes"),
        # Which of these are a corner isn't known; none of them is a class of a whole image.
        ("image,x,y,x2,y2,label", "im{i}.png,4,6,24,16,bolt", "table of boxes, outlines or points"),
        ("image,label,center_x,center_y", "im{i}.png,bolt,4,6", "table of boxes, outlines or points"),
    ],
)
def test_two_readings_of_a_table_are_refused(tmp_path: Path, head: str, row: str, why: str) -> None:
    with pytest.raises(DataError, match=why):
        read_labels("auto", table(tmp_path, head, [row]))


def test_options_say_what_the_numbers_are(tmp_path: Path) -> None:
    root = table(tmp_path / "a", "image,bbox", ['im{i}.png,"[4, 6, 20, 10]"'])
    assert boxes(read_labels("boxes", root, box="size", classes="wheat")) == {("wheat", (4, 6, 24, 16))}
    assert boxes(read_labels("boxes", root, box="corners", classes="wheat")) == {("wheat", (4, 6, 20, 10))}
    root = table(tmp_path / "b", "image,x,y,x2,y2,nr", ["im{i}.png,4,6,24,16,1"])
    options = {"box_columns": "x,y,x2,y2", "box": "corners", "class_column": "nr", "classes": "nut,bolt"}
    assert boxes(read_labels("boxes", root, **options)) == {("bolt", (4, 6, 24, 16))}


def test_a_table_without_a_head_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'begins with a row of an image \("im0.png"\), not with a head'):
        read_labels("auto", table(tmp_path, "im0.png,4,6,24,16,bolt", ["im{i}.png,4,6,24,16,bolt"]))


def test_rows_without_a_box_and_images_without_a_row(tmp_path: Path) -> None:
    root = table(tmp_path, "image,xmin,ymin,xmax,ymax,class", [])
    rows = ["im0.png,,,,,", "im1.png,4,6,24,16,bolt", "im2.png,4,6,24,x,bolt", "gone.png,4,6,24,16,bolt"]
    (root / "labels.csv").write_text("image,xmin,ymin,xmax,ymax,class\n" + "\n".join(rows) + "\n")
    found = read_labels("auto", root)
    # Nothing is said of the fourth, and the third has a label whose place isn't known.
    assert {Path(item.image).name: len(item.objects or ()) for item in found.items} == {
        "im0.png": 0,
        "im1.png": 1,
    }
    assert any("labels.csv:4: its box is not four numbers (4, 6, 24, x)" in line for line in found.findings)
    assert any("gone.png is missing; 1 row left out" in line for line in found.findings)
    assert any("1 are in no row (images/im3.png)" in line for line in found.findings)


def test_tables_of_the_splits(tmp_path: Path) -> None:
    head = "filename,class,xmin,ymin,xmax,ymax"
    for split in ("train", "valid"):
        table(tmp_path / "a", head, ["im{i}.png,bolt,4,6,24,16"], f"{split}/_annotations.csv", split)
    found = read_labels("auto", tmp_path / "a", splits="folders")
    assert sorted(item.split for item in found.items) == ["train"] * 4 + ["val"] * 4
    table(tmp_path / "b", head, ["im{i}.png,bolt,4,6,24,16"], "train_labels.csv")
    (tmp_path / "b" / "test_labels.csv").write_text(f"{head}\nim4.png,bolt,4,6,24,16\n")
    Image.new("RGB", SIZE, (9, 99, 9)).save(tmp_path / "b/images/im4.png")
    found = read_labels("auto", tmp_path / "b")
    assert sorted(item.split for item in found.items) == ["test"] + ["train"] * 4
