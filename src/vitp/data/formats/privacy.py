"""Warnings of what would tell whose images a set holds: names of files, and text that is burnt into pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vitp.data.formats.walk import within
from vitp.io.dicom_identity import dicom_identity
from vitp.io.parts import base_address
from vitp.io.volume_kinds import holds_dicom, is_dicom_file
from vitp.records.labels import LabelledSet


def with_privacy_findings(labelled: LabelledSet, root: Path) -> LabelledSet:
    """Return a set with findings about its DICOM files; headers are compared in memory, and none is quoted.

    Args:
        labelled: As it was read.
        root: Its folder or file.

    Raises:
        DataError: A file is DICOM, and pydicom isn't installed.
    """
    if not isinstance(labelled.items, list | tuple):  # generated ones
        return labelled
    base = root if root.is_dir() else root.parent
    files = dict.fromkeys(
        base_address(address)
        for item in labelled.items
        for address in (item.image, item.second_image)
        if address is not None
    )
    named, written, unsaid, looked_at = 0, 0, 0, 0
    for file in files:
        path = Path(file)
        if not (holds_dicom(path) if path.is_dir() else is_dicom_file(path)):
            continue
        who = dicom_identity(path)
        if who is not None:
            looked_at += 1
            named += who.is_named_by(within(path, base))
            written += who.burnt_in is True
            unsaid += who.burnt_in is None and who.often_written_on
    of = f"{looked_at:,} DICOM files and series"
    lines = []
    if named:
        lines.append(
            f"identity: the paths of {named:,} of {of} hold the patient's name or id, and records, pages and predictions "
            "name files: rename them first"
        )
    if written:
        lines.append(
            f"identity: {written:,} of {of} say that text is burnt into their pixels: it would be seen, learned and shown"
        )
    if unsaid:
        lines.append(
            f"identity: {unsaid:,} of {of} don't say whether text is burnt into their pixels, as it often is in images of "
            "their kind: look at them"
        )
    return replace(labelled, findings=(*labelled.findings, *lines)) if lines else labelled
