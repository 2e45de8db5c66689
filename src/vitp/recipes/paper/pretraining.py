"""The two pretraining runs of the paper, remote sensing and medical: lab pages, settings, and their mixture files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitp.core.errors import ConfigError
from vitp.engine.config import OptimSettings, TrainSettings
from vitp.models.compute import ComputeSettings
from vitp.models.vrl import VRLSettings
from vitp.objectives.packed_records import SequenceSettings
from vitp.objectives.settings import DataSettings, ModelSettings
from vitp.objectives.vitp import ViTPSettings
from vitp.recipes.paper.tables import PRETRAINING_FACTS, PretrainingSet
from vitp.runs.pretrain import PretrainConfig

_ANNOTATION = "train.jsonl"
"""What `vitp data prepare` writes for a pretraining set."""


def remote_sensing(
    mixture: str = "data/remote_sensing.json",
    *,
    init: str = PRETRAINING_FACTS.init,
    gpus: int = PRETRAINING_FACTS.gpus,
    as_published: bool = False,
) -> PretrainConfig:
    """ViTP on thirteen sets of aerial, satellite and SAR images, about one million records in 8,000 steps.

    Data: one folder a set below DATA, made by `vitp data prepare NAME --root DOWNLOAD --out DATA/NAME`; rates and tile
    limits come from the paper's table.
    Command: `torchrun --nproc-per-node 8 -m vitp recipes run remote_sensing --data DATA --out runs/remote_sensing`
    Hardware: the authors took 23 hours on eight A40 (48 GB), four records a GPU, accumulated four times.
    Estimates for other machines: `vitp plan remote_sensing --gpu H100:8`.
    Expected: the export, finetuned by the thirteen remote-sensing recipes, reaches their scores.

    Where paper and published code differ:
    - paper: 75 % of the image tokens are dropped in every sample; published: in a quarter of the steps, and the
      sequence is padded back to its length, so that nothing is saved. Here: every sample, and dropped tokens are not
      computed.
    - published: one choice of tokens for a whole batch; here one a sample.
    - published: records are padded to the longest of a batch; here they are packed.
    - published: weights in bf16 under DeepSpeed ZeRO-1; here fp32 weights under bf16 autocast.
    - published: four records a GPU at once, all activations computed again, nothing compiled; here micro-batches and
      recomputation are chosen for the GPU's memory, and the ViT's blocks are compiled. The batch of a step stays.
    - `--as-published` sets the first, the third and the last as the authors' code has them (dropped tokens still cost
      nothing).
    - sizes and rates of some sets: `vitp recipes show remote_sensing`.
    """
    return _pretraining(mixture, init=init, gpus=gpus, as_published=as_published)


def medical(
    mixture: str = "data/medical.json",
    *,
    init: str = PRETRAINING_FACTS.init,
    gpus: int = PRETRAINING_FACTS.gpus,
    as_published: bool = False,
) -> PretrainConfig:
    """ViTP on ten medical sets, about one million records in 8,000 steps.

    Data: one folder a set below DATA, made by `vitp data prepare NAME --root DOWNLOAD --out DATA/NAME`; rates and tile
    limits come from the paper's table.
    Command: `torchrun --nproc-per-node 8 -m vitp recipes run medical --data DATA --out runs/medical`
    Hardware: eight A40 (48 GB), four records a GPU, accumulated four times; its hours are not published.
    Estimates: `vitp plan medical --gpu H100:8`.
    Expected: the export, finetuned by amos2022, brats2021 and covidquex, reaches their scores.

    Where paper and published code differ: as in remote_sensing. The published file reads the three Quilt sets with
    tiles of 224 px; here all tiles are of the model's size.
    """
    return _pretraining(mixture, init=init, gpus=gpus, as_published=as_published)


def _pretraining(mixture: str, *, init: str, gpus: int, as_published: bool) -> PretrainConfig:
    """Return the paper's pretraining over a mixture file.

    Args:
        mixture: File that `mixture_table` describes.
        init: The general vision-language model to start from.
        gpus: How many share a batch; each takes four records at once, as published, or what its memory holds.
        as_published: What the authors' code does where it differs from the paper: tokens are dropped in a quarter of
            the steps, and nothing is packed. Every activation is computed again, and nothing is compiled.

    Raises:
        ConfigError: The batch can't be shared evenly.
    """
    facts = PRETRAINING_FACTS
    if gpus < 1 or facts.global_batch % (gpus * facts.batch_per_gpu):
        raise ConfigError(
            f"a batch of {facts.global_batch} can't be shared by {gpus} GPUs with {facts.batch_per_gpu} records each",
            where="gpus",
            fix="choose 1, 2, 4, 8, 16 or 32",
        )
    return PretrainConfig(
        objective=ViTPSettings(
            vrl=VRLSettings(
                ratio=facts.vrl_ratio, probability=facts.published_vrl_probability if as_published else 1.0
            )
        ),
        model=ModelSettings(init=init, drop_path=facts.drop_path, gradient_checkpointing=True),
        data=DataSettings(
            mixture=[mixture],
            global_batch=facts.global_batch,
            sequence=SequenceSettings(
                max_length=facts.max_length, max_tiles=facts.max_tiles, pack=not as_published
            ),
        ),
        # How fast it is computed, not what: on a GPU `auto` chooses other micro-batches, and what is recomputed.
        compute=ComputeSettings(compile="none" if as_published else "vision"),
        optim=OptimSettings(
            lr=facts.lr,
            weight_decay=facts.weight_decay,
            warmup_ratio=facts.warmup_ratio,
            schedule=facts.schedule,
        ),
        train=TrainSettings(
            steps=facts.steps,
            micro_batches=facts.global_batch // (gpus * facts.batch_per_gpu),
            batch="fixed" if as_published else "auto",
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
    there = [one for one in sets if (root / one.name / _ANNOTATION).is_file()]
    missing = [one for one in sets if one not in there]
    if missing and not (available and there):
        raise ConfigError(
            f"{len(missing)} of {len(sets)} sets are missing, the first is {missing[0].title}",
            where=str(root / missing[0].name / _ANNOTATION),
            fix=f"make it with `vitp data prepare {missing[0].name} --root DOWNLOAD --out {root / missing[0].name}`"
            + ("" if available or not there else ", or train on what is there with --available"),
        )
    table: dict[str, Any] = {}
    for one in there:
        folder = (root / one.name).resolve()
        table[one.name] = {
            "root": str(folder),
            "annotation": str(folder / _ANNOTATION),
            "data_augment": False,
            "repeat_time": one.rate,
            **({} if one.max_tiles is None else {"max_dynamic_patch": one.max_tiles}),
        }
    return table
