"""Token and tile counts that are kept, and even shares of a batch."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import make_record, tiny_chat
from vitp.data.batches import SampledBatches
from vitp.data.lengths import RecordCost, RecordLength, balanced
from vitp.data.mixture import Mixture, MixtureEntry, Sample
from vitp.data.record_set import ListRecords
from vitp.objectives.packed_records import PackedRecords, SequenceSettings
from vitp.records.instructions import InstructionRecord, Turn

costs = st.lists(st.floats(0, 1e6), min_size=1, max_size=40)


@given(costs, st.integers(1, 40))
@settings(max_examples=150, deadline=None)
def test_every_item_is_dealt_once_and_no_part_is_empty(values: list[float], parts: int) -> None:
    parts = min(parts, len(values))
    shares = balanced(values, parts)
    assert sorted(item for share in shares for item in share) == list(range(len(values)))
    assert all(share and share == sorted(share) for share in shares)
    assert balanced(values, parts) == shares
    # Graham's bound on what the rule can lose, with the mean and the dearest item as bounds of the best.
    best = max(sum(values) / parts, max(values))
    if len(values) > parts and min(values) > 0:
        assert max(sum(values[i] for i in share) for share in shares) <= (2 - 1 / parts) * best * (1 + 1e-9)


def test_balanced_is_the_rule() -> None:
    assert balanced([5, 4, 3, 3, 3], 2) == [[0, 3], [1, 2, 4]]
    assert balanced([1, 1, 1, 1], 2) == [[0, 2], [1, 3]]
    assert balanced([0, 0, 0], 3) == [[0], [1], [2]]
    with pytest.raises(ValueError, match="2 items"):
        balanced([1, 2], 3)


def _records(count: int) -> list[InstructionRecord]:
    return [
        InstructionRecord(
            str(number),
            (f"{number}.png",),
            (Turn("<image>\nIs there a ship in the image?", "yes " * (1 + number % 5)),),
            sizes=((64 * (1 + number % 3), 32),),
        )
        for number in range(count)
    ]


def test_cost_counts_survivors_and_tiles() -> None:
    length = RecordLength(tiny_chat(16), 32, 1)
    sample = Sample(_records(1)[0], None, False, 0, 0)
    tokens, tiles = length.both(sample.record)
    assert RecordCost(length, 100.0)(sample) == tokens + 100 * tiles
    assert RecordCost(length, 0.0, survivors=0.25)(sample) == tokens - 0.75 * 16 * tiles


def test_cost_and_lengths_are_those_of_the_set_and_the_run() -> None:
    """The tiles are the set's where the mixture names them, the questions those that a run asks."""
    (record,) = _records(3)[2:]
    length = RecordLength(tiny_chat(16), 32, 6)
    assert (length.tiles(record), length.tiles(record, 1), length.tiles(record, 2)) == (7, 1, 3)
    assert length.tokens(record) - length.tokens(record, 1) == 6 * 16
    cost = RecordCost(length, 1.0)
    assert cost(Sample(record, 1, False, 0, 0)) == length.tokens(record, 1) + 1
    more = record.with_turns((*record.turns, Turn("And a plane?", "no")))
    assert RecordLength(tiny_chat(16), 32, 6, max_turns=1).tokens(more) == length.tokens(record)
    assert length.tokens(more) > length.tokens(record)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_step_has_the_same_samples_on_any_number_of_ranks(world: int) -> None:
    mixture = Mixture([MixtureEntry(ListRecords([make_record(n) for n in range(29)], "set"))], seed=3)
    seen: list[int] = []

    class Positions(PackedRecords):
        def __call__(self, samples, step=0):  # type: ignore[no-untyped-def, override]
            return [sample.position for sample in samples]

    source = SampledBatches(mixture, Positions(tiny_chat(), 32, SequenceSettings()), 8, 4 // world)
    for step in range(3):
        parts = [source(step, m, rank, world) for m in range(4 // world) for rank in range(world)]
        seen += [key for part in parts for key in part]  # type: ignore[attr-defined]
    assert seen == list(range(24)), "micro-batch by micro-batch, rank by rank, in the order of the mixture"
