"""The values of a picture as they stand in its file, before anything makes RGB of them.

Shapes: H × W pixels, N bands.
"""

from __future__ import annotations

from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from vitp.core.errors import DataError
from vitp.io.pixels import WIDE_MODES, as_rgb
from vitp.io.tiff import picture_bands
from vitp.io.tiff_tags import Page
from vitp.io.wide_files import is_wide_png, netpbm_maximum, netpbm_values, png_values


def picture_layout(stream: BinaryIO, image: Image.Image) -> tuple[int, np.dtype[Any]]:
    """Return how many bands `picture_values` will give of an image that isn't decoded yet, and their type."""
    if image.format == "PPM" and (netpbm_maximum(stream) or 0) > 255:
        return len(image.getbands()), np.dtype(np.uint16)
    if is_wide_png(image):
        return 1 if image.mode == "LA" else 3, np.dtype(np.uint16)
    if image.mode in ("L", "1", "LA"):
        return 1, np.dtype(np.uint8)
    if image.mode in WIDE_MODES:
        return 1, np.dtype({"I": np.int32, "F": np.float32}.get(image.mode, np.uint16))
    return 3, np.dtype(np.uint8)


def picture_values(stream: BinaryIO, image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """Return an image's own values (H, W, N) as stored, and which pixels (H, W) hold something; None: all."""
    if image.format == "PPM" and (netpbm_maximum(stream) or 0) > 255:
        return netpbm_values(stream), None
    wide = is_wide_png(image)
    image.load()
    clear = image.info.get("transparency")
    if wide:
        values_HWN = png_values(stream, image)
        if values_HWN.shape[2] == 3:
            return values_HWN, (values_HWN != clear).any(axis=2) if isinstance(clear, tuple) else None
        return values_HWN[..., :-1], values_HWN[..., -1] > 0
    if image.mode in ("L", *WIDE_MODES):
        values_HW = np.asarray(image)
        return values_HW[..., None], values_HW != clear if isinstance(clear, int) else None
    # Of one bit NumPy gets booleans, where black and white are 0 and 255.
    if image.mode == "1":
        return np.asarray(image.convert("L"))[..., None], None
    if image.mode == "LA":
        values_HWN = np.asarray(image)
        return values_HWN[..., :1], values_HWN[..., 1] > 0
    if image.mode in ("RGBA", "PA") or clear is not None:
        values_HWN = np.asarray(image.convert("RGBA"))
        return values_HWN[..., :3], values_HWN[..., 3] > 0
    return np.asarray(as_rgb(image)), None


def label_numbers(image: Image.Image) -> np.ndarray:
    """Return a decoded image's numbers (H, W), or colours (H, W, 3), without transparency."""
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "P", *WIDE_MODES, "LA", "La", "PA", "RGBA", "RGBa", "RGBX"):
        image = as_rgb(image)
    values = np.asarray(image)
    if image.mode in ("LA", "La", "PA"):
        values = values[..., 0]
    return values[..., :3] if values.ndim == 3 else values


def page_image(stream: BinaryIO, page: Page) -> Image.Image:
    """Return the pixels of a TIFF page, in Pillow's mode for it."""
    whole: Image.Image | None = None
    for top, band in picture_bands(stream, page):
        whole = whole or Image.new(band.mode, page.size)
        whole.paste(band, (0, top))
    assert whole is not None
    return whole


def check_label_numbers(values: np.ndarray, nodata: float | None, where: str) -> None:
    """Make sure that labels are numbers; NaN may stand where the file's own tag names it as nodata.

    Raises:
        DataError: They aren't.
    """
    if values.dtype.kind != "f":
        return
    unknown = ~np.isfinite(values)
    if nodata is not None and np.isnan(nodata):
        unknown &= ~np.isnan(values)
    if unknown.any():
        fix = "save it with a whole number where there is no label, or name NaN as its nodata value"
        raise DataError("holds labels that are no numbers", where=where, fix=fix)
