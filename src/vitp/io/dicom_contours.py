"""The contours of a structure set (RTSTRUCT) as voxels of the slices that they are drawn on.

Shapes: I × J × K voxels of an array, J × I pixels of a slice, N points.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from vitp.core.errors import DataError
from vitp.io.volume_grid import VolumeGrid
from vitp.records.regions import rasterise

_ACROSS = 0.5
"""Slices by which the points of one contour may lie beside the slice that it is on."""

_BETWEEN = 0.25
"""Slices by which a contour as a whole may lie beside a slice."""

_ONE_PLANE = 0.1
"""Slices by which contours may lie apart that are of one plane: headers round."""

_OVERLAP = 0.05
"""Share of a contour that another one may overlap, or leave free, where it lies beside it or around it."""

_LEAST_OVERLAP = 4
"""Pixels up to which an overlap is one of rounding."""

_AS_SEGMENTATION = "save the structures as a segmentation (DICOM-SEG or NIfTI) on the grid of the series"


@dataclass(frozen=True)
class Contour:
    """A closed contour: (N, 3) millimetres in RAS+, and whether the file says that overlaps cut each other out."""

    points_N3: np.ndarray
    is_exclusive: bool = False


def closed_contours(region: Any) -> list[Contour]:
    """Return the closed contours of an item of `ROIContourSequence`."""
    found = []
    for contour in region.get("ContourSequence") or ():
        kind = str(contour.get("ContourGeometricType") or "").upper()
        if kind.startswith("CLOSED_PLANAR"):
            points_N3 = np.array(contour.ContourData, float).reshape(-1, 3)
            # DICOM's axes point to the left and the back of the patient, ours to the right and the front.
            found.append(Contour(points_N3 * (-1, -1, 1), kind.endswith("XOR")))
    return found


def outside_of(contours: Sequence[Contour], grid: VolumeGrid) -> int:
    """Return how many contours lie before the first slice of a series, or behind the last one."""
    places = (float(_voxels(one, grid)[:, 2].mean()) for one in contours)
    return sum(not 0 <= round(place) < grid.shape[2] for place in places)


def filled_slices(contours: Sequence[Contour], grid: VolumeGrid, where: str) -> np.ndarray:
    """Return the voxels (I, J, K) whose centres lie within the contours of one region: 1, else 0.

    Args:
        contours: Those of the region.
        grid: That of the series.
        where: For messages.

    Raises:
        DataError: The contours were drawn on other slices, most lie outside of the series, or two overlap in part.
    """
    if grid.affine is None:
        what = "has contours, and its series doesn't say where its voxels lie"
        raise DataError(what, where=where, fix="add the whole series")
    beyond = outside_of(contours, grid)
    if 2 * beyond > len(contours):
        what = f"has {beyond} of {len(contours)} contours outside of its series, which has {grid.shape[2]} slices"
        raise DataError(what, where=where, fix="add the whole series that they were drawn on")
    labels_IJK = np.zeros(grid.shape, np.uint8)
    for k, own in _by_slice(contours, grid, where).items():
        labels_IJK[:, :, k] = _filled(own, grid, f"near slice {k}", where).T
    return labels_IJK


def _voxels(contour: Contour, grid: VolumeGrid) -> np.ndarray:
    back_44 = np.linalg.inv(np.array(grid.affine))
    return np.asarray(contour.points_N3 @ back_44[:3, :3].T + back_44[:3, 3])


def _by_slice(
    contours: Sequence[Contour], grid: VolumeGrid, where: str
) -> dict[int, list[tuple[np.ndarray, bool]]]:
    """Return the contours in pixels of the slices that they lie on.

    Raises:
        DataError: They lie across slices, between them, or on each second one alone.
    """
    found: dict[int, list[tuple[np.ndarray, bool]]] = defaultdict(list)
    planes: dict[int, list[float]] = defaultdict(list)
    for contour in contours:
        voxels_N3 = _voxels(contour, grid)
        place = float(voxels_N3[:, 2].mean())
        k = round(place)
        if np.abs(voxels_N3[:, 2] - k).max() > _ACROSS:
            what = f"has a contour that lies across the slices of its series, near slice {k}"
            raise DataError(what, where=where, fix=_AS_SEGMENTATION)
        if not 0 <= k < grid.shape[2]:
            continue
        planes[k].append(place)
        if abs(place - k) > _BETWEEN or max(planes[k]) - min(planes[k]) > _ONE_PLANE:
            what = f"has contours between the slices of its series, near slice {k}: they were drawn on another one"
            raise DataError(what, where=where, fix=_AS_SEGMENTATION)
        found[k].append(
            (voxels_N3[:, :2] + 0.5, contour.is_exclusive)
        )  # outlines count along the edges of pixels
    step = _even_step(found)
    if step > 1:
        what = f"has contours on slices that are {step} apart, of a region that goes on between them"
        raise DataError(what, where=where, fix=f"interpolate it, and {_AS_SEGMENTATION}")
    return found


def _even_step(by_slice: Mapping[int, Sequence[tuple[np.ndarray, bool]]]) -> int:
    """Return by how many slices the contours of a region follow each other, where three or more do so evenly; else 0.

    Each has to lie over the one before it: others may be several small objects.
    """
    numbers = sorted(by_slice)
    steps = {after - before for before, after in pairwise(numbers)}
    if len(numbers) < 3 or len(steps) > 1:
        return 0
    bounds = []
    for number in numbers:
        points_N2 = np.concatenate([ring_N2 for ring_N2, _ in by_slice[number]])
        bounds.append((points_N2.min(0), points_N2.max(0)))
    over = all(
        (np.maximum(low, below) < np.minimum(high, above)).all()
        for (low, high), (below, above) in pairwise(bounds)
    )
    return steps.pop() if over else 0


def _filled(rings: Sequence[tuple[np.ndarray, bool]], grid: VolumeGrid, place: str, where: str) -> np.ndarray:
    """Return the pixels (J, I) within the contours of a slice.

    One within another cuts a hole, one within a hole is an island; the same one counts once.

    Raises:
        DataError: Two overlap in part: they may add up or cut each other out.
    """
    size = (grid.shape[1], grid.shape[0])
    masks = [np.asarray(rasterise([tuple(ring_N2.ravel().tolist())], size), bool) for ring_N2, _ in rings]
    # CLOSEDPLANAR_XOR, for which the standard itself says how contours go together.
    if any(exclusive for _, exclusive in rings):
        return np.asarray(np.logical_xor.reduce(masks))
    # The largest first, so that all that lies around a contour is drawn before it.
    masks.sort(key=np.count_nonzero, reverse=True)
    filled_JI = np.zeros(size, bool)
    for number, own_JI in enumerate(masks):
        area, around = int(np.count_nonzero(own_JI)), 0
        if any(np.array_equal(own_JI, larger_JI) for larger_JI in masks[:number]):
            continue
        for place_of, larger_JI in enumerate(masks[:number]):
            both = int(np.count_nonzero(own_JI & larger_JI))
            if min(both, area - both) > max(_LEAST_OVERLAP, _OVERLAP * area):
                raise DataError(
                    f"has two contours of one region that overlap in part, {place}: they may add up or cut each other out",
                    where=where,
                    fix=_AS_SEGMENTATION,
                )
            repeated = any(np.array_equal(larger_JI, one) for one in masks[:place_of])
            around += 2 * both > area and not repeated
        filled_JI = filled_JI & ~own_JI if around % 2 else filled_JI | own_JI
    return filled_JI
