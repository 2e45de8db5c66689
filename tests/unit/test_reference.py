"""The reference of the keys: up to date, complete, and made of settings that say what they are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from tools.keys import reference

from tests.unit.test_config import config_keys
from tests.unit.test_settings_bounds import MODELS, _bounded, _numbers
from vitp.objectives import SETTINGS
from vitp.runs.finetune import FinetuneConfig
from vitp.runs.pretrain import PretrainConfig

PAGE = Path(__file__).parent.parent.parent / "docs" / "keys.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), "python tools/keys.py docs/keys.md"


def test_lines_are_short() -> None:
    assert [line for line in PAGE.read_text(encoding="utf-8").splitlines() if len(line) > 120] == []


@pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__qualname__)
def test_every_field_says_what_it_is(kind: type[BaseModel]) -> None:
    for name, field in kind.model_fields.items():
        text = " ".join((field.description or "").split())
        assert len(text) >= 10 and text[0] in '`"' + text[0].upper() and text.endswith((".", "!", "?")), name
        # No riddles: a fragment such as "Of the steps." needs the sentence before it.
        assert not re.match(r"(Of|See|As in|That|Its|Their)\b", text), (name, text)
        assert all(_bounded(bounds) for _, bounds in _numbers(field.annotation, tuple(field.metadata))), name


def test_every_key_is_on_the_page() -> None:
    listed = set(re.findall(r"^- `([a-z0-9_.]+)` \(", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert len(listed) > 200
    for kind in (PretrainConfig, FinetuneConfig):
        # Sections that stand in several places are described at one of them.
        missing = {key for key in config_keys(kind) if key not in listed and key != "objective.name"}
        shown = {key.rpartition(".")[2] for key in listed}
        assert {key for key in missing if key.rpartition(".")[2] not in shown} - {"objective"} == set()


@pytest.mark.parametrize("name", SETTINGS)
def test_every_objective_has_its_keys(name: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    part: Any = re.search(
        rf"^### objective: {name}\n(.*?)^### |^## ", page[page.index(f"### objective: {name}") :], re.M | re.S
    )
    for key in SETTINGS[name].model_fields:
        assert key == "name" or f"`objective.{key}`" in part.group(1), key
