"""Images from disk, shards, URLs or the scenes generator as 8-bit RGB, or a `DataError` that names the file.

These are short forms of `vitp.io.image_file.open_image`, and render generated scenes, which have no file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from vitp.io.image_file import open_image
from vitp.io.pixels import row_bands
from vitp.io.rasters import RasterPixels
from vitp.records.channels import Channels
from vitp.scenes import load_scene, parse_scene_address

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
) -> Image.Image:
    """Return the image as 8-bit RGB, upright; see `ImageFile.rgb`. An address that begins with `scene:` is rendered.

    Args:
        address: Path of a file, or an address as `vitp.io.storage` has them.
        enough: Width and height of the image → those that suffice; None: full size.
        channels: What of the file's bands is seen; those of `Channels.shown` are returned. None: a picture.

    Raises:
        DataError: The file is missing, isn't an image, has two readings, or is damaged: a truncated file is never
            used.
    """
    if channels is not None:
        planes_CHW = load_planes(address, enough=enough, channels=channels)
        return Image.fromarray(np.ascontiguousarray(planes_CHW[list(channels.shown)].transpose(1, 2, 0)))
    if is_scene(address):
        return Image.fromarray(load_scene(str(address)).image_HWC)
    with open_image(address) as file:
        return file.rgb(enough)


def load_planes(
    address: str | Path,
    *,
    enough: Callable[[int, int], tuple[int, int]] | None = None,
    channels: Channels | None = None,
) -> np.ndarray:
    """Return what `load_image` does as (3, H, W) uint8 that may be written to, with no third copy of the whole.

    With channels it is what a tower sees of the file's bands, (C, H, W); see `Channels.scale`.

    Raises:
        DataError: As `load_image`.
    """
    if channels is not None:
        with RasterPixels(str(address)) as pixels:
            channels.check_bands(pixels.names, where=pixels.where)
            return channels.scale(pixels.read(bands=channels.bands), pixels.valid())
    image = load_image(address, enough=enough)
    array_CHW = np.empty((3, image.height, image.width), np.uint8)
    for top, bottom in row_bands(*image.size):
        part_HWC = np.asarray(image.crop((0, top, image.width, bottom)))
        array_CHW[:, top:bottom] = part_HWC.transpose(2, 0, 1)
    return array_CHW


def image_size(address: str | Path) -> tuple[int, int]:
    """Return width and height as `load_image` will give them, without decoding.

    Raises:
        DataError: The file is missing or isn't an image, or its head tells that it has no single reading.
    """
    if is_scene(address):
        size = parse_scene_address(str(address)).size
        return size, size
    with open_image(address) as file:
        return file.size


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
