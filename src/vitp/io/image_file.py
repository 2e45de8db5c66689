"""An image file: what is known of it at once, its pixels when they are asked for.

`open_image` is the one way into a file, a part of a shard or a URL. docs/images.md says how what is read.
"""

from __future__ import annotations

import contextlib
import io
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from vitp.core.errors import DataError
from vitp.io.image_kinds import (
    PILLOW_FORMATS,
    check_alone,
    check_pages,
    jpeg2000_depth,
    no_image,
    page_alone,
    seek_page,
    strict_pillow,
    without_rasterio,
)
from vitp.io.image_values import check_label_numbers, label_numbers, page_image, picture_values
from vitp.io.parts import Window, base_address, check_window, split_address
from vitp.io.pixels import LARGE_PIXELS, WIDE_MODES, as_exif, as_rgb, in_bands, joined, reduction, stretched
from vitp.io.png import can_be_cut, png_bands
from vitp.io.storage import COPY_IT_AGAIN, is_member, is_remote, read_address
from vitp.io.tiff import check_segments, cropped, is_cut
from vitp.io.tiff_image import (
    RASTERS,
    decode_error,
    is_alpha,
    labels_of_page,
    layout_of,
    measured_values,
    rgb_of_page,
    unknown_page,
)
from vitp.io.tiff_tags import Page, TiffError, is_tiff, read_pages
from vitp.io.wide_files import is_wide_png, netpbm_maximum, netpbm_values, png_values

LARGEST_IMAGE_PIXELS = 1_000_000_000
"""Published sets have scenes of 29,200 × 27,620. As RGB this many pixels take 4 GB when they are held as a whole."""
LARGEST_IMAGE_BYTES = 4 * LARGEST_IMAGE_PIXELS
"""Of the samples of a raster, which are held in their own type."""

_MOST_IN = {"PNG": 1032, "GIF": 3000, "BMP": 256, "PPM": 9}
"""Format → bytes of pixels that one byte of a file can stand for. Of the others none has so many as 10,000."""
_MOST_IN_TIFF = {1: 1, 5: 1400, 8: 1032, 32773: 64, 32946: 1032}
"""The same of a TIFF's compressions (none, LZW, deflate, PackBits), where it is known."""
_ORIENTATION_TAG = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BACK = _TRANSPOSE | {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}  # others undo themselves
_HEAD_BYTES = 4096
_BROKEN = (SyntaxError, ValueError, TypeError, IndexError, KeyError, EOFError)
"""Beside `OSError`, what decoders raise of damaged files."""


@dataclass
class ImageFile:
    """An image file that was opened but not decoded.

    Attributes:
        where: Address of the file, for messages.
        stream: The open file.
        pages: Pages of a TIFF file; empty for other kinds.
        image: The image as Pillow opened it; None for a TIFF that is read by its samples (`vitp.io.tiff`).
        orientation: 1–8, as EXIF has it.
        stored_size: Width and height as stored, before `orientation` turns them.
        window: The window of the upright image that is meant; None: all of it.
    """

    where: str
    stream: BinaryIO
    pages: list[Page]
    image: Image.Image | None
    orientation: int
    stored_size: tuple[int, int]
    window: Window | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height upright, as `rgb` has them."""
        width, height = self.stored_size
        if self.window is not None:
            x1, y1, x2, y2 = self.window
            return x2 - x1, y2 - y1
        return (height, width) if self.orientation >= 5 else (width, height)

    @property
    def is_wide(self) -> bool:
        """Whether it has values of more than 8 bits, which are a picture only once they are stretched."""
        if self.pages:
            return self.pages[0].bits > 8 or self.pages[0].kind != "u"
        assert self.image is not None
        if self.image.format == "PPM":
            return (netpbm_maximum(self.stream) or 0) > 255
        return self.image.mode in WIDE_MODES or is_wide_png(self.image)

    def rgb(self, enough: Callable[[int, int], tuple[int, int]] | None = None) -> Image.Image:
        """Return the image as 8-bit RGB, upright.

        Values of more than 8 bits are stretched between the 2nd and 98th percentile of all channels together, pixels
        that are transparent or hold nothing turn black, EXIF orientation is applied.

        Args:
            enough: Width and height of the image → those that suffice. A JPEG is then decoded at the smallest of
                1/8, 1/4 and 1/2 of its size that has them in both directions, which is many times faster; other images
                of more than `LARGE_PIXELS` are averaged to it, so that the whole is never held as RGB. The last column
                and row may then stand for a part of a pixel. Smaller images, and those that EXIF turns, come in full
                size, and so do all with None.

        Raises:
            DataError: The file has two readings, or is damaged.
        """
        if self.window is not None:
            part, window = _at_window(self)
            return part.rgb().crop(window)
        image = self.image
        with _decoding(self):
            # `enough` counts as the image is seen, `draft` as it is stored: they agree on upright ones alone.
            if enough is not None and image is not None and image.format == "JPEG" and self.orientation == 1:
                image.draft(None, enough(*image.size))
                enough = None
            factor = 1 if self.orientation != 1 else reduction(self.stored_size, enough)
            rgb = _tiff_rgb(self, factor) if self.pages else _other_rgb(self, factor)
        upright = rgb.transpose(_TRANSPOSE[self.orientation]) if self.orientation in _TRANSPOSE else rgb
        # Comments, EXIF and profiles would be written with it wherever it is saved.
        upright.info = {}
        return upright

    def label_values(self) -> np.ndarray:
        """Return the file's own values: (H, W) numbers for greyscale and palette files, (H, W, 3) for colour.

        Numbers of any type come as they stand in the file; transparency is left out. NaN stays where the file's own tag
        names it as nodata.

        Raises:
            DataError: The file is damaged, or holds colours of more than 8 bits or values that are no numbers, which
                are no labels.
        """
        if self.window is not None:
            part, (x1, y1, x2, y2) = _at_window(self)
            return part.label_values()[y1:y2, x1:x2].copy()
        with _decoding(self):
            values = _label_values(self)
        check_label_numbers(values, self.pages[0].nodata if self.pages else None, self.where)
        return values

    def values(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the file's own values (H, W, N), upright, and which pixels (H, W) hold something; None: all.

        Palettes and colours other than grey and RGB become RGB; transparency only tells what holds something.

        Raises:
            DataError: As `rgb`.
        """
        if self.window is not None:
            part, (x1, y1, x2, y2) = _at_window(self)
            values_HWN, valid_HW = part.values()
            return values_HWN[y1:y2, x1:x2], None if valid_HW is None else valid_HW[y1:y2, x1:x2]
        with _decoding(self):
            if self.pages:
                whole = self.image
                if whole is not None:
                    whole.load()
                    whole = whole.transpose(_BACK[self.orientation]) if self.orientation in _BACK else whole
                values_HWN, valid_HW = measured_values(self.stream, self.pages, self.where, whole)
            else:
                assert self.image is not None
                values_HWN, valid_HW = picture_values(self.stream, self.image)
        if valid_HW is not None:
            valid_HW = None if valid_HW.all() else as_exif(valid_HW, self.orientation)
        return as_exif(values_HWN, self.orientation), valid_HW


@contextmanager
def open_image(address: str | Path) -> Iterator[ImageFile]:
    """Open a file, a part of a shard or a URL, or a window or page of one, without decoding it.

    Raises:
        DataError: The file is missing or isn't an image, or its head tells that it has no single reading; bands or a
            layer are chosen, which only `vitp.io.open_pixels` reads.
    """
    where = str(address)
    part = split_address(address)[1]
    if part.bands or part.layer or part.hole or part.mirror or part.turn:
        what = "chooses bands or a layer, or a view, which pictures themselves don't have"
        raise DataError(what, where=where, fix="name the file alone, or read it as a raster")
    with open_stream(address) as stream:
        head = stream.read(_HEAD_BYTES)
        try:
            pages = read_pages(stream) if is_tiff(head) else []
        except TiffError as error:
            raise DataError(
                f"is not an image that can be read: a TIFF, but {error}", where=where, fix=COPY_IT_AGAIN
            ) from error
        image: Image.Image | None = None
        number = (part.page or 1) - 1
        if part.page is not None and pages:
            number, pages = page_alone(pages, part.page, where)
        elif pages:
            check_pages(pages, where)
        if not pages or not layout_of(pages[0], where).raw:
            image = _identified(stream, pages, head, where)
            if part.page is None:
                check_alone(image, where)
            else:
                seek_page(image, number, where)
        if pages:
            file = ImageFile(where, stream, pages, image, pages[0].orientation, pages[0].size)
        else:
            assert image is not None
            file = ImageFile(where, stream, pages, image, _orientation(image), image.size)
        _check_size(file)
        if part.window is not None:
            check_window(part.window, file.size, where)
            file.window = part.window
        yield file


def _at_window(file: ImageFile) -> tuple[ImageFile, Window]:
    """Return a file of which no more needs to be decoded than its window takes, and the window in it."""
    assert file.window is not None
    page = file.pages[0] if len(file.pages) == 1 and file.orientation == 1 else None
    if page is not None and file.image is not None and page.bits == 8:
        layout = layout_of(page, file.where)
        with _decoding(file, part=True):
            if is_cut(page) and not (layout.extra and layout.alpha is None):
                check_segments(file.stream, file.pages, file.where, file.window)
                part, window = cropped(page, file.window)
                return replace(file, pages=[part], image=None, stored_size=part.size, window=None), window
    return replace(file, window=None), file.window


@contextmanager
def open_stream(address: str | Path) -> Iterator[BinaryIO]:
    """Open the bytes of the file that an address names, whatever part of it is meant.

    Raises:
        DataError: It is missing or can't be opened.
    """
    where, path = str(address), base_address(address)
    if isinstance(address, str) and (is_member(path) or is_remote(path)):
        yield io.BytesIO(read_address(path))
        return
    with contextlib.ExitStack() as stack:
        try:
            # Opening a pipe waits for whoever writes into it.
            if not stat.S_ISREG(Path(path).stat().st_mode):
                raise DataError("image is not a file", where=where, fix="name an image file")
            stream = stack.enter_context(Path(path).open("rb"))
        except FileNotFoundError as error:
            raise DataError(
                "image is missing", where=where, fix="check the path and the root folder"
            ) from error
        except (OSError, ValueError) as error:
            raise DataError(
                f"image can't be opened ({error})", where=where, fix="check the file and its permissions"
            ) from error
        yield stream


def _identified(stream: BinaryIO, pages: list[Page], head: bytes, where: str) -> Image.Image:
    stream.seek(0)
    try:
        with strict_pillow():
            return Image.open(stream, formats=PILLOW_FORMATS)
    except (UnidentifiedImageError, *_BROKEN, MemoryError) as error:
        if pages:
            raise unknown_page(pages[0], where) from error
        raise no_image(head, where) from error
    except OSError as error:
        if error.errno is None:  # the decoder's, not the disk's
            raise no_image(head, where) from error
        raise DataError(
            f"image can't be opened ({error})", where=where, fix="check the file and its permissions"
        ) from error


def _check_size(file: ImageFile) -> None:
    """Refuse sizes that don't fit into memory, or that the bytes of the file can't stand for, before room is made."""
    width, height = file.stored_size
    if min(width, height) < 1:
        raise DataError(f"is {width}×{height} px", where=file.where, fix="remove it")
    held, bytes_ = file.stream.seek(0, io.SEEK_END), 0
    most: int | None
    if file.pages:
        page = file.pages[0]
        bits, most = page.bits * page.bands, _MOST_IN_TIFF.get(page.compression)
        if file.image is None:
            bytes_ = width * height * page.bands * -(-page.bits // 8)
    else:
        assert file.image is not None
        mode = file.image.mode  # of files with 1, 2 or 4 bits a pixel "L" and "P" too
        bits = 1 if mode in ("1", "P", "L") else 8 * len(file.image.getbands())
        most = _MOST_IN.get(file.image.format or "", 10_000)
    if width * height > LARGEST_IMAGE_PIXELS or bytes_ > LARGEST_IMAGE_BYTES:
        needed = max(bytes_, 4 * width * height) / 1e9
        raise DataError(
            f"image is too large to be decoded: {width}×{height} px take {needed:.1f} GB, the limit is "
            f"{LARGEST_IMAGE_BYTES / 1e9:g} GB",
            where=file.where,
            fix="cut it into smaller files",
        )
    if most is not None and width * height * bits // 8 > max(held, 64) * most:
        what = f"image is damaged (it says {width}×{height} px, which {held} bytes can't hold)"
        raise DataError(what, where=file.where, fix=COPY_IT_AGAIN)


def _label_values(file: ImageFile) -> np.ndarray:
    if file.pages:
        values = labels_of_page(file.stream, file.pages[0], file.where)
        if values is not None:
            return as_exif(values, file.orientation)
    maximum = netpbm_maximum(file.stream)
    if maximum not in (None, 255):
        values_HWN = netpbm_values(file.stream)
        if values_HWN.shape[2] == 1 or values_HWN.dtype == np.uint8:
            return values_HWN[..., 0] if values_HWN.shape[2] == 1 else values_HWN
    image = file.image
    if image is None:
        return label_numbers(page_image(file.stream, file.pages[0]))
    wide = is_wide_png(image)
    if image.mode != "LA" and (wide or (image.format == "PPM" and (maximum or 0) > 255)):
        what = "holds colours of 16 bits as labels"
        raise DataError(what, where=file.where, fix="save labels as 8-bit colours or as numbers")
    image.load()
    # Pillow has turned what it read of a TIFF.
    orientation = 1 if file.pages else file.orientation
    if wide:
        return as_exif(png_values(file.stream, image)[..., 0], orientation)
    return as_exif(label_numbers(image), orientation)


@contextmanager
def _decoding(file: ImageFile, *, part: bool = False) -> Iterator[None]:
    """Turn what goes wrong while pixels are decoded into words of ours; unless it is for a part, all are looked at."""
    try:
        with strict_pillow():
            if file.pages and not part:
                check_segments(file.stream, file.pages, file.where)
            yield
    except DataError:
        raise
    except MemoryError as error:
        width, height = file.stored_size
        what = f"image of {width}×{height} px doesn't fit into memory"
        raise DataError(what, where=file.where, fix="cut it into smaller files") from error
    except (OSError, *_BROKEN) as error:
        if file.image is not None and file.image.format == "JPEG2000":
            raise DataError(
                f"is a JPEG 2000 file that can't be decoded here ({error}){without_rasterio()}",
                where=file.where,
                fix="convert it to TIFF (gdal_translate -of GTiff), or copy it again if it is damaged",
            ) from error
        raise decode_error(error, file.pages[0] if file.pages else None, file.where) from error


def _tiff_rgb(file: ImageFile, factor: int) -> Image.Image:
    page = file.pages[0]
    whole = None
    # Fax pages and old files are Pillow's to read; what is cut into segments as usual goes band by band when large.
    if file.image is not None and (page.size[0] * page.size[1] <= LARGE_PIXELS or not is_cut(page)):
        whole = file.image
        whole.load()
        if file.orientation in _TRANSPOSE:  # Pillow has turned it; masks and bands aren't
            whole = whole.transpose(_BACK[file.orientation])
    return rgb_of_page(file.stream, file.pages, file.where, whole, factor)


def _other_rgb(file: ImageFile, factor: int) -> Image.Image:
    image = file.image
    assert image is not None
    if image.format == "PPM" and (netpbm_maximum(file.stream) or 0) > 255:
        return joined(file.stored_size, stretched(netpbm_values(file.stream)), factor)
    if image.format == "JPEG2000" and len(image.getbands()) > 1:
        file.stream.seek(0)
        components, bits = jpeg2000_depth(file.stream.read(1 << 20))
        if bits > 8:
            what = f"has {components} bands of {bits} bits{without_rasterio()}"
            raise DataError(what, where=file.where, fix=RASTERS)
    wide = is_wide_png(image)
    large = image.width * image.height > LARGE_PIXELS
    if large and image.format == "PNG" and can_be_cut(file.stream):
        return joined(image.size, ((top, as_rgb(band)) for top, band in png_bands(file.stream)), factor)
    image.load()
    if wide:
        values_HWN = png_values(file.stream, image)
        return joined(image.size, _wide_png_rgb(values_HWN, image.info.get("transparency")), factor)
    if image.format == "JPEG2000" and image.mode in ("RGBA", "LA"):
        # Any further component comes as transparency.
        parts = (np.asarray(band) for _, band in in_bands(image))
        is_alpha(parts, 255, file.where, colours=len(image.getbands()) - 1)
    if image.mode in WIDE_MODES:
        values_HW = np.asarray(image)
        clear = image.info.get("transparency")
        valid_HW = values_HW != clear if isinstance(clear, int) else None
        return joined(image.size, stretched(values_HW[..., None], valid_HW), factor)
    return joined(image.size, ((top, as_rgb(band)) for top, band in in_bands(image)), factor)


def _wide_png_rgb(values_HWN: np.ndarray, clear: object) -> Iterator[tuple[int, Image.Image]]:
    if values_HWN.shape[2] == 3:
        valid_HW = (values_HWN != np.array(clear)).any(axis=2) if isinstance(clear, tuple) else None
        return stretched(values_HWN, valid_HW)
    alpha_HW = values_HWN[..., -1]
    opaque_HW = None if (alpha_HW == 65535).all() else alpha_HW / np.float32(65535)
    return stretched(values_HWN[..., :-1], alpha_HW > 0, opaque_HW=opaque_HW)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation 1–8 that is still to be applied.

    Asking Pillow for the EXIF of a PNG decodes the whole file, so there only what stands in its head counts; size and
    pixels agree because both are read through this function.
    """
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except (SyntaxError, ValueError, OSError, TypeError, KeyError):  # broken EXIF doesn't spoil the pixels
        return 1
    return value if value in _TRANSPOSE else 1
