"""A process for each case, forked from one that has imported everything, and looked at from outside."""

from __future__ import annotations

import gc
import importlib
import os
import pkgutil
import resource
import shutil
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.cases import CHEAP, TEMPLATES, Case, Template, make_case
from tests.fuzz.seeds import make_seeds, warm_up

MOST_SECONDS = 20.0
MOST_MEMORY = 2 << 30
EXPECTED_CODES = (0, 1, 2)


@dataclass
class Outcome:
    """What became of a case.

    Attributes:
        case: The case.
        number: Of the case.
        code: Exit code; negative: the signal that ended it.
        seconds: Wall time.
        memory: Most bytes in memory.
        faults: What must not be; empty when all is well.
        text: What it printed, shortened.
    """

    case: Case
    number: int
    code: int
    seconds: float
    memory: int
    faults: list[str] = field(default_factory=list)
    text: str = ""


def load_modules(*, models: bool) -> None:
    """Import what cases need, and keep this process to one thread, so that forks are safe and fast.

    Args:
        models: Import all modules of vitp; else those of data, without torch.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import vitp
    import vitp.data

    package = vitp if models else vitp.data
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if (models or module.name.split(".")[2] in _DATA) and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    importlib.import_module("vitp.cli")
    if models:
        import torch

        torch.set_num_threads(1)
    gc.collect()
    gc.freeze()


_DATA = (
    "benchmarks",
    "check",
    "compile",
    "formats",
    "leaks",
    "readers",
    "scenes",
    "shards",
    "show",
    "synthesis",
)
"""Modules of data that commands of data use."""


def run_cases(
    numbers: range | list[int],
    seed: int,
    folder: Path,
    *,
    templates: tuple[Template, ...] = TEMPLATES,
    most_seconds: float = MOST_SECONDS,
    keep: bool = False,
) -> Iterator[Outcome]:
    """Yield what becomes of each case.

    Args:
        numbers: Of the cases.
        seed: Of all of them.
        folder: For inputs and outputs; seeds that are there already are used.
        templates: Commands to choose from.
        most_seconds: Wall time after which a case counts as hanging, and is ended.
        keep: Leave the folders of cases with faults.
    """
    models = templates != CHEAP
    load_modules(models=models)
    seeds = folder / "seeds"
    if not (seeds / "whole").exists():
        shutil.rmtree(seeds, ignore_errors=True)
        make_seeds(seeds, models=models)
        (seeds / "whole").touch()
    if not models:
        warm_up(seeds)
        gc.freeze()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        port = server.getsockname()[1]
        for number in numbers:
            place = folder / f"case-{number}"
            shutil.rmtree(place, ignore_errors=True)
            case = make_case(seed, number, seeds, place, port, templates)
            case.before = _listing(place)
            outcome = _run(case, number, most_seconds)
            outcome.faults += _connections(server)
            outcome.faults += _judged(case, outcome)
            yield outcome
            if not (keep and outcome.faults):
                shutil.rmtree(place, ignore_errors=True)


def _run(case: Case, number: int, most_seconds: float) -> Outcome:
    begin = time.monotonic()
    printed = case.folder / "printed"
    child = os.fork()
    if child == 0:
        _child(case, printed)
    code, usage, faults = 0, None, []
    while usage is None:
        pid, status, found = os.wait4(child, os.WNOHANG)
        if pid:
            code, usage = os.waitstatus_to_exitcode(status), found
        elif time.monotonic() - begin > most_seconds:
            try:
                os.killpg(child, signal.SIGKILL)
            except ProcessLookupError:  # on a busy machine it hasn't begun its own group yet
                os.kill(child, signal.SIGKILL)
            _, status, usage = os.wait4(child, 0)
            code = os.waitstatus_to_exitcode(status)
            faults.append(f"hangs: not done after {most_seconds:g} s")
        else:
            time.sleep(0.002)
    text = printed.read_text(errors="replace")[-4000:] if printed.exists() else ""
    return Outcome(case, number, code, time.monotonic() - begin, usage.ru_maxrss * 1024, faults, text)


def _child(case: Case, printed: Path) -> None:
    """Run the command in this process, and leave without a word to what was forked."""
    code = 99
    try:
        os.setpgid(0, 0)
        with printed.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        _bound(case.folder)
        from vitp.cli import run

        sys.argv = ["vitp", *case.arguments]
        code = run(list(case.arguments))
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _bound(folder: Path) -> None:
    """Limit what a case may take, and note where it wants to connect to."""
    (folder / "cwd").mkdir()
    (folder / "tmp").mkdir()
    os.chdir(folder / "cwd")
    for name in ("HOME", "XDG_CACHE_HOME", "VITP_CACHE"):
        os.environ[name] = str(folder / "cache")
    os.environ.update(TMPDIR=str(folder / "tmp"), COLUMNS="120", NO_COLOR="1")
    import tempfile

    tempfile.tempdir = None
    status = Path("/proc/self/statm")
    mapped = int(status.read_text().split()[0]) * resource.getpagesize() if status.exists() else 16 << 30
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MOST_MEMORY, mapped + MOST_MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    notes = folder / "connections"

    def refuse(_self: socket.socket, address: object) -> None:
        with notes.open("a") as file:
            file.write(f"{address}\n")
        raise OSError(101, "Network is unreachable")

    def no_name(host: object, *_rest: object, **_options: object) -> None:
        with notes.open("a") as file:
            file.write(f"{host}\n")
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    socket.socket.connect = refuse  # type: ignore[assignment, method-assign]
    socket.socket.connect_ex = refuse  # type: ignore[assignment, method-assign]
    socket.getaddrinfo = no_name  # type: ignore[assignment]


def _connections(server: socket.socket) -> list[str]:
    try:
        server.accept()[0].close()
    except BlockingIOError:
        return []
    return ["connects to the port that listens"]


def _judged(case: Case, outcome: Outcome) -> list[str]:
    faults = []
    if outcome.code not in EXPECTED_CODES and not outcome.faults:
        faults.append(f"exit code {outcome.code}")
    if "Traceback (most recent call last)" in outcome.text:
        faults.append("a stack trace")
    if outcome.memory > MOST_MEMORY:
        faults.append(f"{outcome.memory / 2**30:.1f} GiB of memory")
    if case.whole and outcome.code != 0:
        faults.append(f"ends with {outcome.code} though nothing is wrong with its input")
    notes = case.folder / "connections"
    if notes.exists():
        faults.append(
            f"wants to connect to {', '.join(sorted(set(notes.read_text().split(chr(10))) - {''}))[:200]}"
        )
    for trace in (case.folder / "tmp").glob("vitp-error-*"):
        outcome.text += "\n" + trace.read_text(errors="replace")[-3000:]
    return faults + _left_behind(case, outcome)


def _left_behind(case: Case, outcome: Outcome) -> list[str]:
    """Say what a command wrote that it shouldn't have."""
    faults = []
    after = _listing(case.folder)
    new = {
        name
        for name in after
        if case.before.get(name) != after[name]
        and not name.startswith(("cache", "tmp/vitp-error", "printed", "connections"))
    } - {"cwd", "tmp"}
    outside = sorted(
        name
        for name in new
        if not name.startswith(("out", "o" * 300))
        and not (case.own and name.startswith("in"))
        and not name.startswith("cwd/")
    )
    # A command whose output is named by an empty text writes beside itself; all others have no business there.
    outside += sorted(
        name for name in new if name.startswith("cwd/") and not {"", "--draw"} & {*case.arguments}
    )
    if outside:
        faults.append(f"writes {', '.join(outside[:4])}")
    if hidden := sorted(name for name in after if Path(name).name.startswith(".out")):
        faults.append(f"leaves {hidden[0]}")
    if outcome.code == 2 and case.marker and case.marker != "file":
        tops = sorted({name.split("/")[0] for name in new if name.startswith("out")})
        half = [
            top
            for top in tops
            if (case.folder / top).is_dir() and not (case.folder / top / case.marker).exists()
        ]
        faults.extend(f"leaves {top} half-written" for top in half)
    if outcome.code == 0 and case.marker and not (case.before.keys() & {"out"}) and _plain_out(case):
        wanted = case.out / case.marker if case.marker != "file" else None
        if wanted is not None and not wanted.exists():
            faults.append(f"succeeds without {case.marker}")
    return faults


def _plain_out(case: Case) -> bool:
    return str(case.out) in case.arguments


def _listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Return path → size and time of change of all that is below a folder."""
    found = {}
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(parent, name)  # noqa: PTH118
            facts = os.lstat(path)
            of_file = (facts.st_size, facts.st_mtime_ns)
            found[os.path.relpath(path, folder)] = (0, 0) if name in folders else of_file
    return found


def summary(outcomes: list[Outcome]) -> str:
    """Return a table of commands: cases, exit codes, slowest, most memory, faults."""
    lines = [
        f"{'command':<16}{'cases':>7}{'done':>7}{'found':>7}{'refused':>9}{'faults':>8}{'slowest s':>11}{'MiB':>7}"
    ]
    names = sorted({outcome.case.name for outcome in outcomes})
    for name in (*names, "all"):
        some = [outcome for outcome in outcomes if name in (outcome.case.name, "all")]
        codes = Counter(outcome.code for outcome in some)
        lines.append(
            f"{name:<16}{len(some):>7}{codes[0]:>7}{codes[1]:>7}{codes[2]:>9}{sum(bool(o.faults) for o in some):>8}"
            f"{max(o.seconds for o in some):>11.1f}{max(o.memory for o in some) >> 20:>7}"
        )
    return "\n".join(lines)
