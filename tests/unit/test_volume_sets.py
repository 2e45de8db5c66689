"""Volumes with masks: folder layouts, grids, classes, splits by patient, and slices as images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.volume_set_toys import RAS, SHAPE, axial, by_id, labels, nifti, nnunet, read, said, scan
from vitp.cli import run
from vitp.core.errors import DataError
from vitp.data.formats import read_labels
from vitp.data.formats.vitp_labels import Roots, item_from_json, label_line
from vitp.data.formats.volume_names import joined_address, volume_stem
from vitp.io.images import load_planes
from vitp.io.open_pixels import open_pixels
from vitp.records.labels import IGNORE

nibabel = pytest.importorskip("nibabel")
pytest.importorskip("SimpleITK")
pytest.importorskip("pydicom")


def test_nnunet_folders_become_slices_by_patient(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = nnunet(tmp_path / "set", 8)
    nifti(root / "imagesTs/case_900_0000.nii.gz", scan(90))
    found = read(root)
    items = by_id(found)
    assert len(items) == 9 * 6 and found.semantic_classes == ("background", "liver", "spleen", "kidney")
    for number in (0, 3, 5):
        item = items[f"case_004/{number:04d}"]
        assert np.array_equal(item.semantic(), axial(labels(4), number))
        assert item.image.endswith(f"case_004_0000.nii.gz#slice={number}&plane=axial")
        assert (item.width, item.height, item.spacing, item.thickness) == (14, 12, (2.0, 2.0), 5.0)
        assert item.level == number / 5 and item.metadata == {"modality": "CT", "plane": "axial"}
    # Test cases without labels are images that nobody labelled, whatever becomes of the others.
    unlabelled = [item for item in found.items if item.semantic is None]
    assert {item.split for item in unlabelled} == {"test"} and len(unlabelled) == 6
    sides = {
        item.group: {other.split for other in found.items if other.group == item.group}
        for item in found.items
    }
    assert all(len(own) == 1 for own in sides.values()) and len(sides) == 9
    assert {item.split for item in found.items if item.semantic} == {"train", "val", "test"}
    assert sorted(sides) == [f"patient-{number:04d}" for number in range(1, 10)]
    assert "pixels of 2 × 2 mm, 5 mm from slice to slice" in said(found, "9 volumes (CT 9)")
    # Written down and read again, and through the command.
    roots = Roots(tmp_path / "out", root, root)
    item = items["case_004/0003"]
    again = item_from_json(json.loads(label_line(item, roots)), item.split, roots)
    assert again == item and np.array_equal(again.semantic(), item.semantic())
    assert run(["data", "compile", str(root), "--out", str(tmp_path / "c"), "-o", "plane=axial"]) == 0
    shown = capsys.readouterr().out
    assert "understood as volumes" in shown and "values of the masks: 0 = background, 1 = liver" in shown
    assert "case_" not in json.dumps([i.group for i in read_labels("vitp", tmp_path / "c").items])


def test_training_keeps_few_slices_without_labels_and_tests_keep_all(tmp_path: Path) -> None:
    for number in range(10):
        values = np.zeros(SHAPE, np.uint8)
        values[:, :, 2] = 1 + number % 3
        nifti(tmp_path / f"images/{number}.nii.gz", scan(number))
        nifti(tmp_path / f"labels/{number}.nii.gz", values)
    found = read(tmp_path, background=0.25, classes="a=1,b=2,c=3")
    empty = {
        split: [i for i in found.split(split).items if not i.semantic().any()]
        for split in ("train", "val", "test")
    }
    assert [len(empty[s]) for s in ("train", "val", "test")] == [2, 5, 5]
    assert "8 of the training volumes with labels, and 2 of 40 without any" in said(found, "slices")
    assert len(read(tmp_path, background=0.25, every=2, classes="a=1,b=2,c=3").split("test")) == 3


@pytest.mark.parametrize("axes", ["LPS", "RAS", "ASL", "IPR"])
def test_masks_of_another_order_of_axes_are_the_same_slices(tmp_path: Path, axes: str) -> None:
    target = nibabel.orientations.axcodes2ornt(axes)
    for number in range(4):
        nifti(tmp_path / f"images/{number}.nii.gz", scan(number))
        image = nibabel.Nifti1Image(labels(number), RAS)
        turn = nibabel.orientations.ornt_transform(nibabel.orientations.io_orientation(RAS), target)
        turned = image.as_reoriented(turn)
        nifti(tmp_path / f"masks/{number}.nii.gz", np.asarray(turned.dataobj), turned.affine)
    found = read(tmp_path, classes="a=1,b=2,c=3")
    assert not any("other voxels" in line for line in found.understood)
    assert np.array_equal(by_id(found)["2/0003"].semantic(), axial(labels(2), 3))


def test_masks_on_another_grid_are_resampled_by_place_and_it_is_said(tmp_path: Path) -> None:
    fine = np.repeat(np.repeat(labels(1), 2, 0), 2, 1)
    affine = RAS.copy()
    affine[0, 0] = affine[1, 1] = 1.0
    affine[:2, 3] = -0.5  # so that pairs of voxels share the place of one
    for number in range(4):
        nifti(tmp_path / f"images/{number}.nii.gz", scan(number))
        nifti(tmp_path / f"masks/{number}.nii.gz", fine[:, 4:], affine @ _moved(0, 4, 0))
    found = read(tmp_path, classes="a=1,b=2,c=3")
    assert "4 masks have other voxels than their images" in said(found, "4 masks")
    item = by_id(found)["1/0003"]
    expected = axial(labels(1), 3).copy()
    expected[-2:] = IGNORE  # what the mask doesn't cover isn't known
    assert np.array_equal(item.semantic(), expected)
    roots = Roots(tmp_path / "out", tmp_path, tmp_path)
    again = item_from_json(json.loads(label_line(item, roots)), item.split, roots)
    assert np.array_equal(again.semantic(), expected)


def _moved(*voxels: int) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = voxels
    return matrix


def test_a_flipped_header_is_never_read_voxel_by_voxel_in_silence(tmp_path: Path) -> None:
    flipped = np.diag([-2.0, 2.0, 5.0, 1.0])
    flipped[0, 3] = -200.0
    for number in range(3):
        nifti(tmp_path / f"images/{number}.nii.gz", scan(number))
        nifti(tmp_path / f"masks/{number}.nii.gz", labels(number), flipped)
    with pytest.raises(DataError, match=r"lies elsewhere in the patient than its image.*-o grid=voxels"):
        read(tmp_path, classes="a=1,b=2,c=3")
    found = read(tmp_path, classes="a=1,b=2,c=3", grid="voxels")
    assert np.array_equal(by_id(found)["2/0003"].semantic(), axial(labels(2), 3))
    # A mirrored one in the same place isn't the same: each pixel has the label that lies there.
    mirrored = np.diag([-2.0, 2.0, 5.0, 1.0])
    mirrored[0, 3] = 2.0 * (SHAPE[0] - 1)
    for number in range(3):
        nifti(tmp_path / f"masks/{number}.nii.gz", labels(number), mirrored)
    found = read(tmp_path, classes="a=1,b=2,c=3")
    assert np.array_equal(by_id(found)["2/0003"].semantic(), axial(labels(2)[::-1], 3))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda values: values.astype(np.float32) * 0.37, "labels that are no whole numbers"),
        (lambda values: np.stack([values, values], 3), "holds 2 values a voxel"),
        (lambda values: np.zeros_like(values), "no mask holds any of the classes"),
        (lambda values: values * 9, "100% of the labelled voxels|no mask holds any"),
    ],
)
def test_masks_that_are_none_are_refused(tmp_path: Path, change: Any, match: str) -> None:
    nnunet(tmp_path, 3)
    for number in range(3):
        nifti(tmp_path / f"labelsTr/case_{number:03d}.nii.gz", change(labels(number)))
    with pytest.raises(DataError, match=match):
        read(tmp_path)


def test_whole_floats_unknown_values_and_missing_masks(tmp_path: Path) -> None:
    nnunet(tmp_path, 6)
    strange = labels(1).astype(np.float32)
    strange[5, 5, 2] = 9
    nifti(tmp_path / "labelsTr/case_001.nii.gz", strange)
    (tmp_path / "labelsTr/case_003.nii.gz").unlink()
    nifti(tmp_path / "labelsTr/case_404.nii.gz", labels(4))
    found = read(tmp_path, splits="folders")
    items = by_id(found)
    expected = axial(np.where(strange == 9, IGNORE, strange), 2)
    assert np.array_equal(items["case_001/0002"].semantic(), expected)
    assert items["case_003/0002"].semantic is None
    assert any("values that no class has, ignored there: 9 (1 voxels)" in line for line in found.findings)
    assert any(
        "case_003" in line and "no mask; its slices are not labelled" in line for line in found.findings
    )
    assert any("case_404" in line and "its image is missing" in line for line in found.findings)


def test_regions_are_painted_in_their_order(tmp_path: Path) -> None:
    regions = {
        "background": 0,
        "whole tumour": [1, 2, 3],
        "tumour core": [2, 3],
        "enhancing": [3],
        "ignore": 7,
    }
    nnunet(tmp_path, 4, {"labels": regions, "regions_class_order": [1, 2, 3]})
    odd = labels(0)
    odd[3, 3, 2] = 7
    nifti(tmp_path / "labelsTr/case_000.nii.gz", odd)
    found = read(tmp_path)
    assert found.semantic_classes == ("background", "whole tumour", "tumour core", "enhancing")
    expected = axial(np.where(odd == 7, IGNORE, odd), 2)
    assert np.array_equal(by_id(found)["case_000/0002"].semantic(), expected)
    assert "1 → whole tumour, 2 → tumour core, 3 → enhancing" in said(found, "regions overlap")
    hidden = {"background": 0, "core": [2, 3], "whole": [1, 2, 3]}
    nnunet(tmp_path, 4, {"labels": hidden})
    with pytest.raises(DataError, match=r"core can't be seen.*name larger regions first"):
        read(tmp_path)


def test_published_folds_and_version_one(tmp_path: Path) -> None:
    old = {
        "channel_names": None,
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "a", "2": "b", "3": "c"},
    }
    nnunet(tmp_path, 4, old)
    names = [f"case_{number:03d}" for number in range(4)]
    folds = [{"train": names[:2], "val": names[2:]}, {"train": names[2:], "val": names[:2]}]
    (tmp_path / "splits_final.json").write_text(json.dumps(folds))
    found = read(tmp_path, fold=1)
    assert {i.id[:8]: (i.split, i.fold) for i in found.items} == {
        "case_000": ("val", 1), "case_001": ("val", 1), "case_002": ("train", 0), "case_003": ("train", 0)
    }  # fmt: skip
    assert "from splits_final.json, fold 1 of 0–1" in said(found, "splits")
    assert (
        found.semantic_classes == ("background", "a", "b", "c")
        and found.items[0].metadata["modality"] == "MR"
    )
    assert {i.split for i in read(tmp_path, splits="drawn").items} == {"train", "val", "test"}


def test_a_folder_a_case_with_modalities_and_overlapping_objects(tmp_path: Path) -> None:
    for number in range(3):
        folder = tmp_path / "brats" / f"BraTS2021_{number:05d}"
        for k, word in enumerate(("t1", "t1ce", "flair")):
            nifti(folder / f"{folder.name}_{word}.nii.gz", scan(10 * number + k))
        nifti(folder / f"{folder.name}_seg.nii.gz", labels(number))
    found = read(tmp_path / "brats", classes="core=1,oedema=2,enhancing=3", channels="flair,t1")
    item = by_id(found)["BraTS2021_00001/0002"]
    assert item.image.endswith("BraTS2021_00001_{flair,t1}.nii.gz#slice=2&plane=axial")
    assert found.channels is not None and item.metadata["modality"] == "MR"
    assert np.array_equal(item.semantic(), axial(labels(1), 2))
    outer, inner = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    outer[2:10, 2:10, 1:5], inner[4:6, 4:6, 2] = 1, 255
    for number in range(3):
        folder = tmp_path / "objects" / f"s{number:04d}"
        nifti(folder / "ct.nii.gz", scan(number))
        nifti(folder / "segmentations" / "liver.nii.gz", outer)
        nifti(folder / "segmentations" / "tumour.nii.gz", inner)
    found = read(tmp_path / "objects")
    assert found.semantic_classes == ("background", "liver", "tumour")
    assert np.array_equal(by_id(found)["s0001/0002"].semantic(), axial(np.where(inner > 0, 2, outer), 2))
    assert "liver and tumour in 12 voxels" in said(found, "objects overlap")
    with pytest.raises(DataError, match=r"shows nothing of tumour.*-o classes=OUTER,INNER"):
        read(tmp_path / "objects", classes="tumour,liver")
    only = read(tmp_path / "objects", classes="tumour")
    assert np.array_equal(by_id(only)["s0001/0002"].semantic(), axial(np.where(inner > 0, 1, outer * 255), 2))


@pytest.mark.parametrize(
    ("options", "pair", "voxels"),
    [
        ({}, "liver and lesion", 12),  # the smaller one is painted over the larger one
        ({"classes": "liver,lesion,vessel"}, "liver and lesion", 12),
        ({"classes": "liver,vessel"}, "liver and vessel", 4),
    ],
)
def test_overlapping_objects_are_named_as_they_overlap(
    tmp_path: Path, options: dict[str, str], pair: str, voxels: int
) -> None:
    masks = {name: np.zeros(SHAPE, np.uint8) for name in ("liver", "kidney_left", "lesion", "vessel", "spot")}
    masks["liver"][2:10, 2:10, 1:5] = 1
    masks["lesion"][4:6, 4:6, 2:5] = 7
    masks["vessel"][8:11, 8:9, 1:3] = 1  # 4 of its voxels lie in the liver
    masks["spot"][0, 0, 0] = 1  # the smallest one of all overlaps nothing
    for number in range(3):
        folder = tmp_path / f"s{number:04d}"
        nifti(folder / "ct.nii.gz", scan(number))
        for name, mask in masks.items():
            nifti(folder / "segmentations" / f"{name}.nii.gz", mask)
    found = said(read(tmp_path, **options), "objects overlap")
    assert f"{pair} in {3 * voxels} voxels" in found


def test_bids_sessions_of_a_subject_stay_together(tmp_path: Path) -> None:
    for subject in range(4):
        for session in range(2):
            name = f"sub-{subject:02d}_ses-{session}"
            folder = f"sub-{subject:02d}/ses-{session}/anat"
            nifti(tmp_path / folder / f"{name}_T1w.nii.gz", scan(10 * subject + session))
            nifti(tmp_path / "derivatives" / folder / f"{name}_space-orig_dseg.nii.gz", labels(subject))
    found = read(tmp_path, classes="a=1,b=2,c=3")
    groups = {
        item.id[:6]: {(i.group, i.split) for i in found.items if i.id[:6] == item.id[:6]}
        for item in found.items
    }
    assert len(groups) == 4 and all(len(own) == 1 for own in groups.values())
    assert "patients: 4 of 8 volumes" in said(found, "patients")


@pytest.mark.parametrize(
    ("word", "modality"),
    [("T1w", "MR"), ("FLAIR", "MR"), ("bold", "MR"), ("T2star", "MR"), ("pet", "PT"), ("x", "")],
)
def test_suffixes_of_bids_name_the_modality(tmp_path: Path, word: str, modality: str) -> None:
    for number in range(3):
        name = f"sub-{number:02d}/anat/sub-{number:02d}"
        nifti(tmp_path / f"{name}_{word}.nii.gz", scan(number))
        nifti(tmp_path / f"derivatives/m/{name}_dseg.nii.gz", labels(number))
    found = read(tmp_path)
    assert {(item.metadata or {}).get("modality", "") for item in found.items} == {modality}
    assert any(
        f"modality: {modality}, as the names end with {word.lower()}" in line for line in found.understood
    ) == (modality != "")
    assert found.channels is not None
    assert (found.channels.channels[0].transform == "volume") == (modality == "MR")


def test_words_at_the_end_of_names_and_those_that_mean_other_things(tmp_path: Path) -> None:
    for word, modality in (("ct", "CT"), ("flair", "MR"), ("pt", ""), ("scan", "")):
        for number in range(3):
            nifti(tmp_path / word / f"images/c{number}_{word}.nii.gz", scan(number))
            nifti(tmp_path / word / f"labels/c{number}_{word}.nii.gz", labels(number))
        found = read(tmp_path / word)
        assert {(item.metadata or {}).get("modality", "") for item in found.items} == {modality}


def test_channels_are_called_as_dataset_json_calls_them(tmp_path: Path) -> None:
    root = nnunet(tmp_path / "set", 3, channel_names={"0": "T1", "1": "T2"})
    for number in range(3):
        nifti(root / f"imagesTr/case_{number:03d}_0001.nii.gz", scan(50 + number))
    found = read(root)
    assert found.channels is not None
    assert [(one.band, one.number) for one in found.channels.channels] == [("T1", 1), ("T2", 2)]
    item = by_id(found)["case_001/0002"]
    planes = load_planes(item.image, channels=found.channels)
    swapped = read(root, bands="t2,T1")
    assert swapped.channels is not None and swapped.channels.bands == ("t2", "T1")
    assert np.array_equal(load_planes(item.image, channels=swapped.channels), planes[::-1])
    # One of them, by its name; where all are called alike, the files' own numbers stay.
    only = read(root, channels="T2")
    assert by_id(only)["case_001/0002"].image.endswith("case_001_0001.nii.gz#slice=2&plane=axial")
    (root / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "noNorm", "1": "noNorm"}, "labels": {"background": 0, "a": 1}})
    )
    alike = read(root, classes="a=1,b=2,c=3")
    assert alike.channels is not None and alike.channels.bands == ("1", "2")
    # Several in the fourth axis of one file, as the Decathlon has them.
    four = tmp_path / "four"
    for number in range(3):
        nifti(four / f"imagesTr/b_{number}.nii.gz", np.stack([scan(number), scan(9 + number)], -1))
        nifti(four / f"labelsTr/b_{number}.nii.gz", labels(number))
    told = {
        "modality": {"0": "FLAIR", "1": "T1w"},
        "labels": {"0": "background", "1": "a", "2": "b", "3": "c"},
    }
    (four / "dataset.json").write_text(json.dumps(told))
    found = read(four)
    assert found.channels is not None
    assert [(one.band, one.number) for one in found.channels.channels] == [("FLAIR", 1), ("T1w", 2)]
    item = by_id(found)["b_1/0003"]
    assert np.array_equal(item.semantic(), axial(labels(1), 3))
    with open_pixels(item.image) as pixels:
        assert np.array_equal(pixels.read(), np.stack([axial(scan(1), 3), axial(scan(10), 3)]))


def test_numbers_without_names_have_two_readings(tmp_path: Path) -> None:
    for number in range(3):
        values = np.zeros(SHAPE, np.uint16)
        for nodule in range(number + 2):
            values[3 * nodule : 3 * nodule + 2, 3:6, 2:4] = nodule + 1
        nifti(tmp_path / f"images/{number}.nii.gz", scan(number))
        nifti(tmp_path / f"masks/{number}.nii.gz", values)
    with pytest.raises(DataError, match=r"classes or numbers of objects.*mask_type=instances"):
        read(tmp_path)
    found = read(tmp_path, mask_type="instances", classes="nodule")
    item = by_id(found)["2/0002"]
    assert found.object_classes == ("nodule",) and len(item.objects) == 4 and item.semantic is None
    assert sorted(label.box for label in item.objects)[0] == (3.0, 6.0, 5.0, 9.0)
    assert by_id(found)["2/0000"].objects == ()
    assert read(tmp_path, mask_type="semantic").semantic_classes[:2] == ("background", "class_1")


def test_names_of_files() -> None:
    assert volume_stem("a/liver_1.nii.gz") == "liver_1" and volume_stem("b.seg.nrrd") == "b"
    paths = [Path(f"/d/case_{word}.nii.gz") for word in ("t1", "t1ce", "flair")]
    assert joined_address(paths) == "/d/case_{t1,t1ce,flair}.nii.gz"
    with pytest.raises(DataError, match="can't be named as the channels of one volume"):
        joined_address([Path("/d/a.nii.gz"), Path("/d/b.nii")])


def test_a_volume_under_two_names_is_one_patient(tmp_path: Path) -> None:
    nnunet(tmp_path, 5)
    for kind, ending in (("imagesTr", "_0000"), ("labelsTr", "")):
        copy = tmp_path / kind / f"case_777{ending}.nii.gz"
        copy.write_bytes((tmp_path / kind / f"case_001{ending}.nii.gz").read_bytes())
    found = read(tmp_path, val=0.3, test=0.3)
    groups = {item.id[:8]: (item.group, item.split) for item in found.items}
    assert groups["case_001"] == groups["case_777"] and len({group for group, _ in groups.values()}) == 5
    assert any("1 volumes are there under several names" in line for line in found.findings)
