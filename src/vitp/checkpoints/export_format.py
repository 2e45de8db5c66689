"""The folder of an exported backbone: what is in it, how it is written and read.

    backbone/
        model.safetensors               weights under timm's names; the contract in its metadata
        config.json                     what `timm.create_model("local-dir:…")` and `AutoModel` read
        vitp_backbone.json              description: contract, digests, provenance
        check/test_vectors.safetensors  two images and the features they must give
        README.md                       model card

Shapes: B images, N patch tokens, D width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from vitp.checkpoints.card import FORMAT, BackboneDescription, Provenance, model_card
from vitp.checkpoints.pretrained import load_weights, read_weights
from vitp.core.errors import CheckpointError
from vitp.core.files import write_json, write_text
from vitp.core.reading import parse_json, read_text
from vitp.core.sealed import read_metadata
from vitp.core.tensors import save_tensors
from vitp.core.version import __version__
from vitp.models.foreign import described_by
from vitp.models.vision import VisionTower

WEIGHTS = "model.safetensors"
TIMM_CONFIG = "config.json"
DESCRIPTION = "vitp_backbone.json"
# In a folder of its own: timm 1.0.20 to 1.0.24 fails on two .safetensors files beside each other.
TEST_VECTORS = "check/test_vectors.safetensors"
CARD = "README.md"
FILES = (WEIGHTS, TIMM_CONFIG, DESCRIPTION, TEST_VECTORS, CARD)


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
        folder: Where to. `vitp.checkpoints.export.export_backbone` makes it appear only when it is whole.
        tower: The tower; weights are stored in float32.
        provenance: Where the weights come from.
        extra: More lines for the card.
        name: What the card calls the folder, when it will be renamed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {n: t.detach().cpu().float().contiguous() for n, t in tower.model.state_dict().items()}
    description = _describe(tower, weights, provenance, dict(extra or {}))
    save_tensors(
        folder / WEIGHTS,
        weights,
        metadata={
            "format": "pt",
            "vitp": FORMAT,
            "vitp_version": __version__,
            "contract": json.dumps(description.contract()),
            "provenance": provenance.model_dump_json(exclude={"configuration"}, exclude_none=True),
        },
    )
    write_json(folder / TIMM_CONFIG, timm_config(tower))
    write_json(folder / DESCRIPTION, description.model_dump(mode="json"))
    (folder / TEST_VECTORS).parent.mkdir(exist_ok=True)
    save_tensors(
        folder / TEST_VECTORS, make_test_vectors(tower), metadata={"middle_layer": str(middle_layer(tower))}
    )
    write_text(folder / CARD, model_card(description, name or folder.name))
    return description


def read_description(folder: Path) -> BackboneDescription:
    """Return what `vitp_backbone.json` says.

    Raises:
        CheckpointError: The file is missing or isn't a description.
    """
    path = folder / DESCRIPTION
    try:
        return BackboneDescription.model_validate(parse_json(read_text(path)))
    except FileNotFoundError as error:
        raise CheckpointError("is missing", where=str(path), fix="export the backbone anew") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(
            f"is no description of a backbone ({field}: {first['msg']})",
            where=str(path),
            fix="export it anew",
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"can't be read ({error})", where=str(path), fix="export it anew") from error


def read_backbone(folder: Path) -> VisionTower:
    """Return the tower of an exported folder, in eval mode.

    Raises:
        CheckpointError: A file is missing or broken, names or shapes don't fit, the two places that state
            the contract differ, or weights aren't those that were exported.
    """
    description = read_description(folder)
    path = folder / WEIGHTS
    weights = read_weights(path)
    check_contract(description, path)
    with described_by(folder / DESCRIPTION):
        tower = VisionTower(description.vision)
    load_weights(tower.model, weights, where=str(path))
    check_digests(description, weights, path)
    return tower.eval()


def check_contract(description: BackboneDescription, weights_file: Path) -> None:
    """Compare the contract inside the weights file with the description's.

    Raises:
        CheckpointError: They differ, or the file states none.
    """
    try:
        inside = dict(parse_json(read_metadata(weights_file)["contract"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            "states no contract (normalisation, size, hash)", where=str(weights_file), fix="export it anew"
        ) from error
    for key, value in description.contract().items():
        if inside.get(key) != value:
            raise CheckpointError(
                f"says {key} {inside.get(key)}, but {DESCRIPTION} says {value}",
                where=str(weights_file),
                fix="one of the files was changed; export the backbone anew",
            )


def check_digests(description: BackboneDescription, weights: Mapping[str, Tensor], path: Path) -> None:
    """Compare weights with the digests of the description.

    Raises:
        CheckpointError: With the names of the tensors that differ, or because the digests themselves were
            changed.
    """
    digests = tensor_digests(weights)
    changed = [name for name, digest in digests.items() if description.tensors.get(name) != digest]
    if changed:
        raise CheckpointError(
            f"{len(changed)} tensors are not those that were exported ({', '.join(changed[:3])}"
            f"{', …' if len(changed) > 3 else ''})",
            where=str(path),
            fix="copy the file again or export it anew",
        )
    if (actual := content_hash(digests)) != description.sha256:
        raise CheckpointError(
            f"has the hash {actual[:12]}…, but {DESCRIPTION} says {description.sha256[:12]}…",
            where=str(path),
            fix="copy the folder again or export it anew",
        )


def tensor_digests(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Return name → SHA-256 of type, shape and bytes."""
    digests = {}
    for name, tensor in weights.items():
        digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        digests[name] = digest.hexdigest()
    return digests


def content_hash(digests: Mapping[str, str]) -> str:
    """Return one SHA-256 for named tensors: independent of their order, of metadata and of the file format."""
    return hashlib.sha256("".join(f"{n} {d}\n" for n, d in sorted(digests.items())).encode()).hexdigest()


def timm_config(tower: VisionTower) -> dict[str, Any]:
    """Return the `config.json` that timm and transformers read.

    `num_classes` stands at the top only: transformers passes it beside `model_args`, twice would be an error.
    """
    config, size = tower.config, tower.image_size[0]
    arguments = {**config.arguments, "img_size": size, "dynamic_img_size": True, "global_pool": ""}
    if isinstance(tower.model.fc_norm, nn.Identity):
        # Else timm would look for the final norm behind the pooling as soon as a user asks for
        # global_pool="avg", and the weights would no longer fit.
        arguments.setdefault("fc_norm", False)
    return {
        "architecture": config.architecture,
        "num_classes": 0,
        "num_features": tower.width,
        "global_pool": "",
        "model_args": arguments,
        "pretrained_cfg": {
            "tag": "vitp",
            "custom_load": False,
            "input_size": [3, size, size],
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": list(config.mean),
            "std": list(config.std),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def middle_layer(tower: VisionTower) -> int:
    """Return the layer whose features the test vectors hold beside the last one's."""
    return (tower.num_layers - 1) // 2


@torch.no_grad()
def make_test_vectors(tower: VisionTower) -> dict[str, Tensor]:
    """Return two images and their features.

    Returns:
        `images` (2, 3, H, W) uint8; `last` and `middle` (2, N, D) float32 patch tokens, row by row.
    """
    images_BCHW = _test_images(tower.image_size[0])
    last_BND, middle_BND = patch_features(tower, images_BCHW)
    return {"images": images_BCHW, "last": last_BND, "middle": middle_BND}


@torch.no_grad()
def patch_features(tower: VisionTower, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Return the last and the middle layer's patch tokens (B, N, D) of uint8 images, computed in float32 on the CPU."""
    was_training, device = tower.training, next(tower.parameters()).device
    tower.to("cpu").eval()
    try:
        maps = tower.forward_features(tower.normalize(images_BCHW), layers=(-1, middle_layer(tower)))
    finally:
        tower.to(device).train(was_training)
    last_BND, middle_BND = (m.float().flatten(2).transpose(1, 2).contiguous() for m in maps)
    return last_BND, middle_BND


def _test_images(size: int) -> Tensor:
    """Waves of several scales, and noise: the first answers to geometry, the second to every weight."""
    y, x = np.mgrid[0:size, 0:size] / size
    waves = np.stack([np.sin((3 + c) * np.pi * x) * np.cos((5 - c) * np.pi * y) for c in range(3)])
    smooth = np.rint((waves + 1) * 127.5).astype(np.uint8)
    noise = np.random.default_rng(20).integers(0, 256, size=(3, size, size), dtype=np.uint8)
    return torch.from_numpy(np.stack([smooth, noise]))


def _describe(
    tower: VisionTower, weights: Mapping[str, Tensor], provenance: Provenance, extra: dict[str, Any]
) -> BackboneDescription:
    digests = tensor_digests(weights)
    return BackboneDescription(
        vitp_version=__version__,
        created=datetime.now(UTC).strftime("%Y-%m-%d"),
        vision=tower.config,
        patch_size=tower.patch_size,
        grid=tower.grid,
        prefix_tokens=tower.model.num_prefix_tokens,
        width=tower.width,
        layers=tower.num_layers,
        parameters=sum(t.numel() for t in weights.values()),
        sha256=content_hash(digests),
        tensors=digests,
        provenance=provenance,
        extra=extra,
    )
