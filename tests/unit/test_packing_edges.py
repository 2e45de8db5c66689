"""Packing to the last number, from records that are written out by hand."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch

from vitp.core.errors import DataError
from vitp.data.chat import EncodedRecord
from vitp.data.packing import PADDING_SEGMENT, first_fit_decreasing, pack

IMAGE = 900


def record(name: str, ids: list[int], answer: list[int], *, turns: int = 1, first: int = 0) -> EncodedRecord:
    """Tokens of `ids`, image tokens where it says IMAGE; supervised at the places of `answer`."""
    ids_N = np.array(ids)
    supervised_N = np.zeros(len(ids), bool)
    supervised_N[answer] = True
    image_N = ids_N == IMAGE
    return EncodedRecord(
        ids_N,
        np.arange(first, first + len(ids)),
        np.array([0] * (len(ids) - 2) + [1, 1]),
        image_N,
        supervised_N,
        int(image_N.sum()) // 4,
        turns,
        name,
    )


def tiles(count: int, value: int) -> np.ndarray:
    return np.full((count, 3, 2, 2), value, np.uint8)


A = record("a", [1, IMAGE, IMAGE, IMAGE, IMAGE, 2, 3, 4], [6, 7])
B = record("b", [5, *[IMAGE] * 8, 6, 7], [10], turns=2, first=100)
C = record("c", [8, 9, 10], [1, 2], turns=3)


def packed(**changes: object):
    kept = [np.array([1, 3]), np.array([0, 4, 7]), np.array([], int)]
    settings = {"tokens_per_tile": 4, "max_length": 7, "pad_id": 77, **changes}
    return pack([A, B, C], [tiles(1, 1), tiles(2, 2), tiles(0, 3)], kept, **settings)  # type: ignore[arg-type]


def test_rows_hold_what_survives_with_its_positions() -> None:
    batch = packed()
    # A and B have 6 tokens left, C has 3: no row is longer than the longest, and lengths are multiples of 8.
    assert batch.ids_BL.tolist() == [
        [1, IMAGE, IMAGE, 2, 3, 4, 77, 77],
        [5, IMAGE, IMAGE, IMAGE, 6, 7, 77, 77],
        [8, 9, 10, 77, 77, 77, 77, 77],
    ]
    assert batch.positions_BL.tolist() == [
        [0, 2, 4, 5, 6, 7, 0, 0],
        [100, 101, 105, 108, 109, 110, 0, 0],
        [0, 1, 2, 0, 0, 0, 0, 0],
    ]
    assert batch.segments_BL.tolist() == [[0] * 6 + [-1] * 2, [0] * 6 + [-1] * 2, [0] * 3 + [-1] * 5]
    assert batch.branches_BL.tolist() == [
        [0, 0, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 1, 0, 0],
        [0, 1, 1, 0, 0, 0, 0, 0],
    ]
    assert PADDING_SEGMENT == -1 and batch.tokens == 15
    assert batch.image_index_K.tolist() == [1, 2, 9, 10, 11]
    assert batch.keep_K.tolist() == [1, 3, 4, 8, 11]
    # The output at a place predicts the token behind it.
    assert batch.target_index_S.tolist() == [3, 4, 12, 16, 17]
    assert batch.target_ids_S.tolist() == [3, 4, 7, 9, 10]
    assert batch.tiles_TCHW[:, 0, 0, 0].tolist() == [1, 2, 2]
    assert (batch.record_names, batch.turns) == (("a", "b", "c"), 6)


def test_short_records_share_a_row_behind_one_another() -> None:
    long = record("long", [20 + i for i in range(9)], [8])
    batch = pack(
        [C, long, A],
        [tiles(0, 0), tiles(0, 0), tiles(1, 1)],
        [np.array([], int), np.array([], int), np.array([2])],
        tokens_per_tile=4,
        max_length=9,
        pad_id=0,
    )
    assert batch.ids_BL.shape == (2, 16)
    # The longest first; then A (5 tokens left) and C behind it, each with positions of its own.
    assert batch.ids_BL[1].tolist() == [1, IMAGE, 2, 3, 4, 8, 9, 10] + [0] * 8
    assert batch.segments_BL[1].tolist() == [0] * 5 + [1] * 3 + [-1] * 8
    assert batch.positions_BL[1].tolist() == [0, 3, 5, 6, 7, 0, 1, 2] + [0] * 8
    assert batch.image_index_K.tolist() == [17]
    assert batch.target_index_S.tolist() == [7, 18, 19, 21, 22]
    assert batch.target_ids_S.tolist() == [28, 3, 4, 9, 10]
    assert batch.record_names == ("c", "long", "a")
    alone = pack(
        [C, long], [tiles(0, 0)] * 2, [np.array([], int)] * 2, tokens_per_tile=4, max_length=9, pad_id=0, together=False
    )  # fmt: skip
    assert alone.segments_BL.max() == 0 and alone.ids_BL[0, :3].tolist() == [8, 9, 10]
    assert C.take(np.array([True, False, True])).positions_N.tolist() == [0, 2]


def test_a_record_may_fill_a_row_but_not_more() -> None:
    assert packed(max_length=6).tokens == 15
    with pytest.raises(DataError, match="a: takes 6 tokens, a row holds 5"):
        packed(max_length=5)
    with pytest.raises(DataError, match="a: 4 image placeholders but 5 image features"):
        packed(tokens_per_tile=5)
    nothing = tiles(0, 0), np.array([], int)
    settings = {"tokens_per_tile": 4, "max_length": 5, "pad_id": 0}
    long = record("long", list(range(20, 26)), [5])
    with pytest.raises(DataError, match="long: takes 6 tokens, a row holds 5"):
        pack([C, long, C], [nothing[0]] * 3, [nothing[1]] * 3, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(("tokens", "length"), [(7, 8), (8, 8), (9, 16), (15, 16), (16, 16)])
def test_rows_are_multiples_of_eight(tokens: int, length: int) -> None:
    one = record("one", list(range(20, 20 + tokens)), [tokens - 1])
    batch = pack([one], [tiles(0, 0)], [np.array([], int)], tokens_per_tile=4, max_length=99, pad_id=0)
    assert batch.ids_BL.shape == (1, length) and batch.tokens == tokens


def test_the_longest_items_are_placed_first_where_they_fit_first() -> None:
    assert first_fit_decreasing([3, 5, 2, 4, 5], 8) == [[1, 0], [4, 2], [3]]
    assert first_fit_decreasing([4, 4, 4], 8) == [[0, 1], [2]]
    assert first_fit_decreasing([8], 8) == [[0]]
    assert first_fit_decreasing([], 8) == []
    with pytest.raises(ValueError, match="item 1 of length 9 exceeds the capacity 8"):
        first_fit_decreasing([1, 9], 8)


def test_a_batch_moves_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = packed()
    moved = batch.to("meta")
    for field in fields(batch):
        value, there = getattr(batch, field.name), getattr(moved, field.name)
        if isinstance(value, torch.Tensor):
            assert there.device.type == "meta" and there.shape == value.shape
        else:
            assert there == value
    asked: list[bool] = []
    plain = torch.Tensor.to
    monkeypatch.setattr(
        torch.Tensor, "to", lambda t, device, non_blocking: asked.append(non_blocking) or plain(t, device)
    )
    batch.to("cpu")
    assert asked and not any(asked)
    asked.clear()
    batch.to("cpu", non_blocking=True)
    assert asked and all(asked)
    # Page-locked memory needs a GPU; without it the same buffer is made of ordinary memory.
    together = batch.in_one_buffer()
    assert torch.equal(together.ids_BL, batch.ids_BL) and together.record_names == batch.record_names
    tensors = [
        value for field in fields(batch) if isinstance(value := getattr(together, field.name), torch.Tensor)
    ]
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1 < len(tensors)
