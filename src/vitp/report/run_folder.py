"""Reads what a run leaves in its folder, and refuses what is malformed with file and line."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vitp.core.config import CONFIG_FILE
from vitp.core.errors import DataError
from vitp.core.reading import parse_json, parse_yaml, read_text
from vitp.report.samples import Sample

Row = dict[str, Any]

PARTS = {
    CONFIG_FILE: "the configuration",
    "metrics.jsonl": "the training curves",
    "evidence.json": "how far the vision tower moved",
    "probes.jsonl": "the probes during training",
    "samples.json": "questions with their answers",
}
"""The files that a report is made of, and what each holds."""


@dataclass(frozen=True)
class RunFolder:
    """What a run left.

    Attributes:
        path: The folder.
        config_text: `config.yaml` as it stands, or None.
        steps: Rows of `metrics.jsonl` that measure a training step, by step.
        evidence: `evidence.json`, or None.
        probes: Rows of `probes.jsonl`, or, without that file, rows of hooks in `metrics.jsonl`, by step.
        samples: Of `samples.json`.
        missing: Which of `PARTS` are not there.
    """

    path: Path
    config_text: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    steps: list[Row] = field(default_factory=list)
    evidence: Mapping[str, Any] | None = None
    probes: list[Row] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def read_run(run_dir: str | Path) -> RunFolder:
    """Return what the folder of a run holds.

    Raises:
        DataError: The folder is no run's, or one of its files is malformed.
    """
    path = Path(run_dir)
    missing = [name for name in PARTS if not (path / name).is_file()]
    if len(missing) == len(PARTS):
        raise DataError(
            "is no run folder" if path.is_dir() else "there is no such folder",
            where=str(path),
            fix="name a folder that `vitp pretrain` wrote; it holds config.yaml and metrics.jsonl",
        )
    text, config = _config(path / CONFIG_FILE)
    metrics = _rows(path / "metrics.jsonl")
    steps = [row for row in metrics if "loss" in row]
    probes = _rows(path / "probes.jsonl")
    if not probes:
        probes = [row for row in metrics if "loss" not in row]
    return RunFolder(
        path=path,
        config_text=text,
        config=config,
        steps=steps,
        evidence=_evidence(path / "evidence.json"),
        probes=probes,
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


def _config(path: Path) -> tuple[str | None, Mapping[str, Any]]:
    text = _text(path)
    if text is None:
        return None, {}
    try:
        value = parse_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise DataError("is not YAML", where=where, fix="restore the file that the run wrote") from error
    return text, value if isinstance(value, dict) else {}


def _rows(path: Path) -> list[Row]:
    """Return the rows of a JSON Lines file by ascending step; each needs an integer `step`."""
    rows = []
    for number, line in enumerate((_text(path) or "").splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = parse_json(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"is not JSON (column {error.colno}: {error.msg})",
                where=where,
                fix="remove the line, or resume the run, which drops rows that a crash cut off",
            ) from error
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise DataError("is not an object with a whole number `step`", where=where, fix="remove the line")
        rows.append(row)
    return sorted(rows, key=lambda row: row["step"])


def _json(path: Path) -> Any:
    text = _text(path)
    if text is None:
        return None
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"is not JSON (column {error.colno}: {error.msg})",
            where=f"{path}:{error.lineno}",
            fix="restore the file that the run wrote",
        ) from error


def _evidence(path: Path) -> Mapping[str, Any] | None:
    value = _json(path)
    if value is None:
        return None
    layers = value.get("layers") if isinstance(value, dict) else None
    well_formed = isinstance(layers, list) and all(
        isinstance(row, dict)
        and isinstance(row.get("layer"), str)
        and isinstance(row.get("change"), (int, float))
        for row in layers
    )
    if not well_formed or not isinstance(value.get("relative_change"), (int, float)):
        raise DataError(
            "lacks `relative_change` or a list `layers` of objects with `layer` and `change`",
            where=str(path),
            fix="restore the file that the run wrote",
        )
    return value


def _samples(path: Path) -> list[Sample]:
    value = _json(path)
    if value is None:
        return []
    if not isinstance(value, list):
        raise DataError("is not a list of samples", where=str(path), fix="write [{image, question, …}, …]")
    return [_sample(row, f"{path}, sample {number}") for number, row in enumerate(value, 1)]


def _sample(row: Any, where: str) -> Sample:
    if not isinstance(row, dict):
        raise DataError(
            "is not an object", where=where, fix="write {image, question, expected, answer, task, score}"
        )
    image = row.get("image")
    if isinstance(image, list) and image:
        image = image[0]
    texts = {name: row.get(name) for name in ("question", "expected", "answer")}
    for name, text in ({"image": image} | texts).items():
        if not isinstance(text, str):
            raise DataError(
                f"`{name}` is missing or no text", where=where, fix=f"give each sample its {name}"
            )
    score = row.get("score")
    if isinstance(score, bool):
        score = float(score)
    if score is not None and not (
        isinstance(score, (int, float)) and math.isfinite(score) and 0 <= score <= 1
    ):
        raise DataError(
            f"score {score!r} is not on 0..1", where=where, fix="leave it out where nothing was scored"
        )
    return Sample(
        image=str(image),
        question=str(texts["question"]),
        expected=str(texts["expected"]),
        answer=str(texts["answer"]),
        task=str(row.get("task") or ""),
        score=None if score is None else float(score),
    )
