"""Readers of the paper's sets: published folders in, official splits, classes and quirks out."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.benchmark_fixtures import WRITERS, mask, picture, text, write_benchmark, write_whu_cd_lists
from vitp.core.errors import ConfigError, DataError
from vitp.data.benchmarks.base import count_problems
from vitp.data.benchmarks.catalogue import BENCHMARK_READERS, BENCHMARKS, benchmark
from vitp.data.formats import option_names, read_labels
from vitp.records.labels import IGNORE, LabelledImage, LabelledSet
from vitp.tasks.build import TASK_MODELS

ON_DISK = [name for name in BENCHMARKS if not BENCHMARKS[name].volumes]


def splits(labelled: LabelledSet) -> dict[str, int]:
    return dict(Counter(item.split for item in labelled.items))


def by_id(labelled: LabelledSet, part: str) -> LabelledImage:
    return next(item for item in labelled.items if part in item.id)


def test_the_catalogue_is_the_papers_table() -> None:
    assert len(BENCHMARKS) == 16 and list(BENCHMARKS) == list(BENCHMARK_READERS) == list(WRITERS)
    for name, facts in BENCHMARKS.items():
        assert facts.name == name and facts.task in TASK_MODELS
        assert len(set(facts.classes)) == len(facts.classes) > 0
        assert not facts.palette or len(facts.palette) == len(set(facts.palette)) == len(facts.classes)
        assert facts.test_on == "test" or not facts.test_labels
        assert "partial" in option_names(name) and "protocol" in option_names(name)
        assert "http" not in facts.published_by
    sizes = {name: len(facts.classes) for name, facts in BENCHMARKS.items()}
    assert (sizes["dior"], sizes["dota_v2"], sizes["isaid"], sizes["loveda"], sizes["uavid"]) == (
        20,
        18,
        16,
        7,
        8,
    )
    assert benchmark("isaid").window_overlap == 0.5 and benchmark("loveda").window_overlap == 0.25
    with pytest.raises(ConfigError, match='did you mean "dota_v2"'):
        benchmark("dota_v")
    with pytest.raises(ConfigError, match='did you mean "sardet100k"'):
        read_labels("sardet100", ".")


@pytest.mark.parametrize("name", ON_DISK)
def test_an_empty_folder_is_told_where_the_set_is_published(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_labels(name, tmp_path)
    facts = BENCHMARKS[name]
    assert facts.title in str(caught.value) and facts.published_by in str(caught.value)
    assert "is missing" in str(caught.value)


@pytest.mark.parametrize("name", ON_DISK)
def test_the_first_missing_image_is_named(name: str, tmp_path: Path) -> None:
    """Every image of every reader counts: without it the set isn't the published one."""
    root = write_benchmark(name, tmp_path)
    whole = read_labels(name, root)
    item = next(item for item in whole.items if item.split == "train")
    gone = Path(item.image).relative_to(root)
    siblings = [p for p in (root / gone).parent.iterdir() if p != root / gone]
    (root / gone).unlink()
    with pytest.raises(DataError) as caught:
        read_labels(name, root)
    # The folder stands for its only file; RSAR mixes formats, so only the stem is known.
    assert (gone.with_suffix("").as_posix() if siblings else gone.parent.as_posix()) in str(caught.value)
    if siblings:
        less = read_labels(name, root, partial=True)
        assert len(less) == len(whole) - 1
        assert any(gone.with_suffix("").as_posix() in line for line in less.findings)


@pytest.mark.parametrize("name", ON_DISK)
def test_counts_are_compared_with_the_published_ones(name: str, tmp_path: Path) -> None:
    facts = BENCHMARKS[name]
    problems = count_problems(read_labels(name, write_benchmark(name, tmp_path)), facts)
    assert len(problems) == len(facts.counts)
    if facts.counts:
        assert f"{facts.counts['train']:,} are published" in problems[0]


def test_dior_lists_names_and_both_kinds_of_boxes(tmp_path: Path) -> None:
    root = write_benchmark("dior", tmp_path)
    upright = read_labels("dior", root)
    assert splits(upright) == {"train": 2, "val": 1, "test": 2}
    assert upright.name == "dior" and upright.object_classes == BENCHMARKS["dior"].classes
    first = by_id(upright, "00001").objects
    assert first is not None
    assert [(o.category, o.box, o.quad) for o in first] == [
        ("expressway-service-area", (10, 12, 30, 40), None)
    ]
    assert by_id(upright, "00003").objects == ()
    oriented = by_id(read_labels("dior_r", root), "00001").objects
    assert oriented is not None
    assert oriented[0].quad == (20, 10, 34, 20, 24, 34, 10, 24) and oriented[0].box == (10, 10, 34, 34)


def test_the_papers_protocol_trains_on_train_and_val(tmp_path: Path) -> None:
    root = write_benchmark("dior", tmp_path)
    paper = read_labels("dior", root, protocol="paper")
    train = [Path(item.image).stem for item in paper.split("train").items]
    assert train == ["00001", "00002"]  # 00003 has no object
    assert splits(paper) == {"train": 2, "val": 1, "test": 2}
    assert any("without objects" in line for line in paper.findings)
    assert any("trained on as well" in line for line in paper.findings)
    with pytest.raises(ConfigError, match="choose official or paper"):
        read_labels("dior", root, protocol="mine")


def test_the_papers_protocol_tests_on_val_where_test_is_hidden(tmp_path: Path) -> None:
    paper = read_labels("isaid", write_benchmark("isaid", tmp_path), protocol="paper")
    assert [Path(item.image).stem for item in paper.split("test").items] == ["P0003"]
    assert all(item.semantic is not None for item in paper.items)


def test_dota_header_lines_difficult_objects_and_test_dev(tmp_path: Path) -> None:
    found = read_labels("dota_v2", write_benchmark("dota_v2", tmp_path))
    assert splits(found) == {"train": 1, "val": 1, "test": 1}
    ship, vehicle = by_id(found, "P0000").objects or ()
    assert ship.quad == (20, 10, 40, 20, 30, 40, 10, 30) and not ship.difficult
    assert (vehicle.category, vehicle.difficult) == ("small-vehicle", True)
    assert by_id(found, "P0006").objects is None
    assert found.findings == ()


def test_rsar_finds_images_of_any_kind(tmp_path: Path) -> None:
    found = read_labels("rsar", write_benchmark("rsar", tmp_path))
    assert splits(found) == {"train": 2, "val": 1, "test": 1}
    assert {Path(item.image).suffix for item in found.items} == {".png", ".jpg", ".bmp"}
    assert len(read_labels("rsar", tmp_path, protocol="paper").split("train")) == 1


def test_sardet_and_ssdd_read_coco(tmp_path: Path) -> None:
    sardet = read_labels("sardet100k", write_benchmark("sardet100k", tmp_path / "sardet"))
    assert splits(sardet) == {"train": 2, "val": 2, "test": 2}
    assert sardet.object_classes == BENCHMARKS["sardet100k"].classes
    assert [o.box for o in sardet.items[0].objects or ()] == [(8, 10, 28, 22)]
    root = write_benchmark("ssdd", tmp_path / "ssdd")
    ssdd = read_labels("ssdd", root)
    assert splits(ssdd) == {"train": 2, "test": 2}
    assert (ssdd.items[0].objects or ())[0].polygons == ((8, 10, 28, 10, 28, 22, 8, 22),)
    inshore = read_labels("ssdd", root, part="inshore").split("test")
    assert [Path(item.image).name for item in inshore.items] == ["000001.jpg"]
    assert len(read_labels("ssdd", root / "BBox_RBox_PSeg_SSDD" / "coco_style")) == 4


def test_isaid_colours_and_instances(tmp_path: Path) -> None:
    root = write_benchmark("isaid", tmp_path)
    found = read_labels("isaid", root)
    assert splits(found) == {"train": 1, "val": 1, "test": 1}
    first = by_id(found, "P0000")
    assert first.semantic is not None
    values = first.semantic()
    assert dict(zip(*np.unique(values, return_counts=True), strict=True)) == {0: 7400, 1: 200, 14: 400}
    assert found.semantic_classes[1] == "ship" and found.semantic_classes[14] == "plane"
    objects = by_id(read_labels("isaid", root, labels="instances"), "P0000").objects
    assert objects is not None and objects[0].polygons == ((10, 10, 30, 10, 30, 20, 10, 20),)


def test_loveda_ignores_zero_and_joins_urban_and_rural(tmp_path: Path) -> None:
    root = write_benchmark("loveda", tmp_path)
    found = read_labels("loveda", root)
    assert splits(found) == {"train": 2, "val": 2, "test": 2}
    first = by_id(found, "Train/Urban")
    assert first.semantic is not None
    counts = np.bincount(first.semantic().reshape(-1), minlength=256)
    assert counts[IGNORE] == 8 * 64 and counts[1] == 16 * 64 and counts[6] == 24 * 64 and counts[0] == 16 * 64
    assert by_id(found, "Test/").semantic is None
    assert splits(read_labels("loveda", root, part="Rural")) == {"train": 1, "val": 1, "test": 1}


def test_uavid_keeps_sequences_together(tmp_path: Path) -> None:
    found = read_labels("uavid", write_benchmark("uavid", tmp_path))
    assert splits(found) == {"train": 4, "val": 2, "test": 2}
    assert {item.group for item in found.split("train").items} == {"seq1", "seq31"}
    first = by_id(found, "seq1/")
    assert first.semantic is not None
    counts = np.bincount(first.semantic().reshape(-1), minlength=8)
    assert counts[2] == 20 * 96 and counts[6] == 100 and counts[0] == 54 * 96 - 2020


@pytest.mark.parametrize("name", ["svcd", "levir_cd", "s2looking"])
def test_change_sets_pair_two_dates_with_their_mask(name: str, tmp_path: Path) -> None:
    found = read_labels(name, write_benchmark(name, tmp_path))
    assert splits(found) == {"train": 2, "val": 2, "test": 2}
    for item in found.items:
        assert item.second_image is not None and Path(item.second_image).name == Path(item.image).name
        assert item.change is not None
        # SVCD's masks are JPEG files: edges are soft.
        assert item.change().sum() == pytest.approx(200, abs=30 if name == "svcd" else 0)


def test_s2looking_tells_new_from_demolished(tmp_path: Path) -> None:
    root = write_benchmark("s2looking", tmp_path)
    sums = []
    for name in ("label", "label1", "label2"):
        change = read_labels("s2looking", root, mask=name).items[0].change
        assert change is not None
        sums.append(int(change().sum()))
    assert sums == [200, 100, 100]


def test_whu_as_mosaics_and_as_crops_with_lists(tmp_path: Path) -> None:
    mosaics = read_labels("whu_cd", write_benchmark("whu_cd", tmp_path / "mosaics"))
    assert splits(mosaics) == {"train": 1, "test": 1}
    assert (mosaics.split("train").items[0].width, mosaics.split("train").items[0].height) == (130, 70)
    assert splits(read_labels("whu_cd", write_whu_cd_lists(tmp_path / "crops"))) == {
        "train": 1,
        "val": 1,
        "test": 1,
    }


def test_covidquex_targets_and_cases(tmp_path: Path) -> None:
    root = write_benchmark("covidquex", tmp_path)
    found = read_labels("covidquex", root)
    assert splits(found) == {"train": 3, "val": 3, "test": 3}
    sums = {}
    for item in found.split("train").items:
        assert item.semantic is not None
        sums[Path(item.image).stem] = int(item.semantic().sum())
    assert sums == {"COVID-19_0": 200, "Non-COVID_0": 0, "Normal_0": 0}
    lungs = read_labels("covidquex", root, target="lung", cases="COVID-19")
    assert splits(lungs) == {"train": 1, "val": 1, "test": 1} and lungs.semantic_classes == (
        "background",
        "lung",
    )


def test_wrong_files_are_named(tmp_path: Path) -> None:
    root = write_benchmark("dior", tmp_path / "dior")
    text(root / "Annotations" / "Horizontal Bounding Boxes" / "00002.xml", "<annotation>\n<object>")
    with pytest.raises(DataError, match=r"00002\.xml:2: is not XML"):
        read_labels("dior", root)
    root = write_benchmark("loveda", tmp_path / "loveda")
    shutil.rmtree(root / "Val" / "Rural" / "masks_png")
    with pytest.raises(DataError, match="the folder Val/Rural/masks_png/ is missing"):
        read_labels("loveda", root)
    root = write_benchmark("levir_cd", tmp_path / "levir")
    mask(root / "train" / "label" / "train_0.png", np.zeros((10, 10), np.uint8))
    found = read_labels("levir_cd", root)
    assert (
        "train/A/train_0.png: the dates and the mask differ in size (64×64, 64×64, 10×10); left out"
        in found.findings
    )
    root = write_benchmark("sardet100k", tmp_path / "sardet")
    content = (root / "Annotations" / "val.json").read_text().replace('"tank"', '"submarine"')
    text(root / "Annotations" / "val.json", content)
    with pytest.raises(DataError, match='is "tank" in another file and "submarine" here'):
        read_labels("sardet100k", root)
    picture(tmp_path / "rsar" / "train" / "images" / "1.png")
    with pytest.raises(DataError, match="train/annfiles/ is missing"):
        read_labels("rsar", tmp_path / "rsar")
