"""Rows of finished cells: work goes on from them on another machine, and nothing is done twice without need."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from vitp.core.errors import ConfigError
from vitp.studies.grid import Study, StudyCell
from vitp.studies.process import Context
from vitp.studies.rows import read_rows
from vitp.studies.runner import StudyRunner

QUIET = Console(file=io.StringIO())
MADE: list[str] = []


def weights(context: Context) -> Mapping[str, Any]:
    MADE.append(context.cell.name)
    (context.folder / "weights").write_text("heavy")
    return {"value": context.cell.settings["value"]}


def score(context: Context) -> Mapping[str, Any]:
    MADE.append(context.cell.name)
    for role, needed in context.inputs.items():
        assert role in ("lr", "equal") or (needed.folder / "weights").is_file()
    return {
        "value": context.cell.settings["value"] + sum(one.values["value"] for one in context.inputs.values())
    }


def choice(context: Context) -> Mapping[str, Any]:
    MADE.append(context.cell.name)
    return {"value": max(one.values["value"] for one in context.inputs.values())}


WORK = {"weights": weights, "score": score, "choose": choice}


def runs(value: int = 1) -> Study:
    """Two pretrainings, the second as long as the first; a score of each; a choice between the scores."""
    cells = (
        StudyCell("data", "weights", {"value": 0}, keep=("weights",)),
        StudyCell("first", "weights", {"value": value}, needs={"data": "data"}, keep=("weights",)),
        StudyCell("choice", "choose", {"value": 0}, needs={"1": "of first"}),
        StudyCell(
            "second",
            "weights",
            {"value": 2},
            needs={"data": "data", "equal": "first", "lr": "choice"},
            keep=("weights",),
        ),
        StudyCell("of first", "score", {"value": 10}, needs={"backbone": "first"}),
        StudyCell("of second", "score", {"value": 20}, needs={"backbone": "second"}),
        StudyCell("more of second", "score", {"value": 30}, needs={"backbone": "second"}),
    )
    return Study("toy", "Toy", "Does it go on?", cells)


def worked(folder: Path, rows: Path, value: int = 1, **versions: int) -> tuple[list[str], StudyRunner]:
    """Run the study in a folder; return the cells that were made, and the runner."""
    MADE.clear()
    runner = StudyRunner(runs(value), folder, WORK, versions, QUIET, False, read_rows(rows))
    runner.run()
    return list(MADE), runner


def values(runner: StudyRunner) -> dict[str, Any]:
    return {cell.name: (runner.store.result(cell) or {})["values"] for cell in runner.study.cells}


def test_a_study_goes_on_from_rows_alone(tmp_path: Path) -> None:
    rows = tmp_path / "docs" / "cells.jsonl"
    made, whole = worked(tmp_path / "a", rows)
    assert len(made) == len(rows.read_text().splitlines()) == 7
    expected = values(whole)

    # All rows are there: nothing is done, the values are the same.
    made, again = worked(tmp_path / "b", rows)
    assert made == [] and again.progress().complete and values(again) == expected

    # One score lacks: its backbone is made again, and the data for that, nothing else.
    lines = rows.read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["name"] != "more of second"]
    rows.write_text("\n".join(kept))
    made, again = worked(tmp_path / "c", rows)
    assert made == ["data", "second", "more of second"] and values(again) == expected
    assert again.store.again == {"data", "second"}
    assert {json.loads(line)["name"] for line in rows.read_text().splitlines()} == set(expected)

    # Interrupted in the middle: what has no row is done.
    rows.write_text("\n".join(line for line in lines if json.loads(line)["name"] in ("data", "first")))
    made, again = worked(tmp_path / "d", rows)
    assert made == ["data", "first", "of first", "choice", "second", "of second", "more of second"]
    assert values(again) == expected

    # A changed setting is another cell, and so is all that follows from it; rows of before are kept.
    made, _ = worked(tmp_path / "e", rows, value=5)
    assert "first" in made and "of second" in made and len(rows.read_text().splitlines()) == 7 + 6


def test_what_the_file_says_counts(tmp_path: Path) -> None:
    """Two machines round otherwise; the page is that of the committed rows, on either."""
    rows = tmp_path / "cells.jsonl"
    worked(tmp_path / "a", rows)
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    for line in lines:
        if line["name"] == "of first":
            line["values"]["value"] += 1
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    made, runner = worked(tmp_path / "a", rows)
    assert made == [] and values(runner)["of first"] == {"value": 12}
    assert "host" not in lines[0]["machine"] and lines[0]["cost"]["attempts"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: "{", "line 8.*is no JSON"),
        (lambda row: json.dumps([1]), "line 8.*is no row"),
        (lambda row: json.dumps({**row, "format": 2}), "line 8.*of format 2"),
        (lambda row: json.dumps({**row, "values": 3}), 'line 8.*has no "values"'),
        (
            lambda row: json.dumps({**row, "name": "other", "values": {"value": 7}}),
            'line 8.*"other" has other values than "data" in line 1',
        ),
        (lambda row: json.dumps({**row, "key": "x", "version": 9}), 'is of version 9 of the work "weights"'),
    ],
)
def test_rows_that_cannot_count_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    rows = tmp_path / "cells.jsonl"
    worked(tmp_path / "a", rows)
    text = rows.read_text()
    first = json.loads(text.splitlines()[0])
    rows.write_text(f"{text}{change(first)}\n")
    with pytest.raises(ConfigError, match=message):
        worked(tmp_path / "b", rows)
    rows.write_text(f"{text}{json.dumps(first)}\n\n")  # the same row twice says nothing else
    assert worked(tmp_path / "b", rows)[0] == []


def test_rows_of_another_cell_are_refused(tmp_path: Path) -> None:
    rows = tmp_path / "cells.jsonl"
    worked(tmp_path / "a", rows)
    rows.write_text(rows.read_text().replace('"settings": {"value": 2}', '"settings": {"value": 3}'))
    with pytest.raises(ConfigError, match=r'the key of the cell "second" and other settings'):
        worked(tmp_path / "b", rows)


def test_work_on_one_arm_alone(tmp_path: Path) -> None:
    arms = {"first": "one", "of first": "one", "second": "two", "of second": "two", "more of second": "two"}
    cells = [
        replace(cell, facts={"arm": arms[cell.name]} if cell.name in arms else {}) for cell in runs().cells
    ]
    study = replace(runs(), cells=tuple(cells))
    assert study.of_arms(()) is study
    part = study.of_arms(("one",))
    assert [cell.name for cell in part.cells] == ["data", "first", "of first"]
    # The second run is as long as the first, at the rate that was chosen: both are needed.
    assert {cell.name for cell in study.of_arms(["two"]).cells} == {cell.name for cell in study.cells}
    MADE.clear()
    runner = StudyRunner(study, tmp_path / "a", WORK, {}, QUIET, False)
    runner.run(only=part.cells)
    assert MADE == ["data", "first", "of first"]
    assert sorted(runner.progress().left) == ["choice", "more of second", "of second", "second"]
    with pytest.raises(ConfigError, match='--arm: there is no arm "three"; choose of "one"; "two"'):
        study.of_arms(("one", "three"))
