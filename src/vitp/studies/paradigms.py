"""Which way of pretraining helps downstream, at equal images seen and at equal operations (fig. 2, tables 3–9).

Command: `vitp study paradigms --scale micro --out studies` (resumable). With `--data FOLDER`: on your own images.
Hardware: two processor cores for a night; `--quick` in less than half an hour, which proves nothing.
"""

from __future__ import annotations

from dataclasses import replace

from vitp.studies.grid import Claim, Study
from vitp.studies.plan import Arm, Planner
from vitp.studies.pretraining import NONE
from vitp.studies.scales import Scale

VITP = "ViTP"
TITLES: dict[str, str] = {
    "supervised": "supervised",
    "dense": "dense supervised",
    "mae": "MAE",
    "simclr": "SimCLR",
    "dino": "DINO",
    "clip": "CLIP",
    "vitp": VITP,
}
"""Paradigm → what tables call it, in their order."""

GROUPS = {
    ("start", "images"): "continued from the start, equal images",
    ("start", "flops"): "continued from the start, equal operations",
    ("scratch", "images"): "from scratch, equal images",
    ("scratch", "flops"): "from scratch, equal operations",
}
CEILING = "ceiling, all labels"


def arms(scale: Scale, init: str) -> dict[str, Arm]:
    """Return paradigm → arm at equal images, of the scale's paradigms."""
    found: dict[str, Arm] = {
        name: Arm(title, name, init) for name, title in TITLES.items() if name in scale.paradigms
    }
    return found | {"vitp": replace(found["vitp"], changes=vitp_changes(scale.vrl))}


def untrained(init: str) -> Arm:
    """Return the backbone that nothing was done to: the start as it is, or random weights."""
    return Arm("not continued" if init == "start" else "random", NONE, init)


def vitp_changes(ratio: float) -> tuple[str, ...]:
    """Return the changes that set ViTP's share of dropped tokens."""
    return (f"vrl.ratio={ratio}",)


def paradigms(plan: Planner) -> Study:
    """Return the study."""
    scale = plan.scale
    for init in scale.inits:
        by_name = arms(scale, init)
        for budget in scale.budgets:
            group = GROUPS[init, budget]
            for name, arm in by_name.items():
                # Operations are matched to ViTP's, so its own run is the same in both groups.
                matched = budget == "flops" and name != "vitp"
                run_arm = Arm(arm.name, name, init, equal=by_name["vitp"], tuned_as=arm) if matched else arm
                _tested(plan, run_arm, group, tune=arm)
            _tested(plan, untrained(init), group, tune=untrained(init))
    if "start" in scale.inits:
        _ceiling(plan)
    return Study(
        "paradigms",
        "Paradigms of pretraining",
        "Is ViTP better than supervised, masked-image, image-image and image-text pretraining at the same images seen, "
        "and at the same operations? (figure 2, tables 3–9)",
        tuple(plan.cells.values()),
        claims=_claims(plan),
        information=information(plan.scale),
        notes=NOTES,
    )


def _tested(plan: Planner, arm: Arm, group: str, tune: Arm) -> None:
    draws = plan.scale.draws if arm.init == "start" else None
    for seed in plan.seeds(arm, draws):
        run = plan.pretrained(arm, seed)
        facts = plan.facts(arm, group, seed)
        plan.probed(run, facts)
        plan.finetuned(run, facts, tune=tune, draws=draws)


def _ceiling(plan: Planner) -> None:
    """All labels and longer: what the few labels leave to gain."""
    vitp = arms(plan.scale, "start")["vitp"]
    for arm in (untrained("start"), *(() if plan.scale.quick else (vitp,))):
        for seed in plan.seeds(arm):
            plan.finetuned(plan.pretrained(arm, seed), plan.facts(arm, CEILING, seed), labels=None, tune=arm)


def _claims(plan: Planner) -> tuple[Claim, ...]:
    found = []
    for init in plan.scale.inits:
        compared = (*arms(plan.scale, init).values(), untrained(init))
        others = [arm.name for arm in compared if arm.name != VITP]
        for budget in plan.scale.budgets:
            group = GROUPS[init, budget]
            found += [Claim(f"ViTP beats {other} ({group}).", VITP, other, group) for other in others]
    return tuple(found)


def information(scale: Scale) -> dict[str, str]:
    """Return arm → the label information that its pretraining used."""
    from vitp.recipes.paradigms import PARADIGMS

    found = {title: PARADIGMS[name].labels for name, title in TITLES.items() if name in scale.paradigms}
    untrained_arms = {
        "start": ("not continued", "none beyond the start's own"),
        "scratch": ("random", "none"),
    }
    return found | dict(untrained_arms[init] for init in scale.inits)


NOTES = (
    "Equal images: every paradigm is shown as many images, however many crops or views it makes of each; ViTP's "
    "alignment phase counts. Equal operations: each run is as long as its ViTP run is expensive, forward and backward.",
    "ViTP continues the whole vision-language model, the others only its ViT: the language model is part of the "
    "paradigm, as in the paper.",
    "Rates: the same number of values is tried for each paradigm, on seed 1000, by frozen probes on validation images; "
    "finetuning rates likewise, by validation scores. Test images choose nothing.",
)
