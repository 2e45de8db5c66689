"""All recipes by name: the paper's runs, and those of the package at micro scale."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitp.core.config import make_config
from vitp.core.errors import ConfigError, did_you_mean
from vitp.core.files import write_json
from vitp.recipes.downstream import NUCLEI, DownstreamPlan, run_downstream
from vitp.recipes.paper import downstream
from vitp.recipes.paper.pretraining import medical, mixture_table, remote_sensing
from vitp.recipes.paper.tables import MEDICAL, REMOTE_SENSING, PretrainingSet
from vitp.recipes.paper.tables_downstream import DOWNSTREAM, DownstreamFacts
from vitp.recipes.real_images import RealPlan, run_real_images
from vitp.recipes.starter import StarterPlan, train_starter
from vitp.recipes.starter_card import write_card
from vitp.recipes.starter_looks import LooksPlan, train_looking_starter
from vitp.runs.finetune import FinetuneConfig
from vitp.runs.pretrain import PretrainConfig


@dataclass(frozen=True)
class PretrainRecipe:
    """A pretraining run of the paper.

    Attributes:
        name: On the command line.
        make: Mixture file, `init`, `gpus`, `as_published` → configuration.
        sets: Rows of the mixture.
    """

    name: str
    make: Callable[..., PretrainConfig]
    sets: tuple[PretrainingSet, ...]

    @property
    def page(self) -> str:
        """The lab page."""
        return inspect.getdoc(self.make) or ""


@dataclass(frozen=True)
class DownstreamRecipe:
    """A downstream run of the paper.

    Attributes:
        name: On the command line.
        make: Data folder, `backbone` → configuration.
        facts: Row of the paper's table.
    """

    name: str
    make: Callable[..., FinetuneConfig]
    facts: DownstreamFacts

    @property
    def page(self) -> str:
        """The lab page, with what differs from the publication."""
        lines = [
            inspect.getdoc(self.make) or "",
            "",
            "Where paper, published configuration and this run differ:",
        ]
        return "\n".join([*lines, *(f"- {one}" for one in self.facts.disagreements)])


PRETRAINING: dict[str, PretrainRecipe] = {
    "remote_sensing": PretrainRecipe("remote_sensing", remote_sensing, REMOTE_SENSING),
    "medical": PretrainRecipe("medical", medical, MEDICAL),
}

_FINETUNING: tuple[Callable[..., FinetuneConfig], ...] = (
    *(downstream.dior, downstream.dior_r, downstream.dota_v2, downstream.sardet100k, downstream.rsar),
    *(downstream.ssdd, downstream.isaid, downstream.loveda, downstream.uavid, downstream.svcd),
    *(downstream.whu_cd, downstream.levir_cd, downstream.s2looking),
    *(downstream.amos2022, downstream.brats2021, downstream.covidquex),
)

FINETUNING: dict[str, DownstreamRecipe] = {
    facts.name: DownstreamRecipe(facts.name, make, facts)
    for make in _FINETUNING
    for facts in [DOWNSTREAM[make.__name__]]
}

Recipe = PretrainRecipe | DownstreamRecipe

MICRO: dict[str, Callable[[Path, float, int], Path]] = {
    "starter": lambda out, scale, seeds: train_starter(out, StarterPlan().scaled(scale)),
    "starter-looks": lambda out, scale, seeds: train_looking_starter(out, LooksPlan().scaled(scale)),
    "starter-card": lambda out, scale, seeds: write_card(out),
    "real-images": lambda out, scale, seeds: run_real_images(
        out, RealPlan(seeds=tuple(range(seeds))).scaled(scale)
    ),
    "downstream": lambda out, scale, seeds: run_downstream(
        out, DownstreamPlan(seeds=tuple(range(seeds))).scaled(scale)
    ),
    "nuclei": lambda out, scale, seeds: run_downstream(
        out, replace(NUCLEI, seeds=tuple(range(seeds))).scaled(scale)
    ),
}
"""Recipe of the package → function that runs it: (folder, factor on the steps, number of seeds) → its result."""


def recipe_of(name: str) -> Recipe:
    """Return a recipe of the paper by its name.

    Raises:
        ConfigError: There is none of that name.
    """
    known: dict[str, Recipe] = {**PRETRAINING, **FINETUNING}
    if name not in known:
        raise ConfigError(
            f"unknown recipe {name!r}",
            where="recipe",
            fix=did_you_mean(name, known) or f"recipes are {', '.join(known)}",
        )
    return known[name]


def recipe_config(
    found: Recipe,
    data: str | None,
    *,
    init: str | None = None,
    gpus: int = 8,
    as_published: bool = False,
    overrides: Sequence[str] = (),
) -> PretrainConfig | FinetuneConfig:
    """Return a recipe's configuration without looking at any data.

    Args:
        found: The recipe.
        data: Mixture file of a pretraining, folder of a downstream set; None: the recipe's own.
        init: Model or backbone to start from; None: the recipe's own.
        gpus: Number that shares a batch of pretraining.
        as_published: Pretraining as the authors' code does it.
        overrides: `key.key=value` over the configuration.

    Raises:
        ConfigError: The batch can't be shared, or an override is wrong.
    """
    place = () if data is None else (data,)
    where = f"recipe {found.name}"
    if isinstance(found, PretrainRecipe):
        start = {} if init is None else {"init": init}
        made = found.make(*place, gpus=gpus, as_published=as_published, **start)
        return make_config(PretrainConfig, made.model_dump(), overrides, where=where)
    start = {} if init is None else {"backbone": init}
    return make_config(FinetuneConfig, found.make(*place, **start).model_dump(), overrides, where=where)


def run_config_of(
    name: str, data: Path | None, out: Path, *, available: bool = False, **options: Any
) -> PretrainConfig | FinetuneConfig:
    """Return the configuration of a run of the paper over prepared data; the mixture of a pretraining is written.

    Args:
        name: Name of the recipe.
        data: The set, or the folder of prepared pretraining sets.
        out: Folder of the run, for `sets.json`.
        available: Leave out pretraining sets that are missing.
        options: See `recipe_config`.

    Raises:
        ConfigError: There is no such recipe, no data, a set is missing, or an override is wrong.
    """
    known = (*MICRO, *PRETRAINING, *FINETUNING)
    if name not in known:
        hint = did_you_mean(name, known) or f"recipes are: {', '.join(known)}"
        raise ConfigError(f"unknown recipe {name!r}", where="vitp recipes run", fix=hint)
    if data is None:
        where = f"vitp recipes run {name}"
        raise ConfigError("no data to learn from", where=where, fix="name its folder with --data")
    found, place = recipe_of(name), data
    if isinstance(found, PretrainRecipe):
        table, place = mixture_table(found.sets, data, available=available), (out / "sets.json").resolve()
        write_json(place, table)
    return recipe_config(found, str(place), **options)
