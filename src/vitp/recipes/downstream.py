"""The exported ViT is finetuned as a detector, a segmenter and an oriented detector, on real images with true splits.

Blood cells (BCCD) and airplanes (GDIT) by boxes, ships in SAR (HRSID) by masks and by oriented boxes, forest
(Amazon) by pixels. Everything is finetuned from four initialisations of one ViT under one budget: random weights;
the starter; the starter continued with supervised labels (which classes are in the image); the starter continued
with ViTP. The supervised run sees as many of the same images as the ViTP run, and is cheaper, as it has no language
model.

Command: `vitp recipes run downstream --out runs/real --seeds 3`, in the folder of `vitp recipes run real-images` or a
new one, with the folder of the images in `VITP_DATA`. Resumable.
Hardware and time: two CPU cores, about two hours with three seeds when the ViTP runs are there.
Settings were chosen on validation images. Numbers: `docs/real_images.md`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from vitp.core.files import write_json, write_text
from vitp.core.reading import read_json
from vitp.metrics.statistics import mean_std
from vitp.recipes.micro import (
    RANDOM,
    SMALL_DETECTOR,
    SMALL_INSTANCE,
    SMALL_ORIENTED,
    STARTER,
    SUPERVISED,
    VITP,
    Budget,
    small_finetune_config,
)
from vitp.recipes.real_images import RealPlan, RealSet, pretrained_backbones, supervised_backbones
from vitp.runs.finetune import SCORES_FILE, run_finetune
from vitp.runs.folder import started


@dataclass(frozen=True)
class RealTask:
    """One row of the table.

    Attributes:
        folder: The set.
        task: Task of `vitp finetune`.
        score: Which score is reported.
        head: Settings of the head.
        score_name: How the table calls it.
    """

    folder: str
    task: str
    score: str
    score_name: str
    head: dict[str, Any] = field(default_factory=dict)


REAL_TASKS = (
    RealTask("bccd", "detection", "AP50", "box AP50", SMALL_DETECTOR),
    RealTask("gdit_airport", "detection", "AP50", "box AP50", SMALL_DETECTOR),
    RealTask(
        "hrsid_mini",
        "instance",
        "mask_AP50",
        "mask AP50",
        SMALL_INSTANCE,
    ),
    RealTask("hrsid_mini", "oriented", "AP50", "rotated AP50", SMALL_ORIENTED),
    RealTask("amazon_forest", "segmentation", "miou", "mIoU", {"kind": "fpn", "width": 64}),
)


@dataclass(frozen=True)
class DownstreamPlan:
    """Budget of the finetunings, the same for each initialisation.

    Attributes:
        seeds: A pretraining seed and the finetuning seed that goes with it.
        steps, batch, lr: Of a finetuning.
        tasks: Rows of the table.
        pretraining: Budget of the backbones that are not there yet.
    """

    seeds: tuple[int, ...] = (0,)
    steps: int = 300
    batch: int = 8
    lr: float = 1e-3
    tasks: tuple[RealTask, ...] = REAL_TASKS
    pretraining: RealPlan = field(default_factory=RealPlan)

    @property
    def starts(self) -> tuple[str, ...]:
        """The initialisations; nothing is supervised where no set says which objects are in an image."""
        supervised = any(one.objects for one in self.pretraining.sets)
        return (RANDOM, STARTER, SUPERVISED, VITP) if supervised else (RANDOM, STARTER, VITP)

    def scaled(self, factor: float) -> DownstreamPlan:
        """Return a plan with fewer or more steps."""
        return replace(
            self, steps=max(2, round(factor * self.steps)), pretraining=self.pretraining.scaled(factor)
        )


NUCLEI = DownstreamPlan(
    steps=100,
    tasks=(
        RealTask(
            "dsb2018",
            "instance",
            "mask_AP50",
            "mask AP50",
            SMALL_INSTANCE,
        ),
        RealTask("dsb2018", "segmentation", "miou", "mIoU", {"kind": "fpn", "width": 64}),
    ),
    pretraining=RealPlan(
        budget=Budget(align_steps=40, steps=120),
        # One class that nearly every crop has: which objects are there would teach nothing.
        sets=(RealSet("dsb2018", "coco", 128, 1.0, {"semantic": "both", "licence": "CC0"}, objects=False),),
    ),
)
"""Nuclei under the microscope (2018 Data Science Bowl), outlined one by one and as a mask.

Command: `vitp recipes run nuclei --out runs/nuclei --seeds 3`, with the folder of the images in `VITP_DATA`. Resumable.
Hardware and time: one CPU core, about 36 minutes of it with three seeds. Numbers: `docs/real_images.md`.
"""


def run_downstream(out: Path, plan: DownstreamPlan | None = None) -> Path:
    """Finetune every task from every initialisation; return the path of `downstream.md`.

    Raises:
        ConfigError: The images aren't there.
    """
    plan, console = plan or DownstreamPlan(), Console(highlight=False)
    real = replace(plan.pretraining, seeds=plan.seeds)
    vitp = pretrained_backbones(out, real, console)
    supervised = supervised_backbones(out, real, console) if SUPERVISED in plan.starts else []
    values: dict[str, dict[str, list[float]]] = {}
    for one in plan.tasks:
        name = f"{one.folder}, {one.task}: {one.score_name}"
        values[name] = {}
        for number, seed in enumerate(plan.seeds):
            backbones = {RANDOM: "random", STARTER: "starter", VITP: str(vitp[number])}
            if supervised:
                backbones[SUPERVISED] = str(supervised[number])
            for start in plan.starts:
                backbone = backbones[start]
                run = out / "finetune" / f"{one.folder}-{one.task}-{start.replace(' ', '-')}-{seed}"
                score = finetuned(run, out / "data" / one.folder, one, backbone, seed, plan)
                values[name].setdefault(start, []).append(score)
                console.print(f"{name}, {start}, seed {seed}: {100 * score:.1f}")
    settings = {"steps": plan.steps, "batch": plan.batch, "lr": plan.lr, "seeds": list(plan.seeds)}
    write_json(out / "downstream.json", {**settings, "values": values})
    write_text(out / "downstream.md", _markdown(values, plan.starts))
    return out / "downstream.md"


def finetuned(run: Path, data: Path, one: RealTask, backbone: str, seed: int, plan: DownstreamPlan) -> float:
    """Return the test score of a finetuning of all training crops, from its folder where it has finished."""
    if not (run / SCORES_FILE).is_file():
        config = small_finetune_config(
            one.task,
            {"root": str(data), "empty": 0.5, "global_batch": plan.batch, "max_val_images": 60},
            backbone,
            seed,
            head=one.head,
            train={"steps": plan.steps, "log_every": 50},
            augment={"flip": True, "rotate90": True},
            optim={"lr": plan.lr, "weight_decay": 0.05, "warmup_ratio": 0.1, "layer_decay": 0.75},
        )
        run_finetune(config, run, resume=started(run), console=Console(quiet=True))
    return float(read_json(run / SCORES_FILE)["values"][one.score])


def _markdown(values: Mapping[str, Mapping[str, Sequence[float]]], starts: Sequence[str]) -> str:
    """Return the table: mean ± sample standard deviation over seeds, in percent."""
    lines = [f"| set, task: score | {' | '.join(starts)} |", "|---|" + "---:|" * len(starts)]
    for name, of_start in values.items():
        cells = [mean_std([100 * value for value in of_start[start]]) for start in starts]
        lines.append(f"| {name} | {' | '.join(f'{mean:.1f} ± {std:.1f}' for mean, std in cells)} |")
    return "\n".join(lines) + "\n"
