"""Models of what a user names: `load_backbone` gives a vision tower, `load_vlm` a vision-language model.

Both read a `Checkpoint`, build the model at its sizes and fill it name by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from vitp.checkpoints import hub, layouts
from vitp.checkpoints.bands import fit_first_layers, wanted_channels
from vitp.checkpoints.checkpoint import Checkpoint, Hints, read_checkpoint
from vitp.checkpoints.description import CONFIG, own_folder, read_config
from vitp.checkpoints.origin import origin_of
from vitp.checkpoints.state_dicts import convert_state, timm_config_of
from vitp.checkpoints.tensors import INDEX, WEIGHTS, holds_weights, read_weights, weights_file
from vitp.core.errors import CheckpointError
from vitp.core.reading import no_such
from vitp.core.tensors import WeightsReport, load_weights
from vitp.core.version import STARTER
from vitp.data.chat import ChatTokenizer
from vitp.models.backbone import Backbone
from vitp.models.foreign import described_by
from vitp.models.inflation import with_channels
from vitp.models.positions import PositionMethod
from vitp.models.resample import KERNEL, POSITIONS, fit_weights
from vitp.models.timm_backbone import TimmSettings, timm_backbone
from vitp.models.vision import VisionTower
from vitp.models.vlm import VisionLanguageModel
from vitp.records.channels import Channels


@dataclass
class LoadedVLM:
    """A vision-language model with its tokenizer.

    Attributes:
        vlm: In eval mode.
        chat: Its tokenizer.
        report: What became of the names of a published model; None for vitp's own, which are always whole.
    """

    vlm: VisionLanguageModel
    chat: ChatTokenizer
    report: WeightsReport | None = None


def load_backbone(
    source: str | Path,
    *,
    architecture: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    heads: int | None = None,
    image_size: int | None = None,
    positions: PositionMethod | None = None,
    channels: Channels | None = None,
    data: Channels | None = None,
    revision: str | None = None,
) -> VisionTower:
    """Return a vision tower in eval mode; the language model beside it isn't read.

    Names and shapes must fit; `open_tower` returns the report of names, too.

    Args:
        source: An exported folder, a folder with a vision-language model or a finetuned model of vitp, a run folder
            (its `model/`), or "starter" for the ViT of the model that comes with the package. Also what others
            publish: a folder in InternVL's original layout, transformers' or timm's, a weights file such as a
            released ViTP backbone, or an id of the hub.
        architecture: timm's name, for a file under timm's names or those of a publication that timm knows.
        arguments: What `timm.create_model` gets beside the architecture.
        heads: Attention heads of a ViT that comes without a configuration; None: as published ones of its width.
        image_size: Side in pixels that the tower is wanted for; positions are resampled. None: as trained.
        positions: How positions are resampled, now and for images of other sizes; None: as the folder says, and in
            InternVL's layouts as its code does. With an architecture timm resamples what is read in its own way.
        channels: Bands that the tower is wanted for; the patch kernel is carried over by their names
            (`vitp.models.inflation`). None: its own, or those of `data`.
        data: Bands of the data that it is to be trained on: a tower of RGB pictures is made for them, one with bands
            keeps its own. The tower says in `in_channels` what it sees.
        revision: Branch, tag or commit, for the hub.

    Raises:
        CheckpointError: No backbone is there, a file is broken or was changed, names or shapes don't fit.
        DataError: `data` lack bands of the tower.
    """
    if own_folder(source) is None and not (holds_weights(Path(source)) or hub.hub_id(str(source))):
        raise CheckpointError(
            no_such(source) or "holds no backbone",
            where=str(source),
            fix="name an export, a run that has finished, a model folder, a weights file, a model of the hub or "
            '"starter"',
        )
    hints = Hints(
        architecture=architecture,
        arguments=arguments or {},
        heads=heads,
        image_size=image_size,
        positions=positions,
        channels=channels,
        data=data,
    )
    return open_tower(source, hints=hints, revision=revision)[0]


def open_tower(
    source: str | Path,
    *,
    hints: Hints | None = None,
    drop_path: float = 0.0,
    revision: str | None = None,
    strict: bool = True,
) -> tuple[VisionTower, WeightsReport]:
    """Return a vision tower in eval mode, and what became of every name.

    Args:
        source: As `load_backbone` takes it.
        hints: What the file doesn't say about itself. With an architecture the file is taken for timm's or a
            publication's, and timm resamples what doesn't fit.
        drop_path: Stochastic depth rate of the last block.
        revision: Revision of the hub's repository.
        strict: Refuse anything missing, unexpected or of another shape.

    Raises:
        CheckpointError: Nothing is there, a file is broken, or names and shapes don't fit.
    """
    hints = hints or Hints()
    if hints.architecture is None:
        checkpoint = read_checkpoint(source, hints=hints, vision_only=True, revision=revision)
        return build_tower(checkpoint, drop_path=drop_path, strict=strict)
    path = hub.locate(source, revision=revision)
    if path is None:
        raise CheckpointError("is no file or folder", where=str(source), fix="check the path")
    stated = read_config(path) if path.is_dir() else {}
    with described_by(path):
        known = stated if "architecture" in stated else {}
        config = timm_config_of(known, hints.architecture, hints.arguments, where=str(source))
    wanted = wanted_channels(config.channels, hints.channels, hints.data, where=str(source))
    config, trained = with_channels(config, wanted), config.channels
    origin = origin_of(str(source), path if path.is_dir() else None, stated, config.architecture)
    config = config.model_copy(update={"image_size": hints.image_size or config.image_size, **origin})
    file = weights_file(path) if path.is_dir() else path
    backbone, report = open_timm(
        config, file, source=str(source), drop_path=drop_path, strict=strict, plain=True, trained=trained
    )
    assert isinstance(backbone, VisionTower)
    return backbone, report


def open_timm(
    config: TimmSettings,
    file: Path,
    *,
    source: str = "",
    drop_path: float = 0.0,
    strict: bool = True,
    plain: bool = False,
    trained: Channels | None = None,
) -> tuple[Backbone, WeightsReport]:
    """Return any backbone of timm, rotary and hierarchical ones included, filled from a file, in eval mode.

    Args:
        config: The model. timm resamples position tables and patch kernels to its sizes.
        file: Weights under timm's names or those of the publication; it may hold a classifier more.
        source: As the user named it, for messages; the file by default.
        drop_path: Stochastic depth rate, where the architecture has it.
        strict: Refuse anything missing, unexpected or of another shape.
        plain: Refuse what is no plain ViT.
        trained: Bands that the weights are of; None: as the shapes tell, where others are wanted: three are RGB.

    Raises:
        ConfigError: timm has no such model, refuses an argument, or it gives no feature maps.
        CheckpointError: The file is missing, broken or of another architecture.
    """
    converted = convert_state(read_weights(file), config, where=str(file), plain=plain)
    notes = fit_first_layers(
        converted.weights, converted.model.model, trained, config.channels, source=source or str(file)
    )
    backbone = timm_backbone(converted.config, drop_path=drop_path)
    report = load_weights(
        cast(nn.Module, backbone.model),
        converted.weights,
        source=source or str(file),
        layout="timm",
        resampled=converted.resampled,
        ignored=converted.ignored,
        notes=(*converted.notes, *notes),
        strict=strict,
        fix="name the architecture that the weights are of",
    )
    return backbone.eval(), report


def build_tower(
    checkpoint: Checkpoint, *, drop_path: float = 0.0, strict: bool = True
) -> tuple[VisionTower, WeightsReport]:
    """Return the vision tower of a checkpoint in float32 and eval mode, with the report.

    Position table and patch kernel are resampled when the tower is wanted at another size.

    Raises:
        CheckpointError: Names or shapes don't fit (with `strict`).
    """
    with described_by(checkpoint.path):
        tower = VisionTower(checkpoint.vision, drop_path=drop_path)
    return tower.eval(), _fill(tower, tower, "", checkpoint, strict)


def build_vlm(
    checkpoint: Checkpoint, *, drop_path: float = 0.0, strict: bool = True
) -> tuple[VisionLanguageModel, WeightsReport]:
    """Return the vision-language model of a checkpoint in float32 and eval mode, with the report.

    Raises:
        CheckpointError: It is a vision tower alone, or names or shapes don't fit (with `strict`).
    """
    if checkpoint.vlm is None or checkpoint.vocabulary is None:
        raise CheckpointError(
            "holds a vision tower without a language model",
            where=checkpoint.source,
            fix="load it with `vitp.load_backbone`, or put it into a model with `vitp swap`",
        )
    config = checkpoint.vlm.model_copy(update={"drop_path": drop_path})
    with described_by(checkpoint.path):
        vlm = VisionLanguageModel(config, vocabulary=checkpoint.vocabulary)
    return vlm.eval(), _fill(vlm, vlm.vision, "vision.", checkpoint, strict)


def _fill(
    model: nn.Module, tower: VisionTower, prefix: str, checkpoint: Checkpoint, strict: bool
) -> WeightsReport:
    """Load a checkpoint into a model whose tower's names begin with `prefix`. What fits stays bit for bit."""
    weights, own = dict(checkpoint.weights), tower.state_dict()
    odd = {
        name: weights[f"vision.{name}"].float()
        for name in (KERNEL, POSITIONS)
        if f"vision.{name}" in weights and name in own and weights[f"vision.{name}"].shape != own[name].shape
    }
    resampled = dict(checkpoint.resampled)
    for name, fitted in fit_weights(odd, tower).items():
        before = weights[f"vision.{name}"]
        if fitted.shape != before.shape:
            resampled[name] = f"{tuple(before.shape)} → {tuple(fitted.shape)}"
        weights[f"vision.{name}"] = fitted
    if model is tower:
        weights = layouts.part_of(weights, "vision.")
    return load_weights(
        model,
        weights,
        source=checkpoint.where,
        layout=checkpoint.layout,
        resampled={prefix + name: change for name, change in resampled.items()},
        unexpected=checkpoint.unexpected,
        ignored=checkpoint.ignored,
        notes=checkpoint.notes,
        strict=strict,
    )


def random_backbone(like: VisionTower, seed: int) -> VisionTower:
    """Return an untrained tower of the same architecture: the baseline that learning is measured against."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        bare = {"weights_of": "", "licence": "", "adapt": None}
        return VisionTower(like.config.model_copy(update=bare)).eval()


def vlm_folder(source: str | Path) -> Path:
    """Return the local folder that holds the vision-language model named by `source`.

    Raises:
        CheckpointError: There is none.
    """
    folder = _find(source)
    if folder is None:
        raise CheckpointError(
            no_such(source) or "holds no vision-language model",
            where=str(source),
            fix=f"name a run that has finished, a folder with {CONFIG} and {WEIGHTS}, or a model of the hub",
        )
    return folder


def _find(source: str | Path) -> Path | None:
    folder = STARTER if str(source) == "starter" else Path(source)
    for candidate in (folder, folder / "model"):
        if (candidate / CONFIG).is_file() and any((candidate / name).is_file() for name in (WEIGHTS, INDEX)):
            return candidate
    return None


def load_vlm(
    source: str | Path,
    *,
    drop_path: float = 0.0,
    template: str | None = None,
    image_size: int | None = None,
    channels: Channels | None = None,
    data: Channels | None = None,
    revision: str | None = None,
    strict: bool = True,
) -> LoadedVLM:
    """Return the model of a folder, of a run, of the hub, or the starter that comes with the package ("starter").

    Args:
        source: "starter", a folder written by `save_vlm`, a run folder (its `model/` is taken), a folder with an
            InternVL model (original layout or transformers'), or an id of the hub such as "OpenGVLab/InternVL2_5-1B".
        drop_path: Stochastic depth rate of the vision tower while training.
        template: Chat template of a published model that names another; None: as it says.
        image_size: Side of a tile in pixels, positions resampled; None: as it says.
        channels: Bands that its vision tower is wanted for; see `load_backbone`.
        data: Bands of the data that it is wanted for; see `load_backbone`.
        revision: Branch, tag or commit, for the hub.
        strict: Refuse anything missing, unexpected or of another shape.

    Raises:
        CheckpointError: No model is there, a file is broken, the language model is of a kind that vitp can't run, or
            names and shapes don't fit.
        DataError: `data` lack bands of the tower.
    """
    found: str | Path = source if _find(source) is None and hub.hub_id(str(source)) else vlm_folder(source)
    hints = Hints(template=template, image_size=image_size, channels=channels, data=data)
    checkpoint = read_checkpoint(found, hints=hints, revision=revision)
    vlm, report = build_vlm(checkpoint, drop_path=drop_path, strict=strict)
    chat = chat_of(checkpoint, vlm)
    grow_embeddings(vlm, chat)
    return LoadedVLM(vlm, chat, None if report.layout == "vitp" else report)


def chat_of(checkpoint: Checkpoint, vlm: VisionLanguageModel) -> ChatTokenizer:
    """Return the tokenizer of a checkpoint with the chat template of its model.

    Raises:
        CheckpointError: As `read_tokenizer`.
    """
    assert checkpoint.tokenizer is not None
    return ChatTokenizer(
        read_tokenizer(checkpoint.tokenizer),
        template=vlm.config.template,
        tokens_per_tile=vlm.tokens_per_tile,
    )


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a folder; nothing is fetched, and no code of the folder runs.

    Raises:
        CheckpointError: There is none, or its files are broken.
    """
    whole = (folder / "tokenizer.json").is_file()
    # The first releases of InternVL2.5 hold the parts alone.
    parts = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    if not (whole or parts):
        raise CheckpointError(
            "holds no tokenizer.json, nor vocab.json and merges.txt",
            where=str(folder),
            fix="copy the folder again",
        )
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    if read_config(folder).get("model_type") in (None, "internvl_chat"):
        # transformers doesn't know these configurations, and would warn; the tokenizer's own names its class.
        options["config"] = PreTrainedConfig()
    try:
        return AutoTokenizer.from_pretrained(folder, **options)
    except Exception as error:  # the tokenizers library raises plain `Exception` on a broken file
        raise CheckpointError(
            f"holds no tokenizer that can be read ({error})", where=str(folder), fix="copy the folder again"
        ) from error


def grow_embeddings(vlm: VisionLanguageModel, chat: ChatTokenizer) -> int:
    """Give the language model a row for each token of its tokenizer; return how many were added.

    New rows get the mean of the others: a random row would stand out among trained ones. Rows beyond the
    tokenizer's length stay, published models have some.
    """
    rows = int(vlm.language.get_input_embeddings().weight.shape[0])
    if len(chat) <= rows:
        return 0
    # transformers would draw the new rows at random around the mean.
    vlm.language.resize_token_embeddings(len(chat), mean_resizing=False)
    with torch.no_grad():
        # A set: tied tables are one, and filled once.
        tables = {vlm.language.get_input_embeddings().weight, vlm.language.get_output_embeddings().weight}
        for table in tables:
            table[rows:] = table[:rows].mean(dim=0)
    return len(chat) - rows
