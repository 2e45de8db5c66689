"""Sizes of the samples of a run: counted in its data, or drawn from stated image sizes and lengths."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vitp.data.chat import ChatTokenizer
from vitp.data.mixture import Mixture
from vitp.data.tiling import count_tiles
from vitp.io.images import image_size
from vitp.records.instructions import IMAGE_MARK

_FRAME_TOKENS = 40
"""Tokens of system text and turn marks, where no tokenizer is at hand."""


@dataclass(frozen=True)
class SampleSize:
    """Sizes of one record.

    Attributes:
        tiles: Tiles of all its images, thumbnails counted.
        text: Tokens that are no image tokens.
        supervised: Tokens with a loss.
    """

    tiles: int
    text: int
    supervised: int


@dataclass(frozen=True)
class TypicalRecord:
    """Typical sizes of the records of a set, for plans without the data.

    Attributes:
        sizes: (share, width, height) of its images.
        images: Images a record.
        text, answer: Tokens of all texts, and of the answers among them.
    """

    sizes: tuple[tuple[float, int, int], ...]
    images: int = 1
    text: int = 120
    answer: int = 30


@dataclass(frozen=True)
class AssumedSet:
    """A set of a mixture whose records are known by their usual size only.

    Attributes:
        per_epoch: Samples that an epoch takes of it.
        typical: Its records.
        max_tiles: Most tiles an image is cut into.
    """

    per_epoch: float
    typical: TypicalRecord
    max_tiles: int


def assumed_samples(sets: Sequence[AssumedSet], tile: int, count: int) -> list[SampleSize]:
    """Return `count` samples drawn as a mixture draws them."""
    rng = np.random.default_rng(0)
    weights = np.array([one.per_epoch for one in sets])
    samples = []
    for number in rng.choice(len(sets), size=count, p=weights / weights.sum()):
        one = sets[number]
        shares = np.array([share for share, _, _ in one.typical.sizes])
        _, width, height = one.typical.sizes[rng.choice(len(shares), p=shares / shares.sum())]
        budget = max(1, one.max_tiles // one.typical.images)
        tiles = one.typical.images * count_tiles(width, height, tile, budget)
        samples.append(SampleSize(tiles, one.typical.text, one.typical.answer))
    return samples


def measured_samples(
    mixture: Mixture,
    tile: int,
    max_tiles: int,
    count: int,
    *,
    chat: ChatTokenizer | None,
    max_turns: int | None = None,
) -> list[SampleSize]:
    """Return the sizes of `count` samples of the mixture's order, spread over an epoch.

    Args:
        mixture: The data.
        tile: Side of a tile in pixels.
        max_tiles: Tiles an image where the mixture says nothing.
        count: Largest number of samples.
        chat: The model's tokenizer; without it tokens are estimated from the characters.
        max_turns: See `SequenceSettings`.
    """
    positions = np.linspace(0, len(mixture) - 1, min(count, len(mixture))).round().astype(int)
    samples = []
    for position in positions.tolist():
        sample = mixture[position]
        record = sample.record
        if max_turns is not None:
            record = record.with_turns(record.turns[:max_turns])
        budget = max(1, (sample.max_tiles or max_tiles) // max(1, len(record.images)))
        sizes = record.sizes or [image_size(path) for path in record.images]
        tiles = [count_tiles(width, height, tile, budget) for width, height in sizes]
        if chat is not None:
            encoded = chat.encode(record, tiles)
            text, answers = int((~encoded.image_N).sum()), int(encoded.supervised_N.sum())
        else:
            answers = sum(estimated_tokens(turn.answer) + 2 for turn in record.turns)
            asked = (turn.question.replace(IMAGE_MARK, "") for turn in record.turns)
            text = _FRAME_TOKENS + sum(estimated_tokens(question) for question in asked) + answers
        samples.append(SampleSize(sum(tiles), text, answers))
    return samples


_PIECES = re.compile(r"\d|[^\W\d_]+|[^\w\s]|_")


def estimated_tokens(text: str) -> int:
    """Return about how many tokens a text has: one a digit and a sign, one for each six letters of a word begun.

    Vocabularies of 100,000 and more hold most words whole, and the language models in use here read digit by digit.
    """
    return sum(-(-len(piece) // 6) if piece[0].isalpha() else 1 for piece in _PIECES.findall(text))
