"""`vitp tune`: what is drawn, what survives a kill, what several processes share, and what is written."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console

from vitp.core.config import load_config, make_config
from vitp.core.errors import ConfigError, DataError, VitpError
from vitp.runs.finetune import FinetuneConfig
from vitp.runs.pretrain import PretrainConfig
from vitp.studies import tuning
from vitp.studies.space import (
    Range,
    Space,
    default_space,
    of_each_set,
    own_values,
    read_space,
    tuned_config,
    with_values,
)
from vitp.studies.tuning import Tuned, TuneOrder, tune, write_best
from vitp.studies.tuning_page import table_of_trials, write_page

FINETUNE: dict[str, Any] = {"task": "classification", "data": {"root": "somewhere"}}
SPACE: Space = {
    "optim.lr": Range(low=1e-5, high=1e-1, log=True),
    "data.global_batch": Range(low=2, high=8),
    "optim.schedule": Range(choices=["cosine", "linear"]),
}


def order(out: Path, trials: int = 6, **more: Any) -> TuneOrder:
    return TuneOrder(make_config(FinetuneConfig, FINETUNE), SPACE, out, trials, prune=False, **more)


def scored(config: Any, folder: Path, reported: Any) -> float:
    """A score without a run: best at a rate of 1e-3."""
    folder.mkdir(parents=True, exist_ok=True)
    return float(1 / (1 + abs(config.optim.lr - 1e-3) * 1e3) - 0.01 * config.data.global_batch)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_score", scored)


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def told(found: Tuned) -> list[Any]:
    return [(row.number, row.state, row.score, dict(row.values)) for row in found.rows]


def test_the_same_seed_makes_the_same_trials_however_often_it_is_called(tmp_path: Path, quick: None) -> None:
    whole = tune(order(tmp_path / "whole", 14), quiet())
    for trials in (3, 5, 14):
        parts = tune(order(tmp_path / "parts", trials), quiet())
        assert len(parts.rows) == trials
    assert told(parts) == told(whole)
    assert told(tune(order(tmp_path / "other", 14, seed=1), quiet())) != told(whole)
    assert whole.rows[0].values == {"optim.lr": 1e-3, "data.global_batch": 8, "optim.schedule": "cosine"} or (
        whole.rows[0].values["optim.lr"] != 1e-3  # the configuration's own batch of 16 lies outside
    )
    assert whole.best is not None and whole.best.score == max(row.score or 0 for row in whole.rows)
    assert set(whole.importance) == set(SPACE) and max(
        whole.importance, key=whole.importance.__getitem__
    ) != ("optim.schedule")
    best = write_best(whole, order(tmp_path / "whole", 14))
    assert best is not None and load_config(FinetuneConfig, best).optim.lr == whole.best.values["optim.lr"]
    page = write_page(whole, order(tmp_path / "whole", 14)).read_text()
    assert "What mattered" in page and "never looked at" in page and str(tmp_path) not in page
    head, rows = table_of_trials(whole)
    assert head == ["trial", "state", "score", *SPACE] and rows[0][0] == str(whole.best.number)


def test_the_settings_that_it_begins_with_are_the_first_trial(tmp_path: Path, quick: None) -> None:
    config = make_config(
        FinetuneConfig, {**FINETUNE, "optim": {"lr": 0.02}, "data": {"root": "x", "global_batch": 4}}
    )
    found = tune(TuneOrder(config, SPACE, tmp_path / "out", 1), quiet())
    assert found.rows[0].values == {"optim.lr": 0.02, "data.global_batch": 4, "optim.schedule": "cosine"}


def test_a_trial_that_was_cut_off_is_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(config: Any, folder: Path, reported: Any) -> float:
        if folder.name == "0002":
            raise KeyboardInterrupt
        return scored(config, folder, reported)

    monkeypatch.setattr(tuning, "_score", dies)
    with pytest.raises(KeyboardInterrupt):
        tune(order(tmp_path / "cut"), quiet())
    monkeypatch.setattr(tuning, "_score", scored)
    assert told(tune(order(tmp_path / "cut"), quiet())) == told(tune(order(tmp_path / "whole"), quiet()))


def test_a_run_that_fails_is_a_failed_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(config: Any, folder: Path, reported: Any) -> float:
        if folder.name == "0001":
            raise VitpError("the loss is nan")
        return scored(config, folder, reported)

    monkeypatch.setattr(tuning, "_score", fails)
    found = tune(order(tmp_path, 3), quiet())
    assert [row.state for row in found.rows] == ["complete", "failed", "complete"]
    assert (
        found.rows[1].why == "the loss is nan"
        and "the loss is nan" in write_page(found, _with_best(found, order(tmp_path, 3))).read_text()
    )


def _with_best(found: Tuned, made: TuneOrder) -> TuneOrder:
    write_best(found, made)
    return made


def test_a_first_trial_that_can_not_begin_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(config: Any, folder: Path, reported: Any) -> float:
        raise DataError("no such folder", where="somewhere")

    monkeypatch.setattr(tuning, "_score", refuses)
    with pytest.raises(DataError, match="no such folder"):
        tune(order(tmp_path / "out"), quiet())
    assert not (tmp_path / "out").exists()


def test_another_search_in_the_folder_is_refused(tmp_path: Path, quick: None) -> None:
    tune(order(tmp_path / "out", 1), quiet())
    with pytest.raises(ConfigError, match="holds a search with another seed"):
        tune(order(tmp_path / "out", 1, seed=4), quiet())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="holds something else"):
        tune(order(tmp_path / "full", 1), quiet())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("optim.lr: 3", "is 3, no range"),
        ("optim.lr: {low: 2, high: 1}", "low below high"),
        ("optim.lr: {low: 0, high: 1, log: true}", "a logarithm needs a low above 0"),
        ("optim.lr: {choices: [1]}", "choices are at least two"),
        ("optim.lr: {lowest: 1, high: 2}", "lowest"),
        ("[1, 2]", "holds no keys with ranges"),
        ("a: [", "can't be read"),
    ],
)
def test_a_wrong_range_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "space.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_space(tmp_path / "space.yaml")


def test_a_key_that_is_none_is_named_before_a_trial(tmp_path: Path) -> None:
    wrong = TuneOrder(
        make_config(FinetuneConfig, FINETUNE), {"optim.rl": Range(low=1, high=2)}, tmp_path / "out"
    )
    with pytest.raises(ConfigError, match=r"optim\.rl.*optim\.lr|optim\.rl"):
        tune(wrong, quiet())
    assert not (tmp_path / "out").exists()


def test_what_is_tuned_by_default() -> None:
    finetune = make_config(FinetuneConfig, FINETUNE)
    assert set(default_space(finetune)) == {"optim.lr", "optim.layer_decay", "optim.weight_decay"}
    assert own_values(finetune, default_space(finetune)) == {
        "optim.lr": 1e-3, "optim.layer_decay": 0.75, "optim.weight_decay": 0.05,
    }  # fmt: skip
    pretrain = make_config(PretrainConfig, {"data": {"mixture": ["a", "b"]}})
    space = default_space(pretrain)
    assert set(space) == {
        "optim.lr", "optim.layer_decay", "optim.weight_decay", "objective.vrl.ratio", "data.rates",
    }  # fmt: skip
    each = of_each_set(space, pretrain)
    assert own_values(pretrain, each) == {
        "optim.lr": 2e-5, "optim.layer_decay": 1.0, "optim.weight_decay": 0.01, "objective.vrl.ratio": 0.75,
        "data.rates.0": 1.0, "data.rates.1": 1.0,
    }  # fmt: skip
    changed = with_values(pretrain, {"data.rates.0": 0.5, "data.rates.1": 2.0, "objective.vrl.ratio": 0.25})
    assert changed.data.rates == [0.5, 2.0] and changed.objective.vrl.ratio == 0.25  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="no sets that share"):
        of_each_set({"data.rates": Range(low=0.5, high=2.0)}, finetune)


def test_what_can_be_tuned(tmp_path: Path) -> None:
    assert tuned_config("detection", ["x"], "random", None, []).task == "detection"  # type: ignore[union-attr]
    made = tuned_config("pretrain", ["x"], None, "y", ["train.steps=7"])
    assert isinstance(made, PretrainConfig) and made.probe.data == "y" and made.train.steps == 7
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(FINETUNE))
    assert isinstance(tuned_config(str(tmp_path / "run.yaml"), None, None, None, []), FinetuneConfig)
    for what, data, probe in (
        ("detektion", ["x"], None),
        ("detection", ["x", "y"], None),
        ("detection", ["x"], "y"),
    ):
        with pytest.raises(ConfigError):
            tuned_config(what, data, None, probe, [])
    with pytest.raises(ConfigError, match=r"probe\.data: nothing scores the runs"):
        tune(
            TuneOrder(make_config(PretrainConfig, {"data": {"mixture": ["x"]}}), {}, tmp_path / "out"),
            quiet(),
        )


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuning") / "labels"
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3), ("test", 2)):
        for name, level in (("dark", 60), ("light", 190)):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(level - 50, level + 50, (32, 32, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


TUNE = ("--backbone", "random", "--steps", "4", "-s", "train.val_every=2", "-s", "train.device=cpu")


@pytest.mark.slow
def test_a_search_that_was_killed_goes_on(classes: Path, tmp_path: Path) -> None:
    """A search is killed within a trial, and the next call ends as one that nobody stopped."""
    words = [sys.executable, "-m", "vitp", "tune", "classification", "--data", str(classes), *TUNE]
    words += ["-s", "data.format=folders", "--no-prune", "--out", str(tmp_path / "out"), "--trials", "4"]
    words += ["-s", "train.save_every=1"]
    killed = subprocess.Popen(words, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        trial = tmp_path / "out" / "trials" / "0001" / "checkpoints"
        while killed.poll() is None and not trial.is_dir():
            time.sleep(0.05)
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    assert subprocess.run(words, env=os.environ, check=False, timeout=600).returncode == 0
    whole = [word if word != str(tmp_path / "out") else str(tmp_path / "whole") for word in words]
    assert subprocess.run(whole, env=os.environ, check=False, timeout=600).returncode == 0
    results = [_trials(tmp_path / name) for name in ("out", "whole")]
    assert results[0] == results[1] and len(results[0]) == 4
    assert load_config(FinetuneConfig, tmp_path / "out" / "best.yaml").task == "classification"
    assert not list((tmp_path / "out" / "trials").rglob("scores.json"))  # of the test images


def _trials(folder: Path) -> list[Any]:
    import optuna

    study = optuna.load_study(study_name="vitp", storage=f"sqlite:///{folder / 'tune.db'}")
    return [(trial.number, trial.state.name, trial.value, trial.params) for trial in study.trials]
