"""Shards, ranks and what is said between them, in a group of one process (several: tests/parity)."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from tests.engine_toys import ToyObjective, ToySource
from vitp.core import distributed
from vitp.core.errors import CheckpointError, ConfigError, DamagedError, VitpError
from vitp.core.tensors import like, unique_state
from vitp.engine import checkpoint, sharding, shards
from vitp.engine.checkpoint import RunState, Tensors
from vitp.engine.config import OptimSettings, TrainSettings
from vitp.engine.gradients import Gradients
from vitp.engine.optim import build_optimizer
from vitp.engine.recovery import load_newest
from vitp.engine.saving import Saver

CPU = torch.device("cpu")


def whole_of(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@pytest.fixture
def group_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def sharded(objective: ToyObjective) -> Any:
    return sharding.shard(objective, TrainSettings(steps=1, parallel="fsdp"), CPU)


def stepped(model: Any, steps: int = 2) -> tuple[torch.optim.Optimizer, list[list[str]]]:
    optimizer, names = build_optimizer(model, model.parameter_groups(), OptimSettings(lr=1e-2))
    for step in range(steps):
        sum(model(ToySource()(step, 0, 0, 1)).values()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer, names


def test_shards_are_wanted_by_several_processes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    configs = {kind: TrainSettings(steps=1, parallel=kind) for kind in ("ddp", "fsdp", "hybrid")}
    assert not any(sharding.is_wanted(config) for config in configs.values())
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    assert [kind for kind, config in configs.items() if sharding.is_wanted(config)] == ["fsdp", "hybrid"]


def test_processes_stand_in_a_line_or_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(distributed, "world_size", lambda: 12)
    monkeypatch.setattr(
        sharding, "init_device_mesh", lambda *args, mesh_dim_names: asked.append((*args, mesh_dim_names))
    )
    sharding.make_mesh(TrainSettings(steps=1, parallel="fsdp", shard_size=4), CPU)
    sharding.make_mesh(TrainSettings(steps=1, parallel="hybrid", shard_size=4), CPU)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "6")
    sharding.make_mesh(TrainSettings(steps=1, parallel="hybrid"), CPU)
    names = ("replicate", "shard")
    assert asked == [("cpu", (12,), ("shard",)), ("cpu", (3, 4), names), ("cpu", (2, 6), names)]
    with pytest.raises(ConfigError, match="12 processes can't be cut into groups of 5"):
        sharding.make_mesh(TrainSettings(steps=1, parallel="hybrid", shard_size=5), CPU)


def test_blocks_are_members_of_lists_of_one_class_that_learn() -> None:
    layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
    lists = nn.ModuleList(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for _ in range(2))
    assert sharding.repeated_blocks(nn.ModuleDict({"a": layers})) == list(layers)
    assert sharding.repeated_blocks(nn.Sequential(lists)) == list(lists)  # what is in them stays whole
    one = nn.ModuleList([nn.Linear(2, 2)])
    several = nn.ModuleList([nn.Linear(2, 2), nn.ReLU()])
    silent = nn.ModuleList([nn.ReLU(), nn.ReLU()])
    named = nn.ModuleDict({"x": nn.Linear(2, 2), "y": nn.Linear(2, 2)})
    half = nn.ModuleList([nn.LayerNorm(2), nn.LayerNorm(2, elementwise_affine=False)])
    for part in (one, several, silent, named, half):
        assert sharding.repeated_blocks(nn.ModuleDict({"a": part})) == []
    assert sharding.repeated_blocks(nn.ModuleDict({"a": nn.ModuleDict({"b": layers}), "c": lists})) == [
        *layers,
        *lists,
    ]


@pytest.mark.usefixtures("group_of_one")
def test_a_sharded_twin_learns_what_the_plain_model_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, twin_of = ToyObjective(), ToyObjective()
    twin_of.register_buffer("steps", torch.zeros(()))
    unused: list[bool] = []
    monkeypatch.setattr(
        FSDPModule, "set_reduce_scatter_unused_params", lambda self, on: unused.append(on), raising=False
    )
    twin = sharded(twin_of)
    assert unused == [True]
    twin.steps.add_(2)
    assert isinstance(twin, FSDPModule) and all(isinstance(p, DTensor) for p in twin.parameters())
    assert all(isinstance(block, FSDPModule) for block in twin.tower.blocks)
    assert not any(isinstance(p, DTensor) for p in twin_of.parameters())
    stepped(plain)
    stepped(twin)
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(parameter.full_tensor(), plain.get_parameter(name))
    before = {name: p.clone() for name, p in twin_of.named_parameters()}
    with sharding.published(twin, twin_of, CPU):
        assert twin_of.steps.item() == 2
        for name, parameter in twin_of.named_parameters():
            torch.testing.assert_close(parameter, plain.get_parameter(name))
    assert any(not torch.equal(before[name], p) for name, p in twin_of.named_parameters())


@pytest.mark.usefixtures("group_of_one")
def test_gradients_of_parts_have_the_size_of_the_whole() -> None:
    plain = ToyObjective()
    twin = sharded(ToyObjective())
    batch = ToySource()(0, 0, 0, 1)
    sizes, clipped = [], []
    for model in (plain, twin):
        gradients = Gradients(model.parameter_groups(), model.vision_tower)
        sum(model(batch).values()).backward()
        norms = gradients.norms()
        sizes.append(gradients.read(norms.tolist()))
        gradients.clip(0.01, norms)
        clipped.append([sharding.local(p.grad).clone() for p in gradients.parameters])
        assert float(gradients.norms().square().sum().sqrt()) == pytest.approx(0.01, rel=1e-3)
        gradients.clip(1e6, gradients.norms())  # nothing is scaled up
        assert all(
            torch.equal(a, sharding.local(p.grad))
            for a, p in zip(clipped[-1], gradients.parameters, strict=True)
        )
    assert sizes[0].norm == pytest.approx(sizes[1].norm, rel=1e-6)
    assert sizes[0].share == pytest.approx(sizes[1].share, rel=1e-6)
    assert sum(sizes[0].share.values()) == pytest.approx(1)
    assert sizes[0].vision_share == pytest.approx(sizes[0].share["vision tower"])
    whole = torch.cat([p.grad.flatten() for p in plain.parameters()]).norm()
    assert float(whole) == pytest.approx(0.01, rel=1e-3)
    for a, b in zip(*clipped, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.usefixtures("group_of_one")
def test_parts_of_other_processes_count(monkeypatch: pytest.MonkeyPatch) -> None:
    twin = sharded(ToyObjective())
    gradients = Gradients(twin.parameter_groups(), twin.vision_tower)
    sum(twin(ToySource()(0, 0, 0, 1)).values()).backward()
    own = gradients.norms()
    # Three more processes whose parts are as large.
    monkeypatch.setattr(dist, "all_reduce", lambda squares, group: squares.mul_(4))
    torch.testing.assert_close(gradients.norms(), 2 * own)


@pytest.mark.usefixtures("group_of_one")
def test_gradients_are_held_until_the_last_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    twin = sharded(ToyObjective())
    told: list[tuple[str, bool]] = []
    for name in ("set_requires_gradient_sync", "set_is_last_backward"):
        monkeypatch.setattr(twin, name, lambda value, name=name: told.append((name, value)), raising=True)
    for hold in (True, False):
        with sharding.held_gradients(twin, hold):
            pass
    sync, last = "set_requires_gradient_sync", "set_is_last_backward"
    assert told == [(sync, False), (last, False), (sync, True), (last, True)]
    wrapped = nn.parallel.DistributedDataParallel(nn.Linear(2, 1))
    for hold in (True, False):
        with sharding.held_gradients(wrapped, hold):
            assert wrapped.require_backward_grad_sync is not hold
    plain = nn.Linear(2, 1)
    with sharding.held_gradients(plain, True):
        assert sharding.local(plain.weight) is plain.weight and sharding.shard_group(plain.weight) is None


@pytest.mark.usefixtures("group_of_one")
def test_one_number_that_is_not_finite_is_seen() -> None:
    twin = sharded(ToyObjective())
    assert sharding.all_finite(twin)
    with torch.no_grad():
        twin.head.bias.to_local()[2] = float("inf")
    assert not sharding.all_finite(twin)
    plain = nn.BatchNorm1d(2)
    assert sharding.all_finite(plain)  # its count of batches is no floating number
    plain.running_var[1] = float("nan")
    assert not sharding.all_finite(plain)


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("background", [False, True])
def test_parts_are_read_back_into_parts_and_into_wholes(tmp_path: Path, background: bool) -> None:
    twin = sharded(ToyObjective())
    optimizer, names = stepped(twin)
    saver = Saver(tmp_path, 2, sharded=True, background=background)
    state = RunState(2, "toy", {"samples": 24.0}, {"share_sum": 1.0, "share_steps": 2.0}, {"optim": {}})
    wanted = Tensors.of(twin, optimizer, names).copies()
    saver.save(state, twin, optimizer, names)
    assert saver.pending is background
    stepped(twin)  # what is trained meanwhile isn't saved
    saver.finish()
    saver.close()
    path = checkpoint.folder(tmp_path, 2)
    state = replace(state, layout=checkpoint.SHARDED_FORMAT)
    assert checkpoint.read_state(path) == state and not saver.pending and saver.ready
    assert not list(path.parent.glob(".*"))
    for model in (sharded(ToyObjective(seed=5)), ToyObjective(seed=6)):
        fresh, fresh_names = stepped(model, steps=1)
        resumed = load_newest(tmp_path, "toy".__eq__, model, fresh, fresh_names)
        assert resumed is not None and (resumed.path, resumed.state, resumed.notes) == (path, state, ())
        found = Tensors.of(model, fresh, fresh_names)
        for mine, theirs in ((found.model, wanted.model), (found.moments, wanted.moments)):
            assert mine.keys() == theirs.keys() and mine
            for name in mine:
                assert torch.equal(whole_of(mine[name]), whole_of(theirs[name])), name
    with pytest.raises(CheckpointError, match="other batches"):
        load_newest(tmp_path, "other".__eq__, model, fresh, fresh_names)

    class Wider(ToyObjective):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(16, 7)

    other = Wider()
    optimizer, names = stepped(other, steps=1)
    before = {name: p.clone() for name, p in other.named_parameters()}
    with pytest.raises(CheckpointError, match=r"head\.weight was \(5, 16\) and is \(7, 16\)"):
        load_newest(tmp_path, "toy".__eq__, other, optimizer, names)
    assert all(torch.equal(before[name], p) for name, p in other.named_parameters())
    dist.destroy_process_group()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one process may read what several have written
        alone = ToyObjective(seed=7)
        optimizer, names = stepped(alone, steps=1)
        assert load_newest(tmp_path, "toy".__eq__, alone, optimizer, names) is not None
    assert torch.equal(alone.head.weight, whole_of(wanted.model["head.weight"]))
    part = next((path / "shards").glob("*.distcp"))
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="the only checkpoint is damaged"):
        load_newest(tmp_path, "toy".__eq__, model, fresh, fresh_names)


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("background", [False, True])
def test_parts_that_cannot_be_written_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, background: bool
) -> None:
    twin = sharded(ToyObjective())
    optimizer, names = stepped(twin, steps=1)

    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_state", full)
    saver = Saver(tmp_path, 2, sharded=True, background=background)
    with pytest.raises(VitpError, match=r"No space left|full"):
        saver.save(RunState(1, "toy"), twin, optimizer, names)
        saver.finish()
    saver.close()
    assert not saver.pending and list((tmp_path / "checkpoints").iterdir()) == []


@pytest.mark.usefixtures("group_of_one")
def test_only_the_first_rank_makes_and_shows_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    saver = Saver(tmp_path, 2, sharded=True, background=False)
    saver._state = RunState(3, "toy")
    saver._make_folder()
    assert saver._commit({}) is None and list(tmp_path.iterdir()) == []
    monkeypatch.setattr(distributed, "rank", lambda: 0)
    saver._make_folder()
    assert saver._temporary.is_dir()

    def fails(*args: Any) -> None:
        raise VitpError("the disk is full")

    monkeypatch.setattr(checkpoint, "write_state", fails)
    assert "the disk is full" in str(saver._commit({}))


def test_a_save_in_the_background_comes_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def slow(*args: Any) -> None:
        time.sleep(0.1)
        done.append("written")

    monkeypatch.setattr(checkpoint, "save", slow)
    objective = ToyObjective()
    optimizer, names = stepped(objective, steps=1)
    saver = Saver(tmp_path, 2, sharded=False, background=True)
    saver.save(RunState(1, "toy"), objective, optimizer, names)
    assert not saver.ready and done == []
    saver.close()
    assert saver.ready and done == ["written"] and saver._thread is None


def test_parts_without_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(*args: Any) -> None:
        raise EOFError

    monkeypatch.setattr(shards, "PartsReader", ends)
    objective = ToyObjective()
    optimizer, names = stepped(objective, steps=1)
    with pytest.raises(DamagedError, match="no reason given"):
        shards.load(tmp_path, objective, optimizer, names)


def test_a_failed_write_says_why(tmp_path: Path) -> None:
    full = OSError(28, "No space left on device")
    for error in (
        full,
        CheckpointException("failed", {0: (full, None)}),  # type: ignore[dict-item]
        RuntimeError("PytorchStreamWriter: No space left in the archive"),
        CheckpointException("failed", {1: (RuntimeError("x: No space left"), None)}),  # type: ignore[dict-item]
    ):
        assert "the disk is full" in str(shards.as_write_error(error, tmp_path))
    odd = CheckpointException("failed", {0: (ValueError("odd\nmore"), None)})  # type: ignore[dict-item]
    said = str(shards.as_write_error(odd, tmp_path))
    assert "can't be written (odd)" in said and str(tmp_path) in said
    assert "no reason given" in str(shards.as_write_error(RuntimeError(), tmp_path))


@pytest.mark.usefixtures("group_of_one")
def test_a_whole_tensor_takes_the_layout_of_its_target() -> None:
    twin = sharded(ToyObjective())
    target = twin.head.weight
    whole = torch.arange(80.0).view(5, 16)
    given = like(whole, target)
    assert isinstance(given, DTensor) and torch.equal(given.full_tensor(), whole)
    assert like(whole[:4], target) is not None and not isinstance(like(whole[:4], target), DTensor)
    assert like(whole, torch.zeros(5, 16)) is whole
    assert unique_state(twin).keys() == unique_state(ToyObjective()).keys()


@pytest.mark.usefixtures("group_of_one")
def test_what_ranks_say_to_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    assert distributed.gather("x") == ["x"]
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(
        dist, "all_gather_object", lambda into, value: into.__setitem__(slice(None), [value, 7])
    )
    assert distributed.gather(3) == [3, 7]
    reduced: list[Any] = []
    monkeypatch.setattr(dist, "all_reduce", reduced.append)
    monkeypatch.setattr(dist, "broadcast", lambda tensor, source: reduced.append((tensor, source)))
    tensor = torch.ones(2)
    assert distributed.sum_tensor(tensor) is tensor and reduced == [tensor]
    module = nn.BatchNorm1d(2)
    distributed.broadcast_state(module)
    told = [id(entry[0]) for entry in reduced[1:]]
    assert told == [id(t) for t in (*module.parameters(), *module.buffers())]
    assert {entry[1] for entry in reduced[1:]} == {0}
    monkeypatch.setattr(distributed, "gather", lambda error: [None, VitpError("theirs"), error])
    with pytest.raises(VitpError, match="theirs"):
        distributed.raise_together(None)
    with pytest.raises(VitpError, match="mine"):
        distributed.raise_together(VitpError("mine"))
    monkeypatch.setattr(distributed, "gather", lambda error: [None, None])
    distributed.raise_together(None)


def test_several_ranks_get_ddp(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(2, 2)
    assert distributed.wrap(model) is model
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    made: list[Any] = []
    monkeypatch.setattr(
        distributed, "DistributedDataParallel", lambda module, **keywords: made.append((module, keywords))
    )
    distributed.wrap(model)
    assert made == [(model, {"gradient_as_bucket_view": True})]


def test_a_touched_loss_reaches_parameters_without_a_gradient() -> None:
    used, unused = nn.Parameter(torch.tensor([3.0])), nn.Parameter(torch.ones(2))
    seen: list[bool] = []
    loss = (used * 2).sum()
    touched = distributed.touch(loss, [used, unused])
    assert touched is not loss and touched.item() == 6.0
    unused.register_post_accumulate_grad_hook(lambda _: seen.append(True))
    (touched * 5).backward()
    assert used.grad.tolist() == [10.0]
    assert unused.grad is None or not unused.grad.any()
