"""Probes that are fitted once, and then score any features: of test images, of corrupted ones, of another sensor.

Shapes: N images, V views, D width, G groups of images, C classes, K object classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitp.core.errors import ConfigError, did_you_mean
from vitp.data.splits import draw_images, label_count
from vitp.evaluation.features import Features
from vitp.evaluation.linear import LinearModel, fit_selected, knn_predict
from vitp.evaluation.outcomes import Counted, Outcomes, Ranked, table_of
from vitp.evaluation.probe_data import TASKS, ProbeData, known_scenes, labelled_patches, scene_class_count
from vitp.evaluation.probe_table import ProbeTable
from vitp.metrics.classification import accuracy, confusion_matrix, macro_f1, mean_average_precision, mean_iou
from vitp.records.labels import IGNORE

OutcomeDict = dict[tuple[str, str], Counted | Ranked]

_PATCH_METRICS: dict[str, Callable[[np.ndarray], float]] = {
    "patch mIoU": mean_iou,
    "patch macro-F1": macro_f1,
    "patch accuracy": accuracy,
}
_SCENE_METRICS: dict[str, Callable[[np.ndarray], float]] = {"accuracy": accuracy, "macro-F1": macro_f1}


@dataclass(frozen=True)
class _Neighbours:
    """The labelled images that vote."""

    train_ND: Tensor
    label_N: Tensor


@dataclass(frozen=True)
class _SeedProbes:
    """What one draw of labels gave; None where it wasn't asked for."""

    neighbours: _Neighbours | None
    scene: LinearModel | None
    patches: LinearModel | None
    presence: LinearModel | None


@dataclass(frozen=True)
class FittedProbes:
    """Classifiers on the features of one frozen backbone.

    Attributes:
        tasks: Names from `vitp.evaluation.probe_data.TASKS`.
        scene_classes: Number of scene classes.
        patch_classes: Number of classes of patches.
        device: Where they are applied.
        labels: Labelled images of a seed.
        note: What they were fitted on.
    """

    tasks: tuple[str, ...]
    scene_classes: int
    patch_classes: int
    device: torch.device
    labels: int
    note: str
    _seeds: tuple[_SeedProbes, ...]

    def score(self, features: Features) -> ProbeTable:
        """Return the scores of test features: mean and spread over the seeds.

        Raises:
            ConfigError: The labels of these images don't allow a task that was fitted.
        """
        return table_of(self.outcomes(features, grouped=False), self.note)

    def outcomes(self, features: Features, *, grouped: bool = True) -> list[Outcomes]:
        """Return what each group of the images adds to the scores, for each seed.

        Args:
            features: Of test images.
            grouped: False: all images are one group, which takes less memory where only the score is wanted.

        Raises:
            ConfigError: The labels of these images don't allow a task that was fitted.
        """
        group_N = features.group_numbers() if grouped else torch.zeros(len(features), dtype=torch.int64)
        return [self._outcomes(fitted, features, group_N) for fitted in self._seeds]

    def _outcomes(self, fitted: _SeedProbes, features: Features, group_N: Tensor) -> Outcomes:
        found: OutcomeDict = {}
        if fitted.neighbours is not None:
            voters = fitted.neighbours
            found |= self._scene(
                "scene kNN",
                features,
                group_N,
                lambda query_MD: knn_predict(voters.train_ND, voters.label_N, query_MD, self.scene_classes),
            )
        if fitted.scene is not None:
            scene = fitted.scene
            found |= self._scene(
                "scene linear", features, group_N, lambda query_MD: scene(query_MD).argmax(1)
            )
        if fitted.patches is not None:
            found |= self._patches(fitted.patches, features, group_N)
        if fitted.presence is not None:
            logits_NK = fitted.presence(features.pooled_ND.to(self.device)).cpu().numpy()
            found["presence linear", "mAP"] = Ranked(logits_NK, features.presence_NK.numpy(), group_N.numpy())
        return found

    def _scene(
        self, task: str, features: Features, group_N: Tensor, predict: Callable[[Tensor], Tensor]
    ) -> OutcomeDict:
        query_MD, target_M = known_scenes(features, self.device)
        counts = np.zeros((int(group_N.max()) + 1, self.scene_classes, self.scene_classes), np.int64)
        _add_counts(counts, predict(query_MD), target_M, group_N[features.scene_N >= 0])
        return {(task, name): Counted(counts, metric) for name, metric in _SCENE_METRICS.items()}

    def _patches(self, model: LinearModel, features: Features, group_N: Tensor) -> OutcomeDict:
        if features.patch_labels_Vhw is None:
            raise ConfigError("has no labels of patches", where="test images", fix="give masks or boxes")
        patch_GCC, pixel_GCC = segment_counts(model, features, group_N, self.patch_classes, self.device)
        found: OutcomeDict = {
            ("patches linear", name): Counted(patch_GCC, metric) for name, metric in _PATCH_METRICS.items()
        }
        if pixel_GCC is not None:
            found["patches linear", "pixel mIoU"] = Counted(pixel_GCC, mean_iou)
        return found


def _add_counts(counts_GCC: np.ndarray, prediction: Tensor, target: Tensor, group_U: Tensor) -> None:
    """Add the confusion counts of some images or views to those of their groups.

    Args:
        counts_GCC: Changed in place.
        prediction, target: (U, …) classes; a target `IGNORE` counts for nothing.
        group_U: Group of each image or view.
    """
    classes = counts_GCC.shape[-1]
    touched, place_U = group_U.unique(return_inverse=True)
    place = place_U.view(-1, *(1,) * (target.ndim - 1)).expand(target.shape).to(target.device)
    known = target != IGNORE
    cell = (place[known] * classes + target[known].long()) * classes + prediction[known].long()
    counts = torch.bincount(cell, minlength=len(touched) * classes**2).view(-1, classes, classes)
    counts_GCC[touched.numpy()] += counts.cpu().numpy()


def segment_counts(
    model: LinearModel,
    features: Features,
    group_N: Tensor,
    classes: int,
    device: torch.device,
    *,
    chunk: int = 64,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return (G, C, C) confusion counts of patches and, with masks, of pixels.

    Pixels get the logits of patches, bilinearly enlarged to the size of a view.
    """
    assert features.patch_labels_Vhw is not None
    group_V = group_N[features.view_image_V]
    patch_GCC = np.zeros((int(group_N.max()) + 1, classes, classes), np.int64)
    pixel_GCC = None if features.pixel_labels_VSS is None else patch_GCC.copy()
    for start in range(0, len(features.patches_VhwD), chunk):
        part = slice(start, start + chunk)
        logits_UhwC = model(features.patches_VhwD[part].to(device))
        patch_target = features.patch_labels_Vhw[part].to(device)
        _add_counts(patch_GCC, logits_UhwC.argmax(-1), patch_target, group_V[part])
        if features.pixel_labels_VSS is not None and pixel_GCC is not None:
            target_USS = features.pixel_labels_VSS[part].to(device)
            logits_UCSS = F.interpolate(
                logits_UhwC.permute(0, 3, 1, 2), target_USS.shape[-2:], mode="bilinear", align_corners=False
            )
            _add_counts(pixel_GCC, logits_UCSS.argmax(1), target_USS, group_V[part])
    return patch_GCC, pixel_GCC


def fit_probes(
    data: ProbeData,
    *,
    tasks: Sequence[str] | Literal["auto"] = "auto",
    seeds: Sequence[int] = (0, 1, 2),
    labels_per_seed: int | float | None = None,
) -> FittedProbes:
    """Return probes fitted on the train images; strengths of regularisation are chosen on the val images.

    Args:
        data: Features of the three splits; of the test images only which labels they have is looked at.
        tasks, seeds, labels_per_seed: See `vitp.evaluation.probes.run_probes`.

    Raises:
        ConfigError: The labels don't allow a task, or there are too few.
    """
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
    return FittedProbes(
        wanted,
        scene_classes=scene_class_count(data),
        patch_classes=len(data.train.patch_classes),
        device=data.device,
        labels=count,
        note=f"{count} train and {len(data.val)} val images, clean; over {len(seeds)} seeds",
        _seeds=tuple(
            _fit(data, wanted, draw_images(data.train.scene_N, count, seed), seed) for seed in seeds
        ),
    )


def _fit(data: ProbeData, tasks: Sequence[str], chosen: Tensor, seed: int) -> _SeedProbes:
    return _SeedProbes(
        neighbours=_Neighbours(*known_scenes(data.train, data.device, chosen))
        if "scene kNN" in tasks
        else None,
        scene=_fit_scene(data, chosen) if "scene linear" in tasks else None,
        patches=_fit_patches(data, chosen, seed) if "patches linear" in tasks else None,
        presence=_fit_presence(data, chosen) if "presence linear" in tasks else None,
    )


def _fit_scene(data: ProbeData, chosen: Tensor) -> LinearModel:
    classes = scene_class_count(data)
    val_MD, val_M = known_scenes(data.val, data.device)

    def score(model: LinearModel) -> float:
        return accuracy(confusion_matrix(model(val_MD).argmax(1), val_M, classes))

    train_ND, label_N = known_scenes(data.train, data.device, chosen)
    return fit_selected(train_ND, label_N, classes, score)[0]


def _fit_patches(data: ProbeData, chosen: Tensor, seed: int) -> LinearModel:
    classes = len(data.train.patch_classes)
    train_PD, label_P = labelled_patches(data.train, data.train.views_of(chosen), seed)
    val_PD, val_P = labelled_patches(data.val, torch.arange(len(data.val.patches_VhwD)), 0)
    val_PD, val_P = val_PD.to(data.device), val_P.to(data.device)

    def score(model: LinearModel) -> float:
        return mean_iou(confusion_matrix(model(val_PD).argmax(-1), val_P, classes))

    return fit_selected(train_PD.to(data.device), label_P.to(data.device), classes, score)[0]


def _fit_presence(data: ProbeData, chosen: Tensor) -> LinearModel:
    train_NK = data.train.presence_NK[chosen].to(data.device)
    features_ND = data.train.pooled_ND[chosen].to(data.device)
    val_ND, val_NK = data.val.pooled_ND.to(data.device), data.val.presence_NK.numpy()

    def score(model: LinearModel) -> float:
        return mean_average_precision(model(val_ND).cpu().numpy(), val_NK)

    return fit_selected(features_ND, train_NK, train_NK.shape[1], score)[0]
