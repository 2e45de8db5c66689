"""How a medical image was taken, without anything that could tell of whom."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Acquisition:
    """What the header of a medical image says of it. None: it doesn't.

    Names, ids, dates, institutions and free text are never read into it.

    Attributes:
        modality: DICOM's code: `CT`, `MR`, `CR`, `DX`, `MG`, `US`, `PT`, `NM`, `SM`, `OP`, …
        body_part: In lower case, in plain words: `chest`, `abdomen`, `left knee`.
        laterality: `left`, `right` or `both`.
        view: View of a projection: `PA`, `AP`, `CC`, `MLO`, …
        plane: In which the slices were taken: `axial`, `coronal`, `sagittal` or `oblique`.
        contrast: Whether a contrast agent was given.
        burnt_in: Whether the header says that text is burnt into the pixels (True), that none is (False).
    """

    modality: str | None = None
    body_part: str | None = None
    laterality: str | None = None
    view: str | None = None
    plane: str | None = None
    contrast: bool | None = None
    burnt_in: bool | None = None
