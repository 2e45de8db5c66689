"""Does labelling what the model is least sure of teach a detector more than images picked at random?

Goes the way of `examples/annotation_walk.py`, through the same commands, over several seeds. Every cell (seed, way) is
one row of `benchmarks/results/annotation.json`, written when it has finished; cells that are there are left alone, and
a cell that was interrupted begins again from the model that both ways of its seed start with. A row has the AP50 of the
test scenes at the start and after each round, and how many objects were drawn in each round: images with more objects
are more work.

    python benchmarks/annotation.py OUT [--cells N]     # N cells that aren't there yet; without it all of them
    python benchmarks/annotation.py --table             # of what is there

A seed has scenes, weights and random picks of its own. Steps and settings were chosen on seed 100, which no row has.
Hardware and time: one CPU core, some minutes a cell.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common import RESULTS
from vitp.core.distributed import resolve_device
from vitp.core.files import write_json
from vitp.core.reading import parse_json, read_text
from vitp.metrics.statistics import mean_std, paired_bootstrap
from vitp.planning.bench.benchmark import circumstances_of

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from annotation_walk import WAYS, Annotation, Plan

SEEDS = (0, 1, 2)
PLAN = Plan(
    first=32,
    pool=160,
    test=100,
    a_round=32,
    steps=300,
    settings=(
        *("data.resize.mode=fixed", "data.resize.size=64", "data.global_batch=4"),
        *("train.val_every=0", "train.threads=1", "log.trackers=[]"),
        *("neck.kind=simple", "neck.options.channels=64", "head.width=64"),
        *("head.proposals.anchor_scales=[2.0]", "head.proposals.keep_before=[300,200]"),
        *("head.proposals.keep=[100,60]", "head.box.kind=faster", "head.box.hidden=128"),
        *("head.box.samples=48", "head.box.detections=40"),
    ),
)
"""The small detector of the recipes on whole scenes: AP50 of 14 after 300 steps on 32 scenes (seed 100)."""


def cell(out: Path, seed: int, way: str) -> dict[str, Any]:
    """Return the row of a cell; the commands and what they say go to a file beside the runs."""
    folder = out / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{way}-*"):
        shutil.rmtree(old)
    if not (folder / "model" / "scores.json").is_file():
        for old in folder.iterdir():
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    with (folder / "said.txt").open("a", encoding="utf-8") as said, contextlib.redirect_stdout(said):
        scores, drawn = Annotation(folder, PLAN, seed).go(way)
    return {
        "seed": seed,
        "way": way,
        "plan": asdict(PLAN),
        "AP50": scores,
        "objects_drawn": drawn,
        **circumstances_of(
            "annotation", "python benchmarks/annotation.py", resolve_device("auto"), RESULTS.parent
        ),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as Markdown: mean ± sample standard deviation over seeds, and the paired difference."""
    both = sorted(set.intersection(*({row["seed"] for row in rows if row["way"] == way} for way in WAYS)))
    if not both:
        return "no seed has both ways yet"
    found = {(row["seed"], row["way"]): row for row in rows}
    lines = [
        f"AP50 in percent, {len(both)} seeds",
        "",
        "| labelled images | uncertain first | random | difference, 95 % interval | p |",
        "|---:|---:|---:|---:|---:|",
    ]
    first, a_round, rounds = (rows[0]["plan"][name] for name in ("first", "a_round", "rounds"))
    for number in range(rounds + 1):
        ours, theirs = ([100 * found[seed, way]["AP50"][number] for seed in both] for way in WAYS)
        spread = [f"{mean:.1f} ± {std:.1f}" for mean, std in map(mean_std, (ours, theirs))]
        one = paired_bootstrap(ours, theirs)
        p = "–" if one.p is None else f"{one.p:.2f}"  # of one seed there is none
        said = f"{one.mean:+.1f} [{one.low:+.1f}, {one.high:+.1f}] | {p}" if number else "– | –"
        lines.append(f"| {first + number * a_round} | {' | '.join(spread)} | {said} |")
    drawn = {way: mean_std([sum(found[seed, way]["objects_drawn"]) for seed in both]) for way in WAYS}
    lines += [
        "",
        "objects drawn: " + ", ".join(f"{way} {mean:.0f} ± {std:.0f}" for way, (mean, std) in drawn.items()),
    ]
    return "\n".join(lines)


def main() -> None:
    """Run the cells that aren't there yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, nargs="?", default=Path("runs/annotation"), help="folder of runs")
    parser.add_argument("--results", type=Path, default=RESULTS / "annotation.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--cells", type=int, default=None, help="stop after so many")
    parser.add_argument("--table", action="store_true", help="print the table of the rows that are there")
    options = parser.parse_args()
    rows = parse_json(read_text(options.results))["rows"] if options.results.is_file() else []
    there = {(row["seed"], row["way"]) for row in rows}
    missing = [(seed, way) for seed in options.seeds for way in WAYS if (seed, way) not in there]
    for seed, way in [] if options.table else missing[: options.cells]:
        rows.append(cell(options.out, seed, way))
        write_json(options.results, {"benchmark": "annotation", "rows": rows})
        print(
            seed,
            way,
            [round(100 * score, 1) for score in rows[-1]["AP50"]],
            rows[-1]["objects_drawn"],
            flush=True,
        )
    print(table(rows))


if __name__ == "__main__":
    main()
