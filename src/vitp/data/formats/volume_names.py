"""What the names of volume files say: suffixes of several parts, words for masks and modalities, BIDS entities."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from vitp.core.errors import DataError
from vitp.io.dicom_labels import DicomRole, dicom_role
from vitp.io.parts import base_address
from vitp.io.volume_kinds import is_dicom_file

VOLUME_SUFFIXES = (
    *(
        ".nii.gz",
        ".nii",
        ".mgz",
        ".mgh",
        ".seg.nrrd",
        ".nrrd",
        ".nhdr",
        ".mha",
        ".mhd",
        ".dcm",
        ".dicom",
        ".ima",
    ),
)
"""Of files that may hold volumes or medical images; the longer one first."""

_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima", "")
_LOOKED_AT = 8
"""Files of a folder of which most must be DICOM."""
_MARKS = "_-./ "
_BETWEEN = re.compile(r"[_\-. ]+")
_MASK_ENDS = frozenset(
    (
        *(
            "seg",
            "segs",
            "segmentation",
            "segmentations",
            "dseg",
            "mask",
            "masks",
            "label",
            "labels",
            "lbl",
            "gt",
        ),
        *(
            "groundtruth",
            "truth",
            "annotation",
            "roi",
            "rois",
            "lesion",
            "lesions",
            "contour",
            "manual",
            "delineation",
        ),
        *("segm", "consensus", "labelmap"),
    )
)
MODALITY_WORDS = frozenset(
    (
        *(
            "t1",
            "t1w",
            "t1n",
            "t1c",
            "t1ce",
            "t1gd",
            "t1post",
            "t2",
            "t2w",
            "t2f",
            "flair",
            "pd",
            "pdw",
            "dwi",
            "adc",
        ),
        *(
            "swi",
            "bold",
            "asl",
            "cbf",
            "cbv",
            "tmax",
            "mtt",
            "dce",
            "ct",
            "cta",
            "cbct",
            "ncct",
            "pet",
            "pt",
            "suv",
        ),
        *("mr", "mri", "inplanet2", "hbv", "cor"),
    )
)
"""Words at the end of a name that tell the channels of one case apart."""


_OF_OTHER_MEANING = frozenset(("cor", "pd", "pt", "asl", "mtt", "suv"))
BIDS_SUFFIXES: dict[str, str] = {
    **dict.fromkeys(
        (
            *("t1w", "t2w", "t1rho", "t1map", "t2map", "t2star", "t2starw", "t2starmap", "flair", "flash"),
            *("pd", "pdw", "pdt2", "pdmap", "inplanet1", "inplanet2", "angio", "unit1", "mp2rage", "megre"),
            *(
                "mese",
                "vfa",
                "irt1",
                "mtr",
                "mtrmap",
                "mtsat",
                "mts",
                "r1map",
                "r2map",
                "r2starmap",
                "chimap",
            ),
            *("bold", "cbv", "sbref", "phase", "dwi", "adc", "fa", "asl", "m0scan", "epi", "fieldmap"),
            *("magnitude", "magnitude1", "magnitude2", "phasediff", "phase1", "phase2", "swi", "minip"),
        ),
        "MR",
    ),
    "pet": "PT",
    "ct": "CT",
}
"""Suffix of a BIDS name in lower case → DICOM's code of the modality."""


def volume_suffix(name: str) -> str:
    """Return the suffix of a volume's name, of two parts where it has them; "" without a known one."""
    lower = name.lower()
    return next((name[-len(suffix) :] for suffix in VOLUME_SUFFIXES if lower.endswith(suffix)), "")


def volume_stem(path: Path | str) -> str:
    """Return a file's name without its suffix; other files' as `Path.stem`, folders' as they are."""
    name = Path(base_address(path)).name
    suffix = volume_suffix(name)
    return (
        name[: -len(suffix)] if suffix else (name if Path(base_address(path)).is_dir() else Path(name).stem)
    )


@lru_cache(maxsize=65536)
def is_series(folder: Path) -> bool:
    """Return whether a folder holds the DICOM files of a series: several, and nothing but files.

    Slices of several studies are single images, as of a class.
    """
    names: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name.upper() == "DICOMDIR":
                    continue
                if entry.is_dir() or (
                    Path(entry.name).suffix.lower() not in _DICOM_SUFFIXES and not _numbered(entry.name)
                ):
                    return False
                names.append(entry.name)
    except OSError:
        return False
    # One damaged file doesn't make single images of all the others.
    files = [folder / name for name in sorted(names)]
    looked, further = files[:_LOOKED_AT], files[_LOOKED_AT:]
    found = [path for path in looked if is_dicom_file(path)]
    if len(names) < 2 or 2 * len(found) <= len(looked) or not _one_series(found):
        return False
    spread = further[:: max(1, len(further) // _LOOKED_AT)]
    return _of_one_study([*found, *(path for path in spread if is_dicom_file(path))])


def _of_one_study(files: Sequence[Path]) -> bool:
    """Return whether slices of a folder belong to one study, or at least to one series."""
    roles = [role for path in files if (role := _role(path)) is not None]
    told = [{role.series for role in roles}, {role.study for role in roles if role.study}]
    return min(map(len, told)) < 2


def _role(path: Path) -> DicomRole | None:
    """Return what a DICOM file is; None: it can't be read, or is cut off and tells nothing."""
    try:
        role = dicom_role(path)
    except DataError:
        return None
    return role if role.modality else None


def _numbered(name: str) -> bool:
    """Return whether what looks like a suffix is a number, as in names that are UIDs."""
    return Path(name).suffix[1:].isdecimal()


def _one_series(files: Sequence[Path]) -> bool:
    """Return whether the first files of a folder are slices of one series, and not an X-ray each."""
    roles: list[DicomRole] = []
    for path in files:
        try:
            role = dicom_role(path)
        except DataError as error:
            if "pip install" in (error.fix or ""):
                return False
            continue
        if role.modality:  # one that is cut off tells nothing
            roles.append(role)
        if len(roles) == 2:
            break
    if not roles:
        return False
    sliced = all(role.modality in ("CT", "MR", "PT", "NM", "SEG", "RTSTRUCT") for role in roles)
    return sliced and (
        len({role.series for role in roles}) == 1 or any(r.modality in ("SEG", "RTSTRUCT") for r in roles)
    )


def is_volume_name(path: Path) -> bool:
    """Return whether a file may hold a volume or medical image, by its name, or else by its first bytes."""
    if volume_suffix(path.name):
        return True
    bare = path.suffix == "" or _numbered(path.name)
    return bare and path.is_file() and is_dicom_file(path)


def ends_as_mask(stem: str) -> str | None:
    """Return a mask's name without the word that says so ("case_1_seg" → "case_1", "seg" → ""); None: it is no mask."""
    words = _BETWEEN.split(stem)
    if words[-1].lower() in _MASK_ENDS:
        return stem[: -len(words[-1])].rstrip("_-. ")
    if len(words) > 1 and words[0].lower() in _MASK_ENDS:
        return stem[len(words[0]) :].lstrip("_-. ")
    return None


def modality_word(stem: str) -> tuple[str, str]:
    """Return a name without the modality at its end, and that word or "" ("case_1_t1ce" → "case_1", "t1ce")."""
    words = _BETWEEN.split(stem)
    if words[-1].lower() in MODALITY_WORDS:
        return stem[: -len(words[-1])].rstrip("_-. "), words[-1]
    return stem, ""


def taken_word(stem: str) -> str:
    """Return the word at the end of a name that says how its volume was taken; "" where none says so for certain.

    The suffix of BIDS counts ("sub-01_run-1_bold"), elsewhere words that mean nothing else ("case_1_flair", "ct").
    """
    word = _BETWEEN.split(re.sub(r"_\d{4}$", "", stem))[-1].lower()
    if bids_key(stem) is not None:
        return word if word in BIDS_SUFFIXES else ""
    return word if word in MODALITY_WORDS - _OF_OTHER_MEANING else ""


def bids_key(stem: str) -> str | None:
    """Return subject, session and run of a BIDS name ("sub-01_ses-2_T1w" → "sub-01_ses-2"); None: it is none."""
    words = stem.split("_")
    if re.fullmatch(r"sub-[0-9A-Za-z]+", words[0]) is None or len(words) < 2:
        return None
    return "_".join(word for word in words if word.partition("-")[0] in ("sub", "ses", "run"))


def _common(texts: Sequence[str]) -> int:
    """Return how many characters all texts begin with, up to and with the last mark between words."""
    first = texts[0]
    shortest = min(map(len, texts))
    same = next((n for n in range(shortest) if any(text[n] != first[n] for text in texts)), shortest)
    while same and first[same - 1] not in _MARKS:
        same -= 1
    return same


def joined_address(files: Sequence[Path]) -> str:
    """Return the address of one volume, or of several that are the bands of one: `case_{t1,t2}.nii.gz`.

    Raises:
        DataError: Their names can't be told apart by one word.
    """
    texts = [str(file) for file in files]
    if len(texts) == 1:
        return texts[0]
    # A word begins and ends where names have a mark: "t" is common to t1 and t1ce, and part of both words.
    start, end = _common(texts), _common([text[::-1] for text in texts])
    suffixes = {volume_suffix(Path(text).name) for text in texts}
    end = min(end, *(len(text) - start - 1 for text in texts))
    while end and texts[0][-end] not in _MARKS:
        end -= 1
    words = [text[start : len(text) - end] for text in texts]
    if len(suffixes) > 1 or not all(words) or any(set(word) & set(",{}") for word in words):
        what = f"{Path(texts[0]).name} and {Path(texts[1]).name} can't be named as the channels of one volume"
        raise DataError(
            what, where=str(files[0].parent), fix="give them names that differ in one word, and one suffix"
        )
    return f"{texts[0][:start]}{{{','.join(words)}}}{texts[0][len(texts[0]) - end :]}"


def whole_series(root: Path, paths: Sequence[Path], roles: dict[Path, DicomRole]) -> tuple[list[Path], str]:
    """Return the files of the folder that holds all images of a series, and a line about copies in other folders.

    Raises:
        DataError: Each folder lacks some.
    """
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    for path in paths:
        by_folder[path.parent].append(path)
    images = {folder: {roles[path].image or str(path) for path in own} for folder, own in by_folder.items()}
    chosen = min(by_folder, key=lambda folder: (-len(images[folder]), len(folder.parts), folder))
    others = sorted(folder for folder in by_folder if folder != chosen)
    listed = ", ".join(folder.relative_to(root).as_posix() for folder in others[:3])
    if any(images[folder] - images[chosen] for folder in others):
        raise DataError(
            f"is one series, whose images lie in {chosen.relative_to(root).as_posix()} and in {listed}",
            where=str(chosen),
            fix="put them into one folder",
        )
    copies = sum(len(by_folder[folder]) for folder in others)
    return by_folder[chosen], f"{copies} copies of its images in {listed} aren't read" if others else ""
