"""Masks of slices that no file holds as they are: on another grid, in several files, as segments or contours.

A mask on its image's own slices is a plain `MaskFile` with the address of its slice.

Shapes: H × W pixels of a slice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np

from vitp.core.errors import DataError
from vitp.io.parts import Window
from vitp.io.volume_labels import HeldLabels, SlicePlace, held_labels
from vitp.io.volumes import open_volume
from vitp.records.labels import IGNORE


@dataclass(frozen=True, slots=True)
class VolumeLayer:
    """Labels of one file that are painted onto a mask.

    Attributes:
        path: Path of the file.
        values: (value, class index) pairs. 0 leaves what is below unless it is among them. Others are unknown,
            where several are named; where only one is, they are none of this layer's.
        band: Band of a volume that has several.
        segment: Segment of a DICOM segmentation or structure set.
        reference: The series that contours were drawn on.
    """

    path: str
    values: tuple[tuple[int, int], ...]
    band: int = 0
    segment: int | None = None
    reference: str = ""

    def to_json(self, root: Path) -> dict[str, Any]:
        """Return the layer as plain values, its paths relative to `root` where they lie in it."""
        row: dict[str, Any] = {
            "path": _within(self.path, root),
            "values": [list(pair) for pair in self.values],
        }
        if self.band:
            row["band"] = self.band
        if self.segment is not None:
            row["segment"] = self.segment
        if self.reference:
            row["reference"] = _within(self.reference, root)
        return row

    @classmethod
    def from_json(cls, row: Mapping[str, Any], root: Path) -> Self:
        """Return what `to_json` wrote down."""
        pairs = tuple((int(value), int(index)) for value, index in row["values"])
        segment = None if row.get("segment") is None else int(row["segment"])
        reference = str(root / row["reference"]) if row.get("reference") else ""
        return cls(str(root / row["path"]), pairs, int(row.get("band", 0)), segment, reference)


@lru_cache(maxsize=4)
def painted(layers: tuple[VolumeLayer, ...]) -> HeldLabels:
    """Return the class of each voxel, uint8, of layers on one grid; those of the last volumes stay in memory.

    Raises:
        DataError: A file can't be read, or lies on another grid than the first one.
    """
    canvas: np.ndarray | None = None
    first: HeldLabels | None = None
    for layer in layers:
        held = held_labels(layer.path, layer.band, layer.segment, layer.reference)
        if first is None or canvas is None:
            first, canvas = held, np.zeros(held.labels_IJK.shape, np.uint8)
        elif not held.grid.same_as(first.grid):
            what = f"lies on another grid than {Path(layers[0].path).name}, which labels the same image"
            raise DataError(what, where=layer.path, fix="resample it onto the grid of the image")
        canvas[held.labels_IJK != 0] = IGNORE if len(layer.values) != 1 else canvas[held.labels_IJK != 0]
        for value, index in layer.values:
            canvas[held.labels_IJK == value] = index
    assert first is not None and canvas is not None
    canvas.setflags(write=False)
    return replace(first, labels_IJK=canvas)


@dataclass(frozen=True, slots=True)
class VolumeMask:
    """Class of each pixel of a slice, from labels that lie in the patient as its image does.

    Each pixel has the label of the nearest voxel. Of several layers a later one is painted over earlier ones.

    Attributes:
        layers: In the order in which they are painted.
        place: Place of the slice; None: the layers are the image's own voxels, of slice `number` in `plane`.
        number, plane: Number and plane of the slice.
        window: The part that counts; None for all.
        turned: Address of a volume in whose place the voxels are taken to lie, in their order; "": where they say.
    """

    layers: tuple[VolumeLayer, ...]
    place: SlicePlace | None
    number: int
    plane: str
    window: Window | None = None
    turned: str = ""

    def __call__(self) -> np.ndarray:
        """Return the mask (H, W) uint8.

        Raises:
            DataError: A file is missing or damaged.
        """
        held = painted(self.layers)
        if self.place is None:
            grid = open_volume(self.turned).grid if self.turned else held.grid
            labels_HW = grid.as_slices(held.labels_IJK, self.plane)[self.number]
            x1, y1, x2, y2 = self.window or (0, 0, labels_HW.shape[1], labels_HW.shape[0])
            return np.array(labels_HW[y1:y2, x1:x2])
        found_HW, inside_HW = held.at(self.place.world(self.window))
        found_HW[~inside_HW] = 0 if held.sparse else IGNORE
        return found_HW

    def windowed(self, window: Window) -> VolumeMask:
        """Return the mask of a part of the slice, in pixels of this one."""
        x, y = self.window[:2] if self.window else (0, 0)
        return replace(self, window=(window[0] + x, window[1] + y, window[2] + x, window[3] + y))


def volume_mask_to_json(mask: VolumeMask, root: Path) -> dict[str, Any]:
    """Return a mask as plain values."""
    row: dict[str, Any] = {
        "volumes": [layer.to_json(root) for layer in mask.layers],
        "slice": mask.number,
        "plane": mask.plane,
    }
    if mask.place is not None:
        place = mask.place
        row["place"] = [*place.origin, *place.down, *place.right, *place.size]
    if mask.window is not None:
        row["window"] = list(mask.window)
    if mask.turned:
        row["turned"] = _within(mask.turned, root)
    return row


def window_from_json(row: Mapping[str, Any]) -> Window | None:
    """Return the window of a mask's description; None: the whole mask."""
    if "window" not in row:
        return None
    x1, y1, x2, y2 = (int(value) for value in row["window"])
    return x1, y1, x2, y2


def volume_mask_from_json(row: Mapping[str, Any], root: Path) -> VolumeMask:
    """Return what `volume_mask_to_json` wrote down.

    Raises:
        KeyError, TypeError, ValueError: The JSON isn't of that form.
    """
    place = None
    if "place" in row:
        numbers = [float(value) for value in row["place"]]
        if len(numbers) != 11:
            raise ValueError("place has other than 11 numbers")
        place = SlicePlace(
            _three(numbers[:3]),
            _three(numbers[3:6]),
            _three(numbers[6:9]),
            (int(numbers[9]), int(numbers[10])),
        )
    window = window_from_json(row)
    layers = tuple(VolumeLayer.from_json(layer, root) for layer in row["volumes"])
    if not layers:
        raise ValueError("a mask has no layers")
    turned = str(root / row["turned"]) if row.get("turned") else ""
    return VolumeMask(layers, place, int(row["slice"]), str(row["plane"]), window, turned)


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    x, y, z = values
    return x, y, z


def _within(path: str, root: Path) -> str:
    return Path(path).relative_to(root).as_posix() if Path(path).is_relative_to(root) else path
