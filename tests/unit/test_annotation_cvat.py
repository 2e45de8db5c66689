"""Tasks that come back from CVAT in its own format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.annotation_toys import picture
from vitp.core.errors import DataError
from vitp.data.formats import read_labels
from vitp.records.geometry import area, as_points
from vitp.records.labels import LabelledSet
from vitp.records.regions import rasterise
from vitp.records.tool_shapes import NOTHING_HERE, decode_cvat_mask, rectangle_of

HEAD = "<?xml version='1.0'?>\n<annotations><version>1.1</version><meta><task><labels>{}</labels></task></meta>{}</annotations>"


def cvat(tmp_path: Path, *images: str, labels: str = "", **options: Any) -> LabelledSet:
    nodes = []
    for number, shapes in enumerate(images):
        picture(tmp_path / "images" / f"i{number}.png", (200, 100), number)
        nodes.append(f'<image id="{number}" name="i{number}.png" width="200" height="100">{shapes}</image>')
    (tmp_path / "annotations.xml").write_text(HEAD.format(labels, "".join(nodes)), encoding="utf-8")
    return read_labels("auto", tmp_path, val=0, test=0, **options)


SHIP = '<box label="ship" xtl="20" ytl="20" xbr="80" ybr="60"/>'


def test_an_image_without_shapes_has_two_readings_in_cvat(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"1 image \(such as i1.png\) have no shape.*-o empty=nothing or -o empty=unlab"
    ):
        cvat(tmp_path, SHIP, "")
    assert [len(item.objects or ()) for item in cvat(tmp_path, SHIP, "", empty="nothing").items] == [1, 0]
    assert len(cvat(tmp_path, SHIP, "", empty="unlabelled").items) == 1
    marked = cvat(tmp_path, SHIP, "", f'<tag label="{NOTHING_HERE}"/>')
    assert {item.id: len(item.objects or ()) for item in marked.items} == {"images/i0": 1, "images/i2": 0}
    assert not marked.scene_classes


def test_shapes_of_cvat(tmp_path: Path) -> None:
    shapes = (
        SHIP
        + '<box label="turned" xtl="60" ytl="40" xbr="100" ybr="60" rotation="90.0"/>'
        + '<polygon label="area" points="10,10;20,10;20,30"/>'
        + '<ellipse label="tank" cx="50" cy="50" rx="10" ry="20"/>'
        + '<mask label="oil" rle="1, 2, 2, 1" left="5" top="6" width="3" height="2"/>'
    )
    (item,) = cvat(tmp_path, shapes, classes="ship,turned,area,tank,oil").items
    ship, turned, polygon, ellipse, oil = item.objects or ()
    assert ship.box == (20, 20, 80, 60) and ship.quad is None
    assert turned.box == pytest.approx((70, 30, 90, 70))
    assert rectangle_of(turned.quad or ())[2:] == pytest.approx((40, 20, 90))
    assert polygon.box == (10, 10, 20, 30) and area(as_points(ellipse.polygons[0])) == pytest.approx(
        np.pi * 200
    )
    assert np.argwhere(rasterise(oil.polygons, (100, 200), oil.holes)).tolist() == [[6, 6], [6, 7], [7, 7]]
    assert (decode_cvat_mask("0, 6", (0, 0, 3, 2), 2, 3) == 1).all()


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ('<polyline label="ship" points="1,1;5,5;9,1"/>', "a polyline has no area"),
        ('<points label="ship" points="1,1"/>', "a points has no area"),
        ('<cuboid label="ship" xtl1="1"/>', "a cuboid has no area"),
        (
            '<mask label="ship" rle="1, 9" left="5" top="6" width="3" height="2"/>',
            "the runs cover 10 pixels of 6",
        ),
        ('<mask label="ship" rle="0, 6" left="199" top="6" width="3" height="2"/>', "isn't in the image"),
        ('<box label="ship" xtl="nan" ytl="1" xbr="3" ybr="4"/>', "xtl is nan"),
        ('<box label="ship" ytl="1" xbr="3" ybr="4"/>', "ship can't be understood: it has no xtl"),
        (
            '<box label="ship" xtl="one" ytl="1" xbr="3" ybr="4"/>',
            "its xtl is one, which is no finite number",
        ),
        ('<polygon label="ship" points="1,1;2,a;3,3"/>', "y of a point is a, which is no finite number"),
        (
            '<mask label="ship" rle="0, x" left="5" top="6" width="3" height="2"/>',
            "runs aren't whole numbers",
        ),
        ('<polygon label="ship" points="1,1;2"/>', "points aren't three or more"),
    ],
)
def test_shapes_that_cannot_be_used_leave_the_image_unlabelled(tmp_path: Path, shape: str, said: str) -> None:
    read = cvat(tmp_path, SHIP, shape, SHIP)
    assert [item.id for item in read.items] == ["images/i0", "images/i2"]
    assert any(said in line for line in read.findings)


def test_images_of_cvat_that_come_twice(tmp_path: Path) -> None:
    def twice(first: str, second: str, name: str = "i0.png", **options: Any) -> LabelledSet:
        more = f'{first}</image><image id="7" name="{name}" width="200" height="100">{second}'
        return cvat(tmp_path, more, SHIP, **options)

    noted = SHIP.replace("<box ", '<box source="auto" z_order="2" ')
    for second in (SHIP, noted):
        read = twice(SHIP, second)
        assert [len(item.objects or ()) for item in read.items] == [
            1,
            1,
        ] and "objects: ship 2" in read.understood
        said = "annotations.xml:image 7: is of the same image as annotations.xml:image 0; counted once"
        assert said in read.findings
    said = r"image 7: says something else of i0\.png than annotations\.xml:image 0; keep one"
    for second, options in ((SHIP.replace("20", "30"), {}), ("", {}), ("", {"empty": "nothing"})):
        with pytest.raises(DataError, match=said):
            twice(SHIP, second, **options)
    for pair in ((SHIP, ""), ("", SHIP)):
        assert [len(item.objects or ()) for item in twice(*pair, empty="unlabelled").items] == [1, 1]


def test_tracks_other_sizes_and_subsets(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'holds tracks, .* export it as "CVAT for images 1.1"'):
        cvat(tmp_path, SHIP + "</image><track id='0' label='ship'/><image id='9' name='i0.png'>")
    cvat(tmp_path, SHIP, SHIP, SHIP)
    path = tmp_path / "annotations.xml"
    text = path.read_text().replace('i1.png" width="200"', 'i1.png" width="201"')
    text = text.replace('name="i2.png"', 'name="i2.png" subset="Validation"').replace(
        'name="i0.png"', 'name="i0.png" subset="Train"'
    )
    path.write_text(text)
    read = read_labels("cvat", tmp_path)
    assert {item.id: item.split for item in read.items} == {"images/i0": "train", "images/i2": "val"}
    assert any("says 201×100 but the image has 200×100" in line for line in read.findings)


def test_tags_of_cvat_are_classes(tmp_path: Path) -> None:
    read = cvat(tmp_path, '<tag label="port"/>', '<tag label="sea"/>', "")
    assert {item.id: item.scene for item in read.items} == {"images/i0": "port", "images/i1": "sea"}
