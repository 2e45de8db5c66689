"""Studies: numbers out of results, verdicts, tables, plots, the page, and how long it takes."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest

from vitp.core.errors import ConfigError
from vitp.recipes.micro import Budget, continued_from_starter
from vitp.recipes.paradigms import starter_config
from vitp.studies.cells import choose_value, development_score, phases_of
from vitp.studies.cost import Estimator
from vitp.studies.grid import Claim, Store, Study, StudyCell, cell_keys
from vitp.studies.page import Report, page_of
from vitp.studies.plots import bars, curves, write_plots
from vitp.studies.process import Context, Input
from vitp.studies.results import CORRUPTED, compared, measures_of, read_claim, repeats, rows_of, spent, to_csv
from vitp.studies.scales import SCALES, as_quick, scale_of

GROUP = "from the start"
MIOU = ("port", "segmentation", "miou")


def pretrained(arm: str, seed: int) -> StudyCell:
    """The pretraining run of an arm."""
    facts = {"arm": arm, "init": "start", "budget": "images"}
    settings = {"arm": arm, "seed": seed}
    return StudyCell(f"pretrain/{arm}/{seed}", "pretrain", settings, facts=facts, pace=arm, units=100)


def evaluated(kind: str, run: StudyCell, draw: int | None = None, x: float | None = None) -> StudyCell:
    """A probe or a finetuning (which has a draw) of a run."""
    seed = run.settings["seed"]
    facts: dict[str, Any] = {"group": GROUP, "set": "port", "seed": seed, "x": x}
    facts |= {name: run.facts[name] for name in ("arm", "init")}
    if draw is not None:
        facts |= {"task": "segmentation", "draw": draw, "score": "miou"}
    name = f"{kind}/{run.facts['arm']}/{seed}" + ("" if draw is None else f"/{draw}")
    return StudyCell(name, kind, {}, needs={"backbone": run.name}, facts=facts)


def probed(score: float) -> dict[str, Any]:
    """What a probe cell holds: a main measure with two draws, and one beside it."""
    measures = {"patch mIoU": [score, score + 0.01], "patch accuracy": [0.9, 0.9]}
    return {
        "rows": [
            {"task": "patches linear", "metric": metric, "mean": values[0], "values": values}
            for metric, values in measures.items()
        ]
    }


def filled(tmp_path: Path, *, x: bool = False, seeds: int = 3) -> tuple[Study, Store]:
    """A study with results: ViTP is 5 points better than MAE, MAE as good as the start; one cell failed."""
    cells, values = [], {}
    level = {"ViTP": 0.45, "MAE": 0.40, "start": 0.40}
    for place, (arm, base) in enumerate(level.items()):
        for seed in range(1 if arm == "start" else seeds):
            run = pretrained(arm, seed)
            seen = 0 if arm == "start" else 100
            values[run.name] = {"images": seen, "tokens": 5, "flops": 1e12 * (place + 1)}
            at = place if x else None
            probe = evaluated("probe", run, x=at)
            values[probe.name] = probed(base)
            cells += [run, probe]
            for draw in range(2):
                tuned = evaluated("finetune", run, draw, at)
                wiggle = 0.01 * draw + (0.002 * seed if arm == "MAE" else 0)
                values[tuned.name] = {"values": {"miou": base + wiggle, "f1": None}}
                cells.append(tuned)
    lost = replace(pretrained("CLIP", 0), pace="")
    cells += [lost, evaluated("finetune", lost, 0)]
    rate = {"arm": "ViTP", "init": "start", "tunes": "pretraining rate"}
    cells.append(StudyCell("choose/ViTP", "choose", {}, facts=rate))
    tried = [{"value": 3e-4, "score": 0.3}, {"value": 1.0, "score": None}]
    values["choose/ViTP"] = {"chosen": 3e-4, "tried": tried}
    claims = {
        "ViTP beats MAE.": "ViTP MAE",
        "MAE beats the start.": "MAE start",
        "MAE beats ViTP.": "MAE ViTP",
    }
    study = Study(
        "toy",
        "Toy",
        "Is it better?",
        tuple(cells),
        claims=tuple(Claim(text, *arms.split(), GROUP) for text, arms in claims.items()),
        x_label="x" if x else "",
        information={"ViTP": "masks", "MAE": "none"},
        notes=("All is equal.",),
    )
    keys = {name: f"{number:020d}" for number, name in enumerate(cell_keys(study, {}))}
    store = Store(tmp_path / "cells", keys)
    cost = {"seconds": 50.0, "processor_seconds": 40.0, "memory": 2**30, "joules": None, "attempts": 1}
    for cell in cells:
        if cell.name in values:
            store.finish(cell, values[cell.name], cost)
        else:
            store.fail(cell, "loss is not finite | step 3", "VitpError")
    return study, store


def test_rows_are_tidy_and_complete(tmp_path: Path) -> None:
    study, store = filled(tmp_path)
    rows = rows_of(study, store, "micro")
    table = list(csv.DictReader(io.StringIO(to_csv(rows))))
    # Seven runs (3 + 3 + 1): two draws of two probe measures, two finetunings of two metrics; one that failed.
    assert len(table) == 7 * (4 + 4) + 1
    first = next(r for r in table if r["arm"] == "ViTP" and r["metric"] == "miou")
    assert (first["value"], first["images"], first["flops"], first["main"]) == (
        "0.45",
        "100",
        "1000000000000.0",
        "True",
    )
    failed = [row for row in table if row["status"] == "failed"]
    assert [(row["arm"], row["value"], row["message"]) for row in failed] == [
        ("CLIP", "", "loss is not finite | step 3")
    ]
    assert next(r for r in table if r["metric"] == "f1")["value"] == ""  # fmt: skip


def test_claims_are_read_from_main_measures(tmp_path: Path) -> None:
    study, store = filled(tmp_path)
    rows = rows_of(study, store, "micro")
    frozen = ("port", "frozen: patches linear", "patch mIoU")
    assert measures_of(rows) == [MIOU, frozen]
    difference = compared(rows, GROUP, "ViTP", "MAE", MIOU)
    assert difference is not None and difference.n == 3
    assert difference.mean == pytest.approx(0.05 - 0.002)
    assert [read_claim(rows, claim).answer for claim in study.claims] == [
        "agrees",
        "cannot tell",
        "does not agree",
    ]
    # The start has one seed: it stands against each seed of the others.
    against = compared(rows, GROUP, "ViTP", "start", MIOU)
    assert against is not None and against.n == 3 and against.mean == pytest.approx(0.05)
    # Its two draws don't tell its spread.
    assert against.verdict == "no evidence" and against.low > 0
    third = [replace(row, draw=2) for row in rows if row.draw == 0]
    enough = compared([*rows, *third], GROUP, "ViTP", "start", MIOU)
    assert enough is not None and enough.verdict == "better"
    assert repeats(rows, GROUP, "CLIP", MIOU) == {}
    # A run that has one seed so far does not.
    begun = [row for row in rows if row.arm != "ViTP" or row.seed == 0]
    for other in ("MAE", "start"):
        early = compared(begun, GROUP, "ViTP", other, MIOU)
        assert early is not None and (early.n, early.verdict) == (1, "no evidence")


def test_one_seed_decides_nothing(tmp_path: Path) -> None:
    study, store = filled(tmp_path, seeds=1)
    rows = rows_of(study, store, "micro")
    assert [read_claim(rows, claim).answer for claim in study.claims] == ["cannot tell"] * 3


def test_markdown_says_what_failed(tmp_path: Path) -> None:
    study, store = filled(tmp_path)
    rows = rows_of(study, store, "micro")
    text = page_of(Report(study, store, SCALES["micro"](), rows, "vitp study toy")).markdown()
    assert "| ViTP | **45.5 ± 0.5** | **45.5 ± 0.5** |" in text
    assert "| ViTP beats MAE. | agrees |" in text
    # The study's arm against each other, and what a claim sets against a third; none twice.
    mine, others = (text.split(f"| {arm} minus |")[1].split("\n\n")[0] for arm in ("ViTP", "MAE"))
    assert "| MAE | +4.8 |" in mine and "| start | +5.0 |" in mine
    assert "| start | +0.2 |" in others and "| ViTP |" not in others
    assert text.count("Paired over pretraining seeds") == 1
    assert "loss is not finite" in text and "```\nvitp study toy\n```" in text
    assert "- processor: " in text and "host" not in text


def test_means_over_other_seeds_are_not_set_side_by_side(tmp_path: Path) -> None:
    study, store = filled(tmp_path)
    rows = [row for row in rows_of(study, store, "micro") if (row.arm, row.seed) != ("MAE", 2)]
    text = page_of(Report(study, store, SCALES["micro"](), rows, "vitp study toy")).markdown()
    assert "| arm | seeds × draws | segmentation mIoU |" in text
    # No best mean is marked, and the start's one seed is no reason.
    assert (
        "| ViTP | 3 × 2 | 45.5 ± 0.5 |" in text and "| MAE | 2 × 2 |" in text and "| start | 1 × 2 |" in text
    )
    assert "Means of arms with other seeds or draws can't be compared" in text
    whole = page_of(Report(study, store, SCALES["micro"](), rows_of(study, store, "micro"), "vitp study toy"))
    assert "seeds × draws |" not in whole.markdown().replace("seeds × draws of labels", "")


@pytest.mark.parametrize("x", [False, True])
def test_page_and_plots(tmp_path: Path, x: bool) -> None:
    study, store = filled(tmp_path, x=x)
    rows = rows_of(study, store, "micro")
    report = Report(study, store, SCALES["micro"](), rows, "vitp study toy", left=2)
    html = page_of(report).html()
    for words in (
        "Failed cells",
        "loss is not finite",
        "agrees",
        "cannot tell",
        "3 TFLOP",
        "1.0 GiB",
        "not readable",
        "0.0003: 30.0; 1: failed",
        "masks",
        "2 cells have not been run",
    ):
        assert words in html, words  # fmt: skip
    assert "proves nothing" not in html
    assert ("Curves" in html) == x
    plots = write_plots(study, rows, tmp_path / "plots")
    assert len(plots) == 2 and all(path.stat().st_size > 5000 for path in plots)
    quick = Report(study, store, as_quick(SCALES["micro"]()), rows, "vitp study toy")
    assert "proves nothing" in page_of(quick).html()


def test_rows_of_other_machines_and_days_are_said(tmp_path: Path) -> None:
    study, store = filled(tmp_path)
    cell = study.cells[0]
    row = {**store.at_hand(cell), "when": 1.7e9}  # 2023-11-14
    row["machine"] = {**row["machine"], "processor": "1 × abacus"}
    store = replace(store, rows={store.keys[cell.name]: row})
    report = Report(study, store, SCALES["micro"](), rows_of(study, store, "micro"), "vitp study toy")
    text = page_of(report).markdown()
    assert f"made: 2023-11-14 to {time.strftime('%Y-%m-%d')}" in text
    line = next(line for line in text.splitlines() if line.startswith("- processor: "))
    assert line.endswith(", 1 × abacus (1 cell)"), line


def test_curves_have_means_and_spreads(tmp_path: Path) -> None:
    study, store = filled(tmp_path, x=True)
    (line,) = curves(study, rows_of(study, store, "micro"), MIOU).lines
    assert line.x == [0, 1, 2]
    assert line.y == pytest.approx([45.5, 40.7, 40.5])
    assert line.error[0] == pytest.approx(100 * np.std([0.45, 0.46] * 3, ddof=1))
    assert sorted(value for x, value in line.runs if x == 0) == pytest.approx([45.0] * 3 + [46.0] * 3)


def test_what_a_group_was_not_measured_in_has_no_plot(tmp_path: Path) -> None:
    study, store = filled(tmp_path)
    rows = rows_of(study, store, "micro")
    elsewhere = [replace(row, group="frozen") for row in rows if row.measure != MIOU]
    here = [row for row in rows if row.measure == MIOU]
    written = [path.stem for path in write_plots(study, [*here, *elsewhere], tmp_path / "plots")]
    assert len(written) == 2 and [name.startswith("frozen-") for name in written].count(True) == 1


def test_bars_have_means_spreads_and_runs(tmp_path: Path) -> None:
    study, store = filled(tmp_path)
    found = {bar.label: bar for bar in bars(rows_of(study, store, "micro"), GROUP, MIOU, "ViTP").bars}
    ours = found["ViTP"]
    assert ours.value == pytest.approx(45.5) and sorted(ours.points) == pytest.approx([45.0] * 3 + [46.0] * 3)
    assert ours.error == pytest.approx(100 * np.std([0.45, 0.46] * 3, ddof=1))
    assert ours.colour == 0 and found["MAE"].colour == 1


def test_costs_are_means_of_the_runs(tmp_path: Path) -> None:
    study, store = filled(tmp_path)
    by_arm = {one.arm: one for one in spent(study, store)}
    assert set(by_arm) == {"ViTP", "MAE", "start"}
    assert by_arm["MAE"].runs == 3 and by_arm["MAE"].flops == 2e12 and by_arm["MAE"].joules is None


# Choices, scales, time.


def test_rates_are_chosen_on_validation_scores_and_failures_lose(tmp_path: Path) -> None:
    def scored(name: str, score: float) -> Input:
        rows = [
            {"task": "patches linear", "metric": "patch mIoU", "mean": score},
            {"task": "patches linear", "metric": "patch accuracy", "mean": 1.0},
            {"task": "presence linear", "metric": "mAP", "mean": 0.2},
        ]
        return Input(StudyCell(name, "probe", {}), tmp_path, {"rows": rows})

    cell = StudyCell("choose", "choose", {"values": {"a": 1e-4, "b": 3e-4, "c": 1e-3}, "measure": "probes"})
    found = choose_value(Context(cell, tmp_path, {"a": scored("a", 0.3), "b": scored("b", 0.5)}))
    assert found["chosen"] == 3e-4
    assert [row["score"] for row in found["tried"]] == [pytest.approx(0.25), pytest.approx(0.35), None]
    assert found["lead"] == pytest.approx(0.1) and "error" not in found
    with pytest.raises(ConfigError, match="no run has a score"):
        choose_value(Context(cell, tmp_path, {}))
    assert development_score({"validation": 0.4}) == 0.4
    assert development_score({"validation": None}) is None


def test_a_choice_says_how_far_it_is_chance(tmp_path: Path) -> None:
    """The error of a lead is that of paired differences: what is hard for both values says nothing."""

    def chosen(first: dict[str, Any], second: dict[str, Any], measure: str) -> Mapping[str, Any]:
        cell = StudyCell("choose", "choose", {"values": {"a": 1e-4, "b": 3e-4}, "measure": measure})
        inputs = {
            role: Input(StudyCell(role, "x", {}), tmp_path, one)
            for role, one in (("a", first), ("b", second))
        }
        return choose_value(Context(cell, tmp_path, inputs))

    without = [0.30, 0.34, 0.32, 0.28, 0.31]
    level = {"validation": 0.31, "without": without}
    ahead = {"validation": 0.41, "without": [score + 0.1 for score in without]}
    certain = chosen(level, ahead, "validation")
    assert certain["chosen"] == 3e-4 and certain["lead"] == pytest.approx(0.1)
    assert certain["error"] == pytest.approx(0)
    unsure = {"validation": 0.32, "without": [0.36, 0.30, 0.32, 0.34, 0.28]}
    parts = np.array(unsure["without"]) - without
    jackknife = np.sqrt(4 / 5 * ((parts - parts.mean()) ** 2).sum())
    assert chosen(level, unsure, "validation")["error"] == pytest.approx(jackknife) and jackknife > 0.05
    old = {"validation": 0.32}  # of before scores were kept
    assert chosen(level, old, "validation").keys() == {"chosen", "tried", "lead"}

    def probed(*values: float) -> dict[str, Any]:
        row = {"task": "patches linear", "metric": "patch mIoU", "mean": fmean(values), "values": values}
        return {"rows": [row]}

    draws = chosen(probed(0.3, 0.4, 0.5), probed(0.3, 0.3, 0.3), "probes")
    assert draws["chosen"] == 1e-4 and draws["error"] == pytest.approx(0.1 / np.sqrt(3))


def test_scales_can_be_changed_and_mistakes_are_named() -> None:
    scale = scale_of("micro", overrides=["seeds=5", "tasks.segmentation.steps=7", "lrs=[1e-4]"])
    assert scale.seeds == 5 and scale.tasks["segmentation"].steps == 7
    assert scale.tasks["segmentation"].lrs == SCALES["micro"]().tasks["segmentation"].lrs
    for name in SCALES:
        assert scale_of(name).name == name
    with pytest.raises(ConfigError, match='did you mean "micro"'):
        scale_of("mcro")
    with pytest.raises(ConfigError, match='did you mean "seeds"'):
        scale_of("micro", overrides=["seed=3"])
    with pytest.raises(ConfigError, match="what the others are compared with"):
        scale_of("micro", overrides=["paradigms=[mae]"])
    quick = scale_of("micro", quick=True)
    assert quick.quick and quick.seeds == quick.draws == 1 and quick.images < scale.images


def test_a_phase_is_one_configuration() -> None:
    config = continued_from_starter([Path("data")], Budget(30, 70), 0)
    phases = phases_of(config)
    assert [steps for steps, _ in phases] == [30, 70]
    assert "vision" in phases[0][1].model.freeze and phases[1][1] is config
    assert "vision" not in config.model.freeze
    assert [steps for steps, _ in phases_of(starter_config(["data"], objective="mae", steps=9))] == [9]


def test_time_left_comes_from_what_is_done(tmp_path: Path) -> None:
    study, store = filled(tmp_path)
    more = Study(
        "toy",
        "Toy",
        "",
        (
            *study.cells,
            StudyCell("pretrain/ViTP/9", "pretrain", {}, pace="ViTP", units=200),
            StudyCell("pretrain/DINO/9", "pretrain", {}, pace="DINO", units=200),
            StudyCell(
                "pretrain/MAE/equal", "pretrain", {}, needs={"equal": "pretrain/ViTP/9"}, pace="MAE", units=1
            ),
        ),
    )
    wider = Store(
        store.root, {**store.keys, "pretrain/ViTP/9": "v", "pretrain/DINO/9": "d", "pretrain/MAE/equal": "m"}
    )
    estimator = Estimator(wider)
    # 50 s with 3 s of starting for 100 images; MAE takes twice the operations of ViTP, so half of its images.
    assert estimator.seconds(more["pretrain/ViTP/9"], more) == pytest.approx(3 + 200 * 0.47)
    assert estimator.seconds(more["pretrain/DINO/9"], more) is None
    assert estimator.seconds(more["pretrain/MAE/equal"], more) == pytest.approx(3 + 100 * 0.47)
    seconds, unknown = estimator.left(more)
    assert unknown == 1 and seconds == pytest.approx(6 + 300 * 0.47)


def test_scores_on_corrupted_images_have_a_table_and_claims_of_their_own(tmp_path: Path) -> None:
    study, store = filled(tmp_path)
    rows = rows_of(study, store, "micro")
    clean = [row for row in rows if row.metric == "miou" and row.value is not None]
    level = {"average": -0.1, "drop": 0.0, "gaussian_noise": -0.25}
    corrupted = [
        replace(
            row, task=f"segmentation{CORRUPTED}", metric=name, main=name in ("average", "drop"), value=value
        )
        for row in clean
        for name, by in level.items()
        if (value := (row.value or 0) + by) is not None
    ]
    claims = (
        Claim("Better when corrupted.", "ViTP", "MAE", GROUP, metric="average"),
        Claim("Loses less.", "MAE", "ViTP", GROUP, lower=True, metric="drop"),
    )
    readings = [read_claim([*rows, *corrupted], claim) for claim in claims]
    assert [reading.answer for reading in readings] == ["agrees", "agrees"]
    assert [[measure[2] for measure in one.better] for one in readings] == [["average"], ["drop"]]
    page = page_of(Report(study, store, SCALES["micro"](), [*rows, *corrupted], "vitp study toy"))
    text = page.markdown()
    # ViTP is at 45 and, in the second draw, 46 when clean.
    assert "| gaussian noise | 20.5 | 15.7 | 15.5 | – |" in text
    assert "| average |" not in text and "| drop |" not in text
