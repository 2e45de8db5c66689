"""Run the fuzzer: `python -m tests.fuzz --count 2000 --seed 0`."""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.cases import CHEAP, TEMPLATES
from tests.fuzz.runner import MOST_SECONDS, Outcome, run_cases, summary


def main() -> int:
    """Run cases, print what is wrong and a table; return 1 when something is."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="cases")
    parser.add_argument("--first", type=int, default=0, help="number of the first")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of cases, to repeat them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep seeds, and the inputs of cases with faults, here")
    parser.add_argument("--cheap", action="store_true", help="commands of a fraction of a second alone")
    parser.add_argument("--command", help="commands that begin with this word alone")
    parser.add_argument("--minutes", type=float, help="begin no new case after so many")
    parser.add_argument("--limit", type=float, default=MOST_SECONDS, help="seconds of a case")
    parser.add_argument("--verbose", action="store_true", help="print what each case prints")
    options = parser.parse_args()
    templates = CHEAP if options.cheap else TEMPLATES
    if options.command:
        templates = tuple(t for t in templates if " ".join(t.command).startswith(options.command))
    numbers = options.only or range(options.first, options.first + options.count)
    outcomes: list[Outcome] = []
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as temporary:
        folder = options.folder.resolve() if options.folder else Path(temporary)
        for outcome in run_cases(
            numbers,
            options.seed,
            folder,
            templates=templates,
            most_seconds=options.limit,
            keep=bool(options.folder),
        ):
            outcomes.append(outcome)
            if outcome.faults or options.verbose:
                _show(outcome)
            if options.minutes and time.monotonic() - begin > 60 * options.minutes:
                print(f"stopped after case {outcome.number}")
                break
    print(summary(outcomes))
    return int(any(outcome.faults for outcome in outcomes))


def _show(outcome: Outcome) -> None:
    print(
        f"case {outcome.number}: {'; '.join(outcome.faults) or 'well'} (exit {outcome.code}, {outcome.seconds:.1f} s)"
    )
    command = " ".join(shlex.quote(word) for word in ["vitp", *outcome.case.arguments])
    print(f"    {command[:300].encode('unicode_escape', 'backslashreplace').decode()}")
    for line in outcome.text.splitlines()[-12:]:
        print(f"    | {line[:300].encode('utf-8', 'replace').decode()}")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
