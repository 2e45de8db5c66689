"""Dense questions: grids of cells, points, land cover."""

from __future__ import annotations

import numpy as np

from vitp.core.words import spoken
from vitp.data.synthesis import phrases
from vitp.data.synthesis.answers import format_cells, format_grid, format_share
from vitp.data.synthesis.choosing import ask, draw, draw_absent, draw_present
from vitp.data.synthesis.classes import NEVER_ASKED
from vitp.data.synthesis.facts import UNKNOWN, Facts, Question

COVER_STEP = 5
"""Land cover is given in steps of this many percent; the questions say so."""


def grid(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for the class of each cell of the n×n grid, one word a cell."""
    if not facts.grid:
        return None
    return Question(ask(rng, phrases.GRID, n=facts.limits.grid), format_grid(facts.grid))


def grid_row(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for one row of the grid; rows that hold more than one class are preferred."""
    rows = [i for i, names in enumerate(facts.grid) if UNKNOWN not in names]
    if not rows:
        return None
    row = draw(rng, [i for i in rows if len(set(facts.grid[i])) > 1] or rows)
    question = ask(rng, phrases.GRID_ROW, n=facts.limits.grid, row=row + 1)
    return Question(question, format_grid([facts.grid[row]]), str(row))


def cells(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for the cells that a class names in the grid; "none" where the class is absent from the image.

    Classes that fill more than two rows' worth of cells are not asked: the grid says that in fewer tokens. Nor are
    those of which some cell can't be told.
    """
    if not facts.grid:
        return None
    places: dict[str, list[tuple[int, int]]] = {}
    for row, column, name in facts.askable_cells:
        places.setdefault(name, []).append((row, column))
    names = [n for n, held in places.items() if n in facts.listable and len(held) <= 2 * facts.limits.grid]
    known = facts.classes.semantic_classes if facts.mask is not None else facts.classes.object_classes
    absent = [n for n in facts.absent if n in known]
    if rng.random() < 0.5 and absent:
        name = draw_absent(facts, rng, absent)
    elif names:
        name = draw_present(facts, rng, names)
    else:
        return None
    question = ask(rng, phrases.CELLS, n=facts.limits.grid, one=spoken(name))
    return Question(question, format_cells(places.get(name, [])), name)


def cell(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for the class of one cell; each class of the grid is as likely, however many cells it fills."""
    askable = facts.askable_cells
    if not askable:
        return None
    name = draw(rng, sorted({name for _, _, name in askable}))
    row, column = draw(rng, [(r, c) for r, c, n in askable if n == name])
    question = ask(rng, phrases.CELL, n=facts.limits.grid, row=row, column=column)
    return Question(question, spoken(name), f"{row},{column}")


def point(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for the class at a point of the mask; each class of the image is as likely.

    Points on a class's edge are avoided: the 3×3 pixels around must agree.
    """
    mask, limit = facts.mask, facts.limits.coordinate_range
    names = [n for n, share in facts.shares.items() if share > 0 and n.casefold() not in NEVER_ASKED]
    if mask is None or not names:
        return None
    name = draw(rng, names)
    value = facts.classes.semantic_classes.index(name)
    places = np.flatnonzero(mask.ravel() == value)
    height, width = mask.shape
    for place in places[rng.integers(len(places), size=8)]:
        row, column = divmod(int(place), width)
        x, y = round((column + 0.5) / width * limit), round((row + 0.5) / height * limit)
        # A coordinate stands for several pixels of a large image: look where the text really points.
        row, column = min(y * height // limit, height - 1), min(x * width // limit, width - 1)
        if (mask[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] == value).all():
            return Question(ask(rng, phrases.POINT, x=x, y=y), spoken(name), f"{x},{y}")
    return None


def cover(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for a class's share of the labelled pixels in percent, rounded to `COVER_STEP`."""
    names = [n for n in facts.present if facts.shares.get(n)]
    absent = [n for n in facts.absent if n in facts.shares]
    if absent and rng.random() < 0.15:
        name = draw_absent(facts, rng, absent)
    elif names:
        name = draw_present(facts, rng, names)
    else:
        return None
    question = ask(rng, phrases.COVER, one=spoken(name), step=COVER_STEP)
    return Question(question, format_share(facts.shares[name], COVER_STEP), name)


def dominant(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for the class with the largest area, where it leads by a tenth of the image."""
    ordered = sorted(facts.shares.items(), key=lambda entry: -entry[1])
    if len(ordered) < 2 or ordered[0][1] - ordered[1][1] < 0.1 or ordered[0][0].casefold() in NEVER_ASKED:
        return None
    return Question(ask(rng, phrases.DOMINANT), spoken(ordered[0][0]))
