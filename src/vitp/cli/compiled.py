"""What the console says of a compiled set."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from vitp.cli.output import make_console, print_findings, print_lines, print_table, shown_path
from vitp.core.errors import VitpError

if TYPE_CHECKING:
    from vitp.data.compile_summary import CompileSummary


def compile_and_print(source: str, fmt: str, out: Path, **settings: Any) -> None:
    """Compile labels and print what came of it; of a set that is refused, how it was understood."""
    from vitp.data.compile import compile_labels

    understood: list[str] = []

    def told(fmt: str, lines: Sequence[str]) -> None:
        understood.extend(_as_understood(fmt, lines))

    try:
        summary = compile_labels(source, fmt, out, told=told, **settings)
    except VitpError:
        # Whoever is told that a set can't be compiled wants to know what it was taken for.
        print_lines(understood)
        raise
    print_summary(summary)


def _as_understood(fmt: str, lines: Sequence[str]) -> list[str]:
    title = "merged:" if fmt == "merged" else f"understood as {fmt}:"
    return [title, *(f"  {line}" for line in lines)]


def print_summary(summary: CompileSummary) -> None:
    """Print how a set was understood, what it holds, what is asked about it and what isn't."""
    console = make_console()
    print_lines(_as_understood(summary.fmt, summary.understood))
    rows = [
        (name, *(f"{n:,}" for n in (one.images, one.records, one.turns, sum(one.objects.values()))))
        for name, one in summary.splits.items()
        if one.images
    ]
    columns = ("split", "images", "records", "questions", "objects")
    print_table(columns, rows, f"{summary.name} → {shown_path(summary.out)}", left=1)
    tasks: dict[str, int] = {}
    for counts in summary.splits.values():
        for task, number in counts.tasks.items():
            tasks[task] = tasks.get(task, 0) + number
    listed = ", ".join(f"{task} {n:,}" for task, n in sorted(tasks.items(), key=lambda kv: -kv[1]))
    console.print(f"questions by task: {listed}")
    for name, constant in summary.constant.items():
        line = f'not asked: {name}, as {constant.alike} of {constant.of} images answer "{shorten(constant.answer, 80, placeholder=" …")}"'
        console.print(f"{line} (--task {name}=1 asks all the same)", markup=False)
    if summary.unasked:
        console.print(_unasked_words(summary), markup=False)
    what = "findings" if len(summary.findings) > 1 else "finding"
    print_findings(
        [str(finding) for finding in summary.findings],
        what,
        "what was left out, ignored or mended (all in summary.json)",
    )
    console.print(f"next: vitp data check {shlex.quote(shown_path(summary.out))}")


def _unasked_words(summary: CompileSummary) -> str:
    """Return why images are in no question; their labels are kept all the same."""
    unknown = sum(one.unlabelled for one in summary.splits.values())
    rest = summary.unasked - unknown
    why = []
    if unknown:
        why.append(
            f"{unknown:,} because no label of theirs is known (nobody labelled them, or not with certainty; bare images "
            "are asked about where they are large enough, and the answer is plain)"
        )
    if rest:
        why.append(
            f"{rest:,} because what is known of them fits no question, or would repeat an answer that others give already "
            '(as many questions are to be answered with "no" as with "yes")'
        )
    return f"images that are in no question: {'; '.join(why)}. They are in the set, and are never taken for a “no”"
