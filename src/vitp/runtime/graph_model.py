"""A graph applied to images of any size: resized as in training, through windows, merged, in pixels of the image.

Shapes: B images, C channels, H × W pixels of the image, h × w pixels of a window, K classes, N objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vitp.core.errors import CheckpointError, ConfigError, DataError
from vitp.core.extras import need
from vitp.runtime.contract import GraphContract, contract_of
from vitp.runtime.objects import GraphObjects, merged_objects, objects_of_masks, objects_of_table
from vitp.runtime.pairs import check_pairs
from vitp.runtime.pixels import read_planes, resized_maps, resized_planes
from vitp.runtime.segments import segments_of_graph
from vitp.runtime.views import SeenWindow, seen_size, window_layout, window_weights

IGNORED = 255
"""In class maps: nothing is known."""

_AT_ONCE = 8


class Runner(Protocol):
    """What computes a graph: (B, C, h, w) float32 images on 0..1 → its outputs by their names."""

    def __call__(self, image_BChw: np.ndarray, /) -> Mapping[str, np.ndarray]:
        """Return the outputs."""


@dataclass(frozen=True)
class GraphPrediction:
    """What a graph says of one image, in its pixels; a part of the fields is set.

    Attributes:
        probabilities_K: float32, of the whole image.
        classes_HW: uint8 class of each pixel; of pairs 1 where something changed.
        objects: What was found, by falling score.
    """

    probabilities_K: np.ndarray | None = None
    classes_HW: np.ndarray | None = None
    objects: GraphObjects | None = None


@dataclass(frozen=True)
class _View:
    window: SeenWindow
    size: tuple[int, int]


class GraphModel:
    """An exported task model.

    Args:
        contract: What the graph says of itself.
        run: Computes it.
    """

    def __init__(self, contract: GraphContract, run: Runner) -> None:
        self.contract, self.run = contract, run

    def predict_file(self, path: str | Path, later: str | Path | None = None) -> GraphPrediction:
        """Return what the graph says of a picture, or a `.npy` file of bands; see `read_planes`.

        Args:
            path: File.
            later: File of the later date, for change.

        Raises:
            ConfigError, DataError: A file can't be used, or dates are missing or of no use.
        """
        channels = self.contract.channels
        return self.predict(
            read_planes(path, channels), None if later is None else read_planes(later, channels)
        )

    def predict(self, image_CHW: np.ndarray, later_CHW: np.ndarray | None = None) -> GraphPrediction:
        """Return what the graph says of an image.

        Args:
            image_CHW: uint8.
            later_CHW: The later date, for change.

        Raises:
            ConfigError: A date is missing, or one too many.
            DataError: The channels aren't the graph's, or the dates have different sizes.
        """
        planes_CHW = self._planes(image_CHW, later_CHW)
        size = (planes_CHW.shape[1], planes_CHW.shape[2])
        views = self._views(size)
        outputs = self._looks(planes_CHW, views)
        if self.contract.task == "classification":
            (found,) = outputs
            return GraphPrediction(probabilities_K=found["probabilities"])
        if self.contract.task in ("segmentation", "change"):
            return GraphPrediction(classes_HW=_class_map(outputs, views, size))
        if self.contract.task == "panoptic":
            (found,), (view,) = outputs, views
            parts = (found["classes"], found["masks"])
            return GraphPrediction(objects=segments_of_graph(self.contract, *parts, view.size, size))
        objects_of = objects_of_masks if self.contract.mask_patch else objects_of_table
        found_objects = [
            objects_of(self.contract, one, view.window, view.size)
            for one, view in zip(outputs, views, strict=True)
        ]
        return GraphPrediction(
            objects=merged_objects(found_objects, size, oriented=self.contract.task == "oriented")
        )

    def _planes(self, image_CHW: np.ndarray, later_CHW: np.ndarray | None) -> np.ndarray:
        contract = self.contract
        if contract.pairs and later_CHW is None:
            raise ConfigError("needs two dates of each place", where="change", fix="give pairs of images")
        if not contract.pairs and later_CHW is not None:
            raise ConfigError(f"{contract.task} takes no later dates", where="later", fix="leave it out")
        dates = [image_CHW] if later_CHW is None else [image_CHW, later_CHW]
        for date in dates:
            if date.dtype != np.uint8 or date.ndim != 3 or len(date) != contract.planes:
                what = f"is {date.dtype} of shape {date.shape}, and the graph sees ({contract.planes}, H, W) uint8"
                raise DataError(what, where="the image")
        if dates[0].shape != dates[-1].shape:
            (_, height, width), (_, later_height, later_width) = dates[0].shape, dates[1].shape
            raise DataError(
                f"the dates are {width}×{height} and {later_width}×{later_height} px",
                where="change",
                fix="cut both dates to the same size",
            )
        return np.concatenate(dates)

    def _views(self, size: tuple[int, int]) -> list[_View]:
        contract = self.contract
        seen = seen_size(contract.resize["mode"], contract.resize["size"], *size)
        if contract.parts is not None and max(size) > contract.parts[0]:
            seen = (max(1, round(size[0] * contract.parts[1])), max(1, round(size[1] * contract.parts[1])))
        if contract.task == "classification":
            # A class is one of the whole image.
            fits = seen[0] <= contract.size[0] and seen[1] <= contract.size[1]
            return [_View((0, 0, size[1], size[0]), seen if fits else contract.size)]
        if contract.task == "panoptic":
            if seen[0] > contract.size[0] or seen[1] > contract.size[1]:
                what = f"is seen at {seen[1]}×{seen[0]} px, and the graph at most at {contract.size[1]}×{contract.size[0]}"
                fix = (
                    "make it smaller, or export a larger graph (--size): segments aren't merged over windows"
                )
                raise DataError(what, where="the image", fix=fix)
            return [_View((0, 0, size[1], size[0]), seen)]
        layout = window_layout(size, seen, contract.size, contract.overlap)
        return [_View(window, of_window) for window, of_window in layout]

    def inputs(self, image_CHW: np.ndarray, later_CHW: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """Yield what the graph sees of an image: (B, C, h, w) float32 on 0..1; see `predict`."""
        planes_CHW = self._planes(image_CHW, later_CHW)
        for _, image_BChw in self._batches(
            planes_CHW, self._views((planes_CHW.shape[1], planes_CHW.shape[2]))
        ):
            yield image_BChw

    def _batches(self, planes_CHW: np.ndarray, views: Sequence[_View]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the number of views, and what the graph sees of them; a batch of a fixed number ends with zeros."""
        at_once = self.contract.batch or _AT_ONCE
        for start in range(0, len(views), at_once):
            part = views[start : start + at_once]
            count = self.contract.batch or len(part)
            image_BChw = np.zeros((count, len(planes_CHW), *self.contract.size), np.float32)
            for place, view in enumerate(part):
                x1, y1, x2, y2 = view.window
                seen = resized_planes(planes_CHW[:, y1:y2, x1:x2], view.size)
                image_BChw[place, :, : view.size[0], : view.size[1]] = seen.astype(np.float32) / np.float32(
                    255
                )
            yield len(part), image_BChw

    def _looks(self, planes_CHW: np.ndarray, views: Sequence[_View]) -> list[dict[str, np.ndarray]]:
        """Return the graph's outputs for each view."""
        found: list[dict[str, np.ndarray]] = []
        for count, image_BChw in self._batches(planes_CHW, views):
            outputs = self.run(image_BChw)
            found += [{name: value[place] for name, value in outputs.items()} for place in range(count)]
        return found


def _class_map(
    outputs: Sequence[Mapping[str, np.ndarray]], views: Sequence[_View], size: tuple[int, int]
) -> np.ndarray:
    """Return (H, W) uint8: the class with the largest weighted sum of probabilities over all views."""
    total_KHW: np.ndarray | None = None
    for output, view in zip(outputs, views, strict=True):
        x1, y1, x2, y2 = view.window
        shares_Khw = output["probabilities"][:, : view.size[0], : view.size[1]]
        shares_Khw = resized_maps(shares_Khw, (y2 - y1, x2 - x1))
        if total_KHW is None:
            total_KHW = np.zeros((len(shares_Khw), *size), np.float32)
        total_KHW[:, y1:y2, x1:x2] += shares_Khw * window_weights(view.window, size)
    assert total_KHW is not None
    classes_HW: np.ndarray = total_KHW.argmax(0).astype(np.uint8)
    classes_HW[total_KHW.max(0) <= 0] = IGNORED
    return classes_HW


def open_graph(path: str | Path, *, threads: int | None = None) -> GraphModel:
    """Return an exported task model that onnxruntime computes on the CPU.

    Args:
        path: `model.onnx`, or the folder of an export.
        threads: Threads of one computation; None: as many as there are cores.

    Raises:
        CheckpointError: The file is missing, damaged, or no graph of vitp.
    """
    path = Path(path)
    file = path / "model.onnx" if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError("doesn't exist", where=str(file), fix="write it: vitp export RUN --format onnx")
    session = _session(file, threads)
    names = [output.name for output in session.get_outputs()]

    def run(image_BChw: np.ndarray, /) -> Mapping[str, np.ndarray]:
        return dict(zip(names, session.run(names, {"image": image_BChw}), strict=True))

    return GraphModel(contract_of(session.get_modelmeta().custom_metadata_map, where=str(file)), run)


def _session(file: Path, threads: int | None) -> Any:
    onnxruntime = need("onnx", "onnxruntime", str(file))
    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # whatever a damaged file makes onnxruntime raise
        raise CheckpointError(f"is no graph that onnxruntime can read ({error})", where=str(file)) from error


def predictions_of_files(
    model: GraphModel, images: Sequence[str], later: Sequence[str] | None
) -> Iterator[tuple[str, GraphPrediction | DataError]]:
    """Yield each file with what a graph says of it, or with why it can't be used.

    Raises:
        ConfigError: Later dates aren't those of the images; see `vitp.runtime.pairs`.
    """
    if later is not None:
        check_pairs(model.contract.task, images, later)
    for number, image in enumerate(images):
        try:
            yield image, model.predict_file(image, None if later is None else later[number])
        except DataError as error:
            yield image, error
