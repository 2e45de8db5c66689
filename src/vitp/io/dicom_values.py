"""What the values of a DICOM image mean, and how its header says that they are shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from vitp.io.dicom_frames import Frame, first_item
from vitp.io.dicom_header import header_numbers, word
from vitp.io.value_math import between


def shown_values(frame: Frame, values: np.ndarray, lowest: float, highest: float) -> np.ndarray:
    """Return quantities of an image as its header says that they are shown: 0 (black) to 255 (white).

    Its first lookup table counts, else its first window; without either `lowest` is black and `highest` white. Then
    MONOCHROME1 is turned round.

    Args:
        frame: The image.
        values: Quantities of any part of it.
        lowest, highest: Lowest and highest value of all its pixels that count.
    """
    item = first_item(frame.voi, "VOILUTSequence")
    table = None if item is None else LookupTable.of_item(item)
    window = (header_numbers(frame.voi, "WindowCenter")[:1], header_numbers(frame.voi, "WindowWidth")[:1])
    if table is not None:
        shown: np.ndarray = table.of(values) * (255 / table.largest)
    elif window[0] and window[1] and window[1][0] >= 1:
        kind = (word(frame.voi, "VOILUTFunction") or "LINEAR").upper()
        shown = _windowed(values.astype(np.float64), window[0][0], window[1][0], kind)
    else:
        shown = between(values, lowest, highest)
    return 255 - shown if is_inverse(frame) else shown


def is_inverse(frame: Frame) -> bool:
    """Return whether the lowest values of an image are white."""
    kind = (word(frame.header.data, "PhotometricInterpretation") or "").upper()
    inverse = (word(frame.header.data, "PresentationLUTShape") or "").upper() == "INVERSE"
    return kind == "MONOCHROME1" or (inverse and kind == "MONOCHROME2")


def has_window(frame: Frame) -> bool:
    """Return whether the header of an image says how it is shown."""
    return bool(frame.voi.get("VOILUTSequence") or header_numbers(frame.voi, "WindowWidth"))


def _windowed(values: np.ndarray, centre: float, width: float, kind: str) -> np.ndarray:
    """Return values under a window: PS3.3, C.11.2.1.2 and C.11.2.1.3."""
    with np.errstate(over="ignore", invalid="ignore"):
        if kind == "SIGMOID":
            shown: np.ndarray = 255 / (1 + np.exp(-4 * (values - centre) / width))
            return shown
        if kind == "LINEAR_EXACT":
            return between(values, centre - width / 2, centre + width / 2)
        if width == 1:
            return np.where(values > centre - 0.5, 255.0, 0.0)
        return between(values, centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2)


@dataclass(frozen=True, eq=False)
class LookupTable:
    """Whole numbers from `first` on, and what stands for each.

    Attributes:
        first: The first value that is mapped; lower ones are mapped as it is.
        entries_N: What stands for each value; those behind the last one are mapped as it is.
        largest: The highest entry that could stand there.
    """

    first: int
    entries_N: np.ndarray
    largest: int

    @classmethod
    def of_frame(cls, frame: Frame) -> Self | None:
        """Return the table that gives an image's quantities; None: it has none."""
        item = first_item(frame.header.data, "ModalityLUTSequence")
        return None if item is None else cls.of_item(item)

    @classmethod
    def of_item(cls, item: Any) -> Self | None:
        """Return the table of an item of a sequence; None: it can't be used."""
        descriptor, data = header_numbers(item, "LUTDescriptor"), item.get("LUTData")
        if len(descriptor) != 3 or data is None:
            return None
        count, first, bits = (int(one) for one in descriptor)
        # 65,536 entries are written as 0: 16 bits end below.
        count = count or 1 << 16
        if isinstance(data, bytes):
            # Entries of 8 bits take a byte each with some writers, two with others.
            entries_N = np.frombuffer(data, np.uint8 if len(data) < 2 * count else np.uint16)
        else:
            entries_N = np.array(data)
        if len(entries_N) < count or not 1 <= bits <= 16:
            return None
        return cls(first, entries_N[:count].astype(np.float64), (1 << bits) - 1)

    def of(self, values: np.ndarray) -> np.ndarray:
        """Return what stands for values; those between two are rounded."""
        places = np.rint(np.nan_to_num(values.astype(np.float64))) - self.first
        mapped: np.ndarray = self.entries_N[places.clip(0, len(self.entries_N) - 1).astype(np.int64)]
        return mapped
