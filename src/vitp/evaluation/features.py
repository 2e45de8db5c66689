"""Features and labels of a labelled set for a frozen vision tower, in one pass over its images.

Shapes: N images, V views (V = N unless images are cut into tiles), S × S pixels a view, h × w patches,
D width, C classes, K object classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vitp.core.errors import ConfigError
from vitp.data.augment import resize_image, resize_mask
from vitp.data.ignored import presence_of, read_mask, touched
from vitp.io.images import load_image
from vitp.models.backbone import frozen
from vitp.models.vision import VisionTower
from vitp.objectives.dense import patch_distribution
from vitp.records.labels import IGNORE, LabelledImage, LabelledSet, ObjectLabel

BACKGROUND = "background"
"""Class of patches that no box covers, when labels come from boxes."""

_SAMPLES = 16
"""Points on a side of a patch at which the cover of an oriented box is measured: an error below 1 %."""


@dataclass(frozen=True)
class Features:
    """What a frozen tower makes of a set, and the labels at the same places.

    Attributes:
        patches_VhwD: Patch features of each view, float16, on the CPU.
        pooled_ND: Mean of all patch features of each image, float32.
        view_image_V: Which image a view belongs to.
        patch_classes: Names of the classes of `patch_labels_Vhw`; empty: no such labels.
        patch_labels_Vhw: Class of each patch, uint8; 255 where mixed or not labelled.
        pixel_labels_VSS: Class of each pixel at the view's size, uint8; None without masks.
        scene_N: Index of the scene class, -1 where unknown.
        presence_NK: Object classes in the image: 1 yes, 0 no, -1 unknown.
        groups: What each image is a part of (a photograph that was cut into crops, a scene); its own name where it is
            whole.
    """

    patches_VhwD: Tensor
    pooled_ND: Tensor
    view_image_V: Tensor
    patch_classes: tuple[str, ...]
    patch_labels_Vhw: Tensor | None
    pixel_labels_VSS: Tensor | None
    scene_N: Tensor
    presence_NK: Tensor
    groups: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pooled_ND)

    def views_of(self, images: Tensor) -> Tensor:
        """Return the numbers of the views that belong to these images."""
        return torch.isin(self.view_image_V, images).nonzero().flatten()

    def group_numbers(self) -> Tensor:
        """Return (N,) the group of each image, 0, 1, … in the order in which they come."""
        numbers = {name: number for number, name in enumerate(dict.fromkeys(self.groups))}
        return torch.tensor([numbers[name] for name in self.groups])


def extract(
    tower: VisionTower,
    labelled_set: LabelledSet,
    *,
    view: Literal["whole", "tiles"] = "whole",
    batch_size: int = 32,
    min_share: float = 0.5,
    max_bytes: int = 4 << 30,
) -> Features:
    """Run the tower over all images of a set.

    Args:
        tower: Stays on its device and in its mode.
        labelled_set: Images of one split; may be lazy, each item is touched once.
        view: `whole` squeezes each image to the tower's size; `tiles` cuts it into tiles of about its own
            resolution (the image is resized to the nearest whole number of tiles).
        batch_size: Views a forward pass.
        min_share: Share of a patch's pixels that its class must have; others are ignored. With boxes: share
            of the patch that the box must cover.
        max_bytes: Largest size of the patch features.

    Raises:
        ConfigError: The set is empty, or its features don't fit `max_bytes`.
        DataError: An image or mask can't be used.
    """
    if not len(labelled_set):
        raise ConfigError("has no images", where=labelled_set.name, fix="choose another split")
    labels = _Labels(labelled_set, tower, min_share)
    images, owners, patches = [], [], []
    with frozen(tower):
        for number in range(len(labelled_set)):
            item = labelled_set.items[number]
            tiles = labels.add(item, view)
            images.extend(tiles)
            owners.extend([number] * len(tiles))
            if len(images) >= batch_size or number == len(labelled_set) - 1:
                patches.append(_forward(tower, images, batch_size))
                images = []
            _check_size(patches, number + 1, len(labelled_set), max_bytes, labelled_set.name)
    patches_VhwD, view_image_V = torch.cat(patches), torch.tensor(owners)
    return Features(
        patches_VhwD=patches_VhwD,
        pooled_ND=_pool(patches_VhwD, view_image_V, len(labelled_set)),
        view_image_V=view_image_V,
        patch_classes=labels.classes,
        patch_labels_Vhw=torch.from_numpy(np.stack(labels.patches)) if labels.classes else None,
        pixel_labels_VSS=torch.from_numpy(np.stack(labels.pixels)) if labels.from_masks else None,
        scene_N=torch.tensor(labels.scenes),
        presence_NK=torch.from_numpy(np.stack(labels.presences)),
        groups=tuple(labels.groups),
    )


class _Labels:
    """Collects the labels of a set, image by image, at the places of the tower's patches."""

    def __init__(self, labelled_set: LabelledSet, tower: VisionTower, min_share: float) -> None:
        self.labelled_set, self.min_share = labelled_set, min_share
        self.side, self.patch = tower.image_size[0], tower.patch_size
        self.from_masks = bool(labelled_set.semantic_classes)
        objects = (*labelled_set.object_classes, BACKGROUND) if labelled_set.object_classes else ()
        self.classes = labelled_set.semantic_classes if self.from_masks else objects
        self.patches: list[np.ndarray] = []
        self.pixels: list[np.ndarray] = []
        self.scenes: list[int] = []
        self.presences: list[np.ndarray] = []
        self.groups: list[str] = []

    def add(self, item: LabelledImage, view: Literal["whole", "tiles"]) -> list[np.ndarray]:
        """Take in an image's labels and return its views."""
        image_HWC = np.asarray(load_image(item.image))
        height, width = image_HWC.shape[:2]
        rows, columns = (1, 1) if view == "whole" else (max(1, round(x / self.side)) for x in (height, width))
        size = (rows * self.side, columns * self.side)
        if self.from_masks:
            mask_HW = read_mask(item, self.labelled_set, (height, width), optional=True)
            pixels = _cut(resize_mask(mask_HW, size), self.side)
            self.pixels.extend(pixels)
            self.patches.extend(
                majority_labels(np.stack(pixels), self.patch, len(self.classes), self.min_share)
            )
        elif self.classes:
            grid = (size[0] // self.patch, size[1] // self.patch)
            labels_hw = box_labels(
                item.objects,
                self.labelled_set.object_classes,
                (height, width),
                grid,
                self.min_share,
                item.ignored,
            )
            self.patches.extend(_cut(labels_hw, self.side // self.patch))
        self.groups.append(item.group or item.id)
        scenes = self.labelled_set.scene_classes
        self.scenes.append(scenes.index(item.scene) if item.scene in scenes else -1)
        self.presences.append(
            presence_of(item.objects, self.labelled_set.object_classes, ignored=item.ignored)
        )
        return _cut(resize_image(image_HWC, size), self.side)


def _cut(array_HW: np.ndarray, side: int) -> list[np.ndarray]:
    """Cut an array of a whole number of tiles into its tiles, row by row."""
    height, width = array_HW.shape[:2]
    return [
        array_HW[y : y + side, x : x + side] for y in range(0, height, side) for x in range(0, width, side)
    ]


def _forward(tower: VisionTower, images: Sequence[np.ndarray], batch_size: int) -> Tensor:
    device = next(tower.parameters()).device
    parts = []
    # One large image can be cut into more tiles than fit a batch.
    for start in range(0, len(images), batch_size):
        chunk = np.stack(images[start : start + batch_size])
        tiles_BCHW = torch.from_numpy(chunk).permute(0, 3, 1, 2).to(device)
        (map_BDhw,) = tower.forward_features(tower.normalize(tiles_BCHW))
        parts.append(map_BDhw.permute(0, 2, 3, 1).half().cpu())
    return torch.cat(parts)


def _check_size(patches: Sequence[Tensor], done: int, total: int, limit: int, name: str) -> None:
    if not patches:
        return
    held = sum(part.numel() for part in patches) * patches[0].element_size()
    expected = held * total / done
    if expected > limit:
        raise ConfigError(
            f"patch features of {total} images need about {expected / 2**30:.1f} GiB",
            where=name,
            fix=f"use {int(total * limit / expected)} images or fewer, or a larger max_bytes",
        )


def _pool(patches_VhwD: Tensor, view_image_V: Tensor, images: int) -> Tensor:
    view_VD = torch.stack([view_hwD.float().mean((0, 1)) for view_hwD in patches_VhwD])
    sums_ND = torch.zeros(images, view_VD.shape[1]).index_add_(0, view_image_V, view_VD)
    return sums_ND / view_image_V.bincount(minlength=images)[:, None]


def majority_labels(mask_VHW: np.ndarray, patch: int, classes: int, min_share: float) -> np.ndarray:
    """Return (V, h, w) uint8: the commonest class of each patch, 255 where it has less than `min_share`."""
    share_VhwC = patch_distribution(torch.from_numpy(np.ascontiguousarray(mask_VHW)), patch, classes)
    best_Vhw, label_Vhw = share_VhwC.max(-1)
    sure_Vhw = (best_Vhw >= min_share) & (best_Vhw > 0)
    return torch.where(sure_Vhw, label_Vhw, IGNORE).to(torch.uint8).numpy()


def box_labels(
    objects: Sequence[ObjectLabel] | None,
    classes: Sequence[str],
    size: tuple[int, int],
    grid: tuple[int, int],
    min_share: float = 0.5,
    ignored: Sequence[ObjectLabel] = (),
) -> np.ndarray:
    """Return (h, w) uint8: the object class whose (oriented) box covers a patch, else `len(classes)`.

    Of several boxes the one that covers most of the patch counts, of equal ones the smaller. Patches under
    a difficult object or one of an unknown class are 255; so are all when objects aren't labelled, and those without
    an object that an ignored place touches.

    Args:
        objects: Objects in pixels of the image.
        classes: Names of the object classes.
        size: Height and width of the image in pixels.
        grid: Rows and columns of patches over the whole image.
        min_share: Share of the patch that a box must cover.
        ignored: Places that may hold objects of any class.
    """
    if objects is None:
        return np.full(grid, IGNORE, np.uint8)
    label_hw = np.full(grid, len(classes), np.uint8)
    best_hw = np.zeros(grid)
    scale = np.array([grid[1] / size[1], grid[0] / size[0]])
    for labelled in sorted(objects, key=lambda one: _area(one.box)):
        x1, y1, x2, y2 = labelled.box
        corners_42 = np.reshape(labelled.quad or (x1, y1, x2, y1, x2, y2, x1, y2), (4, 2)) * scale
        (top, left), cover_hw = _cover(corners_42, grid)
        window = np.s_[top : top + cover_hw.shape[0], left : left + cover_hw.shape[1]]
        wins = (cover_hw >= min_share) & (cover_hw > best_hw[window])
        known = labelled.category in classes and not labelled.difficult
        label_hw[window][wins] = classes.index(labelled.category) if known else IGNORE
        best_hw[window][wins] = cover_hw[wins]
    if ignored:
        label_hw[(label_hw == len(classes)) & touched(ignored, size, grid)] = IGNORE
    return label_hw


def _area(box: tuple[float, float, float, float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _twice_area(corners_42: np.ndarray) -> float:
    after_42 = np.roll(corners_42, -1, axis=0)
    return float((corners_42[:, 0] * after_42[:, 1] - corners_42[:, 1] * after_42[:, 0]).sum())


def _cover(corners_42: np.ndarray, grid: tuple[int, int]) -> tuple[tuple[int, int], np.ndarray]:
    """Return the first cell (row, column) and the covered share of each cell around a convex quad."""
    low = np.clip(np.floor(corners_42.min(0)).astype(int), 0, None)
    high = np.minimum(np.ceil(corners_42.max(0)).astype(int), (grid[1], grid[0]))
    columns, rows = np.maximum(high - low, 0)
    offsets = (np.arange(_SAMPLES) + 0.5) / _SAMPLES
    x = (low[0] + np.arange(columns)[:, None] + offsets).ravel()
    y = (low[1] + np.arange(rows)[:, None] + offsets).ravel()
    sides = []
    if abs(_twice_area(corners_42)) < 1e-9:
        return (int(low[1]), int(low[0])), np.zeros((rows, columns))
    for start, end in zip(corners_42, np.roll(corners_42, -1, axis=0), strict=True):
        edge = end - start
        sides.append(edge[0] * (y[:, None] - start[1]) - edge[1] * (x[None] - start[0]))
    # Corners may run either way round.
    inside = np.all([side >= 0 for side in sides], axis=0) | np.all([side <= 0 for side in sides], axis=0)
    cover_hw = inside.reshape(rows, _SAMPLES, columns, _SAMPLES).mean((1, 3))
    return (int(low[1]), int(low[0])), cover_hw
