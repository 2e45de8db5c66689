"""Label maps of a DICOM series as DICOM-SEG, which refers to the series and carries what the standard demands of it.

Shapes: F images of the series, H rows × W columns, I × J × K voxels (I columns, J rows, K images).
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitp.core.errors import DataError
from vitp.core.extras import need, silenced
from vitp.core.version import __version__
from vitp.inference.outputs import class_colour
from vitp.io.dicom_volume import DicomVolume
from vitp.io.volumes import Volume
from vitp.records.labels import BACKGROUND

_DATES = {"ContentDate": "Date", "ContentTime": "Time"}
_WHOSE = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("StudyID", "StudyDate", "StudyTime", "AccessionNumber"),
)
"""What the standard demands of patient and study, so that the segmentation is filed with its source."""

_READ = [
    *_WHOSE,
    *("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "FrameOfReferenceUID"),
    *("SpecificCharacterSet", "Modality", "SeriesNumber", "InstanceNumber", "AcquisitionNumber", "ImageType"),
    *("ContentDate", "ContentTime", "AcquisitionDate", "AcquisitionTime", "SeriesDate", "SeriesTime"),
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated"),
    *("BitsStored", "HighBit", "PixelRepresentation", "LossyImageCompression", "LossyImageCompressionRatio"),
    *("LossyImageCompressionMethod", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    *("SliceThickness", "SpacingBetweenSlices", "GridFrameOffsetVector", "SharedFunctionalGroupsSequence"),
    *("PerFrameFunctionalGroupsSequence", "DimensionOrganizationSequence", "DimensionIndexSequence"),
]
"""All that is read of a source: what isn't read can't be passed on."""

_FALLBACK = {"Date": "19000101", "Time": "000000"}


def check_dicom(volume: Volume) -> None:
    """Do nothing for a volume that a DICOM-SEG can refer to.

    Raises:
        DataError: It is no DICOM series, or has several images at each place.
    """
    if not isinstance(volume, DicomVolume):
        what = "is no DICOM series, which a DICOM-SEG has to refer to"
        raise DataError(
            what, where=volume.where, fix="leave out --format dicom-seg; NIfTI is written of every volume"
        )
    if any(len(row) > 1 for row in volume.frames):
        what = "holds several images at each place, of which a DICOM-SEG would have to choose one"
        raise DataError(what, where=volume.where, fix="name a series of one image a place (FOLDER#series=…)")
    files = {row[0].header.path for row in volume.frames}
    several = {row[0].header.path for row in volume.frames if row[0].header.frames > 1}
    if several and (len(files) > 1 or next(iter(volume.frames))[0].header.frames != len(volume.frames)):
        what = "is made of some images of files of several, which a DICOM-SEG can't refer to"
        raise DataError(what, where=volume.where, fix="leave out --format dicom-seg")


def write_dicom_seg(
    path: Path, volume: Volume, labels_IJK: np.ndarray, classes: Sequence[str], model_sha256: str
) -> None:
    """Write the class of each voxel as a binary DICOM-SEG: a segment for each class but the background.

    Patient and study are those of the source, as the standard demands. Its dates are the source's, and its UIDs follow
    from source, model and labels: the same prediction is the same file.

    Args:
        path: New file.
        volume: As `check_dicom` wants it.
        labels_IJK: uint8.
        classes: Names, in the order of the labels' numbers.
        model_sha256: Tells which model it was.

    Raises:
        DataError: highdicom isn't installed, or the source lacks what the standard demands.
    """
    check_dicom(volume)
    assert isinstance(volume, DicomVolume)
    highdicom = need("medical", "highdicom", str(path))
    pydicom = need("medical", "pydicom", str(path))
    sources, labels_FHW = _frames(pydicom, volume, labels_IJK)
    numbers = [number for number, name in enumerate(classes) if name != BACKGROUND]
    table_V = np.zeros(256, np.uint8)
    table_V[numbers] = range(1, len(numbers) + 1)
    digest = hashlib.sha256(labels_FHW.tobytes()).hexdigest()
    seed = [str(sources[0].SeriesInstanceUID), model_sha256, digest, *classes, __version__]
    described = [
        _segment(highdicom, place, classes[number], number) for place, number in enumerate(numbers, 1)
    ]
    try:
        # The library may quote the source, and it warns of empty maps, which are all right.
        with silenced("highdicom"):
            file = highdicom.seg.Segmentation(
                source_images=sources,
                pixel_array=table_V[labels_FHW],
                segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=described,
                series_instance_uid=pydicom.uid.generate_uid(entropy_srcs=["vitp", "series", *seed]),
                # Well apart from the numbers that the study's own series have as a rule.
                series_number=int(sources[0].get("SeriesNumber") or 0) + 1000,
                sop_instance_uid=pydicom.uid.generate_uid(entropy_srcs=["vitp", "instance", *seed]),
                instance_number=1,
                manufacturer="vitp",
                manufacturer_model_name="vitp",
                software_versions=__version__,
                device_serial_number=model_sha256[:16],
                content_description="Segmentation by a model, for research only",
                series_description="Segmentation (vitp)",
            )
            _set_dates(file, sources[0])
            _set_dimensions(file, pydicom.uid.generate_uid(entropy_srcs=["vitp", "dimensions", *seed]))
            path.parent.mkdir(parents=True, exist_ok=True)
            file.save_as(path)
    except (AttributeError, ValueError, TypeError, KeyError) as error:
        # Its words may quote the source's own text.
        what = f"can't be referred to by a DICOM-SEG: it lacks what the standard demands ({type(error).__name__})"
        raise DataError(what, where=volume.where, fix="leave out --format dicom-seg") from error


def _frames(pydicom: Any, volume: DicomVolume, labels_IJK: np.ndarray) -> tuple[list[Any], np.ndarray]:
    """Return the headers of the source and the labels of its images, both in the order of the source."""
    frames = [row[0] for row in volume.frames]
    labels_KJI = labels_IJK.transpose(2, 1, 0)
    if frames[0].header.frames > 1:
        order = np.argsort([frame.index for frame in frames])
        return [_header(pydicom, frames[0].header.path)], labels_KJI[order]
    return [_header(pydicom, frame.header.path) for frame in frames], labels_KJI


def _header(pydicom: Any, path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # `force` also reads files that lack the preamble.
        header = pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=_READ)
    for name in _WHOSE:
        if name not in header:  # demanded, but may be empty
            setattr(header, name, "")
    header.ReferringPhysicianName = ""
    return header


def _set_dates(file: Any, source: Any) -> None:
    """Give a segmentation the dates of its source: with the time of writing each file would be another one."""
    for name, kind in _DATES.items():
        known = [source.get(f"{prefix}{kind}") for prefix in ("Content", "Acquisition", "Series", "Study")]
        value = next((value for value in known if value), _FALLBACK[kind])
        setattr(file, name, value)
        for prefix in ("InstanceCreation", "Series"):
            if f"{prefix}{kind}" in file:
                setattr(file, f"{prefix}{kind}", value)
    for equipment in file.get("ContributingEquipmentSequence", ()):
        equipment.pop("ContributionDateTime", None)  # optional


def _set_dimensions(file: Any, uid: Any) -> None:
    """Give the order of the frames a UID that isn't drawn."""
    for item in (*file.get("DimensionOrganizationSequence", ()), *file.get("DimensionIndexSequence", ())):
        item.DimensionOrganizationUID = uid


def _segment(highdicom: Any, place: int, name: str, number: int) -> Any:
    codes = need("medical", "pydicom.sr.codedict", "DICOM-SEG").codes
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="vitp", version=__version__, family=codes.cid7162.ArtificialIntelligence
    )
    side, concept = _concept(codes, name)
    lesion = re.search(r"lesion|tumou?r|nodule|mass|cyst|neoplasm|o?edema|metasta", name, re.IGNORECASE)
    category = codes.SCT.MorphologicallyAbnormalStructure if lesion else codes.SCT.AnatomicalStructure
    segment = highdicom.seg.SegmentDescription(
        segment_number=place,
        segment_label=name[:64],
        # Of a class without a code nobody knows what kind of thing it is; tissue is the widest kind.
        segmented_property_category=category if concept is not None else codes.SCT.Tissue,
        segmented_property_type=concept or _own_code(name),
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        display_color=highdicom.color.CIELabColor.from_rgb(*class_colour(number)),
    )
    if side is not None and concept is not None:
        coded = highdicom.sr.CodedConcept.from_code(getattr(codes.SCT, side))
        segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [coded]
    return segment


def _concept(codes: Any, name: str) -> tuple[str | None, Any]:
    """Return the side of a class, `Left` or `Right`, and SNOMED's code of its name, such as `left kidney` or `Liver`.

    The code is None where SNOMED has none under that name.
    """
    words = [word.capitalize() for word in re.findall(r"[A-Za-z]+", name)]
    sides = [word for word in words if word in ("Left", "Right")]
    own = "".join(word for word in words if word not in sides)
    return (sides[0] if len(sides) == 1 else None), getattr(codes.SCT, own, None) if own else None


def _own_code(name: str) -> Any:
    """Return a private code for a class that SNOMED has no code of under its name."""
    coded = need("medical", "pydicom.sr.coding", "DICOM-SEG").Code
    # DICOM gives a code 16 characters and its meaning 64.
    value = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_").upper()[:16] or "CLASS"
    return coded(value, "99VITP", name[:64])
