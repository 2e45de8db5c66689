"""Images of one or two objects with places that are to be ignored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitp.metrics.results import Target
from vitp.records.labels import LabelledImage, LabelledSet, ObjectLabel
from vitp.tasks.data import LabelReader

CLASSES = ("car", "ship")


def at(name: str, x1: float, y1: float, x2: float, y2: float, **more: Any) -> ObjectLabel:
    return ObjectLabel(name, (x1, y1, x2, y2), **more)


def ring(x1: float, y1: float, x2: float, y2: float) -> tuple[float, ...]:
    return (x1, y1, x2, y1, x2, y2, x1, y2)


CROWD = at("?", 20, 4, 36, 28)


def one_image(
    folder: Path, *objects: ObjectLabel, ignored: tuple[ObjectLabel, ...] = (CROWD,)
) -> LabelledSet:
    path = folder / "a.png"
    Image.fromarray(np.full((32, 40, 3), 9, np.uint8)).save(path)
    item = LabelledImage("a", str(path), 40, 32, objects=objects, ignored=ignored)
    return LabelledSet("set", [item], CLASSES)


def target_of(labelled: LabelledSet, kind: Any) -> Target:
    reader = LabelReader(labelled, kind)
    return reader.target(reader.sample(labelled.items[0]))
