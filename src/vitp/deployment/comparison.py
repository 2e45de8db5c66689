"""Whether a graph says what its model says: raw outputs, and scores on labelled images.

Shapes: B images, R rows of a table, C classes, K numbers of a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from vitp.checkpoints.graphs import GraphKind
from vitp.core.errors import CheckpointError
from vitp.metrics.results import Prediction, Scores
from vitp.records.labels import LabelledSet
from vitp.runtime.contract import GraphContract
from vitp.runtime.graph_model import GraphModel, GraphPrediction, Runner
from vitp.tasks.base import TaskModel, TestSettings

OUTPUT_TOLERANCES: dict[GraphKind, float] = {"onnx": 1e-4, "torch-export": 1e-5}
"""Largest difference of an output: of probabilities as they are, of places relative to the image's longer side."""

SCORE_TOLERANCE = 0.1
"""Points (hundredths) by which a score may differ."""

LONELY_TOLERANCE = 0.01
"""Share of a table's rows that the other one may lack. Where two overlaps or scores are equal up to rounding, another
order of adding up lets another one of two proposals stay; what a model makes of it, the scores tell."""

_FAINT = 1e-3
"""Rows whose scores are all lower aren't compared: they may stand for nothing."""


@dataclass(frozen=True)
class OutputParity:
    """How far outputs are from the model's own.

    Attributes:
        images: Number of images that were compared.
        of: What was compared.
        largest: Name of an output → largest difference.
        rows: Rows of tables that were compared.
        lonely: Share of them that the other side lacks.
        tolerance: That the differences were held to.
    """

    images: int
    of: str
    largest: Mapping[str, float]
    rows: int
    lonely: float
    tolerance: float

    def check(self, where: str) -> None:
        """Do nothing where all differences are within the tolerance.

        Raises:
            CheckpointError: They aren't.
        """
        far = {name: value for name, value in self.largest.items() if not value <= self.tolerance}
        if far:
            said = ", ".join(f"{name} by {value:.1e}" for name, value in far.items())
            raise CheckpointError(
                f"its outputs are off ({said}; {self.tolerance:.0e} is allowed)", where=where
            )
        if not self.lonely <= LONELY_TOLERANCE:
            raise CheckpointError(
                f"{self.lonely:.1%} of its {self.rows} rows have no partner among the model's", where=where
            )


@dataclass(frozen=True)
class ScoreParity:
    """Scores of a model and of its graph on the same images.

    Attributes:
        data: Name of the set.
        split: Split whose images were scored.
        images: Number of images that were scored.
        available: Number of images that there are.
        headline: The score that models are chosen by.
        before, after: Name of a score → its value on 0..1, of the model and of the graph.
        tolerance: Points by which the headline may differ.
    """

    data: str
    split: str
    images: int
    available: int
    headline: str
    before: Mapping[str, float | None]
    after: Mapping[str, float | None]
    tolerance: float

    @property
    def lost(self) -> float:
        """Points (hundredths) that the graph's headline is lower; 0 where neither could be counted."""
        before, after = self.before[self.headline], self.after[self.headline]
        if before is None and after is None:
            return 0.0
        return 100 * ((math.inf if before is None else before) - (-math.inf if after is None else after))

    def to_values(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "lost_points": round(self.lost, 4)}


def compared_outputs(
    contract: GraphContract,
    model: torch.nn.Module,
    names: Sequence[str],
    run: Runner,
    inputs: Iterable[np.ndarray],
    of: str,
    kind: GraphKind,
) -> OutputParity:
    """Return how far a graph's outputs are from those of the module that it was made of.

    Args:
        contract: Contract of the graph.
        model: The module: (B, C, h, w) on 0..1 → outputs.
        names: Names of the outputs.
        run: The graph.
        inputs: Batches.
        of: What they are, in words.
        kind: Which tolerance is meant.
    """
    largest = dict.fromkeys(names, 0.0)
    images = rows = lonely = 0
    for image_BChw in inputs:
        with torch.no_grad():
            wanted = dict(
                zip(names, (value.numpy() for value in model(torch.from_numpy(image_BChw))), strict=True)
            )
        given = run(image_BChw)
        images += len(image_BChw)
        for place in range(len(image_BChw)):
            if "detections" in names:
                found = _table_difference(contract, given, wanted, place)
                rows, lonely = rows + found[1], lonely + found[2]
                differences = found[0]
            else:
                differences = {
                    name: float(np.abs(_bounded(given, name, place) - _bounded(wanted, name, place)).max())
                    for name in names
                }
            # Written so that nan stays.
            largest = {name: float(np.fmax(largest[name], differences[name])) for name in names} | {
                name: math.nan for name in names if math.isnan(differences[name])
            }
    share = lonely / rows if rows else 0.0
    return OutputParity(images, of, largest, rows, share, OUTPUT_TOLERANCES[kind])


def _bounded(outputs: Mapping[str, np.ndarray], name: str, place: int) -> np.ndarray:
    """Return an output of one image on 0..1: masks of queries are logits."""
    value: np.ndarray = outputs[name][place].astype(np.float64)
    return 1 / (1 + np.exp(-value)) if name == "masks" else value


def _table_difference(
    contract: GraphContract, given: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray], place: int
) -> tuple[dict[str, float], int, int]:
    """Return the largest difference of each output, the rows that were compared, and those without a partner."""
    ours, theirs = (_comparable(contract, tables["detections"][place]) for tables in (wanted, given))
    rows = np.flatnonzero(ours[:, 4 : 4 + len(contract.classes)].max(1) > _FAINT)
    partner = rows.copy()
    off = np.abs(theirs[rows] - ours[rows]).max(1, initial=0)
    tolerance = OUTPUT_TOLERANCES["onnx"]
    for number in np.flatnonzero(~(off <= tolerance)):  # rows of equal score may come in another order
        distances = np.abs(theirs - ours[rows[number]]).max(1)
        partner[number], off[number] = int(np.argmin(distances)), float(distances.min())
    matched = off <= max(tolerance, 1e-2)
    differences = {"detections": float(off[matched].max(initial=0))}
    if np.isnan(theirs).any():
        differences["detections"] = math.nan
    if "masks" in wanted:
        mine, other = wanted["masks"][place][rows], given["masks"][place][partner]
        differences["masks"] = float(np.abs(mine - other)[matched].max(initial=0))
    return differences, len(rows), int((~matched).sum())


def _comparable(contract: GraphContract, table_KR: np.ndarray) -> np.ndarray:
    """Return (R, K) numbers that are near for rows that are: places relative to the image, sides and angle as moments.

    A square has no longer side, and half a turn changes nothing: the moments of a rectangle's area know neither.
    """
    table_RK = table_KR.T.astype(np.float64)
    longest = max(contract.size)
    places_R4 = table_RK[:, :4] / longest
    scores_RC = table_RK[:, 4 : 4 + len(contract.classes)]
    if contract.task != "oriented":
        return np.concatenate([places_R4, scores_RC], axis=1)
    w, h, angle = table_RK[:, 2], table_RK[:, 3], table_RK[:, -1]
    cos, sin = np.cos(angle), np.sin(angle)
    own = np.maximum(w, h).clip(1e-6)
    moments = [w**2 * cos**2 + h**2 * sin**2, (w**2 - h**2) * sin * cos, w**2 * sin**2 + h**2 * cos**2]
    moments_R3 = np.stack([moment / own for moment in moments], axis=1) / longest
    return np.concatenate([places_R4[:, :2], moments_R3[:, :2], scores_RC, moments_R3[:, 2:]], axis=1)


def as_prediction(found: GraphPrediction) -> Prediction:
    """Return what a graph found as the scores of a task want it."""
    if found.probabilities_K is not None:
        return Prediction(probabilities_C=torch.from_numpy(found.probabilities_K.astype(np.float32)))
    if found.classes_HW is not None:
        return Prediction(semantic_HW=torch.from_numpy(found.classes_HW))
    assert found.objects is not None
    objects = found.objects
    masks: torch.Tensor | None = None
    if objects.masks is not None:
        masks = (
            torch.from_numpy(np.stack(objects.masks))
            if objects.masks
            else torch.zeros(0, 1, 1, dtype=torch.bool)
        )
    return Prediction(
        boxes_N4=torch.from_numpy(objects.boxes_N4.astype(np.float32)),
        quads_N8=None if objects.quads_N8 is None else torch.from_numpy(objects.quads_N8.astype(np.float32)),
        scores_N=torch.from_numpy(objects.scores_N.astype(np.float32)),
        labels_N=torch.from_numpy(objects.labels_N.astype(np.int64)),
        masks_NHW=masks,
    )


def scores_of_graph(
    model: TaskModel, graph: GraphModel, images: LabelledSet, settings: TestSettings
) -> Scores:
    """Return the scores of what a graph says of images, by the measures of the model's task.

    Args:
        model: Whose task and classes they are.
        graph: What predicts.
        images: Images with labels.
        settings: How images are read.
    """

    if "trained" not in model.description:  # as such a model is scored; see `scored_settings`
        graph = GraphModel(replace(graph.contract, parts=None), graph.run)

    def predict(
        seen: Sequence[torch.Tensor], _: TestSettings, later: Sequence[torch.Tensor] | None
    ) -> list[Prediction]:
        dates = [None] * len(seen) if later is None else [date.numpy() for date in later]
        pairs = zip(seen, dates, strict=True)
        found = [graph.predict(image.numpy(), date) for image, date in pairs]
        whole = [as_prediction(one) for one in found]
        return [_with_size(one, image.shape[-2:]) for one, image in zip(whole, seen, strict=True)]

    with standing_in(model, predict):
        return model.evaluate(images, settings)


def _with_size(prediction: Prediction, size: Sequence[int]) -> Prediction:
    if prediction.masks_NHW is None or len(prediction.masks_NHW):
        return prediction
    return Prediction(
        **{**vars(prediction), "masks_NHW": torch.zeros(0, *(int(side) for side in size), dtype=torch.bool)}
    )


@contextmanager
def standing_in(model: TaskModel, predict: Callable[..., list[Prediction]]) -> Iterator[None]:
    """Let something else predict while a model is scored."""
    model.stand_in = predict
    try:
        yield
    finally:
        model.stand_in = None


def compared_scores(
    before: Scores,
    after: Scores,
    *,
    data: str,
    split: str,
    available: int,
    tolerance: float = SCORE_TOLERANCE,
) -> ScoreParity:
    """Return two evaluations of the same images side by side."""
    ours, theirs = before.to_json(), after.to_json()
    return ScoreParity(
        data, split, before.images, available, before.headline, ours["values"], theirs["values"], tolerance
    )
