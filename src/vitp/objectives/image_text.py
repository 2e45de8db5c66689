"""Image-text contrast: CLIP's softmax (Radford et al., 2021) and SigLIP's sigmoid (Zhai et al., 2023).

The softmax may weigh its two directions (ConVIRT, Zhang et al., 2020), and vectors of descriptions that are stored may
take the place of a text tower (GPT4Image, Ding et al., 2023).

Shapes: B pairs, E width of the compared vectors, L tokens of a text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from vitp.checkpoints.loading import load_vlm, read_tokenizer, vlm_folder
from vitp.core.config import Share
from vitp.core.tensors import TensorFields
from vitp.data.augment import ViewSettings
from vitp.data.seen import PICTURES, SeenBands
from vitp.data.synthesis.edited import edited
from vitp.models.vision import VisionTower
from vitp.objectives.gathering import check_others, first_row, gather_rows, similarities
from vitp.objectives.image_base import (
    ImageObjective,
    backward_factor,
    folders_of,
    image_parts,
    mixture_of,
    seeded_tower,
    seen_by,
    told_apart,
)
from vitp.objectives.image_rows import (
    ImageCollate,
    ImageRows,
    ImageSamples,
    names_of,
    stacked,
    view_generator,
    view_maker,
)
from vitp.objectives.settings import ObjectiveParts, ObjectiveSettings, RunSettings
from vitp.objectives.text_tower import (
    LanguageTextTower,
    RecordTexts,
    SmallTextTower,
    TextBatch,
    TextKind,
    Texts,
    Tokens,
    captions_of,
    has_caption,
    read_record_texts,
)
from vitp.objectives.text_vectors import ImageIds, StoredVectors, VectorBatch, VectorTower

TextTower = SmallTextTower | LanguageTextTower | VectorTower

LARGEST_SCALE = 100.0
"""CLIP keeps its learned scale below this; above it training became unstable."""

_TEXT = 0x545854
"""Keeps the choice of the text apart from the view: another text tower must not change the pixels."""

_WRONG = 0x57524F
"""Keeps the choice of the exchanged word apart from both."""


class ImageTextSettings(ObjectiveSettings):
    """Image-text contrast."""

    former_keys: ClassVar[Mapping[str, str]] = {"image_text": ""}

    name: Literal["clip", "siglip"] = "clip"
    """Image-text contrast by softmax or sigmoid."""
    text: Literal["small", "language", "vectors"] = "small"
    """A small transformer from scratch, the language model of `language`, or the stored vectors of `vectors`."""
    vectors: str | None = None
    """For `text: vectors`: a safetensors file with a vector of each image's description, under the image's id."""
    image_share: Share = 0.5
    """Share of the softmax that looks for the text of an image (ConVIRT's λ); the rest looks for a text's image."""
    language: str = "starter"
    """"starter" or a folder with a vision-language model: gives the tokenizer, and the language model."""
    causal: bool = True
    """With `text: language`: its own causal mask, and the last token stands for the text; false: no such mask, and
    the mean of all tokens (LLM2CLIP4CXR)."""
    texts: TextKind = "captions"
    """Captions (composed from the labels where none is given), or questions and answers of the records."""
    length: int = Field(96, ge=4, le=65_536)
    """Most tokens of a text."""
    negatives: float = Field(0.0, ge=0, le=1e6)
    """Weight of a loss that tells captions from the same with one word exchanged (SVLC); 0: no such loss."""
    text_width: int = Field(192, ge=8, le=65_536)
    """Width of the small transformer."""
    text_layers: int = Field(3, ge=1, le=1024)
    """Blocks of the small transformer."""
    text_heads: int = Field(6, ge=1, le=1024)
    """Attention heads of the small transformer."""
    dimension: int = Field(128, ge=2, le=65_536)
    """Width of the compared vectors."""
    views: ViewSettings = Field(
        default_factory=lambda: ViewSettings(
            crop=(0.9, 1.0), flip=False, rotate90=False, colour=0.2, hue=0, grey=0, blur=0
        )
    )
    """How the images change. Mirroring would make "left" and "right" in a text wrong."""

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        if self.name != "clip" and self.image_share != 0.5:
            raise ValueError(f"image_share: the loss of {self.name} has no two directions")
        if (self.text == "vectors") != (self.vectors is not None):
            raise ValueError("text: vectors and the file of vectors go together")
        if self.vectors is not None and self.negatives:
            raise ValueError("negatives: stored vectors have no words that could be exchanged")
        return self

    def build(self, run: RunSettings, *, steps: int, micro_batches: int) -> ObjectiveParts:
        """Return the objective over the images that have a text."""
        tower, rows = seeded_tower(run), folders_of(run)
        texts: Texts | ImageIds
        tokens: Tokens | StoredVectors
        if self.vectors is not None:
            tokens, texts = StoredVectors(Path(self.vectors)), ImageIds()
            known = tokens.vectors
            rows = [one.having(lambda item: item.id in known, "images with a stored vector") for one in rows]
            return self._parts(run, rows, tower, VectorTower(tokens.width), texts, tokens, micro_batches)
        if self.texts == "captions":
            rows = [one.having(has_caption, "captions or labels") for one in rows]
            texts = captions_of(rows)
        else:
            records = [read_record_texts(Path(folder)) for folder in run.data.mixture]
            rows = [
                one.having(lambda item, own=own: item.image in own, "records")  # type: ignore[misc]
                for one, own in zip(rows, records, strict=True)
            ]
            texts = RecordTexts(tuple(records))
        tokenizer = read_tokenizer(vlm_folder(self.language))
        text_tower, tokens = self._text_tower(len(tokenizer)), Tokens(tokenizer, self.length)
        return self._parts(run, rows, tower, text_tower, texts, tokens, micro_batches)

    def _parts(
        self,
        run: RunSettings,
        rows: list[ImageRows],
        tower: VisionTower,
        text_tower: TextTower,
        texts: Texts | ImageIds,
        tokens: Tokens | StoredVectors,
        micro_batches: int,
    ) -> ObjectiveParts:
        objective = ImageTextObjective(
            tower,
            text_tower,
            loss=self.name,
            dimension=self.dimension,
            image_share=self.image_share,
            negatives=self.negatives,
        )
        seen = seen_by(tower, run)
        names = tuple(
            (*one.labelled.object_classes, *one.labelled.semantic_classes, *one.labelled.scene_classes)
            for one in rows
        )
        negatives = names if self.negatives else None
        collate = ImageTextPairs(tower.image_size[0], self.views, texts, tokens, self.texts, seen, negatives)
        return image_parts(run, objective, mixture_of(run, told_apart(rows)), collate, micro_batches)

    def _text_tower(self, vocabulary: int) -> SmallTextTower | LanguageTextTower:
        if self.text == "language":
            return LanguageTextTower(load_vlm(self.language).vlm.language, causal=self.causal)
        return SmallTextTower(
            vocabulary,
            width=self.text_width,
            layers=self.text_layers,
            heads=self.text_heads,
            length=self.length,
        )


@dataclass(frozen=True)
class ImageTextBatch(TensorFields):
    """Images with a text each.

    Attributes:
        tiles_BCHW: uint8.
        text: Tokens of the texts, or their stored vectors.
        record_names: Ids of the images, for messages.
        wrong: Tokens of the same texts with one word exchanged, of those that have such a word; None: none wanted.
        wrong_of_N: Number of the text that each of `wrong` is made of.
    """

    tiles_BCHW: Tensor
    text: TextBatch | VectorBatch
    record_names: tuple[str, ...]
    wrong: TextBatch | None = None
    wrong_of_N: Tensor | None = None


@dataclass(frozen=True)
class ImageTextPairs(ImageCollate[ImageTextBatch]):
    """Makes an `ImageTextBatch`.

    Attributes:
        size: Side of the views in pixels.
        views: How the images change.
        texts: Gives the text of an image.
        tokens: Makes tokens of texts.
        kind: What the texts are, for the fingerprint.
        seen: How images are read.
        classes: Classes of each set, the names that are exchanged in wrong texts; None: no wrong texts are made.
    """

    size: int
    views: ViewSettings
    texts: Texts | ImageIds
    tokens: Tokens | StoredVectors
    kind: TextKind
    seen: SeenBands = PICTURES
    classes: tuple[tuple[str, ...], ...] | None = None

    def __call__(self, samples: ImageSamples, step: int) -> ImageTextBatch:
        """Return the batch of some images."""
        views, texts = [], []
        for sample in samples:
            view, _ = view_maker(sample, self.seen)(self.size, self.views, view_generator(sample))
            views.append(view)
            texts.append(self.texts(sample, np.random.default_rng([sample.seed, _TEXT, sample.position])))
        batch = ImageTextBatch(stacked(views), self.tokens(texts), names_of(samples))
        return batch if self.classes is None else self._with_wrong_texts(batch, samples, texts, self.classes)

    def _with_wrong_texts(
        self, batch: ImageTextBatch, samples: ImageSamples, texts: list[str], classes: Sequence[Sequence[str]]
    ) -> ImageTextBatch:
        wrong: dict[int, str] = {}
        for number, (sample, text) in enumerate(zip(samples, texts, strict=True)):
            rng = np.random.default_rng([sample.seed, _WRONG, sample.position])
            if (edit := edited(text, classes[sample.entry], rng)) is not None:
                wrong[number] = edit.text
        if not wrong:
            return batch
        tokens = self.tokens(list(wrong.values()))
        assert isinstance(tokens, TextBatch)  # stored vectors have no wrong ones
        return replace(batch, wrong=tokens, wrong_of_N=torch.tensor(list(wrong)))

    def describe(self) -> Mapping[str, Any]:
        """Return what decides the batch."""
        return {
            "size": self.size,
            "views": self.views.model_dump(mode="json"),
            "texts": self.kind,
            **self.tokens.facts(),
            **({} if self.classes is None else {"classes": self.classes}),
        }

    def contents(self, order: Any) -> list[Any]:
        """Return the tokenizer, and the texts where they aren't made of the labels; see `Collate.contents`."""
        return [*self.tokens.contents(), self.texts.digest()]


def clip_loss(image_BE: Tensor, text_BE: Tensor, scale: Tensor, image_share: float = 0.5) -> Tensor:
    """Return CLIP's loss, summed over this rank's pairs.

    For each pair the (weighted) mean of two cross-entropies: which of all texts belongs to the image, and which of
    all images to the text. "All" are those of the micro-batch on all ranks.

    Args:
        image_BE: Unit vectors of the images.
        text_BE: Of their texts.
        scale: Inverse temperature.
        image_share: Weight of the first of them.
    """
    # Gathered rows stand in the order of the ranks, so that an image's own text is at its own row among all.
    own_B = first_row(len(image_BE)) + torch.arange(len(image_BE), device=image_BE.device)
    to_texts = scale * similarities(image_BE, gather_rows(text_BE))
    to_images = scale * similarities(text_BE, gather_rows(image_BE))
    check_others(to_texts.shape[1], "images and texts")
    of_images, of_texts = (
        F.cross_entropy(logits, own_B, reduction="sum") for logits in (to_texts, to_images)
    )
    return image_share * of_images + (1 - image_share) * of_texts


def siglip_loss(image_BE: Tensor, text_BE: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Return SigLIP's loss, summed over this rank's images: −Σ over all texts of log σ(z · (scale · x·y + bias)).

    z is 1 for the image's own text, −1 for all others.

    Args:
        image_BE: Unit vectors of the images.
        text_BE: Of their texts.
        scale: Inverse temperature.
        bias: Added to the similarities; starts far below zero, as most pairs don't match.
    """
    rows = len(image_BE)
    logits = scale * similarities(image_BE, gather_rows(text_BE)) + bias
    own_B1 = first_row(rows) + torch.arange(rows, device=logits.device)[:, None]
    sign = torch.full_like(logits, -1.0).scatter(1, own_B1, 1.0)
    return -F.logsigmoid(sign * logits).sum()


class ImageTextObjective(ImageObjective):
    """Contrast of images and their texts.

    Args:
        tower: The vision tower.
        text: The text tower.
        loss: "clip" or "siglip".
        dimension: Dimension of the compared vectors.
        image_share: See `clip_loss`.
        negatives: Weight of the loss that tells texts from wrong ones, where batches have those.
    """

    PARTS: ClassVar[Mapping[str, str]] = {"tower.": "vision tower", "text.": "text tower"}

    def __init__(
        self,
        tower: VisionTower,
        text: TextTower,
        *,
        loss: Literal["clip", "siglip"],
        dimension: int = 128,
        image_share: float = 0.5,
        negatives: float = 0.0,
    ) -> None:
        super().__init__(tower)
        self.loss_weights = {"negatives": negatives} if negatives else {}
        self.text, self.kind, self.image_share = text, loss, image_share
        self.image_head = nn.Sequential(nn.LayerNorm(tower.width), nn.Linear(tower.width, dimension))
        self.text_head = nn.Linear(text.width, dimension)
        # The publications' start: 1 / 0.07 for the softmax, 10 and −10 for the sigmoid.
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07 if loss == "clip" else 10.0)))
        self.bias = nn.Parameter(torch.tensor(-10.0)) if loss == "siglip" else None

    def forward(self, batch: ImageTextBatch) -> dict[str, Tensor]:
        """Return {"contrast": sum over the pairs}, and "negatives" where they are wanted and the batch has some."""
        # In float32: bfloat16 rounds a cosine near 1 by up to 0.002, which a scale of 100 makes 0.2 of a logit.
        image_BE = F.normalize(self.image_head(self.pooled(batch.tiles_BCHW)).float(), dim=-1)
        text_BE = F.normalize(self.text_head(self.text(batch.text)).float(), dim=-1)
        scale = self.log_scale.exp().clamp(max=LARGEST_SCALE)
        if self.bias is None:
            losses = {"contrast": clip_loss(image_BE, text_BE, scale, self.image_share)}
        else:
            losses = {"contrast": siglip_loss(image_BE, text_BE, scale, self.bias)}
        if self.loss_weights and batch.wrong is not None and batch.wrong_of_N is not None:
            wrong_NE = F.normalize(self.text_head(self.text(batch.wrong)).float(), dim=-1)
            own_NE, image_NE = text_BE[batch.wrong_of_N], image_BE[batch.wrong_of_N]
            # SVLC, eq. 2: of an image's true text and its edited one, which is the true one?
            losses["negatives"] = F.softplus(scale * (image_NE * (wrong_NE - own_NE)).sum(-1)).sum()
        return losses

    def loss_counts(self, batch: ImageTextBatch) -> dict[str, float]:
        """Return {"contrast": number of pairs}, and of "negatives" that of wrong texts."""
        counts = {"contrast": float(len(batch.tiles_BCHW))}
        if self.loss_weights:
            counts["negatives"] = 0.0 if batch.wrong_of_N is None else float(len(batch.wrong_of_N))
        return counts

    def work(self, batch: ImageTextBatch) -> dict[str, float]:
        """Return images, text tokens with and without padding, and the FLOPs of forward and backward pass."""
        images = len(batch.tiles_BCHW)
        work = self.work_of(images, heads=[self.image_head, self.text_head])
        if isinstance(batch.text, VectorBatch):
            return work
        for text in (batch.text, *([] if batch.wrong is None else [batch.wrong])):
            work["flops"] += backward_factor(self.text) * self.text.flops(text)
        tokens, capacity = float(batch.text.valid_BL.sum()), float(batch.text.valid_BL.numel())
        return {**work, "tokens": tokens, "capacity": capacity}
