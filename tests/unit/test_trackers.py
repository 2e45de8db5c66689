"""Who is told of a run: what they get, that it goes on in the same place, and that none of them can stop a training."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.unit.engine_runs import assert_same_checkpoint, make_trainer
from vitp.core import distributed, extras
from vitp.core.config import make_config
from vitp.core.errors import ConfigError
from vitp.engine import checkpoint, trackers
from vitp.engine.config import LogSettings
from vitp.engine.trackers import Tracker, Trackers, check_trackers, shown_settings, tracked
from vitp.runs.finetune import FinetuneConfig
from vitp.runs.pretrain import PretrainConfig

FINETUNE = {"task": "detection", "data": {"root": "x"}}


class Notes(Tracker):
    """Keeps what it is told; raises at the call that `FAILS` names."""

    FAILS = ""
    made: ClassVar[list[Notes]] = []

    def __init__(self, run_dir: Path, settings: LogSettings, name: str | None, step: int) -> None:
        self.run_name, self.began, self.told = name or "first", step, []
        Notes.made.append(self)
        self._note("begin", step)

    def _note(self, what: str, *values: Any) -> None:
        if what == Notes.FAILS:
            raise ConnectionError("the other side is gone\nand more")
        self.told.append((what, *values))

    def settings(self, values: Any) -> None:
        self._note("settings", values)

    def scalars(self, step: int, values: Any) -> None:
        self._note("scalars", step, values)

    def final(self, step: int, values: Any) -> None:
        self._note("final", step, values)

    def close(self, status: str) -> None:
        self._note("close", status)


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> type[Notes]:
    monkeypatch.setitem(trackers._KINDS, "tensorboard", Notes)
    monkeypatch.setattr(Notes, "made", [])
    monkeypatch.setattr(Notes, "FAILS", "")
    return Notes


def run(folder: Path, told: Any = (), **more: Any) -> None:
    with tracked(folder, LogSettings(), dict(told)) as open_ones:
        make_trainer(folder, trackers=open_ones, log_every=1, **more)[0].train()
        assert open_ones is not None
        open_ones.final({"test": {"mIoU": 0.5, "HD95": float("nan")}})


def test_a_resumed_run_goes_on_in_the_same_place(tmp_path: Path, notes: type[Notes]) -> None:
    run(tmp_path, {"seed": 3}, steps=3)
    run(tmp_path, {"seed": 3}, steps=5, resume=True)
    first, second = notes.made
    assert (first.began, second.began, second.run_name) == (0, 3, "first")
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"tensorboard": "first"}
    kinds = [[told[0] for told in one.told] for one in notes.made]
    assert kinds[0] == ["begin", "settings", *["scalars"] * 3, "final", "close"]
    assert kinds[1] == ["begin", *["scalars"] * 2, "final", "close"]
    assert first.told[1][1] == {"seed": 3} and first.told[-2:] == [
        ("final", 3, {"test/mIoU": 0.5}),
        ("close", "finished"),
    ]
    assert first.told[2][2]["loss"] > 0 and "step" not in first.told[2][2]


@pytest.mark.parametrize("fails", ["begin", "settings", "scalars", "final", "close"])
def test_a_tracker_that_fails_is_one_warning(
    tmp_path: Path, notes: type[Notes], caplog: pytest.LogCaptureFixture, fails: str
) -> None:
    notes.FAILS = fails
    with caplog.at_level(logging.WARNING, "vitp"):
        run(tmp_path / "told", steps=3)
    said = [record.getMessage() for record in caplog.records if "tensorboard" in record.getMessage()]
    assert said == [
        "WARNING: tensorboard fails (ConnectionError: the other side is gone): the run goes on without it"
    ]
    make_trainer(tmp_path / "quiet", steps=3)[0].train()
    assert_same_checkpoint(*(checkpoint.folder(tmp_path / name, 3) for name in ("told", "quiet")))


def test_an_interrupted_and_a_failed_run_say_so(tmp_path: Path, notes: type[Notes]) -> None:
    for error, status in ((KeyboardInterrupt(), "interrupted"), (ValueError("x"), "failed")):
        with pytest.raises(type(error)), tracked(tmp_path, LogSettings(), {}) as open_ones:
            assert open_ones is not None
            open_ones.begin(0)
            raise error
        assert notes.made[-1].told[-1] == ("close", status)


def test_only_the_first_rank_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notes: type[Notes]
) -> None:
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    with tracked(tmp_path, LogSettings(), {}) as open_ones:
        assert open_ones is None
    assert notes.made == [] and list(tmp_path.iterdir()) == []


def test_damaged_names_begin_anew(
    tmp_path: Path, notes: type[Notes], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "trackers.json").write_text('{"tensorboard": [1')
    Trackers(tmp_path, LogSettings(), {}).begin(4)
    assert notes.made[0].run_name == "first" and "trackers.json is damaged" in caplog.text


def test_others_see_neither_paths_nor_keys() -> None:
    shown = shown_settings(
        {
            "data": {
                "root": "/home/ann/data/ships",
                "mixture": ["/a/b/c.json", "s3://me:pw@bucket/x.jsonl?sig=123", "rel/ative"],
                "options": {"classes": "forest=white", "table": "map=/srv/t.csv;x=~/y/z", "api_key": "k"},
                "max_tokens": 7,
            },
            "windows": "C:\\data\\ships",
            "token": "t",
            "ratio": "1/2",
            "url": "https://host/set.tar?key=1",
            "none": None,
        }
    )
    assert shown == {
        "data.root": "ships",
        "data.mixture": ["c.json", "s3://bucket/x.jsonl", "rel/ative"],
        "data.options.classes": "forest=white",
        "data.options.table": "map=t.csv;x=z",
        "data.max_tokens": 7,
        "windows": "ships",
        "ratio": "1/2",
        "url": "https://host/set.tar",
        "none": None,
    }


@pytest.mark.parametrize("kind", ["wandb", "mlflow"])
def test_a_missing_package_is_named_first(monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    def missing(module: str) -> None:
        raise ModuleNotFoundError(name=module.split(".")[0])

    monkeypatch.setattr(extras, "import_module", missing)
    with pytest.raises(
        ConfigError, match=rf"log.trackers: needs {kind}, which `pip install 'vitp\[track\]'` brings"
    ):
        check_trackers(LogSettings(trackers=("tensorboard", kind)))


@pytest.mark.parametrize(
    ("kind", "values"), [(FinetuneConfig, FINETUNE), (PretrainConfig, {"data": {"mixture": ["x"]}})]
)
def test_the_former_switch_is_read_as_meant(kind: Any, values: dict[str, Any]) -> None:
    train = {"train": {"steps": 5, "tensorboard": False}}
    assert make_config(kind, values).log.trackers == ("tensorboard",)
    assert make_config(kind, {**values, **train}).log.trackers == ()
    assert make_config(kind, values, ["train.tensorboard=false"]).log.trackers == ()
    on = make_config(kind, {**values, **train}, ["train.tensorboard=true"])
    assert on.log.trackers == ("tensorboard",)
    with pytest.raises(ConfigError, match=r"train\.tensorboard"):
        make_config(kind, {**values, **train, "log": {"trackers": ["wandb"]}})
    with pytest.raises(ConfigError, match=r"log\.trackers"):
        make_config(kind, {**values, "log": {"trackers": ["neptune"]}})


def texts_of(folder: Path) -> bytes:
    return b"\n".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


@pytest.mark.slow
def test_weights_and_biases_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real package; a second process of the run goes on under the same name."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    told, settings = {"data": {"root": str(tmp_path / "ships")}}, LogSettings(trackers=("wandb",))
    for steps in (2, 3):
        with tracked(tmp_path, settings, told) as open_ones:
            make_trainer(tmp_path, trackers=open_ones, steps=steps, log_every=1, resume=steps > 2)[0].train()
            assert open_ones is not None
            open_ones.final({"test": {"mIoU": 0.4321}})
    name = json.loads((tmp_path / "trackers.json").read_text())["wandb"]
    files = sorted((tmp_path / "wandb").glob(f"offline-run-*/run-{name}.wandb"))
    assert len(files) == 2
    held = texts_of(tmp_path / "wandb")
    assert b"0.4321" in held and b"ships" in held and b"grad_norm" in held
    assert str(tmp_path).encode() not in held and b"0123456789" not in held


@pytest.mark.slow
def test_mlflow_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real package; the store is read back."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    told, settings = {"seed": 3, "data": {"root": str(tmp_path / "ships")}}, LogSettings(trackers=("mlflow",))
    for steps in (2, 3):
        with tracked(tmp_path, settings, told) as open_ones:
            make_trainer(tmp_path, trackers=open_ones, steps=steps, log_every=1, resume=steps > 2)[0].train()
            assert open_ones is not None
            open_ones.final({"test": {"mIoU": 0.4321}})
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(tmp_path / "mlflow").as_uri())
    experiment = client.get_experiment_by_name("vitp")
    (one,) = client.search_runs([experiment.experiment_id])
    assert one.info.status == "FINISHED" and one.info.run_name == tmp_path.name
    assert one.data.params == {"seed": "3", "data.root": "ships"}
    assert one.data.metrics["test/mIoU"] == 0.4321
    assert [row.step for row in client.get_metric_history(one.info.run_id, "loss")] == [1, 2, 3]
    assert str(tmp_path).encode() not in texts_of(tmp_path / "mlflow" / experiment.experiment_id)
