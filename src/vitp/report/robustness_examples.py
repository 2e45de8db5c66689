"""One image under every corruption, with its labels drawn over it: what a robustness test showed the models.

Shapes: H × W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw

from vitp.data.formats.mask_classes import BACKGROUND
from vitp.data.ignored import known_semantic, outline
from vitp.data.image_sample import ImageSample
from vitp.evaluation.corruptions.catalogue import Corruption
from vitp.evaluation.corruptions.sets import corrupt_sample, load_pixels
from vitp.io.colours import CLASS_COLOURS
from vitp.records.labels import IGNORE, LabelledImage, LabelledSet
from vitp.report import Figure
from vitp.tasks.base import LabelKind

SIDE = 320
"""Pixels of the longer side of a picture, so that lines stay thin on small images."""

_LOOKED_AT = 16
_MASKS = ("semantic", "change")
_COUNTED, _UNCOUNTED = (255, 159, 28), (150, 150, 150)
_OUTLINED = ("objects", "instances", "oriented", "presence")


def example_figures(
    labelled: LabelledSet, kind: LabelKind | None, corruptions: Sequence[Corruption], severity: int, seed: int
) -> list[Figure]:
    """Return an image clean and under each corruption, with its objects' outlines or its mask.

    Args:
        labelled: Images of the test; of the first 16 the one with most objects is shown.
        kind: Which labels the task learns from; None: no task. Classes of whole images aren't drawn.
        corruptions: What happens.
        severity: 1 to 5.
        seed: Of the corruptions.
    """
    items = [labelled.items[index] for index in range(min(len(labelled), _LOOKED_AT))]
    item = max(items, key=lambda each: len(each.objects or ()))
    sample = _sample(item, kind)
    classes = labelled.semantic_classes if kind == "semantic" else ("unchanged", "changed")
    figures = [Figure(draw_labels(sample, classes), "clean")]
    for corruption in corruptions:
        changed = corrupt_sample(sample, corruption, severity, seed, item.id)
        figures.append(Figure(draw_labels(changed, classes), corruption.name.replace("_", " ")))
    return figures


def _sample(item: LabelledImage, kind: LabelKind | None) -> ImageSample:
    image_CHW = torch.from_numpy(np.array(load_pixels(item.image))).permute(2, 0, 1).contiguous()
    semantic_HW = None
    if kind == "semantic" and item.semantic is not None:
        semantic_HW = torch.from_numpy(np.array(known_semantic(item), np.uint8))
    elif kind == "change" and item.change is not None:
        semantic_HW = torch.from_numpy(item.change().astype(np.uint8))
    if kind not in _OUTLINED:
        return ImageSample(image_CHW, semantic_HW=semantic_HW)
    return ImageSample(image_CHW, objects=item.objects, semantic_HW=semantic_HW, ignored=item.ignored)


def draw_labels(sample: ImageSample, classes: Sequence[str], *, side: int = SIDE) -> Image.Image:
    """Return a sample's image, `side` pixels long, with its mask laid over it and its objects outlined.

    Difficult objects and ignored places, which count neither as found nor as missed, are outlined in grey.

    Args:
        sample: Image with labels.
        classes: Names of the mask's classes; "background" and "unchanged" are left as they are.
        side: Pixels of the longer side.
    """
    pixels_HWC = sample.image_CHW.permute(1, 2, 0).numpy().astype(np.float32)
    if sample.semantic_HW is not None:
        mask_HW = sample.semantic_HW.numpy()
        for number in np.unique(mask_HW[mask_HW != IGNORE]).tolist():
            if classes[number] not in (BACKGROUND, "unchanged"):
                colour = np.array(ImageColor.getrgb(CLASS_COLOURS[number % len(CLASS_COLOURS)]), np.float32)
                pixels_HWC[mask_HW == number] = 0.55 * pixels_HWC[mask_HW == number] + 0.45 * colour
    image = Image.fromarray(pixels_HWC.round().astype(np.uint8))
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(image)
    objects = sample.objects or ()
    uncounted = [*sample.ignored, *(label for label in objects if label.difficult)]
    coloured = [(label, _UNCOUNTED) for label in uncounted]
    coloured += [(label, _COUNTED) for label in objects if not label.difficult]
    for label, line in coloured:
        for ring in outline(label):
            points = [(x * scale, y * scale) for x, y in zip(ring[::2], ring[1::2], strict=True)]
            pen.line([*points, points[0]], fill=line, width=2)
    return image
