"""The rules of the house: each fails when it is broken. `python -m tests.house` lists what is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests import house

OPTIONAL = (
    # Either of two is used; all other packages of extras come through `vitp.core.extras.need`.
    *("faster_coco_eval", "pycocotools", "onnx", "onnxruntime"),
    "rasterio",  # is asked for, and done without
    "flash_attn",  # a kernel that is used where it happens to be
    "torch.nn.attention",  # parts of torch that not every release or device has
    "torch.utils.tensorboard",  # takes a second to import, and only rank 0 of a run with curves needs it
    "fcntl",  # not on Windows
)
"""Modules that are imported where they are used."""


@pytest.mark.parametrize(
    "check",
    [
        house.upward_imports,
        house.loose_files,
        house.shared_names,
        house.long_files,
        house.long_functions,
        house.long_prose,
        house.circles,
    ],
)
def test_the_rule_holds(check: Callable[[], list[str]]) -> None:
    assert check() == []


def test_imports_stand_at_the_top() -> None:
    assert house.hidden_imports(OPTIONAL) == []


@pytest.mark.parametrize("base", ["SampledBatches", "HtmlPage", "LineChart"])
def test_there_is_one_source_one_page_and_one_chart(base: str) -> None:
    """A class that is one of these but stands elsewhere would be a second one."""
    defined = [file for file, text in house.texts().items() if re.search(rf"^class {base}\b", text, re.M)]
    assert len(defined) == 1


def test_batches_come_from_one_class() -> None:
    """The engine calls a source with (step, micro, rank, world): one class answers to that, and one asks several."""
    call = re.compile(r"def __call__\(self, step: int, micro\w*: int, rank: int, world\w*: int\)")
    found = [file for file, text in house.texts().items() if call.search(text)]
    assert sorted(found) == [
        "data/batches.py",
        "objectives/base.py",
        "objectives/joint.py",
        "planning/bench/synthetic.py",
    ]


def test_charts_are_drawn_in_one_module() -> None:
    drawn = re.compile(r"^\s*(from|import) matplotlib\.(figure|pyplot|backends)", re.M)
    assert [file for file, text in house.texts().items() if drawn.search(text)] == ["report/charts.py"]
