"""The logs of a run: a table, a progress line, `metrics.jsonl` and trackers. Rank 0 only."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from vitp.core.files import write_text
from vitp.core.reading import lines_of, parse_json, read_text
from vitp.engine.optim import Part
from vitp.engine.trackers import Trackers


class Meter:
    """Rates over the time since they were last asked for."""

    def __init__(self) -> None:
        self._reset(time.perf_counter(), 0.0)

    def _reset(self, now: float, wait_s: float) -> None:
        self._began, self._wait_began = now, wait_s
        self._work: dict[str, float] = {}

    def add(self, work: Mapping[str, float]) -> None:
        """Count the work of one step, of all ranks."""
        for name, amount in work.items():
            self._work[name] = self._work.get(name, 0.0) + amount

    def read(self, wait_s: float) -> dict[str, float]:
        """Return `samples_per_s`, `tokens_per_s`, `tiles_per_s`, `packing` and `data_wait`, and start anew.

        Where blank tiles are computed beside those of the data, `tile_packing` is the share of the data's.

        Args:
            wait_s: Seconds spent waiting for data since the start of the run.

        Returns:
            Rates a second; `packing` and `data_wait` as shares on 0..1. What was not counted is left out.
        """
        now = time.perf_counter()
        seconds = max(now - self._began, 1e-9)
        rates = {
            f"{name}_per_s": self._work[name] / seconds
            for name in ("samples", "tokens", "tiles")
            if name in self._work
        }
        if self._work.get("capacity"):
            rates["packing"] = self._work.get("tokens", 0.0) / self._work["capacity"]
        if self._work.get("tile_slots", 0.0) > self._work.get("tiles", 0.0):
            rates["tile_packing"] = self._work.get("tiles", 0.0) / self._work["tile_slots"]
        rates["data_wait"] = min(1.0, (wait_s - self._wait_began) / seconds)
        self._reset(now, wait_s)
        return rates


def memory_gb(device: torch.device) -> float:
    """Return the largest memory use so far, in GiB: of the GPU, or of this process on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Bytes on macOS, kilobytes on Linux.
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


def metrics_row(
    metrics: Any, window: Sequence[float], rates: Mapping[str, float], device: torch.device
) -> dict[str, Any]:
    """Return a row of `metrics.jsonl`.

    Args:
        metrics: `StepMetrics` of the step.
        window: Losses since the last row.
        rates: Rates of the work since then.
        device: Device whose memory is told.
    """
    row = {name: value for name, value in asdict(metrics).items() if name not in ("work", "skipped")}
    return {**row, "loss_mean": sum(window) / len(window), **rates, "memory_gb": memory_gb(device)}


class MetricsFile:
    """`metrics.jsonl`: one JSON object a row, each with its `step`.

    Args:
        path: The file.
        step: Steps done; rows of later steps belong to a run that was cut off, and are removed.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        lines = lines_of(read_text(path)) if step and path.exists() else []
        kept = [line for line in lines if self._step(line) <= step]
        write_text(path, "".join(f"{line}\n" for line in kept))

    @staticmethod
    def _step(line: str) -> float:
        try:
            step: float = parse_json(line)["step"]
            return step
        except (ValueError, KeyError, TypeError):  # the row that a crash cut off
            return float("inf")

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


class RunLog:
    """Everything that rank 0 says.

    Args:
        run_dir: Holds `metrics.jsonl`.
        step: Steps done before.
        steps: End of the run.
        console: Where to print.
        trackers: Are told the numbers, too.
    """

    def __init__(
        self, run_dir: Path, step: int, steps: int, *, console: Console, trackers: Trackers | None = None
    ) -> None:
        self.console, self.steps = console, steps
        self._file = MetricsFile(run_dir / "metrics.jsonl", step)
        self._trackers = trackers
        if trackers is not None:
            trackers.begin(step)
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._began, self._first = time.perf_counter(), step

    def table(self, parts: Sequence[Part]) -> None:
        """Print which parts train, and how."""
        table = Table(title="trainable parts")
        table.add_column("part")
        for column in ("parameters", "trainable", "lr", "weight decay"):
            table.add_column(column, justify="right")
        for part in parts:
            trained = [f"{part.trainable:,}", f"{part.lr:g}", f"{part.weight_decay:g}"]
            table.add_row(
                part.name, f"{part.parameters:,}", *(trained if part.trainable else ["frozen", "–", "–"])
            )
        self.console.print(table)

    def start(self, step: int) -> None:
        """Show the progress bar, on a terminal."""
        if not self.console.is_terminal:
            return
        self._progress = Progress(
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=self.console,
        )
        self._task = self._progress.add_task("train", total=self.steps, completed=step, text="")
        self._progress.start()

    def advance(self, step: int) -> None:
        """Move the progress bar."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=step)

    def row(self, row: Mapping[str, Any]) -> None:
        """Log one step's measurements to console, file and trackers."""
        self._file.write(row)
        self._track(row["step"], row)
        text = _summary(row)
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, text=text)
        else:
            done = row["step"] - self._first
            left = (time.perf_counter() - self._began) / max(done, 1) * (self.steps - row["step"])
            self.console.print(
                f"step {row['step']}/{self.steps}  {text}  eta {timedelta(seconds=round(left))}",
                highlight=False,
                soft_wrap=True,
            )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers that a hook measured to file and trackers."""
        self._file.write({"step": step, **values})
        self._track(step, values)

    def _track(self, step: int, values: Mapping[str, Any]) -> None:
        if self._trackers is not None:
            self._trackers.scalars(step, values)

    def say(self, text: str) -> None:
        """Print one line."""
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def close(self) -> None:
        """Take the progress bar down."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _summary(row: Mapping[str, Any]) -> str:
    words = [f"loss {row['loss_mean']:.4f}", f"lr {row['lr']:.2e}", f"grad {row['grad_norm']:.2f}"]
    words += [
        f"{row[f'{name}_per_s']:,.{1 if row[f'{name}_per_s'] < 100 else 0}f} {name}/s"
        for name in ("samples", "tokens", "tiles")
        if f"{name}_per_s" in row
    ]
    if "packing" in row:
        words.append(f"packing {row['packing']:.0%}")
    words.append(f"data wait {row['data_wait']:.0%}")
    return "  ".join(words)
