"""DICOM objects that label a series: segmentations (SEG) and structure sets (RTSTRUCT; `dicom_contours` fills them).

Shapes: I × J × K voxels of an array.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from vitp.core.errors import DataError
from vitp.core.extras import need
from vitp.io.dicom_contours import Contour, closed_contours, filled_slices, outside_of
from vitp.io.storage import COPY_IT_AGAIN
from vitp.io.volume_grid import Affine, VolumeGrid

SEG, RTSTRUCT = "SEG", "RTSTRUCT"
_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_HEAD = [
    *(
        "SOPClassUID",
        "SOPInstanceUID",
        "Modality",
        "SeriesInstanceUID",
        "StudyInstanceUID",
        "FrameOfReferenceUID",
        "PatientID",
    ),
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
        image: UID of the file itself.
    """

    modality: str
    series: str
    study: str
    patient: str
    of_series: str
    of_frame: str
    image: str = ""


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
        raise DataError(what, where=str(path), fix=COPY_IT_AGAIN) from error


def dicom_role(path: Path) -> DicomRole:
    """Return what a DICOM file is; its pixels are not read.

    Raises:
        DataError: It can't be read.
    """
    with _reading(path) as pydicom:
        data = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=_HEAD)

        def text(keyword: str) -> str:
            return str(data.get(keyword) or "").strip()

        # Two hospitals may have given one id to two patients.
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
            text("SOPInstanceUID"),
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
            drawn = {int(one.ReferencedROINumber) for one in data.ROIContourSequence if closed_contours(one)}
            regions = [(int(one.ROINumber), str(one.ROIName).strip()) for one in data.StructureSetROISequence]
            if not drawn:
                what = "has no region with closed contours, only points, open lines or empty regions"
                raise DataError(what, where=str(path), fix="draw the regions, or take the file away")
            return [(number, name) for number, name in regions if number in drawn]
    raise DataError("is neither a segmentation nor a structure set", where=str(path), fix="name such a file")


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
        # Files may leave out frames in which nothing is segmented.
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


@lru_cache(maxsize=2)
def _regions(path: Path) -> dict[int, tuple[tuple[Contour, ...], int]]:
    """Return the closed contours of each region of a structure set, and how many others it has."""
    found: dict[int, tuple[tuple[Contour, ...], int]] = {}
    with _reading(path) as pydicom:
        for one in pydicom.dcmread(path, stop_before_pixels=True).ROIContourSequence:
            closed, number = closed_contours(one), int(one.ReferencedROINumber)
            before, others = found.get(number, ((), 0))
            others += len(one.get("ContourSequence") or ()) - len(closed)
            found[number] = (*before, *closed), others
    return found


def contour_labels(path: Path, number: int, grid: VolumeGrid) -> np.ndarray:
    """Return the voxels (I, J, K) of a series whose centres lie within the contours of a region: 1, else 0.

    A contour within another one of its slice cuts a hole; the same contour counts once.

    Raises:
        DataError: It can't be read, or its contours don't fit the slices of the series, or each other.
    """
    contours, _ = _regions(path).get(number, ((), 0))
    return filled_slices(contours, grid, str(path))


def contours_left_out(path: str | Path, number: int, grid: VolumeGrid) -> str:
    """Return which contours of a region aren't used, in words; "" where all are.

    Raises:
        DataError: It can't be read.
    """
    contours, others = _regions(Path(path)).get(number, ((), 0))
    lines = [f"{others:,} points or open lines, which have no area"] if others else []
    if grid.affine is not None and (beyond := outside_of(contours, grid)):
        lines.append(f"{beyond:,} of {len(contours):,} contours outside of the series")
    return " and ".join(lines)


def regions_without_area(path: str | Path) -> list[str]:
    """Return the names of the regions of a structure set that have points or open lines alone.

    Raises:
        DataError: It can't be read.
    """
    found = _regions(Path(path))
    alone = {number for number, (contours, others) in found.items() if others and not contours}
    with _reading(Path(path)) as pydicom:
        regions = pydicom.dcmread(path, stop_before_pixels=True).StructureSetROISequence
        return [str(one.ROIName).strip() for one in regions if int(one.ROINumber) in alone]
