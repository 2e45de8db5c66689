"""Generated volumes of a trunk with exact labels: lungs, liver, spleen, kidneys, bone and lesions.

Not anatomy, but enough of it that every reading can be checked: sides differ (the liver lies right, the spleen left),
front and back differ (the spine lies behind), top and bottom differ (lungs above kidneys), sizes are known in
millimetres, and voxels are longer along z than across.

World coordinates are those of NIfTI: millimetres in RAS+. Shapes: X × Y × Z voxels along the patient's axes; I × J × K
as a file has them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vitp.core.errors import ConfigError
from vitp.scenes.chance import uniform, whole

TRUNK_CLASSES = ("lung", "liver", "spleen", "right kidney", "left kidney", "bone", "lesion")
"""Names of the labels 1, 2, …; 0 is everything else."""

_OPPOSITE = {"R": "L", "A": "P", "S": "I", "L": "R", "P": "A", "I": "S"}
_AXES = "RAS"
_BODY, _AIR = 8, 9
"""Numbers of what has values but no label, in the tables below."""

_HOUNSFIELD = {0: -1000, 1: -820, 2: 105, 3: 120, 4: 180, 5: 180, 6: 650, 7: 25, _BODY: -20, _AIR: -1000}
_RESONANCE = {0: 0, 1: 30, 2: 420, 3: 330, 4: 510, 5: 510, 6: 90, 7: 760, _BODY: 260, _AIR: 0}
_NOISE = {"CT": 18.0, "MR": 22.0}

_ORGANS: tuple[tuple[int, tuple[float, float, float], tuple[float, float, float]], ...] = (
    # Label, centre and half axes: x and y in half widths and depths of the body, z from the bottom (0) to the top (1).
    (1, (0.45, 0.05, 0.86), (0.34, 0.62, 0.36)),
    (1, (-0.45, 0.05, 0.86), (0.34, 0.62, 0.36)),
    (2, (0.38, 0.15, 0.44), (0.44, 0.56, 0.20)),
    (3, (-0.58, -0.20, 0.46), (0.20, 0.34, 0.14)),
    (4, (0.42, -0.48, 0.20), (0.15, 0.22, 0.15)),
    (5, (-0.42, -0.48, 0.23), (0.15, 0.22, 0.15)),
)


@dataclass(frozen=True, eq=False)
class TrunkVolume:
    """One volume of a patient.

    Attributes:
        voxels_IJK: int16, HU of a CT; values without a unit of an MR.
        labels_IJK: uint8, 0 or a number into `classes`, which counts from 1.
        objects_IJK: uint8, the number of the lesion that a voxel belongs to, from 1.
        affine_44: Centre of a voxel → millimetres in RAS+.
        modality: `CT` or `MR`.
        classes: Names of the labels 1, 2, ….
    """

    voxels_IJK: np.ndarray
    labels_IJK: np.ndarray
    objects_IJK: np.ndarray
    affine_44: np.ndarray
    modality: str = "CT"
    classes: tuple[str, ...] = TRUNK_CLASSES

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres from one voxel to the next along i, j and k."""
        lengths = np.linalg.norm(self.affine_44[:3, :3], axis=0)
        return float(lengths[0]), float(lengths[1]), float(lengths[2])

    def millilitres(self, name: str) -> float:
        """Return the volume of all voxels of a class."""
        count = np.count_nonzero(self.labels_IJK == self.classes.index(name) + 1)
        return float(count * math.prod(self.spacing) / 1000)


def make_volume(
    seed: int,
    *,
    size: tuple[int, int, int] = (64, 64, 20),
    orientation: str = "LPS",
    tilt: float = 0.0,
    study: int = 0,
    lesions: int | None = None,
    modality: str = "CT",
) -> TrunkVolume:
    """Return a volume of a patient.

    Args:
        seed: Decides on the patient: sizes, spacing, where organs and lesions lie.
        size: Voxels along x (right–left), y (front–back) and z (up–down) of the patient.
        orientation: Where the axes i, j and k of the array go, such as `RAS`, `LPS` or `ASL`.
        tilt: Degrees by which the patient is turned about the world's x axis: an oblique volume.
        study: 0 is the first one of the patient; lesions of later ones are larger, noise and position differ.
        lesions: How many there are; None: from 0 to 3.
        modality: `CT` or `MR`.

    Raises:
        ConfigError: There is no such orientation or modality.
    """
    if modality not in _NOISE:
        raise ConfigError(f"is {modality!r}", where="modality", fix="use CT or MR")
    # The first draws the patient, who is the same in every study; the second what a study draws anew.
    rng, drawn = np.random.default_rng((seed, 0)), np.random.default_rng((seed, 1, study))
    widths = uniform(rng, 340, 420), uniform(rng, 260, 320), size[2] * uniform(rng, 4.0, 9.0)
    spacing_3 = np.array(widths) / size
    labels_XYZ, body_XYZ = _organs(rng, size)
    count = whole(rng, 0, 3) if lesions is None else lesions
    objects_XYZ = _lesions(rng, labels_XYZ, spacing_3, count, 1.0 + 0.3 * study)
    labels_XYZ[objects_XYZ > 0] = TRUNK_CLASSES.index("lesion") + 1
    tissue_XYZ = np.where((labels_XYZ == 0) & body_XYZ, _BODY, labels_XYZ)
    voxels_XYZ = _values(drawn, tissue_XYZ, modality)
    matrix_44 = np.diag([*spacing_3, 1.0])
    matrix_44[:3, 3] = [uniform(drawn, -250, 50), uniform(drawn, -250, 50), uniform(drawn, -900, 300)]
    return _turned((voxels_XYZ, labels_XYZ, objects_XYZ), _tilted(matrix_44, tilt), orientation, modality)


def _organs(rng: np.random.Generator, size: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels (X, Y, Z) uint8 without lesions, and where the body is."""
    x_X, y_Y, z_Z = ((np.arange(count) + 0.5) / count for count in size)
    # The body fills most of the picture across, and all slices.
    wide, deep = uniform(rng, 0.80, 0.92), uniform(rng, 0.74, 0.90)
    x_X11 = ((2 * x_X - 1) / wide)[:, None, None]
    y_1Y1 = ((2 * y_Y - 1) / deep)[None, :, None]
    z_11Z = z_Z[None, None, :]
    labels_XYZ = np.zeros(size, np.uint8)
    body_XYZ = np.broadcast_to(x_X11**2 + y_1Y1**2 <= 1, size)

    def ellipsoid(centre: tuple[float, ...], half: tuple[float, ...]) -> np.ndarray:
        moved = [value + uniform(rng, -0.03, 0.03) for value in centre]
        grown = [value * uniform(rng, 0.9, 1.1) for value in half]
        axes = zip((x_X11, y_1Y1, z_11Z), moved, grown, strict=True)
        x, y, z = (((axis - middle) / radius) ** 2 for axis, middle, radius in axes)
        return np.asarray(x + y + z <= 1)

    for label, centre, half in _ORGANS:
        labels_XYZ[ellipsoid(centre, half) & (labels_XYZ == 0) & body_XYZ] = label
    # The spine runs through all slices, behind; ribs would need a finer grid than tests have.
    spine_XY1 = ((x_X11 / 0.11) ** 2 + ((y_1Y1 + 0.72) / 0.15) ** 2) <= 1
    labels_XYZ[np.broadcast_to(spine_XY1, size)] = TRUNK_CLASSES.index("bone") + 1
    return labels_XYZ, body_XYZ


def _lesions(
    rng: np.random.Generator, labels_XYZ: np.ndarray, spacing_3: np.ndarray, count: int, growth: float
) -> np.ndarray:
    """Return the number of the lesion (X, Y, Z) uint8 of each voxel: balls in lungs or liver, or what of them is."""
    hosts_XYZ = (labels_XYZ == 1) | (labels_XYZ == 2)
    objects_XYZ = np.zeros(labels_XYZ.shape, np.uint8)
    within_N3 = np.argwhere(hosts_XYZ)
    at = [(np.arange(n) * step) for n, step in zip(labels_XYZ.shape, spacing_3, strict=True)]
    # Never smaller than a voxel, else a lesion of a coarse grid would have none.
    least = 0.75 * float(spacing_3.max())
    for number in range(1, count + 1):
        centre_3 = within_N3[whole(rng, 0, len(within_N3) - 1)] * spacing_3
        radius = max(uniform(rng, 8, 20) * growth, least)
        x, y, z = ((axis - middle) ** 2 for axis, middle in zip(at, centre_3, strict=True))
        ball_XYZ = x[:, None, None] + y[None, :, None] + z[None, None, :] <= radius**2
        objects_XYZ[ball_XYZ & hosts_XYZ & (objects_XYZ == 0)] = number
    return objects_XYZ


def _values(rng: np.random.Generator, tissue_XYZ: np.ndarray, modality: str) -> np.ndarray:
    """Return what a scanner measures: int16, with noise; an MR is brighter on one side and has no fixed scale."""
    table = _HOUNSFIELD if modality == "CT" else _RESONANCE
    values = np.array([table[number] for number in range(_AIR + 1)], np.float64)[tissue_XYZ]
    noise = rng.normal(0.0, _NOISE[modality], tissue_XYZ.shape)
    if modality == "CT":
        return np.asarray(np.clip(np.rint(values + noise), -1024, 3071), np.int16)
    slope_X = np.linspace(0.8, 1.2, tissue_XYZ.shape[0])[:, None, None] * uniform(rng, 0.5, 3.0)
    return np.asarray(np.rint(np.abs(values + noise) * slope_X), np.int16)


def _tilted(matrix_44: np.ndarray, degrees: float) -> np.ndarray:
    angle = math.radians(degrees)
    turn_33 = np.array([
        [1, 0, 0],
        [0, math.cos(angle), -math.sin(angle)],
        [0, math.sin(angle), math.cos(angle)],
    ])  # fmt: skip
    turned_44 = matrix_44.copy()
    turned_44[:3, :3] = turn_33 @ matrix_44[:3, :3]
    return turned_44


def _turned(
    arrays_XYZ: tuple[np.ndarray, np.ndarray, np.ndarray],
    affine_44: np.ndarray,
    orientation: str,
    modality: str,
) -> TrunkVolume:
    """Return the volume with its axes in another order and direction, each voxel where it was in the world.

    Raises:
        ConfigError: There is no such orientation.
    """
    letters = [letter if letter in _AXES else _OPPOSITE.get(letter, "") for letter in orientation.upper()]
    if sorted(letters) != sorted(_AXES):
        fix = "name three of R or L, A or P, S or I, such as LPS"
        raise ConfigError(f"is {orientation!r}", where="orientation", fix=fix)
    axes = [_AXES.index(letter) for letter in letters]
    back = [letter not in _AXES for letter in orientation.upper()]
    cut = tuple(slice(None, None, -1) if turned else slice(None) for turned in back)
    placed_44 = np.eye(4)
    placed_44[:3, 3] = affine_44[:3, 3]
    for new, (old, turned) in enumerate(zip(axes, back, strict=True)):
        step_3 = affine_44[:3, old]
        placed_44[:3, new] = -step_3 if turned else step_3
        if turned:
            # The first voxel of a reversed axis is the one that was its last.
            placed_44[:3, 3] += step_3 * (arrays_XYZ[0].shape[old] - 1)
    voxels, labels, objects = (np.ascontiguousarray(array.transpose(axes)[cut]) for array in arrays_XYZ)
    return TrunkVolume(voxels, labels, objects, placed_44, modality)
