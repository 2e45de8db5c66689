"""What a task model says of the images that it was trained on, so that others are seen in the same way."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from vitp.data.synthesis.classes import evenly_spaced
from vitp.io.parts import split_address
from vitp.io.slides import slide_kind
from vitp.records.labels import LabelledImage, LabelledSet
from vitp.tasks.base import InputSize

_LOOKED_AT = 32
"""Training images whose sizes are looked at."""


def trained_on(train: LabelledSet, size: InputSize) -> dict[str, Any]:
    """Return sizes, the plane of slices and the resolution of slides, as entries of a model's description.

    Args:
        train: The training images.
        size: What size they get.
    """
    items = [item for _, item in evenly_spaced(train.items, _LOOKED_AT)]
    return {"trained": {**_sizes(items, size), **_plane(items)}, **_slide_mpp(items)}


def _sizes(items: Sequence[LabelledImage], size: InputSize) -> dict[str, float]:
    """Return the longest side of the training images, and the factor between their sides and what a model sees."""
    scales = [
        math.sqrt(math.prod(size.of(item.height, item.width)) / (item.height * item.width)) for item in items
    ]
    return {
        "longest": max(max(item.height, item.width) for item in items),
        "scale": round(statistics.median(scales), 6),
    }


def _plane(items: Sequence[LabelledImage]) -> dict[str, str]:
    """Return the plane of slices where all are of one."""
    parts = [split_address(item.image)[1] for item in items]
    planes = {part.plane for part in parts if part.slice is not None}
    plane = planes.pop() if len(planes) == 1 else None
    return {} if plane is None else {"plane": plane}


def _slide_mpp(items: Sequence[LabelledImage]) -> dict[str, float]:
    """Return the micrometres a pixel of the training images, where these are of slides and have one resolution."""
    spacings = [item.spacing for item in items if item.spacing is not None]
    if not items or len(spacings) < len(items) or slide_kind(items[0].image) is None:
        return {}
    mpps = [1000 * math.sqrt(math.prod(spacing)) for spacing in spacings]
    return {"mpp": round(statistics.median(mpps), 6)} if max(mpps) <= 1.02 * min(mpps) else {}
