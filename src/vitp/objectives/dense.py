"""Dense supervision: vision tower + head → the class of each pixel, and of what is present in the image.

Shapes: B images, H × W pixels, h × w patches of P × P pixels, N = h·w, D width, C classes, K object classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from vitp.core.errors import ConfigError
from vitp.core.tensors import TensorFields
from vitp.data.augment import MaskAugmentation, augment_with_mask, without_channels
from vitp.data.batches import Collate, SampledBatches, ShuffledImages
from vitp.data.ignored import UNLABELLED, presence_of
from vitp.data.mixture import Mixture, Sample
from vitp.data.nodata import image_with_mask, nodata_facts
from vitp.data.permutation import Permutation
from vitp.data.seen import PICTURES, SeenBands
from vitp.models.vision import VisionTower
from vitp.objectives.image_base import ImageObjective, folders_of, mixture_of, seeded_tower, seen_by
from vitp.objectives.image_rows import ImageRows
from vitp.objectives.settings import ObjectiveParts, ObjectiveSettings, RunSettings
from vitp.records.labels import IGNORE, LabelledImage, LabelledSet


class DenseSettings(ObjectiveSettings):
    """The class of each pixel, from a linear layer on the patch tokens (see `vitp.objectives.dense`)."""

    former_keys: ClassVar[Mapping[str, str]] = {"dense": ""}

    name: Literal["dense"] = "dense"
    """The class of each pixel."""
    presence: bool = False
    """Learn which object classes are in the image, too."""
    head: Literal["linear", "conv"] = "linear"
    """A linear layer on the patch tokens, or a light convolutional decoder."""
    crop: float = Field(0.6, gt=0, le=1)
    """Smallest share of the short side that a square crop keeps."""
    photometric: float = Field(0.2, ge=0, le=1)
    """Strength of brightness, contrast and channel changes."""

    def build(self, run: RunSettings, *, steps: int, micro_batches: int) -> ObjectiveParts:
        """Return the objective over the images with masks."""
        tower = seeded_tower(run)
        rows = [one.having(lambda item: item.semantic is not None, "masks") for one in folders_of(run)]
        images = mixture_of(run, rows)
        merged = merged_set(rows, images)
        source = dense_batches(
            merged,
            run.data.global_batch,
            run.seed,
            size=tower.image_size[0],
            micro_batches=micro_batches,
            augment=MaskAugmentation(crop=self.crop, photometric=self.photometric),
            presence=self.presence,
            seen=seen_by(tower, run),
        )
        objective = DenseObjective(
            tower,
            merged.semantic_classes,
            head=self.head,
            presence_classes=merged.object_classes if self.presence else (),
        )
        return ObjectiveParts(objective, source, images.describe())


@dataclass(frozen=True)
class DenseBatch(TensorFields):
    """Images with the class of each pixel.

    Attributes:
        tiles_BCHW: uint8.
        target_BHW: Class of each pixel, uint8; 255 counts for nothing.
        record_names: Ids of the images, for messages.
        presence_BK: 1 where an object class is in the image, 0 where it isn't, -1 where unknown; int8.
            None: not asked for.
    """

    tiles_BCHW: Tensor
    target_BHW: Tensor
    record_names: tuple[str, ...]
    presence_BK: Tensor | None = None


@dataclass(frozen=True)
class ImagesWithMasks(Collate[LabelledImage, DenseBatch]):
    """Makes a `DenseBatch`.

    Attributes:
        labelled: The set that the images are of.
        size: Side of the square tiles in pixels.
        augment: Random changes.
        presence: Also tell which object classes are there. Images without masks are taken then, too.
        global_batch: Images of one optimizer step: a place in the step, not in the run, decides what is random.
        seen: How images are read.
    """

    labelled: LabelledSet
    size: int
    augment: MaskAugmentation
    presence: bool
    global_batch: int
    seen: SeenBands = PICTURES

    def __call__(self, samples: Sequence[Sample[LabelledImage]], step: int) -> DenseBatch:
        """Return the batch; see `Collate`."""
        images, masks, presences = [], [], []
        for sample in samples:
            item, place = sample.record, sample.position - step * self.global_batch
            seen = self.seen.at(sample.seed, sample.position)
            image_HWC, mask_HW = image_with_mask(item, self.labelled, seen, optional=self.presence)
            rng = np.random.default_rng([sample.seed, step, place, 1])
            image_HWC, mask_HW, window = augment_with_mask(image_HWC, mask_HW, self.size, self.augment, rng)
            images.append(without_channels(image_HWC, self.seen.dropped(sample.seed, sample.position)))
            masks.append(mask_HW)
            presences.append(presence_of(item.objects, self.labelled.object_classes, window, item.ignored))
        return DenseBatch(
            tiles_BCHW=torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(),
            target_BHW=torch.from_numpy(np.stack(masks)),
            record_names=tuple(sample.record.id for sample in samples),
            presence_BK=torch.from_numpy(np.stack(presences)) if self.presence else None,
        )

    def facts(self, order: ShuffledImages, global_batch: int) -> dict[str, Any]:
        """Return images and options; see `Collate.facts`."""
        return {
            **order.facts(),
            "classes": [self.labelled.semantic_classes, self.labelled.object_classes],
            "options": [global_batch, order.seed, self.size, self.presence, asdict(self.augment)],
            **({"seen": seen} if (seen := self.seen.facts()) else {}),
            **nodata_facts(self.labelled, self.seen),
        }


def dense_batches(
    labelled: LabelledSet,
    global_batch: int,
    seed: int,
    *,
    size: int,
    micro_batches: int = 1,
    augment: MaskAugmentation | None = None,
    presence: bool = False,
    seen: SeenBands | None = None,
) -> SampledBatches[LabelledImage, DenseBatch]:
    """Return random batches of a set with masks, and optionally the presence of its object classes.

    Args:
        labelled: Images of the wanted split only; may be lazy.
        global_batch: Images of one optimizer step, over all micro-batches and ranks.
        seed: Seed of order and augmentation.
        size: Side of the square tiles in pixels.
        micro_batches: Parts that a rank cuts its share of a step into.
        augment: Random changes.
        presence, seen: See `ImagesWithMasks`.

    Raises:
        ConfigError: The set is empty or has not the labels.
        DataError: A mask doesn't fit its image or the classes (when the image's turn comes).
    """
    order = ShuffledImages(labelled, seed)
    if not labelled.semantic_classes and not presence:
        raise ConfigError("has no masks", where=labelled.name, fix="choose a set with semantic classes")
    if presence and not labelled.object_classes:
        raise ConfigError("has no object classes", where=labelled.name, fix="leave out presence")
    changes = augment or MaskAugmentation()
    collate = ImagesWithMasks(labelled, size, changes, presence, global_batch, seen or PICTURES)
    return SampledBatches(order, collate, global_batch, micro_batches, interleaved=True)


def patch_distribution(target_BHW: Tensor, patch: int, classes: int) -> Tensor:
    """Return (B, h, w, C): the share of each class among *all* pixels of a patch.

    A patch's shares sum to the share of its pixels that aren't ignored.
    """
    batch, height, width = target_BHW.shape
    rows, columns = height // patch, width // patch
    cells = torch.arange(batch * rows * columns, device=target_BHW.device).view(batch, rows, columns)
    cell_BHW = cells.repeat_interleave(patch, 1).repeat_interleave(patch, 2)
    # Ignored pixels go into one more class, which is cut off: a mask would need a copy of every pixel.
    class_BHW = target_BHW.long().clamp(max=classes)
    counts = torch.bincount(
        (cell_BHW * (classes + 1) + class_BHW).flatten(), minlength=cells.numel() * (classes + 1)
    )
    return counts.view(batch, rows, columns, classes + 1)[..., :classes].float() / patch**2


class LinearHead(nn.Module):
    """LayerNorm and one linear map: patch tokens (B, N, D) → logits (B, N, C)."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, classes)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Return logits (B, N, C)."""
        logits_BNC: Tensor = self.linear(self.norm(tokens_BND))
        return logits_BNC


class ConvHead(nn.Module):
    """A light decoder: feature maps of one or more layers → logits at a quarter of the patch's stride.

    Each map is normalised and mapped to `hidden` channels, the maps are added, and two blocks of bilinear
    doubling, 3×3 convolution, group norm and GELU follow. Group norm keeps images independent of each other,
    so a batch can be cut over micro-batches and ranks.
    """

    def __init__(self, widths: Sequence[int], classes: int, hidden: int = 64) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        self.lateral = nn.ModuleList(nn.Linear(width, hidden) for width in widths)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(hidden, hidden, 3, padding=1, bias=False),
                nn.GroupNorm(min(8, hidden), hidden),
                nn.GELU(),
            )
            for _ in range(2)
        )
        self.classify = nn.Conv2d(hidden, classes, 1)

    def forward(self, maps_BDhw: Sequence[Tensor]) -> Tensor:
        """Return logits (B, C, 4h, 4w)."""
        sides = [
            lateral(norm(map_BDhw.permute(0, 2, 3, 1)))
            for map_BDhw, norm, lateral in zip(maps_BDhw, self.norms, self.lateral, strict=True)
        ]
        x_BChw = torch.stack(sides).sum(0).permute(0, 3, 1, 2).contiguous()
        for block in self.blocks:
            x_BChw = block(F.interpolate(x_BChw, scale_factor=2.0, mode="bilinear", align_corners=False))
        logits_BCHW: Tensor = self.classify(x_BChw)
        return logits_BCHW


class DenseObjective(ImageObjective):
    """Cross-entropy on the class of each pixel, and optionally of each object class's presence.

    With the `linear` head the logits of a patch stand for all its pixels. Its target is the *distribution*
    of the classes in the patch, not their majority: that is exactly the mean cross-entropy over pixels
    under logits that are constant in a patch, so small objects that never win a majority still teach.
    The `conv` head is for finetuning: its logits are scaled up to pixels.

    Losses: `dense` (mean over labelled pixels) and `presence` (binary cross-entropy, mean over known
    entries). With class weights w the mean is a weighted one: Σ w[y]·loss / Σ w[y].

    Args:
        tower: The vision tower.
        classes: Names of the semantic classes; their order is the mask's values. Empty with head `none`.
        head: `linear` on patch tokens, `conv` on feature maps, `none` for presence only.
        layers: Layers that the conv head reads.
        hidden: Channels of the conv head.
        presence_classes: Names of the object classes to tell the presence of; empty: no such loss.
        class_weights: One positive weight for each semantic class.
        label_smoothing: Share of the target that is spread evenly over the classes.
        loss_weights: Name → weight in the total loss.

    Raises:
        ConfigError: The options contradict each other.
    """

    def __init__(
        self,
        tower: VisionTower,
        classes: Sequence[str],
        *,
        head: Literal["linear", "conv", "none"] = "linear",
        layers: Sequence[int] = (-1,),
        presence_classes: Sequence[str] = (),
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        loss_weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(tower)
        _check_options(classes, head, presence_classes, class_weights, label_smoothing)
        self.head_kind, self.layers = head, tuple(layers)
        self.classes, self.presence_classes = tuple(classes), tuple(presence_classes)
        self.label_smoothing = label_smoothing
        self.loss_weights = dict(loss_weights or {})
        self.head: LinearHead | ConvHead | None = None
        if head == "linear":
            self.head = LinearHead(tower.width, len(classes))
        elif head == "conv":
            self.head = ConvHead([tower.channels[layer] for layer in layers], len(classes))
        self.presence_head = LinearHead(tower.width, len(presence_classes)) if presence_classes else None
        # Counting happens on the CPU before a batch moves, the loss where the model is.
        weights = torch.ones(len(classes)) if class_weights is None else torch.tensor(list(class_weights))
        self._counting_weights = weights.float()
        self.class_weights: Tensor
        self.register_buffer("class_weights", weights.float(), persistent=False)

    def forward(self, batch: DenseBatch) -> dict[str, Tensor]:
        """Return name → summed loss. See `Objective.forward`."""
        image_BCHW = self.tower.normalize(batch.tiles_BCHW)
        maps = self.tower.forward_features(image_BCHW, self.layers if self.head_kind == "conv" else (-1,))
        tokens_BND = maps[-1].flatten(2).transpose(1, 2)
        losses = {}
        if isinstance(self.head, LinearHead):
            losses["dense"] = self._patch_loss(self.head(tokens_BND), batch.target_BHW)
        elif self.head is not None:
            logits_BChw = self.head(maps).float()
            size = batch.target_BHW.shape[-2:]
            logits_BCHW = F.interpolate(logits_BChw, size=size, mode="bilinear", align_corners=False)
            losses["dense"] = self._pixel_loss(logits_BCHW, batch.target_BHW)
        if self.presence_head is not None:
            losses["presence"] = presence_loss(self.presence_head(tokens_BND.mean(1)), self._presence(batch))
        return losses

    def _patch_loss(self, logits_BNC: Tensor, target_BHW: Tensor) -> Tensor:
        share_BhwC = patch_distribution(target_BHW, self.tower.patch_size, len(self.classes))
        share_BNC = share_BhwC.flatten(1, 2) * self.class_weights
        nll_BNC = -logits_BNC.float().log_softmax(-1)
        smooth = self.label_smoothing
        return (share_BNC * ((1 - smooth) * nll_BNC + smooth * nll_BNC.mean(-1, keepdim=True))).sum()

    def _pixel_loss(self, logits_BCHW: Tensor, target_BHW: Tensor) -> Tensor:
        target_BHW = target_BHW.long()
        loss_BHW = F.cross_entropy(
            logits_BCHW.float(),
            target_BHW,
            ignore_index=IGNORE,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )
        return (loss_BHW * self.class_weights[target_BHW.clamp(max=len(self.classes) - 1)]).sum()

    def _presence(self, batch: DenseBatch) -> Tensor:
        if batch.presence_BK is None:
            raise ConfigError(
                "the batch doesn't say which objects are present", fix="make the source with presence=True"
            )
        return batch.presence_BK

    def loss_counts(self, batch: DenseBatch) -> dict[str, float]:
        """Return name → what the sum of `forward` is divided by: (weighted) patches or pixels, entries."""
        counts = {}
        if self.head is not None:
            classes = len(self.classes)
            pixels_C = torch.bincount(
                batch.target_BHW.flatten().long().clamp(max=classes), minlength=classes + 1
            )
            weighted = float((pixels_C[:classes].cpu() * self._counting_weights).sum())
            counts["dense"] = weighted / self.tower.patch_size**2 if self.head_kind == "linear" else weighted
        if self.presence_head is not None:
            counts["presence"] = float((self._presence(batch) != UNLABELLED).sum())
        return counts

    def work(self, batch: DenseBatch) -> dict[str, float]:
        """Return images and the FLOPs of the tower's forward and backward pass; the heads' are left out."""
        return self.work_of(len(batch.tiles_BCHW))


def presence_loss(logits_BK: Tensor, presence_BK: Tensor) -> Tensor:
    """Return the summed binary cross-entropy of the entries that are known."""
    known_BK = presence_BK != UNLABELLED
    loss_BK = F.binary_cross_entropy_with_logits(
        logits_BK.float(), presence_BK.clamp(min=0).float(), reduction="none"
    )
    return (loss_BK * known_BK).sum()


def _check_options(
    classes: Sequence[str],
    head: str,
    presence_classes: Sequence[str],
    class_weights: Sequence[float] | None,
    label_smoothing: float,
) -> None:
    if head not in ("linear", "conv", "none"):
        raise ConfigError(f'there is no head "{head}"', where="head", fix="choose linear, conv or none")
    if head == "none" and not presence_classes:
        raise ConfigError("nothing to learn", where="head", fix="give presence_classes or a head")
    if head != "none" and len(classes) < 2:
        raise ConfigError(
            f"{len(classes)} semantic classes can't be told apart", where="classes", fix="give two or more"
        )
    if class_weights is not None and (
        len(class_weights) != len(classes) or min(class_weights, default=0) <= 0
    ):
        raise ConfigError(
            f"{len(class_weights)} class weights for {len(classes)} classes",
            where="dense head",
            fix="give one positive weight for each class",
        )
    if not 0 <= label_smoothing < 1:
        what = f"label_smoothing {label_smoothing} is not in 0..1"
        raise ConfigError(what, where="dense head", fix="choose 0.0 to 0.2")


@dataclass(frozen=True)
class RenamedMask:
    """A mask whose class numbers are those of another list of classes. A class of its own, so that workers get it.

    Attributes:
        mask: Reads the mask.
        numbers: New number of each class.
    """

    mask: Any
    numbers: tuple[int, ...]

    def __call__(self) -> np.ndarray:
        """Return the mask (H, W) uint8."""
        table = np.full(256, IGNORE, np.uint8)  # what is ignored, or no class, stays ignored
        table[: len(self.numbers)] = self.numbers
        return np.asarray(table[self.mask()])


def merged_set(sets: Sequence[ImageRows], mixture: Mixture[LabelledImage]) -> LabelledSet:
    """Return one epoch of a mixture as one labelled set, classes joined by name.

    Args:
        sets: Sets of the mixture.
        mixture: Says how often an image comes, and in which order.

    Raises:
        ConfigError: There are fewer than two semantic classes.
    """
    labelled = [one.labelled for one in sets]
    semantic = tuple(dict.fromkeys(name for one in labelled for name in one.semantic_classes))
    if len(semantic) < 2:
        raise ConfigError(
            f"{len(semantic)} semantic classes can't be told apart",
            where="data.mixture",
            fix="use sets with masks",
        )
    items: list[LabelledImage] = []
    for one, entry in zip(labelled, mixture.entries, strict=True):
        numbers = tuple(semantic.index(name) for name in one.semantic_classes)
        order = Permutation(len(one), mixture.seed, one.name)
        for number in range(entry.per_epoch):
            item = one.items[order[number % len(one)]]
            mask = None if item.semantic is None else RenamedMask(item.semantic, numbers)
            items.append(replace(item, id=f"{one.name}/{item.id}", semantic=mask))
    return LabelledSet(
        name="+".join(one.name for one in labelled),
        items=items,
        object_classes=tuple(dict.fromkeys(name for one in labelled for name in one.object_classes)),
        semantic_classes=semantic,
    )
