"""Corruptions of images, with labels that move along: 12 × 5 severities, and extras."""

from vitp.evaluation.corruptions.catalogue import CORRUPTIONS, EXTRAS, SEVERITIES, Corruption, corruptions_of
from vitp.evaluation.corruptions.sets import corrupt_sample, corrupted_set

__all__ = [
    "CORRUPTIONS",
    "EXTRAS",
    "SEVERITIES",
    "Corruption",
    "corrupt_sample",
    "corrupted_set",
    "corruptions_of",
]
