"""Rotated operators against independent implementations: shapely, torchvision, OpenCV and brute force."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import shapely
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign

from vitp.models.rotated import nms as nms_module
from vitp.models.rotated.boxes import areas_of, boxes_of_quads, hulls_of, long_edge_first, quads_of
from vitp.models.rotated.iou import paired_rotated_iou, rotated_iou
from vitp.models.rotated.nms import rotated_nms
from vitp.models.rotated.pairs import overlapping_pairs
from vitp.models.rotated.roi_align import MultiScaleRotatedRoIAlign, rotated_roi_align


def random_boxes(
    count: int, seed: int, *, side: float = 100, low: float = 4, high: float = 60, dtype=torch.float64
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(count, 2, generator=generator, dtype=torch.float64) * side
    shape = low * (high / low) ** torch.rand(count, 2, generator=generator, dtype=torch.float64)
    angle = (torch.rand(count, 1, generator=generator, dtype=torch.float64) - 0.5) * math.pi
    return long_edge_first(torch.cat([centre, shape, angle], 1)).to(dtype)


def shapely_intersection(first_N5: Tensor, second_M5: Tensor) -> np.ndarray:
    first = shapely.polygons(quads_of(first_N5.double()).view(-1, 4, 2).numpy())
    second = shapely.polygons(quads_of(second_M5.double()).view(-1, 4, 2).numpy())
    return shapely.area(shapely.intersection(first[:, None], second[None]))


def shapely_iou(first_N5: Tensor, second_M5: Tensor) -> np.ndarray:
    common = shapely_intersection(first_N5, second_M5)
    first, second = areas_of(first_N5.double()).numpy(), areas_of(second_M5.double()).numpy()
    whole = first[:, None] + second[None] - common
    return np.divide(common, whole, out=np.zeros_like(common), where=whole > 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_iou_equals_shapely(dtype):
    first, second = random_boxes(80, 0, dtype=dtype), random_boxes(70, 1, dtype=dtype)
    expected = shapely_iou(first, second)
    assert (expected > 0).mean() > 0.1
    found = rotated_iou(first, second)
    assert found.dtype == dtype
    assert np.abs(found.numpy() - expected).max() < (1e-12 if dtype == torch.float64 else 1e-6)


def test_iof_and_intersection_equal_shapely():
    first, second = random_boxes(40, 2), random_boxes(30, 3)
    common = shapely_intersection(first, second)
    assert np.abs(rotated_iou(first, second, "intersection").numpy() - common).max() < 1e-9
    part = common / areas_of(first).numpy()[:, None]
    assert np.abs(rotated_iou(first, second, "iof").numpy() - part).max() < 1e-12


def test_thin_boxes_equal_shapely():
    thin = random_boxes(60, 4, side=300)
    thin[:, 2], thin[:, 3] = 1000.0, 0.1
    assert np.abs(rotated_iou(thin, thin).numpy() - shapely_iou(thin, thin)).max() < 1e-6
    turned = thin.clone()
    turned[:, 4] += 1e-4  # nearly parallel: the edges cross at a slant of one in ten thousand
    found = paired_rotated_iou(thin, turned).numpy()
    assert np.abs(found - np.diag(shapely_iou(thin, turned))).max() < 1e-6


def test_known_overlaps():
    square = torch.tensor([[50.0, 50, 20, 20, 0.0]]).double()
    cases = {
        (50.0, 50, 20, 20, 0.0): 1.0,  # identical
        (50.0, 50, 20, 20, -math.pi / 2): 1.0,  # identical, turned by a quarter
        (50.0, 50, 10, 10, 0.3): 0.25,  # nested
        (70.0, 50, 20, 20, 0.0): 0.0,  # shares an edge
        (70.0, 70, 20, 20, 0.0): 0.0,  # shares a corner
        (60.0, 50, 20, 20, 0.0): 1 / 3,  # half of it
        (50.0, 50, 20, 20, math.pi / 4): (8 * math.sqrt(2) - 8) / (8 - (8 * math.sqrt(2) - 8)),  # octagon
        (50.0, 50, 20, 0, 0.3): 0.0,  # no area
        (50.0, 50, 0, 0, 0.0): 0.0,
        (500.0, 50, 20, 20, 0.0): 0.0,
    }
    found = rotated_iou(square, torch.tensor(list(cases), dtype=torch.float64))[0]
    assert found.tolist() == pytest.approx(list(cases.values()), abs=1e-12)
    empty = torch.tensor([[50.0, 50, 0, 0, 0.0]]).double()
    for mode in ("iou", "iof", "intersection"):
        assert rotated_iou(empty, empty, mode).tolist() == [[0.0]]
    assert rotated_iou(square[:0], square).shape == (0, 1)


NICE_LENGTH = st.sampled_from([0.0, 1e-3, 0.5, 1.0, 2.0, 3.0, 8.0, 10.0, 1e4])
NICE_PLACE = st.sampled_from([0.0, 0.5, 1.0, 2.0, 4.0, 5.0, -3.0, 1e-7, 100.0])
NICE_ANGLE = st.builds(
    lambda quarter, extra: quarter * math.pi / 4 + extra,
    st.integers(-2, 2),
    st.sampled_from([0.0, 1e-12, -1e-10, 1e-9, 3e-9, 1e-7, -1e-5, 1e-3, 0.3]),
)
NICE_BOX = st.tuples(NICE_PLACE, NICE_PLACE, NICE_LENGTH, NICE_LENGTH, NICE_ANGLE)


@settings(deadline=None, max_examples=200)
@given(NICE_BOX, NICE_BOX)
def test_iou_of_coinciding_edges_equals_shapely(first, second):
    """Shared edges and corners, near-parallel edges, and shapes of all proportions."""
    boxes = torch.tensor([first, second], dtype=torch.float64)
    found = paired_rotated_iou(boxes[:1], boxes[1:]).item()
    assert found == pytest.approx(float(shapely_iou(boxes[:1], boxes[1:])[0, 0]), abs=1e-4)
    assert paired_rotated_iou(boxes[1:], boxes[:1]).item() == pytest.approx(found, abs=1e-9)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.sampled_from([7, 50, 10**6]), st.booleans())
def test_sweep_finds_each_overlapping_pair_once(seed, limit, whole_numbers):
    first, second = hulls_of(random_boxes(25, seed)), hulls_of(random_boxes(31, seed + 1))
    if whole_numbers:  # equal borders
        first, second = (first / 10).round() * 10, (second / 10).round() * 10
    found = [
        pair
        for i, j in overlapping_pairs(first, second, limit)
        for pair in zip(i.tolist(), j.tolist(), strict=True)
    ]
    low = torch.maximum(first[:, None, :2], second[None, :, :2])
    high = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    expected = {tuple(pair) for pair in torch.nonzero((low < high).all(-1)).tolist()}
    assert len(found) == len(set(found))
    assert expected <= set(found)
    # Boxes without area may come along; the exact overlap answers 0 for them.
    assert all(
        (first[i, 2:] <= first[i, :2]).any() or (second[j, 2:] <= second[j, :2]).any()
        for i, j in set(found) - expected
    )


def brute_force_nms(boxes: Tensor, scores: Tensor, threshold: float, labels: Tensor | None) -> list[int]:
    overlap = rotated_iou(boxes.double(), boxes.double())
    order = sorted(range(len(boxes)), key=lambda index: (-float(scores[index]), index))
    kept: list[int] = []
    for index in order:
        rivals = [k for k in kept if labels is None or labels[k] == labels[index]]
        if all(float(overlap[k, index]) <= threshold for k in rivals):
            kept.append(index)
    return kept


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 10_000), st.sampled_from([0.0, 0.1, 0.5, 0.9]), st.booleans(), st.sampled_from([5, 1024])
)
def test_nms_equals_brute_force(seed, threshold, labelled, block):
    boxes = random_boxes(60, seed)
    boxes = torch.cat([boxes, boxes[:10]])  # duplicates
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 12, (len(boxes),), generator=generator) / 12  # many ties
    labels = torch.randint(0, 3, (len(boxes),), generator=generator) if labelled else None
    before, nms_module.BLOCK = nms_module.BLOCK, block
    try:
        found = rotated_nms(boxes, scores, threshold, labels).tolist()
    finally:
        nms_module.BLOCK = before
    assert found == brute_force_nms(boxes, scores, threshold, labels)


def test_nms_of_nothing_and_of_a_pile():
    assert rotated_nms(torch.zeros(0, 5), torch.zeros(0), 0.5).tolist() == []
    pile = torch.tensor([[50.0, 50, 20, 10, 0.3]]).repeat(3000, 1)
    scores = torch.linspace(0, 1, 3000)
    assert rotated_nms(pile, scores, 0.5).tolist() == [2999]
    assert len(rotated_nms(pile, scores, 0.5, torch.arange(3000))) == 3000


def test_quads_to_rectangles_equal_opencv():
    rng = np.random.default_rng(0)
    for _ in range(200):
        points = rng.uniform(0, 100, (4, 2))
        (_, (w, h), _) = cv2.minAreaRect(points.astype(np.float32))
        box = boxes_of_quads(torch.from_numpy(points.reshape(1, 8)))[0]
        assert float(box[2] * box[3]) == pytest.approx(w * h, rel=1e-4)
        hull = shapely.Polygon(quads_of(box[None])[0].view(4, 2).numpy()).buffer(1e-6)
        assert hull.covers(shapely.MultiPoint(points))


def random_rois(count: int, seed: int, *, images: int, side: float) -> Tensor:
    boxes = random_boxes(count, seed, side=side, low=3, high=side)
    image = torch.arange(count, dtype=torch.float64)[:, None] % images
    return torch.cat([image, boxes], 1)


def test_roi_align_at_angle_zero_equals_torchvision():
    torch.manual_seed(0)
    features = torch.randn(2, 5, 24, 32)
    rois = random_rois(40, 5, images=2, side=140).float()
    rois[:, 5] = 0
    rois[0, 1:3] = torch.tensor([-20.0, 200.0])  # mostly outside
    corners = torch.cat([rois[:, :1], rois[:, 1:3] - rois[:, 3:5] / 2, rois[:, 1:3] + rois[:, 3:5] / 2], 1)
    expected = torchvision.ops.roi_align(features, corners, (3, 4), 0.25, 2, aligned=True)
    found = rotated_roi_align(features, rois, (3, 4), 0.25, 2)
    assert (found - expected).abs().max() < 1e-5
    assert expected.abs().max() > 0.5


def dense_reference(features_CHW: np.ndarray, roi: np.ndarray, size: int, scale: float, samples: int):
    """One region, one sample after the other."""
    channels, height, width = features_CHW.shape
    cx, cy, w, h, angle = roi
    out = np.zeros((channels, size, size))
    for row in range(size * samples):
        for column in range(size * samples):
            u = ((column + 0.5) / (size * samples) - 0.5) * w
            v = ((row + 0.5) / (size * samples) - 0.5) * h
            x = (cx + u * math.cos(angle) - v * math.sin(angle)) * scale - 0.5
            y = (cy + u * math.sin(angle) + v * math.cos(angle)) * scale - 0.5
            if x < -1 or y < -1 or x > width or y > height:
                continue
            x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
            left, top = min(int(x), width - 2), min(int(y), height - 2)
            fx, fy = x - left, y - top
            patch = features_CHW[:, top : top + 2, left : left + 2]
            value = (1 - fy) * ((1 - fx) * patch[:, 0, 0] + fx * patch[:, 0, 1])
            value = value + fy * ((1 - fx) * patch[:, 1, 0] + fx * patch[:, 1, 1])
            out[:, row // samples, column // samples] += value / samples**2
    return out


def test_roi_align_at_any_angle_equals_dense_sampling():
    torch.manual_seed(1)
    features = torch.randn(1, 3, 12, 15, dtype=torch.float64)
    rois = random_rois(25, 6, images=1, side=60)
    found = rotated_roi_align(features, rois, 3, 0.25, 2).numpy()
    for index, roi in enumerate(rois[:, 1:].numpy()):
        expected = dense_reference(features[0].numpy(), roi, 3, 0.25, 2)
        assert np.abs(found[index] - expected).max() < 1e-12


def test_roi_align_has_the_right_gradient_and_splits_freely(monkeypatch):
    torch.manual_seed(2)
    features = torch.randn(2, 2, 6, 7, dtype=torch.float64, requires_grad=True)
    rois = random_rois(6, 7, images=2, side=28)
    assert torch.autograd.gradcheck(lambda f: rotated_roi_align(f, rois, 2, 0.25), (features,))
    whole = rotated_roi_align(features, rois, 2, 0.25)
    monkeypatch.setattr("vitp.models.rotated.roi_align.SAMPLED_VALUES", 1)
    assert torch.equal(rotated_roi_align(features, rois, 2, 0.25), whole)
    none = rotated_roi_align(features, rois[:0], 2, 0.25)
    assert none.shape == (0, 2, 2, 2) and none.requires_grad


def test_multi_scale_at_angle_zero_equals_torchvision():
    torch.manual_seed(3)
    maps = [torch.randn(2, 4, 64 // 2**level, 64 // 2**level).double() for level in range(4)]
    rois = random_rois(60, 8, images=2, side=256)
    rois[:, 5] = 0
    corners = torch.cat([rois[:, 1:3] - rois[:, 3:5] / 2, rois[:, 1:3] + rois[:, 3:5] / 2], 1)
    order = rois[:, 0].argsort(stable=True)
    reference = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2, canonical_scale=80, canonical_level=4)
    by_image = [corners[rois[:, 0] == image] for image in range(2)]
    # torchvision's levels come from the boxes, its scales from the maps' sizes; its RoIAlign is not aligned.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torchvision.ops.poolers,
            "roi_align",
            lambda *args, **kwargs: torchvision.ops.roi_align(*args, **kwargs, aligned=True),
        )
        expected = reference({str(k): m for k, m in enumerate(maps)}, by_image, [(256, 256)] * 2)
    pooler = MultiScaleRotatedRoIAlign((4, 8, 16, 32), 7, 2, canonical_size=80)
    found = pooler(maps, rois)
    assert len(set(pooler.level_of(rois[:, 1:]).tolist())) == 4
    assert (found[order] - expected).abs().max() < 1e-9
