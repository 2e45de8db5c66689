"""The sixteen sets of the paper: name → what is fixed about each, and name → its reader."""

from __future__ import annotations

from collections.abc import Callable

from vitp.core.errors import ConfigError, did_you_mean
from vitp.data.benchmarks import change, covidquex, dior, dota, isaid, land_cover, medical, sar
from vitp.data.benchmarks.base import Benchmark
from vitp.records.labels import LabelledSet

_ENTRIES: tuple[tuple[Benchmark, Callable[..., LabelledSet]], ...] = (
    (dior.DIOR, dior.read),
    (dior.DIOR_R, dior.read_oriented),
    (dota.DOTA, dota.read),
    (sar.SARDET, sar.read),
    (dota.RSAR, dota.read_rsar),
    (sar.SSDD, sar.read_ssdd),
    (isaid.ISAID, isaid.read),
    (land_cover.LOVEDA, land_cover.read),
    (land_cover.UAVID, land_cover.read_uavid),
    (change.SVCD, change.read_svcd),
    (change.WHU_CD, change.read_whu_cd),
    (change.LEVIR_CD, change.read_levir_cd),
    (change.S2LOOKING, change.read_s2looking),
    (medical.AMOS, medical.read_amos),
    (medical.BRATS, medical.read_brats),
    (covidquex.COVIDQUEX, covidquex.read),
)

BENCHMARKS: dict[str, Benchmark] = {facts.name: facts for facts, _ in _ENTRIES}
"""Name → splits, classes, metric and protocol."""

READERS: dict[str, Callable[..., LabelledSet]] = {facts.name: reader for facts, reader in _ENTRIES}
"""Name → reader (folder, ReadOptions, options of its own); `read_labels` knows them as formats."""


def benchmark(name: str) -> Benchmark:
    """Return what is fixed about a set.

    Raises:
        ConfigError: There is no such set.
    """
    if name not in BENCHMARKS:
        hint = did_you_mean(name, BENCHMARKS)
        raise ConfigError(
            f'no benchmark "{name}"', where="benchmarks", fix=hint or f"known are {', '.join(BENCHMARKS)}"
        )
    return BENCHMARKS[name]
