"""What each group of questions is worth: leave one out (table 10).

Command: `vitp study recipe --scale micro --out studies`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vitp.studies.grid import Claim, Study
from vitp.studies.paradigms import information, vitp_changes
from vitp.studies.plan import Arm, Planner
from vitp.studies.sources import Source, extra_scenes, questions

GROUPS: dict[str, tuple[str, ...]] = {
    "dense": ("grid", "grid_row", "cells", "cell", "point", "cover", "dominant"),
    "grounding": ("box", "boxes", "oriented", "position", "relation", "region_class", "region_attribute", "size"),
    "whole image": ("caption", "scene", "scene_options"),
    "counting": ("presence", "count", "count_compare"),
}  # fmt: skip
"""Group → tasks of `vitp.data.synthesis` that are left out together."""

GROUP = "continued from the start"
FULL, WITHOUT_GENERAL = "full recipe", "without general images"
GENERAL_SHARE = 0.1


def without(tasks: tuple[str, ...]) -> Mapping[str, Any]:
    """Return what is asked when some tasks are switched off; as many questions an image, of the rest."""
    asked = questions()
    weights = {**asked["tasks"], **dict.fromkeys(tasks, 0.0)}
    return {**asked, "tasks": weights, "grid_always": asked["grid_always"] and "grid" not in tasks}


def recipe(plan: Planner) -> Study:
    """Return the study."""
    general = extra_scenes(plan.scale, "general", GENERAL_SHARE)
    tuned = Arm("ViTP", "vitp", changes=vitp_changes(plan.scale.vrl))
    arms = [_arm(FULL, (*plan.sources, general), tuned), _arm(WITHOUT_GENERAL, plan.sources, tuned)]
    for name, tasks in GROUPS.items():
        sources = tuple(
            source.asking(f"without-{name.replace(' ', '-')}", without(tasks)) for source in plan.sources
        )
        arms.append(_arm(f"without {name}", (*sources, general), tuned))
    for arm in arms:
        for seed in range(plan.scale.seeds):
            run, facts = plan.pretrained(arm, seed), plan.facts(arm, GROUP, seed)
            plan.probed(run, facts)
            plan.finetuned(run, facts, tasks=("classification", "segmentation", "detection"))
    return Study(
        "recipe",
        "Data recipe",
        "What does each group of questions give? (table 10, RSAR: full 54.6; without diversity 52.6, SAR 52.5, grounding "
        "53.0, general data 52.3)",
        tuple(plan.cells.values()),
        claims=tuple(
            Claim(f"The full recipe is better than the one {arm.name}.", FULL, arm.name, GROUP)
            for arm in arms[1:]
        ),
        ours=FULL,
        information={"all": information(plan.scale)["ViTP"]},
        notes=(
            f"Every arm sees the same number of images and as many questions about each; {100 * GENERAL_SHARE:.0f} % of "
            "the images are scenes of the general domain, but in the arm without them.",
            "Groups: " + "; ".join(f"{name}: {', '.join(tasks)}" for name, tasks in GROUPS.items()) + ".",
        ),
    )


def _arm(name: str, sources: tuple[Source, ...], tuned: Arm) -> Arm:
    return replace(tuned, name=name, sources=sources, tuned_as=tuned)
