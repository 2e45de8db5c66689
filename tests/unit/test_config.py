"""Configuration files: typed values, and an answer for every mistake."""

from __future__ import annotations

import ast
import re
import typing
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import vitp
from tests.batch_cases import (
    OBJECTIVES,
    TASKS,
    objective_batches,
    pretraining_folder,
    task_batches_of,
    task_set,
)
from vitp.core.config import load_config, make_config, save_config
from vitp.core.errors import ConfigError
from vitp.models.vlm import VLMSettings
from vitp.runs.finetune import FinetuneConfig
from vitp.runs.pretrain import PretrainConfig

MINIMAL = {"data": {"mixture": ["x"]}}


def test_defaults_are_the_papers():
    config = make_config(PretrainConfig, MINIMAL)
    assert config.objective.vrl.ratio == 0.75
    assert config.objective.vrl.probability == 1.0
    assert config.optim.lr == 2e-5
    assert config.optim.weight_decay == 0.01
    assert config.optim.warmup_ratio == 0.2
    assert config.optim.schedule == "cosine"
    assert config.train.steps == 8000
    assert config.data.global_batch == 128
    assert config.data.sequence.max_length == 4096
    assert config.model.drop_path == 0.1


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("vrl.ration=0.5", "unknown key 'objective.vrl.ration'; did you mean \"ratio\"?"),
        ("optim.lr=fast", "optim.lr is 'fast'"),
        ("vrl.ratio=1.5", "vrl.ratio is 1.5"),
        ("train.steps=0", "train.steps is 0"),
        ("trian.steps=5", 'did you mean "train"?'),
        ("nonsense", "no key=value"),
    ],
)
def test_mistakes_are_named(override, expected):
    with pytest.raises(ConfigError) as caught:
        make_config(PretrainConfig, MINIMAL, [override])
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_scientific_notation_is_a_number():
    assert make_config(PretrainConfig, MINIMAL, ["optim.lr=3e-4"]).optim.lr == 3e-4


def test_a_section_of_the_command_line_needs_no_blanks():
    values = {"task": "detection", "data": {"format": "coco", "root": "x"}}
    config = make_config(FinetuneConfig, values, ["data.resize={mode:long,size:96}"])
    assert (config.data.resize.mode, config.data.resize.size) == ("long", 96)
    assert make_config(FinetuneConfig, values, ["data.resize={mode:long}"]).data.resize.mode == "long"


def test_file_round_trip(tmp_path):
    config = make_config(PretrainConfig, MINIMAL, ["vrl.ratio=0.5", "model.freeze=[vision]"])
    save_config(config, tmp_path / "config.yaml")
    assert load_config(PretrainConfig, tmp_path / "config.yaml") == config


def test_broken_yaml_names_the_line(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("data:\n  mixture: [a\noptim: {}\n")
    with pytest.raises(ConfigError, match=r"c\.yaml:\d"):
        load_config(PretrainConfig, path)


def test_missing_key_is_named():
    with pytest.raises(ConfigError, match="'data' is missing"):
        make_config(PretrainConfig, {})


def config_keys(kind: Any, prefix: str = "") -> set[str]:
    """All dotted keys of a configuration, those of nested sections included."""
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return set().union(*(config_keys(part, prefix) for part in typing.get_args(kind)))
    found: set[str] = set()
    for name, field in kind.model_fields.items():
        found |= {prefix + name} | config_keys(field.annotation, f"{prefix}{name}.")
    return found


def named_keys() -> list[tuple[str, str]]:
    """(dotted key, place) of all keys that error lines of the package name."""
    package = Path(vitp.__file__).parent
    found = []
    for path in sorted(package.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        for call in ast.walk(ast.parse(source)) if "Error(" in source else ():
            if not isinstance(call, ast.Call):
                continue
            texts = [
                n.value
                for k in call.keywords
                if k.arg in ("where", "fix")
                for n in ast.walk(k.value)
                if isinstance(n, ast.Constant)
            ]
            for text in texts:
                place = f"{path.relative_to(package)}:{call.lineno}"
                found += [(key, place) for key in _KEY.findall(str(text))]
    return found


_KEY = re.compile(r"(?<![\w./])[a-z][a-z_0-9]*(?:\.[a-z][a-z_0-9]*)+(?![\w/(])")
NO_KEYS = re.compile(
    r".*\.(json|jsonl|yaml|md|txt|tar|csv|png|html|safetensors)|(timm|vitp|vision\.model|attn|mlp)\..*"
)
FREE = ("head.", "neck.options.", "data.options.")
"""Sections whose keys are those of the part that they choose."""


def test_error_lines_name_keys_that_exist():
    """Whoever follows the line must be able to set the key that it names."""
    keys = set().union(*map(config_keys, (PretrainConfig, FinetuneConfig, VLMSettings)))
    named = [(key, place) for key, place in named_keys() if not NO_KEYS.fullmatch(key)]
    assert len(named) > 60
    assert [(key, place) for key, place in named if key not in keys and not key.startswith(FREE)] == []


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_batch_that_cannot_be_cut_is_named_by_its_key(objective, tmp_path):
    source = objective_batches(objective, pretraining_folder(tmp_path), global_batch=6, micro_batches=4)
    with pytest.raises(
        ConfigError, match=r"^data\.global_batch: a step of 6 samples .* choose a multiple of 4"
    ):
        source(0, 0, 0, 1)
    source = objective_batches(objective, tmp_path / "toy", global_batch=6, micro_batches=3)
    with pytest.raises(ConfigError, match=r"^data\.global_batch: .* choose a multiple of 12"):
        source(0, 0, 0, 4)


@pytest.mark.parametrize("task", TASKS)
def test_a_finetuning_batch_that_cannot_be_cut_is_named_by_its_key(task, tmp_path):
    source = task_batches_of(task, task_set(tmp_path), batch_size=6, micro_batches=4)
    with pytest.raises(
        ConfigError, match=r"^data\.global_batch: a step of 6 samples .* choose a multiple of 4"
    ):
        source(0, 0, 0, 1)


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("train.batch_size=8", "data.global_batch"),
        ("train.global_batch=8", "data.global_batch"),
        ("data.steps=4", "train.steps"),
        ("train.lr=1e-3", "optim.lr"),
        ("train.stepz=4", "steps"),
    ],
)
def test_a_key_in_the_wrong_section_is_shown_the_right_one(override: str, hint: str) -> None:
    """The unknown key is named even where another one is missing, as it often is the missing one."""
    with pytest.raises(ConfigError, match=f'did you mean "{re.escape(hint)}"'):
        make_config(PretrainConfig, {"data": {"mixture": ["x"]}}, [override])
