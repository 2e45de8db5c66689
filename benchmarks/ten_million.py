"""Ten million records: indexing, starting and sampling, each in a process of its own, with time and memory.

    python benchmarks/ten_million.py --rows 10000000

The rows are generated: an image path, its size, a question and an answer, in 24 sets of one JSON Lines file each and
in one file that holds half of them as a JSON list. No image is opened.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

SETS = 24
TASKS = ("index", "start", "sample", "array")


def rows_of(first: int, count: int, end: bytes) -> bytes:
    """Return the text of some rows; numbers of fixed width let array operations write them."""
    template = (
        b'{"id": "000000000", "image": "images/000000000.jpg", "width": 1024, "height": 768, "conversations": '
        b'[{"from": "human", "value": "<image>\\nHow many ships are in the harbour of this image?"}, '
        b'{"from": "gpt", "value": "There are 00 ships."}]}' + end
    )
    block = np.tile(np.frombuffer(template, np.uint8), (count, 1))
    numbers = np.arange(first, first + count)
    for text, values in ((b"000000000", numbers), (b"/000000000", numbers), (b" 00 ", numbers % 41)):
        zeros = text.strip(b" /")
        place = template.index(text) + text.index(zeros)
        for digit in range(len(zeros)):
            block[:, place + digit] += (values // 10 ** (len(zeros) - 1 - digit) % 10).astype(np.uint8)
    return block.tobytes()


def write(
    path: Path, first: int, count: int, end: bytes = b"\n", around: tuple[bytes, bytes] = (b"", b"")
) -> None:
    """Write rows to a file."""
    with path.open("wb") as file:
        file.write(around[0])
        for start in range(first, first + count, 50_000):
            file.write(rows_of(start, min(50_000, first + count - start), end))
        if around[1]:
            file.seek(-len(end), os.SEEK_CUR)  # the last row of a list has no comma
            file.write(around[1])
            file.truncate()


def write_all(folder: Path, rows: int) -> dict[str, Any]:
    """Write the sets, the mixture that names them, and half of the rows as one list."""
    mixture, first = {}, 0
    for number in range(SETS):
        name, count = f"set{number:02d}", rows // SETS + (number < rows % SETS)
        write(folder / f"{name}.jsonl", first, count)
        first += count
        mixture[name] = {"annotation": f"{name}.jsonl", "root": ".", "repeat_time": 1 + number % 3}
    write(folder / "list.json", 0, rows // 2, b",\n", (b"[", b"]\n"))
    (folder / "mixture.json").write_text(json.dumps(mixture))
    lines = sum(path.stat().st_size for path in folder.glob("*.jsonl"))
    return {
        "lines_gb": round(lines / 1e9, 3),
        "list_gb": round((folder / "list.json").stat().st_size / 1e9, 3),
    }


def task(name: str, folder: Path) -> dict[str, Any]:
    """Do one thing and return what it took."""
    from vitp.data.mixture import Mixture
    from vitp.data.sources import open_records, read_mixture

    loaded = peak()
    began = time.perf_counter(), time.process_time()
    if name == "array":
        records = open_records(folder / "list.json")
        return took(began, loaded) | {"rows": len(records), "last": records[len(records) - 1].id}
    mixture = Mixture(read_mixture(folder / "mixture.json"), seed=0)
    mixture.fingerprint()
    result = took(began, loaded) | {"rows": sum(len(entry.records) for entry in mixture.entries)}
    if name == "sample":
        result |= sample(mixture, loaded)
    return result


def sample(mixture: Any, loaded: float) -> dict[str, Any]:
    """Draw records all over the run, and time them."""
    rng = random.Random(0)
    places = [rng.randrange(50 * len(mixture)) for _ in range(20_000)]
    began = time.perf_counter()
    for place in places:
        mixture.locate(place)
    located = time.perf_counter()
    questions = sum(len(mixture[place].record.turns) for place in places)
    ended = time.perf_counter()
    assert questions == len(places)
    return {
        "locate_us": round((located - began) / len(places) * 1e6, 2),
        "sample_us": round((ended - located) / len(places) * 1e6, 2),
        "peak_mb": round(peak(), 1),
        "above_imports_mb": round(peak() - loaded, 1),
    }


def took(began: tuple[float, float], loaded: float) -> dict[str, Any]:
    """Return seconds of wall and processor since `began`, and the peak of this process's memory."""
    return {
        "seconds": round(time.perf_counter() - began[0], 3),
        "cpu_seconds": round(time.process_time() - began[1], 3),
        "peak_mb": round(peak(), 1),
        "above_imports_mb": round(peak() - loaded, 1),
    }


def peak() -> float:
    """Return the largest resident memory of this process, in MiB; mapped files that were read count."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--json", type=Path, help="Where the figures go; benchmarks/results by default.")
    parser.add_argument(
        "--folder", type=Path, help="Keeps the data and what was measured, to go on from there."
    )
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        print(json.dumps(task(arguments.task, arguments.folder)))
        return
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="ten_million_"))
        )
        folder.mkdir(parents=True, exist_ok=True)
        figures = measure(folder, arguments.rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2))
    else:
        from common import save  # imports torch, which the measured processes are to do without

        save("ten_million", figures)


def measure(folder: Path, rows: int) -> dict[str, Any]:
    """Write the data and run every task in a process of its own; what is done already is not done again."""
    notes = folder / "figures.json"
    figures: dict[str, Any] = json.loads(notes.read_text()) if notes.is_file() else {}
    if figures.get("rows") != rows:
        figures = {"rows": rows, "sets": SETS, **write_all(folder, rows)}
        notes.write_text(json.dumps(figures))
    environment = {**os.environ, "VITP_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    for name in TASKS:
        if name not in figures:
            command = [sys.executable, __file__, "--task", name, "--folder", str(folder)]
            result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            figures[name] = json.loads(result.stdout.splitlines()[-1])
            notes.write_text(json.dumps(figures))
        print(name, figures[name], flush=True)
    figures["index_mb"] = round(sum(f.stat().st_size for f in (folder / "cache").rglob("*.npy")) / 2**20, 1)
    return figures


if __name__ == "__main__":
    main()
