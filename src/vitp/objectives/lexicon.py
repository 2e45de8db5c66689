"""Token weights after ARL (Chen et al., 2022): the words of a domain count more than those between them.

An answer's tokens inside a listed entity ("storage tank", "left kidney") get a weight above 1, all others 1; the
weights of a batch are then scaled to mean 1, so that the loss keeps its size. The publication takes its entities from
UMLS; here they are a list. Shapes: S supervised tokens.
"""

from __future__ import annotations

import re

import torch
from pydantic import Field
from torch import Tensor

from vitp.core.config import SettingsModel
from vitp.data.chat import ChatTokenizer
from vitp.data.packing import PackedBatch


class LexiconSettings(SettingsModel):
    """Words that tell."""

    words: list[str] = Field(default_factory=list)
    """Entities, whole words in any case; none: all tokens weigh alike."""
    weight: float = Field(2.0, ge=1, le=1e6)
    """Weight of the tokens of these words, before the weights are scaled to mean 1."""


class LexiconWeights:
    """Weights of supervised tokens.

    Args:
        chat: Tokenizer of the answers.
        settings: Settings with at least one word.
    """

    def __init__(self, chat: ChatTokenizer, settings: LexiconSettings) -> None:
        self.chat, self.weight = chat, settings.weight
        # A regular expression takes the first alternative that fits, so longer ones come first.
        words = sorted(settings.words, key=len, reverse=True)
        self._pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, words))})(?!\w)", re.I)
        self._texts: dict[int, str] = {}

    def __call__(self, batch: PackedBatch) -> Tensor:
        """Return w (S,) of mean 1."""
        ids, places = batch.target_ids_S.tolist(), batch.target_index_S.tolist()
        weights = [1.0] * len(ids)
        begin = 0
        for end in range(1, len(ids) + 1):
            if end == len(ids) or places[end] != places[end - 1] + 1:  # an answer ends
                for number in self._inside(ids[begin:end]):
                    weights[begin + number] = self.weight
                begin = end
        weights_S = torch.tensor(weights, device=batch.target_ids_S.device)
        return weights_S / weights_S.mean()

    def _inside(self, ids: list[int]) -> set[int]:
        """Return which tokens of an answer are part of an entity."""
        pieces = [self._text(number) for number in ids]
        # A tokenizer may cut a word anywhere, so each letter remembers its token.
        owners = [number for number, piece in enumerate(pieces) for _ in piece]
        found = self._pattern.finditer("".join(pieces))
        return {owner for match in found for owner in owners[match.start() : match.end()]}

    def _text(self, number: int) -> str:
        if number not in self._texts:
            # A control token ends words.
            control = number in self.chat.plain.control
            self._texts[number] = "\n" if control else str(self.chat.tokenizer.decode([number]))
        return self._texts[number]
