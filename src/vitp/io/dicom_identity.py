"""Whose image a DICOM file is, in memory alone: to warn of what would tell it, never to be written down."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from vitp.core.errors import DataError
from vitp.core.extras import need
from vitp.io.volume_kinds import is_dicom_file

_NAMES = ("PatientName", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName")
_IDS = ("PatientID", "OtherPatientIDs", "AccessionNumber", "AdmissionID", "IssuerOfPatientID")
_TAGS = [*_NAMES, *_IDS, "BurnedInAnnotation", "Modality", "SOPClassUID"]
_OFTEN_WRITTEN_ON = frozenset({"US", "IVUS", "ES", "XC", "OT", "SC", "ECG", "DOC", "GM", "OP"})
"""Modalities whose machines write name and date into the picture."""

_CAPTURES = "1.2.840.10008.5.1.4.1.1.7"
"""Secondary captures: screens and scanned paper."""

_LEAST_NAME, _LEAST_ID = 3, 4
"""Letters of a part of a name, characters of an id, below which it may be in a path by chance."""


@dataclass(frozen=True)
class DicomIdentity:
    """What tells of whom a file is. It has no text form, so that no message or log can quote it.

    Attributes:
        names: Parts of names, in lower case.
        ids: In lower case, letters and digits alone.
        burnt_in: Whether the header says that text is burnt into the pixels; None: it doesn't say.
        often_written_on: Whether images of its kind often have text in them.
    """

    names: frozenset[str] = field(default=frozenset(), repr=False)
    ids: frozenset[str] = field(default=frozenset(), repr=False)
    burnt_in: bool | None = None
    often_written_on: bool = False

    def is_named_by(self, path: str) -> bool:
        """Return whether a path holds a part of the name, as a word, or an id."""
        words = set(re.findall(r"[^\W\d_]+", path.casefold()))
        packed = _packed(path)
        return bool(self.names & words) or any(one in packed for one in self.ids)


def _packed(text: str) -> str:
    return re.sub(r"[\W_]+", "", text.casefold())


def dicom_identity(path: Path) -> DicomIdentity | None:
    """Return whose image a file, or a folder's first one, is; None: it is no DICOM file, or can't be read.

    Raises:
        DataError: pydicom isn't installed.
    """
    if path.is_dir():
        files = (one for one in sorted(path.iterdir()) if one.is_file() and not one.name.startswith("."))
        path = next((one for one in files if one.name.upper() != "DICOMDIR" and is_dicom_file(one)), path)
    if not path.is_file() or not is_dicom_file(path):
        return None
    pydicom = need("medical", "pydicom", str(path))
    try:
        # Its warnings quote values.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=_TAGS)
            texts = {tag: str(data.get(tag) or "") for tag in _TAGS}
    except DataError:
        raise
    except Exception:  # what can't be read is told by the reader of its pixels
        return None
    words = {word for tag in _NAMES for word in re.findall(r"[^\W\d_]+", texts[tag].casefold())}
    packed = {_packed(part) for tag in _IDS for part in re.split(r"[\\,]", texts[tag])}
    said = {"YES": True, "NO": False}.get(texts["BurnedInAnnotation"].strip().upper())
    captured = texts["SOPClassUID"].startswith(_CAPTURES)
    return DicomIdentity(
        frozenset(word for word in words if len(word) >= _LEAST_NAME),
        frozenset(one for one in packed if len(one) >= _LEAST_ID),
        said,
        captured or texts["Modality"].strip().upper() in _OFTEN_WRITTEN_ON,
    )
