"""What corrupted images cost: twelve corruptions, five severities (table 13).

Command: `vitp study robustness --scale micro --out studies`. Pretraining runs are those of `paradigms` and `vrl-ratio`.
"""

from __future__ import annotations

from vitp.studies.grid import Claim, Study
from vitp.studies.paradigms import VITP, arms, information, untrained, vitp_changes
from vitp.studies.plan import Arm, Planner

GROUP = "continued from the start, corrupted test images"
NO_VRL = "ViTP without VRL"
COMPARED = ("supervised", "mae", "clip", "vitp")


def robustness(plan: Planner) -> Study:
    """Return the study."""
    scale = plan.scale
    by_name = arms(scale, "start")
    no_vrl = Arm(NO_VRL, "vitp", changes=vitp_changes(0.0), tuned_as=by_name["vitp"])
    compared = [*(by_name[name] for name in COMPARED if name in by_name), no_vrl, untrained("start")]
    for arm in compared:
        for seed in plan.seeds(arm):
            facts = plan.facts(arm, GROUP, seed)
            models = plan.finetuned(
                plan.pretrained(arm, seed), facts, tasks=("segmentation", "detection"), keep=True
            )
            for model in models:
                plan.robust(model, scale.severities, scale.corrupted_images)
    others = [arm.name for arm in compared if arm.name != VITP]
    return Study(
        "robustness",
        "Robustness",
        "How much does a finetuned model lose on corrupted images? (table 13, DIOR-R: clean 73.37, average 69.00; without "
        "VRL 71.91, 67.13; best other average 63.99)",
        tuple(plan.cells.values()),
        claims=(
            *(
                Claim(
                    f"ViTP is better than {other} on corrupted images.", VITP, other, GROUP, metric="average"
                )
                for other in others
            ),
            Claim("VRL makes the drop smaller.", VITP, NO_VRL, GROUP, lower=True, metric="drop"),
        ),
        information={k: v for k, v in information(plan.scale).items() if k in {arm.name for arm in compared}},
        notes=(
            f"`average` is the mean over corruptions and severities, `drop` the clean score minus it, both of the first "
            f"{scale.corrupted_images} test images; the clean scores of the table are of all test images.",
            "Finetuning rates are the scale's, untuned; pretraining rates are those of the study of paradigms.",
        ),
    )
