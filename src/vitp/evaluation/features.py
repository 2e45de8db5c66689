"""Features and labels of a labelled set for a frozen vision tower, in one pass over its images.

Shapes: N images, V views (V = N unless images are cut into tiles), S × S pixels a view, h × w patches, P fitted
patches, D width, C classes, K object classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitp.core.errors import ConfigError
from vitp.data.augment import resize_image, resize_mask
from vitp.data.ignored import UNLABELLED, presence_of, touched
from vitp.data.nodata import image_with_mask
from vitp.data.seen import SeenBands
from vitp.data.splits import splits_of, subset
from vitp.io.images import MissingBands
from vitp.models.backbone import frozen
from vitp.models.vision import VisionTower
from vitp.objectives.dense import patch_distribution
from vitp.records.labels import IGNORE, LabelledImage, LabelledSet, ObjectLabel

PROBE_TASKS = ("scene kNN", "scene linear", "patches linear", "presence linear")

UNCOVERED = "background"
"""Class of patches that no box covers, when labels come from boxes."""

MAX_PATCHES = 30_000
"""Patches that a dense probe is fitted on: more change little and take long."""

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
        presence_NK: Object classes in the image, or the classes that fit it where it may have several (`tags`): 1 yes,
            0 no, -1 unknown.
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

    def known_scenes(self, device: torch.device, chosen: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return pooled features and classes of the (chosen) images whose scene is known."""
        known = self.scene_N >= 0
        if chosen is not None:
            known &= torch.isin(torch.arange(len(known)), chosen)
        return self.pooled_ND[known].to(device), self.scene_N[known].to(device)

    def labelled_patches(self, views: Tensor, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return features and classes of at most `MAX_PATCHES` labelled patches of the views."""
        assert self.patch_labels_Vhw is not None
        label_P = self.patch_labels_Vhw[views].flatten()
        known = (label_P != IGNORE).nonzero().flatten()
        if not len(known):
            raise ConfigError(
                "no patch is labelled", where="probes", fix="give masks with classes or a smaller min_share"
            )
        if len(known) > MAX_PATCHES:
            order = np.random.default_rng([seed, len(known)]).permutation(len(known))[:MAX_PATCHES]
            known = known[torch.from_numpy(np.sort(order))]
        _, rows, columns, width = self.patches_VhwD.shape
        cells = rows * columns
        flat = self.patches_VhwD.view(-1, width)
        features_PD = flat[views[known // cells] * cells + known % cells].float()
        return features_PD.to(device), label_P[known].to(device)


@dataclass(frozen=True)
class ProbeData:
    """Features of the three splits, with the tower's device to fit on."""

    train: Features
    val: Features
    test: Features
    device: torch.device

    def tasks(self) -> tuple[str, ...]:
        """Return the probes that the labels allow."""
        train, test = self.train, self.test
        scenes = _several(train.scene_N[train.scene_N >= 0]) and bool((test.scene_N >= 0).any())
        labels_Vhw = train.patch_labels_Vhw
        patches = labels_Vhw is not None and _several(labels_Vhw[labels_Vhw != IGNORE])
        presence = bool((train.presence_NK == 1).any()) and bool((test.presence_NK == 1).any())
        allowed = (scenes, scenes, patches, presence)
        return tuple(task for task, ok in zip(PROBE_TASKS, allowed, strict=True) if ok)

    def scene_class_count(self) -> int:
        """Return the number of scene classes over all splits."""
        return int(max(part.scene_N.max() for part in (self.train, self.val, self.test))) + 1


def _several(classes: Tensor) -> bool:
    """Return whether there are two different classes."""
    return bool((classes != classes[:1]).any())


def probe_data(
    tower: VisionTower,
    labelled_set: LabelledSet | Mapping[str, LabelledSet],
    *,
    view: Literal["whole", "tiles"] = "whole",
    batch_size: int = 32,
    max_images: int | Mapping[str, int] = 2000,
    missing_bands: MissingBands = "error",
) -> ProbeData:
    """Run the tower over the splits of a set.

    Args:
        tower: The frozen vision tower.
        labelled_set: A set with `train` and `test` items (and `val`, else a fifth of the training groups is
            held out for it), or one set for each split.
        view: See `extract`.
        batch_size: Views a forward pass.
        max_images: Images of each split (or of each one by name) at most: a fixed random subset, the same
            for every backbone.
        missing_bands: See `SeenBands.by`.

    Raises:
        ConfigError: A split has no images.
    """
    features = {}
    for name, images in splits_of(labelled_set).items():
        most = max_images if isinstance(max_images, int) else max_images[name]
        part = subset(images, most)
        features[name] = extract(tower, part, view=view, batch_size=batch_size, missing_bands=missing_bands)
    return ProbeData(**features, device=next(tower.parameters()).device)


def extract(
    tower: VisionTower,
    labelled_set: LabelledSet,
    *,
    view: Literal["whole", "tiles"] = "whole",
    batch_size: int = 32,
    min_share: float = 0.5,
    max_bytes: int = 4 << 30,
    missing_bands: MissingBands = "error",
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
        missing_bands: See `SeenBands.by`.

    Raises:
        ConfigError: The set is empty, or its features don't fit `max_bytes`.
        DataError: An image or mask can't be used.
    """
    total = len(labelled_set)
    if not total:
        raise ConfigError("has no images", where=labelled_set.name, fix="choose another split")
    seen = SeenBands.by(tower.in_channels, labelled_set, missing_bands=missing_bands)
    waiting: list[np.ndarray] = []
    owners: list[int] = []
    patches: list[Tensor] = []
    labels: list[_Labels] = []
    held = 0
    with frozen(tower):
        for number in range(total):
            images, own = _views(labelled_set.items[number], labelled_set, tower, view, min_share, seen)
            labels.append(own)
            owners.extend([number] * len(images))
            waiting.extend(images)
            if len(waiting) >= batch_size or number == total - 1:
                patches.append(_forward(tower, waiting, batch_size))
                held += patches[-1].nbytes
                waiting = []
            # Said as soon as it can be foreseen, and not when the memory is full.
            expected = held * total / (number + 1)
            if expected > max_bytes:
                raise ConfigError(
                    f"patch features of {total} images need about {expected / 2**30:.1f} GiB",
                    where=labelled_set.name,
                    fix=f"use {int(total * max_bytes / expected)} images or fewer, or a larger max_bytes",
                )
    return _collected(labelled_set, torch.cat(patches), torch.tensor(owners), labels)


class _Labels(NamedTuple):
    """Labels of one image: of each view's patches and pixels, and of the whole."""

    patches: Sequence[np.ndarray]
    pixels: Sequence[np.ndarray]
    scene: int
    presence_K: np.ndarray
    group: str


def _collected(
    labelled_set: LabelledSet, patches_VhwD: Tensor, view_image_V: Tensor, labels: Sequence[_Labels]
) -> Features:
    """Return features of views, the image of each view, and the images' labels, side by side."""
    total = len(labels)
    # One view at a time, or all features would be held a second time in float32.
    view_VD = torch.stack([view_hwD.float().mean((0, 1)) for view_hwD in patches_VhwD])
    sums_ND = torch.zeros(total, view_VD.shape[1]).index_add_(0, view_image_V, view_VD)
    by_view = [label for own in labels for label in own.patches]
    objects = (*labelled_set.object_classes, UNCOVERED) if labelled_set.object_classes else ()
    return Features(
        patches_VhwD=patches_VhwD,
        pooled_ND=sums_ND / view_image_V.bincount(minlength=total)[:, None],
        view_image_V=view_image_V,
        patch_classes=labelled_set.semantic_classes or objects,
        patch_labels_Vhw=torch.from_numpy(np.stack(by_view)) if by_view else None,
        pixel_labels_VSS=torch.from_numpy(np.stack([mask for own in labels for mask in own.pixels]))
        if labelled_set.semantic_classes
        else None,
        scene_N=torch.tensor([own.scene for own in labels]),
        presence_NK=torch.from_numpy(np.stack([own.presence_K for own in labels])),
        groups=tuple(own.group for own in labels),
    )


def _views(
    item: LabelledImage,
    labelled_set: LabelledSet,
    tower: VisionTower,
    view: Literal["whole", "tiles"],
    min_share: float,
    seen: SeenBands,
) -> tuple[list[np.ndarray], _Labels]:
    """Return the views of an image, and its labels at the places of their patches."""
    side, patch, classes = tower.image_size[0], tower.patch_size, labelled_set.object_classes
    image_HWC, mask_HW = image_with_mask(item, labelled_set, seen, optional=True)
    height, width = image_HWC.shape[:2]
    rows, columns = (1, 1) if view == "whole" else (max(1, round(x / side)) for x in (height, width))
    size = (rows * side, columns * side)
    patches: Sequence[np.ndarray] = ()
    pixels: list[np.ndarray] = []
    if labelled_set.semantic_classes:
        pixels = _cut(resize_mask(mask_HW, size), side)
        patches = list(
            majority_labels(np.stack(pixels), patch, len(labelled_set.semantic_classes), min_share)
        )
    elif classes:
        grid = (size[0] // patch, size[1] // patch)
        labels_hw = box_labels(item.objects, classes, (height, width), grid, min_share, item.ignored)
        patches = _cut(labels_hw, side // patch)
    scenes = labelled_set.scene_classes
    labels = _Labels(
        patches,
        pixels,
        scenes.index(item.scene) if item.scene in scenes else -1,
        _presence(item, labelled_set),
        item.group or item.id,
    )
    return _cut(resize_image(image_HWC, size), side), labels


def _presence(item: LabelledImage, labelled_set: LabelledSet) -> np.ndarray:
    """Return (K,): 1 yes, 0 no, -1 unknown, of the object classes, or of the tags of a set without objects."""
    if labelled_set.object_classes:
        return presence_of(item.objects, labelled_set.object_classes, ignored=item.ignored)
    scenes = labelled_set.scene_classes
    if item.tags is None:
        return np.full(len(scenes), UNLABELLED, np.int8)
    return np.array([UNLABELLED if name in item.unknown else name in item.tags for name in scenes], np.int8)


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
        # In half precision, as the features of the whole set are held.
        parts.append(map_BDhw.permute(0, 2, 3, 1).half().cpu())
    return torch.cat(parts)


def majority_labels(mask_VHW: np.ndarray, patch: int, classes: int, min_share: float) -> np.ndarray:
    """Return (V, h, w) uint8: the commonest class of each patch, 255 where it has less than `min_share`."""
    share_VhwC = patch_distribution(torch.from_numpy(np.ascontiguousarray(mask_VHW)), patch, classes)
    best_Vhw, label_Vhw = share_VhwC.max(-1)
    # Where all is ignored every share is 0, and the largest would be that of class 0.
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
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (one.box for one in objects)]
    # Small boxes first: of two that cover a patch alike the first one keeps it.
    for index in np.argsort(areas, kind="stable").tolist():
        labelled = objects[index]
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


def _cover(corners_42: np.ndarray, grid: tuple[int, int]) -> tuple[tuple[int, int], np.ndarray]:
    """Return the first cell (row, column) and the covered share of each cell around a convex quad."""
    low = np.clip(np.floor(corners_42.min(0)).astype(int), 0, None)
    high = np.minimum(np.ceil(corners_42.max(0)).astype(int), (grid[1], grid[0]))
    columns, rows = np.maximum(high - low, 0)
    offsets = (np.arange(_SAMPLES) + 0.5) / _SAMPLES
    x = (low[0] + np.arange(columns)[:, None] + offsets).ravel()
    y = (low[1] + np.arange(rows)[:, None] + offsets).ravel()
    sides = []
    after_42 = np.roll(corners_42, -1, axis=0)
    twice_area = (corners_42[:, 0] * after_42[:, 1] - corners_42[:, 1] * after_42[:, 0]).sum()
    if abs(twice_area) < 1e-9:
        return (int(low[1]), int(low[0])), np.zeros((rows, columns))
    for start, end in zip(corners_42, after_42, strict=True):
        edge = end - start
        sides.append(edge[0] * (y[:, None] - start[1]) - edge[1] * (x[None] - start[0]))
    # Corners may run either way round.
    inside = np.all([side >= 0 for side in sides], axis=0) | np.all([side <= 0 for side in sides], axis=0)
    cover_hw = inside.reshape(rows, _SAMPLES, columns, _SAMPLES).mean((1, 3))
    return (int(low[1]), int(low[0])), cover_hw
