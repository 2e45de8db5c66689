"""The demo: the whole way on a domain that the starter has not seen, in seven to ten minutes on two CPU cores.

Scenes of ports in a thermal and an unusual false colour look, with classes that the starter was never shown. The
starter's pretraining is continued on instructions made from their labels (ViTP, VRL 0.75); the ViT is exported;
then three initialisations of the same ViT (random, starter, after ViTP) get the same frozen probes and the same
short segmentation finetune on few labels. Textures, object variants and layouts of the test split are held out.

Command: `make demo`, or `vitp demo --out demo` (resumable: stages that are done are kept).
Hardware and time: two CPU cores, seven minutes when they are idle. `vitp demo --seeds 3 --ceiling 600` makes the table of three
pretraining seeds that the page shows beside one run (`assets/demo_results.json`); about 40 minutes.
Settings were chosen on the validation split.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from vitp.checkpoints.export import export_backbone
from vitp.checkpoints.loading import load_backbone, load_vlm, random_backbone
from vitp.checkpoints.verify import verify_export
from vitp.core.config import make_config
from vitp.core.errors import ConfigError
from vitp.core.files import write_json
from vitp.core.reading import parse_json, read_text
from vitp.data.compile import compile_labels
from vitp.data.formats.vitp_labels import read_compiled
from vitp.evaluation.probe_table import ProbeRow, ProbeTable
from vitp.evaluation.probes import run_probes
from vitp.models.vision import VisionTower
from vitp.recipes.micro import SYNTHESIS, Budget, continued_from_starter
from vitp.records.labels import LabelledSet
from vitp.runs.finetune import FinetuneConfig, run_finetune
from vitp.runs.folder import started
from vitp.runs.pretrain import run_pretraining

RANDOM, STARTER, VITP = "random", "starter", "after ViTP"
FINETUNE = "segmentation finetune"
BUDGET = Budget(align_steps=160, steps=360)
PROBE_IMAGES = {"train": 400, "val": 120, "test": 210}


@dataclass(frozen=True)
class DemoPlan:
    """Sizes of the demo. The three initialisations always get the same.

    Attributes:
        ceiling_steps: Steps of a finetune of the starter on all training labels, which shows how much the few labels
            leave to gain; 0 leaves it out.
    """

    seeds: tuple[int, ...] = (0,)
    images: int = 3000
    val_share: float = 0.06
    test_share: float = 0.07
    budget: Budget = BUDGET
    probe_labels: int = 300
    probe_seeds: tuple[int, ...] = (0, 1, 2)
    finetune_labels: int | None = 60
    finetune_steps: int = 100
    finetune_batch: int = 4
    finetune_seeds: tuple[int, ...] = (0, 1, 2)
    ceiling_steps: int = 0


def run_demo(out: Path, plan: DemoPlan | None = None, *, force: bool = False) -> Path:
    """Run all stages that `out` does not hold yet; return the path of the page.

    Raises:
        ConfigError: `out` holds a demo of another plan.
    """
    plan, console, began = plan or DemoPlan(), Console(highlight=False), time.monotonic()
    _claim(out, plan, force)
    stage = _Stages(console)
    data = stage(
        1, "scenes of ports and their instructions", out / "data", lambda: _make_data(out / "data", plan)
    )
    towers: list[Mapping[str, VisionTower]] = []
    for seed in plan.seeds:
        run, backbone = out / f"pretrain-{seed}", out / f"backbone-{seed}"
        stage(
            2,
            f"ViTP from the starter, seed {seed}",
            run / "model",
            partial(_pretrain, plan, data, run, seed),
        )
        stage(3, "export", backbone, partial(_export, run, backbone, console))
        starter = load_vlm("starter").vlm.vision
        towers.append(
            {RANDOM: random_backbone(starter, seed=seed), STARTER: starter, VITP: load_backbone(backbone)}
        )
    labelled = read_compiled(data)
    probes = _cached(
        out / "probes.json", lambda: stage.run(4, "frozen probes", lambda: _probe(towers, labelled, plan))
    )
    finetuned = _cached(
        out / "finetune.json",
        lambda: stage.run(5, "segmentation finetune on few labels", lambda: _finetune(data, plan, out)),
    )
    ceiling: dict[str, Any] = {}
    if plan.ceiling_steps:
        ceiling = _cached(
            out / "ceiling.json",
            lambda: stage.run(6, "ceiling: all labels", lambda: _ceiling(data, plan, out)),
        )
    from vitp.recipes.demo_page import DemoResults, write_demo_page, write_results

    results = DemoResults(plan, _tables(probes), _tables(finetuned), _tables(ceiling))
    write_results(out, results)
    page = stage.run(7, "report", lambda: write_demo_page(out, results, towers[0]))
    minutes = (time.monotonic() - began) / 60
    console.print(f"\n[bold]done in {minutes:.1f} minutes[/]: open [bold]{page}[/]")
    return page


class _Stages:
    """Says which stage runs, and skips the ones whose product is there."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def __call__(self, number: int, title: str, product: Path, make: Callable[[], Any]) -> Path:
        if product.exists():
            self.console.print(f"[bold]{number} · {title}[/]: kept from before")
        else:
            self.run(number, title, make)
        return product

    def run(self, number: int, title: str, make: Callable[[], Any]) -> Any:
        self.console.print(f"\n[bold]{number} · {title}[/]")
        began = time.monotonic()
        made = make()
        self.console.print(f"[dim]{time.monotonic() - began:.0f} s[/]")
        return made


def _claim(out: Path, plan: DemoPlan, force: bool) -> None:
    mark, wanted = out / "plan.json", json.loads(json.dumps(asdict(plan)))
    if mark.is_file() and parse_json(read_text(mark)) != wanted:
        if not force:
            raise ConfigError(
                "holds a demo with other settings",
                where=str(out),
                fix="choose another --out, or replace it with --force",
            )
        shutil.rmtree(out)
    elif out.exists() and not mark.is_file() and any(out.iterdir()):
        raise ConfigError("is not empty and no demo", where=str(out), fix="choose another --out")
    write_json(mark, wanted)


def _make_data(data: Path, plan: DemoPlan) -> None:
    compile_labels(
        "port",
        "scenes",
        data,
        seed=11,
        count=plan.images,
        val=plan.val_share,
        test=plan.test_share,
        synthesis=SYNTHESIS,
        max_tiles=1,
    )


def _pretrain(plan: DemoPlan, data: Path, run: Path, seed: int) -> None:
    config = continued_from_starter([data], plan.budget, seed)
    run_pretraining(config, run, resume=started(run))


def _export(run: Path, backbone: Path, console: Console) -> None:
    export_backbone(run, backbone)
    console.print(verify_export(backbone, against=run))


def _probe(
    towers: Sequence[Mapping[str, VisionTower]], labelled: LabelledSet, plan: DemoPlan
) -> dict[str, ProbeTable]:
    """Return one table an initialisation, its values in the order (pretraining seed, draw of labels)."""

    def one(tower: VisionTower, number: int, name: str) -> ProbeTable:
        return run_probes(
            tower,
            labelled,
            seeds=plan.probe_seeds,
            labels_per_seed=plan.probe_labels,
            max_images=PROBE_IMAGES,
        )

    return _for_each(towers, one)


def _for_each(
    towers: Sequence[Mapping[str, VisionTower]], score: Callable[[VisionTower, int, str], ProbeTable]
) -> dict[str, ProbeTable]:
    """Score every tower once; the starter is the same for all pretraining seeds, so its values are repeated."""
    tables: dict[str, list[ProbeTable]] = {RANDOM: [], STARTER: [], VITP: []}
    for number, by_name in enumerate(towers):
        for name, found in tables.items():
            known = name == STARTER and found
            found.append(found[0] if known else score(by_name[name], number, name))
    return {name: ProbeTable.joined(found) for name, found in tables.items()}


def _finetune(data: Path, plan: DemoPlan, out: Path) -> dict[str, ProbeTable]:
    """Return one table an initialisation, its values in the order (pretraining seed, draw of labels).

    Every pair of seeds draws labels and head anew, the same ones for each initialisation.
    """
    tables = {}
    for name in (RANDOM, STARTER, VITP):
        runs = []
        for number, seed in enumerate(plan.seeds):
            init = {RANDOM: "random", STARTER: "starter", VITP: str(out / f"backbone-{seed}")}[name]
            for draw in plan.finetune_seeds:
                run_seed = number * len(plan.finetune_seeds) + draw
                config = finetune_config(plan, data, init, run_seed)
                runs.append((config, out / "finetune" / f"{name.replace(' ', '-')}-{run_seed}"))
        tables[name] = _finetuned(
            runs, f"{plan.finetune_labels} labelled images, {plan.finetune_steps} steps"
        )
    return tables


def _ceiling(data: Path, plan: DemoPlan, out: Path) -> dict[str, ProbeTable]:
    longer = replace(plan, finetune_labels=None, finetune_steps=plan.ceiling_steps)
    runs = [
        (finetune_config(longer, data, "starter", seed), out / "ceiling" / str(seed))
        for seed in plan.finetune_seeds
    ]
    return {STARTER: _finetuned(runs, f"all labelled images, {plan.ceiling_steps} steps")}


def _finetuned(runs: Sequence[tuple[FinetuneConfig, Path]], note: str) -> ProbeTable:
    """Return the test scores of some finetunes."""
    scores = [
        run_finetune(config, run, console=Console(quiet=True), resume=started(run)).scores
        for config, run in runs
    ]
    rows = (
        ProbeRow(FINETUNE, "mIoU", tuple(found.values["miou"] for found in scores)),
        ProbeRow(FINETUNE, "macro F1", tuple(found.values["macro_f1"] for found in scores)),
    )
    return ProbeTable(rows, note)


def finetune_config(plan: DemoPlan, data: Path, init: str, seed: int) -> FinetuneConfig:
    """Return the finetuning protocol, the same for every initialisation: a light decoder on a feature pyramid."""
    return make_config(
        FinetuneConfig,
        {
            "task": "segmentation",
            "seed": seed,
            "backbone": {"init": init},
            "neck": {"kind": "simple", "options": {"channels": 64}},
            "head": {"kind": "fpn", "width": 64, "auxiliary": 0.0},
            "data": {
                "root": str(data),
                "format": "vitp",
                "labels": plan.finetune_labels,
                "global_batch": plan.finetune_batch,
                "max_val_images": 50,
            },
            "augment": {"scale": [1.0, 1.6]},
            "train": {
                "steps": plan.finetune_steps,
                "val_every": None,
                "save_every": plan.finetune_steps,
                "keep_last": 1,
            },
        },
        where="demo",
    )


def _cached(path: Path, make: Callable[[], dict[str, ProbeTable]]) -> dict[str, Any]:
    if not path.is_file():
        write_json(path, {name: table.to_json() for name, table in make().items()})
    return parse_json(read_text(path))


def _tables(values: Mapping[str, Any]) -> dict[str, ProbeTable]:
    return {name: ProbeTable.from_json(value) for name, value in values.items()}
