"""Masks of pairs: what changed, what became what, levels of damage; or one line with every reading."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.ground_files import DEGREES, UTM, moved, turned, write_raster
from vitp.core.errors import ConfigError, DataError
from vitp.data.compile import compile_labels
from vitp.data.formats import read_labels
from vitp.data.formats.crops import cut
from vitp.data.formats.vitp_labels import Roots, read_compiled, write_compiled
from vitp.io.contract import Geometry
from vitp.io.ground import reproject
from vitp.records.labels import IGNORE, LabelledImage

SIDE = 40


def photo(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(path)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def dates(root: Path, count: int = 3, names: tuple[str, str] = ("im1", "im2")) -> None:
    for k in range(count):
        photo(root / names[0] / f"{k}.png", k)
        photo(root / names[1] / f"{k}.png", 100 + k)


def classes_of(item: LabelledImage) -> np.ndarray:
    assert item.transition is not None
    return item.transition()


COLOURS = {"field": (0, 128, 0), "water": (0, 0, 255), "building": (128, 0, 0)}


def of_two_dates(root: Path, *, colours: bool) -> None:
    """Field becomes building in the first pair, water becomes field in the others, in 10 × 20 pixels each."""
    dates(root)
    for k in range(3):
        for name, kind in (("label1", "water" if k else "field"), ("label2", "field" if k else "building")):
            mask = np.full((SIDE, SIDE, 3), 255) if colours else np.zeros((SIDE, SIDE))
            mask[5:15, 10:30] = COLOURS[kind] if colours else 1 + list(COLOURS).index(kind)
            save(root / name / f"{k}.png", mask)


@pytest.mark.parametrize("how", ["colours", "indices", "option", "classes.txt"])
def test_masks_of_classes_at_both_dates_say_what_became_what(tmp_path: Path, how: str) -> None:
    of_two_dates(tmp_path, colours=how in ("colours", "option"))
    options = {}
    if how == "option":
        options["classes"] = "field=0:128:0,water=blue,building=#800000"
    if how == "classes.txt":
        (tmp_path / "classes.txt").write_text("field=1\nwater=2\nbuilding=3\n")
    found = read_labels("auto", tmp_path, **options)
    names = found.change_classes
    expected = {"colours": ("blue", "#008000", "#800000"), "indices": ("class_1", "class_2", "class_3")}
    assert set(names) == set(expected.get(how, COLOURS)) and found.findings == ()
    assert found.semantic_classes == ()  # the classes of what changed say nothing of the rest of the image
    both = classes_of(found.items[0])
    assert both.shape == (2, SIDE, SIDE) and (both == IGNORE).sum() == 2 * (SIDE * SIDE - 200)
    if how in ("option", "classes.txt"):
        assert [names[v] for v in both[:, 10, 20]] == ["field", "building"]
        assert [names[v] for v in classes_of(found.items[1])[:, 10, 20]] == ["water", "field"]
    assert all(item.change is not None and item.change().sum() == 200 for item in found.items)
    assert any(line.startswith("what became what, values of the masks: ") for line in found.understood)


def test_what_became_what_is_asked_and_survives_compiling_and_cutting(tmp_path: Path) -> None:
    of_two_dates(tmp_path / "set", colours=False)
    option = {"classes": "field=1,water=2,building=3", "val": 0.0, "test": 0.0}
    compile_labels(tmp_path / "set", "auto", tmp_path / "out", **option)
    again = read_labels("vitp", tmp_path / "out")
    whole = read_labels("auto", tmp_path / "set", **option)
    assert again.change_classes == whole.change_classes == ("field", "water", "building")
    assert all(
        np.array_equal(classes_of(a), classes_of(b)) for a, b in zip(again.items, whole.items, strict=True)
    )
    rows = [json.loads(line) for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    answers = [turn["value"] for turn in rows[0]["conversations"]]
    assert "field to building" in answers and "field, building" in answers
    assert "water to field" in [turn["value"] for turn in rows[1]["conversations"]]
    crops = cut(again, 20, 0, tmp_path / "crops")
    parts = {item.id.rpartition("@")[2]: item for item in crops.items if item.id.startswith("im1/0")}
    assert [(classes_of(parts[name]) == IGNORE).sum() for name in ("0,0", "20,0", "0,20")] == [600, 600, 800]


def levels(root: Path, *values: int) -> None:
    dates(root, names=("before", "after"))
    for k in range(3):
        mask = np.zeros((SIDE, SIDE))
        for number, value in enumerate(values):
            mask[1 + 7 * number : 7 + 7 * number, 5:25] = value
        save(root / "mask" / f"{k}.png", mask)


def test_levels_of_damage_have_two_readings_and_an_option_for_each(tmp_path: Path) -> None:
    levels(tmp_path, 1, 2, 3, 4)
    with pytest.raises(
        DataError, match=r"hold 0 .*, 1 .*: levels or kinds of change.*-o unchanged=0 .*-o classes="
    ):
        read_labels("auto", tmp_path)
    plain = read_labels("auto", tmp_path, unchanged=0)
    assert plain.change_classes == () and all(item.change().sum() == 480 for item in plain.items)  # type: ignore[misc]
    option = "intact=1,minor=2,major=3,destroyed=4"
    found = read_labels("auto", tmp_path, classes=option, unchanged="0,1")
    assert found.change_classes == ("background", "intact", "minor", "major", "destroyed")
    both, names = classes_of(found.items[0]), found.change_classes
    told = {
        (names[a], names[b]): int(((both[0] == i) & (both[1] == j)).sum()) for (i, a), (j, b) in _pairs(both)
    }
    assert told == {
        ("background", "background"): SIDE * SIDE - 480,
        ("intact", "intact"): 120,
        ("intact", "minor"): 120,
        ("intact", "major"): 120,
        ("intact", "destroyed"): 120,
    }
    assert found.items[0].change().sum() == 360  # type: ignore[misc]
    assert "unchanged: background, intact; the other classes were intact before" in found.understood


def _pairs(both: np.ndarray) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    return [((a, a), (b, b)) for a, b in np.unique(both.reshape(2, -1), axis=1).T.tolist()]


def test_levels_that_are_not_known_are_neither_changed_nor_a_class(tmp_path: Path) -> None:
    levels(tmp_path, 1, 4, 5)
    found = read_labels("auto", tmp_path, classes="intact=1,destroyed=4,ignore=5", unchanged=[0, 1])
    both = classes_of(found.items[0])
    assert (both == IGNORE).sum() == 240 and found.items[0].change().sum() == 120  # type: ignore[misc]
    assert "5 is ignored, and counts as unchanged where only change is asked for" in found.understood
    again = compile_labels(
        tmp_path, "auto", tmp_path / "out", classes="intact=1,destroyed=4,ignore=5", unchanged="0,1"
    )
    assert again.splits["train"].records
    read = read_labels("vitp", tmp_path / "out")
    assert [item.change().sum() for item in read.items] == [120] * 3  # type: ignore[misc]


def test_kinds_of_change_come_from_what_was_unchanged(tmp_path: Path) -> None:
    levels(tmp_path, 1, 2)
    found = read_labels("auto", tmp_path, classes="unchanged=0,built=1,demolished=2")
    both = classes_of(found.items[0])
    assert found.change_classes == ("unchanged", "built", "demolished")
    assert (both[0] == 0).all() and np.bincount(both[1].ravel()).tolist() == [SIDE * SIDE - 240, 120, 120]
    with pytest.raises(ConfigError, match="no class has the value 7, which says unchanged"):
        read_labels("auto", tmp_path, classes="unchanged=0,built=1", unchanged=7)
    with pytest.raises(ConfigError, match='"sometimes" is no value'):
        read_labels("auto", tmp_path, unchanged="sometimes")


def test_softened_masks_of_two_values_stay_masks_of_change(tmp_path: Path) -> None:
    dates(tmp_path, names=("A", "B"))
    mask = np.zeros((SIDE, SIDE))
    mask[5:25, 5:25] = 255
    mask[5, 5:25], mask[24, 5:25] = 90, 170
    for k in range(3):
        save(tmp_path / "label" / f"{k}.png", mask)
    found = read_labels("auto", tmp_path)
    assert found.change_classes == () and found.items[0].change().sum() == 19 * 20  # type: ignore[misc]


def test_a_set_whose_masks_mostly_have_another_size_is_refused(tmp_path: Path) -> None:
    dates(tmp_path, 12, names=("A", "B"))
    for k in range(12):
        save(tmp_path / "label" / f"{k}.png", np.eye(SIDE if k < 4 else 20) * 255)
    with pytest.raises(DataError, match=r"8 of 12 labels can't be used .*differ in size"):
        read_labels("auto", tmp_path)


# --- masks on other pixels of the ground


def placed_pair(root: Path, name: str, later: Geometry = UTM) -> None:
    write_raster(root / "A" / f"{name}.tif", UTM, (40, 30), seed=1)
    write_raster(root / "B" / f"{name}.tif", later, (40, 30), seed=2)


@pytest.mark.parametrize("grid", ["coarse", "same size", "degrees", "turned"])
def test_change_masks_on_other_pixels_are_brought_onto_their_images(tmp_path: Path, grid: str) -> None:
    """The expected pixels follow from where each centre lies in the mask."""
    placed_pair(tmp_path, "a")
    a, _, c, _, e, f = UTM.transform
    ((longitude, latitude),) = reproject(np.array([[c, f]]), UTM.crs, DEGREES.crs)
    there = {
        "coarse": Geometry(UTM.crs, (4 * a, 0.0, c - 8 * a, 0.0, 4 * e, f - 8 * e)),
        "same size": Geometry(UTM.crs, (1.5 * a, 0.0, c - 4 * a, 0.0, 1.5 * e, f - 3 * e)),
        "degrees": Geometry(DEGREES.crs, (1e-5, 0.0, longitude - 2e-4, 0.0, -6e-6, latitude + 1e-4)),
        "turned": moved(turned(UTM, 30.0), -40, -40),
    }[grid]
    size = (40, 30) if grid == "same size" else (120, 120)
    values = np.kron(np.random.default_rng(0).integers(0, 2, (1, 30, 24)), np.ones((1, 5, 5))).astype(
        np.uint8
    )
    values = values[:, : size[1], : size[0]]
    write_raster(tmp_path / "label" / "a.tif", there, values_CHW=values)
    labelled = read_labels("pairs", tmp_path)
    (item,) = labelled.items
    assert item.change is not None
    columns, rows = np.meshgrid(np.arange(40) + 0.5, np.arange(30) + 0.5)
    centres = UTM.to_map(np.stack([columns.ravel(), rows.ravel()], 1))
    at = np.floor(there.to_pixels(reproject(centres, UTM.crs, there.crs))).astype(int)
    assert at.min() >= 0 and at[:, 0].max() < size[0] and at[:, 1].max() < size[1]
    expected = values[0][at[:, 1], at[:, 0]].reshape(30, 40).astype(bool)
    assert (item.change() != expected).mean() <= (0.02 if grid in ("degrees", "turned") else 0)
    assert 0.1 < expected.mean() < 0.9
    assert any("1 masks have other pixels on the ground" in line for line in labelled.understood)
    write_compiled(labelled, Roots(tmp_path / "out", tmp_path, tmp_path))
    again = read_compiled(tmp_path / "out")
    assert np.array_equal(again.items[0].change(), item.change())  # type: ignore[misc]
    crop = next(
        each for each in cut(labelled, 16, 0, tmp_path / "crops").items if "window=16,0" in each.image
    )
    assert np.array_equal(crop.change(), item.change()[:16, 16:32])  # type: ignore[misc]


def test_dates_and_masks_that_do_not_fit_on_the_ground_are_left_out_with_the_reason(tmp_path: Path) -> None:
    for name in "abcdef":
        placed_pair(tmp_path, name, moved(UTM, 3, 0) if name == "e" else UTM)
        mask = moved(UTM, {"d": 10, "f": 5000}.get(name, 0), 0)
        values = np.eye(30, 40)[None].astype(np.uint8)
        write_raster(tmp_path / "label" / f"{name}.tif", mask, values_CHW=values)
    found = read_labels("pairs", tmp_path)
    assert [item.id for item in found.items] == ["A/a", "A/b", "A/c"]
    text = "\n".join(found.findings)
    assert "label/d.tif covers 76.2 % of its image; left out" in text, "(40 - 9.5) of 40 columns"
    assert "B/e.tif has other pixels on the ground than the first date; left out" in text
    assert "label/f.tif doesn't lie where its image does; left out" in text
