"""Visual Instruction Pretraining: next-token loss on the answers, through the language model into the ViT."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitp.core.errors import ConfigError
from vitp.data.chat import ChatTokenizer
from vitp.data.packing import PackedBatch
from vitp.models.flops import forward_flops, language_shape, vision_flops
from vitp.models.lora import plain_layers
from vitp.models.token_runs import token_runs
from vitp.models.vlm import MOST_LOGITS, PARTS, VisionLanguageModel
from vitp.objectives.base import Objective, ParameterGroup
from vitp.objectives.prior_weights import PriorWeights

GROUP_NAMES = {"vision": "vision tower", "projector": "projector", "language": "language model"}


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
    ) -> None:
        super().__init__()
        self.vlm, self.chat = vlm, chat
        self.logit_chunk = logit_chunk or max(1, MOST_LOGITS // int(vlm.language.config.vocab_size))
        self.prior = prior
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
        """Return {"language": (weighted) sum of the negative log-likelihoods of the supervised tokens}."""
        weights_S = None if self.prior is None else self.prior(batch)
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
        )
        return {"language": self.negative_log_likelihood(hidden_SH, batch.target_ids_S, weights_S)}

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
        """Return {"language": number of supervised tokens}."""
        return {"language": float(batch.target_ids_S.numel())}

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
        """Return samples, tokens, tiles, questions and token slots of the batch."""
        return {
            "samples": len(batch.record_names),
            "tokens": batch.tokens,
            "tiles": len(batch.tiles_TCHW),
            "capacity": batch.ids_BL.numel(),
            "questions": batch.turns,
        }

    def step_flops(self, batch: PackedBatch) -> float:
        """Return the FLOPs of forward and backward pass of a batch."""
        return vlm_step_flops(self.vlm, batch)

    def save_pretrained(self, folder: Path) -> None:
        """Write model, configuration and tokenizer; `vitp.checkpoints.pretrained.load_vlm` reads them."""
        from vitp.checkpoints.pretrained import write_vlm

        with plain_layers(self.vlm.vision):
            write_vlm(Path(folder), self.vlm, self.chat)


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


def vlm_forward_flops(vlm: VisionLanguageModel, batch: PackedBatch) -> dict[str, float]:
    """Return the forward FLOPs of the three parts of a model for a batch: vision, projector, language."""
    runs = token_runs(batch.segments_BL.cpu().numpy(), batch.branches_BL.cpu().numpy())
    linear = [module for module in vlm.projector.modules() if isinstance(module, nn.Linear)]
    return {
        "vision": vision_flops(vlm.vision, len(batch.tiles_TCHW)),
        "projector": sum(2.0 * module.in_features * module.out_features for module in linear)
        * len(batch.keep_K),
        "language": forward_flops(
            language_shape(vlm.language), batch.tokens, runs.context, logits=len(batch.target_ids_S)
        ),
    }


def vlm_step_flops(vlm: VisionLanguageModel, batch: PackedBatch) -> float:
    """Return the FLOPs of forward and backward pass of a batch.

    A frozen part costs no gradients of its weights, and none at all where nothing in front of it is trained.
    """
    total, gradient_arrives = 0.0, False
    for part, forward in vlm_forward_flops(vlm, batch).items():
        trained = any(parameter.requires_grad for parameter in getattr(vlm, part).parameters())
        total += forward * (1 + trained + (trained or gradient_arrives))
        gradient_arrives = gradient_arrives or trained
    return total
