"""What the two pretraining runs of the paper share: settings, and the mixture file over prepared sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitp.core.errors import ConfigError
from vitp.engine.config import OptimConfig, TrainConfig
from vitp.models.vrl import VRLConfig
from vitp.objectives.packed_records import SequenceConfig
from vitp.objectives.settings import DataSettings, ModelSettings
from vitp.objectives.vitp import ViTPSettings
from vitp.recipes.paper.tables import PRETRAINING, PretrainingSet
from vitp.runs.pretrain import PretrainConfig

ANNOTATION = "train.jsonl"
"""What `vitp data prepare` writes for a pretraining set."""


def pretraining(mixture: str, *, init: str, gpus: int, as_published: bool) -> PretrainConfig:
    """Return the paper's pretraining over a mixture file.

    Args:
        mixture: File that `mixture_table` describes.
        init: The general vision-language model to start from.
        gpus: How many share a batch; each takes four records at once, as published.
        as_published: What the authors' code does where it differs from the paper: tokens are dropped in a quarter of
            the steps, and nothing is packed.

    Raises:
        ConfigError: The batch can't be shared evenly.
    """
    facts = PRETRAINING
    if gpus < 1 or facts.global_batch % (gpus * facts.batch_per_gpu):
        raise ConfigError(
            f"a batch of {facts.global_batch} can't be shared by {gpus} GPUs with {facts.batch_per_gpu} records each",
            where="gpus",
            fix="choose 1, 2, 4, 8, 16 or 32",
        )
    return PretrainConfig(
        objective=ViTPSettings(
            vrl=VRLConfig(
                ratio=facts.vrl_ratio, probability=facts.published_vrl_probability if as_published else 1.0
            )
        ),
        model=ModelSettings(init=init, drop_path=facts.drop_path, gradient_checkpointing=True),
        data=DataSettings(
            mixture=[mixture],
            global_batch=facts.global_batch,
            sequence=SequenceConfig(
                max_length=facts.max_length, max_tiles=facts.max_tiles, pack=not as_published
            ),
        ),
        optim=OptimConfig(
            lr=facts.lr,
            weight_decay=facts.weight_decay,
            warmup_ratio=facts.warmup_ratio,
            schedule=facts.schedule,
        ),
        train=TrainConfig(
            steps=facts.steps,
            micro_batches=facts.global_batch // (gpus * facts.batch_per_gpu),
            save_every=500,
            num_workers=8,
            must_train=("vision tower", "projector", "language model"),
        ),
    )


def mixture_table(sets: Sequence[PretrainingSet], root: Path, *, available: bool = False) -> dict[str, Any]:
    """Return a mixture over the folders that `vitp data prepare NAME --out ROOT/NAME` made.

    Args:
        sets: Rows of the paper's table.
        root: Holds one folder a set.
        available: Leave out the sets that are missing.

    Raises:
        ConfigError: A set is missing, or all are.
    """
    there = [one for one in sets if (root / one.name / ANNOTATION).is_file()]
    missing = [one for one in sets if one not in there]
    if missing and not (available and there):
        raise ConfigError(
            f"{len(missing)} of {len(sets)} sets are missing, the first is {missing[0].title}",
            where=str(root / missing[0].name / ANNOTATION),
            fix=f"make it with `vitp data prepare {missing[0].name} --root DOWNLOAD --out {root / missing[0].name}`"
            + ("" if available or not there else ", or train on what is there with --available"),
        )
    return {one.name: _entry(one, root) for one in there}


def _entry(one: PretrainingSet, root: Path) -> dict[str, Any]:
    folder = (root / one.name).resolve()
    entry: dict[str, Any] = {
        "root": str(folder),
        "annotation": str(folder / ANNOTATION),
        "data_augment": False,
        "repeat_time": one.rate,
    }
    if one.max_tiles is not None:
        entry["max_dynamic_patch"] = one.max_tiles
    return entry
