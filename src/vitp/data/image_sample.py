"""An image with its labels, and the geometric steps that move both: resize, rotate, crop, flip, quarter turns.

Objects travel as points (`ObjectLabel`), not as pixels: each step is a change of the pixels and the 2 × 3 matrix that
does the same to points, so that labels stay exact however often an image is changed. Instance masks are made once, at
the end, by `rasterise`. Points are in edge coordinates: pixel (column i, row j) covers i … i + 1 and j … j + 1.

Shapes: C channels, H × W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from vitp.data.formats.crops import any_part, visible_part
from vitp.io.pixels import LARGE_PIXELS
from vitp.records.geometry import as_flat, as_points, bounds, clockwise
from vitp.records.labels import IGNORE, ObjectLabel


@dataclass(frozen=True)
class ImageSample:
    """One image, or two dates, with its labels, before they become a `Target`.

    Attributes:
        image_CHW: uint8.
        later_CHW: Second date, of the same size.
        objects: Labelled objects; None: not labelled.
        semantic_HW: uint8 class of each pixel (255 = ignore) or change mask (0, 1).
        classes_K: float32, of the whole image.
        ignored: Places that are neither objects nor background; see `LabelledImage.ignored`.
    """

    image_CHW: Tensor
    later_CHW: Tensor | None = None
    objects: tuple[ObjectLabel, ...] | None = None
    semantic_HW: Tensor | None = None
    classes_K: Tensor | None = None
    ignored: tuple[ObjectLabel, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return int(self.image_CHW.shape[-2]), int(self.image_CHW.shape[-1])


def resized(image_CHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Return an image at `size` (height, width), bilinear and antialiased.

    The whole of a large one is never held as floating numbers: it is first averaged to twice the size.
    """
    height, width = image_CHW.shape[-2:]
    shrinks = height >= 2 * size[0] and width >= 2 * size[1]
    if shrinks and height * width > LARGE_PIXELS and image_CHW.dtype == torch.uint8 and not image_CHW.is_cuda:
        shape = (2 * size[1], 2 * size[0])
        planes = [cv2.resize(plane.numpy(), shape, interpolation=cv2.INTER_AREA) for plane in image_CHW]
        image_CHW = torch.from_numpy(np.stack(planes))
    small_CHW: Tensor = transforms.resize(image_CHW, list(size), InterpolationMode.BILINEAR, antialias=True)
    return small_CHW


def resize(sample: ImageSample, size: tuple[int, int]) -> ImageSample:
    """Return the sample at `size` (height, width): images antialiased, classes never mixed."""
    if sample.size == size:
        return sample
    height, width = sample.size
    return _changed(
        sample,
        lambda image: resized(image, size),
        lambda mask: transforms.resize(mask[None], list(size), InterpolationMode.NEAREST_EXACT)[0],
        np.array([[size[1] / width, 0.0, 0.0], [0.0, size[0] / height, 0.0]]),
    )


def rotate(sample: ImageSample, degrees: float) -> ImageSample:
    """Return the sample turned clockwise on a canvas that holds all of it; the rest is black, 255 in masks.

    Boxes become the boxes around what is turned: around the outline where there is one, else around the
    quad, else around the turned box, which is then too large.
    """
    height, width = sample.size
    angle = np.deg2rad(degrees)
    cosine, sine = float(np.cos(angle)), float(np.sin(angle))
    # Half a millionth: 90° must not give a canvas one pixel larger for the sake of a rounded cosine.
    new_width = int(np.ceil(abs(width * cosine) + abs(height * sine) - 1e-6))
    new_height = int(np.ceil(abs(width * sine) + abs(height * cosine) - 1e-6))
    linear = np.array([[cosine, -sine], [sine, cosine]])  # y points down, so this turns clockwise
    shift = np.array([new_width / 2, new_height / 2]) - linear @ np.array([width / 2, height / 2])
    # OpenCV counts pixel centres from 0, which lie at ½ in edge coordinates.
    centres = np.column_stack([linear, shift + linear @ np.array([0.5, 0.5]) - 0.5])

    def warp(pixels: Tensor, flags: int, border: float) -> Tensor:
        turned = cv2.warpAffine(
            np.ascontiguousarray(pixels.numpy()),
            centres,
            (new_width, new_height),
            flags=flags,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(border,) * 3,
        )
        return torch.from_numpy(turned)

    def warped(image: Tensor) -> Tensor:
        if len(image) == 3:
            return warp(image.permute(1, 2, 0), cv2.INTER_LINEAR, 0).permute(2, 0, 1).contiguous()
        # OpenCV rounds otherwise where there are other numbers of channels.
        return torch.stack([warp(plane, cv2.INTER_LINEAR, 0) for plane in image])

    return _changed(
        sample,
        warped,
        lambda mask: warp(mask, cv2.INTER_NEAREST, IGNORE),
        np.column_stack([linear, shift]),
    )


def crop(sample: ImageSample, window: tuple[int, int, int, int], *, min_visible: float) -> ImageSample:
    """Return a part of the sample.

    Args:
        sample: The whole.
        window: x1, y1, x2, y2 in pixels; x2 and y2 may lie outside, where zeros (255 in masks) are put.
        min_visible: Objects of which less of the area is in the window are difficult in it.
    """
    x1, y1, x2, y2 = window

    def cut(pixels: Tensor, fill: int) -> Tensor:
        part = pixels[..., y1:y2, x1:x2]
        missing = (0, x2 - x1 - part.shape[-1], 0, y2 - y1 - part.shape[-2])
        return F.pad(part, missing, value=fill).contiguous()

    moved = _changed(sample, lambda image: cut(image, 0), lambda mask: cut(mask, IGNORE), None)
    # What lies in the padding was never photographed: the image's own border cuts objects, too.
    visible = (x1, y1, min(x2, sample.size[1]), min(y2, sample.size[0]))
    hidden = (any_part(label, visible) for label in sample.ignored)
    moved = replace(moved, ignored=tuple(label for label in hidden if label is not None))
    if sample.objects is None:
        return moved
    parts = (visible_part(label, visible, min_visible) for label in sample.objects)
    return replace(moved, objects=tuple(label for label in parts if label is not None))


def flip(sample: ImageSample, left_right: bool, top_bottom: bool) -> ImageSample:
    """Return the sample mirrored."""
    height, width = sample.size
    dims = [dim for dim, wanted in ((-1, left_right), (-2, top_bottom)) if wanted]
    if not dims:
        return sample
    matrix = np.array(
        [
            [-1.0 if left_right else 1.0, 0.0, width if left_right else 0.0],
            [0.0, -1.0 if top_bottom else 1.0, height if top_bottom else 0.0],
        ]
    )
    return _changed(sample, lambda image: image.flip(dims), lambda mask: mask.flip(dims), matrix)


def quarter_turns(sample: ImageSample, turns: int) -> ImageSample:
    """Return the sample turned clockwise by `turns` × 90°."""
    for _ in range(turns % 4):
        matrix = np.array([[0.0, -1.0, sample.size[0]], [1.0, 0.0, 0.0]])
        sample = _changed(
            sample,
            lambda image: torch.rot90(image, -1, (-2, -1)).contiguous(),
            lambda mask: torch.rot90(mask, -1, (-2, -1)).contiguous(),
            matrix,
        )
    return sample


def _changed(
    sample: ImageSample,
    image: Callable[[Tensor], Tensor],
    mask: Callable[[Tensor], Tensor],
    matrix: np.ndarray | None,
) -> ImageSample:
    """Return the sample with its pixels changed, and its labels moved by a 2 × 3 matrix where one is given."""
    objects, ignored = sample.objects, sample.ignored
    if matrix is not None:
        objects = None if objects is None else tuple(moved_object(label, matrix) for label in objects)
        ignored = tuple(moved_object(label, matrix) for label in ignored)
    return replace(
        sample,
        image_CHW=image(sample.image_CHW),
        later_CHW=None if sample.later_CHW is None else image(sample.later_CHW),
        semantic_HW=None if sample.semantic_HW is None else mask(sample.semantic_HW),
        objects=objects,
        ignored=ignored,
    )


def moved_object(label: ObjectLabel, matrix: np.ndarray) -> ObjectLabel:
    """Return the label under an affine map of points (2 × 3).

    The box stays the same box where axes go to axes; otherwise it is the box around the moved outline.
    """

    def move(flat: Sequence[float]) -> np.ndarray:
        moved_N2: np.ndarray = as_points(flat) @ matrix[:, :2].T + matrix[:, 2]
        return moved_N2

    x1, y1, x2, y2 = label.box
    box_42 = move((x1, y1, x2, y1, x2, y2, x1, y2))
    quad_42 = None if label.quad is None else move(label.quad)
    rings = [move(ring) for ring in label.polygons]
    linear = np.abs(matrix[:, :2])
    axes_stay = bool(min(linear[0, 0] + linear[1, 1], linear[0, 1] + linear[1, 0]) == 0)
    around = box_42
    if not axes_stay and rings:
        around = np.concatenate(rings)
    elif not axes_stay and quad_42 is not None:
        around = quad_42
    return replace(
        label,
        box=bounds(around),
        quad=None if quad_42 is None else as_flat(clockwise(quad_42)),
        polygons=tuple(as_flat(clockwise(ring)) for ring in rings),
        holes=tuple(as_flat(clockwise(move(hole))) for hole in label.holes),
    )
