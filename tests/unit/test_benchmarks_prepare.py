"""`vitp data prepare`: checks, crops, slices, and going on after an interruption."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.benchmark_fixtures import read_nifti, write_benchmark
from vitp.cli import run
from vitp.core.errors import ConfigError, DataError, VitpError
from vitp.data.benchmarks.medical import BRATS_REGIONS, brats_regions, region_dice
from vitp.data.benchmarks.prepare import PrepareSettings, check_download, prepare_benchmark
from vitp.data.formats import read_labels
from vitp.io.images import load_planes
from vitp.records.labels import LabelledSet


def splits(labelled: LabelledSet) -> dict[str, int]:
    return dict(Counter(item.split for item in labelled.items))


def test_a_set_without_crops_becomes_labels_that_point_into_the_download(tmp_path: Path) -> None:
    root = write_benchmark("dior", tmp_path / "download")
    made = prepare_benchmark("dior", root, tmp_path / "out", PrepareSettings(protocol="paper"))
    assert made.splits == {"train": 2, "val": 1, "test": 2} and not made.again
    assert made.counts[0] == "train: 2 images, 5,862 are published"
    read = read_labels("auto", tmp_path / "out")
    assert splits(read) == made.splits and read.name == "dior"
    assert Path(read.items[0].image).is_relative_to(root) and Path(read.items[0].image).is_file()
    assert prepare_benchmark("dior", root, tmp_path / "out", PrepareSettings(protocol="paper")).again
    with pytest.raises(ConfigError, match="prepared with other settings; replace it with --force"):
        prepare_benchmark("dior", root, tmp_path / "out")
    assert prepare_benchmark("dior", root, tmp_path / "out", force=True).splits["train"] == 2


def test_dota_is_cut_for_training_and_stays_whole_for_the_test(tmp_path: Path) -> None:
    root = write_benchmark("dota_v2", tmp_path / "download")
    steps: list[str] = []

    def progress(title: str, total: int | None) -> Callable[[], None]:
        steps.append(f"{title} {total}")
        return lambda: steps.append("step")

    settings = PrepareSettings(crop=80, overlap=20)
    made = prepare_benchmark("dota_v2", root, tmp_path / "out", settings, progress=progress)
    # 150 × 90 in windows of 80 that share 20: starts 0, 60, 70 and 0, 10; 100 × 100: two starts each way.
    assert made.splits == {"train": 6, "val": 4, "test": 1}
    assert steps == ["DOTA-v2.0: crops of 80 px 2", "step", "step"]
    read = read_labels("auto", tmp_path / "out")
    assert {(item.width, item.height) for item in read.split("train").items} == {(80, 80)}
    assert all(Path(item.image).is_relative_to(tmp_path / "out") for item in read.split("train").items)
    whole = read.split("test").items[0]
    assert whole.image == str(root / "test-dev" / "images" / "P0006.png") and whole.objects is None
    vehicle = [o for item in read.split("train").items for o in item.objects or () if o.difficult]
    # It lies at 60–90 across: windows at 0, 60 and 70, and in each of them windows at 0 and 10 down.
    across = ((60, 80), (0, 30), (0, 20))
    assert [o.box for o in vehicle] == [(x1, y, x2, y + 10) for y in (60, 50) for x1, x2 in across]


def test_an_interrupted_preparation_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_benchmark("levir_cd", tmp_path / "download")
    settings, calls = PrepareSettings(crop=32), 0

    def stop(title: str, total: int | None) -> Callable[[], None]:
        def step() -> None:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise KeyboardInterrupt

        return step

    with pytest.raises(KeyboardInterrupt):
        prepare_benchmark("levir_cd", root, tmp_path / "out", settings, progress=stop)
    assert not (tmp_path / "out").exists()
    waiting = sorted(tmp_path.glob(".out.images-*/**/*.png"))
    assert len(waiting) == 2 * 2 * 4
    times = {path.name: path.stat().st_mtime_ns for path in waiting}
    made = prepare_benchmark("levir_cd", root, tmp_path / "out", settings)
    assert made.splits == {"train": 8, "val": 8, "test": 2}
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "images").rglob("*.png")}
    assert all(after[name] == time for name, time in times.items())
    assert not list(tmp_path.glob(".out.*"))
    item = read_labels("auto", tmp_path / "out").split("train").items[0]
    assert item.change is not None and item.second_image is not None
    assert item.change().shape == (32, 32) and item.change().sum() == 200
    later = np.asarray(Image.open(item.second_image))
    assert np.array_equal(later, np.asarray(Image.open(root / "train" / "B" / "train_0.png"))[:32, :32])


def test_whu_mosaics_are_cut_on_both_sides(tmp_path: Path) -> None:
    root = write_benchmark("whu_cd", tmp_path / "download")
    made = prepare_benchmark("whu_cd", root, tmp_path / "out", PrepareSettings(crop=64))
    assert made.splits == {"train": 6, "val": 0, "test": 4}


def test_checking_only_names_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_benchmark("sardet100k", tmp_path)
    assert check_download("sardet100k", root).splits == {"train": 2, "val": 2, "test": 2}
    (root / "JPEGImages" / "val" / "1000001.jpg").unlink()
    assert run(["data", "prepare", "sardet100k", "--root", str(root), "--check"]) == 2
    error = capsys.readouterr().err
    assert "JPEGImages/val/1000001.jpg is missing" in error and "Y. Li and others" in error
    assert run(["data", "prepare", "sardet100k", "--root", str(root), "--check", "--partial"]) == 0
    shown = capsys.readouterr().out
    assert "train 2, val 1, test 2 images" in shown and "val: 1 images, 10,492 are published" in shown
    assert run(["data", "prepare", "sardet", "--root", str(root), "--check"]) == 2
    assert 'did you mean "sardet100k"' in capsys.readouterr().err


def test_strangers_are_not_overwritten(tmp_path: Path) -> None:
    root = write_benchmark("dior", tmp_path / "download")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    for out in (tmp_path / "mine", root, tmp_path):
        with pytest.raises(ConfigError):
            prepare_benchmark("dior", root, out, force=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all of it"
    with pytest.raises(DataError, match="is not a folder; download DIOR"):
        prepare_benchmark("dior", tmp_path / "nothing", tmp_path / "out")


def test_amos_follows_the_json_and_keeps_to_ct(tmp_path: Path) -> None:
    root = write_benchmark("amos2022", tmp_path / "download")
    made = prepare_benchmark("amos2022", root, tmp_path / "out", PrepareSettings(protocol="paper"))
    # One CT volume of three slices each way; the paper's test images are the official val images.
    assert made.splits == {"train": 3, "val": 3, "test": 3}
    read = read_labels("auto", tmp_path / "out")
    by_case = {item.id[:9]: item.group for item in read.items}
    assert sorted(by_case) == ["amos_0001", "amos_0008"] and len(set(by_case.values())) == 2
    middle = next(item for item in read.split("train").items if item.id.endswith("0001/0001"))
    assert (middle.width, middle.height) == (12, 10) and middle.semantic is not None
    assert int((middle.semantic() == 6).sum()) == 9
    values = read_nifti(root / "imagesTr" / "amos_0001.nii.gz")
    expected = np.rint(np.clip((values[::-1, ::-1, 1].T + 160) * 255 / 400, 0, 255))
    assert read.channels is not None
    seen = load_planes(middle.image, channels=read.channels)
    assert np.array_equal(seen, np.stack([expected] * 3)) and middle.image.startswith(str(root))
    resonance = check_download("amos2022", root, PrepareSettings(options={"modality": "MRI"}))
    assert resonance.splits == {"train": 1, "val": 0, "test": 0}
    (root / "labelsVa" / "amos_0008.nii.gz").unlink()
    with pytest.raises(DataError, match=r"labelsVa/amos_0008\.nii\.gz is missing"):
        check_download("amos2022", root)


def test_brats_modalities_labels_and_blank_slices(tmp_path: Path) -> None:
    root = write_benchmark("brats2021", tmp_path / "download")
    made = prepare_benchmark("brats2021", root, tmp_path / "out")
    # Ten cases of four slices, of which the first is air; cases are held out as a whole.
    assert made.splits == {"train": 24, "val": 3, "test": 3}
    read = read_labels("auto", tmp_path / "out")
    groups = {split: {i.group for i in read.split(split).items} for split in ("train", "val", "test")}
    assert not groups["train"] & groups["test"] and len(groups["train"]) == 8
    item = next(item for item in read.items if item.id.endswith("0002"))
    assert item.semantic is not None
    values = item.semantic()
    assert np.bincount(values.reshape(-1)).tolist() == [120 - 36, 1, 36 - 9, 8]
    assert {name: int(m.sum()) for name, m in brats_regions(values).items()} == {
        "whole tumour": 36,
        "tumour core": 9,
        "enhancing tumour": 8,
    }
    assert read.channels is not None and load_planes(item.image, channels=read.channels).shape == (3, 12, 10)
    assert read.channels.bands == ("flair", "t1ce", "t2") and item.metadata == {
        "modality": "MR",
        "plane": "axial",
    }
    case = root / "BraTS2021_Training_Data" / "BraTS2021_00003"
    (case / "BraTS2021_00003_t1.nii.gz").unlink()
    with pytest.raises(DataError, match=r"BraTS2021_00003/BraTS2021_00003_t1\.nii\.gz is missing"):
        check_download("brats2021", root)
    with pytest.raises(ConfigError, match="give one or three of flair"):
        check_download("brats2021", root, PrepareSettings(options={"channels": "t1,t2"}))


def test_region_dice() -> None:
    truth = np.array([[0, 1, 2, 3]], np.uint8)
    guess = np.array([[0, 3, 2, 0]], np.uint8)
    scores = region_dice(guess, truth)
    assert list(scores) == list(BRATS_REGIONS)
    assert scores["whole tumour"] == pytest.approx(4 / 5)
    assert scores["tumour core"] == pytest.approx(2 / 3)
    assert scores["enhancing tumour"] == 0.0
    assert region_dice(np.zeros_like(truth), np.zeros_like(truth))["tumour core"] == 1.0


def test_volumes_without_nibabel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_benchmark("brats2021", tmp_path / "download")
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(VitpError, match=r"pip install 'vitp\[medical\]'"):
        prepare_benchmark("brats2021", root, tmp_path / "out")


def test_the_command_prepares_and_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_benchmark("s2looking", tmp_path / "download")
    arguments = [
        "data",
        "prepare",
        "s2looking",
        "--root",
        str(root),
        "--out",
        str(tmp_path / "out"),
        "-o",
        "mask=label1",
    ]
    assert run(arguments) == 0
    assert "S2Looking: prepared (train 2, val 2, test 2 images)" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "prepared.json").read_text())
    assert record["set"] == "s2looking" and record["settings"]["options"] == {"mask": "label1"}
    assert run(arguments) == 0
    assert "prepared before" in capsys.readouterr().out
    assert run(["data", "sets"]) == 0
    listed = capsys.readouterr().out
    assert "covidquex" in listed and "omnimedvqa" in listed
    assert run(["data", "prepare", "s2looking", "--root", str(root)]) == 2
    assert "name a folder with --out" in capsys.readouterr().err
