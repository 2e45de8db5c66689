"""The images of DICOM files: where each lies, what its values mean, and its pixels.

Shapes: H × W pixels as DICOM has them (rows × columns).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vitp.core.errors import DataError
from vitp.core.extras import need
from vitp.io.dicom_header import Header, array_of, header_numbers, uid_name, word
from vitp.io.storage import COPY_IT_AGAIN

_LARGEST_FRAME_BYTES = 4_000_000_000
_MOST_IN = 4096
"""Bytes of pixels that one byte of a compressed image may stand for, once there are many of them."""
_MANY_BYTES = 1 << 26
"""So many any compressed image may have, however few bytes it is written in."""


@dataclass(frozen=True)
class Frame:
    """One image of a DICOM file.

    Attributes:
        header: Header of its file.
        index: Its place in the file, from 0.
        position_3: Centre of its first pixel in DICOM's LPS millimetres; None: not known.
        axes_23: Directions in which its columns and its rows count; None: not known.
        spacing: Millimetres between the centres of rows, and of columns.
        thickness: Thickness of the slice, or the step to the next one, in millimetres.
        scale, offset: The quantity is value · scale + offset.
        voi: The data set that says how it is shown.
        values: The data set that says what its values mean.
    """

    header: Header
    index: int
    position_3: np.ndarray | None
    axes_23: np.ndarray | None
    spacing: tuple[float, float] | None
    thickness: float | None
    scale: float
    offset: float
    voi: Any
    values: Any

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, columns and samples a pixel."""
        return sample_shape(self.header)

    @property
    def order(self) -> tuple[float, ...]:
        """What images at one place are sorted by: time, echo, number."""
        names = ("TemporalPositionIdentifier", "AcquisitionNumber", "EchoTime", "InstanceNumber")
        return (*(self.header.number(name) or 0.0 for name in names), float(self.index))

    def read(self) -> np.ndarray:
        """Return (H, W) or (H, W, samples) stored values, as pydicom's `pixel_array` does.

        Raises:
            DataError: It is damaged, or a plug-in for its compression is missing.
        """
        return read_frame(self.header, self.index)


def sample_shape(header: Header) -> tuple[int, int, int]:
    """Return rows, columns and samples a pixel of the images of a file."""
    rows, columns = int(header.number("Rows") or 0), int(header.number("Columns") or 0)
    return rows, columns, int(header.number("SamplesPerPixel") or 1)


def value_type(header: Header, where: str) -> np.dtype[Any]:
    """Return the type of the stored values.

    Raises:
        DataError: It is none of an image.
    """
    bits = int(header.number("BitsAllocated") or 0)
    kind = header.pixels
    if kind == "FloatPixelData":
        return np.dtype(np.float32)
    if kind == "DoubleFloatPixelData":
        return np.dtype(np.float64)
    if bits not in (1, 8, 16, 32, 64):
        what = f"says that a value has {bits} bits, which no image has"
        raise DataError(what, where=where, fix=COPY_IT_AGAIN)
    # A single bit has no sign, whatever the header says.
    signed = bool(header.number("PixelRepresentation"))
    return np.dtype(f"{'i' if signed and bits > 1 else 'u'}{max(1, bits // 8)}")


def frames_of(header: Header, where: str) -> list[Frame]:
    """Return the images of a file, in its order.

    Raises:
        DataError: It says more than it can hold.
    """
    rows, columns, samples = sample_shape(header)
    bytes_ = rows * columns * samples * value_type(header, where).itemsize
    if not (rows > 0 and columns > 0 and 0 < samples <= 4) or bytes_ > _LARGEST_FRAME_BYTES:
        what = f"says that an image has {columns}×{rows} px of {samples} samples"
        raise DataError(what, where=where, fix=COPY_IT_AGAIN)
    count = header.frames
    _check_length(header, bytes_ * count, where)
    shared = first_item(header.data, "SharedFunctionalGroupsSequence")
    per_frame = header.data.get("PerFrameFunctionalGroupsSequence") or []
    if per_frame and len(per_frame) < count:
        what = f"says that it holds {count} images, and describes {len(per_frame)}"
        raise DataError(what, where=where, fix=COPY_IT_AGAIN)
    offsets = header.numbers("GridFrameOffsetVector")
    found = []
    for index in range(count):
        # What a frame says of itself goes before what all share, and both before the plain header of older objects.
        groups = (per_frame[index] if per_frame else None, shared)
        frame = _frame(header, index, groups)
        # Dose grids place their frames along the normal by offsets, which count from the first one or from the origin.
        if len(offsets) == count > 1 and frame.position_3 is not None and frame.axes_23 is not None:
            normal_3 = np.cross(*frame.axes_23)
            frame = replace(frame, position_3=frame.position_3 + normal_3 * (offsets[index] - offsets[0]))
        found.append(frame)
    return found


def _check_length(header: Header, bytes_: int, where: str) -> None:
    """Refuse a file that can't hold what it says, before anything is decoded."""
    size = header.path.stat().st_size
    bits = int(header.number("BitsAllocated") or 8)
    # Bits are packed, eight to a byte.
    if bits == 1:
        bytes_ //= 8
    # Differences of colour are stored for every second pixel only.
    if word(header.data, "PhotometricInterpretation") == "YBR_FULL_422":
        bytes_ = bytes_ * 2 // 3
    limit = max(size * _MOST_IN, _MANY_BYTES) if header.is_compressed else size - header.start
    if bytes_ > limit:
        what = f"says that it holds {bytes_:,} bytes of pixels, and can't: it is damaged, or cut off"
        raise DataError(what, where=where, fix=COPY_IT_AGAIN)


def check_fragments(header: Header) -> None:
    """Do nothing where a file holds all of its compressed images; those that aren't compressed are known by its length.

    Raises:
        DataError: It is cut off.
    """
    if not header.is_compressed or header.is_deflated:
        return
    where = str(header.path)
    what = f"doesn't hold all of its {header.frames} images: it is damaged, or cut off"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = need("medical", "pydicom", where).dcmread(
                header.path, specific_tags=["PixelData"], force=True
            )
            found = need("medical", "pydicom.encaps", where).parse_fragments(data.PixelData)[0]
    except Exception as error:
        raise DataError(what, where=where, fix=COPY_IT_AGAIN) from error
    if found < header.frames:
        raise DataError(what, where=where, fix=COPY_IT_AGAIN)


def first_item(data: Any, name: str) -> Any:
    """Return the first item of a sequence; None: there is none."""
    items = data.get(name) if data is not None else None
    return items[0] if items else None


def _frame(header: Header, index: int, groups: tuple[Any, Any]) -> Frame:
    def macro(name: str) -> Any:
        return next((item for group in groups if (item := first_item(group, name)) is not None), header.data)

    place, turn, measures = (
        macro(f"{name}Sequence") for name in ("PlanePosition", "PlaneOrientation", "PixelMeasures")
    )
    axes = array_of(header_numbers(turn, "ImageOrientationPatient"), 6)
    axes_23 = None if axes is None else _straight(axes.reshape(2, 3))
    value = macro("PixelValueTransformationSequence")
    scale, offset = header_numbers(value, "RescaleSlope"), header_numbers(value, "RescaleIntercept")
    dose = header.number("DoseGridScaling")
    # Slices with gaps between them, or that overlap, aren't as far apart as they are thick.
    thickness = header_numbers(measures, "SpacingBetweenSlices") or header_numbers(measures, "SliceThickness")
    return Frame(
        header,
        index,
        array_of(header_numbers(place, "ImagePositionPatient"), 3),
        axes_23,
        _spacing(header, measures),
        abs(thickness[0]) if thickness and thickness[0] else None,
        scale[0] if scale and scale[0] else dose or 1.0,
        offset[0] if offset else 0.0,
        macro("FrameVOILUTSequence"),
        value,
    )


def _straight(axes_23: np.ndarray) -> np.ndarray | None:
    """Return two directions of length 1; None: they aren't at right angles, or have no length."""
    lengths = np.linalg.norm(axes_23, axis=1)
    if not (np.abs(lengths - 1) < 0.05).all() or abs(float(axes_23[0] @ axes_23[1])) > 0.01:
        return None
    straight_23: np.ndarray = axes_23 / lengths[:, None]
    return straight_23


def _spacing(header: Header, measures: Any) -> tuple[float, float] | None:
    # In the patient first: on a detector all is larger, by as much as the beam spreads.
    for data, name in (
        (measures, "PixelSpacing"),
        (header.data, "ImagerPixelSpacing"),
        (header.data, "NominalScannedPixelSpacing"),
    ):
        found = header_numbers(data, name)
        if len(found) == 2 and min(found) > 0:
            return found[0], found[1]
    return None


def read_frame(header: Header, index: int) -> np.ndarray:
    """Return the stored values of one image of a file; see `Frame.read`."""
    where = str(header.path)
    decoder = _decoder(header, where)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = _decoded(header, index)
    except MemoryError as error:
        raise DataError("needs more memory than there is", where=where, fix="use a smaller image") from error
    except Exception as error:
        what = "has pixels that can't be read: it is damaged, or cut off"
        fix = COPY_IT_AGAIN
        if decoder.is_encapsulated:
            tried = ", ".join(decoder.available_plugins)
            what = f"has pixels ({uid_name(header.syntax)}) that no plug-in here ({tried}) decodes"
            missing = "; ".join(decoder.missing_dependencies)
            fix = f"{COPY_IT_AGAIN}; or install a further plug-in: {missing}" if missing else COPY_IT_AGAIN
        raise DataError(what, where=where, fix=fix) from error
    rows, columns, samples = sample_shape(header)
    if values.shape[:2] != (rows, columns) or values.shape[2:] not in ((), (samples,)):
        what = f"holds an image of another size than the {columns}×{rows} px that it says"
        raise DataError(what, where=where, fix=COPY_IT_AGAIN)
    return values


def _decoded(header: Header, index: int) -> np.ndarray:
    """Return the values of one image; where the file allows it, nothing of its other images is read."""
    pixels = need("medical", "pydicom.pixels", str(header.path))
    if not (header.guessed or header.is_deflated):
        try:
            values: np.ndarray = pixels.pixel_array(header.path, index=index)
            return values
        except Exception:  # some files mix ways of writing, which only reading all of it bears
            if header.path.stat().st_size > _LARGEST_FRAME_BYTES:
                raise
    data = need("medical", "pydicom", str(header.path)).dcmread(header.path, force=True)
    if header.guessed:
        data.file_meta.TransferSyntaxUID = need("medical", "pydicom.uid", "DICOM").UID(header.syntax)
    whole: np.ndarray = pixels.pixel_array(data, index=index)
    return whole


def _decoder(header: Header, where: str) -> Any:
    """Return pydicom's decoder of a transfer syntax.

    Raises:
        DataError: There is none, or its plug-ins aren't installed.
    """
    name = uid_name(header.syntax) or "unknown"
    try:
        decoder = need("medical", "pydicom.pixels", where).get_decoder(header.syntax)
    except (NotImplementedError, ValueError) as error:
        what = f"has pixels of a transfer syntax that isn't decoded ({name})"
        raise DataError(what, where=where, fix="save it uncompressed (dcmdjpeg, gdcmconv --raw)") from error
    if not decoder.is_available:
        needed = "; ".join(decoder.missing_dependencies) or "a plug-in of pydicom"
        what = f"has pixels in {name}, whose plug-in isn't installed ({needed})"
        raise DataError(what, where=where, fix="install it: `pip install 'vitp[medical]'`")
    return decoder


def palette_of(header: Header, kind: np.dtype[Any]) -> np.ndarray | None:
    """Return the colours, (256, 3) uint8, that 8-bit values stand for; None: there are none."""
    if kind != np.uint8:
        return None
    pixels = need("medical", "pydicom.pixels", str(header.path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            colours_HW3 = pixels.apply_color_lut(np.arange(256, dtype=np.uint8)[None], header.data)
    except Exception as error:
        what = "has a table of colours that can't be read: it is damaged"
        raise DataError(what, where=str(header.path), fix=COPY_IT_AGAIN) from error
    colours_V3: np.ndarray = colours_HW3[0]
    return (colours_V3 >> 8 if colours_V3.dtype == np.uint16 else colours_V3).astype(np.uint8)
