"""How long to pretrain: a short run to a long one (fig. 5).

Command: `vitp study steps --scale micro --out studies`.
"""

from __future__ import annotations

from vitp.studies.grid import Claim, Study
from vitp.studies.paradigms import information, untrained, vitp_changes
from vitp.studies.plan import Arm, Planner

PARTS = (0.125, 0.25, 0.5, 1.0, 2.0)
GROUP = "continued from the start"


def steps(plan: Planner) -> Study:
    """Return the study."""
    scale = plan.scale
    changes = vitp_changes(scale.vrl)
    tuned = Arm("ViTP", "vitp", changes=changes)
    names = {}
    for part in PARTS:
        images = max(8, round(scale.images * part))
        names[part] = f"{images:,} images".replace(",", " ")
        arm = Arm(names[part], "vitp", images=images, changes=changes, tuned_as=tuned)
        for seed in range(scale.seeds):
            run, facts = plan.pretrained(arm, seed), plan.facts(arm, GROUP, seed, images)
            plan.probed(run, facts)
            plan.finetuned(run, facts, tasks=("segmentation", "detection"))
    start = untrained("start")
    for seed in plan.seeds(start):
        run, facts = plan.pretrained(start, seed), plan.facts(start, GROUP, seed, 0)
        plan.probed(run, facts)
        plan.finetuned(run, facts, tasks=("segmentation", "detection"))
    return Study(
        "steps",
        "Length of pretraining",
        "Does longer pretraining help, and where does it stop to? (figure 5: grows to about 8,000 steps, then flat)",
        tuple(plan.cells.values()),
        claims=(
            Claim("The full length is better than an eighth of it.", names[1.0], names[0.125], GROUP),
            Claim("The full length is better than half of it.", names[1.0], names[0.5], GROUP),
            Claim(
                "Twice the length is better still (the paper: no longer so).", names[2.0], names[1.0], GROUP
            ),
        ),
        ours=names[1.0],
        x_label="images seen",
        information={"all": information(plan.scale)["ViTP"]},
        notes=("Each length has its own whole schedule: warm-up, and decay to the end.",),
    )
