"""Do questions that images alone answer help? ViTP on bare images against its start, by frozen probes of blood cells.

The start is the packaged model. It goes on with ViTP on the pretext questions of bccd's training images, of which no
label is read; the labels serve the probes alone. Every cell leaves a file or folder and is not made again:

    VITP_DATA=DATA python benchmarks/pretext.py runs/pretext            # all cells
    VITP_DATA=DATA python benchmarks/pretext.py runs/pretext --cells 1  # the next one
"""

from __future__ import annotations

import argparse
import os
import pickle
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import save
from vitp.checkpoints.loading import load_backbone
from vitp.core.files import atomic_dir
from vitp.data.compile import compile_labels
from vitp.data.formats.vitp_labels import read_compiled
from vitp.data.synthesis.build import SynthesisConfig
from vitp.evaluation.features import probe_data
from vitp.evaluation.outcomes import Outcomes, differences_json, over_images
from vitp.evaluation.probes import probe_outcomes
from vitp.recipes.micro import SYNTHESIS, Budget, continued_from_starter
from vitp.runs.folder import started
from vitp.runs.pretrain import run_pretraining

CROP = 240
SEEDS = (0, 1, 2)
DRAWS = (0, 1, 2)
BUDGET = Budget(align_steps=40, steps=360)

Cells = Mapping[Path, Callable[[], None]]
"""What a cell leaves → what makes it, in order."""


def labelled_cells(out: Path) -> Path:
    """Return bccd with its labels, in crops; made on the first call."""
    folder = out / "data" / "labelled"
    if not folder.is_dir():
        compile_labels(_bccd(), "voc", folder, crop=CROP, synthesis=SYNTHESIS, max_tiles=1, name="bccd")
    return folder


def bare_cells(out: Path) -> Path:
    """Return bccd's training images alone, in crops of the same size, with pretext questions."""
    folder, pictures = out / "data" / "bare", out / "pictures"
    if not folder.is_dir():
        names = (_bccd() / "ImageSets" / "Main" / "train.txt").read_text().split()
        with atomic_dir(pictures) as temporary:
            for name in names:
                shutil.copy(_bccd() / "JPEGImages" / f"{name}.jpg", temporary)
        asked = SynthesisConfig(questions_per_image=6)
        options = {"val": 0.0, "test": 0.0, "name": "bccd_bare"}
        compile_labels(pictures, "images", folder, crop=CROP, synthesis=asked, max_tiles=1, **options)
    return folder


def _bccd() -> Path:
    return Path(os.environ.get("VITP_DATA", "../shared/data")) / "bccd"


def pretrained(data: Path, run: Path, seed: int, budget: Budget) -> None:
    """Continue the packaged model by ViTP on a folder."""
    config = continued_from_starter([data], budget, seed)
    config = config.model_copy(
        update={"train": config.train.model_copy(update={"num_workers": 0, "save_every": 20})}
    )
    run_pretraining(config, run, resume=started(run))


def probed(backbone: str | Path, labelled: Path, file: Path) -> None:
    """Probe a frozen backbone on bccd's test images; leave the outcomes of each draw of labels in a file."""
    data = probe_data(load_backbone(backbone), read_compiled(labelled), max_images=1200)
    _, outcomes = probe_outcomes(data, seeds=DRAWS)
    temporary = file.with_suffix(".tmp")
    temporary.write_bytes(pickle.dumps(outcomes))
    temporary.replace(file)


def outcomes_of(file: Path) -> list[Outcomes]:
    """Return what `probed` left: a file of this script's own."""
    found: list[Outcomes] = pickle.loads(file.read_bytes())
    return found


def scores(outcomes: Sequence[Outcomes]) -> dict[str, float]:
    """Return "task: metric" → mean over the draws of labels."""
    return {
        f"{task}: {metric}": float(np.mean([draw[task, metric].value() for draw in outcomes]))
        for task, metric in outcomes[0]
    }


def make(cells: Cells, limit: int | None) -> bool:
    """Make at most `limit` of the cells that aren't there yet; return whether all are there."""
    missing = [place for place in cells if not place.exists()]
    for place in missing[:limit]:
        cells[place]()
        print(f"made {place}", flush=True)
    return all(place.exists() for place in cells)


def compared(start: Path, after: Sequence[Path], **more: Any) -> dict[str, object]:
    """Return the scores of the start and after each seed, and the paired differences over the test images."""
    before, now = outcomes_of(start), [outcomes_of(file) for file in after]
    return {
        "start": scores(before),
        "after": [scores(one) for one in now],
        "difference": differences_json(over_images(now, [before])),
        **more,
    }


def arguments() -> argparse.Namespace:
    """Return what the scripts over cells take."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--cells", type=int, default=None, help="make this many cells and stop")
    return parser.parse_args()


def main() -> None:
    torch.set_num_threads(1)
    words = arguments()
    out = words.out
    out.mkdir(parents=True, exist_ok=True)
    start, after = out / "start.pkl", [out / f"probe-{seed}.pkl" for seed in SEEDS]
    cells: dict[Path, Callable[[], None]] = {start: lambda: probed("starter", labelled_cells(out), start)}
    for seed, file in zip(SEEDS, after, strict=True):
        run = out / f"run-{seed}"
        cells[run / "model"] = lambda run=run, seed=seed: pretrained(bare_cells(out), run, seed, BUDGET)
        cells[file] = lambda run=run, file=file: probed(run, labelled_cells(out), file)
    if make(cells, words.cells):
        facts = {"set": "bccd", "crop": CROP, "seeds": SEEDS, "draws": DRAWS, "batch": BUDGET.batch}
        steps = {"align_steps": BUDGET.align_steps, "steps": BUDGET.steps, "lr": BUDGET.lr}
        save("pretext", compared(start, after, **facts, **steps))


if __name__ == "__main__":
    main()
