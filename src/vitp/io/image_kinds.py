"""Kinds of image files: which are read, by Pillow under our rules, and what is said of the others."""

from __future__ import annotations

import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, ImageFile

from vitp.core.errors import DataError
from vitp.io.tiff_tags import Page

PILLOW_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF", "PPM", "JPEG2000", "MPO", "AVIF")
"""What is read. Pillow knows more: of those some start other programs, and some take any bytes for an image."""

_CONVERT = "remove it or convert it to PNG, JPEG or TIFF"

_FOREIGN: tuple[tuple[int, bytes, str], ...] = (
    (4, b"jP  \r\n", "a JPEG 2000 file"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 file"),
    (0, b"\xff\x0a", "a JPEG XL file"),
    (4, b"JXL \r\n", "a JPEG XL file"),
    (4, b"ftypheic", "a HEIF file"),
    (4, b"ftypmif1", "a HEIF file"),
    (0, b"\x89HDF", "an HDF5 or NetCDF file"),
    (0, b"CDF", "a NetCDF file"),
    (0, b"NITF", "a NITF file"),
    (128, b"DICM", "a DICOM file"),
    (0, b"%PDF", "a PDF file"),
    (0, b"%!PS", "a PostScript file"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"GRIB", "a GRIB file"),
    (0, b"SIMPLE  =", "a FITS file"),
    (0, b"\x1f\x8b", "a gzip file"),
    (0, b"PK\x03\x04", "a zip file"),
    (0, b"<svg", "an SVG file"),
    (0, b"<?xml", "an XML file"),
    (0, b"<!DOCTYPE", "an HTML page"),
    (0, b"<html", "an HTML page"),
    (0, b"version https://git-lfs", "a pointer of Git LFS (run git lfs pull)"),
)


_PILLOW = threading.RLock()
_depth = 0
_theirs: tuple[int | None, bool] = (None, False)
"""Of `strict_pillow`: how many are inside, and what Pillow's settings were before the first."""


@contextmanager
def strict_pillow() -> Iterator[None]:
    """Hold Pillow to our rules: it never takes half a file for a whole one, and warns of nothing.

    Its bound on sizes is lifted, for they are checked elsewhere. Other libraries set `LOAD_TRUNCATED_IMAGES` for the
    whole process, and half an image would then pass as a grey one. Threads may be inside at the same time; the last one
    to leave puts back what was found.
    """
    global _depth, _theirs
    with _PILLOW:
        if not _depth:
            _theirs = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
            Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = None, False
        _depth += 1
    try:
        with warnings.catch_warnings():  # of what doesn't spoil the pixels
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
            yield
    finally:
        with _PILLOW:
            _depth -= 1
            if not _depth:
                Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = _theirs


def has_rasterio() -> bool:
    """Return whether rasterio can be imported, which reads what Pillow and our own code refuse."""
    try:
        import rasterio  # noqa: F401
    except ImportError:
        return False
    return True


def without_rasterio() -> str:
    """Return what to add to the words about an image that rasterio would read, where it is missing."""
    return "" if has_rasterio() else " (with rasterio it is read: `pip install 'vitp[geo]'`)"


def no_image(head: bytes, where: str) -> DataError:
    """Return what to tell of a file that no decoder takes for an image."""
    if not head:
        return DataError("is not an image that can be read: the file is empty", where=where, fix=_CONVERT)
    kind = next((name for start, mark, name in _FOREIGN if head.startswith(mark, start)), None)
    if kind is None:
        return DataError("is not an image that can be read", where=where, fix=_CONVERT)
    if "JPEG 2000" in kind:
        fix = "convert it to TIFF (gdal_translate -of GTiff)"
        return DataError(f"is {kind} that can't be decoded here{without_rasterio()}", where=where, fix=fix)
    return DataError(f"is not an image that can be read, but {kind}", where=where, fix=_CONVERT)


def check_alone(image: Image.Image, where: str) -> None:
    """Refuse files of several images, of which only the first would be seen.

    Raises:
        DataError: It is an animation. (The further pictures of a camera's multi-picture JPEG are previews.)
    """
    if image.format not in ("GIF", "PNG", "WEBP", "AVIF"):
        return
    frames = int(getattr(image, "n_frames", 1))
    if frames > 1:
        raise DataError(
            f"holds {frames} images (an animation), only the first of which would be seen",
            where=where,
            fix="choose one (FILE#page=1), or save it as a file of its own",
        )


def seek_page(image: Image.Image, number: int, where: str) -> None:
    """Make a file of several images stand at one of them, counted from 0.

    Raises:
        DataError: There is no such page.
    """
    frames = int(getattr(image, "n_frames", 1))
    if number >= frames:
        what = f"has no page {number + 1}; it holds {frames}"
        raise DataError(what, where=where, fix="name one of these (FILE#page=1)")
    if number:
        image.seek(number)


def page_alone(pages: list[Page], page: int, where: str) -> tuple[int, list[Page]]:
    """Return the number of a page among all of a TIFF file, and the page with the masks and overviews behind it.

    Args:
        pages: All pages.
        page: Which, from 1; masks and overviews don't count.
        where: Address of the file, for messages.

    Raises:
        DataError: There is no such page.
    """
    starts = [number for number, one in enumerate(pages) if not number or not one.is_reduced]
    if page > len(starts):
        what = f"has no page {page}; it holds {len(starts)}"
        raise DataError(what, where=where, fix="name one of these (FILE#page=1)")
    return starts[page - 1], pages[starts[page - 1] : [*starts, len(pages)][page]]


def check_pages(pages: list[Page], where: str) -> None:
    """Refuse TIFF files of several pages that aren't overviews or masks of the first.

    Raises:
        DataError: There are several.
    """
    others = [page for page in pages[1:] if not page.is_reduced]
    if others:
        raise DataError(
            f"holds {len(others) + 1} pages, only the first of which would be seen",
            where=where,
            fix="choose one (FILE#page=1), or save it as a file of its own",
        )


def jpeg2000_depth(head: bytes) -> tuple[int, int]:
    """Return components and bits of a JPEG 2000 file by its first bytes; (0, 0) where they don't tell."""
    # Markers SOC and SIZ; behind eight sizes stands the number of components, then of each a sign bit and its bits − 1.
    start = head.find(b"\xff\x4f\xff\x51")
    if start < 0 or len(head) < start + 43:
        return 0, 0
    (components,) = struct.unpack_from(">H", head, start + 40)
    return components, (head[start + 42] & 0x7F) + 1
