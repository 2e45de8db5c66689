"""DICOM objects that label a series: segmentations (SEG) and structure sets with contours (RTSTRUCT).

Shapes: I × J × K voxels of an array, N points.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from vitp.core.errors import DataError
from vitp.core.extras import need
from vitp.io.volume_grid import Affine, VolumeGrid
from vitp.records.regions import rasterise

SEG, RTSTRUCT = "SEG", "RTSTRUCT"
_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_OFF_PLANE = 0.5
"""Slices by which the points of a contour may lie beside the slice that it is on."""
_COPY_AGAIN = "copy it again from its source or remove it"
_HEAD = [
    *("SOPClassUID", "Modality", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "PatientID"),
    *("IssuerOfPatientID", "PatientName", "PatientBirthDate", "ReferencedSeriesSequence"),
    *("ReferencedFrameOfReferenceSequence",),
]


@dataclass(frozen=True)
class DicomRole:
    """What a DICOM file is in its study. It is used in memory, and nothing of it is ever written.

    Attributes:
        modality: DICOM's code.
        series, study: UIDs.
        patient: What tells one patient from another; "" where the header doesn't.
        of_series: UID of the series that it labels.
        of_frame: UID of the frame of reference.
    """

    modality: str
    series: str
    study: str
    patient: str
    of_series: str
    of_frame: str


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """Give pydicom, and turn whatever libraries raise into a `DataError` without their words: they quote the file."""
    pydicom = need("medical", "pydicom", str(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield pydicom
    except (DataError, KeyboardInterrupt):
        raise
    except Exception as error:
        what = f"can't be read ({type(error).__name__}): it is damaged, or cut off"
        raise DataError(what, where=str(path), fix=_COPY_AGAIN) from error


def dicom_role(path: Path) -> DicomRole:
    """Return what a DICOM file is; its pixels are not read.

    Raises:
        DataError: It can't be read.
    """
    with _reading(path) as pydicom:
        data = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=_HEAD)

        def text(keyword: str) -> str:
            return str(data.get(keyword) or "").strip()

        patient = "|".join((text("PatientID"), text("IssuerOfPatientID"))) if text("PatientID") else ""
        if not patient and text("PatientName"):
            patient = "|".join((text("PatientName"), text("PatientBirthDate")))
        return DicomRole(
            text("Modality"),
            text("SeriesInstanceUID"),
            text("StudyInstanceUID"),
            patient,
            _labelled_series(data),
            text("FrameOfReferenceUID") or _labelled_frame(data),
        )


def _labelled_series(data: Any) -> str:
    for series in data.get("ReferencedSeriesSequence") or ():
        return str(series.get("SeriesInstanceUID") or "")
    for frame in data.get("ReferencedFrameOfReferenceSequence") or ():
        for study in frame.get("RTReferencedStudySequence") or ():
            for series in study.get("RTReferencedSeriesSequence") or ():
                return str(series.get("SeriesInstanceUID") or "")
    return ""


def _labelled_frame(data: Any) -> str:
    frames = data.get("ReferencedFrameOfReferenceSequence") or ()
    return next((str(frame.get("FrameOfReferenceUID") or "") for frame in frames), "")


def segment_names(path: Path) -> list[tuple[int, str]]:
    """Return number and name of each segment of a segmentation, or of each region with outlines of a structure set.

    Raises:
        DataError: It can't be read, or is neither.
    """
    with _reading(path) as pydicom:
        data = pydicom.dcmread(path, stop_before_pixels=True)
        if data.Modality == SEG:
            return [(int(one.SegmentNumber), str(one.SegmentLabel).strip()) for one in data.SegmentSequence]
        if data.Modality == RTSTRUCT:
            drawn = {int(one.ReferencedROINumber) for one in data.ROIContourSequence if _outlines(one)}
            regions = [(int(one.ROINumber), str(one.ROIName).strip()) for one in data.StructureSetROISequence]
            return [(number, name) for number, name in regions if number in drawn]
    raise DataError("is neither a segmentation nor a structure set", where=str(path), fix="name such a file")


def _outlines(region: Any) -> list[np.ndarray]:
    """Return the closed contours of a region, (N, 3) millimetres in RAS+ each."""
    found = []
    for contour in region.get("ContourSequence") or ():
        if str(contour.get("ContourGeometricType") or "").startswith("CLOSED_PLANAR"):
            points_N3 = np.array(contour.ContourData, float).reshape(-1, 3)
            found.append(points_N3 * (-1, -1, 1))
    return found


@lru_cache(maxsize=2)
def _segments(path: Path) -> tuple[VolumeGrid, dict[int, np.ndarray]]:
    """Return the grid of a segmentation, and the voxels (I, J, K) of each segment."""
    highdicom = need("medical", "highdicom", str(path))
    with _reading(path):
        segmentation = highdicom.seg.segread(path)
        if str(segmentation.SegmentationType) == "FRACTIONAL":
            what = "holds probabilities or shares of voxels, which are no labels"
            raise DataError(what, where=str(path), fix="save it as a binary segmentation")
        numbers = [int(number) for number in segmentation.segment_numbers]
        volume = segmentation.get_volume(allow_missing_positions=True, combine_segments=False)
        array = np.asarray(volume.array)
        matrix_44 = _TO_RAS @ np.asarray(volume.affine, float)
        shape = (int(array.shape[0]), int(array.shape[1]), int(array.shape[2]))
        affine: Affine = tuple(tuple(map(float, row)) for row in matrix_44)  # type: ignore[assignment]
        return VolumeGrid(shape, affine), {n: array[..., place] for place, n in enumerate(numbers)}


def segment_labels(path: Path, number: int) -> tuple[VolumeGrid, np.ndarray]:
    """Return the grid of a segmentation and the voxels (I, J, K) of a segment: 1, else 0.

    Raises:
        DataError: It can't be read, or holds no such segment.
    """
    grid, segments = _segments(path)
    if number not in segments:
        raise DataError(f"holds no segment {number}", where=str(path), fix="compile the labels again")
    return grid, np.asarray(segments[number] > 0, np.uint8)


def contour_labels(path: Path, number: int, grid: VolumeGrid) -> np.ndarray:
    """Return the voxels (I, J, K) of a series whose centres lie within the contours of a region: 1, else 0.

    A contour within another one of its slice cuts a hole.

    Raises:
        DataError: It can't be read, or a contour doesn't lie in a slice of the series.
    """
    with _reading(path) as pydicom:
        data = pydicom.dcmread(path, stop_before_pixels=True)
        regions = [one for one in data.ROIContourSequence if int(one.ReferencedROINumber) == number]
        outlines = [points for one in regions for points in _outlines(one)]
    if grid.affine is None:
        what = "has contours, and its series doesn't say where its voxels lie"
        raise DataError(what, where=str(path), fix="add the whole series")
    back_44 = np.linalg.inv(np.array(grid.affine))
    by_slice: dict[int, list[np.ndarray]] = defaultdict(list)
    for points_N3 in outlines:
        voxels_N3 = points_N3 @ back_44[:3, :3].T + back_44[:3, 3]
        k = round(float(voxels_N3[:, 2].mean()))
        if np.abs(voxels_N3[:, 2] - k).max() > _OFF_PLANE:
            what = f"has a contour that lies across the slices of its series, near slice {k}"
            raise DataError(what, where=str(path), fix="save it as a segmentation (DICOM-SEG or NIfTI)")
        if 0 <= k < grid.shape[2]:
            by_slice[k].append(voxels_N3[:, :2] + 0.5)  # outlines count along the edges of pixels
    labels_IJK = np.zeros(grid.shape, np.uint8)
    for k, rings in by_slice.items():
        for ring_N2 in rings:
            inside_JI = rasterise([tuple(ring_N2.ravel().tolist())], (grid.shape[1], grid.shape[0]))
            labels_IJK[:, :, k] ^= np.asarray(inside_JI, np.uint8).T
    return labels_IJK
