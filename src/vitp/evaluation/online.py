"""Probes while a run goes on: what the vision tower knows at each stage, without touching the training."""

from __future__ import annotations

import contextlib
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from vitp.core.errors import ConfigError, DamagedError
from vitp.core.files import atomic_path, write_text
from vitp.core.reading import lines_of
from vitp.core.tensors import load_tensors, save_tensors
from vitp.data.augment import resize_image
from vitp.data.seen import SeenBands
from vitp.data.splits import development_splits, subset
from vitp.engine.evidence import linear_cka
from vitp.engine.hooks import Hook, StepMetrics
from vitp.evaluation.features import probe_data
from vitp.evaluation.probes import probe_features
from vitp.models.backbone import frozen
from vitp.models.vision import VisionTower
from vitp.records.labels import LabelledSet

if TYPE_CHECKING:
    from vitp.engine.loop import Trainer

HISTORY_FILE = "probes.jsonl"
START_FILE = "probes_start.safetensors"


@contextlib.contextmanager
def preserve_rng() -> Iterator[None]:
    """Put the random states of Python, NumPy and torch (CPU and GPU) back afterwards."""
    python, cpu = random.getstate(), torch.get_rng_state()
    numpy_state = np.random.get_state()  # noqa: NPY002 - other libraries draw from the global one
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        if mps is not None:
            torch.mps.set_rng_state(mps)


class OnlineProbes(Hook):
    """Probes the live tower at the start, every `every` steps and at the end of a run.

    Scores on 0..1 go to `probes.jsonl` in the run folder (one row a stage: `step`, `probe/task/metric`, …,
    `probe/cka_to_start`) and to the run's curves. The run's own evidence gets the features of the same fixed
    images. Test images are not looked at: curves steer development, so they come from the validation images.

    Args:
        labelled_set: See `probe_data.development_splits`.
        every: Steps between probes; 0 probes only at the start and the end.
        tasks: See `probes.run_probes`.
        max_images: Most images of each split.
        cka_images: Number of fixed validation images for the CKA between the features now and at the start.
        seeds: Seeds by which the fitted patches are chosen; one keeps a probe short.

    Raises:
        ConfigError: The set has no probes to offer (at the start of the run).
    """

    def __init__(
        self,
        labelled_set: LabelledSet | Mapping[str, LabelledSet],
        every: int,
        *,
        tasks: Sequence[str] | Literal["auto"] = "auto",
        max_images: Mapping[str, int] | int = 200,
        cka_images: int = 64,
        seeds: Sequence[int] = (0,),
    ) -> None:
        if every < 0:
            raise ConfigError("is negative", where="probe.every", fix="choose 0 or more steps")
        self.every, self.tasks, self.seeds, self.max_images = every, tasks, tuple(seeds), max_images
        self.splits = development_splits(labelled_set)
        self.cka_images = cka_images
        self.history: list[dict[str, Any]] = []
        self._fixed_BCHW: Tensor | None = None
        self._start_ND: Tensor | None = None

    def on_start(self, trainer: Trainer) -> None:
        """Probe the weights that the run starts from; take up the history of an interrupted run."""
        if not trainer.is_main:
            return
        tower = _tower(trainer)
        self._fixed_BCHW = self._fixed_images(tower)
        trainer.evidence.features = lambda: self._features(tower)
        self._load(trainer)
        if self._start_ND is None:
            with preserve_rng():
                self._start_ND = self._features(tower)
            with atomic_path(trainer.run_dir / START_FILE) as temporary:
                save_tensors(temporary, {"features": self._start_ND})
        if not any(row["step"] == trainer.step for row in self.history):
            self.probe(trainer, trainer.step)

    def on_step_end(self, trainer: Trainer, step: int, metrics: StepMetrics) -> None:
        """Probe every `every` steps."""
        if trainer.is_main and self.every and step % self.every == 0:
            self.probe(trainer, step)

    def on_end(self, trainer: Trainer) -> None:
        """Probe the last weights, unless the last step just did."""
        if trainer.is_main and (not self.history or self.history[-1]["step"] != trainer.step):
            self.probe(trainer, trainer.step)

    def probe(self, trainer: Trainer, step: int) -> dict[str, float]:
        """Probe now; record and return `probe/task/metric` → value, those left out that aren't finite."""
        tower = _tower(trainer)
        with preserve_rng():
            data = probe_data(tower, self.splits, max_images=self.max_images)
            table = probe_features(data, tasks=self.tasks, seeds=self.seeds)
            cka = math.nan if self._start_ND is None else linear_cka(self._start_ND, self._features(tower))
        scores = {f"probe/{name}": value for name, value in table.scalars().items()} | {
            "probe/cka_to_start": cka
        }
        scores = {name: value for name, value in scores.items() if math.isfinite(value)}
        self.history.append({"step": step, **scores})
        self.score = (step, table.main)
        write_text(trainer.run_dir / HISTORY_FILE, "".join(json.dumps(row) + "\n" for row in self.history))
        trainer.log_scalars(step, scores)
        return scores

    def _load(self, trainer: Trainer) -> None:
        """Take up history and start of an interrupted run; rows past the resumed step are forgotten."""
        run_dir, step = trainer.run_dir, trainer.step
        if not step:
            return
        if (run_dir / HISTORY_FILE).exists():
            lines = lines_of((run_dir / HISTORY_FILE).read_text(encoding="utf-8", errors="replace"))
            self.history = [row for row in map(_row, lines) if row is not None and row["step"] <= step]
        if (run_dir / START_FILE).exists():
            try:
                self._start_ND = load_tensors(run_dir / START_FILE)["features"]
            except DamagedError as error:
                (run_dir / START_FILE).unlink()
                trainer.say(
                    f"WARNING: {error.where} {error.what}: features are compared with those of step {step}"
                )

    def _fixed_images(self, tower: VisionTower) -> Tensor:
        images = subset(self.splits["test"], self.cka_images)
        seen = SeenBands.by(tower.in_channels, images)
        arrays = [
            resize_image(np.asarray(seen.load(images.items[index].image)), tower.image_size)
            for index in range(len(images))
        ]
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)

    def _features(self, tower: VisionTower) -> Tensor:
        """Return (n, D) pooled features of the fixed images."""
        assert self._fixed_BCHW is not None
        device = next(tower.parameters()).device
        with frozen(tower):
            parts = [
                tower.forward_tokens(tower.normalize(chunk.to(device))).mean(1).float().cpu()
                for chunk in torch.split(self._fixed_BCHW, 32)
            ]
        return torch.cat(parts)


def _row(line: str) -> dict[str, Any] | None:
    """Return a row of the history, None where the line is damaged."""
    try:
        row = json.loads(line)
        return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None
    except (ValueError, RecursionError):
        return None


def _tower(trainer: Trainer) -> VisionTower:
    tower = trainer.objective.vision_tower
    if not isinstance(tower, VisionTower):
        raise ConfigError(
            f"a {type(tower).__name__} can't be probed", where="probes", fix="leave the probes out"
        )
    return tower
