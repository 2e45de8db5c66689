"""Colours of ViTP's tiles: changed by chance, which the seed of the run and the place in it decide."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import tiny_chat
from vitp.data.mixture import Mixture, MixtureEntry
from vitp.data.record_set import ListRecords
from vitp.objectives.packed_records import PackedRecords, SequenceSettings
from vitp.records.instructions import InstructionRecord, Turn

COLLATE = PackedRecords(tiny_chat(), tile=32, config=SequenceSettings(max_length=512, max_tiles=1))


@pytest.fixture
def records(tmp_path: Path) -> ListRecords:
    """Four images of one colour, which differ by nothing but what chance does to them."""
    rows = []
    for number in range(4):
        Image.new("RGB", (32, 32), (120, 90, 60)).save(tmp_path / f"{number}.png")
        image = (str(tmp_path / f"{number}.png"),)
        rows.append(InstructionRecord(str(number), image, (Turn("<image>\nWhat?", "a"),)))
    return ListRecords(rows, "set")


def mixture(records: ListRecords, seed: int, *, augment: bool = True) -> Mixture[InstructionRecord]:
    return Mixture([MixtureEntry(records, augment=augment)], seed=seed)


def colours(order: Mixture[InstructionRecord], positions: range) -> Iterator[tuple[int, ...]]:
    for position in positions:
        tiles = np.asarray(COLLATE([order[position]]).tiles_TCHW)
        yield tuple(tiles[0, :, 0, 0].tolist())


def test_colours_follow_from_seed_epoch_and_sample(records: ListRecords) -> None:
    seen = {seed: list(colours(mixture(records, seed), range(12))) for seed in (0, 1, 2)}
    for own in seen.values():
        assert len(set(own)) == 12  # three epochs of four images
    assert len({own[0] for own in seen.values()}) == 3  # at one place each seed has another
    # Alone, later and in another order, as after a resume, it is the same.
    assert list(colours(mixture(records, 1), range(7, 9))) == seen[1][7:9]
    assert set(colours(mixture(records, 0, augment=False), range(4))) == {(120, 90, 60)}


def test_runs_of_before_are_told_apart_where_colours_change(records: ListRecords) -> None:
    plain, changed = (COLLATE.contents(mixture(records, 0, augment=augment)) for augment in (False, True))
    assert changed == [*plain, "colours by seed"]
    assert replace(COLLATE, places=True).contents(mixture(records, 0, augment=False)) == [*plain, "places"]
