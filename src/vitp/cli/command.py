"""Additions to every command: `--allow-remote`, and the refusal of numbers that aren't finite."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer

from vitp.core.errors import ConfigError
from vitp.core.remote import VARIABLE, allow_remote, stay_offline

_OPTION = "allow_remote"
AllowRemote = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-remote",
        metavar="SCHEMES",
        help=f"Schemes that may be opened over a network, as in https,s3 (hf: the hub); {VARIABLE} does the same.",
        rich_help_panel="Network",
    ),
]


def complete(app: typer.Typer) -> None:
    """Give `--allow-remote` to all commands of an application, and let none of them have a number that isn't finite."""
    for command in app.registered_commands:
        if command.callback is not None:
            command.callback = _completed(command.callback)
    for group in app.registered_groups:
        if group.typer_instance is not None:
            complete(group.typer_instance)


def _completed(callback: Callable[..., Any]) -> Callable[..., Any]:
    if hasattr(callback, "__wrapped__"):  # the application of a group is the same object for whoever adds it
        return callback

    @functools.wraps(callback)
    def run(**values: Any) -> Any:
        allow_remote(values.pop(_OPTION) or ())
        stay_offline()
        for name, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(
                    f"is {value}", where=f"--{name.replace('_', '-')}", fix="give a finite number"
                )
        return callback(**values)

    hints = {**get_type_hints(callback, include_extras=True), _OPTION: AllowRemote}
    option = inspect.Parameter(_OPTION, inspect.Parameter.KEYWORD_ONLY, default=None)
    signature = inspect.signature(callback)
    parameters = [
        parameter.replace(annotation=hints.get(parameter.name, parameter.annotation))
        for parameter in (*signature.parameters.values(), option)
    ]
    # typer makes options of the signature: the command's own, and one more.
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = hints
    return run
