"""Images from disk, shards, URLs or the scenes generator as 8-bit RGB, or a `DataError` that names the file.

These are short forms of `vitp.io.image_file.open_image`, and render generated scenes, which have no file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from vitp.core.errors import DataError
from vitp.io.image_file import open_image
from vitp.io.open_pixels import Pixels, open_pixels
from vitp.io.parts import split_address
from vitp.io.pixels import row_bands
from vitp.records.channels import Channels
from vitp.scenes import load_scene, parse_scene_address

MissingBands = Literal["error", "zero"]
"""What becomes of channels whose band a file lacks."""

SCENE_PREFIX = "scene:"
"""Begins the address of a generated image, which has no file."""

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".pgm", ".ppm"}
)


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
    if channels is not None:
        planes_CHW = load_planes(address, enough=enough, channels=channels)
        return Image.fromarray(np.ascontiguousarray(planes_CHW[list(channels.shown)].transpose(1, 2, 0)))
    if is_scene(address):
        return Image.fromarray(load_scene(str(address)).image_HWC)
    base, part = split_address(address)
    with open_image(base) as file:
        if file.is_wide and not stretch:
            raise undeclared(str(address))
        image = file.rgb(enough if part.window is None else None)
    return image if part.window is None else image.crop(part.window)


def undeclared(where: str) -> DataError:
    """Return what to tell of a file of a set that is no picture, though the set doesn't say what is seen of it."""
    return DataError(
        "is no 8-bit picture, and its set doesn't say which of its bands are seen and which values are black and white",
        where=where,
        fix="compile the set again (-o bands=… and -o range=LOW,HIGH choose), or give its entry in the mixture file "
        "`channels`",
    )


def load_planes(
    address: str | Path,
    *,
    enough: Callable[[int, int], tuple[int, int]] | None = None,
    channels: Channels | None = None,
    stretch: bool = True,
    missing_bands: MissingBands = "error",
) -> np.ndarray:
    """Return what `load_image` does as (3, H, W) uint8 that may be written to, with no third copy of the whole.

    With channels it is what a tower sees of the file's bands, (C, H, W); see `Channels.scale`.

    Args:
        address, enough, channels, stretch: See `load_image`.
        missing_bands: `zero`: channels whose band the file lacks are 0, as some were while a tower with band dropout
            was trained.

    Raises:
        DataError: As `load_image`; or the file lacks bands.
    """
    if channels is not None:
        with open_pixels(str(address)) as pixels:
            return _seen(pixels, channels, missing_bands)
    image = load_image(address, enough=enough, stretch=stretch)
    array_CHW = np.empty((3, image.height, image.width), np.uint8)
    for top, bottom in row_bands(*image.size):
        part_HWC = np.asarray(image.crop((0, top, image.width, bottom)))
        array_CHW[:, top:bottom] = part_HWC.transpose(2, 0, 1)
    return array_CHW


def _seen(pixels: Pixels, channels: Channels, missing_bands: MissingBands) -> np.ndarray:
    names = channels.named_in(pixels.names)
    if missing_bands == "error" or not any(names):
        channels.check_bands(pixels.names, where=pixels.where)
    there = [number for number, name in enumerate(names) if name is not None]
    part = channels.model_copy(
        update={"channels": tuple(channels.channels[number] for number in there), "composite": None}
    )
    seen_CHW = part.scale(pixels.read(bands=[str(names[number]) for number in there]), pixels.valid())
    if len(there) == len(names):
        return seen_CHW
    planes_CHW = np.zeros((len(names), *seen_CHW.shape[1:]), np.uint8)
    planes_CHW[there] = seen_CHW
    return planes_CHW


def image_size(address: str | Path) -> tuple[int, int]:
    """Return width and height as `load_image` will give them, without decoding.

    Raises:
        DataError: The file is missing or isn't an image, or its head tells that it has no single reading.
    """
    if is_scene(address):
        side = parse_scene_address(str(address)).size
        return side, side
    try:
        with open_image(split_address(address)[0]) as file:
            size = file.size
    except DataError as error:
        try:
            with open_pixels(str(address)) as pixels:
                return pixels.size
        except DataError:
            raise error from None
    window = split_address(address)[1].window
    return size if window is None else (window[2] - window[0], window[3] - window[1])


def is_turned(path: str | Path) -> bool:
    """Return whether an image file's EXIF orientation swaps its width and height.

    Raises:
        DataError: As `image_size`.
    """
    with open_image(path) as file:
        return file.orientation >= 5


def load_label_pixels(path: str | Path) -> np.ndarray:
    """Return a mask file's own values; see `ImageFile.label_values`.

    Raises:
        DataError: As `load_image`; or colours of more than 8 bits, which are no labels.
    """
    with open_image(path) as file:
        return file.label_values()
