"""Objects far from a large raster's origin, where single precision is coarse."""

from __future__ import annotations

import pytest
import torch

from vitp.tasks.merging import ViewObjects

WINDOWS = [[59_000, 0, 60_000, 1000], [58_800, 0, 59_800, 1000]]


@pytest.mark.parametrize("label", [0, 17, 79])
def test_overlaps_decide_at_the_far_corner_as_anywhere(label: int) -> None:
    """Pairs of boxes of 10 px, the second moved by 3.25 to 3.4 px: an IoU of 0.5 is passed at 10/3."""
    moved_N = 3.25 + torch.arange(16, dtype=torch.float64) / 100
    pairs = [
        [[59_200, 20 * row, 59_210, 20 * row + 10], [59_200 + move, 20 * row, 59_210 + move, 20 * row + 10]]
        for row, move in enumerate(moved_N.tolist())
    ]
    boxes_N4 = torch.tensor(pairs, dtype=torch.float32).reshape(-1, 4)
    count = len(boxes_N4)
    scores_N = torch.tensor([0.9, 0.8]).repeat(count // 2)
    objects = ViewObjects(
        boxes_N4, None, scores_N, torch.full((count,), label), torch.tensor(WINDOWS * (count // 2)), None
    )
    kept = set(objects.kept((1000, 60_000)).tolist())
    # As float32 has them, to 1/256 px.
    apart_N = (boxes_N4[1::2, 0] - boxes_N4[::2, 0]).double()
    wanted = {2 * row + 1 for row, apart in enumerate(apart_N.tolist()) if (10 - apart) / (10 + apart) <= 0.5}
    assert kept == {*range(0, count, 2), *wanted}
    assert 0 < len(wanted) < count // 2
