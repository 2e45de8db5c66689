"""A step that can't be cut into equal parts is refused alike by all objectives and tasks, before anything is read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vitp.cli import run
from vitp.core.errors import ConfigError
from vitp.data.batches import check_global_batch
from vitp.objectives import SETTINGS
from vitp.runs.finetune import FinetuneConfig
from vitp.runs.pretrain import PretrainConfig
from vitp.tasks.build import TASK_MODELS

LINE = (
    "error: data.global_batch: a step of 6 samples can't be cut into 4 equal parts (4 micro-batches × 1 ranks); choose a multiple of 4, "
    "or another train.micro_batches"
)
CUT = ("-s", "data.global_batch=6", "-s", "train.micro_batches=4")


@pytest.mark.parametrize(
    "words",
    [
        *(("pretrain", "--objective", name, "--data", "nowhere") for name in SETTINGS),
        *(("finetune", task, "--data", "nowhere", "--backbone", "random") for task in TASK_MODELS),
    ],
    ids=" ".join,
)
def test_all_objectives_and_tasks_say_the_same(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*words, "--out", str(tmp_path / "run"), *CUT]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said == LINE
    assert not (tmp_path / "run").exists()


def test_the_keys_that_the_line_names_exist() -> None:
    for kind in (PretrainConfig, FinetuneConfig):
        for section, key in re.findall(r"(data|train)\.(\w+)", LINE):
            assert key in kind.model_fields[section].annotation.model_fields  # type: ignore[union-attr]


@pytest.mark.parametrize(("batch", "micro", "ranks"), [(8, 2, 4), (6, 3, 1), (1, 1, 1), (12, 2, 6)])
def test_equal_parts_are_taken(batch: int, micro: int, ranks: int) -> None:
    check_global_batch(batch, micro, ranks)
    with pytest.raises(ConfigError, match=rf"choose a multiple of {micro * (ranks + 1)}, or "):
        check_global_batch(batch * (ranks + 1) + 1, micro, ranks + 1)


def test_ranks_are_named() -> None:
    with pytest.raises(
        ConfigError, match=r"a step of 8 samples can't be cut into 6 equal parts \(2 micro-batches × 3 ranks"
    ):
        check_global_batch(8, 2, 3)
