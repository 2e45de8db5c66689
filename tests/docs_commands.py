"""The commands that the pages print: where they stand, and whether they are run or only parsed.

Blocks are fenced (`bash`, `sh` or without a language) or indented by four blanks. Hidden comments of a page say what
becomes of them:

- `<!-- commands: run -->` in the first line: the page's commands run in order, in one folder (tests/e2e/test_docs.py);
- `<!-- commands: parsed: REASON -->` before a block: they can't run in a test, and are parsed only;
- `<!-- test: make NAME -->`: the test makes the files that the text describes.

Pages without the first comment are references, whose commands name files of the reader: all are parsed.
"""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.main import get_command

from vitp.cli import app

ROOT = Path(__file__).parents[1]
MADE = ("docs/keys.md", "docs/cli.md", "docs/reading.md", "docs/api/data.md", "docs/log.md")
RUN = "<!-- commands: run -->"
_FENCE = re.compile(r"^( *)```(\w*)\s*$")
_MARK = re.compile(r"^<!-- (commands|test): (.*?) -->$")
_SHELL = {"", "bash", "sh", "console"}
_PLACE = re.compile(r"^(?:[A-Z]|[A-Z][A-Z_]+)$")


@dataclass(frozen=True)
class Line:
    """A command, or what a comment asks for.

    Attributes:
        page, number: Where it stands.
        text: The command with its continued lines joined, without the comment behind it.
        reason: Why it isn't run; None: it is, where its page is.
        make: What the test has to make here; then there is no text.
    """

    page: str
    number: int
    text: str = ""
    reason: str | None = None
    make: str | None = None


def pages() -> list[Path]:
    """Return all pages that people read: README, the rules of contributing, docs/."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def is_run(page: Path) -> bool:
    """Return whether a page's commands are run."""
    return page.read_text(encoding="utf-8").startswith(RUN)


def lines_of(page: Path) -> list[Line]:
    """Return what a page asks for, in order."""
    name, found = str(page.relative_to(ROOT)), []
    language, reason, pending, started = None, None, "", 0
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        mark, fence = _MARK.match(line), _FENCE.match(line)
        if mark and mark[1] == "test":
            found.append(Line(name, number, make=mark[2].removeprefix("make ")))
        elif mark and mark[2] != "run":
            reason = mark[2].removeprefix("parsed: ")
        elif fence:
            language, reason = (fence[2], reason) if language is None else (None, None)
        elif language in _SHELL or (language is None and re.match(r" {4,}\S", line)) or pending:
            started = started if pending else number
            text = re.sub(r"\s+#\s.*$", "", line.strip())
            pending = f"{pending} {text.removesuffix(chr(92)).strip()}".strip()
            if not text.endswith("\\"):
                found.append(Line(name, started, pending.removeprefix("$ "), reason))
                pending = ""
    return found


def vitp_arguments(text: str) -> list[str] | None:
    """Return the words behind `vitp` in a command line, also behind `torchrun -m`; None: it doesn't call vitp."""
    found = re.match(r"^(?:[A-Z_]+=\S+ )*(?:srun )?(?:(?:torchrun|python)\b.* -m )?vitp (.*)$", text)
    if found is None:
        return None
    words = re.sub(r"(?<!\S)…(?!\S)", '""', found[1])
    words = re.sub(r"[\[\]…]|\.\.\.", "", words)  # a synopsis: options in brackets, many of a thing
    try:
        return [
            word.split("|")[0] if re.fullmatch(r"[\w-]+(\|[\w-]+)+", word) else word
            for word in shlex.split(words)
        ]
    except ValueError:
        return None


@functools.cache
def _root() -> Any:
    return get_command(app)


def find_command(words: list[str]) -> tuple[Any, list[str]]:
    """Return the command of the real command line that words call, and the words that are left for it.

    Raises:
        KeyError: There is no such command.
    """
    command = _root()
    while getattr(command, "commands", None):
        if not words or words[0].startswith("-") or words[0] not in command.commands:
            if getattr(command, "invoke_without_command", False) or not words or words[0].startswith("-"):
                break
            raise KeyError(words[0])
        command, words = command.commands[words[0]], words[1:]
    return command, words


def parse(words: list[str]) -> None:
    """Parse words as the command line does: commands, options, values and their bounds.

    Raises:
        Exception: What the parser of the command line raises.
    """
    command, rest = find_command(words)
    if "" in rest:  # "vitp finetune … -s KEY=VALUE": what stands between is left out
        unknown = {word for word in rest if re.match(r"--?[a-z]", word)} - options_of(command)
        if unknown:
            raise KeyError(unknown)
        return
    numbers = [
        "2" if _PLACE.match(word) and _wants_number(command, rest, place) else word
        for place, word in enumerate(rest)
    ]
    command.make_context("vitp", numbers, resilient_parsing=False)


def _wants_number(command: Any, words: list[str], place: int) -> bool:
    """Return whether the word before is an option that takes a number, as in `--steps N`."""
    option = next((part for part in command.params if place and words[place - 1] in part.opts), None)
    return option is not None and any(
        bound in str(vars(option)) for bound in ("<class 'int'>", "<class 'float'>", "int |", "float |")
    )


def options_of(command: Any) -> set[str]:
    """Return all options of a command."""
    named = (option for part in command.params for option in (*part.opts, *part.secondary_opts))
    return {"--help", *(option for option in named if option.startswith("-"))}


def inline_commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of the commands that stand in the text of a page, as in `vitp data check FOLDER`."""
    text = re.sub(r"^( *)```.*?^\1```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for found in re.finditer(r"`vitp ([^`\n]+)`", text):
        words = vitp_arguments("vitp " + found[1])
        if words:
            yield words
