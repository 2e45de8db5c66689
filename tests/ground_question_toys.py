"""Images on the ground with two labelled objects."""

from __future__ import annotations

from vitp.data.synthesis.classes import SetClasses
from vitp.records.labels import LabelledImage, ObjectLabel

CLASSES = SetClasses(("ship", "car"), (), ("background", "lake"), "set")

SHIP = ObjectLabel(
    "ship",
    (20.0, 20.0, 100.0, 40.0),
    (20, 20, 100, 20, 100, 40, 20, 40),
    ((20, 20, 100, 20, 100, 40, 20, 40),),
)

CAR = ObjectLabel("car", (20.0, 100.0, 30.0, 105.0), (20, 100, 30, 100, 30, 105, 20, 105))


def image(
    ground: tuple[float, float, float, float] | None = (0.5, 0.0, 0.0, -0.5), **rest: object
) -> LabelledImage:
    return LabelledImage("a", "a.tif", 200, 160, objects=(SHIP, CAR), ground=ground, **rest)  # type: ignore[arg-type]
