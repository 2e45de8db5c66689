"""Slices of volumes as images of a set: their addresses, and what is known of each without looking at its pixels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vitp.data.formats.volume_names import BIDS_SUFFIXES, MODALITY_WORDS, is_volume_name
from vitp.io.acquisition import Acquisition
from vitp.io.dicom_labels import dicom_role
from vitp.io.parts import FilePart, part_address
from vitp.io.volume_grid import VolumeGrid
from vitp.io.volume_kinds import is_dicom_file, volume_kind
from vitp.io.volumes import open_volume
from vitp.records.labels import LabelledSet

BACKGROUND_SHARE = 0.1
"""Training slices in which nothing is labelled, as a share of those in which something is."""

_ANONYMOUS = re.compile(r"(?i)anon|^0*\||unknown|^x+\||de-?identified|removed")
"""Ids that stand for no patient."""

_CT, _PET = ("ct", "cta", "cbct", "ncct"), ("pet", "pt", "suv")


@dataclass(frozen=True)
class VolumeFacts:
    """What the head of a volume says.

    Attributes:
        address: Address of the volume.
        grid: Where its voxels lie.
        acquisition: How it was taken.
        findings: What is wrong with it.
    """

    address: str
    grid: VolumeGrid
    acquisition: Acquisition
    findings: tuple[str, ...] = ()

    @classmethod
    def of(cls, address: str) -> VolumeFacts:
        """Open a volume.

        Raises:
            DataError: As `open_volume`; or its slices don't lie on an even grid, or not all of its voxels are there.
        """
        volume = open_volume(address)
        volume.check_even()
        volume.check_whole()
        return cls(address, volume.grid, volume.acquisition or Acquisition(), volume.findings)

    def patient(self) -> str:
        """Return what tells its patient from others, as the header of a DICOM file has it; "" where nothing does.

        It is used in memory alone. Sets that were made anonymous may call all patients alike; then studies count.
        """
        paths = [path for path in open_volume(self.address).source if is_dicom_file(path)]
        if not paths:
            return ""
        role = dicom_role(paths[0])
        anonymous = not role.patient or _ANONYMOUS.search(role.patient) is not None
        return role.study if anonymous else role.patient

    def count(self, plane: str) -> int:
        """Return how many slices there are in a plane."""
        return self.grid.slices_shape(plane)[0]

    def size(self, plane: str) -> tuple[int, int]:
        """Return width and height of the slices."""
        _, height, width = self.grid.slices_shape(plane)
        return width, height

    def slice_address(self, number: int, plane: str) -> str:
        """Return the address of a slice."""
        return part_address(self.address, FilePart(slice=number, plane=plane))

    def known(self, number: int, plane: str, modality: str = "") -> dict[str, Any]:
        """Return the fields of `LabelledImage` that say where a slice lies and how it was taken."""
        acquisition, count = self.acquisition, self.count(plane)
        spacing = self.grid.slice_spacing(plane)
        told = {
            "modality": modality or acquisition.modality,
            "plane": acquisition.plane if plane == "stored" or count == 1 else plane,
            "body_part": acquisition.body_part,
            "laterality": acquisition.laterality,
            "view": acquisition.view,
        }
        return {
            "metadata": {key: value for key, value in told.items() if value} or None,
            "spacing": None if spacing is None else (spacing[2], spacing[1]),
            "thickness": None if spacing is None or count == 1 else spacing[0],
            "level": None if count == 1 else number / (count - 1),
        }


def is_medical(path: Path) -> bool:
    """Return whether a file or folder holds a volume or a medical image."""
    return (path.is_dir() or is_volume_name(path)) and volume_kind(path) is not None


def modality_of(names: Sequence[str]) -> str:
    """Return DICOM's code of the modality that the names of channels say; "" where they don't."""
    words = [name.lower() for name in names]
    known = MODALITY_WORDS | BIDS_SUFFIXES.keys()
    if not words or not all(word in known or word.split("_")[0] in known for word in words):
        return ""
    kinds = {"CT" if word in _CT else "PT" if word in _PET else "MR" for word in words}
    return kinds.pop() if len(kinds) == 1 else ""


def common_plane(facts: Sequence[VolumeFacts]) -> str:
    """Return the plane that most volumes are best seen in."""
    return Counter(one.grid.plane for one in facts).most_common(1)[0][0]


def told_volumes(facts: Sequence[VolumeFacts], plane: str, modality: str) -> str:
    """Return a line about modality, plane, slices and spacing of a set's volumes."""
    kinds = Counter(modality or one.acquisition.modality or "unknown modality" for one in facts)
    counts = [one.count(plane) for one in facts]
    spacings = [s for one in facts if (s := one.grid.slice_spacing(plane)) is not None]
    line = (
        f"{len(facts):,} volumes ({', '.join(f'{name} {n}' for name, n in sorted(kinds.items()))}): {plane} slices, "
        f"{_range(counts)} in each"
    )
    if spacings:
        z, y, x = (_range([round(spacing[axis], 2) for spacing in spacings]) for axis in range(3))
        line += f"; pixels of {x} × {y} mm, {z} mm from slice to slice"
    if len(spacings) < len(facts):
        line += f"; {len(facts) - len(spacings)} don't say their spacing"
    return line


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g}–{high:g}"


def limit_background(labelled: LabelledSet, empty: set[str], share: float) -> LabelledSet:
    """Return a set with so few training slices without labels that they are at most a share of those with some.

    Those that stay are evenly spaced over the volumes. Other splits keep theirs: they are scored as volumes.

    Args:
        labelled: The set.
        empty: Ids of the slices in which nothing is labelled.
        share: Share of the training slices with labels.
    """
    training = [item for item in labelled.items if item.split == "train"]
    blank = [item.id for item in training if item.id in empty]
    full = sum(item.semantic is not None or item.objects is not None for item in training) - len(blank)
    most = int(full * share + 0.5) if full else len(blank)
    if len(blank) <= most:
        return labelled
    kept = {blank[int(place)] for place in np.linspace(0, len(blank) - 1, most).round()} if most else set()
    left_out = set(blank) - kept
    line = (
        f"slices: {full:,} of the training volumes with labels, and {len(kept):,} of {len(blank):,} without any "
        f"(-o background={share:g}); val and test keep all of theirs"
    )
    items = [item for item in labelled.items if item.id not in left_out]
    return replace(labelled, items=items, understood=(*labelled.understood, line))
