"""Without the packages of the extra `medical` pictures work as ever, and each medical file names the extra."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.e2e.conftest import without_packages

MEDICAL = (
    "pydicom",
    "nibabel",
    "SimpleITK",
    "highdicom",
    "tiffslide",
    "zarr",
    "indexed_gzip",
    "gdcm",
    "openjpeg",
)


def _dicom(path: Path) -> None:
    """Write how a DICOM file begins."""
    path.write_bytes(bytes(128) + b"DICM" + b"\2\0\0\0UL\4\0\0\0\0\0" + bytes(64))


def _nifti(path: Path) -> None:
    header = bytearray(352)
    header[:4], header[344:348] = (348).to_bytes(4, "little"), b"n+1\0"
    path.write_bytes(gzip.compress(bytes(header)))


def _nrrd(path: Path) -> None:
    path.write_bytes(b"NRRD0004\ntype: short\ndimension: 3\nsizes: 1 1 1\nencoding: raw\n\n00")


@pytest.mark.slow
def test_pictures_need_no_extra_and_medical_files_name_it(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(3):
            values_HWC = np.random.default_rng(number).integers(0, 255, (32, 32, 3), np.uint8)
            Image.fromarray(values_HWC).save(tmp_path / "pictures" / name / f"{name}{number}.png")
    writers = {"dcm": (_dicom, "pydicom"), "nii.gz": (_nifti, "nibabel"), "nrrd": (_nrrd, "SimpleITK")}
    commands: list[list[object]] = [["data", "compile", tmp_path / "pictures", "--out", tmp_path / "out"]]
    for suffix, (write, _) in writers.items():
        folder = tmp_path / suffix / "images"
        folder.mkdir(parents=True)
        write(folder / f"scan.{suffix}")
        csv = tmp_path / suffix / "labels.csv"
        csv.write_text(f"image,label\nimages/scan.{suffix},a\n")
        commands.append(["data", "compile", csv, "--format", "classes", "--out", tmp_path / f"out-{suffix}"])
    result = without_packages(MEDICAL, *commands)
    assert result.out.count("CODE 0") == 1, result.out + result.err
    assert result.out.count("CODE 2") == 3, result.out + result.err
    for suffix, (_, package) in writers.items():
        assert not (tmp_path / f"out-{suffix}").exists()
        lines = [line for line in result.err.splitlines() if f"scan.{suffix}" in line]
        assert len(lines) == 1, result.err
        assert f"needs {package}" in lines[0]
        assert "pip install 'vitp[medical]'" in lines[0]
