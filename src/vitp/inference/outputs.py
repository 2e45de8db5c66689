"""Predictions of pictures as files that other programs read: COCO JSON, DOTA text, GeoJSON, masks, tables.

    OUT/predictions.json        COCO: boxes and run-length masks with scores     (detection, instance, oriented)
    OUT/labelTxt/NAME.txt       DOTA: x1 y1 … x4 y4 class difficult              (oriented, detection)
    OUT/Task1.zip               DOTA's submission: image score x1 y1 … x4 y4     (oriented)
    OUT/geojson/NAME.pixels.geojson   outlines in pixels of the image, y down    (all but classification)
    OUT/panoptic.json, OUT/panoptic/NAME.png   COCO panoptic: segments, their ids as colours (panoptic)
    OUT/masks/NAME.png          class of each pixel; OUT/classes.txt names them  (segmentation)
    OUT/label/NAME.png          255 where something changed                      (change)
    OUT/predictions.csv         probability of each class                        (classification)
    OUT/pictures/NAME.png       drawn over the image
    OUT/vitp_predictions.json   which NAME stands for which image, and which images were left out

Shapes: N objects, C classes, H × W pixels.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw
from torch import Tensor

from vitp.core.errors import ConfigError
from vitp.core.extras import need
from vitp.core.files import atomic_path, to_json, write_json, write_text
from vitp.core.tensors import present
from vitp.inference.plates import LabelPlates
from vitp.io.colours import CLASS_COLOURS
from vitp.io.pixels import row_bands
from vitp.metrics.oriented_files import submission_problem, write_dota_submission
from vitp.metrics.results import Prediction
from vitp.records.geometry import area
from vitp.records.labels import BACKGROUND, IGNORE
from vitp.records.regions import parts
from vitp.records.rle import encode, encode_counts
from vitp.records.tool_shapes import rectangle_in_view

PIXEL_SUFFIX = ".pixels.geojson"
"""Of GeoJSON whose coordinates are pixels: programs that know longitude and latitude alone aren't to take it."""

SMALLEST_REGION = 4
"""Pixels of a region of a class map that becomes an outline in GeoJSON; the masks hold all."""


@dataclass(frozen=True)
class Named:
    """A prediction and what it is about.

    Attributes:
        name: Name of the files, without suffix; unique.
        image: Path as the user gave it.
        size: Height and width.
        prediction: In pixels of the image.
    """

    name: str
    image: str
    size: tuple[int, int]
    prediction: Prediction


def surest(prediction: Prediction, threshold: float) -> Prediction:
    """Return only the objects with a score of at least `threshold`."""
    if prediction.scores_N is None:
        return prediction
    kept = prediction.scores_N >= threshold

    def keep(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[kept]

    return replace(
        prediction,
        boxes_N4=keep(prediction.boxes_N4),
        quads_N8=keep(prediction.quads_N8),
        scores_N=keep(prediction.scores_N),
        labels_N=keep(prediction.labels_N),
        masks_NHW=keep(prediction.masks_NHW),
        things_N=keep(prediction.things_N),
    )


def write_coco(path: Path, found: Sequence[Named], classes: Sequence[str]) -> None:
    """Write images, objects (box, run-length mask where there is one, score) and categories (from 1) as COCO JSON."""
    annotations: list[dict[str, Any]] = []
    for number, named in enumerate(found, 1):
        boxes_N4, masks_NHW = named.prediction.boxes_N4, named.prediction.masks_NHW
        scores_N, labels_N = _scored(named.prediction)
        if boxes_N4 is None and named.prediction.quads_N8 is not None:
            points_N42 = named.prediction.quads_N8.reshape(-1, 4, 2)
            boxes_N4 = torch.cat([points_N42.amin(1), points_N42.amax(1)], dim=1)
        assert boxes_N4 is not None
        for index, (x1, y1, x2, y2) in enumerate(boxes_N4.tolist()):
            row = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": int(labels_N[index]) + 1,
                "bbox": [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)],
                "score": round(float(scores_N[index]), 5),
                "area": round((x2 - x1) * (y2 - y1), 3),
                "iscrowd": 0,
            }
            if masks_NHW is not None:
                mask_HW = masks_NHW[index].numpy()
                runs = encode(mask_HW)
                # As text: COCO's tools refuse run lengths as numbers in what was found (`loadRes`).
                mask = {"size": runs["size"], "counts": encode_counts(runs["counts"])}
                row |= {"segmentation": mask, "area": int(mask_HW.sum())}
            annotations.append(row)
    images = [
        {"id": number, "file_name": named.image, "width": named.size[1], "height": named.size[0]}
        for number, named in enumerate(found, 1)
    ]
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, 1)]
    write_json(path, {"images": images, "annotations": annotations, "categories": categories})


def write_dota(path: Path, named: Named, classes: Sequence[str]) -> None:
    """Write the objects of one image as DOTA label text, surest first; spaces in class names become hyphens."""
    _, labels_N = _scored(named.prediction)
    rows = [
        " ".join(
            [*(f"{value:.2f}" for value in ring.reshape(-1)), classes[int(label)].replace(" ", "-"), "0"]
        )
        for ring, label in zip(_quads(named.prediction), labels_N, strict=True)
    ]
    write_text(path, "".join(f"{row}\n" for row in rows))


def write_geojson(path: Path, named: Named, classes: Sequence[str]) -> None:
    """Write the outlines of objects, or of the regions of a class map, in pixels of the image with y down.

    Regions of "background" and "unchanged" are left out, and regions of fewer than four pixels.
    """
    prediction = named.prediction
    features = []
    if prediction.semantic_HW is not None:
        semantic_HW = prediction.semantic_HW.numpy()
        for number, name in enumerate(classes):
            if name not in (BACKGROUND, "unchanged"):
                found = regions(semantic_HW == number)
                features += [_feature([rings], {"class": name}) for rings in found]
    else:
        scores_N, labels_N = _scored(prediction)
        for index, (score, label) in enumerate(zip(scores_N.tolist(), labels_N.tolist(), strict=True)):
            if prediction.masks_NHW is not None:
                polygons = regions(prediction.masks_NHW[index].numpy(), smallest=1)
            else:
                polygons = [[_quads(prediction)[index]]]
            if polygons:
                features.append(_feature(polygons, {"class": classes[label], "score": round(score, 5)}))
    content = {
        "type": "FeatureCollection",
        "coordinates": "pixels of the image, x to the right, y down",
        "image": named.image,
        "features": features,
    }
    write_text(path, to_json(content) + "\n")


def regions(mask_HW: np.ndarray, *, smallest: int = SMALLEST_REGION) -> list[list[np.ndarray]]:
    """Return the connected regions of a mask as an outer ring and rings of holes each, along the pixels' edges.

    Pixels that only touch at a corner are two regions: a ring must not touch itself in GeoJSON.
    """
    return [
        [part.rings[0], *(hole[::-1] for hole in part.holes)]
        for part in parts(mask_HW)
        if area(part.rings[0]) >= smallest
    ]


def _feature(polygons: Sequence[Sequence[np.ndarray]], properties: dict[str, Any]) -> dict[str, Any]:
    closed = [
        [np.concatenate([ring, ring[:1]]).round(2).tolist() for ring in polygon] for polygon in polygons
    ]
    geometry: dict[str, Any] = {"type": "Polygon", "coordinates": closed[0]}
    if len(closed) > 1:
        geometry = {"type": "MultiPolygon", "coordinates": closed}
    return {"type": "Feature", "properties": properties, "geometry": geometry}


def _scored(prediction: Prediction) -> tuple[Tensor, Tensor]:
    assert prediction.scores_N is not None and prediction.labels_N is not None
    return prediction.scores_N, prediction.labels_N


def _quads(prediction: Prediction) -> np.ndarray:
    """Return (N, 4, 2) corners of the oriented boxes, else of the boxes."""
    if prediction.quads_N8 is not None:
        return prediction.quads_N8.reshape(-1, 4, 2).double().numpy()
    assert prediction.boxes_N4 is not None
    x1, y1, x2, y2 = prediction.boxes_N4.double().numpy().T
    return np.stack([x1, y1, x2, y1, x2, y2, x1, y2], axis=1).reshape(-1, 4, 2)


def write_mask(path: Path, semantic_HW: Tensor) -> None:
    """Write a class map as a PNG of class numbers that shows colours in any viewer."""
    image = Image.fromarray(semantic_HW.numpy())
    image.putpalette([value for number in range(256) for value in class_colour(number)])
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")


def write_change(path: Path, semantic_HW: Tensor) -> None:
    """Write a change mask: 255 where something changed."""
    with atomic_path(path) as temporary:
        Image.fromarray((semantic_HW.numpy() == 1).astype(np.uint8) * 255).save(temporary, format="PNG")


def write_segments(path: Path, prediction: Prediction) -> None:
    """Write segments as COCO's panoptic PNG: the number of each pixel's, from 1, as R + 256 G + 65536 B; 0 is void."""
    masks_NHW = present(prediction.masks_NHW).numpy()
    ids_HW = np.zeros(masks_NHW.shape[1:], np.uint32)
    for number, mask_HW in enumerate(masks_NHW, 1):
        ids_HW[mask_HW] = number
    pixels_HWC = np.stack([ids_HW & 255, ids_HW >> 8 & 255, ids_HW >> 16], axis=-1).astype(np.uint8)
    with atomic_path(path) as temporary:
        Image.fromarray(pixels_HWC).save(temporary, format="PNG")


def write_probabilities(path: Path, found: Sequence[Named], classes: Sequence[str]) -> None:
    """Write the surest class and the probability of every class of each image as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "class", *classes])
    for named in found:
        probability_C = named.prediction.probabilities_C
        assert probability_C is not None
        values = [f"{value:.5f}" for value in probability_C.tolist()]
        writer.writerow([named.image, classes[int(probability_C.argmax())], *values])
    write_text(path, text.getvalue())


def class_colour(number: int) -> tuple[int, int, int]:
    """Return red, green and blue of a class; black for 255."""
    if number == IGNORE:
        return 0, 0, 0
    red, green, blue = ImageColor.getrgb(CLASS_COLOURS[number % len(CLASS_COLOURS)])[:3]
    return red, green, blue


def picture(image: Image.Image, prediction: Prediction, classes: Sequence[str]) -> Image.Image:
    """Return the image with what was found drawn over it."""
    pixels_HWC = np.array(image.convert("RGB"))
    if prediction.semantic_HW is not None:
        classes_HW = prediction.semantic_HW.numpy()
        for number, name in enumerate(classes):
            if name not in (BACKGROUND, "unchanged"):
                _tint(pixels_HWC, classes_HW == number, class_colour(number))
    if prediction.masks_NHW is not None and prediction.labels_N is not None:
        for mask_HW, label in zip(prediction.masks_NHW.numpy(), prediction.labels_N.tolist(), strict=True):
            _tint(pixels_HWC, mask_HW, class_colour(label))
    drawn = Image.fromarray(pixels_HWC)
    pen = ImageDraw.Draw(drawn)
    width = max(1, round(max(drawn.size) / 400))
    if prediction.things_N is not None:
        _draw_segments(pen, prediction, classes, width, drawn.size)
    elif prediction.scores_N is not None:
        _draw_objects(pen, prediction, classes, width, drawn.size)
    if prediction.probabilities_C is not None:
        best = int(prediction.probabilities_C.argmax())
        text = f"{classes[best]} {prediction.probabilities_C[best]:.2f}"
        LabelPlates(pen, drawn.size).beside(text, [(2.0, 2.0)], class_colour(best))
    return drawn


def _draw_objects(
    pen: ImageDraw.ImageDraw,
    prediction: Prediction,
    classes: Sequence[str],
    width: int,
    size: tuple[int, int],
) -> None:
    """Draw the outlines of objects in the colours of their classes, and their names beside them, the surest first."""
    scores_N, labels_N = _scored(prediction)
    rings = [[(float(x), float(y)) for x, y in ring] for ring in _quads(prediction)]
    for ring, label in zip(rings, labels_N.tolist(), strict=True):
        pen.line([*ring, ring[0]], fill=class_colour(label), width=width)
    plates = LabelPlates(pen, size, rings)
    for number in scores_N.argsort(descending=True, stable=True).tolist():
        label = int(labels_N[number])
        plates.beside(f"{classes[label]} {scores_N[number]:.2f}", rings[number], class_colour(label))


def _draw_segments(
    pen: ImageDraw.ImageDraw,
    prediction: Prediction,
    classes: Sequence[str],
    width: int,
    size: tuple[int, int],
) -> None:
    """Draw the outlines of segments in white, and the name of each within it, those of large ones first."""
    scores_N, labels_N = _scored(prediction)
    masks_NHW = present(prediction.masks_NHW).numpy()
    order = (-masks_NHW.sum((1, 2), dtype=np.int64)).argsort(kind="stable").tolist()
    named: list[tuple[str, tuple[float, float], int]] = []
    for number in order:
        mask_HW, label = masks_NHW[number], int(labels_N[number])
        rings = [ring for part in regions(mask_HW, smallest=1) for ring in part]
        for ring in rings:
            points = [(float(x), float(y)) for x, y in ring]
            pen.line([*points, points[0]], fill="white", width=width)
        if rings:
            # The pixel that lies deepest in the segment.
            depth_HW = cv2.distanceTransform(np.pad(mask_HW, 1).astype(np.uint8), cv2.DIST_L2, 3)
            row, column = np.unravel_index(int(depth_HW.argmax()), depth_HW.shape)
            # One pixel less for the padding, half a pixel more for the middle of the pixel.
            place = (float(column) - 0.5, float(row) - 0.5)
            named.append((f"{classes[label]} {scores_N[number]:.2f}", place, label))
    plates = LabelPlates(pen, size)
    for text, place, label in named:
        plates.within(text, place, class_colour(label))


def _tint(pixels_HWC: np.ndarray, mask_HW: np.ndarray, colour: tuple[int, int, int]) -> None:
    """Mix a colour half and half into the masked pixels, a few rows at a time: images may be large."""
    half_3 = np.float32(0.5) * np.array(colour, np.float32)
    for top, bottom in row_bands(mask_HW.shape[1], mask_HW.shape[0]):
        part, chosen = pixels_HWC[top:bottom], mask_HW[top:bottom].astype(bool)
        part[chosen] = np.rint(np.float32(0.5) * part[chosen] + half_3).astype(np.uint8)


def write_picture(path: Path, image: Image.Image, prediction: Prediction, classes: Sequence[str]) -> None:
    """Write `picture` as PNG."""
    drawn = picture(image, prediction, classes)
    with atomic_path(path) as temporary:
        drawn.save(temporary, format="PNG")


def write_image(
    out: Path, task: str, named: Named, classes: Sequence[str], image: Image.Image | None
) -> None:
    """Write the files of one image; see the head of this file.

    Args:
        out: Folder.
        task: Task of the model.
        named: What was found.
        classes: Names.
        image: What the picture is drawn over; None: no picture.
    """
    if image is not None:
        write_picture(out / "pictures" / f"{named.name}.png", image, named.prediction, classes)
    if task == "classification":
        return
    write_geojson(out / "geojson" / f"{named.name}{PIXEL_SUFFIX}", named, classes)
    semantic_HW = named.prediction.semantic_HW
    if task == "change" and semantic_HW is not None:
        write_change(out / "label" / f"{named.name}.png", semantic_HW)
    elif task == "panoptic":
        write_segments(out / "panoptic" / f"{named.name}.png", named.prediction)
    elif semantic_HW is not None:
        write_mask(out / "masks" / f"{named.name}.png", semantic_HW)
    else:
        write_dota(out / "labelTxt" / f"{named.name}.txt", named, classes)


def write_summary(out: Path, task: str, found: Sequence[Named], classes: Sequence[str]) -> str | None:
    """Write the files about all images of a task that has them, and return what is to be said of them, if anything is.

    The head of this file names them. A submission is for DOTA's server, whose rows end a name at a space: of other
    names none is written.
    """
    if task == "classification":
        write_probabilities(out / "predictions.csv", found, classes)
    elif task == "segmentation":
        write_text(out / "classes.txt", "".join(f"{name}\n" for name in classes))
    elif task != "change":
        write_coco(out / "predictions.json", found, classes)
    if task != "oriented":
        return None
    objects = {named.name: named.prediction for named in found}
    if (problem := submission_problem((*classes, *objects))) is not None:
        return f"no Task1.zip is written: {problem}"
    write_dota_submission(objects, classes, out / "Task1.zip")
    return None


def to_supervision(prediction: Prediction, classes: Sequence[str], *, threshold: float = 0.0) -> Any:
    """Return a prediction as `supervision.Detections`, which other libraries draw, track, count and slice.

    Objects become one row each, with `xyxy`, `mask` (instances), `confidence`, `class_id` and
    `data["class_name"]`; the corners of oriented boxes are `data["xyxyxyxy"]`, (N, 4, 2). A class map becomes one row
    for each class that is somewhere in the image (of change: what changed), with its mask and without a confidence.

    Args:
        prediction: Prediction of one image, from `predict_images` or `TaskModel.predict`.
        classes: Names of the model's classes.
        threshold: Objects with a lower score, 0..1, are left out.

    Raises:
        ConfigError: supervision isn't installed, or the prediction is of a whole image (classification).
    """
    supervision = need("supervision", "supervision", "to_supervision", ConfigError)
    if prediction.semantic_HW is not None:
        return _map_of_classes(supervision, prediction.semantic_HW.numpy(), classes)
    if prediction.scores_N is None or prediction.labels_N is None:
        raise ConfigError(
            "holds no objects and no class map",
            where="to_supervision",
            fix="of a classification take probabilities_C, as supervision.Classifications does",
        )
    kept = surest(prediction, threshold)
    scores, labels = (tensor.numpy() for tensor in _scored(kept))
    data: dict[str, Any] = {"class_name": np.array([classes[label] for label in labels], dtype=str)}
    if kept.quads_N8 is not None:
        quads_N42 = kept.quads_N8.numpy().reshape(-1, 4, 2)
        data["xyxyxyxy"] = quads_N42
        xyxy = np.concatenate([quads_N42.min(1), quads_N42.max(1)], axis=1)
    else:
        assert kept.boxes_N4 is not None
        xyxy = kept.boxes_N4.numpy().reshape(-1, 4)
    masks = None if kept.masks_NHW is None else kept.masks_NHW.numpy().astype(bool)
    return supervision.Detections(
        xyxy=xyxy, mask=masks, confidence=scores, class_id=labels.astype(int), data=data
    )


def _map_of_classes(supervision: Any, semantic_HW: np.ndarray, classes: Sequence[str]) -> Any:
    changed = list(classes[:2]) == ["unchanged", "changed"]
    found = [
        label for label in np.unique(semantic_HW) if label < len(classes) and not (changed and label == 0)
    ]
    masks = np.array([semantic_HW == label for label in found], bool).reshape(-1, *semantic_HW.shape)
    boxes = np.zeros((len(found), 4), np.float32)
    for row, mask in enumerate(masks):
        (y,), (x,) = (np.nonzero(mask.any(axis)) for axis in (1, 0))
        boxes[row] = x[0], y[0], x[-1] + 1, y[-1] + 1
    names = np.array([classes[label] for label in found], dtype=str)
    return supervision.Detections(
        xyxy=boxes, mask=masks, class_id=np.array(found, dtype=int), data={"class_name": names}
    )


def quads_in_view(named: Named) -> list[tuple[float, ...] | None]:
    """Return oriented boxes as a tool can show them, None for one outside of the image; see `rectangle_in_view`."""
    quads_N8, (height, width) = named.prediction.quads_N8, named.size
    found = [] if quads_N8 is None else quads_N8.double().tolist()
    return [rectangle_in_view(quad, width, height) for quad in found]
