"""Label readers on real sets, where they are at hand: images of each split, objects and findings."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from vitp.data.formats import read_labels
from vitp.data.formats.detect import detect_format
from vitp.records.geometry import area, as_points

DATA = Path(os.environ.get("VITP_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "fmt", "options", "splits", "objects", "findings"),
    [
        ("bccd", "voc", {}, (205, 87, 72), 4886, 2),
        ("gdit_airport", "dota", {}, (236, 68, 34), 4923, 5),
        ("kit_ais_cars", "yolo", {"group_regex": "^[^-]+"}, (20, 0, 0), 746, 0),
        ("amazon_forest", "masks", {"classes": "forest=white", "val": 0.2, "test": 0.2}, (11, 4, 4), 0, 0),
    ],
)
def test_real_sets(
    name: str, fmt: str, options: dict, splits: tuple[int, ...], objects: int, findings: int
) -> None:
    root = DATA / name
    if not root.is_dir():
        pytest.skip(f"{root} is absent; set VITP_DATA")
    assert detect_format(root) == fmt
    found = read_labels(fmt, root, **options)
    counts = Counter(i.split for i in found.items)
    assert tuple(counts[s] for s in ("train", "val", "test")) == splits
    assert sum(len(i.objects or ()) for i in found.items) == objects
    assert len(found.findings) == findings


@pytest.mark.realdata
def test_real_ships_from_masks() -> None:
    root = DATA / "hrsid_mini"
    if not root.is_dir():
        pytest.skip(f"{root} is absent; set VITP_DATA")
    found = read_labels("masks", root, classes="ship=green", instances=True, group_regex=r"^P\d+")
    assert len(found) == 36
    groups = {(i.group, i.split) for i in found.items}
    assert len(groups) == len({group for group, _ in groups}) == 14
    assert {split for _, split in groups} == {"train", "val", "test"}
    assert sum(len(i.objects) for i in found.items) == 69
    for item in found.items:
        mask = item.semantic()
        assert mask.max() == 1
        outlined = sum(area(as_points(ring)) for o in item.objects for ring in o.polygons)
        assert outlined == pytest.approx(mask.sum(), rel=0.15)
