"""What the benchmarks share: timing by the median, and results with their circumstances."""

from __future__ import annotations

import datetime
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from vitp.core.files import write_json

RESULTS = Path(__file__).parent / "results"


def median_seconds(run: Callable[[], None], *, repeats: int = 7, warmup: int = 2) -> float:
    """Return the median time of `run`; the median shrugs off what else the machine does."""
    for _ in range(warmup):
        run()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def hardware() -> str:
    """Return a line about the device."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":")[1].strip()
            for line in cpuinfo.read_text().splitlines()
            if line.startswith("model name")
        ]
        model = names[0] if names else model
    return f"{model}, {torch.get_num_threads()} threads"


def save(name: str, figures: dict[str, object], *, quiet: bool = False) -> None:
    """Write the figures to `results/NAME.json` and, unless `quiet`, print them."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        cwd=RESULTS.parent,
        check=False,
    ).stdout.strip()
    result = {
        "benchmark": name,
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "hardware": hardware(),
        "torch": torch.__version__,
        "command": f"python {Path(sys.argv[0]).parent.name}/{Path(sys.argv[0]).name}",
        **figures,
    }
    if not quiet:
        print(json.dumps(result, indent=2))
    write_json(RESULTS / f"{name}.json", result)
