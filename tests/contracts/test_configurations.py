"""One configuration for all objectives: a new objective is a file and a line of the table, and nobody asks which it is."""

from __future__ import annotations

import ast
from functools import cache

import pytest

from tests.house import trees
from vitp.objectives import SETTINGS

CHOOSERS = ("recipes/", "studies/")
"""They choose between objectives."""

HOMONYMS = {
    "clip": {"data/formats/identity.py"},
    "dense": {"models/attention_layouts.py", "models/vlm.py", "runs/check/batches.py"},
    "siglip": {"checkpoints/transformers_vits.py"},
}
"""Files where the word means something else: images of one video, attention by a dense mask, towers of that name."""

ROOTS = {"PretrainConfig", "ImagePretrainConfig", "FinetuneConfig"}


@cache
def texts(tree: ast.Module) -> set[str]:
    """All strings of a file but its docstrings."""
    statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in statements
    }


@pytest.mark.parametrize(
    "name", [name for name in SETTINGS if name != "vitp"]
)  # which is the package's name, too
def test_an_objective_is_named_in_its_file_and_in_the_table(name: str) -> None:
    own = SETTINGS[name].__module__.removeprefix("vitp.").replace(".", "/") + ".py"
    files = {file for file, tree in trees().items() if name in texts(tree) and not file.startswith(CHOOSERS)}
    assert files - HOMONYMS.get(name, set()) == {own, "objectives/__init__.py"}


def test_the_table_has_the_names_that_settings_take() -> None:
    for name, kind in SETTINGS.items():
        assert kind(name=name).name == name
    assert len(SETTINGS) == 12


def test_nobody_asks_of_what_kind_a_configuration_is() -> None:
    found = [
        f"{file}:{node.lineno}"
        for file, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance"
        if ROOTS & {part.id for part in ast.walk(node.args[1]) if isinstance(part, ast.Name)}
    ]
    assert found == []


def test_files_have_configurations_and_parts_have_settings() -> None:
    bases = {"SettingsModel", "ObjectiveSettings", "RunSettings", "TrainSettings"}
    kinds = {
        node.name
        for tree in trees().values()
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        and bases & {base.id for base in node.bases if isinstance(base, ast.Name)}
    }
    # What `vitp pretrain`, `vitp finetune` and `vitp bench` are told as a whole; all else is a part of it.
    assert {kind for kind in kinds if kind.endswith("Config")} == {
        "PretrainConfig",
        "FinetuneConfig",
        "BenchConfig",
    }
    assert len(kinds) > 40
