"""Probes that are fitted once, on clean images, and then score any features: of corrupted images, of another sensor.

The same draws, fits and choices as `vitp.evaluation.probes`; on the clean test images the scores are the same.

Shapes: N images, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vitp.errors import ConfigError
from vitp.evaluation import probes
from vitp.evaluation.features import Features
from vitp.evaluation.linear import LinearModel, fit_selected, knn_predict
from vitp.evaluation.metrics import accuracy, confusion_matrix, macro_f1, mean_average_precision, mean_iou
from vitp.evaluation.probe_table import ProbeTable, collect
from vitp.evaluation.probes import ProbeData, draw, label_count


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
        tasks: Names from `vitp.evaluation.probes.TASKS`.
        scene_classes: Number of scene classes.
        patch_classes: Number of classes of patches.
        device: Where they are applied.
        note: What they were fitted on.
    """

    tasks: tuple[str, ...]
    scene_classes: int
    patch_classes: int
    device: torch.device
    note: str
    _seeds: tuple[_SeedProbes, ...]

    def score(self, features: Features) -> ProbeTable:
        """Return the scores of test features: mean and spread over the seeds.

        Raises:
            ConfigError: The labels of these images don't allow a task that was fitted.
        """
        return collect([self._score(fitted, features) for fitted in self._seeds], self.note)

    def _score(self, fitted: _SeedProbes, features: Features) -> probes.Scores:
        scores: probes.Scores = {}
        if fitted.neighbours is not None:
            query_MD, target_M = probes.known_scenes(features, self.device)
            found_M = knn_predict(
                fitted.neighbours.train_ND, fitted.neighbours.label_N, query_MD, self.scene_classes
            )
            scores |= _scene_scores("scene kNN", found_M, target_M, self.scene_classes)
        if fitted.scene is not None:
            query_MD, target_M = probes.known_scenes(features, self.device)
            found_M = fitted.scene(query_MD).argmax(1)
            scores |= _scene_scores("scene linear", found_M, target_M, self.scene_classes)
        if fitted.patches is not None:
            scores |= self._patch_scores(fitted.patches, features)
        if fitted.presence is not None:
            scores["presence linear", "mAP"] = _presence_score(fitted.presence, features, self.device)
        return scores

    def _patch_scores(self, model: LinearModel, features: Features) -> probes.Scores:
        if features.patch_labels_Vhw is None:
            raise ConfigError("has no labels of patches", where="test images", fix="give masks or boxes")
        patch_CC, pixel_CC = probes.segment_confusion(model, features, self.patch_classes, self.device)
        scores = {
            ("patches linear", "patch mIoU"): mean_iou(patch_CC),
            ("patches linear", "patch macro-F1"): macro_f1(patch_CC),
            ("patches linear", "patch accuracy"): accuracy(patch_CC),
        }
        if pixel_CC is not None:
            scores["patches linear", "pixel mIoU"] = mean_iou(pixel_CC)
        return scores


def _scene_scores(task: str, found_M: Tensor, target_M: Tensor, classes: int) -> probes.Scores:
    confusion_CC = confusion_matrix(found_M, target_M, classes)
    return {(task, "accuracy"): accuracy(confusion_CC), (task, "macro-F1"): macro_f1(confusion_CC)}


def _presence_score(model: LinearModel, features: Features, device: torch.device) -> float:
    logits_MK = model(features.pooled_ND.to(device))
    return mean_average_precision(logits_MK.cpu().numpy(), features.presence_NK.numpy())


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
    if not wanted or not set(wanted) <= set(allowed):
        raise ConfigError(
            f"can't run {', '.join(wanted) or 'any probe'}",
            where="probes",
            fix=f"the labels allow {', '.join(allowed) or 'none'}",
        )
    count = label_count(len(data.train), labels_per_seed)
    return FittedProbes(
        wanted,
        scene_classes=probes.scene_class_count(data),
        patch_classes=len(data.train.patch_classes),
        device=data.device,
        note=f"{count} train and {len(data.val)} val images, clean; over {len(seeds)} seeds",
        _seeds=tuple(_fit(data, wanted, draw(data.train.scene_N, count, seed), seed) for seed in seeds),
    )


def _fit(data: ProbeData, tasks: Sequence[str], chosen: Tensor, seed: int) -> _SeedProbes:
    return _SeedProbes(
        neighbours=_Neighbours(*probes.known_scenes(data.train, data.device, chosen))
        if "scene kNN" in tasks
        else None,
        scene=_fit_scene(data, chosen) if "scene linear" in tasks else None,
        patches=_fit_patches(data, chosen, seed) if "patches linear" in tasks else None,
        presence=_fit_presence(data, chosen) if "presence linear" in tasks else None,
    )


def _fit_scene(data: ProbeData, chosen: Tensor) -> LinearModel:
    classes = probes.scene_class_count(data)
    val_MD, val_M = probes.known_scenes(data.val, data.device)

    def score(model: LinearModel) -> float:
        return accuracy(confusion_matrix(model(val_MD).argmax(1), val_M, classes))

    train_ND, label_N = probes.known_scenes(data.train, data.device, chosen)
    return fit_selected(train_ND, label_N, classes, score)[0]


def _fit_patches(data: ProbeData, chosen: Tensor, seed: int) -> LinearModel:
    classes = len(data.train.patch_classes)
    train_PD, label_P = probes.labelled_patches(data.train, data.train.views_of(chosen), seed)
    val_PD, val_P = probes.labelled_patches(data.val, torch.arange(len(data.val.patches_VhwD)), 0)
    val_PD, val_P = val_PD.to(data.device), val_P.to(data.device)

    def score(model: LinearModel) -> float:
        return mean_iou(confusion_matrix(model(val_PD).argmax(-1), val_P, classes))

    return fit_selected(train_PD.to(data.device), label_P.to(data.device), classes, score)[0]


def _fit_presence(data: ProbeData, chosen: Tensor) -> LinearModel:
    train_NK = data.train.presence_NK[chosen].to(data.device)
    features_ND = data.train.pooled_ND[chosen].to(data.device)

    def score(model: LinearModel) -> float:
        return _presence_score(model, data.val, data.device)

    return fit_selected(features_ND, train_NK, train_NK.shape[1], score)[0]
