"""The places of a batch's tokens, laid out beside the batch in the process that makes it."""

from __future__ import annotations

from dataclasses import replace

from vitp.data.packing import PackedBatch
from vitp.models.packed_layout import packed_layout


def with_layout(batch: PackedBatch, *, static: bool = False, token_multiple: int = 1) -> PackedBatch:
    """Return a batch with the layout that the language model computes it in; see `vitp.models.packed_layout`."""
    layout = packed_layout(
        batch.ids_BL,
        batch.positions_BL,
        batch.segments_BL,
        batch.branches_BL,
        batch.image_index_K,
        batch.target_index_S,
        static=static,
        token_multiple=token_multiple,
    )
    return replace(batch, layout=layout)
