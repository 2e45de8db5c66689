"""Oriented detections as files for DOTA's evaluation server.

Shapes: N objects; 8: corners x1, y1, …, x4, y4.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from vitp.core import files
from vitp.core.errors import ConfigError, DataError
from vitp.metrics.results import Prediction
from vitp.models.rotated.boxes import hulls_of_quads

EPOCH = (1980, 1, 1, 0, 0, 0)
"""The same detections are the same file, whenever it is written."""


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
