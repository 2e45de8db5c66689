"""Volumes with masks: folder layouts, grids, classes, objects, splits by patient, and slices as images."""

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
from vitp.cli import run
from vitp.core.errors import DataError
from vitp.data.formats import read_labels
from vitp.data.formats.vitp_labels import Roots, item_from_json, label_line
from vitp.data.formats.volume_names import joined_address, volume_stem
from vitp.io.images import load_planes
from vitp.io.open_pixels import open_pixels
from vitp.io.volumes import open_volume
from vitp.records.labels import IGNORE, LabelledImage, LabelledSet

nibabel = pytest.importorskip("nibabel")
pytest.importorskip("SimpleITK")
pytest.importorskip("pydicom")

SHAPE = (14, 12, 6)
RAS = np.diag([2.0, 2.0, 5.0, 1.0])


def nifti(path: Path, values: np.ndarray, affine: np.ndarray = RAS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return path


def scan(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1000, shape).astype(np.int16)


def labels(seed: int = 0, shape: tuple[int, int, int] = SHAPE, top: int = 3) -> np.ndarray:
    """Three labels, nothing in the first and the last slice, and no two slices alike."""
    found = np.random.default_rng(100 + seed).integers(0, top + 1, shape).astype(np.uint8)
    found[:, :, 0] = found[:, :, -1] = 0
    return found


def nnunet(root: Path, cases: int = 6, head: dict[str, Any] | None = None, **kinds: Any) -> Path:
    for number in range(cases):
        nifti(root / f"imagesTr/case_{number:03d}_0000.nii.gz", scan(number))
        nifti(root / f"labelsTr/case_{number:03d}.nii.gz", labels(number))
    told = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "spleen": 2, "kidney": 3}}
    (root / "dataset.json").write_text(json.dumps({**told, **(head or {}), **kinds}))
    return root


def read(root: Path, **options: Any) -> LabelledSet:
    return read_labels("auto", root, **{"plane": "axial", "background": 10, **options})


def by_id(found: LabelledSet) -> dict[str, LabelledImage]:
    return {item.id: item for item in found.items}


def axial(array_RAS: np.ndarray, number: int) -> np.ndarray:
    """Return a slice of an array in RAS+ as radiologists see it: front up, the patient's right on the left."""
    return array_RAS[::-1, ::-1, number].T


def said(found: LabelledSet, begin: str) -> str:
    return next(line for line in found.understood if line.startswith(begin))


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


# --- DICOM


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


# --- data check


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


def test_what_dataset_json_says_must_be_there(tmp_path: Path) -> None:
    root = nnunet(tmp_path, 2, {"labels": ["background", "a", "b", "c"], "numTraining": 5})
    found = read(root)
    assert found.semantic_classes == ("background", "a", "b", "c")
    assert any("numTraining is 5, but 2 cases" in line for line in found.findings)
    for head, message in (
        ({"labels": ["a", "b", "c"]}, 'not with "background" first'),
        ({"labels": None}, "labels that name no values"),
        ({"channel_names": {"0": "T1", "1": "T2"}}, r"names 2 channels \(T1, T2\), but the cases have 1"),
    ):
        nnunet(tmp_path, 1, head)
        with pytest.raises(DataError, match=message):
            read(root)
