"""Volumes that nibabel reads: NIfTI, MGZ, Analyze, MINC, PAR/REC, AFNI, ECAT.

Shapes: I × J × K voxels; a slab is one layer of them, with the bands last.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from vitp.core.errors import DataError
from vitp.core.extras import need
from vitp.io.contract import Band
from vitp.io.volume import Volume
from vitp.io.volume_checks import (
    LARGEST_HELD_BYTES,
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

_MILLIMETRES = {"mm": 1.0, "meter": 1000.0, "micron": 0.001}
_DISAGREE_VOXELS = 0.1
"""How far the two transforms of a NIfTI file may lie apart, in voxels."""


class NibabelVolume(Volume):
    """A file that nibabel reads."""

    def __init__(self, where: str, image: Any, grid: VolumeGrid, bands: Sequence[Band], kind: Any) -> None:
        super().__init__(where, grid, bands, kind)
        self._axes = len(image.shape)
        self._image, self._proxy = image, _unscaled(image)
        self._suffix = Path(where).suffix.lower()
        self._bytes = math.prod(image.shape) * self.dtype.itemsize

    def _slab(self, axis: int, index: int) -> np.ndarray:
        cut: list[Any] = [slice(None)] * self._axes
        if axis < self._axes:
            cut[axis] = index
        with quiet(self.where):
            if self._voxels is None and self._needs_all(axis):
                self._voxels = np.asanyarray(self._proxy)
            stored = np.asanyarray((self._proxy if self._voxels is None else self._voxels)[tuple(cut)])
        if stored.dtype.names:
            stored = np.stack([stored[name] for name in stored.dtype.names[:3]], axis=-1)
        sizes = [size for place, size in enumerate(self.grid.shape) if place != axis]
        return np.asarray(stored.reshape(*sizes, len(self.bands)))

    def _needs_all(self, axis: int) -> bool:
        """Return whether one layer takes as long as all do: layers of a compressed file that aren't in one piece."""
        if self._suffix == ".bz2":
            return True
        across = axis != 2 or self._axes > 3
        return across and self._suffix in (".gz", ".mgz") and self._bytes <= LARGEST_HELD_BYTES

    def _after_fork(self) -> None:
        with quiet(self.where):
            # What is open is shared with the parent process, the place in the file included.
            self._image = need("medical", "nibabel", self.where).load(self.where)
            self._proxy = _unscaled(self._image)


def _unscaled(image: Any) -> Any:
    """Return what gives the stored values of an image by parts; of kinds that scale each layer, the scaled ones."""
    proxy_class = need("medical", "nibabel", "volume").arrayproxy.ArrayProxy
    proxy = image.dataobj
    if type(proxy) is not proxy_class:
        return proxy
    spec = proxy.shape, proxy.dtype, proxy.offset, 1.0, 0.0
    return proxy_class(proxy.file_like, spec, order=proxy.order)


def open_with_nibabel(base: str, series: str | None = None) -> Volume:
    """Open NIfTI, MGZ, Analyze, MINC, PAR/REC, AFNI or ECAT.

    Raises:
        DataError: As `vitp.io.volumes.open_volume`.
    """
    no_series(series, base)
    nibabel = need("medical", "nibabel", base)
    with quiet(base, "can't be read: it is damaged, or a kind that nibabel doesn't read"):
        image = nibabel.load(base)
        if not isinstance(image, nibabel.spatialimages.SpatialImage) or isinstance(
            image, nibabel.Cifti2Image
        ):
            raise DataError("holds surfaces or matrices, no volume", where=base, fix="name a file of voxels")
        shape = tuple(int(size) for size in image.shape)
        check_shape(shape, base)
        if isinstance(image, nibabel.Minc1Image) and len(shape) > 3:
            what = "holds several volumes in MINC's order of axes, which isn't read"
            raise DataError(what, where=base, fix="save each as a file of its own (mincreshape, mnc2nii)")
        proxy = _unscaled(image)
        raw = proxy is not image.dataobj
        # Which type scaled values come in, only a value tells.
        kind = proxy.dtype if raw else np.asanyarray(proxy[(0,) * len(shape)]).dtype
        _check_length(image, proxy, base)
    colours = kind.names is not None
    if colours:
        kind = np.dtype(np.uint8)
    grid, notes, findings = _nifti_grid(image, shape, base)
    scale, offset = _scale_of(image) if raw else (1.0, 0.0)
    count = math.prod(shape[3:])
    names = ("red", "green", "blue") if colours and count == 1 else tuple(str(n + 1) for n in range(count))
    if colours and count > 1:
        raise DataError("holds several colour volumes", where=base, fix="save each as a file of its own")
    volume = NibabelVolume(
        base, image, grid, [Band(name, scale=scale, offset=offset) for name in names], _own_type(kind, base)
    )
    volume.is_picture = colours
    if not raw:
        notes.append(f"its values come scaled, as nibabel gives those of {type(image).__name__}")
    if len(shape) > 3 and count > 1:
        notes.append(f"its {count} volumes are bands, 1 to {count}")
    return as_one_file(volume, notes, findings)


def _check_length(image: Any, proxy: Any, where: str) -> None:
    """Refuse a file that can't hold what it says, before anything is decoded."""
    name = getattr(proxy, "file_like", None)
    if not isinstance(name, (str, Path)):
        return
    path = Path(name)
    size = path.stat().st_size
    wanted = math.prod(image.shape) * proxy.dtype.itemsize + getattr(proxy, "offset", 0)
    if path.suffix.lower() in (".gz", ".mgz"):
        size = size * MOST_IN_GZIP + (1 << 16)
    elif path.suffix.lower() not in ("", ".nii", ".img", ".mgh", ".hdr"):
        return
    check_held(wanted, size, where)


def _own_type(kind: Any, where: str) -> np.dtype[Any]:
    kind = np.dtype(kind)
    if kind.kind not in "iufb":
        what = f"holds values of the type {kind}, which is none of an image"
        raise DataError(what, where=where, fix="save it with real numbers (int16 or float32)")
    return np.dtype(np.float64) if kind.itemsize > 8 else kind.newbyteorder("=")


def _scale_of(image: Any) -> tuple[float, float]:
    """Return scale and offset of a file; those that aren't numbers stand for none, as NIfTI has it."""
    scale, offset = (
        float(np.asarray(value).ravel()[0]) for value in (image.dataobj.slope, image.dataobj.inter)
    )
    if not math.isfinite(scale) or scale == 0:
        return 1.0, 0.0
    return scale, offset if math.isfinite(offset) else 0.0


def _nifti_grid(image: Any, shape: tuple[int, ...], where: str) -> tuple[VolumeGrid, list[str], list[str]]:
    """Return grid, notes and findings of a file that nibabel reads."""
    nibabel = need("medical", "nibabel", where)
    sizes = (shape[0], shape[1], shape[2] if len(shape) > 2 else 1)
    notes: list[str] = []
    findings: list[str] = []
    factor = 1.0
    zooms = [float(zoom) for zoom in image.header.get_zooms()[:3]]
    if isinstance(image, nibabel.Nifti1Pair):
        factor = _unit(image, findings)
        matrix = _nifti_affine(image, where, findings)
    elif (isinstance(image, nibabel.MGHImage) and not int(image.header["goodRASFlag"])) or (
        isinstance(image, nibabel.AnalyzeImage) and not Path(where).with_suffix(".mat").exists()
    ):
        # For these nibabel makes a matrix up.
        matrix = None
    else:
        matrix = np.asarray(image.affine, float)
        if not places_voxels(matrix):
            raise no_affine(where)
    if matrix is None:
        notes.append(NOT_PLACED)
        usable = len(zooms) == 3 and all(math.isfinite(zoom) and zoom > 0 for zoom in zooms)
        spacing = (zooms[0] * factor, zooms[1] * factor, zooms[2] * factor) if usable else None
        return VolumeGrid(sizes, None, spacing), notes, findings
    scaled = matrix.copy()
    scaled[:3] *= factor
    return VolumeGrid(sizes, affine_of(scaled)), notes, findings


def _unit(image: Any, findings: list[str]) -> float:
    """Return millimetres of the unit of a NIfTI file."""
    try:
        unit = image.header.get_xyzt_units()[0]
    except (KeyError, ValueError):
        unit = "unknown"
    if unit not in _MILLIMETRES:
        findings.append("doesn't say in which unit its voxels are measured; they are taken for millimetres")
    elif unit != "mm":
        own = {"meter": "metres", "micron": "micrometres"}[unit]
        findings.append(f"measures its voxels in {own}, which are converted to millimetres")
    return _MILLIMETRES.get(unit, 1.0)


def _nifti_affine(image: Any, where: str, findings: list[str]) -> np.ndarray | None:
    """Return the sform, else the qform; None: the file has neither."""
    found: dict[str, np.ndarray] = {}
    coded = []
    for name in ("sform", "qform"):
        if int(image.header[f"{name}_code"]) <= 0:
            continue
        coded.append(name)
        with contextlib.suppress(Exception):
            matrix = np.asarray(getattr(image.header, f"get_{name}")(), float)
            if places_voxels(matrix):
                found[name] = matrix
    if coded and not found:
        raise no_affine(where)
    lost = [name for name in coded if name not in found]
    if lost:
        findings.append(f"has a {lost[0]} that places no voxels; the {next(iter(found))} is used")
    if len(found) == 2:
        # All eight corners: axes that are only exchanged agree in the first and the last one of a cube.
        ends = [
            np.array([*corner, 1]) for corner in product(*((0, size - 1) for size in (*image.shape, 1)[:3]))
        ]
        step = np.linalg.norm(found["sform"][:3, :3], axis=0).min()
        apart = max(float(np.linalg.norm((found["sform"] - found["qform"]) @ end)) for end in ends)
        if apart > _DISAGREE_VOXELS * step:
            findings.append(
                f"has an sform and a qform that lie up to {apart:.3g} units apart; the sform is used"
            )
    return next(iter(found.values()), None)
