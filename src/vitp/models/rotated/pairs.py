"""Pairs of overlapping axis-aligned boxes: a cheap filter before the exact computation.

Shapes: N, M boxes (x1, y1, x2, y2); K pairs.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

CANDIDATES = 2**21
"""Pairs looked at in one go; bounds the memory (about 100 MB)."""


def overlapping_pairs(
    first_N4: Tensor, second_M4: Tensor, limit: int = CANDIDATES
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield all pairs of boxes that share an area, in parts: indices (K,) into the first and the second set.

    A sweep along x: pairs whose x ranges don't meet are never made. Boxes that only touch don't overlap.

    Args:
        first_N4, second_M4: Boxes of the same dtype.
        limit: Candidates in one go.
    """
    order_N, order_M = first_N4[:, 0].argsort(), second_M4[:, 0].argsort()
    left_N, left_M = first_N4[order_N, 0].contiguous(), second_M4[order_M, 0].contiguous()
    right_N, right_M = first_N4[order_N, 2].contiguous(), second_M4[order_M, 2].contiguous()
    # Of two ranges that meet, one begins inside the other. Equal beginnings count once, in the first search.
    low, high = torch.searchsorted(left_M, left_N), torch.searchsorted(left_M, right_N)
    for begun, inside in _expand(order_N, order_M, low, high, limit):
        yield _meet_in_y(first_N4, second_M4, begun, inside)
    low, high = torch.searchsorted(left_N, left_M, right=True), torch.searchsorted(left_N, right_M)
    for begun, inside in _expand(order_M, order_N, low, high, limit):
        yield _meet_in_y(first_N4, second_M4, inside, begun)


def _expand(
    queries: Tensor, order: Tensor, low: Tensor, high: Tensor, limit: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (query, order[k]) for each query and each k in its range low … high - 1."""
    counts = (high - low).clamp(min=0)
    ends = counts.cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    begin = 0
    while begin < len(queries) and total:
        done = int(ends[begin - 1]) if begin else 0
        if done == total:
            break
        # One query at least, even if it alone has more pairs than the limit.
        end = max(begin + 1, int(torch.searchsorted(ends, done + limit, right=True)))
        part = slice(begin, end)
        count = counts[part]
        size = int(ends[end - 1]) - done
        # Counting on from a query's own `low`: its pairs begin at ends - count of all, less those that are done.
        offset = low[part] - (ends[part] - count - done)
        # The size is known, so `repeat_interleave` needn't ask the device for it.
        places = torch.arange(size, device=queries.device) + offset.repeat_interleave(count, output_size=size)
        yield queries[part].repeat_interleave(count, output_size=size), order[places]
        begin = end


def _meet_in_y(first_N4: Tensor, second_M4: Tensor, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
    top = torch.maximum(first_N4[:, 1][i], second_M4[:, 1][j])
    bottom = torch.minimum(first_N4[:, 3][i], second_M4[:, 3][j])
    meets = top < bottom
    return i[meets], j[meets]
