"""Vector labels on rasters for tests."""

from __future__ import annotations

from tests.ground_files import DEGREES, FEET, POLAR, UTM, box_on_ground
from vitp.records.labels import LabelledImage, LabelledSet

OUTLINE = [(20.25, 30.5), (60.0, 24.0), (66.5, 71.0), (40.0, 90.0)]
HOLE = [(40.0, 45.0), (50.0, 45.0), (50.0, 55.0), (40.0, 55.0)]


def one(labelled: LabelledSet) -> LabelledImage:
    assert len(labelled) == 1
    return labelled.items[0]


PLACES = [UTM, DEGREES, POLAR, FEET]


def four(left: int = 10) -> list[object]:
    return [box_on_ground(UTM, left + 30 * k, 10, left + 30 * k + 20, 30) for k in range(4)]
