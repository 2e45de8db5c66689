"""The demo's results: what is stored, what is shown, what is compared with what."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from vitp.evaluation.probe_table import ProbeRow, ProbeTable
from vitp.recipes import demo_page
from vitp.recipes.demo_page import SHOWN, DemoResults, committed_results, write_results
from vitp.recipes.micro import FINETUNE, RANDOM, STARTER, VITP, Budget, DemoPlan, continued_from_starter


def table(*keys: tuple[str, str], first: float) -> ProbeTable:
    return ProbeTable(tuple(ProbeRow(*key, (first, first + 0.01, first + 0.02)) for key in keys), "note")


@pytest.fixture
def results() -> DemoResults:
    names = {RANDOM: 0.2, STARTER: 0.3, VITP: 0.4}
    tuned = (FINETUNE, "mIoU")
    return DemoResults(
        DemoPlan(seeds=(0, 1, 2), ceiling_steps=7),
        {name: table(*SHOWN, first=first) for name, first in names.items()},
        {name: table(tuned, first=first) for name, first in names.items()},
        {STARTER: table(tuned, first=0.6)},
    )


def test_results_come_back_from_json(results: DemoResults) -> None:
    assert DemoResults.from_json(json.loads(json.dumps(results.to_json()))) == results


def test_results_are_written_as_a_table(results: DemoResults, tmp_path) -> None:
    write_results(tmp_path, results)
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "| patches linear, patch mIoU | 21.0 ± 1.0 | 31.0 ± 1.0 | 41.0 ± 1.0 |" in text
    assert "61.0 ± 1.0 mIoU" in text
    assert DemoResults.from_json(json.loads((tmp_path / "results.json").read_text())) == results


def test_committed_results_are_shown_for_the_same_plan_only(
    results: DemoResults, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(demo_page, "COMMITTED", tmp_path / "results.json")
    assert committed_results(DemoPlan()) is None
    write_results(tmp_path, results)
    assert committed_results(DemoPlan(seeds=(5,))) == results
    assert committed_results(DemoPlan(budget=replace(DemoPlan().budget, steps=1))) is None


def test_the_run_says_what_the_budget_says() -> None:
    config = continued_from_starter(["a", "b"], Budget(12, 34, batch=4, lr=1e-4), 5, rates=[1.0, 2.0])
    assert (config.objective.align.steps, config.train.steps, config.data.global_batch) == (12, 34, 4)
    assert (config.seed, config.optim.lr, config.objective.vrl.ratio, config.model.init) == (
        5,
        1e-4,
        0.75,
        "starter",
    )
    assert config.data.mixture == ["a", "b"] and config.data.rates == [1.0, 2.0]
