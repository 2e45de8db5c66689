"""The folder of a prediction that isn't finished: what is done of it stays when the process is killed.

.NAME.unfinished/plan.json    inputs, model and options; only the same plan is continued
.NAME.unfinished/out/         becomes NAME when it is whole
.NAME.unfinished/parts/       what is done of each raster and volume
.NAME.unfinished/pictures/    what is done of the pictures
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from vitp.core import distributed
from vitp.core.errors import VitpError
from vitp.core.files import as_user_error, put_in_place, write_json
from vitp.core.leftovers import claim, is_abandoned, recover

_PLAN = "plan.json"


def unfinished_folder(out: Path) -> Path:
    """Return where the parts of a prediction lie until it is whole."""
    return out.with_name(f".{out.name}.unfinished")


def is_unfinished(out: Path) -> bool:
    """Return whether an attempt has left something to go on with: one that was killed at its very end has not."""
    return (unfinished_folder(out) / "out").is_dir()


def note_done(folder: Path, part: str) -> None:
    """Write down that a part is finished: a line in the file of this process, `done-RANK.txt`."""
    with (folder / f"done-{distributed.rank()}.txt").open("a", encoding="utf-8") as file:
        file.write(f"{part}\n")


def done_parts(folder: Path) -> set[str]:
    """Return what all processes have written down as finished."""
    texts = [file.read_text(encoding="utf-8") for file in sorted(folder.glob("done-*.txt"))]
    lines = [line for text in texts for line in text.splitlines(keepends=True)]
    # A line without its end was cut off while it was written.
    return {line.strip() for line in lines if line.endswith("\n")}


@contextlib.contextmanager
def unfinished(
    out: Path, plan: dict[str, Any], *, resume: bool, say: Callable[[str], None] = lambda _: None
) -> Iterator[Path]:
    """Yield a working folder with `out/`, which becomes `out` on success, and `parts/`.

    It is removed when nothing of worth is in it; an interrupt or a full disk leaves what is done, and `resume` goes on
    there. All processes of a group work in one folder; the first makes it and puts the result in place.

    Args:
        out: The folder that is to appear.
        plan: What is computed, as JSON values.
        resume: Go on with what an earlier attempt has left, where there is such.
        say: Called with a sentence where something is left.

    Raises:
        VitpError: Another process works on the same output, an attempt of another plan is to be continued, or the
            place can't be written.
    """
    folder = unfinished_folder(out)
    error: VitpError | None = None
    if distributed.rank() == 0:
        try:
            _prepare(out, folder, plan, resume=resume)
        except VitpError as found:
            error = found
        except OSError as found:
            error = as_user_error(found, out)
    distributed.raise_together(error)
    try:
        yield folder
        distributed.barrier()
        if distributed.rank() == 0:
            # On the disk before the folder gets its name: after a crash it must not be there with empty files.
            for file in (folder / "out").rglob("*"):
                if file.is_file():
                    with file.open("rb") as written:
                        os.fsync(written.fileno())
            put_in_place(folder / "out", out)
            shutil.rmtree(folder, ignore_errors=True)
    except BaseException as stopped:
        if not _holds_parts(folder):
            if distributed.rank() == 0:
                shutil.rmtree(folder, ignore_errors=True)
        else:
            say(f"what is done is kept in {folder}; the same command with --resume goes on there")
        if isinstance(stopped, OSError):
            raise as_user_error(stopped, out) from stopped
        raise


def _prepare(out: Path, folder: Path, plan: dict[str, Any], *, resume: bool) -> None:
    # As it is read back, with lists for tuples, so that plans can be compared.
    plan = json.loads(json.dumps(plan))
    out.parent.mkdir(parents=True, exist_ok=True)
    recover(out)
    if folder.exists():
        if not is_abandoned(folder):
            raise VitpError(
                "is being written by another process",
                where=str(out),
                fix="wait for it, or choose another folder",
            )
        if resume and is_unfinished(out):
            _check_plan(out, folder, plan)
        else:
            shutil.rmtree(folder)
    try:
        for name in ("out", "parts"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for note in folder.glob(".owner.*"):
            note.unlink()
        claim(folder)
        write_json(folder / _PLAN, plan)
    except (OSError, VitpError):
        if not _holds_parts(folder):
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _holds_parts(folder: Path) -> bool:
    """Return whether something of a prediction is done."""
    return any(chain((folder / "parts").glob("*/*"), (folder / "pictures").glob("*.safetensors")))


def _check_plan(out: Path, folder: Path, plan: dict[str, Any]) -> None:
    try:
        earlier = json.loads((folder / _PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        shutil.rmtree(folder)  # killed before it had begun
        return
    if other := differing(plan, earlier):
        raise VitpError(
            f"an unfinished prediction is there, of other {' and '.join(other)}",
            where=str(out),
            fix="repeat the command that began it, or leave out --resume to start anew",
        )


def differing(plan: dict[str, Any], earlier: dict[str, Any]) -> list[str]:
    """Return what is not the same in two plans, sorted."""
    return sorted(key for key in plan.keys() | earlier.keys() if plan.get(key) != earlier.get(key))
