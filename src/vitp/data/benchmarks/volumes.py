"""NIfTI volumes → slices as PNG files: resumable case by case.

    OUT/<case>/0042.png         the slice, grey or three modalities as red, green and blue
    OUT/<case>/0042_mask.png    its label values, where the case is labelled
    OUT/<case>/slices.json      which slices were kept; written last, so it stands for a complete case

Shapes: X × Y × Z voxels, H × W pixels of a slice, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitp.core import files
from vitp.core.errors import ConfigError, DataError
from vitp.core.reading import parse_json, read_text
from vitp.data.benchmarks.base import Benchmark, Reading, Values

Levels = Callable[[np.ndarray], np.ndarray]
"""Maps a volume's values to 0..255, float; sees the whole volume, so that its slices share one scale."""

_DONE = "slices.json"


@dataclass(frozen=True)
class Case:
    """One patient's volumes.

    Attributes:
        name: Folder of its slices, and group of its images.
        volumes: One file (grey), or three (red, green, blue) of the same grid.
        mask: File with the label values; None: not labelled.
        split: Official split; None where there is none.
    """

    name: str
    volumes: tuple[Path, ...]
    mask: Path | None
    split: str | None


def ct_window(low: float, high: float) -> Levels:
    """Return levels of a CT window in Hounsfield units: `low` and below is black, `high` and above white."""

    def levels(values_XYZ: np.ndarray) -> np.ndarray:
        return np.clip((values_XYZ - low) * (255.0 / (high - low)), 0, 255)

    return levels


def mri_levels(values_XYZ: np.ndarray) -> np.ndarray:
    """Return levels between the 0.5th and the 99.5th percentile of what isn't 0: MRI has no unit."""
    inside = values_XYZ[values_XYZ != 0]
    if not inside.size:
        return np.zeros_like(values_XYZ)
    low, high = np.percentile(inside, (0.5, 99.5))
    if high <= low:
        return np.where(values_XYZ != 0, 255.0, 0.0)
    return np.where(values_XYZ != 0, np.clip((values_XYZ - low) * (255.0 / (high - low)), 0, 255), 0.0)


def load_volume(path: Path) -> np.ndarray:
    """Return a NIfTI file's values (X, Y, Z) float32, turned so that x grows to the right, y to the front, z upwards.

    Raises:
        ConfigError: nibabel isn't installed.
        DataError: The file can't be read or isn't a volume.
    """
    try:
        # nibabel belongs to the extra "medical": a plain installation doesn't have it.
        import nibabel
    except ImportError as error:
        raise ConfigError(
            "volumes need nibabel, which isn't installed",
            where=str(path),
            fix="install it with: pip install 'vitp[medical]'",
        ) from error
    again = "download it again"
    try:
        closest: Any = nibabel.as_closest_canonical  # nibabel has no types
        image = closest(nibabel.load(path))
    except FileNotFoundError as error:
        raise DataError("is missing", where=str(path), fix="unpack the download again") from error
    except (OSError, EOFError, nibabel.filebasedimages.ImageFileError) as error:
        raise DataError(f"is not a NIfTI volume ({error})", where=str(path), fix=again) from error
    try:
        values = np.asarray(image.dataobj, dtype=np.float32)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"is damaged ({error})", where=str(path), fix=again) from error
    if values.ndim != 3:
        raise DataError(f"has {values.ndim} dimensions, not 3", where=str(path), fix="give one volume a file")
    return values


def axial(values_XYZ: np.ndarray, index: int) -> np.ndarray:
    """Return slice `index` (H, W) as radiologists look at it: front up, the patient's right on the left."""
    return values_XYZ[::-1, ::-1, index].T


def slice_case(case: Case, out: Path, levels: Levels, *, drop_blank: bool) -> list[int]:
    """Write the axial slices of a case under `out/<case>`, unless they are there, and return their numbers.

    With `drop_blank`, slices in which every pixel is the same are left out.

    Raises:
        DataError: A volume can't be read, or the volumes differ in shape.
        ConfigError: nibabel isn't installed.
    """
    folder = out / case.name
    if (kept := _done(folder, case)) is not None:
        return kept
    volumes = [levels(load_volume(path)) for path in case.volumes]
    mask = load_volume(case.mask) if case.mask is not None else None
    shape = volumes[0].shape
    for path, values in zip((*case.volumes, case.mask), (*volumes, mask), strict=True):
        if values is not None and values.shape != shape:
            ours, first = ("×".join(map(str, size)) for size in (values.shape, shape))
            what = f"has {ours} voxels, {case.volumes[0].name} {first}"
            raise DataError(what, where=str(path), fix="download the case again")
    kept = []
    for index in range(shape[2]):
        planes = [np.rint(axial(values, index)).astype(np.uint8) for values in volumes]
        if drop_blank and all(plane.min() == plane.max() for plane in planes):
            continue
        _save(planes[0] if len(planes) == 1 else np.stack(planes, axis=-1), _slice_path(folder, index))
        if mask is not None:
            _save(axial(mask, index).astype(np.uint8), _mask_path(folder, index))
        kept.append(index)
    files.write_json(folder / _DONE, {"slices": kept})
    return kept


def _slice_path(folder: Path, index: int) -> Path:
    return folder / f"{index:04d}.png"


def _mask_path(folder: Path, index: int) -> Path:
    return folder / f"{index:04d}_mask.png"


def _done(folder: Path, case: Case) -> list[int] | None:
    """Return the slices of a case that was finished after its volumes were last changed."""
    record = folder / _DONE
    sources = [path for path in (*case.volumes, case.mask) if path is not None]
    try:
        if record.stat().st_mtime < max(path.stat().st_mtime for path in sources):
            return None
        return [int(index) for index in parse_json(read_text(record))["slices"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _save(pixels: np.ndarray, path: Path) -> None:
    with files.atomic_path(path) as temporary:
        Image.fromarray(np.ascontiguousarray(pixels)).save(temporary, format="PNG")


def add_slices(
    reading: Reading,
    cases: Sequence[Case],
    out: Path,
    levels: Levels,
    values: Values,
    *,
    drop_blank: bool = False,
    progress: Callable[[], None] | None = None,
) -> None:
    """Cut cases into slices under `out` and add them to a reading; the slices of a case are one group.

    `values` are (label value, class index) pairs; `progress` is called after each case; the rest as `slice_case`.
    """
    reading.builder.root = out  # ids and findings name the slices, not the volumes
    for case in cases:
        folder = out / case.name
        for index in slice_case(case, out, levels, drop_blank=drop_blank):
            mask = _mask_path(folder, index) if case.mask is not None else None
            reading.add(_slice_path(folder, index), case.split, mask, values, case.name)
        if progress is not None:
            progress()


def slices_folder(slices: str, facts: Benchmark, root: Path) -> Path:
    """Return the folder that the option `slices` names.

    Raises:
        ConfigError: It isn't given.
    """
    if not slices:
        raise ConfigError(
            f"{facts.title} holds volumes, which are cut into slices before they are used",
            where=str(root),
            fix=f"run `vitp data prepare {facts.name} --root {root} --out PREPARED` and use PREPARED",
        )
    return Path(slices)
