"""Rotated boxes at their limits: no area, no length, outputs that mean too much, boxes that hardly tilt."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vitp.models.rotated import iou as iou_module
from vitp.models.rotated.boxes import (
    areas_of,
    boxes_of_hulls,
    boxes_of_points,
    boxes_of_quads,
    hulls_of,
    hulls_of_quads,
    long_edge_first,
    quads_of,
)
from vitp.models.rotated.coders import (
    EdgeSwapCoder,
    MidpointOffsetCoder,
    boxes_of_midpoint_offsets,
    midpoint_offsets,
)
from vitp.models.rotated.iou import paired_rotated_iou, pairs_at_once, rotated_iou
from vitp.models.rotated.nms import rotated_nms
from vitp.models.rotated.pairs import overlapping_pairs
from vitp.models.rotated.roi_align import MultiScaleRotatedRoIAlign, rotated_roi_align, sample_points

QUARTER = math.pi / 2


def table(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def close(found: Tensor, *rows: tuple[float, ...], atol: float = 1e-9) -> None:
    torch.testing.assert_close(found.double(), table(*rows), atol=atol, rtol=0)


def test_areas_and_hulls() -> None:
    assert areas_of(
        table((0, 0, 4, 3, 1), (0, 0, -4, -3, 0), (0, 0, -4, 3, 0), (0, 0, 4, -3, 0))
    ).tolist() == [12, 0, 0, 0]
    close(hulls_of(table((10, 20, 4, 2, 0), (10, 20, 4, 2, -QUARTER))), (8, 19, 12, 21), (9, 18, 11, 22))
    half = math.sqrt(2) / 2
    close(hulls_of(table((0, 0, 2, 1, math.pi / 4))), (-1.5 * half, -1.5 * half, 1.5 * half, 1.5 * half))
    close(hulls_of_quads(table((5, 1, 9, 2, 3, 8, 1, 4))), (1, 1, 9, 8))
    close(boxes_of_hulls(table((0, 0, 4, 2), (1, 1, 3, 9))), (2, 1, 4, 2, 0), (2, 5, 8, 2, -QUARTER))


def test_long_edges_come_first_and_squares_stay() -> None:
    given = table((1, 2, 3, 5, 0.25), (1, 2, 3, 3, 0.25), (1, 2, 5, 3, QUARTER), (1, 2, 5, 3, -2.0))
    close(
        long_edge_first(given),
        (1, 2, 5, 3, 0.25 - QUARTER),
        (1, 2, 3, 3, 0.25),
        (1, 2, 5, 3, -QUARTER),
        (1, 2, 5, 3, math.pi - 2.0),
    )
    close(
        quads_of(table((1, 2, 4, 2, 0), (0, 0, 4, 2, -QUARTER))),
        (-1, 1, 3, 1, 3, 3, -1, 3),
        (-1, 2, -1, -2, 1, -2, 1, 2),
    )


def test_points_and_lines_have_boxes() -> None:
    point, level, upright = (7, 8) * 4, (1, 5, 4, 5, 9, 5, 2, 5), (3, 1, 3, 1, 3, 7, 3, 4)
    close(
        boxes_of_quads(table(point, level, upright)), (7, 8, 0, 0, 0), (5, 5, 8, 0, 0), (3, 4, 6, 0, -QUARTER)
    )
    # Far from the origin, in single precision, the tilt of a small box stays.
    box = torch.tensor([[4000.0, 5000.0, 8.0, 3.0, 0.3]])
    torch.testing.assert_close(boxes_of_quads(quads_of(box)), box, atol=2e-3, rtol=0)
    triangle = table((0, 0), (4, 0), (1, 2))[None]
    # On an edge of the hull: on the longest the rectangle is 4 × 2.
    found = boxes_of_points(triangle)
    assert float(areas_of(found)) == pytest.approx(8.0)


def test_midpoint_offsets_by_hand() -> None:
    # 4 × 2, turned by 30°: the hull is 2√3 + 1 wide and 2 + √3 high.
    angle, width, height = math.pi / 6, 2 * math.sqrt(3) + 1, 2 + math.sqrt(3)
    # Corners: ±2(cos, sin) ± (−sin, cos). Topmost: (−2c + s, −2s − c); rightmost: (2c + s, 2s − c).
    c, s = math.cos(angle), math.sin(angle)
    wanted = (5, 6, width, height, (-2 * c + s) / width, (2 * s - c) / height)
    close(midpoint_offsets(table((5, 6, 4, 2, angle))), wanted)
    mirrored = (5, 6, width, height, (2 * c - s) / width, (-2 * s + c) / height)
    close(midpoint_offsets(table((5, 6, 4, 2, -angle))), mirrored)
    close(
        boxes_of_midpoint_offsets(table(wanted, mirrored)),
        (5, 6, 4, 2, angle),
        (5, 6, 4, 2, -angle),
        atol=1e-6,
    )


def test_boxes_that_hardly_tilt_are_straight() -> None:
    straight, tilted = 0.9e-4, 1.1e-4
    for angle in (0.0, straight, -straight, QUARTER - straight, -QUARTER + straight):
        assert midpoint_offsets(table((0, 0, 4, 2, angle)))[0, 4:].tolist() == [0.5, 0.5]
    for angle in (tilted, -tilted, QUARTER - tilted, -QUARTER + tilted):
        alpha, beta = midpoint_offsets(table((0, 0, 4, 2, angle)))[0, 4:].tolist()
        assert (alpha, beta) != (0.5, 0.5) and abs(alpha) == pytest.approx(0.5, abs=1e-3)
        assert abs(beta) == pytest.approx(0.5, abs=1e-3)
    assert midpoint_offsets(table((0, 0, 0, 0, 0.5))).isfinite().all()


def test_offsets_beyond_a_half_are_cut_and_parallelograms_stretched() -> None:
    close(
        boxes_of_midpoint_offsets(table((0, 0, 4, 2, 9, 9), (0, 0, 4, 2, -9, -9))),
        (0, 0, 4, 2, 0),
        (0, 0, 4, 2, 0),
    )
    # Top at (0, −1), right at (3, 0): the shorter diagonal grows to 3, which gives a square on its corner.
    side = 3 * math.sqrt(2)
    found = boxes_of_midpoint_offsets(table((1, 2, 6, 2, 0, 0)))[0]
    assert found[:4].tolist() == pytest.approx([1, 2, side, side])
    assert abs(float(found[4])) == pytest.approx(math.pi / 4)
    assert boxes_of_midpoint_offsets(table((0, 0, 0, 0, 0, 0))).isfinite().all()


def test_midpoint_deltas_by_hand() -> None:
    coder = MidpointOffsetCoder()
    anchors, boxes = table((10, 20, 30, 60)), table((25, 30, 40, 20, 0))
    deltas = (5 / 20, -10 / 40, math.log(2), math.log(0.5), 1.0, 1.0)
    close(coder.encode(anchors, boxes), deltas)
    close(coder.decode(anchors, table(deltas)), (25, 30, 40, 20, 0))
    # Halves are what the network says as 1: ½ = 0.5 · 1, and more than that is cut.
    far = coder.decode(anchors, table((0, 0, 99, -99, 5, 5)))[0]
    assert far[2].item() == pytest.approx(20 * 62.5) and far[3].item() == pytest.approx(40 / 62.5)
    inside = math.log(62.0)
    near = coder.decode(anchors, table((0, 0, inside, -inside, 1, 1)))[0]
    assert near[2].item() == pytest.approx(20 * 62) and near[3].item() == pytest.approx(40 / 62)
    empty = coder.encode(table((10, 10, 10, 10)), table((10, 10, 0, 0, 0)))
    close(empty, (0, 0, 0, 0, 1, 1))
    assert coder.encode(anchors, table((20, 40, 0, 0, 0)))[0, 2].item() == pytest.approx(math.log(1e-3 / 20))


def test_edge_swap_deltas_by_hand() -> None:
    coder = EdgeSwapCoder()
    proposal, box = table((10, 20, 8, 4, 0)), table((14, 19, 16, 2, 0.2))
    deltas = (4 / 8 / 0.1, -1 / 4 / 0.1, math.log(2) / 0.2, math.log(0.5) / 0.2, 2.0)
    close(coder.encode(proposal, box), deltas)
    close(coder.decode(proposal, table(deltas)), (14, 19, 16, 2, 0.2))
    # In the frame of a turned proposal.
    turned = table((10, 20, 8, 4, -QUARTER))
    close(coder.encode(turned, table((10, 12, 8, 4, -QUARTER))), (10, 0, 0, 0, 0))
    close(coder.decode(turned, table((10, 5, 0, 0, 0))), (12, 12, 8, 4, -QUARTER))
    # The target's long edge is nearer to the short one of the proposal: edges change roles.
    swapped = coder.encode(proposal, table((10, 20, 8, 4, -QUARTER + 0.1)))
    close(swapped, (0, 0, math.log(4 / 8) / 0.2, math.log(8 / 4) / 0.2, 1.0))
    close(coder.decode(proposal, swapped), (10, 20, 8, 4, -QUARTER + 0.1))
    # At 45° both are as near; the straight way is taken.
    close(coder.encode(proposal, table((10, 20, 8, 4, -math.pi / 4))), (0, 0, 0, 0, -math.pi / 4 / 0.1))
    far = coder.decode(proposal, table((0, 0, 99, -99, 0)))[0]
    assert far[2].item() == pytest.approx(8 * 62.5) and far[3].item() == pytest.approx(4 / 62.5)
    assert coder.encode(table((0, 0, 0, 0, 0)), table((0, 0, 0, 0, 0))).tolist() == [[0, 0, 0, 0, 0]]


def test_overlaps_that_end_at_nothing() -> None:
    box, inner = table((0, 0, 4, 4, 0.3)), table((0, 0, 2, 1, 0.3))
    assert rotated_iou(box, inner).item() == pytest.approx(2 / 16)
    assert rotated_iou(box, inner, "iof").item() == pytest.approx(2 / 16)
    assert rotated_iou(inner, box, "iof").item() == pytest.approx(1.0)
    assert rotated_iou(inner, box, "intersection").item() == pytest.approx(2.0)
    for empty in (table((0, 0, 0, 4, 0.3)), table((0, 0, -4, -4, 0)), table((0, 0, 0, 0, 1))):
        for mode in ("iou", "iof", "intersection"):
            assert paired_rotated_iou(box, empty, mode).tolist() == [0.0]
            assert paired_rotated_iou(empty, box, mode).tolist() == [0.0]
        assert paired_rotated_iou(empty, empty).tolist() == [0.0]
    # Parallel boxes apart in both directions must not overlap; nor tilted ones.
    for turn in (0.0, QUARTER, 0.2, 1e-10):
        assert paired_rotated_iou(table((0, 0, 2, 2, 0)), table((9, 9, 2, 2, turn))).tolist() == [0.0]
    # A cross of 4 × 1 and 1 × 4, and the same a little turned.
    cross = paired_rotated_iou(table((0, 0, 4, 1, 0.7)), table((0, 0, 1, 4, 0.7)), "intersection")
    assert cross.item() == pytest.approx(1.0)
    for tilt in (2e-9, 1e-6):
        near = paired_rotated_iou(table((0, 0, 4, 2, 0)), table((1, 0.5, 4, 2, tilt)), "intersection")
        assert near.item() == pytest.approx(3 * 1.5, abs=1e-4)
    octagon = paired_rotated_iou(
        table((3, 4, 2, 2, 0.1)), table((3, 4, 2, 2, 0.1 + math.pi / 4)), "intersection"
    )
    assert octagon.item() == pytest.approx(8 * (math.sqrt(2) - 1))


def test_types_devices_and_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = table((0, 0, 4, 2, 0.1), (1, 0, 4, 2, 0.4), (50, 0, 4, 2, 0))
    whole = rotated_iou(boxes, boxes)
    assert rotated_iou(boxes.float(), boxes.float()).dtype is torch.float32
    assert rotated_iou(boxes[:0], boxes).shape == (0, 3) and rotated_iou(boxes, boxes[:0]).shape == (3, 0)
    assert pairs_at_once(boxes) == 2**15
    for at_once in (1, 2):
        monkeypatch.setattr(iou_module, "PAIRS_CPU", at_once)
        assert torch.equal(rotated_iou(boxes, boxes), whole)
    assert whole.diagonal().tolist() == pytest.approx([1, 1, 1]) and whole[0, 2] == 0


def test_pairs_touch_not_and_come_once() -> None:
    first = table((0, 0, 2, 2), (2, 0, 4, 2), (0, 2, 2, 4), (5, 5, 6, 6))
    second = table((0, 0, 2, 2), (1, 1, 3, 3), (9, 9, 10, 10))
    for limit in (1, 3, 100):
        found = sorted(
            (int(i), int(j))
            for pair in overlapping_pairs(first, second, limit)
            for i, j in zip(*pair, strict=True)
        )
        assert found == [(0, 0), (0, 1), (1, 1), (2, 1)]
    parts = [len(i) for i, _ in overlapping_pairs(first[:1].repeat(4, 1), second[:1].repeat(4, 1), 5)]
    assert sum(parts) == 16 and max(parts) <= 5
    pairs = overlapping_pairs(first[:1].repeat(4, 1), second[:1].repeat(4, 1), 8)
    assert [len(i) for i, _ in pairs if len(i)] == [8, 8]
    assert list(overlapping_pairs(first[:0], second)) == [] == list(overlapping_pairs(first, second[:0]))


def test_suppression_at_the_threshold_by_label_and_by_order() -> None:
    boxes = table((0, 0, 4, 4, 0), (0, 0, 4, 2, 0), (40, 0, 4, 4, 0))
    scores = torch.tensor([0.5, 0.5, 0.9])
    assert rotated_nms(boxes, scores, 0.49).tolist() == [2, 0]
    assert rotated_nms(boxes, scores, 0.5).tolist() == [2, 0, 1]  # an overlap of exactly 0.5 is not greater
    assert rotated_nms(boxes, scores, 0.1, torch.tensor([0, 1, 0])).tolist() == [2, 0, 1]
    assert rotated_nms(boxes, scores, 0.1, torch.tensor([1, 1, 0])).tolist() == [2, 0]
    assert rotated_nms(boxes[:0], scores[:0], 0.5).tolist() == []
    # Suppressed boxes suppress no others.
    chain = table((0, 0, 10, 2, 0), (4, 0, 10, 2, 0), (8, 0, 10, 2, 0))
    assert rotated_nms(chain, torch.tensor([0.9, 0.8, 0.7]), 0.3).tolist() == [0, 2]


def test_levels_by_size() -> None:
    pool = MultiScaleRotatedRoIAlign((4, 8, 16, 32))
    sides = [1, 56, 111.9, 112, 223.9, 224, 447.9, 448, 5000, 0]
    boxes = table(*((0, 0, side, side, 0.3) for side in sides))
    assert pool.level_of(boxes).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3, 0]
    assert pool.level_of(table((0, 0, 448, 112, 0))).tolist() == [2]
    assert MultiScaleRotatedRoIAlign((8, 16)).level_of(boxes).tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1, 0]
    assert (pool.output_size, pool.sampling_ratio, pool.canonical_size, pool.canonical_level) == (
        7,
        2,
        224,
        4,
    )
    maps = [torch.full((2, 1, 8, 8), float(level)) for level in range(4)]
    rois = torch.tensor([[1, 16, 16, 5, 5, 0], [0, 16, 16, 300, 300, 0.2], [0, 16, 16, 5, 9, 1.0]])
    found = pool(maps, rois)
    assert found.shape == (3, 1, 7, 7) and found[:, 0, 3, 3].tolist() == [0.0, 2.0, 0.0]


def test_samples_and_edges_of_regions() -> None:
    points = sample_points(table((10, 20, 8, 4, 0), (0, 0, 8, 4, QUARTER)), (1, 2), 1)
    close(points[0, 0], (8, 20), (12, 20))
    close(points[1, 0], (0, -2), (0, 2))
    two = sample_points(table((0, 0, 4, 4, 0)), (1, 1), 2)
    close(two[0].reshape(-1, 2), (-1, -1), (1, -1), (-1, 1), (1, 1))
    ramp = torch.arange(4.0).repeat(3, 1)[None, None].repeat(2, 1, 1, 1)
    ramp[1] += 100
    # One sample a cell at stride 2: the pixel x lies at the cell x / 2 − ½.
    rois = torch.tensor(
        [[0, 4.0, 3.0, 2.0, 2.0, 0.0], [1, 4.0, 3.0, 2.0, 2.0, 0.0], [0, 0.5, 3.0, 1.0, 1.0, 0.0]]
    )
    found = rotated_roi_align(ramp, rois, 1, 0.5, 1)
    assert found[:, 0, 0, 0].tolist() == pytest.approx([1.5, 101.5, 0.0])
    # More than a cell beyond the last centre is 0, up to there the border's value.
    for x, value in ((8.9, 3.0), (9.1, 0.0), (-0.9, 0.0), (-1.1, 0.0)):
        roi = torch.tensor([[1, x, 3.0, 1e-3, 1e-3, 0.0]])
        got = rotated_roi_align(ramp, roi, 1, 0.5, 1)[0, 0, 0, 0].item()
        assert got == pytest.approx(value + 100 * (value > 0 or x == -0.9), abs=1e-3)
    assert rotated_roi_align(ramp.half(), rois, 1, 0.5, 1).dtype is torch.float16
    assert rotated_roi_align(ramp.double(), rois, (1, 2), 0.5, 1).shape == (3, 1, 1, 2)
    features = ramp.clone().requires_grad_()
    none = rotated_roi_align(features, rois[:0], (2, 3), 0.5)
    assert none.shape == (0, 1, 2, 3)
    none.sum().backward()
    assert features.grad is not None and not features.grad.any()
    single = torch.full((1, 1, 1, 1), 7.0)
    assert rotated_roi_align(single, torch.tensor([[0, 0.5, 0.5, 1.0, 1.0, 0.0]]), 1, 1.0, 1).item() == 7.0


def test_regions_of_small_maps_and_of_half_precision() -> None:
    two = torch.tensor([[[[0.0, 10.0]]]])
    for x, value in ((0.5, 0.0), (1.0, 5.0), (1.5, 10.0), (1.9, 10.0)):
        roi = torch.tensor([[0, x, 0.5, 1e-3, 1e-3, 0.0]])
        assert rotated_roi_align(two, roi, 1, 1.0, 1).item() == pytest.approx(value, abs=1e-2)
    high = torch.tensor([[[[0.0], [10.0]]]])
    for y, value in ((0.5, 0.0), (1.0, 5.0), (1.5, 10.0)):
        roi = torch.tensor([[0, 0.5, y, 1e-3, 1e-3, 0.0]])
        assert rotated_roi_align(high, roi, 1, 1.0, 1).item() == pytest.approx(value, abs=1e-2)
    ramp = (torch.arange(512.0) / 64).repeat(2, 1)[None, None]
    roi = torch.tensor([[0, 400.75, 1.0, 2.0, 1.0, 0.0]])
    exact = rotated_roi_align(ramp, roi, 1, 1.0, 1).item()
    assert exact == pytest.approx(400.25 / 64, abs=1e-5)
    # Positions keep their digits, whatever the features have.
    saw = (torch.arange(512.0) % 8).repeat(2, 1)[None, None]
    for kind in (torch.float32, torch.bfloat16, torch.float16):
        roi = torch.tensor([[0, 401.5, 1.0, 1e-3, 1.0, 0.0]])
        found = rotated_roi_align(saw.to(kind), roi, 1, 1.0, 1)
        assert found.dtype is kind and found.item() == pytest.approx(1.0, abs=1e-3)
    wide = torch.tensor([[0, 8.0, 1.0, 4.0, 2.0, 0.3]])
    curved = ramp.square()
    assert torch.equal(rotated_roi_align(curved, wide, 2, 1.0), rotated_roi_align(curved, wide, 2, 1.0, 2))
    assert not torch.equal(
        rotated_roi_align(curved, wide, 2, 1.0), rotated_roi_align(curved, wide, 2, 1.0, 1)
    )
