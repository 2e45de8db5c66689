"""Whose images are whose: patients by their folders, and the names that stand for them in what is written.

A patient's own name or number never leaves the memory: groups are called `patient-0001`, numbered in the order of the
images' names.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from vitp.core.errors import ConfigError, DataError
from vitp.io.parts import base_address
from vitp.records.labels import LabelledImage

_PERSON = re.compile(r"(?i)(?:patient|subject|subj|sub|pat|person|case)[-_ ]?[0-9a-z]*\d[0-9a-z]*|p\d{6,}")
"""A folder of one person: `patient07`, `sub-01` of BIDS, `case_00012`, `p10000032` of MIMIC."""


_BARCODE = re.compile(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}(?=[-._]|$)")
"""How names of TCGA's files begin, of slides above all: project, site and participant."""


def _file(place: str) -> str:
    """Return the file of a place, whose own name, or a folder's, may hold "#"."""
    try:
        return base_address(place)
    except DataError:
        return place


def barcode_patients(places: Sequence[str]) -> list[str]:
    """Return the participant of each image whose name begins with a barcode of TCGA; "" for all where few do."""
    matches = [_BARCODE.match(PurePosixPath(_file(place)).name) for place in places]
    found = ["" if match is None else match[0] for match in matches]
    return found if 2 * sum(map(bool, found)) > len(found) else [""] * len(places)


def folder_patients(places: Sequence[str], classes: Collection[str] = ()) -> list[str]:
    """Return the outermost folder of each image that is called after a person; "" for all where few are.

    Args:
        places: Paths under the set's folder, with "/" between their parts.
        classes: Names of folders that are classes.
    """

    def person(place: str) -> str:
        parts = PurePosixPath(_file(place)).parts[:-1]
        return next((part for part in parts if _PERSON.fullmatch(part) and part not in classes), "")

    found = [person(place) for place in places]
    several = len(set(found) - {""}) > 1
    return found if several and 2 * sum(map(bool, found)) > len(found) else [""] * len(places)


def told_patients(places: Sequence[str], expression: str, where: str) -> list[str]:
    """Return what a regular expression finds in each path: its first bracket, or the whole match; "" without one.

    Raises:
        ConfigError: It isn't a regular expression.
        DataError: It finds nothing in any path.
    """
    try:
        pattern = re.compile(expression)
    except re.error as error:
        what = f'"{expression}" is neither a column of a table nor a regular expression ({error})'
        raise ConfigError(
            what, where="patient", fix=r"write one like (patient\d+), or name the column"
        ) from error
    matches = [pattern.search(_file(place)) for place in places]
    found = ["" if m is None else (m[1] if pattern.groups and m[1] is not None else m[0]) for m in matches]
    if not any(found):
        raise DataError(
            f'neither a column nor a path fits patient="{expression}"',
            where=where,
            fix=f"write an expression that finds the patient in paths like {places[0]}",
        )
    return found


def pseudonyms(items: Iterable[LabelledImage], persons: Mapping[str, str]) -> dict[str, str]:
    """Return the group of each person → what it is called in what is written.

    Args:
        items: In the order in which persons are numbered.
        persons: Group → what it is a group of, such as `patient`.
    """
    numbers: dict[str, int] = {}
    found: dict[str, str] = {}
    for item in items:
        if item.group in persons and item.group not in found:
            word = persons[item.group]
            numbers[word] = numbers.get(word, 0) + 1
            found[item.group] = f"{word}-{numbers[word]:04d}"
    return found


def renamed(items: Iterable[LabelledImage], names: Mapping[str, str]) -> list[LabelledImage]:
    """Return images with the names of their groups that stand for persons."""
    return [replace(item, group=names[item.group]) if item.group in names else item for item in items]


_BRATS = re.compile(r"(BraTS-[A-Za-z]+-\d+)-\d{3}")
_STUDY_OF = re.compile(
    r"(?i)((?:patient|subject|case|pat|subj|sub|person)[_\-. ]?\d+)(?=$|[_\-. /])",
)


def case_patient(name: str) -> str:
    """Return the patient of a case by its name: `patient001` of `patient001_2`, `sub-01` of `sub-01_ses-2`; else it.

    >>> case_patient("patient001_frame01"), case_patient("liver_12"), case_patient("BraTS-GLI-00005-100")
    ('patient001', 'liver_12', 'BraTS-GLI-00005')
    """
    match = _STUDY_OF.search(name) or _BRATS.search(name)
    return name if match is None else match[1]
