"""Text towers of image-text contrast, and the texts of the images.

Shapes: B texts, L tokens, W width of the tower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from vitp.core.errors import DataError
from vitp.core.tensors import TensorFields
from vitp.data.fingerprint import json_digest
from vitp.data.mixture import Sample
from vitp.data.sources import open_sources
from vitp.data.synthesis.classes import SetClasses, countable
from vitp.data.synthesis.facts import Facts, Limits
from vitp.data.synthesis.image_tasks import caption
from vitp.data.tokenizer import PlainText, vocabulary_digest
from vitp.models.flops import TransformerShape, forward_flops, language_shape
from vitp.objectives.image_rows import ImageRows
from vitp.records.instructions import IMAGE_MARK
from vitp.records.labels import LabelledImage

TextKind = Literal["captions", "records"]


@dataclass(frozen=True)
class TextBatch(TensorFields):
    """Tokens of some texts.

    Attributes:
        ids_BL: Token ids, padded at the end, int64.
        valid_BL: False at padding.
    """

    ids_BL: Tensor
    valid_BL: Tensor


@dataclass(frozen=True)
class Tokens:
    """Makes a `TextBatch` of texts, cut to `length` tokens. Names of control tokens in them are plain text."""

    tokenizer: PreTrainedTokenizerBase
    length: int

    def __call__(self, texts: Sequence[str]) -> TextBatch:
        """Return the tokens of some texts."""
        rows = self._plain(texts)
        # An empty text gets a token, as a mean or a last state of no token doesn't exist.
        rows = [row[: self.length] or [0] for row in rows]
        longest = max(len(row) for row in rows)
        ids_BL = torch.zeros(len(rows), longest, dtype=torch.int64)
        valid_BL = torch.zeros(len(rows), longest, dtype=torch.bool)
        for number, row in enumerate(rows):
            ids_BL[number, : len(row)] = torch.tensor(row)
            valid_BL[number, : len(row)] = True
        return TextBatch(ids_BL, valid_BL)

    def facts(self) -> dict[str, Any]:
        """Return what decides a batch beside the texts."""
        return {"length": self.length, "vocabulary": len(self.tokenizer)}

    def contents(self) -> list[Any]:
        """Return the hash of the tokenizer."""
        return [vocabulary_digest(self.tokenizer)]

    @cached_property
    def _plain(self) -> PlainText:
        return PlainText(self.tokenizer)


class SmallTextTower(nn.Module):
    """A bidirectional transformer over token embeddings; the text's vector is the mean of its tokens.

    Args:
        vocabulary: Tokens of the tokenizer.
        width: W.
        layers: Blocks.
        heads: Attention heads.
        length: Most tokens of a text.
    """

    def __init__(self, vocabulary: int, *, width: int, layers: int, heads: int, length: int) -> None:
        super().__init__()
        self.width = width
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions_LW = nn.Parameter(torch.empty(length, width))
        # The deviations that CLIP's text tower starts with.
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions_LW, std=0.01)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        # Nested tensors are of no use to layers that normalise first; torch would warn of them.
        self.blocks = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.shape = TransformerShape(layers, width, 4 * width, heads, heads, gated_mlp=False, vocabulary=0)

    def forward(self, text: TextBatch) -> Tensor:
        """Return one vector a text, (B, W)."""
        x_BLW = self.tokens(text.ids_BL) + self.positions_LW[: text.ids_BL.shape[1]]
        x_BLW = self.blocks(x_BLW, src_key_padding_mask=~text.valid_BL)
        return _mean(x_BLW, text)

    def flops(self, text: TextBatch) -> float:
        """Return the forward FLOPs, padding included: it is computed."""
        rows, length = text.ids_BL.shape
        return forward_flops(self.shape, rows * length, length)


def _mean(x_BLW: Tensor, text: TextBatch) -> Tensor:
    """Return (B, W) the mean of each text's own tokens, without padding."""
    weight_BL1 = text.valid_BL[..., None].to(x_BLW.dtype)
    mean_BW: Tensor = (x_BLW * weight_BL1).sum(1) / weight_BL1.sum(1)
    return mean_BW


class LanguageTextTower(nn.Module):
    """The decoder of a causal language model; the text's vector is the state of its last token.

    Args:
        language: As `VisionLanguageModel.language`; its output layer is left out.
        causal: False removes the causal mask, and the text's vector is the mean of its tokens' states (LLM2CLIP4CXR,
            after LLM2Vec): each token knows the whole text.
    """

    def __init__(self, language: Any, *, causal: bool = True) -> None:
        super().__init__()
        self.decoder: Any = language.get_decoder()
        self.width, self.causal = int(language.config.hidden_size), causal

    def forward(self, text: TextBatch) -> Tensor:
        """Return one vector a text, (B, W)."""
        if not self.causal:
            return self._mean_of_all(text)
        hidden_BLW = self.decoder(
            input_ids=text.ids_BL, attention_mask=text.valid_BL.long(), use_cache=False
        ).last_hidden_state
        last_B = text.valid_BL.sum(1) - 1
        vector_BW: Tensor = hidden_BLW[torch.arange(len(last_B), device=last_B.device), last_B]
        return vector_BW

    def _mean_of_all(self, text: TextBatch) -> Tensor:
        # A mask of four dimensions is taken as it is. Padding sees itself, as a row of nothing would have no softmax.
        own_LL = torch.eye(text.ids_BL.shape[1], dtype=torch.bool, device=text.ids_BL.device)
        mask_B1LL = (text.valid_BL[:, None, :] | own_LL)[:, None]
        hidden_BLW = self.decoder(
            input_ids=text.ids_BL, attention_mask=mask_B1LL, use_cache=False
        ).last_hidden_state
        return _mean(hidden_BLW, text)

    def flops(self, text: TextBatch) -> float:
        """Return the forward FLOPs, padding included."""
        rows, length = text.ids_BL.shape
        context = (length + 1) / 2 if self.causal else length
        return forward_flops(language_shape(self.decoder), rows * length, context)


def has_caption(item: LabelledImage) -> bool:
    """Return whether something can be said of an image: a caption, a class, a mask or objects that can be counted."""
    return bool(item.captions or item.scene or item.semantic is not None or countable(item))


@dataclass(frozen=True)
class Captions:
    """Texts of images: a given caption, or one composed from class, counts and land cover, as ViTP asks for it.

    Attributes:
        classes: Classes of each set of the mixture.
    """

    classes: tuple[SetClasses, ...]

    def __call__(self, image: Sample[LabelledImage], rng: np.random.Generator) -> str:
        """Return a text of the image."""
        found = caption(Facts(image.record, self.classes[image.entry], Limits()), rng)
        return found.answer if found is not None else "an image"

    def digest(self) -> str:
        """Return nothing: captions follow from the labels."""
        return ""


@dataclass(frozen=True)
class RecordTexts:
    """Texts of images: a question and its answer out of the image's instruction record, another one each time.

    Attributes:
        turns: For each set of the mixture, image → texts.
    """

    turns: tuple[dict[str, tuple[str, ...]], ...]

    def __call__(self, image: Sample[LabelledImage], rng: np.random.Generator) -> str:
        """Return a text of the image."""
        texts = self.turns[image.entry][image.record.image]
        return texts[int(rng.integers(len(texts)))]

    def digest(self) -> str:
        """Return the hash of all texts and of the images that they are of; folders may move."""
        return json_digest([[(Path(name).name, texts) for name, texts in one.items()] for one in self.turns])


def captions_of(sets: Sequence[ImageRows]) -> Captions:
    """Return the captions of some sets; class statistics aren't needed for them."""
    return Captions(
        tuple(
            SetClasses(
                s.labelled.object_classes,
                s.labelled.scene_classes,
                s.labelled.semantic_classes,
                s.name,
                channels=s.labelled.channels,
            )
            for s in sets
        )
    )


def read_record_texts(folder: Path) -> dict[str, tuple[str, ...]]:
    """Return image → "question answer" texts of a compiled folder's training records; all are held in memory.

    Records of several images are left out: a text about two dates describes neither.

    Raises:
        DataError: The folder has no training records.
    """
    sources, errors = open_sources(folder)
    train = next((source.records for source in sources if source.split == "train"), None)
    if train is None:
        raise errors[0] if errors else DataError("has no training records", where=str(folder))
    texts: dict[str, tuple[str, ...]] = {}
    for record in train:
        if len(record.images) == 1:
            turns = [
                f"{turn.question.replace(IMAGE_MARK, '').strip()} {turn.answer}" for turn in record.turns
            ]
            texts[record.images[0]] = tuple(turn.strip() for turn in turns)
    return texts


Texts = Captions | RecordTexts
"""(image at its place, random numbers) → a text about it."""
