"""Losses of classes: of pixels and of whole images. Each returns a sum, which the engine divides.

Shapes: B images, K classes, H × W pixels; `…` any shape.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from vitp.records.labels import IGNORE


def focal_factor(logits_BK: Tensor, target_B: Tensor, gamma: float) -> Tensor:
    """Return (1 − p)^γ of each element, p the probability of its class: what focal loss multiplies a cross-entropy by.

    Focal loss: arXiv 1708.02002, equation 4, with softmax in place of the sigmoid.

    Args:
        logits_BK: (B, K, …).
        target_B: (B, …) classes; those out of range (ignored) get some factor.
        gamma: 0: all factors are 1.
    """
    known_B = target_B.clamp(max=logits_BK.shape[1] - 1)
    log_p_B = logits_BK.log_softmax(1).gather(1, known_B[:, None]).squeeze(1)
    # −expm1 keeps what is left of 1 − p where p is close to 1, and its gradient finite.
    return (-torch.expm1(log_p_B)).clamp(min=1e-12) ** gamma


def binary_focal(logits_BK: Tensor, target_BK: Tensor, gamma: float) -> Tensor:
    """Return (B, K) focal losses of classes that each are there or not; gamma 0: the binary cross-entropy."""
    losses_BK: Tensor = sigmoid_focal_loss(logits_BK, target_BK, alpha=-1, gamma=gamma, reduction="none")
    return losses_BK


def balanced_weights(counts: Sequence[float], beta: float) -> list[float]:
    """Return the weight of each class by the effective number of its samples: (1 − β) / (1 − βⁿ), with a mean of 1.

    Class-balanced loss: arXiv 1901.05555, equation 12. A class without a sample gets the weight of one sample.

    Args:
        counts: Samples of each class.
        beta: 0: all weights are 1; towards 1: the inverse of the count.
    """
    raw = [(1 - beta) / (1 - beta ** max(count, 1.0)) for count in counts]
    mean = sum(raw) / len(raw)
    return [weight / mean for weight in raw]


def dice_loss(logits_BKHW: Tensor, target_BHW: Tensor) -> Tensor:
    """Return Σ over images of 1 − the mean soft Dice of the classes that the image's labels hold.

    Dice of class k is 2 Σ p t / (Σ p + Σ t) over labelled pixels. Classes that an image lacks are left out: they
    would be right at any probability above 0 (cross-entropy teaches their absence). Images without a labelled
    pixel give 0.
    """
    shared_BK, guess_BK, truth_BK = _sums(logits_BKHW, target_BHW)
    dice_BK = 2 * shared_BK / (guess_BK + truth_BK).clamp(min=1e-6)
    return _lacking(dice_BK, truth_BK)


def tversky_loss(logits_BKHW: Tensor, target_BHW: Tensor, alpha: float, beta: float) -> Tensor:
    """Return Σ over images of 1 − the mean Tversky index of the classes that the image's labels hold.

    The index of class k is TP / (TP + α FP + β FN), of probabilities over labelled pixels (arXiv 1706.05721, equation
    3); with α = β = ½ it is soft Dice. Classes and images are counted as in `dice_loss`.
    """
    shared_BK, guess_BK, truth_BK = _sums(logits_BKHW, target_BHW)
    false_BK, missed_BK = guess_BK - shared_BK, truth_BK - shared_BK
    index_BK = shared_BK / (shared_BK + alpha * false_BK + beta * missed_BK).clamp(min=1e-6)
    return _lacking(index_BK, truth_BK)


def _sums(logits_BKHW: Tensor, target_BHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return Σ p t, Σ p and Σ t of probabilities and one-hot truth, (B, K), over pixels with a label."""
    known_B1HW = (target_BHW != IGNORE)[:, None]
    # `one_hot` takes numbers of classes alone.
    truth_BHW = target_BHW.masked_fill(~known_B1HW[:, 0], 0)
    truth_BKHW = F.one_hot(truth_BHW, logits_BKHW.shape[1]).permute(0, 3, 1, 2) * known_B1HW
    guess_BKHW = logits_BKHW.softmax(1) * known_B1HW
    return (guess_BKHW * truth_BKHW).sum((2, 3)), guess_BKHW.sum((2, 3)), truth_BKHW.sum((2, 3))


def _lacking(overlap_BK: Tensor, truth_BK: Tensor) -> Tensor:
    """Return Σ over images of 1 − the mean overlap of the classes that are there."""
    there_BK = truth_BK > 0
    loss_B = ((1 - overlap_BK) * there_BK).sum(1) / there_BK.sum(1).clamp(min=1)
    return loss_B.sum()
