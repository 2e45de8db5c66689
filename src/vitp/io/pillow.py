"""Settings that Pillow keeps for the whole process, held at ours while a file is read."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, ImageFile

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF", "PPM", "JPEG2000", "MPO", "AVIF")
"""What is read. Pillow knows more: of those some start other programs, and some take any bytes for an image."""

_PILLOW = threading.RLock()
_depth = 0
_theirs: tuple[int | None, bool] = (None, False)


@contextmanager
def strict_pillow() -> Iterator[None]:
    """Lift Pillow's bound on sizes, which is checked elsewhere, and never let it take half a file for a whole one.

    Other libraries set `LOAD_TRUNCATED_IMAGES` for the whole process, and half an image would then pass as a grey one.
    Threads may be inside at the same time; the last one to leave puts back what was found.
    """
    global _depth, _theirs
    with _PILLOW:
        if not _depth:
            _theirs = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
            Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = None, False
        _depth += 1
    try:
        yield
    finally:
        with _PILLOW:
            _depth -= 1
            if not _depth:
                Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = _theirs


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Leave out warnings about what doesn't spoil the pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        yield
