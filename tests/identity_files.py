"""Medical files and pictures with a person's name in every place that can hold one, and the search for it afterwards."""

from __future__ import annotations

import base64
import gzip
import io
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from PIL import Image, ImageCms, PngImagePlugin
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence

from vitp.scenes.volume_files import write_dicom_series
from vitp.scenes.volumes import TrunkVolume

CANARY = "zqxjvk"
BIRTH = "19431207"
LEAK = re.compile(rb"zqxjvk|1943-?12-?07|z\0q\0x\0j\0v\0k", re.IGNORECASE)
"""What must be found nowhere; the last one is UTF-16."""

_TEXT = {"PN", "LO", "SH", "ST", "LT", "UT", "UC", "AE"}
_NOT = ("TimezoneOffsetFromUTC", "RescaleType")
"""Structure that a program has to understand; RescaleType has a test of its own."""


def _value(vr: str, number: int) -> str:
    return f"Zqxjvk{number}^Canary" if vr == "PN" else f"ZQXJVK{number}"


def canary_tags() -> dict[str, str]:
    """Return keyword → value of every current tag with text or a date; codes that are free text at times, too."""
    found = {}
    for tag, (vr, _, _, retired, keyword) in sorted(DicomDictionary.items()):
        group = tag >> 16
        if retired or not keyword or keyword in _NOT or group < 0x0008 or group > 0x0070:
            continue
        if vr in _TEXT:
            found[keyword] = _value(vr, len(found))
        elif vr == "DA":
            found[keyword] = BIRTH
    codes = {"BodyPartExamined": "ZQXJVKBODY", "ViewPosition": "ZQXJVKVIEW", "Laterality": "ZQXJVKSIDE"}
    return {**found, **codes, "PatientSex": "O", "PatientAge": "081Y", "PatientIdentityRemoved": "NO"}


def write_named_series(volume: TrunkVolume, folder: Path, name: str, patient: str) -> None:
    """Write a series in which all that can be said of a person is said."""
    tags = {**canary_tags(), "PatientID": f"ZQXJVK{patient}", "PatientName": f"Zqxjvk{patient}^Jane"}
    for path in write_dicom_series(volume, folder, name=name, tags=tags):
        data = pydicom.dcmread(path)
        data.preamble = b"ZQXJVKPREAMBLE".ljust(128, b"\0")
        data.file_meta.SourceApplicationEntityTitle = "ZQXJVKSOURCE"
        data.file_meta.ImplementationVersionName = "ZQXJVKVERSION"
        data.file_meta.PrivateInformationCreatorUID = "1.2.826.0.1.3680043.2.1143"
        data.file_meta.PrivateInformation = b"ZQXJVKMETA!"
        _add_more(data)
        data.save_as(path)


def _add_more(data: Dataset) -> None:
    """Add private blocks, nested sequences, overlays, an ICC profile and codes."""
    block = data.private_block(0x0009, "ZQXJVK CREATOR", create=True)
    for element, (vr, value) in enumerate(
        [
            ("LO", "ZQXJVKPRIVATE"),
            ("PN", "Zqxjvk^Private"),
            ("UI", "1.2.3.19431207"),
            ("UN", b"ZQXJVKUNKNOWN"),
            ("OB", b"ZQXJVKBYTE!"),
        ]
    ):
        block.add_new(element + 1, vr, value)
    inner = Dataset()
    inner.PatientName, inner.PatientID, inner.PatientBirthDate = "Zqxjvk^Nested", "ZQXJVKNESTED", BIRTH
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "ZQXJVK", "ZQXJVK", "ZQXJVK MEANING"
    inner.PatientSpeciesCodeSequence = DicomSequence([code])
    data.OtherPatientIDsSequence = DicomSequence([inner])
    data.ReferencedPatientSequence = DicomSequence([inner])
    data.RequestAttributesSequence = DicomSequence([inner])
    data.AnatomicRegionSequence = DicomSequence([code])
    data.ICCProfile = b"ZQXJVKPROFILE".ljust(128, b"\0")
    data.add_new(0x60000022, "LO", "ZQXJVKOVERLAY")
    data.add_new(0x60001500, "LO", "ZQXJVKLABEL")


def name_nifti(path: Path) -> None:
    """Write a person's name into all text of a NIfTI file's header, and into an extension."""
    import nibabel

    image: Any = nibabel.load(path)
    again = nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header)
    for key in ("descrip", "aux_file", "db_name", "intent_name"):
        again.header[key] = f"ZQXJVK {key}".encode()[:15]
    again.header.extensions.append(nibabel.nifti1.Nifti1Extension(6, b"ZQXJVK comment"))
    path.unlink()
    nibabel.save(again, path)


def write_nrrd(volume: TrunkVolume, path: Path) -> None:
    """Write a volume as NRRD with a name in its keys and values."""
    import SimpleITK

    image = SimpleITK.GetImageFromArray(volume.voxels_IJK.T)
    image.SetSpacing(volume.spacing)
    image.SetDirection([1, 0, 0, 0, 1, 0, 0, 0, 1])
    image.SetMetaData("ZQXJVKKEY", "ZQXJVKVALUE")
    image.SetMetaData("0010|0010", "ZQXJVK^NRRD")
    SimpleITK.WriteImage(image, str(path))


def write_pictures(folder: Path, classes: Sequence[str], count: int) -> None:
    """Write PNG, JPEG and TIFF files with a name in comments, EXIF and profiles; one folder a class."""
    rng = np.random.default_rng(0)
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile += b"ZQXJVKPROFILE"
    profile[:4] = len(profile).to_bytes(4, "big")
    exif = Image.Exif()
    exif[0x010E], exif[0x013B], exif[0x8298] = "ZQXJVKDESCRIPTION", "ZQXJVKARTIST", "ZQXJVKRIGHTS"
    for number in range(count):
        for place, name in enumerate(classes):
            pixels = rng.integers(0, 90, (80, 80, 3), dtype=np.uint8)
            pixels[20:60, 20:60] += np.uint8(60 + 60 * place)
            image = Image.fromarray(pixels)
            (folder / name).mkdir(parents=True, exist_ok=True)
            path = folder / name / f"{number:02d}"
            if number % 3 == 0:
                text = PngImagePlugin.PngInfo()
                text.add_text("Patient", "ZQXJVKTEXT")
                text.add_text("Comment", "ZQXJVKZIPPED" * 30, zip=True)
                text.add_itxt("Name", "ZQXJVKINTERNATIONAL")
                image.save(path.with_suffix(".png"), pnginfo=text, exif=exif, icc_profile=bytes(profile))
            elif number % 3 == 1:
                image.save(
                    path.with_suffix(".jpg"), exif=exif, comment=b"ZQXJVKCOMMENT", icc_profile=bytes(profile)
                )
            else:
                image.save(
                    path.with_suffix(".tif"),
                    description="ZQXJVKTIFF",
                    artist="ZQXJVKTIFF",
                    software="ZQXJVKTIFF",
                    icc_profile=bytes(profile),
                )


def leaks(folder: Path) -> list[str]:
    """Return the files below a folder that hold a name, in whatever they are packed."""
    found = []
    for path in sorted(folder.rglob("*")):
        if LEAK.search(str(path.relative_to(folder)).encode()):
            found.append(f"{path} is called so")
        if path.is_file():
            found += [f"{path}{where}" for where, data in unpacked(path.read_bytes()) if LEAK.search(data)]
    return found


def unpacked(data: bytes, depth: int = 0) -> Iterator[tuple[str, bytes]]:
    """Yield what bytes hold: themselves, and what is packed in them."""
    yield "", data
    if depth > 4:
        return
    inner: list[tuple[str, bytes]] = []
    if data[:2] == b"\x1f\x8b":
        inner.append(("!gz", gzip.decompress(data)))
    if data[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            inner += [(f"!{name}", archive.read(name)) for name in archive.namelist()]
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        inner += _png_chunks(data)
    if data[:64].lstrip()[:1] in (b"<", b"{", b"["):
        texts = re.findall(rb"(?:base64,|\"data\": ?\")([A-Za-z0-9+/=]{40,})", data)
        inner += [("!base64", base64.b64decode(text + b"==")) for text in texts]
    for where, part in inner:
        yield from ((where + more, bytes_) for more, bytes_ in unpacked(part, depth + 1))


def _png_chunks(data: bytes) -> list[tuple[str, bytes]]:
    found, at = [], 8
    while at + 8 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + length]
        if kind in (b"zTXt", b"iCCP", b"iTXt"):
            for start in range(len(body)):  # after a keyword and a byte or two comes what is packed
                if body[start] == 0x78 and start < 100:
                    try:
                        found.append((f"!{kind.decode()}", zlib.decompress(body[start:])))
                        break
                    except zlib.error:
                        continue
        at += 12 + length
    return found
