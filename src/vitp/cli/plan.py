"""`vitp plan`, `vitp bench`, `vitp doctor`: the cost of a run, the speed of this machine, its installation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from vitp.cli.options import Images, JsonFlag, Override
from vitp.cli.output import make_console, print_json, print_lines, print_table
from vitp.cli.panels import PLAN
from vitp.core.words import decimals


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("plan", rich_help_panel=PLAN)(plan_command)
    app.command("bench", rich_help_panel=PLAN)(bench_command)
    app.command("doctor", rich_help_panel=PLAN)(doctor_command)


def plan_command(
    name: Annotated[str, typer.Argument(help="One of `vitp recipes`, or the YAML file of a run.")],
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="Folder of prepared sets, mixture file or labelled set, to count sizes instead of assuming them.",
        ),
    ] = None,
    gpu: Annotated[
        str, typer.Option("--gpu", help="Kind and number of GPUs, as in H100 or A40:8.")
    ] = "H100:8",
    init: Annotated[str | None, typer.Option("--init", help="Model or backbone to start from.")] = None,
    as_published: Annotated[
        bool,
        typer.Option("--as-published", help="Pretraining: plan the authors' code, padding included."),
    ] = False,
    images: Images = None,
    utilisation: Annotated[
        float | None,
        typer.Option(
            "--utilisation", min=0.01, max=1, help="Share of the GPU's peak that is reached, 0 to 1."
        ),
    ] = None,
    price: Annotated[
        float | None, typer.Option("--price", min=0, max=1e6, help="Price of one GPU in dollars an hour.")
    ] = None,
    samples: Annotated[
        int, typer.Option("--samples", min=10, max=10_000_000, help="Number of samples whose sizes are read.")
    ] = 2000,
    override: Override = None,
    as_json: JsonFlag = False,
) -> None:
    """Estimate tiles and tokens a sample, packing, peak memory, speed, hours and cost of a run."""
    from vitp.recipes.planned import PlanRequest, plan_run

    overrides = override or ()
    request = PlanRequest(name, data, gpu, init, as_published, images, utilisation, price, samples, overrides)
    found = plan_run(request)
    if as_json:
        print_json({**found.values, "based_on": found.basis})
        return
    table = Table(show_header=False)
    for row in found.rows:
        table.add_row(*row)
    make_console().print(table)
    print_lines(["based on:", *(f"  {line}" for line in found.basis)])


def bench_command(
    run: Annotated[
        Path | None,
        typer.Argument(
            help="Pretraining run or its YAML file, for its model and data. By default records are made up."
        ),
    ] = None,
    size: Annotated[
        str | None, typer.Option("--size", help="Model for made-up records: micro, small or full.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, max=1_000_000, help="Number of steps to time.")] = 8,
    out: Annotated[
        Path | None, typer.Option("--json", help="Write the figures into this file as well.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against", help="Folder of earlier results, to compare with the last one of this hardware."
        ),
    ] = None,
    profile: Annotated[
        Path | None, typer.Option("--profile", help="Folder for a trace and a one-page summary of it.")
    ] = None,
    override: Override = None,
) -> None:
    """Measure training: samples a second, utilisation, memory, packing, wait for data."""
    from vitp.core.files import write_json
    from vitp.planning.bench import benchmark
    from vitp.planning.bench.profile import profiled

    if run is not None:
        subject = benchmark.run_subject(run, steps, override or [])
    else:
        config = benchmark.bench_config(override or [], size=size, steps=steps)
        subject = benchmark.synthetic_subject(config)
    command = ["vitp", *sys.argv[1:]]
    if profile is None:
        result = benchmark.run_benchmark(subject, command)
    else:
        with profiled(subject.objective.vlm, profile) as on_step:
            result = benchmark.run_benchmark(subject, command, on_step=on_step)
    # A checkout of vitp keeps its results there.
    folder = against or Path("benchmarks") / "results"
    _print_result(result, benchmark.last_result(folder, result) if folder.is_dir() else None)
    if profile is not None:
        print(f"wrote {profile / 'summary.md'} and {profile / 'trace.json'}; times above include profiling")
    if out is not None:
        write_json(out, result)
        print(f"wrote {out}")


def _print_result(result: dict[str, Any], before: dict[str, Any] | None) -> None:
    from vitp.planning.bench.benchmark import MORE_IS_BETTER, changes

    columns, factors = ["figure", "now"], changes(before, result) if before is not None else {}
    if before is not None:
        columns += [f"{before['date']} ({before.get('commit') or 'no commit'})", "change"]
    rows = []
    for name, value in result["figures"].items():
        values = [value] if before is None else [value, before["figures"].get(name)]
        row = [name, *(f"{one:,.4g}" if isinstance(one, float) else str(one) for one in values)]
        if before is not None:
            change = f"{decimals(100 * (factors[name] - 1), 1, signed=True)}%" if name in factors else ""
            if name in factors and abs(factors[name] - 1) >= 0.02:
                better = (factors[name] > 1) == MORE_IS_BETTER[name]
                change = f"[{'green' if better else 'red'}]{change}[/]"
            row.append(change)
        rows.append(row)
    print_table(columns, rows, f"{result['hardware']}, torch {result['torch']}", left=1)
    compiled = str(result["figures"].get("compiled", ""))
    if "GIVEN UP" in compiled or "cut " in compiled:
        print(f"WARNING: torch.compile does not hold, and figures are of eager code in part: {compiled}")
    if before is None:
        print("no earlier result of this hardware and these settings to compare with")


def doctor_command(as_json: JsonFlag = False) -> None:
    """Show what is installed, what is missing for which extra, and which device will be used."""
    from vitp.planning.doctor import inspect_machine

    found = inspect_machine()
    if as_json:
        print_json(found.as_dict())
    else:
        make_console().print(found)
    raise typer.Exit(found.exit_code)
