"""The sizes of a run that nobody gave: of images and windows from the data, of anchors from the objects, of heads and
necks from the tower.

A model sees what is in an image only as large as the image gets to it. So images are never squeezed into the square
that a backbone happens to have been pretrained at:

- Images whose long side is no longer than the backbone's are brought to that side. Larger ones stay as they are, or,
  where all have about one size, are reduced as far as small objects (the 10th percentile of the shorter sides) keep
  `SMALL_OBJECT` pixels, and never below the backbone's side.
- The window is twice the backbone's side, at most 512 px, and never below that side; for objects it is at least four
  times as long as a large one (the 90th percentile), up to 1024 px. Images up to 1.5 windows are seen whole;
  larger ones in random crops of the window's size while training, and through sliding windows afterwards.
- Anchors: of the scales 1, 2, 4 and 8 the largest whose smallest anchor isn't larger than a small object.
- Regions: the published 512 an image (and 2000 proposals) belong to images of 800 px and more. Smaller ones get them in
  proportion to their area, at least 64, and at least 8 for each of many objects (the 90th percentile).
- A detection transformer has no anchors: it looks at stride 4 where small objects have less than 16 px.
- Widths: the published ones (256 channels, 1024 hidden units, 64 channels of the adapter's stem) belong to towers that
  are 768 wide or wider. Narrower towers get them in proportion to their width, in multiples of 16, but at least 64
  (256 hidden units, 32 channels of the stem). Decoders of class maps keep their 128 channels: narrower ones learn much
  worse from few images (docs/log.md).

What is given always wins; where `data.resize` is given, images, windows and anchors are left as they are given.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitp.data.synthesis.classes import evenly_spaced
from vitp.io.parts import split_address
from vitp.io.slides import slide_kind
from vitp.records.labels import LabelledImage, LabelledSet
from vitp.tasks.base import InputSize, LabelKind

PUBLISHED_TOWER = 768
"""Width of a tower from which on heads have their published widths."""

PUBLISHED_SIDE, PUBLISHED_REGIONS = 800, 512
"""Side of images from which on heads learn from their published number of regions."""

SMALL_OBJECT = 32
"""Pixels that the shorter side of a small object keeps where images are reduced."""

PUBLISHED_QUERIES, QUERIES_PER_OBJECT = 100, 1.5
"""Mask queries of an image at least, and how many for each object of the fullest one."""

DETR_QUERIES = 300
"""Queries of a detection transformer, as published."""

_DETECTORS = ("detection", "instance", "oriented")
_OBJECT_KINDS = ("objects", "instances", "oriented")
_LOOKED_AT = 2000
_LOOKED_AT_LAZY = 32
"""Images whose labels are looked at; fewer where each is read from its file only when it is asked for."""
_USUAL_WINDOW, _LARGEST_WINDOW = 512, 1024
_FINEST_STRIDE = 4


@dataclass(frozen=True)
class FittedSizes:
    """What images get, and how it is said.

    Attributes:
        resize: What size images get first.
        window: Side of crops in training and of windows afterwards; None: images are seen whole.
        anchors: Scale of anchors; None: no objects, or as published.
        regions: An image's regions in the loss; None: no objects, or as published.
        side: Long side of what the model sees while training.
        said: Lines about the choice.
        objects: Objects of the fullest image.
    """

    resize: InputSize
    window: int | None
    anchors: float | None
    regions: int | None
    side: int
    said: tuple[str, ...]
    objects: int = 0


@dataclass(frozen=True)
class SizeFacts:
    """Sides of images and objects in pixels: (N,) long and short sides of images, (M,) of objects; how many objects
    an image with many has, and the fullest one."""

    long_N: np.ndarray
    short_N: np.ndarray
    object_long_M: np.ndarray
    object_short_M: np.ndarray
    most_objects: float
    fullest: int


def size_facts(labelled: LabelledSet) -> SizeFacts:
    """Return the sides of a set's images and clear objects, of at most some thousand evenly spaced images."""
    most = _LOOKED_AT if isinstance(labelled.items, list | tuple) else _LOOKED_AT_LAZY
    items = [item for _, item in evenly_spaced(labelled.items, most)]
    sides = [(item.width, item.height) for item in items]
    by_image = [_object_sides(item) for item in items]
    objects = [side for own in by_image for side in own]
    return SizeFacts(
        np.array([max(pair) for pair in sides], float),
        np.array([min(pair) for pair in sides], float),
        np.array([max(pair) for pair in objects], float),
        np.array([min(pair) for pair in objects], float),
        float(np.percentile([len(own) for own in by_image], 90)),
        max(len(own) for own in by_image),
    )


def _object_sides(item: LabelledImage) -> list[tuple[float, float]]:
    found = []
    for label in item.objects or ():
        if label.difficult:
            continue
        if label.quad is not None:
            corners = np.array(label.quad, float).reshape(4, 2)
            width, height = (float(np.hypot(*(corners[k + 1] - corners[k]))) for k in (0, 1))
        else:
            x1, y1, x2, y2 = label.box
            width, height = x2 - x1, y2 - y1
        found.append((width, height))
    return found


def fitted_sizes(labelled: LabelledSet, kind: LabelKind, side: int, *, regions: bool = True) -> FittedSizes:
    """Return what size the images of a run get.

    Args:
        labelled: The training images.
        kind: What is learned.
        side: Side of the images that the backbone was pretrained at.
        regions: Whether objects are found by anchors and regions.
    """
    square = InputSize(mode="fixed", size=side)
    if kind in ("scene", "presence"):
        said = f"images: resized to {side}×{side}, the backbone's size (data.resize)"
        return FittedSizes(square, None, None, None, side, (said,))
    facts = size_facts(labelled)
    if kind == "panoptic":
        return _seen_whole(facts, side)
    longest, shortest = float(facts.long_N.max()), float(facts.long_N.min())
    objects = len(facts.object_short_M) > 0 and kind in _OBJECT_KINDS
    small = float(np.percentile(facts.object_short_M, 10)) if objects else 0.0
    large = float(np.percentile(facts.object_long_M, 90)) if objects else 0.0
    alike = longest <= 1.5 * shortest
    if longest <= side:
        squares = bool((facts.long_N == facts.short_N).all())
        resize = square if squares else InputSize(mode="long", size=side)
        scale = side / float(np.median(facts.long_N))
    else:
        scale = max(SMALL_OBJECT / small, side / longest) if objects and small > 0 and alike else 1.0
        # A little less would only blur.
        resize = InputSize(mode="long", size=round(scale * longest)) if scale < 0.9 else InputSize()
        scale = scale if resize.size else 1.0
    window = _window(side, scale * large)
    seen = float(resize.size or longest)
    cut = window if seen > 1.5 * window else None
    anchors = _anchor_scale(scale * small) if objects else None
    samples = _regions(cut or seen, facts.most_objects) if objects and regions else None
    return FittedSizes(
        resize,
        cut,
        anchors,
        samples,
        cut or int(seen),
        tuple(_said(facts, resize, cut, anchors if regions else None, scale, small, large)),
        facts.fullest,
    )


def _seen_whole(facts: SizeFacts, side: int) -> FittedSizes:
    """Return the sizes of images that aren't cut, as segments aren't merged over windows."""
    longest = int(facts.long_N.max())
    small = longest <= side
    seen = side if small else min(longest, max(side, _USUAL_WINDOW))
    resize = InputSize(mode="long", size=seen)
    if small and bool((facts.long_N == facts.short_N).all()):
        resize = InputSize(mode="fixed", size=side)
    said = _said(facts, resize, None, None, 1.0, 0.0, 0.0)
    return FittedSizes(resize, None, None, None, seen, tuple(said), facts.fullest)


def _window(side: int, large: float) -> int:
    usual = max(side, min(_USUAL_WINDOW, 2 * side))
    wanted = max(usual, min(4 * large, max(side, _LARGEST_WINDOW)))
    return int(-(-wanted // 32) * 32)


def _anchor_scale(small: float) -> float:
    return max((scale for scale in (1.0, 2.0, 4.0, 8.0) if scale * _FINEST_STRIDE <= small), default=1.0)


def _regions(side: float, most_objects: float) -> int | None:
    if side >= PUBLISHED_SIDE:
        return None
    wanted = max(PUBLISHED_REGIONS * (side / PUBLISHED_SIDE) ** 2, 8 * most_objects)
    found = min(_multiple(wanted, least=64), PUBLISHED_REGIONS)
    return None if found == PUBLISHED_REGIONS else found


def _said(
    facts: SizeFacts,
    resize: InputSize,
    window: int | None,
    anchors: float | None,
    scale: float,
    small: float,
    large: float,
) -> list[str]:
    low, high = int(facts.long_N.min()), int(facts.long_N.max())
    how = {
        "none": "read at their own size",
        "fixed": f"resized to {resize.size}×{resize.size}",
        "long": f"resized to {resize.size} px on the long side",
    }[resize.mode]
    cut = f", in crops and windows of {window} px" if window else ", seen whole"
    keys = "data.resize, data.crop, test.window" if window else "data.resize"
    sides = f"{low}" if low == high else f"{low}–{high}"
    lines = [f"images: {sides} px on the long side, {how}{cut} ({keys})"]
    if anchors is not None:
        reach = f"{small * scale:.0f}–{large * scale:.0f}"
        lines.append(
            f"objects: mostly {small:.0f}–{large:.0f} px, {reach} px as the model sees them; anchors from "
            f"{anchors * _FINEST_STRIDE:.0f} px (head.proposals.anchor_scales)"
        )
    return lines


# --- widths


def fitted_head(
    task: str,
    head: Mapping[str, Any],
    width: int,
    anchors: float | None = None,
    regions: int | None = None,
    objects: int = 0,
) -> dict[str, Any]:
    """Return the settings of a task's head with what isn't given fitted to the tower and the objects.

    Args:
        task: Its name.
        head: What is given.
        width: Channels of the tower's last map.
        anchors: Scale of anchors; None: as published.
        regions: An image's regions in the loss; None: as published.
        objects: Objects of the fullest training image.
    """
    found: dict[str, Any] = dict(head)
    if task not in (*_DETECTORS, "panoptic"):
        return found
    if found.get("kind") == "detr":
        return _fitted_queries(found, width, anchors, objects)
    if task == "panoptic" or found.get("kind") == "eomt":
        return {"queries": max(PUBLISHED_QUERIES, math.ceil(QUERIES_PER_OBJECT * objects)), **found}
    if (share := width / PUBLISHED_TOWER) < 1:
        found = {"width": _multiple(256 * share), **found}
        _fill(found, "box", hidden=_multiple(1024 * share, least=256))
        if task == "instance":
            _fill(found, "mask", width=_multiple(256 * share))
    given = found.get("proposals")
    if anchors is not None and anchors != 8 and "anchor_scales" not in (given or {}):
        _fill(found, "proposals", anchor_scales=[anchors])
        # The published canonical region of 224 px goes with anchors of scale 8.
        _fill(found, "box", canonical_size=28.0 * anchors)
    if regions is not None:
        # As published: 2000 proposals and half as many for 512 regions.
        kept = [4 * regions, 2 * regions]
        _fill(found, "box", samples=regions)
        _fill(found, "proposals", samples=min(256, regions), keep_before=kept, keep=kept)
    return found


def _fitted_queries(head: dict[str, Any], width: int, anchors: float | None, objects: int) -> dict[str, Any]:
    """Return the settings of a detection transformer: the finest stride by the anchors that its objects would have."""
    if (share := width / PUBLISHED_TOWER) < 1:
        head = {"width": _multiple(256 * share), "hidden": _multiple(1024 * share, least=256), **head}
    if anchors is not None and anchors <= 2:
        head = {"finest": _FINEST_STRIDE, **head}
    wanted = math.ceil(QUERIES_PER_OBJECT * objects)
    return {"queries": wanted, **head} if wanted > DETR_QUERIES else head


def fitted_neck(kind: str, options: Mapping[str, Any], width: int) -> dict[str, Any]:
    """Return the options of a neck with the width of the adapter's stem fitted to the tower where it isn't given."""
    if kind != "adapter" or width >= PUBLISHED_TOWER:
        return dict(options)
    return {"prior_width": _multiple(64 * width / PUBLISHED_TOWER, least=32), **options}


def _fill(head: dict[str, Any], part: str, **values: Any) -> None:
    own = head.get(part)
    if own is None or isinstance(own, Mapping):
        head[part] = {**values, **(own or {})}


def _multiple(value: float, *, least: int = 64) -> int:
    return max(least, round(value / 16) * 16)


def new_settings(given: Mapping[str, Any], fitted: Mapping[str, Any], place: str = "head") -> list[str]:
    """Return "key value" of the settings that aren't among the given ones."""
    found = []
    for name, value in fitted.items():
        if isinstance(value, Mapping):
            found += new_settings(given.get(name) or {}, value, f"{place}.{name}")
        elif name not in given:
            found.append(f"{place}.{name} {value}")
    return found


def seen_sizes(train: LabelledSet, size: InputSize) -> dict[str, float | str]:
    """Return the longest side of the training images, and the factor between their sides and what a model sees.

    Where all are slices of volumes in one plane, that plane, too.
    """
    items = [item for _, item in evenly_spaced(train.items, _LOOKED_AT_LAZY)]
    scales = [
        math.sqrt(math.prod(size.of(item.height, item.width)) / (item.height * item.width)) for item in items
    ]
    return {
        "longest": max(max(item.height, item.width) for item in items),
        "scale": round(statistics.median(scales), 6),
        **_plane(items),
    }


def _plane(items: Sequence[LabelledImage]) -> dict[str, str]:
    parts = [split_address(item.image)[1] for item in items]
    planes = {part.plane if part.slice is not None else None for part in parts}
    plane = planes.pop() if len(planes) == 1 else None
    return {} if plane is None else {"plane": plane}


def slide_mpp(train: LabelledSet) -> dict[str, float]:
    """Return the micrometres a pixel of the training images, where these are of slides and have one resolution."""
    items = [item for _, item in evenly_spaced(train.items, _LOOKED_AT_LAZY)]
    spacings = [item.spacing for item in items if item.spacing is not None]
    if not items or len(spacings) < len(items) or slide_kind(items[0].image) is None:
        return {}
    mpps = [1000 * math.sqrt(math.prod(spacing)) for spacing in spacings]
    return {"mpp": round(statistics.median(mpps), 6)} if max(mpps) <= 1.02 * min(mpps) else {}
