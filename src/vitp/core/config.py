"""Configuration files: YAML into typed settings, once, with an answer for every mistake."""

from __future__ import annotations

import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from vitp.core.errors import ConfigError, did_you_mean
from vitp.core.files import write_text
from vitp.core.reading import parse_word, parse_yaml, read_text

CONFIG_FILE = "config.yaml"
"""The settings of a run, in its folder."""

DEVICE_PATTERN = r"^(auto|cpu|cuda(:\d+)?|mps)$"
"""Names of devices; see `vitp.core.distributed.resolve_device`."""

Settings = TypeVar("Settings", bound="SettingsModel")

Share = Annotated[float, Field(ge=0, le=1)]
"""A part of a whole."""

Positive = Annotated[float, Field(gt=0, le=1e6)]
"""A scale, a ratio, a factor."""

Weight = Annotated[float, Field(ge=0, le=1e6)]
"""A weight, or a factor that may be 0."""

Count = Annotated[int, Field(ge=1, le=1_000_000_000)]

Mean = Annotated[float, Field(ge=-1000, le=1000)]
"""Of pixel values."""

LearningRate = Annotated[float, Field(gt=0, le=100)]

_EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]{1,3}")
"""Numbers that YAML 1.1 reads as text: `1e-4`, where it wants `1.0e-4`."""


def first_fault(error: ValidationError) -> str:
    """Return the first thing that pydantic found wrong: the field, and what it says of it."""
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


class SettingsModel(BaseModel):
    """Base of all settings: keys must be known, and a number is a number.

    pydantic alone takes true for 1, "7" for 7, 1 for true, and NaN and infinity for numbers. Each number has bounds in
    its field.
    """

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    @classmethod
    def up_to_date(
        cls, values: Mapping[str, Any], overrides: Sequence[str]
    ) -> tuple[dict[str, Any], Sequence[str]]:
        """Return values and `key=value` words under the keys of today; settings with a past have their own way."""
        return dict(values), overrides

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any, info: ValidationInfo) -> Any:
        return _as_annotated(value, cls.model_fields[str(info.field_name)].annotation)


def _as_annotated(value: Any, annotation: Any) -> Any:
    """Return a value with texts like `1e-4` as numbers where numbers are due, lists and mappings gone into.

    Raises:
        ValueError: It is another kind of value than those that the annotation names, or a number that isn't finite.
    """
    options = list(_options(annotation))
    if isinstance(value, (list, tuple)) and (inner := _inner(options, (list, tuple))):
        return type(value)(_as_annotated(part, inner[min(n, len(inner) - 1)]) for n, part in enumerate(value))
    if isinstance(value, Mapping) and (inner := _inner(options, (dict, Mapping))):
        return {key: _as_annotated(part, inner[-1]) for key, part in value.items()}
    kinds = {option for option in options if isinstance(option, type)}
    if Any in options or not kinds & {int, float, bool}:
        return value
    return _as_number(value, kinds, any(typing.get_origin(option) is typing.Literal for option in options))


def _as_number(value: Any, kinds: set[type], words: bool) -> Any:
    numbers = bool(kinds & {int, float})
    if isinstance(value, bool) and bool not in kinds:
        raise ValueError("must be a number, not true or false")
    if isinstance(value, str) and str not in kinds and not words:
        if not numbers:
            raise ValueError("must be true or false")
        if _EXPONENT.fullmatch(value) is None:
            raise ValueError("must be a number, not text")
        return float(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not numbers:
            raise ValueError("must be true or false")
        # A whole number of hundreds of digits has no `float`.
        if isinstance(value, int) and value.bit_length() > 1000:
            raise ValueError("the number is too large")
        if not math.isfinite(value):
            raise ValueError("must be a finite number")
    return value


def _options(annotation: Any) -> typing.Iterator[Any]:
    """Yield what a value may be: the members of a union, without the bounds that are annotated."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        yield from _options(typing.get_args(annotation)[0])
    elif origin in (typing.Union, types.UnionType):
        for member in typing.get_args(annotation):
            yield from _options(member)
    else:
        yield annotation


def _inner(options: Sequence[Any], kinds: tuple[type, ...]) -> list[Any]:
    """Return the annotations of the members of the container among the options; empty without one."""
    for option in options:
        if typing.get_origin(option) in kinds:
            return [member for member in typing.get_args(option) if member is not Ellipsis]
    return []


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
    values, words = kind.up_to_date(values, overrides)
    for word in words:
        values = _with_override(values, word)
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
        value = parse_word(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{text!r} is no YAML value", where=f"override {key}") from error
    if isinstance(value, str):
        value = _number(value)
    result = dict(values)
    place = result
    *parents, last = key.strip().split(".")
    for parent in parents:
        # Copied on the way down, as the values belong to the caller.
        child = place.get(parent)
        place[parent] = dict(child) if isinstance(child, dict) else {}
        place = place[parent]
    place[last] = value
    return result


def _number(text: str) -> Any:
    """YAML 1.1 reads 1e-4 as text; people mean a number."""
    return float(text) if _EXPONENT.fullmatch(text) else text


_QUOTED = re.compile(r"'([^']+)'")

_MEANT = {"batch_size": "data.global_batch"}
"""What others call a key, where another key's name is nearer to it in letters."""


def _explain(kind: type[BaseModel], error: ValidationError, where: str) -> ConfigError:
    """Turn the first of pydantic's findings into one line."""
    # A key in the wrong place often explains why another one is missing.
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    parts, place = _located(kind, [part for part in first["loc"] if isinstance(part, (str, int))])
    key = ".".join(str(part) for part in parts)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        known = [] if place is None else list(place.model_fields)
        name, keys = str(parts[-1]), list(_all_keys(kind))
        same = [one for one in keys if one.rpartition(".")[2] == name]
        # Another key that shares a longer word with it is meant if there is only one.
        words = (
            [one for one in keys if word in one.rpartition(".")[2].split("_")]
            for word in name.split("_")
            if len(word) > 3
        )
        hint = _MEANT.get(name) if _MEANT.get(name) in keys else None
        hint = (
            f'did you mean "{hint}"?' if hint else did_you_mean(name, known, likeness=0.8) or _the_only(same)
        )
        hint = hint or next(filter(None, map(_the_only, words)), None) or did_you_mean(name, known)
        return ConfigError(
            f"unknown key {key!r}{more}",
            where=where,
            fix=hint or (f"keys here are {', '.join(sorted(known))}" if known else None),
        )
    if first["type"] == "missing":
        return ConfigError(f"key {key!r} is missing{more}", where=where, fix="set it")
    if first["type"].startswith("union_tag") and place is not None:
        field = place.model_fields.get(str(parts[-1]))
        # Under a name that the user gives there is no field; the choice is told then as pydantic has it.
        known = (
            list(_tagged(field.annotation))
            if field
            else _QUOTED.findall(str(first["ctx"].get("expected_tags")))
        )
        tag = first["ctx"].get("tag")
        hint = (did_you_mean(tag, known) if tag else None) or f"choose one of {', '.join(known)}"
        return ConfigError(f"unknown {key} {tag or first['input']!r}{more}", where=where, fix=hint)
    message = first["msg"].removeprefix("Value error, ")
    if not parts:  # about settings that don't go together
        return ConfigError(message + more, where=where)
    shown = repr(first.get("input"))
    if len(shown) > 60:
        shown = shown[:57] + "…"
    return ConfigError(f"{key} is {shown}: {message[0].lower() + message[1:]}{more}", where=where)


def _the_only(keys: Sequence[str]) -> str | None:
    return f'did you mean "{keys[0]}"?' if len(keys) == 1 else None


def _all_keys(kind: type[BaseModel], prefix: str = "") -> typing.Iterator[str]:
    for name, field in kind.model_fields.items():
        inner = _model_in(field.annotation)
        if _is_model(inner) and not _tagged(field.annotation):
            yield from _all_keys(inner, f"{prefix}{name}.")
        else:
            yield prefix + name


def _located(
    kind: type[BaseModel], location: Sequence[str | int]
) -> tuple[list[str | int], type[BaseModel] | None]:
    """Return the key that a location of pydantic's names, in parts, and the settings that hold its last part.

    Where settings are chosen by name, pydantic's location has that name in it, which the key has not.
    """
    parts: list[str | int] = []
    holder: type[BaseModel] | None = kind
    inner: Any = kind
    chosen: dict[str, type[BaseModel]] = {}
    for part in location:
        if str(part) in chosen:
            inner, chosen = chosen[str(part)], {}
            continue
        holder = inner if _is_model(inner) else None
        info = None if holder is None else holder.model_fields.get(str(part))
        inner, chosen = (None, {}) if info is None else (_model_in(info.annotation), _tagged(info.annotation))
        parts.append(part)
    return parts, holder


def _tagged(annotation: Any) -> dict[str, type[BaseModel]]:
    """Return name → settings where an annotation is a choice between settings that have a `name` or a `kind`."""
    models = [option for option in _options(annotation) if _is_model(option)]
    for key in ("name", "kind"):
        if len(models) > 1 and all(key in model.model_fields for model in models):
            found = ((model, typing.get_args(model.model_fields[key].annotation)) for model in models)
            return {tag: model for model, tags in found for tag in tags}
    return {}


def _is_model(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseModel)


def _model_in(annotation: Any) -> Any:
    if _is_model(annotation):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, list, tuple, dict, Annotated):
        for argument in typing.get_args(annotation):
            found = _model_in(argument)
            if _is_model(found):
                return found
    return None
