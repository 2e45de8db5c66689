"""What the engine does with parts that are damaged, steps that aren't finite, and writes that fail."""

from __future__ import annotations

import math
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from rich.console import Console
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.metadata import TensorProperties, TensorStorageMetadata

from tests.engine_toys import ToyObjective, ToySource
from tests.unit.engine_runs import make_trainer
from vitp.core.errors import CheckpointError, ConfigError, VitpError
from vitp.engine import checkpoint, shards
from vitp.engine.checkpoint import RunState
from vitp.engine.config import OptimSettings, TrainSettings
from vitp.engine.loading import StepLoader
from vitp.engine.logging import RunLog
from vitp.engine.loop import Trainer
from vitp.engine.metadata import read_parts
from vitp.engine.numerics import what_is_not_finite
from vitp.engine.optim import build_optimizer, check_trainable, describe_parts
from vitp.engine.recovery import load_newest
from vitp.engine.saving import Saver

NAN = math.nan


def test_the_newest_checkpoint_that_is_damaged_is_put_aside(tmp_path: Path) -> None:
    trainer, _ = make_trainer(tmp_path, steps=4, save_every=2)
    trainer.train()
    newest, before = checkpoint.folder(tmp_path, 4), checkpoint.folder(tmp_path, 2)
    (newest / "state.json").write_text("{")
    found = load_newest(tmp_path, "toy".__eq__, trainer.objective, trainer.optimizer, trainer._names)
    assert found is not None and (found.path, found.state.step) == (before, 2)
    assert "skipped the damaged checkpoint step_00000004" in found.notes[0]
    assert "going on from step_00000002" in found.notes[1] and len(found.notes) == 2
    aside = newest.with_name(newest.name + checkpoint.DAMAGED)
    assert aside.is_dir() and not newest.exists()
    # It goes once its step is made again, not before.
    checkpoint.prune(tmp_path, 2, before)
    assert aside.is_dir()
    checkpoint.prune(tmp_path, 2, newest)
    assert not aside.exists()


_KILLED = """
import os, signal, sys
import multiprocessing
from vitp.engine.loading import StepLoader

class Large:
    def __call__(self, *place):
        return ["more than the buffer of a pipe holds"] * 20_000 + [str(place)]

    def __len__(self):
        return 4

multiprocessing.set_start_method("fork")
loader = StepLoader(Large(), 0, 100, 1, num_workers=2)
loader.next_step()
print(*(process.pid for process in multiprocessing.active_children()), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_a_training_that_is_killed() -> None:
    """They held the lock of the run folder, so that nothing could go on with the run."""
    # Its output is a pipe that stays open as long as a worker lives: with one that does, this raises TimeoutExpired.
    killed = subprocess.run([sys.executable, "-c", _KILLED], capture_output=True, text=True, timeout=90)
    assert killed.returncode == -signal.SIGKILL and len(killed.stdout.split()) == 2, killed.stderr


def test_what_is_not_finite_is_named() -> None:
    batches = ["first", "second", "third"]
    losses_MK = torch.tensor([[1.0, 2.0], [1.0, NAN], [math.inf, 2.0]])
    what, suspects = what_is_not_finite(batches, losses_MK, {"a": math.inf, "b": NAN, "c": 1.0})
    assert (what, suspects) == ("the loss a is inf, b is nan", ["second", "third"])
    what, suspects = what_is_not_finite(batches, torch.ones(3, 2), {"a": 1.0, "b": 2.0})
    assert (what, suspects) == ("the gradient is not finite", batches)


def test_a_step_that_is_refused_leaves_no_gradient(tmp_path: Path) -> None:
    trainer, _ = make_trainer(tmp_path, source=ToySource(nan_step=1), steps=3)
    with pytest.raises(VitpError, match=r"not finite|is nan"):
        trainer.train()
    assert all(parameter.grad is None for parameter in trainer.gradients.parameters)
    assert trainer.step == 1


def test_errors_of_a_source_are_not_taken_for_dead_workers() -> None:
    class Breaks(ToySource):
        def __call__(self, *place: int) -> Any:
            raise RuntimeError("CUDA error: an odd one")

    loader = StepLoader(Breaks(), 0, 2, 1)
    with pytest.raises(RuntimeError, match="an odd one"):
        loader.next_step()


@pytest.mark.parametrize("background", [False, True])
def test_an_error_that_nobody_expected_comes_through_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, background: bool
) -> None:
    def breaks(*args: Any) -> None:
        raise ZeroDivisionError("odd")

    monkeypatch.setattr(checkpoint, "save", breaks)
    objective = ToyObjective()
    optimizer, names = build_optimizer(objective, objective.parameter_groups(), OptimSettings())
    saver = Saver(tmp_path, 2, sharded=False, background=background)
    with pytest.raises(ZeroDivisionError, match="odd"):
        saver.save(RunState(1, "toy"), objective, optimizer, names)
        saver.finish()
    saver.close()


def test_parts_that_must_train_are_found_by_name() -> None:
    objective = ToyObjective()
    parts = describe_parts(objective.parameter_groups(), OptimSettings())
    check_trainable(parts, ("head", "vision tower"))
    with pytest.raises(ConfigError, match=r'unknown part "zzzz".*the parts are vision tower, head'):
        check_trainable(parts, ("zzzz",))
    with pytest.raises(ConfigError, match='did you mean "head"'):
        check_trainable(parts, ("heat",))


def test_a_run_prints_to_the_terminal_where_nobody_says_otherwise(tmp_path: Path) -> None:
    train = TrainSettings(steps=1, num_workers=0, device="cpu")
    plain = Trainer(ToyObjective(), ToySource(), OptimSettings(), train, tmp_path)
    assert isinstance(plain._console, Console)
    own = Console(quiet=True)
    assert Trainer(ToyObjective(), ToySource(), OptimSettings(), train, tmp_path, console=own)._console is own


def test_the_bar_is_shown_from_the_step_where_a_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    monkeypatch.setattr(RunLog, "start", lambda self, step: begun.append(step))
    make_trainer(tmp_path, steps=2)[0].train()
    make_trainer(tmp_path, steps=3, resume=True)[0].train()
    assert begun == [0, 2]
    monkeypatch.undo()
    log = RunLog(tmp_path, 0, 9, console=Console(force_terminal=True, quiet=True))
    log.start(0)
    assert log._progress is not None and log._progress.live.is_started
    log.close()


def test_saves_talk_in_a_group_of_their_own() -> None:
    assert shards.new_group() is None
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        group = shards.new_group()
        assert isinstance(group, dist.ProcessGroup) and group is not dist.group.WORLD
    finally:
        dist.destroy_process_group()


def described(name: Any = "model/a", stored: Any = None, place: Any = None) -> metadata.Metadata:
    tensor = TensorStorageMetadata(TensorProperties(torch.float32), torch.Size([2]), [])
    index = metadata.MetadataIndex("model/a")
    info = filesystem._StorageInfo("__0_0.distcp", 0, 8)
    return metadata.Metadata(
        {name: tensor if stored is None else stored},
        storage_data={index: info if place is None else place},
    )


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ({"a": 1}, "it describes no checkpoint"),
        (metadata.Metadata({}, storage_data=None), "it describes no checkpoint"),
        (described(name=3), "3 is no tensor"),
        (described(stored="text"), "'model/a' is no tensor"),
        (described(place="there"), "it places a tensor nowhere"),
        (described(place=filesystem._StorageInfo("../x", 0, 8)), "outside of its folder"),
        (described(place=filesystem._StorageInfo("/x", 0, 8)), "outside of its folder"),
    ],
)  # fmt: skip
def test_descriptions_of_something_else_are_refused(tmp_path: Path, found: Any, reason: str) -> None:
    path = tmp_path / ".metadata"
    path.write_bytes(pickle.dumps(described()))
    assert list(read_parts(path).state_dict_metadata) == ["model/a"]
    path.write_bytes(pickle.dumps(found))
    with pytest.raises(CheckpointError, match=reason):
        read_parts(path)
