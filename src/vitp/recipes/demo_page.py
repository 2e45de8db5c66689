"""The page of the demo: the answer first, then how it came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitp.evaluation.probe_table import ProbeTable
from vitp.evaluation.report import Card, Headline, Section, Text, comparison_section
from vitp.evaluation.run_page import report_run
from vitp.files import write_text
from vitp.models.vision import VisionTower

if TYPE_CHECKING:
    from vitp.recipes.demo import DemoPlan

DENSE = ("patches linear", "patch mIoU")
SHOWN = (
    DENSE,
    ("patches linear", "patch macro-F1"),
    ("scene linear", "accuracy"),
    ("presence linear", "mAP"),
)
"""The probes of the page; `probes.json` holds all."""


def write_demo_page(
    out: Path,
    plan: DemoPlan,
    probes: Mapping[str, ProbeTable],
    finetuned: Mapping[str, ProbeTable],
    towers: Mapping[str, VisionTower],
) -> Path:
    """Write the demo's page and return its path.

    Args:
        out: The demo's folder.
        plan: What was run.
        probes: Initialisation → scores of the frozen features.
        finetuned: Initialisation → scores after the segmentation finetune.
        towers: Initialisation → vision tower, for attention maps.
    """
    from vitp.recipes.demo import VITP

    run = out / f"pretrain-{plan.seeds[0]}"
    runs = f"{len(plan.seeds)} pretraining seed{'s' if len(plan.seeds) > 1 else ''}"
    sections = [
        _answer(probes, finetuned, runs),
        comparison_section(
            {name: [table[key] for key in SHOWN] for name, table in probes.items()},
            ours=VITP,
            title="Frozen features",
            lead=f"The ViT is frozen and only a linear map or a nearest-neighbour vote is fitted: {runs} × "
            f"{len(plan.probe_seeds)} draws of {plan.probe_labels} labelled images. Test scenes come from textures, "
            "object variants and layouts that no training scene has.",
        ),
        comparison_section(
            {name: table.rows for name, table in finetuned.items()},
            ours=VITP,
            title="Segmentation finetune on few labels",
            lead=f"The same short protocol for each initialisation: {plan.finetune_labels} labelled images, "
            f"{plan.finetune_steps} steps of {plan.finetune_batch}, {len(plan.finetune_seeds)} draws of the labels.",
        ),
    ]
    return report_run(
        run,
        out / "report.html",
        samples=24,
        lead_sections=sections,
        towers=towers,
        title="From labels to a better backbone: generated ports",
    )


def write_results(
    path: Path, plan: DemoPlan, probes: Mapping[str, ProbeTable], finetuned: Mapping[str, ProbeTable]
) -> None:
    """Write both comparisons as Markdown tables: mean ± standard deviation of the values of all seeds."""
    names = list(probes)
    keys = [(probes, (row.task, row.metric)) for row in probes[names[0]].rows]
    keys += [(finetuned, (row.task, row.metric)) for row in finetuned[names[0]].rows]
    lines = [f"| measure | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    for results, key in keys:
        cells = [f"{100 * results[n][key].mean:.1f} ± {100 * results[n][key].std:.1f}" for n in names]
        lines.append(f"| {key[0]}, {key[1]} | {' | '.join(cells)} |")
    seeds = f"{len(plan.seeds)} pretraining seed(s) × {len(plan.probe_seeds)} draws of {plan.probe_labels} labelled images"
    tuned = f"{len(plan.finetune_seeds)} draws of {plan.finetune_labels} labelled images, {plan.finetune_steps} steps"
    lines += ["", f"Probes: {seeds}. Finetune: {len(plan.seeds)} × {tuned}."]
    write_text(path, "\n".join(lines) + "\n")


def _answer(probes: Mapping[str, ProbeTable], finetuned: Mapping[str, ProbeTable], runs: str) -> Section:
    from vitp.recipes.demo import RANDOM, STARTER, VITP

    before, after = probes[STARTER][DENSE], probes[VITP][DENSE]
    chance = probes[RANDOM][DENSE]
    tuned = ("segmentation finetune", "mIoU")
    cards: Sequence[Card] = [
        Card(
            f"{100 * after.mean:.1f}",
            "patch mIoU, frozen, after ViTP",
            f"{100 * (after.mean - before.mean):+.1f} over the starter",
        ),
        Card(
            f"{100 * before.mean:.1f}",
            "patch mIoU, frozen, starter",
            f"{100 * (before.mean - chance.mean):+.1f} over random",
        ),
        Card(
            f"{100 * finetuned[VITP][tuned].mean:.1f}",
            "mIoU after finetuning, from ViTP",
            f"{100 * (finetuned[VITP][tuned].mean - finetuned[STARTER][tuned].mean):+.1f} over the starter",
        ),
    ]
    text = Text(
        f"A small general vision-language model continued its pretraining on instructions made from the labels of "
        f"generated port scenes, with 75 % of the image tokens dropped ({runs}). One run is an example, not "
        "evidence: the table over three seeds is in the documentation."
    )
    return Section("The answer", [Headline(cards), text])
