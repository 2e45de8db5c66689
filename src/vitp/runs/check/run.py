"""All checks of a pretraining run, one after the other; those of a finetuned one are in `vitp.runs.check.seams`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from vitp.core import distributed
from vitp.core.config import CONFIG_FILE, load_config
from vitp.core.errors import ConfigError, did_you_mean
from vitp.core.leftovers import temporary_folder
from vitp.core.reading import no_such, read_text
from vitp.runs.check import runs
from vitp.runs.check.batches import BatchChecks
from vitp.runs.check.findings import CheckFinding
from vitp.runs.pretrain import PretrainConfig, build_with_language

CHECKS = ("packed", "shared", "attention", "bf16", "recompute", "compile", "resume", "ranks")
"""Of a pretraining run."""
FINETUNED_CHECKS = ("seams",)
"""Of a finetuned run."""


def is_finetuned(path: Path) -> bool:
    """Return whether a folder or file is that of a finetuned run."""
    file = path / CONFIG_FILE if path.is_dir() else path
    return file.is_file() and re.search(r"^task:", read_text(file), re.MULTILINE) is not None


def check_known(known: Sequence[str], *names: str) -> None:
    """Do nothing when all names are of checks.

    Raises:
        ConfigError: One isn't; the message names them.
    """
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known) or f"checks are {', '.join(known)}"
            raise ConfigError(f"unknown check {name!r}", where="vitp check", fix=hint)


def load_run(path: Path, overrides: Sequence[str] = ()) -> PretrainConfig:
    """Return the configuration of a run folder or file, the run's trained model as its start where there is one.

    Raises:
        VitpError: There is none, or a key is wrong.
    """
    file = path / CONFIG_FILE if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(
            no_such(path) or "holds no config.yaml", where=str(path), fix="name a pretraining run"
        )
    config = load_config(PretrainConfig, file, overrides)
    if path.is_dir() and (path / "model").is_dir():
        config = config.model_copy(update={"model": config.model.model_copy(update={"init": str(path)})})
    return config


def check_run(
    config: PretrainConfig,
    *,
    records: int = 8,
    ranks: int = 2,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
) -> Iterator[CheckFinding]:
    """Yield what each check finds, as soon as it is known.

    Args:
        config: Configuration of the run.
        records: That are compared, and that a step of the short runs has.
        ranks: Processes of the last check.
        only: Names out of `CHECKS`; none: all.
        skip: Names that are left out.

    Raises:
        VitpError: A name is unknown, or the run's data can't be used.
    """
    check_known(CHECKS, *only, *skip)
    wanted = [name for name in (only or CHECKS) if name not in skip]
    device = distributed.resolve_device(config.train.device)
    # As many for each rank.
    batch = -(-records // ranks) * ranks
    short = runs.short_run(config, batch=batch, device=device.type)
    if any(name in _BATCH_CHECKS for name in wanted):
        checks = BatchChecks(*build_with_language(short), device, records)
        yield from (check(checks) for name, check in _BATCH_CHECKS.items() if name in wanted)
    with temporary_folder("vitp-check") as folder:
        if "resume" in wanted:
            yield runs.resumed_equals_uninterrupted(short, Path(folder))
        if "ranks" in wanted:
            yield runs.ranks_equal_one(short, Path(folder), ranks)


_BATCH_CHECKS: dict[str, Callable[[BatchChecks], CheckFinding]] = {
    "packed": BatchChecks.packed_equals_single,
    "shared": BatchChecks.shared_equals_separate,
    "attention": BatchChecks.attention_equals_reference,
    "bf16": BatchChecks.half_precision_is_near,
    "recompute": BatchChecks.recomputed_equals_kept,
    "compile": BatchChecks.compiled_equals_eager,
}
