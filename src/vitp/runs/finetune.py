"""A finetuning run: typed configuration in, run folder with model and scores out.

RUN/config.yaml      the configuration
RUN/metrics.jsonl    losses and validation scores
RUN/validation.json  the curve on validation images, and the best step
RUN/best/            the best weights, and the best until each checkpoint
RUN/evidence.json    how far the backbone moved
RUN/model/           the model (`vitp.tasks.model_folder.load_task`)
RUN/scores.json      the scores on the test images, looked at once, at the end
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from rich.console import Console

from vitp.core import distributed
from vitp.core.config import Count, Positive, SettingsModel
from vitp.core.errors import ConfigError, VitpError
from vitp.core.files import atomic_dir, write_json
from vitp.core.version import __version__
from vitp.data.augment import AugmentSettings
from vitp.data.batches import SampledBatches
from vitp.data.formats.empty import limit_empty
from vitp.engine.config import OptimConfig, TrainConfig
from vitp.engine.hooks import TrainResult
from vitp.engine.loop import Trainer
from vitp.metrics.results import Scores
from vitp.records.labels import LabelledImage, LabelledSet
from vitp.runs.folder import as_begun, claimed
from vitp.tasks.base import InputSize, LabelKind, TaskBatch, TaskModel, TestSettings
from vitp.tasks.build import BackboneSettings, NeckSettings, build_model, open_backbone, task_of
from vitp.tasks.data import (
    LabelReader,
    classes_of,
    draw_labels,
    open_labelled,
    task_batches,
    task_splits,
)
from vitp.tasks.label_notes import label_notes, left_out_notes
from vitp.tasks.validation import Validation

SCORES_FILE = "scores.json"


class DataSettings(SettingsModel):
    """What is learned from.

    Attributes:
        root: Folder with images and labels (or a domain of generated scenes, with format "scenes").
        format: See `vitp data compile`.
        options: Options of the format, as `{"classes": "forest=white"}`.
        splits: Which of the set's splits stand for val and test, where not those of that name: `{test: val}` where
            only a server has the labels of test, `{val: test}` where a set has no val. Such a test is of images that
            the curve has shown before, so they can't choose the weights either.
        empty: Training images without objects at most, as a share of the training images (1: all may stay). Which ones
            stay follows from `seed`; val and test keep theirs.
        labels: Training images: a number, a share (0..1), or None for all. Which ones follows from `seed`; they are
            drawn from those that `empty` left.
        resize: What size images get first; None: a square of the backbone's size.
        crop: Side of random square crops while training; see `AugmentSettings.crop`.
        max_val_images: Validation images at most, the same ones each time.
    """

    root: str
    format: str = "auto"
    options: dict[str, Any] = Field(default_factory=dict)
    splits: dict[Literal["val", "test"], Literal["train", "val", "test"]] = Field(default_factory=dict)
    empty: float = Field(default=1.0, ge=0, le=1)
    labels: Count | Positive | None = None
    resize: InputSize | None = None
    crop: int | None = Field(default=None, ge=8, le=65_536)
    max_val_images: int = Field(default=500, gt=0, le=10_000_000)


class FinetuneTrainConfig(TrainConfig):
    """Length, precision and bookkeeping of a finetuning; see `TrainConfig`.

    Attributes:
        epochs: Passes over the training images, as publications state a length; it takes precedence over `steps`.
        batch_size: Images an optimizer step, over all micro-batches and ranks.
        val_every: Steps between validations; None: only after the last step; 0: never.
        choose: Which weights are kept: those of the `last` step, or the `best` on validation images. Test
            images never choose.
    """

    steps: int = Field(600, gt=0, le=100_000_000)
    epochs: float | None = Field(None, gt=0, le=1_000_000)
    num_workers: int = Field(0, ge=0, le=512)
    tensorboard: bool = False
    batch_size: int = Field(16, gt=0, le=1_000_000)
    val_every: int | None = Field(100, ge=0, le=100_000_000)
    choose: Literal["last", "best"] = "last"

    @model_validator(mode="after")
    def _something_to_choose_by(self) -> FinetuneTrainConfig:
        if self.choose == "best" and self.val_every == 0:
            raise ValueError(
                'the "best" weights are chosen on validation images, and val_every 0 looks at none'
            )
        return self

    def of(self, images: int) -> FinetuneTrainConfig:
        """Return the settings with `epochs` over a number of training images turned into steps."""
        if self.epochs is None:
            return self
        steps = max(1, round(self.epochs * images / self.batch_size))
        return self.model_copy(update={"steps": steps, "epochs": None})


class FinetuneConfig(SettingsModel):
    """A complete finetuning run.

    The defaults suit small ViTs on small images. The published settings are in
    `docs/finetuning.md`.
    """

    task: str
    seed: int = Field(0, ge=0, le=2**63 - 1)
    backbone: BackboneSettings = Field(default_factory=BackboneSettings)
    neck: NeckSettings = Field(default_factory=NeckSettings)
    head: dict[str, Any] = Field(default_factory=dict)
    data: DataSettings
    augment: AugmentSettings = Field(default_factory=AugmentSettings)
    optim: OptimConfig = Field(
        default_factory=lambda: OptimConfig(lr=1e-3, weight_decay=0.05, warmup_ratio=0.1, layer_decay=0.75)
    )
    train: FinetuneTrainConfig = Field(default_factory=lambda: FinetuneTrainConfig())
    test: TestSettings = Field(default_factory=TestSettings)


@dataclass(frozen=True)
class FinetuneResult:
    """What a run left.

    Attributes:
        scores: On the test images.
        model: Folder of the model.
        step: Of the weights that were kept.
        train: What the engine says.
    """

    scores: Scores
    model: Path
    step: int
    train: TrainResult


@dataclass(frozen=True)
class FinetuneRun:
    """The parts of a run, ready for the engine; `notes` are lines on what its labels can't teach or score."""

    config: FinetuneConfig
    model: TaskModel
    source: SampledBatches[LabelledImage, TaskBatch]
    splits: Mapping[str, LabelledSet]
    notes: tuple[str, ...] = ()

    @property
    def test(self) -> TestSettings:
        """How the model is applied, sizes filled in."""
        return self.config.test.model_copy(
            update={"resize": self.config.test.resize or self.model.input_size}
        )


def run_splits(labelled: LabelledSet, config: FinetuneConfig, kind: LabelKind) -> dict[str, LabelledSet]:
    """Return the train, val and test images of a run; see `DataSettings.splits` and `task_splits`.

    Raises:
        ConfigError: Val and test are the same images, and the best weights on them are wanted.
        DataError: A split has no labels of the kind.
    """
    stand_in = config.data.splits
    if not stand_in:
        return task_splits(labelled, kind)
    places = {"train": "train", "val": stand_in.get("val", "val"), "test": stand_in.get("test", "test")}
    if places["val"] == places["test"] and config.train.choose == "best":
        raise ConfigError(
            "the best weights on the images of the test are no fair choice",
            where="train.choose",
            fix='choose the "last"',
        )
    return task_splits({name: labelled.split(place) for name, place in places.items()}, kind)


def build_run(config: FinetuneConfig) -> FinetuneRun:
    """Return model and batches of a configuration.

    Raises:
        VitpError: Something in the configuration, the backbone or the data can't be used.
    """
    task = task_of(config.task)
    kind = task.labels(config.head)
    labelled = open_labelled(config.data.root, config.data.format, **config.data.options)
    splits = run_splits(labelled, config, kind)
    train = limit_empty(splits["train"], config.data.empty, config.seed)
    if not len(train):
        raise ConfigError(
            "no training image holds an object, and empty ones are left out",
            where="data.empty",
            fix="choose a larger share, or 1",
        )
    splits["train"] = draw_labels(train, config.data.labels, config.seed)
    classes = classes_of(labelled, kind)
    notes = (*left_out_notes(splits, labelled.findings), *label_notes(splits, kind, classes))
    config = config.model_copy(update={"train": config.train.of(len(splits["train"]))})
    backbone = open_backbone(config.backbone, config.seed)
    model = build_model(config.task, backbone, classes, config.neck, config.head, seed=config.seed)
    model.input_size = _input_size(config.data.resize, backbone.image_size[0])
    _describe(model, config, splits)
    source = task_batches(
        LabelReader(splits["train"], kind, model.classes),
        config.train.batch_size,
        config.seed,
        micro_batches=config.train.micro_batches,
        size=model.input_size,
        augmentation=_augmentation(config, kind),
    )
    return FinetuneRun(config, model, source, splits, notes)


def _input_size(wanted: InputSize | None, side: int) -> InputSize:
    if wanted is None:
        return InputSize(mode="fixed", size=side)
    if wanted.mode != "none" and wanted.size is None:
        return wanted.model_copy(update={"size": side})
    return wanted


def _augmentation(config: FinetuneConfig, kind: LabelKind) -> AugmentSettings:
    settings = config.augment
    if config.data.crop is not None:
        settings = settings.model_copy(update={"crop": config.data.crop})
    # An image of one class is nothing to be avoided where the whole image has one.
    if kind in ("semantic", "change"):
        return settings
    return settings.model_copy(update={"max_class_share": 1.0})


def _describe(model: TaskModel, config: FinetuneConfig, splits: Mapping[str, LabelledSet]) -> None:
    train = splits["train"]
    model.description |= {
        "input": model.input_size.model_dump(mode="json"),
        "test": config.test.model_dump(mode="json"),
        "card": {
            "vitp_version": __version__,
            "backbone": config.backbone.init,
            "data": train.name,
            "licence": train.licence,
            "train_images": len(train),
            "steps": config.train.steps,
            "seed": config.seed,
        },
    }


def run_finetune(
    config: FinetuneConfig, out: str | Path, *, resume: bool = False, console: Console | None = None
) -> FinetuneResult:
    """Finetune, choose the weights, score them once on the test images, and leave a run folder.

    Args:
        config: The run.
        out: New folder, or the folder to resume.
        resume: Continue from the last checkpoint of the folder.
        console: Where progress is printed; standard output by default.

    Raises:
        VitpError: A wrong configuration, unusable data, a loss that is not finite, a full disk.
    """
    out = Path(out)
    config = as_begun(config, out)
    with claimed(out, config, config.train.device, resume=resume) as resume:
        return _train(config, out, resume, console)


def _train(config: FinetuneConfig, out: Path, resume: bool, console: Console | None) -> FinetuneResult:
    run = build_run(config)
    config = run.config
    console = console or Console()
    if distributed.rank() == 0:
        for note in run.notes:
            console.print(note, style="yellow", markup=False, highlight=False)
    validation = Validation(
        run.splits["val"], run.test, config.train.val_every, config.data.max_val_images, out
    )
    engine = TrainConfig.model_validate(config.train.model_dump(include=set(TrainConfig.model_fields)))
    if not engine.must_train:
        parts = ("head",) if config.backbone.freeze else ("vision tower", "head")
        engine = engine.model_copy(update={"must_train": parts})
    trainer = Trainer(
        run.model,
        run.source,
        config.optim,
        engine.model_copy(update={"seed": config.seed}),
        out,
        hooks=() if config.train.val_every == 0 else (validation,),
        console=console,
        resume=resume,
    )
    result = trainer.train()
    return _finish(run, validation, result, out)


def _finish(run: FinetuneRun, validation: Validation, result: TrainResult, out: Path) -> FinetuneResult:
    """Choose the weights, score them on the test images and write both, on the first rank."""
    scores, error, step = None, None, result.step
    if distributed.rank() == 0:
        try:
            if run.config.train.choose == "best":
                step = validation.apply_best(run.model)
            run.model.description["card"] |= {"chosen": run.config.train.choose, "step": step}
            with atomic_dir(out / "model") as temporary:
                run.model.save_pretrained(temporary)
            scores = run.model.evaluate(run.splits["test"], run.test)
            write_json(out / SCORES_FILE, _scores_file(run, validation, scores, step))
        except VitpError as caught:
            error = caught
    distributed.raise_together(error)
    scores = distributed.gather(scores)[0]
    assert scores is not None
    return FinetuneResult(scores, out / "model", step, result)


def _scores_file(run: FinetuneRun, validation: Validation, scores: Scores, step: int) -> dict[str, Any]:
    return {
        "task": run.config.task,
        "split": run.config.data.splits.get("test", "test"),
        **scores.to_json(),
        "chosen": run.config.train.choose,
        "step": step,
        "validation": [list(row) for row in validation.curve],
        "split_images": {name: len(part) for name, part in run.splits.items()},
    }
