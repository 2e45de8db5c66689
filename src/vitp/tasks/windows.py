"""Looking at an image of any size through windows of the model's size, at several scales, mirrored or not.

Shapes: K classes, N objects, H × W pixels of the image, h × w pixels of what the model sees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import batched_nms

from vitp.core.errors import VitpError
from vitp.core.tensors import present
from vitp.data.formats.crops import crop_windows
from vitp.data.image_sample import resized
from vitp.metrics.results import Prediction
from vitp.models.rotated.boxes import boxes_of_quads, hulls_of_quads
from vitp.models.rotated.nms import rotated_nms
from vitp.tasks.base import InputSize, TestSettings

BOX_OVERLAP = 0.5
"""IoU from which on two boxes of one class, found in different views, are one object."""

QUAD_OVERLAP = 0.1
"""The same for oriented boxes, whose IoU says more (DOTA's evaluation merges crops so)."""

PART_OVERLAP = 0.8
"""Share of an object at a window's edge that a whole object of another view must cover to be the same one."""

LARGEST_MASKS = 4 << 30
"""Bytes that the instance masks of one image may fill."""


@dataclass(frozen=True)
class View:
    """One look at an image.

    Attributes:
        window: x1, y1, x2, y2 in pixels of the image.
        size: Height and width that the window is resized to.
        mirrored: Left and right are swapped.
    """

    window: tuple[int, int, int, int]
    size: tuple[int, int]
    mirrored: bool = False

    def of(self, image_CHW: Tensor) -> Tensor:
        """Return what the model sees of an image."""
        x1, y1, x2, y2 = self.window
        part = image_CHW[:, y1:y2, x1:x2]
        if tuple(part.shape[-2:]) != self.size:
            part = resized(part, self.size)
        return part.flip(-1) if self.mirrored else part


def views_of(height: int, width: int, settings: TestSettings, resize: InputSize) -> list[View]:
    """Return all looks at an image, from top to bottom.

    The image is resized, then scaled by each factor, then cut into windows; views say where those lie in the
    image itself, to the pixel, so that nothing larger than a window is ever made.
    """
    views = []
    base = resize.of(height, width)
    for scale in settings.scales:
        rows, columns = (max(1, round(side * scale)) for side in base)
        side = settings.window or max(rows, columns)
        for x1, y1, x2, y2 in crop_windows(columns, rows, side, int(settings.overlap * side)):
            window = (
                x1 * width // columns,
                y1 * height // rows,
                min(math.ceil(x2 * width / columns), width),
                min(math.ceil(y2 * height / rows), height),
            )
            mirrors = (False, True) if settings.flip else (False,)
            views += [View(window, (y2 - y1, x2 - x1), mirrored) for mirrored in mirrors]
    return sorted(views, key=lambda view: (view.window[1], view.window[0], view.size, view.mirrored))


def batches(views: Sequence[View], batch_size: int) -> Iterator[list[View]]:
    """Yield neighbouring views of one size."""
    batch: list[View] = []
    for view in views:
        if batch and (len(batch) == batch_size or view.size != batch[0].size):
            yield batch
            batch = []
        batch.append(view)
    if batch:
        yield batch


class ClassSums:
    """The class of each pixel from the sum of overlapping probability maps, given from top to bottom.

    Only the rows that can still change are kept as probabilities, so that a mosaic of any height fits.

    Args:
        height, width: Of the image.
        device: Where the sums are kept.
    """

    def __init__(self, height: int, width: int, device: torch.device) -> None:
        self.classes_HW = torch.zeros(height, width, dtype=torch.uint8)
        self._device = device
        self._top = 0
        self._sum_KRW: Tensor | None = None

    def add(self, probability_Khw: Tensor, view: View) -> None:
        """Add the probabilities of a view; views must not begin above the last `finish`."""
        x1, y1, x2, y2 = view.window
        if view.mirrored:
            probability_Khw = probability_Khw.flip(-1)
        if tuple(probability_Khw.shape[-2:]) != (y2 - y1, x2 - x1):
            probability_Khw = F.interpolate(
                probability_Khw[None], size=(y2 - y1, x2 - x1), mode="bilinear", align_corners=False
            )[0]
        kept = self._rows(probability_Khw.shape[0], y2 - self._top)
        kept[:, y1 - self._top : y2 - self._top, x1:x2] += probability_Khw.to(self._device)

    def _rows(self, classes: int, rows: int) -> Tensor:
        """Return the sums, with at least so many rows."""
        if self._sum_KRW is None:
            self._sum_KRW = torch.zeros(classes, rows, self.classes_HW.shape[1], device=self._device)
        missing = rows - self._sum_KRW.shape[1]
        if missing > 0:
            self._sum_KRW = F.pad(self._sum_KRW, (0, 0, 0, missing))
        return self._sum_KRW

    def finish(self, bottom: int) -> None:
        """Decide the rows above `bottom`: no later view reaches them."""
        count = bottom - self._top
        if count <= 0 or self._sum_KRW is None:
            return
        decided_RW = self._sum_KRW[:, :count].argmax(0).to(torch.uint8).cpu()
        self.classes_HW[self._top : bottom] = decided_RW
        self._sum_KRW = self._sum_KRW[:, count:].clone()
        self._top = bottom


def class_map(
    probabilities: Callable[[Tensor, Tensor | None], Tensor],
    image_CHW: Tensor,
    later_CHW: Tensor | None,
    views: Sequence[View],
    batch_size: int,
    device: torch.device,
) -> Tensor:
    """Return (H, W) uint8: the class with the largest sum of probabilities over all views of an image.

    Args:
        probabilities: uint8 (B, 3, h, w) images, and their later dates → (B, K, h, w).
        image_CHW: uint8 RGB.
        later_CHW: Second date.
        views: As `views_of` gives them.
        batch_size: Views at once.
        device: Where the sums are kept.
    """
    found = ClassSums(int(image_CHW.shape[-2]), int(image_CHW.shape[-1]), device)
    for batch in batches(views, batch_size):
        found.finish(batch[0].window[1])
        images = torch.stack([view.of(image_CHW) for view in batch])
        later = None if later_CHW is None else torch.stack([view.of(later_CHW) for view in batch])
        for probability_Khw, view in zip(probabilities(images, later), batch, strict=True):
            found.add(probability_Khw, view)
    found.finish(int(image_CHW.shape[-2]))
    return found.classes_HW


def in_image(prediction: Prediction, view: View) -> Prediction:
    """Return objects found in a view with boxes and quads in pixels of the image; masks stay the view's own."""
    x1, y1, x2, y2 = view.window
    height, width = view.size
    scale_x, scale_y = (x2 - x1) / width, (y2 - y1) / height
    boxes_N4, quads_N8, masks_NHW = prediction.boxes_N4, prediction.quads_N8, prediction.masks_NHW
    if view.mirrored:
        if boxes_N4 is not None:
            left, top, right, bottom = boxes_N4.unbind(1)
            boxes_N4 = torch.stack([width - right, top, width - left, bottom], dim=1)
        if quads_N8 is not None:
            points_N42 = quads_N8.reshape(-1, 4, 2)
            mirrored_N42 = torch.stack([width - points_N42[..., 0], points_N42[..., 1]], dim=2)
            # A mirror turns clockwise into counter-clockwise; this order turns it back.
            quads_N8 = mirrored_N42[:, [1, 0, 3, 2]].reshape(-1, 8)
        if masks_NHW is not None:
            masks_NHW = masks_NHW.flip(-1)
    scale, shift = torch.tensor([scale_x, scale_y]), torch.tensor([x1, y1], dtype=torch.float32)
    return replace(
        prediction,
        boxes_N4=None if boxes_N4 is None else boxes_N4 * scale.repeat(2) + shift.repeat(2),
        quads_N8=None if quads_N8 is None else quads_N8 * scale.repeat(4) + shift.repeat(4),
        masks_NHW=masks_NHW,
    )


def merge(found: Sequence[tuple[Prediction, View]], size: tuple[int, int], *, most: int = 2000) -> Prediction:
    """Return the objects of all views of an image as one prediction, each object once, by falling score.

    Where a window's edge cuts an object that another view shows whole, the part is dropped, however sure; of what
    else overlaps the surest stays.

    Args:
        found: Predictions in pixels of their views.
        size: Height and width of the image.
        most: Objects that are kept.

    Raises:
        VitpError: The instance masks of so large an image don't fit into memory.
    """
    parts = [in_image(prediction, view) for prediction, view in found]
    scores_N = torch.cat([present(part.scores_N) for part in parts])
    labels_N = torch.cat([present(part.labels_N) for part in parts])
    boxes_N4 = None if parts[0].boxes_N4 is None else torch.cat([present(part.boxes_N4) for part in parts])
    quads_N8 = None if parts[0].quads_N8 is None else torch.cat([present(part.quads_N8) for part in parts])
    kept = torch.arange(len(scores_N))
    if len(parts) > 1 and len(kept):
        hulls_N4 = boxes_N4 if quads_N8 is None else hulls_of_quads(quads_N8)
        windows = [
            (view.window, len(present(part.scores_N))) for part, (_, view) in zip(parts, found, strict=True)
        ]
        kept = torch.nonzero(~_parts_of_others(present(hulls_N4), labels_N, windows, size)).flatten()
        if quads_N8 is not None:
            order = rotated_nms(boxes_of_quads(quads_N8[kept]), scores_N[kept], QUAD_OVERLAP, labels_N[kept])
        else:
            order = batched_nms(present(boxes_N4)[kept], scores_N[kept], labels_N[kept], BOX_OVERLAP)
        kept = kept[order[:most]]
    return Prediction(
        boxes_N4=None if boxes_N4 is None else boxes_N4[kept],
        quads_N8=None if quads_N8 is None else quads_N8[kept],
        scores_N=scores_N[kept],
        labels_N=labels_N[kept],
        masks_NHW=None if parts[0].masks_NHW is None else _paste(parts, found, kept, size),
    )


def _parts_of_others(
    boxes_N4: Tensor,
    labels_N: Tensor,
    windows: Sequence[tuple[tuple[int, int, int, int], int]],
    size: tuple[int, int],
) -> Tensor:
    """Return (N,) bool: objects cut by an edge of their window that an object which isn't cut covers.

    Args:
        boxes_N4: In pixels of the image, window after window.
        labels_N: Their classes.
        windows: Each window and how many of the objects are its.
        size: Height and width of the image; its own border cuts nothing.
    """
    counts = torch.tensor([count for _, count in windows])
    own_N4 = torch.tensor([window for window, _ in windows]).repeat_interleave(counts, dim=0)
    border_4 = torch.tensor([0, 0, size[1], size[0]])
    cut_N = (((boxes_N4 - own_N4).abs() <= 1.0) & (own_N4 != border_4)).any(1)
    covered_N = torch.zeros(len(boxes_N4), dtype=torch.bool)
    whole_M4, whole_labels_M = boxes_N4[~cut_N], labels_N[~cut_N]
    for index in torch.nonzero(cut_N).flatten().tolist():
        box_4 = boxes_N4[index]
        sides_M2 = torch.minimum(box_4[2:], whole_M4[:, 2:]) - torch.maximum(box_4[:2], whole_M4[:, :2])
        shared_M = sides_M2.clamp(min=0).prod(1) * (whole_labels_M == labels_N[index])
        covered_N[index] = bool((shared_M >= PART_OVERLAP * (box_4[2:] - box_4[:2]).prod()).any())
    return covered_N


def _paste(
    parts: Sequence[Prediction], found: Sequence[tuple[Prediction, View]], kept: Tensor, size: tuple[int, int]
) -> Tensor:
    """Return (N, H, W) bool: the masks of the kept objects in the image."""
    if len(kept) * size[0] * size[1] > LARGEST_MASKS:
        raise VitpError(
            f"{len(kept)} masks of {size[1]}×{size[0]} px don't fit into memory",
            where="instance segmentation",
            fix="cut the image into tiles beforehand",
        )
    masks_NHW = torch.zeros(len(kept), *size, dtype=torch.bool)
    places = [
        (part, index) for part in range(len(parts)) for index in range(len(present(parts[part].scores_N)))
    ]
    for row, number in enumerate(kept.tolist()):
        part, index = places[number]
        x1, y1, x2, y2 = found[part][1].window
        mask_hw = present(parts[part].masks_NHW)[index]
        if tuple(mask_hw.shape) != (y2 - y1, x2 - x1):
            resized = F.interpolate(mask_hw[None, None].float(), size=(y2 - y1, x2 - x1), mode="bilinear")
            mask_hw = resized[0, 0] > 0.5
        masks_NHW[row, y1:y2, x1:x2] = mask_hw
    return masks_NHW
