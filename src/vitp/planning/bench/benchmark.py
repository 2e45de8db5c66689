"""A benchmark: its subject, its figures with their circumstances, and the last result on the same hardware."""

from __future__ import annotations

import datetime
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from vitp.core import distributed
from vitp.core.config import DEVICE_PATTERN, SettingsModel, make_config
from vitp.core.reading import parse_json, read_text
from vitp.core.version import __version__
from vitp.engine.config import TrainSettings
from vitp.models.compute import ComputeSettings, configure
from vitp.objectives.base import BatchSource
from vitp.objectives.vitp import ViTPObjective
from vitp.planning.bench.measure import StepSettings, hardware, measure_steps
from vitp.planning.bench.synthetic import (
    MODEL_SIZES,
    TILE_HISTOGRAM,
    SyntheticSource,
    Workload,
    make_objective,
)
from vitp.runs.check.run import load_run
from vitp.runs.pretrain import build_with_language

_NAME = "vitp bench"

MORE_IS_BETTER = {
    "samples_per_s": True,
    "tiles_per_s": True,
    "tokens_per_s": True,
    "mfu": True,
    "packing": True,
    "data_wait": False,
    "memory_gb": False,
}
"""Figure that is compared → whether more is better."""


class BenchConfig(SettingsModel):
    """What is measured where no run is named: a model of random weights on made-up records."""

    size: Literal["micro", "small", "full"] = "micro"
    """Size of the model: `micro`, `small`, or `full` (InternViT-300M at 448 px and Qwen2.5-0.5B)."""
    records: int = Field(16, ge=1, le=10_000_000)
    """Records of a micro-batch."""
    tiles: int | None = Field(None, ge=1, le=40)
    """Tiles of a record; none: a mixture of 1, 3, 5 and 7."""
    questions: int = Field(1, ge=1, le=64)
    """Questions of a record."""
    vrl_ratio: float = Field(0.75, ge=0, lt=1)
    """Share of image tokens that are dropped."""
    steps: int = Field(8, ge=1, le=100_000_000)
    """Steps that are timed."""
    micro_batches: int = Field(1, ge=1, le=65_536)
    """Micro-batches of a step."""
    num_workers: int = Field(0, ge=0, le=512)
    """Processes that prepare batches."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision, as `train.precision` of a run."""
    device: str = Field("auto", pattern=DEVICE_PATTERN)
    """Device, as `train.device` of a run."""
    compute: ComputeSettings = Field(default_factory=ComputeSettings)
    """Speed and memory, as `compute` of a run."""


@dataclass(frozen=True)
class Subject:
    """Model and data that are to be measured.

    Attributes:
        objective: Model and loss.
        source: Batches.
        settings: Settings of the steps.
        description: Plain values that are equal where two results can be compared.
    """

    objective: ViTPObjective
    source: BatchSource
    settings: StepSettings
    description: Mapping[str, Any]


def synthetic_subject(config: BenchConfig) -> Subject:
    """Return a model of random weights with made-up records."""
    size = MODEL_SIZES[config.size]
    objective = make_objective(size)
    configure(objective.vlm, config.compute)
    tiles = TILE_HISTOGRAM if config.tiles is None else {config.tiles: 1.0}
    work = Workload(
        records=config.records * config.micro_batches,
        tiles=tuple(tiles.items()),
        questions=config.questions,
        vrl_ratio=config.vrl_ratio,
    )
    source = SyntheticSource(
        objective.chat,
        size.config.vision.image_size,
        work,
        micro_batches=config.micro_batches,
        compute=config.compute,
    )
    return Subject(objective, source, _step_settings(config, config.steps), config.model_dump(mode="json"))


def _step_settings(config: BenchConfig | TrainSettings, steps: int) -> StepSettings:
    shared = config.model_dump(include={"micro_batches", "num_workers", "precision", "device"})
    return StepSettings(steps=steps, **shared)


def run_subject(path: Path, steps: int, overrides: Sequence[str] = ()) -> Subject:
    """Return model and data of a pretraining run, or of its configuration.

    Args:
        path: Run folder or YAML file.
        steps: Timed steps.
        overrides: key=value over the run's configuration.

    Raises:
        VitpError: The configuration or the data can't be used.
    """
    config = load_run(path, overrides)
    objective, source = build_with_language(config)
    description = {
        "run": path.name,
        "data": source.fingerprint()[:16],
        "records": config.data.global_batch,
        "precision": config.train.precision,
        "compute": config.compute.model_dump(mode="json"),
    }
    return Subject(objective, source, _step_settings(config.train, steps), description)


def bench_config(overrides: Sequence[str], **values: Any) -> BenchConfig:
    """Return the settings of a synthetic benchmark; arguments that are None count as not given."""
    given = {name: value for name, value in values.items() if value is not None}
    return make_config(BenchConfig, given, overrides, where=_NAME)


def run_benchmark(
    subject: Subject, command: Sequence[str], *, on_step: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """Measure, and return the figures with their circumstances."""
    found = measure_steps(subject.objective, subject.source, subject.settings, on_step=on_step)
    device = distributed.resolve_device(subject.settings.device)
    circumstances = circumstances_of(_NAME, shlex.join(command), device)
    return {**circumstances, "subject": dict(subject.description), "figures": found.figures()}


def circumstances_of(
    name: str, command: str, device: torch.device, folder: Path | None = None
) -> dict[str, Any]:
    """Return the head of any result: benchmark, date, commit, versions, hardware, command.

    The commit is that of the folder; None: of the working folder.
    """
    return {
        "benchmark": name,
        "date": datetime.date.today().isoformat(),
        "commit": _git(["rev-parse", "--short", "HEAD"], folder or Path.cwd()).strip(),
        "vitp": __version__,
        "torch": torch.__version__,
        "hardware": hardware(device),
        "command": command,
    }


def last_result(folder: Path, result: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the newest result in a folder on the same hardware, of the same subject; None without one.

    Of a file that git knows, its committed text counts, not what a later run has written over it.
    """
    same = []
    for path in sorted(folder.glob("*.json")):
        text = _git(["show", f"HEAD:./{path.name}"], path.parent)
        try:
            one = parse_json(text or read_text(path))
        except (OSError, ValueError):
            continue
        if isinstance(one, dict) and one.get("benchmark") == _NAME and _likeness(one) == _likeness(result):
            same.append(one)
    return max(same, key=lambda one: str(one.get("date")), default=None)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, float]:
    """Return figure → factor between two results' figures, where both have it and it was not 0."""
    old, new = before["figures"], now["figures"]
    return {name: new[name] / old[name] for name in MORE_IS_BETTER if old.get(name) and name in new}


def _likeness(result: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return what is equal in comparable results; the number of timed steps changes no figure but its noise."""
    subject = result.get("subject")
    if isinstance(subject, dict):
        subject = {name: value for name, value in subject.items() if name != "steps"}
    return result.get("hardware"), subject


def _git(arguments: Sequence[str], folder: Path) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, cwd=folder, check=False, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
