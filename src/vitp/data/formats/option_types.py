"""Options of label formats have the types that their readers declare, whatever YAML made of a word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from vitp.core.errors import ConfigError

_WORDS = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}


def typed_options(options: Mapping[str, Any], declared: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with numbers made texts where texts are declared: classes may be called 1, 2 and 3.

    Args:
        options: Name → value.
        declared: Name → type; what isn't among them, or has a list of choices, is left to its reader.

    Raises:
        ConfigError: A value is of another type.
    """
    return {
        name: _typed(name, value, declared[name]) if name in declared else value
        for name, value in options.items()
    }


def _typed(name: str, value: Any, declared: Any) -> Any:
    kinds = list(get_args(declared)) if get_origin(declared) in (Union, UnionType) else [declared]
    if any(_is(value, kind) for kind in kinds):
        return value
    texts = _as_texts(value)
    if any(_is(texts, kind) for kind in kinds):
        return texts
    if float in kinds and (number := _as_number(value)) is not None:
        return number
    wanted = [_WORDS[kind] for kind in kinds if kind in _WORDS]
    if any(_origin(kind) is Sequence for kind in kinds):
        wanted.append("a list of texts")
    if any(_origin(kind) is Mapping for kind in kinds):
        wanted.append("a mapping")
    fix = f"give {' or '.join(wanted)}"
    if str in kinds and isinstance(value, bool | list | tuple):
        fix += """; a word that YAML takes for something else is text in two pairs of quotes: '"true"'"""
    raise ConfigError(f"is {value!r}", where=name, fix=fix)


def _origin(kind: Any) -> Any:
    """Return what a generic type is: `Sequence` for lists, `Mapping`, or itself."""
    origin = get_origin(kind) or kind
    if origin in (list, tuple, Sequence):
        return Sequence
    return Mapping if origin in (dict, Mapping) else origin


def _is(value: Any, kind: Any) -> bool:
    origin, inner = _origin(kind), get_args(kind)
    if kind is Any or origin is Literal or not isinstance(origin, type):
        return True
    if origin is NoneType:
        return value is None
    if origin is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if origin is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin is Path:
        return isinstance(value, str | Path)
    if origin is Sequence:
        return isinstance(value, list | tuple) and all(_is_one_of(one, inner[0]) for one in value if inner)
    if origin is Mapping:
        return isinstance(value, Mapping)
    return isinstance(value, origin)


def _is_one_of(value: Any, kind: Any) -> bool:
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return any(_is(value, one) for one in kinds)


def _as_texts(value: Any) -> Any:
    """Return numbers as texts, also those in a list."""
    if isinstance(value, list | tuple):
        return [_as_texts(one) for one in value]
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _as_number(value: Any) -> float | None:
    """Return the number that a text is: YAML has 1e-3 for one."""
    try:
        return float(value) if isinstance(value, str) else None
    except ValueError:
        return None
