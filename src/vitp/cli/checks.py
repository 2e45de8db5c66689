"""`vitp bench`, `vitp check`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from vitp.cli.console import make_console

if TYPE_CHECKING:
    from vitp.runs.check.findings import Finding


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("bench")(bench)
    app.command("check")(check)


def bench(
    run: Annotated[
        Path | None,
        typer.Argument(help="Pretraining run or its YAML: its model and data; none: made-up records."),
    ] = None,
    size: Annotated[str | None, typer.Option("--size", help="Made-up: micro, small or full.")] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, max=1_000_000, help="Steps that are timed.")] = 8,
    out: Annotated[Path | None, typer.Option("--json", help="Write the figures here, too.")] = None,
    against: Annotated[
        Path | None,
        typer.Option("--against", help="Folder of results; the last of this hardware is compared with."),
    ] = None,
    profile: Annotated[
        Path | None, typer.Option("--profile", help="Write a trace and a one-page summary into this folder.")
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="key.key=value over the settings. Repeatable."),
    ] = None,
) -> None:
    """Measure training: samples a second, utilisation, memory, packing, wait for data."""
    from vitp.core.files import write_json
    from vitp.planning.bench.benchmark import bench_config, last_result, of_run, run_benchmark, synthetic
    from vitp.planning.bench.profile import profiled

    if run is not None:
        subject = of_run(run, steps, override or [])
    else:
        subject = synthetic(bench_config(override or [], size=size, steps=steps))
    command = ["vitp", *sys.argv[1:]]
    if profile is None:
        result = run_benchmark(subject, command)
    else:
        with profiled(subject.objective.vlm, profile) as on_step:
            result = run_benchmark(subject, command, on_step=on_step)
    folder = against or _results_folder()
    before = last_result(folder, result) if folder is not None else None
    _print_result(result, before)
    if profile is not None:
        print(f"wrote {profile / 'summary.md'} and {profile / 'trace.json'}; times above include profiling")
    if out is not None:
        write_json(out, result)
        print(f"wrote {out}")


def check(
    run: Annotated[Path, typer.Argument(help="Pretraining run or its YAML.")],
    records: Annotated[
        int, typer.Option("--records", min=1, max=100_000, help="Records that are compared.")
    ] = 8,
    ranks: Annotated[int, typer.Option("--ranks", min=2, max=64, help="Processes of the last check.")] = 2,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only", help="packed, shared, attention, bf16, recompute, compile, resume or ranks. Repeatable."
        ),
    ] = None,
    skip: Annotated[list[str] | None, typer.Option("--skip", help="Leave a check out. Repeatable.")] = None,
    out: Annotated[Path | None, typer.Option("--json", help="Write the findings here, too.")] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="key.key=value over the run's configuration. Repeatable."),
    ] = None,
) -> None:
    """Compare fast ways of training with plain ones, on a run's own data; exit with 1 on a difference."""
    from vitp.core.files import write_json
    from vitp.runs.check.run import check_run, load_run

    config = load_run(run, override or [])
    console = make_console()
    findings = []
    for finding in check_run(config, records=records, ranks=ranks, only=only or (), skip=skip or ()):
        findings.append(finding)
        for line in _lines(finding):
            console.print(line, markup=False, soft_wrap=True)
    if out is not None:
        write_json(out, [_plain(finding) for finding in findings])
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def _results_folder() -> Path | None:
    """Where a checkout of vitp keeps its results, if this is one."""
    folder = Path("benchmarks") / "results"
    return folder if folder.is_dir() else None


def _print_result(result: dict[str, Any], before: dict[str, Any] | None) -> None:
    from vitp.planning.bench.benchmark import COMPARED, changes

    table = Table(title=f"{result['hardware']}, torch {result['torch']}")
    table.add_column("figure")
    table.add_column("now", justify="right")
    factors = changes(before, result) if before is not None else {}
    if before is not None:
        table.add_column(f"{before['date']} ({before.get('commit') or 'no commit'})", justify="right")
        table.add_column("change", justify="right")
    for name, value in result["figures"].items():
        row = [name, f"{value:,.4g}" if isinstance(value, float) else str(value)]
        if before is not None:
            old = before["figures"].get(name)
            row.append(f"{old:,.4g}" if isinstance(old, float) else str(old))
            row.append(_change(factors[name], COMPARED[name]) if name in factors else "")
        table.add_row(*row)
    console = make_console()
    console.print(table)
    if before is None:
        console.print("no earlier result of this hardware and these settings to compare with")


def _change(factor: float, more_is_better: bool) -> str:
    text = f"{factor - 1:+.1%}"
    if abs(factor - 1) < 0.02:
        return text
    return f"[green]{text}[/green]" if (factor > 1) == more_is_better else f"[red]{text}[/red]"


def _lines(finding: Finding) -> list[str]:
    if finding.skipped is not None:
        return [f"skipped    {finding.name}: {finding.skipped}"]
    lines = [f"{'equal' if finding.ok else 'DIFFERENT':<10} {finding.name}"]
    for one in finding.differences:
        sign = "≥" if one.at_least else "≤"
        mark = "" if one.ok else "  ← here"
        lines.append(f"           {one.what}: {one.value:.3g} (wanted {sign} {one.limit:g}){mark}")
    return lines


def _plain(finding: Finding) -> dict[str, Any]:
    return {
        "check": finding.name,
        "ok": finding.ok,
        "skipped": finding.skipped,
        "differences": [
            {"what": one.what, "value": one.value, "limit": one.limit, "at_least": one.at_least, "ok": one.ok}
            for one in finding.differences
        ],
    }
