"""One DICOM object of many frames (enhanced CT), stored in an order of its own, with segmentations in and out."""

from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest

import vitp
from tests.volume_files import affine, enhanced_ct, save_dicom, write_segmentation
from tests.volume_models import HighValues, is_high, predicted
from vitp.data.formats import read_labels

SHAPE = (16, 15, 6)
"""Columns, rows, slices: no two alike, so that no axis can be taken for another."""

ORDERS = {"shuffled": (3, 0, 5, 1, 4, 2), "downwards": (5, 4, 3, 2, 1, 0)}


def _scan() -> np.ndarray:
    """Return HU (I, J, K) in which every slice has another bright part; the second one has none."""
    scan_IJK = np.random.default_rng(5).integers(-900, 60, SHAPE).astype(np.int16)
    for k in (0, 2, 3, 4, 5):
        scan_IJK[k : k + 7, 2 : 5 + k, k] = 400
    return scan_IJK


def _written(folder: Path, order: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, Any]:
    """Write the object; return its voxels, their affine in RAS+ and the data set."""
    scan_IJK, matrix_44 = _scan(), affine("LPS")
    tilt = np.radians(9)
    turn_33 = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    matrix_44[:3, :3] = turn_33 @ matrix_44[:3, :3]
    data = enhanced_ct(scan_IJK, matrix_44, order, PatientID="77", PatientName="Doe^Jane")
    save_dicom(data, folder / "scan.dcm")
    return scan_IJK, matrix_44, data


def _frame_maps(path: Path) -> dict[int, np.ndarray]:
    """Return the map (H, W) that a segmentation holds of each frame of its source, by the frame's number from 1."""
    found = {}
    data = pydicom.dcmread(path)
    pixels_FHW = np.atleast_3d(data.pixel_array) if data.NumberOfFrames > 1 else data.pixel_array[None]
    for pixels_HW, groups in zip(pixels_FHW, data.PerFrameFunctionalGroupsSequence, strict=True):
        (source,) = groups.DerivationImageSequence[0].SourceImageSequence
        number = source.ReferencedFrameNumber
        assert number not in found
        found[int(number)] = pixels_HW
    return found


@pytest.mark.parametrize("order", list(ORDERS))
def test_a_segmentation_of_many_frames_refers_to_the_right_ones(tmp_path: Path, order: str) -> None:
    scan_IJK, matrix_44, data = _written(tmp_path / "ct", ORDERS[order])
    predicted(HighValues(), [tmp_path / "ct/scan.dcm"], tmp_path / "out", format="dicom-seg")
    mask = nibabel.load(tmp_path / "out/masks/scan.nii.gz")
    (path,) = (tmp_path / "out/dicom-seg").iterdir()
    wanted_IJK = is_high(scan_IJK)
    # Voxels of the mask lie where those of the object do, whichever way its slices are counted.
    back_44 = np.linalg.inv(mask.affine) @ matrix_44
    for i, j, k in np.argwhere(np.ones(SHAPE)):
        a, b, c = np.rint(back_44 @ (i, j, k, 1)).astype(int)[:3]
        assert mask.dataobj[a, b, c] == wanted_IJK[i, j, k]
    maps = _frame_maps(path)
    for number, k in enumerate(ORDERS[order], 1):
        if wanted_IJK[:, :, k].any():
            assert np.array_equal(maps.pop(number), wanted_IJK[:, :, k].T), (number, k)
    assert not any(map_HW.any() for map_HW in maps.values())
    segmentation = highdicom.seg.segread(path)
    (series,) = segmentation.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == data.SeriesInstanceUID
    (instance,) = series.ReferencedInstanceSequence
    assert instance.ReferencedSOPInstanceUID == data.SOPInstanceUID
    assert instance.ReferencedSOPClassUID == data.SOPClassUID


def _labels(folder: Path, data: Any, masks: dict[str, np.ndarray]) -> None:
    """Write masks (F, H, W), in the order of the object's frames, as a segmentation of it."""
    for name in ("PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime", "AccessionNumber"):
        setattr(data, name, "")  # what a segmentation takes from its source
    data.ReferringPhysicianName = ""
    write_segmentation(folder / "seg.dcm", [data], masks)


@pytest.mark.parametrize("order", list(ORDERS))
def test_a_segmentation_labels_the_slices_of_an_object_of_many_frames(tmp_path: Path, order: str) -> None:
    scan_IJK, _, _ = _written(tmp_path / "set/p0/ct", ORDERS[order])
    data = pydicom.dcmread(tmp_path / "set/p0/ct/scan.dcm")
    wanted_IJK = (scan_IJK == 400) + 2 * (scan_IJK < -850)
    frames_FHW = wanted_IJK.transpose(2, 1, 0)[list(ORDERS[order])]
    _labels(tmp_path / "set/p0/seg", data, {"organ": frames_FHW == 1, "air": frames_FHW == 2})
    found = read_labels("auto", tmp_path / "set", plane="axial", background=10)
    assert found.semantic_classes == ("background", "air", "organ")
    renumbered = np.array([0, 2, 1])[wanted_IJK]
    assert len(found.items) == SHAPE[2]
    for item in found.items:
        with vitp.open_pixels(item.image) as pixels:
            shown_HW = pixels.read()[0]
        # Every slice is another one, so its own values tell which.
        (k,) = (k for k in range(SHAPE[2]) if np.array_equal(scan_IJK[:, :, k].T, shown_HW))
        assert np.array_equal(item.semantic(), renumbered[:, :, k].T), (item.id, k)
