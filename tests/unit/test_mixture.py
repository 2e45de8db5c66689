"""The mixture: rates, order, coverage and resume."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitp.core.errors import DataError
from vitp.data.mixture import Mixture, MixtureEntry
from vitp.data.permutation import Permutation
from vitp.data.record_set import ListRecords
from vitp.records.instructions import InstructionRecord, Turn


def some_set(name: str, size: int) -> ListRecords:
    return ListRecords([InstructionRecord(f"{name}{i}", (), (Turn("q", "a"),)) for i in range(size)], name)


class Sized:
    """A set of which only the length matters."""

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> InstructionRecord:
        return InstructionRecord(str(index), (), (Turn("q", "a"),))

    def fingerprint(self) -> str:
        return self.name


@given(size=st.integers(1, 3000), key=st.integers())
@settings(max_examples=60, deadline=None)
def test_permutation_is_a_bijection(size: int, key: int) -> None:
    permutation = Permutation(size, key)
    assert sorted(permutation[i] for i in range(size)) == list(range(size))


@given(size=st.integers(1, 10**15), data=st.data())
@settings(max_examples=100, deadline=None)
def test_permutation_of_huge_sets_stays_in_range(size: int, data: st.DataObject) -> None:
    assert 0 <= Permutation(size, 1)[data.draw(st.integers(0, size - 1))] < size


@pytest.mark.parametrize("size", [5, 300, 1000])
def test_permutation_is_even(size: int) -> None:
    """Chi square of where one element and a pair's distance land, over keys; 5 sigma of its distribution."""
    keys, bins = 4000, 5
    for value in (
        lambda p: p[0] * bins // size,
        lambda p: p[size - 1] * bins // size,
        lambda p: ((p[1] - p[0]) % size) * bins // size,
    ):
        seen = Counter(value(Permutation(size, key)) for key in range(keys))
        possible = Counter(v * bins // size for v in range(size))
        if size == 5 and 0 not in seen:  # a distance of 0 can't occur
            possible = Counter(range(1, 5))
        expected = {b: keys * n / sum(possible.values()) for b, n in possible.items()}
        chi_square = sum((seen[b] - e) ** 2 / e for b, e in expected.items())
        assert chi_square < bins - 1 + 5 * (2 * (bins - 1)) ** 0.5


def test_an_epoch_takes_exactly_the_rates() -> None:
    mixture = Mixture(
        [
            MixtureEntry(some_set("a", 100), 0.25),
            MixtureEntry(some_set("b", 10), 3),
            MixtureEntry(some_set("c", 7)),
        ],
        seed=1,
    )
    assert len(mixture) == 25 + 30 + 7
    for epoch in range(4):
        located = [mixture.locate(epoch * 62 + i) for i in range(62)]
        assert Counter(at.entry for at in located) == {0: 25, 1: 30, 2: 7}
        assert {at.epoch for at in located} == {epoch}
        assert set(Counter(at.record for at in located if at.entry == 1).values()) == {3}
        assert sorted(at.record for at in located if at.entry == 2) == list(range(7))


def test_a_rate_below_one_is_a_new_subset_each_epoch_and_covers_the_set() -> None:
    mixture = Mixture([MixtureEntry(some_set("a", 100), 0.25)], seed=3)
    subsets = [{mixture.locate(e * 25 + i).record for i in range(25)} for e in range(4)]
    assert all(len(subset) == 25 for subset in subsets)
    assert set().union(*subsets) == set(range(100))


@given(size=st.integers(1, 40), rate=st.floats(0.05, 4), seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_every_record_comes_equally_often(size: int, rate: float, seed: int) -> None:
    if int(rate * size + 0.5) == 0:
        return
    mixture = Mixture([MixtureEntry(some_set("a", size), rate)], seed)
    seen = Counter(mixture.locate(i).record for i in range(len(mixture) * size))  # whole passes
    assert set(seen.values()) == {len(mixture)} and len(seen) == size


def test_shares_of_the_papers_remote_sensing_mixture() -> None:
    table = {  # thousands of records, rate; summed from the paper's text
        "general": (1394, 0.03), "rsvqa": (100, 0.1), "fit-rs": (100, 0.1), "geochat": (64, 2), "vrsbench": (38, 5),
        "rsvg": (5.5, 10), "dior-rsvg": (27, 8), "isprs-sar": (1.5, 1), "sentinel": (16, 1), "vhm": (223, 1),
        "levircc": (50, 0.5), "gaia": (33, 1), "million-aid": (920, 0.05),
    }  # fmt: skip
    entries = [MixtureEntry(Sized(name, int(1000 * size)), rate) for name, (size, rate) in table.items()]
    mixture = Mixture(entries, seed=0)
    total = sum(1000 * size * rate for size, rate in table.values())
    assert len(mixture) == round(total)
    shares = [entry.per_epoch / len(mixture) for entry in mixture.entries]
    assert sum(shares) == pytest.approx(1)
    for share, (size, rate) in zip(shares, table.values(), strict=True):
        assert share == pytest.approx(1000 * size * rate / total, rel=1e-3)
    draws = 20_000
    seen = Counter(mixture.locate(i * 37).entry for i in range(draws))  # over a tenth of an epoch and more
    for number, share in enumerate(shares):
        sigma = (draws * share * (1 - share)) ** 0.5
        assert abs(seen[number] - draws * share) < 5 * sigma, entries[number].records.name


def test_sets_are_shuffled_together_and_epochs_differ() -> None:
    mixture = Mixture([MixtureEntry(some_set("a", 500)), MixtureEntry(some_set("b", 500))], seed=2)
    first = [mixture.locate(i)[:2] for i in range(1000)]
    second = [mixture.locate(1000 + i)[:2] for i in range(1000)]
    assert first != second and sorted(first) == sorted(second)
    runs = sum(a[0] != b[0] for a, b in pairwise(first))
    assert abs(runs - 500) < 5 * 16  # sets change at every second place, sigma = sqrt(1000) / 2


def test_order_does_not_depend_on_who_asks() -> None:
    entries = [MixtureEntry(some_set("a", 30), 0.5), MixtureEntry(some_set("b", 9), 2)]
    straight = [Mixture(entries, 7).locate(i) for i in range(120)]
    by_four_ranks = [Mixture(entries, 7).locate(i) for rank in range(4) for i in range(rank, 120, 4)]
    assert sorted(by_four_ranks) == sorted(straight)
    assert [by_four_ranks[i % 4 * 30 + i // 4] for i in range(120)] == straight
    assert [Mixture(entries, 8).locate(i) for i in range(120)] != straight


def test_order_is_frozen() -> None:
    """A change here changes every run: raise the version of the fingerprint when it is meant."""
    mixture = Mixture([MixtureEntry(Sized("a", 1000), 0.5), MixtureEntry(Sized("b", 50))], seed=0)
    assert [tuple(mixture.locate(i)) for i in (0, 1, 2, 549, 550, 10**9)] == FROZEN


FROZEN = [(0, 131, 0), (0, 287, 0), (0, 285, 0), (0, 627, 0), (0, 90, 1), (0, 955, 1818181)]


def test_sample_carries_the_entrys_settings() -> None:
    mixture = Mixture([MixtureEntry(some_set("a", 3), 1, max_tiles=6, augment=True)], seed=0)
    sample = mixture[4]
    assert (sample.max_tiles, sample.augment, sample.entry, sample.position) == (6, True, 0, 4)
    assert sample.record.id == f"a{mixture.locate(4).record}"


def test_resume_is_exact() -> None:
    entries = [MixtureEntry(some_set("a", 30), 0.5), MixtureEntry(some_set("b", 9), 2)]
    whole = Mixture(entries, 7)
    expected = [whole[position] for position in range(100)]
    later = Mixture(entries, 7)
    assert [later[position] for position in range(41, 100)] == expected[41:]
    assert later.fingerprint() == whole.fingerprint()


def test_other_data_have_another_fingerprint() -> None:
    own = Mixture([MixtureEntry(some_set("a", 30), 0.5)], 7).fingerprint()
    for other in (
        Mixture([MixtureEntry(some_set("a", 30), 0.5)], 8),
        Mixture([MixtureEntry(some_set("a", 30), 0.6)], 7),
        Mixture([MixtureEntry(some_set("a", 31), 0.5)], 7),
        Mixture([MixtureEntry(some_set("a", 30), 0.5, max_tiles=2)], 7),
    ):
        assert other.fingerprint() != own


def test_mistakes() -> None:
    with pytest.raises(DataError, match="the set is empty"):
        MixtureEntry(some_set("a", 0))
    with pytest.raises(DataError, match="no sets"):
        Mixture([])
    with pytest.raises(DataError, match='two sets are called "a"'):
        Mixture([MixtureEntry(some_set("a", 1)), MixtureEntry(some_set("a", 2))])
    with pytest.raises(DataError, match="its rate is nan"):
        MixtureEntry(some_set("a", 1), float("nan"))
    with pytest.raises(DataError, match="tile count is 0"):
        MixtureEntry(some_set("a", 1), max_tiles=0)
    with pytest.raises(IndexError):
        Mixture([MixtureEntry(some_set("a", 1))]).locate(-1)
