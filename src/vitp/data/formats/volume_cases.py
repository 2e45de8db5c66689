"""Which volumes are images, which are their masks, and what belongs together, in the usual folder layouts.

| layout | example |
|---|---|
| folders | `imagesTr/liver_1_0000.nii.gz`, `labelsTr/liver_1.nii.gz`; also `train/images`, `images` + `masks` |
| a folder a case | `BraTS2021_00000/…_{flair,t1,t1ce,t2,seg}.nii.gz`; `case_1/{imaging,segmentation}.nii.gz` |
| a file an object | `s0001/ct.nii.gz`, `s0001/segmentations/liver.nii.gz` |
| BIDS | `sub-01/anat/sub-01_T1w.nii.gz`, `derivatives/…/sub-01_dseg.nii.gz` |
| DICOM | folders of series, with segmentations (SEG) or structure sets (RTSTRUCT) that name their series |
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from vitp.core.errors import DataError
from vitp.data.formats.patients import case_patient
from vitp.data.formats.volume_names import (
    bids_key,
    ends_as_mask,
    joined_address,
    modality_word,
    taken_word,
    volume_stem,
    whole_series,
)
from vitp.data.formats.walk import Folder, described, volume_files, within
from vitp.io.dicom_labels import RTSTRUCT, SEG, DicomRole, dicom_role, segment_names
from vitp.io.dicom_volume import series_word
from vitp.io.volume_kinds import is_dicom_file
from vitp.io.volume_labels import is_cropped

_CHANNEL = re.compile(r"_(\d{4})$")


@dataclass(frozen=True)
class LabelVolume:
    """A file of labels: the name of the one object that it holds ("" where its values are classes), and its role."""

    path: Path
    name: str = ""
    role: str = ""


@dataclass(frozen=True)
class VolumeCase:
    """One image volume with its labels.

    Attributes:
        name: Unique in the set; what lists of splits call it.
        address: Address of the volume.
        labels: Its files of labels; empty where it isn't labelled.
        split: Split that its folder names.
        patient: What tells one patient from another; used in memory alone.
        channels: Words of its files, where there are several for one case.
        word: That at the end of its name which says how it was taken, where it is one file; "" where none does.
    """

    name: str
    address: str
    labels: tuple[LabelVolume, ...] = ()
    split: str | None = None
    patient: str = ""
    channels: tuple[str, ...] = ()
    word: str = ""


@dataclass
class CaseLayout:
    """The cases of a set, `strangers` (labels without image), what is wrong with files, and how they were found."""

    cases: list[VolumeCase] = field(default_factory=list)
    strangers: list[Path] = field(default_factory=list)
    understood: list[str] = field(default_factory=list)
    findings: list[tuple[str, str]] = field(default_factory=list)
    damaged: list[DataError] = field(default_factory=list)

    @property
    def is_labelled(self) -> bool:
        """Whether some case has labels."""
        return any(case.labels for case in self.cases)


def find_cases(
    root: Path, images: str | None = None, masks: str | None = None, channels: Sequence[str] = ()
) -> CaseLayout | None:
    """Return the cases under a folder, or None where no volume has labels; the options name folders and channels.

    Raises:
        DataError: There are several readings; the message names them.
    """
    files = volume_files(root)
    if not files:
        return None
    layout = _dicom(root, files) if images is None and masks is None else None
    layout = layout or _siblings(root, files, images, masks, channels)
    if layout is None and (images is not None or masks is not None):
        what = "no volume of the folder of images has one in the folder of masks"
        raise DataError(what, where=str(root), fix="check the options images and masks")
    layout = layout or _bids(root, files, channels) or _in_folders(root, files, channels)
    if layout is None or not layout.is_labelled:
        return None
    layout.cases.sort(key=lambda case: case.name)
    return layout


# --- what belongs together


def _grouped(files: Sequence[Path]) -> dict[str, list[tuple[str, Path]]]:
    """Return the files of each case with the word for their channel: numbers behind "_", or a modality."""
    numbered = [match for file in files if (match := _CHANNEL.search(volume_stem(file)))]
    # nnU-Net numbers the channels from 0000: names that merely end with a number don't begin there.
    all_numbered = len(numbered) == len(files) and any(match[1] == "0000" for match in numbered)
    found: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    for file in files:
        stem = volume_stem(file)
        if all_numbered:
            found[stem[:-5]].append((stem[-4:], file))
        else:
            found[stem].append(("", file))
    return found


def _case(
    root: Path,
    name: str,
    files: Sequence[tuple[str, Path]],
    labels: Sequence[LabelVolume],
    channels: Sequence[str] = (),
    split: str | None = None,
) -> VolumeCase:
    """Return a case of one file, or of several that are its channels.

    Raises:
        DataError: It lacks a channel that was asked for.
    """
    chosen = list(files)
    if channels and len(files) > 1:
        by_word = {word.lower(): (word, file) for word, file in files}
        lacking = [word for word in channels if word.lower() not in by_word]
        if lacking:
            known = ", ".join(word for word, _ in files)
            what = f"has no channel {lacking[0]}; it has {known}"
            raise DataError(
                what, where=within(files[0][1].parent, root), fix="name some of these with -o channels=…"
            )
        chosen = [by_word[word.lower()] for word in channels]
    words = tuple(word for word, _ in chosen) if len(files) > 1 else ()
    address = joined_address([file for _, file in chosen])
    word = "" if words else taken_word(volume_stem(chosen[0][1]))
    return VolumeCase(name, address, tuple(labels), split, case_patient(name), words, word)


# --- folders of images and folders of masks


def _siblings(
    root: Path, files: Sequence[Path], images: str | None, masks: str | None, channels: Sequence[str]
) -> CaseLayout | None:
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    for file in files:
        by_folder[file.parent].append(file)
    folders = [described(path, path.relative_to(root).parts, tuple(own)) for path, own in by_folder.items()]
    if images is not None or masks is not None:
        told = {str(images): "image", str(masks): "mask"}
        folders = [
            replace(folder, role=told.get(within(folder.path, root), ""), rest=()) for folder in folders
        ]
    by_key: dict[tuple[str | None, tuple[str, ...]], list[Folder]] = defaultdict(list)
    for folder in folders:
        if folder.role in ("mask", "instance"):
            by_key[folder.split, folder.rest].append(folder)
    wanted = [folder for folder in folders if folder.role == "image"] or _unnamed(folders, by_key)
    layout = CaseLayout()
    used: set[Path] = set()
    for folder in wanted:
        beside = by_key.get((folder.split, folder.rest), [])
        if len(beside) > 1:
            several = " and ".join(within(other.path, root) for other in beside)
            fix = "name both folders with the options images=FOLDER and masks=FOLDER"
            raise DataError(f"{several} may both hold the masks", where=str(root), fix=fix)
        _pair(root, folder, beside[0] if beside else None, layout, used, channels)
    if not layout.is_labelled:
        return None
    mine = [path for own in by_key.values() for folder in own for path in folder.files]
    layout.strangers = sorted(set(mine) - used)
    shown = ", ".join(within(folder.path, root) for folder in wanted[:4])
    names = sorted({within(folder.path, root) for own in by_key.values() for folder in own})
    layout.understood.append(f"volumes: {shown}; their masks: {', '.join(names[:4])}")
    return layout


def _unnamed(
    folders: Sequence[Folder], masks: dict[tuple[str | None, tuple[str, ...]], list[Folder]]
) -> list[Folder]:
    """Return folders without a role that hold volumes of the names of masks beside them."""
    found = []
    for own in masks.values():
        for mask in own:
            stems = {volume_stem(file) for file in mask.files}
            for folder in folders:
                near = folder.path in (mask.path.parent, *mask.path.parent.iterdir())
                if not folder.role and near and {*_grouped(folder.files)} & stems:
                    found.append(replace(folder, role="image", split=mask.split, rest=mask.rest))
    return found


def _pair(
    root: Path,
    images: Folder,
    masks: Folder | None,
    layout: CaseLayout,
    used: set[Path],
    channels: Sequence[str],
) -> None:
    """Add the cases of a folder of images, those without a mask among them."""
    by_name: dict[str, Path] = {}
    for file in masks.files if masks is not None else ():
        stem = volume_stem(file)
        for name in dict.fromkeys((stem, ends_as_mask(stem) or stem)):
            other = by_name.setdefault(name, file)
            if other != file and name == stem:
                what = f"two masks belong to one name: {within(other, root)} and {within(file, root)}"
                raise DataError(what, where=str(root), fix="keep one of them")
    inside = "/".join(images.rest)
    for name, files in _grouped(images.files).items():
        bare = re.sub(r"[_\-. ](?:image|img|ct|mr|mri|volume|vol|scan)$", "", name, flags=re.IGNORECASE)
        mask = by_name.get(name) or by_name.get(bare)
        labels = [] if mask is None else [LabelVolume(mask)]
        used.update(label.path for label in labels)
        layout.cases.append(
            _case(root, f"{inside}/{name}" if inside else name, files, labels, channels, images.split)
        )


# --- a folder a case


def _in_folders(root: Path, files: Sequence[Path], channels: Sequence[str]) -> CaseLayout | None:
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    for file in files:
        by_folder[file.parent].append(file)
    layout = CaseLayout()
    of_objects = _object_folders(by_folder)
    for folder, own in by_folder.items():
        if folder in of_objects.values():
            continue
        place = within(folder, root)
        masks = _masks_of(own)
        plain = [file for file in own if file not in masks]
        if folder in of_objects:
            objects = [LabelVolume(file, volume_stem(file)) for file in by_folder[of_objects[folder]]]
            layout.cases.append(_case(root, place, _by_modality(plain), objects, channels))
            continue
        keys = sorted({*masks.values()}, key=len, reverse=True)
        groups: dict[str, list[Path]] = defaultdict(list)
        for file in plain:
            stem = volume_stem(file)
            bare = modality_word(stem)[0]
            key = next(
                (k for k in keys if k in (stem, bare) or k == ""), bare if keys or len(plain) > 1 else stem
            )
            groups[key].append(file)
        for key, images in groups.items():
            labels = [LabelVolume(file) for file, mine in masks.items() if mine == key]
            name = place if key == "" or folder.name == key else f"{place}/{key}"
            layout.cases.append(_case(root, name.removeprefix("./"), _by_modality(images), labels, channels))
        layout.strangers += [file for file, key in masks.items() if key not in groups]
    _refuse_several(root, layout)
    labelled = next((case for case in layout.cases if case.labels), None)
    if labelled is not None:
        first = within(labelled.labels[0].path, root)
        layout.understood.append(
            f"volumes and masks in one folder: {within(labelled.address, root)} with {first}"
        )
    return layout


def _masks_of(files: Sequence[Path]) -> dict[Path, str]:
    """Return the masks of a folder with the names of what they label, "" for all of it.

    A `.seg.nrrd` is one whatever its name; where it is called like none of several images, it is left to be a stranger.
    """
    masks = {file: key for file in files if (key := ends_as_mask(volume_stem(file))) is not None}
    drawn = [file for file in files if file not in masks and is_cropped(str(file))]
    plain = {volume_stem(file) for file in files if file not in masks and file not in drawn}
    for file in drawn:
        masks[file] = volume_stem(file) if volume_stem(file) in plain or len(plain) != 1 else ""
    return masks


def _object_folders(by_folder: dict[Path, list[Path]]) -> dict[Path, Path]:
    """Return folder of an image → folder of the files with its objects, one each."""
    found = {}
    for folder, files in by_folder.items():
        above = by_folder.get(folder.parent)
        if above is None or described(folder, (folder.name,), ()).role not in ("mask", "instance"):
            continue
        stems = {volume_stem(file) for file in files}
        if not stems & {volume_stem(file) for file in above}:
            found[folder.parent] = folder
    return found


def _by_modality(files: Sequence[Path]) -> list[tuple[str, Path]]:
    """Return files with the words that tell which is which."""
    words = [modality_word(volume_stem(file))[1] or volume_stem(file) for file in files]
    return list(zip(words, files, strict=True))


def _refuse_several(root: Path, layout: CaseLayout) -> None:
    for case in layout.cases:
        if len(case.labels) > 1 and not case.labels[0].name and not case.labels[0].role:
            names = " and ".join(within(label.path, root) for label in case.labels[:3])
            raise DataError(
                f"{names} may both be the mask of {case.name}",
                where=str(root),
                fix="keep one of them, or put the files of the objects into a folder of their own (masks/)",
            )


# --- BIDS


def _bids(root: Path, files: Sequence[Path], channels: Sequence[str]) -> CaseLayout | None:
    images: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    masks: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        key = bids_key(volume_stem(file))
        if key is None:
            continue
        if ends_as_mask(volume_stem(file)) is not None:
            masks[key].append(file)
        elif "derivatives" not in file.relative_to(root).parts:
            images[key].append((volume_stem(file).rpartition("_")[2], file))
    layout = CaseLayout()
    for key, own in images.items():
        labels = [LabelVolume(file) for file in masks.get(key, ())]
        case = _case(root, key, own, labels, channels)
        layout.cases.append(replace(case, patient=key.partition("_")[0]))
    layout.strangers = [file for key, own in masks.items() if key not in images for file in own]
    if not layout.is_labelled:
        return None
    _refuse_several(root, layout)
    layout.understood.append(f"BIDS: {len(layout.cases)} sessions of subjects")
    return layout


# --- DICOM


def _dicom(root: Path, files: Sequence[Path]) -> CaseLayout | None:
    """Return the series that segmentations or structure sets label; None without any of these."""
    roles, damaged = _roles(files)
    labels = {path: role for path, role in roles.items() if role.modality in (SEG, RTSTRUCT)}
    if not labels:
        return None
    series: dict[str, list[Path]] = defaultdict(list)
    for path, role in roles.items():
        if path not in labels and role.series:
            series[role.series].append(path)
    understood = ["DICOM: series with segmentations or structure sets that name them"]
    layout = CaseLayout(understood=understood, damaged=damaged)
    of: dict[str, list[LabelVolume]] = defaultdict(list)
    for path, role in labels.items():
        uid = role.of_series if role.of_series in series else _of_frame(role, series, roles)
        if uid is None:
            try:
                segment_names(path)
                layout.strangers.append(path)
            except DataError as error:  # one that is cut off names no series
                damaged.append(error)
        else:
            of[uid].append(LabelVolume(path, role=role.modality))
    for uid, paths in series.items():
        if uid not in of:
            place = within(paths[0].parent, root)
            layout.findings.append((place, f"a series of {len(paths)} images that nothing labels; left out"))
            continue
        role = roles[paths[0]]
        try:
            paths, copies = whole_series(root, paths, roles)
            if copies:
                layout.findings.append((within(paths[0].parent, root), copies))
            address = _series_address(paths, uid, roles)
        except DataError as error:
            damaged.append(error)
            continue
        name = within(paths[0].parent, root)
        name = name if "#" not in address else f"{name}/{address.rpartition('=')[2]}"
        layout.cases.append(VolumeCase(name, address, tuple(of[uid]), None, role.patient or role.study))
    if damaged and not layout.cases:
        raise damaged[0]
    return layout


def _roles(files: Sequence[Path]) -> tuple[dict[Path, DicomRole], list[DataError]]:
    """Return what each DICOM file is, and what is wrong with those that can't be read."""
    roles: dict[Path, DicomRole] = {}
    damaged: list[DataError] = []
    for file in files:
        for path in sorted(file.iterdir()) if file.is_dir() else [file]:
            if not path.is_file() or not is_dicom_file(path):
                continue
            try:
                roles[path] = dicom_role(path)
            except DataError as error:
                if "pip install" in (error.fix or ""):
                    raise
                damaged.append(error)
    return roles, damaged


def _of_frame(role: DicomRole, series: dict[str, list[Path]], roles: dict[Path, DicomRole]) -> str | None:
    """Return the one series in the frame of reference that labels name, where they name no series."""
    found = [
        uid for uid, paths in series.items() if role.of_frame and roles[paths[0]].of_frame == role.of_frame
    ]
    return found[0] if len(found) == 1 and not role.of_series else None


def _series_address(paths: Sequence[Path], uid: str, roles: dict[Path, DicomRole]) -> str:
    """Return the address of a series: its folder, with its number where others lie there, too, and never a UID."""
    folder = paths[0].parent
    if len(paths) == 1:
        return str(paths[0])
    beside = [path for path, role in roles.items() if path.parent == folder]
    if {roles[path].series for path in beside} == {uid}:
        return str(folder)
    return f"{folder}#series={series_word(folder, uid)}"
