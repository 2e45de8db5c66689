"""One volume in, its files out: label map, probabilities, DICOM-SEG, objects, classes of slices, a picture.

Shapes: H × W pixels of a slice, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vitp.core.files import write_json
from vitp.core.reading import read_json
from vitp.inference.dicom_seg import write_dicom_seg
from vitp.inference.maps import SHARE_SCALE
from vitp.inference.outputs import Named, write_picture
from vitp.inference.raster_files import PICTURE_PIXELS, LargeWork, ground_picture
from vitp.inference.volume_files import (
    aggregate_words,
    class_counts,
    volume_classes,
    write_nifti_labels,
    write_nifti_shares,
    write_objects,
    write_slices_csv,
    write_volumes_csv,
)
from vitp.inference.volumes import VolumePrediction, plane_seen, trained_plane
from vitp.io.volumes import open_volume
from vitp.metrics.results import Prediction
from vitp.records.labels import BACKGROUND, IGNORE
from vitp.tasks.base import TaskModel
from vitp.tasks.dense import DenseModel
from vitp.tasks.seen import seen_settings

_TABLE = "table.json"
_SMALLEST_PICTURE = 320
"""Pixels of its longer side; smaller slices are drawn enlarged."""


class VolumeWork(LargeWork[VolumePrediction]):
    """The prediction of one volume; of any task but change."""

    def _opened(self, files: ExitStack) -> VolumePrediction:
        address = self.source.image
        volume = open_volume(address)
        plane, _ = plane_seen(trained_plane(self.model), address, volume)
        settings, factor, note = self.settings, 1.0, None
        if self.model.name != "classification":
            _, height, width = volume.grid.slices_shape(plane)
            settings, factor, note = seen_settings(self.model, self.settings, (height, width), None)
        if note is not None:
            self.say(f"{address} is {note}")
        return VolumePrediction(
            self.model,
            address,
            plane,
            settings,
            self.part,
            factor=factor,
            shares=self.options.probabilities,
        )

    def _write(self, prediction: VolumePrediction, model_sha256: str) -> None:
        write_json(self.part / _TABLE, self._written(prediction, model_sha256))

    def _written(self, prediction: VolumePrediction, model_sha256: str) -> Any:
        """Write all files but the table, and return what tables about all volumes say of this one."""
        name, volume, classes = self.source.name, prediction.volume, self.model.classes
        if self.model.name == "classification":
            self.say(aggregate_words(prediction))
            slices_NK, whole_K = volume_classes(prediction)
            write_slices_csv(self.out / "slices" / f"{name}.csv", prediction.plane, slices_NK, classes)
            return [float(value) for value in whole_K]
        if not isinstance(self.model, DenseModel):
            write_objects(self.out / "objects", name, prediction)
            self._write_picture(prediction)
            return []
        labels_IJK = prediction.classes_IJK()
        if self.options.format == "dicom-seg":
            # First: what it can't refer to leaves no other file.
            write_dicom_seg(self.out / "dicom-seg" / f"{name}.dcm", volume, labels_IJK, classes, model_sha256)
        write_nifti_labels(self.out / "masks" / f"{name}.nii.gz", volume, labels_IJK)
        if prediction.shares:
            path = self.out / "probabilities" / f"{name}.nii.gz"
            write_nifti_shares(path, volume, prediction.shares_IJKK(), 1 / SHARE_SCALE)
        self._write_picture(prediction)
        return class_counts(prediction)

    def _write_picture(self, prediction: VolumePrediction) -> None:
        """Draw the slice that shows most, its pixels as high as wide in millimetres."""
        number = _fullest(prediction)
        ground = prediction.ground(number)
        with ground.pixels:
            image = ground_picture(ground, PICTURE_PIXELS)
        _, height, width = prediction.shape
        spacing = prediction.volume.grid.slice_spacing(prediction.plane) or (1.0, 1.0, 1.0)
        finest = min(spacing[1:])
        sides = (width * spacing[2] / finest, height * spacing[1] / finest)
        # Enlarged to 320 px, eight times at most, and shrunk by as much as the slice was read coarser than it is.
        shrink = min(max(1.0, _SMALLEST_PICTURE / max(sides)), 8.0) * min(1.0, image.width / width)
        size = tuple(max(1, round(side * shrink)) for side in sides)
        image = image.resize((size[0], size[1]), Image.Resampling.BILINEAR)
        if isinstance(self.model, DenseModel):
            drawn = Image.fromarray(prediction.class_slice(number)).resize(
                image.size, Image.Resampling.NEAREST
            )
            found = Prediction(semantic_HW=torch.from_numpy(np.array(drawn)))
        else:
            found = _boxes(
                prediction.slice_values(number), self.model.classes, (size[0] / width, size[1] / height)
            )
        write_picture(self.out / "pictures" / f"{self.source.name}.png", image, found, self.model.classes)


def write_tables(out: Path, model: TaskModel, volumes: Mapping[str, str], parts: Path) -> list[Named]:
    """Write the table about all finished volumes, and return those that have classes as a whole.

    Args:
        out: Folder of the output.
        model: Their model.
        volumes: Name → address.
        parts: Folder in which each has its own.
    """
    tables = {name: read_json(parts / name / _TABLE) for name in volumes}
    if model.name == "segmentation":
        write_volumes_csv(out / "volumes.csv", tables)
    if model.name != "classification":
        return []
    return [
        Named(name, volumes[name], (0, 0), Prediction(probabilities_C=torch.tensor(probability_K)))
        for name, probability_K in tables.items()
    ]


def _fullest(prediction: VolumePrediction) -> int:
    """Return the slice that shows most: pixels of classes, or the sum of scores; the middle one where none does."""
    count = prediction.shape[0]
    if isinstance(prediction.model, DenseModel):
        classes = prediction.model.classes
        empty = [*(number for number, name in enumerate(classes) if name == BACKGROUND), IGNORE]
        shown = [float((~np.isin(prediction.class_slice(number), empty)).sum()) for number in range(count)]
    else:
        shown = [sum(row["score"] for row in prediction.slice_values(number)) for number in range(count)]
    return int(np.argmax(shown)) if any(shown) else count // 2


def _boxes(rows: list[dict[str, Any]], classes: tuple[str, ...], scale: tuple[float, float]) -> Prediction:
    scale_4 = torch.tensor([*scale, *scale])
    quads = [row["quad_px"] for row in rows if "quad_px" in row]
    return Prediction(
        boxes_N4=torch.tensor([row["box_px"] for row in rows], dtype=torch.float32).reshape(-1, 4) * scale_4,
        quads_N8=torch.tensor(quads, dtype=torch.float32) * scale_4.repeat(2) if quads else None,
        scores_N=torch.tensor([row["score"] for row in rows], dtype=torch.float32),
        labels_N=torch.tensor([classes.index(row["class"]) for row in rows], dtype=torch.int64),
    )
