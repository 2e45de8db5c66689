"""Probes: what a frozen vision tower knows, by classifiers on its features.

Every choice (strength of regularisation) is made on the validation split; test images are only scored. Which
labels a seed draws depends on the set and the seed alone, so two backbones are compared on the same ones.

Shapes: N images, V views, h × w patches, P fitted patches, D width, C classes, K object classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitp.data.labels import IGNORE, LabelledSet
from vitp.errors import ConfigError, did_you_mean
from vitp.evaluation.features import Features, extract
from vitp.evaluation.linear import LinearModel, fit_selected, knn_predict
from vitp.evaluation.metrics import accuracy, confusion_matrix, macro_f1, mean_average_precision, mean_iou
from vitp.evaluation.probe_table import ProbeTable, collect
from vitp.models.vision import VisionTower

TASKS = ("scene kNN", "scene linear", "patches linear", "presence linear")
SPLITS = ("train", "val", "test")
MAX_PATCHES = 30_000
"""Patches that a dense probe is fitted on: more change little and take long."""

Scores = dict[tuple[str, str], float]


@dataclass(frozen=True)
class ProbeData:
    """Features of the three splits, with the tower's device to fit on."""

    train: Features
    val: Features
    test: Features
    device: torch.device

    def tasks(self) -> tuple[str, ...]:
        """Return the probes that the labels allow."""
        found = []
        if len(self.train.scene_N[self.train.scene_N >= 0].unique()) > 1 and bool(
            (self.test.scene_N >= 0).any()
        ):
            found += ["scene kNN", "scene linear"]
        if self.train.patch_labels_Vhw is not None and len(_classes_in(self.train.patch_labels_Vhw)) > 1:
            found.append("patches linear")
        if bool((self.train.presence_NK == 1).any()) and bool((self.test.presence_NK == 1).any()):
            found.append("presence linear")
        return tuple(found)


def _classes_in(labels: Tensor) -> Tensor:
    return labels[labels != IGNORE].unique()


def probe_data(
    tower: VisionTower,
    labelled_set: LabelledSet | Mapping[str, LabelledSet],
    *,
    view: Literal["whole", "tiles"] = "whole",
    batch_size: int = 32,
    max_images: int | Mapping[str, int] = 2000,
) -> ProbeData:
    """Run the tower over the splits of a set.

    Args:
        tower: The frozen vision tower.
        labelled_set: A set with `train` and `test` items (and `val`, else a fifth of the training groups is
            held out for it), or one set for each split.
        view: See `features.extract`.
        batch_size: Views a forward pass.
        max_images: Images of each split (or of each one by name) at most: a fixed random subset, the same
            for every backbone.

    Raises:
        ConfigError: A split has no images.
    """
    splits = splits_of(labelled_set)
    features = {}
    for name, images in splits.items():
        most = max_images if isinstance(max_images, int) else max_images[name]
        features[name] = extract(tower, subset(images, most), view=view, batch_size=batch_size)
    return ProbeData(**features, device=next(tower.parameters()).device)


def subset(images: LabelledSet, count: int) -> LabelledSet:
    """Return `count` random images of a set, always the same ones, or all when there are no more."""
    if len(images) <= count:
        return images
    chosen = np.sort(np.random.default_rng(0).permutation(len(images))[:count])
    return replace(images, items=[images.items[int(index)] for index in chosen])


def splits_of(labelled_set: LabelledSet | Mapping[str, LabelledSet]) -> dict[str, LabelledSet]:
    """Return train, val and test; without val images a fifth of the training groups is held out for it.

    Raises:
        ConfigError: There are no train or no test images.
    """
    if isinstance(labelled_set, LabelledSet):
        items: dict[str, list] = {name: [] for name in SPLITS}
        for index in range(len(labelled_set)):
            item = labelled_set.items[index]
            if item.split in items:
                items[item.split].append(item)
        found = {name: replace(labelled_set, items=items[name]) for name in SPLITS}
    else:
        found = {name: labelled_set[name] for name in SPLITS if name in labelled_set}
    for name in ("train", "test"):
        if name not in found or not len(found[name]):
            raise ConfigError(f"there are no {name} images", where="probes", fix=f"label some as {name}")
    if "val" not in found or not len(found["val"]):
        found["train"], found["val"] = _hold_out(found["train"])
    return {name: found[name] for name in SPLITS}


def development_splits(labelled_set: LabelledSet | Mapping[str, LabelledSet]) -> dict[str, LabelledSet]:
    """Return splits for scores that settings may be chosen by: the test images are left alone.

    `test` holds the validation images; what the probes choose for themselves, they choose on a fifth of the
    training groups.

    Raises:
        ConfigError: There are no train or no test images.
    """
    splits = splits_of(labelled_set)
    train, held = _hold_out(splits["train"])
    return {"train": train, "val": held, "test": splits["val"]}


def _hold_out(train: LabelledSet, share: float = 0.2) -> tuple[LabelledSet, LabelledSet]:
    """Split a fifth of the groups off; images of one group stay together."""
    items = [train.items[index] for index in range(len(train))]
    groups = sorted({item.group or item.id for item in items})
    if len(groups) < 2:
        raise ConfigError(
            "there are no val images, and one group of train images can't be split",
            where="probes",
            fix="label some as val",
        )
    order = np.random.default_rng(0).permutation(len(groups))
    held = {groups[index] for index in order[: max(1, round(share * len(groups)))]}
    return (
        replace(train, items=[item for item in items if (item.group or item.id) not in held]),
        replace(train, items=[item for item in items if (item.group or item.id) in held]),
    )


def run_probes(
    tower: VisionTower,
    labelled_set: LabelledSet | Mapping[str, LabelledSet],
    *,
    tasks: Sequence[str] | Literal["auto"] = "auto",
    seeds: Sequence[int] = (0, 1, 2),
    labels_per_seed: int | float | None = None,
    view: Literal["whole", "tiles"] = "whole",
    max_images: int | Mapping[str, int] = 2000,
    device: torch.device | str | None = None,
) -> ProbeTable:
    """Return the scores of a frozen tower on a set: mean and spread over seeds.

    Args:
        tower: The vision tower. It is moved to `device` and left in its mode.
        labelled_set: See `probe_data`.
        tasks: Names from `TASKS`; `auto`: all that the labels allow.
        seeds: Each draws its own training images and patches.
        labels_per_seed: Training images of a seed: a number, a share (0..1), or None for all of them.
        view: See `features.extract`.
        max_images: Images of a split (or of each one by name) at most.
        device: None: where the tower is.

    Raises:
        ConfigError: A split is empty, or the labels don't allow a task.
    """
    if device is not None:
        tower.to(device)
    data = probe_data(tower, labelled_set, view=view, max_images=max_images)
    return probe_features(data, tasks=tasks, seeds=seeds, labels_per_seed=labels_per_seed)


def probe_features(
    data: ProbeData,
    *,
    tasks: Sequence[str] | Literal["auto"] = "auto",
    seeds: Sequence[int] = (0, 1, 2),
    labels_per_seed: int | float | None = None,
) -> ProbeTable:
    """Return the scores of features already made; see `run_probes`."""
    allowed = data.tasks()
    wanted = allowed if tasks == "auto" else tuple(tasks)
    for task in wanted:
        if task not in allowed:
            hint = (
                did_you_mean(task, TASKS)
                if task not in TASKS
                else f"the labels allow {', '.join(allowed) or 'none'}"
            )
            raise ConfigError(f'can\'t run "{task}"', where="tasks", fix=hint)
    if not wanted:
        raise ConfigError("the labels allow no probe", where="probes", fix="label scenes, masks or objects")
    count = label_count(len(data.train), labels_per_seed)
    per_seed = [_probe_seed(data, wanted, seed, count) for seed in seeds]
    note = f"{count} train, {len(data.val)} val and {len(data.test)} test images; % over {len(seeds)} seeds"
    return collect(per_seed, note)


def label_count(available: int, labels: int | float | None) -> int:
    """Return how many images `labels` (a number, a share, None for all) means.

    Raises:
        ConfigError: There are not as many, or fewer than two.
    """
    count = (
        available if labels is None else round(labels * available) if isinstance(labels, float) else labels
    )
    if not 2 <= count <= available:
        raise ConfigError(
            f"{labels} labels asked for, {available} train images there",
            where="labels_per_seed",
            fix="choose 2 or more",
        )
    return count


def draw(scene_N: Tensor, count: int, seed: int) -> Tensor:
    """Return `count` random image numbers, in turn from each scene class where there are some; sorted."""
    order = np.random.default_rng([seed, len(scene_N)]).permutation(len(scene_N))
    rank = np.zeros(len(scene_N), int)
    seen: dict[int, int] = {}
    for index in order:
        scene = int(scene_N[index])
        rank[index] = seen[scene] = seen.get(scene, -1) + 1
    if bool((scene_N >= 0).any()):
        order = order[np.argsort(rank[order], kind="stable")]
    return torch.from_numpy(np.sort(order[:count]))


def _probe_seed(data: ProbeData, tasks: Sequence[str], seed: int, count: int) -> Scores:
    chosen = draw(data.train.scene_N, count, seed)
    scores: Scores = {}
    if "scene kNN" in tasks:
        scores |= scene_knn(data, chosen)
    if "scene linear" in tasks:
        scores |= scene_linear(data, chosen)
    if "patches linear" in tasks:
        scores |= patches_linear(data, chosen, seed)
    if "presence linear" in tasks:
        scores |= presence_linear(data, chosen)
    return scores


def known_scenes(
    features: Features, device: torch.device, chosen: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return pooled features and classes of the images whose scene is known."""
    known = features.scene_N >= 0
    if chosen is not None:
        known &= torch.isin(torch.arange(len(known)), chosen)
    return features.pooled_ND[known].to(device), features.scene_N[known].to(device)


def scene_knn(data: ProbeData, chosen: Tensor) -> Scores:
    """Return accuracy and macro-F1 of 20 nearest neighbours among the chosen train images."""
    train_ND, label_N = known_scenes(data.train, data.device, chosen)
    test_MD, target_M = known_scenes(data.test, data.device)
    classes = scene_class_count(data)
    found = confusion_matrix(knn_predict(train_ND, label_N, test_MD, classes), target_M, classes)
    return {("scene kNN", "accuracy"): accuracy(found), ("scene kNN", "macro-F1"): macro_f1(found)}


def scene_class_count(data: ProbeData) -> int:
    """Return the number of scene classes over all splits."""
    return int(max(part.scene_N.max() for part in (data.train, data.val, data.test))) + 1


def scene_linear(data: ProbeData, chosen: Tensor) -> Scores:
    """Return accuracy and macro-F1 of logistic regression on pooled features."""
    train_ND, label_N = known_scenes(data.train, data.device, chosen)
    classes = scene_class_count(data)

    def confusion(model: LinearModel, part: Features) -> np.ndarray:
        features_MD, target_M = known_scenes(part, data.device)
        return confusion_matrix(model(features_MD).argmax(1), target_M, classes)

    model, _ = fit_selected(train_ND, label_N, classes, lambda model: accuracy(confusion(model, data.val)))
    found = confusion(model, data.test)
    return {("scene linear", "accuracy"): accuracy(found), ("scene linear", "macro-F1"): macro_f1(found)}


def presence_linear(data: ProbeData, chosen: Tensor) -> Scores:
    """Return mean average precision of K binary logistic regressions on pooled features."""
    train_NK = data.train.presence_NK[chosen].to(data.device)

    def score(model: LinearModel, part: Features) -> float:
        logits_MK = model(part.pooled_ND.to(data.device))
        return mean_average_precision(logits_MK.cpu().numpy(), part.presence_NK.numpy())

    model, _ = fit_selected(
        data.train.pooled_ND[chosen].to(data.device),
        train_NK,
        train_NK.shape[1],
        lambda model: score(model, data.val),
    )
    return {("presence linear", "mAP"): score(model, data.test)}


def patches_linear(data: ProbeData, chosen: Tensor, seed: int) -> Scores:
    """Return patch mIoU, macro-F1 and accuracy of logistic regression on patch features, and pixel mIoU.

    The pixel mIoU compares bilinearly enlarged logits with the mask at the size of a view; it is there for
    sets with masks.
    """
    classes = len(data.train.patch_classes)
    train_PD, label_P = labelled_patches(data.train, data.train.views_of(chosen), seed)
    val_PD, val_P = labelled_patches(data.val, torch.arange(len(data.val.patches_VhwD)), 0)
    val_PD, val_P = val_PD.to(data.device), val_P.to(data.device)

    def score(model: LinearModel) -> float:
        return mean_iou(confusion_matrix(model(val_PD).argmax(-1), val_P, classes))

    model, _ = fit_selected(train_PD.to(data.device), label_P.to(data.device), classes, score)
    patch_CC, pixel_CC = segment_confusion(model, data.test, classes, data.device)
    scores = {
        ("patches linear", "patch mIoU"): mean_iou(patch_CC),
        ("patches linear", "patch macro-F1"): macro_f1(patch_CC),
        ("patches linear", "patch accuracy"): accuracy(patch_CC),
    }
    if pixel_CC is not None:
        scores["patches linear", "pixel mIoU"] = mean_iou(pixel_CC)
    return scores


def labelled_patches(features: Features, views: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return features and classes of at most `MAX_PATCHES` labelled patches of the views."""
    assert features.patch_labels_Vhw is not None
    label_P = features.patch_labels_Vhw[views].flatten()
    known = (label_P != IGNORE).nonzero().flatten()
    if not len(known):
        raise ConfigError(
            "no patch is labelled", where="probes", fix="give masks with classes or a smaller min_share"
        )
    if len(known) > MAX_PATCHES:
        order = np.random.default_rng([seed, len(known)]).permutation(len(known))[:MAX_PATCHES]
        known = known[torch.from_numpy(np.sort(order))]
    _, rows, columns, width = features.patches_VhwD.shape
    cells = rows * columns
    flat = features.patches_VhwD.view(-1, width)
    return flat[views[known // cells] * cells + known % cells].float(), label_P[known]


def segment_confusion(
    model: LinearModel, features: Features, classes: int, device: torch.device, *, chunk: int = 64
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the confusion matrices of patches and, with masks, of pixels over all views."""
    assert features.patch_labels_Vhw is not None
    patch_CC = np.zeros((classes, classes), np.int64)
    pixel_CC = None if features.pixel_labels_VSS is None else patch_CC.copy()
    for start in range(0, len(features.patches_VhwD), chunk):
        part = slice(start, start + chunk)
        logits_VhwC = model(features.patches_VhwD[part].to(device))
        patch_CC += confusion_matrix(
            logits_VhwC.argmax(-1), features.patch_labels_Vhw[part].to(device), classes
        )
        if features.pixel_labels_VSS is not None and pixel_CC is not None:
            target_VSS = features.pixel_labels_VSS[part].to(device)
            logits_VCSS = F.interpolate(
                logits_VhwC.permute(0, 3, 1, 2), target_VSS.shape[-2:], mode="bilinear", align_corners=False
            )
            pixel_CC += confusion_matrix(logits_VCSS.argmax(1), target_VSS, classes)
    return patch_CC, pixel_CC
