"""Tables of functions by their names: a texture, a shape, a place or a layout is added where it is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

_Named = TypeVar("_Named", bound=Callable[..., object])


def entered(table: dict[str, _Named]) -> Callable[[_Named], _Named]:
    """Return a decorator that enters a function into a table under its name, without the leading underscore."""

    def enter(function: _Named) -> _Named:
        table[function.__name__.lstrip("_")] = function
        return function

    return enter
