"""Runs of tokens, and each way of attending them, against the dense mask; kernels of CUDA by what they promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vitp.models.attention_layouts import (
    DenseAttention,
    FlexAttention,
    VarlenAttention,
    choose,
    packed_attention_mask,
    prepare,
)
from vitp.models.packed_layout import sequence_ends
from vitp.models.run_attention import RunAttention, group_by_length
from vitp.models.token_runs import ranges, token_runs

HEADS, KV_HEADS, CHANNELS = 4, 2, 8


@st.composite
def rows(draw) -> tuple[np.ndarray, np.ndarray]:
    """Segments and branches of 1 to 3 rows: records with a prefix (or none) and up to four branches, then padding."""
    drawn = draw(
        st.lists(
            st.lists(
                st.tuples(st.integers(0, 9), st.lists(st.integers(1, 6), max_size=4)).filter(
                    lambda record: record[0] or record[1]
                ),
                max_size=4,
            ),
            min_size=1,
            max_size=3,
        ).filter(lambda made: any(made))
    )
    padding = draw(st.integers(0, 3))
    lengths = [sum(prefix + sum(branches) for prefix, branches in row) for row in drawn]
    shape = (len(drawn), max(lengths) + padding)
    segments, branches_BL = np.full(shape, -1), np.zeros(shape, dtype=int)
    for number, row in enumerate(drawn):
        place = 0
        for record, (prefix, branches) in enumerate(row):
            for branch, length in enumerate([prefix, *branches]):
                segments[number, place : place + length] = record
                branches_BL[number, place : place + length] = branch
                place += length
    return segments, branches_BL


def qkv(shape: tuple[int, int], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    batch, length = shape
    return tuple(  # type: ignore[return-value]
        torch.randn(batch, heads, length, CHANNELS, generator=generator).requires_grad_()
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    )


def result_and_gradients(attend, inputs, real_BL: Tensor, scale: float = 0.3) -> list[Tensor]:
    """What tokens that are no padding get, and the gradients of a loss that weighs each value differently."""
    for x in inputs:
        x.grad = None
    out_BLhd = attend(*inputs, scale, 0.0)
    kept = out_BLhd[real_BL]
    weights = torch.arange(kept.numel()).view_as(kept).cos()
    (kept * weights).sum().backward()
    return [kept.detach(), *(x.grad for x in inputs)]


def assert_close(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=2e-6), float((a - b).abs().max())


def varlen_promise(query, key, value, query_ends, key_ends, longest_query, longest_key, scale) -> Tensor:
    """What variable-length kernels promise: sequences apart, a causal mask that ends with the last key."""
    parts = []
    for number in range(len(query_ends) - 1):
        q = query[query_ends[number] : query_ends[number + 1]].transpose(0, 1)
        k, v = (x[key_ends[number] : key_ends[number + 1]].transpose(0, 1) for x in (key, value))
        k, v = (x.repeat_interleave(len(q) // len(x), 0) for x in (k, v))
        assert q.shape[1] <= longest_query and k.shape[1] <= longest_key
        shift = k.shape[1] - q.shape[1]
        seen = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).tril(shift)
        scores = (q @ k.transpose(1, 2) * scale).masked_fill(~seen, float("-inf"))
        parts.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(parts)


@settings(max_examples=60, deadline=None)
@given(rows())
def test_runs_see_what_the_mask_lets_them(made):
    segments, branches = made
    mask = packed_attention_mask(torch.from_numpy(segments), torch.from_numpy(branches))[:, 0].numpy()
    runs = token_runs(segments, branches)
    length = segments.shape[1]
    found = np.zeros((segments.size, segments.size), dtype=bool)
    for start, own, prefix_start, prefix in zip(
        runs.start_R, runs.length_R, runs.prefix_start_R, runs.prefix_length_R, strict=True
    ):
        for token in range(start, start + own):
            found[token, prefix_start : prefix_start + prefix] = True
            found[token, start : token + 1] = True
    for row in range(len(segments)):
        part = slice(row * length, (row + 1) * length)
        expected = mask[row] & (segments[row] >= 0)[:, None] & (segments[row] >= 0)[None, :]
        assert np.array_equal(found[part, part], expected)
    assert found.sum() == pytest.approx(runs.context * runs.length_R.sum())
    assert np.array_equal(runs.members_N, np.flatnonzero(segments.reshape(-1) >= 0))


@settings(max_examples=60, deadline=None)
@given(rows())
def test_runs_without_padding_are_the_same_runs(made):
    runs = token_runs(*made)
    short, place = runs.without_padding(), {old: new for new, old in enumerate(runs.members_N)}
    assert short.tokens == len(runs.members_N)
    assert short.start_R.tolist() == [place[start] for start in runs.start_R]
    assert short.length_R.tolist() == runs.length_R.tolist()
    for old, new, length in zip(runs.prefix_start_R, short.prefix_start_R, runs.prefix_length_R, strict=True):
        assert length == 0 or new == place[old]


def test_shared_tokens_behind_a_branch_are_refused():
    with pytest.raises(ValueError, match="behind a branch"):
        token_runs(np.zeros((1, 4), dtype=int), np.array([[0, 1, 0, 1]]))
    with pytest.raises(ValueError, match="gap"):
        token_runs(np.zeros((1, 4), dtype=int), np.array([[0, 1, 2, 1]]))


@settings(max_examples=40, deadline=None)
@given(rows())
def test_runs_and_varlen_equal_the_dense_mask(made):
    segments, branches = (torch.from_numpy(x) for x in made)
    inputs, real = qkv(tuple(segments.shape)), segments >= 0
    runs = token_runs(*made)
    dense = result_and_gradients(DenseAttention(packed_attention_mask(segments, branches)), inputs, real)
    cpu = torch.device("cpu")
    assert_close(result_and_gradients(RunAttention(runs, cpu), inputs, real), dense)
    ends, members = sequence_ends(runs.without_padding()), torch.from_numpy(runs.members_N)
    assert_close(result_and_gradients(VarlenAttention(ends, members, varlen_promise), inputs, real), dense)


@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_flex_equals_the_dense_mask(seed):
    """On CPU it runs uncompiled and without gradients: enough to hold its rule to the mask's."""
    rng = np.random.default_rng(seed)
    segments, branches = np.full((2, 40), -1), np.zeros((2, 40), dtype=int)
    for row in range(2):
        place = 0
        for record in range(2):
            for branch, length in enumerate(rng.integers(1, 6, 3)):
                segments[row, place : place + length] = record
                branches[row, place : place + length] = branch
                place += length
    segments, branches = torch.from_numpy(segments), torch.from_numpy(branches)
    query, key, value = (x.detach() for x in qkv((2, 40), seed))
    expected = DenseAttention(packed_attention_mask(segments, branches))(query, key, value, 0.3, 0.0)
    found = FlexAttention(segments, branches)(query, key, value, 0.3, 0.0)
    real = segments >= 0
    assert torch.allclose(found[real], expected[real], rtol=1e-4, atol=2e-6)


def test_memory_of_runs_does_not_grow_with_strangers():
    """Masks are made for branches alone, once for all layers, and none holds two records."""
    segments = torch.arange(16).repeat_interleave(24)[None]
    branches = torch.tensor([0] * 16 + [1] * 4 + [2] * 4).repeat(16)[None]
    attend = prepare(segments, branches, kind="runs").attend
    assert isinstance(attend, RunAttention)
    for seed in range(3):
        attend(*qkv((1, 384), seed), 0.3, 0.0)
    assert {mask.shape for mask in attend._masks.values()} == {(4, 20)}


def test_padding_is_taken_out_unless_shapes_are_static():
    segments = torch.tensor([[0, 0, 1, -1], [0, -1, -1, -1]])
    branches = torch.zeros_like(segments)
    assert prepare(segments, branches).members_N.tolist() == [0, 1, 2, 4]
    assert prepare(segments, branches, static=True).members_N is None
    assert prepare(segments[:1, :3], branches[:1, :3]).members_N is None


def test_the_choice_on_cpu():
    assert choose(torch.device("cpu"), torch.float32) == "runs"
    assert choose(torch.device("cpu"), torch.bfloat16) == "runs"
    assert choose(torch.device("cuda"), torch.float32) == "flex"
    assert choose(torch.device("cuda"), torch.bfloat16, dropout=0.1) == "runs"


@given(st.lists(st.integers(1, 100), min_size=1, max_size=40))
def test_groups_hold_every_run_once_and_waste_little(lengths):
    lengths = np.asarray(lengths)
    groups = group_by_length(lengths)
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(lengths)))
    slots = sum(len(group) * int(lengths[group].max()) for group in groups)
    assert slots <= 1.3 * lengths.sum()


def test_ranges():
    assert ranges(np.array([5, 2, 9]), np.array([2, 0, 3])).tolist() == [5, 6, 9, 10, 11]
    assert ranges(np.array([], dtype=int), np.array([], dtype=int)).tolist() == []
