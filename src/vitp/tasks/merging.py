"""Objects found in overlapping views of an image, each kept once: of an image in memory, or as windows come.

Shapes: N objects, H × W pixels of the image, h × w pixels of what the model sees.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torchvision.ops import batched_nms

from vitp.core.errors import VitpError
from vitp.core.tensors import present
from vitp.metrics.results import Prediction
from vitp.models.rotated.boxes import boxes_of_quads, hulls_of_quads
from vitp.models.rotated.nms import rotated_nms
from vitp.models.rotated.pairs import overlapping_pairs
from vitp.tasks.views import View

BOX_OVERLAP = 0.5
"""IoU from which on two boxes of one class, found in different views, are one object."""

QUAD_OVERLAP = 0.1
"""The same for oriented boxes, whose IoU says more (DOTA's evaluation merges crops so)."""

PART_OVERLAP = 0.8
"""Share of an object at a window's edge that a whole object of another view must cover to be the same one."""

LARGEST_MASKS = 4 << 30
"""Bytes that the instance masks of one image may fill."""


@dataclass(frozen=True)
class MaskPart:
    """An instance mask, as large as the object alone.

    Attributes:
        at: x and y of its corner in the image.
        mask_hw: bool; no empty rows or columns at its sides; (0, 0) where the mask is empty.
    """

    at: tuple[int, int]
    mask_hw: np.ndarray


@dataclass(frozen=True)
class ViewObjects:
    """Objects in pixels of an image, CPU tensors, with what it takes to tell which are one.

    Attributes:
        boxes_N4: float32; None where a model finds quads alone.
        quads_N8: float32 corners, clockwise.
        scores_N: On 0..1.
        labels_N: 0 … C − 1.
        windows_N4: int64 window that each was found in.
        masks: One for each object, or None.
        nowhere_N: bool: whose centre lies where the image holds nothing; None: no object's does. They tell which
            others are parts of them, and are dropped.
    """

    boxes_N4: Tensor | None
    quads_N8: Tensor | None
    scores_N: Tensor
    labels_N: Tensor
    windows_N4: Tensor
    masks: tuple[MaskPart, ...] | None
    nowhere_N: Tensor | None = None

    def __len__(self) -> int:
        return len(self.scores_N)

    @classmethod
    def of(cls, prediction: Prediction, view: View) -> Self:
        """Return what was found in a view."""
        moved = in_image(prediction, view)
        scores_N = present(moved.scores_N)
        return cls(
            moved.boxes_N4,
            moved.quads_N8,
            scores_N,
            present(moved.labels_N),
            torch.tensor(view.window).repeat(len(scores_N), 1),
            None if moved.masks_NHW is None else tuple(_mask_parts(moved.masks_NHW, view)),
        )

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return the objects of several as one, in their order."""
        first = parts[0]
        return cls(
            None if first.boxes_N4 is None else torch.cat([present(part.boxes_N4) for part in parts]),
            None if first.quads_N8 is None else torch.cat([present(part.quads_N8) for part in parts]),
            torch.cat([part.scores_N for part in parts]),
            torch.cat([part.labels_N for part in parts]),
            torch.cat([part.windows_N4 for part in parts]),
            None if first.masks is None else tuple(mask for part in parts for mask in part.masks or ()),
            None if first.nowhere_N is None else torch.cat([present(part.nowhere_N) for part in parts]),
        )

    def of_rows(self, rows: Tensor) -> Self:
        """Return some of the objects, by number or by a mask of bool."""
        numbers = torch.nonzero(rows).flatten() if rows.dtype == torch.bool else rows
        return replace(
            self,
            boxes_N4=None if self.boxes_N4 is None else self.boxes_N4[numbers],
            quads_N8=None if self.quads_N8 is None else self.quads_N8[numbers],
            scores_N=self.scores_N[numbers],
            labels_N=self.labels_N[numbers],
            windows_N4=self.windows_N4[numbers],
            masks=None if self.masks is None else tuple(self.masks[number] for number in numbers.tolist()),
            nowhere_N=None if self.nowhere_N is None else self.nowhere_N[numbers],
        )

    @property
    def hulls_N4(self) -> Tensor:
        """The boxes around the quads, else the boxes."""
        return present(self.boxes_N4) if self.quads_N8 is None else hulls_of_quads(self.quads_N8)

    @property
    def somewhere(self) -> Tensor:
        """The numbers of the objects whose centre lies where the image holds something."""
        if self.nowhere_N is None:
            return torch.arange(len(self))
        return torch.nonzero(~self.nowhere_N).flatten()

    def kept(self, size: tuple[int, int]) -> Tensor:
        """Return the numbers of the objects that stay, each object once, by falling score.

        Where a window's edge cuts an object that another view shows whole, the part is dropped, however sure; of what
        else overlaps the surest stays.

        Args:
            size: Height and width of the image; its own border cuts nothing.
        """
        if not len(self):
            return torch.arange(0)
        # Before the suppression, in which a surer part would remove the whole object.
        parts_N = _parts_of_others(self.hulls_N4, self.labels_N, self.windows_N4, size)
        kept = self.somewhere
        kept = kept[~parts_N[kept]]
        scores_N, labels_N = self.scores_N[kept], self.labels_N[kept]
        if self.quads_N8 is not None:
            order = rotated_nms(boxes_of_quads(self.quads_N8[kept]), scores_N, QUAD_OVERLAP, labels_N)
        else:
            # Classes are laid side by side for it: far out in a large raster float32 would round boxes to half pixels.
            boxes_N4 = present(self.boxes_N4)[kept].double()
            order = batched_nms(boxes_N4, scores_N.double(), labels_N, BOX_OVERLAP)
        return kept[order]


class ObjectMerger:
    """Merges objects as windows come, from top to bottom, with the same result as of all of them at once.

    Objects wait in groups of one class that touch each other; a group is merged once no later window reaches it.

    Args:
        size: Height and width of the image.
        several: Whether the image has more than one view; the objects of a single one stay as they are.
    """

    def __init__(self, size: tuple[int, int], *, several: bool) -> None:
        self._size, self._several = size, several
        self._waiting: ViewObjects | None = None

    def add(self, objects: ViewObjects) -> None:
        """Add the objects of a view."""
        waiting = self._waiting
        self._waiting = objects if waiting is None else ViewObjects.joined([waiting, objects])

    def finish(self, bottom: float | None = None) -> ViewObjects | None:
        """Return the merged objects of the groups that end above a row; None: there are none.

        Args:
            bottom: Row that later objects lie below; None: there are no later ones.
        """
        waiting = self._waiting
        if waiting is None or not len(waiting):
            return None
        group_N = _groups(waiting)
        ends_G = torch.zeros(int(group_N.max()) + 1).scatter_reduce(
            0, group_N, waiting.hulls_N4[:, 3], "amax", include_self=False
        )
        done_N = torch.ones(len(waiting), dtype=torch.bool) if bottom is None else ends_G[group_N] <= bottom
        self._waiting = waiting.of_rows(~done_N)
        done = waiting.of_rows(done_N)
        if not len(done):
            return None
        return done.of_rows(done.kept(self._size) if self._several else done.somewhere)


def _groups(objects: ViewObjects) -> Tensor:
    """Return (N,) int64: the number of the group that each object is in."""
    hulls_N4 = objects.hulls_N4.double()
    span = float(hulls_N4[:, 2].max() - hulls_N4[:, 0].min()) + 1
    hulls_N4[:, 0::2] += objects.labels_N[:, None].double() * span  # classes side by side
    pairs = [torch.stack(pair) for pair in overlapping_pairs(hulls_N4, hulls_N4)]
    i, j = torch.cat(pairs, dim=1).numpy() if pairs else np.zeros((2, 0), np.int64)
    graph = coo_array((np.ones(len(i), bool), (i, j)), shape=(len(objects), len(objects)))
    return torch.from_numpy(connected_components(graph, directed=False)[1].astype(np.int64))


def in_image(prediction: Prediction, view: View) -> Prediction:
    """Return objects found in a view with boxes and quads in pixels of the image; masks stay the window's own."""
    x1, y1, x2, y2 = view.window
    height, width = view.size
    scale_2 = torch.tensor([(x2 - x1) / width, (y2 - y1) / height])
    shift_2 = torch.tensor([x1, y1], dtype=torch.float32)
    boxes_N4, quads_N8, masks_NHW = prediction.boxes_N4, prediction.quads_N8, prediction.masks_NHW
    if boxes_N4 is not None:
        corners_N22 = view.points_upright(boxes_N4.reshape(-1, 2, 2))
        # Turned or mirrored, the two given corners may be the other two of the box.
        corners_N22 = torch.stack([corners_N22.amin(1), corners_N22.amax(1)], dim=1)
        boxes_N4 = (corners_N22 * scale_2 + shift_2).reshape(-1, 4)
    if quads_N8 is not None:
        points_N42 = view.points_upright(quads_N8.reshape(-1, 4, 2))
        if view.mirrored:  # a mirror turns clockwise into counter-clockwise; this order turns it back
            points_N42 = points_N42[:, [1, 0, 3, 2]]
        quads_N8 = (points_N42 * scale_2 + shift_2).reshape(-1, 8)
    if masks_NHW is not None:
        masks_NHW = view.upright(masks_NHW)
    return replace(prediction, boxes_N4=boxes_N4, quads_N8=quads_N8, masks_NHW=masks_NHW)


def _mask_parts(masks_Nhw: Tensor, view: View) -> Iterator[MaskPart]:
    """Yield the upright masks of a view in the image."""
    x1, y1, x2, y2 = view.window
    for mask_hw in masks_Nhw:
        if tuple(mask_hw.shape) != (y2 - y1, x2 - x1):
            resized = F.interpolate(mask_hw[None, None].float(), size=(y2 - y1, x2 - x1), mode="bilinear")
            mask_hw = resized[0, 0] > 0.5
        own_hw = mask_hw.numpy()
        rows, columns = np.flatnonzero(own_hw.any(1)), np.flatnonzero(own_hw.any(0))
        if not len(rows):
            yield MaskPart((x1, y1), np.zeros((0, 0), bool))
            continue
        top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        # A copy, as a view of it would keep the mask of the whole window in memory.
        yield MaskPart((x1 + int(left), y1 + int(top)), own_hw[top:bottom, left:right].copy())


def merge(found: Sequence[tuple[Prediction, View]], size: tuple[int, int], *, most: int = 2000) -> Prediction:
    """Return the objects of all views of an image as one prediction, each object once; see `ViewObjects.kept`.

    Args:
        found: Predictions in pixels of their views.
        size: Height and width of the image.
        most: Objects that are kept.

    Raises:
        VitpError: The instance masks of so large an image don't fit into memory.
    """
    objects = ViewObjects.joined([ViewObjects.of(prediction, view) for prediction, view in found])
    if len(found) > 1:
        objects = objects.of_rows(objects.kept(size)[:most])
    return Prediction(
        boxes_N4=objects.boxes_N4,
        quads_N8=objects.quads_N8,
        scores_N=objects.scores_N,
        labels_N=objects.labels_N,
        masks_NHW=None if objects.masks is None else _pasted(objects.masks, size),
    )


def _parts_of_others(boxes_N4: Tensor, labels_N: Tensor, windows_N4: Tensor, size: tuple[int, int]) -> Tensor:
    """Return (N,) bool: objects cut by an edge of their window that an object which isn't cut covers."""
    border_4 = torch.tensor([0, 0, size[1], size[0]])
    # A box that ends at an edge of its window, which is no edge of the image, goes on in the next window.
    cut_N = (((boxes_N4 - windows_N4).abs() <= 1.0) & (windows_N4 != border_4)).any(1)
    covered_N = torch.zeros(len(boxes_N4), dtype=torch.bool)
    cut, whole = torch.nonzero(cut_N).flatten(), torch.nonzero(~cut_N).flatten()
    for i, j in overlapping_pairs(boxes_N4[cut], boxes_N4[whole]):
        part_P4, other_P4 = boxes_N4[cut[i]], boxes_N4[whole[j]]
        sides_P2 = torch.minimum(part_P4[:, 2:], other_P4[:, 2:]) - torch.maximum(
            part_P4[:, :2], other_P4[:, :2]
        )
        most_P = sides_P2.clamp(min=0).prod(1) >= PART_OVERLAP * (part_P4[:, 2:] - part_P4[:, :2]).prod(1)
        covered_N[cut[i[most_P & (labels_N[cut[i]] == labels_N[whole[j]])]]] = True
    return covered_N


def _pasted(masks: Sequence[MaskPart], size: tuple[int, int]) -> Tensor:
    """Return (N, H, W) bool: masks in the image."""
    if len(masks) * size[0] * size[1] > LARGEST_MASKS:
        raise VitpError(
            f"{len(masks)} masks of {size[1]}×{size[0]} px don't fit into memory",
            where="instance segmentation",
            fix="cut the image into tiles beforehand",
        )
    masks_NHW = torch.zeros(len(masks), *size, dtype=torch.bool)
    for pasted_HW, mask in zip(masks_NHW, masks, strict=True):
        (x, y), (height, width) = mask.at, mask.mask_hw.shape
        pasted_HW[y : y + height, x : x + width] = torch.from_numpy(mask.mask_hw)
    return masks_NHW
