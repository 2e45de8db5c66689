"""Where the voxels of a volume lie in the patient, and how its slices are turned to be looked at.

World coordinates are those of NIfTI: millimetres in RAS+, x to the patient's right, y to the front, z up.
A slice is never resampled: the axes of the array are permuted and reversed, so that what was seen of a
slice goes back into exactly the voxels that it came from, whatever the orientation of the file.

| plane | slices count | rows go | columns go |
|---|---|---|---|
| axial | upwards | front to back | from the patient's right to the left |
| coronal | from back to front | down | from the patient's right to the left |
| sagittal | from the patient's right to the left | down | front to back |
| stored | along the last axis of the file | as stored (NIfTI's second axis) | as stored (its first axis) |

This is how radiologists look at them: the patient's right is on the left of the picture.

Shapes: I × J × K voxels as the file has them; N slices of H × W pixels.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from vitp.core.errors import DataError
from vitp.io.parts import PLANES

Affine = tuple[
    tuple[float, float, float, float],
    tuple[float, float, float, float],
    tuple[float, float, float, float],
    tuple[float, float, float, float],
]
"""Voxel i, j, k → millimetres in RAS+, row by row."""

_RIGHT, _FRONT, _UP = 0, 1, 2
_TURNS = {
    # World axis along which slices, rows and columns count; whether they count against it.
    "axial": ((_UP, False), (_FRONT, True), (_RIGHT, True)),
    "coronal": ((_FRONT, False), (_UP, True), (_RIGHT, True)),
    "sagittal": ((_RIGHT, True), (_UP, True), (_FRONT, True)),
}


@dataclass(frozen=True)
class VolumeGrid:
    """The voxels of a volume.

    Attributes:
        shape: I, J, K as `read` of the volume has them.
        affine: Centre of a voxel → millimetres in RAS+. None: the file doesn't say where its voxels lie; then only
            the plane `stored` is known.
        stored_spacing: Millimetres of a voxel along each axis where there is no affine; None: not known either.
    """

    shape: tuple[int, int, int]
    affine: Affine | None = None
    stored_spacing: tuple[float, float, float] | None = None

    @property
    def spacing(self) -> tuple[float, float, float] | None:
        """Millimetres from one voxel to the next along i, j and k."""
        if self.affine is None:
            return self.stored_spacing
        lengths = np.linalg.norm(np.array(self.affine)[:3, :3], axis=0)
        return float(lengths[0]), float(lengths[1]), float(lengths[2])

    @property
    def voxel_ml(self) -> float | None:
        """Millilitres of a voxel; None: its spacing isn't known."""
        if self.affine is not None:
            return float(abs(np.linalg.det(np.array(self.affine)[:3, :3]))) / 1000
        return None if self.stored_spacing is None else float(np.prod(self.stored_spacing)) / 1000

    @property
    def plane(self) -> str:
        """The plane of the slices where none is named: across the widest step, axial where all are alike.

        One slice is itself, however wide its pixels are.
        """
        spacing = self.spacing
        if self.affine is None or spacing is None:
            return "stored"
        if self.shape.count(1) == 1:
            return next(name for name in _TURNS if self._turn(name)[0][0] == self.shape.index(1))
        widest = int(np.argmax(spacing))
        if spacing[widest] <= 1.01 * min(spacing):
            return "axial"
        return next(name for name in _TURNS if self._turn(name)[0][0] == widest)

    def slices_shape(self, plane: str | None = None) -> tuple[int, int, int]:
        """Return N, H, W of the slices in a plane."""
        (slices, rows, columns), _ = self._turn(plane)
        return self.shape[slices], self.shape[rows], self.shape[columns]

    def check_single(self, plane: str, wanted: str) -> None:
        """Do nothing where a plane shows a volume of a single image as that image, or there are several images.

        Args:
            plane: Plane of the slices.
            wanted: Whose slices these are, for the message.

        Raises:
            DataError: In that plane it would be many slices, each a row of pixels.
        """
        if self.affine is None or self.shape.count(1) != 1 or self.slices_shape(plane)[0] == 1:
            return
        what = f"holds one {self.plane} image, {wanted} {plane} slices"
        raise DataError(what, where="volume", fix=f"give a volume, or see it as plane={self.plane}")

    def slice_spacing(self, plane: str | None = None) -> tuple[float, float, float] | None:
        """Return millimetres from one slice to the next, along y and along x; None: not known."""
        spacing = self.spacing
        if spacing is None:
            return None
        (slices, rows, columns), _ = self._turn(plane)
        return spacing[slices], spacing[rows], spacing[columns]

    def as_slices(self, voxels: np.ndarray, plane: str | None = None) -> np.ndarray:
        """Return a view (N, H, W, …) of an array (I, J, K, …): what is written into a slice lies in its voxels.

        Raises:
            DataError: The array has another shape, or the plane isn't known.
        """
        if voxels.shape[:3] != self.shape:
            ours, theirs = ("×".join(map(str, shape)) for shape in (self.shape, voxels.shape[:3]))
            raise DataError(
                f"holds {theirs} voxels; the volume has {ours}", where="volume", fix="give all of them"
            )
        axes, turned = self._turn(plane)
        view = voxels.transpose(*axes, *range(3, voxels.ndim))
        return view[tuple(slice(None, None, -1) if back else slice(None) for back in turned)]

    def from_slices(self, slices: np.ndarray, plane: str | None = None) -> np.ndarray:
        """Return a view (I, J, K, …) of slices (N, H, W, …): the other way round of `as_slices`.

        Raises:
            DataError: The plane isn't known.
        """
        axes, turned = self._turn(plane)
        view = slices[tuple(slice(None, None, -1) if back else slice(None) for back in turned)]
        places = [axes.index(axis) for axis in range(3)]
        return view.transpose(*places, *range(3, slices.ndim))

    def voxels_of(self, pixels_N3: np.ndarray, plane: str | None = None) -> np.ndarray:
        """Return (N, 3) voxels i, j, k of places n, y, x in slices; whole numbers are centres.

        Raises:
            DataError: The plane isn't known.
        """
        axes, turned = self._turn(plane)
        voxels_N3 = np.empty(pixels_N3.shape)
        for column, (axis, back) in enumerate(zip(axes, turned, strict=True)):
            place_N = pixels_N3[:, column]
            voxels_N3[:, axis] = self.shape[axis] - 1 - place_N if back else place_N
        return voxels_N3

    def layer(self, number: int, plane: str | None = None) -> tuple[int, int]:
        """Return the axis across which a slice lies, and its place along it, both of the array I × J × K."""
        (axis, *_), (back, *_) = self._turn(plane)
        return axis, self.shape[axis] - 1 - number if back else number

    def as_slice(self, slab: np.ndarray, plane: str | None = None) -> np.ndarray:
        """Return a view (H, W, …) of one layer of the array, which holds the other two axes in their order."""
        (_, rows, columns), (_, *turned) = self._turn(plane)
        view = slab if rows < columns else slab.swapaxes(0, 1)
        return view[tuple(slice(None, None, -1) if back else slice(None) for back in turned)]

    def same_as(self, other: VolumeGrid) -> bool:
        """Return whether two have the same voxels: no corner lies further apart than a hundredth of a voxel."""
        if self.shape != other.shape or (self.affine is None) != (other.affine is None):
            return False
        if self.affine is None or other.affine is None or self.spacing is None:
            return True
        corners_N3 = np.array(list(itertools.product(*((0, size - 1) for size in self.shape))))
        apart_N3 = np.abs(self.to_world(corners_N3) - other.to_world(corners_N3))
        return bool(apart_N3.max() <= 0.01 * min(self.spacing))

    def slices_affine(self, plane: str | None = None) -> np.ndarray:
        """Return the matrix (4, 4) of slice, row and column → millimetres in RAS+, for the slices of a plane.

        Raises:
            DataError: There is no affine, or the plane isn't known.
        """
        first_3, matrix_44 = np.zeros((1, 3)), np.eye(4)
        axes, turned = self._turn(plane)
        for place, (axis, back) in enumerate(zip(axes, turned, strict=True)):
            step_3 = np.array(self.affine or np.eye(4))[:3, axis]
            matrix_44[:3, place] = -step_3 if back else step_3
            first_3[0, axis] = self.shape[axis] - 1 if back else 0
        matrix_44[:3, 3] = self.to_world(first_3)[0]
        return matrix_44

    def to_world(self, voxels_N3: np.ndarray) -> np.ndarray:
        """Return (N, 3) millimetres in RAS+ of voxels i, j, k (0 is the centre of the first one).

        Raises:
            DataError: There is no affine.
        """
        if self.affine is None:
            raise DataError(
                "doesn't say where its voxels lie", where="volume", fix="give a file with an affine"
            )
        matrix = np.array(self.affine)
        placed_N3: np.ndarray = voxels_N3 @ matrix[:3, :3].T + matrix[:3, 3]
        return placed_N3

    def _turn(self, plane: str | None) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
        """Return which axes are slices, rows and columns, and which of these run backwards in the array."""
        name = self.plane if plane is None else plane
        if name == "stored":
            return (2, 1, 0), (False, False, False)
        if name not in PLANES:
            raise DataError(f"has no plane {name!r}", where="volume", fix=f"name one of {', '.join(PLANES)}")
        if self.affine is None:
            what = f"doesn't say how it lies in the patient, so which slices are {name} isn't known"
            raise DataError(what, where="volume", fix="use plane=stored")
        axis_of, sign_of = self._directions()
        slices, rows, columns = _TURNS[name]
        axes = axis_of[slices[0]], axis_of[rows[0]], axis_of[columns[0]]
        turned = tuple(back != (sign_of[world] < 0) for world, back in (slices, rows, columns))
        return axes, (turned[0], turned[1], turned[2])

    def _directions(self) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Return for each world axis the array's axis that runs along it best, and the sign of its direction."""
        cosines_33 = np.array(self.affine)[:3, :3]
        cosines_33 = cosines_33 / np.maximum(np.linalg.norm(cosines_33, axis=0), 1e-12)
        # All three at once, so that two axes of an oblique volume never take the same direction.
        best = max(
            itertools.permutations(range(3)),
            key=lambda axes: sum(abs(cosines_33[world, axis]) for world, axis in enumerate(axes)),
        )
        return best, tuple(1.0 if cosines_33[world, axis] >= 0 else -1.0 for world, axis in enumerate(best))
