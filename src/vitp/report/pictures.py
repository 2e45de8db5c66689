"""Pictures inside the page: loaded, made small and written as data addresses."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from vitp.core.errors import DataError
from vitp.io.images import is_scene, load_image
from vitp.io.parts import base_address
from vitp.records.channels import Channels

PictureSource = str | Path | Image.Image | np.ndarray
"""A path or `scene:` address, a PIL image, or an (H, W) or (H, W, 3) uint8 array."""

_LOSSLESS_BELOW = 128


def open_picture(
    picture: PictureSource, *, base: Path | None = None, channels: Channels | None = None
) -> Image.Image:
    """Return a picture as a PIL RGB image.

    Args:
        picture: What to load.
        base: Relative paths that don't exist as they are, are looked for here.
        channels: What is seen of a file's bands, of which the composite is shown; None: it is a picture.

    Raises:
        DataError: The file can't be read, or the array is no picture.
    """
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or picture.size == 0:
            raise DataError(
                f"an array of shape {picture.shape} and type {picture.dtype} is no picture",
                where="report",
                fix="give (H, W) or (H, W, 3) uint8",
            )
        return Image.fromarray(picture).convert("RGB")
    # A relative path is one of `base` only where nothing lies at the path itself.
    if base is not None and not is_scene(picture) and not Path(base_address(picture)).exists():
        picture = base / picture if Path(base_address(base / picture)).exists() else picture
    return load_image(picture, channels=channels)


def data_address(image: Image.Image, *, longest: int = 384) -> str:
    """Return the image as a `data:` address, scaled down so that its longer side is at most `longest` pixels.

    Small pictures stay lossless (PNG): a JPEG block is as large as the objects in them. So do masks, which are
    pictures with an alpha channel, and of which the nearest pixel is taken.
    """
    mask = image.mode == "RGBA"
    if max(image.size) > longest:
        scale = longest / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.NEAREST if mask else Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    lossless = mask or max(image.size) <= _LOSSLESS_BELOW
    image.save(buffer, "PNG" if lossless else "JPEG", quality=84, optimize=True)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/{'png' if lossless else 'jpeg'};base64,{encoded}"
