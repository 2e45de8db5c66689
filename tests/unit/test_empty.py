"""Fewer training images without objects."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitp.core.errors import ConfigError
from vitp.data.formats.empty import is_empty, limit_empty
from vitp.records.labels import LabelledImage, LabelledSet, ObjectLabel

SHIP = ObjectLabel("ship", (1.0, 1.0, 5.0, 5.0))


def images(kinds: str, split: str = "train") -> list[LabelledImage]:
    objects = {"o": (SHIP,), "e": (), "u": None}
    return [
        LabelledImage(f"{split}{i}", f"{i}.png", 8, 8, split, objects=objects[kind])
        for i, kind in enumerate(kinds)
    ]


@given(st.text("oeu", max_size=40), st.text("oe", max_size=10), st.floats(0, 0.99), st.integers(0, 5))
def test_the_share_of_empty_training_images_is_kept(kinds: str, test: str, share: float, seed: int) -> None:
    labelled = LabelledSet("set", [*images(kinds), *images(test, "test")], ("ship",))
    found = limit_empty(labelled, share, seed)
    train = [item for item in found.items if item.split == "train"]
    empty = sum(map(is_empty, train))
    full = len(train) - empty
    assert full == kinds.count("o") + kinds.count("u")
    # As many as the share allows, and no more.
    assert empty <= share * (empty + full) + 1e-6
    assert empty == kinds.count("e") or empty + 1 > share * (empty + 1 + full) - 1e-6
    assert [item.id for item in found.items if item.split == "test"] == [i.id for i in images(test, "test")]
    order = [item.id for item in labelled.items]
    places = [order.index(item.id) for item in found.items]
    assert places == sorted(places)
    assert [item.id for item in limit_empty(labelled, share, seed).items] == [item.id for item in found.items]


def test_one_is_neutral_and_lazy_sets_stay_lazy() -> None:
    labelled = LabelledSet("set", images("oee"))
    assert limit_empty(labelled, 1.0, 0) is labelled


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="from 0 to 1"):
        limit_empty(LabelledSet("set", images("o")), share, 0)
