"""Weights under timm's names, or those of a publication that timm can convert: DINO, MAE, AugReg, SigLIP, CLIP, …

State dicts of pretraining runs hold more than a backbone, under names with a prefix: optimizer, teacher and student,
decoder, heads. `find_backbone` takes out the vision transformer, `convert_state` brings it to timm's names and sizes.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import timm
import torch
from timm.models.eva import Eva
from torch import Tensor, nn

from vitp.checkpoints.description import EXTRA
from vitp.core.errors import CheckpointError
from vitp.models.backbone import Backbone
from vitp.models.inflation import unnamed_channels
from vitp.models.timm_backbone import CLASSIFIERS, TimmSettings, timm_backbone
from vitp.models.vision import VisionSettings, VisionTower
from vitp.records.channels import Channels

_CONTAINERS = (
    *("teacher", "state_dict_ema", "model_ema", "state_dict", "model", "module"),
    *("student", "target_encoder", "encoder"),
)
"""Entries under which files keep their weights, the better ones first: a teacher is what DINO is used as, and the
average that JEPA calls the target encoder is its teacher."""

_MARK = "patch_embed.proj.weight"
"""A name that every ViT of timm's family has: what stands in front of it is the prefix of all."""

_PRETRAINING_ONLY = re.compile(
    r"^(decoder|mask_token$|dino_head|ibot_head|projector|predictor|projection_head)"
)


@dataclass(frozen=True)
class FoundBackbone:
    """A ViT inside of a file.

    Attributes:
        weights: Its tensors without prefix.
        place: Where they were, such as `teacher · backbone.`.
        ignored: Names in the same entry that don't belong to it.
    """

    weights: dict[str, Tensor]
    place: str
    ignored: tuple[str, ...]

    @property
    def of_a_run(self) -> bool:
        """Whether something beside the weights says that they come from self-supervised pretraining."""
        marks = ("decoder", "mask_token", "register_tokens", "teacher", "student", "dino_head", "ibot_head")
        return any(mark in name for name in (*self.weights, *self.ignored, self.place) for mark in marks)


def find_backbone(state: Mapping[str, Any], *, where: str) -> FoundBackbone | None:
    """Return the ViT in the state of a run, or None when the names are not of timm's family.

    Args:
        state: What the file holds, nested or flat.
        where: The file, for messages.

    Raises:
        CheckpointError: There are several, and none of them is a teacher.
    """
    entry, tensors = _container(state)
    if tensors is None:
        raise CheckpointError(
            "holds no named tensors",
            where=where,
            fix=f"weights are looked for at the top and under {', '.join(_CONTAINERS)}",
        )
    prefixes = sorted({name.removesuffix(_MARK) for name in tensors if name.endswith(_MARK)})
    if not prefixes:
        return None
    prefix = prefixes[0] if len(prefixes) == 1 else _teacher(prefixes, where)
    inside = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    # timm knows DINOv2's files by their mask token, and converts register tokens and gated MLPs only then.
    mask = () if any(name.startswith("decoder") for name in inside) else ("mask_token",)
    weights = {name: t for name, t in inside.items() if not _PRETRAINING_ONLY.match(name) or name in mask}
    ignored = [name for name in tensors if not name.startswith(prefix)]
    ignored += [prefix + name for name in inside if name not in weights]
    place = " · ".join(part for part in (entry, prefix) if part) or "top"
    return FoundBackbone(weights, place, tuple(ignored))


def _container(state: Mapping[str, Any]) -> tuple[str, Mapping[str, Tensor] | None]:
    """Return the path of the innermost entry that holds tensors by name, and these."""
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    # A single tensor is no model, but something that stands beside one.
    if len(tensors) > 1:
        return "", tensors
    for entry in _CONTAINERS:
        if isinstance(inner := state.get(entry), Mapping):
            path, found = _container(inner)
            if found is not None:
                return ".".join(part for part in (entry, path) if part), found
    return "", None


def _teacher(prefixes: list[str], where: str) -> str:
    teachers = [p for p in prefixes if "teacher" in p or "ema" in p or "target" in p]
    if len(teachers) == 1:
        return teachers[0]
    raise CheckpointError(
        f"holds {len(prefixes)} vision transformers ({', '.join(p or 'top' for p in prefixes)})",
        where=where,
        fix="save the state dict of one of them",
    )


@dataclass(frozen=True)
class TimmWeights:
    """Tensors of a file as timm's model of an architecture has them.

    Attributes:
        config: The model.
        model: It without numbers.
        weights: timm's name → tensor, position table and patch kernel at the model's sizes.
        resampled: Name → change of shape.
        ignored: Names that were left out.
        notes: Other remarks for the report.
    """

    config: TimmSettings
    model: Backbone
    weights: dict[str, Tensor]
    resampled: dict[str, str]
    ignored: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def vision(self) -> VisionSettings:
        """Settings of the model, which is a plain ViT."""
        assert isinstance(self.model, VisionTower)
        return self.model.config


def timm_config_of(
    config: Mapping[str, Any], architecture: str | None, arguments: Mapping[str, Any], *, where: str
) -> TimmSettings:
    """Return the model that a `config.json` of timm describes.

    Args:
        config: Content of the file; empty without one.
        architecture: timm's name of it, which goes first.
        arguments: Arguments of `timm.create_model`, which go before those of the file.
        where: The file or folder, for messages.

    Raises:
        CheckpointError: It has a table of positions for images that aren't square.
    """
    published = config.get("pretrained_cfg") or {}
    stated = {**(config.get("model_args") or {}), **arguments}
    size = stated.get("img_size") or (published.get("input_size") or [None])[-1]
    # What a backbone sets by itself.
    own = {"num_classes", "global_pool", "img_size", "dynamic_img_size", "pretrained", "in_chans"}
    own |= {"fc_norm", "use_fc_norm"}
    bands = (config.get(EXTRA) or {}).get("channels")
    described = TimmSettings(
        architecture=architecture or config["architecture"],
        arguments={key: value for key, value in stated.items() if key not in own},
        image_size=size[0] if isinstance(size, list | tuple) else size,
        mean=published.get("mean"),
        std=published.get("std"),
        # Of others nothing tells the bands: they are called by their number.
        channels=unnamed_channels(stated.get("in_chans", 3))
        if bands is None
        else Channels.model_validate(bands),
    )
    if isinstance(size, list | tuple) and len(set(size)) > 1:
        _refuse_oblong_table(described, size, where)
    return described


def _refuse_oblong_table(config: TimmSettings, size: Sequence[int], where: str) -> None:
    """Raise an error for a table of 2 × 8 cells, which would be read as one of 4 × 4; computed positions go."""
    with torch.device("meta"):
        model = timm_backbone(config).model
    if getattr(model, "pos_embed", None) is not None:
        sides = " × ".join(str(side) for side in size)
        raise CheckpointError(
            f"has a table of positions for images of {sides} px (img_size), and towers here take square ones",
            where=where,
            fix=f"make it in timm with img_size={max(size)}, which resamples the table, and save that model",
        )


def convert_state(
    state: Mapping[str, Any], config: TimmSettings, *, where: str, plain: bool = True
) -> TimmWeights:
    """Return what of a file's state belongs to a timm model, under timm's names.

    Args:
        state: What the file holds, nested or flat.
        config: The model.
        where: The file, for messages.
        plain: Refuse what is no plain ViT.

    Raises:
        CheckpointError: It holds weights of another architecture, or several vision transformers.
        ConfigError: timm has no such model.
    """
    # Names and shapes are all that is asked of it, and on the meta device they cost nothing.
    with torch.device("meta"):
        backbone = timm_backbone(config)
    if plain and not isinstance(backbone, VisionTower):
        raise CheckpointError(
            f"{config.architecture} is no plain Vision Transformer",
            where=where,
            fix=f'finetune it with backbone.init "timm:{config.architecture}" and backbone.weights',
        )
    model = cast(nn.Module, backbone.model)
    found = find_backbone(state, where=where)
    if found is not None:
        before = found.weights
    else:
        tensors = _container(state)[1] or {}
        # Files of runs on several GPUs have a `module.` in front of every name.
        prefix = "module." if all(name.startswith("module.") for name in tensors) else ""
        before = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    after = _through_timm(before, model, config.architecture, where)
    own = model.state_dict()
    notes: tuple[str, ...] = ()
    if "norm.weight" in own and "norm.weight" not in after and "fc_norm.weight" in after:
        # The norm stands behind timm's pooling: its features are the tokens before it.
        config, notes = _without_norm(config, model), ("its norm stands behind the pooling and is left out",)
        with torch.device("meta"):
            backbone = timm_backbone(config)
        own = cast(nn.Module, backbone.model).state_dict()
    kept = {name: t for name, t in after.items() if name in own or not name.startswith(CLASSIFIERS)}
    resampled = {
        name: f"{tuple(before[name].shape)} → {tuple(tensor.shape)}"
        for name, tensor in kept.items()
        if name in ("pos_embed", "patch_embed.proj.weight")
        and isinstance(before.get(name), Tensor)
        # By number: timm also unfolds kernels of linear embeddings, and takes the [CLS] token's row of a table with
        # registers into the token itself. Neither resamples anything.
        and before[name].numel() != kept[name].numel()
        and "register_tokens" not in before
    }
    dropped = [name for name in after if name not in kept]
    return TimmWeights(
        config, backbone, kept, resampled, (*(found.ignored if found else ()), *dropped), notes
    )


def _without_norm(config: TimmSettings, model: nn.Module) -> TimmSettings:
    names = (
        ("use_post_transformer_norm", "use_fc_norm") if isinstance(model, Eva) else ("final_norm", "fc_norm")
    )
    return config.model_copy(update={"arguments": config.arguments | dict.fromkeys(names, False)})


def _through_timm(weights: Mapping[str, Any], model: nn.Module, name: str, where: str) -> dict[str, Tensor]:
    """Return what timm's own conversion for the architecture makes of a publication's names."""
    module = inspect.getmodule(timm.model_entrypoint(name.split(".")[0]))
    convert = getattr(module, "checkpoint_filter_fn", None)
    if convert is None:
        return dict(weights)
    try:
        # A copy, as some of timm's conversions take entries out of what they get.
        return dict(convert(dict(weights), model))
    except (
        KeyError,
        RuntimeError,
        ValueError,
        AttributeError,
        TypeError,
        AssertionError,
        IndexError,
    ) as error:
        raise CheckpointError(
            f"holds no weights of {name} (timm's conversion fails: {error})",
            where=where,
            fix="name the architecture that they are of",
        ) from error
