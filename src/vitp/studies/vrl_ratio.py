"""How many image tokens may be dropped: quality and cost at 0, 25, 50, 75 and 90 % (fig. 6).

Command: `vitp study vrl-ratio --scale micro --out studies`.
"""

from __future__ import annotations

from vitp.studies.grid import Claim, Study
from vitp.studies.paradigms import information, untrained, vitp_changes
from vitp.studies.plan import Arm, Planner

RATIOS = (0.0, 0.25, 0.5, 0.75, 0.9)
GROUP = "continued from the start"


def arm_of(ratio: float) -> Arm:
    """Return ViTP with a share of dropped tokens; its rate is the one chosen for the paper's share."""
    tuned = Arm("ViTP", "vitp", changes=vitp_changes(0.75))
    return Arm(f"{100 * ratio:.0f} % dropped", "vitp", changes=vitp_changes(ratio), tuned_as=tuned)


def vrl_ratio(plan: Planner) -> Study:
    """Return the study."""
    for ratio in RATIOS:
        arm = arm_of(ratio)
        for seed in range(plan.scale.seeds):
            run, facts = plan.pretrained(arm, seed), plan.facts(arm, GROUP, seed, 100 * ratio)
            plan.probed(run, facts)
            plan.finetuned(run, facts, tasks=("segmentation", "detection"))
    start = untrained("start")
    plan.probed(plan.pretrained(start, 0), plan.facts(start, GROUP, 0))
    return Study(
        "vrl-ratio",
        "Share of dropped image tokens",
        "Does dropping image tokens help the ViT, and what does it save? (figure 6: 52.8 at 0 %, peak 54.6 at 75 %, 54.3 "
        "at 90 %)",
        tuple(plan.cells.values()),
        claims=(
            Claim("75 % is better than 0 %.", arm_of(0.75).name, arm_of(0.0).name, GROUP),
            Claim("75 % is better than 25 %.", arm_of(0.75).name, arm_of(0.25).name, GROUP),
            Claim("90 % is still better than 0 %.", arm_of(0.9).name, arm_of(0.0).name, GROUP),
        ),
        ours=arm_of(0.75).name,
        x_label="image tokens dropped (%)",
        information={"all": information(plan.scale)["ViTP"]},
        notes=("One learning rate for all shares: the one chosen for 75 %.",),
    )
