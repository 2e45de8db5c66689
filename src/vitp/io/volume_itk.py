"""Volumes that SimpleITK reads: NRRD and MetaImage.

Shapes: I × J × K voxels; a slab is one layer of them, with the bands last.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitp.core.errors import DataError
from vitp.core.extras import need
from vitp.io.contract import Band
from vitp.io.volume import Volume
from vitp.io.volume_checks import (
    MOST_IN_GZIP,
    NOT_PLACED,
    affine_of,
    as_one_file,
    check_held,
    check_shape,
    no_affine,
    no_series,
    places_voxels,
    quiet,
)
from vitp.io.volume_grid import VolumeGrid


class ItkVolume(Volume):
    """A file that SimpleITK reads, as a whole unless it is stored plainly."""

    def __init__(self, where: str, reader: Any, grid: VolumeGrid, bands: Sequence[Band], kind: Any) -> None:
        super().__init__(where, grid, bands, kind)
        self._size = tuple(reader.GetSize())
        with Path(where).open("rb") as file:
            head = file.read(1 << 16)
        # ITK reads a part of plain MetaImage alone; of other files it would decode all for each part.
        self._plain = (
            head.startswith((b"ObjectType", b"NDims", b"Comment")) and b"CompressedData = True" not in head
        )

    def _slab(self, axis: int, index: int) -> np.ndarray:
        sizes = [size for place, size in enumerate(self.grid.shape) if place != axis]
        with quiet(self.where):
            if self._plain and axis < len(self._size):
                start, length = [0] * len(self._size), list(self._size)
                start[axis], length[axis] = index, 1
                return self._read(start, length).reshape(*sizes, len(self.bands))
            if self._voxels is None:
                whole = self._read([0] * len(self._size), list(self._size))
                self._voxels = whole.reshape(*self.grid.shape, len(self.bands))
            return np.asarray(self._voxels.take(index, axis))

    def _read(self, start: list[int], length: list[int]) -> np.ndarray:
        """Return (I, J, K, …) of a part."""
        itk = need("medical", "SimpleITK", self.where)
        reader = itk.ImageFileReader()
        reader.SetFileName(self.where)
        reader.SetExtractIndex(start)
        reader.SetExtractSize(length)
        image = reader.Execute()
        array = itk.GetArrayFromImage(image)
        axes = len(length)
        # SimpleITK's arrays have the axes in the opposite order.
        return np.asarray(array.transpose(*reversed(range(axes)), *range(axes, array.ndim)))


def open_with_itk(base: str, series: str | None = None) -> Volume:
    """Open NRRD or MetaImage.

    Raises:
        DataError: As `vitp.io.volumes.open_volume`.
    """
    no_series(series, base)
    itk = need("medical", "SimpleITK", base)
    most = _most_bytes(base)
    reader = itk.ImageFileReader()
    reader.SetFileName(base)
    with quiet(base, "can't be read: it is damaged, or a kind that SimpleITK doesn't read"):
        itk.ProcessObject.SetGlobalWarningDisplay(False)
        reader.ReadImageInformation()
        size = tuple(int(length) for length in reader.GetSize())
        components = int(reader.GetNumberOfComponents())
        keys = set(reader.GetMetaDataKeys())
        name = itk.GetPixelIDValueAsString(reader.GetPixelID())
        kind = _itk_type(name, base)
        wanted = math.prod(size) * components * kind.itemsize
        if most is not None:
            check_held(wanted, most, base)
        check_shape((*size[:3], 1)[:3] + size[3:] + (components,), base)
        spacing, origin, direction = reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection()
    grid = _itk_grid(size, spacing, origin, direction, base)
    # Without a space NRRD says nothing about the patient; ITK fills in axes of its own.
    if base.lower().endswith((".nrrd", ".nhdr")) and "NRRD_space" not in keys:
        grid = VolumeGrid(grid.shape, None, grid.spacing)
    count = math.prod(size[3:]) * components
    names = (
        ("red", "green", "blue")
        if count == 3 and kind == np.uint8
        else tuple(str(n + 1) for n in range(count))
    )
    volume = ItkVolume(base, reader, grid, [Band(name) for name in names], kind)
    volume.is_picture = names[0] == "red"
    notes = [f"its {count} values a voxel are bands"] if count > 1 else []
    return as_one_file(volume, [NOT_PLACED] if grid.affine is None else notes)


_DATA_FILE = re.compile(r"^(?:ElementDataFile\s*=|data ?file:)\s*(.+?)\s*$", re.MULTILINE | re.IGNORECASE)
_PACKED = re.compile(r"^(?:CompressedData\s*=\s*True|encoding:\s*(?:gz|bz))", re.MULTILINE | re.IGNORECASE)
_AS_TEXT = 8
"""Bytes of voxels that a byte of text can stand for."""


def _most_bytes(where: str) -> int | None:
    """Return how many bytes of voxels a file can stand for at most; None: it names several files of them.

    Raises:
        DataError: The file of its voxels isn't there.
    """
    path = Path(where)
    with quiet(where), path.open("rb") as file:
        head = file.read(1 << 16).decode("latin-1")
    named = _DATA_FILE.search(head)
    size = path.stat().st_size
    if named is not None and named[1].upper() != "LOCAL":
        if named[1].upper().startswith("LIST") or "%" in named[1]:
            return None
        beside = path.parent / named[1]
        if not beside.is_file():
            what = "names a file of its voxels that isn't beside it"
            raise DataError(what, where=where, fix="copy both files to one folder")
        size = beside.stat().st_size
    return size * (MOST_IN_GZIP if _PACKED.search(head) else _AS_TEXT) + (1 << 16)


def _itk_type(name: str, where: str) -> np.dtype[Any]:
    words = name.lower().replace("vector of ", "")
    for text, kind in (("32-bit float", "f4"), ("64-bit float", "f8")):
        if words == text:
            return np.dtype(kind)
    for bits in (8, 16, 32, 64):
        if words.startswith(f"{bits}-bit unsigned"):
            return np.dtype(f"u{bits // 8}")
        if words.startswith(f"{bits}-bit signed"):
            return np.dtype(f"i{bits // 8}")
    raise DataError(f"holds values of the type {name}", where=where, fix="save it with real numbers")


def _itk_grid(size: tuple[int, ...], spacing: Any, origin: Any, direction: Any, where: str) -> VolumeGrid:
    """Return the grid of ITK's LPS coordinates in RAS+."""
    axes = len(size)
    matrix = np.eye(4)
    used = min(axes, 3)
    cosines = np.array(direction, float).reshape(axes, axes)[:used, :used]
    matrix[:used, :used] = cosines * np.array(spacing, float)[:used]
    matrix[:used, 3] = np.array(origin, float)[:used]
    matrix[:2] *= -1
    if not places_voxels(matrix):
        raise no_affine(where)
    shape = (*size[:3], 1)[:3]
    return VolumeGrid((int(shape[0]), int(shape[1]), int(shape[2])), affine_of(matrix))
