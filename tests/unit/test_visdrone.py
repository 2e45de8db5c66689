"""VisDrone's text and HRSC2016's XML."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from PIL import Image

from vitp.core.errors import DataError
from vitp.data.formats import read_labels
from vitp.data.formats.detect import detect_format
from vitp.records.geometry import as_points


def pictures(folder: Path, count: int = 3, suffix: str = "jpg") -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"im{i}.{suffix}" for i in range(count)]
    for i, path in enumerate(paths):
        Image.new("RGB", (120, 90), (50 * i, 9, len(folder.name))).save(path)
    return paths


ROWS = (
    "10,12,20,24,1,4,0,0\n50,10,6,18,1,1,0,2,\n0,60,30,20,0,0,0,0\n70,50,30,20,1,11,1,0\n80,10,9,9,0,4,0,0\n"
)


def visdrone(root: Path, rows: str = ROWS) -> Path:
    for part in ("VisDrone2019-DET-train", "VisDrone2019-DET-test-dev"):
        for path in pictures(root / part / "images"):
            text = root / part / "annotations" / f"{path.stem}.txt"
            text.parent.mkdir(exist_ok=True)
            text.write_text(rows)
    return root


def test_rows_of_visdrone(tmp_path: Path) -> None:
    root = visdrone(tmp_path)
    assert detect_format(root) == "visdrone"
    found = read_labels("auto", root)
    assert found.object_classes == ("pedestrian", "car")
    assert [item.split for item in found.items] == ["test"] * 3 + ["train"] * 3
    objects = [(one.category, tuple(one.box)) for one in found.items[0].objects or ()]
    assert objects == [("car", (10, 12, 30, 36)), ("pedestrian", (50, 10, 56, 28))]
    # Ignored regions, others and boxes with a score of 0 are neither objects nor background.
    assert sorted(tuple(region.box) for region in found.items[0].ignored) == [
        (0, 60, 30, 80),
        (70, 50, 100, 70),
        (80, 10, 89, 19),
    ]
    assert len(read_labels("auto", root / "VisDrone2019-DET-train").items) == 3


def test_a_row_that_is_none_of_visdrone(tmp_path: Path) -> None:
    root = visdrone(tmp_path)
    path = root / "VisDrone2019-DET-train/annotations/im1.txt"
    path.write_text("10,12,20,24,1,4,0,0\n10,12,20,24,0.93,4,0,0\n")
    with pytest.raises(DataError, match=r"im1.txt:2: is no row of VisDrone; write eight whole numbers"):
        read_labels("auto", root)


def test_turned_ships_of_hrsc(tmp_path: Path) -> None:
    for path in pictures(tmp_path / "AllImages", suffix="bmp"):
        words = {"cx": 60, "cy": 40, "w": 50, "h": 12, "ang": math.pi / 6}
        box = "".join(f"<mbox_{key}>{value}</mbox_{key}>" for key, value in words.items())
        one = f"<HRSC_Object><Class_ID>100000003</Class_ID><difficult>0</difficult>{box}</HRSC_Object>"
        size = "<Img_SizeWidth>120</Img_SizeWidth><Img_SizeHeight>90</Img_SizeHeight>"
        name = f"<Img_FileName>{path.stem}</Img_FileName><Img_FileFmt>bmp</Img_FileFmt>"
        text = tmp_path / "Annotations" / f"{path.stem}.xml"
        text.parent.mkdir(exist_ok=True)
        text.write_text(f"<HRSC_Image>{name}{size}<HRSC_Objects>{one}</HRSC_Objects></HRSC_Image>")
    found = read_labels("auto", tmp_path)
    assert found.object_classes == ("100000003",) and len(found.items) == 3
    (ship,) = found.items[0].objects or ()
    assert ship.quad is not None
    corners_42 = as_points(ship.quad)
    assert corners_42.mean(axis=0) == pytest.approx((60, 40))
    sides = sorted(math.dist(corners_42[i], corners_42[(i + 1) % 4]) for i in range(4))
    assert sides == pytest.approx([12, 12, 50, 50])
    # Clockwise in the image from the x axis, in radians.
    long = max(
        (corners_42[(i + 1) % 4] - corners_42[i] for i in range(4)),
        key=lambda side: math.hypot(*side) + 1e-3 * side[0],
    )
    assert math.atan2(long[1], long[0]) == pytest.approx(math.pi / 6)
