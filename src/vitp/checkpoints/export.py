"""Vision towers on their own, as a folder that vitp, timm and transformers read.

    backbone/
        model.safetensors               weights under timm's names; the contract in its metadata
        config.json                     what `timm.create_model("local-dir:…")` and `AutoModel` read
        vitp_backbone.json              description: contract, digests, provenance
        check/test_vectors.safetensors  two images and the features they must give
        README.md                       model card

Shapes: B images, N patch tokens, D width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.models.eva import Eva
from torch import Tensor, nn

from vitp.checkpoints.card import model_card
from vitp.checkpoints.checkpoint import provenance_of
from vitp.checkpoints.description import (
    CONFIG,
    DESCRIPTION,
    EXTRA,
    GRAPH_DESCRIPTION,
    BackboneDescription,
    Provenance,
    content_hash,
    read_config,
    tensor_digests,
)
from vitp.checkpoints.loading import load_backbone
from vitp.checkpoints.origin import warn_of_licence
from vitp.checkpoints.tensors import WEIGHTS
from vitp.core.errors import CheckpointError
from vitp.core.files import atomic_dir, write_json, write_text
from vitp.core.targets import check_folder
from vitp.core.tensors import save_tensors
from vitp.core.version import __version__
from vitp.models.adapting import ADAPT_FILE, ADAPT_FOLDER
from vitp.models.vision import VisionTower

# In a folder of its own: timm 1.0.20 to 1.0.24 fails on two .safetensors files beside each other.
TEST_VECTORS = "check/test_vectors.safetensors"
_CARD = "README.md"
EXPORT_FILES = (WEIGHTS, CONFIG, DESCRIPTION, TEST_VECTORS, _CARD)


@dataclass(frozen=True)
class ExportResult:
    """What was written.

    Attributes:
        folder: Folder of the export.
        sha256: Hash of the weights' content.
        parameters: Number of weights.
    """

    folder: Path
    sha256: str
    parameters: int

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())


def export_backbone(
    source: str | Path, out: Path, *, extra_card: Mapping[str, Any] | None = None, overwrite: bool = False
) -> ExportResult:
    """Write the vision tower of `source` into the folder `out`, which appears only when it is whole.

    Args:
        source: As `load_backbone`.
        out: New folder.
        extra_card: More lines for the model card.
        overwrite: Replace `out` when it is an older export.

    Raises:
        CheckpointError: `source` holds no usable backbone.
        VitpError: `out` exists, or can't be written.
    """
    out = Path(out)
    check_target(out, overwrite)
    tower, provenance = load_backbone(source), provenance_of(source)
    if tower.config.adapt is not None:
        raise CheckpointError(
            f"has {tower.config.adapt.kind} beside the weights of its ViT, which can't be merged into them",
            where=str(source),
            fix=f"finetune or probe it as it is, or take {ADAPT_FOLDER}/{ADAPT_FILE} of its model onto the ViT it was trained on "
            "(model.adapt.init)",
        )
    warn_of_licence(tower.config)
    with atomic_dir(out) as temporary:
        name = out.resolve().name
        description = write_backbone(temporary, tower, provenance, extra=extra_card, name=name)
    return ExportResult(out, description.sha256, description.parameters)


def check_target(out: Path, overwrite: bool) -> None:
    """Do nothing when a folder may be written to.

    Raises:
        VitpError: It exists, and isn't to be overwritten or isn't vitp's.
    """
    check_folder(out, _is_export, what="an export", overwrite=overwrite)


def _is_export(folder: Path) -> bool:
    if any((folder / name).is_file() for name in (DESCRIPTION, GRAPH_DESCRIPTION)):
        return True
    try:
        config = read_config(folder) if folder.is_dir() else {}
    except CheckpointError:
        return False
    # What is ours may be replaced, so a `model` in the configuration isn't enough.
    return EXTRA in config or str(config.get("format", "")).startswith("vitp-vlm")


def write_backbone(
    folder: Path,
    tower: VisionTower,
    provenance: Provenance,
    *,
    extra: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> BackboneDescription:
    """Write the five files into an existing or new folder.

    Args:
        folder: Where to. `export_backbone` makes it appear only when it is whole.
        tower: The tower; weights are stored in float32.
        provenance: Where the weights come from.
        extra: More lines for the card.
        name: What the card calls the folder, when it will be renamed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {n: t.detach().cpu().float().contiguous() for n, t in tower.model.state_dict().items()}
    digests = tensor_digests(weights)
    description = BackboneDescription(
        vitp_version=__version__,
        created=datetime.now(UTC).strftime("%Y-%m-%d"),
        vision=tower.config,
        patch_size=tower.patch_size,
        grid=tower.grid,
        prefix_tokens=tower.model.num_prefix_tokens,
        rotary=getattr(tower.model, "rope", None) is not None,
        width=tower.width,
        layers=tower.num_layers,
        parameters=sum(t.numel() for t in weights.values()),
        sha256=content_hash(digests),
        tensors=digests,
        provenance=provenance,
        extra=dict(extra or {}),
    )
    save_tensors(
        folder / WEIGHTS,
        weights,
        metadata={
            "format": "pt",
            "vitp": description.format,
            "vitp_version": __version__,
            "contract": json.dumps(description.contract()),
            "provenance": provenance.model_dump_json(exclude={"configuration"}, exclude_none=True),
        },
    )
    write_json(folder / CONFIG, timm_config(tower))
    write_json(folder / DESCRIPTION, description.model_dump(mode="json"))
    images_BCHW = vector_images(tower.image_size[0], tower.num_channels)
    (folder / TEST_VECTORS).parent.mkdir(exist_ok=True)
    save_tensors(
        folder / TEST_VECTORS,
        {"images": images_BCHW, **features_of(tower, images_BCHW)},
        metadata={"middle_layer": str(middle_layer(tower))},
    )
    write_text(folder / _CARD, model_card(description, name or folder.name))
    return description


def timm_config(tower: VisionTower) -> dict[str, Any]:
    """Return the `config.json` that timm and transformers read.

    `num_classes` stands at the top only: transformers passes it beside `model_args`, twice would be an error. The bands
    of a tower that has some stand under our own key, which both leave alone.
    """
    config, size, channels = tower.config, tower.image_size[0], tower.in_channels
    arguments = {**config.arguments, "img_size": size, "dynamic_img_size": True, "global_pool": ""}
    if isinstance(tower.model.fc_norm, nn.Identity):
        # Else timm would look for the final norm behind the pooling as soon as a user asks for
        # global_pool="avg", and the weights would no longer fit.
        arguments.setdefault("use_fc_norm" if isinstance(tower.model, Eva) else "fc_norm", False)
    bands: dict[str, Any] = {}
    if channels is not None:
        arguments["in_chans"] = len(channels)
        bands = {EXTRA: {"channels": channels.model_dump(mode="json")}}
    return {
        "architecture": config.architecture,
        "num_classes": 0,
        "num_features": tower.width,
        "global_pool": "",
        "model_args": arguments,
        "pretrained_cfg": {
            "tag": "vitp",
            "custom_load": False,
            "input_size": [tower.num_channels, size, size],
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": list(tower.mean),
            "std": list(tower.std),
            "num_classes": 0,
            "pool_size": None,
            # timm takes this layer of other than three channels for one that is still to be made of an RGB one: it
            # would add up the colours, or leave it at random values.
            "first_conv": "patch_embed.proj" if tower.num_channels == 3 else None,
            "classifier": "head",
        },
        **bands,
    }


def middle_layer(tower: VisionTower) -> int:
    """Return the layer whose features the test vectors hold beside the last one's."""
    return (tower.num_layers - 1) // 2


@torch.no_grad()
def features_of(tower: VisionTower, images_BCHW: Tensor) -> dict[str, Tensor]:
    """Return patch tokens of uint8 images, computed in float32 on the CPU.

    Returns:
        `last` and `middle`: (B, N, D) float32 of the last and of the middle layer, row by row.
    """
    was_training, device = tower.training, next(tower.parameters()).device
    tower.to("cpu").eval()
    try:
        maps = tower.forward_features(tower.normalize(images_BCHW), layers=(-1, middle_layer(tower)))
    finally:
        tower.to(device).train(was_training)
    last_BND, middle_BND = (m.float().flatten(2).transpose(1, 2).contiguous() for m in maps)
    return {"last": last_BND, "middle": middle_BND}


def vector_images(size: int, channels: int) -> Tensor:
    """Return the images of test vectors, (2, C, size, size) uint8.

    Waves tell the geometry, noise tells every weight.
    """
    y, x = np.mgrid[0:size, 0:size] / size
    waves = np.stack([np.sin((3 + c) * np.pi * x) * np.cos((5 - c) * np.pi * y) for c in range(channels)])
    smooth = np.rint((waves + 1) * 127.5).astype(np.uint8)
    noise = np.random.default_rng(20).integers(0, 256, size=(channels, size, size), dtype=np.uint8)
    return torch.from_numpy(np.stack([smooth, noise]))
