"""Images from disk, shards, URLs or the scenes generator as 8-bit RGB, or a `DataError` that names the file.

These are short forms of `vitp.io.image_file.open_image`, and render generated scenes, which have no file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from vitp.core.errors import DataError
from vitp.io.contract import Pixels
from vitp.io.ground import is_map
from vitp.io.image_file import open_image
from vitp.io.image_kinds import has_rasterio
from vitp.io.open_pixels import is_compressed_otherwise, is_picture_file, open_pixels, open_seen
from vitp.io.parts import WHOLE, FilePart, check_window, split_address, split_view
from vitp.io.pixels import LARGE_PIXELS, holds_value, joined, row_bands, stretched
from vitp.io.rasters import raster_driver
from vitp.io.slides import SLIDE_SUFFIXES, slide_kind
from vitp.io.storage import SCENE_PREFIX
from vitp.io.volume_labels import label_values
from vitp.io.volumes import is_volume
from vitp.records.channels import UNMOVED, Channels, Moved
from vitp.scenes import load_scene, parse_scene_address

MissingBands = Literal["error", "zero"]
"""What becomes of channels whose band a file lacks."""

IMAGE_SUFFIXES = frozenset(
    {
        ".png",
        ".jpg",
        ".jpeg",
        ".tif",
        ".tiff",
        ".bmp",
        ".webp",
        ".gif",
        ".pgm",
        ".ppm",
        ".jp2",
        ".vrt",
        ".dcm",
    }
    | SLIDE_SUFFIXES
)


_STRIP_VALUES = 1 << 24
"""Of a file, that are read at a time."""


def is_scene(address: str | Path) -> bool:
    """Return whether the address is one of the scenes generator."""
    return str(address).startswith(SCENE_PREFIX)


def load_image(
    address: str | Path,
    *,
    enough: Callable[[int, int], tuple[int, int]] | None = None,
    channels: Channels | None = None,
    stretch: bool = True,
) -> Image.Image:
    """Return the image as 8-bit RGB, upright; see `ImageFile.rgb`. An address that begins with `scene:` is rendered.

    Args:
        address: Path of a file, or an address as `vitp.io.storage` has them.
        enough: Width and height of the image → those that suffice; None: full size.
        channels: What of the file's bands is seen; those of `Channels.shown` are returned. None: a picture.
        stretch: Whether values of more than 8 bits are stretched between the file's own percentiles. Not in a set,
            where a value has to be the same grey in each file: there such a file is refused.

    Raises:
        DataError: The file is missing, isn't an image, has two readings, or is damaged: a truncated file is never
            used.
    """
    plain, view = split_view(address)
    if view != WHOLE:
        image = load_image(plain, enough=_enough_of(view, enough), channels=channels, stretch=stretch)
        planes_CHW = seen_from(np.asarray(image).transpose(2, 0, 1), view)
        return Image.fromarray(np.ascontiguousarray(planes_CHW.transpose(1, 2, 0)))
    if channels is not None:
        planes_CHW = load_planes(address, enough=enough, channels=channels)
        return Image.fromarray(np.ascontiguousarray(planes_CHW[list(channels.shown)].transpose(1, 2, 0)))
    base, part = split_address(address)
    if is_scene(base):
        image = Image.fromarray(load_scene(base).image_HWC)
        if part.window is not None:
            check_window(part.window, image.size, str(address))
            return image.crop(part.window)
        return image
    if not is_picture_file(address):
        return _raster_rgb(address, part, enough, stretch)
    try:
        with open_image(address) as file:
            if file.is_wide and not stretch:
                raise undeclared(str(address))
            return file.rgb(enough)
    except DataError:
        if raster_driver(base) != "JP2OpenJPEG" or not has_rasterio():
            raise
        # Of those that GDAL writes Pillow doesn't decode all.
        with contextlib.suppress(DataError):
            return _raster_rgb(address, part, enough, stretch)
        raise


def _raster_rgb(
    address: str | Path,
    part: FilePart,
    enough: Callable[[int, int], tuple[int, int]] | None,
    stretch: bool,
) -> Image.Image:
    tiff = not (part.bands or part.layer or slide_kind(address))
    tiff = tiff and raster_driver(split_address(address)[0]) == "GTiff"
    try:
        with open_pixels(address) as pixels:
            if not (pixels.is_picture or stretch):
                raise undeclared(str(address))
            if len(pixels.bands) in (1, 3):
                return _shown(pixels, enough)
            bands = f"{len(pixels.bands)} bands ({', '.join(pixels.names[:20])})"
    except DataError:
        if not tiff or not is_compressed_otherwise(address):
            raise
    if tiff:
        with open_image(address) as file:  # its words tell more, and it may have another decoder
            if file.is_wide and not stretch:
                raise undeclared(str(address))
            return file.rgb(enough)
    what = f"has {bands}; which of them are red, green and blue isn't known"
    fix = "choose them: -o bands=… where a set is compiled, FILE#bands=A,B,C for one file that is shown"
    raise DataError(what, where=str(address), fix=fix)


def undeclared(where: str) -> DataError:
    """Return what to tell of a file of a set that is no picture, though the set doesn't say what is seen of it."""
    return DataError(
        "is no 8-bit picture, and its set doesn't say which of its bands are seen and which values are black and white",
        where=where,
        fix="compile the set again (-o bands=… and -o range=LOW,HIGH choose), or give its entry in the mixture file "
        "`channels`",
    )


def _level(pixels: Pixels, enough: Callable[[int, int], tuple[int, int]] | None) -> int:
    """Return the level of an image that still has what is enough."""
    if enough is None:
        return 0
    wide, high = enough(*pixels.size)
    width, height = pixels.size
    level = 0
    while level + 1 < pixels.levels and width >> level + 1 >= wide and height >> level + 1 >= high:
        level += 1
    return level


def _shown(pixels: Pixels, enough: Callable[[int, int], tuple[int, int]] | None) -> Image.Image:
    """Return one or three bands as RGB: 8 bits as they stand, more of them stretched as those of pictures."""
    level = _level(pixels, enough) if pixels.size[0] * pixels.size[1] > LARGE_PIXELS else 0
    values_CHW, valid_CHW = pixels.read_valid(level=level)
    if pixels.says_shown:
        quantity_CHW, _ = pixels.read_quantity(level=level)
        shown = [pixels.shown(one_HW, name) for one_HW, name in zip(quantity_CHW, pixels.names, strict=True)]
        values_CHW = np.rint(np.nan_to_num(np.stack(shown))).astype(np.uint8)
    values_HWN, valid_HW = np.moveaxis(values_CHW, 0, 2), np.any(valid_CHW, axis=0)
    if values_HWN.dtype != np.uint8:
        size = values_HWN.shape[1], values_HWN.shape[0]
        return joined(size, stretched(values_HWN, valid_HW))
    if pixels.palette_V3 is not None:
        values_HWN = pixels.palette_V3[values_HWN[..., 0]]
    elif values_HWN.shape[2] == 1:
        values_HWN = values_HWN.repeat(3, axis=2)
    return Image.fromarray(np.where(valid_HW[..., None], values_HWN, np.uint8(0)))


def load_planes(
    address: str | Path,
    *,
    enough: Callable[[int, int], tuple[int, int]] | None = None,
    channels: Channels | None = None,
    stretch: bool = True,
    missing_bands: MissingBands = "error",
    moved: Moved = UNMOVED,
) -> np.ndarray:
    """Return what `load_image` does as (3, H, W) uint8 that may be written to, with no third copy of the whole.

    With channels it is what a tower sees of the file's bands, (C, H, W); see `Channels.scale`.

    Args:
        address, enough, channels, stretch: See `load_image`.
        missing_bands: `zero`: channels whose band the file lacks are 0, as some were while a tower with band dropout
            was trained.
        moved: How the ranges of the channels are moved; see `Channels.scale`.

    Raises:
        DataError: As `load_image`; or the file lacks bands.
    """
    plain, view = split_view(address)
    if view != WHOLE:
        options = {"channels": channels, "stretch": stretch, "missing_bands": missing_bands, "moved": moved}
        return seen_from(load_planes(plain, enough=_enough_of(view, enough), **options), view)  # type: ignore[arg-type]
    if channels is not None:
        with open_seen(address, channels) as pixels:
            return _planes(pixels, channels, enough, missing_bands, moved)[0]
    image = load_image(address, enough=enough, stretch=stretch)
    array_CHW = np.empty((3, image.height, image.width), np.uint8)
    for top, bottom in row_bands(*image.size):
        part_HWC = np.asarray(image.crop((0, top, image.width, bottom)))
        array_CHW[:, top:bottom] = part_HWC.transpose(2, 0, 1)
    return array_CHW


def load_held(
    address: str | Path,
    channels: Channels | None = None,
    *,
    missing_bands: MissingBands = "error",
    moved: Moved = UNMOVED,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the whole of an image of a set as `load_planes` does, and where it holds something.

    Returns:
        (C, H, W) uint8, and (H, W) bool: which pixels hold something in a band that is seen. None: all do, as those
        of pictures; see `vitp.io.ground.is_map`.

    Raises:
        DataError: As `load_planes`.
    """
    options = {"channels": channels, "missing_bands": missing_bands, "moved": moved}
    if channels is None or split_view(address)[1] != WHOLE:
        planes_CHW = load_planes(address, stretch=False, **options)  # type: ignore[arg-type]
        return planes_CHW, where_valid(address)
    with open_seen(address, channels) as pixels:
        planes_CHW, held_HW = _planes(pixels, channels, None, missing_bands, moved)
    return planes_CHW, None if held_HW.all() else held_HW


def where_valid(
    address: str | Path, channels: Channels | None = None, *, pictures: bool = False
) -> np.ndarray | None:
    """Return where an image of a set holds something, (H, W) bool, as `load_held` does; None: everywhere.

    Args:
        address: Address of the image.
        channels: What is seen of its bands; None: a picture.
        pictures: Whether transparent parts of pictures hold nothing, too, as those of maps do.

    Raises:
        DataError: As `load_planes`.
    """
    if split_view(address)[1] != WHOLE:
        return None
    if not is_map(address, channels):
        return _where_opaque(address) if pictures and not is_scene(address) else None
    with open_seen(address, channels) as pixels:
        if pixels.all_valid:
            return None
        bands: list[str] | None = None
        if channels is not None:
            bands = [name for name in channels.named_in(pixels.names) if name is not None]
            if not bands:
                channels.check_bands(pixels.names, where=pixels.where)
        width, height = pixels.size
        held_HW = np.zeros((height, width), bool)
        rows = max(1, _STRIP_VALUES // (len(bands or pixels.bands) * width))
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            held_HW[top:bottom] = pixels.read_valid((0, top, width, bottom), bands)[1].any(0)
    return None if held_HW.all() else held_HW


def _where_opaque(address: str | Path) -> np.ndarray | None:
    """Return where a picture isn't wholly transparent, (H, W) bool; None: everywhere."""
    with open_image(address) as file:
        if file.image is not None and not file.pages and not file.image.has_transparency_data:
            return None  # known without decoding it
        return file.values()[1]


_BLANK = 128
"""Value of a hole, in all channels."""


def seen_from(planes_CHW: np.ndarray, view: FilePart) -> np.ndarray:
    """Return (C, H, W) uint8 with its hole blank, mirrored and turned as a view says (`vitp.io.parts`), as a copy."""
    seen_CHW = planes_CHW.copy()
    if view.hole is not None:
        height, width = seen_CHW.shape[1:]
        x1, y1, x2, y2 = view.hole
        rows = slice(round(y1 * height / 1000), round(y2 * height / 1000))
        seen_CHW[:, rows, round(x1 * width / 1000) : round(x2 * width / 1000)] = _BLANK
    if view.mirror:
        seen_CHW = seen_CHW[:, :, ::-1]
    # `rot90` turns anticlockwise.
    return np.ascontiguousarray(np.rot90(seen_CHW, -(view.turn or 0) // 90, axes=(1, 2)))


def _enough_of(
    view: FilePart, enough: Callable[[int, int], tuple[int, int]] | None
) -> Callable[[int, int], tuple[int, int]] | None:
    """Return what suffices of an image where some of a view of it do."""
    if enough is None or view.turn not in (90, 270):
        return enough
    turned = enough

    def swapped(width: int, height: int) -> tuple[int, int]:
        wide, high = turned(height, width)
        return high, wide

    return swapped


def _planes(
    pixels: Pixels,
    channels: Channels,
    enough: Callable[[int, int], tuple[int, int]] | None,
    missing_bands: MissingBands,
    moved: Moved,
) -> tuple[np.ndarray, np.ndarray]:
    """Return (C, H, W) uint8 of an open file, and (H, W) bool: which pixels hold something in a band that is seen.

    Strip by strip, so that its own values are never held as a whole.
    """
    names = channels.named_in(pixels.names)
    if missing_bands == "error" or not any(names):
        channels.check_bands(pixels.names, where=pixels.where)
    there = [place for place, name in enumerate(names) if name is not None]
    bands = [str(names[place]) for place in there]
    part = channels.part(there)
    level = _level(pixels, enough)
    width, height = pixels.size
    planes_CHW = np.zeros((len(channels), -(-height >> level), -(-width >> level)), np.uint8)
    held_HW = np.zeros(planes_CHW.shape[1:], bool)
    # Strips begin with a row of the level.
    rows = max(1, _STRIP_VALUES // (len(channels) * planes_CHW.shape[2]) >> level) << level
    for top in range(0, height, rows):
        window = (0, top, width, min(top + rows, height))
        seen_CHW, valid_CHW = pixels.seen(part, bands, window, level, moved)
        lines = slice(top >> level, (top >> level) + seen_CHW.shape[1])
        planes_CHW[there, lines], held_HW[lines] = seen_CHW, valid_CHW.any(0)
    return planes_CHW, held_HW


def image_size(address: str | Path) -> tuple[int, int]:
    """Return width and height as `load_image` will give them, without decoding.

    Raises:
        DataError: The file is missing or isn't an image, or its head tells that it has no single reading.
    """
    plain, view = split_view(address)
    if view != WHOLE:
        width, height = image_size(plain)
        return (height, width) if view.turn in (90, 270) else (width, height)
    base, part = split_address(address)
    if is_scene(base):
        size = parse_scene_address(base).size
        if part.window is None:
            return size, size
        check_window(part.window, (size, size), str(address))
        return part.window[2] - part.window[0], part.window[3] - part.window[1]
    if is_picture_file(address):
        with open_image(address) as file:
            return file.size
    with open_pixels(address) as pixels:
        return pixels.size


def orientation_of(path: str | Path) -> int:
    """Return an image file's EXIF orientation, 1–8: 1 is as stored, from 5 on width and height are swapped.

    Raises:
        DataError: As `image_size`.
    """
    path = split_view(path)[0]
    if not is_picture_file(path):
        return 1
    with open_image(path) as file:
        return file.orientation


def label_nodata(path: str | Path) -> float | None:
    """Return the value that a mask file's own tag names as nodata, NaN too; None: it names none, or bands differ.

    Raises:
        DataError: As `load_image`.
    """
    if raster_driver(split_address(path)[0]) is None:
        return None
    if is_picture_file(path):
        with open_image(path) as file:
            return file.pages[0].nodata if file.pages else None
    with open_pixels(path) as pixels:
        return pixels.nodata


def masked_share(path: str | Path) -> float:
    """Return the share of a TIFF's pixels that a mask within it leaves out, beside those of its nodata value.

    Raises:
        DataError: As `load_image`.
    """
    if (
        raster_driver(split_address(path)[0]) != "GTiff"
        or slide_kind(path) is not None
        or not is_picture_file(path)
    ):
        return 0.0
    with open_image(path) as file:
        if not any(page.is_mask for page in file.pages[1:]):
            return 0.0
        values_HWN, valid_HW = file.values()
        if valid_HW is None:
            return 0.0
        tag = file.pages[0].nodata
        known_HW = valid_HW if tag is None else valid_HW | holds_value(values_HWN, tag)
        return 1 - float(known_HW.mean())


def load_label_pixels(path: str | Path) -> np.ndarray:
    """Return a mask file's own values; see `ImageFile.label_values`.

    Raises:
        DataError: As `load_image`; or colours of more than 8 bits, which are no labels.
    """
    if is_picture_file(path):
        with open_image(path) as file:
            return file.label_values()
    with open_pixels(path) as pixels:
        values_CHW = pixels.read_quantity()[0]
    if is_volume(path):
        values_CHW = label_values(values_CHW, str(path))
    if len(values_CHW) not in (1, 3) or (len(values_CHW) == 3 and values_CHW.dtype != np.uint8):
        what = f"holds {len(values_CHW)} bands of {values_CHW.dtype}, which are no labels"
        raise DataError(what, where=str(path), fix="choose the band of the labels (FILE#bands=1)")
    return values_CHW[0] if len(values_CHW) == 1 else np.ascontiguousarray(values_CHW.transpose(1, 2, 0))
