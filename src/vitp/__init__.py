"""Visual Instruction Pretraining: from labels to a better vision transformer.

The names below are imported when they are first used, so that `import vitp` takes no time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vitp.core.version import __version__

if TYPE_CHECKING:
    from vitp.checkpoints.export import export_backbone
    from vitp.checkpoints.loading import load_backbone, load_vlm, random_backbone
    from vitp.checkpoints.verify import verify_export
    from vitp.checkpoints.writing import save_vlm
    from vitp.data.compile import compile_labels
    from vitp.data.formats.vitp_labels import read_compiled
    from vitp.evaluation.probes import run_probes
    from vitp.inference.ask import Assistant
    from vitp.inference.outputs import to_supervision
    from vitp.io.open_pixels import open_pixels
    from vitp.io.volumes import open_volume
    from vitp.models.backbone import Backbone
    from vitp.models.vision import VisionTower
    from vitp.objectives.base import Objective
    from vitp.recipes.paradigms import starter_config
    from vitp.records.instructions import InstructionRecord, Turn
    from vitp.runs.finetune import FinetuneConfig, run_finetune
    from vitp.runs.pretrain import ImagePretrainConfig, PretrainConfig, run_image_pretraining, run_pretraining
    from vitp.tasks.model_folder import load_task
    from vitp.tasks.predict import predict_images

_HOMES = {
    "Assistant": "vitp.inference.ask",
    "Backbone": "vitp.models.backbone",
    "FinetuneConfig": "vitp.runs.finetune",
    "ImagePretrainConfig": "vitp.runs.pretrain",
    "InstructionRecord": "vitp.records.instructions",
    "Objective": "vitp.objectives.base",
    "PretrainConfig": "vitp.runs.pretrain",
    "Turn": "vitp.records.instructions",
    "VisionTower": "vitp.models.vision",
    "compile_labels": "vitp.data.compile",
    "export_backbone": "vitp.checkpoints.export",
    "load_backbone": "vitp.checkpoints.loading",
    "load_task": "vitp.tasks.model_folder",
    "load_vlm": "vitp.checkpoints.loading",
    "open_pixels": "vitp.io.open_pixels",
    "open_volume": "vitp.io.volumes",
    "predict_images": "vitp.tasks.predict",
    "random_backbone": "vitp.checkpoints.loading",
    "read_compiled": "vitp.data.formats.vitp_labels",
    "run_finetune": "vitp.runs.finetune",
    "run_image_pretraining": "vitp.runs.pretrain",
    "run_pretraining": "vitp.runs.pretrain",
    "run_probes": "vitp.evaluation.probes",
    "save_vlm": "vitp.checkpoints.writing",
    "starter_config": "vitp.recipes.paradigms",
    "to_supervision": "vitp.inference.outputs",
    "verify_export": "vitp.checkpoints.verify",
}

__all__ = [
    "Assistant",
    "Backbone",
    "FinetuneConfig",
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
    "open_pixels",
    "open_volume",
    "predict_images",
    "random_backbone",
    "read_compiled",
    "run_finetune",
    "run_image_pretraining",
    "run_pretraining",
    "run_probes",
    "save_vlm",
    "starter_config",
    "to_supervision",
    "verify_export",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'vitp' has no attribute {name!r}")
