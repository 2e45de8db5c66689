"""Colours of classes, the same in pictures, masks and pages."""

from __future__ import annotations

CLASS_COLOURS = (
    "#4477aa",
    "#ee6677",
    "#228833",
    "#ccbb44",
    "#66ccee",
    "#aa3377",
    "#ff9f43",
    "#8d6e63",
    "#b7b7b7",
    "#2ec4b6",
    "#7e57c2",
    "#e6e6e6",
    "#1b2a49",
    "#c0f06a",
)
"""Fills of grid cells by class, on pictures of any brightness (after Tol's bright scheme)."""
