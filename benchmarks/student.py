"""Does a smaller student keep what ViTP gave its teacher? Frozen probes of blood cells, as in `pretext.py`.

The teacher is the packaged model after ViTP on bccd's labels. The student is a ViT with a third of its weights, random
at the start; it learns the teacher's patch tokens on the training images and reads no label, once as they are and once
whitened (`teachers.whiten`). Kept of the gain: (student − its start) / (teacher − that start).

    VITP_DATA=DATA python benchmarks/student.py runs/student            # all cells
    VITP_DATA=DATA python benchmarks/student.py runs/student --cells 1  # the next one
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from common import save
from pretext import CROP, DRAWS, arguments, labelled_cells, make, outcomes_of, pretrained, probed, scores
from vitp.checkpoints.description import Provenance
from vitp.checkpoints.export import write_backbone
from vitp.checkpoints.loading import load_backbone, random_backbone
from vitp.core.config import make_config
from vitp.core.files import atomic_dir
from vitp.models.vision import VisionSettings, VisionTower
from vitp.recipes.micro import Budget
from vitp.runs.folder import started
from vitp.runs.pretrain import PretrainConfig, run_pretraining

SEEDS = (0, 1, 2)
TEACHER = Budget(align_steps=40, steps=360)
STEPS, BATCH, LR = 600, 16, 1e-3
TARGETS: dict[str, dict[str, object]] = {"raw": {}, "whitened": {"whiten": True}}
"""What a student learns → settings of its teacher."""


def student_settings() -> VisionSettings:
    """Return the starter's architecture, narrower and with two thirds of the blocks."""
    like = load_backbone("starter").config
    smaller = {"embed_dim": 128, "num_heads": 4, "depth": 4}
    return like.model_copy(
        update={"arguments": {**like.arguments, **smaller}, "weights_of": "", "licence": ""}
    )


def write_start(folder: Path, seed: int) -> None:
    """Write the student as it is before it learns."""
    tower = random_backbone(VisionTower(student_settings()), seed)
    with atomic_dir(folder) as temporary:
        write_backbone(temporary, tower, Provenance(source="random weights"), name="start")


def distilled(data: Path, teacher: Path, start: Path, run: Path, seed: int, target: str) -> None:
    """Teach a student."""
    values = {
        "objective": {"name": "distil", "teachers": [{"source": str(teacher), **TARGETS[target]}]},
        "seed": seed,
        "model": {"init": str(start), "drop_path": 0.0},
        "data": {"mixture": [str(data)], "global_batch": BATCH},
        "optim": {"lr": LR, "warmup_ratio": 0.1, "min_lr_ratio": 0.02},
        "train": {"steps": STEPS, "num_workers": 0, "seed": seed, "save_every": 20},
    }
    run_pretraining(make_config(PretrainConfig, values), run, resume=started(run))


def main() -> None:
    torch.set_num_threads(1)
    words = arguments()
    out = words.out
    out.mkdir(parents=True, exist_ok=True)
    teacher = out / "teacher"
    cells: dict[Path, Callable[[], None]] = {
        teacher / "model": lambda: pretrained(labelled_cells(out), teacher, 0, TEACHER),
        out / "teacher.pkl": lambda: probed(teacher, labelled_cells(out), out / "teacher.pkl"),
    }
    for seed in SEEDS:
        start, before = out / f"start-{seed}", out / f"start-{seed}.pkl"
        cells[start] = lambda start=start, seed=seed: write_start(start, seed)
        cells[before] = lambda start=start, before=before: probed(start, labelled_cells(out), before)
        for target in TARGETS:
            run, after = places(out, target, seed)
            cells[run / "model"] = lambda start=start, run=run, seed=seed, target=target: distilled(
                labelled_cells(out), teacher, start, run, seed, target
            )
            cells[after] = lambda run=run, after=after: probed(run, labelled_cells(out), after)
    if make(cells, words.cells):
        report(out)


def places(out: Path, target: str, seed: int) -> tuple[Path, Path]:
    """Return where a student's run and its probes lie."""
    end = f"{seed}" if target == "raw" else f"{target}-{seed}"
    return out / f"run-{end}", out / f"student-{end}.pkl"


def report(out: Path) -> None:
    """Write the scores, and which share of the teacher's gain each student has kept."""
    taught = scores(outcomes_of(out / "teacher.pkl"))
    starts = [scores(outcomes_of(out / f"start-{seed}.pkl")) for seed in SEEDS]
    students = {
        target: [scores(outcomes_of(places(out, target, seed)[1])) for seed in SEEDS] for target in TARGETS
    }
    kept = {
        target: [
            {name: (after[name] - before[name]) / (taught[name] - before[name]) for name in taught}
            for before, after in zip(starts, found, strict=True)
        ]
        for target, found in students.items()
    }
    models = {"teacher": load_backbone(out / "teacher"), "student": load_backbone(out / "run-0")}
    save(
        "student",
        {
            "set": "bccd",
            "crop": CROP,
            "seeds": SEEDS,
            "draws": DRAWS,
            "teacher_steps": [TEACHER.align_steps, TEACHER.steps],
            "steps": STEPS,
            "batch": BATCH,
            "lr": LR,
            "parameters": {n: sum(p.numel() for p in m.parameters()) for n, m in models.items()},
            "teacher": taught,
            "start": starts,
            "student": students,
            "kept": kept,
        },
    )


if __name__ == "__main__":
    main()
