"""A finetuning run: typed configuration in, run folder with model and scores out.

RUN/config.yaml      the configuration
RUN/metrics.jsonl    losses and validation scores
RUN/validation.json  the curve on validation images, and the best step
RUN/best/            the best weights, and the best until each checkpoint
RUN/evidence.json    how far the backbone moved
RUN/model/           the model (`vitp.tasks.model_folder.load_task`)
RUN/scores.json      the scores on the test images, looked at once, at the end
RUN/cases.csv        of medical images: each class of each case, in mm and ml
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from vitp.core import distributed
from vitp.core.config import CONFIG_FILE, save_config
from vitp.core.errors import ConfigError, VitpError
from vitp.core.files import atomic_dir, write_json
from vitp.core.version import __version__
from vitp.data.augment import AugmentSettings
from vitp.data.batches import SampledBatches, check_global_batch
from vitp.data.formats.empty import limit_empty
from vitp.data.seen import SeenBands
from vitp.engine.hooks import Hook, TrainResult
from vitp.engine.trackers import Trackers, check_trackers, tracked
from vitp.metrics.cases import write_cases
from vitp.metrics.results import Scores
from vitp.models.backbone import Backbone
from vitp.models.compute import configure_backbone
from vitp.records.labels import LabelledImage, LabelledSet
from vitp.runs.assemble import RunParts, say, train_parts
from vitp.runs.balance import balanced_classes
from vitp.runs.channels import frozen_kernel_notes, tower_channels
from vitp.runs.finetune_settings import FinetuneConfig as FinetuneConfig
from vitp.runs.finetune_settings import FinetuneDataSettings as FinetuneDataSettings
from vitp.runs.finetune_settings import FinetuneTrainSettings as FinetuneTrainSettings
from vitp.runs.folder import as_begun, claimed
from vitp.runs.micro_batch import chosen_batch, chosen_before
from vitp.tasks.base import (
    STAGGERED_OVERLAP,
    InputSize,
    LabelKind,
    TaskBatch,
    TaskModel,
    TestSettings,
    check_whole,
)
from vitp.tasks.batches import task_batches
from vitp.tasks.build import TASK_MODELS, build_model, open_backbone, task_of
from vitp.tasks.data import LabelReader, classes_of, draw_labels, open_configured, task_splits
from vitp.tasks.folds import fold_splits
from vitp.tasks.label_notes import label_notes, left_out_notes, nodata_notes
from vitp.tasks.seen import larger_note
from vitp.tasks.sizes import fitted_head, fitted_neck, fitted_sizes, new_settings, seen_sizes, slide_mpp
from vitp.tasks.validation import Validation

SCORES_FILE = "scores.json"
CASES_FILE = "cases.csv"
SEAMLESS = {"overlap": STAGGERED_OVERLAP, "stagger": True}
"""How windows of class maps lie in runs that don't say it; see "Seams" in docs/results.md."""


@dataclass(frozen=True)
class FinetuneResult:
    """What a run left.

    Attributes:
        scores: On the test images.
        model: Folder of the model.
        step: Step of the weights that were kept.
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

    def validation(self, folder: Path) -> Validation:
        """Return what looks at validation images while the run goes on."""
        every, most = self.config.train.val_every, self.config.data.max_val_images
        return Validation(self.splits["val"], self.test, every, most, folder)

    def parts(self, hooks: Sequence[Hook] = ()) -> RunParts:
        """Return what is trained; hooks only count where the run validates at all."""
        config = self.config
        frozen = ("head",) if config.backbone.freeze else ("vision tower", "head")
        train = config.train.of_engine(seed=config.seed, must_train=config.train.must_train or frozen)
        hooks = () if config.train.val_every == 0 else hooks
        return RunParts(self.model, self.source, config.optim, train, hooks)


def run_splits(
    labelled: LabelledSet, config: FinetuneConfig, kind: LabelKind, said: list[str] | None = None
) -> dict[str, LabelledSet]:
    """Return the train, val and test images of a run; see `data.splits`, `data.folds` and `task_splits`.

    Lines about folds are added to `said`.

    Raises:
        ConfigError: Val and test are the same images, and the best weights on them are wanted; or folds can't be made.
        DataError: A split has no labels of the kind.
    """
    stand_in = config.data.splits
    if config.data.folds is not None:
        if stand_in:
            fix = "leave one of them out"
            raise ConfigError("name the splits a second time", where="data.folds, data.splits", fix=fix)
        fold, best = (config.data.folds, config.data.fold), config.train.choose == "best"
        parts, line = fold_splits(labelled, kind, fold, choose=best)
        (said if said is not None else []).append(line)
        return parts
    if not stand_in:
        if not len(labelled.split("test")) and len(labelled.split("val")):
            fix = (
                "-s data.splits.test=val scores the val images, by which nothing is chosen then; "
                "-s data.options.splits=drawn draws other splits"
            )
            raise ConfigError("there are no test images", where=labelled.name, fix=fix)
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
    task = task_of(config.task, config.head)
    kind = task.labels(config.head)
    labelled = open_configured(config.data.root, config.data.format, config.data.options)
    said: list[str] = []
    splits = run_splits(labelled, config, kind, said)
    train = limit_empty(splits["train"], config.data.empty, config.seed)
    if not len(train):
        what = "no training image holds an object, and empty ones are left out"
        raise ConfigError(what, where="data.empty", fix="choose a larger share, or 1")
    splits["train"] = draw_labels(train, config.data.labels, config.seed)  # an epoch is one pass over these
    classes = classes_of(labelled, kind)
    config = config.model_copy(
        update={"train": config.train.of(len(splits["train"]), config.data.global_batch)}
    )
    channels, lines = tower_channels(config.backbone, labelled, config.augment.band_dropout)
    config = config.model_copy(update={"backbone": config.backbone.model_copy(update={"channels": channels})})
    notes = [*said, *lines, *left_out_notes(splits, labelled.findings), *label_notes(splits, kind, classes)]
    if kind == "panoptic":
        check_whole(config.test)
        head = {"things": [name for name in classes if name in labelled.object_classes], **config.head}
        config = config.model_copy(update={"head": head})
    backbone = open_backbone(config.backbone, config.seed)
    notes += frozen_kernel_notes(backbone, config.backbone.init, config.backbone.vision)
    seen = replace(
        SeenBands.by(backbone.in_channels, labelled),
        band_dropout=config.augment.band_dropout,
        window_jitter=config.augment.window_jitter,
    )
    if config.data.sizes == "fit":
        config, said = _fitted(config, kind, splits["train"], backbone)
        notes += said
    config, said = _without_seams(config, kind)
    notes += said
    repeats, config, said = balanced_classes(config, kind, splits["train"], classes)
    notes += said
    model = build_model(config.task, backbone, classes, config.neck, config.head, seed=config.seed)
    configure_backbone(model, model.vision_tower, config.compute)
    model.input_size = _input_size(config.data.resize, backbone.image_size[0])
    model.steps = config.train.steps
    _describe(model, config, splits)
    notes += [f"{name}: {line}" for name in splits for line in larger_note(model, config.test, splits[name])]
    reader = LabelReader(splits["train"], kind, model.classes, seen)
    source = task_batches(
        reader,
        config.data.global_batch,
        config.seed,
        micro_batches=config.train.micro_batches,
        size=model.input_size,
        augmentation=_augmentation(config, kind),
        repeats=repeats,
    )
    return FinetuneRun(config, model, source, splits, (*notes, *nodata_notes(reader, "training")))


def _fitted(
    config: FinetuneConfig, kind: LabelKind, train: LabelledSet, backbone: Backbone
) -> tuple[FinetuneConfig, list[str]]:
    """Return the configuration with the sizes that it doesn't give, and lines that say them; see `tasks.sizes`."""
    anchors, regions, objects, said, data, test = None, None, 0, [], config.data, config.test
    if data.resize is None:
        by_regions = task_of(config.task, config.head) is TASK_MODELS.get(config.task)
        fit = fitted_sizes(train, kind, backbone.image_size[0], regions=by_regions)
        window = None if data.crop or config.augment.crop else fit.window
        data = data.model_copy(update={"resize": fit.resize, "crop": data.crop or window})
        if test.window is None:
            test = test.model_copy(update={"window": fit.window})
        anchors, regions, objects, said = fit.anchors, fit.regions, fit.objects, [*fit.said]
    width = backbone.channels[-1]
    head = fitted_head(config.task, config.head, width, anchors, regions, objects)
    options = fitted_neck(config.neck.kind, config.neck.options, width)
    if new := [*new_settings(config.head, head), *new_settings(config.neck.options, options, "neck.options")]:
        said.append(f"sizes fitted to a tower of {width} channels and to the data: {', '.join(new)}")
    neck = config.neck.model_copy(update={"options": options})
    return config.model_copy(update={"data": data, "test": test, "head": head, "neck": neck}), said


def _without_seams(config: FinetuneConfig, kind: LabelKind) -> tuple[FinetuneConfig, list[str]]:
    """Return the configuration with windows of class maps that show fewer seams, where it says nothing of them, and a
    line that says it."""
    test = config.test
    if kind not in ("semantic", "change") or {*SEAMLESS} & test.model_fields_set:
        return config, []
    line = (
        "class maps: where images are seen through windows, neighbours share half of their width and begin at "
        "different parts of a patch (test.overlap 0.5, test.stagger true)"
    )
    return config.model_copy(update={"test": test.model_copy(update=SEAMLESS)}), [line]


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
    _check_mixes(settings, config, kind)
    # An image of one class is nothing to be avoided where the whole image has one.
    if kind in ("semantic", "change"):
        return settings
    return settings.model_copy(update={"max_class_share": 1.0})


def _check_mixes(settings: AugmentSettings, config: FinetuneConfig, kind: LabelKind) -> None:
    """Do nothing where images of the task can be mixed as the settings ask.

    Raises:
        ConfigError: They can't.
    """
    whole, fix = kind in ("scene", "presence"), "leave it out"
    for name in ("mixup", "cutmix"):
        if getattr(settings, name) and not whole:
            raise ConfigError("mixes the classes of whole images alone", where=f"augment.{name}", fix=fix)
    if settings.mosaic and kind not in ("objects", "instances", "oriented"):
        raise ConfigError("is of images with objects alone", where="augment.mosaic", fix=fix)
    for name in ("focal", "class_weights"):
        if kind == "scene" and config.head.get(name) and (settings.mixup or settings.cutmix):
            what = "weighs images by their one class, and mixed ones have two"
            raise ConfigError(
                what, where=f"head.{name.replace('weights', 'balance')}", fix="leave one of them out"
            )


def _describe(model: TaskModel, config: FinetuneConfig, splits: Mapping[str, LabelledSet]) -> None:
    train = splits["train"]
    model.description |= {
        "input": model.input_size.model_dump(mode="json"),
        "test": config.test.model_dump(mode="json"),
        "trained": seen_sizes(train, model.input_size),
        **slide_mpp(train),
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
    with _trained(config, out, (), resume, console) as (run, validation, result, trackers):
        found = _finish(run, validation, result, out)
        if trackers is not None:
            trackers.final({run.config.data.tested.replace(" ", "_"): found.scores.values})
        return found


def run_validated(
    config: FinetuneConfig,
    out: str | Path,
    hooks: Sequence[Hook],
    *,
    resume: bool = False,
    console: Console | None = None,
) -> list[tuple[int, float]]:
    """Train as `run_finetune` does, but look at no test image; return step and score of the validations.

    Args:
        config: The run; it validates.
        out: New folder, or the folder to resume.
        hooks: Look on beside the validation, after it.
        resume: Continue from the last checkpoint of the folder.
        console: Where progress is printed; standard output by default.

    Raises:
        VitpError: As `run_finetune`.
    """
    with _trained(config, Path(out), hooks, resume, console) as (_, validation, _, _):
        return list(validation.curve)


@contextmanager
def _trained(
    config: FinetuneConfig, out: Path, hooks: Sequence[Hook], resume: bool, console: Console | None
) -> Iterator[tuple[FinetuneRun, Validation, TrainResult, Trackers | None]]:
    """Claim the folder and train; within the block the run is trained, and not judged by the test yet."""
    config, said = chosen_before(as_begun(config, out), out)
    check_trackers(config.log)
    with claimed(out, config, config.train.device, resume=resume) as resume:
        check_global_batch(config.data.global_batch, config.train.micro_batches, distributed.world_size())
        run, chosen = _cut(build_run(config))
        if (kept := _kept(config, run.config)) != config and distributed.rank() == 0:
            save_config(kept, out / CONFIG_FILE)
        say([*run.notes, *said, *chosen], console)
        validation = run.validation(out)
        with tracked(out, config.log, run.config.model_dump(mode="json")) as trackers:
            parts = replace(run.parts([validation, *hooks]), trackers=trackers)
            yield run, validation, train_parts(parts, out, console=console, resume=resume), trackers


def _kept(config: FinetuneConfig, built: FinetuneConfig) -> FinetuneConfig:
    """Return what is written of a run: as it is given, with what a resumed run couldn't find out again as it was."""
    test = config.test.model_copy(update={name: getattr(built.test, name) for name in SEAMLESS})
    cut = {name: getattr(built.train, name) for name in ("batch", "micro_batches")}
    train = config.train.model_copy(update=cut)
    return config.model_copy(update={"backbone": built.backbone, "test": test, "train": train})


def _cut(run: FinetuneRun) -> tuple[FinetuneRun, list[str]]:
    """Return the run with its steps cut as `train.batch` says, and what is to be said about it."""
    config, said = chosen_batch(run.config, lambda _: (run.model, run.source))
    run.source.micro_batches = config.train.micro_batches
    return replace(run, config=config), said


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
            if scores.cases:
                write_cases(out / CASES_FILE, scores.cases, run.test.tolerance)
            write_json(out / SCORES_FILE, _scores_file(run, validation, scores, step))
        except VitpError as caught:
            # Told to all ranks below: the others would wait for the scores for ever.
            error = caught
    distributed.raise_together(error)
    scores = distributed.gather(scores)[0]
    assert scores is not None
    return FinetuneResult(scores, out / "model", step, result)


def _scores_file(run: FinetuneRun, validation: Validation, scores: Scores, step: int) -> dict[str, Any]:
    return {
        "task": run.config.task,
        "split": run.config.data.tested,
        **scores.to_json(),
        "chosen": run.config.train.choose,
        "step": step,
        "validation": [list(row) for row in validation.curve],
        "split_images": {name: len(part) for name, part in run.splits.items()},
    }
