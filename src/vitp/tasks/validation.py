"""Scores on validation images while a model is finetuned, and the weights that were best on them."""

from __future__ import annotations

import math
from pathlib import Path

from vitp.data.labels import LabelledSet
from vitp.engine.hooks import Hook, StepMetrics
from vitp.engine.loop import Trainer
from vitp.engine.weights import load_state, load_tensors, save_tensors, unique_state
from vitp.errors import CheckpointError
from vitp.evaluation.probe_data import subset
from vitp.files import atomic_path, write_json
from vitp.reading import parse_json, read_text
from vitp.tasks.base import TaskModel, TestSettings
from vitp.tasks.build import Evaluate

CURVE_FILE = "validation.json"
BEST_FILE = "best.safetensors"


class Validation(Hook):
    """Scores the model every `every` steps and after the last one, and keeps the best weights.

    Args:
        images: Validation images.
        evaluate: Of the task.
        settings: How the model is applied.
        every: Steps; None: only after the last one.
        most: Images at most, always the same ones.
        run_dir: Gets `validation.json` and `best.safetensors`.

    Attributes:
        curve: (step, headline) on the validation images; NaN where nothing could be counted.
    """

    def __init__(
        self,
        images: LabelledSet,
        evaluate: Evaluate,
        settings: TestSettings,
        every: int | None,
        most: int,
        run_dir: Path,
    ) -> None:
        self.images, self.evaluate, self.every = subset(images, most), evaluate, every
        # Test-time extras cost time and change little about which step is best.
        self.settings = settings.model_copy(update={"scales": (1.0,), "flip": False, "surface": False})
        self.run_dir = run_dir
        self.curve: list[tuple[int, float]] = []

    def on_start(self, trainer: Trainer) -> None:
        """Take up the curve of an interrupted run."""
        file = self.run_dir / CURVE_FILE
        if trainer.step and file.is_file():
            rows = parse_json(read_text(file))["curve"]
            self.curve = [
                (step, math.nan if value is None else value) for step, value in rows if step <= trainer.step
            ]

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and score of the first best validation, None before any."""
        known = [row for row in self.curve if not math.isnan(row[1])]
        return max(known, key=lambda row: row[1], default=None)

    def on_step_end(self, trainer: Trainer, step: int, metrics: StepMetrics) -> None:
        """Score when it is time."""
        last = step == trainer.config.steps
        if not trainer.is_main or not (last or (self.every and step % self.every == 0)):
            return
        assert isinstance(trainer.objective, TaskModel)
        scores = self.evaluate(trainer.objective, self.images, self.settings)
        before = self.best
        self.curve.append((step, scores.score))
        # Without any score yet the weights are kept, too: there must be some to choose.
        if before is None or scores.score > before[1]:
            with atomic_path(self.run_dir / BEST_FILE) as temporary:
                save_tensors(temporary, unique_state(trainer.objective), {"step": str(step)})
        self._write()
        finite = {name: value for name, value in scores.values.items() if math.isfinite(value)}
        trainer.log_scalars(step, {f"val/{name}": value for name, value in finite.items()})

    def _write(self) -> None:
        rows = [[step, None if math.isnan(value) else value] for step, value in self.curve]
        write_json(self.run_dir / CURVE_FILE, {"curve": rows, "best": self.best})


def apply_best(model: TaskModel, run_dir: Path) -> int:
    """Load the best weights of a run into its model and return their step.

    Raises:
        CheckpointError: There are none.
    """
    file = run_dir / BEST_FILE
    if not file.is_file():
        raise CheckpointError("is missing", where=str(file), fix="resume the run, or choose the last weights")
    load_state(model, load_tensors(file), str(file))
    found = parse_json(read_text(run_dir / CURVE_FILE))
    # Where no validation could count anything, the last weights are the ones that were kept.
    return int((found["best"] or found["curve"][-1])[0])
