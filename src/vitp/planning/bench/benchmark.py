"""One benchmark: what is trained, its figures with their circumstances, and the last result on the same hardware."""

from __future__ import annotations

import datetime
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from vitp.core import distributed
from vitp.core.config import CONFIG_FILE, SettingsModel, load_config, make_config
from vitp.core.errors import ConfigError, DataError
from vitp.core.reading import parse_json, read_text
from vitp.core.version import __version__
from vitp.models.compute import ComputeConfig, configure
from vitp.objectives.base import BatchSource
from vitp.objectives.vitp import ViTPObjective
from vitp.planning.bench.machine import hardware
from vitp.planning.bench.measure import Measurement, StepSettings, measure
from vitp.planning.bench.synthetic import SIZES, TILE_HISTOGRAM, SyntheticSource, Workload, make_objective

NAME = "vitp bench"

COMPARED = {
    "samples_per_s": True,
    "tiles_per_s": True,
    "tokens_per_s": True,
    "mfu": True,
    "packing": True,
    "data_wait": False,
    "memory_gb": False,
}
"""Figure → whether more is better."""


class BenchConfig(SettingsModel):
    """What is measured where no run is named: a model of random weights on made-up records."""

    size: Literal["micro", "small", "full"] = "micro"
    """Of the model: `micro`, `small`, or `full` (InternViT-300M at 448 px and Qwen2.5-0.5B)."""
    records: int = Field(16, ge=1, le=10_000_000)
    """A micro-batch."""
    tiles: int | None = Field(None, ge=1, le=40)
    """A record; none: a mixture of 1, 3, 5 and 7."""
    questions: int = Field(1, ge=1, le=64)
    """A record."""
    vrl_ratio: float = Field(0.75, ge=0, lt=1)
    """Image tokens dropped."""
    steps: int = Field(8, ge=1, le=100_000_000)
    """That are timed."""
    micro_batches: int = Field(1, ge=1, le=65_536)
    """A step."""
    num_workers: int = Field(0, ge=0, le=512)
    """Processes that prepare batches."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """As in `train`."""
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """As in `train`."""
    compute: ComputeConfig = Field(default_factory=ComputeConfig)
    """As in a run."""


class Subject:
    """What is to be measured.

    Attributes:
        objective: Model and loss.
        source: Batches.
        settings: Of the steps.
        description: What makes two results comparable, as plain values.
    """

    def __init__(
        self,
        objective: ViTPObjective,
        source: BatchSource,
        settings: StepSettings,
        description: Mapping[str, Any],
    ) -> None:
        self.objective, self.source, self.settings = objective, source, settings
        self.description = dict(description)


def synthetic(config: BenchConfig) -> Subject:
    """Return a model of random weights with made-up records."""
    size = SIZES[config.size]()
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
        objective.chat, size.config.vision.image_size, work, micro_batches=config.micro_batches
    )
    settings = StepSettings(
        steps=config.steps,
        micro_batches=config.micro_batches,
        num_workers=config.num_workers,
        precision=config.precision,
        device=config.device,
    )
    return Subject(objective, source, settings, config.model_dump(mode="json"))


def of_run(path: Path, steps: int, overrides: Sequence[str] = ()) -> Subject:
    """Return model and data of a pretraining run, or of its configuration.

    Args:
        path: Run folder or YAML file.
        steps: That are to be timed.
        overrides: key=value over the run's configuration.

    Raises:
        VitpError: The configuration or the data can't be used.
    """
    from vitp.runs.pretrain import PretrainConfig, build_vlm

    file = path / CONFIG_FILE if path.is_dir() else path
    if not file.is_file():
        raise ConfigError("holds no config.yaml", where=str(path), fix="name a pretraining run")
    config = load_config(PretrainConfig, file, overrides)
    if path.is_dir() and (path / "model").is_dir():
        config = config.model_copy(update={"model": config.model.model_copy(update={"init": str(path)})})
    objective, source = build_vlm(config)
    settings = StepSettings(
        steps=steps,
        micro_batches=config.train.micro_batches,
        num_workers=config.train.num_workers,
        precision=config.train.precision,
        device=config.train.device,
    )
    description = {
        "run": path.name,
        "data": source.fingerprint()[:16],
        "records": config.data.global_batch,
        "precision": config.train.precision,
        "compute": config.compute.model_dump(mode="json"),
    }
    return Subject(objective, source, settings, description)


def bench_config(overrides: Sequence[str], **values: Any) -> BenchConfig:
    """Return the settings of a synthetic benchmark; arguments that are None count as not given."""
    given = {name: value for name, value in values.items() if value is not None}
    return make_config(BenchConfig, given, overrides, where="vitp bench")


def run_benchmark(
    subject: Subject, command: Sequence[str], *, on_step: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """Measure, and return the figures with their circumstances."""
    found: Measurement = measure(subject.objective, subject.source, subject.settings, on_step=on_step)
    return {
        "benchmark": NAME,
        "date": datetime.date.today().isoformat(),
        "commit": commit_here(),
        "vitp": __version__,
        "torch": torch.__version__,
        "hardware": hardware(distributed.resolve_device(subject.settings.device)),
        "command": shlex.join(command),
        "subject": subject.description,
        "figures": found.figures(),
    }


def commit_here() -> str:
    """Return the short hash of the working folder's commit, or "" where there is none."""
    return _git(["rev-parse", "--short", "HEAD"], Path.cwd()).strip()


def last_result(folder: Path, result: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the newest result in a folder on the same hardware, of the same subject; None without one.

    Of a file that git knows, its committed text counts, not what a later run has written over it.
    """
    found = [one for path in sorted(folder.glob("*.json")) if (one := _read(path)) is not None]
    same = [
        one
        for one in found
        if one.get("hardware") == result["hardware"]
        and _without_length(one.get("subject")) == _without_length(result["subject"])
    ]
    return max(same, key=lambda one: str(one.get("date")), default=None)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, float]:
    """Return figure → factor between two results' figures, where both have it and it was not 0."""
    old, new = before["figures"], now["figures"]
    return {name: new[name] / old[name] for name in COMPARED if old.get(name) and name in new}


def read_result(path: Path) -> dict[str, Any]:
    """Read a result file.

    Raises:
        DataError: It is none.
    """
    found = _read(path)
    if found is None:
        raise DataError("is no result of vitp bench", where=str(path))
    return found


def _without_length(subject: Any) -> Any:
    """How many steps were timed changes no figure but its noise."""
    return {k: v for k, v in subject.items() if k != "steps"} if isinstance(subject, dict) else subject


def _read(path: Path) -> dict[str, Any] | None:
    text = _git(["show", f"HEAD:./{path.name}"], path.parent)
    try:
        value = parse_json(text or read_text(path))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) and value.get("benchmark") == NAME else None


def _git(arguments: Sequence[str], folder: Path) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, cwd=folder, check=False, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
