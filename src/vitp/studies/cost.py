"""What each paradigm costs for what it gives (table 11).

Command: `vitp study cost --scale micro --out studies`. Pretraining runs are those of `paradigms`.
"""

from __future__ import annotations

from vitp.studies.grid import Study
from vitp.studies.paradigms import arms, information, untrained
from vitp.studies.plan import Planner

GROUP = "continued from the start, equal images"


def cost(plan: Planner) -> Study:
    """Return the study."""
    by_name = arms(plan.scale, "start")
    for arm in [*by_name.values(), untrained("start")]:
        for seed in range(plan.scale.seeds):
            plan.probed(plan.pretrained(arm, seed), plan.facts(arm, GROUP, seed))
    return Study(
        "cost",
        "Cost of pretraining",
        "What does pretraining cost? (table 11: ViTP 23 hours on eight A40, others 60 to 400 hours)",
        tuple(plan.cells.values()),
        information=information(plan.scale),
        notes=(
            "The paper compares runs of each paradigm's own published length; here all see the same images, so the rows "
            "tell the cost of an image, and the scores beside them what it bought.",
        ),
    )
