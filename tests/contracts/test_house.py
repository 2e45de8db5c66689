"""The rules of the house: each fails when it is broken. `python -m tests.house` lists what is wrong."""

from __future__ import annotations

from tests import house


def test_imports_go_down() -> None:
    assert house.upward_imports() == []


def test_nothing_lies_loose_at_the_root() -> None:
    assert house.loose_files() == []


def test_files_stay_short() -> None:
    assert house.long_files() == []


def test_the_room_of_checkpoints_can_be_walked_without_circles() -> None:
    arrows: dict[str, set[str]] = {}
    for each in house.imports():
        if each.room == "checkpoints" and each.module.startswith("vitp.checkpoints."):
            arrows.setdefault(each.file, set()).add(
                each.module.removeprefix("vitp.").replace(".", "/") + ".py"
            )
    assert len(arrows) > 8
    while arrows:
        grounds = [file for file, below in arrows.items() if not below & arrows.keys()]
        assert grounds, f"these need each other: {sorted(arrows)}"
        for file in grounds:
            del arrows[file]
