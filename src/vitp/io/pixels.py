"""From the values of a file to 8 bits: what is stretched, what is black, and how without a second copy of the whole.

Shapes: H × W pixels, N bands.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from PIL import Image, ImageCms

WIDE_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
"""Pillow's modes of more than 8 bits."""
STRETCH = (2.0, 98.0)
"""Percentiles of an image's values that become black and white."""
LARGE_PIXELS = 32_000_000
"""Images of more pixels are worked on in bands, and averaged while they are read where less resolution suffices."""

_BAND_PIXELS = 1 << 22
_SAMPLED = 1 << 24
"""Values of more than 16 bits whose percentiles are found exactly; of more, every n-th row and column counts."""


def row_bands(width: int, height: int) -> Iterator[tuple[int, int]]:
    """Yield (first row, row after the last) of bands of about four million pixels."""
    rows = max(64, _BAND_PIXELS // max(width, 1))
    for top in range(0, height, rows):
        yield top, min(top + rows, height)


def reduction(size: tuple[int, int], enough: Callable[[int, int], tuple[int, int]] | None) -> int:
    """Return the largest of 1, 2, 4, 8 by which a large image may shrink and still have what is enough."""
    width, height = size
    if enough is None or width * height <= LARGE_PIXELS:
        return 1
    wide, high = enough(width, height)
    return max(
        factor
        for factor in (1, 2, 4, 8)
        if factor == 1 or (wide <= width // factor and high <= height // factor)
    )


def joined(size: tuple[int, int], bands: Iterable[tuple[int, Image.Image]], factor: int = 1) -> Image.Image:
    """Return the RGB image of bands of rows, each given as (first row, RGB image), from top to bottom.

    Args:
        size: Width and height of the whole.
        bands: All rows of the image, without gaps.
        factor: Squares of this side are averaged into one pixel.
    """
    width, height = size
    whole: Image.Image | None = None
    rest, rest_top = None, 0
    for top, band in bands:
        if factor == 1 and band.size == size:
            return band
        if whole is None:
            whole = Image.new("RGB", (-(-width // factor), -(-height // factor)))
        if rest is not None and rest.height:
            stacked = Image.new("RGB", (width, rest.height + band.height))
            stacked.paste(rest, (0, 0))
            stacked.paste(band, (0, rest.height))
            band, top = stacked, rest_top
        # Rows that fill no square yet wait for the next band.
        usable = band.height if top + band.height >= height else band.height - band.height % factor
        if usable:
            part = band.crop((0, 0, width, usable))
            whole.paste(part.reduce(factor) if factor > 1 else part, (0, top // factor))
        rest, rest_top = band.crop((0, usable, width, band.height)), top + usable
    assert whole is not None
    return whole


def in_bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield a decoded image as (first row, part of full width), whole unless it is large."""
    if image.width * image.height <= LARGE_PIXELS:
        yield 0, image
        return
    for top, bottom in row_bands(*image.size):
        yield top, image.crop((0, top, image.width, bottom))


def planes_last(image: Image.Image) -> np.ndarray:
    """Return an RGB image as (H, W, 3) uint8 with no third copy of it, which `np.asarray` makes."""
    pixels_HWC = np.empty((image.height, image.width, 3), np.uint8)
    for top, bottom in row_bands(*image.size):
        pixels_HWC[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return pixels_HWC


def as_rgb(image: Image.Image) -> Image.Image:
    """Return a decoded image of at most 8 bits a channel as RGB; what is transparent lies over black."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("RGBa", "La"):  # already multiplied by how opaque it is: that is what lies over black
        colours = image.split()[:-1]
        return Image.merge("RGB", colours if len(colours) == 3 else colours * 3)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba).convert("RGB")
    if image.mode == "LAB":
        converted = ImageCms.applyTransform(image, _from_lab())
        assert converted is not None
        return converted
    return image.convert("RGB")


@functools.cache
def _from_lab() -> ImageCms.ImageCmsTransform:
    lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(lab, rgb, "LAB", "RGB")


def blackened(image: Image.Image, valid_HW: np.ndarray) -> Image.Image:
    """Return an RGB image that is black where `valid_HW` isn't true."""
    if valid_HW.all():
        return image
    return Image.fromarray(np.where(valid_HW[..., None], np.asarray(image), np.uint8(0)))


def holds_value(values_HWN: np.ndarray, value: float) -> np.ndarray:
    """Return (H, W) bool: whether all bands of a pixel have a value, compared in their own type."""
    if values_HWN.dtype.kind == "f":
        with np.errstate(over="ignore"):
            own = values_HWN.dtype.type(value)
        same_HWN = np.isnan(values_HWN) if np.isnan(value) else values_HWN == own
    else:
        limits = np.iinfo(values_HWN.dtype)
        if not (float(value).is_integer() and limits.min <= value <= limits.max):
            return np.zeros(values_HWN.shape[:2], bool)
        same_HWN = values_HWN == values_HWN.dtype.type(int(value))
    held_HW: np.ndarray = np.all(same_HWN, axis=2)
    return held_HW


def fill_value(values_HWN: np.ndarray) -> float | None:
    """Return the value that marks missing pixels by custom, where it is the smallest one; None: there is none.

    −9999, −32768 and the lowest number of a floating type. Being the smallest, such pixels are black either way; what
    changes is that they don't count in the stretch.
    """
    kind = values_HWN.dtype.kind
    if kind not in "if" or not values_HWN.size:
        return None
    with np.errstate(invalid="ignore"):
        smallest = float(np.nanmin(values_HWN)) if kind == "i" or not np.isnan(values_HWN).all() else np.nan
    customs = [-9999.0, -32768.0]
    if kind == "f":
        customs += [float(np.finfo(np.float32).min), float(np.finfo(values_HWN.dtype).min)]
    return smallest if smallest in customs else None


def value_range(values_HWN: np.ndarray, valid_HW: np.ndarray | None) -> tuple[float, float] | None:
    """Return the 2nd and 98th percentile of the finite values of valid pixels in all bands; None: no values."""
    if values_HWN.dtype.kind in "iu" and values_HWN.dtype.itemsize <= 2:
        return _range_of_counts(values_HWN, valid_HW)
    height, width, bands = values_HWN.shape
    step = 1
    while (height // step) * (width // step) * bands > _SAMPLED:
        step += 1
    part = values_HWN[::step, ::step]
    chosen = part.reshape(-1) if valid_HW is None else part[valid_HW[::step, ::step]].reshape(-1)
    if chosen.dtype.kind == "f":
        chosen = chosen[np.isfinite(chosen)]
    if not chosen.size:
        return None
    wide = chosen.astype(np.float64)
    low, high = np.percentile(wide, STRETCH, overwrite_input=True)
    return float(low), float(high)


def _range_of_counts(values_HWN: np.ndarray, valid_HW: np.ndarray | None) -> tuple[float, float] | None:
    limits = np.iinfo(values_HWN.dtype)
    counts_V = np.zeros(limits.max - limits.min + 1, np.int64)
    for top, bottom in row_bands(values_HWN.shape[1], values_HWN.shape[0]):
        part = values_HWN[top:bottom]
        chosen = part.reshape(-1) if valid_HW is None else part[valid_HW[top:bottom]].reshape(-1)
        counts_V += np.bincount(chosen.astype(np.int64) - limits.min, minlength=len(counts_V))
    total_V = np.cumsum(counts_V)
    if not total_V[-1]:
        return None
    found = []
    for percentile in STRETCH:
        # Between the two values of ranks around it, as `np.percentile` does.
        rank = (int(total_V[-1]) - 1) * percentile / 100
        below, above = (
            int(np.searchsorted(total_V, r, side="right")) for r in (int(rank), int(np.ceil(rank)))
        )
        found.append(limits.min + below + (above - below) * (rank - int(rank)))
    return found[0], found[1]


def stretched(
    values_HWN: np.ndarray,
    valid_HW: np.ndarray | None = None,
    *,
    opaque_HW: np.ndarray | None = None,
    white_is_zero: bool = False,
) -> Iterator[tuple[int, Image.Image]]:
    """Yield values of any real type as RGB bands: their 2nd–98th percentile becomes 0–255.

    The percentiles are those of all bands together, so that the bands keep their ratios. Values that aren't finite and
    pixels that aren't valid don't count and are black. An image of one value is black.

    Args:
        values_HWN: One or three bands.
        valid_HW: False where a pixel holds nothing.
        opaque_HW: How opaque each pixel is, 0–1; what isn't lies over black.
        white_is_zero: Small values are light.
    """
    found = value_range(values_HWN, valid_HW)
    low, high = found or (0.0, 0.0)
    with np.errstate(over="ignore"):
        scale = 255.0 / (high - low) if high > low else 0.0
    table_V: np.ndarray | None = None
    # Of 8 or 16 bits every value is worked out once and then looked up, signed ones by their bits.
    if values_HWN.dtype.kind in "iu" and values_HWN.dtype.itemsize <= 2:
        every_V = np.arange(1 << (8 * values_HWN.dtype.itemsize)).astype(f"u{values_HWN.dtype.itemsize}")
        table_V = _scaled(every_V.view(values_HWN.dtype), low, scale, white_is_zero)
    for top, bottom in row_bands(values_HWN.shape[1], values_HWN.shape[0]):
        part = values_HWN[top:bottom]
        if table_V is not None:
            eight_HWN = table_V[np.ascontiguousarray(part).view(f"u{part.dtype.itemsize}")]
        else:
            eight_HWN = _scaled(part, low, scale, white_is_zero)
        if valid_HW is not None:
            eight_HWN[~valid_HW[top:bottom]] = 0
        if opaque_HW is not None:
            eight_HWN = np.rint(eight_HWN * opaque_HW[top:bottom, :, None]).astype(np.uint8)
        yield top, Image.fromarray(eight_HWN.repeat(3, axis=2) if eight_HWN.shape[2] == 1 else eight_HWN)


def _scaled(values: np.ndarray, low: float, scale: float, white_is_zero: bool) -> np.ndarray:
    wide = values.astype(np.float64)
    finite = np.isfinite(wide)
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = np.nan_to_num(np.rint(np.clip((np.where(finite, wide, low) - low) * scale, 0, 255)))
    if white_is_zero and scale:
        scaled = 255 - scaled
    return np.where(finite, scaled, 0).astype(np.uint8)


def as_exif(values: np.ndarray, orientation: int) -> np.ndarray:
    """Return an array as EXIF orientation tells to turn it."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return np.ascontiguousarray(values)
