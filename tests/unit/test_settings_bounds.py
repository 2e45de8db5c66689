"""Every number that a user may set has bounds, and is a number: of all settings, and of all options of the command line."""

from __future__ import annotations

import importlib
import math
import pkgutil
import typing
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ValidationError

import vitp
from vitp.cli import app
from vitp.core.config import SettingsModel, make_config
from vitp.core.errors import ConfigError
from vitp.runs.finetune import FinetuneConfig
from vitp.runs.pretrain import PretrainConfig

FREE: dict[str, str] = {}
"""Fields whose numbers have no bounds, each with the reason."""


def _models() -> list[type[BaseModel]]:
    for module in pkgutil.walk_packages(vitp.__path__, "vitp."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found: list[type[BaseModel]] = []
    waiting: list[type[BaseModel]] = [BaseModel]
    while waiting:
        for kind in waiting.pop().__subclasses__():
            if kind not in found:
                waiting.append(kind)
                if kind.__module__.startswith("vitp."):
                    found.append(kind)
    return sorted(found, key=lambda kind: f"{kind.__module__}.{kind.__qualname__}")


def _numbers(annotation: Any, bounds: tuple[Any, ...]) -> Iterator[tuple[type, tuple[Any, ...]]]:
    """Yield the number types in an annotation, each with the bounds that hold for it."""
    if annotation in (int, float):
        yield annotation, bounds
        return
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        inner = [m for extra in arguments[1:] for m in getattr(extra, "metadata", [extra])]
        yield from _numbers(arguments[0], (*bounds, *inner))
    elif origin is not typing.Literal:
        # Bounds of a field hold for its number, not for the members of its list.
        passed = bounds if origin in (typing.Union, type(int | None)) else ()
        for argument in arguments:
            yield from _numbers(argument, passed)


def _bounded(bounds: tuple[Any, ...]) -> bool:
    low = [getattr(b, "ge", getattr(b, "gt", None)) for b in bounds if isinstance(b, (Ge, Gt))]
    high = [getattr(b, "le", getattr(b, "lt", None)) for b in bounds if isinstance(b, (Le, Lt))]
    return bool(low) and bool(high) and all(math.isfinite(value) for value in (*low, *high))


MODELS = _models()


def test_all_settings_are_strict() -> None:
    assert len(MODELS) > 40
    lax = [kind.__qualname__ for kind in MODELS if not issubclass(kind, SettingsModel)]
    assert lax == [], "derive them from vitp.core.config.SettingsModel"
    loose = [kind.__qualname__ for kind in MODELS if kind.model_config.get("extra") != "forbid"]
    assert loose == []


def test_all_numbers_of_settings_have_bounds() -> None:
    free = {
        f"{kind.__qualname__}.{name}"
        for kind in MODELS
        for name, field in kind.model_fields.items()
        for _, bounds in _numbers(field.annotation, tuple(field.metadata))
        if not _bounded(bounds)
    }
    assert free == set(FREE)


def _fields(of: type) -> list[tuple[type[BaseModel], str]]:
    return [
        (kind, name)
        for kind in MODELS
        for name, field in kind.model_fields.items()
        if field.annotation is of or typing.get_args(field.annotation) == (of, type(None))
    ]


@pytest.mark.parametrize(
    "value", [True, False, "7", "seven", math.nan, math.inf, -math.inf, 10**400, [], -(10**35)]
)
def test_no_number_takes_what_is_none(value: object) -> None:
    for kind, name in (*_fields(int), *_fields(float)):
        with pytest.raises(ValidationError) as caught:
            kind.model_validate({name: value})
        assert any(error["loc"] == (name,) for error in caught.value.errors()), f"{kind.__qualname__}.{name}"


@pytest.mark.parametrize("value", [0, 1, 1.0, "yes", "true", "on", [], math.nan])
def test_no_switch_takes_what_is_none(value: object) -> None:
    fields = _fields(bool)
    assert len(fields) > 10
    for kind, name in fields:
        with pytest.raises(ValidationError) as caught:
            kind.model_validate({name: value})
        assert any(error["loc"] == (name,) for error in caught.value.errors()), f"{kind.__qualname__}.{name}"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optim.lr=true", "optim.lr is True: must be a number"),
        ("optim.lr='0.1'", "must be a number, not text"),
        ("optim.lr=.nan", "must be a finite number"),
        ("optim.lr=nan", "must be a number, not text"),
        ("optim.lr=.inf", "must be a finite number"),
        ("optim.lr=1e308", "less than or equal to 100"),
        ("optim.betas=[true, 0.9]", "must be a number, not true or false"),
        ("optim.betas=[0.9, 2]", "less than or equal to 1"),
        ("train.num_workers=100000", "less than or equal to 512"),
        ("data.sequence.max_tiles=-2", "greater than or equal to 1"),
        ("data.rates=[1e308]", "less than or equal to"),
        ("model.freeze=[true]", "string"),
        ("train.steps=1e300", "whole|integer|less than"),
        ("vrl.ratio=-0.1", "greater than or equal to 0"),
        ("optim.lr_rate=1", 'did you mean "lr'),
        ("train.steps=" + "9" * 5000, "no YAML value"),
    ],
)
def test_lax_values_of_a_run_are_refused(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_config(PretrainConfig, {"data": {"mixture": ["x"]}}, ["train.steps=10", override])


def test_numbers_that_people_write_are_taken() -> None:
    values = {"data": {"mixture": ["x"]}, "train": {"steps": 10}, "optim": {"lr": "1e-4", "betas": [0, 0.5]}}
    settings = make_config(PretrainConfig, values, ["optim.weight_decay=5E-2", "train.steps=1e3"])
    assert (settings.optim.lr, settings.optim.weight_decay, settings.train.steps) == (1e-4, 0.05, 1000)
    assert settings.optim.betas == (0.0, 0.5)
    again = make_config(PretrainConfig, settings.model_dump(mode="json"))
    assert again == settings


def test_settings_of_finetuning_come_back_as_they_were() -> None:
    settings = make_config(
        FinetuneConfig, {"task": "classification", "data": {"root": "x"}}, ["train.steps=5"]
    )
    assert make_config(FinetuneConfig, settings.model_dump(mode="json")) == settings


def _options(commands: typer.Typer) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, type and description of every option and argument."""
    for info in commands.registered_commands:
        assert info.callback is not None
        for name, hint in typing.get_type_hints(info.callback, include_extras=True).items():
            if typing.get_origin(hint) is typing.Annotated:
                kind, description = typing.get_args(hint)[:2]
                yield f"{info.callback.__name__} {name}", kind, description
    for group in commands.registered_groups:
        assert group.typer_instance is not None
        yield from _options(group.typer_instance)


def test_all_numbers_of_the_command_line_have_bounds() -> None:
    numbers = [(name, info) for name, kind, info in _options(app) if list(_numbers(kind, ()))]
    assert len(numbers) > 30
    assert [name for name, info in numbers if info.min is None or info.max is None] == []


def test_every_command_takes_allow_remote() -> None:
    names = {name.partition(" ")[0] for name, _, _ in _options(app)}
    assert {f"{name} allow_remote" for name in names} <= {name for name, _, _ in _options(app)}
