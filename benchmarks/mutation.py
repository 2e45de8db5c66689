"""Do the tests notice small faults? Each mutant of the asked modules meets the tests that reach its line.

    python benchmarks/mutation.py metrics rotated packing chat vrl engine --sample 300 --seed 0
    python benchmarks/mutation.py rotated --again survived     # after tests were added
    python benchmarks/mutation.py --summary

A process imports the tests of a group once and collects them. Every mutant is a fork of it, in which the changed code takes
the place of the function's, and which ends at the first test that fails. A fork without any change tells first which
tests reach which lines, and how long they take: a mutant meets only those that reach its line, first those that
noticed most so far, then the fastest. Changes outside of functions meet a fork that has not imported the package yet.
Tests that start processes of their own can't notice anything, and are left out. A mutant that runs for too long was noticed.

Results are kept in `results/mutation.json`, by the text of the change and not by its line. Mutants that no test can
notice are listed with their reason in `results/mutation_judged.json` ("equal": it computes the same; "unimportant": nobody
would mind) and leave the score when they are equal. Needs a system with `fork`.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import gc
import importlib
import io
import json
import os
import pickle
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from mutants import Importer, Mutant, dotted, functions_of, mutants_of, put_in

HERE = Path(__file__).parent
ROOT = HERE.parent
SOURCE = ROOT / "src"
RESULTS, JUDGED = HERE / "results" / "mutation.json", HERE / "results" / "mutation_judged.json"
WARM = ("torch", "torchvision", "timm", "transformers", "pydantic", "scipy.ndimage", "faster_coco_eval", "hypothesis")  # fmt: skip
"""What is imported before anything is forked."""


@dataclass(frozen=True)
class Group:
    """Modules, and the tests that are theirs."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]


def _modules(*names: str) -> tuple[str, ...]:
    found: list[str] = []
    for name in names:
        place = SOURCE / "vitp" / name
        files = sorted(place.glob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
        found += [file.relative_to(SOURCE).as_posix() for file in files if file.name != "__init__.py"]
    return tuple(found)


_METRICS = ("metrics", "segmentation_metrics", "coco", "oriented", "detection", "statistics")
GROUPS: dict[str, Group] = {
    "metrics": Group(
        _modules(*(f"evaluation/{name}" for name in _METRICS)),
        ("unit/test_metrics.py", "unit/test_task_metrics.py", "unit/test_detection_metrics.py",
         "unit/test_oriented_scores.py", "unit/test_statistics.py", "unit/test_metric_edges.py", "unit/test_statistics_edges.py", "unit/test_ignored.py",
         "parity/test_detection_scores_parity.py"),
    ),
    "rotated": Group(
        _modules("models/rotated"),
        ("unit/test_oriented_boxes.py", "unit/test_oriented_detection.py", "unit/test_oriented_scores.py",
         "unit/test_rotated_edges.py", "parity/test_rotated_parity.py"),
    ),
    "packing": Group(
        _modules("data/packing"),
        ("unit/test_chat.py", "unit/test_lengths.py", "unit/test_vitp_objective.py",
         "unit/test_packing_edges.py", "parity/test_packing_parity.py"),
    ),
    "chat": Group(
        _modules("data/chat"),
        ("unit/test_chat.py", "unit/test_ask.py", "unit/test_weights_open.py", "unit/test_chat_layout.py",
         "unit/test_packing_edges.py"),
    ),
    "vrl": Group(
        _modules("models/vrl"),
        ("unit/test_vrl.py", "unit/test_vitp_objective.py", "parity/test_packing_parity.py"),
    ),
    "engine": Group(
        _modules("engine"),
        ("unit/test_engine_*.py", "unit/test_recovery.py", "unit/test_checkpoint_metadata.py", "unit/test_recipes_parity.py", "unit/test_config.py"),
    ),
}  # fmt: skip


class Collected:
    """pytest's plugin: gives the session to `loop` instead of running its tests, and hears of failures."""

    def __init__(self, loop: Any) -> None:
        self.loop, self.failed = loop, ""

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Take the place of pytest's own loop."""
        self.loop(session, self)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember a test that failed."""
        if report.failed:
            self.failed = report.nodeid


def _pytest(tests: Sequence[str], loop: Any) -> Collected:
    plugin = Collected(loop)
    there = [str(file) for name in tests for file in sorted((ROOT / "tests").glob(name))]
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:timeout", "-m", "not slow"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        pytest.main([*options, "--hypothesis-seed=0", *there], plugins=[plugin])
    return plugin


def _run(
    session: pytest.Session, items: Sequence[pytest.Item], plugin: Collected
) -> Iterator[tuple[str, float]]:
    """Run tests one after another; end after the first that fails."""
    for place, item in enumerate(items):
        begun = time.perf_counter()
        after = items[place + 1] if place + 1 < len(items) else None
        session.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
        yield item.nodeid, time.perf_counter() - begun
        if plugin.failed:
            return


def _forked(work: Any, limit: float | None = None) -> Any:
    """Return what `work` returns in a process of its own; None when it takes longer, or dies."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read)
            os.setpgid(0, 0)
            gc.disable()  # it would copy the pages that are shared with the parent
            if limit is not None:
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, 1)
                os.dup2(nothing, 2)
            given = pickle.dumps(work())
            with os.fdopen(write, "wb") as pipe:
                pipe.write(given)
        except BaseException as error:
            if limit is None:
                print(repr(error), file=sys.__stderr__)
        finally:
            os._exit(0)
    os.close(write)
    with contextlib.suppress(OSError):
        os.setpgid(child, child)
    alarm = threading.Timer(limit or threading.TIMEOUT_MAX, _end, [child])
    alarm.daemon = True
    alarm.start()
    with os.fdopen(read, "rb") as pipe:
        given = pipe.read()
    alarm.cancel()
    _end(child)
    os.waitpid(child, 0)
    return pickle.loads(given) if given else None


def _end(child: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)


# Which tests reach which lines.


@dataclass
class Reach:
    """What a run without any change showed.

    Attributes:
        seconds: Test → how long it takes.
        tests: Module → line → tests that run it.
        failed: A test that fails without any change, or nothing.
        noticed: (Module, test) → mutants that it noticed so far.
    """

    seconds: dict[str, float]
    tests: dict[str, dict[int, set[str]]]
    failed: str = ""
    noticed: Counter[tuple[str, str]] = field(default_factory=Counter)

    def of(self, mutant: Mutant) -> list[str]:
        """Return the tests that may notice a mutant: first those that noticed most of the module's."""
        by_line = self.tests[mutant.module]
        if mutant.lines:
            found = set().union(*(by_line.get(line, ()) for line in mutant.lines))
            return sorted(found, key=lambda t: (-self.noticed[mutant.module, t], self.seconds[t]))
        # What happens on import reaches whoever imports it; those that run its code come first.
        runs = set().union(*by_line.values())
        imports = f"from {dotted(mutant.module)} import"
        files = {test.split("::")[0] for test in self.seconds}
        files = {file for file in files if imports in (ROOT / file).read_text(encoding="utf-8")}
        found = runs | {test for test in self.seconds if test.split("::")[0] in files}
        return sorted(found, key=lambda test: (test.split("::")[0] not in files, self.seconds[test]))


def _trace(session: pytest.Session, plugin: Collected, modules: Sequence[str]) -> Reach:
    wanted = {str(SOURCE / module): module for module in modules}
    reach = Reach({}, {module: {} for module in modules})
    touched: set[tuple[str, int]] = set()

    def local(frame: FrameType, event: str, _arg: Any) -> Any:
        touched.add((frame.f_code.co_filename, frame.f_lineno))
        return local

    def trace(frame: FrameType, event: str, _arg: Any) -> Any:
        return local if frame.f_code.co_filename in wanted else None

    threading.settrace(trace)
    sys.settrace(trace)
    for test, seconds in _run(session, session.items, plugin):
        reach.seconds[test] = seconds
        for file, line in touched:
            reach.tests[wanted[file]].setdefault(line, set()).add(test)
        touched.clear()
    sys.settrace(None)
    reach.failed = plugin.failed
    return reach


# The work.


class Turns:
    """A file's lock, given back every now and then, for machines that several share."""

    def __init__(self, path: Path | None, seconds: float) -> None:
        self.path, self.seconds, self.file, self.since = path, seconds, None, 0.0

    def take(self) -> None:
        """Hold the lock; let the others in first when it was held for long enough."""
        if self.path is None or (self.file is not None and time.monotonic() - self.since < self.seconds):
            return
        self.give()
        self.file = self.path.open("a")
        fcntl.flock(self.file, fcntl.LOCK_EX)
        self.since = time.monotonic()

    def give(self) -> None:
        """Let the others in."""
        if self.file is not None:
            fcntl.flock(self.file, fcntl.LOCK_UN)  # forks hold the file open, too
            self.file.close()
            self.file = None
            time.sleep(0.5)


def _with_code(wanted: Sequence[Mutant]) -> list[Mutant]:
    names = {mutant.name for mutant in wanted}
    modules = sorted({mutant.module for mutant in wanted})
    return [m for module in modules for m in mutants_of(SOURCE, module, names) if m.name in names]


def run_group(name: str, wanted: Sequence[Mutant], turns: Turns) -> None:
    """Let the tests of a group meet the mutants; each result is written at once."""
    group = GROUPS[name]
    inside = _with_code([mutant for mutant in wanted if mutant.lines])
    outside = _with_code([mutant for mutant in wanted if not mutant.lines])
    found: list[Reach] = []

    def loop(session: pytest.Session, plugin: Collected) -> None:
        reach = _forked(lambda: _trace(session, plugin, group.modules), 1200)
        if reach is None or reach.failed:
            print(
                f"{name}: {reach.failed if reach else 'the tests'} fail without any change",
                file=sys.__stdout__,
            )
            return
        found.append(reach)
        items = {item.nodeid: item for item in session.items}
        seconds, functions = sum(reach.seconds.values()), functions_of(SOURCE, group.modules)
        gc.freeze()
        print(
            f"{name}: {len(items)} tests of {seconds:.0f} s, {len(wanted)} mutants",
            file=sys.__stdout__,
            flush=True,
        )
        for mutant in inside:
            turns.take()
            chosen = [items[test] for test in reach.of(mutant)]

            def meet(mutant: Mutant = mutant, chosen: list[pytest.Item] = chosen) -> str:
                put_in(SOURCE, mutant, functions[mutant.module])
                list(_run(session, chosen, plugin))
                return plugin.failed

            _note(name, mutant, reach, meet)

    def whole() -> Reach | None:
        turns.take()
        _pytest(group.tests, loop)
        turns.give()
        return found[0] if found else None

    turns.give()
    # It imports the package: what happens outside of functions has to meet a process that hasn't.
    reach = _forked(whole)
    if reach is None:
        raise SystemExit(f"{name}: the tests can't be run")
    for mutant in outside:
        turns.take()
        tests = reach.of(mutant)
        _note(name, mutant, reach, lambda mutant=mutant, tests=tests: _meet_fresh(mutant, tests))
    turns.give()


def _meet_fresh(mutant: Mutant, tests: Sequence[str]) -> str:
    sys.meta_path.insert(0, Importer(SOURCE, mutant))
    seen: list[str] = []

    def loop(session: pytest.Session, plugin: Collected) -> None:
        items = {item.nodeid: item for item in session.items}
        seen.extend(items)
        list(_run(session, [items[test] for test in tests if test in items], plugin))

    files = sorted({test.split("::")[0].removeprefix("tests/") for test in tests})
    failed = _pytest(files, loop).failed
    return failed or ("" if set(tests) <= set(seen) else "the import fails")


def _note(group: str, mutant: Mutant, reach: Reach, meet: Any) -> None:
    tests = reach.of(mutant)
    limit = 20 + 10 * sum(reach.seconds[test] for test in tests)
    failed = _forked(meet, limit) if tests else ""
    status = "killed" if failed or failed is None else "survived" if tests else "not reached"
    kept = _kept()
    by = "takes too long" if failed is None else failed
    reach.noticed[mutant.module, by] += 1
    kept[mutant.name] = {"group": group, "line": mutant.line, "status": status, "by": by}
    RESULTS.write_text(
        json.dumps(kept, indent=0, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8"
    )
    if status != "killed":
        print(
            f"  {status}: {mutant.module}:{mutant.line} {mutant.scope}: {mutant.change}",
            file=sys.__stdout__,
            flush=True,
        )


def _kept() -> dict[str, Any]:
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}


# What came out.


def interval(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share that was seen in `count` draws."""
    if not count:
        return 0.0, 1.0
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def summary() -> str:
    """Return the table of `docs/testing.md`: by group, mutants, those met, noticed, equal, and the score."""
    kept, judged = _kept(), json.loads(JUDGED.read_text(encoding="utf-8")) if JUDGED.is_file() else {}
    lines = [
        "| group | mutants | met | noticed | equal | score | 95 % |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    open_ones = []
    for name, group in GROUPS.items():
        every = {mutant.name for module in group.modules for mutant in mutants_of(SOURCE, module)}
        met = {key: row for key, row in kept.items() if key in every and row["group"] == name}
        equal = {
            key
            for key, row in met.items()
            if row["status"] != "killed" and judged.get(key, [""])[0] == "equal"
        }
        noticed = sum(row["status"] == "killed" for row in met.values())
        count = len(met) - len(equal)
        if not count:
            continue
        # A sample that is everything has no chance in it.
        low, high = interval(noticed / count, count) if len(met) < len(every) else (noticed / count,) * 2
        lines.append(f"| {name} | {len(every)} | {len(met)} | {noticed} | {len(equal)} | {noticed / count:.1%} "
                     f"| {low:.0%}–{high:.0%} |")  # fmt: skip
        open_ones += [f"{row['status']}: {key}" for key, row in met.items()
                      if row["status"] != "killed" and key not in judged]  # fmt: skip
    return "\n".join([*lines, "", f"{len(open_ones)} not judged", *open_ones])


def choose(name: str, sample: int | None, seed: int, again: str | None) -> list[Mutant]:
    """Return the mutants of a group that are still to be met."""
    every = [m for module in GROUPS[name].modules for m in mutants_of(SOURCE, module)]
    if sample is not None and sample < len(every):
        places = sorted(random.Random(seed).sample(range(len(every)), sample))
        every = [every[place] for place in places]
    kept = _kept()
    if again is None:
        return [m for m in every if m.name not in kept]
    return [m for m in every if again == "all" or kept.get(m.name, {}).get("status") not in (None, "killed")]


def main() -> None:
    """Run from the command line; see the top of the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("groups", nargs="*", choices=[[], *GROUPS], help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--sample", type=int, help="mutants a group; all without it")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--again", choices=("survived", "all"), help="meet these once more")
    parser.add_argument("--lock", type=Path, help="file to lock while running, where machines are shared")
    parser.add_argument("--turn", type=float, default=120, help="seconds until the lock is given to others")
    parser.add_argument("--summary", action="store_true", help="print the table, and what is not judged")
    given = parser.parse_args()
    if given.summary:
        print(summary())
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.path.insert(0, str(SOURCE))
    sys.path.insert(0, str(ROOT))
    turns = Turns(given.lock, given.turn)
    turns.take()
    for module in WARM:
        importlib.import_module(module)
    for name in given.groups:
        wanted = choose(name, given.sample, given.seed, given.again)
        if wanted:
            run_group(name, wanted, turns)
    turns.give()


if __name__ == "__main__":
    main()
