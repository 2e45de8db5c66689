"""Addresses of scenes: `scene:port/7/123?size=96&split=val`, usable wherever an image path is."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from urllib.parse import parse_qsl

from vitp.core.errors import DataError
from vitp.records.labels import SPLITS
from vitp.scenes.domains import get_domain
from vitp.scenes.render import render_pair, render_scene
from vitp.scenes.types import Scene, ScenePair

_DATES = ("before", "after")
_PATH = re.compile(r"scene:([a-z]+)/(\d+)/(\d+)(?:\?(.*))?")
_SMALL = 128
"""Side of scenes of which many are kept."""


@dataclass(frozen=True)
class SceneAddress:
    """The arguments of `render_scene` (or, with a date, of `render_pair`) as one hashable value."""

    domain: str
    seed: int
    index: int
    size: int = 96
    split: str = "train"
    date: str | None = None

    def __str__(self) -> str:
        date = f"&date={self.date}" if self.date else ""
        return f"scene:{self.domain}/{self.seed}/{self.index}?size={self.size}&split={self.split}{date}"


def parse_scene_address(address: str) -> SceneAddress:
    """Return the parts of an address.

    Raises:
        DataError: It is not a scene address, or names an unknown split, date or option.
        ConfigError: It names an unknown domain.
    """
    match = _PATH.fullmatch(address)
    if match is None:
        raise DataError(
            "is not the address of a scene",
            where=address,
            fix="write scene:DOMAIN/SEED/INDEX?size=96&split=train",
        )
    domain, seed, index, query = match.groups()
    options = dict(parse_qsl(query or "", keep_blank_values=True))
    size, split, date = options.pop("size", "96"), options.pop("split", "train"), options.pop("date", None)
    if options or not size.isdigit() or split not in SPLITS or date not in (None, *_DATES):
        raise DataError(
            f'"{query}" is not understood in the address of a scene',
            where=address,
            fix=f"use size=PIXELS, split={'|'.join(SPLITS)} and, for pairs, date={'|'.join(_DATES)}",
        )
    return SceneAddress(get_domain(domain).name, int(seed), int(index), int(size), split, date)


def _freeze(*scenes: Scene) -> None:
    # Cached arrays are shared by all callers.
    for scene in scenes:
        for array in (scene.image_HWC, scene.semantic_HW, scene.instance_HW):
            array.setflags(write=False)


def _scene(address: SceneAddress) -> Scene:
    scene = render_scene(address.domain, address.seed, address.index, size=address.size, split=address.split)
    _freeze(scene)
    return scene


# A scene takes some 60 kB at 96 px: finetunes and probes look at the same ones again and again.
_small_scene = lru_cache(maxsize=2048)(_scene)
_large_scene = lru_cache(maxsize=48)(_scene)


@lru_cache(maxsize=24)
def _pair(address: SceneAddress) -> ScenePair:
    pair = render_pair(address.domain, address.seed, address.index, size=address.size, split=address.split)
    _freeze(pair.before, pair.after)
    pair.change_HW.setflags(write=False)
    return pair


def load_scene(address: str | SceneAddress) -> Scene:
    """Return the scene of an address; the last ones are kept, so an image and its labels cost one rendering.

    The arrays are read-only. For a pair's address the scene of its date is returned.

    Raises:
        DataError: The address can't be understood.
        ConfigError: It names an unknown domain or an impossible size.
    """
    where = address if isinstance(address, SceneAddress) else parse_scene_address(address)
    if where.date is None:
        return _small_scene(where) if where.size <= _SMALL else _large_scene(where)
    pair = load_pair(where)
    return pair.before if where.date == "before" else pair.after


def load_pair(address: str | SceneAddress) -> ScenePair:
    """Return both dates of the place of an address; errors are those of `load_scene`."""
    where = address if isinstance(address, SceneAddress) else parse_scene_address(address)
    return _pair(replace(where, date=None))
