"""Small volumes in files, as scanners and researchers write them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

ORIENTATIONS = {
    # World axis (0 right, 1 front, 2 up) and sign of each axis of the array.
    "RAS": ((0, 1), (1, 1), (2, 1)),
    "LPS": ((0, -1), (1, -1), (2, 1)),
    "SRA": ((2, 1), (0, 1), (1, 1)),
    "PIL": ((1, -1), (2, -1), (0, -1)),
}


def affine(turn: str = "LPS", steps=(0.7, 0.8, 3.0), origin=(11.0, -7.0, 5.0)) -> np.ndarray:
    """Return the affine in RAS+ of an orientation."""
    matrix = np.zeros((4, 4))
    for axis, (world, sign) in enumerate(ORIENTATIONS[turn]):
        matrix[world, axis] = sign * steps[axis]
    matrix[:3, 3], matrix[3, 3] = origin, 1
    return matrix


def voxels(shape=(5, 6, 4), kind: Any = np.int16, seed: int = 0) -> np.ndarray:
    """Return values that differ everywhere."""
    order = np.random.default_rng(seed).permutation(int(np.prod(shape)))
    return order.reshape(shape).astype(kind)


def dicom_image(pixels_HW: np.ndarray, **elements: Any) -> Dataset:
    """Return one image; `elements` are further ones by keyword, None leaves one out."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, generate_uid()
    data.Modality, data.SeriesInstanceUID, data.StudyInstanceUID = "CT", "1.2.3.4", "1.2.3"
    data.Rows, data.Columns = pixels_HW.shape[:2]
    data.SamplesPerPixel = 1 if pixels_HW.ndim == 2 else pixels_HW.shape[2]
    data.PhotometricInterpretation = "MONOCHROME2" if pixels_HW.ndim == 2 else "RGB"
    if pixels_HW.ndim == 3:
        data.PlanarConfiguration = 0
    data.BitsAllocated = data.BitsStored = pixels_HW.dtype.itemsize * 8
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(pixels_HW.dtype.kind == "i")
    data.PixelData = pixels_HW.tobytes()
    for name, value in elements.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    return data


def save_dicom(data: Dataset, path: Path) -> Path:
    """Write a data set as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, data, enforce_file_format=True)
    return path


def write_series(folder: Path, voxels_IJK: np.ndarray, matrix_44: np.ndarray, **elements: Any) -> Path:
    """Write one file a slice along the last axis; names and numbers tell nothing of the order."""
    lps = matrix_44.copy()
    lps[:2] *= -1
    steps = np.linalg.norm(lps[:3, :3], axis=0)
    count = voxels_IJK.shape[2]
    names = np.random.default_rng(3).permutation(count)
    for place in range(count):
        image = dicom_image(
            np.ascontiguousarray(voxels_IJK[:, :, place].T),
            ImagePositionPatient=[float(f"{one:.6f}") for one in lps[:3, 3] + place * lps[:3, 2]],
            ImageOrientationPatient=[*(lps[:3, 0] / steps[0]), *(lps[:3, 1] / steps[1])],
            PixelSpacing=[float(steps[1]), float(steps[0])],
            SliceThickness=float(steps[2]),
            InstanceNumber=int(names[(place + 1) % count]) + 1,
            **elements,
        )
        save_dicom(image, folder / f"im{names[place]}")
    return folder


def enhanced_ct(
    voxels_IJK: np.ndarray, matrix_44: np.ndarray, order: Sequence[int], **elements: Any
) -> Dataset:
    """Return one enhanced CT object; frame n shows slice `order[n]` along the last axis, and only its groups say so."""
    lps = matrix_44.copy()
    lps[:2] *= -1
    steps = np.linalg.norm(lps[:3, :3], axis=0)
    stored_FHW = np.ascontiguousarray(voxels_IJK.transpose(2, 1, 0)[list(order)])
    data = dicom_image(
        stored_FHW[0],
        SOPClassUID=EnhancedCTImageStorage,
        NumberOfFrames=len(order),
        FrameOfReferenceUID="1.2.3.9",
    )
    data.PixelData = stored_FHW.tobytes()
    turn, measures, values, shared = Dataset(), Dataset(), Dataset(), Dataset()
    turn.ImageOrientationPatient = [*(lps[:3, 0] / steps[0]), *(lps[:3, 1] / steps[1])]
    measures.PixelSpacing, measures.SliceThickness = [float(steps[1]), float(steps[0])], float(steps[2])
    values.RescaleSlope, values.RescaleIntercept, values.RescaleType = 1, 0, "HU"
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [turn], [measures]
    shared.PixelValueTransformationSequence = [values]
    data.SharedFunctionalGroupsSequence = [shared]
    data.PerFrameFunctionalGroupsSequence = []
    for place in order:
        where, content, own = Dataset(), Dataset(), Dataset()
        where.ImagePositionPatient = [float(f"{one:.6f}") for one in lps[:3, 3] + place * lps[:3, 2]]
        content.StackID, content.InStackPositionNumber = "1", place + 1
        own.PlanePositionSequence, own.FrameContentSequence = [where], [content]
        data.PerFrameFunctionalGroupsSequence.append(own)
    for name, value in elements.items():
        setattr(data, name, value)
    return data


def corners(shape) -> np.ndarray:
    """Return the outermost voxels."""
    return np.array(list(itertools.product(*((0, size - 1) for size in shape))))


def write_segmentation(path: Path, sources: Sequence[Dataset], masks: dict[str, np.ndarray]) -> None:
    """Write a DICOM-SEG of masks (F, rows, columns) in the order of the sources, or of the frames of one source."""
    import highdicom
    from highdicom.sr.coding import CodedConcept

    code = CodedConcept("123037004", "SCT", "Anatomical Structure")
    described = [
        highdicom.seg.SegmentDescription(
            segment_number=place,
            segment_label=name,
            segmented_property_category=code,
            segmented_property_type=code,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for place, name in enumerate(masks, 1)
    ]
    made = highdicom.seg.Segmentation(
        source_images=list(sources),
        pixel_array=np.stack([*masks.values()], -1).astype(np.uint8),
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=described,
        series_instance_uid=highdicom.UID(),
        series_number=9,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="m",
        manufacturer_model_name="m",
        software_versions="1",
        device_serial_number="1",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path)
