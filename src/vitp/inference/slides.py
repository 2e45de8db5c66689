"""What only predictions of slides have: the resolution in a map's tags, and a table of areas.

    OUT/areas.csv    image, class, objects, pixels, area in mm², share of the tissue

Shapes: N objects.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitp.core.errors import DataError
from vitp.core.files import write_json, write_text
from vitp.core.reading import read_json
from vitp.inference.maps import RasterPrediction
from vitp.io.parts import FilePart, part_address, split_address
from vitp.io.slides import SlidePlace, slide_place
from vitp.records.labels import IGNORE
from vitp.tasks.dense import DenseModel
from vitp.tasks.merging import ViewObjects

AREAS_FILE = "areas.json"
"""Of one slide, among its parts."""
TISSUE = "(seen)"
"""Row of all that was seen of a slide."""
_ROWS = 512


def resolution_tags(slide: SlidePlace | None) -> dict[str, str]:
    """Return the tags of a TIFF that say how large its pixels are: pixels a centimetre, which slide viewers read."""
    if slide is None or slide.mpp is None:
        return {}
    x, y = (repr(10_000 / value) for value in slide.mpp)
    # Unit 3 is the centimetre.
    return {"TIFFTAG_XRESOLUTION": x, "TIFFTAG_YRESOLUTION": y, "TIFFTAG_RESOLUTIONUNIT": "3"}


@dataclass(frozen=True)
class SeenMpp:
    """At how many micrometres a pixel slides are seen, and why so: "as in training", say."""

    mpp: float
    why: str


def seen_slide(address: str, wanted: SeenMpp | None) -> tuple[str, str]:
    """Return the address of a slide at the resolution that it is seen at, and a line that says which that is.

    Raises:
        DataError: It doesn't say how many micrometres its pixels have, but that matters.
    """
    part = split_address(address)[1]
    if part.mpp is None and wanted is not None and wanted.mpp > 0:
        place = slide_place(address)
        if place is not None and place.mpp is None:
            what = f"doesn't say how many micrometres its pixels have, and is to be seen at {wanted.mpp:g}"
            fix = f"state it ({address}{'&' if '#' in address else '#'}own_mpp=…); --mpp 0 reads its own pixels, whatever they are"
            raise DataError(what, where=address, fix=fix)
        if place is not None and part.window is not None:
            what = f"chooses a window of its own pixels, and is to be seen at {wanted.mpp:g} µm a pixel"
            fix = f"say the window in these pixels (FILE#mpp={wanted.mpp:g}&window=…), or --mpp 0"
            raise DataError(what, where=address, fix=fix)
        address = part_address(address, FilePart(mpp=wanted.mpp))
        return address, f"{address} is seen at {wanted.mpp:g} µm a pixel, {wanted.why}"
    place = slide_place(address)
    if place is None or place.mpp is None:
        return (
            address,
            f"{address} doesn't say how many micrometres its pixels have; it is seen at its own pixels",
        )
    own = f"{math.sqrt(place.mpp[0] * place.mpp[1]):.4g} µm a pixel"
    why = "as its address says" if part.mpp or part.own_mpp else "its own resolution; --mpp chooses another"
    return address, f"{address} is seen at {own}, {why}"


class AreaTable:
    """How much of a slide is what: pixels and mm² of each class, and the number of its objects.

    Args:
        slide: Where the pixels lie.
        classes: Names.
        prediction: Prediction of the slide.
    """

    def __init__(self, slide: SlidePlace, classes: Sequence[str], prediction: RasterPrediction) -> None:
        self._slide, self._classes, self._prediction = slide, classes, prediction
        self._objects = np.zeros(len(classes), np.int64)
        self._pixels = np.zeros(len(classes), np.int64)
        self._outlined = False

    def add(self, objects: ViewObjects) -> None:
        """Count objects; the pixels of those that have masks."""
        labels = objects.labels_N.numpy()
        self._objects += np.bincount(labels, minlength=len(self._classes))
        if objects.masks is not None:
            self._outlined = True
            for label, mask in zip(labels.tolist(), objects.masks, strict=True):
                self._pixels[label] += int(mask.mask_hw.sum())

    def write(self, path: Path) -> None:
        """Write the rows as JSON."""
        dense = isinstance(self._prediction.model, DenseModel)
        seen = self._seen()
        if dense:
            counts = self._class_pixels()
            self._pixels, seen = counts[: len(self._classes)], int(counts[:IGNORE].sum())
        rows = [self._row(TISSUE, None, seen, seen)]
        for number, name in enumerate(self._classes):
            objects = None if dense else int(self._objects[number])
            pixels = int(self._pixels[number]) if dense or self._outlined else None
            rows.append(self._row(name, objects, pixels, seen))
        write_json(path, rows)

    def _row(self, name: str, objects: int | None, pixels: int | None, seen: int) -> dict[str, Any]:
        each = self._slide.square_micrometres
        return {
            "class": name,
            "objects": objects,
            "pixels": pixels,
            "area_mm2": None if pixels is None or each is None else round(pixels * each / 1e6, 6),
            "share": None if pixels is None or not seen else round(pixels / seen, 6),
        }

    def _class_pixels(self) -> np.ndarray:
        counts = np.zeros(256, np.int64)
        height = self._prediction.size[0]
        for top in range(0, height, _ROWS):
            bottom = min(top + _ROWS, height)
            if self._prediction.is_known(top, bottom):
                for row_W in self._prediction.class_rows(top, bottom):  # what is counted is copied as int64
                    counts += np.bincount(row_W, minlength=256)
        return counts

    def _seen(self) -> int:
        """Return how many pixels are tissue; all where that wasn't looked for."""
        height, width = self._prediction.size
        tissue = self._prediction.dates[0].tissue
        if tissue is None:
            return height * width
        return round(float(tissue.shares(np.array([[0, 0, width, height]]))[0]) * height * width)


def write_areas(path: Path, parts: Iterable[tuple[str, Path]]) -> None:
    """Write the tables of all slides as one CSV.

    Args:
        path: Path of the CSV.
        parts: Image, and the file of its table.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "class", "objects", "pixels", "area_mm2", "share"])
    for image, part in parts:
        for row in read_json(part):
            writer.writerow([image, *("" if value is None else value for value in row.values())])
    write_text(path, text.getvalue())
