"""Visual Instruction Pretraining: from labels to a better vision transformer.

The names below are imported when they are first used, so that `import vitp` takes no time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vitp.version import __version__

if TYPE_CHECKING:
    from vitp.ask import Assistant
    from vitp.data.compile import compile_labels
    from vitp.data.records import InstructionRecord, Turn
    from vitp.evaluation.probes import run_probes
    from vitp.export import export_backbone, load_backbone, verify_export
    from vitp.image_pretrain import ImagePretrainConfig, run_image_pretraining
    from vitp.models.backbone import Backbone
    from vitp.models.vision import VisionTower
    from vitp.objectives.base import Objective
    from vitp.pretrain import PretrainConfig, run_pretraining
    from vitp.pretrained import load_vlm, save_vlm
    from vitp.recipes.paradigms import starter_config
    from vitp.tasks.finetune import run_finetune
    from vitp.tasks.runs import load_task

_HOMES = {
    "Assistant": "vitp.ask",
    "Backbone": "vitp.models.backbone",
    "ImagePretrainConfig": "vitp.image_pretrain",
    "InstructionRecord": "vitp.data.records",
    "Objective": "vitp.objectives.base",
    "PretrainConfig": "vitp.pretrain",
    "Turn": "vitp.data.records",
    "VisionTower": "vitp.models.vision",
    "compile_labels": "vitp.data.compile",
    "export_backbone": "vitp.export",
    "load_backbone": "vitp.export",
    "load_task": "vitp.tasks.runs",
    "load_vlm": "vitp.pretrained",
    "run_finetune": "vitp.tasks.finetune",
    "run_image_pretraining": "vitp.image_pretrain",
    "run_pretraining": "vitp.pretrain",
    "run_probes": "vitp.evaluation.probes",
    "save_vlm": "vitp.pretrained",
    "starter_config": "vitp.recipes.paradigms",
    "verify_export": "vitp.export",
}

__all__ = [
    "Assistant",
    "Backbone",
    "ImagePretrainConfig",
    "InstructionRecord",
    "Objective",
    "PretrainConfig",
    "Turn",
    "VisionTower",
    "__version__",
    "compile_labels",
    "export_backbone",
    "load_backbone",
    "load_task",
    "load_vlm",
    "run_finetune",
    "run_image_pretraining",
    "run_pretraining",
    "run_probes",
    "save_vlm",
    "starter_config",
    "verify_export",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'vitp' has no attribute {name!r}")
