"""Visual Instruction Pretraining: next-token loss on the answers, through the language model into the ViT."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vitp.checkpoints.loading import LoadedVLM, grow_embeddings, load_vlm, read_tokenizer
from vitp.checkpoints.writing import write_vlm
from vitp.core.config import SettingsModel
from vitp.core.errors import ConfigError
from vitp.data.batches import SampledBatches
from vitp.data.chat import ChatTokenizer
from vitp.data.lengths import RecordCost, RecordLength
from vitp.data.mixture import Mixture, MixtureEntry
from vitp.data.packing import PackedBatch
from vitp.data.readers.records import JsonlRecords
from vitp.data.row_checks import mixture_warnings
from vitp.data.seen import SeenBands
from vitp.data.sources import read_mixture
from vitp.data.tokenizer import train_tokenizer
from vitp.models.adapting import adapt_tower, save_adapt
from vitp.models.compute import configure
from vitp.models.flops import forward_flops, language_shape, vision_flops
from vitp.models.lora import plain_layers
from vitp.models.packed_layout import PackedLayout
from vitp.models.vision import VisionTower
from vitp.models.vlm import MOST_LOGITS, PARTS, VisionLanguageModel
from vitp.models.vrl import VisualRobustness, VRLSettings
from vitp.objectives.base import Objective, ParameterGroup
from vitp.objectives.guiding import GUIDE_LOSS, AttentionGuide, GuideSettings, asked, places_warning
from vitp.objectives.lexicon import LexiconSettings, LexiconWeights
from vitp.objectives.packed_records import PackedRecords
from vitp.objectives.prior_weights import PriorSettings, PriorWeights, TextOnlyObjective, TextReference
from vitp.objectives.settings import DataSettings, ObjectiveParts, ObjectiveSettings, Phase, Run, RunSettings
from vitp.objectives.vlm_flops import vlm_step_flops

GROUP_NAMES = {"vision": "vision tower", "projector": "projector", "language": "language model"}


class AlignSettings(SettingsModel):
    """A phase before the run proper in which the vision tower is frozen.

    A language model that doesn't know the domain's words yet sends the ViT noise: the first steps would move it
    without teaching it anything. In this phase projector and language model learn to read the ViT as it is.
    """

    steps: int = Field(0, ge=0, le=100_000_000)
    """Optimizer steps; 0: no such phase."""
    lr: float = Field(1e-3, gt=0, le=100)
    """Peak learning rate."""


class ViTPSettings(ObjectiveSettings):
    """Visual instruction pretraining. The defaults are the paper's."""

    has_language_model: ClassVar[bool] = True
    former_keys: ClassVar[Mapping[str, str]] = {"vrl": "vrl", "align": "align", "prior": "prior"}

    name: Literal["vitp"] = "vitp"
    """Visual instruction pretraining."""
    vrl: VRLSettings = Field(default_factory=VRLSettings)
    """Image tokens that are dropped at random between projector and language model."""
    align: AlignSettings = Field(default_factory=AlignSettings)
    """A phase before the run proper in which the vision tower is frozen."""
    prior: PriorSettings = Field(default_factory=PriorSettings)
    """Weights of the answers' tokens."""
    lexicon: LexiconSettings = Field(default_factory=LexiconSettings)
    """Words of the answers that weigh more."""
    guide: GuideSettings = Field(default_factory=GuideSettings)
    """Attention to the place that a question asks about."""

    def build(self, run: RunSettings, *, steps: int, micro_batches: int) -> ObjectiveParts:
        """Return the objective over the instruction records of the mixture."""
        torch.manual_seed(run.seed)
        mixture = open_mixture(run.data, run.seed)
        self._places_warning(run, mixture)
        loaded = _initial_model(run, mixture)
        if run.model.locations:
            loaded.chat.add_locations(run.model.locations)
            grow_embeddings(loaded.vlm, loaded.chat)
        compute = run.compute
        if run.model.gradient_checkpointing and compute.recompute == "none":
            compute = compute.model_copy(update={"recompute": "full"})
        configure(loaded.vlm, compute)
        loaded.vlm.reduce = self.vrl.how
        if run.model.adapt is not None:
            adapt_tower(loaded.vlm.vision, run.model.adapt, run.seed)
            # What was added to the tower belongs to the model's settings: whoever loads the run builds it again.
            loaded.vlm.config = loaded.vlm.config.model_copy(update={"vision": loaded.vlm.vision.config})
        objective = ViTPObjective(
            loaded.vlm,
            loaded.chat,
            freeze=run.model.freeze,
            lr_scale=run.model.lr_scale,
            prior=_prior_weights(self.prior),
            lexicon=LexiconWeights(loaded.chat, self.lexicon) if self.lexicon.words else None,
            guide=self.guide,
        )
        tile = loaded.vlm.vision.image_size[0]
        channels, data = loaded.vlm.vision.in_channels, run.data
        seen = SeenBands(channels, data.band_dropout, window_jitter=data.window_jitter)
        collate = PackedRecords(
            loaded.chat,
            tile=tile,
            config=run.data.sequence,
            # In evaluation mode it would keep all tokens.
            drop=VisualRobustness(self.vrl, run.seed).train(),
            load_tiles=run.data.input.loader(tile, seen),
            seen=seen,
            compute=compute,
            places=self.guide.weight > 0,
        )
        source = SampledBatches(
            mixture,
            collate,
            run.data.global_batch,
            micro_batches,
            cost=self._record_cost(run, loaded) if run.data.balance else None,
        )
        return ObjectiveParts(objective, source, mixture.describe())

    def _record_cost(self, run: RunSettings, loaded: LoadedVLM) -> RecordCost:
        """Return what a record costs, with a tile of the vision tower in tokens of the language model."""
        vision, language, sequence = loaded.vlm.vision, language_shape(loaded.vlm.language), run.data.sequence
        tile, token = vision_flops(vision, 1), forward_flops(language, 1, sequence.max_length / 4)
        length = RecordLength(loaded.chat, vision.image_size[0], sequence.max_tiles, sequence.max_turns)
        return RecordCost(length, tile / token, 1 - self.vrl.ratio * self.vrl.probability)

    def phases(self) -> tuple[Phase, ...]:
        """Return the training of the text reference and the alignment, as far as they are wanted."""
        found = []
        if self.prior.alpha > 0 and self.prior.reference is None:
            found.append(
                Phase(
                    "prior",
                    self.prior.steps,
                    self.prior.lr,
                    # All of the language model trains; the tower takes no part.
                    prepare=lambda run: _with_model(
                        _with_objective(run, prior=PriorSettings()), freeze=[], adapt=None
                    ),
                    proceed=lambda run, folder: _with_objective(
                        run, prior=run.objective.prior.model_copy(update={"reference": str(folder)})
                    ),
                    part=lambda objective: TextOnlyObjective(objective.vlm, objective.chat),
                )
            )
        if self.align.steps:
            found.append(
                Phase(
                    "align",
                    self.align.steps,
                    self.align.lr,
                    prepare=lambda run: _with_model(run, freeze=[*run.model.freeze, "vision"]),
                    proceed=lambda run, folder: _with_model(run, init=str(folder)),
                )
            )
        return tuple(found)

    def alone(self) -> ViTPSettings:
        """Return the settings without alignment and with all tokens alike."""
        align = self.align.model_copy(update={"steps": 0})
        return self.model_copy(update={"align": align, "prior": PriorSettings()})

    def warnings(self, run: RunSettings) -> list[str]:
        """Return what the records of the mixture lack."""
        mixture = open_mixture(run.data, run.seed)
        return [*mixture_warnings(mixture), *self._places_warning(run, mixture)]

    def _places_warning(self, run: RunSettings, mixture: Mixture) -> list[str]:
        return places_warning(mixture, run.data.sequence.max_turns) if self.guide.weight > 0 else []


def _with_model(run: Run, **changes: object) -> Run:
    return run.model_copy(update={"model": run.model.model_copy(update=changes)})


def _with_objective(run: Run, **changes: object) -> Run:
    return run.model_copy(update={"objective": run.objective.model_copy(update=changes)})


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
        entries += [replace(entry, rate=entry.rate * factor) for entry in open_entries(Path(name))]
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
                "holds no mixture.json",
                where=str(path.parent),
                fix="make it with `vitp data compile`, of images without labels with --format images",
            )
    if not path.is_file():
        raise ConfigError("no such file", where=str(path), fix="check data.mixture")
    if path.suffix == ".jsonl":
        return [MixtureEntry(JsonlRecords(path, path.parent, path.stem))]
    return list(read_mixture(path))


def _prior_weights(settings: PriorSettings) -> PriorWeights | None:
    if settings.alpha == 0:
        return None
    if settings.reference is None:
        raise ConfigError(
            "names no model that knows the answers without images",
            where="objective.prior.reference",
            fix="name one, or start the run with `vitp pretrain`, which trains one first",
        )
    reference = TextReference(load_vlm(settings.reference).vlm.language)
    return PriorWeights(reference, settings.alpha, normalise=settings.normalise)


def _initial_model(run: RunSettings, mixture: Mixture) -> LoadedVLM:
    settings = run.model
    if settings.init != "scratch":
        return load_vlm(settings.init, drop_path=settings.drop_path, channels=settings.channels)
    if settings.scratch is None:
        raise ConfigError(
            "doesn't say the sizes", where="model.scratch", fix='set it, or use model.init: "starter"'
        )
    vision = settings.scratch.vision
    vision = vision.model_copy(update={"channels": settings.channels or vision.channels})
    vlm_config = settings.scratch.model_copy(update={"drop_path": settings.drop_path, "vision": vision})
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
    # The tower's patch size is that of its architecture; on the meta device it costs no memory to ask.
    with torch.device("meta"):
        patch = VisionTower(vlm_config.vision).patch_size
    grid = vlm_config.vision.image_size // patch
    chat = ChatTokenizer(
        tokenizer, template=vlm_config.template, tokens_per_tile=(grid // vlm_config.shuffle) ** 2
    )
    return LoadedVLM(VisionLanguageModel(vlm_config, vocabulary=len(chat)), chat)


def corpus_of(mixture: Mixture) -> list[str]:
    """Return the texts of the first records of the mixture's order, for training a tokenizer."""
    texts: list[str] = []
    for position in range(min(20_000, len(mixture))):
        for turn in mixture[position].record.turns:
            texts += [turn.question, turn.answer]
    return texts


class ViTPObjective(Objective):
    """Negative log-likelihood of the answers (ViTP, eq. 2); all three parts are trainable by default.

    Args:
        vlm: The model.
        chat: Its tokenizer, saved beside it.
        freeze: Parts ("vision", "projector", "language") or patterns of parameter names such as
            "vision.model.blocks.[0-3].*".
        lr_scale: Part → factor of the run's learning rate.
        logit_chunk: Supervised tokens whose logits are in memory at once; None: as many as make 2^26 logits.
        prior: Weights of the supervised tokens; None: all alike.
        lexicon: The same, by the words that they are part of.
        guide: A weight above 0: batches must hold the places that questions ask about.
    """

    def __init__(
        self,
        vlm: VisionLanguageModel,
        chat: ChatTokenizer,
        *,
        freeze: Sequence[str] = (),
        lr_scale: Mapping[str, float] | None = None,
        logit_chunk: int | None = None,
        prior: PriorWeights | None = None,
        lexicon: LexiconWeights | None = None,
        guide: GuideSettings | None = None,
    ) -> None:
        super().__init__()
        self.vlm, self.chat = vlm, chat
        self.logit_chunk = logit_chunk or max(1, MOST_LOGITS // int(vlm.language.config.vocab_size))
        self.prior, self.lexicon = prior, lexicon
        self.guide = AttentionGuide(vlm, guide) if guide is not None and guide.weight > 0 else None
        if guide is not None and guide.weight > 0:
            self.loss_weights, self.reads_weights = {GUIDE_LOSS: guide.weight}, "objective.guide"
        self.lr_scale = dict(lr_scale or {})
        for part in self.lr_scale:
            if part not in PARTS:
                raise ConfigError(
                    f"unknown part {part!r}", where="model.lr_scale", fix=f"parts are {', '.join(PARTS)}"
                )
        freeze_parameters(vlm, freeze)

    @property
    def vision_tower(self) -> torch.nn.Module:
        """The ViT that is exported."""
        return self.vlm.vision

    def forward(self, batch: PackedBatch) -> dict[str, Tensor]:
        """Return {"language": (weighted) sum of the supervised tokens' negative log-likelihoods}, and the guide's."""
        weights_S = None if self.prior is None else self.prior(batch)
        if self.lexicon is not None:
            weights_S = self.lexicon(batch) * (1.0 if weights_S is None else weights_S)
        watch = None if self.guide is None else self.guide.watch()
        hidden_SH = self.vlm(
            tiles_TCHW=batch.tiles_TCHW,
            keep_K=batch.keep_K,
            image_index_K=batch.image_index_K,
            ids_BL=batch.ids_BL,
            positions_BL=batch.positions_BL,
            segments_BL=batch.segments_BL,
            branches_BL=batch.branches_BL,
            target_index_S=batch.target_index_S,
            names=batch.record_names,
            layout=batch.layout if isinstance(batch.layout, PackedLayout) else None,
            watch=watch,
        )
        losses = {"language": self.negative_log_likelihood(hidden_SH, batch.target_ids_S, weights_S)}
        if self.guide is not None and watch is not None:
            losses[GUIDE_LOSS] = self.guide.loss(watch, asked(batch))
        return losses

    def negative_log_likelihood(
        self, hidden_SH: Tensor, target_ids_S: Tensor, weights_S: Tensor | None = None
    ) -> Tensor:
        """Return the summed loss; logits are made for `logit_chunk` tokens at a time and recomputed backward."""
        if len(hidden_SH) <= self.logit_chunk:
            return self._chunk_loss(hidden_SH, target_ids_S, weights_S)
        total = hidden_SH.new_zeros((), dtype=torch.float32)
        for begin in range(0, len(hidden_SH), self.logit_chunk):
            part = slice(begin, begin + self.logit_chunk)
            weights = None if weights_S is None else weights_S[part]
            total = total + checkpoint(
                self._chunk_loss, hidden_SH[part], target_ids_S[part], weights, use_reentrant=False
            )
        return total

    def _chunk_loss(self, hidden_SH: Tensor, target_ids_S: Tensor, weights_S: Tensor | None) -> Tensor:
        logits_SV = self.vlm.logits(hidden_SH).float()
        if weights_S is None:
            return F.cross_entropy(logits_SV, target_ids_S, reduction="sum")
        return (F.cross_entropy(logits_SV, target_ids_S, reduction="none") * weights_S).sum()

    def loss_counts(self, batch: PackedBatch) -> dict[str, float]:
        """Return {"language": number of supervised tokens}, and the number of places asked about."""
        places = {} if self.guide is None else {GUIDE_LOSS: float(len(asked(batch).query_P))}
        return {"language": float(batch.target_ids_S.numel()), **places}

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the three parts, and the frozen reference of the token weights where there is one."""
        groups = [
            ParameterGroup(
                GROUP_NAMES[part],
                {f"vlm.{part}.{name}": p for name, p in getattr(self.vlm, part).named_parameters()},
                self.lr_scale.get(part, 1.0),
            )
            for part in PARTS
        ]
        if self.prior is not None:
            reference = {f"prior.{name}": p for name, p in self.prior.named_parameters()}
            groups.append(ParameterGroup("text reference", reference))
        return groups

    def work(self, batch: PackedBatch) -> dict[str, float]:
        """Return samples, tokens, tiles, questions, and the slots that tokens and tiles are computed in."""
        return {
            "samples": len(batch.record_names),
            "tokens": batch.tokens,
            "tiles": len(batch.tiles_TCHW),
            "capacity": batch.ids_BL.numel(),
            "tile_slots": self.vlm.tile_slots(len(batch.tiles_TCHW)),
            "questions": batch.turns,
        }

    def step_flops(self, batch: PackedBatch) -> float:
        """Return the FLOPs of forward and backward pass of a batch."""
        return vlm_step_flops(self.vlm, batch)

    def save_pretrained(self, folder: Path) -> None:
        """Write model, configuration and tokenizer; `vitp.load_vlm` reads them."""
        with plain_layers(self.vlm.vision):
            write_vlm(Path(folder), self.vlm, self.chat)
        save_adapt(Path(folder), self.vlm.vision)


def freeze_parameters(vlm: VisionLanguageModel, patterns: Sequence[str]) -> None:
    """Set `requires_grad` to False by part or by pattern of names.

    Raises:
        ConfigError: A pattern fits no parameter, or nothing stays trainable.
    """
    names = dict(vlm.named_parameters())
    for pattern in patterns:
        fitting = [
            name
            for name in names
            if fnmatch.fnmatchcase(name, f"{pattern}.*" if pattern in PARTS else pattern)
        ]
        if not fitting:
            raise ConfigError(
                f"{pattern!r} fits no parameter",
                where="model.freeze",
                fix="name a part (vision, projector, language) or a pattern such as vision.model.blocks.0.*",
            )
        for name in fitting:
            names[name].requires_grad_(False)
    if not any(p.requires_grad for p in names.values()):
        raise ConfigError("nothing is left to train", where="model.freeze", fix="freeze less")
