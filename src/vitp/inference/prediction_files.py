"""`vitp predict`: images and rasters in, files of predictions out; files of pictures: `vitp.inference.outputs`.

OUT/masks/NAME.tif           class map as a COG; 255: nothing is known          (segmentation)
OUT/label/NAME.tif           1 where something changed, 0 where not             (change)
OUT/probabilities/NAME.tif   a band for each class; on request                  (segmentation, change)
OUT/vectors/NAME.gpkg        polygons with class, score and area                (all but classification)
OUT/pictures/NAME.png        drawn over the raster; large ones on request
OUT/vectors/NAME.geojson     of a slide: what QuPath imports, in pixels of its finest level
OUT/areas.csv                of slides: mm² and objects of each class
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image

from vitp.core import distributed
from vitp.core.errors import ConfigError, DataError, VitpError
from vitp.core.files import write_json
from vitp.core.targets import check_folder
from vitp.core.tensors import present, weights_sha256
from vitp.core.version import __version__
from vitp.inference.annotation_order import may_be_several, uncertainty
from vitp.inference.annotation_tasks import LookedAt, TaskWriter, check_tool
from vitp.inference.dicom_seg import check_dicom
from vitp.inference.inputs import InputFile, Unusable, shown_size, sources_of
from vitp.inference.outputs import Named, surest, write_image, write_summary
from vitp.inference.panoptic_files import write_panoptic
from vitp.inference.picture_parts import PictureParts, picture_part, save_part
from vitp.inference.pictures import classified_raster, read_picture
from vitp.inference.raster_files import MAP_FOLDERS, MapOptions, RasterWork
from vitp.inference.slides import AREAS_FILE, SeenMpp, write_areas
from vitp.inference.unfinished import differing, unfinished
from vitp.inference.volume_work import VolumeWork, write_tables
from vitp.inference.volumes import trained_plane
from vitp.io.images import load_image
from vitp.io.parts import base_address, split_address
from vitp.io.pixels import LARGE_PIXELS
from vitp.io.volumes import is_volume, open_volume
from vitp.metrics.results import Prediction
from vitp.tasks.base import READ_BY_WINDOWS, TaskModel, TestSettings, WholeImageModel, check_whole
from vitp.tasks.panoptic import QueryPanoptic
from vitp.tasks.predict import predict_images

PREDICTIONS_FILE = "vitp_predictions.json"
"""Which file names stand for which image, and what was left out; tells that a folder is ours to replace."""

_FORMAT = "vitp-predictions-1"
_LATER = {"mpp": None, "tissue": True, "format": "nifti", "tool": "", "url": ""}
"""Options of later versions, and what they are where nobody says otherwise."""

Looked = TypeVar("Looked")


@dataclass(frozen=True)
class _Job:
    """What all inputs of a prediction share."""

    model: TaskModel
    settings: TestSettings
    options: MapOptions
    folder: Path
    model_sha256: str
    say: Callable[[str], None]

    def is_map(self, source: InputFile) -> bool:
        """Return whether an input becomes a map: a raster, unless it has one class as a whole."""
        return source.raster and self.model.name != "classification"

    def is_picture(self, source: InputFile) -> bool:
        """Return whether an input is seen on its own, by one process."""
        return not (source.volume or self.is_map(source))


def predict_files(
    model: TaskModel,
    images: Sequence[str | Path],
    out: Path,
    settings: TestSettings,
    *,
    later: Sequence[str | Path] | None = None,
    overwrite: bool = False,
    resume: bool = False,
    options: MapOptions | None = None,
    tell: Callable[[Unusable], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[int, list[Unusable]]:
    """Write the predictions of images into a folder that appears when it is whole.

    Inputs that can't be used are known before the first is predicted. Under torchrun the processes share pictures and
    the windows of rasters; the result is the same.

    Args:
        model: Any task's.
        images: Files, or folders of them.
        out: New or empty folder, or one of earlier predictions.
        settings: How the model is applied; objects below `score_threshold` are left out.
        later: For change, the later dates.
        overwrite: Replace earlier predictions.
        resume: Go on where an earlier call was killed, to the same result.
        options: Which files are written.
        tell: Called with each input that can't be used, once it is known.
        say: Called with what was understood, in a sentence.

    Returns:
        How many images were predicted, and the inputs that were left out.

    Raises:
        VitpError: No image can be used, later dates are missing or of no use, or `out` can't be written.
    """
    options = options or MapOptions()
    distributed.initialize(model.device)
    sources, digest = _on_first(lambda: _looked_at(model, images, out, later, overwrite, options, settings))
    tell, say = (tell, say) if distributed.rank() == 0 else (_nothing, _nothing)
    left_out = [Unusable(source.image, source.reason) for source in sources if source.reason is not None]
    usable = [source for source in sources if source.reason is None]
    for one in left_out:
        tell(one)
    if not usable:
        raise _nothing_usable(left_out)
    for note in chain.from_iterable(source.notes for source in usable):
        say(note)
    plan = _plan(sources, settings, options, digest)
    with unfinished(out, plan, resume=resume, say=say) as folder:
        job = _Job(model, settings, options, folder, digest, say)
        failed = set()
        for source, reason in chain(_pictures(job, usable), _large(job, usable)):
            failed.add(source.name)
            left_out.append(Unusable(source.image, reason))
            tell(left_out[-1])
        done = [source for source in usable if source.name not in failed]
        _finish(job, done, left_out, plan)
    return len(done), left_out


def _nothing(_: object) -> None:
    pass


def is_predictions(folder: Path) -> bool:
    """Return whether a folder holds what `predict_files` wrote."""
    try:
        value = json.loads((folder / PREDICTIONS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.get("format") == _FORMAT


def check_complete(
    model: TaskModel,
    images: Sequence[str | Path],
    out: Path,
    settings: TestSettings,
    *,
    later: Sequence[str | Path] | None = None,
    options: MapOptions | None = None,
) -> None:
    """Do nothing where a folder holds what `predict_files` would write, or is from before plans were noted down.

    Args:
        model, images, settings, later, options: As of `predict_files`.
        out: Folder of finished predictions.

    Raises:
        ConfigError: They are of another model, other settings, options or inputs.
        DataError: An input doesn't exist.
    """
    earlier = json.loads((out / PREDICTIONS_FILE).read_text(encoding="utf-8")).get("plan")
    if not isinstance(earlier, dict):
        return
    options = options or MapOptions()
    sources, digest = _looked_at(model, images, out, later, True, options, settings)
    other = differing(_plan_digests(_plan(sources, settings, options, digest)), earlier)
    if other:
        raise ConfigError(
            f"finished predictions are there, of other {' and '.join(other)}",
            where=str(out),
            fix="replace them with --force, or choose another --out",
        )


def _on_first(compute: Callable[[], Looked]) -> Looked:
    """Return on every process what the first one computes."""
    found: Looked | None = None
    error: VitpError | None = None
    if distributed.rank() == 0:
        try:
            found = compute()
        except VitpError as stopped:
            error = stopped
    distributed.raise_together(error)
    values: list[Looked] = distributed.gather(found)  # type: ignore[arg-type]  # the first one's is no None
    return values[0]


def _looked_at(
    model: TaskModel,
    images: Sequence[str | Path],
    out: Path,
    later: Sequence[str | Path] | None,
    overwrite: bool,
    options: MapOptions,
    settings: TestSettings,
) -> tuple[list[InputFile], str]:
    inputs = [split_address(one)[0] for one in chain(images, later or ())]
    check_folder(out, is_predictions, what="predictions", overwrite=overwrite, inputs=inputs)
    mpp, plane = seen_mpp(model, options), trained_plane(model)
    channels = model.backbone.in_channels
    sources = sources_of(images, later, model.name, channels, settings.missing_bands, mpp, plane)
    if isinstance(model, WholeImageModel):
        check_whole(settings)
        why = f"can't be used: {model.name} {READ_BY_WINDOWS}; cut it, and save the parts as pictures"
        sources = [
            replace(source, reason=why)
            if source.reason is None and (source.volume or source.raster)
            else source
            for source in sources
        ]
    if options.format == "dicom-seg":
        sources = [_with_dicom(source) for source in sources]
    if options.tool:
        check_tool(options.tool, model.name)
        why = "is no picture, which is what annotation tools show"
        mapped = [source.volume or (source.raster and model.name != "classification") for source in sources]
        sources = [
            replace(source, reason=why) if source.reason is None and is_mapped else source
            for source, is_mapped in zip(sources, mapped, strict=True)
        ]
    if options.resolution is not None:
        why = "doesn't say where it lies, so a resolution in metres means nothing"
        sources = [
            replace(source, reason=why) if source.reason is None and not source.placed else source
            for source in sources
        ]
    return sources, weights_sha256(model)


def _with_dicom(source: InputFile) -> InputFile:
    """Return an input that can't be used where no DICOM-SEG can refer to it."""
    if source.reason is not None:
        return source
    try:
        if not source.volume:
            return replace(source, reason="is no volume, so that no DICOM-SEG can be written")
        check_dicom(open_volume(source.image))
    except DataError as error:
        return replace(source, reason=error.advice)
    return source


def seen_mpp(model: TaskModel, options: MapOptions) -> SeenMpp | None:
    """Return at how many micrometres a pixel slides are seen; None: as their address says, or at their own."""
    if options.mpp is not None:
        return SeenMpp(options.mpp, "as was asked for")
    trained = model.description.get("mpp")
    return None if trained is None else SeenMpp(float(trained), "as in training")


def _plan(
    sources: Sequence[InputFile], settings: TestSettings, options: MapOptions, digest: str
) -> dict[str, Any]:
    return {
        "vitp version": __version__,
        "model": digest,
        # Of scores alone: nothing of it is in what is written.
        "settings": settings.model_dump(mode="json", exclude={"tolerance"})
        | {"surface": bool(settings.surface)},
        # What earlier plans don't know is left out where it is as it was then.
        "options": {k: v for k, v in asdict(options).items() if k not in _LATER or v != _LATER[k]},
        "inputs": [
            [source.name, [_state_of(date) for date in source.dates], source.reason] for source in sources
        ],
    }


def _plan_digests(plan: dict[str, Any]) -> dict[str, str]:
    """Return a hash of each part of a plan, by which a finished folder is known again, whatever version wrote it."""
    return {
        key: hashlib.sha256(json.dumps(value).encode()).hexdigest()
        for key, value in plan.items()
        if key != "vitp version"
    }


def _state_of(address: str) -> list[Any]:
    """Return what tells whether a file, or one of the files of a volume, was changed."""
    if is_volume(address):
        try:
            states = [path.stat() for path in open_volume(address).source]
        except (OSError, DataError):
            return [address]
        return [address, len(states), sum(s.st_size for s in states), max(s.st_mtime_ns for s in states)]
    try:
        state = Path(base_address(address)).stat()
    except OSError:
        return [address]
    return [address, state.st_size, state.st_mtime_ns]


def _pictures(job: _Job, sources: Sequence[InputFile]) -> list[tuple[InputFile, str]]:
    """Predict what becomes no map, this process its share; return what turned out to be unusable anywhere."""
    own = [source for source in sources if job.is_picture(source)]
    own = own[distributed.rank() :: distributed.world_size()]
    failed = []
    # One image at a time: large ones fill memory, and their windows fill batches anyway.
    for source in own:
        part = picture_part(job.folder, source)
        if part.exists():
            continue
        try:
            named, shown = _predict(job, source)
        except DataError as error:  # of this image alone: the others are done
            failed.append((source.name, str(error)))
            continue
        write_image(job.folder / "out", job.model.name, named, job.model.classes, shown)
        save_part(part, named)
    reasons = {name: reason for each in distributed.gather(failed) for name, reason in each}
    return [(source, reasons[source.name]) for source in sources if source.name in reasons]


def _large(job: _Job, sources: Sequence[InputFile]) -> Iterator[tuple[InputFile, str]]:
    """Predict rasters and volumes, all processes together; yield what turned out to be unusable."""
    for source in sources:
        part = job.folder / "parts" / source.name
        if job.is_picture(source) or (part / "done").exists():
            continue
        kind = VolumeWork if source.volume else RasterWork
        work = kind(job.model, source, job.settings, job.options, part, job.folder / "out", job.say)
        reason = work.run(job.model_sha256)
        if reason is not None:
            yield source, reason


def _predict(job: _Job, source: InputFile) -> tuple[Named, Image.Image | None]:
    """Return the prediction of an image, or pair of dates, and the image to draw it over."""
    model, settings = job.model, job.settings
    if source.raster:
        prediction, size, shown = classified_raster(model, source.image, settings)
        return Named(source.name, source.image, size, _doubted(job, prediction)), shown
    seen = read_picture(model, source.dates, settings)
    if seen.note is not None:
        job.say(f"{source.image} is {seen.note}")
    later = None if seen.later_CHW is None else [seen.later_CHW]
    (prediction,) = predict_images(
        model, [seen.planes_CHW], seen.settings, later, certainty=bool(job.options.tool)
    )
    size, reduced = seen.size, seen.reduced
    # Large pictures are let go before they are read once more to be drawn on.
    del seen, later
    prediction = surest(_doubted(job, prediction), settings.score_threshold)
    named = Named(source.name, source.image, size, prediction)
    if not (job.options.pictures or reduced or size[0] * size[1] <= LARGE_PIXELS):
        return named, None
    return named, load_image(source.dates[-1], enough=shown_size if reduced else None)


def _doubted(job: _Job, prediction: Prediction) -> Prediction:
    """Return a prediction with its uncertainty, where tasks are written; what is too weak to be shown counts, too."""
    if not job.options.tool:
        return prediction
    doubt = uncertainty(prediction, multi_label=may_be_several(job.model))
    return replace(prediction, certainty_HW=None, doubt=torch.tensor(doubt))


def _finish(job: _Job, done: Sequence[InputFile], left_out: Sequence[Unusable], plan: dict[str, Any]) -> None:
    """Write the files about all inputs, the first process alone."""
    if not done:
        raise _nothing_usable(left_out)
    if distributed.rank() > 0:
        return
    out, model = job.folder / "out", job.model
    pictures: Sequence[Named] = PictureParts(
        job.folder, [source for source in done if job.is_picture(source)]
    )
    areas = [
        (source.image, job.folder / "parts" / source.name / AREAS_FILE) for source in done if source.slide
    ]
    if areas := [(image, part) for image, part in areas if part.is_file()]:
        write_areas(out / "areas.csv", areas)
    volumes = {source.name: source.image for source in done if source.volume}
    pictures = [*pictures, *write_tables(out, model, volumes, job.folder / "parts")] if volumes else pictures
    if isinstance(model, QueryPanoptic):
        write_panoptic(out, pictures, model.classes, model.things)
    elif pictures or (volumes and model.name == "segmentation"):
        line = write_summary(out, model.name, pictures, model.classes)
        if line is not None:
            job.say(line)
    description = {
        "format": _FORMAT,
        "vitp_version": __version__,
        "task": model.name,
        "classes": list(model.classes),
        "images": [{"image": source.image, "name": source.name} for source in done],
        "unusable": [asdict(one) for one in left_out],
        "plan": _plan_digests(plan),
    }
    if job.options.tool:
        _write_tasks(job, pictures, [source for source in done if job.is_picture(source)])
    write_json(out / PREDICTIONS_FILE, description)
    # Last: a call that is resumed takes from them what was predicted before.
    shutil.rmtree(job.folder / "pictures", ignore_errors=True)


def _write_tasks(job: _Job, pictures: Sequence[Named], sources: Sequence[InputFile]) -> None:
    """Write the tasks of an annotation tool."""
    out, model, folder = job.folder / "out", job.model, MAP_FOLDERS.get(job.model.name)
    looked = [
        LookedAt(
            named,
            source.dates,
            float(present(named.prediction.doubt)),
            out / folder / f"{named.name}.png" if folder else None,
        )
        for named, source in zip(pictures, sources, strict=True)
    ]
    writer = TaskWriter(
        job.options.tool,
        model.name,
        tuple(model.classes),
        may_be_several(model),
        job.options.url,
        f"vitp {__version__} {job.model_sha256[:12]}",
    )
    for line in writer.write(out / job.options.tool, looked):
        job.say(line)


def _nothing_usable(unusable: Sequence[Unusable]) -> DataError:
    first = unusable[0]
    return DataError(
        f"none of the {len(unusable)} images can be used; the first: {first.reason}",
        where=first.image,
        fix=None if "; " in first.reason else "name other images",
    )
