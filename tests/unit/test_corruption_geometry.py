"""Corruptions that move points, and corrupted sets: labels move with their images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.corruption_toys import EVERY, natural
from vitp.core.errors import ConfigError
from vitp.data.image_sample import ImageSample
from vitp.data.seen import SeenBands
from vitp.evaluation.corruptions.catalogue import (
    CORRUPTIONS,
    EXTRAS,
    SEVERITIES,
    checked_severities,
    corruptions_of,
)
from vitp.evaluation.corruptions.geometry import moved_label, moved_objects, warp
from vitp.evaluation.corruptions.sets import corrupt_sample, corrupted_set, wide_channels
from vitp.io.part_files import geotiff
from vitp.records.channels import Channel, Channels
from vitp.records.geometry import as_points, bounds
from vitp.records.labels import IGNORE, LabelledImage, LabelledSet, ObjectLabel
from vitp.records.regions import objects_of, rasterise


def square(x: float, y: float, side: float, **changes: object) -> ObjectLabel:
    return replace(ObjectLabel("ship", (x, y, x + side, y + side)), **changes)  # type: ignore[arg-type]


def ellipses(size: tuple[int, int], seed: int) -> np.ndarray:
    """A mask with a few ellipses, some of them cut by the border."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(size, np.uint8)
    for _ in range(3):
        centre = (int(rng.integers(size[1])), int(rng.integers(size[0])))
        axes = (int(rng.integers(4, 14)), int(rng.integers(4, 14)))
        cv2.ellipse(mask, centre, axes, float(rng.uniform(0, 180)), 0, 360, 1, cv2.FILLED)
    return mask


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(["rotation", "scale", "translation"]),
    severity=st.sampled_from(SEVERITIES),
    seed=st.integers(0, 50),
    height=st.integers(40, 90),
    width=st.integers(40, 90),
)
def test_masks_and_outlines_move_alike(name: str, severity: int, seed: int, height: int, width: int) -> None:
    mask = ellipses((height, width), seed)
    objects = objects_of(mask, {1: "thing"}, min_area=1).objects
    matrix = CORRUPTIONS[name].matrix((height, width), severity, seed, "x")
    assert matrix is not None
    drawn = np.zeros((height, width), np.uint8)
    for label in moved_objects(objects, matrix, (height, width)):
        own = rasterise(label.polygons, (height, width), label.holes)
        drawn |= own
        # A clipped outline may run along the border where nothing of the object is left: the box is that of its pixels.
        outer = bounds(np.concatenate([as_points(r) for r in label.polygons]))
        assert all(a >= b - 1e-6 for a, b in zip(label.box[:2], outer[:2], strict=True))
        assert all(a <= b + 1e-6 for a, b in zip(label.box[2:], outer[2:], strict=True))
        rows, columns = np.flatnonzero(own.any(axis=1)), np.flatnonzero(own.any(axis=0))
        if len(rows):
            pixels = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            assert np.abs(np.subtract(label.box, pixels)).max() <= 2
    # At half the size, pixel centres lie on the edges of outlines.
    border = sum(np.abs(np.diff(mask.astype(int), axis=axis)).sum() for axis in (0, 1))
    assert (drawn != warp(mask, matrix, nearest=True)).sum() <= 0.35 * border + 4


def test_a_quarter_turn_is_exact() -> None:
    image = natural(64)
    matrix = CORRUPTIONS["rotation"].matrix((64, 64), 5, 0, "x")
    assert matrix is not None
    assert np.array_equal(warp(image, matrix, nearest=True), np.rot90(image))
    assert np.abs(warp(image, matrix).astype(int) - np.rot90(image)).max() <= 1
    odd = natural(64)[:41, :50]
    matrix_odd = CORRUPTIONS["rotation"].matrix((41, 50), 5, 0, "x")
    assert matrix_odd is not None
    turned = warp(odd, matrix_odd)
    assert np.array_equal(turned[:, 4:45], np.rot90(odd)[5:46])
    assert (turned[:, :4] == 0).all() and (turned[:, 45:] == 0).all()
    moved = moved_label(square(10, 20, 8, quad=(10, 20, 18, 20, 18, 28, 10, 28)), matrix)
    assert moved.box == pytest.approx((20, 46, 28, 54))
    assert moved.quad is not None and bounds(np.reshape(moved.quad, (4, 2))) == pytest.approx(moved.box)


def test_a_translation_is_exact_and_cuts_labels() -> None:
    image = natural(160)
    matrix = CORRUPTIONS["translation"].matrix((160, 160), 5, 0, "x")
    assert matrix is not None
    dx, dy = (int(value) for value in matrix[:, 2])
    assert (abs(dx), abs(dy)) == (7, 7)  # 35 px at 800
    moved = warp(image, matrix)
    inside = moved[max(dy, 0) : 160 + min(dy, 0), max(dx, 0) : 160 + min(dx, 0)]
    assert np.array_equal(inside, image[max(-dy, 0) : 160 - max(dy, 0), max(-dx, 0) : 160 - max(dx, 0)])
    left = np.array([[1.0, 0, -10], [0, 1, 0]])
    whole, part, sliver = square(50, 50, 8), square(6, 20, 10), square(2, 60, 10)
    found = moved_objects([whole, part, sliver, square(0, 0, 9)], left, (100, 100))
    assert [label.box for label in found] == [(40, 50, 48, 58), (0, 20, 6, 30), (0, 60, 2, 70)]
    assert [label.difficult for label in found] == [False, False, True]


def test_scaling_goes_to_the_middle() -> None:
    matrix = CORRUPTIONS["scale"].matrix((100, 200), 5, 0, "x")
    assert matrix is not None
    moved = moved_label(square(0, 0, 100), matrix)
    assert moved.box == pytest.approx((50, 25, 100, 75))
    image = np.full((100, 200, 3), 200, np.uint8)
    found = warp(image, matrix)
    assert (found[27:73, 52:148] == 200).all() and (found[:24] == 0).all() and (found[:, :49] == 0).all()
    # What would alias is averaged before it shrinks.
    stripes = np.zeros((100, 200, 3), np.uint8)
    stripes[:, ::2] = 200
    assert warp(stripes, matrix)[30:70, 60:140].std() < 40


def test_bare_boxes_turn_as_the_ellipse_in_them() -> None:
    matrix = CORRUPTIONS["rotation"].matrix((100, 100), 2, 0, "x")
    assert matrix is not None
    bare = moved_label(square(40, 40, 20), matrix)
    assert bare.box == pytest.approx((40, 40, 60, 60))  # a disc stays a disc
    outlined = moved_label(square(40, 40, 20, polygons=((40, 40, 60, 40, 60, 60, 40, 60),)), matrix)
    half = 10 * np.sqrt(2)
    assert outlined.box == pytest.approx((50 - half, 50 - half, 50 + half, 50 + half))


def test_samples_move_with_their_labels() -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[10:20, 30:40] = 3
    sample = ImageSample(
        torch.from_numpy(natural(64)).permute(2, 0, 1).contiguous(),
        objects=(square(30, 10, 10),),
        semantic_HW=torch.from_numpy(mask),
    )
    turned = corrupt_sample(sample, CORRUPTIONS["rotation"], 1, 0, "x")
    assert turned.semantic_HW is not None and turned.objects is not None
    semantic = turned.semantic_HW.numpy()
    assert set(np.unique(semantic)) == {0, 3, IGNORE}
    assert (turned.image_CHW.numpy()[:, semantic == IGNORE] < 128).all()
    rows, columns = (semantic == 3).nonzero()
    x1, y1, x2, y2 = turned.objects[0].box
    assert (columns.mean() + 0.5, rows.mean() + 0.5) == pytest.approx(((x1 + x2) / 2, (y1 + y2) / 2), abs=0.6)
    noisy = corrupt_sample(sample, CORRUPTIONS["gaussian_noise"], 3, 0, "x")
    assert noisy.objects == sample.objects and torch.equal(noisy.semantic_HW, sample.semantic_HW)
    assert corrupt_sample(sample, CORRUPTIONS["scale"], 0, 0, "x").objects == sample.objects


def test_pairs_share_the_viewpoint_but_not_the_weather() -> None:
    image = torch.from_numpy(natural(64)).permute(2, 0, 1).contiguous()
    pair = ImageSample(image, later_CHW=image.clone(), semantic_HW=torch.zeros(64, 64, dtype=torch.uint8))
    for name, same in (
        ("translation", True),
        ("rotation", True),
        ("gaussian_noise", False),
        ("cloud", False),
    ):
        found = corrupt_sample(pair, CORRUPTIONS[name], 5, 0, "x")
        assert found.later_CHW is not None and torch.equal(found.image_CHW, found.later_CHW) == same


def saved_set(folder: Path, count: int = 5) -> LabelledSet:
    items = []
    for number in range(count):
        rng = np.random.default_rng(number)
        path = folder / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)).save(path)
        mask = np.zeros((32, 48), np.uint8)
        mask[4:12, 6:20] = 1
        items.append(
            LabelledImage(
                str(number),
                str(path),
                48,
                32,
                split="test",
                objects=(square(6, 4, 8),),
                semantic=mask.copy,
                second_image=str(path),
                change=lambda mask=mask: mask.astype(bool),
                later_objects=(square(6, 4, 8),),
            )
        )
    return LabelledSet("toy", items, object_classes=("ship",), semantic_classes=("land", "ship"))


def test_sets_are_written_when_they_are_touched(tmp_path: Path) -> None:
    clean = saved_set(tmp_path)
    folder = tmp_path / "corrupted"
    noisy = corrupted_set(clean, CORRUPTIONS["gaussian_noise"], 4, folder, seed=3)
    assert len(noisy) == 5 and not folder.exists() and noisy.name == "toy, gaussian_noise 4"
    item = noisy.items[2]
    expected = CORRUPTIONS["gaussian_noise"].apply(np.asarray(Image.open(clean.items[2].image)), 4, 3, "2")
    assert np.array_equal(np.asarray(Image.open(item.image)), expected)
    assert item.second_image is not None and item.objects == clean.items[2].objects
    assert not np.array_equal(np.asarray(Image.open(item.second_image)), expected)
    assert len(list(folder.iterdir())) == 2
    assert [each.id for each in noisy.items[1:4]] == ["1", "2", "3"] and noisy.items[-1].id == "4"
    with pytest.raises(IndexError):
        noisy.items[5]


def test_only_the_newest_files_stay(tmp_path: Path) -> None:
    folder = tmp_path / "corrupted"
    noisy = corrupted_set(saved_set(tmp_path), CORRUPTIONS["haze"], 1, folder, keep=2)
    for item in noisy.items:
        assert Path(item.image).is_file()
    assert sorted({path.name[:6] for path in folder.iterdir()}) == ["000003", "000004"]


def test_geometry_moves_all_labels_of_an_item(tmp_path: Path) -> None:
    clean = saved_set(tmp_path)
    turned = corrupted_set(clean, CORRUPTIONS["rotation"], 3, tmp_path / "r").items[0]
    matrix = CORRUPTIONS["rotation"].matrix((32, 48), 3, 0, "0")
    assert matrix is not None and turned.semantic is not None and turned.change is not None
    assert (
        turned.objects
        == moved_objects(clean.items[0].objects or (), matrix, (32, 48))
        == turned.later_objects
    )
    semantic, change = turned.semantic(), turned.change()
    assert semantic.shape == change.shape == (32, 48) and change.dtype == bool
    assert np.array_equal(semantic == 1, change) and (semantic == IGNORE).any()
    assert change.sum() == pytest.approx(8 * 14, rel=0.15)
    still = corrupted_set(clean, CORRUPTIONS["rotation"], 0, tmp_path / "s").items[0]
    assert still.objects == clean.items[0].objects
    assert np.array_equal(np.asarray(Image.open(still.image)), np.asarray(Image.open(clean.items[0].image)))


def test_names_and_severities_are_checked() -> None:
    assert [each.name for each in corruptions_of(None)] == list(CORRUPTIONS)
    assert [each.name for each in corruptions_of(["haze", "extras", "haze"])] == ["haze", *EXTRAS]
    assert len(corruptions_of(["all"])) == len(EVERY)
    with pytest.raises(ConfigError, match='did you mean "rotation"'):
        corruptions_of(["rotate", "rotatio"])
    with pytest.raises(ConfigError, match="none is named"):
        corruptions_of([])
    assert checked_severities([3, 1, 3]) == (1, 3)
    for wrong in ([], [0], [6]):
        with pytest.raises(ConfigError, match="choose some of 1 to 5"):
            checked_severities(wrong)


def _windows(*ends: tuple[float, float], transform: str = "linear") -> Channels:
    return Channels(channels=tuple(Channel(band="1", low=a, high=b, transform=transform) for a, b in ends))


def test_several_windows_of_one_band_are_corrupted_in_the_files_values(tmp_path: Path) -> None:
    hounsfield_HW = np.random.default_rng(0).integers(-1000, 1000, (40, 48)).astype(np.int16)
    path = tmp_path / "ct.tif"
    path.write_bytes(geotiff(hounsfield_HW[None], ["1"]))
    channels = _windows((-1350, 150), (-160, 240), (-500, 1300))
    item = LabelledImage("ct", str(path), 48, 40, split="test", scene="a")
    labelled = LabelledSet("s", [item], scene_classes=("a",), channels=channels)
    seen = SeenBands(channels)
    clean_CHW = seen.planes(str(path))

    def corrupted(name: str, severity: int) -> np.ndarray:
        made = corrupted_set(labelled, CORRUPTIONS[name], severity, tmp_path / name, channels=channels)
        return seen.planes(made.items[0].image)

    # No window loses what another one doesn't show: without a change all three are as they were.
    for same_CHW in (corrupted("gaussian_noise", 0), corrupted("brightness_contrast", 1)):
        apart_CHW = np.abs(same_CHW.astype(int) - clean_CHW)
        assert apart_CHW.max() <= 1 and (apart_CHW > 0).mean() < 0.01  # the rounding of float32
    for name in ("haze", "translation", "gaussian_blur"):
        found_CHW = corrupted(name, 3)
        values_HW = (hounsfield_HW + 1350.0) * (255 / 2650)
        one_HWC = CORRUPTIONS[name].apply(values_HW[..., None].astype(np.float32), 3, 0, "ct")
        wanted_CHW = channels.scale(np.stack([one_HWC[..., 0] * (2650 / 255) - 1350.0] * 3))
        assert np.abs(found_CHW.astype(int) - wanted_CHW).max() <= 1, name
        assert not np.array_equal(found_CHW, clean_CHW)
    # Bytes and floating numbers are corrupted alike.
    image_HWC = np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8)
    for corruption in corruptions_of(["all"]):
        whole = corruption.apply(image_HWC, 3, 0, "x").astype(float)
        exact = corruption.apply(image_HWC.astype(np.float32), 3, 0, "x")
        assert exact.dtype == np.float32 and np.abs(whole - exact).mean() < 0.6, corruption.name
    with pytest.raises(ConfigError, match="no values can be corrupted that all of them show"):
        wide_channels(_windows((0.5, 99.5), (1, 99), transform="volume"))
    assert wide_channels(_windows((0, 10), (0, 10))) is None
