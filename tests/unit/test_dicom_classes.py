"""Folders of DICOM files as classes: files of equal names, slices of several patients, one series a class."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest

from tests.volume_files import affine, dicom_image, save_dicom, voxels, write_series
from vitp.core.errors import DataError
from vitp.data.formats import read_labels

CLASSES = ("covid", "healthy")


def _slice(path: Path, patient: str, place: int = 0) -> None:
    rng = np.random.default_rng(zlib.crc32(str(path).encode()))
    pixels_HW = rng.integers(0, 900, (16, 16)).astype(np.int16)
    of = {"SeriesInstanceUID": f"1.2.{patient}", "StudyInstanceUID": f"1.3.{patient}", "PatientID": patient}
    where = {"ImagePositionPatient": [0, 0, place], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
    save_dicom(dicom_image(pixels_HW, PixelSpacing=[1, 1], InstanceNumber=place, **of, **where), path)


def test_files_of_equal_names_are_of_other_patients(tmp_path: Path) -> None:
    for number, name in enumerate(CLASSES):
        for k in range(4):
            _slice(tmp_path / name / f"IM{k}.dcm", f"{number + 1}{k}", k)
    found = read_labels("auto", tmp_path)
    assert [item.scene for item in found.items] == ["covid"] * 4 + ["healthy"] * 4
    for k in range(4):  # two forms of the same patients are not told to be classes
        _slice(tmp_path / f"healthy/IM{k}.dcm", f"1{k}", k)
    with pytest.raises(DataError, match="4 files of equal names"):
        read_labels("auto", tmp_path)


def test_slices_of_several_patients_are_no_volume(tmp_path: Path) -> None:
    for number, name in enumerate(CLASSES):
        for k in range(20):
            _slice(tmp_path / name / f"{name[0]}{k:02}.dcm", f"{number + 1}{k // 10}", k % 10)
    found = read_labels("auto", tmp_path)
    assert [item.scene for item in found.items] == ["covid"] * 20 + ["healthy"] * 20
    assert len({item.group for item in found.items}) == 4


def test_one_series_a_class_says_what_to_do(tmp_path: Path) -> None:
    for number, name in enumerate(CLASSES):
        kinds = {"SeriesInstanceUID": f"1.2.{number}", "PatientID": name}
        write_series(tmp_path / name, voxels((8, 8, 6), seed=number), affine(), **kinds)
    with pytest.raises(DataError, match="covid, healthy are one series of DICOM each") as caught:
        read_labels("auto", tmp_path)
    assert "(covid/1/*.dcm)" in caught.value.fix
    for name in CLASSES:
        (tmp_path / f"sorted/{name}").mkdir(parents=True)
        (tmp_path / name).rename(tmp_path / f"sorted/{name}/1")
    found = read_labels("auto", tmp_path / "sorted")
    assert [item.scene for item in found.items] == list(CLASSES)
