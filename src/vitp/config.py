"""Configuration files: YAML into typed settings, once, with an answer for every mistake."""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from vitp.errors import ConfigError, did_you_mean
from vitp.files import write_text
from vitp.reading import parse_yaml, read_text

CONFIG_FILE = "config.yaml"
"""The settings of a run, in its folder."""

Settings = TypeVar("Settings", bound=BaseModel)


def load_config(kind: type[Settings], path: str | Path, overrides: Sequence[str] = ()) -> Settings:
    """Return the settings of a YAML file with `key.key=value` overrides laid over it.

    Raises:
        ConfigError: The file can't be read, or a key or value is wrong; the message names the key.
    """
    path = Path(path)
    try:
        values = parse_yaml(read_text(path))
    except OSError as error:
        raise ConfigError(f"can't be read ({error.strerror})", where=str(path)) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"is no YAML ({getattr(error, 'problem', 'not UTF-8')})", where=line) from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError("holds no mapping of keys to values", where=str(path))
    return make_config(kind, values, overrides, where=str(path))


def make_config(
    kind: type[Settings],
    values: dict[str, Any],
    overrides: Sequence[str] = (),
    *,
    where: str = "configuration",
) -> Settings:
    """Return settings from plain values and `key.key=value` overrides; see `load_config`."""
    for override in overrides:
        values = _with_override(values, override)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise _explain(kind, error, where) from None


def save_config(settings: BaseModel, path: str | Path) -> None:
    """Write all settings, defaults included, as YAML that `load_config` reads back to the same."""
    text = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_text(path, text)


def _with_override(values: dict[str, Any], override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(
            f"{override!r} is no key=value", where="override", fix="write it like optim.lr=1e-4"
        )
    try:
        value = parse_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{text!r} is no YAML value", where=f"override {key}") from error
    if isinstance(value, str):
        value = _number(value)
    result = dict(values)
    place = result
    *parents, last = key.strip().split(".")
    for parent in parents:
        child = place.get(parent)
        place[parent] = dict(child) if isinstance(child, dict) else {}
        place = place[parent]
    place[last] = value
    return result


def _number(text: str) -> Any:
    """YAML 1.1 reads 1e-4 as text; people mean a number."""
    try:
        return float(text)
    except ValueError:
        return text


def _explain(kind: type[BaseModel], error: ValidationError, where: str) -> ConfigError:
    """Turn the first of pydantic's findings into one line."""
    first = error.errors()[0]
    location = [part for part in first["loc"] if isinstance(part, (str, int))]
    key = ".".join(str(part) for part in location)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _fields_at(kind, location[:-1])
        hint = did_you_mean(str(location[-1]), known)
        return ConfigError(
            f"unknown key {key!r}{more}",
            where=where,
            fix=hint or (f"keys here are {', '.join(sorted(known))}" if known else None),
        )
    if first["type"] == "missing":
        return ConfigError(f"key {key!r} is missing{more}", where=where, fix="set it")
    value = first.get("input")
    shown = repr(value)
    if len(shown) > 60:
        shown = shown[:57] + "…"
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    return ConfigError(f"{key or 'value'} is {shown}: {message}{more}", where=where)


def _fields_at(kind: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """Names of the settings at a place of a nested configuration."""
    current: Any = kind
    for part in location:
        if not _is_model(current):
            return []
        info = current.model_fields.get(str(part))
        if info is None:
            return []
        current = _model_in(info.annotation)
    return list(current.model_fields) if _is_model(current) else []


def _is_model(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseModel)


def _model_in(annotation: Any) -> Any:
    if _is_model(annotation):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, list, tuple, dict):
        for argument in typing.get_args(annotation):
            found = _model_in(argument)
            if _is_model(found):
                return found
    return None
