"""Finetunings of micro models on generated scenes, one of each task: seconds on one core."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from vitp.core.config import make_config
from vitp.data.formats.vitp_labels import Roots, write_compiled
from vitp.records.labels import LabelledImage, LabelledSet, ObjectLabel
from vitp.runs.finetune import FinetuneConfig

SIZE = 64
VISION = {
    "arguments": {"embed_dim": 48, "depth": 2, "num_heads": 2, "patch_size": 8},
    "image_size": SIZE,
    "weights_of": "someone/vit",
    "licence": "dinov3-license",
}
LEAST = 0.02
"""Score from which on a micro model's objects are compared."""

DETECTOR = {
    "width": 32,
    "proposals": {"keep": [200, 100], "keep_before": [200, 100], "anchor_scales": [2]},
    "box": {"hidden": 64, "samples": 64, "detections": 30, "score_threshold": LEAST, "canonical_size": 56},
}
TASKS: dict[str, dict[str, Any]] = {
    "classification": {"head": {"multi_label": True}, "train": {"steps": 60}},
    "segmentation": {"head": {"kind": "upernet", "width": 32}, "neck": {"kind": "adapter"}},
    "change": {"head": {"kind": "fpn", "width": 32}, "data": {"options": {"pairs": True}}},
    "detection": {"head": DETECTOR},
    "instance": {"head": {**DETECTOR, "mask": {"layers": 1, "width": 32, "pool_size": 7}}},
    "oriented": {"head": DETECTOR},
}


def micro_config(task: str, data: Path | None = None) -> FinetuneConfig:
    """Return a finetuning of a ViT of two layers on generated scenes of 64 px, or on `large_objects`."""
    own = TASKS[task]
    neck = {} if task == "classification" else {"neck": {"kind": "simple", "options": {"channels": 32}}}
    if own.get("neck", {}).get("kind") == "adapter":
        neck = {"neck": {"kind": "adapter", "options": {"prior_width": 32}}}
    options = {"count": 48, "size": SIZE, "val": 0.25, "test": 0.1, **own.get("data", {}).get("options", {})}
    values = {
        "task": task,
        "backbone": {"init": "random", "vision": VISION},
        "head": own["head"],
        **neck,
        "optim": {"lr": 0.003, "layer_decay": 1.0},
        "data": {
            **(
                {"root": "port", "format": "scenes", "options": options}
                if data is None
                else {"root": str(data)}
            ),
            "global_batch": 4,
            "resize": {"mode": "fixed", "size": SIZE},
        },
        "train": {
            "steps": 40 if data is None else 140 if task == "oriented" else 80,
            "val_every": 0,
            "save_every": 1000,
            "threads": 1,
            **own.get("train", {}),
        },
    }
    return make_config(FinetuneConfig, values)


BLOCKS = {"red": (220, 40, 40), "blue": (40, 60, 220)}
"""Classes of large objects, and their colours: what a micro detector learns in seconds."""


def large_objects(folder: Path, *, turned: bool, counts: tuple[int, int, int] = (32, 12, 4)) -> Path:
    """Write a labelled set of images of `SIZE` px with one or two large blocks each.

    Args:
        folder: For the set.
        turned: Whether the blocks lie at an angle.
        counts: Images to train, to compare and to test on.
    """
    rng, items = np.random.default_rng(7), []
    folder.mkdir()
    for number in range(sum(counts)):
        split = ("train",) * counts[0] + ("val",) * counts[1] + ("test",) * counts[2]
        picture = Image.fromarray(rng.integers(90, 140, (SIZE, SIZE, 3), dtype=np.uint8))
        objects = []
        for place in range(1 + number % 2):
            name = list(BLOCKS)[int(rng.integers(2))]
            sides = rng.uniform((22, 12), (28, 18))
            centre = np.array(
                [16 + 32 * (place if number % 2 else rng.uniform()), rng.uniform(18, SIZE - 18)]
            )
            angle = rng.uniform(-0.6, 0.6) if turned else 0.0
            turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
            corners = centre + np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * sides / 2 @ turn.T
            ImageDraw.Draw(picture).polygon([tuple(map(float, xy)) for xy in corners], fill=BLOCKS[name])
            quad = tuple(corners.clip(0, SIZE).ravel().tolist())
            box = (min(quad[::2]), min(quad[1::2]), max(quad[::2]), max(quad[1::2]))
            objects.append(ObjectLabel(name, box, quad, (quad,)))
        file = folder / f"{number}.png"
        picture.save(file)
        items.append(
            LabelledImage(str(number), str(file), SIZE, SIZE, split[number], str(number), tuple(objects))
        )
    write_compiled(LabelledSet("blocks", items, object_classes=tuple(BLOCKS)), Roots(folder, folder, folder))
    return folder
