"""Finetuned models on disk: `RUN/model` with architecture, classes, weights and how it is to be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitp.checkpoints.bands import check_kernel
from vitp.checkpoints.description import CONFIG, is_task_config, read_config
from vitp.checkpoints.tensors import WEIGHTS
from vitp.core.config import make_config
from vitp.core.errors import CheckpointError
from vitp.core.reading import no_such
from vitp.core.tensors import load_tensors, load_weights
from vitp.models.foreign import described_by
from vitp.models.resample import KERNEL
from vitp.tasks.base import TASK_FORMAT, InputSize, TaskModel, TestSettings
from vitp.tasks.build import NeckSettings, build_model, empty_backbone


def model_folder(path: str | Path) -> Path:
    """Return the folder of a finetuned model: the one that is named, or `model/` of a run.

    Raises:
        CheckpointError: There is none.
    """
    for folder in (Path(path) / "model", Path(path)):
        if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
            return folder
    raise CheckpointError(
        no_such(path) or "holds no finetuned model",
        where=str(path),
        fix=f"name a run of `vitp finetune` that has finished, or a folder with {CONFIG} and {WEIGHTS}",
    )


def is_task_model(path: str | Path) -> bool:
    """Return whether a run or folder holds a finetuned model, be it broken."""
    try:
        return is_task_config(read_config(model_folder(path)))
    except CheckpointError:
        return False


def task_description(folder: Path) -> dict[str, Any]:
    """Return what `config.json` says.

    Raises:
        CheckpointError: It isn't the configuration of a finetuned model.
    """
    description = read_config(folder)
    if description.get("format") != TASK_FORMAT:
        raise CheckpointError(
            "is not the configuration of a finetuned model",
            where=str(folder / CONFIG),
            fix="name a run of `vitp finetune`; pretrained backbones are finetuned first",
        )
    return description


def load_task(path: str | Path) -> TaskModel:
    """Return the finetuned model of a run or model folder, in eval mode on the CPU.

    Raises:
        CheckpointError: There is none, a file is broken, or weights don't fit (with a report name by name).
    """
    folder = model_folder(path)
    description = task_description(folder)
    with described_by(folder / CONFIG):
        task, classes = description["task"], description["classes"]
        model = build_model(
            task,
            empty_backbone(description["backbone"]),
            classes,
            make_config(NeckSettings, description["neck"], where="neck"),
            description["head"],
        )
        model.input_size = make_config(InputSize, description.get("input", {}), where="input")
        # For its errors alone, which are told as the file's.
        stated_settings(description)
    model.description = {
        key: value for key, value in description.items() if key not in ("format", "task", "classes")
    }
    weights, where = load_tensors(folder / WEIGHTS), str(folder / WEIGHTS)
    for name, tensor in weights.items():
        if name.endswith(KERNEL):
            check_kernel(tensor, model.in_channels, where=where)
    load_weights(model, weights, source=where)
    return model.eval()


def stated_settings(description: dict[str, Any]) -> TestSettings:
    """Return how a model's description wants it to be used."""
    return make_config(TestSettings, dict(description.get("test", {})), where="test")
