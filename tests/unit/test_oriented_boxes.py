"""Round trips between the representations of oriented boxes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from vitp.models.rotated.boxes import (
    boxes_of_hulls,
    boxes_of_points,
    boxes_of_quads,
    hulls_of,
    hulls_of_quads,
    long_edge_first,
    quads_of,
    wrap_angle,
)
from vitp.models.rotated.coders import (
    EdgeSwapCoder,
    MidpointOffsetCoder,
    boxes_of_midpoint_offsets,
    midpoint_offsets,
)

SIDE = st.floats(0.5, 500)
PLACE = st.floats(-1000, 1000)
ANGLE = st.one_of(
    st.floats(-10, 10),
    st.sampled_from([0.0, math.pi / 2, -math.pi / 2, math.pi, math.pi / 2 - 1e-9, -math.pi / 2 + 1e-9]),
)
BOX = st.tuples(PLACE, PLACE, SIDE, SIDE, ANGLE)


def as_box(values: tuple[float, ...]) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def same_rectangle(first_N5: Tensor, second_N5: Tensor) -> float:
    """Return the largest distance between corners, whichever corner comes first."""
    first = quads_of(first_N5).view(-1, 4, 2)
    second = quads_of(second_N5).view(-1, 4, 2)
    rolled = torch.stack([(first - second.roll(k, 1)).norm(dim=-1).amax(-1) for k in range(4)])
    return float(rolled.amin(0).max())


@settings(deadline=None)
@given(BOX)
def test_long_edge_first_is_the_same_rectangle(values):
    box = as_box(values)
    canonical = long_edge_first(box)
    assert float(canonical[0, 2]) >= float(canonical[0, 3])
    assert -math.pi / 2 <= float(canonical[0, 4]) < math.pi / 2
    assert same_rectangle(box, canonical) < 1e-9
    assert torch.equal(long_edge_first(canonical), canonical)


@settings(deadline=None)
@given(BOX)
def test_quads_come_back(values):
    box = as_box(values)
    assert same_rectangle(boxes_of_quads(quads_of(box)), box) < 1e-8
    single = box.float()
    assert same_rectangle(boxes_of_quads(quads_of(single)), single) < 2e-3  # rounding at 1000 px


@settings(deadline=None)
@given(BOX)
def test_hulls_agree(values):
    box = as_box(values)
    assert torch.allclose(hulls_of(box), hulls_of_quads(quads_of(box)), atol=1e-9)
    hull = hulls_of(box)
    assert torch.allclose(hulls_of(boxes_of_hulls(hull)), hull, atol=1e-9)


@settings(deadline=None)
@given(BOX)
def test_midpoint_offsets_come_back(values):
    box = as_box(values)
    offsets = midpoint_offsets(box)
    assert float(offsets[0, 4:].abs().max()) <= 0.5 + 1e-12
    tolerance = 1e-4 * float(box[0, 2:4].max()) + 1e-6  # boxes tilted by less count as straight
    assert same_rectangle(boxes_of_midpoint_offsets(offsets), box) < tolerance
    coder = MidpointOffsetCoder()
    anchors = hulls_of(box) + torch.tensor([[-3.0, 2.0, 5.0, 4.0]])
    assert same_rectangle(coder.decode(anchors, coder.encode(anchors, box)), box) < tolerance


@settings(deadline=None)
@given(BOX, st.floats(-1.5, 1.5), st.floats(0.3, 3), st.floats(0.3, 3))
def test_edge_swap_deltas_come_back(values, turn, wider, higher):
    proposal = long_edge_first(as_box(values))
    assume(float(proposal[0, 2] / proposal[0, 3]) < 20)  # larger changes than 62.5 times are cut off
    target = proposal * torch.tensor([[1, 1, wider, higher, 1]], dtype=torch.float64)
    target = long_edge_first(target + torch.tensor([[5.0, -7.0, 0, 0, turn]], dtype=torch.float64))
    coder = EdgeSwapCoder()
    deltas = coder.encode(proposal, target)
    assert abs(float(deltas[0, 4])) * 0.1 <= math.pi / 4 + 1e-9
    assume(float(deltas[0, 2:4].abs().max()) * 0.2 < math.log(62.5))  # of the edges that were matched
    assert same_rectangle(coder.decode(proposal, deltas), target) < 1e-6


def test_corners_run_clockwise_from_the_upper_left():
    quad = quads_of(as_box((10, 20, 8, 4, 0.0)))[0].tolist()
    assert quad == pytest.approx([6, 18, 14, 18, 14, 22, 6, 22])
    turned = quads_of(as_box((0, 0, 10, 2, math.pi / 4)))[0]
    assert float(turned[3]) > 0 and float(turned[2]) > 0  # the right end goes down: clockwise in the image


def test_top_and_right_corners_of_a_tilted_box():
    half = math.sqrt(2) / 2
    x, y, w, h, alpha, beta = midpoint_offsets(as_box((10, 20, 6, 2, -math.pi / 4)))[0].tolist()
    assert (x, y, w, h) == pytest.approx((10, 20, 8 * half, 8 * half))
    quad = quads_of(as_box((10, 20, 6, 2, -math.pi / 4))).view(4, 2)
    top, right = quad[quad[:, 1].argmin()], quad[quad[:, 0].argmax()]
    assert x + alpha * w == pytest.approx(float(top[0]))
    assert y + beta * h == pytest.approx(float(right[1]))


def test_straight_boxes_have_one_parametrisation():
    for box in ((0, 0, 8, 4, 0.0), (0, 0, 8, 4, -math.pi / 2), (0, 0, 8, 4, 1e-6), (0, 0, 8, 4, -1e-6)):
        assert midpoint_offsets(as_box(box))[0, 4:].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wrapped_angles_stay_in_the_half_open_range(dtype):
    angles = torch.tensor(
        [-math.pi / 2, math.pi / 2, 3 * math.pi / 2, -1e-9 - math.pi / 2, 100.0], dtype=dtype
    )
    wrapped = wrap_angle(
        torch.cat([angles, torch.nextafter(angles, angles + 1), torch.nextafter(angles, angles - 1)])
    )
    assert bool((wrapped >= -math.pi / 2).all()) and bool((wrapped < math.pi / 2).all())


def test_degenerate_boxes_stay_finite():
    zero = as_box((5, 5, 0, 0, 0.3))
    anchors = as_box((0, 0, 0, 0, 0))[:, :4]
    for value in (
        boxes_of_quads(quads_of(zero)),
        boxes_of_points(torch.zeros(1, 4, 2)),
        boxes_of_points(torch.tensor([[[0.0, 0], [1, 1], [2, 2], [3, 3]]])),
        MidpointOffsetCoder().encode(anchors, zero),
        MidpointOffsetCoder().decode(anchors, torch.full((1, 6), 1e4, dtype=torch.float64)),
        EdgeSwapCoder().encode(zero, zero),
        EdgeSwapCoder().decode(zero, torch.full((1, 5), 1e4, dtype=torch.float64)),
    ):
        assert bool(torch.isfinite(value).all())
    line = boxes_of_points(torch.tensor([[[0.0, 0], [1, 1], [2, 2], [3, 3]]]))[0].tolist()
    assert line == pytest.approx([1.5, 1.5, math.sqrt(18), 0, math.pi / 4], abs=1e-6)
