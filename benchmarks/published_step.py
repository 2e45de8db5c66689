"""The training step as the published configuration runs it, on our weights and records: what gains are measured from.

One record a sequence, every sequence padded to the full length; dropped image tokens leave a sequence that is padded
back to that length; all questions of an image in one conversation; logits of all tokens; activations of ViT and
language model recomputed. Attention over a padded row is causal without a mask, the fastest that a padded row can have:
padding comes last, so nothing before it sees it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitp.data.packing import PackedBatch
from vitp.models.run_attention import repeat_heads
from vitp.models.vlm import VisionLanguageModel
from vitp.objectives.vitp import ViTPObjective

IGNORE = -100


def padded(batch: PackedBatch, length: int, pad_id: int) -> PackedBatch:
    """Return a batch of one record a row with rows of `length` tokens.

    Raises:
        ValueError: A row holds more than one record, or more tokens than `length`.
    """
    short = batch.ids_BL.shape[1]
    if int(batch.segments_BL.max()) > 0:
        raise ValueError("a row holds several records: pack them apart")
    if short > length:
        raise ValueError(f"a record of {short} tokens doesn't fit into {length}")

    def longer(values_BL: Tensor, value: int) -> Tensor:
        return F.pad(values_BL, (0, length - short), value=value)

    def moved(index: Tensor) -> Tensor:
        return index // short * length + index % short

    return replace(
        batch,
        ids_BL=longer(batch.ids_BL, pad_id),
        positions_BL=longer(batch.positions_BL, 0),
        segments_BL=longer(batch.segments_BL, -1),
        branches_BL=longer(batch.branches_BL, 0),
        image_index_K=moved(batch.image_index_K),
        target_index_S=moved(batch.target_index_S),
    )


class CausalAttention:
    """Each row sees what comes before; see `vitp.models.attention_layouts.PackedAttention`."""

    def __call__(
        self, query_BhLd: Tensor, key_BgLd: Tensor, value_BgLd: Tensor, scale: float, dropout: float
    ) -> Tensor:
        """Return the attended values."""
        heads = query_BhLd.shape[1]
        key, value = (repeat_heads(x, heads) for x in (key_BgLd, value_BgLd))
        return F.scaled_dot_product_attention(
            query_BhLd, key, value, is_causal=True, dropout_p=dropout, scale=scale
        ).transpose(1, 2)


def published_loss(objective: ViTPObjective, batch: PackedBatch) -> Tensor:
    """Return the summed negative log-likelihood of a padded batch, with logits made everywhere."""
    vlm = objective.vlm
    inputs_BLH = _embed(vlm, batch)
    hidden_BLH = vlm.language.get_decoder()(
        inputs_embeds=inputs_BLH,
        position_ids=batch.positions_BL,
        use_cache=False,
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=inputs_BLH.device),
        packed=CausalAttention(),
    ).last_hidden_state
    labels_N = torch.full((batch.ids_BL.numel(),), IGNORE, device=inputs_BLH.device)
    labels_N[batch.target_index_S] = batch.target_ids_S
    logits_NV = vlm.logits(hidden_BLH).flatten(0, 1).float()
    return F.cross_entropy(logits_NV, labels_N, ignore_index=IGNORE, reduction="sum")


def _embed(vlm: VisionLanguageModel, batch: PackedBatch) -> Tensor:
    """All image tokens go through the projector; the survivors are taken afterwards."""
    text_BLH = vlm.language.get_input_embeddings()(batch.ids_BL)
    image_KH = vlm.encode_tiles(batch.tiles_TCHW).flatten(0, 1)[batch.keep_K]
    rows, length, width = text_BLH.shape
    flat = text_BLH.reshape(rows * length, width).index_copy(
        0, batch.image_index_K, image_KH.to(text_BLH.dtype)
    )
    return flat.view(rows, length, width)


class PublishedObjective(ViTPObjective):
    """The published step behind the objective's interface, sharing the parts of another one's model.

    Args:
        objective: Whose model is used, activation checkpointing switched on.
        length: Tokens of a padded sequence.
    """

    def __init__(self, objective: ViTPObjective, length: int) -> None:
        super().__init__(objective.vlm, objective.chat)
        self.length = length
        self.vlm.set_gradient_checkpointing(True)

    def forward(self, batch: PackedBatch) -> dict[str, Tensor]:
        """Return {"language": summed loss}."""
        if batch.ids_BL.shape[1] != self.length:
            batch = padded(batch, self.length, self.chat.pad_id)
        return {"language": published_loss(self, batch)}


def check_equal(ours: ViTPObjective, published: PublishedObjective, batch: PackedBatch) -> float:
    """Return the relative difference of the losses of one batch, one record a row, computed both ways.

    Raises:
        ValueError: It is more than 1e-3: the two would not be comparable.
    """
    ours.eval()
    with torch.no_grad():
        a, b = (float(o(batch)["language"]) for o in (ours, published.eval()))
    difference = abs(a - b) / max(abs(b), 1e-12)
    if not np.isfinite(difference) or difference > 1e-3:
        raise ValueError(f"the published step has a loss of {b}, ours of {a}")
    return difference
