"""Reads what a run leaves in its folder, and refuses what is malformed with file and line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from vitp.core.config import CONFIG_FILE
from vitp.core.errors import DataError
from vitp.core.reading import lines_of, parse_json, parse_yaml, read_text
from vitp.evaluation.answers import Answered

RUN_FILES = {
    CONFIG_FILE: "the configuration",
    "metrics.jsonl": "the training curves",
    "evidence.json": "how far the vision tower moved",
    "probes.jsonl": "the probes during training",
    "samples.json": "questions with their answers",
}
"""The files that a report is made of, and what each holds."""

StepRow = dict[str, Any]
_RESTORE = "restore the file that the run wrote"


@dataclass(frozen=True)
class RunFolder:
    """What a run left.

    Attributes:
        path: The folder.
        config_text: `config.yaml` as it stands, or None.
        config: What it says.
        steps: Rows of `metrics.jsonl` that measure a training step, by step.
        evidence: `evidence.json`, or None.
        probes: Rows of `probes.jsonl`, or, without that file, rows of hooks in `metrics.jsonl`, by step.
        samples: Samples of `samples.json`.
        missing: Which of `RUN_FILES` are not there.
    """

    path: Path
    config_text: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    steps: list[StepRow] = field(default_factory=list)
    evidence: Mapping[str, Any] | None = None
    probes: list[StepRow] = field(default_factory=list)
    samples: list[Answered] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def read_run(run_dir: str | Path) -> RunFolder:
    """Return what the folder of a run holds.

    Raises:
        DataError: The folder is no run's, or one of its files is malformed.
    """
    path = Path(run_dir)
    missing = [name for name in RUN_FILES if not (path / name).is_file()]
    if len(missing) == len(RUN_FILES):
        raise DataError(
            "is no run folder" if path.is_dir() else "there is no such folder",
            where=str(path),
            fix="name a folder that `vitp pretrain` wrote; it holds config.yaml and metrics.jsonl",
        )
    text = _text(path / CONFIG_FILE)
    metrics = _rows(path / "metrics.jsonl")
    return RunFolder(
        path=path,
        config_text=text,
        config={} if text is None else _config(text, path / CONFIG_FILE),
        steps=[row for row in metrics if "loss" in row],
        evidence=_evidence(path / "evidence.json"),
        probes=_rows(path / "probes.jsonl") or [row for row in metrics if "loss" not in row],
        samples=_samples(path / "samples.json"),
        missing=missing,
    )


def _text(path: Path) -> str | None:
    if not path.is_file():
        return None
    try:
        return read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"can't be read ({error})", where=str(path), fix="restore the file") from error


def _config(text: str, path: Path) -> Mapping[str, Any]:
    try:
        value = parse_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise DataError("is not YAML", where=where, fix=_RESTORE) from error
    return value if isinstance(value, dict) else {}


def _json(text: str, path: Path, fix: str, first_line: int = 1) -> Any:
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        where = f"{path}:{first_line + error.lineno - 1}"
        raise DataError(f"is not JSON (column {error.colno}: {error.msg})", where=where, fix=fix) from error


def _rows(path: Path) -> list[StepRow]:
    """Return the rows of a JSON Lines file by ascending step; each needs an integer `step`."""
    rows = []
    for number, line in enumerate(lines_of(_text(path) or ""), 1):
        if not line.strip():
            continue
        cut = "remove the line, or resume the run, which drops rows that a crash cut off"
        row = _json(line, path, cut, number)
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise DataError(
                "is not an object with a whole number `step`", where=f"{path}:{number}", fix="remove the line"
            )
        rows.append(row)
    return sorted(rows, key=lambda row: row["step"])


def _evidence(path: Path) -> Mapping[str, Any] | None:
    text = _text(path)
    if text is None:
        return None
    value = _json(text, path, _RESTORE)
    layers = value.get("layers") if isinstance(value, dict) else None
    numbers = (int, float)
    well_formed = isinstance(layers, list) and all(
        isinstance(row, dict) and isinstance(row.get("layer"), str) and isinstance(row.get("change"), numbers)
        for row in layers
    )
    if not well_formed or not isinstance(value.get("relative_change"), numbers):
        raise DataError(
            "lacks `relative_change` or a list `layers` of objects with `layer` and `change`",
            where=str(path),
            fix=_RESTORE,
        )
    return dict(value)


def _samples(path: Path) -> list[Answered]:
    text = _text(path)
    value = [] if text is None else _json(text, path, _RESTORE)
    if not isinstance(value, list):
        raise DataError("is not a list of samples", where=str(path), fix="write [{image, question, …}, …]")
    return [_sample(row, f"{path}, sample {number}") for number, row in enumerate(value, 1)]


def _sample(row: Any, where: str) -> Answered:
    if isinstance(row, dict):
        image = row.get("image")
        row = row | {
            "image": image[0] if isinstance(image, list) and image else image,
            "task": row.get("task") or "",
        }
    try:
        return TypeAdapter(Answered).validate_python(row)
    except ValidationError as error:
        found = error.errors()[0]
        field_name = f"`{found['loc'][0]}`: " if found["loc"] else ""
        raise DataError(
            f"{field_name}{found['msg'][0].lower()}{found['msg'][1:]}",
            where=where,
            fix="write {image, question, expected, answer}, and a task and a score on 0..1 where there are some",
        ) from error
