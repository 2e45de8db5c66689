"""Two ranks of torchrun on the CPU are one process: the same curve, the same weights, one voice."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.e2e.conftest import done, finish, litter, read_rows, start, write_config

TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "vitp")


@pytest.fixture(scope="module")
def runs(compiled: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str, str]:
    """One process with two micro-batches, and two ranks with one each."""
    folder = tmp_path_factory.mktemp("ranks")
    model = {"drop_path": 0.0}
    one = write_config(folder / "one.yaml", compiled, model=model)
    done("pretrain", one, "--out", folder / "one", "--set", "train.micro_batches=2")
    two = start("pretrain", one, "--out", folder / "two", module=TORCHRUN)
    result = finish(two)
    assert result.code == 0, result
    return folder / "one", folder / "two", result.out, result.err


@pytest.mark.slow
def test_two_ranks_have_the_curve_of_one(runs: tuple[Path, Path, str, str]) -> None:
    one, two = (read_rows(folder / "metrics.jsonl") for folder in runs[:2])
    assert [row["step"] for row in two] == list(range(1, 11))
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-5)
    assert [row["grad_norm"] for row in two] == pytest.approx([row["grad_norm"] for row in one], rel=1e-4)


@pytest.mark.slow
def test_two_ranks_have_the_weights_of_one(runs: tuple[Path, Path, str, str]) -> None:
    one, two = (load_file(folder / "model" / "model.safetensors") for folder in runs[:2])
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        difference = float((tensor - two[name]).norm())
        # The absolute part: AdamW divides tiny gradients by their own size, so rounding of gradients near
        # zero becomes a step of up to the learning rate in a few weights.
        assert difference <= 1e-5 * float(tensor.norm()) + 1e-5, name


@pytest.mark.slow
def test_only_the_first_rank_speaks_and_writes(runs: tuple[Path, Path, str, str]) -> None:
    _, two, out, err = runs
    assert out.count("trainable parts") == 1
    assert [out.count(f"step {step}/10 ") for step in range(1, 11)] == [1] * 10
    assert out.count("model: ") == 1
    assert "Traceback" not in err and "error:" not in err
    assert len(list(two.glob("metrics*"))) == 1
    assert litter(two) == []


@pytest.mark.slow
def test_a_refusal_of_the_first_rank_ends_both(compiled: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "run.yaml", compiled, train={"num_workers": 0})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("seed: 0\n")
    result = finish(start("pretrain", config, "--out", tmp_path / "run", module=TORCHRUN))
    assert result.code != 0
    lines = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 2 and lines[0] == lines[1] and "holds a run already" in lines[0]
