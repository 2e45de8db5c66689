"""Kind of cell → what does its work."""

from __future__ import annotations

from vitp.studies.evaluations import finetune, probe, robustness
from vitp.studies.pretraining import choose, pretrain
from vitp.studies.process import Work
from vitp.studies.sources import provide_data
from vitp.studies.timing import TIMING, measure_pace

WORK: dict[str, Work] = {
    "data": provide_data,
    "pretrain": pretrain,
    "choose": choose,
    "probe": probe,
    "finetune": finetune,
    "robustness": robustness,
    TIMING: measure_pace,
}

VERSIONS: dict[str, int] = dict.fromkeys(WORK, 1)
"""Raise a number when equal settings give another result than before: cells of that kind are done again."""
