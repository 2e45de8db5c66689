"""The page of the demo: the answer first, then how it came about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from vitp.core.files import write_json, write_text
from vitp.core.reading import read_json
from vitp.core.words import decimals
from vitp.evaluation.probe_table import ProbeTable
from vitp.models.vision import VisionTower
from vitp.recipes.demo_starts import SegmentedScenes
from vitp.recipes.micro import FINETUNE, RANDOM, STARTER, VITP, DemoPlan
from vitp.report.compare import comparison_section
from vitp.report.page import Card, Headline, Section, Text
from vitp.report.run_report import report_run

FINETUNED = (FINETUNE, "mIoU")
"""The measure of finetunings that is read first."""

DENSE = ("patches linear", "patch mIoU")
"""The measure of frozen features that is read first."""

SHOWN = (
    DENSE,
    ("patches linear", "patch macro-F1"),
    ("scene linear", "accuracy"),
    ("presence linear", "mAP"),
)
"""The probes of the page; `probes.json` holds all."""

COMMITTED = Path(__file__).parent.parent / "assets" / "demo_results.json"
"""Results of three pretraining seeds under the same plan, which a run of one seed is shown beside."""


@dataclass(frozen=True)
class DemoResults:
    """All scores of a demo; values in the order (pretraining seed, draw of labels).

    Attributes:
        plan: What was run.
        probes: Initialisation → scores of the frozen features.
        finetuned: Initialisation → scores after the finetune on few labels.
        ceiling: Initialisation → scores after a longer finetune on all labels; may be empty.
    """

    plan: DemoPlan
    probes: Mapping[str, ProbeTable]
    finetuned: Mapping[str, ProbeTable]
    ceiling: Mapping[str, ProbeTable]

    def to_json(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        found = {
            name: {init: table.to_json() for init, table in getattr(self, name).items()}
            for name in ("probes", "finetuned", "ceiling")
        }
        return {"plan": asdict(self.plan), **found}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> DemoResults:
        """Return the results that `to_json` wrote."""
        return TypeAdapter(cls).validate_python(values)


def committed_results(plan: DemoPlan) -> DemoResults | None:
    """Return the results over three pretraining seeds that come with the package, if they are of this plan."""
    if not COMMITTED.is_file():
        return None
    results = DemoResults.from_json(read_json(COMMITTED))
    same = replace(results.plan, seeds=plan.seeds, ceiling_steps=plan.ceiling_steps) == plan
    return results if same else None


def write_demo_page(
    out: Path, results: DemoResults, scenes: SegmentedScenes, towers: Mapping[str, VisionTower]
) -> Path:
    """Write the demo's page and return its path.

    Args:
        out: The demo's folder.
        results: The scores.
        scenes: What the probes make of some test scenes.
        towers: Initialisation → vision tower, for attention maps.
    """
    run = out / f"pretrain-{results.plan.seeds[0]}"
    sections = [_starts(results, scenes), _answer(results), *_comparisons(results)]
    committed = committed_results(results.plan) if len(results.plan.seeds) < 3 else None
    if committed:
        sections += _comparisons(committed, "Over three pretraining seeds: ")
    return report_run(
        run,
        out / "report.html",
        samples=24,
        lead_sections=sections,
        towers=towers,
        title="From labels to a better backbone: generated ports",
    )


def _starts(results: DemoResults, scenes: SegmentedScenes) -> Section:
    plan = results.plan
    scores = {name: f"**{100 * table[DENSE].mean:.1f}**" for name, table in results.probes.items()}
    lead = (
        f"Patch mIoU over all held-out test scenes, 100 being perfect: {scores[RANDOM]} from random weights, "
        f"{scores[STARTER]} from the packaged starter, {scores[VITP]} after ViTP. Each ViT is frozen, and one linear "
        f"map from its patch features to classes is fitted on {plan.probe_labels} labelled scenes "
        f"(mean of {len(plan.probe_seeds)} draws of these, {_seeds(plan)})."
    )
    note = (
        f"Which scenes: the {len(scenes.images)} of the test whose truth holds the most classes (each at least 1 % of "
        "the pixels; among equals the first ones). A single scene may go the other way; the numbers above are over all "
        "of them. The maps are of the first draw and seed, the class scores of patches enlarged to pixels. Random "
        "weights are far from 0, because they let colours and brightness through."
    )
    return Section("The same scenes from three starts", [*scenes.grids(), Text(note)], lead)


def _comparisons(results: DemoResults, prefix: str = "") -> list[Section]:
    plan = results.plan
    probed = comparison_section(
        {name: [table[key] for key in SHOWN] for name, table in results.probes.items()},
        ours=VITP,
        title=f"{prefix}frozen features" if prefix else "Frozen features",
        lead=f"The ViT is frozen and only a linear map or a nearest-neighbour vote is fitted: {_seeds(plan)} × "
        f"{len(plan.probe_seeds)} draws of {plan.probe_labels} labelled images. Test scenes come from textures, "
        "object variants and layouts that no training scene has. Verdicts pair pretraining seeds, so one seed decides "
        "nothing.",
        draws_per_seed=len(plan.probe_seeds),
    )
    ceiling = ""
    if results.ceiling:
        shown = results.ceiling[STARTER][FINETUNED].percent
        ceiling = f" With all labels and {plan.ceiling_steps} steps the starter reaches {shown} mIoU."
    tuned = comparison_section(
        {name: table.rows for name, table in results.finetuned.items()},
        ours=VITP,
        title=f"{prefix}segmentation finetune" if prefix else "Segmentation finetune on few labels",
        lead=f"The same short protocol for each initialisation: {plan.finetune_labels} labelled images, "
        f"{plan.finetune_steps} steps of {plan.finetune_batch}, {len(plan.finetune_seeds)} draws of the labels.{ceiling}",
        draws_per_seed=len(plan.finetune_seeds),
    )
    return [probed, tuned]


def _seeds(plan: DemoPlan) -> str:
    return f"{len(plan.seeds)} pretraining seed{'s' if len(plan.seeds) > 1 else ''}"


def write_results(out: Path, results: DemoResults) -> None:
    """Write `results.json`, and `results.md`: mean ± standard deviation of the values of all seeds."""
    write_json(out / "results.json", results.to_json())
    plan, names = results.plan, list(results.probes)
    lines = [f"| measure | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    for tables in (results.probes, results.finetuned):
        for row in tables[names[0]].rows:
            shown = " | ".join(tables[name][row.task, row.metric].percent for name in names)
            lines.append(f"| {row.task}, {row.metric} | {shown} |")
    seeds = f"{_seeds(plan)} × {len(plan.probe_seeds)} draws of {plan.probe_labels} labelled images"
    tuned = f"{len(plan.finetune_seeds)} draws of {plan.finetune_labels} labelled images, {plan.finetune_steps} steps"
    lines += ["", f"Probes: {seeds}. Finetune: {len(plan.seeds)} × {tuned}."]
    for name, table in results.ceiling.items():
        lines.append(f"Ceiling ({name}, {table.note}): {table[FINETUNED].percent} mIoU.")
    write_text(out / "results.md", "\n".join(lines) + "\n")


def _answer(results: DemoResults) -> Section:
    probes, finetuned = results.probes, results.finetuned
    cards = [
        _card(probes, DENSE, VITP, STARTER, "patch mIoU, frozen, after ViTP", "over the starter"),
        _card(probes, DENSE, STARTER, RANDOM, "patch mIoU, frozen, starter", "over random"),
        _card(finetuned, FINETUNED, VITP, STARTER, "mIoU after finetuning, from ViTP", "over the starter"),
    ]
    text = (
        f"A small general vision-language model continued its pretraining on instructions made from the labels of "
        f"generated port scenes, with 75 % of the image tokens dropped ({_seeds(results.plan)})."
    )
    if len(results.plan.seeds) < 3:
        text += " One run is an example, not evidence: below it stand the results of three pretraining seeds."
    return Section("The answer", [Headline(cards), Text(text)])


def _card(
    tables: Mapping[str, ProbeTable], key: tuple[str, str], name: str, than: str, label: str, over: str
) -> Card:
    score, before = (100 * tables[init][key].mean for init in (name, than))
    return Card(f"{score:.1f}", label, f"{decimals(score - before, 1, signed=True)} {over}")
