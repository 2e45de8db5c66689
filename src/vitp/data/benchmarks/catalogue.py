"""The sixteen sets of the paper: name → what is fixed about each, and name → its reader."""

from __future__ import annotations

from collections.abc import Callable

from vitp.data.benchmarks import boxes, change, medical, segmentation
from vitp.data.benchmarks.base import Benchmark
from vitp.data.published import published_set
from vitp.records.labels import LabelledSet

_ENTRIES: tuple[tuple[Benchmark, Callable[..., LabelledSet]], ...] = (
    (boxes.DIOR, boxes.read_dior),
    (boxes.DIOR_R, boxes.read_dior_r),
    (boxes.DOTA, boxes.read_dota_v2),
    (boxes.SARDET, boxes.read_sardet),
    (boxes.RSAR, boxes.read_rsar),
    (boxes.SSDD, boxes.read_ssdd),
    (segmentation.ISAID, segmentation.read_isaid),
    (segmentation.LOVEDA, segmentation.read_loveda),
    (segmentation.UAVID, segmentation.read_uavid),
    (change.SVCD, change.read_svcd),
    (change.WHU_CD, change.read_whu_cd),
    (change.LEVIR_CD, change.read_levir_cd),
    (change.S2LOOKING, change.read_s2looking),
    (medical.AMOS, medical.read_amos),
    (medical.BRATS, medical.read_brats),
    (segmentation.COVIDQUEX, segmentation.read_covidquex),
)

BENCHMARKS: dict[str, Benchmark] = {facts.name: facts for facts, _ in _ENTRIES}
"""Name → splits, classes, metric and protocol."""

BENCHMARK_READERS: dict[str, Callable[..., LabelledSet]] = {facts.name: reader for facts, reader in _ENTRIES}
"""Name → reader (folder, ReadOptions, options of its own); `read_labels` knows them as formats."""


def benchmark(name: str) -> Benchmark:
    """Return what is fixed about a set.

    Raises:
        ConfigError: There is no such set.
    """
    return published_set(BENCHMARKS, name, "benchmark", "benchmarks")
