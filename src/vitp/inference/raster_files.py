"""One raster in, its map out: class map, probabilities, polygons and picture; and the frame that volumes share.

Shapes: H × W pixels, R rows, N objects.
"""

from __future__ import annotations

import json
import math
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, Literal, TypeVar

import numpy as np
import torch
from PIL import Image

from vitp.core import distributed
from vitp.core.errors import DataError
from vitp.core.extras import need
from vitp.core.version import __version__
from vitp.inference.annotation_tasks import Tool
from vitp.inference.degrees import POLYGONS
from vitp.inference.inputs import InputFile, aligned, open_ground
from vitp.inference.map_files import write_class_cog, write_share_cog, written_by_gdal
from vitp.inference.maps import SHARE_SCALE, RasterPrediction
from vitp.inference.outputs import class_colour, regions, write_picture
from vitp.inference.polygons import class_polygons
from vitp.inference.slides import AREAS_FILE, AreaTable, resolution_tags
from vitp.inference.vectors import VectorFile, VectorKind, vector_path
from vitp.inference.volumes import VolumePrediction
from vitp.io.ground import pixel_metres
from vitp.io.images import image_size
from vitp.io.open_pixels import open_pixels
from vitp.io.slides import SlidePlace, slide_place
from vitp.io.tissue import Tissue, find_tissue
from vitp.metrics.results import Prediction
from vitp.records.labels import BACKGROUND
from vitp.tasks.base import TaskModel, TestSettings
from vitp.tasks.dense import DenseModel
from vitp.tasks.ground import RasterGround
from vitp.tasks.merging import ViewObjects
from vitp.tasks.seen import seen_settings

PredictionT = TypeVar("PredictionT", RasterPrediction, VolumePrediction)

CACHE_BYTES = 128 << 20
"""Of GDAL's blocks; by default it would take a share of the machine's memory."""

PICTURE_PIXELS = 1 << 22
"""Of the picture of a raster, at most; a larger raster is drawn on request, reduced."""

MAP_FOLDERS = {"segmentation": "masks", "change": "label"}
"""Task → folder of its class maps."""


@dataclass(frozen=True)
class MapOptions:
    """Which files are written of rasters, and how they are seen.

    Attributes:
        vector: Kind of the file of polygons.
        probabilities: Whether class probabilities are written.
        pictures: Whether large inputs get a picture, too.
        resolution: Metres of a pixel that the model sees; None: the raster's own.
        mpp: Micrometres of a pixel that the model sees of slides; 0: their own; None: as in training.
        tissue: Whether slides are seen only where they have tissue.
        format: Format of volumes: label maps are NIfTI; `dicom-seg` writes a DICOM-SEG beside it.
        tool: Annotation tool that gets tasks of pictures; "": none.
        url: What the names of images begin with in the tasks of Label Studio.
    """

    vector: VectorKind = "gpkg"
    probabilities: bool = False
    pictures: bool = False
    resolution: float | None = None
    mpp: float | None = None
    tissue: bool = True
    format: Literal["nifti", "dicom-seg"] = "nifti"
    tool: Tool = ""
    url: str = ""


class LargeWork(ABC, Generic[PredictionT]):
    """The prediction of one large input, from its parts to its files.

    Args:
        model: Model of a task that fits the input.
        source: The input.
        settings: How the model is applied.
        options: What is written.
        part: Folder for what is done.
        out: Folder of the output.
        say: Called with what was understood.
    """

    def __init__(
        self,
        model: TaskModel,
        source: InputFile,
        settings: TestSettings,
        options: MapOptions,
        part: Path,
        out: Path,
        say: Callable[[str], None],
    ) -> None:
        self.model, self.source, self.settings, self.options = model, source, settings, options
        self.part, self.say = part, say
        # Files come into the output together, once all are written: an input that turns out to be damaged leaves none.
        self.out, self._target = part / "files", out

    def run(self, model_sha256: str) -> str | None:
        """Predict the input, all processes together; return why it can't be used, if that turns out.

        Args:
            model_sha256: SHA-256 of the model's weights, for the files.
        """
        with ExitStack() as files:
            reason, prediction = None, None
            try:
                prediction = self._opened(files)
                prediction.compute()
            except DataError as error:
                reason = str(error)
            # All processes go the same way from here: one that stopped alone would let the others wait for it.
            reasons = [each for each in distributed.gather(reason) if each is not None]
            if not reasons and distributed.rank() == 0:
                assert prediction is not None
                try:
                    shutil.rmtree(self.out, ignore_errors=True)  # of an attempt that was stopped
                    with written_by_gdal(self._target):
                        self._write(prediction, model_sha256)
                    self._hand_over()
                    (self.part / "done").touch()
                except DataError as error:
                    reason = str(error)
            reasons = reasons or [each for each in distributed.gather(reason) if each is not None]
        if distributed.rank() == 0:
            shutil.rmtree(self.out, ignore_errors=True)
            # Working files. What else lies there tells a resumed prediction that this input is done.
            for file in self.part.glob("*"):
                if reasons or file.suffix in (".raw", ".npz", ".vrt") or file.name.startswith("slice-"):
                    file.unlink()
        distributed.barrier()
        return reasons[0] if reasons else None

    def _hand_over(self) -> None:
        """Move the finished files into the output."""
        for file in [path for path in self.out.rglob("*") if path.is_file()]:
            place = self._target / file.relative_to(self.out)
            place.parent.mkdir(parents=True, exist_ok=True)
            file.replace(place)

    @abstractmethod
    def _opened(self, files: ExitStack) -> PredictionT:
        """Return the prediction to compute; `files` closes what has to stay open until all is written."""

    @abstractmethod
    def _write(self, prediction: PredictionT, model_sha256: str) -> None:
        """Write all files of the input into `out`, which is empty."""


class RasterWork(LargeWork[RasterPrediction]):
    """The prediction of one raster, or of two dates; of any task but classification."""

    slide: SlidePlace | None = None

    def _opened(self, files: ExitStack) -> RasterPrediction:
        rasterio = need("geo", "rasterio", self.source.image)
        files.enter_context(rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES))
        channels = self.model.backbone.in_channels
        self.part.mkdir(parents=True, exist_ok=True)
        missing = self.settings.missing_bands
        tissue = self._tissue() if self.source.slide and self.options.tissue else None
        self.slide = slide_place(self.source.image) if self.source.slide else None
        first = files.enter_context(
            open_ground(self.source.image, channels, missing_bands=missing, tissue=tissue)
        )
        dates = [first]
        if len(self.source.dates) > 1:
            # Each process its own: nobody reads what another is still writing.
            target = self.part / f"later-{distributed.rank()}.vrt"
            with open_pixels(self.source.image) as pixels:
                later = aligned(pixels, self.source.dates[1], target)
            bands = None if later == self.source.dates[1] else first.bands
            dates.append(files.enter_context(open_ground(later, channels, bands, missing)))
        settings, factor, note = seen_settings(self.model, self.settings, first.size, self._factor(first))
        if note is not None:
            self.say(f"{self.source.image} is {note}")
        return RasterPrediction(
            self.model,
            dates,
            settings,
            self.part,
            factor=factor,
            shares=self.options.probabilities,
        )

    def _tissue(self) -> Tissue | None:
        """Return where a slide has tissue, and say how much of it that is."""
        address = self.source.image
        tissue = find_tissue(address)
        if tissue is None:
            return None
        width, height = image_size(address)
        share = float(tissue.shares(np.array([[0, 0, width, height]]))[0])
        if not share:
            what = "shows no tissue, so nothing of it would be seen"
            raise DataError(what, where=address, fix="--all-tiles sees all of it")
        self.say(f"{address}: {share:.1%} is tissue; the rest isn't seen (--all-tiles sees all)")
        return tissue

    def _factor(self, ground: RasterGround) -> float | None:
        """Return by what the raster's size is multiplied to have the wanted ground resolution."""
        wanted, geometry = self.options.resolution, ground.pixels.geometry
        if wanted is None or geometry is None:
            return None
        own = math.sqrt(math.prod(pixel_metres(geometry, ground.pixels.size)))
        self.say(f"{self.source.image} has {own:.4g} m a pixel and is seen at {wanted:g} m")
        return own / wanted

    def _facts(self, prediction: RasterPrediction) -> dict[str, str]:
        """Return what the files say about the model and its use."""
        settings, card = prediction.settings, self.model.description.get("card", {})
        seen = {
            "task": self.model.name,
            "classes": list(self.model.classes),
            "source": Path(self.source.image).name,
            "window": settings.window,
            "overlap": settings.overlap,
            **({"stagger": True} if settings.stagger else {}),
            "scales": list(settings.scales),
            "tta": "flip" if settings.flip and settings.tta == "none" else settings.tta,
            "resolution": self.options.resolution,
            "mpp": None if self.slide is None or self.slide.mpp is None else list(self.slide.mpp),
            **{f"trained_{key}": value for key, value in card.items()},
        }
        if len(self.source.dates) > 1:
            seen["later"] = Path(self.source.dates[1]).name
        texts = {
            f"vitp_{key}": value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for key, value in seen.items()
            if value is not None
        }
        return {"TIFFTAG_SOFTWARE": f"vitp {__version__}", **texts, **resolution_tags(self.slide)}

    def _tags(self, prediction: RasterPrediction, model_sha256: str) -> dict[str, str]:
        return {"vitp_model_sha256": model_sha256, **self._facts(prediction)}

    def _write(self, prediction: RasterPrediction, model_sha256: str) -> None:
        tags, classes = self._tags(prediction, model_sha256), self.model.classes
        if isinstance(self.model, DenseModel):
            self._write_classes(prediction, tags)
        if prediction.shares:
            write_share_cog(
                self.out / "probabilities" / f"{self.source.name}.tif",
                prediction.share_rows,
                prediction.size,
                prediction.dates[0].pixels.geometry,
                classes,
                tags,
                1 / SHARE_SCALE,
            )
        height, width = prediction.size
        drawn = self.options.pictures or height * width <= PICTURE_PIXELS or self.slide is not None
        boxes: list[ViewObjects] = []
        table = None if self.slide is None else AreaTable(self.slide, classes, prediction)
        takers = [
            *([lambda one: boxes.append(replace(one, masks=None))] if drawn else []),
            *([table.add] if table is not None else []),
        ]
        self._write_vectors(prediction, lambda objects: [take(objects) for take in takers])
        if table is not None:
            table.write(self.part / AREAS_FILE)
        if drawn:
            self._write_picture(prediction, boxes)

    def _write_classes(self, prediction: RasterPrediction, tags: Mapping[str, str]) -> Path:
        """Write the class map and return its file."""
        path = self.out / MAP_FOLDERS[self.model.name] / f"{self.source.name}.tif"
        write_class_cog(
            path,
            lambda top, bottom: prediction.class_rows(top, bottom)[None],
            prediction.size,
            prediction.dates[0].pixels.geometry,
            self.model.classes,
            tags,
            prediction.is_known,
        )
        return path

    def _write_vectors(self, prediction: RasterPrediction, show: Callable[[ViewObjects], object]) -> None:
        """Write the polygons, and show each part of the objects without their masks."""
        geometry, classes = prediction.dates[0].pixels.geometry, self.model.classes
        dense = isinstance(self.model, DenseModel)
        if self.options.vector == "none":
            for objects in () if dense else prediction.objects():
                show(objects)
            return
        path = vector_path(self.out / "vectors", self.source.name, self.options.vector, geometry, self.slide)
        with VectorFile(
            path,
            self.options.vector,
            geometry,
            scored=not dense,
            multi=self.model.name == "instance",
            slide=self.slide,
            colours={name: class_colour(number) for number, name in enumerate(classes)},
        ) as file:
            if dense:
                wanted = [n for n, name in enumerate(classes) if name not in (BACKGROUND, "unchanged")]
                found = class_polygons(
                    prediction.class_rows, prediction.size, wanted, known=prediction.is_known
                )
                for polygons_P, numbers_P in found:
                    file.add(polygons_P, [classes[number] for number in numbers_P.tolist()])
            else:
                for objects in prediction.objects():
                    file.add(*_object_polygons(objects, classes))
                    show(objects)

    def _write_picture(self, prediction: RasterPrediction, boxes: list[ViewObjects]) -> None:
        ground = prediction.dates[-1]
        image = ground_picture(ground, PICTURE_PIXELS // (1 if self.slide is None else 4))
        scale = image.width / ground.size[1]
        found = Prediction()
        if isinstance(self.model, DenseModel):
            rows = _nearest_rows(prediction, (image.height, image.width))
            found = Prediction(semantic_HW=torch.from_numpy(np.stack(list(rows))))
        elif boxes:
            objects = ViewObjects.joined(boxes)
            found = Prediction(
                boxes_N4=None if objects.boxes_N4 is None else objects.boxes_N4 * scale,
                quads_N8=None if objects.quads_N8 is None else objects.quads_N8 * scale,
                scores_N=objects.scores_N,
                labels_N=objects.labels_N,
            )
        write_picture(self.out / "pictures" / f"{self.source.name}.png", image, found, self.model.classes)


def _nearest_rows(prediction: RasterPrediction, size: tuple[int, int]) -> Iterator[np.ndarray]:
    height, width = prediction.size
    columns = (np.arange(size[1]) * width) // size[1]
    for row in range(size[0]):
        top = row * height // size[0]
        yield prediction.class_rows(top, top + 1)[0, columns]


def _object_polygons(
    objects: ViewObjects, classes: tuple[str, ...]
) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Return (N,) polygons in pixels, classes and scores; objects whose mask is empty are left out."""
    shapely = need("geo", "shapely", POLYGONS)

    names = [classes[label] for label in objects.labels_N.tolist()]
    scores_N = objects.scores_N.double().numpy()
    if objects.masks is None:
        if objects.quads_N8 is not None:
            rings_N42 = objects.quads_N8.double().numpy().reshape(-1, 4, 2)
        else:
            x1, y1, x2, y2 = objects.hulls_N4.double().numpy().T
            rings_N42 = np.stack([x1, y1, x2, y1, x2, y2, x1, y2], axis=1).reshape(-1, 4, 2)
        return shapely.polygons(rings_N42), names, scores_N
    polygons, kept = [], []
    for number, mask in enumerate(objects.masks):
        outlines = regions(mask.mask_hw, smallest=1) if mask.mask_hw.size else []
        parts = [shapely.Polygon(r[0] + mask.at, [hole + mask.at for hole in r[1:]]) for r in outlines]
        if parts:
            kept.append(number)
            # Those of one part too: the objects of a layer have one type.
            polygons.append(shapely.MultiPolygon(parts))
    return np.array(polygons, object), [names[number] for number in kept], scores_N[kept]


def ground_picture(ground: RasterGround, most: int) -> Image.Image:
    """Return a raster as a picture of at most so many pixels: the bands that stand for red, green and blue."""
    height, width = ground.size
    shrink = max(1.0, (height * width / most) ** 0.5)
    size = max(1, round(height / shrink)), max(1, round(width / shrink))
    channels = ground.channels
    if channels is not None:
        shown = [channels.channels[number] for number in channels.shown]
        channels = channels.model_copy(update={"channels": tuple(shown), "composite": None})
    known = ground.bands if channels is None else None
    seen = RasterGround(ground.pixels, channels, known, "zero" if None in ground.bands else "error")
    planes_CHW = seen.planes((0, 0, width, height), size).numpy()
    return Image.fromarray(np.ascontiguousarray(planes_CHW.transpose(1, 2, 0)))
