"""Labels of whole volumes: numbers, DICOM segmentations and contours, and their values at places in the patient.

Shapes: I × J × K voxels as a file has them; H × W pixels of a slice. Places are millimetres in RAS+.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitp.core.errors import DataError
from vitp.core.extras import need
from vitp.io.dicom_labels import contour_labels, segment_labels
from vitp.io.parts import base_address
from vitp.io.volume_grid import VolumeGrid
from vitp.io.volumes import open_volume

_INSIDE = 0.5
"""Voxels beyond the centre of the outermost one that a volume still covers."""

_SAME = 0.05
"""Voxels by which the slices of two volumes may lie apart that are meant to be the same."""


@dataclass(frozen=True)
class SlicePlace:
    """Where the pixels of a slice lie in the patient.

    Attributes:
        origin: Centre of the first pixel.
        down, right: From a pixel to the next one of its column, and of its row.
        size: Width and height in pixels.
    """

    origin: tuple[float, float, float]
    down: tuple[float, float, float]
    right: tuple[float, float, float]
    size: tuple[int, int]

    @classmethod
    def of(cls, grid: VolumeGrid, number: int, plane: str) -> SlicePlace:
        """Return the place of a slice of a volume.

        Raises:
            DataError: The volume doesn't say where its voxels lie.
        """
        matrix_44 = grid.slices_affine(plane)
        _, height, width = grid.slices_shape(plane)
        start_3, down_3, right_3 = (
            matrix_44[:3, 3] + number * matrix_44[:3, 0],
            matrix_44[:3, 1],
            matrix_44[:3, 2],
        )
        return cls(_rounded(start_3), _rounded(down_3), _rounded(right_3), (width, height))

    def world(self, window: tuple[int, int, int, int] | None = None) -> np.ndarray:
        """Return (H, W, 3) millimetres of the pixels of a window; None: of all."""
        x1, y1, x2, y2 = window or (0, 0, *self.size)
        rows_H11 = np.arange(y1, y2)[:, None, None]
        columns_1W1 = np.arange(x1, x2)[None, :, None]
        placed_HW3: np.ndarray = (
            np.array(self.origin) + rows_H11 * np.array(self.down) + columns_1W1 * np.array(self.right)
        )
        return placed_HW3


def _rounded(values_3: np.ndarray) -> tuple[float, float, float]:
    x, y, z = (round(float(value), 6) for value in values_3)
    return x, y, z


def same_slices(one: VolumeGrid, other: VolumeGrid, plane: str) -> bool:
    """Return whether slices of one number are the same place in both volumes, whatever the order of their axes."""
    if one.affine is None or other.affine is None:
        return one.affine is None and other.affine is None and one.shape == other.shape
    if one.slices_shape(plane) != other.slices_shape(plane) or one.spacing is None:
        return False
    ends = np.array([size - 1 for size in one.slices_shape(plane)])
    corners_83 = np.array([[(n >> axis & 1) * ends[axis] for axis in range(3)] for n in range(8)])
    first, second = (grid.slices_affine(plane) for grid in (one, other))
    apart_83 = corners_83 @ (first - second)[:3, :3].T + (first - second)[:3, 3]
    return bool(np.abs(apart_83).max() <= _SAME * min(one.spacing))


@dataclass(frozen=True, eq=False)
class HeldLabels:
    """The labels of a volume in memory.

    Attributes:
        grid: Where its voxels lie.
        labels_IJK: Whole numbers.
        sparse: Beyond its voxels there is nothing; else it isn't known what there is.
    """

    grid: VolumeGrid
    labels_IJK: np.ndarray
    sparse: bool = False

    def at(self, world_HW3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (H, W) labels of the voxels that are nearest to places, and whether there are any."""
        shape = world_HW3.shape[:2]
        back_44 = np.linalg.inv(np.array(self.grid.affine))
        voxels_N3 = world_HW3.reshape(-1, 3) @ back_44[:3, :3].T + back_44[:3, 3]
        limits_3 = np.array(self.grid.shape)
        # A hair more than half a voxel: places at the border aren't lost by rounding.
        inside_N = ((voxels_N3 >= -_INSIDE - 1e-4) & (voxels_N3 <= limits_3 - 1 + _INSIDE + 1e-4)).all(1)
        nearest_N3 = np.clip(np.floor(voxels_N3 + 0.5 - 1e-6).astype(np.int64), 0, limits_3 - 1)
        found_N = self.labels_IJK[nearest_N3[:, 0], nearest_N3[:, 1], nearest_N3[:, 2]]
        return np.asarray(found_N).reshape(shape), np.asarray(inside_N).reshape(shape)


def held_labels(address: str, band: int = 0, segment: int | None = None, reference: str = "") -> HeldLabels:
    """Return all labels of a file.

    Args:
        address: A volume of numbers, or a DICOM segmentation or structure set.
        band: Band of a volume that has several.
        segment: Number of the segment, or of the region of interest, whose voxels are 1.
        reference: The series that contours were drawn on.

    Raises:
        DataError: It can't be read, or its values are no whole numbers.
    """
    if segment is not None and reference:
        grid = open_volume(reference).grid
        return HeldLabels(grid, contour_labels(Path(address), segment, grid), sparse=True)
    if segment is not None:
        grid, labels_IJK = segment_labels(Path(address), segment)
        return HeldLabels(grid, labels_IJK, sparse=True)
    volume = open_volume(address)
    count, height, width = volume.grid.slices_shape("stored")
    layers = [label_values(volume.slice(n, "stored").read_quantity()[0][band], address) for n in range(count)]
    # Slices of the plane "stored" lie along k, their rows along j and their columns along i.
    labels_KJI = np.stack(layers)
    assert labels_KJI.shape == (count, height, width)
    return HeldLabels(volume.grid, labels_KJI.transpose(2, 1, 0), sparse=is_cropped(address))


def is_cropped(address: str) -> bool:
    """Return whether a file holds only the box around its segments, as 3D Slicer writes them."""
    return base_address(address).lower().endswith(".seg.nrrd")


def label_values(values_HW: np.ndarray, where: str) -> np.ndarray:
    """Return labels as whole numbers.

    Raises:
        DataError: They aren't.
    """
    if values_HW.dtype.kind in "iub":
        return values_HW.astype(np.uint8) if values_HW.dtype.kind == "b" else values_HW
    whole_HW = np.rint(values_HW)
    strange = ~np.isfinite(values_HW) | (np.abs(values_HW - whole_HW) > 1e-3)
    if strange.any():
        example = float(values_HW[strange][0])
        raise DataError(
            f"holds labels that are no whole numbers, such as {example:.6g}: probabilities, or a mask that was "
            "interpolated",
            where=where,
            fix="save it with a number for each class (thresholded, or resampled to the nearest voxel)",
        )
    return np.asarray(whole_HW, np.int32)


def header_segments(address: str) -> list[tuple[str, int, int]]:
    """Return name, value and layer of each segment that a file's own header names; none of other files.

    3D Slicer's `.seg.nrrd` names them; segments of one layer don't overlap.
    """
    if not is_cropped(address):
        return []
    texts = _header_texts(base_address(address))
    found = []
    for number in range(len(texts)):
        name = texts.get(f"Segment{number}_Name")
        if name is None:
            break
        value, layer = (
            int(texts.get(f"Segment{number}_{key}", or_))
            for key, or_ in (("LabelValue", "1"), ("Layer", "0"))
        )
        found.append((name.strip(), value, layer))
    return found


def _header_texts(path: str) -> dict[str, str]:
    itk: Any = need("medical", "SimpleITK", path)
    reader = itk.ImageFileReader()
    reader.SetFileName(path)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise DataError("has a header that can't be read", where=path, fix="copy the file again") from error
    return {key: reader.GetMetaData(key) for key in reader.GetMetaDataKeys()}
