"""Probes during a run, through the engine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from vitp.engine.config import OptimSettings, TrainSettings
from vitp.engine.hooks import Hook
from vitp.engine.loop import Trainer
from vitp.evaluation.online import OnlineProbes, preserve_rng
from vitp.models.vision import VisionSettings, VisionTower
from vitp.objectives.dense import DenseObjective, dense_batches
from vitp.records.labels import IGNORE, LabelledImage, LabelledSet

COLOURS = np.array([[220, 40, 40], [40, 220, 40], [40, 40, 220]])
QUIET = Console(quiet=True)


def tiny_tower(drop_path: float = 0.0) -> VisionTower:
    torch.manual_seed(0)
    arguments = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}
    return VisionTower(VisionSettings(arguments=arguments, image_size=32), drop_path=drop_path)


@pytest.fixture(scope="module")
def coloured_set(tmp_path_factory: pytest.TempPathFactory) -> LabelledSet:
    """Forty images of 4 × 4 fields with the colour of their class; the third class is in no test image."""
    folder = tmp_path_factory.mktemp("coloured")
    items = []
    for index in range(40):
        rng = np.random.default_rng(index)
        split = "train" if index < 20 else "val" if index < 28 else "test"
        mask = np.kron(rng.integers(0, 2 if split == "test" else 3, (4, 4)), np.ones((8, 8))).astype(np.uint8)
        image = (COLOURS[mask] + rng.normal(0, 10, (32, 32, 3))).clip(0, 255).astype(np.uint8)
        mask[:2] = IGNORE
        Image.fromarray(image).save(folder / f"{index}.png")
        items.append(
            LabelledImage(
                str(index), str(folder / f"{index}.png"), 32, 32, split, semantic=lambda mask=mask: mask
            )
        )
    return LabelledSet("coloured", items, semantic_classes=("red", "green", "blue"))


def train(
    source_set: LabelledSet, run_dir: Path, hooks: tuple[Hook, ...], *, steps: int = 4, resume: bool = False
) -> dict:
    objective = DenseObjective(tiny_tower(drop_path=0.3), source_set.semantic_classes)
    trainer = Trainer(
        objective,
        dense_batches(source_set.split("train"), 8, 0, size=32),
        OptimSettings(lr=1e-3),
        TrainSettings(steps=steps, save_every=2, num_workers=0, device="cpu", deterministic=True),
        run_dir,
        hooks=hooks,
        console=QUIET,
        resume=resume,
    )
    result = trainer.train()
    return {"state": objective.state_dict(), "evidence": result.evidence}


def test_probes_leave_training_bit_identical(coloured_set: LabelledSet, tmp_path: Path) -> None:
    plain = train(coloured_set, tmp_path / "plain", ())
    probes = OnlineProbes(coloured_set, 2, max_images=4, cka_images=4)
    watched = train(coloured_set, tmp_path / "watched", (probes,))
    assert all(torch.equal(plain["state"][name], value) for name, value in watched["state"].items())
    rows = [json.loads(line) for line in (tmp_path / "watched" / "probes.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 2, 4] and rows == probes.history
    assert rows[0]["probe/cka_to_start"] == pytest.approx(1.0, abs=1e-6)
    assert 0 < rows[2]["probe/cka_to_start"] < 1
    assert 0.3 < rows[0]["probe/patches_linear/patch_mIoU"] <= 1
    assert watched["evidence"]["cka"] == pytest.approx(rows[2]["probe/cka_to_start"], abs=1e-6)
    logged = [json.loads(line) for line in (tmp_path / "watched" / "metrics.jsonl").read_text().splitlines()]
    assert sum("probe/patches_linear/patch_mIoU" in row for row in logged) == 3


def test_history_goes_on_after_an_interrupt(coloured_set: LabelledSet, tmp_path: Path) -> None:
    straight = OnlineProbes(coloured_set, 2, max_images=4, cka_images=4)
    train(coloured_set, tmp_path / "straight", (straight,))

    class Crash(Hook):
        def on_step_end(self, trainer: Trainer, step: int, metrics: object) -> None:
            if step == 4:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(
            coloured_set,
            tmp_path / "cut",
            (OnlineProbes(coloured_set, 2, max_images=4, cka_images=4), Crash()),
        )
    resumed = OnlineProbes(coloured_set, 2, max_images=4, cka_images=4)
    train(coloured_set, tmp_path / "cut", (resumed,), resume=True)
    assert resumed.history == straight.history


def test_preserve_rng_gives_all_three_generators_back() -> None:
    import random

    def numbers() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    expected = numbers()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    with preserve_rng():
        numbers()
    assert numbers() == expected
