"""Probes: what a frozen vision tower knows, by classifiers on its features.

Every choice (strength of regularisation) is made on the validation split; test images are only scored. Which
labels a seed draws depends on the set and the seed alone, so two backbones are compared on the same ones. Probes are
fitted once, and then score any features: of test images, of corrupted ones, of another sensor.

Shapes: N images, V views, D width, G groups of images, C classes, K object classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitp.core.errors import ConfigError, did_you_mean
from vitp.data.splits import draw_images, label_count
from vitp.evaluation.features import PROBE_TASKS, Features, ProbeData, probe_data
from vitp.evaluation.linear import LinearModel, fit_selected, knn_predict
from vitp.evaluation.outcomes import Counted, Outcomes, Ranked, table_of
from vitp.evaluation.points import POINTS, PointPrompt, fit_threshold
from vitp.evaluation.probe_table import ProbeTable
from vitp.metrics.classification import accuracy, confusion_matrix, macro_f1, mean_average_precision, mean_iou
from vitp.models.vision import VisionTower
from vitp.records.labels import IGNORE, LabelledSet

Classifier = Callable[[Tensor], Tensor]
"""Features (…, D) → logits (…, C); a vote of neighbours: (N, D) → classes (N,)."""

_CHUNK = 64
"""Views that a dense probe is applied to at a time."""


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
        tasks: Names from `PROBE_TASKS`; `auto`: all that the labels allow.
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
    return probe_outcomes(data, tasks=tasks, seeds=seeds, labels_per_seed=labels_per_seed, grouped=False)[0]


def probe_outcomes(
    data: ProbeData,
    *,
    tasks: Sequence[str] | Literal["auto"] = "auto",
    seeds: Sequence[int] = (0, 1, 2),
    labels_per_seed: int | float | None = None,
    points: int = 0,
    grouped: bool = True,
) -> tuple[ProbeTable, list[Outcomes]]:
    """Return the scores of features already made, and what each group of test images added to those of each seed.

    With the latter `vitp.evaluation.outcomes.over_images` tells whether a difference between two backbones is more
    than the choice of the test images.
    """
    fitted = fit_probes(data, tasks=tasks, seeds=seeds, labels_per_seed=labels_per_seed, points=points)
    note = f"{fitted.labels} train, {len(data.val)} val and {len(data.test)} test images; % over {len(seeds)} seeds"
    per_seed = fitted.outcomes(data.test, grouped=grouped)
    return table_of(per_seed, note), per_seed


@dataclass(frozen=True)
class FittedProbes:
    """Classifiers on the features of one frozen backbone.

    Attributes:
        tasks: Names from `PROBE_TASKS`.
        scene_classes: Number of scene classes.
        patch_classes: Number of classes of patches.
        device: Device on which they are applied.
        labels: Number of labelled images of a seed.
        note: What they were fitted on.
        classifiers: Task → classifier, for each draw of labels.
        prompts: Point prompts for each draw, where they were asked for.
    """

    tasks: tuple[str, ...]
    scene_classes: int
    patch_classes: int
    device: torch.device
    labels: int
    note: str
    classifiers: tuple[Mapping[str, Classifier], ...]
    prompts: tuple[PointPrompt, ...] = ()

    def score(self, features: Features) -> ProbeTable:
        """Return the scores of test features: mean and spread over the seeds.

        Raises:
            ConfigError: The labels of these images don't allow a task that was fitted.
        """
        return table_of(self.outcomes(features, grouped=False), self.note)

    def class_maps(self, features: Features, views: Tensor) -> Tensor:
        """Return (V, S, S) uint8: the class of each pixel of some views, by the first draw's probe of patches.

        Raises:
            ConfigError: Patches weren't fitted, or the images have no masks.
        """
        classifier = self.classifiers[0].get("patches linear")
        if classifier is None or features.pixel_labels_VSS is None:
            raise ConfigError("needs masks and a probe of patches", where="class maps", fix="give both")
        logits_VhwC = classifier(features.patches_VhwD[views].to(self.device))
        return _on_pixels(logits_VhwC, features.pixel_labels_VSS).argmax(1).to(torch.uint8).cpu()

    def outcomes(self, features: Features, *, grouped: bool = True) -> list[Outcomes]:
        """Return what each group of the images adds to the scores, for each seed.

        Args:
            features: Features of test images.
            grouped: False: all images are one group, which takes less memory where only the score is wanted.

        Raises:
            ConfigError: The labels of these images don't allow a task that was fitted.
        """
        group_N = features.group_numbers() if grouped else torch.zeros(len(features), dtype=torch.int64)
        all_found: list[Outcomes] = []
        for number, by_task in enumerate(self.classifiers):
            found: dict[tuple[str, str], Counted | Ranked] = {}
            for task, classifier in by_task.items():
                if task == "presence linear":
                    logits_NK = classifier(features.pooled_ND.to(self.device)).cpu().numpy()
                    found[task, "mAP"] = Ranked(logits_NK, features.presence_NK.numpy(), group_N.numpy())
                elif task == "patches linear":
                    patch_GCC, pixel_GCC = self._patch_counts(classifier, features, group_N)
                    found[task, "patch mIoU"] = Counted(patch_GCC, mean_iou)
                    found[task, "patch macro-F1"] = Counted(patch_GCC, macro_f1)
                    found[task, "patch accuracy"] = Counted(patch_GCC, accuracy)
                    if pixel_GCC is not None:
                        found[task, "pixel mIoU"] = Counted(pixel_GCC, mean_iou)
                else:
                    query_MD, target_M = features.known_scenes(self.device)
                    predicted = classifier(query_MD)
                    # Nearest neighbours give classes, linear probes logits.
                    predicted_M = predicted.argmax(1) if predicted.ndim == 2 else predicted
                    counts_GCC = _no_counts(group_N, self.scene_classes)
                    _add_counts(counts_GCC, predicted_M, target_M, group_N[features.scene_N >= 0])
                    found[task, "accuracy"] = Counted(counts_GCC, accuracy)
                    found[task, "macro-F1"] = Counted(counts_GCC, macro_f1)
            if self.prompts:
                found[POINTS, "mask IoU"] = _prompted(self.prompts[number], features, group_N)
            all_found.append(found)
        return all_found

    def _patch_counts(
        self, classifier: Classifier, features: Features, group_N: Tensor
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return (G, C, C) confusion counts of patches and, with masks, of pixels.

        Pixels get the logits of patches, bilinearly enlarged to the size of a view.
        """
        if features.patch_labels_Vhw is None:
            raise ConfigError("has no labels of patches", where="test images", fix="give masks or boxes")
        group_V = group_N[features.view_image_V]
        patch_GCC = _no_counts(group_N, self.patch_classes)
        pixel_GCC = None if features.pixel_labels_VSS is None else patch_GCC.copy()
        for start in range(0, len(features.patches_VhwD), _CHUNK):
            part = slice(start, start + _CHUNK)
            logits_UhwC = classifier(features.patches_VhwD[part].to(self.device))
            patch_target = features.patch_labels_Vhw[part].to(self.device)
            _add_counts(patch_GCC, logits_UhwC.argmax(-1), patch_target, group_V[part])
            if features.pixel_labels_VSS is not None and pixel_GCC is not None:
                target_USS = features.pixel_labels_VSS[part].to(self.device)
                predicted_USS = _on_pixels(logits_UhwC, target_USS).argmax(1)
                _add_counts(pixel_GCC, predicted_USS, target_USS, group_V[part])
        return patch_GCC, pixel_GCC


def _on_pixels(logits_UhwC: Tensor, like_USS: Tensor) -> Tensor:
    """Return (U, C, S, S) logits: those of patches, bilinearly enlarged to the size of the pixels' labels."""
    size = (like_USS.shape[-2], like_USS.shape[-1])
    return F.interpolate(logits_UhwC.permute(0, 3, 1, 2), size, mode="bilinear", align_corners=False)


def _prompted(prompt: PointPrompt, features: Features, group_N: Tensor) -> Counted:
    """Return the mean overlap of point prompts: for each group the sum of overlaps, and how many they are."""
    view_M, overlap_M = prompt.overlaps(features, torch.arange(len(features.patches_VhwD)))
    sums_G12 = np.zeros((int(group_N.max()) + 1, 1, 2))
    group_M = group_N[features.view_image_V[view_M]].numpy()
    # A group has several prompts, of which `+=` would add the last alone.
    np.add.at(sums_G12[:, 0], group_M, np.stack([overlap_M.numpy(), np.ones(len(overlap_M))], axis=1))
    return Counted(
        sums_G12, lambda sums_12: float(sums_12[0, 0] / sums_12[0, 1]) if sums_12[0, 1] else math.nan
    )


def _no_counts(group_N: Tensor, classes: int) -> np.ndarray:
    return np.zeros((int(group_N.max()) + 1, classes, classes), np.int64)


def _add_counts(counts_GCC: np.ndarray, prediction: Tensor, target: Tensor, group_U: Tensor) -> None:
    """Add the confusion counts of some images or views to those of their groups.

    Args:
        counts_GCC: Changed in place.
        prediction, target: (U, …) classes; a target `IGNORE` counts for nothing.
        group_U: Group of each image or view.
    """
    classes = counts_GCC.shape[-1]
    # The groups of this part alone: a table of all groups would be large each time.
    touched, place_U = torch.unique(group_U, return_inverse=True)
    place = place_U.view(-1, *(1,) * (target.ndim - 1)).expand(target.shape).to(target.device)
    known = target != IGNORE
    # Group, true class and guess in one number: `bincount` counts all cells of all groups at once.
    cell = (place[known] * classes + target[known].long()) * classes + prediction[known].long()
    counts = torch.bincount(cell, minlength=len(touched) * classes**2).view(-1, classes, classes)
    counts_GCC[touched.numpy()] += counts.cpu().numpy()


def fit_probes(
    data: ProbeData,
    *,
    tasks: Sequence[str] | Literal["auto"] = "auto",
    seeds: Sequence[int] = (0, 1, 2),
    labels_per_seed: int | float | None = None,
    points: int = 0,
) -> FittedProbes:
    """Return probes fitted on the train images; strengths of regularisation are chosen on the val images.

    Args:
        data: Features of the three splits; of the test images only which labels they have is looked at.
        tasks, seeds, labels_per_seed: See `run_probes`.
        points: Labelled points of an image that point to each class; 0: no point prompts. See
            `vitp.evaluation.points`.

    Raises:
        ConfigError: The labels don't allow a task, or there are too few.
    """
    allowed = data.tasks()
    wanted = allowed if tasks == "auto" else tuple(tasks)
    for task in wanted:
        if task not in allowed:
            hint = f"the labels allow {', '.join(allowed) or 'none'}" if task in PROBE_TASKS else None
            raise ConfigError(
                f'can\'t run "{task}"', where="tasks", fix=hint or did_you_mean(task, PROBE_TASKS)
            )
    if points and "patches linear" not in allowed:
        raise ConfigError("needs masks or boxes", where="point prompts", fix="leave them out")
    if not wanted and not points:
        raise ConfigError("the labels allow no probe", where="probes", fix="label scenes, masks or objects")
    count = label_count(len(data.train), labels_per_seed)
    classifiers, prompts = [], []
    for seed in seeds:
        chosen = draw_images(data.train.scene_N, count, seed)
        if points:
            prompts.append(fit_threshold(data.train, data.train.views_of(chosen), points, seed))
        classifiers.append({task: _fit(data, task, chosen, seed) for task in PROBE_TASKS if task in wanted})
    return FittedProbes(
        wanted,
        scene_classes=data.scene_class_count(),
        patch_classes=len(data.train.patch_classes),
        device=data.device,
        labels=count,
        note=f"{count} train and {len(data.val)} val images, clean; over {len(seeds)} seeds",
        classifiers=tuple(classifiers),
        prompts=tuple(prompts),
    )


def _fit(data: ProbeData, task: str, chosen: Tensor, seed: int) -> Classifier:
    """Return the classifier of a task, fitted on the chosen train images."""
    train, val, device = data.train, data.val, data.device
    if task == "presence linear":
        label_NK = train.presence_NK[chosen].to(device)
        val_ND, val_NK = val.pooled_ND.to(device), val.presence_NK.numpy()

        def precision(model: LinearModel) -> float:
            return mean_average_precision(model(val_ND).cpu().numpy(), val_NK)

        return fit_selected(train.pooled_ND[chosen].to(device), label_NK, label_NK.shape[1], precision)[0]
    if task == "patches linear":
        classes, measure = len(train.patch_classes), mean_iou
        features, labels = train.labelled_patches(train.views_of(chosen), seed, device)
        # The same patches of validation images for every draw.
        val_features, val_labels = val.labelled_patches(torch.arange(len(val.patches_VhwD)), 0, device)
    else:
        classes, measure = data.scene_class_count(), accuracy
        features, labels = train.known_scenes(device, chosen)
        if task == "scene kNN":
            # It has no strength of regularisation that validation images could choose.
            return partial(knn_predict, features, labels, classes=classes)
        val_features, val_labels = val.known_scenes(device)

    def score(model: LinearModel) -> float:
        return measure(confusion_matrix(model(val_features).argmax(-1), val_labels, classes))

    return fit_selected(features, labels, classes, score)[0]
