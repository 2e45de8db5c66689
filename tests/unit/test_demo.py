"""The demo's results: what is stored, what is shown, what is compared with what."""

from __future__ import annotations

import json
import shlex
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from vitp.engine.stopping import Interrupted
from vitp.evaluation.probe_table import ProbeRow, ProbeTable
from vitp.recipes import demo, demo_page
from vitp.recipes.demo_page import DENSE, SHOWN, DemoResults, committed_results, write_results
from vitp.recipes.demo_starts import SegmentedScenes, richest
from vitp.recipes.micro import FINETUNE, RANDOM, STARTER, VITP, Budget, DemoPlan, continued_from_starter
from vitp.records.labels import IGNORE
from vitp.report.page import HtmlPage, Section


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


def test_the_scenes_with_the_most_classes_are_shown_and_slivers_do_not_count() -> None:
    truth_VSS = torch.zeros(4, 20, 20, dtype=torch.uint8)
    truth_VSS[0, 0, 0], truth_VSS[0, 0, 1] = 1, 2  # three classes, two of a quarter of a per cent
    truth_VSS[1, :5], truth_VSS[1, 5:10] = 1, IGNORE
    truth_VSS[2, :5], truth_VSS[2, 5:10] = 1, 2
    truth_VSS[3, :5] = 3
    assert richest(truth_VSS, 3).tolist() == [2, 1, 3]


@pytest.fixture
def scenes() -> SegmentedScenes:
    truth_NSS = np.zeros((2, 12, 12), np.uint8)
    truth_NSS[0, :6], truth_NSS[1, :3] = 1, IGNORE
    random_NSS, starter_NSS = np.zeros_like(truth_NSS), truth_NSS.copy()
    starter_NSS[1, :3], starter_NSS[0, 0] = 2, 0
    images = [f"scene:port/7/{number}?size=96&split=test" for number in (1, 2)]
    found = {RANDOM: random_NSS, STARTER: starter_NSS, VITP: truth_NSS % IGNORE}
    return SegmentedScenes(["basin", "quay", "crane<"], images, truth_NSS, found)


def test_segmented_scenes_come_back_from_their_file(scenes: SegmentedScenes, tmp_path) -> None:
    scenes.save(tmp_path / "scenes.npz")
    back = SegmentedScenes.load(tmp_path / "scenes.npz")
    assert (back.classes, back.images, list(back.found)) == (
        scenes.classes,
        scenes.images,
        list(scenes.found),
    )
    assert all(np.array_equal(back.found[name], scenes.found[name]) for name in scenes.found)
    assert np.array_equal(back.truth_NSS, scenes.truth_NSS)


def test_each_scene_is_a_row_of_pictures_with_legend_scores_and_words(scenes: SegmentedScenes) -> None:
    first, second = scenes.grids()
    captions = [figure.caption for figure in first.figures]
    assert captions[:2] == ["test scene", "truth"]
    assert captions[2:] == [f"{name}: {right} % of pixels right" for name, right in
                            ((RANDOM, 50), (STARTER, 92), (VITP, 100))]  # fmt: skip
    # Pixels that nobody labelled are neither right nor wrong.
    assert second.figures[3].caption == f"{STARTER}: 100 % of pixels right"
    assert [name for name, _ in first.legend] == [
        "basin",
        "quay",
        "crane<",
        "not labelled",
    ] and not second.legend
    assert len({colour for _, colour in first.legend}) == 4
    assert first.figures[1].alt == "True classes of scene 1. Largest classes: quay 50 %, basin 50 %"
    html = HtmlPage("page", [Section("scenes", [first, second])]).html()
    assert 'alt="True classes of scene 2. Largest classes: basin 75 %, not labelled 25 %"' in html
    assert "crane&lt;</span>" in html and html.count("data:image/png") == 8


def test_steps_are_numbered_and_who_stops_one_is_told_how_to_go_on(tmp_path, capsys) -> None:
    stage = demo._Stages(Console(highlight=False, width=200), 3)
    (tmp_path / "data").mkdir()
    stage("data", tmp_path / "data", lambda: pytest.fail("it is there"))
    tables = {RANDOM: table(DENSE, first=0.2), VITP: table(DENSE, first=0.4)}
    assert stage.tables("probes", tmp_path / "probes.json", DENSE, lambda: tables) == tables
    checkpoint = tmp_path / "pretrain-0" / "checkpoints" / "step_00000100"

    def stopped() -> None:
        raise Interrupted(signal.SIGTERM, 100, checkpoint)

    with pytest.raises(Interrupted, match=r"after step 100, saved .*; run the same command again") as caught:
        stage.run("finetune", stopped)
    assert caught.value.exit_code == 143
    said = capsys.readouterr().out
    for line in ("1 of 3 · data: kept from before", "2 of 3 · probes", "3 of 3 · finetune"):
        assert line in said
    assert f"patch mIoU: {RANDOM} 21.0 ± 1.0 · {VITP} 41.0 ± 1.0" in said


def test_the_last_line_is_a_command_that_the_shell_knows(tmp_path, monkeypatch) -> None:
    for argv, path, program in (
        (".venv/bin/vitp", tmp_path, ".venv/bin/vitp"),
        ("-m", tmp_path, "vitp"),
        (".venv/bin/vitp", tmp_path / "bin", "vitp"),
    ):
        monkeypatch.setattr("sys.argv", [argv])
        monkeypatch.setenv("PATH", str(path))
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / "vitp").touch(0o755)
        words = shlex.split(demo.words_to_serve(tmp_path / "demo", DemoPlan()))
        assert words[:2] == [program, "serve"] and words[-2:] == [
            "--root",
            str(tmp_path / "demo" / "samples"),
        ]
