"""Region-text contrast (RegionCLIP, Zhong et al., 2022): which of a set's class names belongs to a labelled place?

Patch tokens are averaged over each object's box and compared with the vectors of all class names of its set. Boxes in
which the labels say that there is nothing are compared, too: their text is "background". So the tower has to tell what
lies *where*, which a caption or the classes of an image never ask for.

The texts that compete are the classes of the set and not the other regions of the batch: two regions of one class would
count as wrong for each other, and how a batch is cut over micro-batches and ranks would change the loss.

Shapes: B images, h × w patches, N = h·w, R regions, U texts, E width of the compared vectors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from vitp.checkpoints.loading import read_tokenizer, vlm_folder
from vitp.core.errors import ConfigError, DataError
from vitp.core.tensors import TensorFields
from vitp.data.augment import AugmentSettings, augment
from vitp.data.image_sample import ImageSample
from vitp.data.mixture import Sample
from vitp.data.seen import PICTURES, SeenBands
from vitp.data.synthesis.classes import is_usable
from vitp.models.vision import VisionTower
from vitp.objectives.gathering import similarities
from vitp.objectives.image_base import (
    ImageObjective,
    backward_factor,
    folders_of,
    image_parts,
    mixture_of,
    seeded_tower,
    seen_by,
)
from vitp.objectives.image_rows import (
    ImageCollate,
    ImageRows,
    ImageSamples,
    load_sample,
    names_of,
    view_generator,
)
from vitp.objectives.image_text import LARGEST_SCALE
from vitp.objectives.settings import ObjectiveParts, ObjectiveSettings, RunSettings
from vitp.objectives.text_tower import SmallTextTower, TextBatch, Tokens
from vitp.records.geometry import Box
from vitp.records.labels import BACKGROUND, LabelledImage, ObjectLabel

_CHOICE = 0x524547
"""Keeps the choice of the regions apart from the view: other regions must not change the pixels."""

_TRIES = 10
"""Places that are tried for each region of background before it is left out."""

_LONGEST = 4096
"""Tokens of a class name that no name reaches."""


class RegionTextSettings(ObjectiveSettings):
    """Region-text contrast."""

    name: Literal["regionclip"] = "regionclip"
    """Which class name belongs to a labelled place."""
    objects: int = Field(8, ge=1, le=4096)
    """Most objects of an image; of more, as many are chosen at random each time."""
    empty: int = Field(2, ge=0, le=4096)
    """Most places of background of an image, of the size of one of its objects; 0: none."""
    language: str = "starter"
    """"starter" or a folder with a vision-language model: gives the tokenizer of the class names."""
    text_width: int = Field(192, ge=8, le=65_536)
    """Width of the small transformer that reads the class names."""
    text_layers: int = Field(2, ge=1, le=1024)
    """Blocks of the small transformer."""
    text_heads: int = Field(6, ge=1, le=1024)
    """Attention heads of the small transformer."""
    dimension: int = Field(128, ge=2, le=65_536)
    """Width of the compared vectors."""
    crop: float = Field(0.6, gt=0, le=1)
    """Smallest share of each side that a random crop keeps; 1: the whole image."""
    photometric: float = Field(0.2, ge=0, le=1)
    """Strength of brightness, contrast, saturation and hue changes."""

    def build(self, run: RunSettings, *, steps: int, micro_batches: int) -> ObjectiveParts:
        """Return the objective over the images with objects; those without any are left out."""
        tower = seeded_tower(run)
        rows = [one.having(self._has_regions, "boxes of objects") for one in folders_of(run)]
        texts = _texts_of(rows, background=self.empty > 0)
        tokenizer = read_tokenizer(vlm_folder(self.language))
        # No name is cut: two that begin alike would be one.
        tokens = Tokens(tokenizer, Tokens(tokenizer, _LONGEST)(texts).ids_BL.shape[1])
        names = SmallTextTower(
            len(tokenizer),
            width=self.text_width,
            layers=self.text_layers,
            heads=self.text_heads,
            length=tokens.length,
        )
        known = tuple(_known(one, texts, background=self.empty > 0) for one in rows)
        collate = RegionViews(tower.image_size[0], self, texts, known, tokens, seen_by(tower, run))
        objective = RegionTextObjective(tower, names, dimension=self.dimension)
        return image_parts(run, objective, mixture_of(run, rows), collate, micro_batches)

    def _has_regions(self, item: LabelledImage) -> bool:
        return any(not label.difficult for label in item.objects or ())

    def augmentation(self) -> AugmentSettings:
        """Return how the images change: enlarged by up to 1 / crop, of which a part of the old size is seen."""
        return AugmentSettings(scale=(1.0, 1 / self.crop), photometric=self.photometric, swap_dates=0.0)


def _texts_of(rows: Sequence[ImageRows], *, background: bool) -> tuple[str, ...]:
    """Return the names of all sets, each once.

    Raises:
        ConfigError: A set has too few of them to tell anything apart.
    """
    found: dict[str, None] = {}
    for one in rows:
        names = [*one.labelled.object_classes, *([BACKGROUND] if background else [])]
        if len(set(names)) < 2:
            raise ConfigError(
                f'its one class "{names[0]}" leaves nothing to tell apart',
                where=str(one.folder),
                fix="allow places of background (objective.empty above 0), or leave the set out",
            )
        found |= dict.fromkeys(names)
    return tuple(found)


def _known(one: ImageRows, texts: Sequence[str], *, background: bool) -> tuple[bool, ...]:
    """Return which of the texts a region of a set may have: a class that nobody labelled there is no wrong answer."""
    names = {*one.labelled.object_classes, *([BACKGROUND] if background else [])}
    return tuple(text in names for text in texts)


@dataclass(frozen=True)
class RegionBatch(TensorFields):
    """Images, places in them and the names that may belong to these.

    Attributes:
        tiles_BCHW: uint8.
        boxes_R4: x1, y1, x2, y2 as shares of the view, float32.
        image_R: Number of the image of each region, int64.
        text_R: Number of its text, int64.
        known_RU: Which texts are names of its set.
        text: All texts, the same ones in each batch.
        record_names: Ids of the images, for messages.
    """

    tiles_BCHW: Tensor
    boxes_R4: Tensor
    image_R: Tensor
    text_R: Tensor
    known_RU: Tensor
    text: TextBatch
    record_names: tuple[str, ...]


@dataclass(frozen=True)
class RegionViews(ImageCollate[RegionBatch]):
    """Makes a `RegionBatch`.

    Attributes:
        size: Side of the views in pixels.
        settings: Number of regions, and how the images change.
        texts: Names of all classes.
        known: For each set, which of them it has.
        tokens: Makes tokens of texts.
        seen: How images are read.
    """

    size: int
    settings: RegionTextSettings
    texts: tuple[str, ...]
    known: tuple[tuple[bool, ...], ...]
    tokens: Tokens
    seen: SeenBands = PICTURES

    def __call__(self, samples: ImageSamples, step: int) -> RegionBatch:
        """Return the batch of some images."""
        tiles, boxes, images, texts, known = [], [], [], [], []
        place = {text: number for number, text in enumerate(self.texts)}
        for number, sample in enumerate(samples):
            view = self._view(sample)
            tiles.append(view.image_CHW)
            rng = np.random.default_rng([sample.seed, _CHOICE, sample.position])
            for category, box in self._regions(view, rng):
                boxes.append([edge / self.size for edge in box])
                images.append(number)
                texts.append(place[category])
                known.append(self.known[sample.entry])
        return RegionBatch(
            torch.stack(tiles),
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            torch.tensor(images, dtype=torch.int64),
            torch.tensor(texts, dtype=torch.int64),
            torch.tensor(known, dtype=torch.bool).reshape(-1, len(self.texts)),
            self.tokens(self.texts),
            names_of(samples),
        )

    def _view(self, sample: Sample[LabelledImage]) -> ImageSample:
        """Return an image as it is seen, with the objects where they lie then."""
        item, pixels_HWC = sample.record, np.array(load_sample(sample, self.seen))
        if pixels_HWC.shape[:2] != (item.height, item.width):
            raise DataError(
                f"is {pixels_HWC.shape[1]}×{pixels_HWC.shape[0]} px, its labels say {item.width}×{item.height}",
                where=item.image,
                fix="compile the labels again",
            )
        if (dropped_C := self.seen.dropped(sample.seed, sample.position)) is not None:
            pixels_HWC[..., dropped_C] = 0
        whole = ImageSample(
            torch.from_numpy(pixels_HWC).permute(2, 0, 1), objects=item.objects or (), ignored=item.ignored
        )
        size, rng = (self.size, self.size), view_generator(sample)
        return augment(whole, self.settings.augmentation(), rng, size=size, rgb=self.seen.is_rgb)

    def _regions(self, view: ImageSample, rng: np.random.Generator) -> list[tuple[str, Box]]:
        """Return some of the objects, and places where none is."""
        clear = [
            label
            for label in view.objects or ()
            if not label.difficult and is_usable(label.box, *view.size[::-1])
        ]
        chosen = rng.permutation(len(clear))[: self.settings.objects]
        found = [(clear[index].category, clear[index].box) for index in chosen]
        taken = [label.box for label in (*(view.objects or ()), *view.ignored)]
        for _ in range(self.settings.empty if clear else 0):
            # As large as an object: otherwise the size of a box would tell what it holds.
            box = _free_place(clear[int(rng.integers(len(clear)))], taken, self.size, rng)
            found += [] if box is None else [(BACKGROUND, box)]
        return found

    def describe(self) -> Mapping[str, Any]:
        """Return what decides the batch."""
        own = self.settings
        return {
            "size": self.size,
            "regions": [own.objects, own.empty],
            "changes": [own.crop, own.photometric],
            "texts": self.texts,
            "known": self.known,
            **self.tokens.facts(),
        }

    def contents(self, order: Any) -> list[Any]:
        """Return the tokenizer; see `Collate.contents`."""
        return self.tokens.contents()


def _free_place(like: ObjectLabel, taken: Sequence[Box], size: int, rng: np.random.Generator) -> Box | None:
    """Return a box of an object's size that touches none of the taken ones; None: none was found."""
    wide, tall = (min(like.box[2 + axis] - like.box[axis], float(size)) for axis in (0, 1))
    for _ in range(_TRIES):
        x, y = rng.random() * (size - wide), rng.random() * (size - tall)
        if all(x + wide <= x1 or x >= x2 or y + tall <= y1 or y >= y2 for x1, y1, x2, y2 in taken):
            return x, y, x + wide, y + tall
    return None


def region_weights(boxes_R4: Tensor, rows: int, columns: int) -> Tensor:
    """Return (R, h·w): the share of a box's area that lies in each patch; a row sums to 1.

    Args:
        boxes_R4: x1, y1, x2, y2 as shares of the image.
        rows, columns: h and w.
    """

    def covered(low_R: Tensor, high_R: Tensor, count: int) -> Tensor:
        edges = torch.arange(count + 1, device=low_R.device) / count
        return (torch.minimum(high_R[:, None], edges[1:]) - torch.maximum(low_R[:, None], edges[:-1])).clamp(
            min=0
        )

    across_Rw = covered(boxes_R4[:, 0], boxes_R4[:, 2], columns)
    down_Rh = covered(boxes_R4[:, 1], boxes_R4[:, 3], rows)
    area_RN = (down_Rh[:, :, None] * across_Rw[:, None, :]).flatten(1)
    return area_RN / area_RN.sum(1, keepdim=True)


class RegionTextObjective(ImageObjective):
    """Contrast of regions and class names.

    Args:
        tower: The vision tower.
        text: Reads the names.
        dimension: Dimension of the compared vectors.
    """

    PARTS: ClassVar[Mapping[str, str]] = {"tower.": "vision tower", "text.": "text tower"}

    def __init__(self, tower: VisionTower, text: SmallTextTower, *, dimension: int = 128) -> None:
        super().__init__(tower)
        self.text = text
        self.region_head = nn.Sequential(nn.LayerNorm(tower.width), nn.Linear(tower.width, dimension))
        self.text_head = nn.Linear(text.width, dimension)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # CLIP's start

    def logits(self, batch: RegionBatch) -> Tensor:
        """Return (R, U): similarity of each region and text, minus infinity for names that its set doesn't have."""
        tokens_BND = self.tower.forward_tokens(self.tower.normalize(batch.tiles_BCHW))
        images, patches, width = tokens_BND.shape
        weight_RN = region_weights(batch.boxes_R4, self.tower.grid, self.tower.grid)
        # Rows over all patches of the batch: the tokens of an image aren't copied for each of its regions.
        weight_RBN = weight_RN.new_zeros(len(weight_RN), images, patches)
        weight_RBN[torch.arange(len(weight_RN), device=weight_RN.device), batch.image_R] = weight_RN
        region_RD = weight_RBN.flatten(1).to(tokens_BND.dtype) @ tokens_BND.reshape(-1, width)
        region_RE = F.normalize(self.region_head(region_RD).float(), dim=-1)
        text_UE = F.normalize(self.text_head(self.text(batch.text)).float(), dim=-1)
        scale = self.log_scale.exp().clamp(max=LARGEST_SCALE)
        return (scale * similarities(region_RE, text_UE)).masked_fill(~batch.known_RU, -torch.inf)

    def forward(self, batch: RegionBatch) -> dict[str, Tensor]:
        """Return {"regions": sum over the regions of the cross-entropy of their texts}."""
        return {"regions": F.cross_entropy(self.logits(batch), batch.text_R, reduction="sum")}

    def loss_counts(self, batch: RegionBatch) -> dict[str, float]:
        """Return {"regions": their number}."""
        return {"regions": float(len(batch.boxes_R4))}

    def work(self, batch: RegionBatch) -> dict[str, float]:
        """Return images and the FLOPs of forward and backward pass."""
        work = self.work_of(len(batch.tiles_BCHW), heads=[self.region_head])
        work["flops"] += backward_factor(self.text) * self.text.flops(batch.text)
        return work
