"""Small volumes with masks in folders, and what was read of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitp.data.formats import read_labels
from vitp.records.labels import LabelledImage, LabelledSet

nibabel = pytest.importorskip("nibabel")
pytest.importorskip("SimpleITK")
pytest.importorskip("pydicom")


SHAPE = (14, 12, 6)
RAS = np.diag([2.0, 2.0, 5.0, 1.0])


def nifti(path: Path, values: np.ndarray, affine: np.ndarray = RAS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return path


def scan(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1000, shape).astype(np.int16)


def labels(seed: int = 0, shape: tuple[int, int, int] = SHAPE, top: int = 3) -> np.ndarray:
    """Three labels, nothing in the first and the last slice, and no two slices alike."""
    found = np.random.default_rng(100 + seed).integers(0, top + 1, shape).astype(np.uint8)
    found[:, :, 0] = found[:, :, -1] = 0
    return found


def nnunet(root: Path, cases: int = 6, head: dict[str, Any] | None = None, **kinds: Any) -> Path:
    for number in range(cases):
        nifti(root / f"imagesTr/case_{number:03d}_0000.nii.gz", scan(number))
        nifti(root / f"labelsTr/case_{number:03d}.nii.gz", labels(number))
    told = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "spleen": 2, "kidney": 3}}
    (root / "dataset.json").write_text(json.dumps({**told, **(head or {}), **kinds}))
    return root


def read(root: Path, **options: Any) -> LabelledSet:
    return read_labels("auto", root, **{"plane": "axial", "background": 10, **options})


def by_id(found: LabelledSet) -> dict[str, LabelledImage]:
    return {item.id: item for item in found.items}


def axial(array_RAS: np.ndarray, number: int) -> np.ndarray:
    """Return a slice of an array in RAS+ as radiologists see it: front up, the patient's right on the left."""
    return array_RAS[::-1, ::-1, number].T


def said(found: LabelledSet, begin: str) -> str:
    return next(line for line in found.understood if line.startswith(begin))
