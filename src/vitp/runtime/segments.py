"""Masks of queries as one panoptic map: each pixel belongs to one segment at most, as in Mask2Former.

Shapes: Q queries, C classes, S segments, H × W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from vitp.runtime.contract import GraphContract
from vitp.runtime.objects import GraphObjects
from vitp.runtime.pixels import resized_maps


@dataclass(frozen=True)
class Segments:
    """The segments of an image, by falling score; no two of them share a pixel.

    Attributes:
        masks_SHW: bool.
        labels_S: int64 class.
        scores_S: float32 probability of the class, on 0..1; of stuff that of its surest query.
    """

    masks_SHW: np.ndarray
    labels_S: np.ndarray
    scores_S: np.ndarray


def merged_segments(
    classes_QC: np.ndarray,
    mask_of: Callable[[int], np.ndarray],
    size: tuple[int, int],
    *,
    things: Collection[int],
    least_score: float,
    least_share: float,
) -> Segments:
    """Return queries as segments: a pixel is of the query whose class times mask is the surest there.

    Queries that are surer of "no object", or less sure than `least_score`, are none. A query loses its pixels where its
    mask is less than a half, and all of them where it keeps less than `least_share` of its mask. Those of one class of
    stuff are one segment.

    Args:
        classes_QC: Probabilities without that of "no object".
        mask_of: Number of a query → its (H, W) float32 mask on 0..1; each is asked for twice, so that never all of
            them are in memory.
        size: H and W.
        things: Classes whose segments are single objects.
        least_score, least_share: See above.
    """
    label_Q, score_Q = classes_QC.argmax(1), classes_QC.max(1)
    kept = np.flatnonzero((score_Q >= least_score) & (score_Q > 1 - classes_QC.sum(1)))
    best_HW = np.zeros(size, np.float32)
    owner_HW = np.full(size, -1, np.int64)
    for query in kept:
        # Masks are made twice rather than kept: at the image's size all of them together would fill the memory.
        sure_HW = score_Q[query] * mask_of(int(query))
        over_HW = sure_HW > best_HW
        best_HW[over_HW], owner_HW[over_HW] = sure_HW[over_HW], query
    masks: list[np.ndarray] = []
    labels: list[int] = []
    scores: list[float] = []
    stuff: dict[int, int] = {}
    # The surest come first, so that the score of a segment of stuff is that of its surest query.
    for query in kept[np.argsort(-score_Q[kept], kind="stable")]:
        inside_HW, label = mask_of(int(query)) >= 0.5, int(label_Q[query])
        own_HW = (owner_HW == query) & inside_HW
        if not own_HW.any() or (owner_HW == query).sum() < least_share * inside_HW.sum():
            continue
        if label not in things and label in stuff:
            masks[stuff[label]] |= own_HW
            continue
        stuff[label] = len(masks)
        masks.append(own_HW)
        labels.append(label)
        scores.append(float(score_Q[query]))
    stacked = np.stack(masks) if masks else np.zeros((0, *size), bool)
    return Segments(stacked, np.array(labels, np.int64), np.array(scores, np.float32))


def boxes_around(masks_SHW: np.ndarray) -> np.ndarray:
    """Return (S, 4) float32 x1, y1, x2, y2 around masks, none of which is empty."""
    boxes_S4 = np.zeros((len(masks_SHW), 4), np.float32)
    for row, mask_HW in enumerate(masks_SHW):
        rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
        boxes_S4[row] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes_S4


def segments_of_graph(
    contract: GraphContract,
    classes_QC: np.ndarray,
    masks_Qhw: np.ndarray,
    seen: tuple[int, int],
    size: tuple[int, int],
) -> GraphObjects:
    """Return the segments of an image that a graph saw as a whole.

    Args:
        contract: Contract of the graph.
        classes_QC: Its output `classes`.
        masks_Qhw: Its output `masks`: logits.
        seen: Height and width that the image was seen at; what lies beyond is padding.
        size: Height and width of the image.
    """
    patch = contract.mask_patch
    padded = (-(-contract.size[0] // patch) * patch, -(-contract.size[1] // patch) * patch)

    def mask_of(query: int) -> np.ndarray:
        logits_hw = resized_maps(masks_Qhw[query][None].astype(np.float32), padded)[0][: seen[0], : seen[1]]
        return np.asarray(resized_maps(sigmoid(logits_hw)[None], size)[0])

    found = merged_segments(
        classes_QC.astype(np.float32),
        mask_of,
        size,
        things=thing_numbers(contract.classes, contract.things),
        least_score=contract.least_score,
        least_share=contract.least_share,
    )
    return GraphObjects(
        boxes_around(found.masks_SHW), found.scores_S, found.labels_S, None, tuple(found.masks_SHW)
    )


def thing_numbers(classes: Sequence[str], things: Collection[str]) -> frozenset[int]:
    """Return the numbers of the classes whose segments are single objects."""
    return frozenset(number for number, name in enumerate(classes) if name in things)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return logits on 0..1, without overflow."""
    half: np.ndarray = np.float32(0.5) * (1 + np.tanh(np.float32(0.5) * logits))
    return half
