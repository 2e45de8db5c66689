"""Pictures by the contract of `Pixels`: decoded as a whole when the first pixel is asked for.

Shapes: C bands, H × W pixels; N bands in arrays whose last axis they are.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from vitp.io.contract import Band, Pixels
from vitp.io.image_file import open_image
from vitp.io.image_values import picture_layout
from vitp.io.parts import FilePart, Window, part_address
from vitp.io.storage import SCENE_PREFIX
from vitp.scenes import load_scene, parse_scene_address

_COLOURS = ("red", "green", "blue")


class PicturePixels(Pixels):
    """A picture by `vitp.io.image_file`, read through `Pixels`; upright, palettes resolved.

    Args:
        address: Address of the file itself.
        page: Which image is meant of a file that holds several.
        where: Address, for messages.

    Raises:
        DataError: As `vitp.io.image_file.open_image`.
    """

    nodata = None
    geometry = None

    def __init__(self, address: str, page: int | None, where: str) -> None:
        self.where = where
        self._address = part_address(address, FilePart(page=page)) if page else address
        if address.startswith(SCENE_PREFIX):
            self.bands = tuple(Band(name) for name in _COLOURS)
            self.dtype, self.is_picture = np.dtype(np.uint8), True
            self.size = (parse_scene_address(address).size,) * 2
            return
        with open_image(self._address) as file:
            self.size = file.size
            if file.pages:  # what their bands are, the values tell
                bands, self.dtype = self._pixels[0].shape[2], self._pixels[0].dtype
            else:
                assert file.image is not None
                bands, self.dtype = picture_layout(file.stream, file.image)
        names = _COLOURS if bands >= 3 else ()
        self.bands = tuple(Band(name) for name in [*names, *map(str, range(len(names) + 1, bands + 1))])
        self.is_picture = self.dtype == np.uint8 and bands in (1, 3)

    @cached_property
    def _pixels(self) -> tuple[np.ndarray, np.ndarray | None]:
        if self._address.startswith(SCENE_PREFIX):
            return load_scene(self._address).image_HWC, None
        with open_image(self._address) as file:
            values_HWN, valid_HW = file.values()
        # torch takes the machine's own byte order alone.
        return values_HWN.astype(values_HWN.dtype.newbyteorder("="), copy=False), valid_HW

    @property
    def _all_valid(self) -> bool:
        return self._pixels[1] is None and self.dtype.kind != "f"

    def _stored(self, window: Window, numbers: list[int], factor: int) -> tuple[np.ndarray, np.ndarray]:
        x1, y1, x2, y2 = window
        values_HWN, known_HW = self._pixels
        values_CHW = np.moveaxis(values_HWN[y1:y2, x1:x2], 2, 0)[numbers].astype(self.dtype, copy=False)
        valid_CHW = np.ones(values_CHW.shape, bool)
        if known_HW is not None:
            valid_CHW &= known_HW[y1:y2, x1:x2]
        if self.dtype.kind == "f":
            valid_CHW &= np.isfinite(values_CHW)
        return values_CHW, valid_CHW

    def close(self) -> None:
        """Let go of the pixels."""
        self.__dict__.pop("_pixels", None)
