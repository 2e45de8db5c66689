"""What all kinds of slides share: an open slide, its bands, levels and planes, and how errors are told.

Names, labels, macro images and all free text of a header (which holds ids of patients, dates and users) stay within the
readers: errors of other libraries, which may quote it, are told in words of ours.
"""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import numpy as np

from vitp.core.errors import DataError, VitpError
from vitp.io.parts import FilePart
from vitp.io.slide_levels import SlideLevel
from vitp.io.storage import COPY_IT_AGAIN

LARGEST_BLOCK_BYTES = 1 << 29
"""Of a block when it is decoded."""
COARSEST_MPP = 50.0
"""Micrometres a pixel that a slide has at most; larger ones are a printer's resolution."""
UNITS_UM = {
    **dict.fromkeys(("µm", "μm", "um", "micrometer", "micrometre", "micron", ""), 1.0),
    **dict.fromkeys(("nm", "nanometer", "nanometre"), 1e-3),
    **dict.fromkeys(("mm", "millimeter", "millimetre"), 1e3),
    **dict.fromkeys(("cm", "centimeter", "centimetre"), 1e4),
    **dict.fromkeys(("m", "meter", "metre"), 1e6),
    **dict.fromkeys(("å", "angstrom"), 1e-4),
    **dict.fromkeys(("in", "inch"), 25_400.0),
}
"""Unit of a length → micrometres."""


@dataclass(frozen=True)
class SlideSource:
    """An open slide.

    Attributes:
        kind: In words, without anything that the file calls itself.
        levels: From the finest.
        factors: Factors of each level on the finest one's pixels, along x and along y.
        planes: Page and sample of each band.
        names: Names of the bands.
        dtype: Type of the values.
        mpp: Micrometres a pixel of the finest level along x and y; None: the file doesn't say.
        all_valid: Whether every pixel holds something.
        notes: What a user should know.
    """

    kind: str
    levels: tuple[SlideLevel, ...]
    factors: tuple[tuple[float, float], ...]
    planes: tuple[tuple[int, int], ...]
    names: tuple[str, ...]
    dtype: np.dtype[Any]
    mpp: tuple[float, float] | None
    all_valid: bool
    notes: tuple[str, ...] = ()


@contextlib.contextmanager
def reading_slide(where: str, place: str = "") -> Iterator[None]:
    """Turn whatever readers raise into words of ours: theirs may quote the header, which names patients.

    Args:
        where: Address, for messages.
        place: Which part of the file is read, in words.

    Raises:
        DataError: Whatever goes wrong.
    """
    # It logs what it can't understand, texts of the header included.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except VitpError:
        raise
    except MemoryError as error:
        what = "doesn't fit into memory"
        raise DataError(what, where=where, fix="read windows of it (FILE#window=…)") from error
    except Exception as error:
        what = (
            f"is a slide that can't be read{f' in {place}' if place else ''} ({type(error).__name__}): damaged, or of a "
            "kind that isn't known"
        )
        # These errors quote what they couldn't parse, and a traceback would show it.
        raise DataError(what, where=where, fix=COPY_IT_AGAIN) from (
            None if isinstance(error, ValueError | KeyError | ElementTree.ParseError) else error
        )


def usable_mpp(mpp: tuple[Any, Any]) -> tuple[tuple[float, float] | None, tuple[str, ...]]:
    """Return micrometres a pixel along x and y, and notes; None: the file tells none that can be right."""
    try:
        x, y = (float(value) for value in mpp)
    except (TypeError, ValueError):
        return None, ()
    if not (math.isfinite(x) and math.isfinite(y) and min(x, y) > 0):
        return None, ()
    if max(x, y) > COARSEST_MPP:
        note = f"says {max(x, y):.4g} µm a pixel, which no slide has; its resolution counts as unknown"
        return None, (note,)
    return (x, y), ()


def unique_bands(names: Sequence[str] | None, count: int) -> list[str]:
    """Return a name for each band: the file's own where it has as many, numbers from 1 elsewhere."""
    own = list(names) if names is not None and len(names) == count else [""] * count
    found: list[str] = []
    for number, name in enumerate(own, 1):
        word = " ".join(name.split()) or str(number)
        found.append(word if word not in found else f"{word} ({number})")
    return found


def level_factors(sizes: Sequence[tuple[int, int]]) -> tuple[tuple[float, float], ...]:
    """Return what each level reduces the first by; writers cut rests, so whole factors count as whole."""
    wide, high = sizes[0]
    found = []
    for width, height in sizes:
        whole = round(wide / width)
        fits = all(
            whole > 0 and math.floor(full / whole) <= own <= math.ceil(full / whole)
            for full, own in ((wide, width), (high, height))
        )
        found.append((float(whole),) * 2 if fits else (wide / width, high / height))
    return tuple((x, y) for x, y in found)


def slide_plane(axis: str, length: int, part: FilePart, where: str) -> int:
    """Return which plane of a stack (`slice`, from 0) or which point in time (`page`, from 1) is meant.

    Raises:
        DataError: There are several and none is named, or there is no such.
    """
    axis = axis.upper()
    if axis not in ("Z", "T"):
        if length == 1:
            return 0
        what = f"has {length} images along the axis {axis}, only one of which can be a slide"
        raise DataError(what, where=where, fix="save the one that is meant as a file of its own")
    word, first, named = ("slice", 0, part.slice) if axis == "Z" else ("page", 1, part.page)
    noun = "planes" if axis == "Z" else "points in time"
    last = length - 1 + first
    if named is None and length > 1:
        what = f"holds {length} {noun}, only one of which can be an image"
        raise DataError(what, where=where, fix=f"choose one (FILE#{word}={first} … {word}={last})")
    number = 0 if named is None else named - first
    if not 0 <= number < length:
        what = f"has no {word} {named}; it has {first} to {last}"
        raise DataError(what, where=where, fix="name one of these")
    return number


def chosen_image(own: Sequence[int], part: FilePart, where: str) -> int:
    """Return which of several images of a file is meant (`series`, from 1).

    Raises:
        DataError: There are several and none is named, or there is no such.
    """
    if part.series is None and len(own) == 1:
        return own[0]
    if part.series is None or not (part.series.isdecimal() and 1 <= int(part.series) <= len(own)):
        what = f"holds {len(own)} images" if part.series is None else f"has no image {part.series!r}"
        raise DataError(
            what, where=where, fix=f"choose one (FILE#series=1 … series={len(own)})" if own else COPY_IT_AGAIN
        )
    return own[int(part.series) - 1]
