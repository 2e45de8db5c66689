"""The matching of masks to images, in the usual folder layouts.

| layout | example |
|---|---|
| folders | `images/a.png`, `masks/a.png`; also `train/…`, `…/train`, `train_images`, `imagesTr`, `JPEGImages` |
| one folder | `a.png`, `a_mask.png`; `a_sat.jpg`, `a_mask.png` |
| a file an object | `images/a.png`, `masks/a/1.png`; `a/images/a.png`, `a/masks/1.png` |
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from vitp.core.errors import DataError
from vitp.data.formats.walk import IMAGE_WORDS, MASK_WORDS, Folder, described, image_folders, shared, within

_ENOUGH_SHARED = 0.5
"""Share of equal names from which two folders are about the same images."""

_AFFIXES = MASK_WORDS | IMAGE_WORDS | {"rgbir", "rgbi", "nir", "ir", "ortho", "im", "hr"}
_BETWEEN = re.compile(r"[_\-. ]+")
_MANY = re.compile(r"^(?P<key>.+?)[_\-. ](?P<word>[A-Za-z]+)(?:[_\-. ]?\d+)?$")

_Key = tuple[str | None, tuple[str, ...]]
"""Split and rest of a folder: folders of the same are about the same images."""


@dataclass(frozen=True)
class MaskEntry:
    """An image and its mask, or one file an object; `instances` numbers the objects beside a mask of classes."""

    image: Path
    masks: tuple[Path, ...]
    split: str | None = None
    instances: Path | None = None


@dataclass
class MaskLayout:
    """The masks of a set: images with them, images `alone`, folders `without` any, and masks without image."""

    entries: list[MaskEntry] = field(default_factory=list)
    per_object: bool = False
    understood: str = ""
    alone: list[Path] = field(default_factory=list)
    without: list[Folder] = field(default_factory=list)
    strangers: list[Path] = field(default_factory=list)


def find_masks(root: Path, images: str | None = None, masks: str | None = None) -> MaskLayout | None:
    """Return the masks under a folder, or None when there are none to be seen; the options may name both folders.

    Raises:
        DataError: There are several readings; the message names them.
    """
    if images is not None or masks is not None:
        return _told(root, images, masks)
    folders = image_folders(root)
    return _object_files(root, folders) or _sibling_folders(root, folders) or _one_folder(folders)


def _told(root: Path, images: str | None, masks: str | None) -> MaskLayout:
    if images is None or masks is None:
        missing = "images" if images is None else "masks"
        raise DataError(f"the option {missing} is missing", where=str(root), fix="name both folders")
    found: dict[str, list[Folder]] = {"image": [], "mask": []}
    for role, name in (("image", images), ("mask", masks)):
        base = root / name
        if not base.is_dir():
            raise DataError("is not a folder", where=str(base), fix=f"check the option {role}s")
        # The words of the path below the named folder say splits; its role is the one that was told.
        outer = described(base, Path(name).parts, ()).split
        found[role] = [replace(f, split=f.split or outer, role=role) for f in image_folders(base)]
    layout = _matched(root, found["image"], {_key(folder): [folder] for folder in found["mask"]})
    if not layout.entries:
        what = f"no file of {images} has a mask in {masks}"
        raise DataError(what, where=str(root), fix="check the options")
    return layout


def _key(folder: Folder) -> _Key:
    return folder.split, folder.rest


# --- one folder of images, one of masks


def _sibling_folders(root: Path, folders: Sequence[Folder]) -> MaskLayout | None:
    masks: dict[_Key, list[Folder]] = defaultdict(list)
    for folder in folders:
        if folder.role in ("mask", "instance"):
            masks[_key(folder)].append(folder)
    images = [folder for folder in folders if folder.role == "image"]
    if masks and not any(_key(folder) in masks for folder in images):
        images = _unnamed_images(folders, masks)
    without = [folder for folder in images if _key(folder) not in masks]
    images = [folder for folder in images if _key(folder) in masks]
    for folder in images:
        same = [*(other for other in images if _key(other) == _key(folder)), *masks[_key(folder)]]
        for role, option in (("image", "images"), ("mask", "masks"), ("instance", "masks")):
            several = [within(other.path, root) for other in same if other.role == role]
            if len(several) > 1:
                dates = role == "image" and len(several) == 2
                more = "; two dates: --format pairs -o before={} -o after={} -o masks=FOLDER" if dates else ""
                raise DataError(
                    f"{' and '.join(several)} may both hold the {option}",
                    where=str(root),
                    fix="name both folders with the options images=FOLDER and masks=FOLDER" + more.format(*several),
                )
    layout = _matched(root, images, masks)
    layout.without = without
    return layout if layout.entries else None


def _unnamed_images(folders: Sequence[Folder], masks: Mapping[_Key, list[Folder]]) -> list[Folder]:
    """Return the folders without a role that have the files of a mask folder beside them."""
    found: dict[Path, Folder] = {}
    for mask in (mask for same in masks.values() for mask in same):
        above = mask.path.parent
        for other in folders:
            beside = other.path == above or (other.path.parent == above and other.path != mask.path)
            if not other.role and beside and shared(other, mask) >= _ENOUGH_SHARED:
                found[other.path] = Folder(other.path, other.files, mask.split, "image", mask.rest)
    return list(found.values())


def _matched(root: Path, images: Sequence[Folder], masks: Mapping[_Key, list[Folder]]) -> MaskLayout:
    layout = MaskLayout()
    used: list[Folder] = []
    for folder in images:
        by_role = {other.role: other for other in reversed(masks.get(_key(folder), []))}
        classes, numbers = by_role.get("mask"), by_role.get("instance")
        main = classes or numbers
        if main is None:
            layout.alone += folder.files
            continue
        pairs = pair_files(root, folder.files, main.files)
        beside = pair_files(root, folder.files, numbers.files) if numbers and classes else {}
        for image in folder.files:
            if image in pairs:
                layout.entries.append(MaskEntry(image, (pairs[image],), folder.split, beside.get(image)))
            else:
                layout.alone.append(image)
        layout.strangers += sorted(set(main.files) - set(pairs.values()))
        used += [main, numbers] if numbers and classes else [main]
    layout.understood = f"images: {_names(root, images)}; their masks: {_names(root, used)}"
    return layout


def _names(root: Path, folders: Iterable[Folder]) -> str:
    """Return the folders' paths; many of one kind are shown by the first."""
    paths = [within(folder.path, root) for folder in folders]
    return ", ".join(paths[:4]) + (f" and {len(paths) - 4} more" if len(paths) > 4 else "")


def pair_files(root: Path, images: Sequence[Path], masks: Sequence[Path]) -> dict[Path, Path]:
    """Return image → mask of the same name, or of the same name without the word for what it is.

    Raises:
        DataError: Two masks or two images have the same name.
    """
    by_stem = _unique(root, {path: path.stem for path in masks}, "masks")
    pairs = {image: by_stem[image.stem] for image in images if image.stem in by_stem}
    if len(pairs) == len(images):
        return pairs
    taken = set(pairs.values())
    by_key = _unique(root, {mask: _bare(mask.stem) for mask in masks if mask not in taken}, "masks")
    fitting: dict[Path, str] = {}
    for image in images:
        key = _bare(image.stem)
        if key not in by_key:  # nnU-Net numbers the channels: "case_0000" belongs to "case"
            key = re.sub(r"_\d{4}$", "", key)
        if image not in pairs and key in by_key:
            fitting[image] = key
    _unique(root, fitting, "images")
    return pairs | {image: by_key[key] for image, key in fitting.items()}


def _bare(stem: str) -> str:
    """Return a file's name without the word in front or at its end that says what it is ("a_mask" → "a")."""
    words = _BETWEEN.split(stem)
    if len(words) > 1 and words[-1].lower() in _AFFIXES:
        return stem[: -len(words[-1])].rstrip("_-. ")
    if len(words) > 1 and words[0].lower() in _AFFIXES:
        return stem[len(words[0]) :].lstrip("_-. ")
    return stem


def _unique(root: Path, names: Mapping[Path, str], kind: str) -> dict[str, Path]:
    """Return name → file.

    Raises:
        DataError: Two files have one name.
    """
    found: dict[str, Path] = {}
    for path, name in names.items():
        if (other := found.setdefault(name, path)) != path:
            raise DataError(
                f"two {kind} belong to one name: {within(other, root)} and {within(path, root)}",
                where=str(root),
                fix="keep one of them; channels of one image must be in one file",
            )
    return found


# --- images and masks in one folder


def _one_folder(folders: Sequence[Folder]) -> MaskLayout | None:
    layout = MaskLayout()
    shown: Counter[str] = Counter()
    for folder in folders:
        named = {file: _mask_name(file.stem) for file in folder.files}
        masks: dict[str, list[Path]] = defaultdict(list)
        for file, name in named.items():
            if name:
                masks[name].append(file)
        keys = {file: file.stem if file.stem in masks else _bare(file.stem) for file in folder.files}
        found = {file: tuple(masks[key]) for file, key in keys.items() if key in masks and not named[file]}
        if not found:
            continue
        for image, own in found.items():
            layout.entries.append(MaskEntry(image, own, folder.split))
            shown[f'"{image.name}" with "{own[0].name}"'] += 1
        used = {file for own in found.values() for file in own}
        layout.alone += [file for file in folder.files if not named[file] and file not in found]
        layout.strangers += [file for file in folder.files if named[file] and file not in used]
    if not layout.entries or len(layout.entries) < len(layout.alone):
        return None
    layout.per_object = any(len(entry.masks) > 1 for entry in layout.entries)
    layout.understood = f"images and masks in one folder, {next(iter(shown))} for example"
    if len(others := sorted({folder.rest for folder in folders if folder.rest})) > 1:
        layout.understood += f"; {', '.join('/'.join(rest) for rest in others[:5])} are not read as classes"
    return layout


def _mask_name(stem: str) -> str | None:
    """Return the name of the image that a file is the mask of by its own name ("a_mask", "a_mask_1")."""
    match = _MANY.match(stem)
    if match and match["word"].lower() in MASK_WORDS:
        return match["key"]
    words = _BETWEEN.split(stem)
    return _bare(stem) if len(words) > 1 and words[0].lower() in MASK_WORDS else None


# --- one file an object


def _object_files(root: Path, folders: Sequence[Folder]) -> MaskLayout | None:
    masks = {_key(folder): folder for folder in folders if folder.role in ("mask", "instance")}
    layout = MaskLayout(per_object=True)
    used = set()
    for folder in (folder for folder in folders if folder.role == "image"):
        own = masks.get(_key(folder))
        alike = own is not None and (
            bool(folder.stems & own.stems)
            or (len(own.files) == 1 and _bare(folder.files[0].stem) == _bare(own.files[0].stem))
        )
        if own is not None and len(folder.files) == 1 and not alike:
            layout.entries.append(MaskEntry(folder.files[0], own.files, folder.split))
            used.add(own.path)
            continue
        for image in folder.files:
            below = masks.get((folder.split, (*folder.rest, image.stem.lower())))
            if below is not None:
                layout.entries.append(MaskEntry(image, below.files, folder.split))
                used.add(below.path)
            else:
                layout.alone.append(image)
    if not layout.entries or len(layout.entries) < len(layout.alone):
        return None
    layout.strangers = [folder.path for folder in masks.values() if folder.path not in used]
    first, count = layout.entries[0], sum(len(entry.masks) for entry in layout.entries)
    example = f"{within(first.masks[0], root)} of {within(first.image, root)}"
    layout.understood = f"{count} masks of one object each, {example} for example"
    return layout
