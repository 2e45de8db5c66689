"""Sets of whole slides: at which resolution they are read, and which crops of them show tissue.

Labels of slides are in pixels of the finest level, whatever format they come in (COCO, QuPath's GeoJSON, masks). With
`-o mpp=0.5` images and labels are those at 0.5 micrometres a pixel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from vitp.core.errors import ConfigError, DataError
from vitp.data.formats.drawn_masks import DrawnMask
from vitp.data.formats.pixel_masks import MaskFile, MaskWindow, windowed
from vitp.io.images import image_size
from vitp.io.parts import FilePart, base_address, part_address, split_address
from vitp.io.slide_masks import SlideScale
from vitp.io.slide_source import COARSEST_MPP
from vitp.io.slides import SLIDE_SUFFIXES, says_micrometres, slide_kind, slide_place
from vitp.io.tissue import find_tissue
from vitp.io.volume_kinds import is_dicom_slide
from vitp.records.geometry import as_flat, as_points
from vitp.records.labels import BACKGROUND, IGNORE, LabelledImage, LabelledSet, ObjectLabel

_MAY_BE = SLIDE_SUFFIXES | {".tif", ".tiff", ".zarr"}
LEAST_TISSUE = 0.02
"""Share of a crop that is tissue from which on it is kept."""


_STATED = "as no_mpp states"
_MOST_NAMES = 5
"""Of slides that a refusal names."""


@dataclass(frozen=True)
class SlideOptions:
    """Options of every label format about its slides.

    Attributes:
        mpp: Micrometres of a pixel that slides are read at; None: their own.
        tissue: Whether crops without tissue and without labels are left out.
        no_mpp: What becomes of slides that don't say how many micrometres their pixels have, where `mpp` is asked for:
            "refuse" or "leave_out"; or how many these are, at their finest level.
    """

    mpp: float | None = None
    tissue: bool = True
    no_mpp: str | float = "refuse"

    def __post_init__(self) -> None:
        if self.mpp is not None and not _is_length(self.mpp, 1000):
            raise ConfigError(f"is {self.mpp!r}", where="mpp", fix="give micrometres a pixel, as mpp=0.5")
        if not isinstance(self.tissue, bool):
            raise ConfigError(f"is {self.tissue!r}", where="tissue", fix="choose true or false")
        if self.no_mpp not in ("refuse", "leave_out") and not _is_length(self.no_mpp, COARSEST_MPP):
            fix = "choose refuse or leave_out, or give the micrometres of their pixels, as no_mpp=0.25 (at most 50)"
            raise ConfigError(f"is {self.no_mpp!r}", where="no_mpp", fix=fix)

    @property
    def stated(self) -> float | None:
        """Micrometres a pixel of slides that don't say it, as the user states them."""
        return None if isinstance(self.no_mpp, str) else self.no_mpp


def _is_length(value: Any, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= most


SLIDE_OPTIONS = tuple(one.name for one in fields(SlideOptions))


def at_resolution(labelled: LabelledSet, options: Mapping[str, Any]) -> LabelledSet:
    """Return a set whose slides are read at a resolution, with their labels, and say which that is.

    Args:
        labelled: As read, labels in pixels of the finest level.
        options: Some of `SlideOptions`.

    Raises:
        ConfigError: A resolution is asked for, but an image isn't a slide.
        DataError: Slides don't say how many micrometres their pixels have, or one can't be read.
    """
    wanted = SlideOptions(**options)
    stated = wanted.stated
    if not isinstance(labelled.items, list | tuple):  # generated ones
        if wanted.mpp is not None:
            raise ConfigError("generated scenes have no micrometres", where="mpp", fix="leave it out")
        return labelled
    own: Counter[str] = Counter()
    items, lacking = [], []
    for item in labelled.items:
        if _is_read_at(item, wanted):
            items.append(item)
            continue
        address = item.image if wanted.mpp is None else part_address(item.image, FilePart(mpp=wanted.mpp))
        if not _may_be_slide(address, wanted.mpp):
            items.append(item)
            continue
        says = says_micrometres(address)
        if wanted.mpp is not None and not says and stated is None:
            lacking.append(Path(base_address(address)).name)
            continue
        if not says and stated is not None:
            address = part_address(address, FilePart(own_mpp=stated))
        made, said = _read_at(item, address)
        items.append(made)
        own[said if says or stated is None else f"{said}, {_STATED}"] += 1
    if lacking and (wanted.no_mpp == "refuse" or not items):
        raise _without_resolution(lacking, len(labelled.items), labelled.name, wanted)
    if stated is not None and not any(split_address(item.image)[1].own_mpp for item in items):
        what = f"states {stated:g} micrometres a pixel, but no image is a slide that doesn't say it"
        fix = (
            "leave it out"
            if own
            else "leave it out, or give mpp, too: a plain TIFF is a slide where it is read at one"
        )
        raise ConfigError(what, where="no_mpp", fix=fix)
    if not own:
        return labelled
    left_out = tuple(
        f"{name}: doesn't say how many micrometres its pixels have: left out" for name in lacking
    )
    return replace(
        labelled,
        items=items,
        understood=(*labelled.understood, _told(own, wanted)),
        findings=(*labelled.findings, *left_out),
    )


def _told(own: Counter[str], wanted: SlideOptions) -> str:
    """Return a line on the resolutions of slides, what was stated of them first, and at which they are read."""
    found = sorted(own.most_common(), key=lambda one: not one[0].endswith(_STATED))[:4]
    counted = "; ".join(f"{count:,} of {said}" for said, count in found)
    how = "read at their own pixels; -o mpp=… reads all at one resolution"
    if wanted.mpp is not None:
        how = f"all read at {wanted.mpp:g} µm, with their labels"
    return f"slides: {counted}: {how}"


def _is_read_at(item: LabelledImage, wanted: SlideOptions) -> bool:
    """Return whether an image says at which resolution it is, as compiled sets have them, with labels in these pixels.

    Raises:
        ConfigError: It is another one than what is asked for.
    """
    part = split_address(item.image)[1]
    if (part.mpp, part.own_mpp) == (None, None) and (part.window is None or wanted.mpp is None):
        return False
    for name, said, asked in (("mpp", part.mpp, wanted.mpp), ("no_mpp", part.own_mpp, wanted.stated)):
        if asked is not None and asked != said:
            told = "its own pixels" if said is None else f"{said:g} micrometres a pixel"
            what = f"{item.id} is at {told} already, with its labels"
            raise ConfigError(what, where=name, fix="leave it out, or compile the slides again")
    return True


def _without_resolution(lacking: Sequence[str], count: int, where: str, wanted: SlideOptions) -> DataError:
    names = ", ".join(lacking[:_MOST_NAMES])
    names += f" and {len(lacking) - _MOST_NAMES} more" if len(lacking) > _MOST_NAMES else ""
    out = "-o no_mpp=leave_out reads the others alone; " if len(lacking) < count else ""
    return DataError(
        f"{len(lacking)} of {count} slides don't say how many micrometres their pixels have, so mpp={wanted.mpp:g} can't be "
        f"read of them: {names}",
        where=where,
        fix=f"-o no_mpp=0.25 states how many they have, where you know it (0.25, say, of a scanner at 40×); {out}without "
        "mpp all are read at their own pixels",
    )


def _may_be_slide(address: str, mpp: float | None) -> bool:
    path = Path(base_address(address))
    if mpp is None and path.suffix.lower() not in _MAY_BE and not is_dicom_slide(path):
        return False
    if slide_kind(address) is not None:
        return True
    if mpp is not None:
        raise ConfigError(
            f"{path.name} isn't a slide, and only slides are read at micrometres a pixel",
            where="mpp",
            fix="leave it out, or keep slides in a set of their own",
        )
    return False


def _read_at(item: LabelledImage, address: str) -> tuple[LabelledImage, str]:
    """Return a slide at the resolution of an address, and what its own is, in words."""
    place = slide_place(address)
    assert place is not None
    spacing = None if place.mpp is None else (place.mpp[0] / 1000, place.mpp[1] / 1000)
    said = "unknown resolution" if place.mpp is None else f"{place.mpp[0] / place.scale[0]:.4g} µm a pixel"
    item = replace(item, spacing=spacing)
    if place.scale == (1.0, 1.0):
        return replace(item, image=address), said
    size, factors = image_size(address), (1 / place.scale[0], 1 / place.scale[1])
    return (
        replace(
            item,
            image=address,
            width=size[0],
            height=size[1],
            objects=_scaled_all(item.objects, factors, size),
            ignored=_scaled_all(item.ignored, factors, size) or (),
            semantic=None if item.semantic is None else _scaled_mask(item, factors, size),
        ),
        said,
    )


def _scaled_all(
    labels: Sequence[ObjectLabel] | None, factors: tuple[float, float], size: tuple[int, int]
) -> tuple[ObjectLabel, ...] | None:
    return None if labels is None else tuple(scaled_label(label, factors, size) for label in labels)


def scaled_label(label: ObjectLabel, factors: tuple[float, float], size: tuple[int, int]) -> ObjectLabel:
    """Return a label in pixels of the same image at another size, of which `factors` are one of these."""

    def ring(values: Sequence[float]) -> tuple[float, ...]:
        return as_flat(as_points(values) * factors)

    x1, y1, x2, y2 = label.box
    return replace(
        label,
        box=(
            min(x1 * factors[0], size[0]),
            min(y1 * factors[1], size[1]),
            min(x2 * factors[0], size[0]),
            min(y2 * factors[1], size[1]),
        ),
        quad=None if label.quad is None else ring(label.quad),
        polygons=tuple(map(ring, label.polygons)),
        holes=tuple(map(ring, label.holes)),
    )


def _scaled_mask(item: LabelledImage, factors: tuple[float, float], size: tuple[int, int]) -> Any:
    mask = item.semantic
    if isinstance(mask, DrawnMask):
        shapes = tuple(
            (value, tuple(tuple(as_flat(as_points(ring) * factors) for ring in part) for part in parts))
            for value, parts in mask.shapes
        )
        return DrawnMask(size, shapes, mask.change)
    if isinstance(mask, MaskFile) and mask.window is None:
        before = mask.onto if isinstance(mask.onto, SlideScale) else SlideScale(size, (1.0, 1.0))
        return replace(mask, onto=before.resized(size, factors))
    raise DataError("has a mask that can't be read at another resolution", where=item.id, fix="leave mpp out")


def with_tissue(
    item: LabelledImage, windows: Sequence[MaskWindow], classes: Sequence[str] = ()
) -> list[bool] | None:
    """Return which windows of a slide show tissue or hold a label; None: the image isn't a slide.

    Args:
        item: The slide.
        windows: Parts of it.
        classes: Classes of its mask.

    Raises:
        DataError: The slide or its mask can't be read.
    """
    if Path(base_address(item.image)).suffix.lower() not in _MAY_BE:
        return None
    tissue = find_tissue(item.image)
    if tissue is None:
        return None
    kept_N = tissue.shares(np.array(windows, np.float64)) >= LEAST_TISSUE
    boxes_M4 = np.array([label.box for label in item.objects or ()]).reshape(-1, 4)
    bare = [number for number, name in enumerate(classes) if name == BACKGROUND]
    for number in np.flatnonzero(~kept_N).tolist():
        x1, y1, x2, y2 = windows[number]
        meets_M = (boxes_M4[:, 2:] > (x1, y1)).all(1) & (boxes_M4[:, :2] < (x2, y2)).all(1)
        kept_N[number] = bool(meets_M.any())
        if not kept_N[number] and item.semantic is not None:
            values_HW = windowed(item.semantic, windows[number])()
            kept_N[number] = not np.isin(values_HW, [*bare, IGNORE]).all()
    kept: list[bool] = kept_N.tolist()
    return kept
