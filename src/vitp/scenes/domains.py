"""Domains of generated scenes: their classes, what their land looks like and what stands where."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from vitp.core.errors import ConfigError, did_you_mean
from vitp.records.labels import SPLITS


@dataclass(frozen=True)
class LandSpec:
    """The look of one land class; its variants are random mixes of it.

    Attributes:
        colours: Typical RGB values 0..255; a variant is a random mix of them.
        bands: Typical near infrared, radar backscatter and temperature, each 0..1.
        textures: Names of texture families in `vitp.scenes.textures`.
        contrast: Standard deviation of the texture, as a share of full scale.
    """

    colours: tuple[tuple[int, int, int], ...]
    bands: tuple[float, float, float]
    textures: tuple[str, ...]
    contrast: float


@dataclass(frozen=True)
class ObjectSpec:
    """Sizes, paints and physical bands of one object class.

    Attributes:
        length: Shortest and longest in pixels.
        palette: Colour names of `vitp.scenes.shapes.PAINTS`.
        radar: Backscatter 0..1.
        heat: Temperature 0..1; each object differs by up to `heat_spread`.
        height: Height over length, for shadows.
        round: Has no heading: its oriented box is upright.
    """

    length: tuple[float, float]
    palette: tuple[str, ...]
    radar: float
    heat: float
    heat_spread: float
    height: float
    round: bool = False


@dataclass(frozen=True)
class Rule:
    """A rule that places objects of one class in one scene type.

    Attributes:
        category: Object class.
        zones: Land classes that it may stand on.
        count: Fewest and most groups on 96 × 96 pixels; larger places get proportionally more.
        how: `free` (any heading), `axis` (along the scene's main axis), `line` (on a road, rail or runway,
            heading along it), `beside` (next to such a line), `row` (a side by side group), `train` (a group
            end to end on a line).
        group: Fewest and most objects of a `row` or `train`.
        line: Land class whose lines `line`, `beside` and `train` follow; the first zone when empty.
    """

    category: str
    zones: tuple[str, ...]
    count: tuple[int, int]
    how: str = "free"
    group: tuple[int, int] = (1, 1)
    line: str = ""


@dataclass(frozen=True)
class SceneDomain:
    """A family of generated places: its vocabulary, and the tables that its pictures are made from.

    Attributes:
        name: Name of the domain, as in addresses.
        looks: Sensors that take the pictures.
        land: How each land class looks.
        objects: How each object class looks.
        rules: What stands where, by scene type.
        licence: Licence of generated images.
    """

    name: str
    looks: tuple[str, ...]
    land: dict[str, LandSpec] = field(repr=False, compare=False)
    objects: dict[str, ObjectSpec] = field(repr=False, compare=False)
    rules: dict[str, tuple[Rule, ...]] = field(repr=False, compare=False)
    licence: str = "CC0 (generated)"

    def __post_init__(self) -> None:
        # Names travel in addresses and answers: single lower-case words only.
        for name in (self.name, *self.semantic_classes, *self.scene_types, *self.looks):
            if not re.fullmatch(r"[a-z]+", name):
                raise ValueError(f"{name!r} is not a lower-case word")

    @property
    def object_classes(self) -> tuple[str, ...]:
        """Names of the objects."""
        return tuple(self.objects)

    @property
    def land_classes(self) -> tuple[str, ...]:
        """Names of the land cover."""
        return tuple(self.land)

    @property
    def scene_types(self) -> tuple[str, ...]:
        """Names of the places."""
        return tuple(self.rules)

    @property
    def semantic_classes(self) -> tuple[str, ...]:
        """Names by value of the semantic mask: land classes, then object classes."""
        return self.land_classes + self.object_classes


# fmt: off
_GENERAL_LAND = {
    "water": LandSpec(((28, 58, 78), (52, 82, 70), (78, 92, 76), (18, 42, 62), (92, 104, 96)),
                      (0.07, 0.10, 0.38), ("waves", "cloud"), 0.035),
    "grass": LandSpec(((88, 118, 58), (130, 130, 72), (66, 98, 50), (152, 142, 92)),
                      (0.62, 0.30, 0.42), ("cloud", "grain", "patches"), 0.06),
    "forest": LandSpec(((38, 68, 34), (62, 82, 42), (34, 58, 44), (92, 84, 46), (104, 72, 44)),
                       (0.58, 0.46, 0.36), ("canopy",), 0.1),
    "crops": LandSpec(((120, 140, 70), (152, 142, 82), (96, 116, 50), (90, 98, 62), (176, 156, 102), (128, 108, 80)),
                      (0.58, 0.36, 0.44), ("rows",), 0.075),
    "soil": LandSpec(((142, 116, 86), (120, 96, 76), (162, 142, 112), (108, 92, 80)),
                     (0.36, 0.26, 0.58), ("cloud", "patches", "grain"), 0.06),
    "road": LandSpec(((96, 96, 98), (122, 118, 112), (78, 80, 84), (134, 128, 116)),
                     (0.20, 0.12, 0.62), ("grain",), 0.03),
    "pavement": LandSpec(((140, 140, 138), (118, 118, 122), (166, 160, 150), (100, 100, 100)),
                         (0.26, 0.20, 0.60), ("slabs", "grain", "patches"), 0.045),
    "sand": LandSpec(((200, 184, 150), (184, 164, 130), (212, 202, 172), (160, 146, 118)),
                     (0.46, 0.16, 0.56), ("cloud", "ripples"), 0.05),
}
# fmt: on
_GENERAL_OBJECTS = {
    "plane": ObjectSpec((13, 36), ("white", "gray", "blue"), 0.85, 0.5, 0.2, 0.14),
    "ship": ObjectSpec((12, 40), ("gray", "white", "red", "black", "blue"), 0.90, 0.55, 0.2, 0.14),
    "car": ObjectSpec(
        (4.6, 7.2), ("white", "gray", "red", "blue", "black", "yellow"), 0.75, 0.65, 0.25, 0.28
    ),
    "truck": ObjectSpec((8.5, 15), ("white", "red", "blue", "green", "yellow"), 0.85, 0.62, 0.25, 0.26),
    "building": ObjectSpec((10, 30), ("gray", "brown", "red", "white", "blue"), 0.80, 0.6, 0.2, 0.34),
    "tank": ObjectSpec((7, 19), ("white", "gray", "brown", "green"), 0.88, 0.5, 0.2, 0.36, round=True),
    "court": ObjectSpec((13, 24), ("green", "red", "blue", "orange"), 0.22, 0.55, 0.1, 0.0),
    "tree": ObjectSpec((5, 12), ("green", "olive", "brown"), 0.55, 0.35, 0.1, 0.5, round=True),
}
_GENERAL_RULES = {
    "airport": (
        Rule("building", ("pavement", "grass"), (0, 2), "axis"),
        Rule("plane", ("pavement",), (1, 2), "row", (1, 3)),
        Rule("plane", ("road",), (0, 1), "line"),
        Rule("truck", ("pavement",), (0, 2), "axis"),
        Rule("tank", ("grass", "soil"), (0, 1), "row", (1, 3)),
        Rule("car", ("pavement",), (0, 3), "free"),
    ),
    "harbour": (
        Rule("ship", ("water",), (0, 2), "beside", line="road"),
        Rule("ship", ("water",), (1, 3), "free"),
        Rule("building", ("pavement",), (0, 3), "axis"),
        Rule("tank", ("pavement",), (0, 1), "row", (2, 4)),
        Rule("truck", ("pavement", "road"), (0, 3), "axis"),
        Rule("car", ("road", "pavement"), (0, 3), "line", line="road"),
    ),
    "residential": (
        Rule("building", ("grass", "soil"), (4, 9), "beside", line="road"),
        Rule("car", ("road",), (1, 4), "line"),
        Rule("court", ("grass", "soil"), (0, 1), "axis"),
        Rule("tree", ("grass", "soil"), (1, 7), "free"),
        Rule("truck", ("road",), (0, 1), "line"),
    ),
    "farmland": (
        Rule("building", ("grass", "soil", "crops"), (0, 2), "axis"),
        Rule("tank", ("grass", "soil", "crops"), (0, 1), "row", (1, 3)),
        Rule("tree", ("grass", "soil", "crops"), (0, 5), "free"),
        Rule("truck", ("crops", "road", "soil"), (0, 2), "axis"),
        Rule("car", ("road",), (0, 2), "line"),
    ),
    "forest": (
        Rule("building", ("grass", "soil"), (0, 2), "free"),
        Rule("tree", ("grass", "soil"), (1, 6), "free"),
        Rule("truck", ("road", "soil"), (0, 2), "line", line="road"),
        Rule("car", ("road",), (0, 2), "line"),
        Rule("ship", ("water",), (0, 1), "free"),
    ),
    "industrial": (
        Rule("building", ("pavement", "soil"), (1, 4), "axis"),
        Rule("tank", ("pavement", "soil"), (0, 2), "row", (2, 4)),
        Rule("truck", ("pavement",), (0, 2), "row", (1, 4)),
        Rule("car", ("pavement",), (0, 1), "row", (2, 6)),
        Rule("truck", ("road",), (0, 2), "line"),
        Rule("tree", ("grass",), (0, 3), "free"),
    ),
    "coast": (
        Rule("ship", ("water",), (0, 3), "free"),
        Rule("building", ("grass", "sand"), (0, 3), "free"),
        Rule("tree", ("grass", "sand"), (0, 5), "free"),
        Rule("court", ("grass", "sand"), (0, 1), "free"),
        Rule("car", ("road",), (0, 3), "line"),
    ),
    "parking": (
        Rule("building", ("grass", "pavement"), (0, 2), "axis"),
        Rule("car", ("pavement",), (2, 4), "row", (2, 6)),
        Rule("tree", ("grass", "pavement"), (0, 4), "free"),
        Rule("car", ("road",), (0, 3), "line"),
        Rule("truck", ("road", "pavement"), (0, 2), "axis"),
        Rule("court", ("grass",), (0, 2), "axis"),
    ),
}

# Names of object classes are disjoint from the general domain's, and temperature is their main band:
# nothing about this domain can be known from the general one but how places are described at all.
# fmt: off
_PORT_LAND = {
    "basin": LandSpec(((30, 52, 66), (58, 72, 66), (40, 62, 76), (76, 84, 78)),
                      (0.07, 0.12, 0.30), ("waves", "cloud"), 0.05),
    "quay": LandSpec(((150, 146, 138), (128, 126, 120), (170, 166, 158)),
                     (0.28, 0.22, 0.56), ("slabs", "grain"), 0.055),
    "yard": LandSpec(((118, 112, 104), (96, 94, 92), (136, 128, 112)),
                     (0.25, 0.34, 0.60), ("patches", "grain"), 0.06),
    "rail": LandSpec(((108, 98, 88), (90, 84, 78), (124, 116, 108)),
                     (0.24, 0.42, 0.52), ("sleepers",), 0.09),
    "mud": LandSpec(((112, 98, 80), (88, 80, 70), (130, 116, 94)),
                    (0.20, 0.16, 0.40), ("ripples", "cloud"), 0.06),
    "scrub": LandSpec(((96, 104, 62), (120, 116, 78), (72, 82, 50)),
                      (0.52, 0.46, 0.42), ("canopy", "cloud"), 0.08),
    "lane": LandSpec(((84, 84, 86), (104, 102, 100), (70, 70, 74)),
                     (0.18, 0.12, 0.66), ("grain",), 0.035),
}
# fmt: on
_PORT_OBJECTS = {
    "crane": ObjectSpec((17, 32), ("yellow", "red", "blue"), 0.95, 0.55, 0.25, 0.5),
    "container": ObjectSpec((9, 18), ("red", "blue", "green", "orange", "gray"), 0.9, 0.55, 0.25, 0.3),
    "barge": ObjectSpec((18, 38), ("brown", "black", "gray"), 0.8, 0.5, 0.25, 0.08),
    "dredger": ObjectSpec((17, 34), ("orange", "yellow", "gray"), 0.9, 0.55, 0.25, 0.2),
    "warehouse": ObjectSpec((17, 36), ("gray", "white", "brown"), 0.8, 0.52, 0.25, 0.25),
    "wagon": ObjectSpec((9, 15), ("brown", "black", "gray"), 0.85, 0.55, 0.25, 0.25),
    "buoy": ObjectSpec((4.5, 7.5), ("red", "green", "yellow"), 0.7, 0.55, 0.25, 0.3, round=True),
}
_PORT_RULES = {
    "terminal": (
        Rule("crane", ("quay", "basin", "lane"), (1, 3), "beside", line="lane"),
        Rule("container", ("quay", "yard"), (1, 3), "row", (2, 4)),
        Rule("barge", ("basin",), (0, 2), "axis"),
        Rule("buoy", ("basin",), (0, 2), "free"),
        Rule("container", ("quay", "yard"), (0, 3), "axis"),
        Rule("wagon", ("rail",), (0, 1), "train", (2, 4)),
    ),
    "railyard": (
        Rule("wagon", ("rail",), (1, 3), "train", (2, 6)),
        Rule("warehouse", ("yard", "scrub"), (0, 2), "axis"),
        Rule("container", ("yard",), (0, 2), "row", (1, 3)),
        Rule("crane", ("yard", "rail"), (0, 1), "beside", line="rail"),
    ),
    "anchorage": (
        Rule("barge", ("basin",), (1, 3), "free"),
        Rule("dredger", ("basin",), (0, 2), "free"),
        Rule("buoy", ("basin",), (1, 6), "free"),
        Rule("container", ("quay", "yard"), (0, 2), "axis"),
    ),
    "flats": (
        Rule("dredger", ("basin",), (0, 2), "free"),
        Rule("barge", ("basin", "mud"), (0, 2), "free"),
        Rule("buoy", ("basin", "mud"), (1, 5), "free"),
        Rule("warehouse", ("scrub",), (0, 1), "free"),
    ),
    "depot": (
        Rule("warehouse", ("yard", "scrub"), (1, 3), "axis"),
        Rule("container", ("yard",), (1, 3), "row", (1, 4)),
        Rule("wagon", ("rail",), (0, 2), "train", (1, 4)),
        Rule("crane", ("yard",), (0, 2), "axis"),
        Rule("container", ("yard", "lane"), (0, 3), "axis"),
    ),
}


DOMAINS: dict[str, SceneDomain] = {
    domain.name: domain
    for domain in (
        SceneDomain(
            "general",
            ("rgb", "gray", "infrared", "pan", "sar"),
            _GENERAL_LAND,
            _GENERAL_OBJECTS,
            _GENERAL_RULES,
        ),
        SceneDomain("port", ("thermal", "composite"), _PORT_LAND, _PORT_OBJECTS, _PORT_RULES),
    )
}


def get_domain(domain: SceneDomain | str) -> SceneDomain:
    """Return the domain of a name.

    Raises:
        ConfigError: There is no such domain.
    """
    if isinstance(domain, SceneDomain):
        return domain
    if domain not in DOMAINS:
        raise ConfigError(
            f'there is no scene domain "{domain}"',
            fix=did_you_mean(domain, DOMAINS) or f"known are {', '.join(DOMAINS)}",
        )
    return DOMAINS[domain]


def check_split(split: str) -> None:
    """Refuse what isn't the name of a split.

    Raises:
        ConfigError: It is none of `SPLITS`.
    """
    if split not in SPLITS:
        raise ConfigError(
            f'there is no split "{split}"',
            fix=did_you_mean(split, SPLITS) or f"use one of {', '.join(SPLITS)}",
        )
