"""Parts that the benchmarks share: timing by the median, and results with their circumstances."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from vitp.core.distributed import resolve_device
from vitp.core.files import write_json
from vitp.planning.bench.benchmark import circumstances_of
from vitp.planning.bench.measure import synchronize

RESULTS = Path(__file__).parent / "results"


def median_seconds(run: Callable[[], None], *, repeats: int = 7, warmup: int = 2) -> float:
    """Return the median time of `run`; the median shrugs off what else the machine does."""
    for _ in range(warmup):
        run()
    times, device = [], resolve_device("auto")
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        synchronize(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def save(name: str, figures: dict[str, object], *, quiet: bool = False, out: Path | None = None) -> None:
    """Write the figures to `results/NAME.json` or to `out` and, unless `quiet`, print them."""
    command = f"python benchmarks/{Path(sys.argv[0]).name}"
    result = {**circumstances_of(name, command, resolve_device("auto"), RESULTS.parent), **figures}
    if not quiet:
        print(json.dumps(result, indent=2))
    write_json(out or RESULTS / f"{name}.json", result)
