"""Several records in one row, with no attention between them.

Shapes: B rows, L tokens a row, T tiles, K surviving image tokens, S supervised tokens, P questions about a place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vitp.core.errors import DataError
from vitp.core.tensors import TensorFields
from vitp.data.chat import EncodedRecord

PADDING_SEGMENT = -1


@dataclass(frozen=True)
class AskedPlaces(TensorFields):
    """The questions of a batch that ask about a place of which some image token survives.

    Attributes:
        query_P: Which of the S supervised tokens is the first one of the answer.
        inside_PK: True at image tokens inside the place.
        own_PK: True at image tokens of the question's record.
    """

    query_P: Tensor
    inside_PK: Tensor
    own_PK: Tensor


@dataclass(frozen=True)
class PackedBatch(TensorFields):
    """What the vision-language model computes in one forward pass.

    Attributes:
        tiles_TCHW: uint8 RGB tiles of all records, in the order of their image tokens.
        keep_K: Which of the T × (tokens a tile) image tokens survive, ascending within each record.
        image_index_K: Where they go: indices into the flattened (B · L) sequence.
        ids_BL, positions_BL: Token and position ids; positions are those before tokens were dropped.
        segments_BL: Number of the record within the row, -1 = padding.
        branches_BL: 0 = shared by the record's questions, k = its k-th independent question.
        target_index_S: Flat indices of the tokens whose output predicts a supervised token.
        target_ids_S: The supervised tokens.
        record_names: Names of the records, for messages.
        turns: Questions and answers in the batch.
        layout: What the model needs to know of the rows, where the objective has made it on the host
            (`vitp.models.packed_layout`); None: the model finds it out.
        places: What the questions ask about, where the objective wants to know; None: it doesn't.
    """

    tiles_TCHW: Tensor
    keep_K: Tensor
    image_index_K: Tensor
    ids_BL: Tensor
    positions_BL: Tensor
    segments_BL: Tensor
    branches_BL: Tensor
    target_index_S: Tensor
    target_ids_S: Tensor
    record_names: tuple[str, ...]
    turns: int
    layout: TensorFields | None = None
    places: AskedPlaces | None = None

    @property
    def tokens(self) -> int:
        """Tokens that are not padding."""
        return int((self.segments_BL != PADDING_SEGMENT).sum())


def first_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Return rows of item numbers, each row at most `capacity` long in sum; longest items placed first.

    Raises:
        ValueError: An item is longer than the capacity.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if lengths[item] > capacity:
            raise ValueError(f"item {item} of length {lengths[item]} exceeds the capacity {capacity}")
        for row, free in enumerate(room):
            if lengths[item] <= free:
                rows[row].append(item)
                room[row] -= lengths[item]
                break
        else:
            rows.append([item])
            room.append(capacity - lengths[item])
    return rows


def pack(
    records: Sequence[EncodedRecord],
    tiles: Sequence[np.ndarray],
    kept: Sequence[np.ndarray],
    *,
    tokens_per_tile: int,
    max_length: int,
    pad_id: int,
    together: bool = True,
) -> PackedBatch:
    """Drop the image tokens that don't survive, and pack what is left into rows.

    Args:
        records: Encoded, nothing dropped yet.
        tiles: (tiles, 3, H, W) uint8 of each record.
        kept: Surviving image tokens of each record, indices into its own image tokens, ascending.
        tokens_per_tile: Image tokens a tile.
        max_length: Room of a row.
        pad_id: Token id of padding.
        together: False gives each record a row of its own.

    Raises:
        DataError: Placeholders and image features of a record differ in number, or a record is longer than
            a row.
    """
    short: list[EncodedRecord] = []
    keep_parts: list[np.ndarray] = []
    first_token = 0
    for record, record_tiles, survivors in zip(records, tiles, kept, strict=True):
        features = len(record_tiles) * tokens_per_tile
        short.append(_drop(record, features, survivors))
        if len(short[-1]) > max_length:
            raise DataError(
                f"takes {len(short[-1])} tokens, a row holds {max_length}",
                where=record.name,
                fix="raise data.sequence.max_length, lower data.sequence.max_tiles, or shorten the texts",
            )
        keep_parts.append(survivors + first_token)
        first_token += features
    lengths = [len(record) for record in short]
    # Attention under an explicit mask costs the square of a row's length, so rows are only as long as the longest
    # record: short records still fill them up, and none computes attention to strangers it may not see.
    rows = first_fit_decreasing(lengths, max(lengths)) if together else [[i] for i in range(len(short))]
    return _lay_out(records=short, rows=rows, tiles=tiles, keep_parts=keep_parts, pad_id=pad_id)


def _drop(record: EncodedRecord, features: int, survivors: np.ndarray) -> EncodedRecord:
    """Return the record without the image tokens that don't survive."""
    image_places = np.flatnonzero(record.image_N)
    if features != len(image_places):
        raise DataError(
            f"{len(image_places)} image placeholders but {features} image features",
            where=record.name,
            fix="tile and encode the record with the same settings",
        )
    keep_N = ~record.image_N
    keep_N[image_places[survivors]] = True
    return record.take(keep_N)


def _lay_out(
    *,
    records: list[EncodedRecord],
    rows: list[list[int]],
    tiles: Sequence[np.ndarray],
    keep_parts: list[np.ndarray],
    pad_id: int,
) -> PackedBatch:
    length = max(sum(len(records[i]) for i in row) for row in rows)
    length = -(-length // 8) * 8  # kernels like multiples of 8
    shape = (len(rows), length)
    ids_BL = np.full(shape, pad_id, dtype=np.int64)
    positions_BL = np.zeros(shape, dtype=np.int64)
    segments_BL = np.full(shape, PADDING_SEGMENT, dtype=np.int64)
    branches_BL = np.zeros(shape, dtype=np.int64)
    image_index: list[np.ndarray] = [np.empty(0, dtype=np.int64)] * len(records)
    target_index, target_ids = [], []
    for b, row in enumerate(rows):
        start = 0
        for segment, number in enumerate(row):
            record = records[number]
            place = slice(start, start + len(record))
            ids_BL[b, place], positions_BL[b, place] = record.ids_N, record.positions_N
            if record.hidden_N is not None:
                ids_BL[b, place][record.hidden_N] = pad_id
            segments_BL[b, place], branches_BL[b, place] = segment, record.branches_N
            flat = b * length + start
            # By the record's number, not by row: features come in the order of the records.
            image_index[number] = flat + np.flatnonzero(record.image_N)
            # A token is predicted by the output at the one before it.
            supervised = np.flatnonzero(record.supervised_N)
            target_index.append(flat + supervised - 1)
            target_ids.append(record.ids_N[supervised])
            start += len(record)
    return PackedBatch(
        tiles_TCHW=torch.from_numpy(np.concatenate(tiles)),
        keep_K=torch.from_numpy(np.concatenate(keep_parts)),
        image_index_K=torch.from_numpy(np.concatenate(image_index)),
        ids_BL=torch.from_numpy(ids_BL),
        positions_BL=torch.from_numpy(positions_BL),
        segments_BL=torch.from_numpy(segments_BL),
        branches_BL=torch.from_numpy(branches_BL),
        target_index_S=torch.from_numpy(np.concatenate(target_index)),
        target_ids_S=torch.from_numpy(np.concatenate(target_ids)),
        record_names=tuple(record.name for record in records),
        turns=sum(record.turns for record in records),
        places=_asked_places(records, rows),
    )


def _asked_places(records: list[EncodedRecord], rows: list[list[int]]) -> AskedPlaces | None:
    """Return the places among the batch's tokens: supervised ones lie row by row, image tokens record by record."""
    if all(record.inside_QI is None for record in records):
        return None
    first_image = np.cumsum([0, *(record.image_N.sum() for record in records)])
    queries: list[int] = []
    inside: list[np.ndarray] = []
    own: list[np.ndarray] = []
    first_target = 0
    for number in (number for row in rows for number in row):
        record = records[number]
        targets_N = first_target + np.cumsum(record.supervised_N) - 1
        first_target += int(record.supervised_N.sum())
        if record.inside_QI is None:
            continue
        # An answer begins where a supervised token follows one that isn't.
        answers_Q = np.flatnonzero(np.diff(record.supervised_N.astype(np.int8), prepend=0) == 1)
        images = slice(first_image[number], first_image[number + 1])
        for begin, inside_I in zip(answers_Q, record.inside_QI, strict=True):
            if inside_I.any():
                queries.append(int(targets_N[begin]))
                for parts, values in ((inside, inside_I), (own, np.True_)):
                    parts.append(np.zeros(first_image[-1], np.bool_))
                    parts[-1][images] = values
    shape = (len(queries), int(first_image[-1]))
    return AskedPlaces(
        query_P=torch.tensor(queries, dtype=torch.long),
        inside_PK=torch.from_numpy(np.reshape(np.asarray(inside, np.bool_), shape)),
        own_PK=torch.from_numpy(np.reshape(np.asarray(own, np.bool_), shape)),
    )
