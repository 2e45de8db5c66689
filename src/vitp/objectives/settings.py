"""The settings of a pretraining run that decide its model and its batches, and what each objective adds to them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

from pydantic import Field, PrivateAttr
from pydantic.config import JsonDict

from vitp.core.config import Positive, SettingsModel, Weight
from vitp.data.tiles import InputSettings
from vitp.models.adapting import AnyAdapt
from vitp.models.compute import ComputeSettings
from vitp.models.vision import VisionSettings
from vitp.models.vlm import VLMSettings
from vitp.objectives.base import BatchSource, Objective
from vitp.objectives.packed_records import SequenceSettings
from vitp.records.channels import Channels

Run = TypeVar("Run", bound="RunSettings")

LANGUAGE: JsonDict = {"needs_language_model": True}
"""Marks fields (`json_schema_extra`) that only objectives with a language model use."""

VISION: JsonDict = {"needs_language_model": False}
"""Marks fields that only objectives without a language model use."""


class PreserveSettings(SettingsModel):
    """Feature preservation."""

    weight: float = Field(0.0, ge=0, le=1e6)
    """Weight of this loss in the total loss; 0: the objective as it is."""
    decoder: Literal["none", "linear", "mlp"] = "none"
    """What makes the features of before out of those of now, the identity at the start (UNIT): the tower itself is
    then free to change as long as what it saw can be read from it."""
    size: int | None = Field(None, ge=8, le=65_536)
    """Side in pixels at which features are compared, when that is another one than that of the objective's images."""


class ModelSettings(SettingsModel):
    """Where the model comes from and what of it is trained."""

    init: str = "starter"
    """"starter", or a run, model or backbone folder. New weights: "scratch" where the objective has a
    language model, "random" where it has none."""
    scratch: VLMSettings | None = Field(None, json_schema_extra=LANGUAGE)
    """Sizes of the model for `init: scratch`."""
    vision: VisionSettings | None = Field(None, json_schema_extra=VISION)
    """Sizes of the tower for `init: random`; none: the starter's."""
    tokenizer: str | None = Field(None, json_schema_extra=LANGUAGE)
    """Tokenizer folder for `init: scratch`; none: it is trained on the mixture."""
    vocabulary: int = Field(2048, ge=300, le=10_000_000, json_schema_extra=LANGUAGE)
    """Tokens of a trained tokenizer."""
    channels: Channels | None = None
    """What the tower sees of files with bands. none: those of `init`, where it has some, else what the data's
    sets declare (pictures: RGB). Filled in when a run begins."""
    locations: int = Field(0, ge=0, le=100_000, json_schema_extra=LANGUAGE)
    """Location tokens of the vocabulary: a coordinate is one token instead of its digits. 0: as `init` has them."""
    drop_path: float = Field(0.1, ge=0, lt=1)
    """Stochastic depth of the vision tower."""
    freeze: list[str] = Field(default_factory=list, json_schema_extra=LANGUAGE)
    """Parts (`vision`, `projector`, `language`) or patterns of parameter names that aren't trained."""
    lr_scale: dict[str, Weight] = Field(default_factory=dict, json_schema_extra=LANGUAGE)
    """Part (`vision`, `projector`, `language`) → factor on the learning rate."""
    gradient_checkpointing: bool = False
    """Recompute activations backward: less memory, about a third more time."""
    adapt: AnyAdapt = None
    """Train few parameters of the vision tower in place of all: `lora`, `prompts`, `adapters` or `gates`."""
    preserve: PreserveSettings = Field(default_factory=PreserveSettings)
    """Keep the features near those of the vision tower that the run starts from."""


class DataSettings(SettingsModel):
    """What is learned from."""

    mixture: list[str] = Field(min_length=1)
    """Folders made by `vitp data compile`; with a language model also mixture files and JSON Lines files."""
    rates: list[Positive] | None = None
    """Factor on the sampling rate, one for each entry of the mixture."""
    global_batch: int = Field(128, ge=1, le=4_194_304)
    """Samples an optimizer step, over all ranks and micro-batches."""
    band_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the images in which each channel of the input is set to 0 (one is always left): the model then
    serves data that lack bands, on request."""
    window_jitter: float = Field(0.0, ge=0, lt=1)
    """How far chance moves and stretches the ranges of values that become 0 and 255, as a share of their width: the
    windows of CT, above all. Pictures have none."""
    sequence: SequenceSettings = Field(default_factory=SequenceSettings, json_schema_extra=LANGUAGE)
    """How a record becomes tokens."""
    input: InputSettings = Field(default_factory=InputSettings, json_schema_extra=LANGUAGE)
    """How images are read."""
    balance: bool = Field(False, json_schema_extra=LANGUAGE)
    """Share a step's records out so that all ranks have about the same to compute."""


@dataclass(frozen=True)
class ObjectiveParts:
    """An objective and its batches, as the settings of a run make them.

    Attributes:
        objective: Model, heads and losses.
        source: Its batches.
        sets: Name, size, sampling rate and licence of each set that is learned from, for the card of an export.
    """

    objective: Objective
    source: BatchSource
    sets: list[dict[str, Any]]


@dataclass(frozen=True)
class Phase:
    """A training before the run proper, in a folder of its own below the run's.

    Attributes:
        folder: Name of that folder.
        steps: Optimizer steps.
        lr: Peak learning rate.
        prepare: Returns the settings that the phase trains with, given the run's.
        proceed: Returns the settings that the run goes on with, given the run's and the phase's folder.
        part: Makes of the run's objective the one that is trained; None: the objective itself.
    """

    folder: str
    steps: int
    lr: float
    prepare: Callable[[Any], Any]
    proceed: Callable[[Any, Path], Any]
    part: Callable[[Any], Objective] | None = None


class ObjectiveSettings(SettingsModel):
    """Base of the settings of an objective: they know how to build it.

    Attributes:
        has_language_model: Whether the fields that are marked `LANGUAGE` are used; those marked `VISION` are otherwise.
        former_keys: Key at the root of configurations of earlier versions → its place in these settings; "": all of
            them. See `vitp.runs.migrations`.
    """

    has_language_model: ClassVar[bool] = False
    former_keys: ClassVar[Mapping[str, str]] = {}

    name: str = ""
    """Name of the objective."""

    @abstractmethod
    def build(self, run: RunSettings, *, steps: int, micro_batches: int) -> ObjectiveParts:
        """Return the objective and its batches.

        Args:
            run: Model, data and seed.
            steps: Optimizer steps of the run, for what follows a schedule.
            micro_batches: Parts that a rank cuts its share of a step into.

        Raises:
            VitpError: Something in the settings or in the data can't be used.
        """

    def phases(self) -> tuple[Phase, ...]:
        """Return what is trained before the run proper."""
        return ()

    def alone(self) -> Self:
        """Return the settings without phases and without what phases leave, so that they can be built at once."""
        return self

    def warnings(self, run: RunSettings) -> list[str]:
        """Return what a user should know about the data before the run begins."""
        return []


class RunSettings(SettingsModel):
    """What decides model and batches of a pretraining run; `vitp.runs.pretrain.PretrainConfig` is the whole."""

    _tower: Any = PrivateAttr(default=None)
    """The tower of an objective that this one trains beside; None: one of its own."""
    objective: ObjectiveSettings
    """What is learned: a name, and the settings of that objective."""
    seed: int = Field(0, ge=0, le=2**63 - 1)
    """Seed of the order of the data, of random weights and of augmentation."""
    model: ModelSettings = Field(default_factory=ModelSettings)
    """Where the model comes from and what of it is trained."""
    data: DataSettings
    """What is learned from."""
    compute: ComputeSettings = Field(default_factory=ComputeSettings, json_schema_extra=LANGUAGE)
    """Speed and memory; but for `fp8` it changes no result beyond rounding."""
