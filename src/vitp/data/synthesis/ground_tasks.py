"""Questions about sizes in the world, of things on the ground or in a body, and about how an image was taken.

They are asked where the size of a pixel (`LabelledImage.ground` or `spacing`), or the metadata, is known. Numbers have
two significant digits: more would be a precision that neither labels nor pixels have.

Each task asks one question, or returns None where the labels of the image allow none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np

from vitp.core.words import spoken
from vitp.data.synthesis import phrases
from vitp.data.synthesis.choosing import one_of, one_present, worded
from vitp.data.synthesis.classes import NEVER_ASKED
from vitp.data.synthesis.facts import Facts, Placed, Question
from vitp.data.synthesis.object_tasks import refer
from vitp.records.geometry import area, as_points, min_area_quad
from vitp.records.labels import LabelledImage

METADATA = (
    *("sensor", "date", "season", "region"),
    *("modality", "plane", "body_part", "laterality", "window"),
)
"""Keys of `LabelledImage.metadata` that are asked for and told."""

SPOKEN_MODALITIES = {
    "CT": "CT",
    "MR": "MRI",
    "PT": "PET",
    "US": "ultrasound",
    "NM": "scintigraphy",
    "XA": "angiography",
    "CR": "X-ray",
    "DX": "X-ray",
    "DR": "X-ray",
    "RF": "fluoroscopy",
    "MG": "mammography",
    "OP": "fundus photograph",
    "OPT": "optical coherence tomography",
    "SM": "slide microscopy",
    "ES": "endoscopy",
    "GM": "light microscopy",
    "XC": "photograph",
}
"""DICOM's codes as they are told; other values stay as they are."""

_ELONGATED = 1.5
"""Long side over short side from which on an object has a length."""

_FEWEST_PIXELS = 8.0
"""Pixels of a length, or of the root of an area, below which two digits can't be seen."""

_BORDER = 1.0
"""Pixels from the border within which an object may go on outside."""

_NEAR, _FAR = 0.1, 0.5
"""Relative errors up to which an answer is right, and from which on it is wrong."""

_AMOUNT = re.compile(
    r"(\d[\d,]*(?:\.\d+)?)\s*(ml|millilit(?:re|er)s?|hectares?|metres?|meters?|ha|(?:[kcmµ]?m)[²2]?)(?!\w)",
    re.IGNORECASE,
)
_LENGTHS = {"µm": 1e-6, "mm": 1e-3, "cm": 0.01, "m": 1.0, "km": 1000.0}
_UNITS = {
    **{unit: (size, 1) for unit, size in _LENGTHS.items()},
    **{f"{unit}²": (size**2, 2) for unit, size in _LENGTHS.items()},
    "ha": (1e4, 2),
    "ml": (1e-6, 3),
}
"""Unit → its size in metres, square or cubic metres, and which of them."""


def two_digits(value: float) -> float:
    """Return a number with two significant digits."""
    return float(f"{value:.1e}")


def length_text(metres: float) -> str:
    """Return a length in centimetres, metres or kilometres, with two significant digits ("about 40 m")."""
    rounded = two_digits(metres)
    if rounded < 1:
        return f"about {two_digits(rounded * 100):g} cm"
    return f"about {rounded:g} m" if rounded < 1000 else f"about {two_digits(rounded / 1000):g} km"


def area_text(square_metres: float) -> str:
    """Return an area in square metres, hectares or square kilometres, with two significant digits."""
    rounded = two_digits(square_metres)
    if rounded < 1e4:
        return f"about {rounded:g} m²"
    return (
        f"about {two_digits(rounded / 1e4):g} ha"
        if rounded < 1e7
        else f"about {two_digits(rounded / 1e6):g} km²"
    )


def body_length_text(millimetres: float) -> str:
    """Return a length in millimetres, or micrometres below a tenth of one, with two significant digits."""
    rounded = two_digits(millimetres)
    return f"about {rounded:g} mm" if rounded >= 0.1 else f"about {two_digits(rounded * 1000):g} µm"


def body_area_text(square_millimetres: float) -> str:
    """Return an area in square micrometres, millimetres or centimetres, with two significant digits."""
    rounded = two_digits(square_millimetres)
    if rounded < 0.01:
        return f"about {two_digits(rounded * 1e6):g} µm²"
    return f"about {rounded:g} mm²" if rounded < 100 else f"about {two_digits(rounded / 100):g} cm²"


def body_volume_text(cubic_millimetres: float) -> str:
    """Return a volume in millilitres with two significant digits."""
    return f"about {two_digits(cubic_millimetres / 1000):g} ml"


def parse_amount(text: str) -> float | None:
    """Return the first amount of a text in metres, square metres or cubic metres; None where it has none."""
    found = _amount(text)
    return None if found is None else found[0]


def _amount(text: str) -> tuple[float, int] | None:
    """Return the first amount, and whether it is a length (1), an area (2) or a volume (3)."""
    match = _AMOUNT.search(text)
    if match is None:
        return None
    unit = match[2].lower().replace("2", "²")
    for word, short in (("hect", "ha"), ("met", "m"), ("millil", "ml")):
        unit = short if unit.startswith(word) else unit
    size, kind = _UNITS[unit]
    return float(match[1].replace(",", "")) * size, kind


def near_amount(predicted: str, expected: str) -> float:
    """Return 1 for an amount within a tenth of the expected one, less for those further away, 0 from a half on.

    An area is no length: another kind of amount counts 0.
    """
    answer, right = _amount(predicted), _amount(expected)
    if answer is None or right is None or not right[0] or answer[1] != right[1]:
        return 0.0
    error = abs(answer[0] - right[0]) / right[0]
    return float(min(max((_FAR - error) / (_FAR - _NEAR), 0.0), 1.0))


def near_change(predicted: str, expected: str) -> float:
    """Return `near_amount` of a change, 0 where the answer says larger instead of smaller."""
    larger = [
        re.search(r"\b(larger|grew|more|gained|\+)", text.casefold()) is not None
        for text in (predicted, expected)
    ]
    smaller = re.search(r"\b(smaller|shrank|shrunk|less|lost|decreased)\b", predicted.casefold()) is not None
    if larger[0] == smaller or larger[0] != larger[1]:
        return 0.0
    return near_amount(predicted, expected)


def has_ground(item: LabelledImage) -> bool:
    """Return whether the size of an image's pixels on the ground is known."""
    return item.ground is not None


def _on_ground(item: LabelledImage, points_N2: np.ndarray) -> np.ndarray:
    """Return points in pixels as metres east and north."""
    assert item.ground is not None
    return np.asarray(points_N2 @ np.array(item.ground).reshape(2, 2))


def _outline(placed: Placed) -> list[np.ndarray] | None:
    """Return the outline of an object, None where only an upright box is known: of what is turned it says too much."""
    label = placed.label
    if label.polygons:
        return [as_points(ring) for ring in label.polygons]
    return None if label.quad is None else [as_points(label.quad)]


def _is_whole(facts: Facts, placed: Placed) -> bool:
    """Return whether an object certainly ends within the image."""
    x1, y1, x2, y2 = placed.label.box
    width, height = facts.item.width, facts.item.height
    return x1 > _BORDER and y1 > _BORDER and x2 < width - _BORDER and y2 < height - _BORDER


def _referred(facts: Facts, rng: np.random.Generator) -> tuple[str, Placed] | None:
    """Return an expression for one object that lies in the image as a whole, and the object."""
    names = [name for name in facts.by_class if name in facts.object_names]
    if not has_ground(facts.item) or not names:
        return None
    found = refer(facts.by_class[one_present(facts, rng, names)], rng)
    return found if found is not None and _is_whole(facts, found[1]) else None


def size_metres(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for the length of an elongated object on the ground: the long side of the smallest box around it."""
    referred = _referred(facts, rng)
    rings = None if referred is None else _outline(referred[1])
    if referred is None or rings is None:
        return None
    points_N2 = np.concatenate(rings)
    sides, pixels = (
        _sides(min_area_quad(points)) for points in (_on_ground(facts.item, points_N2), points_N2)
    )
    if max(pixels) < _FEWEST_PIXELS or max(sides) < _ELONGATED * min(sides):
        return None
    return Question(worded(rng, phrases.LENGTH, the=referred[0]), length_text(max(sides)), referred[0])


def _sides(quad_42: np.ndarray) -> tuple[float, float]:
    return float(np.hypot(*(quad_42[1] - quad_42[0]))), float(np.hypot(*(quad_42[2] - quad_42[1])))


def area_metres(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for the area of an object's outline on the ground; its holes don't count."""
    referred = _referred(facts, rng)
    if referred is None or not referred[1].label.polygons:
        return None
    label = referred[1].label
    pixels = sum(area(as_points(ring)) for ring in label.polygons) - sum(
        area(as_points(h)) for h in label.holes
    )
    if pixels < _FEWEST_PIXELS**2:
        return None
    return Question(
        worded(rng, phrases.AREA, the=referred[0]), area_text(pixels * _pixel_area(facts.item)), referred[0]
    )


def _pixel_area(item: LabelledImage) -> float:
    assert item.ground is not None
    a, b, c, d = item.ground
    return abs(a * d - b * c)


def cover_hectares(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for the area that a class of the mask covers on the ground."""
    names = [n for n, share in facts.shares.items() if share > 0 and n.casefold() not in NEVER_ASKED]
    if not has_ground(facts.item) or facts.histogram is None or not names:
        return None
    name = one_of(rng, names)
    pixels = int(facts.histogram[facts.classes.semantic_classes.index(name)])
    if pixels < _FEWEST_PIXELS**2:
        return None
    question = worded(rng, phrases.COVER_AREA, one=spoken(name))
    return Question(question, area_text(pixels * _pixel_area(facts.item)), name)


def distance_metres(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for the distance between the centres of two objects of different classes."""
    names = [name for name in facts.by_class if name in facts.object_names]
    if not has_ground(facts.item) or len(names) < 2:
        return None
    chosen = [names[int(i)] for i in rng.permutation(len(names))[:2]]
    one, two = (refer(facts.by_class[name], rng) for name in chosen)
    if one is None or two is None or not (_is_whole(facts, one[1]) and _is_whole(facts, two[1])):
        return None
    size = np.array([facts.item.width, facts.item.height])
    pixels = np.array([[p.x, p.y] for p in (one[1], two[1])]) * size
    if math.dist(*pixels) < _FEWEST_PIXELS:
        return None
    ground = _on_ground(facts.item, pixels)
    question = worded(rng, phrases.DISTANCE, a=one[0], b=two[0])
    return Question(question, length_text(math.dist(*ground)), "/".join(sorted((one[0], two[0]))))


def ground_resolution(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask how much ground a pixel shows."""
    if not has_ground(facts.item):
        return None
    return Question(worded(rng, phrases.RESOLUTION), resolution_text(facts.item))


def resolution_text(item: LabelledImage) -> str:
    """Return the side of a pixel on the ground ("about 10 m")."""
    return length_text(math.sqrt(_pixel_area(item)))


def extent_metres(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask how wide the ground is that the image shows, from its left to its right."""
    if not has_ground(facts.item):
        return None
    across = _on_ground(facts.item, np.array([[float(facts.item.width), 0.0]]))
    return Question(worded(rng, phrases.EXTENT), length_text(float(np.hypot(*across[0]))))


def known_metadata(key: str) -> Callable[[LabelledImage], bool]:
    """Return a function that tells whether an image has a value of the metadata."""
    return lambda item: bool(item.metadata and item.metadata.get(key))


def asks_metadata(key: str) -> Callable[[Facts, np.random.Generator], Question | None]:
    """Return the task that asks for a value of the metadata."""
    wordings = phrases.METADATA_QUESTIONS[key]

    def task(facts: Facts, rng: np.random.Generator) -> Question | None:
        value = _told(facts.item, key)
        return Question(worded(rng, wordings), value) if value else None

    return task


def _told(item: LabelledImage, key: str) -> str:
    """Return a value of the metadata as it is told; "" where it isn't known."""
    value = (item.metadata or {}).get(key, "")
    return SPOKEN_MODALITIES.get(value.upper(), value) if key == "modality" else value


def context_line(item: LabelledImage, told: Callable[[str], bool] = lambda name: True) -> str:
    """Return what is known of how an image was taken as one line, "" where nothing is.

    The dates of a pair stand beside the marks of its images.

    Args:
        item: The image.
        told: Whether one of `METADATA`, or `ground_resolution`, is told.
    """
    several = item.second_image is not None or item.series
    values = {key: _told(item, key) for key in METADATA if not (several and key in ("date", "season"))}
    if item.ground is not None:
        values["ground_resolution"] = resolution_text(item).removeprefix("about ")
    order = ("sensor", "ground_resolution", *METADATA[1:])
    parts = [f"{spoken(key)}: {values[key]}" for key in order if values.get(key) and told(key)]
    line = "; ".join(parts)
    return f"{line[0].upper()}{line[1:]}." if line else ""


def image_marks(item: LabelledImage, *, dated: bool) -> str:
    """Return the marks of the images of a record, those of several dates with the dates where all are known."""
    if item.second_image is None and not item.series:
        return "<image>\n"
    known = item.metadata or {}
    dates = [known.get("date"), known.get("later_date")]
    if item.series:
        dates = [*known.get("dates", "").split(", ")]
        dates = dates if len(dates) == 1 + len(item.series) else [None] * (1 + len(item.series))
    told = [f" ({date})" if dated and all(dates) else "" for date in dates]
    return "".join(f"Image-{number}{date}: <image>\n" for number, date in enumerate(told, 1))
