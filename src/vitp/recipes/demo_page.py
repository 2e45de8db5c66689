"""The page of the demo: the answer first, then how it came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vitp.core.files import write_json, write_text
from vitp.core.reading import parse_json, read_text
from vitp.evaluation.probe_table import ProbeTable
from vitp.models.vision import VisionTower
from vitp.recipes.micro import FINETUNE, RANDOM, STARTER, VITP, Budget, DemoPlan
from vitp.report import Card, Headline, Section, Text, comparison_section
from vitp.report.run_page import report_run

FINETUNED = (FINETUNE, "mIoU")
DENSE = ("patches linear", "patch mIoU")
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
        plan: dict[str, Any] = {
            key: tuple(v) if isinstance(v, list) else v for key, v in values["plan"].items()
        }
        tables = {
            name: {init: ProbeTable.from_json(table) for init, table in values[name].items()}
            for name in ("probes", "finetuned", "ceiling")
        }
        return cls(DemoPlan(**{**plan, "budget": Budget(**plan["budget"])}), **tables)


def committed_results(plan: DemoPlan) -> DemoResults | None:
    """Return the results over three pretraining seeds that come with the package, if they are of this plan."""
    if not COMMITTED.is_file():
        return None
    results = DemoResults.from_json(parse_json(read_text(COMMITTED)))
    same = replace(results.plan, seeds=plan.seeds, ceiling_steps=plan.ceiling_steps) == plan
    return results if same else None


def write_demo_page(out: Path, results: DemoResults, towers: Mapping[str, VisionTower]) -> Path:
    """Write the demo's page and return its path.

    Args:
        out: The demo's folder.
        results: The scores.
        towers: Initialisation → vision tower, for attention maps.
    """
    run = out / f"pretrain-{results.plan.seeds[0]}"
    sections = [_answer(results), *_comparisons(results)]
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
        row, (labels, steps) = results.ceiling[STARTER][FINETUNED], ("all labels", plan.ceiling_steps)
        ceiling = f" With {labels} and {steps} steps the starter reaches {100 * row.mean:.1f} ± {100 * row.std:.1f} mIoU."
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
            cells = [tables[name][row.task, row.metric] for name in names]
            shown = " | ".join(f"{100 * cell.mean:.1f} ± {100 * cell.std:.1f}" for cell in cells)
            lines.append(f"| {row.task}, {row.metric} | {shown} |")
    seeds = f"{_seeds(plan)} × {len(plan.probe_seeds)} draws of {plan.probe_labels} labelled images"
    tuned = f"{len(plan.finetune_seeds)} draws of {plan.finetune_labels} labelled images, {plan.finetune_steps} steps"
    lines += ["", f"Probes: {seeds}. Finetune: {len(plan.seeds)} × {tuned}."]
    for name, table in results.ceiling.items():
        row = table[FINETUNED]
        lines.append(f"Ceiling ({name}, {table.note}): {100 * row.mean:.1f} ± {100 * row.std:.1f} mIoU.")
    write_text(out / "results.md", "\n".join(lines) + "\n")


def _answer(results: DemoResults) -> Section:
    before, after = results.probes[STARTER][DENSE], results.probes[VITP][DENSE]
    chance = results.probes[RANDOM][DENSE]
    tuned, started = results.finetuned[VITP][FINETUNED], results.finetuned[STARTER][FINETUNED]
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
            f"{100 * tuned.mean:.1f}",
            "mIoU after finetuning, from ViTP",
            f"{100 * (tuned.mean - started.mean):+.1f} over the starter",
        ),
    ]
    text = (
        f"A small general vision-language model continued its pretraining on instructions made from the labels of "
        f"generated port scenes, with 75 % of the image tokens dropped ({_seeds(results.plan)})."
    )
    if len(results.plan.seeds) < 3:
        text += " One run is an example, not evidence: below it stand the results of three pretraining seeds."
    return Section("The answer", [Headline(cards), Text(text)])
