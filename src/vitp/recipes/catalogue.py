"""All recipes of the paper by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from vitp.core.errors import ConfigError, did_you_mean
from vitp.recipes.paper import downstream
from vitp.recipes.paper.medical import medical
from vitp.recipes.paper.remote_sensing import remote_sensing
from vitp.recipes.paper.tables import MEDICAL, REMOTE_SENSING, PretrainingSet
from vitp.recipes.paper.tables_downstream import DOWNSTREAM, DownstreamFacts
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

_FINETUNING: dict[str, Callable[..., FinetuneConfig]] = {
    "dior": downstream.dior,
    "dior_r": downstream.dior_r,
    "dota_v2": downstream.dota_v2,
    "sardet100k": downstream.sardet100k,
    "rsar": downstream.rsar,
    "ssdd": downstream.ssdd,
    "isaid": downstream.isaid,
    "loveda": downstream.loveda,
    "uavid": downstream.uavid,
    "svcd": downstream.svcd,
    "whu_cd": downstream.whu_cd,
    "levir_cd": downstream.levir_cd,
    "s2looking": downstream.s2looking,
    "amos2022": downstream.amos2022,
    "brats2021": downstream.brats2021,
    "covidquex": downstream.covidquex,
}

FINETUNING: dict[str, DownstreamRecipe] = {
    name: DownstreamRecipe(name, make, DOWNSTREAM[name]) for name, make in _FINETUNING.items()
}

Recipe = PretrainRecipe | DownstreamRecipe


def recipe_of(name: str) -> Recipe:
    """Return a recipe by its name.

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
