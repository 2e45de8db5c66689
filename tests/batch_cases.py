"""The batches of every objective and every task over tiny labelled images: for tests that hold for all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.objective_toys import VISION, labelled_folder
from vitp.data.batches import SampledBatches
from vitp.data.formats.pixel_masks import ChangeFile, MaskFile
from vitp.objectives import SETTINGS
from vitp.records.labels import LabelledImage, LabelledSet, ObjectLabel
from vitp.runs.pretrain import PretrainConfig, build
from vitp.tasks.batches import task_batches
from vitp.tasks.build import TASK_MODELS, task_of
from vitp.tasks.data import LabelReader

OBJECTIVES = tuple(name for name in SETTINGS if name != "joint")  # whose batches are those of others
TASKS = tuple(TASK_MODELS)
LANGUAGE = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 512,
}


def pretraining_folder(path: Path) -> Path:
    """A compiled folder with every kind of label."""
    return labelled_folder(path / "toy")


def objective_batches(
    objective: str, folder: Path, *, global_batch: int = 4, micro_batches: int = 1, **sections: Any
) -> SampledBatches[Any]:
    """The batches of a run over a folder; `sections` are further ones of its configuration."""
    values: dict[str, Any] = {
        "objective": objective,
        "data": {"mixture": [str(folder)], "global_batch": global_batch},
        "train": {"steps": 2, "micro_batches": micro_batches},
        **sections,
    }
    vision = VISION.model_dump(mode="json")
    if objective == "vitp":
        language = {"model_type": "qwen2", "arguments": LANGUAGE}
        scratch = {"vision": vision, "language": language, "shuffle": 1, "template": "micro"}
        values["model"] = {"init": "scratch", "vocabulary": 300, "scratch": scratch}
    else:
        values["model"] = {"init": "random", "vision": vision}
    source = build(PretrainConfig.model_validate(values)).source
    assert isinstance(source, SampledBatches)
    return source


def save(path: Path, pixels: np.ndarray) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return str(path)


def task_set(folder: Path, side: int = 16) -> LabelledSet:
    """Four images with every kind of label, in files."""
    rng = np.random.default_rng(0)
    box = ObjectLabel("ship", (2.0, 2.0, 9.0, 9.0), polygons=((2.0, 2.0, 9.0, 2.0, 9.0, 9.0),))
    items = []
    for number in range(4):
        image = save(folder / "images" / f"{number}.png", rng.integers(0, 255, (side, side, 3)))
        mask = save(folder / "masks" / f"{number}.png", rng.integers(0, 2, (side, side)))
        change = save(folder / "change" / f"{number}.png", rng.integers(0, 2, (side, side)) * 255)
        items.append(
            LabelledImage(
                id=str(number),
                image=image,
                width=side,
                height=side,
                objects=(box,),
                scene="port",
                semantic=MaskFile(mask, ((0, 0), (1, 1))),
                second_image=image,
                change=ChangeFile(change),
            )
        )
    return LabelledSet("toy", items, ("ship", "car"), ("port", "field"), ("sea", "land"))


def task_batches_of(
    task: str, labelled: LabelledSet, *, batch_size: int = 2, micro_batches: int = 1, **head: Any
) -> SampledBatches[Any, Any]:
    """The batches of a finetuning on a set; `head` are settings of the head that choose the labels."""
    kind = task_of(task).labels(head)
    return task_batches(LabelReader(labelled, kind), batch_size, 0, micro_batches=micro_batches)
