"""Does every head learn over every kind of backbone? Each fits a handful of generated scenes, and is scored on them.

What can't fit a few images can't learn from more. Heads × backbones (a ViT with random weights, the exported ViT of the
package, a ResNet-18 with random weights) go through `vitp data scenes`, `vitp finetune` and `vitp eval`, without
augmentation; the score is that of the training images.

    python benchmarks/fits.py                    # all that `results/fits.json` hasn't got with these settings
    python benchmarks/fits.py Oriented ResNet    # again: those whose head and backbone hold the words

Each result is written as soon as it is there, so an interrupted run goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from common import RESULTS, save
from vitp.cli import run

SIZE = 64
BACKBONES = {"random ViT": "random", "exported ViT": "starter", "ResNet-18": "timm:resnet18"}
COMMON = (
    *("augment.flip=false", "augment.rotate90=false", "augment.photometric=0", "augment.swap_dates=0"),
    *("train.val_every=null", "train.save_every=null", "train.log_every=50", "data.global_batch=4"),
    *(
        "data.resize.mode=fixed",
        f"data.resize.size={SIZE}",
        "optim.layer_decay=null",
        "optim.weight_decay=0.01",
    ),
    *("data.splits.val=train", "data.splits.test=train", "seed=0"),
)
DETECTOR = (
    *(
        "head.width=32",
        "neck.options.channels=32",
        "head.proposals.anchor_scales=[1.5,3]",
        "head.box.hidden=128",
    ),
    *("head.proposals.keep_before=[200,200]", "head.proposals.keep=[200,100]", "head.box.samples=64"),
)
MASK = ("head.mask.layers=2", "head.mask.width=32")
SEGMENTER = ("neck.options.channels=32", "head.width=32", "head.dropout=0", "head.auxiliary=0", "head.dice=1")


@dataclass(frozen=True)
class Fit:
    """One head on a few scenes.

    Attributes:
        task, layout: What is learned, and how its labels are written.
        score: Of `vitp eval`.
        steps: Of four scenes each.
        settings: Of neck and head.
        lr: Peak learning rate.
        count: Scenes; two of three are for training.
    """

    task: str
    layout: str
    score: str
    steps: int
    settings: tuple[str, ...] = ()
    lr: float = 2e-3
    count: int = 6


HEADS = {
    "linear classifier": Fit("classification", "folders", "accuracy", 150, lr=1e-3, count=12),
    "UperNet": Fit("segmentation", "masks", "miou", 400, (*SEGMENTER, "head.kind=upernet"), lr=5e-3),
    "UperNet on ViT-Adapter": Fit(
        "segmentation",
        "masks",
        "miou",
        400,
        (*SEGMENTER[1:], "head.kind=upernet", "neck.kind=adapter"),
        lr=5e-3,
    ),
    "light FPN": Fit("segmentation", "masks", "miou", 400, (*SEGMENTER, "head.kind=fpn"), lr=5e-3),
    "change UperNet": Fit("change", "pairs", "f1", 700, (*SEGMENTER, "head.kind=upernet"), lr=3e-3, count=24),
    "Faster R-CNN": Fit("detection", "coco", "AP50", 250, (*DETECTOR, "head.box.kind=faster")),
    "Cascade R-CNN": Fit("detection", "coco", "AP50", 250, (*DETECTOR, "head.box.kind=cascade")),
    "Mask R-CNN": Fit("instance", "coco", "mask_AP50", 250, (*DETECTOR, *MASK, "head.box.kind=faster")),
    "Cascade Mask R-CNN": Fit(
        "instance", "coco", "mask_AP50", 250, (*DETECTOR, *MASK, "head.box.kind=cascade")
    ),
    "Oriented R-CNN": Fit("oriented", "dota", "AP50", 250, DETECTOR),
}


def fitted(fit: Fit, backbone: str, folder: Path) -> float:
    """Return the score on the training images."""
    scenes, out = folder / "scenes", folder / "run"
    command(
        "data",
        "scenes",
        "port",
        "--layout",
        fit.layout,
        "--count",
        fit.count,
        "--size",
        SIZE,
        "--out",
        scenes,
    )
    settings = [word for one in (*COMMON, *fit.settings, f"optim.lr={fit.lr}") for word in ("-s", one)]
    command(
        "finetune", fit.task, "--data", scenes, "--backbone", backbone, "--out", out, "--steps", fit.steps, *settings
    )  # fmt: skip
    command("eval", out, scenes, "--split", "train", "--out", folder / "scores.json")
    scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))["values"]
    return float(scores[fit.score])


def command(*arguments: object) -> None:
    """Run `vitp` with these arguments; what it prints is shown when it fails."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = run([str(argument) for argument in arguments])
    if code:
        raise SystemExit(f"{printed.getvalue()}\nvitp {' '.join(map(str, arguments))} ended with {code}")


def fingerprint(fit: Fit) -> str:
    """Return a hash of what a result depends on."""
    words = json.dumps([SIZE, COMMON, *asdict(fit).values()])
    return hashlib.sha256(words.encode()).hexdigest()[:12]


def main() -> None:
    """Measure what the arguments name, or what is missing."""
    words = sys.argv[1:]
    file = RESULTS / "fits.json"
    found: dict[str, dict[str, Any]] = json.loads(file.read_text())["found"] if file.is_file() else {}
    for head, fit in HEADS.items():
        for name, backbone in BACKBONES.items():
            if "Adapter" in head and name == "ResNet-18":
                continue  # an adapter is what a ViT needs; a network with stages has its own
            known, settings = found.get(f"{head}, {name}", {}), fingerprint(fit)
            if not all(word in f"{head} {name}" for word in words):
                continue
            if not words and known.get("settings") == settings:
                continue
            with tempfile.TemporaryDirectory() as folder:
                torch.manual_seed(0)
                began = time.monotonic()
                score = fitted(fit, backbone, Path(folder))
            seconds = round(time.monotonic() - began)
            found[f"{head}, {name}"] = {
                fit.score: round(score, 3),
                "seconds": seconds,
                "settings": settings,
            }
            save("fits", {"scene_size": SIZE, "found": found}, quiet=True)
            print(f"{head}, {name}: {fit.score} {score:.3f} ({seconds} s)", flush=True)


if __name__ == "__main__":
    main()
