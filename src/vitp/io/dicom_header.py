"""The header of a DICOM file: what of it counts for its pixels. Nothing else of it is read.

Names, ids, dates, institutions and free text stay in the file: the tags below are all that are asked for.
"""

from __future__ import annotations

import math
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from vitp.core.errors import DataError
from vitp.core.extras import need
from vitp.io.acquisition import Acquisition
from vitp.io.dicom_codes import BODY_PARTS, DICOM_MODALITIES, DICOM_VIEWS
from vitp.io.storage import COPY_IT_AGAIN
from vitp.io.volume_kinds import is_dicom_file

_KINDS = "SOPClassUID SOPInstanceUID Modality SeriesInstanceUID SeriesNumber InstanceNumber AcquisitionNumber"
_PLACES = (
    "ImagePositionPatient ImageOrientationPatient PixelSpacing ImagerPixelSpacing NominalScannedPixelSpacing "
    "SliceThickness SpacingBetweenSlices GridFrameOffsetVector FrameOfReferenceUID TemporalPositionIdentifier "
    "EchoTime SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence"
)
_PIXELS = (
    "Rows Columns SamplesPerPixel PhotometricInterpretation BitsAllocated BitsStored PixelRepresentation "
    "NumberOfFrames PixelPaddingValue PixelPaddingRangeLimit RescaleSlope RescaleIntercept RescaleType Units "
    "ModalityLUTSequence WindowCenter WindowWidth VOILUTFunction VOILUTSequence PresentationLUTShape "
    "DoseGridScaling RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor "
    "BluePaletteColorLookupTableDescriptor RedPaletteColorLookupTableData GreenPaletteColorLookupTableData "
    "BluePaletteColorLookupTableData SegmentedRedPaletteColorLookupTableData "
    "SegmentedGreenPaletteColorLookupTableData SegmentedBluePaletteColorLookupTableData"
)
_SEEN = (
    "BodyPartExamined AnatomicRegionSequence Laterality ImageLaterality ViewPosition ContrastBolusAgent "
    "BurnedInAnnotation"
)
_TAGS = f"{_KINDS} {_PLACES} {_PIXELS} {_SEEN}".split()
_PLAIN = frozenset(f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".2"))
"""Transfer syntaxes whose files hold their pixels as they are."""
_DEFLATED = "1.2.840.10008.1.2.1.99"
LARGEST_INFLATED_BYTES = 1 << 30
_PIXEL_GROUP = 0x7FE0
_PIXEL_DATA = {0x0008: "FloatPixelData", 0x0009: "DoubleFloatPixelData", 0x0010: "PixelData"}


@dataclass(frozen=True)
class Header:
    """Header of a DICOM file that holds pixels.

    Attributes:
        path: Path of the file.
        data: pydicom's data set of the tags that count.
        syntax: UID of the transfer syntax.
        pixels: Name of the element that holds the pixels.
        guessed: Whether the file doesn't name its transfer syntax.
        start: Bytes in front of the pixels; 0: not known.
    """

    path: Path
    data: Any
    syntax: str
    pixels: str
    guessed: bool = False
    start: int = 0

    def number(self, name: str) -> float | None:
        """Return the first number of an element; None: there is none that is finite."""
        values = self.numbers(name)
        return values[0] if values else None

    def numbers(self, name: str) -> tuple[float, ...]:
        """Return all numbers of an element."""
        return header_numbers(self.data, name)

    @property
    def is_deflated(self) -> bool:
        """Whether all of the file is compressed, not only its pixels."""
        return self.syntax == _DEFLATED

    @property
    def is_compressed(self) -> bool:
        """Whether the size of the file doesn't tell how much it holds."""
        return self.syntax not in _PLAIN

    @property
    def frames(self) -> int:
        """Images in the file."""
        return max(1, int(self.number("NumberOfFrames") or 1))

    @property
    def series(self) -> str:
        """UID of the series; empty: the file names none."""
        return word(self.data, "SeriesInstanceUID") or ""


def header_numbers(data: Any, name: str) -> tuple[float, ...]:
    """Return the numbers of an element, none where one of them isn't finite."""
    try:
        value = data.get(name)
        if value is None or value == "":
            return ()
        # pydicom's `MultiValue` is no list.
        values = value if isinstance(value, (list, tuple)) or hasattr(value, "append") else [value]
        found = tuple(float(one) for one in values)
    except (TypeError, ValueError, AttributeError):
        return ()
    return found if all(math.isfinite(one) for one in found) else ()


def word(data: Any, name: str) -> str | None:
    """Return the code of an element, without blanks; None: there is none."""
    try:
        value = data.get(name)
    except (TypeError, ValueError, AttributeError):
        return None
    # Values are padded to an even length, with a blank or a zero.
    text = str(value).strip(" \0") if value is not None else ""
    return text or None


def read_header(path: Path, where: str | None = None) -> Header:
    """Return the header of a file of pixels; pixels are not read.

    Raises:
        DataError: It is no DICOM file, is damaged, or is an object without pixels.
    """
    where = where or str(path)
    data, pixels, start = _read(path, where)
    meta = getattr(data, "file_meta", {})
    syntax = word(meta, "TransferSyntaxUID")
    if pixels is None or not header_numbers(data, "Rows") or not header_numbers(data, "Columns"):
        name = uid_name(word(data, "SOPClassUID") or word(meta, "MediaStorageSOPClassUID"))
        what = "is a DICOM object without pixels" + (f" ({name})" if name else "")
        raise DataError(what, where=where, fix="name the files of the images")
    guessed = syntax is None
    if syntax is None:
        implicit, little = data.original_encoding
        syntax = (
            "1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.1" if little else "1.2.840.10008.1.2.2"
        )
    return Header(path, data, syntax, pixels, guessed, start)


def _read(path: Path, where: str) -> tuple[Any, str | None, int]:
    """Return the elements that count, the name of the pixels that follow (None: none do), and where these begin."""
    pydicom = need("medical", "pydicom", where)
    if not path.is_file():
        raise DataError("is missing", where=where, fix="check the path")
    if not is_dicom_file(path):
        if path.suffix.lower() == ".gz":
            raise DataError("is a compressed DICOM file", where=where, fix="unpack it (gunzip)")
        raise DataError("is no DICOM file", where=where, fix=COPY_IT_AGAIN)
    try:
        _check_deflated(path, where)
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")
            data = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=_TAGS)
            rest = _pixel_tag(data, file)
            # Behind the tag stand the length (4 bytes) and, unless it is implicit, the kind (4).
            start = file.tell() + (4 if data.original_encoding[0] else 8)
    except DataError:
        raise
    except Exception as error:
        what = f"has a header that can't be read ({type(error).__name__}): it is damaged, or cut off"
        raise DataError(what, where=where, fix=COPY_IT_AGAIN) from error
    order: Literal["little", "big"] = "little" if data.original_encoding[1] is not False else "big"
    group, element = (int.from_bytes(rest[at : at + 2], order) for at in (0, 2))
    return data, _PIXEL_DATA.get(element) if group == _PIXEL_GROUP else None, start


def _pixel_tag(data: Any, file: BinaryIO) -> bytes:
    """Return the four bytes of the tag that reading stopped at; of a deflated file with rows those of its pixels."""
    if word(getattr(data, "file_meta", {}), "TransferSyntaxUID") != _DEFLATED:
        return file.read(4)
    # (7FE0,0010), least significant bytes first.
    return b"\xe0\x7f\x10\x00" if header_numbers(data, "Rows") else b""


def _check_deflated(path: Path, where: str) -> None:
    """Refuse a deflated file that holds more than an image may: it is inflated as a whole."""
    with path.open("rb") as file:
        head = file.read(4096)
        if _DEFLATED.encode() not in head or head[128:132] != b"DICM":
            return
        # The length of the elements that are never deflated, themselves behind 144 bytes.
        meta = int.from_bytes(head[140:144], "little")
        file.seek(144 + meta)
        inflater, held = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while (part := file.read(1 << 20)) and not inflater.eof:
            # A little at a time: what inflates without end is stopped before it fills the memory.
            while part:
                held += len(inflater.decompress(part, 1 << 24))
                part = inflater.unconsumed_tail
                if held > LARGEST_INFLATED_BYTES:
                    what = f"holds more than {LARGEST_INFLATED_BYTES:,} bytes once it is inflated"
                    raise DataError(what, where=where, fix="save it in another transfer syntax")


def uid_name(uid: str | None) -> str | None:
    """Return what DICOM calls a UID of its own; None: it is none of these."""
    if not uid:
        return None
    name = str(need("medical", "pydicom.uid", "DICOM").UID(uid).name)
    return None if name[:1].isdigit() or name == uid else name


_SIDES = {"L": "left", "R": "right", "B": "both"}
_ANNOTATED = {"YES": True, "NO": False}


def acquisition_of(header: Header, plane: str | None) -> Acquisition:
    """Return how an image was taken: codes alone, none of which tells of whom."""
    data = header.data
    modality = word(data, "Modality")
    side = word(data, "ImageLaterality") or word(data, "Laterality")
    view = word(data, "ViewPosition")
    return Acquisition(
        modality=modality if modality in DICOM_MODALITIES else None,
        body_part=_body_part(data),
        laterality=_SIDES.get((side or "").upper()),
        view=view.upper() if view and view.upper() in DICOM_VIEWS else None,
        plane=plane,
        contrast=True if word(data, "ContrastBolusAgent") else None,
        burnt_in=_ANNOTATED.get((word(data, "BurnedInAnnotation") or "").upper()),
    )


def _body_part(data: Any) -> str | None:
    """Return the body part in plain words, if it is one of DICOM's own: the field is at times used for free text."""
    text = (word(data, "BodyPartExamined") or "").upper().replace("_", "").replace(" ", "").replace("-", "")
    return BODY_PARTS.get(text)


def array_of(values: tuple[float, ...], length: int) -> np.ndarray | None:
    """Return so many numbers; None: there is another number of them."""
    return np.array(values) if len(values) == length else None
