"""Oriented detections of crops as those of whole images, and as files for DOTA's evaluation server.

Shapes: N objects; 8: corners x1, y1, …, x4, y4.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from vitp import files
from vitp.errors import ConfigError, DataError
from vitp.models.rotated.boxes import boxes_of_quads, hulls_of_quads
from vitp.models.rotated.nms import rotated_nms
from vitp.tasks.base import Prediction

EPOCH = (1980, 1, 1, 0, 0, 0)
"""The same detections are the same file, whenever it is written."""


def merge_crops(
    parts: Sequence[tuple[tuple[float, float], Prediction]],
    iou_threshold: float = 0.1,
    limit: int | None = None,
) -> Prediction:
    """Return the objects of one image from those of its overlapping crops, surest first.

    What is seen in two crops is kept once: the surest of objects of a class that overlap.

    Args:
        parts: Left and upper edge of each crop in the image, in pixels, and what was found in it.
        iou_threshold: Rotated overlap of two objects of a class above which they are one.
        limit: Objects at most.
    """
    quads, scores, labels = [torch.zeros(0, 8)], [torch.zeros(0)], [torch.zeros(0, dtype=torch.int64)]
    for (left, top), prediction in parts:
        if prediction.quads_N8 is None or prediction.scores_N is None or prediction.labels_N is None:
            raise ValueError("the prediction has no oriented boxes")
        quads.append(prediction.quads_N8 + torch.tensor([left, top] * 4))
        scores.append(prediction.scores_N)
        labels.append(prediction.labels_N)
    quads_N8, scores_N, labels_N = torch.cat(quads), torch.cat(scores), torch.cat(labels)
    kept = rotated_nms(boxes_of_quads(quads_N8), scores_N, iou_threshold, labels_N)[:limit]
    return Prediction(
        boxes_N4=hulls_of_quads(quads_N8[kept]),
        quads_N8=quads_N8[kept],
        scores_N=scores_N[kept],
        labels_N=labels_N[kept],
    )


def write_dota_submission(
    predictions: Mapping[str, Prediction], classes: Sequence[str], path: str | Path
) -> None:
    """Write a zip archive as DOTA's server wants it for task 1.

    It holds `Task1_<class>.txt` for each class, a line `image score x1 y1 … x4 y4` for each object.

    Args:
        predictions: Name of the image without folder and ending → its objects, in pixels of the whole image.
        classes: Names.
        path: The archive.

    Raises:
        ConfigError: A name can't stand in such a file.
    """
    for name in (*classes, *predictions):
        if not name or "/" in name or "\\" in name or any(letter.isspace() for letter in name):
            raise ConfigError(
                f'"{name}" can\'t be the name of a class or an image in a DOTA submission',
                where=str(path),
                fix="use names without spaces and slashes",
            )
    lines: list[list[str]] = [[] for _ in classes]
    for image, prediction in predictions.items():
        if prediction.quads_N8 is None or prediction.scores_N is None or prediction.labels_N is None:
            raise ValueError("the prediction has no oriented boxes")
        for quad, score, label in zip(
            prediction.quads_N8.tolist(),
            prediction.scores_N.tolist(),
            prediction.labels_N.tolist(),
            strict=True,
        ):
            corners = " ".join(f"{value:.2f}" for value in quad)
            lines[label].append(f"{image} {score:.6f} {corners}\n")
    with (
        files.atomic_path(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name, rows in zip(classes, lines, strict=True):
            archive.writestr(zipfile.ZipInfo(f"Task1_{name}.txt", EPOCH), "".join(rows), zipfile.ZIP_DEFLATED)


def read_dota_submission(path: str | Path, classes: Sequence[str]) -> dict[str, Prediction]:
    """Return image → its objects from an archive that `write_dota_submission` or another tool wrote.

    Images without objects are not in it.

    Raises:
        DataError: It is no such archive, or a line can't be understood.
    """
    rows: dict[str, list[tuple[float, int, list[float]]]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            inside = set(archive.namelist())
            for label, name in enumerate(classes):
                if f"Task1_{name}.txt" not in inside:
                    continue
                text = archive.read(f"Task1_{name}.txt").decode()
                for number, line in enumerate(text.splitlines(), 1):
                    image, score, *corners = line.split() or ("", "")
                    if len(corners) != 8:
                        raise ValueError(
                            f"line {number} of class {name} has {len(corners)} coordinates, not 8"
                        )
                    rows.setdefault(image, []).append((float(score), label, [float(c) for c in corners]))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"is no DOTA submission ({error})", where=str(path)) from error
    return {image: _prediction(found) for image, found in rows.items()}


def _prediction(rows: Sequence[tuple[float, int, list[float]]]) -> Prediction:
    rows = sorted(rows, key=lambda row: -row[0])
    quads_N8 = torch.tensor([corners for _, _, corners in rows])
    return Prediction(
        boxes_N4=hulls_of_quads(quads_N8),
        quads_N8=quads_N8,
        scores_N=torch.tensor([score for score, _, _ in rows]),
        labels_N=torch.tensor([label for _, label, _ in rows]),
    )
