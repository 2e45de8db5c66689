"""Classifiers on frozen features: nearest neighbours and logistic regression.

Shapes: N samples, M queries, D width, C classes, K labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

L2_CHOICES = (1e-1, 1e-2, 1e-3, 1e-4)
"""Strengths of regularisation that the validation split chooses from, strong ones first."""


def knn_predict(
    train_ND: Tensor,
    label_N: Tensor,
    query_MD: Tensor,
    classes: int,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> Tensor:
    """Return (M,) classes by a vote of the k nearest neighbours in cosine similarity s, weighted exp(s / T).

    The protocol of DINO (Caron et al. 2021) and Wu et al. 2018.
    """
    similarity_MN = F.normalize(query_MD.float(), dim=1) @ F.normalize(train_ND.float(), dim=1).T
    near_Mk, index_Mk = similarity_MN.topk(min(k, len(train_ND)), dim=1)
    # Only differences of similarities matter; the largest one is taken off to stay in range.
    weight_Mk = ((near_Mk - near_Mk[:, :1]) / temperature).exp()
    votes_MC = torch.zeros(len(query_MD), classes, device=weight_Mk.device)
    votes_MC.scatter_add_(1, label_N.long()[index_Mk], weight_Mk)
    return votes_MC.argmax(1)


@dataclass(frozen=True)
class LinearModel:
    """An affine map of raw features to logits; the standardisation is folded in.

    Attributes:
        weight_DC, bias_C: Of the map.
    """

    weight_DC: Tensor
    bias_C: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Return logits (…, C) of features (…, D)."""
        return features.float() @ self.weight_DC + self.bias_C


def fit_logistic(
    features_ND: Tensor,
    target: Tensor,
    classes: int,
    l2: float,
    *,
    start: Tensor | None = None,
    max_iter: int = 60,
) -> tuple[LinearModel, Tensor]:
    """Fit logistic regression on standardised features with L-BFGS from zero (or `start`).

    Minimises mean cross-entropy + l2/2 · ‖W‖² (the bias is free). The problem is convex: the start decides
    how fast it is solved, not the solution.

    Args:
        features_ND: Features.
        target: Classes (N,) for a multinomial model, or labels (N, K) 1 / 0 / -1 for K binary ones, where -1
            counts for nothing.
        classes: C or K.
        l2: Strength of the regularisation, positive.
        start: Parameters (D + 1, C) of an earlier fit on the same features.
        max_iter: Iterations at most.

    Returns:
        The model on raw features, and the parameters to start the next fit from.
    """
    features_ND = features_ND.float()
    mean_D, std_D = features_ND.mean(0), features_ND.std(0, unbiased=False).clamp(min=1e-6)
    x_ND = (features_ND - mean_D) / std_D
    width = x_ND.shape[1]
    beginning = torch.zeros(width + 1, classes, device=x_ND.device) if start is None else start.clone()
    # Callers may have switched gradients off.
    with torch.enable_grad():
        theta = beginning.requires_grad_()
        optimizer: Any = torch.optim.LBFGS(
            [theta], max_iter=max_iter, history_size=10, line_search_fn="strong_wolfe", tolerance_grad=1e-5
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            logits_NC = torch.addmm(theta[width], x_ND, theta[:width])
            if target.ndim == 1:
                loss = F.cross_entropy(logits_NC, target.long())
            else:
                known_NK = target >= 0
                loss_NK = F.binary_cross_entropy_with_logits(
                    logits_NC, target.clamp(min=0).float(), reduction="none"
                )
                loss = (loss_NK * known_NK).sum() / known_NK.sum().clamp(min=1)
            loss = loss + l2 / 2 * theta[:width].square().sum()
            torch.autograd.backward(loss)
            return loss

        optimizer.step(closure)
    theta = theta.detach()
    # The scaling goes into the weights: the model takes features as they are.
    weight_DC = theta[:width] / std_D[:, None]
    return LinearModel(weight_DC, theta[width] - mean_D @ weight_DC), theta


def fit_selected(
    features_ND: Tensor,
    target: Tensor,
    classes: int,
    score: Callable[[LinearModel], float],
    *,
    choices: Sequence[float] = L2_CHOICES,
) -> tuple[LinearModel, float]:
    """Fit with each strength of regularisation and return the model with the best score, and its strength.

    Args:
        features_ND, target, classes: See `fit_logistic`.
        score: Returns the score of a model on the *validation* split; higher is better. A NaN loses.
        choices: Strengths, strong ones first: each fit starts where the one before ended.
    """
    best: tuple[float, LinearModel, float] | None = None
    start: Tensor | None = None
    for l2 in choices:
        # Each fit begins where the one with the next stronger regularisation ended, close to its own solution.
        model, start = fit_logistic(features_ND, target, classes, l2, start=start)
        value = score(model)
        # A score of NaN, which is unlike itself, gives way to any other.
        if best is None or value > best[0] or best[0] != best[0]:
            best = (value, model, l2)
    assert best is not None
    return best[1], best[2]
