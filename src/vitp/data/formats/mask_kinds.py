"""The kind of mask values: classes, numbers of instances, or traces of smoothing and lossy saving.

Nothing here decides in silence: what has two readings is refused, and the message names both with their options.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from vitp.core.errors import DataError
from vitp.data.formats.pixel_masks import mask_values
from vitp.io.images import label_nodata, masked_share
from vitp.io.open_pixels import open_pixels
from vitp.io.raster_sources import uncovered_share
from vitp.io.rasters import raster_driver
from vitp.io.slides import slide_kind
from vitp.records.labels import IGNORE

_STRAY_SHARE = 0.001
"""Values of less than this share of all pixels may be strays: one pixel in a thousand."""

MOST_LOOKED_AT = 60
"""Masks that are looked at to tell instances from classes."""

_LEAST_INSTANCES = 3
"""Different values of one mask from which they may be numbers of instances."""

_CONNECTED = 0.9
"""Share of values that are one region in their file, from which they may be numbers of instances."""

_LOSSY = ("JPEG", "MPO", "WEBP")


@dataclass(frozen=True)
class MaskFacts:
    """What was counted in one mask.

    Attributes:
        values: Value → pixels.
        thin: Values that nowhere fill a square of 3 × 3 pixels.
        whole: Values, 0 excepted, that are one region (or differ from one by a few pixels).
        format: Pillow's name of the file's format.
        mode: Pillow's name of its mode.
        palette: Of a palette file: value → its colour 0xRRGGBB, for the values that occur.
        hidden: Values of which some pixels are transparent and others aren't.
        nodata: Value that occurs and that the file's own tag names as nodata; None: there is none.
        blank: Pixels that are nodata by the tag and hold no whole number (NaN, −3.4e38); they are in no other count.
    """

    values: dict[int, int]
    thin: frozenset[int]
    whole: frozenset[int]
    format: str
    mode: str
    palette: dict[int, int] = field(default_factory=dict)
    hidden: frozenset[int] = frozenset()
    nodata: int | None = None
    blank: int = 0


def mask_facts(pixels: np.ndarray, path: Path, *, regions: bool) -> MaskFacts:
    """Return what is counted in a mask and its file; with `regions` also which values are one region.

    Args:
        pixels: (H, W) values or (H, W, 3) colours, as `load_label_pixels` has them.
        path: Path of the mask.
        regions: Whether values that are one region are looked for.

    Raises:
        DataError: It isn't an image, or holds values that are no whole numbers.
    """
    tag = label_nodata(path)
    _refuse_gaps(path, tag)
    colour = pixels.ndim == 3
    values_HW = mask_values(pixels)
    blank_HW = None
    if tag is not None and values_HW.dtype.kind == "f" and not is_label_number(tag):
        blank_HW = np.isnan(values_HW) if np.isnan(tag) else values_HW == values_HW.dtype.type(tag)
        values_HW = np.where(blank_HW, values_HW.dtype.type(0), values_HW)
    if values_HW.dtype.kind == "f":
        odd = values_HW[values_HW != np.rint(values_HW)]
        if odd.size:
            raise DataError(
                f"holds {odd[0]:g} and other values that are no whole numbers, and so no classes",
                where=str(path),
                fix="save the number of the class of each pixel; of probabilities that of the most probable one",
            )
        values_HW = values_HW.astype(np.int64)
    kind, mode, colours, alpha = _file_facts(path, colour=colour)
    found, numbers_HW, counts = _numbered(values_HW)
    values = {int(v): int(n) for v, n in zip(found, counts, strict=True)}
    blank = 0 if blank_HW is None else int(blank_HW.sum())
    if blank:
        values[0] -= blank
        values = {value: n for value, n in values.items() if n}
    solid = _solid(numbers_HW, len(found))
    thin = frozenset(int(v) for v, has in zip(found, solid, strict=True) if not has)
    whole = _whole(numbers_HW, found, counts) if regions else frozenset()
    shown_as = [
        r << 16 | g << 8 | b for r, g, b in zip(colours[::3], colours[1::3], colours[2::3], strict=True)
    ]
    palette = {value: shown_as[value] for value in values if 0 <= value < len(shown_as)}
    hidden: frozenset[int] = frozenset()
    if alpha is not None and (clear_HW := alpha == 0).shape == values_HW.shape and clear_HW.any():
        hidden = frozenset(map(int, np.intersect1d(values_HW[clear_HW], values_HW[~clear_HW])))
    nodata = None
    if tag is not None and is_label_number(tag):
        nodata = int(tag) * (0x010101 if colour else 1)
        nodata = nodata if nodata in values else None
    return MaskFacts(values, thin, whole, kind, mode, palette, hidden, nodata, blank)


def _refuse_gaps(path: Path, tag: float | None) -> None:
    """Refuse places of which a file says nothing, and that would be read as 0.

    Those that no source of a VRT covers, and those that a TIFF's own mask leaves out.
    """
    if (share := masked_share(path)) > 0:
        raise DataError(
            f"has a mask of its own, which says that {share:.1%} of it hold nothing; their values would be read",
            where=str(path),
            fix="write a nodata value there (gdalwarp -dstnodata 255)",
        )
    if tag is None and raster_driver(str(path)) == "VRT" and (share := uncovered_share(path)) > 0:
        raise DataError(
            f"is a VRT whose sources leave {share:.1%} of it empty, which would be read as 0",
            where=str(path),
            fix="name a nodata value for these places (gdalbuildvrt -vrtnodata 255)",
        )


def by_colours(facts: Sequence[MaskFacts], named: Collection[int] = ()) -> list[MaskFacts] | None:
    """Return what was counted in palette masks by their colours, or None where their values say what they hold.

    In which order a GIF holds its colours is its writer's choice: an empty mask and a full one both hold only the value
    0, in two colours. Other palettes count where a table names all of their colours.

    Args:
        facts: Of all masks.
        named: The colours of a table that names no values.
    """
    gif = all(one.format == "GIF" and one.mode in ("P", "L") for one in facts)
    if not facts or not (gif or (named and all(one.mode == "P" for one in facts))):
        return None
    tables = [one.palette if one.mode == "P" else {v: v * 0x010101 for v in one.values} for one in facts]
    known: dict[int, int] = {}
    agree = all(known.setdefault(value, colour) == colour for own in tables for value, colour in own.items())
    if not (named and all(own.keys() == one.values.keys() for own, one in zip(tables, facts, strict=True))):
        named = ()
    if not {colour for own in tables for colour in own.values()} <= set(named) and (
        not gif or (agree and known.get(0, 0) == 0)
    ):
        return None
    found = []
    for one, own in zip(facts, tables, strict=True):
        counts: Counter[int] = Counter()
        for value, pixels in one.values.items():
            counts[own[value]] += pixels
        thin, whole = (frozenset(own[v] for v in values) for values in (one.thin, one.whole))
        found.append(MaskFacts(dict(counts), thin, whole, "GIF", "RGB", own))
    return found


def values_of_colours(
    colours: Sequence[tuple[int, int]], palette: Mapping[int, int], *, nearest: bool
) -> tuple[tuple[int, int], ...]:
    """Return (value, class index) of a palette file for (colour, class index) of its colours.

    Other colours are those of the nearest one, or ignored.
    """
    classes = dict(colours)

    def index(colour: int) -> int:
        if nearest and colour not in classes:
            colour = min(classes, key=lambda other: distance(colour, other, colour=True))
        return classes.get(colour, IGNORE)

    return tuple((value, index(colour)) for value, colour in sorted(palette.items()))


def is_label_number(value: float) -> bool:
    """Return whether a value is one that labels may have: a whole number of 32 bits."""
    return abs(value) < 1 << 31 and float(value).is_integer()


def _file_facts(path: Path, *, colour: bool) -> tuple[str, str, list[int], np.ndarray | None]:
    """Return a mask file's format and mode as Pillow calls them, its palette (r, g, b, …), and transparency (H, W)."""
    plain = "RGB" if colour else "L"
    if slide_kind(path) is not None:
        return "TIFF", plain, [], None
    try:
        with Image.open(path) as image:
            palette = (image.getpalette("RGB") or []) if image.mode == "P" else []
            # Tag 0x0112 of EXIF says which way up the pixels are; these aren't turned by it.
            upright = image.mode in ("LA", "RGBA") and image.getexif().get(0x0112, 1) == 1
            alpha = image.getchannel("A") if upright else None
            return image.format or "", image.mode, palette, None if alpha is None else np.asarray(alpha)
    except OSError as error:
        driver = raster_driver(str(path))
        if driver is None:
            raise DataError(
                f"is not an image ({error})", where=str(path), fix="remove or replace it"
            ) from error
    try:
        with open_pixels(path) as pixels:
            own = pixels.palette_V3
    except DataError:  # its pixels were read by our own code, of TIFF that Pillow doesn't know
        own = None
    return driver, plain if own is None else "P", [] if own is None else own.reshape(-1).tolist(), None


def refuse_odd_looks(facts: Sequence[MaskFacts], paths: Sequence[Path]) -> None:
    """Refuse masks that look otherwise than their values say: by transparency, by palettes that differ or are turned.

    Raises:
        DataError: Pixels of one value are partly transparent, or one value has two colours.
    """
    colours: dict[int, tuple[int, Path]] = {}
    for mask, path in zip(facts, paths, strict=True):
        if mask.hidden:
            one = min(mask.hidden)
            raise DataError(
                f"has pixels of one value ({f'#{one:06x}' if one > 255 else one}) that are partly transparent and partly "
                "not: its transparency may hold the mask",
                where=str(path),
                fix="save what the masks mean as values or colours, without transparency; -o classes=… reads the values",
            )
        if len(mask.palette) == 2 and mask.palette.get(0) == 0xFFFFFF and 0 in mask.palette.values():
            one = next(value for value, colour in mask.palette.items() if not colour)
            raise DataError(
                f"shows 0 as white and {one} as black: the background may be 0, or what is black",
                where=str(path),
                fix=f'-o classes="background=0,NAME={one}" or -o classes="NAME=0,background={one}"',
            )
        for value, colour in mask.palette.items():
            before, other = colours.setdefault(value, (colour, path))
            if before != colour:
                raise DataError(
                    f"shows the value {value} as #{colour:06x}, {other.name} as #{before:06x}: either the values or the "
                    "colours say the classes",
                    where=str(path),
                    fix="save the masks as RGB if the colours count; -o classes=… reads the values",
                )


def refuse_two_whites(facts: Sequence[MaskFacts], root: Path) -> None:
    """Refuse 255 that stands for the foreground in some masks, as it seems, beside small numbers in the others.

    Raises:
        DataError: Masks with 255 hold nothing else but 0, and the others hold small numbers.
    """
    white = [one for one in facts if IGNORE in one.values]
    small = [one for one in facts if IGNORE not in one.values and any(0 < v < IGNORE for v in one.values)]
    if white and small and all(one.values.keys() == {0, IGNORE} for one in white):
        raise DataError(
            f"{len(white)} masks hold 0 and 255 alone, and {len(small)} others hold {max(small[0].values)} but no 255: there "
            "it may be the foreground, or say what to ignore",
            where=str(root),
            fix="name the values: -o classes=background=0,…,NAME=255 or -o classes=background=0,…,ignore=255",
        )


def _numbered(values_HW: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the sorted values V, the number of each pixel's value (H, W), and the pixels of each value V."""
    if values_HW.dtype.kind == "u" and values_HW.dtype.itemsize <= 2:
        counts = np.bincount(values_HW.reshape(-1))
        found = np.flatnonzero(counts)
        table = np.zeros(len(counts), np.int32)
        table[found] = np.arange(len(found))
        return found, table[values_HW], counts[found]
    rest = values_HW.reshape(-1)
    few: list[int] = []
    while len(rest) and len(few) < 32:  # for the few colours of most masks many times faster than sorting
        few.append(rest[0])
        rest = rest[rest != rest[0]]
    if len(rest):
        found, inverse, counts = np.unique(values_HW, return_inverse=True, return_counts=True)
        return found, inverse.reshape(values_HW.shape), counts
    found = np.sort(np.array(few))
    numbers_HW = np.zeros(values_HW.shape, np.int32)
    for number, value in enumerate(found[1:], 1):
        numbers_HW[values_HW == value] = number
    return found, numbers_HW, np.bincount(numbers_HW.reshape(-1), minlength=len(found))


def _solid(numbers_HW: np.ndarray, count: int) -> np.ndarray:
    """Return for each number whether it fills a square of 3 × 3 pixels somewhere."""
    if min(numbers_HW.shape) < 3:
        return np.ones(count, bool)  # too small to tell
    equal = np.ones((numbers_HW.shape[0] - 2, numbers_HW.shape[1] - 2), bool)
    middle = numbers_HW[1:-1, 1:-1]
    for y in range(3):
        for x in range(3):
            equal &= numbers_HW[y : y + equal.shape[0], x : x + equal.shape[1]] == middle
    return np.bincount(middle[equal], minlength=count) > 0


def _whole(numbers_HW: np.ndarray, found: np.ndarray, counts: np.ndarray) -> frozenset[int]:
    if len(found) > 4096:
        return frozenset()
    whole = set()
    for number, value in enumerate(found.tolist()):
        if value == 0:
            continue
        y_K, x_K = np.nonzero(numbers_HW == number)
        part = (numbers_HW[y_K.min() : y_K.max() + 1, x_K.min() : x_K.max() + 1] == number).astype(np.uint8)
        _, _, stats, _ = cv2.connectedComponentsWithStats(part, connectivity=8)
        if int(stats[1:, 4].max()) >= 0.95 * int(counts[number]):
            whole.add(value)
    return frozenset(whole)


def totals(facts: Sequence[MaskFacts]) -> Counter[int]:
    """Return value → pixels in all masks."""
    found: Counter[int] = Counter()
    for mask in facts:
        found.update(mask.values)
    return found


def look_like_instances(facts: Sequence[MaskFacts]) -> str | None:
    """Return the evidence that values are numbers of instances, not classes, or None.

    Numbers of instances run from 1 to a last one that differs from file to file, or occur in one file only; and
    nearly each is one region.
    """
    looked = [mask for mask in facts if mask.whole or any(v not in (0, IGNORE) for v in mask.values)]
    own = [
        [v for v in mask.values if v != 0 and not (v == IGNORE and len(mask.values) < 200)] for mask in looked
    ]
    count = sum(len(values) for values in own)
    if not count or max(len(values) for values in own) < _LEAST_INSTANCES:
        return None
    each = [(mask, value) for mask, values in zip(looked, own, strict=True) for value in values]
    whole = sum(value in mask.whole for mask, value in each)
    # Values of noise are one region, too: of one pixel.
    if whole < _CONNECTED * count or 2 * sum(value in mask.thin for mask, value in each) > count:
        return None
    several = [values for values in own if values]
    lengths = {len(values) for values in several}
    first = min(several[0])
    counted_up = all(sorted(values) == list(range(first, first + len(values))) for values in several)
    uses = Counter(value for values in several for value in values)
    once = sum(uses[value] == 1 for value in uses) / len(uses)
    most = max(lengths)
    # Two or three classes of one region each may happen to be counted up, too.
    if counted_up and (len(lengths) > 2 or (len(lengths) > 1 and most > 4)):
        last = f"{first + min(lengths) - 1} to {first + most - 1}"
        return f"they run from {first} to a number that differs from mask to mask ({last})"
    if len(uses) > 20 and (len(several) == 1 or once > 0.8):
        return f"{len(uses)} different ones, most of them in one mask only"
    if len(several) > 1 and once > 0.95 and most > 4:
        return f"{len(uses)} different ones, each in one mask only"
    return None


def large_indices(facts: Sequence[MaskFacts]) -> int | None:
    """Return the largest value over 255 of masks that aren't coloured, or None: classes are rarely so many.

    One value beside 0 counts nothing: it is the white of 16 bits, for example.
    """
    values = {value for mask in facts for value in mask.values if value != 0}
    return max(values) if len(values) > 1 and max(values) > 255 else None


@dataclass(frozen=True)
class Strays:
    """Values that are classes, the number of pixels of all others, their share, and how it is known."""

    main: tuple[int, ...]
    pixels: int
    share: float
    why: str


def find_strays(facts: Sequence[MaskFacts], *, colour: bool) -> Strays | None:
    """Return the values that lossy saving or smoothed edges have made, or None."""
    counts = totals(facts)
    total = sum(counts.values())
    lossy = [mask for mask in facts if mask.format in _LOSSY]
    if lossy and len(counts) > 2:
        main = _peaks(counts, colour=colour)
        why = f"{len(lossy)} of the masks are {lossy[0].format}, which changes values"
    else:
        solid = {value for mask in facts for value in mask.values if value not in mask.thin}
        main = [v for v, n in counts.items() if v in solid or n >= _STRAY_SHARE * total]
        why = "few pixels each, along edges or alone, as smoothing and resizing leave them"
    rest = total - sum(counts[value] for value in main)
    if not rest or len(main) == len(counts):
        return None
    return Strays(tuple(sorted(main)), rest, rest / total, why)


def _peaks(counts: Counter[int], *, colour: bool) -> list[int]:
    """Return the frequent values that are far from each other."""
    total = sum(counts.values())
    main: list[int] = []
    for value, pixels in counts.most_common():
        if pixels < _STRAY_SHARE * total:
            break
        if all(distance(value, other, colour=colour) > (64 if colour else 32) for other in main):
            main.append(value)
    return main


def distance(first: int, second: int, *, colour: bool) -> int:
    """Return how far two values are from each other: of colours, the largest difference of a channel."""
    if not colour:
        return abs(first - second)
    return max(abs((first >> shift & 255) - (second >> shift & 255)) for shift in (16, 8, 0))


def shown(value: int, *, colour: bool) -> str:
    """Return a value as text: "#00ff00" or "17"."""
    return f"#{value:06x}" if colour else str(value)


def shares(counts: Counter[int], values: Sequence[int], *, colour: bool) -> str:
    """Return values with their share of the pixels, the most frequent first."""
    total = sum(counts.values())
    ordered = sorted(values, key=lambda value: -counts[value])[:8]
    return ", ".join(f"{shown(v, colour=colour)} ({counts[v] / total:.2%})" for v in ordered)
