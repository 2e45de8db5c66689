"""Questions about the whole image: captions, scene class, presence, counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vitp.core.words import how_many, listed, plural, spoken, with_article
from vitp.data.synthesis import phrases
from vitp.data.synthesis.choosing import ask, draw, draw_absent, draw_present, draw_yes_no
from vitp.data.synthesis.classes import NEVER_ASKED
from vitp.data.synthesis.facts import Facts, Question
from vitp.records.instructions import IMAGE_MARK

MOST_OPTIONS = 6
"""Most scene classes in one list of options: more would cost more tokens than the answer is worth."""

ZERO_COUNT_SHARE = 0.15
"""Share of the counting questions that ask for a class that is not there."""

_OPENINGS = {
    # with a scene class / without one
    True: ("{Scene} with {things}.", "This is {scene} with {things}.", "{Scene}; it shows {things}."),
    False: ("An image with {things}.", "The image shows {things}.", "{Things}."),
}
_BARE = ("{Scene}.", "An image of {scene}.", "This is {scene}.")


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def compose_caption(facts: Facts, rng: np.random.Generator) -> str | None:
    """Compose a true caption from scene class, counts and land cover; None when there is nothing to say."""
    things = [
        how_many(len(found), name)
        for name, found in sorted(facts.by_class.items(), key=lambda entry: -len(entry[1]))[:4]
    ]
    cover = [
        spoken(name)
        for name, share in sorted(facts.shares.items(), key=lambda entry: -entry[1])[:3]
        if share >= 0.1 and name.casefold() not in NEVER_ASKED and name not in facts.object_names
    ]
    if cover and (not things or rng.random() < 0.5):
        things += cover if things or len(cover) > 1 else [f"mostly {cover[0]}"]
    scene = None if facts.item.scene is None else with_article(facts.item.scene)
    if not things:
        return None if scene is None else draw(rng, _BARE).format(scene=scene, Scene=_capital(scene))
    text = draw(rng, _OPENINGS[scene is not None])
    inside = listed(things)
    return text.format(
        scene=scene or "", Scene=_capital(scene or "x"), things=inside, Things=_capital(inside)
    )


def caption(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for a description; the given captions are the answers, else one composed from the labels."""
    wordings = phrases.FIRST_CAPTION if facts.item.second_image is not None else phrases.CAPTION
    if facts.item.captions:
        return next_caption(facts.item.captions, wordings, facts, rng)
    answer = compose_caption(facts, rng)
    return Question(ask(rng, wordings), answer) if answer else None


def next_caption(
    captions: Sequence[str], wordings: Sequence[str], facts: Facts, rng: np.random.Generator
) -> Question | None:
    """Ask for a description; the answer is one of the given captions that was not the answer yet.

    Each comes with a wording of its own, as long as there are some: one question has one answer.
    """
    given = list(dict.fromkeys(text.strip() for text in captions if text.strip()))
    if not given:
        return None
    if len(given) == 1:
        (answer,) = given
        draw(rng, given)
        return Question(ask(rng, wordings), answer.replace(IMAGE_MARK, "image"))
    left = [text for text in given if text not in facts.captions_asked]
    if not left:
        return None
    answer = draw(rng, left)
    fresh = [text for text in wordings if text not in facts.captions_asked.values()] or list(wordings)
    facts.captions_asked[answer] = wording = draw(rng, fresh)
    return Question(wording, answer.replace(IMAGE_MARK, "image"), answer)


def scene(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for the scene class without options."""
    if facts.item.scene is None:
        return None
    return Question(ask(rng, phrases.SCENE), spoken(facts.item.scene))


def scene_options(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for the scene class among options in random order, of which the right one is as likely anywhere."""
    right = facts.item.scene
    others = [name for name in facts.classes.scene_classes if name != right]
    if right is None or not others:
        return None
    chosen = [others[int(i)] for i in rng.permutation(len(others))[: MOST_OPTIONS - 1]]
    chosen.insert(int(rng.integers(len(chosen) + 1)), right)
    names = [spoken(name) for name in chosen]
    options = f"{', '.join(names[:-1])} or {names[-1]}"
    return Question(ask(rng, phrases.SCENE_OPTIONS, options=options), spoken(right))


def presence(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask whether a class is there; as many yes as no over the set."""
    picked = draw_yes_no(facts, rng)
    if picked is None:
        return None
    name, yes = picked
    some = plural(name) if name in facts.object_names else spoken(name)
    return Question(ask(rng, phrases.PRESENCE, any=f"any {some}"), "yes" if yes else "no", name)


def count(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for the number of objects of a class. The answer is the exact number in digits, however large."""
    names = [name for name in facts.by_class if name in facts.object_names]
    zero = rng.random() < ZERO_COUNT_SHARE
    if zero and facts.absent_objects:
        name, answer = draw_absent(facts, rng, facts.absent_objects), "0"
    elif names and not zero:
        name = draw_present(facts, rng, names)
        answer = str(len(facts.by_class[name]))
    else:
        return None
    return Question(ask(rng, phrases.COUNT, many=plural(name)), answer, name)


def count_compare(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask which of two classes has more objects. The answer is a class in the plural, or "equal"."""
    names = list(facts.by_class)
    if len(names) < 2:
        return None
    first, second = (names[int(i)] for i in rng.permutation(len(names))[:2])
    a, b = len(facts.by_class[first]), len(facts.by_class[second])
    answer = "equal" if a == b else plural(first if a > b else second)
    question = ask(rng, phrases.COUNT_COMPARE, a=plural(first), b=plural(second))
    return Question(question, answer, "/".join(sorted((first, second))))
