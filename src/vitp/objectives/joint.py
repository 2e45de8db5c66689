"""Several objectives in one run, over one vision tower: the total is Σ wᵢ Lᵢ.

The mechanism of heuristic visual pretraining (supervised, masked and contrastive terms in one stage), of masked patches
with a pixel term beside them (MMC), and of contrast with self-distillation (RS-M-CLIP). Each objective brings its own
batches, losses and counts. The tower computes images once that several of them see as the same pixels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from vitp.core.config import Weight
from vitp.core.errors import ConfigError
from vitp.core.tensors import TensorFields
from vitp.data.fingerprint import json_digest
from vitp.models.vision import VisionTower
from vitp.objectives.base import BatchSource, Objective, ParameterGroup
from vitp.objectives.image_base import ImageObjective, backward_factor, tower_flops
from vitp.objectives.preserving import tiles_of
from vitp.objectives.settings import ObjectiveParts, ObjectiveSettings, Phase, RunSettings

if TYPE_CHECKING:
    from vitp.objectives import One  # the table, which completes the settings below

_PIXELS = ("tiles_BCHW", "tiles_TCHW")
"""Fields of batches with the images that the tower sees as they are."""


class JointSettings(ObjectiveSettings):
    """Several objectives at once. `objectives: {vitp: 1, clip: 0.5}` in place of `objective` is the short form."""

    name: Literal["joint"] = "joint"
    """Several objectives at once."""
    weights: dict[str, Weight] = Field(default_factory=dict)
    """Name of an objective → its weight in the total loss. One of weight 0 is as if it weren't there."""
    settings: dict[str, One] = Field(default_factory=dict)
    """Name of an objective → its settings, where they aren't the defaults; keys as in the section of that objective."""

    @model_validator(mode="before")
    @classmethod
    def _of_all(cls, values: Any) -> Any:
        """Fill in the settings of objectives that have a weight alone."""
        if not isinstance(values, Mapping) or not isinstance(values.get("weights"), Mapping):
            return values
        given = values.get("settings") or {}
        if not isinstance(given, Mapping):
            return values
        if lost := [name for name in given if name not in values["weights"]]:
            raise ValueError(f"settings of {', '.join(map(str, lost))}, which has no weight")
        names = [str(name) for name in values["weights"]]
        named = {name: given.get(name) or {} for name in names}
        filled = {
            name: {**one, "name": name} if isinstance(one, Mapping) else one for name, one in named.items()
        }
        return {**values, "settings": filled}

    @property
    def active(self) -> dict[str, One]:
        """The objectives that have a weight above 0; the one with a language model first, as its model is saved."""
        found = {name: one for name, one in self.settings.items() if self.weights[name] > 0}
        return dict(sorted(found.items(), key=lambda pair: not pair[1].has_language_model))

    @property
    def has_language_model(self) -> bool:  # type: ignore[override]
        """Whether one of them has."""
        return any(one.has_language_model for one in self.active.values())

    def build(self, run: RunSettings, *, steps: int, micro_batches: int) -> ObjectiveParts:
        """Return the objectives around one tower."""
        if not self.active:
            raise ConfigError(
                "no objective has a weight above 0",
                where="objective.weights",
                fix="name some, such as {mae: 1, clip: 0.5}",
            )
        made: dict[str, ObjectiveParts] = {}
        for name, one in self.active.items():
            of_one = run.model_copy(update={"objective": one})
            # Later objectives use the first one's tower. The attribute is private, so no configuration file ever holds
            # it.
            of_one._tower = next(iter(made.values())).objective.vision_tower if made else None
            made[name] = one.build(of_one, steps=steps, micro_batches=micro_batches)
        objective = JointObjective(
            {name: parts.objective for name, parts in made.items()},
            {name: self.weights[name] for name in made},
        )
        sets = [one for parts in made.values() for one in parts.sets]
        unlike = [one for number, one in enumerate(sets) if one not in sets[:number]]
        return ObjectiveParts(objective, JointBatches({n: p.source for n, p in made.items()}), unlike)

    def phases(self) -> tuple[Phase, ...]:
        """Return what is trained before for each of them, alone."""
        return tuple(self._lifted(name, phase) for name, one in self.active.items() for phase in one.phases())

    def _lifted(self, name: str, phase: Phase) -> Phase:
        def proceed(run: Any, folder: Path) -> Any:
            joint = run.objective
            after = phase.proceed(_with(run, joint.settings[name]), folder)
            together = {**joint.settings, name: after.objective}
            return _with(after, joint.model_copy(update={"settings": together}))

        return replace(
            phase,
            prepare=lambda run: phase.prepare(_with(run, run.objective.settings[name])),
            proceed=proceed,
        )

    def alone(self) -> JointSettings:
        """Return the settings with each of them alone."""
        return self.model_copy(update={"settings": {n: one.alone() for n, one in self.settings.items()}})

    def warnings(self, run: RunSettings) -> list[str]:
        """Return what a user should know about the data of each."""
        return [line for one in self.active.values() for line in one.warnings(_with(run, one))]


def _with(run: Any, objective: ObjectiveSettings) -> Any:
    return run.model_copy(update={"objective": objective})


def in_short(objectives: Any) -> dict[str, Any]:
    """Return the settings that `objectives: {NAME: WEIGHT, NAME: {weight: WEIGHT, KEY: VALUE}}` stands for.

    Raises:
        ConfigError: It is no mapping.
    """
    if not isinstance(objectives, Mapping):
        raise ConfigError(
            f"is {objectives!r}",
            where="objective.weights",
            fix="give names and weights, such as {mae: 1, clip: 0.5}",
        )
    weights = {
        name: one.get("weight", 1.0) if isinstance(one, Mapping) else one for name, one in objectives.items()
    }
    settings = {
        name: {key: value for key, value in one.items() if key != "weight"}
        for name, one in objectives.items()
        if isinstance(one, Mapping)
    }
    return {"name": JointSettings().name, "weights": weights, "settings": settings}


@dataclass(frozen=True)
class JointBatch(TensorFields):
    """A batch of each objective, of the same place in the run.

    Attributes:
        batches: In the order of the objectives.
        same: For each, the number of the first batch whose images are the same pixels; its own where none is.
    """

    batches: tuple[Any, ...]
    same: tuple[int, ...]

    @property
    def tiles_BCHW(self) -> Tensor:
        """The images of the first objective: one view of each."""
        return tiles_of(self.batches[0])

    @property
    def record_names(self) -> tuple[str, ...]:
        """Ids of all images and records, for messages."""
        names = (name for batch in self.batches for name in getattr(batch, "record_names", None) or ())
        return tuple(dict.fromkeys(names))

    def linked(self) -> tuple[Any, ...]:
        """Return the batches; what are the same pixels is one tensor, also after a copy to a device."""
        found: list[Any] = []
        for batch, first in zip(self.batches, self.same, strict=True):
            if first < len(found):
                batch = replace(
                    batch, **{str(_field(batch)): getattr(found[first], str(_field(found[first])))}
                )
            found.append(batch)
        return tuple(found)


def _field(batch: Any) -> str | None:
    """Return the field with the images that the tower sees as they are, None where it sees other views."""
    return next((field.name for field in fields(batch) if field.name in _PIXELS), None)


class JointBatches:
    """The batches of all objectives: a pure function of the place in the run, as those of each of them are.

    Args:
        sources: Name of an objective → its batches.
    """

    def __init__(self, sources: Mapping[str, BatchSource]) -> None:
        self.sources = dict(sources)

    def __call__(self, step: int, micro: int, rank: int, world: int) -> JointBatch:
        """Return the `micro`-th batches of a step for a rank."""
        batches = tuple(source(step, micro, rank, world) for source in self.sources.values())
        tiles = [getattr(batch, name) if (name := _field(batch)) else None for batch in batches]
        same = [
            next(
                first
                for first in range(number + 1)
                if first == number
                or (own is not None and tiles[first] is not None and _alike(own, tiles[first]))
            )
            for number, own in enumerate(tiles)
        ]
        return JointBatch(batches, tuple(same))

    def fingerprint(self) -> str:
        """Return a hash of the fingerprints of all."""
        return json_digest({name: source.fingerprint() for name, source in self.sources.items()})


def _alike(one: Tensor, other: Any) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


@contextlib.contextmanager
def one_pass(tower: VisionTower, tiles: Sequence[Tensor]) -> Iterator[None]:
    """Within this context the tower computes its patch tokens of each of these images (B, C, H, W) only once."""
    normalize, forward_tokens = tower.normalize, tower.forward_tokens
    # The lists keep these tensors alive, so that none of their ids can come again.
    given = {id(one): one for one in tiles}
    normalised: dict[int, Tensor] = {}
    tokens: dict[int, Tensor] = {}

    def normalize_once(tiles_BCHW: Tensor) -> Tensor:
        if id(tiles_BCHW) not in given:
            return normalize(tiles_BCHW)
        if id(tiles_BCHW) not in normalised:
            normalised[id(tiles_BCHW)] = normalize(tiles_BCHW)
        return normalised[id(tiles_BCHW)]

    def tokens_once(image_BCHW: Tensor) -> Tensor:
        if not any(image_BCHW is one for one in normalised.values()):
            return forward_tokens(image_BCHW)
        if id(image_BCHW) not in tokens:
            tokens[id(image_BCHW)] = forward_tokens(image_BCHW)
        return tokens[id(image_BCHW)]

    own: Any = tower
    # Set on the instance they hide the methods of the class; deleting them brings those back.
    own.normalize, own.forward_tokens = normalize_once, tokens_once
    try:
        yield
    finally:
        del own.normalize, own.forward_tokens


class JointObjective(Objective):
    """Several objectives that share a vision tower. Losses are called NAME.LOSS.

    The tower is a part of the first objective, the others only use it: it has one place in checkpoints and shards.

    Args:
        parts: Name → objective. They are built around one tower.
        weights: Name → weight of all its losses, beside the weights that they have in it.
    """

    def __init__(self, parts: Mapping[str, Objective], weights: Mapping[str, float]) -> None:
        super().__init__()
        self.parts, self.weights = nn.ModuleDict(parts), dict(weights)
        self.holder = next(iter(parts))
        self.scheduled = tuple(f"{words} ({name})" for name, one in parts.items() for words in one.scheduled)
        for name, one in parts.items():
            if one.vision_tower is not self.vision_tower:
                raise ConfigError(
                    f"{name} trains a tower of its own",
                    where="objective.settings",
                    fix="leave out what chooses it, or train it in a run of its own",
                )
            if name != self.holder and isinstance(one, ImageObjective):
                one.borrow(one.tower)

    @property
    def _objectives(self) -> dict[str, Objective]:
        found: Any = self.parts
        return dict(found.items())

    @property
    def vision_tower(self) -> nn.Module:
        """The tower of all."""
        return self._objectives[self.holder].vision_tower

    def loss_weight(self, name: str) -> float:
        """Return the weight of the objective times that of the loss in it."""
        part, _, loss = name.partition(".")
        return self.weights[part] * self._objectives[part].loss_weight(loss)

    def forward(self, batch: JointBatch) -> dict[str, Tensor]:
        """Return the losses of all."""
        batches, tower = batch.linked(), self.vision_tower
        shared = [
            getattr(batches[first], str(_field(batches[first])))
            for number, first in enumerate(batch.same)
            if first != number
        ]
        losses: dict[str, Tensor] = {}
        with (
            one_pass(tower, shared) if isinstance(tower, VisionTower) and shared else contextlib.nullcontext()
        ):
            for (name, part), own in zip(self._objectives.items(), batches, strict=True):
                losses |= {f"{name}.{loss}": value for loss, value in part(own).items()}
        return losses

    def loss_counts(self, batch: JointBatch) -> dict[str, float]:
        """Return the counts of all."""
        return {
            f"{name}.{loss}": count
            for (name, part), own in zip(self._objectives.items(), batch.batches, strict=True)
            for loss, count in part.loss_counts(own).items()
        }

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the groups of the first, and those of the others with their objective's name in front."""
        return [
            ParameterGroup(
                group.name if name == self.holder else f"{name} {group.name}",
                {f"parts.{name}.{key}": parameter for key, parameter in group.parameters.items()},
                group.lr_scale,
            )
            for name, part in self._objectives.items()
            for group in part.parameter_groups()
        ]

    def layer_distances(self) -> dict[str, int]:
        """Return the first objective's."""
        return self._objectives[self.holder].layer_distances()

    def work(self, batch: JointBatch) -> dict[str, float]:
        """Return the work of all; the samples are those of the first, FLOPs are given only where all count them."""
        each = [part.work(own) for part, own in zip(self._objectives.values(), batch.batches, strict=True)]
        keys = list(dict.fromkeys(key for one in each for key in one))
        total = {key: sum(one.get(key, 0.0) for one in each) for key in keys}
        total["samples"] = each[0].get("samples", 0.0)
        if "flops" in total:
            if all("flops" in one for one in each):
                total["flops"] -= self._spared(batch)
            else:
                del total["flops"]
        return total

    def step_flops(self, batch: JointBatch) -> float:
        """Return the FLOPs of all, images that several see counted once."""
        pairs = zip(self._objectives.values(), batch.batches, strict=True)
        return sum(part.step_flops(own) for part, own in pairs) - self._spared(batch)

    def _spared(self, batch: JointBatch) -> float:
        tower: Any = self.vision_tower
        repeated = [n for n, first in enumerate(batch.same) if first != n]
        images = sum(len(tiles_of(batch.batches[number])) for number in repeated)
        return backward_factor(tower) * tower_flops(tower, images, tower.grid**2) if images else 0.0

    def save_pretrained(self, folder: Any) -> None:
        """Write what the first writes: the vision-language model where one has it, else the tower."""
        self._objectives[self.holder].save_pretrained(folder)
