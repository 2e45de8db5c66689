"""Labels of volumes in other forms than a mask of classes: segments, series of DICOM, outlines; and what `check` says."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread

from tests.volume_files import write_segmentation
from tests.volume_set_toys import SHAPE, axial, by_id, labels, nifti, nnunet, read, said, scan
from vitp.data.formats import read_labels
from vitp.data.formats.vitp_labels import Roots, label_line
from vitp.io.volumes import open_volume

nibabel = pytest.importorskip("nibabel")
pytest.importorskip("SimpleITK")
pytest.importorskip("pydicom")


def test_slicer_segmentations_name_their_classes(tmp_path: Path) -> None:
    itk = pytest.importorskip("SimpleITK")
    for number in range(3):
        nifti(tmp_path / f"images/{number}.nii.gz", scan(number))
        # Only the box around the segments is stored.
        part = labels(number)[2:10, 1:9, 1:5]
        image = itk.GetImageFromArray(np.ascontiguousarray(part.transpose(2, 1, 0)))
        image.SetSpacing((2.0, 2.0, 5.0))
        image.SetOrigin((-4.0, -2.0, 5.0))
        image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
        for place, name in enumerate(("liver", "spleen", "kidney")):
            for key, value in (("Name", name), ("LabelValue", str(place + 1)), ("Layer", "0")):
                image.SetMetaData(f"Segment{place}_{key}", value)
        (tmp_path / "masks").mkdir(exist_ok=True)
        itk.WriteImage(image, str(tmp_path / f"masks/{number}.seg.nrrd"))
    found = read(tmp_path)
    assert found.semantic_classes == ("background", "liver", "spleen", "kidney")
    whole = np.zeros(SHAPE, np.uint8)
    whole[2:10, 1:9, 1:5] = labels(1)[2:10, 1:9, 1:5]
    assert np.array_equal(by_id(found)["1/0002"].semantic(), axial(whole, 2))


def test_layers_of_a_slicer_segmentation_beside_its_image(tmp_path: Path) -> None:
    """Segments of two layers overlap: the body's mask, and organs within it."""
    import SimpleITK as itk

    for number in range(3):
        folder = tmp_path / f"case{number}"
        folder.mkdir(parents=True)
        organs = labels(number, top=2)
        body = np.ones(SHAPE, np.uint8)
        itk.WriteImage(itk.GetImageFromArray(scan(number).T), str(folder / "ct.nrrd"))
        image = itk.GetImageFromArray(np.stack([body.T, organs.T], -1), isVector=True)
        for place, (name, value, layer) in enumerate((("body", 1, 0), ("liver", 1, 1), ("spleen", 2, 1))):
            for key, told in (("Name", name), ("LabelValue", str(value)), ("Layer", str(layer))):
                image.SetMetaData(f"Segment{place}_{key}", told)
        itk.WriteImage(image, str(folder / ("ct.seg.nrrd" if number else "drawn.seg.nrrd")))
    found = read(tmp_path)
    assert found.semantic_classes == ("background", "body", "liver", "spleen")
    assert "objects overlap" in said(found, "objects overlap")
    for item in found.items:
        number, place = int(item.id[4]), int(item.id[-4:])
        # ITK's files lie in LPS: the first pixel is the patient's right front.
        wanted = np.where(labels(number, top=2) == 0, 1, labels(number, top=2) + 1)[:, :, place].T
        assert np.array_equal(item.semantic(), wanted), item.id


def test_masks_of_nifti_label_series_of_dicom(tmp_path: Path) -> None:
    for number in range(3):
        for kind, folder in (
            ("a", tmp_path / "a" / f"images/c{number}"),
            ("b", tmp_path / "b" / f"c{number}/ct"),
        ):
            volume, _ = _series(folder, number + 1, f"P{number}")
            mask = np.where(volume.labels_IJK == 2, 1, 0).astype(np.uint8)
            place = f"labels/c{number}.nii.gz" if kind == "a" else f"c{number}/mask.nii.gz"
            nifti(tmp_path / kind / place, mask, np.array(open_volume(folder).grid.affine))
    for kind in "ab":
        found = read(tmp_path / kind, classes="background=0,liver=1")
        assert len(found.items) == 18 and not found.findings
        for item in found.items:
            number, place = int(re.search(r"c(\d)", item.id)[1]), int(item.id[-4:])
            from vitp.scenes.volumes import make_volume

            volume = make_volume(number + 1, size=(32, 28, 6), lesions=2)
            assert np.array_equal(item.semantic(), (volume.labels_IJK == 2)[:, :, place].T), item.id


def _series(folder: Path, seed: int, patient: str) -> tuple[Any, list[Path]]:
    from vitp.scenes.volume_files import write_dicom_series
    from vitp.scenes.volumes import make_volume

    volume = make_volume(seed, size=(32, 28, 6), lesions=2)
    tags = {"PatientID": patient, "PatientName": f"Doe^{patient}", "PatientBirthDate": "19500101"}
    return volume, write_dicom_series(volume, folder, tags=tags, name=f"series {seed}")


def test_dicom_segmentations_label_their_series(tmp_path: Path) -> None:
    volumes = {}
    for number in range(3):
        volume, files = _series(tmp_path / f"p{number}" / "ct", number + 1, f"P{number % 2}")
        volumes[number] = volume
        masks = {
            name: (volume.labels_IJK == value).transpose(2, 1, 0)
            for name, value in (("liver", 2), ("bone", 6))
        }
        write_segmentation(
            tmp_path / f"p{number}" / ("ct" if number else "seg") / "seg.dcm",
            [dcmread(file) for file in files],
            masks,
        )
    found = read_labels("auto", tmp_path, plane="axial", background=10)
    assert found.semantic_classes == ("background", "bone", "liver")
    # Two series of one patient are in one group, whose name says nothing of who it is.
    assert sorted({item.group for item in found.items}) == ["patient-0001", "patient-0002"]
    for number, volume in volumes.items():
        for item in (item for item in found.items if item.id.startswith(f"p{number}/")):
            place = int(item.id[-4:])
            wanted = np.where(volume.labels_IJK == 2, 2, np.where(volume.labels_IJK == 6, 1, 0))[
                :, :, place
            ].T
            assert np.array_equal(item.semantic(), wanted), item.id
    lines = json.dumps([label_line(item, Roots(tmp_path / "o", tmp_path, tmp_path)) for item in found.items])
    assert "Doe" not in lines and "P0" not in lines and found.items[0].metadata["body_part"] == "abdomen"


@pytest.mark.parametrize("kind", ["missing", "uneven"])
def test_series_off_an_even_grid_are_left_out_with_their_masks(tmp_path: Path, kind: str) -> None:
    import pydicom

    for number in range(4):
        volume, files = _series(tmp_path / f"p{number}" / "ct", number + 1, f"P{number}")
        liver = (volume.labels_IJK == 2).transpose(2, 1, 0)
        write_segmentation(
            tmp_path / f"p{number}" / "seg" / "seg.dcm", [dcmread(file) for file in files], {"liver": liver}
        )
        if number == 1 and kind == "missing":
            files[2].unlink()
        elif number == 1:
            data = pydicom.dcmread(files[2])
            x, y, z = data.ImagePositionPatient
            data.ImagePositionPatient = [x, y, float(z) + 0.2 * volume.spacing[2]]
            data.save_as(files[2])
    found = read_labels("auto", tmp_path, plane="axial", background=10)
    assert {item.id[:2] for item in found.items} == {"p0", "p2", "p3"}
    (line,) = [line for line in found.findings if line.startswith("p1")]
    lacks = r" \(misses about 1\)" if kind == "missing" else ""
    said = rf"p1/ct: has slices that lie up to [\d.]+ mm off an even grid{lacks}: complete the series, or resample it; "
    assert re.fullmatch(said + "volume left out", line)


def test_masks_off_an_even_grid_are_left_out(tmp_path: Path) -> None:
    for number in range(5):
        volume, _ = _series(tmp_path / f"images/{number}", number + 1, f"P{number}")
        from vitp.scenes.volume_files import write_dicom_series

        mask = replace(volume, voxels_IJK=(volume.labels_IJK == 2).astype(np.int16), modality="MR")
        files = write_dicom_series(mask, tmp_path / f"masks/{number}", name=f"mask {number}")
        if number == 3:
            files[2].unlink()
    found = read(tmp_path, images="images", masks="masks", classes="liver=1")
    assert {item.id[0] for item in found.items} == {"0", "1", "2", "4"}
    assert any(
        "masks/3" in line and "mm off an even grid (misses about 1)" in line for line in found.findings
    )


def test_one_image_of_another_plane_than_the_sets_is_left_out(tmp_path: Path) -> None:
    root = nnunet(tmp_path / "set", 8)
    nifti(root / "imagesTr/case_003_0000.nii.gz", scan(3, (14, 1, 12)))
    nifti(root / "labelsTr/case_003.nii.gz", labels(3, (14, 1, 12)))
    found = read(root)
    assert len(found.items) == 7 * 6 and not any("case_003" in item.id for item in found.items)
    assert any("holds one coronal image, the set has axial slices; volume left" in s for s in found.findings)


def test_series_of_one_folder_are_called_by_number_and_never_by_uid(tmp_path: Path) -> None:

    for number in range(3):
        folder = tmp_path / f"p{number}" / "all"
        for series in (4, 7):
            volume, files = _series(tmp_path / "one", 10 * number + series, f"P{number}")
            for place, file in enumerate(files):
                image = dcmread(file)
                image.SeriesNumber = series
                folder.mkdir(parents=True, exist_ok=True)
                image.save_as(folder / f"{series}-{place}.dcm")
                file.unlink()
            mask = {"liver": (volume.labels_IJK == 2).transpose(2, 1, 0)}
            mine = sorted(folder.glob(f"{series}-*"), key=lambda path: int(path.stem.split("-")[1]))
            write_segmentation(
                tmp_path / f"p{number}" / "seg" / f"{series}.dcm", [dcmread(file) for file in mine], mask
            )
    found = read_labels("auto", tmp_path, plane="axial", background=10)
    assert {item.id.rpartition("/")[0] for item in found.items} == {
        f"p{number}/all/{series}" for number in range(3) for series in (4, 7)
    }
    assert all(re.search(r"all#series=[47]&slice=", item.image) for item in found.items)
    lines = json.dumps([label_line(item, Roots(tmp_path / "o", tmp_path, tmp_path)) for item in found.items])
    assert re.search(r"\d\.\d+\.\d+", lines.replace("0.", "")) is None


def test_contours_are_drawn_on_their_series(tmp_path: Path) -> None:
    import pydicom

    _, files = _series(tmp_path / "ct", 3, "P1")
    image = pydicom.dcmread(files[2])
    data = pydicom.Dataset()
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.481.3", "1.2.3.4"
    data.Modality, data.PatientID, data.StudyInstanceUID = "RTSTRUCT", "P1", image.StudyInstanceUID
    data.SeriesInstanceUID = "1.2.3"
    series, study, frame = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    series.SeriesInstanceUID = image.SeriesInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.RTReferencedStudySequence, frame.FrameOfReferenceUID = [study], image.FrameOfReferenceUID
    data.ReferencedFrameOfReferenceSequence = [frame]
    region, drawn, outer, inner = (pydicom.Dataset() for _ in range(4))
    region.ROINumber, region.ROIName = 4, "heart"
    step_y, step_x = (float(value) for value in image.PixelSpacing)
    corner = np.array([float(value) for value in image.ImagePositionPatient])
    for contour, (x1, y1, x2, y2) in ((outer, (4, 6, 12, 14)), (inner, (7, 8, 9, 10))):
        # Between the centres of pixels: from x1 to x2 − 1.
        corners = [(x1 - 0.5, y1 - 0.5), (x2 - 0.5, y1 - 0.5), (x2 - 0.5, y2 - 0.5), (x1 - 0.5, y2 - 0.5)]
        points = [corner + np.array((x * step_x, y * step_y, 0)) for x, y in corners]
        contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", 4
        contour.ContourData = [f"{value:.6f}" for point in points for value in point]
    drawn.ReferencedROINumber, drawn.ContourSequence = 4, [outer, inner]
    data.StructureSetROISequence, data.ROIContourSequence = [region], [drawn]
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    (tmp_path / "rt").mkdir()
    data.save_as(tmp_path / "rt" / "set.dcm", enforce_file_format=True)
    found = read_labels("auto", tmp_path, plane="axial", background=10, val=0, test=0)
    assert found.semantic_classes == ("background", "heart")
    expected = np.zeros((28, 32), np.uint8)
    expected[6:14, 4:12] = 1
    expected[8:10, 7:9] = 0
    assert np.array_equal(by_id(found)["ct/0002"].semantic(), expected)
    assert not by_id(found)["ct/0001"].semantic().any()


def _finding_kinds(report: Any) -> set[tuple[str, str]]:
    return {(finding.severity, finding.kind) for finding in report.findings if finding.severity != "info"}


def test_check_finds_patients_studies_and_volumes_in_two_splits(tmp_path: Path) -> None:
    from vitp.data.check import check_records
    from vitp.data.compile import compile_labels

    root = nnunet(tmp_path / "set", 6)
    options = {"plane": "axial"}
    compile_labels(root, "auto", tmp_path / "good", **options)
    good = check_records(tmp_path / "good")
    assert not _finding_kinds(good), good.findings
    # A slice of a training volume in val.
    compile_labels(root, "auto", tmp_path / "bad", **options)
    train, val = (tmp_path / "bad" / f"{split}.jsonl" for split in ("train", "val"))
    lines = train.read_text().splitlines()
    val.write_text(val.read_text() + lines[0] + "\n")
    train.write_text("\n".join(lines[1:]) + "\n")
    bad = check_records(tmp_path / "bad")
    assert ("error", "volume") in _finding_kinds(bad)
    assert any(f.what.startswith("case_") and "is in val, too" in f.what for f in bad.of_kind("volume"))
    # A patient that the split file tears is told when it is compiled, and again.
    names = [
        f"case_{number:03d} {split}" for number, split in enumerate(["train"] * 3 + ["val"] * 2 + ["test"])
    ]
    (tmp_path / "splits.txt").write_text("\n".join(names))
    torn = compile_labels(
        root,
        "auto",
        tmp_path / "torn",
        split_file=tmp_path / "splits.txt",
        patient="case_00([0-9])",
        **options,
    )
    assert not any("several splits" in line for line in torn.findings)
    text = (tmp_path / "torn" / "labels" / "val.jsonl").read_text()
    (tmp_path / "torn" / "labels" / "val.jsonl").write_text(text.replace("patient-0004", "patient-0001"))
    (finding,) = check_records(tmp_path / "torn").of_kind("patient")
    assert finding.severity == "error" and "patient-0001 is in train and val" in finding.what
    # Held-out data of another folder hold the same volume under another name.
    (tmp_path / "other" / "imagesTr").mkdir(parents=True)
    nnunet(tmp_path / "other", 3)
    for number in range(3):
        nifti(tmp_path / f"other/imagesTr/case_{number:03d}_0000.nii.gz", scan(70 + number))
    same = (root / "imagesTr/case_002_0000.nii.gz").read_bytes()
    (tmp_path / "other/imagesTr/case_001_0000.nii.gz").write_bytes(same)
    compile_labels(tmp_path / "other", "auto", tmp_path / "held", **options)
    report = check_records(tmp_path / "good", against=tmp_path / "held")
    assert any("under another name (case_001_0000.nii.gz)" in f.what for f in report.of_kind("volume"))


def test_check_compares_the_headers_of_dicom_without_telling_them(tmp_path: Path) -> None:
    from vitp.data.check import check_records
    from vitp.data.compile import compile_labels

    for name, seeds in (("a", (1, 2, 3)), ("b", (3, 4, 5))):
        for seed in seeds:
            folder = tmp_path / name / f"p{seed}{name}"
            volume, files = _series(folder / "ct", seed if name == "a" else seed + 20, f"PAT{seed}")
            write_segmentation(
                folder / "seg" / "seg.dcm",
                [dcmread(file) for file in files],
                {"bone": (volume.labels_IJK == 6).transpose(2, 1, 0)},
            )
        compile_labels(tmp_path / name, "auto", tmp_path / f"c{name}", plane="axial")
    report = check_records(tmp_path / "ca", against=tmp_path / "cb")
    kinds = {finding.kind for finding in report.findings if finding.severity == "error"}
    assert kinds == {"patient"} and len(report.of_kind("patient")) == 1
    assert "PAT" not in json.dumps(report.to_json()) and "Doe" not in json.dumps(report.to_json())
