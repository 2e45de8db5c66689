"""Random changes: labels stay where the pixels went, and the neutral setting changes nothing."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as transforms

from vitp.data.augment import AugmentSettings, augment, random_crop
from vitp.data.image_sample import ImageSample, crop, flip, quarter_turns, resize, rotate
from vitp.records.geometry import area, as_flat, as_points, min_area_quad, signed_area
from vitp.records.labels import IGNORE, ObjectLabel
from vitp.records.regions import object_of, outline, rasterise
from vitp.scenes import scene_set

HEIGHT, WIDTH = 40, 56


def blob(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A mask of one region without holes: an ellipse somewhere in the picture."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] + 0.5
    cx, cy = rng.uniform(12, width - 12), rng.uniform(12, height - 12)
    rx, ry = rng.uniform(5, 11, 2)
    angle = rng.uniform(0, np.pi)
    u = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
    v = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
    return ((u / rx) ** 2 + (v / ry) ** 2 <= 1).astype(np.uint8)


def sample_of(mask_HW: np.ndarray, seed: int = 0) -> ImageSample:
    """An image that is white where the object is, with the object as box, quad, outline and mask."""
    rings = outline(mask_HW).rings
    points = np.concatenate(rings)
    label = ObjectLabel(
        "ship",
        (*points.min(0), *points.max(0)),  # type: ignore[arg-type]
        as_flat(min_area_quad(points)),
        tuple(as_flat(ring) for ring in rings),
    )
    image = torch.from_numpy(np.repeat(mask_HW[None] * 255, 3, 0))
    return ImageSample(image, objects=(label,), semantic_HW=torch.from_numpy(mask_HW.copy()))


def box_of(mask_HW: np.ndarray) -> tuple[float, float, float, float]:
    rows, columns = np.nonzero(mask_HW)
    return float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1)


def test_the_neutral_setting_changes_nothing() -> None:
    sample = sample_of(blob(0))
    same = augment(sample, AugmentSettings.none(), np.random.default_rng(0))
    assert same is sample


@given(seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_outlines_of_masks_give_the_masks_back(seed: int) -> None:
    mask_HW = blob(seed)
    rings = [as_flat(ring) for ring in outline(mask_HW).rings]
    assert (rasterise(rings, mask_HW.shape) == mask_HW).all()  # type: ignore[arg-type]


def test_rasterised_rectangles_are_exact() -> None:
    mask_HW = rasterise([(1.0, 2.0, 5.0, 2.0, 5.0, 4.0, 1.0, 4.0)], (6, 8))
    expected = np.zeros((6, 8), np.uint8)
    expected[2:4, 1:5] = 1
    assert (mask_HW == expected).all()
    # Half pixels: a centre on the left border is inside, on the right border it is not.
    half_HW = rasterise([(0.5, 0.0, 2.5, 0.0, 2.5, 1.0, 0.5, 1.0)], (1, 4))
    assert half_HW.tolist() == [[1, 1, 0, 0]]
    assert rasterise([(-5.0, -5.0, 3.0, -5.0, 3.0, 3.0, -5.0, 3.0)], (4, 4)).sum() == 9
    assert rasterise([(10.0, 10.0, 12.0, 10.0, 12.0, 12.0)], (4, 4)).sum() == 0
    two = rasterise(
        [(0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0), (3.0, 3.0, 4.0, 3.0, 4.0, 4.0, 3.0, 4.0)], (4, 4)
    )
    assert two.sum() == 2


def test_a_scene_s_instances_come_back_from_its_outlines() -> None:
    item = scene_set("port", seed=3, count=1, size=96).items[0]
    from vitp.scenes import load_scene

    scene = load_scene(item.image)
    assert item.objects
    for number, label in enumerate(item.objects, 1):
        truth = scene.instance_HW == number
        assert (rasterise(label.polygons, (96, 96), label.holes) == truth).all()


@pytest.mark.parametrize("step", ["flip x", "flip y", "90", "180", "270", "double", "stretch"])
def test_exact_steps_move_labels_with_the_pixels(step: str) -> None:
    for seed in range(5):
        sample = sample_of(blob(seed))
        moved = {
            "flip x": lambda s: flip(s, True, False),
            "flip y": lambda s: flip(s, False, True),
            "90": lambda s: quarter_turns(s, 1),
            "180": lambda s: quarter_turns(s, 2),
            "270": lambda s: quarter_turns(s, 3),
            "double": lambda s: resize(s, (2 * HEIGHT, 2 * WIDTH)),
            "stretch": lambda s: resize(s, (HEIGHT, 3 * WIDTH)),
        }[step](sample)
        assert moved.objects is not None and moved.semantic_HW is not None
        (label,) = moved.objects
        assert label.box == pytest.approx(box_of(moved.semantic_HW.numpy()))
        assert moved.size == tuple(moved.semantic_HW.shape)
        # Clockwise in the image, and of the area that the map of points gives it.
        grown = moved.size[0] * moved.size[1] / (HEIGHT * WIDTH)
        before, after = (as_points(o.quad or ()) for o in (sample.objects[0], label))  # type: ignore[index]
        assert signed_area(after) == pytest.approx(grown * signed_area(before))
        again = rasterise(label.polygons, moved.size)
        assert (again == moved.semantic_HW.numpy()).all()


def ring_sample() -> ImageSample:
    mask_HW = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask_HW[5:25, 10:34] = 1
    mask_HW[9:18, 15:30] = 0
    mask_HW[12:15, 20:24] = 1  # an island
    label = object_of(mask_HW, "ring")
    assert label is not None and len(label.polygons) == 2 and len(label.holes) == 1
    image = torch.from_numpy(np.repeat(mask_HW[None] * 255, 3, 0))
    return ImageSample(image, objects=(label,), semantic_HW=torch.from_numpy(mask_HW))


@pytest.mark.parametrize("step", ["flip", "turn", "double", "crop", "crop to the hole"])
def test_holes_stay_holes(step: str) -> None:
    moved = {
        "flip": lambda s: flip(s, True, True),
        "turn": lambda s: quarter_turns(s, 1),
        "double": lambda s: resize(s, (2 * HEIGHT, 2 * WIDTH)),
        "crop": lambda s: crop(s, (12, 7, 40, 22), min_visible=0.1),
        # Only the upper band of the ring is in the window: the box must not reach down into the hole.
        "crop to the hole": lambda s: crop(s, (16, 6, 28, 11), min_visible=0.01),
    }[step](ring_sample())
    assert moved.objects is not None and moved.semantic_HW is not None
    (label,) = moved.objects
    truth_HW = moved.semantic_HW.numpy()
    assert (rasterise(label.polygons, moved.size, label.holes) == truth_HW).all()
    assert label.box == box_of(truth_HW)


def test_four_quarter_turns_and_two_flips_are_nothing() -> None:
    sample = sample_of(blob(1))
    once = quarter_turns(sample, 1)
    assert torch.equal(once.image_CHW[0], torch.from_numpy(np.rot90(sample.image_CHW[0].numpy(), -1).copy()))
    back = quarter_turns(once, 3)
    assert torch.equal(back.image_CHW, sample.image_CHW) and back.objects[0].box == sample.objects[0].box  # type: ignore[index]
    twice = flip(flip(sample, True, True), True, True)
    assert torch.equal(twice.image_CHW, sample.image_CHW)


def test_boxes_move_as_torchvision_moves_them() -> None:
    box = (7.0, 5.0, 31.0, 22.0)
    sample = ImageSample(torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8), objects=(ObjectLabel("a", box),))
    theirs = tv_tensors.BoundingBoxes([box], format="XYXY", canvas_size=(HEIGHT, WIDTH))  # type: ignore[call-overload]

    def ours(changed: ImageSample) -> torch.Tensor:
        return torch.tensor([changed.objects[0].box])  # type: ignore[index]

    for changed, expected in (
        (flip(sample, True, False), transforms.horizontal_flip(theirs)),
        (flip(sample, False, True), transforms.vertical_flip(theirs)),
        (resize(sample, (80, 28)), transforms.resize(theirs, [80, 28])),
        (crop(sample, (4, 2, 20, 30), min_visible=0.1), transforms.crop(theirs, 2, 4, 28, 16)),
    ):
        torch.testing.assert_close(ours(changed), torch.as_tensor(expected).as_subclass(torch.Tensor).float())


@given(seed=st.integers(0, 10_000), degrees=st.floats(-180, 180))
@settings(max_examples=40, deadline=None)
def test_rotation_keeps_labels_on_the_pixels(seed: int, degrees: float) -> None:
    sample = sample_of(blob(seed))
    turned = rotate(sample, degrees)
    assert turned.objects is not None and turned.semantic_HW is not None
    (label,) = turned.objects
    mask_HW = turned.semantic_HW.numpy() == 1
    assert label.box == pytest.approx(box_of(mask_HW), abs=1.2)
    # The image was white in the object: its centre of mass says which way it really turned.
    weight_HW = turned.image_CHW[0].double().numpy()
    y, x = np.mgrid[0 : turned.size[0], 0 : turned.size[1]] + 0.5
    centre = (x * weight_HW).sum() / weight_HW.sum(), (y * weight_HW).sum() / weight_HW.sum()
    moments = [cv2.moments(as_points(ring).astype(np.float32)) for ring in label.polygons]
    whole = sum(m["m00"] for m in moments)
    expected = sum(m["m10"] for m in moments) / whole, sum(m["m01"] for m in moments) / whole
    assert centre == pytest.approx(expected, abs=0.15)
    assert area(as_points(label.quad or ())) == pytest.approx(area(as_points(sample.objects[0].quad or ())))  # type: ignore[index]
    assert (turned.semantic_HW == IGNORE).any() or abs(degrees) % 90 < 3 or abs(degrees) % 90 > 87


@given(seed=st.integers(0, 100_000))
@settings(max_examples=80, deadline=None)
def test_augmented_labels_agree_with_each_other(seed: int) -> None:
    rng = np.random.default_rng(seed)
    wanted = AugmentSettings(
        scale=(0.6, 1.7), crop=32, rotate=float(rng.choice([0, 45])), min_visible=0.3, photometric=0.5
    )
    sample = sample_of(blob(seed))
    changed = augment(sample, wanted, rng)
    assert changed.size == (32, 32) and changed.image_CHW.dtype == torch.uint8
    assert changed.objects is not None and changed.semantic_HW is not None
    mask_HW = changed.semantic_HW.numpy() == 1
    if not changed.objects or changed.objects[0].difficult:  # less than 30 % of it is left
        whole = int(sample.semantic_HW.sum())  # type: ignore[union-attr]
        assert mask_HW.sum() < 0.3 * 1.7**2 * whole + 8
        return
    (label,) = changed.objects
    x1, y1, x2, y2 = label.box
    assert 0 <= x1 < x2 <= 32 and 0 <= y1 < y2 <= 32
    # The mask is resized and turned by nearest neighbours: each moves its border by up to a pixel of the original.
    assert label.box == pytest.approx(box_of(mask_HW), abs=2.5)
    quad = as_points(label.quad or ())
    assert (quad.mean(0) > -3).all() and (quad.mean(0) < 35).all()
    found = rasterise(label.polygons, (32, 32))
    inside = (found[mask_HW] == 1).mean()
    assert inside > 0.75


def test_objects_that_leave_are_gone_and_the_rest_is_clipped() -> None:
    image = torch.zeros(3, 20, 20, dtype=torch.uint8)
    labels = (
        ObjectLabel("stays", (2.0, 2.0, 6.0, 6.0)),
        ObjectLabel("half", (8.0, 2.0, 12.0, 6.0)),
        ObjectLabel("gone", (14.0, 14.0, 18.0, 18.0)),
    )
    part = crop(ImageSample(image, objects=labels), (0, 0, 10, 10), min_visible=0.4)
    assert [(label.category, label.box) for label in part.objects or ()] == [
        ("stays", (2.0, 2.0, 6.0, 6.0)),
        ("half", (8.0, 2.0, 10.0, 6.0)),
    ]
    strict = crop(ImageSample(image, objects=labels), (0, 0, 10, 10), min_visible=0.6)
    # Half an object is neither one to learn nor background.
    assert [(label.category, label.difficult) for label in strict.objects or ()] == [
        ("stays", False),
        ("half", True),
    ]


def test_padding_is_black_and_ignored() -> None:
    sample = ImageSample(
        torch.full((3, 4, 5), 9, dtype=torch.uint8), semantic_HW=torch.ones(4, 5, dtype=torch.uint8)
    )
    part = crop(sample, (0, 0, 8, 8), min_visible=0.5)
    assert part.image_CHW.sum() == 9 * 3 * 20 and part.size == (8, 8)
    assert part.semantic_HW is not None
    assert (part.semantic_HW == IGNORE).sum() == 64 - 20 and (part.semantic_HW == 1).sum() == 20


def test_crops_avoid_too_much_of_one_class() -> None:
    semantic_HW = torch.zeros(64, 64, dtype=torch.uint8)
    semantic_HW[:, 40:] = 1
    sample = ImageSample(torch.zeros(3, 64, 64, dtype=torch.uint8), semantic_HW=semantic_HW)

    def shares(most: float) -> list[float]:
        wanted = AugmentSettings(crop=16, max_class_share=most)
        parts = [random_crop(sample, (16, 16), wanted, np.random.default_rng(n)) for n in range(60)]
        return [float((p.semantic_HW == 1).float().mean()) for p in parts if p.semantic_HW is not None]

    plain, balanced = shares(1.0), shares(0.75)
    mixed = [share for share in balanced if 0.25 <= share <= 0.75]
    assert sum(0.25 <= share <= 0.75 for share in plain) < 20
    assert len(mixed) > 40


def test_dates_change_together_and_swap() -> None:
    image = torch.arange(3 * 8 * 8, dtype=torch.uint8).reshape(3, 8, 8)
    sample = ImageSample(image, later_CHW=255 - image, semantic_HW=(image[0] > 30).to(torch.uint8))
    wanted = AugmentSettings(photometric=0.0, swap_dates=0.5)
    swapped = 0
    for seed in range(40):
        changed = augment(sample, wanted, np.random.default_rng(seed))
        assert changed.later_CHW is not None
        assert torch.equal(changed.image_CHW, 255 - changed.later_CHW)
        before = changed.image_CHW if changed.image_CHW.sum() < changed.later_CHW.sum() else changed.later_CHW
        assert torch.equal((before[0] > 30).to(torch.uint8), changed.semantic_HW)
        swapped += int(changed.image_CHW.sum() > changed.later_CHW.sum())
    assert 10 <= swapped <= 30
    never = replace(sample)
    same = augment(never, AugmentSettings.none(), np.random.default_rng(0))
    assert torch.equal(same.image_CHW, image)


def test_the_generator_decides_everything() -> None:
    sample = sample_of(blob(5))
    wanted = AugmentSettings(scale=(0.5, 2.0), crop=24, rotate=30, photometric=1.0)
    one, two, other = (augment(sample, wanted, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.image_CHW, two.image_CHW) and one.objects == two.objects
    assert not torch.equal(one.image_CHW, other.image_CHW)
