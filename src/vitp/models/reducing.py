"""Fewer image tokens from all of them: average pooling and merging of similar ones, beside dropping (`vrl`).

Shapes: T tiles, n tokens a tile, k of them that are left, K those of all tiles, F width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def reduce_tokens(tokens_TnF: Tensor, keep_K: Tensor, how: str) -> Tensor:
    """Return as many tokens a tile as `keep_K` holds of it, (K, F), in the order of the places of `keep_K`.

    Args:
        tokens_TnF: All tokens.
        keep_K: Which places are filled, numbered over all tiles, ascending.
        how: "drop" takes the tokens of those places, "pool" averages neighbours, "merge" the most similar ones.
    """
    tiles, n, width = tokens_TnF.shape
    if how == "drop" or keep_K.numel() == tiles * n:
        return tokens_TnF.flatten(0, 1)[keep_K]
    counts_T = torch.bincount(keep_K // n, minlength=tiles)
    first_T = counts_T.cumsum(0) - counts_T
    reduced_KF = tokens_TnF.new_zeros(keep_K.numel(), width)
    # Tiles of which equally many tokens stay are computed together; places are spread evenly, so the counts are few.
    for k in counts_T.unique().tolist():
        chosen = (counts_T == k).nonzero().flatten()
        if k:
            found = (pooled if how == "pool" else merged)(tokens_TnF[chosen], k)
            places = (first_T[chosen, None] + torch.arange(k, device=keep_K.device)).flatten()
            reduced_KF = reduced_KF.index_copy(0, places, found.flatten(0, 1).to(reduced_KF.dtype))
    return reduced_KF


def pooled(tokens_TnF: Tensor, k: int) -> Tensor:
    """Return k averages of neighbours a tile, (T, k, F): of a grid's blocks, or of runs where k is no such grid."""
    tiles, n, width = tokens_TnF.shape
    side = math.isqrt(n)
    grids = [(a, k // a) for a in range(1, side + 1) if k % a == 0 and k // a <= side]
    tokens_TFn = tokens_TnF.transpose(1, 2)
    if side * side != n or not grids:
        return F.adaptive_avg_pool1d(tokens_TFn, k).transpose(1, 2)
    shape = min(grids, key=lambda grid: abs(grid[0] - grid[1]))
    blocks_TFab = F.adaptive_avg_pool2d(tokens_TFn.reshape(tiles, width, side, side), shape)
    return blocks_TFab.flatten(2).transpose(1, 2)


def merged(tokens_TnF: Tensor, k: int) -> Tensor:
    """Return k tokens a tile, (T, k, F): the most similar pairs are merged first (Bolya et al., 2023).

    In each round every second token looks for the most similar of the others, and the pairs that are most alike become
    their mean, each weighted by the tokens it stands for. Tokens stay in the order of the first one they hold.
    """
    size_Tn = tokens_TnF.new_ones(tokens_TnF.shape[:2])
    first_Tn = torch.arange(tokens_TnF.shape[1], device=tokens_TnF.device).expand(size_Tn.shape)
    while (n := tokens_TnF.shape[1]) > k:
        # Only every second token can go in a round, so a strong reduction takes several.
        count = min(n - k, n // 2)
        # Which tokens are alike is a choice and has no gradient; the means below have one.
        with torch.no_grad():
            unit = F.normalize(tokens_TnF.float(), dim=-1)
            best, to = (unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)).max(-1)
            order = best.argsort(dim=-1, descending=True, stable=True)
        gone, left = order[:, :count], order[:, count:]
        target = to.gather(1, gone)
        weighted = tokens_TnF * size_Tn[..., None]
        sums = weighted[:, 1::2].scatter_add(1, _wide(target, weighted), _taken(weighted[:, ::2], gone))
        sizes = size_Tn[:, 1::2].scatter_add(1, target, size_Tn[:, ::2].gather(1, gone))
        firsts = first_Tn[:, 1::2].scatter_reduce(1, target, first_Tn[:, ::2].gather(1, gone), "amin")
        tokens_TnF = torch.cat([_taken(tokens_TnF[:, ::2], left), sums / sizes[..., None]], 1)
        size_Tn = torch.cat([size_Tn[:, ::2].gather(1, left), sizes], 1)
        first_Tn, order = torch.cat([first_Tn[:, ::2].gather(1, left), firsts], 1).sort(1)
        tokens_TnF, size_Tn = _taken(tokens_TnF, order), size_Tn.gather(1, order)
    return tokens_TnF


def _wide(index_Tm: Tensor, like: Tensor) -> Tensor:
    return index_Tm[..., None].expand(-1, -1, like.shape[-1])


def _taken(tokens_TnF: Tensor, index_Tm: Tensor) -> Tensor:
    return tokens_TnF.gather(1, _wide(index_Tm, tokens_TnF))
