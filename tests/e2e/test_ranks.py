"""Ranks of torchrun on the CPU are one process: the same curve, the same weights, one voice."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.e2e.conftest import done, finish, litter, read_rows, start, write_config

STEPS = 10

pytestmark = pytest.mark.xdist_group("ranks of torchrun")  # one worker makes the runs for all


def torchrun(ranks: int, restarts: int = 0) -> tuple[str, ...]:
    """The module that starts `vitp` on some ranks."""
    more = ("--max-restarts", str(restarts)) if restarts else ()
    return ("torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), *more, "-m", "vitp")


@pytest.fixture(scope="module")
def config(compiled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without drop path, whose random numbers differ from rank to rank."""
    return write_config(tmp_path_factory.mktemp("ranks") / "run.yaml", compiled, model={"drop_path": 0.0})


@pytest.fixture(scope="module")
def one(config: Path) -> Path:
    """One process with four micro-batches."""
    done("pretrain", config, "--out", config.parent / "1", "--set", "train.micro_batches=4")
    return config.parent / "1"


@pytest.fixture(scope="module", params=[2, 4])
def many(request: pytest.FixtureRequest, config: Path) -> tuple[Path, str, str]:
    """Two ranks with two micro-batches each, four with one; and what they said."""
    out, micro = config.parent / str(request.param), 4 // request.param
    command = ("pretrain", config, "--out", out, "--set", f"train.micro_batches={micro}")
    result = finish(start(*command, module=torchrun(request.param)))
    assert result.code == 0, result
    return out, result.out, result.err


@pytest.mark.slow
def test_ranks_have_the_curve_of_one(one: Path, many: tuple[Path, str, str]) -> None:
    ours, theirs = (read_rows(folder / "metrics.jsonl") for folder in (many[0], one))
    assert [row["step"] for row in ours] == list(range(1, STEPS + 1))
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in theirs], rel=1e-5)
    assert [row["grad_norm"] for row in ours] == pytest.approx([row["grad_norm"] for row in theirs], rel=1e-4)


@pytest.mark.slow
def test_ranks_have_the_weights_of_one(one: Path, many: tuple[Path, str, str]) -> None:
    assert_same_weights(one, many[0])


def assert_same_weights(run: Path, other: Path) -> None:
    one, two = (load_file(folder / "model" / "model.safetensors") for folder in (run, other))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        difference = float((tensor - two[name]).norm())
        # The absolute part: AdamW divides tiny gradients by their own size, so rounding of gradients near
        # zero becomes a step of up to the learning rate in a few weights.
        assert difference <= 1e-5 * float(tensor.norm()) + 1e-5, name


@pytest.mark.slow
def test_only_the_first_rank_speaks_and_writes(many: tuple[Path, str, str]) -> None:
    folder, out, err = many
    assert out.count("trainable parts") == 1
    assert [out.count(f"step {step}/{STEPS} ") for step in range(1, STEPS + 1)] == [1] * STEPS
    assert out.count("model: ") == 1
    assert "Traceback" not in err and "error:" not in err
    assert len(list(folder.glob("metrics*"))) == 1
    assert litter(folder) == []


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_ranks_go_on_where_four_were_killed(
    config: Path, one: Path, tmp_path: Path, parallel: str
) -> None:
    """Of four ranks one is killed; two, which have room for other micro-batches, end the run."""
    run = tmp_path / "run"
    command = ("pretrain", config, "--out", run, "--set", f"train.parallel={parallel}")
    process = start(*command, module=torchrun(4))
    kill_rank(process, 2, run)
    assert finish(process).code != 0
    assert len(read_rows(run / "metrics.jsonl")) < STEPS
    command = ("pretrain", "--resume", "--out", run, "--set", "train.micro_batches=2")
    result = finish(start(*command, module=torchrun(2)))
    assert result.code == 0, result
    assert_same_weights(one, run)
    losses = [[row["loss"] for row in read_rows(folder / "metrics.jsonl")] for folder in (one, run)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    left = [path for path in litter(run) if not path.endswith("shards/.metadata")]
    assert left == [], "nothing of the killed run is left"


@pytest.mark.slow
def test_torchrun_starts_a_killed_run_again(config: Path, one: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start("pretrain", config, "--out", run, module=torchrun(4, restarts=2))
    kill_rank(process, 1, run)
    result = finish(process)
    assert result.code == 0, result
    assert "resumed " in result.out
    assert_same_weights(one, run)


def kill_rank(process: subprocess.Popen[str], rank: int, run: Path, timeout: float = 200) -> None:
    """Kill a rank as soon as the run has a checkpoint: the ten steps of the run take a second or so."""
    deadline = time.monotonic() + timeout

    def wait_for(path: Path) -> None:
        while not path.exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "the run does not get on"
            time.sleep(0.001)

    wait_for(run / "config.yaml")
    victim = process_of_rank(process.pid, rank)
    wait_for(run / "checkpoints" / "step_00000004")
    os.kill(victim, signal.SIGKILL)


def process_of_rank(torchrun_pid: int, rank: int) -> int:
    """Return the process id of a rank, from what Linux tells about torchrun's children."""
    if not Path("/proc").is_dir():
        pytest.skip("needs /proc to find the process of a rank")
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            environment = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if parent == torchrun_pid and f"RANK={rank}".encode() in environment:
            return int(entry.name)
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.slow
def test_a_refusal_of_the_first_rank_ends_both(compiled: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "run.yaml", compiled, train={"num_workers": 0})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("seed: 0\n")
    result = finish(start("pretrain", config, "--out", tmp_path / "run", module=torchrun(2)))
    assert result.code != 0
    lines = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 2 and lines[0] == lines[1] and "holds a run already" in lines[0]
