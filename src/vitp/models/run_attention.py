"""Attention over runs of tokens with torch's own kernel: exact on any device, in any precision, with little memory.

Runs of about the same length are laid side by side in slots. A prefix or a conversation needs no mask: it is causal,
and the slots behind its end are seen by nobody. The branches behind prefixes of one length share one small mask.
The gathers know where each token went, so their gradients are gathers, too, and no sums.

Shapes: N flat tokens, M slots, R runs of a group, q their longest, P tokens of the prefix, h query heads, g key and
value heads, d channels a head, w = heads · d.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitp.models.token_runs import TokenRuns, ranges

WASTE = 1.3
"""Slots a token, at most, that runs of different lengths in one group may cost."""


def repeat_heads(x_BgLd: Tensor, heads: int) -> Tensor:
    """Return keys or values with one copy for each query head, (B, h, L, d)."""
    batch, own, length, channels = x_BgLd.shape
    if own == heads:
        return x_BgLd
    wide = x_BgLd[:, :, None].expand(batch, own, heads // own, length, channels)
    return wide.reshape(batch, heads, length, channels)


def group_by_length(lengths: np.ndarray) -> list[np.ndarray]:
    """Return groups of item numbers whose padded size is at most `WASTE` times their own; longest first."""
    order = np.argsort(-lengths, kind="stable")
    groups: list[np.ndarray] = []
    first, total = 0, 0
    for place, item in enumerate(order):
        total += int(lengths[item])
        # Lengths fall, so the first of a group is its longest, to which the others are padded.
        longest = int(lengths[order[first]])
        if (place - first + 1) * longest > WASTE * total:
            groups.append(order[first:place])
            first, total = place, int(lengths[item])
    if len(order):
        groups.append(order[first:])
    return groups


class _Take(torch.autograd.Function):
    """Rows by number, where each row that matters is read once: the gradient is a gather as well.

    torch's own gradient of a gather adds rows to zeros, on a GPU in an order that changes.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, back: Tensor, read: Tensor | None) -> Tensor:
        ctx.back, ctx.read = back, read
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        gradient = gradients[0].index_select(0, ctx.back)
        return gradient if ctx.read is None else gradient * ctx.read, None, None, None


@dataclass(frozen=True)
class _Taking:
    """Rows `index` of a tensor; `back` says where each of its rows went, `read` (0 or 1) whether it went anywhere."""

    index: Tensor
    back: Tensor
    read: Tensor | None

    @classmethod
    def of(cls, index: np.ndarray, real: np.ndarray, source: int, device: torch.device) -> _Taking:
        """Make it from the rows to read, of which only those marked `real` pass a gradient back."""
        back, read = np.zeros(source, dtype=np.int64), np.zeros((source, 1), dtype=np.float32)
        back[index[real]] = np.flatnonzero(real)
        read[index[real]] = 1.0
        mask = None if read.all() else torch.from_numpy(read).to(device)
        return cls(torch.from_numpy(index).to(device), torch.from_numpy(back).to(device), mask)

    def __call__(self, rows: Tensor) -> Tensor:
        read = None if self.read is None else self.read.to(rows.dtype)
        taken: Tensor = _Take.apply(rows, self.index, self.back, read)
        return taken


@dataclass(frozen=True)
class _Group:
    """Runs that the kernel computes at once: R runs in q slots each, behind a prefix of P tokens.

    `prefix` is the number of the block of prefixes, `owner_R` the prefix of each run in it.
    """

    runs: int
    slots: int
    prefix: int | None = None
    prefix_length: int = 0
    owner_R: Tensor | None = None


class RunAttention:
    """Attention of one batch as groups of runs. See `vitp.models.attention_layouts.PackedAttention`.

    Args:
        runs: Runs of the batch.
        device: Device of queries and keys.
    """

    def __init__(self, runs: TokenRuns, device: torch.device) -> None:
        self.tokens, self.device = runs.tokens, device
        self._masks: dict[tuple[int, int, torch.dtype], Tensor] = {}
        self._groups: list[_Group] = []
        self._slots: list[np.ndarray] = []  # token of each slot, group by group
        self._real: list[np.ndarray] = []  # whether a slot holds a token or repeats one as padding
        self._prefixes: list[tuple[np.ndarray, int]] = []  # tokens of the prefixes, and their length
        self._add(runs, np.flatnonzero(runs.prefix_length_R == 0), None)
        for length in np.unique(runs.prefix_length_R[runs.prefix_length_R > 0]):
            self._add_branches(runs, int(length))
        slots, real = np.concatenate(self._slots), np.concatenate(self._real)
        self._to_slots = _Taking.of(slots, real, self.tokens, device)
        self._to_tokens = self._back_to_tokens(slots, real)
        self._to_prefixes = [
            _Taking.of(tokens, np.ones(len(tokens), dtype=bool), self.tokens, device)
            for tokens, _ in self._prefixes
        ]

    def _add_branches(self, runs: TokenRuns, length: int) -> None:
        """Group the branches behind prefixes of one length; the keys of a prefix are taken once."""
        members = np.flatnonzero(runs.prefix_length_R == length)
        starts, owner = np.unique(runs.prefix_start_R[members], return_inverse=True)
        self._prefixes.append((ranges(starts, np.full(len(starts), length)), length))
        self._add(runs, members, owner)

    def _add(self, runs: TokenRuns, members: np.ndarray, owner: np.ndarray | None) -> None:
        for group in group_by_length(runs.length_R[members]):
            start, length = runs.start_R[members[group]], runs.length_R[members[group]]
            slots = int(length.max())
            offset = np.arange(slots)
            real = offset < length[:, None]
            # Slots behind the end repeat the run's first token: seen by nobody, read by nobody.
            self._slots.append(np.where(real, start[:, None] + offset, start[:, None]).reshape(-1))
            self._real.append(real.reshape(-1))
            if owner is None:
                self._groups.append(_Group(len(group), slots))
                continue
            number = len(self._prefixes) - 1
            owner_R = torch.from_numpy(owner[group]).to(self.device)
            self._groups.append(_Group(len(group), slots, number, self._prefixes[number][1], owner_R))

    def _back_to_tokens(self, slots: np.ndarray, real: np.ndarray) -> _Taking:
        """Where each token's result is; tokens in no run read some slot, whose gradient is cut off."""
        place = np.zeros(self.tokens, dtype=np.int64)
        place[slots[real]] = np.flatnonzero(real)
        in_run = np.zeros(self.tokens, dtype=bool)
        in_run[slots[real]] = True
        return _Taking.of(place, in_run, len(slots), self.device)

    def __call__(
        self, query_BhLd: Tensor, key_BgLd: Tensor, value_BgLd: Tensor, scale: float, dropout: float
    ) -> Tensor:
        """See `PackedAttention`."""
        rows, heads, length, channels = query_BhLd.shape
        flat = [x.transpose(1, 2).reshape(rows * length, -1) for x in (query_BhLd, key_BgLd, value_BgLd)]
        sizes = [group.runs * group.slots for group in self._groups]
        query, key, value = (self._to_slots(x).split(sizes) for x in flat)
        prefixes = [[take(x) for x in flat[1:]] for take in self._to_prefixes]
        attended = []
        for number, group in enumerate(self._groups):
            kv = [key[number], value[number]]
            kv = [x.view(group.runs, group.slots, -1, channels) for x in kv]
            if group.prefix is not None:
                kv = [_behind(p, x, group) for p, x in zip(prefixes[group.prefix], kv, strict=True)]
            query_RhSd = query[number].view(group.runs, group.slots, heads, channels).transpose(1, 2)
            attended.append(self._attend(query_RhSd, kv, group, scale, dropout))
        result = self._to_tokens(torch.cat(attended) if len(attended) > 1 else attended[0])
        return result.view(rows, length, heads, channels)

    def _attend(
        self, query_RhSd: Tensor, kv: list[Tensor], group: _Group, scale: float, dropout: float
    ) -> Tensor:
        """Return the attended values of a group's slots, (R · q, w)."""
        runs, heads, slots, channels = query_RhSd.shape
        key, value = (repeat_heads(x.transpose(1, 2), heads) for x in kv)
        masked = group.prefix is not None
        attended = F.scaled_dot_product_attention(
            query_RhSd,
            key,
            value,
            # The mask is causal itself: torch takes either a mask or `is_causal`.
            attn_mask=self._mask(slots, group.prefix_length, query_RhSd.dtype) if masked else None,
            is_causal=not masked,
            dropout_p=dropout,
            scale=scale,
        )
        return attended.transpose(1, 2).reshape(runs * slots, heads * channels)

    def _mask(self, slots: int, prefix: int, dtype: torch.dtype) -> Tensor:
        """Return (q, P + q): the whole prefix is seen, of the own run what comes before.

        Added to the scores rather than boolean: torch would convert that, once for each layer to keep.
        """
        found = self._masks.get((slots, prefix, dtype))
        if found is None:
            closed = torch.full((slots, slots), float("-inf"), dtype=dtype, device=self.device).triu(1)
            found = torch.cat([closed.new_zeros(slots, prefix), closed], dim=1)
            self._masks[slots, prefix, dtype] = found
        return found


def _behind(prefix_Mw: Tensor, own_RSgd: Tensor, group: _Group) -> Tensor:
    """Return keys or values (R, P + q, g, d) with each run's prefix in front."""
    assert group.owner_R is not None
    heads, channels = own_RSgd.shape[2:]
    prefixes = prefix_Mw.view(-1, group.prefix_length * heads * channels)
    mine = prefixes.index_select(0, group.owner_R).view(-1, group.prefix_length, heads, channels)
    return torch.cat([mine, own_RSgd], dim=1)
