"""Images from disk, shards, URLs or the scenes generator as 8-bit RGB, or a `DataError` that names the file."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from vitp.data.shards.storage import is_member, is_remote, read_address
from vitp.errors import DataError
from vitp.reading import check_file

SCENE_PREFIX = "scene:"
"""Begins the address of a generated image, which has no file."""

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".pgm", ".ppm"}
)

LARGEST_IMAGE_PIXELS = 1_000_000_000
"""Aerial mosaics of 20,000 × 20,000 are ordinary here; Pillow's own limit against zip bombs is 0.18 G."""

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
_PILLOW = threading.RLock()
"""Held while settings that Pillow keeps for the whole process are ours."""

_WIDE_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


def is_scene(address: str | Path) -> bool:
    """Return whether the address is one of the scenes generator."""
    return str(address).startswith(SCENE_PREFIX)


def load_image(
    address: str | Path, *, enough: Callable[[int, int], tuple[int, int]] | None = None
) -> Image.Image:
    """Return the image as 8-bit RGB, upright.

    Greyscale of more than 8 bits is stretched between its own 2nd and 98th percentile, transparent pixels
    turn black, EXIF orientation is applied. An address that begins with `scene:` is rendered.

    Args:
        address: Path of a file, or an address as `vitp.data.shards.storage` has them.
        enough: Width and height of the image → those that suffice. A JPEG is then decoded at the smallest of
            1/8, 1/4 and 1/2 of its size that has them in both directions, which is many times faster. Its last
            column and row may then stand for a part of a pixel. Other images, and those that EXIF turns, come in full
            size, and so do all with None.

    Raises:
        DataError: The file is missing, isn't an image, or is damaged: a truncated file is never used.
    """
    if is_scene(address):
        from vitp.data.scenes import load_scene

        return Image.fromarray(load_scene(str(address)).image_HWC)
    with _open(address) as image:
        orientation = _orientation(image)
        if enough is not None and image.format == "JPEG" and orientation == 1:
            image.draft(None, enough(*image.size))
        _decode(image, address)
        rgb = _as_rgb(image)
    return rgb.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else rgb


def image_size(address: str | Path) -> tuple[int, int]:
    """Return width and height as `load_image` will give them, without decoding.

    Raises:
        DataError: The file is missing or isn't an image.
    """
    if is_scene(address):
        from vitp.data.scenes import parse_scene_address

        size = parse_scene_address(str(address)).size
        return size, size
    with _open(address) as image:
        width, height = image.size
        return (height, width) if _orientation(image) >= 5 else (width, height)


def load_label_pixels(path: str | Path) -> np.ndarray:
    """Return a mask file's own values: (H, W) indices for greyscale and palette files, (H, W, 3) for colour.

    Raises:
        DataError: As `load_image`.
    """
    path = Path(path)
    with _open(path) as image:
        _decode(image, path)
        if image.mode == "1":
            return np.asarray(image.convert("L"))
        if image.mode in ("L", "P", *_WIDE_MODES):
            return np.asarray(image)
        if image.mode == "LA":
            return np.asarray(image)[..., 0]
        return np.asarray(image.convert("RGB"))


def _open(path: str | Path) -> Image.Image:
    """Open a file without decoding it, in words of ours when that fails."""
    file = io.BytesIO(read_address(str(path))) if is_member(path) or is_remote(path) else Path(path)
    with warnings.catch_warnings():
        # Size is checked below against a limit that suits mosaics; the warning would only worry the user.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        # Broken EXIF doesn't spoil the pixels.
        warnings.filterwarnings("ignore", "Corrupt EXIF data", UserWarning)
        try:
            with _PILLOW:
                if isinstance(file, Path):
                    check_file(file)
                limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, LARGEST_IMAGE_PIXELS
                try:
                    image = Image.open(file)
                finally:
                    Image.MAX_IMAGE_PIXELS = limit
        except FileNotFoundError as error:
            raise DataError(
                "image is missing", where=str(path), fix="check the path and the root folder"
            ) from error
        except Image.DecompressionBombError as error:
            raise DataError(
                "image is too large to be decoded", where=str(path), fix="cut it into smaller files"
            ) from error
        except (UnidentifiedImageError, SyntaxError, ValueError) as error:
            raise DataError(
                "is not an image that can be read",
                where=str(path),
                fix="remove it or convert it to PNG, JPEG or an 8- or 16-bit TIFF",
            ) from error
        except OSError as error:
            raise DataError(
                f"image can't be opened ({error})", where=str(path), fix="check the file and its permissions"
            ) from error
    if image.width * image.height > LARGEST_IMAGE_PIXELS:
        image.close()
        raise DataError("image is too large to be decoded", where=str(path), fix="cut it into smaller files")
    return image


def _decode(image: Image.Image, path: str | Path) -> None:
    # Other libraries set this flag for the whole process, and half an image would then pass as a grey one.
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        with _PILLOW:
            ImageFile.LOAD_TRUNCATED_IMAGES = False
            try:
                _load(image, path)
            finally:
                ImageFile.LOAD_TRUNCATED_IMAGES = True
    else:
        _load(image, path)


def _load(image: Image.Image, path: str | Path) -> None:
    try:
        image.load()
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise DataError(
            f"image is damaged ({error})", where=str(path), fix="copy it again from its source or remove it"
        ) from error


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation 1–8 that is still to be applied.

    Pillow turns TIFF files upright by itself. Asking it for the EXIF of a PNG decodes the whole file, so there
    only what stands in its head counts; size and pixels agree because both are read through this function.
    """
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except (SyntaxError, ValueError, OSError):  # broken EXIF doesn't spoil the pixels
        return 1
    return value if value in _TRANSPOSE else 1


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _WIDE_MODES:
        return Image.fromarray(_stretch(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba).convert("RGB")
    return image.convert("RGB")


def _stretch(values_HW: np.ndarray) -> np.ndarray:
    """Map the 2nd–98th percentile of an image's finite values to 0–255."""
    values_HW = values_HW.astype(np.float32)
    finite = np.isfinite(values_HW)
    if not finite.any():
        return np.zeros(values_HW.shape, np.uint8)
    low, high = np.percentile(values_HW[finite], (2, 98))
    scale = 255.0 / (high - low) if high > low else 0.0
    scaled = (np.where(finite, values_HW, low) - low) * scale
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)
