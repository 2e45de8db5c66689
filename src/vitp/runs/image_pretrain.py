"""Pretraining by other paradigms than ViTP: the same data, towers, engine and run folders, without a language model.

The run folder holds what a ViTP run's does; its `model/` is an exported backbone, so that `vitp.load_backbone(RUN)`,
`vitp probe RUN DATA` and `vitp finetune --backbone RUN` take it as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from pydantic import Field
from rich.console import Console

from vitp.checkpoints.loading import load_backbone, load_vlm, random_backbone, read_tokenizer, vlm_folder
from vitp.core import distributed
from vitp.core.config import Positive, SettingsModel
from vitp.core.files import write_json
from vitp.engine.config import OptimConfig, TrainConfig
from vitp.engine.hooks import TrainResult
from vitp.engine.loop import Trainer
from vitp.models.lora import VisionLoRAConfig, add_lora
from vitp.models.vision import VisionConfig, VisionTower
from vitp.objectives.base import BatchSource, Objective
from vitp.objectives.dense_source import Augmentation, LabelledSource
from vitp.objectives.distillation import Crops, DistillationConfig, DistillationObjective
from vitp.objectives.image_text import ImageTextConfig, ImageTextObjective, ImageTextPairs
from vitp.objectives.masked_image import MaskedImageConfig, MaskedImageObjective, MaskedViews
from vitp.objectives.preserving import PreserveConfig, preserving
from vitp.objectives.simclr import SimCLRConfig, SimCLRObjective, TwoViews
from vitp.objectives.supervised import (
    ClassNames,
    DensePretraining,
    DenseSettings,
    LabelledViews,
    SupervisedConfig,
    SupervisedObjective,
    merged_set,
)
from vitp.objectives.text_tower import (
    LanguageTextTower,
    RecordTexts,
    SmallTextTower,
    Texts,
    Tokens,
    captions_of,
    has_caption,
    read_record_texts,
)
from vitp.objectives.views_source import ImageMixture, ImageRows, ViewSource, read_rows
from vitp.runs.folder import claimed
from vitp.runs.pretrain import ProbeSettings, probe_hooks

ObjectiveName = Literal["mae", "clip", "siglip", "simclr", "dino", "supervised", "dense"]
OBJECTIVES: tuple[ObjectiveName, ...] = get_args(ObjectiveName)


class ImageModelSettings(SettingsModel):
    """Where the vision tower comes from and what of it is trained."""

    init: str = Field("starter", description='"starter", "random", or an exported backbone or run folder.')
    vision: VisionConfig | None = Field(None, description="Sizes, for init: random; none: the starter's.")
    drop_path: float = Field(0.1, ge=0, lt=1)
    gradient_checkpointing: bool = False
    vision_lora: VisionLoRAConfig | None = Field(
        None, description="Train the tower by low-rank updates and a few whole blocks only."
    )
    preserve: PreserveConfig = Field(
        default_factory=PreserveConfig, description="Keep the features near those of the initial tower."
    )


class ImageDataSettings(SettingsModel):
    """What is learned from: the training images of compiled folders."""

    mixture: list[str] = Field(min_length=1, description="Folders made by `vitp data compile`.")
    rates: list[Positive] | None = Field(
        None, description="Factor on the sampling rate, one for each folder."
    )
    global_batch: int = Field(
        128, ge=1, le=4_194_304, description="Images an optimizer step, over all ranks."
    )


class ImagePretrainConfig(SettingsModel):
    """A complete pretraining run of another paradigm. Of the sections with settings only the objective's own counts."""

    objective: ObjectiveName
    seed: int = Field(0, ge=0, le=2**63 - 1)
    model: ImageModelSettings = Field(default_factory=ImageModelSettings)
    data: ImageDataSettings
    mae: MaskedImageConfig = Field(default_factory=MaskedImageConfig)
    image_text: ImageTextConfig = Field(default_factory=ImageTextConfig, description="Of clip and siglip.")
    simclr: SimCLRConfig = Field(default_factory=SimCLRConfig)
    dino: DistillationConfig = Field(default_factory=DistillationConfig)
    supervised: SupervisedConfig = Field(default_factory=SupervisedConfig)
    dense: DenseSettings = Field(default_factory=DenseSettings)
    optim: OptimConfig = Field(default_factory=OptimConfig)
    train: TrainConfig = Field(default_factory=lambda: TrainConfig(steps=8000))
    probe: ProbeSettings = Field(default_factory=ProbeSettings)


@dataclass
class ImageRun:
    """The parts of a run, ready for the engine.

    Attributes:
        config: The run.
        objective: Tower, heads and losses.
        source: Its batches.
        images: What is sampled from.
    """

    config: ImagePretrainConfig
    objective: Objective
    source: BatchSource
    images: ImageMixture


def initial_tower(settings: ImageModelSettings, seed: int) -> VisionTower:
    """Return the tower that a run starts from.

    Args:
        settings: Where it comes from.
        seed: Of random weights.

    Raises:
        CheckpointError: The folder holds no backbone.
        ConfigError: timm can't make the tower.
    """
    if settings.init != "random":
        start = load_backbone(settings.init)
    elif settings.vision is None:
        start = random_backbone(load_backbone("starter"), seed)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            start = VisionTower(settings.vision)
    tower = VisionTower(start.config, drop_path=settings.drop_path)
    tower.load_state_dict(start.state_dict())
    if settings.gradient_checkpointing:
        tower.set_gradient_checkpointing(True)
    if settings.vision_lora is not None:
        add_lora(tower, settings.vision_lora)
    return tower


def build(config: ImagePretrainConfig) -> ImageRun:
    """Return objective and batches of a configuration.

    Raises:
        VitpError: Something in the configuration or in the data can't be used.
    """
    tower = initial_tower(config.model, config.seed)
    torch.manual_seed(config.seed)
    objective, source, images = _BUILDERS[config.objective](config, tower)
    return ImageRun(config, preserving(objective, config.model.preserve), source, images)


Built = tuple[Objective, BatchSource, ImageMixture]


def _images(config: ImagePretrainConfig, rows: list[ImageRows]) -> ImageMixture:
    return ImageMixture(rows, config.data.rates, config.seed)


def _unlabelled(config: ImagePretrainConfig) -> ImageMixture:
    return _images(config, [read_rows(folder, both_dates=True) for folder in config.data.mixture])


def _source(config: ImagePretrainConfig, images: ImageMixture, collate: Any) -> ViewSource:
    return ViewSource(images, collate, config.data.global_batch, config.train.micro_batches)


def _masked(config: ImagePretrainConfig, tower: VisionTower) -> Built:
    images = _unlabelled(config)
    collate = MaskedViews(tower.image_size[0], tower.grid**2, config.mae)
    return MaskedImageObjective(tower, config.mae), _source(config, images, collate), images


def _simclr(config: ImagePretrainConfig, tower: VisionTower) -> Built:
    images = _unlabelled(config)
    collate = TwoViews(tower.image_size[0], config.simclr.views)
    return SimCLRObjective(tower, config.simclr), _source(config, images, collate), images


def _distillation(config: ImagePretrainConfig, tower: VisionTower) -> Built:
    images = _unlabelled(config)
    collate = Crops(tower.image_size[0], tower.patch_size, config.dino)
    objective = DistillationObjective(tower, config.dino, steps=config.train.steps)
    return objective, _source(config, images, collate), images


def _image_text(config: ImagePretrainConfig, tower: VisionTower) -> Built:
    settings = config.image_text
    texts: Texts
    if settings.texts == "captions":
        rows = [read_rows(folder).having(has_caption, "captions or labels") for folder in config.data.mixture]
        texts = captions_of(rows)
    else:
        known = [read_record_texts(Path(folder)) for folder in config.data.mixture]
        rows = [
            read_rows(folder).having(lambda item, own=own: item.image in own, "records")  # type: ignore[misc]
            for folder, own in zip(config.data.mixture, known, strict=True)
        ]
        texts = RecordTexts(tuple(known))
    tokenizer = read_tokenizer(vlm_folder(settings.language))
    text: SmallTextTower | LanguageTextTower
    if settings.text == "language":
        text = LanguageTextTower(load_vlm(settings.language).vlm.language)
    else:
        text = SmallTextTower(
            len(tokenizer),
            width=settings.text_width,
            layers=settings.text_layers,
            heads=settings.text_heads,
            length=settings.length,
        )
    objective = ImageTextObjective(
        tower, text, loss="clip" if config.objective == "clip" else "siglip", dimension=settings.dimension
    )
    images = _images(config, rows)
    tokens = Tokens(tokenizer, settings.length)
    collate = ImageTextPairs(tower.image_size[0], settings.views, texts, tokens, settings.texts)
    return objective, _source(config, images, collate), images


def _supervised(config: ImagePretrainConfig, tower: VisionTower) -> Built:
    settings = config.supervised
    rows = [read_rows(folder) for folder in config.data.mixture]
    classes = ClassNames.of(rows, settings.labels)
    rows = [one.having(classes.labelled, "class labels") for one in rows]
    images = _images(config, rows)
    known = tuple(one.labelled.object_classes for one in rows)
    collate = LabelledViews(tower.image_size[0], settings.views, classes, known)
    objective = SupervisedObjective(tower, classes, label_smoothing=settings.label_smoothing)
    return objective, _source(config, images, collate), images


def _dense(config: ImagePretrainConfig, tower: VisionTower) -> Built:
    settings = config.dense
    rows = [
        read_rows(folder).having(lambda item: item.semantic is not None, "masks")
        for folder in config.data.mixture
    ]
    images = _images(config, rows)
    merged = merged_set(images)
    source = LabelledSource(
        merged,
        config.data.global_batch,
        config.seed,
        size=tower.image_size[0],
        micro_batches=config.train.micro_batches,
        augment=Augmentation(crop=settings.crop, photometric=settings.photometric),
        presence=settings.presence,
    )
    objective = DensePretraining(
        tower,
        merged.semantic_classes,
        head=settings.head,
        presence_classes=merged.object_classes if settings.presence else (),
    )
    return objective, source, images


_BUILDERS: Mapping[str, Callable[[ImagePretrainConfig, VisionTower], Built]] = {
    "mae": _masked,
    "clip": _image_text,
    "siglip": _image_text,
    "simclr": _simclr,
    "dino": _distillation,
    "supervised": _supervised,
    "dense": _dense,
}


def run_image_pretraining(
    config: ImagePretrainConfig,
    run_dir: str | Path,
    *,
    resume: bool = False,
    console: Console | None = None,
) -> TrainResult:
    """Train, and leave a run folder with configuration, metrics, checkpoints, evidence and the exported tower.

    Args:
        config: The run.
        run_dir: New folder, or the folder to resume.
        resume: Continue from the last checkpoint of the folder.
        console: Where progress is printed; standard output by default.

    Raises:
        VitpError: A wrong configuration, unusable data, a non-finite loss, a full disk.
    """
    run_dir = Path(run_dir)
    with claimed(run_dir, config, config.train.device, resume=resume) as resume:
        run = build(config)
        if distributed.rank() == 0:
            description = {"fingerprint": run.source.fingerprint(), "sets": run.images.describe()}
            write_json(run_dir / "mixture.json", description)
        trainer = Trainer(
            run.objective,
            run.source,
            config.optim,
            config.train,
            run_dir,
            hooks=probe_hooks(config.probe),
            console=console,
            resume=resume,
        )
        return trainer.train()
