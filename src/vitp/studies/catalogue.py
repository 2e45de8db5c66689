"""Name → study, and how one is put together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vitp.core.errors import ConfigError, did_you_mean
from vitp.studies.cost import cost
from vitp.studies.data_efficiency import data_efficiency
from vitp.studies.grid import Study
from vitp.studies.language_size import language_size
from vitp.studies.paradigms import paradigms
from vitp.studies.plan import Planner
from vitp.studies.recipe import recipe
from vitp.studies.robustness import robustness
from vitp.studies.scales import Scale
from vitp.studies.sources import open_sources
from vitp.studies.steps import steps
from vitp.studies.vrl_ratio import vrl_ratio

STUDIES: dict[str, Callable[[Planner], Study]] = {
    "paradigms": paradigms,
    "vrl-ratio": vrl_ratio,
    "recipe": recipe,
    "steps": steps,
    "language-size": language_size,
    "data-efficiency": data_efficiency,
    "robustness": robustness,
    "cost": cost,
}
"""The studies of the paper."""


def make_study(name: str, scale: Scale, data: Path | None = None) -> Study:
    """Return a study at a scale on data.

    Args:
        name: A key of `STUDIES`.
        scale: Sizes.
        data: See `vitp.studies.sources.open_sources`.

    Raises:
        ConfigError: There is no such study, the data can't be used, or nothing in them can be tested.
    """
    if name not in STUDIES:
        hint = did_you_mean(name, STUDIES) or f"studies are {', '.join(STUDIES)}"
        raise ConfigError(f'no study "{name}"', where="vitp study", fix=hint)
    sources = open_sources(data, scale)
    if not any(source.tasks for source in sources):
        raise ConfigError("has no labels to test a backbone with", where=str(data), fix="choose another set")
    known = tuple(task for source in sources for task in source.tasks if task not in scale.tasks)
    if known:
        raise ConfigError(f'says nothing of "{known[0]}"', where=f"tasks of scale {scale.name}")
    return STUDIES[name](Planner(scale, sources, start_identity(scale.start)))


def start_identity(start: str) -> str:
    """Return what tells one starting model from another, wherever it lies: the hash of its weights.

    Raises:
        CheckpointError: There is no model.
    """
    from vitp.checkpoints.loading import vlm_folder
    from vitp.checkpoints.tensors import WEIGHTS
    from vitp.core.files import sha256

    return sha256(vlm_folder(start) / WEIGHTS)[:16]
