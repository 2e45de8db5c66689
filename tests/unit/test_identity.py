"""Equal images and series of names: one side of the splits, or a line that says so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from vitp.core.errors import ConfigError, DataError
from vitp.data import identical
from vitp.data.check import check_records
from vitp.data.compile import compile_labels
from vitp.data.formats import read_labels
from vitp.data.formats.identity import join_equal, name_series
from vitp.data.formats.patients import barcode_patients, folder_patients, told_patients
from vitp.data.identical import find_equals
from vitp.records.labels import LabelledImage


def photo(path: Path, seed: int, size: tuple[int, int] = (24, 20), **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pixels_HWC = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels_HWC).save(path, **options)  # type: ignore[arg-type]
    return path


def text_in_png() -> PngInfo:
    info = PngInfo()
    info.add_text("title", "the same pixels, other bytes")
    return info


WAYS: dict[str, Callable[[Path, int], Path]] = {
    "copied": lambda path, seed: photo(path.with_suffix(".png"), seed),
    "other compression": lambda path, seed: photo(path.with_suffix(".png"), seed, compress_level=1),
    "other metadata": lambda path, seed: photo(path.with_suffix(".png"), seed, pnginfo=text_in_png()),
    "other format": lambda path, seed: photo(path.with_suffix(".bmp"), seed),
}


@pytest.mark.parametrize("way", WAYS)
def test_equal_images_stay_together_and_the_check_agrees(tmp_path: Path, way: str) -> None:
    rows = []
    for seed in range(16):
        photo(tmp_path / "set" / f"a{seed}x.png", seed)
        rows.append({"image": f"a{seed}x.png", "caption": f"It is place {seed}."})
        if seed % 2 == 0:
            twin = WAYS[way](tmp_path / "set" / f"b{seed}x.png", seed)
            rows.append({"image": twin.name, "caption": f"It is place {seed}."})
    (tmp_path / "set" / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_labels("captions", tmp_path / "set", val=0.3, test=0.3)
    splits = {Path(item.image).stem: item.split for item in found.items}
    assert set(splits.values()) == {"train", "val", "test"}
    assert all(splits[f"a{seed}x"] == splits[f"b{seed}x"] for seed in range(0, 16, 2))
    groups = {Path(item.image).stem: item.group for item in found.items}
    assert groups["a0x"] == groups["b0x"] != "" and groups["a1x"] == "" and groups["a0x"] != groups["a2x"]
    compile_labels(tmp_path / "set", "captions", tmp_path / "out", val=0.3, test=0.3)
    report = check_records(tmp_path / "out")
    assert [finding for finding in report.findings if finding.severity == "error"] == []


def test_splits_without_twins_are_as_they_were(tmp_path: Path) -> None:
    items = [LabelledImage(f"i{k}", str(photo(tmp_path / f"{k}.png", k)), 24, 20) for k in range(5)]
    known = join_equal(items)
    assert known.items == items and known.equal == () and known.by_pixels


def test_groups_that_share_an_image_are_one(tmp_path: Path) -> None:
    paths = [
        photo(tmp_path / f"{name}.png", seed)
        for name, seed in (("a", 0), ("b", 1), ("c", 1), ("d", 2), ("e", 3))
    ]
    groups = ("scene 1", "scene 1", "scene 2", "scene 2", "")
    items = [LabelledImage(p.stem, str(p), 24, 20, group=g) for p, g in zip(paths, groups, strict=True)]
    assert [item.group for item in join_equal(items).items] == ["scene 1"] * 4 + [""]


def test_dates_of_two_pairs_that_are_one_image_stay_together(tmp_path: Path) -> None:
    first, middle, last = (str(photo(tmp_path / f"{k}.png", k)) for k in range(3))
    copy = str(shutil.copyfile(middle, tmp_path / "middle again.png"))
    pairs = [
        LabelledImage("p", first, 24, 20, second_image=middle),
        LabelledImage("q", copy, 24, 20, second_image=last),
    ]
    assert {item.group for item in join_equal(pairs).items} == {"p"}


def test_equal_files_are_found_whatever_the_budget(tmp_path: Path) -> None:
    paths = [photo(tmp_path / f"{k}.png", k % 3, compress_level=1 if k == 5 else 6) for k in range(6)]
    images = [(str(path), (24, 20)) for path in paths]
    whole = find_equals(images)
    names = [[Path(path).stem for path in group] for group in whole.groups]
    assert names == [["0", "3"], ["1", "4"], ["2", "5"]] and whole.by_pixels
    bytes_only = find_equals(images, most_pixels=100)
    assert [[Path(p).stem for p in group] for group in bytes_only.groups] == [["0", "3"], ["1", "4"]]
    assert not bytes_only.by_pixels


def test_what_cannot_be_equal_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    load = identical.load_image
    monkeypatch.setattr(identical, "load_image", lambda path, **kw: decoded.append(path) or load(path, **kw))  # type: ignore[func-returns-value]
    images = []
    for k in range(6):
        path = photo(
            tmp_path / f"{k}.jpg", 0 if k < 4 else k, (24 + 8 * k, 20) if k < 4 else (99, 20), quality=90
        )
        images.append((str(path), (24 + 8 * k, 20) if k < 4 else (99, 20)))
    copy = shutil.copyfile(images[0][0], tmp_path / "copy.jpg")
    images.append((str(copy), (24, 20)))
    found = find_equals(images)
    assert [[Path(p).name for p in group] for group in found.groups] == [["0.jpg", "copy.jpg"]]
    # Two of one size, other bytes: looked at once, reduced, and never whole. The equal bytes weren't looked at.
    assert sorted(Path(path).name for path in decoded) == ["4.jpg", "5.jpg"]


def test_given_splits_with_equal_images_are_told(tmp_path: Path) -> None:
    for seed in range(4):
        photo(tmp_path / "train" / ("port" if seed % 2 else "farm") / f"a{seed}x.png", seed)
    photo(tmp_path / "test" / "farm" / "z.png", 0)
    photo(tmp_path / "train" / "port" / "again.png", 2)
    found = read_labels("folders", tmp_path)
    groups = {item.id: item.group for item in found.items}
    assert (
        groups["train/farm/a2x"] == groups["train/port/again"] == "train/farm/a2x"
    )  # for a val held out of train
    assert groups["test/farm/z"] == groups["train/farm/a0x"] == ""  # told, not joined: they are split already
    assert found.findings == (
        "splits: 1 images are in several splits, test/farm/z.png (test) and train/farm/a0x.png (train) for example",
        "splits: 1 images are there several times with different labels, train/farm/a2x.png (train) and "
        "train/port/again.png (train) for example",
    )


@pytest.mark.parametrize(
    ("stems", "groups"),
    [
        (
            [f"patient{p:02}_slice{s}" for p in range(4) for s in range(5)],
            {f"patient{p:02}" for p in range(4)},
        ),
        (
            [f"P{p:04}_{x}_{y}" for p in range(3) for x in (0, 800) for y in (0, 800)],
            {f"P{p:04}" for p in range(3)},
        ),
        ([f"clip-seq{p}-{s:05}" for p in range(3) for s in range(6)], {f"clip-seq{p}" for p in range(3)}),
        ([f"seq{p}_{s:03}" for p in "AB" for s in range(6)], {"seqA", "seqB"}),
        (
            [f"frame_{s:03}" for s in range(30)],
            {"frame_00", "frame_01", "frame_02"},
        ),  # one video: ten at a time
        ([f"im{k}" for k in range(20)], None),  # one count
        ([f"{k}" for k in range(20)], None),
        ([f"{kind}_{k}" for kind in ("port", "farm") for k in range(9)], None),  # words, such as classes
        (
            [f"{town}{k}" for town in ("austin", "vienna", "kitsap") for k in range(1, 7)],
            {"austin", "vienna", "kitsap"},
        ),
        ([f"top_{x}_{y}_RGB" for x in (2, 3) for y in range(10, 16)], {"top_2", "top_3"}),
        ([f"{p:03}-{s}" for p in range(4) for s in range(5)], {f"{p:03}" for p in range(4)}),
        (
            [f"patient_{p}x" for p in range(8)] + ["patient_3y"],
            {f"patient_{p}" for p in range(8)},
        ),  # few of each
        ([f"s{k}_a" for k in range(20)], None),  # each alone
    ],
)
def test_series_in_names(stems: list[str], groups: set[str] | None) -> None:
    found = name_series(stems, [None] * len(stems))
    assert (None if found is None else set(found.groups)) == groups


def test_series_that_are_classes_are_none() -> None:
    stems = [f"class{c}_{k}" for c in range(3) for k in range(6)]
    assert name_series(stems, [None] * 18) is not None
    assert name_series(stems, [f"kind {stem[5]}" for stem in stems]) is None


def test_torn_series_propose_the_option_that_mends_them(tmp_path: Path) -> None:
    rows = []
    for patient in range(6):
        for number in range(4):
            photo(tmp_path / f"pat{patient}_s{number}.png", 10 * patient + number)
            rows.append({"image": f"pat{patient}_s{number}.png", "caption": f"Slice {number}."})
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_labels("captions", tmp_path)
    (line,) = found.findings
    assert line.startswith("splits: the names fall into 6 series (such as pat")
    regex = line.partition("-o group_regex='")[2].rstrip("'")
    mended = read_labels("captions", tmp_path, group_regex=regex)
    assert mended.findings == ()
    sides = {(item.group, item.split) for item in mended.items}
    assert len(sides) == 6 and {group for group, _ in sides} == {f"pat{k}" for k in range(6)}


PATIENTS = [f"p{patient:02}_{number:03}" for patient in range(1, 7) for number in range(1, 5)]


@pytest.mark.parametrize("way", ["lists", "folders"])
def test_given_splits_that_tear_a_patient_are_told_with_the_way_out(tmp_path: Path, way: str) -> None:
    sides = {"train": PATIENTS[:14], "val": PATIENTS[14:18], "test": PATIENTS[18:]}
    for split, names in sides.items():
        for name in names:
            folder = tmp_path / (split if way == "folders" else "")
            photo(folder / "images" / f"{name}.png", PATIENTS.index(name))
            (folder / "labels").mkdir(exist_ok=True)
            (folder / "labels" / f"{name}.txt").write_text("0 .5 .5 .2 .2\n")
        if way == "lists":
            (tmp_path / f"{split}.txt").write_text("\n".join(names))
    (tmp_path / "classes.txt").write_text("cell\n")
    found = read_labels("auto", tmp_path)
    (line,) = found.findings
    assert line.startswith(
        "splits: the names fall into 6 series (such as p04), and 2 of them are in several splits"
    )
    assert "-o splits=drawn -o group_regex='" in line
    regex = line.partition("-o group_regex='")[2].partition("'")[0]
    mended = read_labels("auto", tmp_path, splits="drawn", group_regex=regex, val=0.2, test=0.2)
    assert mended.findings == () and {item.split for item in mended.items} == {"train", "val", "test"}
    assert len({(item.group, item.split) for item in mended.items}) == 6


def test_folders_of_patients_are_kept_together_under_names_that_tell_nothing(tmp_path: Path) -> None:
    for patient in range(6):
        for number in range(4):
            name = f"patient{patient}/{number:03}"
            photo(tmp_path / "images" / f"{name}.png", 10 * patient + number)
            (tmp_path / "labels" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "labels" / f"{name}.txt").write_text("0 .5 .5 .2 .2\n")
    (tmp_path / "classes.txt").write_text("cell\n")
    found = read_labels("auto", tmp_path)
    assert found.findings == () and len({(item.group, item.split) for item in found.items}) == 6
    assert sorted({item.group for item in found.items}) == [f"patient-{number:04d}" for number in range(1, 7)]
    assert "patients: 6, by the folders that are called after them" in found.understood
    # Folders of other names only propose it.
    for patient in range(6):
        for kind in ("images", "labels"):
            (tmp_path / kind / f"patient{patient}").rename(tmp_path / kind / f"visit{patient}")
    (line,) = read_labels("auto", tmp_path).findings
    assert line.startswith("splits: the images lie in 6 folders (such as visit") and "-o group=folder" in line
    told = read_labels("auto", tmp_path, patient=r"visit(\d)")
    assert {item.group for item in told.items} == {f"patient-{number:04d}" for number in range(1, 7)}
    assert told.findings == () and len({(item.group, item.split) for item in told.items}) == 6
    with pytest.raises(DataError, match='neither a column nor a path fits patient="person"'):
        read_labels("auto", tmp_path, patient="person")
    with pytest.raises(ConfigError, match="is neither a column of a table nor a regular expression"):
        read_labels("auto", tmp_path, patient="(")
    with pytest.raises(ConfigError, match=r'group: is "patient"; choose folder'):
        read_labels("auto", tmp_path, group="patient")


def test_a_hash_in_a_name_is_no_part_of_a_file() -> None:
    places = [f"scan #{n % 2}/patient{n}/{k} #2.png" for n in range(3) for k in range(2)]
    assert folder_patients(places) == [f"patient{n}" for n in range(3) for _ in range(2)]
    assert told_patients(places, r"patient(\d)", "set") == [str(n) for n in range(3) for _ in range(2)]
    names = [f"batch #3/TCGA-A1-000{n}-01Z #1.svs#mpp=0.5&window=0,0,9,9" for n in range(2)]
    assert barcode_patients(names) == ["TCGA-A1-0000", "TCGA-A1-0001"]
    assert folder_patients(["a#window=b/patient1/x.png", "a#window=b/patient2/x.png"]) == [
        "patient1",
        "patient2",
    ]
