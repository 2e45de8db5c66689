"""The base of all downstream tasks: targets, batches, predictions, scores and the model's contract.

Shapes: B images, N objects, H × W pixels, C classes.
"""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from vitp.checkpoints.description import CONFIG
from vitp.checkpoints.tensors import WEIGHTS
from vitp.core.config import Positive, SettingsModel
from vitp.core.errors import ConfigError
from vitp.core.files import write_json
from vitp.core.tensors import TensorFields, save_tensors, unique_state
from vitp.metrics.results import Prediction, Scores, Target
from vitp.models.adapting import save_adapt
from vitp.models.backbone import Backbone, frozen
from vitp.models.lora import plain_layers
from vitp.models.pyramid import Pyramid
from vitp.models.vision import VisionTower
from vitp.objectives.base import Objective, ParameterGroup
from vitp.records.channels import Channels
from vitp.records.labels import LabelledSet
from vitp.runtime.views import seen_size

STAGGERED_OVERLAP = 0.5
"""Share of a window that the next one sees again, from which on windows can begin at other parts of a patch."""
TASK_FORMAT = "vitp-task-1"


@dataclass(frozen=True)
class TaskBatch(TensorFields):
    """Images of one size with their targets.

    Attributes:
        images_BCHW: uint8, padded at the bottom and the right with zeros to one size.
        later_BCHW: The second date of pairs, padded likewise.
        sizes_B2: int64 height and width of each image before it was padded.
        targets: One for each image; their masks have the size before padding.
        record_names: Ids of the images, for messages.
        step: Optimizer step that it is for, for what follows a schedule.
    """

    images_BCHW: Tensor
    later_BCHW: Tensor | None
    sizes_B2: Tensor
    targets: tuple[Target, ...]
    record_names: tuple[str, ...]
    step: int = 0

    def __len__(self) -> int:
        return self.images_BCHW.shape[0]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of each image before it was padded."""
        return [(int(height), int(width)) for height, width in self.sizes_B2.tolist()]


def pad_images(images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return (C, H, W) images of any sizes as one batch, padded with zeros, and their sizes.

    Returns:
        `images_BCHW` of the largest height and width, and `sizes_B2` int64 height and width of each image.
    """
    sizes_B2 = torch.tensor([image.shape[-2:] for image in images], dtype=torch.int64)
    height, width = (int(value) for value in sizes_B2.amax(0))
    padded = [F.pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2])) for image in images]
    return torch.stack(padded), sizes_B2


class InputSize(SettingsModel):
    """What size images get before they enter a model; predictions are brought back to the image's own."""

    mode: Literal["none", "fixed", "short", "long"] = "none"
    """`fixed`: a square of `size`; `short` or `long`: that side becomes `size`; `none`: as they are."""
    size: int | None = Field(None, ge=8, le=65_536)
    """Pixels of that side; refused where no `mode` says which side it is."""

    @model_validator(mode="after")
    def _size_of_a_side(self) -> Self:
        # Runs of before that were given a size alone state both, and still load.
        if self.size is not None and "mode" not in self.model_fields_set:
            raise ValueError(
                "a size alone doesn't say of which side; set mode=fixed too (a square of it), mode=long or mode=short "
                "(that side gets it), or leave size out"
            )
        return self

    def of(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width that an image of this height and width gets.

        Raises:
            ConfigError: There is no `size` though `mode` needs one.
        """
        if self.mode != "none" and self.size is None:
            raise ConfigError(f"{self.mode} needs a size", where="resize", fix="set size")
        return seen_size(self.mode, self.size, height, width)

    def enough(self, largest: float = 1.0) -> Callable[[int, int], tuple[int, int]] | None:
        """Return which width and height of a larger image suffice; see `vitp.io.images.load_image`.

        Args:
            largest: Factor on the size, of random or several scales.
        """
        if self.mode == "none":
            return None

        def sides(width: int, height: int) -> tuple[int, int]:
            # Twice what is seen: resizing then still has pixels to average.
            rows, columns = self.of(height, width)
            return math.ceil(2 * largest * columns), math.ceil(2 * largest * rows)

        return sides


LabelKind = Literal["scene", "presence", "objects", "instances", "oriented", "semantic", "panoptic", "change"]
"""What a task learns from: the class of the image, which object classes are in it, boxes, boxes with masks, quads,
the class of each pixel, both of these last two, or what changed between two dates."""


class TestSettings(SettingsModel):
    """How a model is applied to images of any size."""

    __test__: ClassVar[bool] = False  # the name is no invitation to pytest
    resize: InputSize | None = None
    """What size images get first; none: as in training."""
    window: int | None = Field(None, ge=8, le=65_536)
    """Side of the square window that slides over larger images; none: the whole image at once."""
    overlap: float = Field(0.25, ge=0, lt=1)
    """Share of a window that the next one sees again."""
    stagger: bool = False
    """Class maps of a vision transformer: windows begin at different parts of a patch and weigh the same inside, so
    that their mean doesn't depend on where patches happen to lie. It takes an overlap of 0.5 or more."""
    scales: tuple[Positive, ...] = Field((1.0,), min_length=1)
    """Factors that the image is resized by; the results are merged."""
    flip: bool = False
    """Also look at the mirrored image."""
    tta: Literal["none", "d4"] = "none"
    """Test-time augmentation: `d4` looks at the image in all eight positions of a square, turned and mirrored."""
    batch_size: int = Field(8, gt=0, le=1_000_000)
    """Windows or images that are computed at once."""
    score_threshold: float = Field(0.3, ge=0, le=1)
    """Objects with a lower score are not drawn or written; scores are computed with all."""
    surface: bool | None = None
    """Distances of surfaces in segmentation: surface Dice and their 95th percentile (HD95), in mm where images have a
    spacing, else in pixels. None: in mm where they have one; false: never, and no scores by case either."""
    tolerance: float = Field(2.0, ge=0, le=1000)
    """Millimetres that a surface may be off and still be right, in surface Dice."""
    measures: tuple[Literal["boundary", "panoptic"], ...] = ()
    """Further scores. `boundary`: Boundary IoU of class maps, and boundary AP of instances; outlines reach 2 % of the
    image's diagonal inwards. `panoptic`: panoptic quality (PQ, SQ, RQ) of segments: of instances, those surer than
    `score_threshold`; of class maps, one a class and image."""
    missing_bands: Literal["error", "zero"] = "error"
    """What becomes of images that lack bands of the model: an error, or 0 in the place of these bands, for models
    that were trained with band dropout."""


class TaskModel(Objective):
    """A backbone, a neck and a head. The engine trains it as any objective.

    `forward` takes a `TaskBatch` and returns *sums* of losses; `loss_counts` what they are divided by. Losses
    that come normalised per image (detection) are returned as mean × B, and counted as B.

    A subclass is made of its trunk (what `needs` names), the classes and the settings of its head. It keeps what lies
    between the backbone and the head in an attribute called `pyramid` or `neck`.

    Attributes:
        name: "classification", "segmentation", "panoptic", "detection", "instance", "oriented" or "change".
        kind: What it learns from.
        head_settings: Class of the head's settings.
        needs: What its head reads: the `backbone` itself, the `maps` of a pyramid, or `levels` of several strides.
        pyramid: Around the backbone, where there is one.
        classes: Names of the classes.
        input_size: What size images get in training, and in use where nothing else is said.
        description: What it takes to build the same model without weights, as JSON values; whoever builds a
            model to be saved sets it (see `vitp.tasks.build`).
        stand_in: What predicts in the model's place while it is scored, as a graph made of it; None: itself.
        steps: Optimizer steps of the run that trains it, for what follows a schedule; 0: none does.
    """

    name: ClassVar[str]
    kind: ClassVar[LabelKind]
    head_settings: ClassVar[type[SettingsModel]]
    needs: ClassVar[Literal["backbone", "maps", "levels"]] = "maps"
    pyramid: Pyramid
    input_size: InputSize = InputSize()
    steps: int = 0

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__()
        if not classes:
            raise ConfigError("no classes to tell apart", where="classes", fix="choose a set with labels")
        self.classes: tuple[str, ...] = tuple(classes)
        self.description: dict[str, Any] = {}
        self.stand_in: Callable[..., list[Prediction]] | None = None

    @property
    def backbone(self) -> Backbone:
        """The pretrained part."""
        return self.pyramid.backbone

    def patch(self, settings: TestSettings) -> int:
        """Return the side of the patches by whose parts windows are staggered; 0: they lie on a grid."""
        return 0

    @classmethod
    def labels(cls, head: Mapping[str, Any]) -> LabelKind:
        """Return what a model with these settings of the head learns from."""
        return cls.kind

    @property
    def vision_tower(self) -> Backbone:
        """The backbone: its change is watched and its layers may learn at falling rates."""
        return self.backbone

    def predict(self, images: Sequence[Tensor], later: Sequence[Tensor] | None = None) -> list[Prediction]:
        """Return one prediction for each image.

        Images of one size run together. Others are not padded to each other, so that what is found in an image doesn't
        depend on its company.

        Args:
            images: uint8 (C, H, W) each, of any sizes.
            later: The second dates of pairs, each of the size of its first.
        """
        sizes: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(images):
            sizes.setdefault(tuple(image.shape), []).append(index)
        found: dict[int, Prediction] = {}
        with frozen(self):
            for indices in sizes.values():
                images_BCHW = torch.stack([images[index] for index in indices])
                later_BCHW = None if later is None else torch.stack([later[index] for index in indices])
                found |= zip(indices, self.predict_batch(images_BCHW, later_BCHW), strict=True)
        return [found[index] for index in range(len(images))]

    @abstractmethod
    def predict_batch(self, images_BCHW: Tensor, later_BCHW: Tensor | None) -> list[Prediction]:
        """Return one prediction for each image of a batch; the model is in eval mode and makes no gradients.

        Args:
            images_BCHW: uint8, on the CPU.
            later_BCHW: The second dates of pairs.
        """

    @abstractmethod
    def evaluate(self, labelled: LabelledSet, settings: TestSettings) -> Scores:
        """Return the scores on labelled images, each at its own size.

        Raises:
            DataError: A label doesn't fit its image or the model's classes.
        """

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return "vision tower", "neck" (where there is one) and "head"."""
        tower = {id(parameter) for parameter in self.backbone.parameters()}
        parts: dict[str, dict[str, torch.nn.Parameter]] = {"vision tower": {}, "neck": {}, "head": {}}
        for name, parameter in self.named_parameters():
            if id(parameter) in tower:
                parts["vision tower"][name] = parameter
            elif name.split(".", 1)[0] in ("pyramid", "neck"):
                parts["neck"][name] = parameter
            else:
                parts["head"][name] = parameter
        return [ParameterGroup(name, values) for name, values in parts.items() if values]

    def work(self, batch: TaskBatch) -> dict[str, float]:
        """Return the number of images."""
        return {"samples": float(len(batch)), "tiles": float(len(batch))}

    @property
    def in_channels(self) -> Channels | None:
        """Bands that the model sees, and how their values become 0–255; None: RGB pictures."""
        return self.backbone.in_channels

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.parameters()).device

    def train(self, mode: bool = True) -> Self:
        """Set the mode; a backbone without a trainable parameter stays in eval mode.

        Otherwise its dropout and running statistics would move although it is frozen.
        """
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.backbone.parameters()):
            self.backbone.eval()
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors`: all that `vitp.load_task` needs.

        Raises:
            ValueError: The model doesn't know how it was built.
        """
        if not self.description:
            raise ValueError("the model has no description, so nobody could load it")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # One key only: safetensors writes several in random order, and equal models should be equal files.
        with plain_layers(self):
            save_tensors(folder / WEIGHTS, unique_state(self), {"format": "pt"})
        if isinstance(self.backbone, VisionTower):
            save_adapt(folder, self.backbone)
        head = {"format": TASK_FORMAT, "task": self.name, "classes": list(self.classes)}
        write_json(folder / CONFIG, json.loads(json.dumps({**head, **self.description})))


class WholeImageModel(TaskModel):
    """A model that sees images as a whole, and once: what it says of windows can't be merged."""

    @abstractmethod
    def segments(self, images_BCHW: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Prediction]:
        """Return segments that share no pixel, in pixels of another size of each image.

        Args:
            images_BCHW: uint8, as the model sees them.
            sizes: Height and width that the masks of each get.
        """


def check_windows(model: TaskModel) -> None:
    """Do nothing where what a model says of windows can be merged.

    Raises:
        ConfigError: It can't.
    """
    if isinstance(model, WholeImageModel):
        raise ConfigError(
            f"{model.name} {READ_BY_WINDOWS}", where="task", fix="cut it, and save the parts as pictures"
        )


READ_BY_WINDOWS = "sees images as a whole, and rasters, volumes and slides are read by windows"


def check_whole(settings: TestSettings) -> None:
    """Do nothing where images are seen as a whole, and once.

    Raises:
        ConfigError: They aren't.
    """
    several = {
        "window": settings.window is not None,
        "scales": len(settings.scales) > 1,
        "flip": settings.flip,
        "tta": settings.tta != "none",
    }
    if asked := [name for name, value in several.items() if value]:
        raise ConfigError(
            "segments of panoptic segmentation aren't merged over several looks at an image",
            where=", ".join(f"test.{name}" for name in asked),
            fix="leave it out; test.resize (data.resize in training) makes large images smaller",
        )
