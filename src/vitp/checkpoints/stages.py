"""Hierarchical networks as a folder that timm reads: no export of vitp's own, whose contract is one grid of tokens."""

from __future__ import annotations

from pathlib import Path

import timm
from torch import nn

from vitp.checkpoints.description import CONFIG
from vitp.checkpoints.tensors import WEIGHTS
from vitp.core.files import write_json
from vitp.core.tensors import save_tensors
from vitp.models.timm_backbone import TimmStages


def write_stages(folder: Path, backbone: TimmStages) -> None:
    """Write `model.safetensors` and `config.json`, which `timm.create_model("local-dir:FOLDER")` loads.

    `vitp finetune` takes the file as `backbone.weights` beside `backbone.init: timm:NAME`.

    Args:
        folder: Existing or new.
        backbone: Weights are stored in float32.
    """
    config, size = backbone.config, backbone.image_size[0]
    name = config.architecture.split(".")[0]
    arguments = {
        **config.arguments,
        **({} if backbone.in_channels is None else {"in_chans": backbone.num_channels}),
    }
    # With the norm that timm's classifier would have, at its neutral weights: without it timm refuses the file.
    whole: nn.Module = timm.create_model(name, num_classes=0, **arguments)
    weights = whole.state_dict() | backbone.model.state_dict()
    folder.mkdir(parents=True, exist_ok=True)
    plain = {name: t.detach().cpu().contiguous() for name, t in weights.items()}
    plain = {name: t.float() if t.is_floating_point() else t for name, t in plain.items()}
    save_tensors(folder / WEIGHTS, plain, metadata={"format": "pt"})
    published = {
        "input_size": [backbone.num_channels, size, size],
        "mean": list(backbone.mean),
        "std": list(backbone.std),
        "num_classes": 0,
    }
    values = {"architecture": name, "num_classes": 0, "model_args": arguments, "pretrained_cfg": published}
    write_json(folder / CONFIG, values)
