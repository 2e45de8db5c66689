"""Structure sets of radiotherapy: holes, repeated and overlapping contours, and contours that fit no slice.

Expected counts are those of the pixels whose centres lie within the drawn rectangles.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from tests.volume_files import affine, save_dicom, voxels, write_series
from vitp.core.errors import DataError
from vitp.data.formats import read_labels
from vitp.records.labels import LabelledSet

SHAPE = (40, 32, 6)
STEP = 3.0
CLOSED = "CLOSED_PLANAR"
_Ring = Sequence[tuple[float, float]]
_Drawn = tuple[str, float, _Ring]
"""Type, slice and points, in pixels counted along their edges."""


def box(x1: float, y1: float, x2: float, y2: float) -> _Ring:
    return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]


OUTER, INNER, ISLAND = box(5, 5, 25, 25), box(10, 10, 15, 15), box(12, 12, 14, 14)


def structures(root: Path, regions: dict[str, list[_Drawn]]) -> Path:
    """Write a series of CT and a structure set that names it."""
    grid = affine("LPS", steps=(1.0, 1.0, STEP), origin=(0.0, 0.0, 0.0))
    told = {"SeriesInstanceUID": "1.2.3.7", "StudyInstanceUID": "1.2.4.7", "FrameOfReferenceUID": "1.2.9.7"}
    write_series(root / "ct", voxels(SHAPE), grid, PatientID="P7", **told)
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.481.3", generate_uid()
    data.Modality, data.PatientID = "RTSTRUCT", "P7"
    data.SeriesInstanceUID, data.StudyInstanceUID = generate_uid(), "1.2.4.7"
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID, study.RTReferencedSeriesSequence = "1.2.3.7", [series]
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = "1.2.9.7", [study]
    data.ReferencedFrameOfReferenceSequence = [frame]
    data.StructureSetROISequence, data.ROIContourSequence = [], []
    for number, (name, drawn) in enumerate(regions.items(), 1):
        region, item = Dataset(), Dataset()
        region.ROINumber, region.ROIName, region.ReferencedFrameOfReferenceUID = number, name, "1.2.9.7"
        item.ReferencedROINumber, item.ContourSequence = number, []
        for kind, place, ring in drawn:
            contour = Dataset()
            contour.ContourGeometricType, contour.NumberOfContourPoints = kind, len(ring)
            contour.ContourData = [v for x, y in ring for v in (x - 0.5, y - 0.5, STEP * place)]
            item.ContourSequence.append(contour)
        data.StructureSetROISequence.append(region)
        data.ROIContourSequence.append(item)
    save_dicom(data, root / "rs" / "rs.dcm")
    return root


def counted(found: LabelledSet) -> list[int]:
    """Return how many pixels of each slice are of the first class."""
    items = sorted(found.items, key=lambda item: item.id)
    return [int((item.semantic() == 1).sum()) for item in items if item.semantic is not None]


def read(root: Path) -> LabelledSet:
    return read_labels("auto", root, val=0, test=0, background=10)


_KEYHOLE = [
    *((5, 5), (25, 5), (25, 25), (5, 25), (5, 12), (10, 12), (10, 15), (15, 15), (15, 10), (10, 10)),
    *((10, 12), (5, 12)),
]


@pytest.mark.parametrize(
    ("rings", "pixels"),
    [
        ([OUTER], 400),
        ([OUTER, INNER], 400 - 25),
        ([INNER, ISLAND, OUTER], 400 - 25 + 4),
        ([OUTER, OUTER], 400),
        ([OUTER, INNER, INNER], 400 - 25),
        ([OUTER, OUTER, INNER], 400 - 25),
        ([INNER, box(15, 10, 20, 15)], 25 + 25),
        ([INNER, box(20, 20, 22, 22)], 25 + 4),
        ([_KEYHOLE], 400 - 25),
    ],
)
def test_contours_of_one_slice(tmp_path: Path, rings: list[_Ring], pixels: int) -> None:
    found = read(structures(tmp_path, {"a": [(CLOSED, k, ring) for k in (1, 2) for ring in rings]}))
    assert counted(found) == [0, pixels, pixels, 0, 0, 0] and not found.findings


def test_overlaps_are_cut_out_where_the_file_says_so_and_refused_where_not(tmp_path: Path) -> None:
    other = box(15, 5, 35, 25)
    drawn = [("CLOSED_PLANAR_XOR", 1, OUTER), ("CLOSED_PLANAR_XOR", 1, other)]
    assert counted(read(structures(tmp_path / "xor", {"a": drawn})))[1] == 400
    drawn = [(CLOSED, 1, OUTER), (CLOSED, 1, other)]
    with pytest.raises(DataError, match="two contours of one region that overlap in part, near slice 1"):
        read(structures(tmp_path / "both", {"a": drawn}))


@pytest.mark.parametrize(
    ("drawn", "message"),
    [
        ([(CLOSED, k, OUTER) for k in (20, 21, 22)], "has 3 of 3 contours outside of its series"),
        ([(CLOSED, k + 0.4, OUTER) for k in (1, 2, 3)], "between the slices of its series"),
        ([(CLOSED, k / 2, OUTER) for k in range(2, 8)], "between the slices of its series"),
        ([(CLOSED, k / 5, OUTER) for k in (9, 10, 11)], "between the slices of its series"),
        ([(CLOSED, k, OUTER) for k in (0, 2, 4)], "on slices that are 2 apart"),
        ([("POINT", 1, [(5, 5)])], "has no region with closed contours"),
        ([("OPEN_PLANAR", 1, OUTER)], "has no region with closed contours"),
    ],
)
def test_contours_that_fit_no_slices_are_never_background(
    tmp_path: Path, drawn: list[_Drawn], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read(structures(tmp_path, {"a": drawn}))


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    found = read(
        structures(
            tmp_path,
            {
                "a": [(CLOSED, k, OUTER) for k in (4, 5, 6)],
                "iso": [("POINT", 1, [(5, 5)])],
            },
        )
    )
    assert counted(found) == [0, 0, 0, 0, 400, 400] and found.semantic_classes == ("background", "a")
    assert set(found.findings) == {
        "rs/rs.dcm: iso: only points or open lines; left out",
        "rs/rs.dcm: a: 1 of 3 contours outside of the series; left out",
    }


def test_small_objects_on_single_slices_are_no_gaps(tmp_path: Path) -> None:
    drawn = [(CLOSED, 2 * n, box(3 + 10 * n, 3, 8 + 10 * n, 8)) for n in range(3)]
    found = read(structures(tmp_path, {"a": drawn}))
    assert counted(found) == [25, 0, 25, 0, 25, 0] and np.sum(counted(found)) == 75


def test_copies_of_a_series_in_other_folders_are_left_out(tmp_path: Path) -> None:
    root = structures(tmp_path, {"a": [(CLOSED, k, OUTER) for k in (1, 2)]})
    files = sorted((root / "ct").iterdir())
    for folder, some in (("ct/again", files[:3]), ("a copy", files)):
        (root / folder).mkdir()
        for path in some:
            shutil.copy(path, root / folder)
    found = read(root)
    assert {Path(item.image.partition("#")[0]).relative_to(root).as_posix() for item in found.items} == {
        "a copy"
    }
    assert counted(found) == [0, 400, 400, 0, 0, 0]
    assert found.findings == ("a copy: 9 copies of its images in ct, ct/again aren't read",)


def test_a_series_in_pieces_is_refused(tmp_path: Path) -> None:
    root = structures(tmp_path, {"a": [(CLOSED, k, OUTER) for k in (1, 2)]})
    (root / "ct" / "more").mkdir()
    for path in sorted(path for path in (root / "ct").iterdir() if path.is_file())[:3]:
        path.rename(root / "ct" / "more" / path.name)
    with pytest.raises(DataError, match="is one series, whose images lie in ct and in ct/more"):
        read(root)
