"""The contents of a generated scene.

Arrays carry their shape in the name: H and W are pixels, C is red, green, blue.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vitp.records.geometry import Box


@dataclass(frozen=True)
class SceneObject:
    """One object that can be seen in a scene.

    Attributes:
        category: Class name.
        box: x1, y1, x2, y2 in pixels, x2 and y2 exclusive: the tight box of `quad`, clipped to the image.
        quad: Corners of the oriented box x1, y1, …, x4, y4, clockwise from the rear left one; may leave the
            image.
        visible_pixels: Pixels of the instance mask.
        attributes: `size` ("small" or "large" for its class), `heading` (degrees clockwise from up,
            0 ≤ heading < 360), and `colour` where the look shows true colours.
    """

    category: str
    box: Box
    quad: tuple[float, ...]
    visible_pixels: int
    attributes: dict[str, str | float]


@dataclass(frozen=True)
class Scene:
    """An overhead image with its exact labels.

    Attributes:
        image_HWC: uint8 RGB.
        semantic_HW: uint8, index into the domain's `semantic_classes`; 255 where an object shows too little
            of itself to be labelled.
        instance_HW: uint16, 0 = no object, k = `objects[k - 1]`.
        objects: What can be seen.
        scene_type: Class of the place.
        look: Sensor.
        caption: A true description.
    """

    image_HWC: np.ndarray
    semantic_HW: np.ndarray
    instance_HW: np.ndarray
    objects: tuple[SceneObject, ...]
    scene_type: str
    look: str
    caption: str


class SceneChange(NamedTuple):
    """One difference between two dates.

    Attributes:
        kind: `appeared`, `disappeared` or `land`.
        category: Object class, or the new land class.
        box: x1, y1, x2, y2 in pixels.
    """

    kind: str
    category: str
    box: Box


@dataclass(frozen=True)
class ScenePair:
    """Two dates of one place, registered to each other.

    Attributes:
        before: The earlier date.
        after: The later date; light, season and noise differ too, which is no change.
        change_HW: bool, where the semantic class or the object differs.
        changes: What differs.
    """

    before: Scene
    after: Scene
    change_HW: np.ndarray
    changes: tuple[SceneChange, ...]
