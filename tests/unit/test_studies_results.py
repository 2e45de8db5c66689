"""Studies: numbers out of results, verdicts, tables, plots, the page, and how long it takes."""

from __future__ import annotations

import csv
import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitp.errors import ConfigError
from vitp.evaluation.report.charts import LineChart, Series
from vitp.evaluation.report.markdown import page_markdown
from vitp.evaluation.statistics import paired_bootstrap, paired_repeats, sign_flip_p
from vitp.studies.cache import Store, cell_keys
from vitp.studies.grid import Cell, Claim, Study
from vitp.studies.page import Report, page_of
from vitp.studies.plots import curves, write_plots
from vitp.studies.pretraining import choose, development_score, phases_of
from vitp.studies.process import Context, Input
from vitp.studies.results import (
    compared,
    measures_of,
    read_claim,
    repeats,
    rows_of,
    spent,
    to_csv,
)
from vitp.studies.scales import SCALES, as_quick, scale_of
from vitp.studies.timing import Estimator

GROUP = "from the start"
MIOU = ("port", "segmentation", "miou")


def filled(tmp_path: Path, *, x: bool = False, seeds: int = 3) -> tuple[Study, Store]:
    """A study with results: ViTP is 5 points better than MAE, MAE as good as the start; one cell failed."""
    cells, values = [], {}
    level = {"ViTP": 0.45, "MAE": 0.40, "start": 0.40}
    for place, (arm, base) in enumerate(level.items()):
        for seed in range(1 if arm == "start" else seeds):
            facts: dict[str, Any] = {"arm": arm, "init": "start", "budget": "images"}
            run = Cell(
                f"pretrain/{arm}/{seed}",
                "pretrain",
                {"arm": arm, "seed": seed},
                facts=facts,
                pace=arm,
                units=100,
            )
            cells.append(run)
            seen = 0 if arm == "start" else 100
            values[run.name] = {"images": seen, "tokens": 5, "flops": 1e12 * (place + 1)}
            facts = {
                "arm": arm,
                "group": GROUP,
                "seed": seed,
                "init": "start",
                "set": "port",
                "x": place if x else None,
            }
            probe = Cell(f"probe/{arm}/{seed}", "probe", {}, needs={"backbone": run.name}, facts=facts)
            cells.append(probe)
            values[probe.name] = {
                "rows": [
                    {
                        "task": "patches linear",
                        "metric": "patch mIoU",
                        "mean": base,
                        "values": [base, base + 0.01],
                    },
                    {"task": "patches linear", "metric": "patch accuracy", "mean": 0.9, "values": [0.9, 0.9]},
                ]
            }
            for draw in range(2):
                more = {"task": "segmentation", "draw": draw, "score": "miou"}
                name = f"finetune/{arm}/{seed}/{draw}"
                tuned = Cell(name, "finetune", {}, needs={"backbone": run.name}, facts={**facts, **more})
                cells.append(tuned)
                wiggle = 0.01 * draw + (0.002 * seed if arm == "MAE" else 0)
                values[name] = {"values": {"miou": base + wiggle, "f1": None}}
    facts = {
        "arm": "CLIP",
        "group": GROUP,
        "seed": 0,
        "init": "start",
        "set": "port",
        "task": "segmentation",
        "draw": 0,
        "score": "miou",
    }
    cells += [
        Cell(
            "pretrain/CLIP/0",
            "pretrain",
            {"arm": "CLIP"},
            facts={"arm": "CLIP", "init": "start", "budget": "images"},
        )
    ]
    cells += [
        Cell(
            "finetune/CLIP/0/0",
            "finetune",
            {"arm": "CLIP"},
            needs={"backbone": "pretrain/CLIP/0"},
            facts=facts,
        )
    ]
    cells += [
        Cell("choose/ViTP", "choose", {}, facts={"arm": "ViTP", "init": "start", "tunes": "pretraining rate"})
    ]
    values["choose/ViTP"] = {
        "chosen": 3e-4,
        "tried": [{"value": 3e-4, "score": 0.3}, {"value": 1.0, "score": None}],
    }
    study = Study(
        "toy",
        "Toy",
        "Is it better?",
        tuple(cells),
        claims=(
            Claim("ViTP beats MAE.", "ViTP", "MAE", GROUP),
            Claim("MAE beats the start.", "MAE", "start", GROUP),
            Claim("MAE beats ViTP.", "MAE", "ViTP", GROUP),
        ),
        x_label="x" if x else "",
        information={"ViTP": "masks", "MAE": "none"},
        notes=("All is equal.",),
    )  # fmt: skip
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
    text = page_markdown(page_of(Report(study, store, SCALES["micro"](), rows, "vitp study toy")))
    assert "| ViTP | **45.5 ± 0.5** | **45.5 ± 0.5** |" in text
    assert "| ViTP beats MAE. | agrees |" in text
    assert "loss is not finite" in text and "```\nvitp study toy\n```" in text
    assert "- processor: " in text and "host" not in text


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


def test_curves_have_means_and_spreads(tmp_path: Path) -> None:
    study, store = filled(tmp_path, x=True)
    lines = curves(study, rows_of(study, store, "micro"), MIOU)
    ((xs, means, stds),) = lines.values()
    assert xs == [0, 1, 2]
    assert means == pytest.approx([45.5, 40.7, 40.5])
    assert stds[0] == pytest.approx(100 * np.std([0.45, 0.46] * 3, ddof=1))


def test_line_charts_draw_error_bars_within_the_axes() -> None:
    chart = LineChart("c", [Series("a", [0, 1], [1.0, 2.0], error=[0.5, 4.0])])
    assert str(chart.svg).count('class="error"') == 2
    low, high = chart.data["y"]  # type: ignore[misc]
    assert low < 2 - 4 and high > 2 + 4
    assert 'class="error"' not in str(LineChart("c", [Series("a", [0, 1], [1.0, 2.0])]).svg)


def test_costs_are_means_of_the_runs(tmp_path: Path) -> None:
    study, store = filled(tmp_path)
    by_arm = {one.arm: one for one in spent(study, store)}
    assert set(by_arm) == {"ViTP", "MAE", "start"}
    assert by_arm["MAE"].runs == 3 and by_arm["MAE"].flops == 2e12 and by_arm["MAE"].joules is None


# Statistics.


def test_repeats_without_draws_are_the_plain_bootstrap() -> None:
    ours = {(seed, 0): value for seed, value in enumerate((0.5, 0.6, 0.55, 0.58))}
    theirs = {(seed, 0): value for seed, value in enumerate((0.4, 0.58, 0.5, 0.57))}
    two_levels = paired_repeats(ours, theirs)
    plain = paired_bootstrap(list(ours.values()), list(theirs.values()))
    assert two_levels.mean == pytest.approx(plain.mean)
    assert (two_levels.low, two_levels.high) == pytest.approx((plain.low, plain.high), abs=2e-3)
    assert two_levels.verdict == plain.verdict == "better" and two_levels.n == 4


def test_many_draws_of_few_seeds_are_not_many_seeds() -> None:
    ours = {(seed, draw): 1.0 for seed in range(2) for draw in range(50)}
    theirs = dict.fromkeys(ours, 0.0)
    assert paired_repeats(ours, theirs).verdict == "no evidence"
    # Seeds that disagree widen the interval however many draws each has.
    spread = {(seed, draw): float(seed) for seed in range(4) for draw in range(50)}
    difference = paired_repeats(spread, dict.fromkeys(spread, 1.4))
    assert difference.verdict == "no evidence" and difference.high - difference.low > 1.5


def test_only_common_seeds_and_draws_are_paired() -> None:
    ours = {(0, 0): 1.0, (0, 1): 2.0, (1, 0): 3.0, (2, 0): float("nan")}
    theirs = {(0, 0): 0.0, (1, 0): 1.0, (2, 0): 0.0, (5, 5): 9.0}
    difference = paired_repeats(ours, theirs)
    assert difference.n == 2 and difference.mean == pytest.approx(1.5)
    with pytest.raises(ConfigError, match="no seed in common"):
        paired_repeats({(0, 0): 1.0}, {(1, 0): 1.0})


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=6))
def test_sign_flips_against_counting_by_hand(differences: list[float]) -> None:
    ours = {(seed, 0): value for seed, value in enumerate(differences)}
    flipped = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    observed = abs(sum(differences))
    expected = sum(value >= observed * (1 - 1e-9) - 1e-12 for value in flipped) / len(flipped)
    strict = sum(value > observed * (1 + 1e-9) + 1e-12 for value in flipped) / len(flipped)
    assert strict - 1e-9 <= sign_flip_p(ours, dict.fromkeys(ours, 0.0)) <= expected + 1e-9
    assert sign_flip_p({(s, 0): 1.0 for s in range(3)}, {(s, 0): 0.0 for s in range(3)}) == 0.25


# Choices, scales, time.


def test_rates_are_chosen_on_validation_scores_and_failures_lose(tmp_path: Path) -> None:
    def scored(name: str, score: float) -> Input:
        rows = [
            {"task": "patches linear", "metric": "patch mIoU", "mean": score},
            {"task": "patches linear", "metric": "patch accuracy", "mean": 1.0},
            {"task": "presence linear", "metric": "mAP", "mean": 0.2},
        ]
        return Input(Cell(name, "probe", {}), tmp_path, {"rows": rows})

    cell = Cell("choose", "choose", {"values": {"a": 1e-4, "b": 3e-4, "c": 1e-3}, "measure": "probes"})
    found = choose(Context(cell, tmp_path, {"a": scored("a", 0.3), "b": scored("b", 0.5)}))
    assert found["chosen"] == 3e-4
    assert [row["score"] for row in found["tried"]] == [pytest.approx(0.25), pytest.approx(0.35), None]
    with pytest.raises(ConfigError, match="no run has a score"):
        choose(Context(cell, tmp_path, {}))
    assert development_score({"validation": 0.4}) == 0.4
    assert development_score({"validation": None}) is None


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
    class Bag:
        def __init__(self, **values: Any) -> None:
            self.__dict__.update(values)

        def model_copy(self, update: dict[str, Any]) -> Any:
            return Bag(**{**self.__dict__, **update})

    config = Bag(train=Bag(steps=70), align=Bag(steps=30), model=Bag(freeze=["projector"]))
    phases = phases_of(config)
    assert [steps for steps, _ in phases] == [30, 70]
    assert phases[0][1].model.freeze == ["projector", "vision"] and phases[1][1] is config
    assert [steps for steps, _ in phases_of(Bag(train=Bag(steps=9)))] == [9]


def test_time_left_comes_from_what_is_done(tmp_path: Path) -> None:
    study, store = filled(tmp_path)
    more = Study(
        "toy",
        "Toy",
        "",
        (
            *study.cells,
            Cell("pretrain/ViTP/9", "pretrain", {}, pace="ViTP", units=200),
            Cell("pretrain/DINO/9", "pretrain", {}, pace="DINO", units=200),
            Cell(
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
