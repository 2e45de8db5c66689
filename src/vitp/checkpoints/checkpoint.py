"""The one reader of models on disk: whatever the layout, named tensors under our names and the sizes that go with them.

Nothing is built here; `vitp.checkpoints.loading` makes models of a `Checkpoint`.
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
from vitp.checkpoints.bands import check_kernel, fit_kernel, wanted_channels
from vitp.checkpoints.description import (
    CONFIG,
    DESCRIPTION,
    EXTRA,
    Provenance,
    is_task_config,
    is_vlm_config,
    own_folder,
    provenance_of_folder,
    read_config,
    read_description,
    vlm_of_config,
)
from vitp.checkpoints.layouts import LayoutName, Renamed
from vitp.checkpoints.origin import origin_of
from vitp.checkpoints.published import (
    from_hf_config,
    from_original_config,
    internvit_of_weights,
    language_config,
    normalisation,
    plain_vit_of_weights,
)
from vitp.checkpoints.state_dicts import convert_state, find_backbone, timm_config_of
from vitp.checkpoints.tensors import WEIGHTS, Wanted, everything, read_tensors, read_weights, weights_file
from vitp.checkpoints.transformers_vits import is_transformers_vit, transformers_names, transformers_vit
from vitp.core.config import CONFIG_FILE
from vitp.core.errors import CheckpointError, did_you_mean
from vitp.data.chat import TEMPLATES
from vitp.models.adapting import added_weights
from vitp.models.foreign import described_by
from vitp.models.inflation import unnamed_channels, with_channels
from vitp.models.positions import PositionMethod
from vitp.models.resample import KERNEL
from vitp.models.timm_backbone import TimmSettings, plain_settings
from vitp.models.vision import VisionSettings
from vitp.models.vlm import VLMSettings
from vitp.records.channels import Channels

_DEFAULT_TEMPLATE = "internvl2_5"
"""What InternVL2.5 and InternVL3 were trained with; the `-hf` layout doesn't say it."""

_HEAD, _EMBEDDINGS = (f"{layouts.LANGUAGE}{name}.weight" for name in ("lm_head", "model.embed_tokens"))


@dataclass(frozen=True)
class Checkpoint:
    """Weights under our names, and the sizes of the model they are of.

    Attributes:
        source: As the user named it, for messages.
        path: File or folder that was read.
        layout: Whose names and configuration it was read from.
        vision: The vision tower.
        weights: Our name → tensor, in the type of the file. Numbers are read when they are used.
        vlm: The whole model; None for a vision tower on its own.
        vocabulary: Rows of the language model's embeddings.
        unexpected: Names of the file that stand for nothing.
        ignored: Names that were left out on purpose.
        notes: Other remarks for the report.
        resampled: Names of the tower (`model.pos_embed`) that were resized while reading → the change of shape.
    """

    source: str
    path: Path
    layout: LayoutName
    vision: VisionSettings
    weights: dict[str, Tensor]
    vlm: VLMSettings | None = None
    vocabulary: int | None = None
    unexpected: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    resampled: Mapping[str, str] = field(default_factory=dict)

    @property
    def tokenizer(self) -> Path | None:
        """Folder of the tokenizer's files; None for a vision tower."""
        return None if self.vlm is None else self.path

    @property
    def dtype(self) -> torch.dtype:
        """The type of its numbers; float32 where they have several."""
        kinds = {tensor.dtype for tensor in self.weights.values() if tensor.is_floating_point()}
        return kinds.pop() if len(kinds) == 1 else torch.float32

    def cast(self, dtype: torch.dtype) -> Checkpoint:
        """Return the same numbers in another type; whole numbers stay."""
        weights = {n: t.to(dtype) if t.is_floating_point() else t for n, t in self.weights.items()}
        return replace(self, weights=weights)

    @property
    def where(self) -> str:
        """The file with the weights, for messages about our own models; of others what the user named."""
        return str(weights_file(self.path)) if self.layout == "vitp" and self.path.is_dir() else self.source

    def vision_only(self) -> Checkpoint:
        """Return the vision tower alone."""
        vision = {name: t for name, t in self.weights.items() if name.startswith(layouts.TOWER)}
        return replace(self, weights=vision, vlm=None, vocabulary=None)


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
        channels: Bands that the tower is wanted for; None: its own, or those of `data`.
        data: Bands of the data that it is trained on. A tower of RGB pictures is wanted for them then; one with bands
            keeps its own, which the data must have.
    """

    architecture: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    heads: int | None = None
    image_size: int | None = None
    template: str | None = None
    positions: PositionMethod | None = None
    channels: Channels | None = None
    data: Channels | None = None


def read_checkpoint(
    source: str | Path,
    *,
    hints: Hints | None = None,
    vision_only: bool = False,
    revision: str | None = None,
) -> Checkpoint:
    """Return the weights of whatever a user names, in any layout.

    Args:
        source: "starter", a file, a folder, a run (its `model/` is taken; of a finetuned one the tower), or an id of
            the hub.
        hints: What the file may not say about itself.
        vision_only: Leave projector and language model in the file.
        revision: Revision of the hub's repository.

    Raises:
        CheckpointError: Nothing is there, a file is broken, or the model is of a kind that vitp can't run.
        DataError: The data that the hints name lack bands of the tower.
    """
    hints = hints or Hints()
    path = own_folder(source) or hub.locate(source, revision=revision)
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
    found = _for_channels(found, hints)
    wanted: dict[str, Any] = {"image_size": hints.image_size, "positions": hints.positions}
    if found.layout != "vitp":  # ours say it themselves
        folder = path if path.is_dir() else None
        stated = read_config(path) if path.is_dir() else {}
        wanted |= origin_of(str(source), folder, stated, hints.architecture or stated.get("architecture"))
    vision = found.vision.model_copy(update={key: v for key, v in wanted.items() if v is not None})
    vlm = None if found.vlm is None else found.vlm.model_copy(update={"vision": vision})
    return replace(found, vision=vision, vlm=vlm)


def _for_channels(found: Checkpoint, hints: Hints) -> Checkpoint:
    """Return a checkpoint for the channels that are wanted; see `vitp.checkpoints.bands`."""
    own, name = found.vision.channels, f"vision.{KERNEL}"
    if (kernel := found.weights.get(name)) is None:
        return found
    check_kernel(kernel, own, where=found.where)
    wanted = wanted_channels(own, hints.channels, hints.data, where=found.source)
    if wanted == own:
        return found
    fitted = fit_kernel(kernel, own, wanted, source=found.source)
    return replace(
        found,
        vision=with_channels(found.vision, wanted),
        weights={**found.weights, name: fitted.kernel},
        notes=(*found.notes, *filter(None, [fitted.note])),
        resampled={**found.resampled, **({KERNEL: fitted.shapes} if fitted.shapes else {})},
    )


def provenance_of(source: str | Path) -> Provenance:
    """Return where the weights of a source come from, as far as the files beside them tell.

    Raises:
        CheckpointError: A file that tells it can't be read.
    """
    if (folder := own_folder(source)) is not None:
        return provenance_of_folder(folder)
    return Provenance(source=str(source) if hub.hub_id(str(source)) else Path(source).resolve().name)


def _read_folder(folder: Path, source: str, hints: Hints, vision_only: bool) -> Checkpoint:
    if (folder / DESCRIPTION).is_file():
        return _read_export(folder, source)
    if (folder / CONFIG_FILE).is_file():
        if (folder / "model" / WEIGHTS).is_file():  # no layout of ours: a student that is no plain ViT
            return _read_folder(folder / "model", source, hints, vision_only)
        # What lies in a run without a model are features and weights of its beginning.
        raise CheckpointError(
            "is a run without a model", where=source, fix="name a run that has finished, or resume this one"
        )
    config = read_config(folder)
    kind = str(config.get("model_type", ""))
    if is_task_config(config):
        return _read_task(folder, source, config)
    if is_vlm_config(config):
        vlm, vocabulary = vlm_of_config(config, folder / CONFIG)
        wanted = _of_the_tower(layouts.TOWER) if vision_only else everything
        weights = read_tensors(weights_file(folder), wanted, ours=True)
        return Checkpoint(source, folder, "vitp", vlm.vision, weights, vlm, vocabulary)
    if kind in ("internvl_chat", "internvl", "intern_vit_6b", "internvl_vision"):
        return _read_internvl(folder, source, config, hints, vision_only)
    if "architecture" in config or hints.architecture is not None:
        timm_config = timm_config_of(config, hints.architecture, hints.arguments, where=source)
        return _read_timm(weights_file(folder), source, timm_config)
    if is_transformers_vit(config, where=str(folder / CONFIG)):
        return _read_transformers(folder, source, config)
    if not config:
        return _read_file(weights_file(folder), source, hints)
    raise CheckpointError(
        "is no configuration of a vitp model, an InternVL model, a ViT of timm, or a DINO or SigLIP of transformers "
        f"(model type {kind or 'not stated'})",
        where=str(folder / CONFIG),
        fix="name its timm architecture, or convert it to one of these layouts",
    )


def _read_transformers(folder: Path, source: str, config: Mapping[str, Any]) -> Checkpoint:
    """Read the vision tower of a DINOv2, DINOv3, SigLIP or SigLIP 2 in transformers' layout."""
    file, described = weights_file(folder), transformers_vit(config, where=str(folder / CONFIG))
    if (folder / "preprocessor_config.json").is_file():
        described["mean"], described["std"] = normalisation(folder)
    count = described["arguments"].pop("in_chans", 3)
    settings = TimmSettings(**described, channels=unnamed_channels(count))
    renamed = transformers_names(read_tensors(file), config)
    found = _read_timm(file, source, settings, renamed.weights)
    return replace(
        found,
        path=folder,
        layout="hf",
        unexpected=tuple(renamed.unexpected),
        ignored=(*renamed.ignored, *found.ignored),
    )


def _of_the_tower(prefix: str) -> Wanted:
    return lambda name: name.removeprefix("model.").startswith(prefix)


def _read_export(folder: Path, source: str) -> Checkpoint:
    description, path = read_description(folder), weights_file(folder)
    weights = read_tensors(path)
    description.check_contract(path)
    description.check_digests(weights, path)
    named = layouts.from_timm(weights) | layouts.added(added_weights(folder))
    return Checkpoint(source, folder, "vitp", description.vision, named)


def _read_task(folder: Path, source: str, config: Mapping[str, Any]) -> Checkpoint:
    """Read the vision tower of a finetuned model; what its neck and head learned stays behind."""
    backbone = config["backbone"]
    if backbone["kind"] == "vision":
        vision: VisionSettings | None = VisionSettings.model_validate(backbone["config"])
    else:  # of rotary ViTs, too, in earlier versions
        vision = plain_settings(TimmSettings.model_validate(backbone["config"]))
    if vision is None:
        raise CheckpointError(
            f"is finetuned from a {backbone['config']['architecture']}, which is no plain ViT",
            where=source,
            fix="name a model with a plain ViT; `vitp predict` and `vitp eval` use this one",
        )
    weights = read_tensors(weights_file(folder), ours=True)
    mark = "model.patch_embed.proj.weight"
    # The head may hold the tower inside of its neck, and under two names: the first one is stored.
    prefix = next((name.removesuffix(mark) for name in weights if name.endswith(mark)), "")
    own = layouts.part_of(weights, prefix)
    named = layouts.from_timm(layouts.part_of(own, "model.")) | layouts.added(own)
    return Checkpoint(source, folder, "vitp", vision, named)


def _read_internvl(
    folder: Path, source: str, config: Mapping[str, Any], hints: Hints, vision_only: bool
) -> Checkpoint:
    """Read a model, or a vision tower alone, in InternVL's original layout or in transformers'."""
    where, kind = str(folder / CONFIG), config["model_type"]
    alone = kind in ("intern_vit_6b", "internvl_vision")
    whole = not (alone or vision_only)
    mean, std = normalisation(folder)
    values = config if alone else config.get("vision_config") or {}
    if kind in ("internvl_chat", "intern_vit_6b"):
        layout: LayoutName = "original"
        prefix, from_names, language = (
            layouts.ORIGINAL_VISION,
            layouts.from_original,
            config.get("llm_config"),
        )
        vision = from_original_config(values, where=where, mean=mean, std=std)
        size = None if alone else config.get("force_image_size")
        vision = vision.model_copy(update={"image_size": int(size or vision.image_size)})
    else:
        layout = "hf"
        prefix, from_names, language = layouts.HF_VISION, layouts.from_hf, config.get("text_config")
        vision = from_hf_config(values, where=where, mean=mean, std=std)
    if (bands := (config.get(EXTRA) or {}).get("channels")) is not None:
        vision = with_channels(vision, Channels.model_validate(bands))
    if whole:
        layouts.check_projector(config, where)
        language_config(language or {}, where=where)  # its refusal is clearer than what the weights would say
    wanted = _of_the_tower(prefix) if vision_only and not alone else everything
    renamed = from_names(read_tensors(weights_file(folder), wanted))
    tower = _with_names(Checkpoint(source, folder, layout, vision, {}), renamed)
    return _whole(tower, renamed, config, language or {}, hints) if whole else tower.vision_only()


def _with_names(found: Checkpoint, renamed: Renamed) -> Checkpoint:
    return replace(
        found,
        weights=renamed.weights,
        unexpected=tuple(renamed.unexpected),
        ignored=tuple(renamed.ignored),
    )


def _whole(
    tower: Checkpoint,
    renamed: Renamed,
    config: Mapping[str, Any],
    language_values: Mapping[str, Any],
    hints: Hints,
) -> Checkpoint:
    """Return the checkpoint of a whole published model.

    Files of tied models may hold the table twice. The weights decide whether there is one table or two, the
    configuration doesn't: two tables that are equal by chance of training don't exist.
    """
    where, weights = str(tower.path / CONFIG), dict(renamed.weights)
    if _EMBEDDINGS not in weights:
        raise CheckpointError(
            "holds no token embeddings", where=tower.source, fix="the download may be partial"
        )
    # Files leave the key out where it has its default, and the defaults of the layouts and releases differ.
    inner, outer = (values.get("tie_word_embeddings") for values in (language_values, config))
    says_tied = bool(inner if inner is not None else True if outer is None else outer) or bool(outer)
    notes: tuple[str, ...] = ()
    if says_tied and _HEAD in weights:
        if torch.equal(weights[_HEAD], weights[_EMBEDDINGS]):
            del weights[_HEAD]
            notes = ("the output table is the input table again: stored once",)
        else:
            notes = ("the configuration ties input and output table, but the weights differ: kept apart",)
    tied = says_tied and _HEAD not in weights
    try:
        vlm = VLMSettings(
            vision=tower.vision,
            language=language_config(language_values, where=where, tied=tied),
            shuffle=round(1 / float(config.get("downsample_ratio", 0.5))),
            template=_template(config, hints, where),
        )
    except (ValidationError, ZeroDivisionError) as error:
        raise CheckpointError(f"describes no model that vitp can build ({error})", where=where) from error
    vocabulary = int(weights[_EMBEDDINGS].shape[0])
    return replace(tower, weights=weights, vlm=vlm, vocabulary=vocabulary, notes=notes)


def _template(config: Mapping[str, Any], hints: Hints, where: str) -> str:
    stated = (config.get(EXTRA) or {}).get("template") or config.get("template")
    name = hints.template or stated or _DEFAULT_TEMPLATE
    if name not in TEMPLATES:
        raise CheckpointError(
            f'has the chat template "{name}", which vitp doesn\'t know',
            where=where,
            fix=did_you_mean(name, TEMPLATES) or f"say which one to take: {', '.join(TEMPLATES)}",
        )
    return str(name)


def _read_file(path: Path, source: str, hints: Hints) -> Checkpoint:
    """Read a weights file on its own: an InternViT by its names, else what timm and the publications have.

    Without an architecture only files of pretraining runs (DINO, iBOT, DINOv2, MAE) are read: they are normalised as
    ImageNet is. Of other files nothing tells the normalisation.
    """
    if hints.architecture is not None:
        return _read_timm(path, source, timm_config_of({}, hints.architecture, hints.arguments, where=source))
    state = read_weights(path)
    if path.suffix in (".safetensors", ".json") and (renamed := layouts.internvit_names(state)) is not None:
        # Its folder may describe it, or belong to something else altogether: only the shapes are trusted.
        own = layouts.part_of(renamed.weights, layouts.VISION)
        vision = internvit_of_weights(own, where=str(path), heads=hints.heads)
        return _with_names(Checkpoint(source, path, "original", vision, {}), renamed).vision_only()
    found = find_backbone(state, where=str(path))
    if found is None or not found.of_a_run:
        raise CheckpointError(
            "doesn't tell its architecture and normalisation",
            where=source,
            fix="say timm's name of it: architecture=…, or --architecture",
        )
    vision = plain_vit_of_weights(found.weights, heads=hints.heads, where=str(path))
    stated = TimmSettings(**vision.model_dump(exclude={"positions", "adapt"}))
    checkpoint, heads = _read_timm(path, source, stated), vision.arguments["num_heads"]
    note = f"found at {found.place}; sizes told by shapes, {heads} heads and ImageNet's normalisation assumed"
    return replace(checkpoint, notes=(*checkpoint.notes, note))


def _read_timm(
    path: Path, source: str, config: TimmSettings, state: Mapping[str, Tensor] | None = None
) -> Checkpoint:
    """Read a plain ViT under timm's names, or those of a publication that timm converts; `state` is read already."""
    converted = convert_state(state or read_weights(path), config, where=str(path))
    return Checkpoint(
        source,
        path,
        "timm",
        converted.vision,
        layouts.from_timm(converted.weights),
        ignored=converted.ignored,
        notes=converted.notes,
        resampled={f"model.{name}": change for name, change in converted.resampled.items()},
    )
