"""Where detectors look: anchors, regions of the levels, and masks of regions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection.image_list import ImageList

from vitp.models.heads.cascade import BoxSettings, BoxStage, StageSettings
from vitp.models.heads.fpn import DetectionNeck, RegionPool
from vitp.models.heads.mask import cut_masks, paste_masks
from vitp.models.heads.rpn import ImageTruth, ProposalNetwork, ProposalSettings, StrideAnchors, near, outside

ONE, TWO = (4.0, 6.0, 20.0, 30.0), (33.0, 30.0, 60.0, 58.0)


def test_regions_on_ignored_objects_are_no_background() -> None:
    stage = BoxStage(4, 2, True, StageSettings(iou=0.6), BoxSettings(hidden=8))
    ignored = torch.tensor([TWO])
    truth = ImageTruth(torch.tensor([ONE]), torch.tensor([2]), ignored, (64, 64))
    shifted = ignored + torch.tensor([1.0, 0.0, 1.0, 0.0])
    inside = torch.tensor([[33.0, 30.0, 46.0, 58.0]])  # an overlap of about a half, but all of it lies there
    boxes = torch.cat([torch.tensor([ONE]), shifted, inside, torch.tensor([[0.0, 0.0, 5.0, 5.0]])])
    assert stage._match(boxes, truth)[0].tolist() == [2, -1, -1, 0]
    # Without any object, too.
    nothing = ImageTruth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), ignored, (64, 64))
    assert stage._match(boxes, nothing)[0].tolist() == [0, -1, -1, 0]
    samples = stage.sample([boxes], [nothing])
    assert len(samples.boxes[0]) == 2 and samples.labels[0].tolist() == [0, 0]


def test_anchors_in_padding_and_on_ignored_objects_are_not_learned() -> None:
    network = ProposalNetwork((4, 8), 4, ProposalSettings(anchor_scales=(4.0,), anchor_ratios=(1.0,)))
    anchors = torch.tensor(
        [[0.0, 0, 16, 16], [20, 20, 36, 36], [40, 0, 56, 16], [0, 40, 16, 56], [8, 8, 24, 24]]
    )
    target = {
        "boxes": torch.tensor([[0.0, 0, 16, 16]]),
        "ignored": torch.tensor([[20.0, 20, 36, 32]]),
        "size": torch.tensor([48, 40]),
    }
    labels, _ = network.assign_targets_to_anchors([anchors], [target])
    assert labels[0].tolist() == [1.0, -1.0, -1.0, -1.0, 0.0]
    assert outside(anchors, (48, 40)).tolist() == [False, False, True, True, False]
    assert near(anchors, torch.zeros(0, 4), 0.3).tolist() == [False] * 5


def test_anchors_lie_at_their_strides() -> None:
    """Maps of 100×70 px are rounded up: their cells are still 4, 8, … px apart."""
    anchors = StrideAnchors((4, 32), (2.0,), (1.0,))
    maps = [torch.zeros(1, 1, math.ceil(70 / s), math.ceil(100 / s), dtype=torch.bfloat16) for s in (4, 32)]
    (boxes,) = anchors(ImageList(maps[0], [(70, 100)]), maps)
    assert boxes.dtype == torch.float32
    assert boxes.shape == (18 * 25 + 3 * 4, 4)
    assert boxes[1].tolist() == [0.0, -4.0, 8.0, 4.0]
    assert boxes[-1].tolist() == [96 - 32, 64 - 32, 96 + 32, 64 + 32]


def test_neck_adds_a_level_in_float32() -> None:
    neck = DetectionNeck((3, 3, 3, 3), (4, 8, 16, 32), 5)
    maps = [torch.randn(2, 3, math.ceil(70 / s), math.ceil(100 / s)) for s in (4, 8, 16, 32)]
    with torch.autocast("cpu", torch.bfloat16):
        levels = neck(maps)
    assert neck.strides == (4, 8, 16, 32, 64)
    assert [tuple(level.shape) for level in levels] == [
        (2, 5, math.ceil(70 / s), math.ceil(100 / s)) for s in neck.strides
    ]
    assert {level.dtype for level in levels} == {torch.float32}


@settings(max_examples=50, deadline=None)
@given(
    x=st.floats(8, 60),
    y=st.floats(8, 60),
    width=st.floats(2, 40),
    height=st.floats(2, 40),
    canonical=st.sampled_from([16.0, 64.0]),
)
def test_regions_are_read_where_they_are(
    x: float, y: float, width: float, height: float, canonical: float
) -> None:
    """On maps that hold each cell's coordinates the mean of a region is its centre, at every level."""
    strides = (4, 8, 16)
    maps = []
    for stride in strides:
        centre = (torch.arange(160 // stride) + 0.5) * stride
        maps.append(torch.stack(torch.meshgrid(centre, centre, indexing="xy"))[None])
    box = torch.tensor([[x, y, x + width, y + height]])
    region = RegionPool(strides, 4, canonical_size=canonical)(maps, [box])
    wanted = [x + width / 2, y + height / 2]
    assert region.mean((2, 3))[0].tolist() == pytest.approx(wanted, abs=1e-3)


def test_regions_of_no_box() -> None:
    pool = RegionPool((4, 8), 7)
    maps = [torch.zeros(2, 3, 16, 16), torch.zeros(2, 3, 8, 8)]
    assert pool(maps, [torch.zeros(0, 4)] * 2).shape == (0, 3, 7, 7)


def test_a_full_mask_covers_the_pixels_whose_centres_are_in_the_box() -> None:
    boxes = torch.tensor(
        [[3.0, 5.0, 10.0, 12.0], [3.6, 5.4, 10.4, 12.6], [-4.0, -4.0, 3.0, 2.0], [18.0, 0.0, 30.0, 9.0]]
    )
    pasted = paste_masks(torch.ones(4, 28, 28), boxes, (16, 20))
    wanted = torch.zeros(4, 16, 20, dtype=torch.bool)
    wanted[0, 5:12, 3:10] = True
    wanted[1, 5:13, 4:10] = True
    wanted[2, :2, :3] = True
    wanted[3, :9, 18:] = True
    assert torch.equal(pasted, wanted)
    outside_image = torch.tensor([[30.0, 30.0, 40.0, 40.0]])
    assert not paste_masks(torch.ones(1, 28, 28), outside_image, (16, 20)).any()
    assert paste_masks(torch.ones(0, 28, 28), torch.zeros(0, 4), (16, 20)).shape == (0, 16, 20)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([1, 2, 4]))
def test_cut_and_pasted_masks_are_the_same(seed: int, scale: int) -> None:
    """Boxes of 28, 14 and 7 pixels: each pixel is one, four or sixteen cells."""
    rng = np.random.default_rng(seed)
    side = 28 // scale
    x, y = rng.integers(0, 40 - side, 2)
    mask = np.zeros((40, 40), np.uint8)
    mask[y : y + side, x : x + side] = rng.random((side, side)) < 0.5
    box = torch.tensor([[x, y, x + side, y + side]], dtype=torch.float32)
    cut = cut_masks(torch.from_numpy(mask)[None], box, torch.tensor([0]), 28)
    if scale == 1:
        assert torch.equal(cut[0] > 0.5, torch.from_numpy(mask[y : y + side, x : x + side] > 0))
    pasted = paste_masks(cut, box, (40, 40))
    assert torch.equal(pasted[0].to(torch.uint8), torch.from_numpy(mask))


def test_cut_masks_take_the_matched_object() -> None:
    masks = torch.zeros(3, 20, 20, dtype=torch.uint8)
    masks[2, :, :10] = 1
    boxes = torch.tensor([[0.0, 0, 9, 10], [11, 0, 20, 10], [0, 0, 20, 20]])
    cut = cut_masks(masks, boxes, torch.tensor([2, 2, 1]), 4)
    assert cut.mean((1, 2)).tolist() == pytest.approx([1.0, 0.0, 0.0], abs=1e-5)
