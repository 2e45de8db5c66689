"""Reading what is published, whatever its layout: named tensors under our names, and the sizes that go with them.

Nothing is built here; `vitp.checkpoints.build` makes models of a `Checkpoint`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from vitp.checkpoints import hub, layouts
from vitp.checkpoints.language_models import language_config
from vitp.checkpoints.layouts import Layout, Renamed
from vitp.checkpoints.tensors import Wanted, read_tensors, weights_file
from vitp.checkpoints.vit_configs import (
    from_hf_config,
    from_original_config,
    internvit_of_weights,
    normalisation,
)
from vitp.core.config import CONFIG_FILE
from vitp.core.errors import CheckpointError, did_you_mean
from vitp.core.reading import parse_json, read_text
from vitp.data.chat import TEMPLATES
from vitp.models.foreign import described_by
from vitp.models.positions import PositionMethod
from vitp.models.vision import VisionConfig
from vitp.models.vlm import VLMConfig

CONFIG = "config.json"
BACKBONE_DESCRIPTION = "vitp_backbone.json"
EXTRA = "vitp"
"""Key of a published configuration under which we keep what the layout has no place for."""

DEFAULT_TEMPLATE = "internvl2_5"
"""What InternVL2.5 and InternVL3 were trained with; the `-hf` layout doesn't say it."""


@dataclass(frozen=True)
class Checkpoint:
    """Weights under our names, and the sizes of the model they are of.

    Attributes:
        source: File or folder, for messages.
        layout: Whose names and configuration it was read from.
        vision: The vision tower.
        weights: Our name → tensor, in the type of the file. Numbers are read when they are used.
        vlm: The whole model; None for a vision tower on its own.
        vocabulary: Rows of the language model's embeddings.
        tokenizer: Folder of the tokenizer's files.
        unexpected: Names of the file that stand for nothing.
        ignored: Names that were left out on purpose.
        notes: Other remarks for the report.
        resampled: Names of the tower (`model.pos_embed`) that were resized while reading → the change of shape.
    """

    source: str
    layout: Layout
    vision: VisionConfig
    weights: dict[str, Tensor]
    vlm: VLMConfig | None = None
    vocabulary: int | None = None
    tokenizer: Path | None = None
    unexpected: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    resampled: Mapping[str, str] = field(default_factory=dict)

    def vision_only(self) -> Checkpoint:
        """Return the vision tower alone."""
        vision = {name: t for name, t in self.weights.items() if name.startswith(layouts.VISION)}
        return replace(self, weights=vision, vlm=None, vocabulary=None, tokenizer=None)


@dataclass(frozen=True)
class Hints:
    """What a file may not say about itself.

    Attributes:
        architecture: timm's name of the vision tower, for weights under timm's or a publication's names.
        arguments: What `timm.create_model` gets beside it.
        heads: Attention heads of an InternViT without a configuration.
        image_size: Side in pixels that the tower is wanted for; positions are resampled.
        template: Chat template, where the configuration names one that vitp doesn't know.
        positions: How positions are resampled to other image sizes; None: as the layout's own code does.
    """

    architecture: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    heads: int | None = None
    image_size: int | None = None
    template: str | None = None
    positions: PositionMethod | None = None


def read_checkpoint(
    source: str | Path,
    *,
    hints: Hints | None = None,
    vision_only: bool = False,
    revision: str | None = None,
) -> Checkpoint:
    """Return the weights of a local file or folder, or of the hub, in any layout.

    Args:
        source: A path or an id of the hub.
        hints: What the file may not say about itself.
        vision_only: Leave projector and language model in the file.
        revision: Of the hub's repository.

    Raises:
        CheckpointError: Nothing is there, a file is broken, or the model is of a kind that vitp can't run.
    """
    hints = hints or Hints()
    path = hub.locate(source, revision=revision)
    if path is None:
        raise CheckpointError(
            "is no file or folder",
            where=str(source),
            fix="check the path, or name a model of the hub as owner/name",
        )
    with described_by(path / CONFIG if path.is_dir() else path):
        if path.is_dir():
            found = _read_folder(path, str(source), hints, vision_only)
        else:
            found = _read_file(path, str(source), hints)
    if vision_only:
        found = found.vision_only()
    wanted = {"image_size": hints.image_size, "positions": hints.positions}
    return _changed(found, {key: value for key, value in wanted.items() if value is not None})


def _changed(found: Checkpoint, wanted: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint for a tower of another image size, or with another way to resample positions."""
    vision = found.vision.model_copy(update=wanted)
    vlm = None if found.vlm is None else found.vlm.model_copy(update={"vision": vision})
    return replace(found, vision=vision, vlm=vlm)


def read_config(folder: Path) -> dict[str, Any]:
    """Return a folder's `config.json`, or an empty one without that file.

    Raises:
        CheckpointError: It isn't JSON.
    """
    path = folder / CONFIG
    if not path.is_file():
        return {}
    try:
        values = parse_json(read_text(path))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            "is no configuration of a vitp model, nor of any other",
            where=str(path),
            fix="copy the folder again",
        ) from error
    if not isinstance(values, dict):
        raise CheckpointError("is no configuration of a vitp model", where=str(path))
    return values


def _read_folder(folder: Path, source: str, hints: Hints, vision_only: bool) -> Checkpoint:
    if (folder / BACKBONE_DESCRIPTION).is_file():
        return _read_export(folder, source)
    if (folder / CONFIG_FILE).is_file():
        if (folder / "model" / CONFIG).is_file():
            raise CheckpointError(
                "is a run of `vitp finetune`, whose model is that of a task, not a backbone or a language model",
                where=source,
                fix="name a run of `vitp pretrain`; `vitp predict` and `vitp eval` use this one",
            )
        # What lies in a run without a model are features and weights of its beginning.
        raise CheckpointError(
            "is a run without a model", where=source, fix="name a run that has finished, or resume this one"
        )
    config = read_config(folder)
    kind = str(config.get("model_type", ""))
    if "model" in config and str(config.get("format", "")).startswith("vitp-vlm"):
        return _read_vitp(folder, source, config, vision_only)
    if kind == "internvl_chat":
        return _read_original(folder, source, config, hints, vision_only)
    if kind == "internvl":
        return _read_hf(folder, source, config, hints, vision_only)
    if kind in ("intern_vit_6b", "internvl_vision"):
        return _read_tower(folder, source, config, kind)
    if "architecture" in config or hints.architecture is not None:
        from vitp.checkpoints.timm_vit import read_timm_folder

        return read_timm_folder(folder, source, config, hints)
    if not config:
        return _read_file(weights_file(folder), source, hints)
    raise CheckpointError(
        f"is no configuration of a vitp model, an InternVL model or a timm ViT (model type {kind or 'not stated'})",
        where=str(folder / CONFIG),
        fix="name its timm architecture, or convert it to one of these layouts",
    )


def _vision_names(*prefixes: str) -> Wanted:
    return lambda name: name.removeprefix("model.").startswith(prefixes)


def _everything(_name: str) -> bool:
    return True


def _read_vitp(folder: Path, source: str, config: Mapping[str, Any], vision_only: bool) -> Checkpoint:
    try:
        vlm = VLMConfig.model_validate(config["model"])
        vocabulary = int(config["vocabulary"])
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise CheckpointError(
            "is no configuration of a vitp model", where=str(folder / CONFIG), fix="export or train it anew"
        ) from error
    wanted = _vision_names(layouts.VISION) if vision_only else _everything
    weights = read_tensors(weights_file(folder), wanted, ours=True)
    return Checkpoint(source, "vitp", vlm.vision, weights, vlm, vocabulary, folder)


def _read_export(folder: Path, source: str) -> Checkpoint:
    from vitp.checkpoints.export_format import read_description

    description = read_description(folder)
    weights = layouts.from_timm(read_tensors(weights_file(folder)))
    return Checkpoint(source, "vitp", description.vision, weights)


def _read_original(
    folder: Path, source: str, config: Mapping[str, Any], hints: Hints, vision_only: bool
) -> Checkpoint:
    where = str(folder / CONFIG)
    mean, std = normalisation(folder)
    vision = from_original_config(config.get("vision_config") or {}, where=where, mean=mean, std=std)
    size = config.get("force_image_size") or vision.image_size
    vision = vision.model_copy(update={"image_size": int(size)})
    wanted = _vision_names(layouts.ORIGINAL_VISION) if vision_only else _everything
    if not vision_only and config.get("ps_version", "v1") != "v2":
        raise CheckpointError(
            f"folds patches in the order {config.get('ps_version', 'v1')} of InternVL's first releases",
            where=where,
            fix="use InternVL2.5 or InternVL3, which have v2",
        )
    if not vision_only and config.get("select_layer", -1) != -1:
        raise CheckpointError(
            f"takes layer {config['select_layer']} of the ViT, vitp takes the last", where=where
        )
    language_values = config.get("llm_config") or {}
    if not vision_only:
        language_config(
            language_values, where=where
        )  # its refusal is clearer than what the weights would say
    renamed = layouts.from_original(read_tensors(weights_file(folder), wanted))
    if vision_only:
        return _tower(source, "original", vision, renamed)
    return _whole(folder, source, "original", vision, config, language_values, renamed, hints)


def _read_hf(
    folder: Path, source: str, config: Mapping[str, Any], hints: Hints, vision_only: bool
) -> Checkpoint:
    where = str(folder / CONFIG)
    mean, std = normalisation(folder)
    vision = from_hf_config(config.get("vision_config") or {}, where=where, mean=mean, std=std)
    language_values = config.get("text_config") or {}
    if not vision_only:
        _check_hf(config, where)
        language_config(language_values, where=where)
    wanted = _vision_names(layouts.HF_VISION) if vision_only else _everything
    renamed = layouts.from_hf(read_tensors(weights_file(folder), wanted))
    if vision_only:
        return _tower(source, "hf", vision, renamed)
    return _whole(folder, source, "hf", vision, config, language_values, renamed, hints)


def _check_hf(config: Mapping[str, Any], where: str) -> None:
    wanted = {
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "projector_hidden_act": "gelu",
    }
    for key, value in wanted.items():
        if config.get(key, value) != value:
            raise CheckpointError(f"says {key} {config[key]}, vitp has {value}", where=where)


def _read_tower(folder: Path, source: str, config: Mapping[str, Any], kind: str) -> Checkpoint:
    mean, std = normalisation(folder)
    where = str(folder / CONFIG)
    weights = read_tensors(weights_file(folder))
    if kind == "intern_vit_6b":
        vision = from_original_config(config, where=where, mean=mean, std=std)
        return _tower(source, "original", vision, layouts.from_original(weights))
    vision = from_hf_config(config, where=where, mean=mean, std=std)
    return _tower(source, "hf", vision, layouts.from_hf(weights))


def _tower(source: str, layout: Layout, vision: VisionConfig, renamed: Renamed) -> Checkpoint:
    return Checkpoint(
        source,
        layout,
        vision,
        renamed.weights,
        unexpected=tuple(renamed.unexpected),
        ignored=tuple(renamed.ignored),
    ).vision_only()


def _whole(
    folder: Path,
    source: str,
    layout: Layout,
    vision: VisionConfig,
    config: Mapping[str, Any],
    language_values: Mapping[str, Any],
    renamed: Renamed,
    hints: Hints,
) -> Checkpoint:
    where = str(folder / CONFIG)
    notes = _settle_tie(renamed, config, language_values)
    head, embeddings = (f"{layouts.LANGUAGE}{n}.weight" for n in ("lm_head", "model.embed_tokens"))
    tied = head not in renamed.weights and _says_tied(config, language_values)
    table = renamed.weights.get(embeddings)
    if table is None:
        raise CheckpointError("holds no token embeddings", where=source, fix="the download may be partial")
    ratio = float(config.get("downsample_ratio", 0.5))
    try:
        vlm = VLMConfig(
            vision=vision,
            language=language_config(language_values, where=where, tied=tied),
            shuffle=round(1 / ratio),
            template=_template(config, hints, where),
        )
    except (ValidationError, ZeroDivisionError) as error:
        raise CheckpointError(f"describes no model that vitp can build ({error})", where=where) from error
    return Checkpoint(
        source,
        layout,
        vision,
        renamed.weights,
        vlm,
        int(table.shape[0]),
        folder,
        tuple(renamed.unexpected),
        tuple(renamed.ignored),
        notes,
    )


def _says_tied(config: Mapping[str, Any], language_values: Mapping[str, Any]) -> bool:
    # Files leave the key out where it has its default, and the defaults of the layouts and releases differ.
    inner = language_values.get("tie_word_embeddings")
    return bool(config.get("tie_word_embeddings", True) if inner is None else inner) or bool(
        config.get("tie_word_embeddings", False)
    )


def _settle_tie(
    renamed: Renamed, config: Mapping[str, Any], language_values: Mapping[str, Any]
) -> tuple[str, ...]:
    """Drop an output table that is the input table again; the weights decide, the configuration doesn't.

    Two tables that are equal by chance of training don't exist; files of tied models may hold the tensor twice.
    """
    head, embeddings = (f"{layouts.LANGUAGE}{n}.weight" for n in ("lm_head", "model.embed_tokens"))
    said = _says_tied(config, language_values)
    if head not in renamed.weights or embeddings not in renamed.weights or not said:
        return ()
    ours, theirs = renamed.weights[head], renamed.weights[embeddings]
    if torch.equal(ours, theirs):
        del renamed.weights[head]
        return ("the output table is the input table again: stored once",)
    return ("the configuration ties input and output table, but the weights differ: kept apart",)


def _template(config: Mapping[str, Any], hints: Hints, where: str) -> str:
    name = hints.template or (config.get(EXTRA) or {}).get("template") or config.get("template")
    name = name or DEFAULT_TEMPLATE
    if name not in TEMPLATES:
        raise CheckpointError(
            f'has the chat template "{name}", which vitp doesn\'t know',
            where=where,
            fix=did_you_mean(name, TEMPLATES) or f"say which one to take: {', '.join(TEMPLATES)}",
        )
    return str(name)


def _read_file(path: Path, source: str, hints: Hints) -> Checkpoint:
    """A weights file on its own: an InternViT by its names, else what timm and the publications have."""
    if hints.architecture is None and path.suffix in (".safetensors", ".json"):
        weights = read_tensors(path)
        renamed = _internvit_names(weights)
        if renamed is not None:
            # Its folder may describe it, or belong to something else altogether: only the shapes are trusted.
            vision = internvit_of_weights(
                layouts.part_of(renamed.weights, layouts.VISION), where=str(path), heads=hints.heads
            )
            return _tower(source, "original", vision, renamed)
    from vitp.checkpoints.timm_vit import read_weights_file

    return read_weights_file(path, source, hints)


def _internvit_names(weights: Mapping[str, Tensor]) -> Renamed | None:
    """The file's names as ours, or None when they aren't an InternViT's."""
    if any(name.endswith("embeddings.class_embedding") for name in weights):
        return layouts.from_original(weights)
    if any(name.endswith("embeddings.cls_token") for name in weights) and any(
        name.endswith("lambda_1") for name in weights
    ):
        return layouts.from_hf(weights)
    return None
