"""How few labels will do: 100, 20, 10, 5 and 2 % of them (table 12).

Command: `vitp study data-efficiency --scale micro --out studies`. Pretraining runs are those of `paradigms`.
"""

from __future__ import annotations

from vitp.studies.grid import Claim, Study
from vitp.studies.paradigms import VITP, arms, information, untrained
from vitp.studies.plan import Planner

SHARES = (1.0, 0.2, 0.1, 0.05, 0.02)
COMPARED = ("mae", "clip", "vitp")


def group_of(share: float) -> str:
    """Return the group of the arms that see a share of the labels."""
    return f"{100 * share:g} % of the labels"


def data_efficiency(plan: Planner) -> Study:
    """Return the study."""
    by_name = arms(plan.scale, "start")
    compared = [*(by_name[name] for name in COMPARED if name in by_name), untrained("start")]
    for share in SHARES:
        for arm in compared:
            for seed in plan.seeds(arm):
                facts = plan.facts(arm, group_of(share), seed, 100 * share)
                plan.finetuned(
                    plan.pretrained(arm, seed),
                    facts,
                    tasks=("segmentation", "detection"),
                    labels=None if share == 1.0 else share,
                    tune=arm,
                )
    others = [arm.name for arm in compared if arm.name != VITP]
    return Study(
        "data-efficiency",
        "Fewer labels",
        "Does ViTP need fewer labels? (table 12, RSAR: 72.31, 67.07, 61.68, 56.42, 46.98 at 100, 20, 10, 5, 2 %, ahead of "
        "SatMAE and RemoteCLIP by more the fewer there are)",
        tuple(plan.cells.values()),
        claims=tuple(
            Claim(f"ViTP beats {other} with {group_of(share)}.", VITP, other, group_of(share))
            for share in SHARES
            for other in others
        ),
        x_label="labels (%)",
        information={k: v for k, v in information(plan.scale).items() if k in {arm.name for arm in compared}},
        notes=(
            "All labels are given more steps than a share of them; shares have the same number of steps.",
        ),
    )
