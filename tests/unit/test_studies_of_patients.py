"""Labels of whole studies: uncertain classes, reports, X-rays and volumes in classes, and whose they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitp.cli import run
from vitp.data.formats import detect_format, read_labels
from vitp.data.synthesis.classes import SetClasses, class_states
from vitp.tasks.data import LabelReader

CHEXPERT = "Path,Sex,Age,Frontal/Lateral,No Finding,Edema,Pneumonia,Fracture\n"


def photo(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (16, 16), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def chexpert(root: Path, rows: dict[int, str]) -> Path:
    """A folder a patient, with two studies of one view each; the table's paths begin elsewhere."""
    lines = []
    for number, cells in rows.items():
        for study in range(2):
            place = f"train/patient{number:05d}/study{study}/view1_frontal.png"
            photo(root / place, 10 * number + study)
            lines.append(f"CheXpert-v1.0-small/{place},Female,{30 + number},Frontal,{cells}\n")
    (root / "train.csv").write_text(CHEXPERT + "".join(lines))
    return root


def test_uncertain_and_empty_cells_are_never_no(tmp_path: Path) -> None:
    rows = {1: ",1.0,-1.0,", 2: "1.0,0.0,0.0,", 3: ",,1.0,", 4: ",-1.0,,", 5: ",0.0,,"}
    root = chexpert(tmp_path, rows)
    assert detect_format(root) == "classes"
    found = read_labels("auto", root, splits="drawn", val=0.2, test=0.2)
    assert found.scene_classes == ("Edema", "No Finding", "Pneumonia")
    by_patient = {Path(item.image).parts[-3]: item for item in found.items}
    assert (by_patient["patient00001"].tags, set(by_patient["patient00001"].unknown)) == (
        ("Edema",),
        {"No Finding", "Pneumonia"},
    )
    assert (by_patient["patient00002"].tags, by_patient["patient00002"].unknown) == (("No Finding",), ())
    unsaid = by_patient["patient00004"]  # nothing is known of it: it has no labels, and none is a no
    assert unsaid.tags is None and unsaid.unknown == () and unsaid.scene is None
    assert by_patient["patient00005"].tags == () and "Edema" not in by_patient["patient00005"].unknown
    assert [line for line in found.findings if "class" in line] == [
        "train.csv: 2 images have no known class, as all cells are empty or −1 "
        "(train/patient00004/study0/view1_frontal.png for example); kept without labels, not as “no”"
    ]
    assert any("not known, which is no “no”" in line for line in found.understood)
    # Patients by their folders, under names that tell nothing.
    groups = {item.group: {i.split for i in found.items if i.group == item.group} for item in found.items}
    assert len(groups) == 5 and all(len(own) == 1 for own in groups.values())
    assert all(group.startswith("patient-000") for group in groups)
    # Neither questions nor losses take what isn't known for a no.
    item = by_patient["patient00001"]
    states = class_states(item, SetClasses.from_set(found), None)
    assert states == {"Edema": True, "No Finding": None, "Pneumonia": None}
    sample = LabelReader(found, "presence").sample(item)
    assert sample.classes_K is not None and torch.equal(sample.classes_K, torch.tensor([1.0, -1.0, -1.0]))


def test_labels_of_chest_xray14_and_a_column_of_patients(tmp_path: Path) -> None:
    head = "Image Index,Finding Labels,Follow-up #,Patient ID,View Position\n"
    rows = ["Cardiomegaly|Effusion", "No Finding", "Effusion", "No Finding", "Cardiomegaly", "Effusion"]
    for number, cell in enumerate(rows):
        photo(tmp_path / "images" / f"{number:08d}_000.png", number)
        head += f"{number:08d}_000.png,{cell},0,{number // 2},PA\n"
    (tmp_path / "Data_Entry_2017.csv").write_text(head)
    found = read_labels("auto", tmp_path)
    assert [item.tags for item in found.items][:2] == [("Cardiomegaly", "Effusion"), ("No Finding",)]
    assert [item.group for item in found.items] == [f"patient-000{n}" for n in (1, 1, 2, 2, 3, 3)]


@pytest.mark.parametrize("way", ["beside", "inside", "table"])
def test_reports_are_about_all_images_of_a_study(tmp_path: Path, way: str) -> None:
    table = "subject_id,study_id,findings,impression\n"
    for number in range(4):
        study = tmp_path / "files" / f"p{10_000_000 + number // 2}" / f"s{50_000_000 + number}"
        for view in range(2):
            photo(study / f"view{view}.png", 10 * number + view)
        text = f"FINDINGS: lungs of {number}.\n\nIMPRESSION: nothing new."
        if way == "beside":
            study.with_name(f"{study.name}.txt").write_text(text)
        elif way == "inside":
            (study / "report.txt").write_text(text)
        table += f"{10_000_000 + number // 2},{50_000_000 + number},FINDINGS: lungs of {number}.,IMPRESSION: nothing new.\n"
    if way == "table":
        (tmp_path / "reports.csv").write_text(table)
    assert detect_format(tmp_path) == "captions"
    found = read_labels("auto", tmp_path)
    assert len(found) == 8
    for item in found.items:
        number = int(Path(item.image).parts[-2][-1])
        assert item.captions == (f"FINDINGS: lungs of {number}. IMPRESSION: nothing new.",)
        assert item.group == f"patient-000{number // 2 + 1}"


def dicom(path: Path, seed: int, patient: str, modality: str = "DX") -> Path:
    pydicom: Any = pytest.importorskip("pydicom")
    data = pydicom.Dataset()
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", f"1.2.3.{seed}"
    data.Modality, data.PatientID, data.PatientName = modality, patient, f"Doe^{patient}"
    data.StudyInstanceUID, data.SeriesInstanceUID = f"1.2.4.{seed}", f"1.2.5.{seed}"
    data.BodyPartExamined, data.ViewPosition = "CHEST", "PA"
    data.PixelSpacing = [0.2, 0.3]
    pixels = np.random.default_rng(seed).integers(0, 4000, (12, 16)).astype(np.uint16)
    data.set_pixel_data(pixels, "MONOCHROME2", 12)
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def test_x_rays_in_class_folders_are_split_by_the_patient_of_their_header(tmp_path: Path) -> None:
    for number in range(12):
        dicom(tmp_path / ("ill", "well")[number % 2] / f"{number}.dcm", number, f"ID{number // 3}")
    found = read_labels("auto", tmp_path, val=0.25, test=0.25)
    assert found.scene_classes == ("ill", "well") and len(found) == 12
    groups = {item.group: {i.split for i in found.items if i.group == item.group} for item in found.items}
    assert sorted(groups) == [f"patient-000{n}" for n in range(1, 5)] and all(
        len(own) == 1 for own in groups.values()
    )
    item = found.items[0]
    assert item.metadata == {"modality": "DX", "body_part": "chest", "view": "PA"} and item.level is None
    assert (item.width, item.height) == (16, 12) and item.spacing == pytest.approx((0.3, 0.2))
    assert "ID0" not in repr(found) and "Doe" not in repr(found)


def test_volumes_of_a_class_give_their_middle_slice_or_each_nth(tmp_path: Path) -> None:
    nibabel: Any = pytest.importorskip("nibabel")
    table = "file,label\n"
    for number in range(6):
        values = np.random.default_rng(number).integers(0, 99, (10, 9, 7)).astype(np.int16)
        (tmp_path / "scans").mkdir(exist_ok=True)
        nibabel.save(
            nibabel.Nifti1Image(values, np.diag([1, 1, 4.0, 1])), tmp_path / f"scans/case_{number}.nii.gz"
        )
        table += f"case_{number}.nii.gz,{'ab'[number % 2]}\n"
    (tmp_path / "labels.csv").write_text(table)
    found = read_labels("auto", tmp_path)
    assert len(found) == 6 and found.items[0].image.endswith("case_0.nii.gz#slice=3&plane=axial")
    assert any(
        "the middle slice (-o every=N takes each Nth) is the image" in line for line in found.understood
    )
    several = read_labels("auto", tmp_path, every=3)
    assert len(several) == 18 and {item.level for item in several.items} == {0.0, 0.5, 1.0}
    assert len({(item.image.partition("#")[0], item.split) for item in several.items}) == 6


def test_compile_says_which_images_are_in_no_question_and_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {1: ",1.0,,", 2: ",0.0,1.0,", 3: ",,,", 4: ",-1.0,-1.0,", 5: ",,0.0,", 6: ",1.0,1.0,"}
    root = chexpert(tmp_path / "set", rows)
    assert run(["data", "compile", str(root), "--out", str(tmp_path / "out"), "-o", "splits=drawn"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "4 because no label of theirs is known" in shown and "never taken for a “no”" in shown
    assert "4 images have no known class" in shown
    kept = read_labels("vitp", tmp_path / "out")
    assert len(kept) == 12 and sum(item.tags is None for item in kept.items) == 4
    records = "".join((tmp_path / "out" / f"{split}.jsonl").read_text() for split in ("train", "val", "test"))
    assert "patient00003" not in records and "patient00004" not in records
    # A known “no” is a label.
    assert sum(item.tags == () for item in kept.items) == 2
