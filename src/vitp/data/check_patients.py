"""Patients, studies, volumes and slides that two splits, or two sets of a mixture, have in common.

What tells one patient from another is read from the headers of DICOM files. It is compared in memory, and never told:
a finding names the files.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitp.core.errors import DataError
from vitp.core.reading import lines_of, parse_json, read_text
from vitp.data.identical import equal_files
from vitp.io.dicom_labels import dicom_role
from vitp.io.parts import braced, split_address
from vitp.io.volume_kinds import is_dicom_file, volume_kind
from vitp.records.labels import SPLITS


@dataclass(frozen=True)
class SharedPatient:
    """A finding: what two sides share, the first image of it on the left, and in words what it is."""

    kind: str
    address: str
    what: str


def whole_of(address: str) -> str | None:
    """Return the volume or slide that an address is a part of, None where it isn't one."""
    base, part = split_address(address)
    if any(value is not None for value in (part.slice, part.mpp, part.own_mpp, part.plane)):
        return base if part.series is None else f"{base}#series={part.series}"
    return base if Path(base).suffix.lower() in (".dcm", ".dicom", ".ima") else None


class MedicalFiles:
    """The volumes and slides of one side, with digests of who and what they are of."""

    def __init__(self, addresses: Iterable[str]) -> None:
        self.first: dict[str, str] = {}
        for address in addresses:
            if (whole := whole_of(address)) is not None:
                self.first.setdefault(whole, address)
        self.patients: dict[bytes, str] = {}
        self.studies: dict[bytes, str] = {}
        for whole, address in self.first.items():
            for kept, text in zip((self.patients, self.studies), _ids(whole), strict=True):
                if text:
                    kept.setdefault(
                        hashlib.blake2b(text.encode(errors="replace"), digest_size=16).digest(), address
                    )

    @property
    def is_empty(self) -> bool:
        """Whether there are none."""
        return not self.first


def _ids(whole: str) -> tuple[str, str]:
    """Return what tells the patient and the study of a DICOM file or series; "" where nothing does."""
    base = split_address(whole)[0]
    if braced(base) or volume_kind(base) != "dicom":
        return "", ""
    path = Path(base)
    if path.is_dir():
        found = (one for one in sorted(path.iterdir()) if one.is_file() and is_dicom_file(one))
        path = next(found, path)
    try:
        role = dicom_role(path)
    except DataError:
        return "", ""
    return role.patient, role.study


def shared_patients(left: MedicalFiles, right: MedicalFiles, side: str) -> Iterator[SharedPatient]:
    """Yield what two sides have in common, each volume once: the volume itself, a copy of it, its study, its patient.

    Args:
        left, right: The sides.
        side: What the right one is called.
    """
    told: set[str] = set()

    def new(kind: str, address: str, what: str) -> Iterator[SharedPatient]:
        if address not in told:
            told.add(address)
            yield SharedPatient(kind, address, what)

    for whole, address in left.first.items():
        if whole in right.first:
            yield from new("volume", address, f"{Path(whole).name} is in {side}, too")
    both = [*left.first, *(whole for whole in right.first if whole not in left.first)]
    for paths in equal_files([whole for whole in both if not braced(whole)]):
        mine = [path for path in paths if path in left.first]
        its = [path for path in paths if path in right.first and path not in left.first]
        if mine and its:
            what = f"{Path(mine[0]).name} is in {side} under another name ({Path(its[0]).name})"
            yield from new("volume", left.first[mine[0]], what)
    for kind, mine_by, its_by in (
        ("study", left.studies, right.studies),
        ("patient", left.patients, right.patients),
    ):
        for key, address in mine_by.items():
            if key in its_by:
                twin = Path(split_address(its_by[key])[0]).name
                what = (
                    f"{Path(split_address(address)[0]).name} is of a {kind} that is in {side}, too ({twin})"
                )
                yield from new(kind, address, what)


def torn_patients(folder: Path) -> list[tuple[str, Sequence[str]]]:
    """Return the patients of a compiled set that are in several splits, with these splits.

    Patients are the groups that the compilation called `patient-0001`; others may be split on purpose.
    """
    sides: dict[str, list[str]] = defaultdict(list)
    for split in SPLITS:
        path = folder / "labels" / f"{split}.jsonl"
        for line in lines_of(read_text(path)) if path.is_file() else ():
            if '"group":"patient-' not in line.replace('": "', '":"'):
                continue
            try:
                row: Any = parse_json(line)
                group = str(row.get("group", ""))
            except (ValueError, AttributeError):
                continue
            if split not in sides[group]:
                sides[group].append(split)
    return [(group, own) for group, own in sorted(sides.items()) if len(own) > 1]
