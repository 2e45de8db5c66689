"""The page of a model's scores by case: means with their intervals, and the cases with the largest errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from vitp.metrics.cases import case_names, write_cases
from vitp.metrics.results import CaseScore, Scores
from vitp.report.page import HtmlPage, Section, Table, TableCell

_MOST_CASES = 60
_SHOWN = (
    ("case_dice", "Dice", 3),
    ("case_surface_dice", "surface Dice", 3),
    ("case_hd95_mm", "HD95 in mm", 2),
    ("case_error_ml", "error in ml", 2),
    ("case_error_mm2", "error in mm²", 1),
)


def write_case_files(folder: Path, name: str, scores: Scores, title: str, tolerance: float) -> list[Path]:
    """Write the table of cases as `NAME.csv` and its summary as the page `NAME.html`; return both.

    Args:
        folder: Folder of the run.
        name: Name of the files, without suffix.
        scores: Scores with cases.
        title: Heading of the page.
        tolerance: Tolerance of surface Dice, in mm.
    """
    table, page = folder / f"{name}.csv", folder / f"{name}.html"
    write_cases(table, scores.cases, tolerance)
    return [table, cases_page(scores, title, tolerance).write(page)]


def cases_page(scores: Scores, title: str, tolerance: float) -> HtmlPage:
    """Return the page of scores with cases; see `write_case_files`."""
    columns = [column for column in _SHOWN if column[0] in scores.values]
    sections = [
        Section(
            "Means over cases",
            [Table(["class", "cases", *(words for _, words, _ in columns)], _class_rows(scores, columns))],
            "In brackets: 95 % intervals, from resampling patients. A class counts in the cases whose labels or "
            f"prediction hold it. Surface Dice allows {tolerance:g} mm.",
        ),
        Section(
            "Cases",
            [_case_table(scores.cases, tolerance)],
            f"Those of the lowest Dice first, {_MOST_CASES} at most; the CSV beside this page has all.",
        ),
    ]
    cases = len({one.case for one in scores.cases})
    patients = len({one.group for one in scores.cases})
    facts = [("images", str(scores.images)), ("cases", str(cases)), ("patients", str(patients))]
    subtitle = "How well each class was segmented, case by case. Research software; not a medical device."
    return HtmlPage(title, sections, subtitle, facts)


def _class_rows(scores: Scores, columns: Sequence[tuple[str, str, int]]) -> list[list[TableCell]]:
    rows: list[list[TableCell]] = []
    for name, row in scores.per_class.items():
        if "cases" not in row:
            continue
        intervals = scores.class_intervals.get(name, {})
        cells: list[TableCell] = [name, int(row["cases"])]
        cells += [_shown(row.get(key, math.nan), intervals.get(key), digits) for key, _, digits in columns]
        rows.append(cells)
    means = [
        _shown(scores.values[key], scores.value_intervals.get(key), digits) for key, _, digits in columns
    ]
    return [*rows, ["mean of the classes", int(scores.values["cases"]), *means]]


def _shown(value: float, interval: tuple[float, float] | None, digits: int) -> str | None:
    if math.isnan(value):
        return None
    if interval is None or math.isnan(interval[0]):
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"


def _case_table(cases: Sequence[CaseScore], tolerance: float) -> Table:
    names = case_names(cases)
    known = sorted((one for one in cases if not math.isnan(one.dice)), key=lambda one: one.dice)
    rows: list[list[TableCell]] = []
    for one in known[:_MOST_CASES]:
        unit = "px" if one.unit == "px" else "mm"
        distance = None if math.isnan(one.hd95) else f"{one.hd95:.2f} {unit}"
        sizes = [f"{value * one.voxel:.4g} {one.unit}" for value in (one.size, one.found)]
        surface = None if math.isnan(one.surface) else round(one.surface, 3)
        rows.append([names[one.case], one.category, round(one.dice, 3), surface, distance, *sizes])
    return Table(
        ["case", "class", "Dice", f"surface Dice ({tolerance:g} mm)", "HD95", "labels", "prediction"], rows
    )
