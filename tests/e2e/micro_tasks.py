"""Finetunings of micro models on generated scenes, one of each task: seconds on one core."""

from __future__ import annotations

from typing import Any

from vitp.core.config import make_config
from vitp.runs.finetune import FinetuneConfig

SIZE = 64
VISION = {"arguments": {"embed_dim": 48, "depth": 2, "num_heads": 2, "patch_size": 8}, "image_size": SIZE}
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


def micro_config(task: str) -> FinetuneConfig:
    """Return a finetuning of a ViT of two layers on generated scenes of 64 px."""
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
            "root": "port",
            "format": "scenes",
            "options": options,
            "global_batch": 4,
            "resize": {"mode": "fixed", "size": SIZE},
        },
        "train": {"steps": 40, "val_every": 0, "save_every": 1000, "threads": 1, **own.get("train", {})},
    }
    return make_config(FinetuneConfig, values)
