"""Scores of segmentation by case: a volume that is put together from its slices, or an image with a spacing.

Distances are in millimetres and sizes in millilitres, whatever the spacing of a case; slices of a plane are counted
along it, and a volume is scored as one solid.

Shapes: S slices, H × W pixels, N rows, M columns.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from vitp.core.files import write_text
from vitp.io.parts import Window, split_address
from vitp.metrics.intervals import Interval, group_numbers, interval_of_draws, resampled_means
from vitp.metrics.results import CaseScore, Scores
from vitp.metrics.segmentation import border_distances, hd95_of, surface_dice
from vitp.metrics.statistics import known_mean
from vitp.records.labels import BACKGROUND, IGNORE, LabelledImage

VALUES = ("case_dice", "case_surface_dice", "case_hd95_mm", "case_error_ml", "case_error_mm2")
"""Of the cases, as `Scores` names their means."""


@dataclass(frozen=True)
class _Place:
    """Where an image lies in its case."""

    case: str
    number: int
    window: Window


@dataclass
class _Case:
    """A case that is put together."""

    group: str
    steps: tuple[float, ...] | None
    numbers: Mapping[int, int]
    missing: int
    guess_SHW: np.ndarray
    truth_SHW: np.ndarray
    is_volume: bool


def has_cases(items: Sequence[LabelledImage]) -> bool:
    """Return whether any image says how large its pixels are in millimetres; of lazy sets the first one tells."""
    looked = items if isinstance(items, list | tuple) else items[:1]
    return any(item.spacing is not None for item in looked)


@dataclass
class CaseScorer:
    """Puts cases together from images and scores each when it is whole.

    Where the set has only some slices of a volume, the others count for nothing: what borders on them is a surface, as
    at the end of the volume. Slices that the set has at equal steps lie side by side, each as thick as the step.

    Attributes:
        items: All images; in any order, but those of a case are in memory until its last one is there.
        classes: Classes of the model.
        tolerance: Tolerance of surface Dice, in mm (in px where there is no spacing).
        surface: Whether distances are wanted.
    """

    items: Sequence[LabelledImage]
    classes: Sequence[str]
    tolerance: float
    surface: bool = True
    scores: list[CaseScore] = field(default_factory=list, init=False)
    _open: dict[str, _Case] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._members: dict[str, list[LabelledImage]] = {}
        for item in self.items:
            self._members.setdefault(_place(item).case, []).append(item)

    def in_order(self) -> list[LabelledImage]:
        """Return the images case by case, so that no two volumes are in memory at once."""
        return [item for members in self._members.values() for item in members]

    def add(self, item: LabelledImage, guess_HW: np.ndarray, truth_HW: np.ndarray) -> None:
        """Add an image: uint8 classes, 255 in `truth_HW` where nothing is known."""
        place = _place(item)
        case = self._open.get(place.case)
        if case is None:
            case = self._open[place.case] = _begun(self._members[place.case])
        x1, y1, x2, y2 = place.window
        row = case.numbers[place.number]
        case.guess_SHW[row, y1:y2, x1:x2], case.truth_SHW[row, y1:y2, x1:x2] = guess_HW, truth_HW
        case.missing -= 1
        if not case.missing:
            self.scores += self._scored(place.case, self._open.pop(place.case))

    def _scored(self, name: str, case: _Case) -> list[CaseScore]:
        known_SHW = case.truth_SHW != IGNORE
        steps = (1.0,) * 3 if case.steps is None else case.steps
        voxel, unit = _unit(case)
        found = []
        for number, category in enumerate(self.classes):
            if category == BACKGROUND:
                continue
            guess, truth = (case.guess_SHW == number) & known_SHW, case.truth_SHW == number
            if not case.is_volume:
                guess, truth = guess[0], truth[0]
            sizes = int(truth.sum()), int(guess.sum())
            dice = 2 * int((guess & truth).sum()) / sum(sizes) if sum(sizes) else math.nan
            near = distance = math.nan
            if self.surface:
                own = steps[-guess.ndim :]
                between = border_distances(guess, truth, own)
                near = surface_dice(between, self.tolerance)
                distance = hd95_of(between, float(np.linalg.norm(np.array(guess.shape) * own)))
            slices = len(case.numbers) if case.is_volume else 0
            found.append(
                CaseScore(name, case.group, category, slices, *sizes, voxel, unit, dice, near, distance)
            )
        return found


def _place(item: LabelledImage) -> _Place:
    base, part = split_address(item.image)
    if part.slice is None:
        return _Place(item.image, 0, (0, 0, item.width, item.height))
    # Slices of another plane, series or layer are another stack.
    rest = replace(part, slice=None, window=None, bands=None, around=None)
    x, y = (0, 0) if part.window is None else part.window[:2]
    return _Place(f"{base}#{rest}".rstrip("#"), part.slice, (x, y, x + item.width, y + item.height))


def _begun(members: Sequence[LabelledImage]) -> _Case:
    places = [_place(item) for item in members]
    numbers = sorted({place.number for place in places})
    # The largest step that all slices lie on; a single slice has a step of 0.
    step = math.gcd(*(number - numbers[0] for number in numbers)) or 1
    rows = {number: (number - numbers[0]) // step for number in numbers}
    size = (
        rows[numbers[-1]] + 1,
        max(place.window[3] for place in places),
        max(place.window[2] for place in places),
    )
    first = members[0]
    is_volume = split_address(first.image)[1].slice is not None
    steps: tuple[float, ...] | None = None
    if first.spacing is not None and not (is_volume and first.thickness is None):
        # Spacings are x before y, arrays have rows before columns.
        steps = ((first.thickness or 1.0) * step, first.spacing[1], first.spacing[0])
    # What no image of the case covers stays unknown, and isn't scored.
    guess_SHW, truth_SHW = np.zeros(size, np.uint8), np.full(size, IGNORE, np.uint8)
    group = first.group or places[0].case
    return _Case(group, steps, rows, len(members), guess_SHW, truth_SHW, is_volume)


def _unit(case: _Case) -> tuple[float, str]:
    """Return the size of a voxel or pixel, and its unit."""
    if case.steps is None:
        return 1.0, "px"
    if case.is_volume:
        return math.prod(case.steps) / 1000, "ml"
    return math.prod(case.steps[1:]), "mm2"


def with_cases(scores: Scores, cases: Sequence[CaseScore], classes: Sequence[str]) -> Scores:
    """Return scores of images with the means over cases, and their intervals, beside them.

    A class counts in the cases whose labels or prediction hold it; the mean over classes is one of the means of each.
    Cases of one patient are drawn together for the intervals.

    Args:
        scores: Scores of all images together.
        cases: All that were scored.
        classes: In their order.
    """
    if not cases:
        return scores
    group_of = {one.case: one.group for one in cases}
    order = {name: row for row, name in enumerate(group_of)}
    group_N = group_numbers(list(group_of.values()))
    named = [name for name in classes if name != BACKGROUND]
    table_NKM = np.full((len(order), len(named), len(VALUES)), np.nan)
    for one in cases:
        table_NKM[order[one.case], named.index(one.category)] = _values(one)
    columns = [name for m, name in enumerate(VALUES) if not np.isnan(table_NKM[..., m]).all()]
    groups = int(group_N.max()) + 1
    values: dict[str, float] = {}
    rows: dict[str, dict[str, float]] = {name: {} for name in named}
    value_intervals: dict[str, Interval] = {}
    class_intervals: dict[str, dict[str, Interval]] = {name: {} for name in named}
    for column in columns:
        table_NK = table_NKM[..., VALUES.index(column)]
        draws_BK = resampled_means(table_NK, group_N)
        means_K = [known_mean(table_N) for table_N in table_NK.T]
        for number, name in enumerate(named):
            rows[name][column] = means_K[number]
            class_intervals[name][column] = interval_of_draws(draws_BK[:, number], groups)
        values[column] = known_mean(means_K)
        value_intervals[column] = interval_of_draws(_row_means(draws_BK), groups)
    for number, name in enumerate(named):
        rows[name]["cases"] = float((~np.isnan(table_NKM[:, number, 0])).sum())
    return replace(
        scores,
        values={**scores.values, **values, "cases": float(len(order))},
        per_class={name: {**row, **rows.get(name, {})} for name, row in scores.per_class.items()},
        value_intervals={**scores.value_intervals, **value_intervals},
        class_intervals={**scores.class_intervals, **class_intervals},
        cases=tuple(cases),
    )


def _row_means(draws_BK: np.ndarray) -> np.ndarray:
    """Return (B,) means over the classes that a resample knows."""
    known_BK = ~np.isnan(draws_BK)
    count_B = known_BK.sum(1)
    total_B = np.where(known_BK, draws_BK, 0.0).sum(1)
    means_B: np.ndarray = np.divide(total_B, count_B, out=np.full(len(count_B), np.nan), where=count_B > 0)
    return means_B


def _values(one: CaseScore) -> list[float]:
    millimetres = one.unit != "px"
    there = not math.isnan(one.dice)
    return [
        one.dice,
        one.surface if millimetres else math.nan,
        one.hd95 if millimetres else math.nan,
        one.error if one.unit == "ml" and there else math.nan,
        one.error if one.unit == "mm2" and there else math.nan,
    ]


def write_cases(path: Path, cases: Sequence[CaseScore], tolerance: float) -> None:
    """Write the table of the cases as CSV, a row for each class of each case.

    A case is called by the name of its file or folder, and by that of folders above it where another one has that name,
    but never by its whole path. Cells without a value are empty: neither labels nor prediction hold the class, or
    distances weren't asked for.

    Args:
        path: New file.
        cases: The rows.
        tolerance: Tolerance of surface Dice.
    """
    names = case_names(cases)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    sizes = ["true", "predicted", "error", "unit", "true_voxels", "predicted_voxels"]
    distances = ["dice", "surface_dice", "hd95", "distance_unit", "tolerance"]
    writer.writerow(["case", "patient", "class", "slices", *sizes, *distances])
    for one in cases:
        name, group = names[one.case], names.get(one.group, one.group)
        in_unit = [f"{value * one.voxel:.6g}" for value in (one.size, one.found)]
        scored = ["" if math.isnan(value) else f"{value:.6g}" for value in (one.dice, one.surface, one.hd95)]
        distance = "px" if one.unit == "px" else "mm"
        row = [
            name,
            group,
            one.category,
            one.slices,
            *in_unit,
            f"{one.error:.6g}",
            one.unit,
            one.size,
            one.found,
        ]
        writer.writerow([*row, *scored, distance, f"{tolerance:g}"])
    write_text(path, text.getvalue())


def case_names(cases: Sequence[CaseScore]) -> dict[str, str]:
    """Return what cases are called: the name of the file or folder, with those above it where another has it, too."""
    addresses = list(dict.fromkeys(one.case for one in cases))
    most = max((len(Path(split_address(case)[0]).parts) for case in addresses), default=0)
    names = {case: _short(case, 1) for case in addresses}
    for parts in range(2, most + 1):
        alike = Counter(names.values())
        if max(alike.values()) == 1:
            break
        names = {case: name if alike[name] == 1 else _short(case, parts) for case, name in names.items()}
    return names


def _short(case: str, parts: int) -> str:
    """Return the last parts of a case's path, and what its address says of it."""
    base, part = split_address(case)
    rest = str(part)
    return "/".join(word for word in Path(base).parts[-parts:] if word != "/") + (f"#{rest}" if rest else "")
