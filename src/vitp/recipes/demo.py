"""The demo goes the whole way on a domain that the starter has not seen, in seven to ten minutes on two CPU cores.

Scenes of ports in a thermal and an unusual false colour look, with classes that the starter was never shown. The
starter's pretraining is continued on instructions made from their labels (ViTP, VRL 0.75); the ViT is exported;
then three initialisations of the same ViT (random, starter, after ViTP) get the same frozen probes and the same
short segmentation finetune on few labels. Textures, object variants and layouts of the test split are held out.

Command: `make demo`, or `vitp demo --out demo` (resumable: stages that are done are kept).
Hardware and time: two CPU cores, seven minutes when they are idle. `vitp demo --seeds 3 --ceiling 600` makes the table
of three pretraining seeds that the page shows beside one run (`assets/demo_results.json`); about 40 minutes.
Settings were chosen on the validation split.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console

from vitp.checkpoints.export import export_backbone
from vitp.checkpoints.loading import load_backbone, load_vlm, random_backbone
from vitp.checkpoints.verify import verify_export
from vitp.core.errors import ConfigError
from vitp.core.files import atomic_dir, write_json
from vitp.core.reading import read_json
from vitp.data.compile import compile_labels
from vitp.data.formats.vitp_labels import read_compiled
from vitp.data.splits import splits_of, subset
from vitp.engine.stopping import Interrupted
from vitp.evaluation.features import probe_data
from vitp.evaluation.probe_table import ProbeRow, ProbeTable
from vitp.evaluation.probes import fit_probes
from vitp.io.images import load_image
from vitp.models.vision import VisionTower
from vitp.recipes.demo_page import DENSE, FINETUNED, DemoResults, write_demo_page, write_results
from vitp.recipes.demo_starts import SegmentedScenes, richest
from vitp.recipes.micro import (
    FINETUNE,
    RANDOM,
    STARTER,
    SYNTHESIS,
    VITP,
    DemoPlan,
    continued_from_starter,
    small_finetune_config,
)
from vitp.records.labels import LabelledSet
from vitp.runs.finetune import FinetuneConfig, run_finetune
from vitp.runs.folder import started
from vitp.runs.pretrain import run_pretraining

_T = TypeVar("_T")
_PROBE_IMAGES = {"train": 400, "val": 120, "test": 210}
_SAMPLES = 24


def run_demo(out: Path, plan: DemoPlan | None = None, *, force: bool = False) -> Path:
    """Run all stages that `out` does not hold yet; return the path of the page.

    Raises:
        ConfigError: `out` holds a demo of another plan.
    """
    plan, console, began = plan or DemoPlan(), Console(highlight=False), time.monotonic()
    _claim(out, plan, force)
    stage = _Stages(console, 4 + 2 * len(plan.seeds) + (plan.ceiling_steps > 0))
    data, scenes = out / "data", out / "scenes.npz"
    stage("scenes of ports and their instructions", data, lambda: _make_data(data, plan))
    starter = load_vlm("starter").vlm.vision
    towers: list[Mapping[str, VisionTower]] = []
    for seed in plan.seeds:
        run, backbone = out / f"pretrain-{seed}", out / f"backbone-{seed}"
        title = f"ViTP from the starter, seed {seed}"
        stage(title, run / "model", partial(_pretrain, plan, data, run, seed))
        stage("export", backbone, partial(_export, run, backbone, console))
        random = random_backbone(starter, seed=seed)
        towers.append({RANDOM: random, STARTER: starter, VITP: load_backbone(backbone)})
    labelled = read_compiled(data)
    if not scenes.is_file():  # of an earlier version
        (out / "probes.json").unlink(missing_ok=True)
    title = f"frozen probes of the three starts, {len(plan.probe_seeds)} draws of labels"
    make_probes = partial(_probe, towers, labelled, plan, scenes)
    probes = stage.tables(title, out / "probes.json", DENSE, make_probes)
    title = f"segmentation finetune on few labels, {3 * len(plan.seeds) * len(plan.finetune_seeds)} runs"
    finetuned = stage.tables(title, out / "finetune.json", FINETUNED, partial(_finetune, data, plan, out))
    ceiling: dict[str, ProbeTable] = {}
    if plan.ceiling_steps:
        make = partial(_ceiling, data, plan, out)
        ceiling = stage.tables("ceiling: all labels", out / "ceiling.json", FINETUNED, make)
    results = DemoResults(plan, probes, finetuned, ceiling)
    write_results(out, results)
    shown = SegmentedScenes.load(scenes)
    page = stage.run("report", lambda: write_demo_page(out, results, shown, towers[0]))
    if not (out / "samples").exists():
        _write_samples(labelled, out / "samples")
    minutes = (time.monotonic() - began) / 60
    console.print(f"\n[bold]done in {minutes:.1f} minutes[/]: open [bold]{page}[/]")
    console.print("its models in a browser, to ask, predict and look inside:")
    console.print(words_to_serve(out, plan), style="bold", soft_wrap=True)
    return page


def words_to_serve(out: Path, plan: DemoPlan) -> str:
    """Return the command that opens a demo's models, the starter and a random backbone with its samples."""
    seed = plan.seeds[0]
    models = {
        "segmenter": str(_finetune_folder(out, VITP, plan.finetune_seeds[0])),
        "vitp": str(out / f"pretrain-{seed}"),
        "starter": "starter",
        "random": "random",
    }
    words = [name if name == source else f"{name}={source}" for name, source in models.items()]
    # `make demo` has an environment of its own, whose commands a shell doesn't know by name.
    known = shutil.which("vitp") or Path(sys.argv[0]).name != "vitp"
    return shlex.join(["vitp" if known else sys.argv[0], "serve", *words, "--root", str(out / "samples")])


def _write_samples(labelled: LabelledSet, folder: Path) -> None:
    """Write some test scenes as files: the set holds addresses of scenes, which are rendered when they are read."""
    with atomic_dir(folder) as new:
        for number, item in enumerate(labelled.split("test").items[:_SAMPLES]):
            load_image(item.image).save(new / f"port-{number:02d}.png")


def _finetune_folder(out: Path, name: str, seed: int) -> Path:
    return out / "finetune" / f"{name.replace(' ', '-')}-{seed}"


class _Stages:
    """Says which stage runs and what it found, and skips the ones whose product is there."""

    def __init__(self, console: Console, count: int) -> None:
        self.console = console
        self._count, self._number = count, 0

    def __call__(self, title: str, product: Path, make: Callable[[], Any]) -> None:
        if product.exists():
            self.console.print(f"{self._head(title)}: kept from before")
        else:
            self.run(title, make)

    def _head(self, title: str) -> str:
        self._number += 1
        return f"[bold]{self._number} of {self._count} · {title}[/]"

    def run(self, title: str, make: Callable[[], _T]) -> _T:
        self.console.print(f"\n{self._head(title)}")
        began = time.monotonic()
        try:
            made = make()
        except Interrupted as stopped:
            raise stopped.saying("run the same command again: the demo goes on from there") from None
        self.console.print(f"[dim]{time.monotonic() - began:.0f} s[/]")
        return made

    def tables(
        self, title: str, file: Path, key: tuple[str, str], make: Callable[[], dict[str, ProbeTable]]
    ) -> dict[str, ProbeTable]:
        """Return tables, from their file where it is there, and print one measure of them."""
        self(title, file, lambda: write_json(file, {name: one.to_json() for name, one in make().items()}))
        found = {name: ProbeTable.from_json(value) for name, value in read_json(file).items()}
        scores = " · ".join(f"{name} [bold]{table[key].percent}[/]" for name, table in found.items())
        self.console.print(f"{key[1]}: {scores}")
        return found


def _claim(out: Path, plan: DemoPlan, force: bool) -> None:
    # Through JSON, as tuples come back from the file as lists.
    mark, wanted = out / "plan.json", json.loads(json.dumps(asdict(plan)))
    if mark.is_file() and read_json(mark) != wanted:
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
    towers: Sequence[Mapping[str, VisionTower]], labelled: LabelledSet, plan: DemoPlan, scenes: Path
) -> dict[str, ProbeTable]:
    """Return one table an initialisation, its values in the order (pretraining seed, draw of labels).

    What the probes of the first seed's first draw make of some test scenes is written to `scenes`.
    """
    tables: dict[str, list[ProbeTable]] = {RANDOM: [], STARTER: [], VITP: []}
    test = subset(splits_of(labelled)["test"], _PROBE_IMAGES["test"])
    maps: dict[str, np.ndarray] = {}
    for by_name in towers:
        for name, found in tables.items():
            # The starter is the same for all pretraining seeds, so its values are repeated.
            if name == STARTER and found:
                found.append(found[0])
                continue
            data = probe_data(by_name[name], labelled, max_images=_PROBE_IMAGES)
            fitted = fit_probes(data, seeds=plan.probe_seeds, labels_per_seed=plan.probe_labels)
            found.append(fitted.score(data.test))
            if name not in maps:
                truth_VSS = data.test.pixel_labels_VSS
                assert truth_VSS is not None  # scenes have masks
                chosen = richest(truth_VSS)
                truth_NSS = truth_VSS[chosen].numpy()
                maps[name] = fitted.class_maps(data.test, chosen).numpy()
    images = [str(test.items[number].image) for number in chosen.tolist()]
    SegmentedScenes(labelled.semantic_classes, images, truth_NSS, maps).save(scenes)
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
                config = _finetune_config(plan, data, init, run_seed)
                runs.append((config, _finetune_folder(out, name, run_seed)))
        tables[name] = _finetuned(
            runs, f"{plan.finetune_labels} labelled images, {plan.finetune_steps} steps"
        )
    return tables


def _ceiling(data: Path, plan: DemoPlan, out: Path) -> dict[str, ProbeTable]:
    longer = replace(plan, finetune_labels=None, finetune_steps=plan.ceiling_steps)
    runs = [
        (_finetune_config(longer, data, "starter", seed), out / "ceiling" / str(seed))
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


def _finetune_config(plan: DemoPlan, data: Path, init: str, seed: int) -> FinetuneConfig:
    """Return the finetuning protocol, the same for every initialisation: a light decoder on a feature pyramid."""
    return small_finetune_config(
        "segmentation",
        {
            "root": str(data),
            "labels": plan.finetune_labels,
            "global_batch": plan.finetune_batch,
            "max_val_images": 50,
        },
        init,
        seed,
        head={"kind": "fpn", "width": 64, "auxiliary": 0.0},
        train={"steps": plan.finetune_steps},
        augment={"scale": [1.0, 1.6]},
    )
