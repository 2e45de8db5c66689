"""Questions about the whole image: captions, scene class, presence, counts, grids of cells, points, land cover.

Each task asks one question, or returns None where the labels of the image allow none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vitp.core.words import how_many, listed, plural, spoken, with_article
from vitp.data.synthesis import phrases
from vitp.data.synthesis.answers import format_cells, format_grid, format_share
from vitp.data.synthesis.choosing import (
    capital,
    one_absent,
    one_class,
    one_of,
    one_present,
    worded,
    yes_or_no,
)
from vitp.data.synthesis.classes import NEVER_ASKED
from vitp.data.synthesis.facts import UNKNOWN, Facts, Question, inner_point
from vitp.records.instructions import IMAGE_MARK

_MOST_OPTIONS = 6
"""Most scene classes in one list of options: more would cost more tokens than the answer is worth."""

_ZERO_COUNT_SHARE = 0.15
"""Share of the counting questions that ask for a class that is not there."""

_COVER_STEP = 5
"""Land cover is given in steps of this many percent; the questions say so."""

_OPENINGS = {
    # with a scene class / without one
    True: ("{Scene} with {things}.", "This is {scene} with {things}.", "{Scene}; it shows {things}."),
    False: ("An image with {things}.", "The image shows {things}.", "{Things}."),
}
_BARE = ("{Scene}.", "An image of {scene}.", "This is {scene}.")


def compose_caption(facts: Facts, rng: np.random.Generator) -> str | None:
    """Compose a true caption from scene class, counts and land cover; None when there is nothing to say."""
    most = sorted(facts.by_class.items(), key=lambda entry: -len(entry[1]))[:4]
    things = [how_many(len(found), name) for name, found in most]
    largest = sorted(facts.shares.items(), key=lambda entry: -entry[1])[:3]
    cover = [
        spoken(name)
        for name, share in largest
        if share >= 0.1 and name.casefold() not in NEVER_ASKED and name not in facts.object_names
    ]
    if cover and (not things or rng.random() < 0.5):
        things += cover if things or len(cover) > 1 else [f"mostly {cover[0]}"]
    scene = None if facts.item.scene is None else with_article(facts.item.scene)
    if not things:
        return None if scene is None else one_of(rng, _BARE).format(scene=scene, Scene=capital(scene))
    text = one_of(rng, _OPENINGS[scene is not None])
    inside = listed(things)
    return text.format(scene=scene or "", Scene=capital(scene or "x"), things=inside, Things=capital(inside))


def caption(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for a description; the given captions are the answers, else one composed from the labels."""
    wordings = phrases.FIRST_CAPTION if facts.item.second_image is not None else phrases.CAPTION
    if facts.item.captions:
        return next_caption(facts.item.captions, wordings, facts, rng)
    answer = compose_caption(facts, rng)
    return Question(worded(rng, wordings), answer) if answer else None


def next_caption(
    captions: Sequence[str], wordings: Sequence[str], facts: Facts, rng: np.random.Generator
) -> Question | None:
    """Ask for a description; the answer is one of the given captions that was not the answer yet.

    Each comes with a wording of its own, as long as there are some: one question has one answer.
    """
    given = list(dict.fromkeys(text.strip() for text in captions if text.strip()))
    left = [text for text in given if text not in facts.captions_asked] if len(given) > 1 else given
    if not left:
        return None
    answer = one_of(rng, left)
    spoken_answer = answer.replace(IMAGE_MARK, "image")
    if len(given) == 1:
        return Question(worded(rng, wordings), spoken_answer)
    fresh = [text for text in wordings if text not in facts.captions_asked.values()] or list(wordings)
    facts.captions_asked[answer] = wording = one_of(rng, fresh)
    return Question(wording, spoken_answer, answer)


def scene(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for the scene class without options."""
    if facts.item.scene is None:
        return None
    return Question(worded(rng, phrases.SCENE), spoken(facts.item.scene))


def scene_options(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for the scene class among options in random order, of which the right one is as likely anywhere."""
    right = facts.item.scene
    others = [name for name in facts.classes.scene_classes if name != right]
    if right is None or not others:
        return None
    chosen = [others[int(i)] for i in rng.permutation(len(others))[: _MOST_OPTIONS - 1]]
    chosen.insert(int(rng.integers(len(chosen) + 1)), right)
    names = [spoken(name) for name in chosen]
    options = f"{', '.join(names[:-1])} or {names[-1]}"
    return Question(worded(rng, phrases.SCENE_OPTIONS, options=options), spoken(right))


def tags(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for all classes of an image that may have several, in the set's order; "none" where it has none."""
    if facts.item.tags is None or facts.item.unknown:  # "all of them" can't be told where some aren't known
        return None
    names = [spoken(name) for name in facts.classes.scene_classes if name in facts.item.tags]
    return Question(worded(rng, phrases.TAGS), ", ".join(names) or "none")


def presence(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask whether a class is there; as many yes as no over the set.

    With e = how probable the class is given the others, present classes come up by 1 - e and absent ones by e: then
    neither how frequent a class is nor what else is in the image tells the answer.
    """
    side = yes_or_no(facts, rng, facts.absent, facts.present, both=False)
    if side is None:
        return None
    names, yes = side
    name = (one_present if yes else one_absent)(facts, rng, names)
    facts.yes_no_asked.append((name, yes))
    some = plural(name) if name in facts.object_names else spoken(name)
    return Question(worded(rng, phrases.PRESENCE, any=f"any {some}"), "yes" if yes else "no", name)


def count(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for the number of objects of a class. The answer is the exact number in digits, however large."""
    names = [name for name in facts.by_class if name in facts.object_names]
    zero = rng.random() < _ZERO_COUNT_SHARE
    if zero and facts.absent_objects:
        name = one_absent(facts, rng, facts.absent_objects)
    elif names and not zero:
        name = one_present(facts, rng, names)
    else:
        return None
    number = len(facts.by_class.get(name, []))
    return Question(worded(rng, phrases.COUNT, many=plural(name)), str(number), name)


def count_compare(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask which of two classes has more objects. The answer is a class in the plural, or "equal"."""
    names = list(facts.by_class)
    if len(names) < 2:
        return None
    first, second = (names[int(i)] for i in rng.permutation(len(names))[:2])
    a, b = len(facts.by_class[first]), len(facts.by_class[second])
    answer = "equal" if a == b else plural(first if a > b else second)
    question = worded(rng, phrases.COUNT_COMPARE, a=plural(first), b=plural(second))
    return Question(question, answer, "/".join(sorted((first, second))))


def grid(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for the class of each cell of the n×n grid, one word a cell."""
    if not facts.grid:
        return None
    return Question(worded(rng, phrases.GRID, n=facts.limits.grid), format_grid(facts.grid))


def grid_row(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for one row of the grid; rows that hold more than one class are preferred."""
    rows = [i for i, names in enumerate(facts.grid) if UNKNOWN not in names]
    if not rows:
        return None
    row = one_of(rng, [i for i in rows if len(set(facts.grid[i])) > 1] or rows)
    question = worded(rng, phrases.GRID_ROW, n=facts.limits.grid, row=row + 1)
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
    chosen = one_class(facts, rng, names, [n for n in facts.absent if n in known])
    if chosen is None:
        return None
    question = worded(rng, phrases.CELLS, n=facts.limits.grid, one=spoken(chosen))
    return Question(question, format_cells(places.get(chosen, [])), chosen)


def cell(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for the class of one cell; each class of the grid is as likely, however many cells it fills."""
    askable = facts.askable_cells
    if not askable:
        return None
    name = one_of(rng, sorted({name for _, _, name in askable}))
    row, column = one_of(rng, [(r, c) for r, c, n in askable if n == name])
    question = worded(rng, phrases.CELL, n=facts.limits.grid, row=row, column=column)
    return Question(question, spoken(name), f"{row},{column}")


def point(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for the class at a point of the mask; each class of the image is as likely.

    Points on a class's edge are avoided: the 3×3 pixels around must agree.
    """
    mask, limit = facts.mask, facts.limits.coordinate_range
    names = [n for n, share in facts.shares.items() if share > 0 and n.casefold() not in NEVER_ASKED]
    if mask is None or not names:
        return None
    name = one_of(rng, names)
    found = inner_point(mask == facts.classes.semantic_classes.index(name), rng, limit)
    if found is None:
        return None
    x, y = found
    return Question(worded(rng, phrases.POINT, x=x, y=y), spoken(name), f"{x},{y}")


def cover(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for a class's share of the labelled pixels in percent, rounded to `_COVER_STEP`."""
    names = [n for n in facts.present if facts.shares.get(n)]
    absent = [n for n in facts.absent if n in facts.shares]
    if absent and rng.random() < 0.15:
        name = one_absent(facts, rng, absent)
    elif names:
        name = one_present(facts, rng, names)
    else:
        return None
    question = worded(rng, phrases.COVER, one=spoken(name), step=_COVER_STEP)
    return Question(question, format_share(facts.shares[name], _COVER_STEP), name)


def dominant(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for the class with the largest area, where it leads by a tenth of the image."""
    ordered = sorted(facts.shares.items(), key=lambda entry: -entry[1])
    if len(ordered) < 2 or ordered[0][1] - ordered[1][1] < 0.1 or ordered[0][0].casefold() in NEVER_ASKED:
        return None
    return Question(worded(rng, phrases.DOMINANT), spoken(ordered[0][0]))
