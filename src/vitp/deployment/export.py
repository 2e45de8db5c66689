"""`vitp export RUN --format onnx|torch-export` of a finetuned model: the graph, its report and its card.

    OUT/model.onnx         the graph; its contract, and what QGIS's Deepness reads, in its metadata   (onnx)
    OUT/model.int8.onnx    the same in 8 bits                                                         (--int8)
    OUT/model.pt2          a program of torch.export                                                  (torch-export)
    OUT/vitp_graph.json    the contract, and where the model comes from
    OUT/parity.json        how far outputs and scores are from the model's own
    OUT/README.md          the card

The folder appears when everything was compared and is within its tolerance.

Shapes: B images, C channels, H × W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitp.checkpoints.description import GRAPH_DESCRIPTION, content_hash, tensor_digests
from vitp.checkpoints.export import check_target
from vitp.checkpoints.graphs import GraphKind, add_metadata, write_graph
from vitp.checkpoints.origin import AnyOrigin, Origin, told_origin, warn_of_licence
from vitp.core.errors import CheckpointError, ConfigError, VitpError
from vitp.core.extras import need
from vitp.core.files import atomic_dir, write_json, write_text
from vitp.core.sealed import write_sums
from vitp.core.tensors import unique_state
from vitp.core.version import __version__
from vitp.deployment.card import graph_card, vision_of
from vitp.deployment.comparison import (
    SCORE_TOLERANCE,
    OutputParity,
    ScoreParity,
    compared_outputs,
    compared_scores,
    scores_of_graph,
)
from vitp.deployment.images import (
    MOST_CALIBRATED,
    MOST_COMPARED,
    KnownImages,
    graph_size,
    inputs_of,
    known_images,
)
from vitp.deployment.qgis import qgis_metadata, qgis_obstacle
from vitp.deployment.quantised import quantise_graph
from vitp.metrics.results import Scores
from vitp.runtime.contract import METADATA_KEY, GraphContract
from vitp.runtime.graph_model import GraphModel, Runner, open_graph
from vitp.runtime.views import seen_in_parts
from vitp.tasks.base import TaskModel, TestSettings, WholeImageModel
from vitp.tasks.classification import ClassificationModel
from vitp.tasks.data import label_reader
from vitp.tasks.detection import DetectionModel
from vitp.tasks.detr import DETRModel
from vitp.tasks.eomt import QueryInstances
from vitp.tasks.graphs import TaskGraph
from vitp.tasks.model_folder import load_task, model_folder, stated_settings
from vitp.tasks.oriented import OrientedRCNN
from vitp.tasks.panoptic import QueryPanoptic

GRAPH_FILES: dict[GraphKind, str] = {"onnx": "model.onnx", "torch-export": "model.pt2"}
INT8_FILE, PARITY_FILE, CARD_FILE = "model.int8.onnx", "parity.json", "README.md"

_OUTPUTS_COMPARED = 8
"""Images whose raw outputs are compared."""


@dataclass(frozen=True)
class GraphOptions:
    """What a graph is to be.

    Attributes:
        kind: "onnx" or "torch-export".
        size: Side in pixels or "HEIGHTxWIDTH"; None: what the model sees.
        batch: Images at once; None: any number.
        proposals: Of detectors: regions that the last stage looks at; None: as many as the model keeps at test.
        int8: Whether to write the graph in 8 bits, too.
        most_loss: Points of the headline score that 8 bits may cost.
        check: Labelled set to compare on; None: the run's own.
        most_images: Most images that are scored.
        resolution: Centimetres of a pixel that the model sees, for QGIS.
    """

    kind: GraphKind = "onnx"
    size: str | int | None = None
    batch: int | None = 1
    proposals: int | None = None
    int8: bool = False
    most_loss: float = 1.0
    check: str | Path | None = None
    most_images: int = MOST_COMPARED
    resolution: float | None = None


@dataclass(frozen=True)
class ExportedGraph:
    """What was written.

    Attributes:
        folder: Folder of the graph.
        contract: Contract of the graph.
        outputs: How far its outputs are from the model's.
        scores: Scores before and after; None: there were no labelled images.
        int8: Scores of the graph in 8 bits.
        notes: What is to be said.
    """

    folder: Path
    contract: GraphContract
    outputs: OutputParity
    scores: ScoreParity | None
    int8: ScoreParity | None
    notes: tuple[str, ...]


def export_task(
    source: str | Path,
    out: str | Path,
    options: GraphOptions | None = None,
    *,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> ExportedGraph:
    """Write a finetuned model as a graph, run the graph, and compare outputs and scores.

    Args:
        source: Run of `vitp finetune`, or a model folder.
        out: New folder, which appears only when the graph gives what the model gives.
        options: See `GraphOptions`.
        overwrite: Replace an older export.
        say: Called with each sentence about what was understood.

    Raises:
        ConfigError: A package is missing, or an option doesn't fit the model.
        CheckpointError: There is no finetuned model, or the graph differs.
        VitpError: `out` exists or can't be written, or the images can't be used.
    """
    options, out = options or GraphOptions(), Path(out)
    _check_options(options)
    check_target(out, overwrite)
    model = load_task(source)
    origin = vision_of(model.description) or Origin()
    warn_of_licence(origin)
    settings, notes = _plain_settings(stated_settings(model.description))
    images = known_images(source, model, options.check, options.most_images)
    _check_images(images, model, settings, options)
    work = _Work(
        source, model, settings, options, images if isinstance(images, KnownImages) else None, origin
    )
    if isinstance(images, str):
        notes.append(f"scores aren't compared: {images}; name a labelled set with --check")
    else:
        notes.append(images.said)
    size, whence = graph_size(
        options.size, model, settings, work.images.compared if work.images is not None else None
    )
    contract = contract_for(model, settings, size, options.batch)
    notes.append(f"the graph takes {size[0]}×{size[1]} px: {whence}")
    for note in notes:
        say(note)
    with atomic_dir(out) as temporary:
        done = _write(work, contract, temporary, notes, say)
        write_text(temporary / CARD_FILE, graph_card(done, model, options, out.resolve().name))
        write_sums(temporary, sorted(path.name for path in temporary.iterdir()))
    return replace(done, folder=out)


@dataclass(frozen=True)
class _Work:
    source: str | Path
    model: TaskModel
    settings: TestSettings
    options: GraphOptions
    images: KnownImages | None
    origin: AnyOrigin


def _check_options(options: GraphOptions) -> None:
    if options.kind == "onnx":
        for package in ("onnx", "onnxruntime", "onnxscript"):
            need("onnx", package, "--format onnx", ConfigError)
    elif options.int8:
        raise ConfigError("8 bits are written as ONNX", where="--int8", fix="choose --format onnx")


def _check_images(
    images: KnownImages | str, model: TaskModel, settings: TestSettings, options: GraphOptions
) -> None:
    """Refuse images that the model can't be compared or calibrated on, before the graph is made.

    Raises:
        ConfigError, DataError: They have other classes or bands than the model; or 8 bits lack images to be calibrated.
    """
    calibration = None if isinstance(images, str) else images.calibration
    if options.int8 and calibration is None:
        raise ConfigError(
            "8 bits need training images to be calibrated, and labelled ones to be compared",
            where="--int8",
            fix="name a labelled set that has both with --check",
        )
    if isinstance(images, str):
        return
    kind = type(model).labels(model.description["head"])
    for part in (images.compared, *([calibration] if calibration is not None else [])):
        label_reader(model, part, kind, settings)


def _plain_settings(settings: TestSettings) -> tuple[TestSettings, list[str]]:
    """Return settings without what a graph doesn't do, and what is to be said of it."""
    neutral = {"scales": (1.0,), "flip": False, "tta": "none", "stagger": False}
    plain = settings.model_copy(update={**neutral, "surface": False})
    extras = [name for name in neutral if getattr(plain, name) != getattr(settings, name)]
    if not extras:
        return plain, []
    kept = " and ".join(f"test.{name}" for name in extras)
    return plain, [f"the graph looks once at each window, without {kept} of the run: large images may differ"]


def contract_for(
    model: TaskModel, settings: TestSettings, size: tuple[int, int], batch: int | None
) -> GraphContract:
    """Return the contract of a model's graph.

    Args:
        model: Finetuned.
        settings: How it is applied.
        size: Height and width of the graph's images.
        batch: Images at once; None: any number.
    """
    resize, channels = settings.resize or model.input_size, model.in_channels
    found: dict[str, Any] = {}
    if isinstance(model, ClassificationModel):
        found = {"multi_label": model.settings.multi_label}
    elif isinstance(model, QueryPanoptic):
        own = model.merging
        found = {"least_score": own.least_score, "least_share": own.least_share}
        found |= {"things": tuple(model.things), "mask_patch": model.tower.patch_size}
    elif isinstance(model, QueryInstances):
        found = {"most_objects": model.settings.detections, "mask_patch": model.tower.patch_size}
    elif isinstance(model, DETRModel):
        found = {
            "least_score": model.head.settings.score_threshold,
            "most_objects": model.head.settings.detections,
        }
    elif isinstance(model, DetectionModel | OrientedRCNN):
        box = model.boxes.settings if isinstance(model, OrientedRCNN) else model.head.boxes.settings
        found = {"least_score": box.score_threshold, "iou": box.nms_iou, "most_objects": box.detections}
    return GraphContract(
        task=model.name,
        classes=model.classes,
        size=size,
        batch=batch,
        channels=None
        if channels is None
        else tuple(one.model_dump(mode="json") for one in channels.channels),
        mean=tuple(model.backbone.mean),
        std=tuple(model.backbone.std),
        resize={"mode": resize.mode, "size": resize.size},
        parts=_seen_in_parts(model, settings),
        overlap=settings.overlap,
        shown_score=settings.score_threshold,
        **found,
    )


def _seen_in_parts(model: TaskModel, settings: TestSettings) -> tuple[float, float] | None:
    """Return which images `vitp predict` doesn't squeeze into one look; see `vitp.runtime.views.seen_in_parts`."""
    if settings.resize is not None or isinstance(model, ClassificationModel | WholeImageModel):
        return None
    resize = model.input_size
    side = resize.size or model.backbone.image_size[0]
    return seen_in_parts(resize.mode, side, settings.window, model.description.get("trained"))


def _write(
    work: _Work, contract: GraphContract, folder: Path, notes: list[str], say: Callable[[str], None]
) -> ExportedGraph:
    """Write the graph, compare it, and write what was found, all into one folder."""
    options = work.options
    path = folder / GRAPH_FILES[options.kind]
    graph = _graph(work, contract, path)
    if options.kind == "onnx":
        add_metadata(path, _metadata(work, contract))
    written = _opened(path, contract, graph.outputs)
    outputs = _compare_outputs(work, graph, written)
    own = None if work.images is None else work.model.evaluate(work.images.compared, work.settings)
    scores = None if own is None else _compare_scores(work, written, own)
    eight = _write_int8(work, contract, folder, path, own) if options.int8 else None
    _say_qgis(contract, options, notes, say)
    done = ExportedGraph(folder, contract, outputs, scores, eight, tuple(notes))
    write_json(folder / PARITY_FILE, parity_values(done))
    write_json(folder / GRAPH_DESCRIPTION, _description(work, done, graph))
    return done


def _graph(work: _Work, contract: GraphContract, path: Path) -> TaskGraph:
    """Return the model as a graph that torch computes, and write it."""
    kind, where = work.options.kind, f"the graph of {work.source}"
    try:
        graph = TaskGraph(work.model, contract.size, work.options.proposals)
        generator = torch.Generator().manual_seed(20)
        sample = torch.rand((contract.batch or 2, graph.channels, *contract.size), generator=generator)
        write_graph(graph, sample, kind, path, outputs=graph.outputs, any_batch=contract.batch is None)
    except (VitpError, OSError, MemoryError):
        raise
    except Exception as error:  # whatever torch's exporters raise at a layer or size that they can't follow
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(
            f"torch can't write it ({words[0]})",
            where=where,
            fix="choose another --size, --batch or --format",
        ) from error
    return graph


def _metadata(work: _Work, contract: GraphContract) -> dict[str, str]:
    own = {METADATA_KEY: json.dumps(contract.to_values()), "vitp_version": __version__}
    return {**own, **told_origin(work.origin), **qgis_metadata(contract, work.options.resolution)}


def _opened(path: Path, contract: GraphContract, names: Iterable[str]) -> GraphModel:
    if path.suffix == ".onnx":
        return open_graph(path, threads=torch.get_num_threads())
    program = torch.export.load(path).module()

    def run(image_BChw: np.ndarray, /) -> Mapping[str, np.ndarray]:
        with torch.no_grad():
            outputs = program(torch.from_numpy(image_BChw))
        return {name: value.numpy() for name, value in zip(names, outputs, strict=True)}

    return GraphModel(contract, run)


def _compare_outputs(work: _Work, graph: TaskGraph, written: GraphModel) -> OutputParity:
    contract = written.contract
    # Another number of images than the two that the graph was traced with: a batch that got fixed would show.
    shape = (contract.batch or 3, graph.channels, *contract.size)
    noise = np.random.default_rng(20).random(shape, dtype=np.float32)
    inputs, of = [noise], "noise"
    if work.images is not None:
        seen = inputs_of(written, work.model, work.images.compared, work.settings, _OUTPUTS_COMPARED)
        inputs, of = [*seen, noise], "compared images and noise"
    run: Runner = written.run
    parity = compared_outputs(contract, graph, graph.outputs, run, inputs, of, work.options.kind)
    parity.check(where=f"the graph of {work.source}")
    return parity


def _compare_scores(work: _Work, written: GraphModel, own: Scores) -> ScoreParity:
    scores = _scores_beside(work, written, own, SCORE_TOLERANCE)
    # Asked this way round, NaN is refused, too.
    if not abs(scores.lost) <= scores.tolerance:
        raise CheckpointError(
            f"its {scores.headline} is {_points(scores, 'after')}, the model's {_points(scores, 'before')} "
            f"({scores.tolerance} points are allowed)",
            where=f"the graph of {work.source}",
            fix="name the size of your images with --size: others are padded or seen through windows, which a model "
            "may answer otherwise",
        )
    return scores


def _points(scores: ScoreParity, side: str) -> str:
    value = getattr(scores, side)[scores.headline]
    return "not known" if value is None else f"{100 * value:.2f}"


def _scores_beside(work: _Work, written: GraphModel, before: Scores, tolerance: float) -> ScoreParity:
    assert work.images is not None
    known = work.images
    after = scores_of_graph(work.model, written, known.compared, work.settings)
    return compared_scores(
        before, after, data=known.data, split=known.split, available=known.available, tolerance=tolerance
    )


def _write_int8(
    work: _Work, contract: GraphContract, folder: Path, path: Path, own: Scores | None
) -> ScoreParity:
    options, known = work.options, work.images
    assert known is not None and known.calibration is not None and own is not None
    whole = open_graph(path)
    target = folder / INT8_FILE
    seen = inputs_of(whole, work.model, known.calibration, work.settings, MOST_CALIBRATED)
    quantise_graph(path, target, seen)
    add_metadata(target, _metadata(work, contract))
    small = open_graph(target, threads=torch.get_num_threads())
    scores = _scores_beside(work, small, own, options.most_loss)
    # Asked this way round, NaN is refused, too.
    if not scores.lost <= options.most_loss:
        raise CheckpointError(
            f"8 bits cost {scores.lost:.2f} points of {scores.headline} ({_points(scores, 'before')} → "
            f"{_points(scores, 'after')})",
            where=f"the graph of {work.source}",
            fix=f"allow it with --most-loss {scores.lost + 0.05:.1f}, or leave --int8 out",
        )
    return scores


def _say_qgis(
    contract: GraphContract, options: GraphOptions, notes: list[str], say: Callable[[str], None]
) -> None:
    obstacle = qgis_obstacle(contract)
    if options.kind == "onnx" and obstacle is not None:
        notes.append(f"QGIS's plug-in Deepness can't run it: {obstacle}")
        say(notes[-1])


def parity_values(done: ExportedGraph) -> dict[str, Any]:
    """Return what `parity.json` says."""
    return {
        "format": "vitp-parity-1",
        "outputs": asdict(done.outputs),
        "scores": None if done.scores is None else done.scores.to_values(),
        "int8": None if done.int8 is None else done.int8.to_values(),
        "notes": list(done.notes),
    }


def _description(work: _Work, done: ExportedGraph, graph: TaskGraph) -> dict[str, Any]:
    weights = {name: tensor.float() for name, tensor in unique_state(work.model).items()}
    contract = done.contract
    return {
        **contract.to_values(),
        "vitp_version": __version__,
        "kind": work.options.kind,
        "file": GRAPH_FILES[work.options.kind],
        "input": {
            "name": "image",
            "shape": [contract.batch or "batch", graph.channels, *contract.size],
            "type": "float32",
            "values": "8-bit values / 255; the normalisation is part of the graph",
        },
        "outputs": list(graph.outputs),
        "sha256": content_hash(tensor_digests(weights)),
        "source": model_folder(work.source).resolve().parent.name,
        "card": work.model.description.get("card", {}),
        **told_origin(work.origin),
    }
