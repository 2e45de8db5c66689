"""How large a language model teaches best (fig. 7): three sizes, all from random weights.

Command: `vitp study language-size --scale micro --out studies`.
"""

from __future__ import annotations

from vitp.studies.grid import Claim, Study
from vitp.studies.paradigms import information, vitp_changes
from vitp.studies.plan import Arm, Planner

SIZES: dict[str, dict[str, int]] = {
    "1 layer": {"width": 192, "layers": 1, "heads": 6, "kv_heads": 2, "mlp": 512},
    "3 layers": {"width": 192, "layers": 3, "heads": 6, "kv_heads": 2, "mlp": 512},
    "6 layers": {"width": 320, "layers": 6, "heads": 10, "kv_heads": 2, "mlp": 864},
}
GROUP = "the start's ViT, a new language model"


def language_size(plan: Planner) -> Study:
    """Return the study."""
    arms = [
        Arm(name, "vitp", changes=vitp_changes(plan.scale.vrl), language=tuple(sorted(sizes.items())))
        for name, sizes in SIZES.items()
    ]
    for arm in arms:
        for seed in range(plan.scale.seeds):
            run, facts = (
                plan.pretrained(arm, seed),
                plan.facts(arm, GROUP, seed, _parameters(SIZES[arm.name])),
            )
            plan.probed(run, facts)
            plan.finetuned(run, facts, tasks=("segmentation", "detection"))
    small, middle, large = SIZES
    return Study(
        "language-size",
        "Size of the language model",
        "Does a larger language model teach the ViT better? (figure 7: no, 0.5 B is best, then 1.9 B, 3.1 B)",
        tuple(plan.cells.values()),
        claims=(
            Claim("The middle size is better than the large one.", middle, large, GROUP),
            Claim("The small size is better than the large one.", small, large, GROUP),
        ),
        ours=middle,
        x_label="parameters of the language model's blocks",
        information={"all": information(plan.scale)["ViTP"]},
        notes=(
            "No size has seen text before: in the paper all language models are trained ones, and the larger the better "
            "trained. Rates are chosen for each size on validation images.",
        ),
    )


def _parameters(sizes: dict[str, int]) -> float:
    """Return the parameters of the blocks: attention with grouped keys, gated MLP."""
    width, head = sizes["width"], sizes["width"] // sizes["heads"]
    attention = 2 * width * width + 2 * width * head * sizes["kv_heads"]
    return float(sizes["layers"] * (attention + 3 * width * sizes["mlp"]))
