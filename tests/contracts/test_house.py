"""The rules of the house: each fails when it is broken. `python -m tests.house` lists what is wrong."""

from __future__ import annotations

from tests import house


def test_imports_go_down() -> None:
    assert house.upward_imports() == []


def test_nothing_lies_loose_at_the_root() -> None:
    assert house.loose_files() == []


def test_files_stay_short() -> None:
    assert house.long_files() == []
