"""All checks of a run, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from vitp.core import distributed
from vitp.core.config import CONFIG_FILE, load_config
from vitp.core.errors import ConfigError, did_you_mean
from vitp.core.leftovers import temporary_folder
from vitp.runs.check import runs
from vitp.runs.check.batches import BatchChecks
from vitp.runs.check.findings import CheckFinding
from vitp.runs.pretrain import PretrainConfig, build_with_language

CHECKS = ("packed", "shared", "attention", "bf16", "recompute", "compile", "resume", "ranks")


def load_run(path: Path, overrides: Sequence[str] = ()) -> PretrainConfig:
    """Return the configuration of a run folder or file, the run's trained model as its start where there is one.

    Raises:
        VitpError: There is none, or a key is wrong.
    """
    file = path / CONFIG_FILE if path.is_dir() else path
    if not file.is_file():
        raise ConfigError("holds no config.yaml", where=str(path), fix="name a pretraining run")
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
        config: Of the run.
        records: That are compared, and that a step of the short runs has.
        ranks: Processes of the last check.
        only: Names out of `CHECKS`; none: all.
        skip: Names that are left out.

    Raises:
        VitpError: A name is unknown, or the run's data can't be used.
    """
    for name in (*only, *skip):
        if name not in CHECKS:
            hint = did_you_mean(name, CHECKS) or f"checks are {', '.join(CHECKS)}"
            raise ConfigError(f"unknown check {name!r}", where="vitp check", fix=hint)
    wanted = [name for name in (only or CHECKS) if name not in skip]
    device = distributed.resolve_device(config.train.device)
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
