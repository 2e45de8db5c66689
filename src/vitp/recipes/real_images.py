"""Five small real data sets go from labels to a better backbone, measured on held-out images.

Airplanes in aerial photographs (GDIT), cars in aerial video (KIT AIS), forest in Sentinel-2 (Amazon), ships in SAR
(HRSID) and blood cells (BCCD), each with its true split, cut into crops of about the starter's field of view. One
mixture of their instructions continues the starter; the frozen ViT is probed on each set's test images beside the
starter and random weights.

Command: `vitp recipes run real-images --out runs/real`, with the folder of the images in `VITP_DATA`.
Hardware and time: two CPU cores, about half an hour with one pretraining seed.
`--seeds 3` makes the table of the documentation.
Settings were chosen on validation images. Numbers: `docs/real_images.md`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from vitp.checkpoints.export import export_backbone
from vitp.checkpoints.loading import load_backbone, random_backbone
from vitp.checkpoints.verify import verify_export
from vitp.core.errors import ConfigError
from vitp.core.files import write_json, write_text
from vitp.core.words import decimals
from vitp.data.check import check_records
from vitp.data.compile import compile_labels
from vitp.data.formats.vitp_labels import read_compiled
from vitp.evaluation.features import probe_data
from vitp.evaluation.outcomes import Outcomes, difference_table, differences_json, interval, over_images
from vitp.evaluation.probe_table import ProbeTable
from vitp.evaluation.probes import probe_outcomes
from vitp.metrics.statistics import PairedDifference, mean_std
from vitp.models.vision import VisionTower
from vitp.recipes.micro import RANDOM, STARTER, SYNTHESIS, VITP, Budget, continued_from_starter
from vitp.recipes.paradigms import PARADIGMS, ParadigmBudget
from vitp.runs.folder import started
from vitp.runs.pretrain import run_pretraining


@dataclass(frozen=True)
class RealSet:
    """One set and the options to read it.

    Attributes:
        folder: Below the data folder.
        fmt: Label format.
        crop: Side of the crops in pixels of the image.
        rate: Sampling rate in the mixture. Small sets are seen more often: at rates in proportion to their size they
            gained nothing.
        options: Options of the format.
        probed: Whether it has held-out images to probe on.
        objects: Whether its labels say which objects are in an image, for supervised pretraining.
    """

    folder: str
    fmt: str
    crop: int
    rate: float
    options: dict[str, Any] = field(default_factory=dict)
    probed: bool = True
    objects: bool = True


SETS = (
    RealSet("gdit_airport", "dota", 120, 0.6, options={"licence": "public domain"}),
    RealSet("bccd", "voc", 240, 1.5, options={"licence": "MIT"}),
    RealSet(
        "hrsid_mini",
        "masks",
        100,
        1.5,
        {"instances": True, "group_regex": r"P\d+", "val": 0.2, "test": 0.25, "licence": "GPL-3.0"},
    ),
    RealSet(
        "amazon_forest",
        "masks",
        128,
        10.0,
        options={"val": 0.2, "test": 0.3, "licence": "CC-BY 4.0"},
        objects=False,
    ),
    # The frames follow each other, so all of them are on one side: they teach and are not tested on.
    RealSet(
        "kit_ais_cars",
        "yolo",
        188,
        2.0,
        options={"group_regex": "^[^-]+", "licence": "CC-BY 3.0"},
        probed=False,
    ),
)


_BUDGET = Budget(align_steps=160, steps=1000)


@dataclass(frozen=True)
class RealPlan:
    """Budget of the run, and what it is about."""

    seeds: tuple[int, ...] = (0,)
    budget: Budget = _BUDGET
    sets: tuple[RealSet, ...] = SETS
    probe_seeds: tuple[int, ...] = (0, 1, 2)
    probe_images: int = 1200

    def scaled(self, factor: float) -> RealPlan:
        """Return a plan with fewer or more steps."""
        return replace(self, budget=self.budget.scaled(factor))


def run_real_images(out: Path, plan: RealPlan | None = None) -> Path:
    """Compile, check, pretrain, export and probe; return the path of `results.md`.

    Raises:
        ConfigError: The images aren't there.
    """
    plan, console = plan or RealPlan(), Console(highlight=False)
    exports = pretrained_backbones(out, plan, console)
    results = _probe(out, exports, plan, console)
    write_json(out / "probes.json", {name: result.to_json() for name, result in results.items()})
    write_text(out / "results.md", _markdown(results, len(plan.probe_seeds)))
    return out / "results.md"


def pretrained_backbones(out: Path, plan: RealPlan, console: Console) -> list[Path]:
    """Return the exports after ViTP, one a seed; what `out` holds already is kept.

    Raises:
        ConfigError: The images aren't there.
    """
    compile_sets(out, plan.sets, console)
    exports = []
    for seed in plan.seeds:
        run, backbone = out / f"pretrain-{seed}", out / f"backbone-{seed}"
        if not (run / "model").is_dir():
            folders = [out / "data" / one.folder for one in plan.sets]
            config = continued_from_starter(folders, plan.budget, seed, rates=[one.rate for one in plan.sets])
            run_pretraining(config, run, resume=started(run))
        if not backbone.is_dir():
            export_backbone(run, backbone)
            console.print(verify_export(backbone, against=run))
        exports.append(backbone)
    return exports


def supervised_backbones(out: Path, plan: RealPlan, console: Console) -> list[Path]:
    """Return runs that continue the starter on which objects are in an image, as many images as the ViTP run sees.

    A set without objects has nothing to say here, so its share goes to the others.

    Raises:
        ConfigError: The images aren't there.
    """
    compile_sets(out, plan.sets, console)
    budget, runs = plan.budget, []
    sets = [one for one in plan.sets if one.objects]
    for seed in plan.seeds:
        run = out / f"supervised-{seed}"
        if not (run / "model").is_dir():
            images = ParadigmBudget(
                images=(budget.align_steps + budget.steps) * budget.batch,
                batch=budget.batch,
                rates=tuple(one.rate for one in sets),
            )
            config = PARADIGMS["supervised"].make(
                [out / "data" / one.folder for one in sets], "starter", images, seed
            )
            run_pretraining(config, run, resume=started(run))
        runs.append(run)
    return runs


def compile_sets(out: Path, sets: Sequence[RealSet], console: Console) -> None:
    """Compile and check all of the sets that `out` does not hold yet."""
    root = Path(os.environ.get("VITP_DATA", "../shared/data"))
    if not root.is_dir():
        raise ConfigError("there are no real images", where=str(root), fix="name their folder in VITP_DATA")
    for one in sets:
        folder = out / "data" / one.folder
        if folder.is_dir():
            continue
        common: dict[str, Any] = {"synthesis": SYNTHESIS, "max_tiles": 1, "name": one.folder}
        summary = compile_labels(root / one.folder, one.fmt, folder, crop=one.crop, **common, **one.options)
        splits = (f"{name} {c.images} crops, {c.turns} questions" for name, c in summary.splits.items())
        report = check_records(folder)
        counts = {str(kind): number for kind, number in report.counts().items()}
        console.print(f"{one.folder}: {', '.join(splits)}; check: {json.dumps(counts)}")
        if report.exit_code:
            raise ConfigError("has unusable rows", where=str(folder), fix="run `vitp data check` on it")


@dataclass(frozen=True)
class SetResult:
    """Probes of one set.

    Attributes:
        tables: Initialisation → scores; values in the order (pretraining seed, draw of patches). The starter is one
            model.
        gains: (task, metric) → ViTP − starter, with the interval over test images and pretraining seeds.
    """

    tables: Mapping[str, ProbeTable]
    gains: Mapping[tuple[str, str], PairedDifference]

    def to_json(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {
            **{name: table.to_json() for name, table in self.tables.items()},
            "ViTP - starter": differences_json(self.gains),
        }


def _probe(out: Path, exports: Sequence[Path], plan: RealPlan, console: Console) -> dict[str, SetResult]:
    """Return set → scores of random weights, the starter and the exports."""
    starter = load_backbone("starter")
    towers: dict[str, list[VisionTower]] = {
        RANDOM: [random_backbone(starter, seed) for seed in plan.seeds],
        STARTER: [starter],
        VITP: [load_backbone(backbone) for backbone in exports],
    }
    results: dict[str, SetResult] = {}
    for one in (s for s in plan.sets if s.probed):
        labelled = read_compiled(out / "data" / one.folder)
        tables: dict[str, ProbeTable] = {}
        outcomes: dict[str, list[list[Outcomes]]] = {}
        for name, of_name in towers.items():
            found = [
                probe_outcomes(
                    probe_data(tower, labelled, max_images=plan.probe_images), seeds=plan.probe_seeds
                )
                for tower in of_name
            ]
            tables[name] = ProbeTable.joined([table for table, _ in found])
            outcomes[name] = [by_draw for _, by_draw in found]
            console.print(tables[name].to_rich(title=f"{one.folder}, {name}"))
        gains = over_images(outcomes[VITP], outcomes[STARTER])
        console.print(difference_table(gains, f"{one.folder}, ViTP - starter"))
        results[one.folder] = SetResult(tables, gains)
    return results


def _markdown(results: Mapping[str, SetResult], draws: int) -> str:
    """Return one table over all sets: mean ± sample standard deviation over pretraining seeds, and what ViTP added."""
    lines = [
        "| set (test images) | probe | random | starter | after ViTP | ViTP - starter (lowest … highest seed) "
        "| 95 % interval |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, result in results.items():
        for row in result.tables[STARTER].rows:
            # A seed's mean over its draws, in percent, for each pretraining seed.
            of = {
                name: 100 * np.asarray(table[row.task, row.metric].values).reshape(-1, draws).mean(1)
                for name, table in result.tables.items()
            }
            gain = of[VITP] - of[STARTER][0]
            difference = result.gains[row.task, row.metric]
            shown = [
                f"{mean:.1f} ± {std:.1f}" if len(values) > 1 else f"{mean:.1f}"
                for values in of.values()
                for mean, std in [mean_std(values)]
            ]
            mean, least, most = (
                decimals(float(one), 1, signed=True) for one in (gain.mean(), gain.min(), gain.max())
            )
            shown += [f"{mean} ({least} … {most})", interval(difference)]
            lines.append(f"| {name} ({difference.n}) | {row.task}, {row.metric} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"
