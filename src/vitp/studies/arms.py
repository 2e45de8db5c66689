"""Arms that several studies compare: each paradigm, ViTP with its settings, and the start as it is."""

from __future__ import annotations

from vitp.recipes.paradigms import PARADIGMS
from vitp.studies.cells import NOT_PRETRAINED
from vitp.studies.planner import Arm
from vitp.studies.scales import Scale

VITP_ARM = "ViTP"
ARM_TITLES: dict[str, str] = {
    "supervised": "supervised",
    "dense": "dense supervised",
    "mae": "MAE",
    "simclr": "SimCLR",
    "dino": "DINO",
    "clip": "CLIP",
    "vitp": VITP_ARM,
}
"""Paradigm → what tables call it, in their order."""

CONTINUED = "continued from the start"
BUDGET_GROUPS = {
    ("start", "images"): f"{CONTINUED}, equal images",
    ("start", "flops"): f"{CONTINUED}, equal operations",
    ("scratch", "images"): "from scratch, equal images",
    ("scratch", "flops"): "from scratch, equal operations",
}


def arms_of(scale: Scale, init: str) -> dict[str, Arm]:
    """Return paradigm → arm at equal images, of the scale's paradigms."""
    found: dict[str, Arm] = {}
    for name, title in ARM_TITLES.items():
        if name in scale.paradigms:
            found[name] = Arm(title, name, init)
    return found | {"vitp": vitp_arm(scale.vrl, init=init)}


def vitp_arm(ratio: float, name: str = VITP_ARM, *, init: str = "start", tuned_as: Arm | None = None) -> Arm:
    """Return ViTP with a share of dropped image tokens."""
    return Arm(name, "vitp", init, changes=(f"vrl.ratio={ratio}",), tuned_as=tuned_as)


def untrained_arm(init: str) -> Arm:
    """Return the backbone that is not pretrained here: the start as it is, or random weights."""
    return Arm("not continued" if init == "start" else "random", NOT_PRETRAINED, init)


def information_of(scale: Scale) -> dict[str, str]:
    """Return arm → the label information that its pretraining used."""
    found = {title: PARADIGMS[name].labels for name, title in ARM_TITLES.items() if name in scale.paradigms}
    untrained = {"start": ("not continued", "none beyond the start's own"), "scratch": ("random", "none")}
    return found | dict(untrained[init] for init in scale.inits)
