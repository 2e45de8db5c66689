"""A starter whose language model looks at the place that it is asked about: the packaged starter, trained on.

The packaged starter copies its grids from the cells before and doesn't look (`vitp probe starter DATA --looks`): a
language model that doesn't look at a place sends the ViT no gradient about places. What makes one look was found step
by step (`docs/log.md`): single questions about places rather than grids, in one wording with the place last, small
batches, the ViT frozen at first, and two heads that are told where to look (`objective.guide`). All 144 image tokens
are there for it.

1. `places`: twelve questions an image about cells, points and boxes, in one wording; the ViT is frozen.
2. `mixed`: all questions in one wording, those about places four times as often; everything is trained, and half of the
   images lose half of their tokens.

Command: `vitp recipes run starter-looks --out runs/looks` (resumable: run it again; `--scale 0.01` for a dry run).
Hardware and time: one CPU core, about an hour.
Result: `runs/looks/starter`, of the packaged starter's sizes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from vitp.checkpoints.loading import load_vlm
from vitp.checkpoints.writing import save_vlm
from vitp.data.batches import SampledBatches
from vitp.data.mixture import Mixture, MixtureEntry
from vitp.data.synthesis.build import QUESTION_TASKS, SynthesisConfig
from vitp.data.synthesis.scene_records import LabelledRecords
from vitp.engine.config import OptimSettings, TrainSettings
from vitp.engine.loop import Trainer
from vitp.models.vrl import VisualRobustness, VRLSettings
from vitp.objectives.guiding import GuideSettings
from vitp.objectives.packed_records import PackedRecords, SequenceSettings
from vitp.objectives.vitp import ViTPObjective
from vitp.recipes.starter import IMAGE_SIZE
from vitp.scenes import scene_set

_PLACES = ("cell", "point", "region_class")


@dataclass(frozen=True)
class LooksPlan:
    """Steps and rates of the two stages, of `batch` scenes a step."""

    seed: int = 23
    scenes: int = 100_000
    batch: int = 8
    place_steps: int = 1200
    place_lr: float = 1e-3
    mixed_steps: int = 1200
    mixed_lr: float = 3e-4
    guide: GuideSettings = field(default_factory=lambda: GuideSettings(weight=1.0))

    def scaled(self, factor: float) -> LooksPlan:
        """Return a plan with fewer or more steps."""
        places, mixed = (max(2, round(factor * number)) for number in (self.place_steps, self.mixed_steps))
        return replace(self, place_steps=places, mixed_steps=mixed)


def train_looking_starter(out: Path, plan: LooksPlan | None = None) -> Path:
    """Run the stages that `out` does not hold yet, and return the folder of the finished model."""
    plan = plan or LooksPlan()
    only = {name: float(name in _PLACES) for name in QUESTION_TASKS}
    places = SynthesisConfig(
        questions_per_image=12, object_share=0.25, tasks={**only, "cell": 8.0}, wordings=1
    )
    often = dict.fromkeys(_PLACES, 4.0) | {"oriented": 0.0, "boxes": 0.25, "grid": 0.25}
    mixed = SynthesisConfig(questions_per_image=8, object_share=0.25, tasks=often, wordings=1)
    whole, half = VRLSettings(ratio=0.0), VRLSettings(ratio=0.5, probability=0.5)
    stages: tuple[tuple[str, str, SynthesisConfig, list[str], VRLSettings, int, float], ...] = (
        ("places", "starter", places, ["vision"], whole, plan.place_steps, plan.place_lr),
        ("mixed", str(out / "places"), mixed, [], half, plan.mixed_steps, plan.mixed_lr),
    )
    for name, start, questions, freeze, drop, steps, rate in stages:
        folder = out / name
        if (folder / "done").exists():
            continue
        loaded = load_vlm(start)
        chat = loaded.chat
        scenes = scene_set("general", seed=plan.seed, count=plan.scenes, size=IMAGE_SIZE, split="train")
        records = LabelledRecords(scenes, seed=plan.seed, config=questions)
        collate = PackedRecords(
            chat,
            tile=IMAGE_SIZE,
            config=SequenceSettings(max_length=1024),
            drop=VisualRobustness(drop, plan.seed).train(),
            places=plan.guide.weight > 0,
        )
        source = SampledBatches(Mixture([MixtureEntry(records, max_tiles=1)], plan.seed), collate, plan.batch)
        train = TrainSettings(
            steps=steps, save_every=min(100, steps), keep_last=2, log_every=10, num_workers=1, seed=plan.seed
        )
        optim = OptimSettings(lr=rate, weight_decay=0.01, warmup_ratio=0.05, min_lr_ratio=0.02)
        resume = (folder / "checkpoints").is_dir()
        objective = ViTPObjective(loaded.vlm, chat, freeze=freeze, guide=plan.guide)
        Trainer(objective, source, optim, train, folder, resume=resume).train()
        (folder / "done").touch()
    loaded = load_vlm(out / "mixed")
    save_vlm(out / "starter", loaded.vlm, loaded.chat, dtype=torch.float16)
    return out / "starter"
