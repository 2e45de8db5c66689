"""Five small real data sets: labels to a better backbone, measured on held-out images.

Airplanes in aerial photographs (GDIT), cars in aerial video (KIT AIS), forest in Sentinel-2 (Amazon), ships in SAR
(HRSID) and blood cells (BCCD), each with its true split, cut into crops of about the starter's field of view. One
mixture of their instructions continues the starter; the frozen ViT is probed on each set's test images beside the
starter and random weights.

Command: `vitp recipe real-images --out runs/real`, with the folder of the images in `VITP_DATA`.
Hardware and time: two CPU cores, about twenty minutes with one pretraining seed.
Settings were chosen beforehand, none on test images. Numbers: `docs/real_images.md`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from vitp.data.check import check_records
from vitp.data.compile import compile_labels
from vitp.data.formats.vitp_labels import read as read_labels
from vitp.errors import ConfigError
from vitp.evaluation.probe_table import ProbeTable
from vitp.evaluation.probes import run_probes
from vitp.export import export_backbone, load_backbone, random_backbone, verify_export
from vitp.files import write_json, write_text
from vitp.pretrain import run_pretraining
from vitp.recipes.micro import SYNTHESIS, Budget, continued_from_starter


@dataclass(frozen=True)
class RealSet:
    """How one set is read.

    Attributes:
        folder: Below the data folder.
        fmt: Label format.
        crop: Side of the crops in pixels of the image.
        rate: Sampling rate in the mixture: small sets are seen more often.
        options: Of the format.
        probed: Whether it has held-out images to probe on.
    """

    folder: str
    fmt: str
    crop: int
    rate: float
    options: dict[str, Any] = field(default_factory=dict)
    probed: bool = True


SETS = (
    RealSet("gdit_airport", "dota", 120, 1.0, {"licence": "public domain"}),
    RealSet("bccd", "voc", 240, 1.5, {"licence": "MIT"}),
    RealSet(
        "hrsid_mini",
        "masks",
        160,
        2.0,
        {"instances": True, "group_regex": r"P\d+", "val": 0.2, "test": 0.25, "licence": "GPL-3.0"},
    ),
    RealSet("amazon_forest", "masks", 128, 4.0, {"val": 0.2, "test": 0.3, "licence": "CC-BY 4.0"}),
    # The frames follow each other, so all of them are on one side: they teach and are not tested on.
    RealSet(
        "kit_ais_cars", "yolo", 188, 2.0, {"group_regex": "^[^-]+", "licence": "CC-BY 3.0"}, probed=False
    ),
)

BUDGET = Budget(align_steps=160, steps=600)


@dataclass(frozen=True)
class RealPlan:
    """Budget of the run."""

    seeds: tuple[int, ...] = (0,)
    budget: Budget = BUDGET
    probe_seeds: tuple[int, ...] = (0, 1, 2)
    probe_share: float = 0.5


def run_real_images(out: Path, plan: RealPlan | None = None) -> Path:
    """Compile, check, pretrain, export and probe; return the path of `results.md`.

    Raises:
        ConfigError: The images aren't there.
    """
    plan, console = plan or RealPlan(), Console(highlight=False)
    root = Path(os.environ.get("VITP_DATA", "../shared/data"))
    if not root.is_dir():
        raise ConfigError("there are no real images", where=str(root), fix="name their folder in VITP_DATA")
    for one in SETS:
        _compile(root / one.folder, one, out / "data" / one.folder, console)
    exports = [_pretrain(out, plan, seed, console) for seed in plan.seeds]
    results = _probe(out, exports, plan, console)
    write_json(
        out / "probes.json", {name: {k: t.to_json() for k, t in by.items()} for name, by in results.items()}
    )
    write_text(out / "results.md", _markdown(results))
    return out / "results.md"


def _probe(
    out: Path, exports: Sequence[Path], plan: RealPlan, console: Console
) -> dict[str, dict[str, ProbeTable]]:
    """Return set → initialisation → scores, values in the order (pretraining seed, draw of labels)."""
    starter = load_backbone("starter")
    results: dict[str, dict[str, ProbeTable]] = {}
    for one in (s for s in SETS if s.probed):
        labelled = read_labels(out / "data" / one.folder)
        tables: dict[str, list[ProbeTable]] = {"random": [], "starter": [], "after ViTP": []}
        for seed, backbone in zip(plan.seeds, exports, strict=True):
            towers = {
                "random": random_backbone(starter, seed),
                "starter": starter,
                "after ViTP": load_backbone(backbone),
            }
            for name, tower in towers.items():
                tables[name].append(
                    run_probes(
                        tower,
                        labelled,
                        seeds=plan.probe_seeds,
                        labels_per_seed=plan.probe_share,
                        max_images=400,
                    )
                )
        results[one.folder] = {name: ProbeTable.joined(found) for name, found in tables.items()}
        for name, table in results[one.folder].items():
            console.print(table.to_rich(title=f"{one.folder}, {name}"))
    return results


def _markdown(results: Mapping[str, Mapping[str, ProbeTable]]) -> str:
    """Return one table over all sets: mean ± standard deviation over seeds."""
    lines = ["| set | probe | random | starter | after ViTP |", "|---|---|---:|---:|---:|"]
    for name, tables in results.items():
        for row in tables["starter"].rows:
            cells = [tables[k][row.task, row.metric] for k in ("random", "starter", "after ViTP")]
            shown = " | ".join(f"{100 * c.mean:.1f} ± {100 * c.std:.1f}" for c in cells)
            lines.append(f"| {name} | {row.task}, {row.metric} | {shown} |")
    return "\n".join(lines) + "\n"


def _compile(source: Path, one: RealSet, out: Path, console: Console) -> None:
    if out.is_dir():
        return
    summary = compile_labels(
        source,
        one.fmt,
        out,
        crop=one.crop,
        synthesis=SYNTHESIS,
        max_tiles=1,
        name=one.folder,
        **one.options,
    )
    splits = ", ".join(f"{name} {c.images} crops, {c.turns} questions" for name, c in summary.splits.items())
    report = check_records(out)
    counts = {str(kind): number for kind, number in report.counts().items()}
    console.print(f"{one.folder}: {splits}; check: {json.dumps(counts)}")
    if report.exit_code:
        raise ConfigError("has unusable rows", where=str(out), fix="run `vitp data check` on it")


def _pretrain(out: Path, plan: RealPlan, seed: int, console: Console) -> Path:
    run, backbone = out / f"pretrain-{seed}", out / f"backbone-{seed}"
    if not (run / "model").is_dir():
        folders = [out / "data" / one.folder for one in SETS]
        config = continued_from_starter(folders, plan.budget, seed, rates=[one.rate for one in SETS])
        run_pretraining(config, run, resume=(run / "config.yaml").is_file())
    if not backbone.is_dir():
        export_backbone(run, backbone)
        console.print(verify_export(backbone, against=run))
    return backbone
