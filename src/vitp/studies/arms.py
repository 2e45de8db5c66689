"""Arms that several studies compare: each paradigm, ViTP with its settings, and the start as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vitp.checkpoints.gguf import packaged_digest, packaged_language
from vitp.recipes.paradigms import PARADIGMS
from vitp.studies.cells import NOT_PRETRAINED, TRAINED
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
_SMOLLM2 = {"width": 576, "heads": 9, "kv_heads": 3, "mlp": 1536}
"""Sizes of a block of SmolLM2-135M."""


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


def block_parameters(sizes: Mapping[str, int]) -> float:
    """Return the parameters of a language model's blocks: attention with grouped keys, gated MLP."""
    width, head = sizes["width"], sizes["width"] // sizes["heads"]
    attention = 2 * width * width + 2 * width * head * sizes["kv_heads"]
    return float(sizes["layers"] * (attention + 3 * width * sizes["mlp"]))


def packaged_arms(scale: Scale) -> list[tuple[Arm, float]]:
    """Return the arms with a language model of a package, cut to its first layers, and their blocks' parameters.

    Raises:
        ConfigError: The scale asks for some, and the package isn't installed.
    """
    if not scale.smollm2_layers:
        return []
    file, found = packaged_digest(packaged_language("smollm2")), []
    for layers in scale.smollm2_layers:
        for weights in (TRAINED, "random"):
            language: dict[str, int | str] = {"packaged": "smollm2", "file": file}
            language |= {"layers": layers, "weights": weights}
            arm = vitp_arm(scale.vrl, f"SmolLM2, {layers} layer{'s' * (layers > 1)}, {weights}")
            parameters = block_parameters({**_SMOLLM2, "layers": layers})
            found.append((replace(arm, language=tuple(sorted(language.items()))), parameters))
    return found
