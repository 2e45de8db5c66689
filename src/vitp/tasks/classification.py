"""Classes of whole images: one for each image, or any number of them.

With a frozen backbone this is linear probing, otherwise full finetuning.

Shapes: B images, D width, h × w cells, K classes, N test images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from vitp.core.config import SettingsModel, Weight, make_config
from vitp.core.errors import ConfigError
from vitp.core.tensors import present
from vitp.data.ignored import UNLABELLED
from vitp.metrics.classification import (
    accuracy,
    average_precision,
    confusion_matrix,
    f1_per_class,
    macro_f1,
    mean_average_precision,
)
from vitp.metrics.intervals import group_numbers, rate_interval
from vitp.metrics.rates import with_rates
from vitp.metrics.results import Prediction, Scores
from vitp.models.backbone import Backbone
from vitp.models.pyramid import pad_to_multiple
from vitp.records.labels import LabelledSet
from vitp.tasks.base import LabelKind, TaskBatch, TaskModel, TestSettings
from vitp.tasks.data import label_reader
from vitp.tasks.losses import binary_focal, focal_factor
from vitp.tasks.predict import predictions_of


class ClassificationSettings(SettingsModel):
    """Head and loss."""

    multi_label: bool = False
    """An image may have several classes or none: which object classes are in it. False: the class of the
    whole image."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the classifier while training."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target that is spread evenly over the classes (single label only)."""

    focal: float = Field(0.0, ge=0, le=10)
    """Exponent γ of focal loss, such as 2: what is right already counts (1 − p)^γ; 0: all count alike."""
    class_balance: float = Field(0.0, ge=0, lt=1)
    """Parameter β of the class-balanced loss, such as 0.999: classes weigh by the effective number of their training
    images; 0: all weigh the same."""
    class_weights: list[Weight] | None = None
    """One positive weight for each class; none: those of `class_balance`."""

    @model_validator(mode="after")
    def _one_weight(self) -> ClassificationSettings:
        if self.focal and self.label_smoothing:
            raise ValueError("focal and label_smoothing pull in opposite directions; leave one of them out")
        return self

    @property
    def labels(self) -> LabelKind:
        """What it learns from."""
        return "presence" if self.multi_label else "scene"


class ClassificationModel(TaskModel):
    """The mean of the backbone's last map, normalised, and a linear classifier.

    Loss: `class`: cross-entropy, mean over images; or binary cross-entropy, mean over images and classes of which is
    known whether the image holds them. The mean is weighted by class where classes have weights.

    Args:
        backbone: Any backbone.
        classes: Names of the classes.
        settings: Head and loss.

    Raises:
        ConfigError: A single-label task with one class, or weights of other classes.
    """

    name: ClassVar[str] = "classification"
    head_settings: ClassVar[type[SettingsModel]] = ClassificationSettings
    needs: ClassVar[Literal["backbone", "maps", "levels"]] = "backbone"

    def __init__(
        self, backbone: Backbone, classes: Sequence[str], settings: ClassificationSettings | None = None
    ) -> None:
        super().__init__(classes)
        self.settings = settings or ClassificationSettings()
        if not self.settings.multi_label and len(self.classes) < 2:
            raise ConfigError(
                f"one class ({self.classes[0]}) can't be told apart from others",
                where="classes",
                fix="choose a set with two or more, or multi_label",
            )
        weights = self.settings.class_weights
        if weights is not None and (len(weights) != len(self.classes) or min(weights) <= 0):
            raise ConfigError(
                f"{len(weights)} class weights for {len(self.classes)} classes",
                where="head.class_weights",
                fix="give one positive weight for each class",
            )
        # Counting happens on the CPU before a batch moves, the loss where the model is.
        self._counting_weights = None if weights is None else torch.tensor(weights)
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", self._counting_weights, persistent=False)
        self.tower = backbone
        width = backbone.channels[-1]
        classify = nn.Linear(width, len(self.classes))
        # Small logits: the first loss is log K whatever the features are.
        nn.init.trunc_normal_(classify.weight, std=0.01)
        nn.init.zeros_(classify.bias)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Dropout(self.settings.dropout), classify)

    @property
    def backbone(self) -> Backbone:
        """The backbone."""
        return self.tower

    @classmethod
    def labels(cls, head: Mapping[str, Any]) -> LabelKind:
        """Return "presence" or "scene"; see `ClassificationSettings.multi_label`."""
        return make_config(ClassificationSettings, dict(head), where="head").labels

    def logits(self, images_BCHW: Tensor, sizes_B2: Tensor) -> Tensor:
        """Return (B, K) logits of uint8 images; what was padded doesn't count."""
        stride = self.tower.strides[-1]
        padded_BCHW = pad_to_multiple(self.tower.normalize(images_BCHW), stride)
        (map_BDhw,) = self.tower.forward_features(padded_BCHW)
        # A cell that the image fills in part counts: its other pixels are zeros after normalisation.
        cells_B2 = (sizes_B2.to(map_BDhw.device) / stride).ceil()
        rows_Bh = torch.arange(map_BDhw.shape[-2], device=map_BDhw.device) < cells_B2[:, :1]
        columns_Bw = torch.arange(map_BDhw.shape[-1], device=map_BDhw.device) < cells_B2[:, 1:]
        inside_B1hw = (rows_Bh[:, :, None] & columns_Bw[:, None, :])[:, None]
        mean_BD = (map_BDhw * inside_B1hw).sum((2, 3)) / inside_B1hw.sum((2, 3))
        logits_BK: Tensor = self.head(mean_BD)
        return logits_BK

    def forward(self, batch: TaskBatch) -> dict[str, Tensor]:
        """Return the summed loss. See `TaskModel.forward`."""
        logits_BK = self.logits(batch.images_BCHW, batch.sizes_B2).float()
        target_BK = torch.stack([present(target.classes_C) for target in batch.targets])
        if self.settings.multi_label:
            known_BK = target_BK != UNLABELLED
            if self.settings.focal:
                loss_BK = binary_focal(logits_BK, target_BK.clamp(min=0), self.settings.focal)
            else:
                loss_BK = F.binary_cross_entropy_with_logits(
                    logits_BK, target_BK.clamp(min=0), reduction="none"
                )
            weight = known_BK if self.class_weights is None else known_BK * self.class_weights
            return {"class": (loss_BK * weight).sum()}
        smoothing = self.settings.label_smoothing
        if self.class_weights is None and not self.settings.focal:
            return {
                "class": F.cross_entropy(logits_BK, target_BK, reduction="sum", label_smoothing=smoothing)
            }
        # Not torch's own weights: with smoothing they would weigh the other classes' shares too, which aren't counted.
        loss_B = F.cross_entropy(logits_BK, target_BK, reduction="none", label_smoothing=smoothing)
        if self.settings.focal:
            loss_B = loss_B * focal_factor(logits_BK, target_BK.argmax(1), self.settings.focal)
        if self.class_weights is not None:
            loss_B = loss_B * self.class_weights[target_BK.argmax(1)]
        return {"class": loss_B.sum()}

    def loss_counts(self, batch: TaskBatch) -> dict[str, float]:
        """Return the number of images, or of known entries of images × classes; weighted where classes have weights."""
        weights_K = self._counting_weights
        if not self.settings.multi_label:
            if weights_K is None:
                return {"class": float(len(batch))}
            of_each = [weights_K[int(present(target.classes_C).argmax())] for target in batch.targets]
            return {"class": float(sum(float(weight) for weight in of_each))}
        known_BK = torch.stack([present(target.classes_C) for target in batch.targets]) != UNLABELLED
        return {"class": float(known_BK.sum() if weights_K is None else (known_BK * weights_K).sum())}

    def predict_batch(self, images_BCHW: Tensor, later_BCHW: Tensor | None) -> list[Prediction]:
        """Return the probability of each class; see `TaskModel.predict_batch`."""
        sizes_B2 = torch.tensor([images_BCHW.shape[-2:]] * len(images_BCHW))
        logits_BK = self.logits(images_BCHW.to(self.device), sizes_B2).float()
        probability_BK = logits_BK.sigmoid() if self.settings.multi_label else logits_BK.softmax(1)
        return [Prediction(probabilities_C=probability_K.clone()) for probability_K in probability_BK.cpu()]

    def evaluate(self, labelled: LabelledSet, settings: TestSettings) -> Scores:
        """Return accuracy and macro-F1, or mAP and macro-F1 at probability ½; see `TaskModel.evaluate`.

        Each class has its sensitivity, specificity and area under the curve with intervals.
        """
        reader = label_reader(self, labelled, self.settings.labels, settings)
        probabilities, truths, groups = [], [], []
        for item, sample, prediction in predictions_of(self, reader, settings):
            probabilities.append(present(prediction.probabilities_C))
            truths.append(present(reader.target(sample).classes_C))
            # A group may be called as an image is.
            groups.append(("group", item.group) if item.group else ("image", item.id))
        probability_NK, truth_NK = torch.stack(probabilities), torch.stack(truths)
        label_NK = np.where(truth_NK == UNLABELLED, -1, truth_NK > 0.5)
        if self.settings.multi_label:
            scores = multi_label_scores(probability_NK.numpy(), truth_NK.numpy(), self.classes)
            guess_NK = (probability_NK > 0.5).numpy()
        else:
            scores = single_label_scores(probability_NK, truth_NK.argmax(1), self.classes)
            guess_NK = F.one_hot(probability_NK.argmax(1), len(self.classes)).bool().numpy()
            right_N = (probability_NK.argmax(1) == truth_NK.argmax(1)).numpy()
            accurate = rate_interval(right_N, group_numbers(groups))
            scores = replace(scores, value_intervals={"accuracy": accurate})
        return with_rates(scores, self.classes, probability_NK.numpy(), guess_NK, label_NK, groups)


def single_label_scores(probability_NK: Tensor, truth_N: Tensor, classes: Sequence[str]) -> Scores:
    """Return accuracy, macro-F1 and the accuracy of the first five where there are more than five classes."""
    confusion_KK = confusion_matrix(probability_NK.argmax(1), truth_N, len(classes), ignore=-1)
    f1_K, images_K = f1_per_class(confusion_KK), confusion_KK.sum(1)
    values = {"accuracy": accuracy(confusion_KK), "macro_f1": macro_f1(confusion_KK)}
    if len(classes) > 5:
        hit_N = (probability_NK.topk(5, dim=1).indices == truth_N[:, None]).any(1)
        values["accuracy_top5"] = float(hit_N.float().mean())
    recall_K = [
        hit / count if count else math.nan for hit, count in zip(np.diag(confusion_KK), images_K, strict=True)
    ]
    rows = {
        name: {"f1": float(f1_K[k]), "recall": float(recall_K[k]), "images": float(images_K[k])}
        for k, name in enumerate(classes)
    }
    return Scores("accuracy", values, rows, images=len(truth_N))


def multi_label_scores(probability_NK: np.ndarray, truth_NK: np.ndarray, classes: Sequence[str]) -> Scores:
    """Return mAP, and macro-F1 of the classes that occur with everything above 0.5 taken as a yes.

    Args:
        probability_NK: On 0..1.
        truth_NK: 1 yes, 0 no, −1 unknown: such entries count for nothing.
        classes: K names.
    """
    known_NK, truth = truth_NK >= 0, truth_NK > 0.5
    guess_NK = (probability_NK > 0.5) & known_NK
    hit_K = (guess_NK & truth).sum(0)
    whole_K = guess_NK.sum(0) + truth.sum(0)
    f1_K = np.divide(2 * hit_K, whole_K, out=np.full(len(classes), np.nan), where=whole_K > 0)
    occurring = f1_K[truth.any(0)]
    values = {
        "map": mean_average_precision(probability_NK, truth_NK.astype(np.int8)),
        "macro_f1": float(occurring.mean()) if occurring.size else math.nan,
    }
    rows = {
        name: {
            "ap": average_precision(probability_NK[known_NK[:, k], k], truth[known_NK[:, k], k]),
            "f1": float(f1_K[k]),
            "images": float(truth[:, k].sum()),
        }
        for k, name in enumerate(classes)
    }
    return Scores("map", values, rows, images=len(truth_NK))
