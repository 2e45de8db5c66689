"""Objects from the rows of a graph's table, and each object once from overlapping windows.

Shapes: N objects, R rows, C classes, H × W pixels of the image, h × w of a window, M × M cells of a mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vitp.runtime.boxes import (
    corners_of,
    hulls_around,
    mask_in_image,
    overlaps_of_rotated,
    rectangles_of,
    suppressed,
)
from vitp.runtime.contract import GraphContract
from vitp.runtime.pixels import resized_maps
from vitp.runtime.views import SeenWindow

SHORTEST_SIDE_OF_ROW = 1e-2
"""Pixels; rows with a shorter side are no objects."""

SAME_BOX, SAME_QUAD, SAME_PART = 0.5, 0.1, 0.8
"""IoU of two boxes, of two quads, and share of a part at a window's edge, from which on two are one object."""

MOST_MERGED = 2000


@dataclass(frozen=True)
class GraphObjects:
    """Objects of one image, by falling score.

    Attributes:
        boxes_N4: float32 x1, y1, x2, y2; around the quads where there are some.
        scores_N: float32 on 0..1.
        labels_N: int64, from 0.
        quads_N8: float32 corners, clockwise; of oriented objects.
        masks: (H, W) bool of each object; of instances.
        windows_N4: int64 window that each was found in.
    """

    boxes_N4: np.ndarray
    scores_N: np.ndarray
    labels_N: np.ndarray
    quads_N8: np.ndarray | None = None
    masks: tuple[np.ndarray, ...] | None = None
    windows_N4: np.ndarray | None = None

    def of_rows(self, rows_N: np.ndarray) -> GraphObjects:
        """Return some of the objects, by number."""
        return GraphObjects(
            self.boxes_N4[rows_N],
            self.scores_N[rows_N],
            self.labels_N[rows_N],
            None if self.quads_N8 is None else self.quads_N8[rows_N],
            None if self.masks is None else tuple(self.masks[row] for row in rows_N),
            None if self.windows_N4 is None else self.windows_N4[rows_N],
        )


def objects_of_table(
    contract: GraphContract, outputs: Mapping[str, np.ndarray], window: SeenWindow, size: tuple[int, int]
) -> GraphObjects:
    """Return the objects of one window in pixels of the image, overlapping ones suppressed.

    Args:
        contract: Contract of the graph.
        outputs: `detections` (4 + C or 4 + C + 1, R), and of instances `masks` (R, M, M).
        window: Where it lies in the image.
        size: Height and width that it was seen at; what lies beyond is padding.
    """
    table_RK = outputs["detections"].T.astype(np.float32)
    oriented = contract.task == "oriented"
    scores_RC = table_RK[:, 4 : 4 + len(contract.classes)]
    height, width = size
    if oriented:
        boxes_R = np.concatenate([table_RK[:, :4], table_RK[:, -1:]], axis=1)
        sides_R2 = boxes_R[:, 2:4]
        # What was padded holds nothing; beyond the graph's own border an object's centre may lie, as in the model.
        limit_x, limit_y = (
            np.inf if own == most else own
            for own, most in ((width, contract.size[1]), (height, contract.size[0]))
        )
        inside_R = (boxes_R[:, 0] < limit_x) & (boxes_R[:, 1] < limit_y)
    else:
        low_R2, high_R2 = table_RK[:, :2] - table_RK[:, 2:4] / 2, table_RK[:, :2] + table_RK[:, 2:4] / 2
        boxes_R = np.concatenate([low_R2, high_R2], axis=1)
        boxes_R = np.clip(boxes_R, 0, np.array([width, height] * 2, np.float32))
        sides_R2 = boxes_R[:, 2:] - boxes_R[:, :2]
        inside_R = np.ones(len(boxes_R), bool)
    real_R = (sides_R2 >= SHORTEST_SIDE_OF_ROW).all(1) & inside_R
    row, label = np.nonzero((scores_RC > contract.least_score) & real_R[:, None])
    score = scores_RC[row, label]
    kept = (
        suppressed(boxes_R[row], score, label, contract.iou, overlaps_of_rotated)
        if oriented
        else suppressed(boxes_R[row], score, label, contract.iou)
    )[: contract.most_objects]
    row, label, score = row[kept], label[kept], score[kept]
    return _in_image(boxes_R[row], score, label, outputs.get("masks"), row, window, size, oriented)


def objects_of_masks(
    contract: GraphContract, outputs: Mapping[str, np.ndarray], window: SeenWindow, size: tuple[int, int]
) -> GraphObjects:
    """Return the objects of one window in pixels of the image, where each is a mask of the whole window.

    Args:
        contract: Contract of the graph.
        outputs: `classes` (Q, C) on 0..1, and `masks` (Q, h, w) logits.
        window: Where it lies in the image.
        size: Height and width that it was seen at; what lies beyond is padding.
    """
    classes_QC = outputs["classes"].astype(np.float32)
    order = np.argsort(-classes_QC, axis=None, kind="stable")[: contract.most_objects]
    query, label = np.divmod(order, classes_QC.shape[1])
    x1, y1, x2, y2 = window
    boxes, scores, labels, masks = [], [], [], []
    cells, patch = outputs["masks"], contract.mask_patch
    padded = (-(-contract.size[0] // patch) * patch, -(-contract.size[1] // patch) * patch)
    for of_query, of_class in zip(query, label, strict=True):
        logits_hw = resized_maps(cells[of_query][None].astype(np.float32), padded)[0][: size[0], : size[1]]
        mask_hw = logits_hw > 0
        if not mask_hw.any():
            continue
        rows, columns = np.flatnonzero(mask_hw.any(1)), np.flatnonzero(mask_hw.any(0))
        boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        # A query's score is its class's times how sure its mask is of its own pixels.
        within = (1 / (1 + np.exp(-logits_hw[mask_hw]))).mean()
        scores.append(classes_QC[of_query, of_class] * within)
        labels.append(of_class)
        masks.append(_mask_of_window(mask_hw, (y2 - y1, x2 - x1)))
    kept = np.argsort(-np.array(scores), kind="stable")
    scale_2 = np.array([(x2 - x1) / size[1], (y2 - y1) / size[0]], np.float32)
    corners_N22 = np.array(boxes, np.float32).reshape(-1, 2, 2) * scale_2 + np.array([x1, y1], np.float32)
    found = GraphObjects(
        corners_N22.reshape(-1, 4).astype(np.float32),
        np.array(scores, np.float32),
        np.array(labels, np.int64),
        None,
        tuple(masks),
        np.tile(np.array(window, np.int64), (len(masks), 1)),
    )
    return found.of_rows(kept)


def _in_image(
    boxes_N: np.ndarray,
    scores_N: np.ndarray,
    labels_N: np.ndarray,
    masks_RMM: np.ndarray | None,
    rows_N: np.ndarray,
    window: SeenWindow,
    size: tuple[int, int],
    oriented: bool,
) -> GraphObjects:
    x1, y1, x2, y2 = window
    scale_2 = np.array([(x2 - x1) / size[1], (y2 - y1) / size[0]], np.float32)
    shift_2 = np.array([x1, y1], np.float32)
    quads_N8: np.ndarray | None = None
    masks: tuple[np.ndarray, ...] | None = None
    if oriented:
        corners_N42 = corners_of(boxes_N).reshape(-1, 4, 2) * scale_2 + shift_2
        quads_N8 = corners_N42.reshape(-1, 8).astype(np.float32)
        moved_N4 = hulls_around(quads_N8)
    else:
        moved_N4 = (boxes_N.reshape(-1, 2, 2) * scale_2 + shift_2).reshape(-1, 4).astype(np.float32)
    if masks_RMM is not None:
        masks = tuple(
            _mask_of_window(mask_in_image(masks_RMM[row], box_4, size), (y2 - y1, x2 - x1))
            for row, box_4 in zip(rows_N, boxes_N, strict=True)
        )
    windows_N4 = np.tile(np.array(window, np.int64), (len(moved_N4), 1))
    return GraphObjects(moved_N4, scores_N, labels_N, quads_N8, masks, windows_N4)


def _mask_of_window(mask_hw: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if mask_hw.shape == size:
        return mask_hw
    resized_hw: np.ndarray = resized_maps(mask_hw[None].astype(np.float32), size)[0] > 0.5
    return resized_hw


def merged_objects(
    parts: Sequence[GraphObjects], size: tuple[int, int], *, oriented: bool = False
) -> GraphObjects:
    """Return the objects of all windows of an image, each once; those of a single window as they are.

    Where a window's edge cuts an object that another window shows whole, the part is dropped, however sure; of what
    else overlaps the surest stays.

    Args:
        parts: Parts of each window.
        size: Height and width of the image.
        oriented: Whether objects are compared by their quads.
    """
    joined = _joined(parts)
    if len(parts) > 1 and len(joined.scores_N):
        rows = np.flatnonzero(~_parts_of_whole(joined, size))
        few = joined.of_rows(rows)
        if oriented:
            assert few.quads_N8 is not None
            boxes = rectangles_of(few.quads_N8)
            kept = suppressed(boxes, few.scores_N, few.labels_N, SAME_QUAD, overlaps_of_rotated)
        else:
            kept = suppressed(few.boxes_N4, few.scores_N, few.labels_N, SAME_BOX)
        joined = few.of_rows(kept[:MOST_MERGED])
    if joined.masks is None:
        return joined
    return GraphObjects(
        joined.boxes_N4,
        joined.scores_N,
        joined.labels_N,
        None,
        _pasted_masks(joined, size),
        joined.windows_N4,
    )


def _joined(parts: Sequence[GraphObjects]) -> GraphObjects:
    quads = [part.quads_N8 for part in parts if part.quads_N8 is not None]
    windows = [part.windows_N4 for part in parts if part.windows_N4 is not None]
    return GraphObjects(
        np.concatenate([part.boxes_N4 for part in parts]),
        np.concatenate([part.scores_N for part in parts]),
        np.concatenate([part.labels_N for part in parts]),
        np.concatenate(quads) if quads else None,
        None if parts[0].masks is None else tuple(mask for part in parts for mask in part.masks or ()),
        np.concatenate(windows),
    )


def _parts_of_whole(objects: GraphObjects, size: tuple[int, int]) -> np.ndarray:
    """Return (N,) bool: objects cut by an edge of their window that an object which isn't cut covers."""
    assert objects.windows_N4 is not None
    boxes_N4, border_4 = objects.boxes_N4, np.array([0, 0, size[1], size[0]])
    at_edge_N4 = (np.abs(boxes_N4 - objects.windows_N4) <= 1.0) & (objects.windows_N4 != border_4)
    cut_N = at_edge_N4.any(1)
    covered_N = np.zeros(len(boxes_N4), bool)
    whole = np.flatnonzero(~cut_N)
    for number in np.flatnonzero(cut_N):
        others = whole[objects.labels_N[whole] == objects.labels_N[number]]
        sides_M2 = np.minimum(boxes_N4[number, 2:], boxes_N4[others, 2:]) - np.maximum(
            boxes_N4[number, :2], boxes_N4[others, :2]
        )
        area = (boxes_N4[number, 2:] - boxes_N4[number, :2]).prod()
        there_M = (sides_M2 > 0).all(1)
        covered_N[number] = (there_M & (sides_M2.prod(1) >= SAME_PART * area)).any()
    return covered_N


def _pasted_masks(objects: GraphObjects, size: tuple[int, int]) -> tuple[np.ndarray, ...]:
    assert objects.masks is not None
    assert objects.windows_N4 is not None
    pasted = []
    for mask_hw, (x1, y1, x2, y2) in zip(objects.masks, objects.windows_N4, strict=True):
        whole_HW = np.zeros(size, bool)
        whole_HW[y1:y2, x1:x2] = mask_hw
        pasted.append(whole_HW)
    return tuple(pasted)
