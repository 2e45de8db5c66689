"""The reference of all commands, made from the command line itself.

`python -m tools.cli docs/cli.md` writes it; a test tells when it is out of date.
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from annotated_types import Ge, Le
from tools.keys import _kind_of
from typer.main import get_command

from vitp.cli import app
from vitp.cli.panels import PanelGroup
from vitp.core.files import write_text

WIDTH = 110
HEAD = """# Commands

This page is made from the command line (`python -m tools.cli docs/cli.md`); don't edit it.

`vitp COMMAND --help` says the same. Exit codes: 0 done, 1 done with findings, 2 wrong input (one line says what, where
and what to do), 70 a fault of vitp, 130 or 143 interrupted ([security.md](security.md#exit-codes)). Every command also
has `--allow-remote SCHEMES`: what may be opened over a network, as in `https,s3` (`hf`: the Hugging Face hub).
"""
EVERYWHERE = {"help", "allow_remote"}


def reference() -> str:
    """Return the page, as Markdown."""
    root = typing.cast(PanelGroup, get_command(app))
    parts, panel = [HEAD], ""
    for name in root.list_commands(typing.cast(Any, None)):
        command = root.commands[name]
        if command.hidden:
            continue
        if panel != command.rich_help_panel:
            panel = str(command.rich_help_panel)
            parts.append(f"## {panel}\n")
        parts += _command(command, f"vitp {name}")
    return "\n".join(parts)


def _command(command: Any, path: str) -> Iterator[str]:
    """Yield the entries of a command, and of those below it."""
    children = getattr(command, "commands", {})
    yield f"### {path}\n"
    yield _paragraphs(command.help or "")
    if not children or command.invoke_without_command:
        yield f"```text\n{_usage(command, path)}\n```\n"
        entries = [_entry(parameter, _annotations(command)) for parameter in _shown(command)]
        if entries:
            yield "\n".join(entries) + "\n"
    for name, child in children.items():
        if not child.hidden:
            yield from _command(child, f"{path} {name}")


def _shown(command: Any) -> list[Any]:
    chosen = [part for part in command.params if not part.hidden and part.name not in EVERYWHERE]
    return sorted(chosen, key=_is_option)  # arguments first


def _is_option(parameter: Any) -> bool:
    return str(parameter.opts[0]).startswith("-")


def _annotations(command: Any) -> dict[str, Any]:
    return {name: part.annotation for name, part in inspect.signature(command.callback).parameters.items()}


def _usage(command: Any, path: str) -> str:
    words = [path]
    for parameter in _shown(command):
        word = parameter.opts[0] if _is_option(parameter) else _placeholder(parameter)
        if _is_option(parameter) and parameter.required:
            words.append(f"{word} {_placeholder(parameter)}")
        elif not _is_option(parameter):
            words.append((word if parameter.required else f"[{word}]") + "…" * (parameter.nargs == -1))
    options = any(_is_option(parameter) and not parameter.required for parameter in _shown(command))
    return " ".join([*words, *["[OPTIONS]"] * options])


def _placeholder(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _entry(parameter: Any, annotations: dict[str, Any]) -> str:
    names = (
        [*parameter.opts, *parameter.secondary_opts] if _is_option(parameter) else [_placeholder(parameter)]
    )
    head = ", ".join(f"`{name}`" for name in names)
    facts = []
    if not getattr(parameter, "is_flag", False):
        facts.append(_type(parameter, annotations[parameter.name]))
    if parameter.required:
        facts.append("required")
    elif (
        parameter.default not in (None, [], ())
        and parameter.default is not False
        and not callable(parameter.default)
    ):
        facts.append(f"default {parameter.default}")
    if parameter.multiple:
        facts.append("repeatable")
    inside = f" ({'; '.join(facts)})" if facts else ""
    text = f"- {head}{inside}: {_plain(parameter.help or '')}"
    return textwrap.fill(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _type(parameter: Any, annotation: Any) -> str:
    """Return in words what a value may be; bounds are in typer's information."""
    inner, *extra = (
        typing.get_args(annotation) if typing.get_origin(annotation) is typing.Annotated else [annotation]
    )
    parts = [part for part in typing.get_args(inner) or [inner] if part is not type(None)]
    inner = parts[0] if len(parts) == 1 and typing.get_origin(inner) is not typing.Literal else inner
    if typing.get_origin(inner) is list:
        inner = typing.get_args(inner)[0]
    if inner is Path:
        return "path"
    bounds = [Ge(info.min) for info in extra if getattr(info, "min", None) is not None]
    bounds += [Le(info.max) for info in extra if getattr(info, "max", None) is not None]
    return _kind_of(inner, tuple(bounds))


def _plain(text: str) -> str:
    """Return a help text without the console's markup, safe as Markdown."""
    text = re.sub(
        r"\[/?(?:bold|dim|italic|cyan|green|yellow|red|magenta|blue)[^\]]*\]", "", " ".join(text.split())
    )
    return re.sub(r"(?<![`\w])<([a-z_]+)>", r"`<\1>`", text).replace("\\[", "[")


def _paragraphs(text: str) -> str:
    parts = [textwrap.fill(_plain(part), WIDTH) for part in text.split("\n\n")]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    write_text(Path(sys.argv[1]), reference())
