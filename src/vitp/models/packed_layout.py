"""Where the language model computes the tokens of a packed batch: made on the host, by whoever makes the batch.

Everything that depends on where a batch's records begin and end is known before the batch is copied to a device. Made
there, it travels with the batch in the same copy, and the model asks the device for nothing.

Shapes: B rows, L tokens a row, N tokens that are computed, K image tokens, S supervised tokens, M keys, R runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vitp.core.tensors import TensorFields
from vitp.models.token_runs import TokenRuns, ranges, token_runs


@dataclass(frozen=True)
class SequenceEnds(TensorFields):
    """Runs as the kernels for sequences of different lengths want them.

    Attributes:
        keys_M: Numbers of the tokens that are keys, sequence by sequence: the prefix that a run sees, then itself.
            None: each token once, in order.
        query_ends, key_ends: Cumulated lengths, from 0, int32.
        longest_query, longest_key: Tokens.
    """

    keys_M: Tensor | None
    query_ends: Tensor
    key_ends: Tensor
    longest_query: int
    longest_key: int


@dataclass(frozen=True)
class PackedLayout(TensorFields):
    """A packed batch as its language model computes it.

    Attributes:
        runs: Runs over the N tokens.
        ids_BN, positions_BN: Of the tokens; a single row unless the rows are kept.
        image_index_K, target_index_S: As in `vitp.data.packing.PackedBatch`, but among the N tokens.
        members_N: Numbers of the tokens among the B · L of the packed rows; None: the rows are kept.
        ends: For kernels that take sequences of different lengths; None where the rows are kept with their padding.
    """

    runs: TokenRuns
    ids_BN: Tensor
    positions_BN: Tensor
    image_index_K: Tensor
    target_index_S: Tensor
    members_N: Tensor | None
    ends: SequenceEnds | None


def packed_layout(
    ids_BL: Tensor,
    positions_BL: Tensor,
    segments_BL: Tensor,
    branches_BL: Tensor,
    image_index_K: Tensor,
    target_index_S: Tensor,
    *,
    static: bool = False,
    token_multiple: int = 1,
) -> PackedLayout:
    """Return the layout of a packed batch that lies on the host.

    Args:
        ids_BL, positions_BL, segments_BL, branches_BL, image_index_K, target_index_S: As in
            `vitp.data.packing.PackedBatch`.
        static: Keep the rows with their padding.
        token_multiple: Fill the single row up to a multiple of this. What fills it is a run that nobody sees.
    """
    runs = token_runs(segments_BL.numpy(), branches_BL.numpy())
    if static:
        return PackedLayout(runs, ids_BL, positions_BL, image_index_K, target_index_S, None, None)
    members_N = runs.members_N
    place = np.zeros(runs.tokens, dtype=np.int64)
    place[members_N] = np.arange(len(members_N))
    runs = runs.without_padding()
    fill = -runs.tokens % token_multiple
    if fill:
        # The filling repeats token 0 in a run of its own: no token sees it and no index names it.
        members_N = np.concatenate([members_N, np.zeros(fill, dtype=np.int64)])
        runs = runs.with_another(fill)
    ids_BN, positions_BN = (
        torch.from_numpy(x.numpy().reshape(-1)[members_N][None]) for x in (ids_BL, positions_BL)
    )
    images_K, targets_S = (torch.from_numpy(place[x.numpy()]) for x in (image_index_K, target_index_S))
    ends = sequence_ends(runs)
    return PackedLayout(runs, ids_BN, positions_BN, images_K, targets_S, torch.from_numpy(members_N), ends)


def sequence_ends(runs: TokenRuns) -> SequenceEnds:
    """Return runs without padding as sequences of queries and keys."""
    runs = runs.with_first_branches_joined()
    lengths = runs.prefix_length_R + runs.length_R
    keys = None
    if runs.prefix_length_R.any():
        # Run by run: the prefix, then the run itself.
        start = np.stack([runs.prefix_start_R, runs.start_R], axis=1).reshape(-1)
        length = np.stack([runs.prefix_length_R, runs.length_R], axis=1).reshape(-1)
        keys = torch.from_numpy(ranges(start, length))
    return SequenceEnds(
        keys, _cumulated(runs.length_R), _cumulated(lengths), int(runs.length_R.max()), int(lengths.max())
    )


def _cumulated(lengths: np.ndarray) -> Tensor:
    ends = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
    return torch.from_numpy(ends.astype(np.int32))
