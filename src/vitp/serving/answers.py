"""What was found in an image, as JSON, a picture, GeoJSON or a map.

Shapes: N objects, C classes, H × W pixels.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from vitp.inference.outputs import class_colour, picture, regions
from vitp.metrics.results import Prediction
from vitp.records.geometry import area
from vitp.records.labels import IGNORE
from vitp.tasks.merging import MaskPart, ViewObjects

JSON, GEOJSON, PNG, COG = "application/json", "application/geo+json", "image/png", "image/tiff"

FoundInImage = Prediction | ViewObjects | None
"""Of a picture, or of a raster that was seen window by window; None: no objects."""


@dataclass(frozen=True)
class Answer:
    """What a client gets.

    Attributes:
        content: JSON values, or the bytes of a file.
        media_type: Media type of these.
    """

    content: dict[str, Any] | bytes
    media_type: str = JSON


def json_values(
    task: str, classes: Sequence[str], size: tuple[int, int], found: FoundInImage
) -> dict[str, Any]:
    """Return what was found as JSON values.

    Args:
        task: Task of the model.
        classes: Names.
        size: Height and width of the image.
        found: In pixels of the image; objects that are sure enough alone.
    """
    values: dict[str, Any] = {"task": task, "width": size[1], "height": size[0]}
    if isinstance(found, Prediction) and found.probabilities_C is not None:
        shares = [round(float(share), 6) for share in found.probabilities_C.tolist()]
        rows = sorted(zip(shares, classes, strict=True), key=lambda row: -row[0])
        return values | {"scores": [{"class": name, "score": share} for share, name in rows]}
    if isinstance(found, Prediction) and found.semantic_HW is not None:
        classes_HW = found.semantic_HW.numpy()
        counts = np.bincount(classes_HW.ravel(), minlength=256)
        pixels = {name: round(int(counts[n]) / classes_HW.size, 6) for n, name in enumerate(classes)}
        png = base64.b64encode(mask_png(classes_HW)).decode("ascii")
        mask: dict[str, Any] = {"png": png, "classes": list(classes)}
        if found.certainty_HW is not None:
            grey = png_bytes(Image.fromarray(found.certainty_HW.numpy()))
            mask["certainty"] = base64.b64encode(grey).decode("ascii")
        return values | {"mask": mask, "pixels": pixels}
    return values | {"objects": list(_objects(classes, found))}


def _objects(classes: Sequence[str], found: FoundInImage) -> Iterator[dict[str, Any]]:
    if found is None:
        return
    assert found.scores_N is not None and found.labels_N is not None
    quads_N8, boxes_N4 = found.quads_N8, found.boxes_N4
    if quads_N8 is not None:
        points_N42 = quads_N8.reshape(-1, 4, 2)
        boxes_N4 = torch.cat([points_N42.amin(1), points_N42.amax(1)], dim=1)
    assert boxes_N4 is not None
    for row in torch.argsort(found.scores_N, descending=True, stable=True).tolist():
        one: dict[str, Any] = {
            "class": classes[int(found.labels_N[row])],
            "score": round(float(found.scores_N[row]), 5),
            "box": [round(value, 2) for value in boxes_N4[row].tolist()],
        }
        if quads_N8 is not None:
            one["outline"] = quads_N8[row].reshape(4, 2).double().numpy().round(2).tolist()
        part = _mask_of(found, row)
        if part is not None:
            one |= _outlines(part)
        yield one


def _mask_of(found: Prediction | ViewObjects, row: int) -> MaskPart | None:
    if isinstance(found, ViewObjects):
        return None if found.masks is None else found.masks[row]
    return None if found.masks_NHW is None else MaskPart((0, 0), found.masks_NHW[row].numpy())


def _outlines(part: MaskPart) -> dict[str, Any]:
    """Return the outer ring of an object's largest part, and those of others where there are some."""
    rings = [rings[0] for rings in regions(part.mask_hw, smallest=1)] if part.mask_hw.size else []
    rings = sorted((ring + np.array(part.at) for ring in rings), key=area, reverse=True)
    outlines = [ring.round(2).tolist() for ring in rings]
    return {"outline": outlines[0] if outlines else [], **({"parts": outlines[1:]} if outlines[1:] else {})}


def mask_png(classes_HW: np.ndarray) -> bytes:
    """Return a class map as a PNG of class numbers with the colours of the classes; 255: nothing is known."""
    image = Image.fromarray(classes_HW)
    image.putpalette([value for number in range(256) for value in class_colour(number)])
    return png_bytes(image, transparency=IGNORE)


def png_bytes(image: Image.Image, **options: Any) -> bytes:
    """Return an image as the bytes of a PNG."""
    file = io.BytesIO()
    image.save(file, format="PNG", compress_level=3, **options)
    return file.getvalue()


def drawn_png(planes_CHW: np.ndarray, prediction: Prediction, classes: Sequence[str]) -> bytes:
    """Return an RGB image with what was found drawn over it."""
    image = Image.fromarray(np.ascontiguousarray(planes_CHW.transpose(1, 2, 0)))
    return png_bytes(picture(image, prediction, classes))
