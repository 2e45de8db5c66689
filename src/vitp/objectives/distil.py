"""Distillation: a student learns what one or several teachers see, from images without labels.

The student may be smaller than the teacher and of another kind. Projectors and teachers never reach the export.

Shapes: B images, C channels, H × W pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vitp.checkpoints.stages import write_stages
from vitp.core.config import LearningRate, SettingsModel
from vitp.core.errors import ConfigError, did_you_mean
from vitp.core.tensors import TensorFields
from vitp.data.augment import ViewSettings
from vitp.data.mixture import Mixture
from vitp.data.seen import PICTURES, SeenBands
from vitp.models.backbone import Backbone
from vitp.models.timm_backbone import TimmStages
from vitp.models.vision import VisionTower
from vitp.objectives.image_base import (
    ImageObjective,
    backward_factor,
    folders_of,
    image_parts,
    linear_flops,
    mixture_of,
    seeded_tower,
    seen_by,
    told_apart,
    tower_flops,
)
from vitp.objectives.image_rows import (
    ImageCollate,
    ImageSamples,
    names_of,
    stacked,
    view_generator,
    view_maker,
)
from vitp.objectives.settings import ObjectiveParts, ObjectiveSettings, Phase, RunSettings
from vitp.objectives.teachers import (
    AVERAGE,
    FURTHER,
    MATCHES,
    START,
    TeacherModel,
    TeacherSettings,
    observed,
    open_teacher,
    timm_student,
)
from vitp.records.labels import LabelledImage

_MEASURED, _AT_ONCE = 256, 16
"""Views whose tokens give the mean and the covariance of a whitened teacher, and how many of them are made at once."""


class FurtherSettings(SettingsModel):
    """The first of two stages (self-distilled further pre-training, Lee et al., 2022): it makes a teacher.

    The second stage, the run proper, starts from the initial weights again.
    """

    objective: str | dict[str, Any]
    """What the teacher learns: a name, or a section with a name and settings."""
    steps: int = Field(ge=1, le=100_000_000)
    """Optimizer steps."""
    lr: LearningRate
    """Peak learning rate."""


class StudentSettings(SettingsModel):
    """A student that is no plain ViT."""

    architecture: str
    """Name in timm, such as `convnext_atto`."""
    weights: str | None = None
    """File of its weights; none: random ones."""
    image_size: int | None = Field(None, ge=8, le=65_536)
    """Side of its views in pixels; none: what timm says."""


class DistilSettings(ObjectiveSettings):
    """Distillation from teachers."""

    name: Literal["distil"] = "distil"
    """Distillation from teachers."""
    teachers: list[TeacherSettings] = Field(
        default_factory=lambda: [TeacherSettings()], min_length=1, max_length=16
    )
    """Who teaches, and what."""
    student: StudentSettings | None = None
    """A student of another kind than `model` has; none: the tower of `model`."""
    student_layer: int = Field(-1, ge=-1000, le=1000)
    """Layer of the student that is matched."""
    further: FurtherSettings | None = None
    """First stage that makes the teacher `further`."""
    views: ViewSettings = Field(
        default_factory=lambda: ViewSettings(crop=(0.4, 1.0), colour=0.2, hue=0, grey=0, blur=0)
    )
    """How the images change; teacher and student see the same."""

    @model_validator(mode="after")
    def _has_both_stages(self) -> DistilSettings:
        if (self.further is not None) != any(teacher.source == FURTHER for teacher in self.teachers):
            raise ValueError(
                f'a first stage needs a teacher with the source "{FURTHER}", and that teacher the stage'
            )
        if self.student is not None and any(teacher.source == FURTHER for teacher in self.teachers):
            raise ValueError("student: the first stage trains the tower of model; leave one of them out")
        return self

    def build(self, run: RunSettings, *, steps: int, micro_batches: int) -> ObjectiveParts:
        """Return the objective over all images, both dates of a pair."""
        tower: Backbone = seeded_tower(run)
        if self.student is not None:
            given = self.student
            if run._tower is not None:
                raise ConfigError(
                    "a student of its own shares no tower with other objectives", where="objective.student"
                )
            tower = timm_student(given.architecture, given.weights, given.image_size, run.model.channels)
        if run.model.gradient_checkpointing and any(teacher.attention for teacher in self.teachers):
            raise ConfigError(
                "attention that is recomputed can't be matched",
                where="model.gradient_checkpointing",
                fix="switch it off, or match no attention",
            )
        rows = folders_of(run, both_dates=True)
        objective = DistilObjective(tower, self, sets=[one.name for one in rows])
        sizes = (tower.image_size[0], *(teacher.size for teacher in objective.teachers()))
        collate = TaughtViews(sizes, self.views, seen_by(cast(VisionTower, tower), run))
        if any(teacher.relations for teacher in self.teachers):
            rows = told_apart(rows)
        images = mixture_of(run, rows)
        objective.measure(images, collate)
        return image_parts(run, objective, images, collate, micro_batches)

    def phases(self) -> tuple[Phase, ...]:
        """Return the stage that makes a teacher, where there is one."""
        further = self.further
        if further is None:
            return ()

        def prepare(run: Any) -> Any:
            return type(run).model_validate({**run.model_dump(), "objective": further.objective})

        def proceed(run: Any, folder: Path) -> Any:
            return run.model_copy(update={"objective": self._taught_by(str(folder))})

        return (Phase("teacher", further.steps, further.lr, prepare, proceed),)

    def alone(self) -> DistilSettings:
        """Return the settings with the start as the teacher that a first stage would make."""
        return self if self.further is None else self._taught_by(START)

    def _taught_by(self, source: str) -> DistilSettings:
        teachers = [
            one.model_copy(update={"source": source}) if one.source == FURTHER else one
            for one in self.teachers
        ]
        return self.model_copy(update={"teachers": teachers, "further": None})


@dataclass(frozen=True)
class TaughtBatch(TensorFields):
    """Views of some images.

    Attributes:
        tiles_BCHW: As the student sees them, uint8.
        taught: As each teacher sees them, uint8; empty where it sees the student's.
        set_B: Number of each image's set, int64.
        step: Optimizer step: averages move once a step.
        record_names: Ids of the images, for messages.
    """

    tiles_BCHW: Tensor
    taught: tuple[Tensor, ...]
    set_B: Tensor
    step: int
    record_names: tuple[str, ...]

    def views(self, teacher: int) -> Tensor:
        """Return what a teacher sees, (B, C, H, W) uint8."""
        return self.taught[teacher] if len(self.taught[teacher]) else self.tiles_BCHW


@dataclass(frozen=True)
class TaughtViews(ImageCollate[TaughtBatch]):
    """Makes a `TaughtBatch`.

    Attributes:
        sizes: Side of the student's views in pixels, then of each teacher's.
        views: How the images change.
        seen: How they are read.
    """

    sizes: tuple[int, ...]
    views: ViewSettings
    seen: SeenBands = PICTURES

    def __call__(self, samples: ImageSamples, step: int) -> TaughtBatch:
        """Return the batch of some images: the same crops under the same colours, at all sizes."""
        made: dict[int, list[Any]] = {size: [] for size in self.sizes}
        for sample in samples:
            view = view_maker(sample, self.seen)
            for size, views in made.items():
                # A generator anew for each size draws the same numbers, hence the same crop and the same colours.
                views.append(view(size, self.views, view_generator(sample))[0])
        own = self.sizes[0]
        tiles = {size: stacked(views) for size, views in made.items()}
        return TaughtBatch(
            tiles[own],
            # Teachers of the student's size get the student's views; an empty tensor stands for them in the batch.
            tuple(tiles[size] if size != own else tiles[own][:0] for size in self.sizes[1:]),
            torch.tensor([sample.entry for sample in samples]),
            step,
            names_of(samples),
        )

    def describe(self) -> Mapping[str, Any]:
        """Return what decides the batch."""
        return {"sizes": self.sizes, "views": self.views.model_dump(mode="json")}


class DistilObjective(ImageObjective):
    """The distances between a student and its teachers.

    Each teacher has its losses (`tokens`, `pooled`, `attention`, `relations`; with the number of the teacher behind
    where there are several), summed over the images of the sets that it teaches, and its weight times theirs.

    Args:
        tower: The student.
        config: Teachers and matches.
        sets: Names of the sets of the mixture, in its order.

    Raises:
        ConfigError: A teacher names a set that isn't there, or can't be matched.
    """

    PARTS: ClassVar[Mapping[str, str]] = {"tower.": "vision tower", "taught_by.": "teacher"}

    def __init__(self, tower: Backbone, config: DistilSettings, sets: Sequence[str] = ()) -> None:
        super().__init__(cast(VisionTower, tower))
        self.config = config
        found, self.taught_sets = [], []
        for settings in config.teachers:
            backbone = open_teacher(settings, tower, tower.in_channels)
            found.append(TeacherModel(backbone, settings, tower, config.student_layer))
            for name in settings.sets:
                if name not in sets:
                    hint = did_you_mean(name, sets) or f"sets are: {', '.join(sets)}"
                    raise ConfigError(f"there is no set {name!r}", where="objective.teachers.sets", fix=hint)
            self.taught_sets.append([number for number, name in enumerate(sets) if name in settings.sets])
        self.taught_by = nn.ModuleList(found)
        self.projectors = nn.ModuleList([teacher.projectors(tower) for teacher in found])
        self.moved_at: Tensor
        self.register_buffer("moved_at", torch.zeros((), dtype=torch.int64))
        self.loss_weights = {
            self._name(match, number): teacher.settings.weight * getattr(teacher.settings, match)
            for number, teacher in enumerate(found)
            for match in MATCHES
            if getattr(teacher.settings, match)
        }
        self._flops: dict[Any, float] = {}

    def measure(self, images: Mixture[LabelledImage], collate: TaughtViews) -> None:
        """Take mean and covariance of what teachers whiten, over the first views of the run: the same on every rank."""
        student = cast(Backbone, self.tower)
        stride = student.strides[self.config.student_layer]
        # Rounded up, as padded convolutions do at a side that their stride doesn't divide.
        grid = tuple(-(-side // stride) for side in student.image_size)
        for number, teacher in enumerate(self.teachers()):
            if teacher.whitening is None:
                continue
            found: list[Tensor] = []
            for first in range(0, _MEASURED, _AT_ONCE):
                batch = collate([images[first + offset] for offset in range(_AT_ONCE)], 0)
                rows_B = self._rows(batch, number)
                if rows_B.any():
                    found.append(teacher.seen(batch.views(number)[rows_B], grid)[0].flatten(0, 1))
            teacher.whitening.measure(torch.cat(found))
            for projector in cast(nn.ModuleDict, self.projectors[number]).values():
                last = projector[-1] if isinstance(projector, nn.Sequential) else projector
                linear = cast(nn.Linear, last)
                # A projector that begins as the identity begins as the whitening now, so that the student starts at its
                # targets.
                if linear.in_features == linear.out_features:
                    teacher.whitening.start(linear)

    def teachers(self) -> list[TeacherModel]:
        """Return the teachers, in the order of the settings."""
        return cast(list[TeacherModel], list(self.taught_by))

    def _name(self, match: str, number: int) -> str:
        return match if len(self.config.teachers) == 1 else f"{match} {number + 1}"

    def _rows(self, batch: TaughtBatch, number: int) -> Tensor:
        """Return which images a teacher teaches, (B,) bool."""
        if not self.config.teachers[number].sets:
            return torch.ones_like(batch.set_B, dtype=torch.bool)
        wanted = torch.tensor(self.taught_sets[number], device=batch.set_B.device)
        return torch.isin(batch.set_B, wanted)

    def forward(self, batch: TaughtBatch) -> dict[str, Tensor]:
        """Return name → sum over the images that a teacher teaches."""
        student, teachers = cast(Backbone, self.tower), self.teachers()
        self._move_averages(batch.step)
        features_BDhw, attention_BaNN = observed(
            student,
            student.normalize(batch.tiles_BCHW),
            self.config.student_layer,
            attention=any(teacher.settings.attention for teacher in teachers),
        )
        losses: dict[str, Tensor] = {}
        for number, teacher in enumerate(teachers):
            rows_B = self._rows(batch, number)
            images_BCHW = batch.views(number)
            attention = attention_BaNN if teacher.settings.attention else None
            if not rows_B.all():
                features, images_BCHW = features_BDhw[rows_B], images_BCHW[rows_B]
                attention = None if attention is None else attention[rows_B]
            else:
                features = features_BDhw
            if not rows_B.any():
                # The losses stay in the graph, so that ranks without such an image have gradients to add to the
                # others'.
                found = {m: features_BDhw.sum() * 0 for m in MATCHES if getattr(teacher.settings, m)}
            else:
                projectors = cast(nn.ModuleDict, self.projectors[number])
                found = teacher.losses(features, attention, images_BCHW, projectors)
            losses |= {self._name(match, number): loss for match, loss in found.items()}
        return losses

    def _move_averages(self, step: int) -> None:
        if not self.training or step <= int(self.moved_at):
            return
        for teacher in self.teachers():
            if teacher.settings.source == AVERAGE:
                teacher.follow(self.tower)
        self.moved_at.fill_(step)

    def loss_counts(self, batch: TaughtBatch) -> dict[str, float]:
        """Return name → number of images that the teacher teaches."""
        counts: dict[str, float] = {}
        for number, teacher in enumerate(self.teachers()):
            images = float(self._rows(batch, number).sum())
            names = (match for match in MATCHES if getattr(teacher.settings, match))
            counts |= {self._name(match, number): images for match in names}
        return counts

    def work(self, batch: TaughtBatch) -> dict[str, float]:
        """Return images and the FLOPs of the student's forward and backward and the teachers' forward passes."""
        student, count = cast(Backbone, self.tower), len(batch.tiles_BCHW)
        flops = backward_factor(student) * count * self._flops_of(student, student.image_size[0])
        for number, teacher in enumerate(self.teachers()):
            images = float(self._rows(batch, number).sum())
            flops += images * self._flops_of(teacher.backbone, teacher.size)
            flops += 3 * linear_flops(self.projectors[number], int(images))
        return {"samples": float(count), "tiles": float(count), "flops": flops}

    def _flops_of(self, backbone: Backbone, size: int) -> float:
        """Return the forward FLOPs over an image; those of a network without a formula are counted once."""
        if isinstance(backbone, VisionTower):
            return tower_flops(backbone, 1, (size // backbone.patch_size) ** 2)
        key = (id(backbone), size)
        if key not in self._flops:
            # On the meta device only shapes pass through the network: it takes no memory and no arithmetic.
            empty = copy.deepcopy(backbone).to("meta").eval()
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                empty.forward_features(torch.empty(1, backbone.num_channels, size, size, device="meta"))
            self._flops[key] = float(counter.get_total_flops())
        return self._flops[key]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the student: as an export, or as timm's folder where it is no plain ViT."""
        if isinstance(self.tower, TimmStages):
            write_stages(Path(folder), self.tower)
        else:
            super().save_pretrained(folder)
