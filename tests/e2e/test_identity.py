"""Nothing that tells of whom an image is leaves it: not into a file that any command writes, nor onto the console."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from tests.e2e.conftest import Result, done, vitp, write_config
from tests.identity_files import (
    LEAK,
    canary_tags,
    leaks,
    name_nifti,
    write_named_series,
    write_nrrd,
    write_pictures,
)
from vitp.data.formats import read_labels
from vitp.data.formats.privacy import with_privacy_findings
from vitp.inference.dicom_seg import write_dicom_seg
from vitp.io.volumes import open_volume
from vitp.records.labels import BACKGROUND, LabelledImage, LabelledSet
from vitp.scenes.volume_files import write_dicom_series, write_nnunet
from vitp.scenes.volumes import TRUNK_CLASSES, make_volume

SIZE = (32, 32, 6)
TINY = ("-s", "data.global_batch=2", "-s", "train.val_every=0")

DEMANDED = {
    *(
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "PatientSex",
        "StudyDate",
        "StudyID",
        "AccessionNumber",
    ),
    *(
        "ContentDate",
        "SeriesDate",
        "InstanceCreationDate",
    ),  # the source's, so that equal predictions are equal files
}
"""What patient, study and frame of reference of a DICOM-SEG are, which the user asked for."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DICOM series with segmentations, an nnU-Net folder, an NRRD file and pictures, all full of names."""
    root = tmp_path_factory.mktemp("files")
    for number in range(5):
        volume = make_volume(number, size=SIZE, lesions=1)
        folder = root / "dicom" / f"case{number}"
        write_named_series(volume, folder / "ct", name=f"s{number}", patient=f"P{number}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opened = open_volume(str(folder / "ct"))
            np.testing.assert_allclose(np.array(opened.grid.affine), volume.affine_44, atol=1e-3)
            names = (BACKGROUND, *TRUNK_CLASSES)
            write_dicom_seg(folder / "seg.dcm", opened, volume.labels_IJK, names, "0" * 64)
    write_nnunet(root / "nnunet", 4, size=SIZE)
    for path in (root / "nnunet").rglob("*.nii.gz"):
        name_nifti(path)
    write_nrrd(make_volume(9, size=SIZE), root / "ct.nrrd")
    write_pictures(root / "pictures", ("nodule", "normal"), 6)
    write_pictures(root / "masks", ("images",), 12)
    for path in (root / "masks" / "images").iterdir():
        mask_HW = np.zeros((80, 80), np.uint8)
        mask_HW[20:60, 20:60] = 1
        (root / "masks" / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask_HW).save(root / "masks" / "masks" / f"{path.stem}.png")
    return root


def clean(result: Result, *folders: Path) -> None:
    """Fail where a name is on the console or in a file."""
    assert not LEAK.search((result.out + result.err).encode()), result.out + result.err
    assert [line for folder in folders for line in leaks(folder)] == []


def test_every_tag_of_text_is_named(files: Path) -> None:
    """The files are what the test says they are: without this the others would prove nothing."""
    path = next((files / "dicom" / "case0" / "ct").iterdir())
    data = pydicom.dcmread(path)
    texts = [e for e in data.iterall() if LEAK.search(str(e.value).encode())]
    assert len(texts) > 450 and len(canary_tags()) > 450
    assert {e.VR for e in texts} >= {"PN", "LO", "SH", "ST", "LT", "UT", "UC", "DA", "UI", "UN", "OB", "AE"}
    assert len(leaks(files)) > 30
    assert any("!iCCP" in line for line in leaks(files)) and any("!gz" in line for line in leaks(files))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dicom", "nnunet"])
def test_volumes_leave_no_name_anywhere(kind: str, files: Path, tmp_path: Path) -> None:
    data, run, task = (tmp_path / name for name in ("data", "run", "task"))
    source = files / kind
    clean(done("data", "compile", source, "--out", data, "--neighbours", 1, "--questions", 3), data)
    clean(vitp("data", "check", data), data)
    clean(vitp("data", "check", source))
    clean(done("data", "show", data, "--out", tmp_path / "show.html"), tmp_path)
    config = write_config(
        tmp_path / "run.yaml",
        data,
        train={"steps": 2},
        log={"trackers": ["tensorboard"]},
        probe={"data": str(data), "images": 10},
    )
    clean(done("pretrain", config, "--out", run), run)
    clean(done("report", run, "--out", tmp_path / "report.html"), tmp_path)
    clean(done("export", run, "--out", tmp_path / "export"), tmp_path / "export")
    clean(
        done(
            "finetune", "segmentation", "--data", data, "--backbone", run, "--steps", 2, "--out", task, *TINY
        ),
        task,
    )
    clean(done("eval", task, data), tmp_path)
    series = files / "dicom" / "case4" / "ct"
    case = next((files / "nnunet" / "imagesTr").iterdir())
    for number, image in enumerate((series, case, files / "ct.nrrd")):
        out = tmp_path / f"predictions{number}"
        clean(vitp("predict", task, image, "--out", out), out)
    one = f"{series if kind == 'dicom' else case}#slice=2"
    clean(vitp("ask", run, one, "Is anything abnormal?"), tmp_path)
    clean(vitp("features", run, "--images", one, "--out", tmp_path / "features"), tmp_path)
    clean(vitp("robustness", task, data, "--out", tmp_path / "robust", "--quick"), tmp_path)


@pytest.mark.slow
def test_a_segmentation_holds_what_the_standard_demands_alone(files: Path, tmp_path: Path) -> None:
    task, out = tmp_path / "task", tmp_path / "out"
    source = files / "dicom"
    done(
        "finetune",
        "segmentation",
        "--data",
        source,
        "--backbone",
        "random",
        "--steps",
        1,
        "--out",
        task,
        *TINY,
    )
    result = done("predict", task, source / "case4" / "ct", "--out", out, "--format", "dicom-seg")
    assert not LEAK.search((result.out + result.err).encode())
    others = [line for line in leaks(tmp_path) if ".dcm" not in line]
    assert others == []
    (path,) = out.rglob("*.dcm")
    named = {e.keyword or str(e.tag) for e in pydicom.dcmread(path) if LEAK.search(str(e.value).encode())}
    assert named <= DEMANDED
    assert "PatientID" in named


def test_pictures_leave_comments_and_profiles_behind(files: Path, tmp_path: Path) -> None:
    out, read = tmp_path / "crops", ("data", "compile", files / "pictures", "--format", "folders")
    clean(done(*read, "--out", tmp_path / "whole", "-o", "abnormal=nodule"), tmp_path)
    done("data", "compile", files / "masks", "--out", out, "--crop", 40)
    clean(done("data", "show", out, "--out", tmp_path / "crops.html"), tmp_path)
    clean(done("data", "show", tmp_path / "whole", "--out", tmp_path / "show.html"), tmp_path)


def test_refusals_quote_no_header(files: Path, tmp_path: Path) -> None:
    source = next((files / "dicom" / "case0" / "ct").iterdir())
    broken = tmp_path / "broken"
    broken.mkdir()
    for number, (keyword, value) in enumerate(
        [
            ("PhotometricInterpretation", "ZQXJVKPHOTO"),
            ("RescaleType", "ZQXJVKUNIT"),
            ("Modality", "ZQXJVKMODALITY"),
            ("SOPClassUID", "1.2.19431207.4"),
            ("ImageType", ["ZQXJVK", "ZQXJVK", "ZQXJVK"]),
        ]
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = pydicom.dcmread(source)
            setattr(data, keyword, value)
            data.save_as(broken / f"{number}.dcm", enforce_file_format=False)
    whole = source.read_bytes()
    (broken / "cut.dcm").write_bytes(whole[:-100])
    (broken / "header.dcm").write_bytes(whole[:3000])
    (broken / "spacing.dcm").write_bytes(whole.replace(b"(0\x00\x30\x00DS", b"(0\x00\x30\x00LO"))
    for path in sorted(broken.iterdir()):
        one = tmp_path / f"one-{path.stem}"
        (one / "a").mkdir(parents=True)
        (one / "b").mkdir()
        for folder, name in (("a", "1"), ("a", "2"), ("b", "3"), ("b", "4")):
            (one / folder / f"{name}.dcm").write_bytes(path.read_bytes())
        clean(vitp("data", "compile", one, "--out", tmp_path / f"out-{path.stem}", "--format", "folders"))
    clean(Result(0, "", ""), *(folder for folder in tmp_path.glob("out-*")))


# --- findings


def named_set(root: Path, *names: str, **tags: object) -> LabelledSet:
    volume = make_volume(1, size=(8, 8, 1))
    for name in names:
        write_dicom_series(volume, root / name, name=name, tags=tags)
    items = [LabelledImage(name, str(root / name), 8, 8) for name in names]
    return with_privacy_findings(LabelledSet("set", items), root)


def test_paths_that_name_the_patient_are_counted_not_quoted(tmp_path: Path) -> None:
    tags = {"PatientName": "Zqxjvkmeier^Anna Maria", "PatientID": "ZQXJVK-0042"}
    names = ("zqxjvkmeier_anna/ct", "scan/ZQXJVK0042", "series/x", "marias/ct", "zqxjvk/0042b/c")
    (line,) = named_set(tmp_path, *names, **tags).findings
    assert line.startswith(
        "identity: the paths of 3 of 5 DICOM files and series hold the patient's name or id"
    )
    assert not LEAK.search(line.encode())
    assert named_set(tmp_path / "other", "patient/ct", PatientID="pa", PatientName="Li^X").findings == ()


@pytest.mark.parametrize(
    ("tags", "says"),
    [
        ({"BurnedInAnnotation": "YES"}, "1 of 1 DICOM files and series say that text is burnt"),
        ({"Modality": "US"}, "1 of 1 DICOM files and series don't say whether text is burnt"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "don't say whether"),
        ({"Modality": "US", "BurnedInAnnotation": "NO"}, ""),
        ({}, ""),
    ],
)
def test_burnt_in_text_is_warned_of(tags: dict[str, str], says: str, tmp_path: Path) -> None:
    findings = named_set(tmp_path, "a", **tags).findings
    assert says in findings[0] if says else findings == ()


def test_findings_come_with_any_format(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for number in range(4):
            folder = tmp_path / name
            (file,) = write_dicom_series(
                make_volume(number, size=(16, 16, 1)),
                folder,
                name=f"{name}{number}",
                tags={"BurnedInAnnotation": "YES"},
            )
            file.rename(folder / f"{number}.dcm")
    found = read_labels("folders", tmp_path)
    assert any("8 of 8 DICOM files and series say" in line for line in found.findings)
