"""Scores on validation images while a model is finetuned, and the weights that were best on them."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path

from vitp.core.errors import CheckpointError
from vitp.core.files import atomic_path, write_json
from vitp.core.sealed import check, read_metadata
from vitp.core.tensors import load_tensors, load_weights, save_tensors, unique_state
from vitp.data.splits import subset
from vitp.engine.checkpoint import checkpoints
from vitp.engine.hooks import Hook, StepMetrics
from vitp.engine.loop import Trainer
from vitp.records.labels import LabelledSet
from vitp.tasks.base import TaskModel, TestSettings

CURVE_FILE = "validation.json"
BEST_FOLDER = "best"
FORMER_FILE = "best.safetensors"
"""Where earlier versions kept the best weights: one file, of whatever step was best when it was written."""

_FIX = 'resume the run, or choose the "last" weights'


class Validation(Hook):
    """Scores the model every `every` steps and after the last one, and keeps the best weights.

    The best weights up to each checkpoint are kept as well, so that a run which goes on from one of them, because later
    steps are lost, has the weights of what was best until then.

    Args:
        images: Validation images.
        settings: How the model is applied.
        every: Steps; None: only after the last one.
        most: Images at most, always the same ones.
        run_dir: Gets `validation.json` and `best/step_….safetensors`.

    Attributes:
        curve: (step, headline) on the validation images; NaN where nothing could be counted.
    """

    keeps_best = True

    def __init__(
        self,
        images: LabelledSet,
        settings: TestSettings,
        every: int | None,
        most: int,
        run_dir: Path,
    ) -> None:
        self.images, self.every = subset(images, most), every
        # Test-time extras cost time and change little about which step is best.
        self.settings = settings.model_copy(update={"scales": (1.0,), "flip": False, "surface": False})
        self.run_dir = run_dir
        self.curve: list[tuple[int, float]] = []

    def on_start(self, trainer: Trainer) -> None:
        """Take up the curve of an interrupted run; what belongs to steps that are lost is removed."""
        if not trainer.is_main:
            return
        step = trainer.step
        self.curve = [row for row in self._read(trainer) if row[0] <= step] if step else []
        for file in self._kept():
            if _step_of(file) > step or not _is_whole(file, trainer):
                file.unlink(missing_ok=True)
        if step:
            self._write()
        if self.curve and self._lost_best():
            trainer.say(
                f"WARNING: the weights of the best validation so far are not there any more ({self._lost_best()}); "
                "the best is chosen among the steps whose weights are"
            )

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and score of the first best validation whose weights are there, None before any."""
        return self._best_until(None)

    def _best_until(self, step: int | None) -> tuple[int, float] | None:
        known = [
            row
            for row in self.curve
            if not math.isnan(row[1]) and (step is None or row[0] <= step) and self._has(row[0])
        ]
        return max(known, key=lambda row: row[1], default=None)

    def _lost_best(self) -> str:
        """Return the best validation in words when its weights are missing, else nothing."""
        known = [row for row in self.curve if not math.isnan(row[1])]
        best = max(known, key=lambda row: row[1], default=None)
        return "" if best is None or self._has(best[0]) else f"step {best[0]}"

    def on_step_end(self, trainer: Trainer, step: int, metrics: StepMetrics) -> None:
        """Score when it is time."""
        last = step == trainer.config.steps
        if not trainer.is_main or not (last or (self.every and step % self.every == 0)):
            return
        assert isinstance(trainer.objective, TaskModel)
        scores = trainer.objective.evaluate(self.images, self.settings)
        before = self.best
        self.score = (step, scores.score)
        self.curve.append(self.score)
        # Without any score yet the weights are kept, too: there must be some to choose.
        if before is None or scores.score > before[1]:
            with atomic_path(_weights_of(self.run_dir, step)) as temporary:
                told = {"step": str(step), "score": repr(float(scores.score))}
                save_tensors(temporary, unique_state(trainer.objective), told)
        self._prune(step, trainer.saved_step)
        self._write()
        finite = {name: value for name, value in scores.values.items() if math.isfinite(value)}
        trainer.log_scalars(step, {f"val/{name}": value for name, value in finite.items()})

    def _read(self, trainer: Trainer) -> list[tuple[int, float]]:
        """Return the curve as written; where the file is damaged, what the kept weights say of it."""
        file = self.run_dir / CURVE_FILE
        if not file.is_file():
            return []
        try:
            rows = json.loads(file.read_text(encoding="utf-8"))["curve"]
            return [(int(step), math.nan if value is None else float(value)) for step, value in rows]
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            found = []
            for kept in self._kept():
                score = math.nan
                with contextlib.suppress(CheckpointError, ValueError):
                    score = float(read_metadata(kept).get("score", "nan"))
                found.append((_step_of(kept), score))
            trainer.say(
                f"WARNING: {file} is damaged; of the validations before, the best ones are known by their weights "
                f"(steps {', '.join(str(step) for step, _ in found) or 'none'})"
            )
            return found

    def _kept(self) -> list[Path]:
        """Return the files of weights, oldest first."""
        return sorted((self.run_dir / BEST_FOLDER).glob("step_????????.safetensors"))

    def _has(self, step: int) -> bool:
        return best_weights(self.run_dir, step) is not None

    def _prune(self, step: int, saved: int | None) -> None:
        """Remove all weights but the best ones, and the best until each checkpoint that the run may go on from."""
        # The one that was saved last may still be on its way to the disk.
        ends = [
            None,
            *([] if saved is None else [saved]),
            *(int(path.name.removeprefix("step_")) for path in checkpoints(self.run_dir)),
        ]
        wanted = {best[0] for end in ends if (best := self._best_until(end)) is not None}
        # Where nothing could be counted, the last weights are the ones to choose.
        wanted = wanted or {step}
        for file in self._kept():
            if _step_of(file) not in wanted:
                file.unlink(missing_ok=True)

    def _write(self) -> None:
        rows = [[step, None if math.isnan(value) else value] for step, value in self.curve]
        write_json(self.run_dir / CURVE_FILE, {"curve": rows, "best": self.best})

    def apply_best(self, model: TaskModel) -> int:
        """Load the best weights of the run into its model and return their step.

        Raises:
            CheckpointError: There are none, or they are damaged.
        """
        kept = self._kept()
        best = self.best
        # Where no validation could count anything, the last weights are the ones that were kept.
        step = best[0] if best is not None else (_step_of(kept[-1]) if kept else self.curve[-1][0])
        file = best_weights(self.run_dir, step)
        if file is None:
            raise CheckpointError("is missing", where=str(_weights_of(self.run_dir, step)), fix=_FIX)
        load_weights(model, load_tensors(file, fix=_FIX), source=str(file))
        return step


def best_weights(run_dir: Path, step: int) -> Path | None:
    """Return the file with the weights of a validation, None when they weren't kept."""
    file = _weights_of(run_dir, step)
    if file.is_file():
        return file
    former = run_dir / FORMER_FILE
    with contextlib.suppress(CheckpointError):
        if former.is_file() and read_metadata(former).get("step") == str(step):
            return former
    return None


def _weights_of(run_dir: Path, step: int) -> Path:
    return run_dir / BEST_FOLDER / f"step_{step:08d}.safetensors"


def _step_of(file: Path) -> int:
    return int(file.stem.removeprefix("step_"))


def _is_whole(file: Path, trainer: Trainer) -> bool:
    try:
        return check(file)
    except CheckpointError as error:
        trainer.say(f"WARNING: {error.where} {error.what}: removed")
        return False
