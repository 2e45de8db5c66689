"""Generated volumes as the files that people have theirs in: NIfTI, series of DICOM, nnU-Net folders.

pydicom and nibabel (the extra `medical`) are imported when something is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitp.core.extras import need
from vitp.scenes.volumes import TrunkVolume, make_volume

_CLASS_UIDS = {"CT": "1.2.840.10008.5.1.4.1.1.2", "MR": "1.2.840.10008.5.1.4.1.1.4"}
# Explicit VR, little endian.
_EXPLICIT = "1.2.840.10008.1.2.1"
_INTERCEPT = -1024
# DICOM's axes point to the patient's left and back, those of NIfTI to the right and to the front.
_TO_LPS = np.diag([-1.0, -1.0, 1.0])


def write_nifti(volume: TrunkVolume, image: Path, mask: Path | None = None) -> None:
    """Write the voxels, and the labels to `mask`, as NIfTI; the suffix (`.nii`, `.nii.gz`) says whether packed.

    Raises:
        DataError: nibabel isn't installed.
    """
    files = [(image, volume.voxels_IJK)] + ([] if mask is None else [(mask, volume.labels_IJK)])
    for path, array_IJK in files:
        nibabel = need("medical", "nibabel", str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        content = nibabel.Nifti1Image(array_IJK, volume.affine_44)
        content.header.set_xyzt_units("mm")
        # 1: as the scanner has it. Both transforms say the same, so that readers of either agree.
        content.set_qform(volume.affine_44, code=1)
        content.set_sform(volume.affine_44, code=1)
        nibabel.save(content, path)


def write_dicom_series(
    volume: TrunkVolume,
    folder: Path,
    *,
    tags: Mapping[str, Any] | None = None,
    name: str = "volume",
    study: str = "",
) -> list[Path]:
    """Write a volume as a folder of DICOM files, one for each k, whose names say nothing of their order.

    Args:
        volume: i runs along the columns of the pictures, j along their rows.
        folder: Made where it is missing.
        tags: Values of further tags by their keywords, such as `PatientName`; None leaves a tag out.
        name: Decides on the UIDs: equal names are one series.
        study: Series of one study share it; "": that of `name`.

    Returns:
        The files, in the order of k.

    Raises:
        DataError: pydicom isn't installed.
    """
    pydicom = need("medical", "pydicom", str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    count = volume.voxels_IJK.shape[2]
    names = np.random.default_rng(count).permutation(count)
    shared = _series_tags(pydicom, volume, name, study or name)
    written = []
    for k in range(count):
        dataset = pydicom.Dataset()
        for keyword, value in {**shared, **_slice_tags(pydicom, volume, name, k), **(tags or {})}.items():
            if value is not None:
                setattr(dataset, keyword, value)
        # Stored values are unsigned and Hounsfield units are not, hence the intercept; rows of a DICOM image run along
        # j.
        stored_JI = volume.voxels_IJK[:, :, k].T.astype(np.int32) - _intercept(volume)
        dataset.set_pixel_data(stored_JI.astype(np.uint16), "MONOCHROME2", 16)
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = _EXPLICIT
        path = folder / f"{names[k]:05d}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        written.append(path)
    return written


def _intercept(volume: TrunkVolume) -> int:
    return _INTERCEPT if volume.modality == "CT" else 0


def _series_tags(pydicom: Any, volume: TrunkVolume, name: str, study: str) -> dict[str, Any]:
    """Return the tags that all slices share."""

    def uid(*parts: str) -> Any:
        return pydicom.uid.generate_uid(entropy_srcs=["vitp", *parts])

    columns_33 = _TO_LPS @ volume.affine_44[:3, :3] / np.array(volume.spacing)
    i_spacing, j_spacing, k_spacing = volume.spacing
    tags = {
        "SOPClassUID": _CLASS_UIDS[volume.modality],
        "StudyInstanceUID": uid("study", study),
        "SeriesInstanceUID": uid("series", study, name),
        "FrameOfReferenceUID": uid("frame", study, name),
        "Modality": volume.modality,
        "BodyPartExamined": "ABDOMEN",
        "PatientName": "",
        "PatientID": "",
        "PatientBirthDate": "",
        "PatientSex": "",
        "StudyDate": "",
        "StudyTime": "",
        "AccessionNumber": "",
        "ReferringPhysicianName": "",
        "StudyID": "",
        "SeriesNumber": 1,
        # The direction of a row first, then that of a column.
        "ImageOrientationPatient": [round(float(value), 9) for value in columns_33[:, :2].T.ravel()],
        # The distance between rows comes first.
        "PixelSpacing": [round(j_spacing, 9), round(i_spacing, 9)],
        "SliceThickness": round(k_spacing, 9),
    }
    if volume.modality == "CT":
        tags |= {"RescaleIntercept": _intercept(volume), "RescaleSlope": 1, "RescaleType": "HU", "KVP": 120}
        tags |= {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"]}
    else:
        tags |= {"ImageType": ["ORIGINAL", "PRIMARY"], "ScanningSequence": "SE", "SequenceVariant": "NONE"}
    return tags


def _slice_tags(pydicom: Any, volume: TrunkVolume, name: str, k: int) -> dict[str, Any]:
    position_3 = _TO_LPS @ (volume.affine_44 @ np.array([0.0, 0.0, k, 1.0]))[:3]
    return {
        "SOPInstanceUID": pydicom.uid.generate_uid(entropy_srcs=["vitp", "image", name, str(k)]),
        "InstanceNumber": k + 1,
        "ImagePositionPatient": [round(float(value), 6) for value in position_3],
    }


def write_nnunet(
    out: Path,
    cases: int,
    *,
    seed: int = 0,
    twice: int = 0,
    size: tuple[int, int, int] = (64, 64, 20),
    orientation: str = "LPS",
    modality: str = "CT",
) -> dict[str, TrunkVolume]:
    """Write an nnU-Net folder: `imagesTr/CASE_0000.nii.gz`, `labelsTr/CASE.nii.gz` and `dataset.json`.

    Args:
        out: Made where it is missing.
        cases: Volumes in all.
        seed: Seed of the first patient.
        twice: Patients with two volumes, the first ones.
        size: Voxels along x, y and z; slices differ by case, from this number to four more.
        orientation: Orientation of the arrays.
        modality: `CT` or `MR`.

    Returns:
        The volumes by the names of their cases, `patient001_1`, `patient001_2`, ….

    Raises:
        DataError: nibabel isn't installed.
    """
    named = {}
    patient, study = 1, 0
    for _ in range(cases):
        volume = make_volume(
            seed + patient,
            size=(size[0], size[1], size[2] + patient % 5),
            orientation=orientation,
            study=study,
            modality=modality,
        )
        case = f"patient{patient:03d}_{study + 1}"
        named[case] = volume
        write_nifti(volume, out / f"imagesTr/{case}_0000.nii.gz", out / f"labelsTr/{case}.nii.gz")
        patient, study = (patient, 1) if study == 0 and patient <= twice else (patient + 1, 0)
    content = {
        "channel_names": {"0": modality},
        "labels": {"background": 0, **{name: number for number, name in enumerate(volume.classes, 1)}},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (out / "dataset.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    return named
