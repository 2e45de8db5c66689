"""Short finetuning for semantic segmentation: the same fair protocol for every backbone.

Nothing is chosen: the recipe is fixed beforehand, the weights are the last ones, validation images only draw a
curve, and test images are looked at once, at the end. Which training images a seed draws depends on the set and
the seed alone, so backbones are compared on the same ones.

Shapes: N, B images, S × S pixels, C classes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from torch import Tensor

from vitp.data.images import load_image
from vitp.data.labels import LabelledSet
from vitp.engine.config import OptimConfig, TrainConfig
from vitp.engine.hooks import Hook, StepMetrics
from vitp.engine.loop import Trainer
from vitp.errors import ConfigError
from vitp.evaluation.features import frozen
from vitp.evaluation.metrics import accuracy, confusion_matrix, iou_per_class, macro_f1, mean_dice, mean_iou
from vitp.evaluation.probes import draw, label_count, splits_of, subset
from vitp.files import write_json
from vitp.models.vision import VisionTower
from vitp.objectives.dense import DenseObjective
from vitp.objectives.dense_source import Augmentation, LabelledSource, read_mask, resize, resize_mask

RESULT_FILE = "segmentation.json"
CURVE_FILE = "validation.json"


class SegmentationFinetuneConfig(BaseModel):
    """The protocol. Change it for all backbones or for none.

    Attributes:
        steps: Optimizer steps.
        batch_size: Images a step.
        lr: Peak learning rate of the head; the tower's top gets the same, lower layers less.
        layer_decay: Factor on the rate from one block to the one below it.
        weight_decay: Of AdamW.
        warmup_ratio: Share of the steps with a rising rate; a cosine to zero follows.
        drop_path: Stochastic depth rate of the last block.
        labels: Training images: a number, a share (0..1), or None for all.
        seed: Of the drawn images, the head, the order and the augmentation.
        layers: Layers that the head reads; None: the middle and the last one.
        hidden: Channels of the head.
        freeze: Train the head only.
        crop, photometric: See `Augmentation`.
        val_every: Steps between validations.
        max_val_images: Validation images at most.
        num_workers, device, threads: See `TrainConfig`.
    """

    model_config = ConfigDict(extra="forbid")

    steps: int = Field(default=600, gt=0)
    batch_size: int = Field(default=16, gt=0)
    lr: float = Field(default=1e-3, gt=0)
    layer_decay: float = Field(default=0.75, gt=0, le=1)
    weight_decay: float = Field(default=0.05, ge=0)
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    labels: int | float | None = None
    seed: int = Field(default=0, ge=0)
    layers: tuple[int, ...] | None = None
    hidden: int = Field(default=64, ge=8, multiple_of=8)
    freeze: bool = False
    crop: float = Field(default=0.6, gt=0, le=1)
    photometric: float = Field(default=0.2, ge=0)
    val_every: int = Field(default=100, gt=0)
    max_val_images: int = Field(default=200, gt=0)
    num_workers: int = Field(default=0, ge=0)
    device: str = "auto"
    threads: int | None = Field(default=None, gt=0)


@dataclass(frozen=True)
class SegmentationResult:
    """What a finetuning gave on the test images, with the weights of the last step.

    Attributes:
        miou: Mean IoU over the classes that the truth holds, on 0..1, of pixels at the tower's image size.
        class_iou: Class → IoU, None for classes that the truth doesn't hold.
        macro_f1, pixel_accuracy: Over all pixels.
        dice: Mean of per-image Dice.
        val_miou: (step, mIoU on the validation images).
        train_images, val_images, test_images: Numbers of images.
        steps, seed: Of the protocol.
    """

    miou: float
    class_iou: Mapping[str, float | None]
    macro_f1: float
    pixel_accuracy: float
    dice: float
    val_miou: tuple[tuple[int, float], ...]
    train_images: int
    val_images: int
    test_images: int
    steps: int
    seed: int


def finetune_segmentation(
    tower: VisionTower,
    labelled_set: LabelledSet | Mapping[str, LabelledSet],
    config: SegmentationFinetuneConfig,
    run_dir: str | Path,
    *,
    resume: bool = False,
    console: Console | None = None,
) -> SegmentationResult:
    """Finetune a copy of the tower with a light decoder and score it on the test images.

    Images are squeezed to the tower's size: cut large ones into crops beforehand.

    Args:
        tower: The initialisation; it is not changed.
        labelled_set: A set with masks and train, val and test items, or one set for each split.
        config: The protocol.
        run_dir: Gets the run and `segmentation.json`.
        resume: Continue an interrupted run.
        console: Where progress goes.

    Raises:
        ConfigError: The set has no masks or not enough labels.
        VitpError: What training raises.
    """
    splits = splits_of(labelled_set)
    train = _draw_labels(splits["train"], config)
    objective = _objective(tower, train.semantic_classes, config)
    validation = Validation(subset(splits["val"], config.max_val_images), config.val_every, Path(run_dir))
    source = LabelledSource(
        train,
        config.batch_size,
        config.seed,
        size=tower.image_size[0],
        augment=Augmentation(crop=config.crop, photometric=config.photometric),
    )
    optim, loop = _engine_configs(config)
    Trainer(
        objective, source, optim, loop, run_dir, hooks=(validation,), console=console, resume=resume
    ).train()
    result = _result(evaluate(objective, splits["test"]), train, validation, config)
    write_json(Path(run_dir) / RESULT_FILE, {**asdict(result), "protocol": config.model_dump(mode="json")})
    return result


def _draw_labels(train: LabelledSet, config: SegmentationFinetuneConfig) -> LabelledSet:
    if not train.semantic_classes:
        raise ConfigError("has no masks", where=train.name, fix="choose a set with semantic classes")
    count = label_count(len(train), config.labels)
    scenes = {name: number for number, name in enumerate(train.scene_classes)}
    items = [train.items[index] for index in range(len(train))]
    scene_N = torch.tensor([scenes.get(item.scene or "", -1) for item in items])
    return replace(train, items=[items[index] for index in draw(scene_N, count, config.seed).tolist()])


def _objective(
    tower: VisionTower, classes: Sequence[str], config: SegmentationFinetuneConfig
) -> DenseObjective:
    # What happened before in this process must not decide the head, and the tower may be on a GPU.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        own = VisionTower(tower.config, drop_path=config.drop_path)
        own.load_state_dict(tower.state_dict(), strict=True)
        own.requires_grad_(not config.freeze)
        layers = config.layers or sorted({max(own.num_layers // 2 - 1, 0), own.num_layers - 1})
        return DenseObjective(own, classes, head="conv", layers=layers, hidden=config.hidden)


def _engine_configs(config: SegmentationFinetuneConfig) -> tuple[OptimConfig, TrainConfig]:
    optim = OptimConfig(
        lr=config.lr,
        layer_decay=config.layer_decay,
        weight_decay=config.weight_decay,
        warmup_ratio=config.warmup_ratio,
    )
    loop = TrainConfig(
        steps=config.steps,
        num_workers=config.num_workers,
        seed=config.seed,
        device=config.device,
        threads=config.threads,
        save_every=max(config.steps // 4, 100),  # a short run is sooner repeated than saved
        keep_last=1,
        tensorboard=False,
        must_train=("head",) if config.freeze else ("vision tower", "head"),
    )
    return optim, loop


class Validation(Hook):
    """Scores the model on validation images every `every` steps and after the last one.

    Attributes:
        curve: (step, mIoU).
    """

    def __init__(self, images: LabelledSet, every: int, run_dir: Path) -> None:
        self.images, self.every, self.file = images, every, run_dir / CURVE_FILE
        self.curve: list[tuple[int, float]] = []

    def on_start(self, trainer: Trainer) -> None:
        """Take up the curve of an interrupted run."""
        if trainer.step and self.file.exists():
            rows = json.loads(self.file.read_text(encoding="utf-8"))
            self.curve = [(step, miou) for step, miou in rows if step <= trainer.step]

    def on_step_end(self, trainer: Trainer, step: int, metrics: StepMetrics) -> None:
        """Score every `every` steps and at the end."""
        if not trainer.is_main or (step % self.every and step != trainer.config.steps):
            return
        assert isinstance(trainer.objective, DenseObjective)
        miou = mean_iou(evaluate(trainer.objective, self.images).sum(0))
        self.curve.append((step, miou))
        write_json(self.file, self.curve)
        if math.isfinite(miou):
            trainer.log_scalars(step, {"val/miou": miou})


def evaluate(objective: DenseObjective, images: LabelledSet, *, batch_size: int = 16) -> np.ndarray:
    """Return (N, C, C) confusion counts of each image's pixels at the tower's image size.

    Raises:
        ConfigError: There are no images.
        DataError: An image or mask can't be used.
    """
    if not len(images):
        raise ConfigError("has no images", where=images.name, fix="choose another split")
    device = next(objective.parameters()).device
    height, width = objective.tower.image_size
    found = []
    with frozen(objective):
        for tiles_BCSS, target_BSS in _batches(images, (height, width), batch_size):
            prediction_BSS = objective.predict(tiles_BCSS.to(device)).argmax(1).cpu()
            found += [
                confusion_matrix(prediction_SS, target_SS, len(objective.classes))
                for prediction_SS, target_SS in zip(prediction_BSS, target_BSS, strict=True)
            ]
    return np.stack(found)


def _batches(images: LabelledSet, size: tuple[int, int], batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(images), batch_size):
        tiles, targets = [], []
        for index in range(start, min(start + batch_size, len(images))):
            item = images.items[index]
            image_HWC = np.asarray(load_image(item.image))
            height, width = image_HWC.shape[:2]
            tiles.append(resize(image_HWC, size))
            targets.append(resize_mask(read_mask(item, images, (height, width)), size))
        yield torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2), torch.from_numpy(np.stack(targets))


def _result(
    confusion_NCC: np.ndarray,
    train: LabelledSet,
    validation: Validation,
    config: SegmentationFinetuneConfig,
) -> SegmentationResult:
    confusion_CC = confusion_NCC.sum(0)
    iou_C = iou_per_class(confusion_CC)
    return SegmentationResult(
        miou=mean_iou(confusion_CC),
        class_iou={
            name: float(iou) if pixels else None
            for name, iou, pixels in zip(train.semantic_classes, iou_C, confusion_CC.sum(1), strict=True)
        },
        macro_f1=macro_f1(confusion_CC),
        pixel_accuracy=accuracy(confusion_CC),
        dice=mean_dice(confusion_NCC),
        val_miou=tuple(validation.curve),
        train_images=len(train),
        val_images=len(validation.images),
        test_images=len(confusion_NCC),
        steps=config.steps,
        seed=config.seed,
    )
