"""A pretraining run of any objective: typed configuration in, run folder out.

RUN/config.yaml      the configuration
RUN/mixture.json     sets, sizes, rates and licences
RUN/metrics.jsonl    losses
RUN/evidence.json    how far the vision tower moved
RUN/checkpoints/     from which a run resumes
RUN/model/           the vision-language model, or the exported backbone where the objective has no language model

`vitp.load_backbone(RUN)`, `vitp probe RUN DATA` and `vitp finetune --backbone RUN` take the folder as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from rich.console import Console

from vitp.checkpoints.tensors import WEIGHTS
from vitp.core import distributed
from vitp.core.config import CONFIG_FILE, SettingsModel, load_config
from vitp.core.errors import ConfigError, DamagedError
from vitp.core.sealed import check
from vitp.data.batches import SampledBatches, check_global_batch
from vitp.data.formats.vitp_labels import read_compiled
from vitp.data.nodata import nodata_note
from vitp.engine.config import LogSettings, OptimSettings, TrainSettings
from vitp.engine.hooks import Hook, TrainResult
from vitp.engine.trackers import check_trackers, tracked
from vitp.evaluation.online import OnlineProbes
from vitp.models.backbone import Backbone
from vitp.models.float8 import float8_line
from vitp.objectives import AnyObjective, Default
from vitp.objectives.base import BatchSource, Objective
from vitp.objectives.dense import ImagesWithMasks
from vitp.objectives.joint import JointBatches
from vitp.objectives.packed_records import SequenceSettings
from vitp.objectives.preserving import preserving
from vitp.objectives.settings import Phase, RunSettings
from vitp.objectives.vitp import ViTPObjective
from vitp.runs import migrations
from vitp.runs.assemble import RunParts, say, train_parts
from vitp.runs.channels import fill_channels, frozen_kernel_notes, uncompiled_lines
from vitp.runs.folder import claimed
from vitp.runs.micro_batch import chosen_batch, chosen_before


class ProbeSettings(SettingsModel):
    """Probes while a run goes on."""

    data: str | None = None
    """Labelled folder made by `vitp data compile`; none: no probes while the run goes on."""
    every: int = Field(500, ge=1, le=100_000_000)
    """Steps between probes."""
    images: int = Field(300, ge=10, le=10_000_000)
    """At most this many training and validation images each."""


class PretrainConfig(RunSettings):
    """A complete pretraining run of any objective. The defaults are the paper's.

    `objective` may be a name alone ("mae") or a section with a name and settings. `vitp.ImagePretrainConfig` is another
    name of this class, from when objectives without a language model had a configuration of their own.
    """

    objective: AnyObjective = Field(default_factory=Default)
    """What is learned: a name, and the settings of that objective."""
    optim: OptimSettings = Field(default_factory=OptimSettings)
    """Optimizer and schedule."""
    train: TrainSettings = Field(default_factory=lambda: TrainSettings(steps=8000))
    """Length, precision and bookkeeping."""
    probe: ProbeSettings = Field(default_factory=ProbeSettings)
    """Probes while the run goes on."""
    log: LogSettings = Field(default_factory=LogSettings)
    """Who is told of the run."""

    @classmethod
    def up_to_date(
        cls, values: Mapping[str, Any], overrides: Sequence[str]
    ) -> tuple[dict[str, Any], list[str]]:
        """Return values and `key=value` words under the keys of today; see `vitp.runs.migrations`."""
        return migrations.pretraining_overrides(values, overrides)

    @model_validator(mode="before")
    @classmethod
    def _of_today(cls, values: Any) -> Any:
        return migrations.pretraining_values(values) if isinstance(values, Mapping) else values

    @model_validator(mode="after")
    def _refuse_a_choice_without_language(self) -> PretrainConfig:
        if self.train.batch == "auto" and not self.objective.has_language_model:
            raise ValueError(f"train.batch: the objective {self.objective.name} has no use for auto")
        if self.train.patience is not None and self.probe.data is None:
            raise ValueError("train.patience: nothing to judge by; name a compiled folder as probe.data")
        return self

    @model_validator(mode="after")
    def _refuse_what_is_not_used(self) -> PretrainConfig:
        for section, name in unused_fields(self):
            field = type(section).model_fields[name]
            if getattr(section, name) != field.get_default(call_default_factory=True):
                place = {id(self): "", id(self.model): "model.", id(self.data): "data."}[id(section)]
                raise ValueError(f"{place}{name}: the objective {self.objective.name} has no use for it")
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_not_used(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        sections = {id(self): values, id(self.model): values.get("model"), id(self.data): values.get("data")}
        for section, name in unused_fields(self):
            if isinstance(kept := sections[id(section)], dict):
                kept.pop(name, None)
        return values


def unused_fields(config: PretrainConfig) -> list[tuple[BaseModel, str]]:
    """Return the fields that the objective has no use for, each with the section that it is in."""
    return [
        (section, name)
        for section in (config, config.model, config.data)
        for name, field in type(section).model_fields.items()
        if isinstance(field.json_schema_extra, dict)
        and field.json_schema_extra.get("needs_language_model")
        not in (None, config.objective.has_language_model)
    ]


@dataclass(frozen=True)
class PretrainRun:
    """The parts of a run, ready for the engine.

    Attributes:
        config: The run.
        objective: Model, heads and losses, without the preservation of features (`model.preserve`).
        source: Its batches.
        sets: Name, size, sampling rate and licence of each set that is learned from.
    """

    config: PretrainConfig
    objective: Objective
    source: BatchSource
    sets: list[dict[str, Any]]

    def parts(self, hooks: Sequence[Hook] = ()) -> RunParts:
        """Return what is trained. Once only: preservation takes the features of the tower as it is now."""
        config = self.config
        objective = preserving(self.objective, config.model.preserve)
        return RunParts(objective, self.source, config.optim, config.train, hooks, self.sets)


def build(config: PretrainConfig) -> PretrainRun:
    """Return model, objective and batches of a configuration.

    Raises:
        VitpError: Something in the configuration or in the data can't be used.
    """
    config, _ = fill_channels(config)
    made = config.objective.build(config, steps=config.train.steps, micro_batches=config.train.micro_batches)
    return PretrainRun(config, made.objective, made.source, made.sets)


def build_with_language(config: PretrainConfig) -> tuple[ViTPObjective, SampledBatches]:
    """Return model and batches of a run with a language model.

    Raises:
        ConfigError: Its objective has none.
        VitpError: Something in the configuration or in the data can't be used.
    """
    if config.objective.has_language_model:
        run = build(config)
        if isinstance(run.objective, ViTPObjective) and isinstance(run.source, SampledBatches):
            return run.objective, run.source
    raise ConfigError(
        f"{config.objective.name} has no language model, which this is about"
        if not config.objective.has_language_model
        else f"this is about visual instructions alone, not {config.objective.name}",
        where="objective",
        fix="name a run of visual instructions",
    )


def sequence_of(model: str | Path) -> SequenceSettings:
    """Return how a pretraining run cuts records into tiles and tokens, or the defaults for other models."""
    try:
        return load_config(PretrainConfig, Path(model) / CONFIG_FILE).data.sequence
    except ConfigError:
        return SequenceSettings()


def run_pretraining(
    config: PretrainConfig,
    run_dir: str | Path,
    *,
    resume: bool = False,
    console: Console | None = None,
    hooks: Sequence[Hook] = (),
) -> TrainResult:
    """Train, and leave a run folder with configuration, metrics, checkpoints, evidence and the model.

    `vitp.run_image_pretraining` is another name of this function, from when objectives without a language model had
    one of their own.

    Args:
        config: The run.
        run_dir: New folder, or the folder to resume.
        resume: Continue from the last checkpoint of the folder.
        console: Where progress is printed; standard output by default.
        hooks: Look on beside the online probes, after them.

    Raises:
        VitpError: A wrong configuration, unusable data, a non-finite loss, a full disk.
    """
    run_dir = Path(run_dir)
    config, channels = fill_channels(config)
    check_trackers(config.log)
    distributed.initialize(distributed.resolve_device(config.train.device))
    config, began = chosen_before(config, run_dir)
    config, chosen = chosen_batch(config, build_with_language)
    phases = config.objective.phases()
    names = [phase.folder for phase in phases]
    with claimed(run_dir, config, config.train.device, resume=resume, phases=names) as resume:
        check_global_batch(config.data.global_batch, config.train.micro_batches, distributed.world_size())
        say([*began, *chosen], console)
        say(uncompiled_lines(config), console)
        say([*channels, *(f"warning: {line}" for line in config.objective.warnings(config))], console)
        started = config
        for phase in phases:
            started = _run_phase(phase, started, run_dir / phase.folder, console)
        run, probe = build(started), config.probe
        say(_frozen_kernel(run), console)
        say(_float8(run), console)
        say(_nodata(run.source), console)
        probes: list[OnlineProbes] = []
        if probe.data is not None:
            probes.append(OnlineProbes(read_compiled(Path(probe.data)), probe.every, max_images=probe.images))
        with tracked(run_dir, config.log, config.model_dump(mode="json")) as trackers:
            parts = replace(run.parts([*probes, *hooks]), trackers=trackers)
            result = train_parts(parts, run_dir, console=console, resume=resume)
            if trackers is not None:
                moved = {name: value for name, value in result.evidence.items() if name != "layers"}
                trackers.final({"final": {"loss": result.loss, "evidence": moved, **_last(probes)}})
            return result


def _last(hooks: Sequence[OnlineProbes]) -> dict[str, Any]:
    """Return the newest scores of the online probes, where there are any."""
    rows = [hook.history[-1] for hook in hooks if hook.history]
    return {name: value for row in rows for name, value in row.items() if name != "step"}


def _frozen_kernel(run: PretrainRun) -> list[str]:
    tower, model = run.objective.vision_tower, run.config.model
    vision = model.vision if model.scratch is None else model.scratch.vision
    return frozen_kernel_notes(tower, model.init, vision) if isinstance(tower, Backbone) else []


def _float8(run: PretrainRun) -> list[str]:
    line = float8_line(run.objective.vlm) if isinstance(run.objective, ViTPObjective) else None
    return [] if line is None else [line]


def _nodata(source: BatchSource) -> list[str]:
    sources = source.sources.values() if isinstance(source, JointBatches) else [source]
    collates = [one.collate for one in sources if isinstance(one, SampledBatches)]
    dense = [one for one in collates if isinstance(one, ImagesWithMasks)]
    return [line for one in dense for line in nodata_note(one.labelled, one.seen, "training")]


ImagePretrainConfig = PretrainConfig
"""Another name of `PretrainConfig`, for what was written before it was one for all objectives."""

run_image_pretraining = run_pretraining
"""Another name of `run_pretraining`, for what was written before it was one for all objectives."""


def _run_phase(phase: Phase, config: PretrainConfig, folder: Path, console: Console | None) -> PretrainConfig:
    """Train a phase in its folder unless it is done; return the configuration that the run goes on with."""
    if not _is_done(folder, console):
        settings: PretrainConfig = phase.prepare(config)
        optim = settings.optim.model_copy(update={"lr": phase.lr})
        # A phase may freeze what the run itself must train.
        train = settings.train.model_copy(update={"steps": phase.steps, "must_train": (), "patience": None})
        run = build(settings)
        objective = run.objective if phase.part is None else phase.part(run.objective)
        parts = RunParts(objective, run.source, optim, train)
        train_parts(parts, folder, console=console, resume=(folder / "checkpoints").is_dir())
    proceeded: PretrainConfig = phase.proceed(config, folder)
    return proceeded


def _is_done(folder: Path, console: Console | None) -> bool:
    """Return whether a phase has left its model, whole; of a damaged one its checkpoints make another. Collective."""
    done, weights = False, folder / "model" / WEIGHTS
    if distributed.rank() == 0 and weights.parent.is_dir():
        try:
            check(weights)
            done = True
        except DamagedError as error:
            note = f"WARNING: {error.where} {error.what}: the phase is made again from its last checkpoint"
            (console or Console()).print(note, markup=False, soft_wrap=True)
    return distributed.gather(done)[0]
