"""Oriented detections as files for DOTA's evaluation server.

Shapes: N objects; 8: corners x1, y1, …, x4, y4.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from vitp.core import files
from vitp.core.errors import ConfigError
from vitp.metrics.oriented import found_oriented
from vitp.metrics.results import Prediction

EPOCH = (1980, 1, 1, 0, 0, 0)
"""The same detections are the same file, whenever it is written."""


def submission_problem(names: Iterable[str]) -> str | None:
    """Return what keeps names of classes and images from standing in a submission; None: they can."""
    for name in names:
        if not name or "/" in name or "\\" in name or any(letter.isspace() for letter in name):
            return f'"{name}" can\'t be the name of a class or an image in a DOTA submission'
    return None


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
    if (problem := submission_problem((*classes, *predictions))) is not None:
        raise ConfigError(problem, where=str(path), fix="use names without spaces and slashes")
    lines: list[list[str]] = [[] for _ in classes]
    for image, prediction in predictions.items():
        found = found_oriented(prediction)
        objects = zip(found.quads_N8.tolist(), found.scores_N.tolist(), found.labels_N.tolist(), strict=True)
        for quad, score, label in objects:
            corners = " ".join(f"{value:.2f}" for value in quad)
            lines[label].append(f"{image} {score:.6f} {corners}\n")
    with (
        files.atomic_path(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name, rows in zip(classes, lines, strict=True):
            # With a ZipInfo the way of compression that the archive was opened with doesn't count.
            archive.writestr(zipfile.ZipInfo(f"Task1_{name}.txt", EPOCH), "".join(rows), zipfile.ZIP_DEFLATED)
