"""Attention over packed rows in four ways that give the same numbers; which one is chosen in one place, `prepare`.

- `dense`: one mask over whole rows. Costs the square of a row. The reference, and for language models that bring
  an attention of their own.
- `runs`: the runs of a batch (`token_runs`), gathered by length and given to torch's kernel as sequences of their
  own. No mask over strangers, none at all for prefixes and conversations. For CPU, and for whatever the kernels
  below can't do (float32, dropout).
- `varlen`: the same runs as sequences of different lengths in one call: torch's `varlen_attn`, or FlashAttention
  where that is installed and torch's is not. Half precision on CUDA.
- `flex`: FlexAttention, which skips the blocks that nobody sees. Any precision on CUDA; on CPU without gradients.

Shapes: B rows, L tokens a row, N flat tokens, h query heads, g key and value heads, d channels a head.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from vitp.models.packed_layout import PackedLayout, SequenceEnds, sequence_ends
from vitp.models.run_attention import RunAttention, repeat_heads
from vitp.models.token_runs import token_runs

AttentionKind = Literal["auto", "dense", "runs", "varlen", "flex"]


class PackedAttention(Protocol):
    """Attention of one batch, the same for all layers."""

    def __call__(
        self, query_BhLd: Tensor, key_BgLd: Tensor, value_BgLd: Tensor, scale: float, dropout: float
    ) -> Tensor:
        """Return the attended values (B, L, h, d); padding gets whatever is cheapest."""
        ...


@dataclass(frozen=True)
class Layout:
    """How the language model is to compute a batch.

    Attributes:
        attend: Its attention.
        members_N: Flat numbers of the tokens that are to be computed, in a single row; None: the rows as they are.
    """

    attend: PackedAttention
    members_N: Tensor | None = None


def prepare(
    segments_BL: Tensor,
    branches_BL: Tensor,
    *,
    kind: AttentionKind = "auto",
    dtype: torch.dtype = torch.float32,
    dropout: float = 0.0,
    static: bool = False,
) -> Layout:
    """Return the attention for packed rows, made once a batch.

    Args:
        segments_BL: Number of the record within the row, -1 = padding.
        branches_BL: 0 = shared by the record's questions, k = its k-th independent question.
        kind: The way; `auto` takes the fastest that device, precision and installed packages allow.
        dtype: In which queries, keys and values will come, or be cast to by autocast.
        dropout: Dropout of attention weights.
        static: Keep the rows as they are, padding included, so that shapes don't change from batch to batch.
    """
    device = segments_BL.device
    if kind == "auto":
        kind = choose(device, dtype, dropout)
    if kind == "dense":
        return Layout(DenseAttention(packed_attention_mask(segments_BL, branches_BL)))
    if kind == "flex":
        return Layout(FlexAttention(segments_BL, branches_BL))
    # Runs are made on the host. Batches that come with a layout (`attention_of`) have them already.
    runs = token_runs(segments_BL.cpu().numpy(), branches_BL.cpu().numpy())
    members_N, whole = runs.members_N, len(runs.members_N) == runs.tokens
    members = None if whole else torch.from_numpy(members_N).to(device)
    # Static rows keep their padding, so that shapes stay the same from batch to batch.
    if not static:
        runs = runs.without_padding()
    if kind == "varlen":
        # These kernels take sequences, so padding is left out here even where the rows keep it.
        ends = sequence_ends(runs.without_padding()).to(device)
        return Layout(VarlenAttention(ends, members if static else None), None if static else members)
    return Layout(RunAttention(runs, device), None if static else members)


def attention_of(
    layout: PackedLayout, device: torch.device, *, kind: AttentionKind, dtype: torch.dtype, dropout: float
) -> PackedAttention | None:
    """Return the attention over a layout that came with its batch; None: it has to be made from the rows.

    Args:
        layout: On the device.
        device: Device of queries and keys.
        kind, dtype, dropout: As in `prepare`.
    """
    if kind == "auto":
        kind = choose(device, dtype, dropout)
    if kind == "varlen" and layout.ends is not None:
        return VarlenAttention(layout.ends)
    return RunAttention(layout.runs, device) if kind == "runs" else None


def choose(device: torch.device, dtype: torch.dtype, dropout: float = 0.0) -> AttentionKind:
    """Return the fastest exact way on a device: varlen or flex on CUDA, runs elsewhere."""
    # Neither flex attention nor torch's varlen kernel can drop out attention.
    if device.type != "cuda" or dropout > 0:
        return "runs"
    if dtype in (torch.float16, torch.bfloat16) and varlen_kernel() is not None:
        return "varlen"
    return "flex"


def packed_attention_mask(segments_BL: Tensor, branches_BL: Tensor) -> Tensor:
    """Return which token may see which: (B, 1, L, L) bool, rows are queries.

    A token sees the tokens before it in its own record that are shared (branch 0) or of its own question.
    """
    length = segments_BL.shape[1]
    same_record = segments_BL[:, :, None] == segments_BL[:, None, :]
    keys_shared = branches_BL[:, None, :] == 0
    same_branch = branches_BL[:, :, None] == branches_BL[:, None, :]
    # Places in the row are enough: a record's tokens lie in it in their order, whatever was dropped between them.
    causal = torch.ones(length, length, dtype=torch.bool, device=segments_BL.device).tril()
    return (same_record & (keys_shared | same_branch) & causal)[:, None]


class DenseAttention:
    """torch's kernel under an explicit mask over whole rows.

    Args:
        mask_B1LL: Which token may see which.
    """

    def __init__(self, mask_B1LL: Tensor) -> None:
        self.mask_B1LL = mask_B1LL

    def __call__(
        self, query_BhLd: Tensor, key_BgLd: Tensor, value_BgLd: Tensor, scale: float, dropout: float
    ) -> Tensor:
        """See `PackedAttention`."""
        heads = query_BhLd.shape[1]
        attended = F.scaled_dot_product_attention(
            query_BhLd,
            repeat_heads(key_BgLd, heads),
            repeat_heads(value_BgLd, heads),
            attn_mask=self.mask_B1LL,
            dropout_p=dropout,
            scale=scale,
        )
        return attended.transpose(1, 2)


class VarlenAttention:
    """Each run is one sequence of queries; its keys are its prefix and itself.

    The kernels align a causal mask with the last query and the last key, so that the queries of a branch see all of
    the prefix in front of them. A prefix and the branch right behind it are one sequence, whose keys are read where
    they lie; further branches read the keys of the prefix again, which costs little with few key heads.

    Args:
        ends: Ends of the batch, on the device of queries and keys.
        members_N: Places of the sequences' tokens among those that come; None: they are all that come.
        kernel: (query, key, value, cumulated query lengths, cumulated key lengths, longest query, longest key, scale) →
            attended values; None: the one that is there.
    """

    def __init__(
        self,
        ends: SequenceEnds,
        members_N: Tensor | None = None,
        kernel: Callable[..., Tensor] | None = None,
    ) -> None:
        found = kernel or varlen_kernel()
        if found is None:
            raise RuntimeError("neither torch's varlen_attn nor flash_attn is there")
        self.kernel: Callable[..., Tensor] = found
        self._ends, self._members_N = ends, members_N

    def __call__(
        self, query_BhLd: Tensor, key_BgLd: Tensor, value_BgLd: Tensor, scale: float, dropout: float
    ) -> Tensor:
        """See `PackedAttention`. Dropout is not available: `choose` never sends it here."""
        if dropout:
            raise RuntimeError("variable-length kernels have no attention dropout")
        rows, heads, length, channels = query_BhLd.shape
        dtype, ends, members_N = _half(query_BhLd), self._ends, self._members_N
        query_Nhd, key_Ngd, value_Ngd = (
            x.transpose(1, 2).reshape(rows * length, x.shape[1], channels).to(dtype)
            for x in (query_BhLd, key_BgLd, value_BgLd)
        )
        if members_N is not None:
            query_Nhd, key_Ngd, value_Ngd = (
                x.index_select(0, members_N) for x in (query_Nhd, key_Ngd, value_Ngd)
            )
        if ends.keys_M is not None:
            key_Ngd, value_Ngd = (x.index_select(0, ends.keys_M) for x in (key_Ngd, value_Ngd))
        attended = self.kernel(
            query_Nhd,
            key_Ngd,
            value_Ngd,
            ends.query_ends,
            ends.key_ends,
            ends.longest_query,
            ends.longest_key,
            scale,
        )
        if members_N is not None:
            # Padding belongs to no sequence, but the rows that are returned have it: it becomes zeros.
            blank = attended.new_zeros(rows * length, heads, channels)
            attended = blank.index_copy(0, members_N, attended)
        return attended.view(rows, length, heads, channels)


class FlexAttention:
    """FlexAttention under the rule of `packed_attention_mask`, in blocks that are skipped where nobody sees them.

    Args:
        segments_BL, branches_BL: As in `packed_attention_mask`.
    """

    def __init__(self, segments_BL: Tensor, branches_BL: Tensor) -> None:
        from torch.nn.attention.flex_attention import create_block_mask

        def visible(b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
            same_record = segments_BL[b, query] == segments_BL[b, key]
            same_branch = branches_BL[b, query] == branches_BL[b, key]
            return same_record & (same_branch | (branches_BL[b, key] == 0)) & (query >= key)

        rows, length = segments_BL.shape
        make: Any = create_block_mask
        if segments_BL.is_cuda:
            make = _compiled(create_block_mask)  # uncompiled, it would hold the mask of every pair
        self._blocks = make(visible, rows, None, length, length, device=segments_BL.device)

    def __call__(
        self, query_BhLd: Tensor, key_BgLd: Tensor, value_BgLd: Tensor, scale: float, dropout: float
    ) -> Tensor:
        """See `PackedAttention`. Dropout is not available: `choose` never sends it here."""
        from torch.nn.attention.flex_attention import flex_attention

        if dropout:
            raise RuntimeError("FlexAttention has no attention dropout")
        # Uncompiled, FlexAttention makes the scores of all pairs and skips no block.
        kernel: Any = _compiled(flex_attention) if query_BhLd.is_cuda else flex_attention
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else query_BhLd.dtype
        attended = kernel(
            query_BhLd.to(dtype),
            key_BgLd.to(dtype),
            value_BgLd.to(dtype),
            block_mask=self._blocks,
            scale=scale,
            enable_gqa=query_BhLd.shape[1] != key_BgLd.shape[1],
        )
        swapped: Tensor = attended.transpose(1, 2)
        return swapped


_COMPILED: dict[Callable[..., Any], Callable[..., Any]] = {}


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function compiled, once a process."""
    if function not in _COMPILED:
        # Rows are of another length in each batch: with fixed shapes each length would be compiled anew.
        _COMPILED[function] = torch.compile(function, dynamic=True)
    return _COMPILED[function]


def varlen_kernel() -> Callable[..., Tensor] | None:
    """Return the variable-length kernel that is there, torch's before FlashAttention's; None without either."""
    if torch.cuda.is_available() and importlib.util.find_spec("torch.nn.attention.varlen") is not None:
        return _torch_varlen
    if importlib.util.find_spec("flash_attn") is not None:
        return _flash_varlen
    return None


def _torch_varlen(
    query_Nhd: Tensor,
    key_Mgd: Tensor,
    value_Mgd: Tensor,
    query_ends: Tensor,
    key_ends: Tensor,
    longest_query: int,
    longest_key: int,
    scale: float,
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    known = _varlen_parameters()
    options: dict[str, Any] = {"scale": scale}
    # torch's versions spell "causal" in two ways: as no keys to the right of a query, or as a flag.
    options |= {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    heads = query_Nhd.shape[1]
    if "enable_gqa" in known:
        options["enable_gqa"] = key_Mgd.shape[1] != heads
    else:
        # Versions without grouped heads get each key head as often as query heads share it.
        key_Mgd, value_Mgd = (x.repeat_interleave(heads // x.shape[1], 1) for x in (key_Mgd, value_Mgd))
    if "scale" not in known:
        del options["scale"]
        # Versions without a scale divide by √d; multiplied into the queries, that is undone and the scale applied.
        query_Nhd = query_Nhd * (scale * query_Nhd.shape[-1] ** 0.5)
    attended: Any = varlen_attn(
        query_Nhd, key_Mgd, value_Mgd, query_ends, key_ends, longest_query, longest_key, **options
    )
    # Asked for nothing more, it returns the values alone.
    only: Tensor = attended
    return only


@functools.cache
def _varlen_parameters() -> frozenset[str]:
    """Return what torch's function takes. It grew: grouped heads and windows came after the flag for causal masks."""
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)


def _flash_varlen(
    query_Nhd: Tensor,
    key_Mgd: Tensor,
    value_Mgd: Tensor,
    query_ends: Tensor,
    key_ends: Tensor,
    longest_query: int,
    longest_key: int,
    scale: float,
) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    attended: Tensor = flash_attn_varlen_func(
        query_Nhd,
        key_Mgd,
        value_Mgd,
        query_ends,
        key_ends,
        longest_query,
        longest_key,
        softmax_scale=scale,
        causal=True,
    )
    return attended


def _half(query: Tensor) -> torch.dtype:
    """Return the precision that a half-precision kernel gets: autocast's, or the tensor's own."""
    kind = query.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
