"""A pretraining run: typed configuration in, run folder out. The parts meet here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from rich.console import Console
from rich.markup import escape

from vitp.checkpoints.loading import LoadedVLM, load_vlm, read_tokenizer
from vitp.checkpoints.tensors import WEIGHTS
from vitp.core import distributed
from vitp.core.config import CONFIG_FILE, Positive, SettingsModel, Weight, load_config
from vitp.core.errors import ConfigError, DamagedError
from vitp.core.files import write_json
from vitp.core.sealed import check
from vitp.data.chat import ChatTokenizer
from vitp.data.collate import Collator, InstructionSource, SequenceConfig
from vitp.data.lengths import RecordCost, RecordLength
from vitp.data.mixture import Mixture, MixtureEntry
from vitp.data.readers.jsonl import JsonlRecords
from vitp.data.readers.mixture_file import read_mixture
from vitp.data.row_findings import mixture_warnings
from vitp.data.tiles import InputSettings
from vitp.data.tokenizer import train_tokenizer
from vitp.engine.config import OptimConfig, TrainConfig
from vitp.engine.hooks import Hook, TrainResult
from vitp.engine.loop import Trainer
from vitp.models.compute import ComputeConfig, configure
from vitp.models.flops import forward_flops, language_shape, vision_flops
from vitp.models.lora import VisionLoRAConfig, add_lora
from vitp.models.vlm import VisionLanguageModel, VLMConfig
from vitp.models.vrl import VisualRobustness, VRLConfig
from vitp.objectives.preserving import PreserveConfig, preserving
from vitp.objectives.prior_weights import PriorConfig, PriorWeights, TextOnlyObjective, TextReference
from vitp.objectives.vitp import ViTPObjective
from vitp.runs.folder import claimed


class ModelSettings(SettingsModel):
    """Where the model comes from and what of it is trained."""

    init: str = Field("starter", description='"starter", a run or model folder, or "scratch".')
    scratch: VLMConfig | None = Field(None, description="Sizes, for init: scratch.")
    tokenizer: str | None = Field(
        None, description="Tokenizer folder for scratch; none: trained on the mixture."
    )
    vocabulary: int = Field(2048, ge=300, le=10_000_000, description="Tokens of a trained tokenizer.")
    drop_path: float = Field(0.1, ge=0, lt=1)
    freeze: list[str] = Field(default_factory=list, description="Parts or patterns of parameter names.")
    lr_scale: dict[str, Weight] = Field(
        default_factory=dict, description="Part → factor on the learning rate."
    )
    gradient_checkpointing: bool = False
    vision_lora: VisionLoRAConfig | None = Field(
        None, description="Train the vision tower by low-rank updates and a few whole blocks only."
    )
    preserve: PreserveConfig = Field(
        default_factory=PreserveConfig,
        description="Keep the features near those of the initial vision tower.",
    )


class DataSettings(SettingsModel):
    """What is learned from."""

    mixture: list[str] = Field(
        min_length=1, description="Mixture files, compiled folders or JSON Lines files."
    )
    rates: list[Positive] | None = Field(
        None, description="Factor on the sampling rate, one for each mixture."
    )
    global_batch: int = Field(
        128, ge=1, le=4_194_304, description="Records an optimizer step, over all ranks."
    )
    sequence: SequenceConfig = Field(default_factory=SequenceConfig)
    input: InputSettings = Field(default_factory=InputSettings)
    balance: bool = Field(
        False, description="Share a step's records out so that all ranks have about the same to compute."
    )


class ProbeSettings(SettingsModel):
    """Online probes on a labelled set (a folder made by `vitp data compile`)."""

    data: str | None = None
    every: int = Field(500, ge=1, le=100_000_000)
    images: int = Field(
        300, ge=10, le=10_000_000, description="At most this many training and validation images each."
    )


class AlignSettings(SettingsModel):
    """A phase before the run proper in which the vision tower is frozen.

    A language model that doesn't know the domain's words yet sends the ViT noise: the first steps would move it
    without teaching it anything. In this phase projector and language model learn to read the ViT as it is.
    """

    steps: int = Field(default=0, ge=0, le=100_000_000, description="Optimizer steps; 0: no such phase.")
    lr: float = Field(default=1e-3, gt=0, le=100)


class PretrainConfig(SettingsModel):
    """A complete pretraining run. The defaults are the paper's."""

    objective: Literal["vitp"] = "vitp"
    seed: int = Field(0, ge=0, le=2**63 - 1)
    model: ModelSettings = Field(default_factory=ModelSettings)
    data: DataSettings
    vrl: VRLConfig = Field(default_factory=VRLConfig)
    align: AlignSettings = Field(default_factory=AlignSettings)
    prior: PriorConfig = Field(default_factory=PriorConfig, description="Weights of the answers' tokens.")
    optim: OptimConfig = Field(default_factory=OptimConfig)
    compute: ComputeConfig = Field(
        default_factory=ComputeConfig, description="Speed and memory; changes no result beyond rounding."
    )
    train: TrainConfig = Field(default_factory=lambda: TrainConfig(steps=8000))
    probe: ProbeSettings = Field(default_factory=ProbeSettings)


@dataclass
class PretrainRun:
    """The parts of a run, ready for the engine."""

    config: PretrainConfig
    objective: ViTPObjective
    source: InstructionSource


def open_mixture(data: DataSettings, seed: int) -> Mixture:
    """Return the mixture of all files that the settings name.

    Raises:
        DataError, ConfigError: A file is missing, empty or wrong.
    """
    if data.rates is not None and len(data.rates) != len(data.mixture):
        raise ConfigError(
            f"{len(data.rates)} rates for {len(data.mixture)} mixtures",
            where="data.rates",
            fix="give one each",
        )
    entries: list[MixtureEntry] = []
    for number, name in enumerate(data.mixture):
        factor = data.rates[number] if data.rates else 1.0
        entries += [
            MixtureEntry(entry.records, entry.rate * factor, max_tiles=entry.max_tiles, augment=entry.augment)
            for entry in open_entries(Path(name))
        ]
    return Mixture(entries, seed)


def open_entries(path: Path) -> list[MixtureEntry]:
    """Return the sets of one of the files or folders that a run learns from.

    Raises:
        DataError, ConfigError: It is missing, empty or wrong.
    """
    if path.is_dir():
        path = path / "mixture.json"
        if not path.is_file():
            raise ConfigError(
                "holds no mixture.json", where=str(path.parent), fix="make it with `vitp data compile`"
            )
    if not path.is_file():
        raise ConfigError("no such file", where=str(path), fix="check data.mixture")
    if path.suffix == ".jsonl":
        return [MixtureEntry(JsonlRecords(path, path.parent, path.stem))]
    return list(read_mixture(path))


def sequence_of(model: str | Path) -> SequenceConfig:
    """Return how a pretraining run cuts records into tiles and tokens; the defaults where a model isn't one's folder."""
    try:
        return load_config(PretrainConfig, Path(model) / CONFIG_FILE).data.sequence
    except ConfigError:
        return SequenceConfig()


def build(config: PretrainConfig) -> PretrainRun:
    """Return model, objective and batches of a configuration.

    Raises:
        VitpError: Something in the configuration or in the data can't be used.
    """
    torch.manual_seed(config.seed)
    mixture = open_mixture(config.data, config.seed)
    loaded = _initial_model(config, mixture)
    compute = config.compute
    if config.model.gradient_checkpointing and compute.recompute == "none":
        compute = compute.model_copy(update={"recompute": "full"})
    configure(loaded.vlm, compute)
    if config.model.vision_lora is not None:
        add_lora(loaded.vlm.vision, config.model.vision_lora)
    objective = ViTPObjective(
        loaded.vlm,
        loaded.chat,
        freeze=config.model.freeze,
        lr_scale=config.model.lr_scale,
        prior=_prior_weights(config.prior),
    )
    collator = Collator(
        loaded.chat,
        tile=loaded.vlm.vision.image_size[0],
        config=config.data.sequence,
        drop=VisualRobustness(config.vrl, config.seed).train(),
        load_tiles=config.data.input.loader(loaded.vlm.vision.image_size[0]),
    )
    source = InstructionSource(
        mixture,
        collator,
        config.data.global_batch,
        config.train.micro_batches,
        cost=_record_cost(config, loaded) if config.data.balance else None,
    )
    return PretrainRun(config, objective, source)


def _record_cost(config: PretrainConfig, loaded: LoadedVLM) -> RecordCost:
    """Return what a record costs, with a tile of the vision tower in tokens of the language model."""
    vision, language = loaded.vlm.vision, language_shape(loaded.vlm.language)
    tile, token = vision_flops(vision, 1), forward_flops(language, 1, config.data.sequence.max_length / 4)
    sequence = config.data.sequence
    length = RecordLength(loaded.chat, vision.image_size[0], sequence.max_tiles, sequence.max_turns)
    return RecordCost(length, tile / token, 1 - config.vrl.ratio * config.vrl.probability)


def _prior_weights(config: PriorConfig) -> PriorWeights | None:
    if config.alpha == 0:
        return None
    if config.reference is None:
        raise ConfigError(
            "names no model that knows the answers without images",
            where="prior.reference",
            fix="name one, or start the run with `vitp pretrain`, which trains one first",
        )
    return PriorWeights(TextReference(load_vlm(config.reference).vlm.language), config.alpha)


def _initial_model(config: PretrainConfig, mixture: Mixture) -> LoadedVLM:
    settings = config.model
    if settings.init != "scratch":
        return load_vlm(settings.init, drop_path=settings.drop_path)
    if settings.scratch is None:
        raise ConfigError("says no sizes", where="model.scratch", fix='set it, or use model.init: "starter"')
    vlm_config = settings.scratch.model_copy(update={"drop_path": settings.drop_path})
    if settings.tokenizer is not None:
        tokenizer = read_tokenizer(Path(settings.tokenizer))
    else:
        if vlm_config.template != "micro":
            raise ConfigError(
                "a tokenizer trained on the mixture goes with the micro template",
                where="model.scratch.template",
                fix='set it to "micro", or name a tokenizer folder',
            )
        tokenizer = train_tokenizer(corpus_of(mixture), vocabulary=settings.vocabulary)
    grid = vlm_config.vision.image_size // _patch_size(vlm_config)
    chat = ChatTokenizer(
        tokenizer, template=vlm_config.template, tokens_per_tile=(grid // vlm_config.shuffle) ** 2
    )
    return LoadedVLM(VisionLanguageModel(vlm_config, vocabulary=len(chat)), chat)


def _patch_size(config: VLMConfig) -> int:
    from vitp.models.vision import VisionTower

    with torch.device("meta"):
        return VisionTower(config.vision).patch_size


def corpus_of(mixture: Mixture, limit: int = 20_000) -> list[str]:
    """Return the texts of the first records of the mixture's order, for training a tokenizer."""
    texts: list[str] = []
    for position in range(min(limit, len(mixture))):
        for turn in mixture[position].record.turns:
            texts += [turn.question, turn.answer]
    return texts


def run_pretraining(
    config: PretrainConfig, run_dir: str | Path, *, resume: bool = False, console: Console | None = None
) -> TrainResult:
    """Train, and leave a run folder with configuration, metrics, checkpoints, evidence and the model.

    Args:
        config: The run.
        run_dir: New folder, or the folder to resume.
        resume: Continue from the last checkpoint of the folder.
        console: Where progress is printed; standard output by default.

    Raises:
        VitpError: A wrong configuration, unusable data, a non-finite loss, a full disk.
    """
    run_dir = Path(run_dir)
    with claimed(run_dir, config, config.train.device, resume=resume, phases=("prior", "align")) as resume:
        return _train(config, run_dir, resume, console)


def _train(config: PretrainConfig, run_dir: Path, resume: bool, console: Console | None) -> TrainResult:
    warnings = mixture_warnings(open_mixture(config.data, config.seed))
    if distributed.rank() == 0:
        for line in warnings:
            (console or Console()).print(f"[yellow]warning:[/] {escape(line)}", highlight=False)
    started = _fit_reference(config, run_dir, console)
    if config.align.steps:
        started = _align(started, run_dir, console)
    run = build(started)
    if distributed.rank() == 0:
        write_json(run_dir / "mixture.json", describe_mixture(run))
    trainer = Trainer(
        preserving(run.objective, config.model.preserve),
        run.source,
        config.optim,
        config.train,
        run_dir,
        hooks=probe_hooks(config.probe),
        console=console,
        resume=resume,
    )
    return trainer.train()


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


def _align(config: PretrainConfig, run_dir: Path, console: Console | None) -> PretrainConfig:
    """Run the alignment phase in `run_dir/align` unless it is done; return the run that starts from it."""
    folder = run_dir / "align"
    if not _is_done(folder, console):
        phase = config.model_copy(
            update={
                "model": config.model.model_copy(update={"freeze": [*config.model.freeze, "vision"]}),
                "optim": config.optim.model_copy(update={"lr": config.align.lr}),
                "train": config.train.model_copy(
                    update={"steps": config.align.steps, "must_train": (), "tensorboard": False}
                ),
            }
        )
        run = build(phase)
        resume = (folder / "checkpoints").is_dir()
        Trainer(
            run.objective, run.source, phase.optim, phase.train, folder, console=console, resume=resume
        ).train()
    return config.model_copy(update={"model": config.model.model_copy(update={"init": str(folder)})})


def _fit_reference(config: PretrainConfig, run_dir: Path, console: Console | None) -> PretrainConfig:
    """Train the reference of the token weights in `run_dir/prior` unless it is there; return the run that uses it."""
    if config.prior.alpha == 0 or config.prior.reference is not None:
        return config
    folder = run_dir / "prior"
    if not _is_done(folder, console):
        phase = config.model_copy(
            update={
                "prior": PriorConfig(),
                "model": config.model.model_copy(update={"freeze": [], "vision_lora": None}),
                "optim": config.optim.model_copy(update={"lr": config.prior.lr}),
                "train": config.train.model_copy(
                    update={"steps": config.prior.steps, "must_train": (), "tensorboard": False}
                ),
            }
        )
        run = build(phase)
        objective = TextOnlyObjective(run.objective.vlm, run.objective.chat)
        resume = (folder / "checkpoints").is_dir()
        Trainer(
            objective, run.source, phase.optim, phase.train, folder, console=console, resume=resume
        ).train()
    return config.model_copy(update={"prior": config.prior.model_copy(update={"reference": str(folder)})})


def describe_mixture(run: PretrainRun) -> dict[str, Any]:
    """Return what the card of an export says about the data: sets, sizes, rates, licences, hash."""
    mixture = run.source.mixture
    assert isinstance(mixture, Mixture)
    return {
        "fingerprint": run.source.fingerprint(),
        "sets": [
            {
                "name": entry.records.name,
                "records": len(entry.records),
                "rate": entry.rate,
                "licence": entry.records[0].licence,
            }
            for entry in mixture.entries
        ],
    }


def probe_hooks(settings: ProbeSettings) -> list[Hook]:
    """Return the hook that probes while a run goes on, or none where no data is named."""
    if settings.data is None:
        return []
    from vitp.data.formats.vitp_labels import read as read_labels
    from vitp.evaluation.online import OnlineProbes

    return [OnlineProbes(read_labels(Path(settings.data)), settings.every, max_images=settings.images)]
