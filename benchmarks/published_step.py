"""The training step as the published configuration runs it, on our weights and records: what gains are measured from.

One record a sequence, every sequence padded to the full length; dropped image tokens leave a sequence that is padded
back to that length; all questions of an image in one conversation; logits of all tokens; activations of ViT and
language model recomputed. Its language model runs flash attention, which takes the padding out before it attends and
puts it back behind: attention costs what the records cost (`unpadded`), whereas projections, MLPs, norms and logits are
computed for the padding, too. `padded` attends over whole rows, causal without a mask, as a model without flash
attention does.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitp.data.packing import PackedBatch
from vitp.models.attention_layouts import PackedAttention, prepare
from vitp.models.run_attention import repeat_heads
from vitp.models.vlm import VisionLanguageModel
from vitp.objectives.vitp import ViTPObjective

IGNORE = -100

Baseline = Literal["unpadded", "padded"]
"""How the published language model attends; `unpadded` is what the published code computes."""

BASELINES: tuple[Baseline, ...] = get_args(Baseline)


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
        layout=None,
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


def attention_of(batch: PackedBatch, baseline: Baseline, dtype: torch.dtype) -> PackedAttention:
    """Return the attention of a padded batch of one record a row.

    Unpadded, it takes the tokens of all rows that aren't padding, attends with the fastest kernel that the device has
    for sequences of different lengths, and puts the results back between the padding.
    """
    if baseline == "padded":
        return CausalAttention()
    # `static`: the rows stay as they are everywhere but in the attention.
    return prepare(batch.segments_BL, batch.branches_BL, dtype=dtype, static=True).attend


def published_loss(objective: ViTPObjective, batch: PackedBatch, baseline: Baseline = "unpadded") -> Tensor:
    """Return the summed negative log-likelihood of a padded batch, with logits made everywhere."""
    vlm = objective.vlm
    inputs_BLH = _embed(vlm, batch)
    hidden_BLH = vlm.language.get_decoder()(
        inputs_embeds=inputs_BLH,
        position_ids=batch.positions_BL,
        use_cache=False,
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=inputs_BLH.device),
        packed=attention_of(batch, baseline, _dtype(inputs_BLH)),
    ).last_hidden_state
    labels_N = torch.full((batch.ids_BL.numel(),), IGNORE, device=inputs_BLH.device)
    labels_N[batch.target_index_S] = batch.target_ids_S
    logits_NV = vlm.logits(hidden_BLH).flatten(0, 1).float()
    return F.cross_entropy(logits_NV, labels_N, ignore_index=IGNORE, reduction="sum")


def _dtype(inputs_BLH: Tensor) -> torch.dtype:
    """Return the precision of queries and keys: autocast's, or the tensor's own."""
    kind = inputs_BLH.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else inputs_BLH.dtype


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
        baseline: How its language model attends.
    """

    def __init__(self, objective: ViTPObjective, length: int, baseline: Baseline = "unpadded") -> None:
        super().__init__(objective.vlm, objective.chat)
        self.length, self.baseline = length, baseline
        self.vlm.set_gradient_checkpointing(True)

    def forward(self, batch: PackedBatch) -> dict[str, Tensor]:
        """Return {"language": summed loss}."""
        if batch.ids_BL.shape[1] != self.length:
            batch = padded(batch, self.length, self.chat.pad_id)
        return {"language": published_loss(self, batch, self.baseline)}


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
