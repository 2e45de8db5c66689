"""Does region-text contrast beside ViTP teach what lies where? Frozen probes of blood cells, as in `pretext.py`.

The packaged model goes on with ViTP on the questions of bccd's training labels, alone and together with `regionclip`
(weight 0.5). Both see the same number of instructed images; the second passes as many images through the tower once
more for the regions, so it costs more (`seconds` are those of the steps after the alignment).

    VITP_DATA=DATA python benchmarks/regions.py runs/regions            # all cells
    VITP_DATA=DATA python benchmarks/regions.py runs/regions --cells 1  # the next one

The result is written as soon as one seed is done, and says which are.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from common import save
from pretext import CROP, DRAWS, arguments, labelled_cells, make, outcomes_of, probed, scores
from vitp.core.config import make_config
from vitp.evaluation.outcomes import differences_json, over_images
from vitp.recipes.micro import Budget, continued_from_starter
from vitp.runs.folder import started
from vitp.runs.pretrain import PretrainConfig, run_pretraining

SEEDS = (0, 1, 2)
BUDGET = Budget(align_steps=40, steps=360)
ARMS: dict[str, dict[str, float]] = {"instructions": {}, "with regions": {"regionclip": 0.5}}
"""What is learned → weight of each objective beside ViTP."""


def pretrained(data: Path, run: Path, seed: int, beside: dict[str, float]) -> None:
    """Continue the packaged model by ViTP and what stands beside it."""
    values = continued_from_starter([data], BUDGET, seed).model_dump(mode="json")
    if beside:
        vitp = values["objective"]
        own = {key: value for key, value in vitp.items() if key != "name"}
        values["objective"] = {"name": "joint", "weights": {"vitp": 1.0, **beside}, "settings": {"vitp": own}}
    values["train"] |= {"num_workers": 0, "save_every": 20}
    run_pretraining(make_config(PretrainConfig, values, where=__file__), run, resume=started(run))


def seconds_of(run: Path) -> float:
    """Return the time of the steps after the alignment."""
    last = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    return float(json.loads(last)["elapsed_s"])


def main() -> None:
    torch.set_num_threads(1)
    words = arguments()
    out = words.out
    out.mkdir(parents=True, exist_ok=True)
    start = out / "start.pkl"
    cells: dict[Path, Callable[[], None]] = {start: lambda: probed("starter", labelled_cells(out), start)}
    runs = {(arm, seed): out / f"run-{arm.replace(' ', '-')}-{seed}" for seed in SEEDS for arm in ARMS}
    files = {key: run.with_suffix(".pkl") for key, run in runs.items()}
    for (arm, seed), run in runs.items():
        file = files[arm, seed]
        cells[run / "model"] = lambda arm=arm, seed=seed, run=run: pretrained(
            labelled_cells(out), run, seed, ARMS[arm]
        )
        cells[file] = lambda run=run, file=file: probed(run, labelled_cells(out), file)
    make(cells, words.cells)
    done = [seed for seed in SEEDS if all(files[arm, seed].exists() for arm in ARMS)]
    if not done:
        return
    first = [[outcomes_of(start)]]
    found = {arm: [outcomes_of(files[arm, seed]) for seed in done] for arm in ARMS}
    alone, both = found.values()
    save(
        "regions",
        {
            "set": "bccd",
            "crop": CROP,
            "seeds": done,
            "draws": DRAWS,
            "batch": BUDGET.batch,
            "steps": [BUDGET.align_steps, BUDGET.steps],
            "lr": BUDGET.lr,
            "weights": ARMS,
            "seconds": {arm: [seconds_of(runs[arm, seed]) for seed in done] for arm in ARMS},
            "start": scores(first[0][0]),
            "after": {arm: [scores(one) for one in seeds] for arm, seeds in found.items()},
            "with regions - instructions": differences_json(over_images(both, alone)),
            "with regions - start": differences_json(over_images(both, first[0])),
        },
    )


if __name__ == "__main__":
    main()
