"""A TIFF page as an RGB image or as labels: which band is what, and which pixels hold nothing.

A band beyond the colours is transparency in pictures and a measurement (near infrared, a second polarisation) in
rasters, and the same tag marks both: GDAL tags the fourth band of 8 bits as transparency unless it is told otherwise.
So the tag alone decides nothing; where its own text and its values don't decide either, the file is refused with both
readings.

Shapes: H × W pixels, N bands.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from vitp.core.errors import DataError
from vitp.io.image_kinds import without_rasterio
from vitp.io.pixels import WIDE_MODES, as_rgb, blackened, fill_value, holds_value, joined, stretched
from vitp.io.tiff import is_sparse, picture_bands, sample_bands, segment_bytes
from vitp.io.tiff_tags import Page, Tag, TiffError

_OPAQUE = 0.9
"""Share of the values above 0 that are at the maximum from which a band is transparency …"""
_MEASURED = 0.5
"""… and below which it can't be: masks have hard edges."""

_LARGEST_SEGMENT = 1 << 29
"""Bytes of a row of segments once they are decoded, which is done for the whole row at a time."""

COMPRESSIONS = {
    6: "JPEG of an old kind",
    33003: "JPEG 2000",
    33005: "JPEG 2000",
    34712: "JPEG 2000",
    34887: "LERC",
    34925: "LZMA",
    50000: "Zstandard",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
"""Of TIFF files, that Pillow doesn't decode everywhere."""
_PICTURES = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}
"""Photometric interpretation → bands that hold colour."""
_THREE_BANDS = "save red, green and blue as a file of three bands (gdal_translate -b 1 -b 2 -b 3)"
RASTERS = "choose them (FILE#bands=1,2,3, or -o bands=… where a set is compiled), or " + _THREE_BANDS


@dataclass(frozen=True)
class BandLayout:
    """What the bands of a page are.

    Attributes:
        colours: 1 (grey or palette), 3 or 4 (CMYK).
        extra: Whether there is one more band.
        alpha: Whether that is transparency; None: its values must tell.
        raw: Whether the page is read by its samples, not as one of Pillow's pictures.
    """

    colours: int
    extra: bool = False
    alpha: bool | None = False
    raw: bool = False


def layout_of(page: Page, where: str) -> BandLayout:
    """Return what a page's bands are, as far as its tags say.

    Raises:
        DataError: They have no reading as a picture, or several.
    """
    bands, photometric = page.bands, page.photometric
    depth = f"{page.bits}-bit {_KIND_NAMES.get(page.kind, 'mixed')} samples"
    if page.kind in "c?" or (page.kind == "f" and page.bits not in (16, 32, 64)):
        raise DataError(f"holds {depth}, which have no picture", where=where, fix="save it as one real type")
    if photometric not in _PICTURES:
        raise DataError(
            f"its colours are of kind {photometric}, which isn't read", where=where, fix="save it as RGB"
        )
    raw = page.bits >= 16 or page.kind != "u"
    colours, extra = _PICTURES[photometric], False
    alpha: bool | None = False
    if photometric in (0, 1) and bands == 3 and not set(page.extra) & {1, 2}:
        # Writers of rasters leave the colours unnamed; three bands are shown as red, green and blue everywhere.
        colours, raw = 3, True
    elif bands == colours + 1 and photometric in (0, 1, 2, 3):
        extra, alpha = True, _said_alpha(page, colours)
        # Pillow would divide the colours by how opaque they are, and knows grey with transparency in one layout only.
        raw = raw or page.extra[:1] == (1,) or photometric == 0 or (page.is_planar and photometric == 1)
        if alpha is False and colours == 1:
            raise DataError(
                "has two bands: is it grey with transparency, or two measurements such as VV and VH?",
                where=where,
                fix="save the band that is meant as a file of its own (gdal_translate -b 1)",
            )
    elif bands != colours:
        what = f"has {bands} bands of {depth}; which of them are red, green and blue isn't known"
        raise DataError(what + without_rasterio(), where=where, fix=RASTERS)
    if raw and colours > 1 and not (page.kind == "u" and page.bits in (8, 16)):
        raise DataError(f"has {bands} bands of {depth}{without_rasterio()}", where=where, fix=RASTERS)
    if raw and (photometric not in (0, 1, 2) or (page.bits % 8 and bands > 1)):
        what = f"has {bands} bands of {depth} that aren't grey or RGB"
        raise DataError(what, where=where, fix="save it as RGB")
    return BandLayout(colours, extra, alpha, raw)


_KIND_NAMES = {"u": "unsigned", "i": "signed", "f": "floating", "c": "complex"}


def _said_alpha(page: Page, band: int) -> bool | None:
    """Return what the tags say of the band beyond the colours; None: that it is transparency, which may be wrong."""
    for name in re.findall(rf'<Item[^>]*sample="{band}"[^>]*>([^<]*)</Item>', page.text(Tag.GDAL_METADATA)):
        if (named := named_alpha(name)) is not None:
            return named
    if not page.extra or page.extra[0] == 0:
        return False  # the format's own words: nothing is said of it, so it isn't transparency
    return None


def named_alpha(name: str) -> bool | None:
    """Return whether a band's own description says that it is transparency; None: it says neither."""
    if re.search(r"alpha|transparen|mask", name, re.IGNORECASE):
        return True
    if re.search(r"nir|infra|ir\b|\bv[vh]\b|\bh[vh]\b|\bb\d|height|dsm|dem", name, re.IGNORECASE):
        return False
    return None


def rgb_of_page(
    file: BinaryIO, pages: list[Page], where: str, whole: Image.Image | None, factor: int = 1
) -> Image.Image:
    """Return the first page as 8-bit RGB, not turned.

    Args:
        file: The TIFF file.
        pages: All pages; beside the first only masks matter.
        where: Address of the file, for messages.
        whole: The page as Pillow decoded it, not turned either; None: it is read in bands, for it is large.
        factor: Squares of this side are averaged into one pixel.

    Raises:
        DataError: The bands have two readings, or the file is damaged.
    """
    page = pages[0]
    layout = layout_of(page, where)
    valid_HW = _mask_page(file, pages)
    if layout.raw:
        return joined(page.size, _sample_rgb(file, page, layout, valid_HW, where), factor)

    def bands() -> Iterator[tuple[int, Image.Image]]:
        if whole is not None:
            return iter([(0, whole)])
        return picture_bands(file, page)

    if layout.extra and layout.alpha is None:
        parts = (np.asarray(band) for _, band in bands())
        layout = replace(layout, alpha=is_alpha(parts, 255, where, page, layout.colours))

    if whole is not None and whole.mode in WIDE_MODES:
        values_HWN = np.asarray(whole)[..., None]
        return joined(page.size, stretched(values_HWN, valid_HW, white_is_zero=page.photometric == 0), factor)

    def rgb() -> Iterator[tuple[int, Image.Image]]:
        for top, band in bands():
            valid = None if valid_HW is None else valid_HW[top : top + band.height]
            yield top, _picture_rgb(band, page, layout, valid)

    return joined(page.size, rgb(), factor)


def _picture_rgb(
    band: Image.Image, page: Page, layout: BandLayout, valid_HW: np.ndarray | None
) -> Image.Image:
    if page.nodata is not None and band.mode in ("L", "P", "LA", "RGB", "RGBA", "RGBX"):
        values_HWN = np.asarray(band).reshape(band.height, band.width, -1)[..., : layout.colours]
        valid_HW = _both(valid_HW, ~holds_value(values_HWN, page.nodata))
    if layout.extra and not layout.alpha and band.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        # Without its last band a palette's picture has to keep its palette.
        colours = band.split()[:-1] if band.mode != "PA" else band.convert("RGBA").split()[:-1]
        band = Image.merge("RGB", colours) if len(colours) == 3 else colours[0]
    image = as_rgb(band)
    return image if valid_HW is None else blackened(image, valid_HW)


def _sample_rgb(
    file: BinaryIO, page: Page, layout: BandLayout, valid_HW: np.ndarray | None, where: str
) -> Iterator[tuple[int, Image.Image]]:
    values_HWN = _samples(file, page, where)
    colours_HWN = values_HWN[..., : layout.colours]
    opaque_HW = None
    if layout.extra:
        top = _opaque(values_HWN.dtype)
        if layout.alpha is None:
            layout = replace(layout, alpha=is_alpha([values_HWN], top, where, page, layout.colours))
        if layout.alpha:
            opaque_HW = (values_HWN[..., -1] / top).astype(np.float32)
            seen_HW = opaque_HW > 0
            if page.extra[:1] == (1,):  # the colours are stored as they look over black
                seen_HW, opaque_HW = seen_HW | colours_HWN.any(axis=2), None
            valid_HW = _both(valid_HW, seen_HW)
    nodata = page.nodata if page.nodata is not None else fill_value(colours_HWN)
    if nodata is not None:
        valid_HW = _both(valid_HW, ~holds_value(colours_HWN, nodata))
    if values_HWN.dtype != np.uint8:
        return stretched(colours_HWN, valid_HW, opaque_HW=opaque_HW, white_is_zero=page.photometric == 0)
    if layout.colours == 3:
        image = Image.fromarray(np.ascontiguousarray(colours_HWN))
    else:
        grey = Image.fromarray(
            255 - colours_HWN[..., 0] if page.photometric == 0 else colours_HWN[..., 0].copy()
        )
        alpha = None if opaque_HW is None else Image.fromarray(values_HWN[..., -1].copy())
        image = as_rgb(grey if alpha is None else Image.merge("LA", [grey, alpha]))
    return iter([(0, image if valid_HW is None else blackened(image, valid_HW))])


def _opaque(dtype: np.dtype[Any]) -> float:
    return float(np.iinfo(dtype).max) if dtype.kind in "iu" else 1.0


def _both(valid_HW: np.ndarray | None, also_HW: np.ndarray) -> np.ndarray:
    return also_HW if valid_HW is None else valid_HW & also_HW


def _samples(file: BinaryIO, page: Page, where: str) -> np.ndarray:
    width, height = page.size
    if segment_bytes(page) > _LARGEST_SEGMENT:
        what = f"is compressed in pieces of {segment_bytes(page) / 1e9:.1f} GB, too large to be decoded"
        raise DataError(what, where=where, fix="write it in tiles (gdal_translate -co TILED=YES)")
    values_HWN: np.ndarray | None = None
    for top, part in sample_bands(file, page):
        if values_HWN is None:
            values_HWN = np.empty((height, width, page.bands), part.dtype)
        values_HWN[top : top + len(part)] = part
    assert values_HWN is not None
    return values_HWN


def is_alpha(
    parts: Iterable[np.ndarray], top: float, where: str, page: Page | None = None, colours: int = 3
) -> bool:
    """Return whether the last band is transparency, by its values: transparency is mostly all or nothing.

    Args:
        parts: (H, W, N) bands of the image, part by part.
        top: The value of what is opaque.
        where: Address of the file, for messages.
        page: The page, when it is a TIFF file.
        colours: Bands before it.

    Raises:
        DataError: Both readings are left: it may be a measurement.
    """
    above = full = 0
    coloured = False
    low, high = float("inf"), float("-inf")
    for part_HWN in parts:
        band_HW = part_HWN[..., -1]
        above += int(np.count_nonzero(band_HW))
        full += int(np.count_nonzero(band_HW == top))
        low, high = min(low, float(band_HW.min())), max(high, float(band_HW.max()))
        coloured = coloured or bool(part_HWN[..., :-1].any())
    if page is not None and page.extra[:1] == (1,) and colours == 3:
        return True  # the colours are stored as they look over black: both readings give them
    if not (above or coloured) or (above and full >= _OPAQUE * above):
        return True
    measured = page is not None and page.is_measured and colours == 3
    if measured and above and full < _MEASURED * above:
        return False
    number, other = ("4th", "near infrared") if colours == 3 else ("2nd", "a second polarisation")
    fix = (
        f"choose bands (FILE#bands=1,2,3), or {_THREE_BANDS}"
        if colours == 3
        else "save the band that is meant alone (gdal_translate -b 1)"
    )
    raise DataError(
        f"its {number} band ({low:g} to {high:g}) is tagged as transparency, but may be a measurement "
        f"such as {other}",
        where=where,
        fix=f"{fix}, or, if it is transparency, save the image as PNG",
    )


def _mask_page(file: BinaryIO, pages: list[Page]) -> np.ndarray | None:
    """Return (H, W) bool of the mask that comes with the first page, True where the image holds something."""
    for page in pages[1:]:
        if not page.is_mask or page.size != pages[0].size:
            continue
        width, height = page.size
        valid_HW = np.empty((height, width), bool)
        for top, band in picture_bands(file, page):
            valid_HW[top : top + band.height] = np.asarray(band.convert("L")) > 0
        return valid_HW
    return None


def labels_of_page(file: BinaryIO, page: Page, where: str) -> np.ndarray | None:
    """Return the values (H, W) or colours (H, W, 3) of a page of labels, not turned; None: Pillow reads them right.

    Raises:
        DataError: The bands have no single reading, or the file is damaged.
    """
    layout = layout_of(page, where)
    doubtful = layout.extra and layout.colours == 1 and layout.alpha is None
    # Pillow turns files in which white is zero round; numbers stay as they are.
    if not (layout.raw or doubtful or (page.photometric == 0 and page.bits == 8)):
        return None
    if layout.colours > 1 and page.bits > 8:
        what = f"holds colours of {page.bits} bits as labels"
        raise DataError(what, where=where, fix="save labels as 8-bit colours or as numbers")
    values_HWN = _samples(file, page, where)
    if doubtful:
        is_alpha([values_HWN], _opaque(values_HWN.dtype), where, page, layout.colours)
    return values_HWN[..., : layout.colours] if layout.colours == 3 else values_HWN[..., 0]


def measured_values(
    file: BinaryIO, pages: list[Page], where: str, whole: Image.Image | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the first page's own values (H, W, N) without transparency, and which pixels (H, W) hold something.

    Args:
        file: The TIFF file.
        pages: All pages.
        where: Address of the file, for messages.
        whole: The page as Pillow decoded it; None: it is one that is read by its samples.

    Raises:
        DataError: The bands have no single reading, or the file is damaged.
    """
    page, layout = pages[0], layout_of(pages[0], where)
    if whole is None or layout.raw:
        values_HWN = _samples(file, page, where)
    elif whole.mode in ("1", "P", "CMYK", "LAB", "YCbCr"):
        values_HWN = np.asarray(as_rgb(whole)) if whole.mode != "1" else np.asarray(whole.convert("L"))
    else:
        values_HWN = np.asarray(whole)
    values_HWN = values_HWN.reshape(*values_HWN.shape[:2], -1)
    valid_HW = _mask_page(file, pages)
    if layout.extra and values_HWN.shape[2] > 1:
        alpha = layout.alpha
        if alpha is None:
            alpha = is_alpha([values_HWN], _opaque(values_HWN.dtype), where, page, layout.colours)
        if alpha:
            valid_HW = _both(valid_HW, values_HWN[..., -1] > 0)
            values_HWN = values_HWN[..., :-1]
    if page.nodata is not None:
        valid_HW = _both(valid_HW, ~holds_value(values_HWN, page.nodata))
    return values_HWN, valid_HW


def decode_error(error: Exception, page: Page | None, where: str) -> DataError:
    """Return what to tell of a file that couldn't be decoded."""
    if page is None:
        return DataError(
            f"image is damaged ({error})", where=where, fix="copy it again from its source or remove it"
        )
    name = COMPRESSIONS.get(page.compression)
    if name is not None and not isinstance(error, TiffError):
        return DataError(
            f"is a TIFF compressed as {name}, which can't be decoded here, or it is damaged{without_rasterio()}",
            where=where,
            fix="compress it in another way (gdal_translate -co COMPRESS=DEFLATE)",
        )
    if is_sparse(page):
        return DataError(
            f"is a sparse TIFF: some of its blocks were left out{without_rasterio()}",
            where=where,
            fix="write it in full (gdal_translate -co SPARSE_OK=FALSE)",
        )
    if isinstance(error, UnidentifiedImageError):
        return unknown_page(page, where)
    return decode_error(error, None, where)


def unknown_page(page: Page, where: str) -> DataError:
    """Return what to tell of a page of a kind that no decoder knows."""
    return DataError(
        f"is a TIFF of {page.bands} bands of {page.bits} bits, colours {page.photometric}, compression "
        f"{page.compression}, which isn't read",
        where=where,
        fix="save it as grey or RGB of 8 or 16 bits (gdal_translate -co COMPRESS=DEFLATE)",
    )
