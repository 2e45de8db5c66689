"""The settings of a finetuning run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from vitp.core.config import Count, Positive, SettingsModel
from vitp.data.augment import AugmentSettings
from vitp.engine.config import LogSettings, OptimSettings, TrainSettings
from vitp.models.compute import BackboneComputeSettings
from vitp.runs import migrations
from vitp.tasks.base import InputSize, TestSettings
from vitp.tasks.build import BackboneSettings, NeckSettings


class FinetuneDataSettings(SettingsModel):
    """What is learned from."""

    root: str
    """Folder with images and labels (or a domain of generated scenes, with format "scenes")."""
    format: str = "auto"
    """Format of the labels; see `vitp data compile`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the format, as `{"classes": "forest=white"}`."""
    splits: dict[Literal["val", "test"], Literal["train", "val", "test"]] = Field(default_factory=dict)
    """Which of the set's splits stand for val and test, where not those of that name: `{test: val}` where
    only a server has the labels of test, `{val: test}` where a set has no val. Such a test is of images
    that the curve has shown before, so they can't choose the weights either."""
    folds: int | None = Field(None, ge=2, le=1000)
    """Parts of a cross-validation, over the train and val images, by group (a patient's images are in one part); none:
    the set's own splits. Folds that the set has of its own count where there are as many."""
    fold: int = Field(0, ge=0, lt=1000)
    """Which of the `folds` is the test, from 0; the others are trained on."""
    empty: float = Field(1.0, ge=0, le=1)
    """Training images without objects at most, as a share of the training images (1: all may stay). Which
    ones stay follows from `seed`; val and test keep theirs."""
    labels: Count | Positive | None = None
    """Training images: a number, a share (0..1), or none for all. Which ones follows from `seed`; they
    are drawn from those that `empty` left."""
    repeat_threshold: float | None = Field(None, gt=0, le=1)
    """Images of rare classes come more often, √(t / f) times for a class that a share f of the training images holds
    (repeat factor sampling, as for LVIS, which takes t = 0.001); none: all images come equally often. For classes of
    images and for objects, not for masks."""
    global_batch: int = Field(16, ge=1, le=1_000_000)
    """Images an optimizer step, over all ranks and micro-batches."""
    sizes: Literal["fit", "fixed"] = "fit"
    """What sizes that aren't given follow from. `fit`: images, windows and anchors from the images and objects, widths
    of neck and head from the tower. `fixed`: images become squares of the backbone's size, and heads have
    their published widths."""
    resize: InputSize | None = None
    """What size images get first; none: as `sizes` says."""
    crop: int | None = Field(None, ge=8, le=65_536)
    """Side of random square crops while training; takes precedence over `augment.crop`."""
    max_val_images: int = Field(500, gt=0, le=10_000_000)
    """Validation images at most, the same ones each time."""

    @property
    def tested(self) -> str:
        """What the scores are of."""
        return self.splits.get("test", "test") if self.folds is None else f"fold {self.fold} of {self.folds}"


class FinetuneTrainSettings(TrainSettings):
    """Length, precision and bookkeeping of a finetuning."""

    steps: int = Field(600, gt=0, le=100_000_000)
    """Optimizer steps."""
    epochs: float | None = Field(None, gt=0, le=1_000_000)
    """Passes over the training images, as publications state a length; takes precedence over `steps`."""
    num_workers: int = Field(0, ge=0, le=512)
    """Processes that prepare batches; 0: the training process does."""
    val_every: int | None = Field(100, ge=0, le=100_000_000)
    """Steps between validations; none: only after the last step; 0: never."""
    choose: Literal["last", "best"] = "last"
    """Which weights are kept: those of the `last` step, or the `best` on validation images (the default with
    `patience`). Test images never choose."""

    @model_validator(mode="after")
    def _something_to_choose_by(self) -> FinetuneTrainSettings:
        if self.patience is not None and not self.val_every:
            raise ValueError(
                "patience judges by the validations, and there are none on the way; give val_every"
            )
        if self.patience is not None and "choose" not in self.model_fields_set:
            self.choose = "best"
        if self.choose == "best" and self.val_every == 0:
            raise ValueError(
                'the "best" weights are chosen on validation images, and val_every 0 looks at none'
            )
        return self

    def of(self, images: int, global_batch: int) -> FinetuneTrainSettings:
        """Return the settings with `epochs` over a number of training images turned into steps."""
        if self.epochs is None:
            return self
        steps = max(1, round(self.epochs * images / global_batch))
        return self.model_copy(update={"steps": steps, "epochs": None})

    def of_engine(self, **changes: Any) -> TrainSettings:
        """Return what the engine needs of the settings, with some of them changed."""
        known = self.model_dump(include=set(TrainSettings.model_fields))
        return TrainSettings.model_validate({**known, **changes})


class FinetuneConfig(SettingsModel):
    """A complete finetuning run.

    The defaults suit small ViTs on small images. The published settings are in `docs/finetuning.md`.
    """

    task: str
    """`classification`, `segmentation`, `change`, `detection`, `instance` or `oriented`."""
    seed: int = Field(0, ge=0, le=2**63 - 1)
    """Seed of the order of the images, of random weights and of augmentation."""
    backbone: BackboneSettings = Field(default_factory=BackboneSettings)
    """Where the backbone comes from."""
    neck: NeckSettings = Field(default_factory=NeckSettings)
    """What lies between backbone and head."""
    head: dict[str, Any] = Field(default_factory=dict)
    """Settings of the task's head; see the tables of the heads."""
    data: FinetuneDataSettings
    """What is learned from."""
    augment: AugmentSettings = Field(default_factory=AugmentSettings)
    """How training images change."""
    optim: OptimSettings = Field(
        default_factory=lambda: OptimSettings(lr=1e-3, weight_decay=0.05, warmup_ratio=0.1, layer_decay=0.75)
    )
    """Optimizer and schedule."""
    train: FinetuneTrainSettings = Field(default_factory=lambda: FinetuneTrainSettings())
    """Length, precision and bookkeeping."""
    test: TestSettings = Field(default_factory=TestSettings)
    """How the model is applied to test and other images."""
    compute: BackboneComputeSettings = Field(default_factory=BackboneComputeSettings)
    """Speed: compilation and memory layout."""
    log: LogSettings = Field(default_factory=LogSettings)
    """Who is told of the run."""

    @classmethod
    def up_to_date(
        cls, values: Mapping[str, Any], overrides: Sequence[str]
    ) -> tuple[dict[str, Any], list[str]]:
        """Return values and `key=value` words under the keys of today; see `vitp.runs.migrations`."""
        return migrations.finetuning_values(values), migrations.finetuning_overrides(overrides)

    @model_validator(mode="before")
    @classmethod
    def _of_today(cls, values: Any) -> Any:
        return migrations.finetuning_values(values) if isinstance(values, Mapping) else values
