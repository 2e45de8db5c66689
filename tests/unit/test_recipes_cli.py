"""Recipes and plans through the command line; every recipe dry-runs on a folder of its set's true layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.benchmark_fixtures import write_benchmark
from tests.e2e.conftest import done, refused
from tests.unit.test_recipes import TABLE, prepared
from vitp.cli import run as run_cli
from vitp.core.config import load_config
from vitp.recipes.catalogue import FINETUNING, PRETRAINING
from vitp.recipes.paper.tables import MEDICAL, REMOTE_SENSING
from vitp.runs.pretrain import PretrainConfig


def test_the_list_shows_every_recipe() -> None:
    shown = done("recipes").out
    for name, recipe in FINETUNING.items():
        assert name in shown and recipe.facts.title in shown
    assert all(name in shown for name in PRETRAINING)
    assert "23 h on 8 × A40" in shown and "vitp recipes show NAME" in shown


def test_show_prints_page_and_configuration(tmp_path: Path) -> None:
    shown = done("recipes", "show", "loveda", "--data", "somewhere", "-s", "train.steps=7").out
    assert "54.28 mIoU" in shown and "weight decay 0.05; published: 0.1" in shown
    config = yaml.safe_load(shown[shown.index("task:") :])
    assert config["train"]["steps"] == 7 and config["data"]["root"] == "somewhere"
    out = tmp_path / "run.yaml"
    shown = done("recipes", "show", "medical", "--gpus", 4, "--out", out).out
    assert "OmniMedVQA" in shown and "113.5k" in shown  # PMC-VQA: 227k at a rate of 0.5
    config = load_config(PretrainConfig, out)
    assert config.train.micro_batches == 8


def test_parity_prints_schedule_groups_and_order() -> None:
    shown = done("recipes", "parity", "dior_r", "--images", 11725).out
    assert "17,588 steps" in shown and "blocks.23" in shown and "0.9500" in shown
    assert "resize (fixed 800) → rotate" in shown and "published order: resize → flip → rotate" in shown
    values = json.loads(done("recipes", "parity", "whu_cd", "--json").out)
    assert values["steps"] == 120_000 and values["schedule"][0][0] == 0
    assert "not published" in refused("recipes", "parity", "dota_v2")


def test_plan_prints_what_it_is_based_on() -> None:
    values = json.loads(done("plan", "remote_sensing", "--gpu", "A40:8", "--as-published", "--json").out)
    assert 23 / 1.5 < values["hours"] < 23 * 1.5
    assert any("assumed" in line for line in values["based_on"])
    shown = done("plan", "remote_sensing", "--gpu", "H100", "--price", 2).out
    for row in ("tiles a sample", "packing efficiency", "peak memory", "samples a second", "hours", "cost"):
        assert row in shown
    assert "your price" in shown
    assert 'did you mean "H100"' in refused("plan", "medical", "--gpu", "H1000")
    assert "choose 1, 2, 4, 8, 16 or 32" in refused("plan", "medical", "--gpu", "H100:3")


def test_plan_counts_prepared_sets(tmp_path: Path) -> None:
    for name in ("vrsbench", "rsvg"):
        prepared(tmp_path, name)
    values = json.loads(
        done("plan", "remote_sensing", "--data", tmp_path, "--gpu", "L4:2", "--samples", 40, "--json").out
    )
    assert values["tiles"] == 13.0  # 4 : 3, so 4 × 3 tiles and a thumbnail
    assert any("40 of 60 an epoch" in line for line in values["based_on"])


@pytest.mark.slow
def test_plan_of_a_finetuning_run() -> None:
    values = json.loads(done("plan", "loveda", "--gpu", "A100:8", "--json").out)
    assert values["steps"] == 80_000 and values["input_size"] == 512
    # 304 M of the ViT, the adapter's and UperNet's.
    assert 3.3e8 < values["parameters"] < 5e8
    # The ViT alone takes 0.72 TFLOP for the 1,025 tokens of 512 px.
    assert 0.72 < values["forward_tflop"] < 2.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("recipes", "run", "levircd", "--out", "x"), 'did you mean "levir_cd"?'),
        (("recipes", "run", "loveda", "--out", "x"), "name its folder with --data"),
        (("recipes", "run", "medical", "--data", "nowhere", "--out", "x"), "10 of 10 sets are missing"),
        (("recipes", "show", "loveda", "-s", "optim.lrr=1"), 'did you mean "lr"'),
        (("plan", "nothing.yaml"), "can't be read"),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(*arguments)
    assert list(tmp_path.iterdir()) == []


def test_the_old_spelling_works_and_says_the_new_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("vrsbench", "rsvg"):
        prepared(tmp_path / "data", name)
    arguments = ["remote_sensing", "--data", tmp_path / "data", "--available", "--dry-run", "--out"]
    assert run_cli(["recipe", *map(str, arguments), str(tmp_path / "old")]) == 0
    old = capsys.readouterr()
    assert run_cli(["recipes", "run", *map(str, arguments), str(tmp_path / "new")]) == 0
    new = capsys.readouterr()
    (note,) = [line for line in old.err.splitlines() if "vitp recipe" in line]
    assert note == "note: `vitp recipe` is called `vitp recipes run` now; both work"
    assert "vitp recipe" not in new.err
    assert [text.out.splitlines()[-1] for text in (old, new)] == [new.out.splitlines()[-1]] * 2
    assert len(json.loads((tmp_path / "old" / "sets.json").read_text())) == 2


@pytest.mark.parametrize("name", ["remote_sensing", "medical"])
def test_pretraining_dry_runs(name: str, tmp_path: Path) -> None:
    for one in REMOTE_SENSING if name == "remote_sensing" else MEDICAL:
        # Enough rows that a rate of 0.02 takes one of them.
        prepared(tmp_path / "data", one.name, rows=max(3, round(1 / one.rate)))
    result = done("recipes", "run", name, "--data", tmp_path / "data", "--out", tmp_path / "run", "--dry-run")
    assert f"{name}: two steps done, loss" in result.out
    table = json.loads((tmp_path / "run" / "sets.json").read_text())
    assert len(table) == (13 if name == "remote_sensing" else 10)


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_downstream_dry_runs(name: str, tmp_path: Path) -> None:
    data = write_benchmark(name, tmp_path / "download")
    if FINETUNING[name].make().data.format == "vitp":
        done("data", "prepare", name, "--root", data, "--out", tmp_path / "prepared", "--protocol", "paper")
        data = tmp_path / "prepared"
    result = done("recipes", "run", name, "--data", data, "--out", tmp_path / "run", "--dry-run")
    assert f"{name}: two steps done, loss" in result.out
