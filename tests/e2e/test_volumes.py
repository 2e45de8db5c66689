"""Volumes through the real commands: labels in, a finetuned model, label maps out, and scores that others find, too."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import torch
from scipy import ndimage
from scipy.spatial.distance import cdist

import vitp
from tests.e2e.conftest import done, fork, program, write_config
from tests.forks import fork_ranks
from vitp.inference.unfinished import unfinished_folder
from vitp.models.vision import VisionSettings, VisionTower
from vitp.records.channels import Channel, Channels
from vitp.scenes.volume_files import write_dicom_series, write_nifti, write_nnunet
from vitp.scenes.volumes import TrunkVolume, make_volume
from vitp.tasks.base import TestSettings
from vitp.tasks.build import NeckSettings, build_model

SIZE = (64, 48, 8)
TOLERANCE = 6.0
TINY = ("-s", "neck.options.channels=16", "-s", "head.kind=fpn", "-s", "head.width=16")
EAGER = ("-s", "optim.lr=0.01", "-s", "head.class_weights=[0.03,1,1,1,1,1,1,1]")
"""So that a few steps suffice to find something."""


def labels_in(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


def border_mm(mask: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    return np.argwhere(mask & ~ndimage.binary_erosion(mask)) * np.array(spacing)


def independent(
    truth: np.ndarray, guess: np.ndarray, spacing: tuple[float, ...]
) -> tuple[float, float, float]:
    """Return Dice, surface Dice and HD95 of two masks by comparing every border voxel with every other."""
    if not truth.any() or not guess.any():
        return 0.0, 0.0, float(np.linalg.norm(np.array(truth.shape) * spacing))
    between = cdist(border_mm(guess, spacing), border_mm(truth, spacing))
    nearest = between.min(1), between.min(0)
    near = sum(int((each <= TOLERANCE).sum()) for each in nearest) / sum(map(len, nearest))
    dice = 2 * (truth & guess).sum() / (truth.sum() + guess.sum())
    return float(dice), near, max(float(np.percentile(each, 95)) for each in nearest)


@pytest.mark.slow
def test_from_volumes_to_scores_in_millimetres(tmp_path: Path) -> None:
    volumes = write_nnunet(tmp_path / "volumes", 6, size=SIZE, twice=1)
    done("data", "compile", tmp_path / "volumes", "--out", tmp_path / "data", "-o", "val=0.2", "-o", "test=0.3",
         "-o", "plane=axial")  # fmt: skip
    labelled = vitp.read_compiled(tmp_path / "data")
    patients = {
        split: {item.id.split("_")[0] for item in labelled.split(split).items} for split in ("train", "test")
    }
    assert patients["test"] and not patients["train"] & patients["test"]
    settings = write_config(tmp_path / "run.yaml", tmp_path / "data")
    done("pretrain", settings, "--out", tmp_path / "run", "--steps", 2)
    model = tmp_path / "organs"
    done("finetune", "segmentation", "--data", tmp_path / "data", "--backbone", tmp_path / "run", "--out", model,
         "--steps", 16, *TINY, *EAGER, "-s", f"test.tolerance={TOLERANCE}", "-s", "data.global_batch=4")  # fmt: skip
    cases = sorted({name for name in volumes if name.split("_")[0] in patients["test"]})
    for name in cases:
        write_dicom_series(volumes[name], tmp_path / "series" / name, name=name)
    images = [tmp_path / "volumes/imagesTr" / f"{name}_0000.nii.gz" for name in cases]
    done("predict", model, *images, "--out", tmp_path / "from-nifti")
    done("predict", model, tmp_path / "series", "--out", tmp_path / "from-dicom", "--format", "dicom-seg")
    table = {
        (row["case"], row["class"]): row
        for row in csv.DictReader((tmp_path / "from-dicom/volumes.csv").open())
    }
    scored = {(row["case"], row["class"]): row for row in csv.DictReader((model / "cases.csv").open())}
    classes = ["background", *next(iter(volumes.values())).classes]
    seen = 0
    for name in cases:
        volume = volumes[name]
        labels = labels_in(tmp_path / "from-nifti/masks" / f"{name}_0000.nii.gz")
        assert np.array_equal(labels, labels_in(tmp_path / "from-dicom/masks" / f"{name}.nii.gz"))
        np.testing.assert_allclose(
            nibabel.load(tmp_path / "from-dicom/masks" / f"{name}.nii.gz").affine, volume.affine_44, atol=1e-3
        )
        check_dicom_seg(tmp_path / "from-dicom/dicom-seg" / f"{name}.dcm", tmp_path / "series" / name, labels)
        for number, category in enumerate(classes[1:], 1):
            (found,) = [
                value for key, value in scored.items() if key[1] == category and key[0].startswith(name)
            ]
            check_scores(volume, number, category, labels, table[name, category], found)
            seen += bool((labels == number).any())
    assert seen, "the model is to find something, else the scores say nothing"
    scores = json.loads((model / "scores.json").read_text())
    dice = [float(row["dice"]) for (_, category), row in scored.items() if category == "liver"]
    assert scores["per_class"]["liver"]["case_dice"] == pytest.approx(np.mean(dice), abs=1e-5)
    assert scores["values"]["cases"] == len(cases)
    said = done("eval", model, tmp_path / "data", "-s", f"tolerance={TOLERANCE}").out
    assert "case_hd95_mm" in said
    (again,) = model.glob("cases-*-test.csv")
    assert again.read_text() == (model / "cases.csv").read_text()
    assert "not a medical device" in again.with_suffix(".html").read_text()


def check_scores(
    volume: TrunkVolume,
    number: int,
    category: str,
    labels_IJK: np.ndarray,
    row: dict[str, str],
    found: dict[str, str],
) -> None:
    """Check what the tables of predictions and of scores say of a class against its voxels."""
    truth, guess = volume.labels_IJK == number, labels_IJK == number
    millilitres = guess.sum() * np.prod(volume.spacing) / 1000
    assert int(row["voxels"]) == guess.sum()
    assert float(row["ml"]) == pytest.approx(millilitres, rel=1e-4)
    assert float(found["true"]) == pytest.approx(volume.millilitres(category), rel=1e-4)
    assert float(found["predicted"]) == pytest.approx(millilitres, rel=1e-4)
    if truth.any() or guess.any():
        wanted = independent(truth, guess, volume.spacing)
        scores = [float(found[key]) for key in ("dice", "surface_dice", "hd95")]
        assert scores == pytest.approx(wanted, rel=1e-4)
    else:
        assert found["dice"] == ""


def check_dicom_seg(path: Path, series: Path, labels_IJK: np.ndarray) -> None:
    """Check with highdicom that each segment covers the labels, at the places of the source's images."""
    segmentation = highdicom.seg.segread(path)
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in series.iterdir()]
    headers.sort(key=lambda header: float(header.ImagePositionPatient[2]))
    uids = [str(header.SOPInstanceUID) for header in headers]
    names = [segmentation.get_segment_description(n).segment_label for n in segmentation.segment_numbers]
    assert names[:2] == ["lung", "liver"]
    found_KJI = segmentation.get_pixels_by_source_instance(
        uids, combine_segments=True, assert_missing_frames_are_empty=True
    )
    assert np.array_equal(found_KJI, labels_IJK.transpose(2, 1, 0))


def save_model(folder: Path) -> Path:
    """Save a model of CT slices."""
    torch.manual_seed(0)
    channels = Channels(channels=(Channel(band="1", low=-1000, high=1000),))
    vision = {"arguments": {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8}, "image_size": 32}
    tower = VisionTower(VisionSettings.model_validate({**vision, "channels": channels.model_dump()}))
    model = build_model(
        "segmentation", tower, ("background", "liver"), NeckSettings(options={"channels": 8}), {"width": 8}
    )
    model.description["test"] = TestSettings(batch_size=2).model_dump()
    model.eval().save_pretrained(folder)
    return folder


def outputs(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_killed_prediction_and_several_processes_give_the_same_files(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    for number in range(2):
        write_nifti(volume(number), tmp_path / "in" / f"{number}.nii.gz")
    command = ("predict", model, tmp_path / "in", "--probabilities", "--out")
    done(*command, tmp_path / "whole")
    out, work = tmp_path / "killed", unfinished_folder(tmp_path / "killed")
    process = fork(*command, out)
    while process.poll() is None:
        if sum(len(file.read_text().split()) for file in work.glob("parts/*/done-*.txt")) >= 3:
            process.kill()
        time.sleep(0.002)
    assert process.returncode == -9 and not out.exists()
    done(*command, out, "--resume")
    assert outputs(out) == outputs(tmp_path / "whole")
    fork_ranks(program(*command, tmp_path / "shared"), 2, timeout=240)
    assert outputs(tmp_path / "shared") == outputs(tmp_path / "whole")


def volume(seed: int) -> TrunkVolume:
    return make_volume(seed, size=(96, 80, 60))
