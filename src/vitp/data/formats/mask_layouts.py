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
from vitp.data.formats.mask_names import (
    BETWEEN,
    CITYSCAPES,
    LABEL_IDS,
    annotator_of,
    are_full_of_values,
    are_views,
    bare_name,
    is_drawn_by,
    kind_of_cityscapes,
    of_annotator,
    pair_files,
    refuse_readers,
    without_annotator,
)
from vitp.data.formats.walk import (
    MASK_WORDS,
    Folder,
    as_option,
    described,
    image_folders,
    role_of,
    within,
    words_of,
)

_ENOUGH_SHARED = 0.5
"""Share of equal names from which two folders are about the same images."""

_MANY = re.compile(r"^(?P<key>.+?)[_\-. ](?P<word>[A-Za-z]+)(?:[_\-. ]?\d+)?$")

_VIEW_WORDS = frozenset(("mask", "masks", "fov", "view", "field", "of", "roi"))
"""Words of folders that may hold the field of view."""

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
    """The masks of a set: images with them, images `alone`, folders `without` any, and masks without image.

    `label_ids`: all are Cityscapes' labelIds by their names.
    """

    entries: list[MaskEntry] = field(default_factory=list)
    per_object: bool = False
    understood: str = ""
    label_ids: bool = False
    alone: list[Path] = field(default_factory=list)
    without: list[Folder] = field(default_factory=list)
    strangers: list[Path] = field(default_factory=list)


def find_masks(
    root: Path, images: str | None = None, masks: str | None = None, annotator: int | str | None = None
) -> MaskLayout | None:
    """Return the masks under a folder, or None when there are none to be seen; the options may name both folders.

    Args:
        root: The set's folder.
        images: Folder of the images.
        masks: Folder of the masks.
        annotator: The number, or a word, of the one whose masks are read, where several have drawn them ("1st_manual").

    Raises:
        DataError: There are several readings; the message names them.
    """
    if images is not None or masks is not None:
        return _told(root, images, masks, annotator)
    folders = image_folders(root)
    return (
        _object_files(root, folders)
        or _sibling_folders(root, folders, annotator)
        or _one_folder(root, folders, annotator)
    )


def _told(root: Path, images: str | None, masks: str | None, annotator: int | str | None) -> MaskLayout:
    if images is None or masks is None:
        missing = "images" if images is None else "masks"
        raise DataError(f"the option {missing} is missing", where=str(root), fix="name both folders")
    found: dict[str, list[Folder]] = {"image": [], "mask": []}
    outer = next((s for name in (images, masks) if (s := described(root, Path(name).parts, ()).split)), None)
    for role, name in (("image", images), ("mask", masks)):
        base = root / name
        if not base.is_dir():
            raise DataError("is not a folder", where=str(base), fix=f"check the option {role}s")
        # The words of the path below the named folder say splits; its role is the one that was told.
        found[role] = [replace(f, split=f.split or outer, role=role) for f in image_folders(base)]
    given = {_key(folder): [folder] for folder in found["mask"]}
    layout = _matched(root, found["image"], _of_one_annotator(root, given, annotator))
    if not layout.entries:
        what = f"no file of {images} has a mask in {masks}"
        raise DataError(what, where=str(root), fix="check the options")
    return layout


def _key(folder: Folder) -> _Key:
    return folder.split, folder.rest


# --- one folder of images, one of masks


def _sibling_folders(root: Path, folders: Sequence[Folder], annotator: int | str | None) -> MaskLayout | None:
    masks: dict[_Key, list[Folder]] = defaultdict(list)
    for folder in folders:
        if folder.role in ("mask", "instance"):
            masks[_key(folder)].append(folder)
    images = [folder for folder in folders if folder.role == "image"]
    if masks and not any(_key(folder) in masks for folder in images):
        images = _unnamed_images(root, folders, masks)
    beside = {folder.path.parent for folder in images}
    known = {folder.path for folder in (*images, *(one for own in masks.values() for one in own))}
    unnamed = [f for f in folders if not f.role and f.path.parent in beside and f.path not in known]
    without = [folder for folder in (*images, *unnamed) if _key(folder) not in masks]
    images = [folder for folder in images if _key(folder) in masks]
    masks = _of_one_annotator(root, {key: masks[key] for key in map(_key, images)}, annotator)
    masks, said = _without_views(root, masks)
    without += [folder for folder in images if not masks[_key(folder)]]
    images = [folder for folder in images if masks[_key(folder)]]
    strange = _beside_others(root, images, masks)
    without += strange
    images = [folder for folder in images if folder not in strange]
    for folder in images:
        same = [*(other for other in images if _key(other) == _key(folder)), *masks[_key(folder)]]
        for role, option in (("image", "images"), ("mask", "masks"), ("instance", "masks")):
            several = [within(other.path, root) for other in same if other.role == role]
            if len(several) > 1:
                dates = role == "image" and len(several) == 2
                first, second = (as_option(*pair) for pair in zip(("before", "after"), several, strict=False))
                more = f"; two dates: --format pairs {first} {second} -o masks=FOLDER" if dates else ""
                if role == "mask":
                    one, first = (
                        as_option("images", within(folder.path, root)),
                        as_option("masks", several[0]),
                    )
                    more = f"; those of several people are never mixed: {one} {first} reads one's"
                raise DataError(
                    f"{' and '.join(several)} may both hold the {option}",
                    where=str(root),
                    fix=f"name both folders with the options images=FOLDER and masks=FOLDER{more}",
                )
    _refuse_bands_apart(root, images, without)
    layout = _matched(root, images, masks)
    layout.without = without
    layout.understood += f"; {said}" if said else ""
    return layout if layout.entries else None


def _beside_others(root: Path, images: Sequence[Folder], masks: Mapping[_Key, list[Folder]]) -> list[Folder]:
    """Return the folders of images none of which has a mask, where those of another folder beside the masks have."""
    found = []
    for key in {_key(folder) for folder in images}:
        same = [folder for folder in images if _key(folder) == key]
        if len(same) > 1:
            shares = [max(_share_paired(root, folder, mask) for mask in masks[key]) for folder in same]
            if sum(share >= _ENOUGH_SHARED for share in shares) == 1:
                found += [folder for folder, share in zip(same, shares, strict=True) if not share]
    return found


def _refuse_bands_apart(root: Path, images: Sequence[Folder], without: Sequence[Folder]) -> None:
    """Raise where folders without masks hold the files of one with masks but for a word: bands of the same images."""
    for folder in images:
        own = {_without_a_word(stem) for stem in folder.stems}
        # What lies beside a folder called images (depth, for one) is something else than it.
        kind = role_of(folder.path.name)
        alike = [other for other in without if role_of(other.path.name) == kind]
        others = [one for one in alike if 2 * len(own & set(map(_without_a_word, one.stems))) > len(own)]
        if others and len(own) > 1 and all(own):
            names = ", ".join(within(other.path, root) for other in others[:4])
            raise DataError(
                f"{within(folder.path, root)} and {names} hold files whose names differ in one word ({folder.files[0].name}, "
                f"{others[0].files[0].name}): bands of the same images, perhaps, of which only the first would be read",
                where=str(root),
                fix="put the bands of an image into one file, or into a folder of the image's name in images/; "
                f"{as_option('images', within(folder.path, root))} -o masks=FOLDER reads this folder alone",
            )


def _without_a_word(stem: str) -> str:
    """Return a name without its first word, "" where it has only one."""
    words = BETWEEN.split(stem, maxsplit=1)
    return words[1] if len(words) > 1 else ""


def _of_one_annotator(
    root: Path, masks: Mapping[_Key, list[Folder]], annotator: int | str | None
) -> dict[_Key, list[Folder]]:
    """Return the folders of masks without what others than the annotator drew."""
    folders = [folder for own in masks.values() for folder in own]
    drawn: list[Path] = []
    for folder in folders:
        name = folder.path.name
        told = is_drawn_by(name, annotator) if isinstance(annotator, str) else annotator_of(name)
        drawn += (folder.path,) if told else folder.files
    kept = of_annotator(root, drawn, annotator)
    if len(kept) == len(drawn):
        return dict(masks)
    found: dict[_Key, list[Folder]] = {}
    for key, own in masks.items():
        cut = [f if f.path in kept else replace(f, files=tuple(x for x in f.files if x in kept)) for f in own]
        found[key] = [folder for folder in cut if folder.files]
    return found


def _without_views(root: Path, masks: Mapping[_Key, list[Folder]]) -> tuple[dict[_Key, list[Folder]], str]:
    """Return the folders of masks without those of the field of view, and what to say of these.

    A folder of plain name ("mask", "fov") beside one of drawings by hand holds the field of view where each of its
    masks is one large part of the image in which all that was drawn lies; so do those of its name in other splits.
    """
    views: dict[Path, str] = {}
    for own in masks.values():
        drawn = [folder for folder in own if "manual" in words_of(folder.path.name)]
        for folder in [f for f in own if set(words_of(f.path.name)) <= _VIEW_WORDS] if drawn else []:
            if are_views(folder.files, [file for one in drawn for file in one.files]):
                views[folder.path] = folder.path.name
    names = set(views.values())
    left = {key: [folder for folder in own if folder.path.name not in names] for key, own in masks.items()}
    gone = [within(f.path, root) for own in masks.values() for f in own if f.path.name in names]
    said = f"{' and '.join(gone)}: the field of view, which is no label" if gone else ""
    return left, said


def _unnamed_images(
    root: Path, folders: Sequence[Folder], masks: Mapping[_Key, list[Folder]]
) -> list[Folder]:
    """Return the folders without a role that have the files of a mask folder beside them."""
    found: dict[Path, Folder] = {}
    for mask in (mask for same in masks.values() for mask in same):
        above = mask.path.parent
        for other in folders:
            beside = other.path == above or (other.path.parent == above and other.path != mask.path)
            if not other.role and beside and _share_paired(root, other, mask) >= _ENOUGH_SHARED:
                found[other.path] = Folder(other.path, other.files, mask.split, "image", mask.rest)
    return list(found.values())


def _share_paired(root: Path, images: Folder, masks: Folder) -> float:
    """Return the share of the smaller folder's files that have a partner in the other one."""
    first = min((n for file in masks.files if (n := annotator_of(file.stem))), default=None)
    files = of_annotator(root, masks.files, first)
    return len(pair_files(root, images.files, files)) / min(len(images.files), len(files))


def _matched(root: Path, images: Sequence[Folder], masks: Mapping[_Key, list[Folder]]) -> MaskLayout:
    layout = MaskLayout()
    used: list[Folder] = []
    others: set[str] = set()
    for folder in images:
        by_role = {other.role: other for other in reversed(masks.get(_key(folder), []))}
        classes, numbers = by_role.get("mask"), by_role.get("instance")
        main = classes or numbers
        if main is None:
            layout.alone += folder.files
            continue
        if cityscapes := tuple(file for file in main.files if CITYSCAPES.search(file.stem)):
            files = (*main.files, *main.path.glob("*.json"))
            others |= {kind for file in files if (kind := kind_of_cityscapes(file.stem))}
            main = replace(main, files=cityscapes)
        pairs = pair_files(root, folder.files, main.files)
        if not pairs:
            refuse_readers(root, folder.files, main.files)
        beside = pair_files(root, folder.files, numbers.files) if numbers and classes else {}
        for image in folder.files:
            if image in pairs:
                layout.entries.append(MaskEntry(image, (pairs[image],), folder.split, beside.get(image)))
            else:
                layout.alone.append(image)
        layout.strangers += sorted(set(main.files) - set(pairs.values()))
        used += [main, numbers] if numbers and classes else [main]
    layout.understood = f"images: {_names(root, images)}; their masks: {_names(root, used)}"
    masks_read = [mask for entry in layout.entries for mask in entry.masks]
    layout.label_ids = bool(masks_read) and all(CITYSCAPES.search(mask.stem) for mask in masks_read)
    if others:
        rest = sorted(others - {LABEL_IDS})
        left = f"; {', '.join(rest)} {'is' if len(rest) == 1 else 'are'} not read" if rest else ""
        layout.understood += f"; of Cityscapes' kinds the files …_{LABEL_IDS}{left}"
    return layout


def _names(root: Path, folders: Iterable[Folder]) -> str:
    """Return the folders' paths; many of one kind are shown by the first."""
    paths = [within(folder.path, root) for folder in folders]
    return ", ".join(paths[:4]) + (f" and {len(paths) - 4} more" if len(paths) > 4 else "")


# --- images and masks in one folder


def _one_folder(root: Path, folders: Sequence[Folder], annotator: int | str | None) -> MaskLayout | None:
    layout = MaskLayout()
    shown: Counter[str] = Counter()
    kept = set(of_annotator(root, [file for folder in folders for file in folder.files], annotator))
    for folder in folders:
        twins = _drawn_twins(folder)
        named = {file: twins.get(file) or _mask_name(file.stem) for file in folder.files if file in kept}
        masks: dict[str, list[Path]] = defaultdict(list)
        for file, name in named.items():
            if name:
                masks[name].append(file)
        keys = {file: file.stem if file.stem in masks else bare_name(file.stem) for file in named}
        found = {file: tuple(masks[key]) for file, key in keys.items() if key in masks and not named[file]}
        if not found:
            layout.without.append(folder)
            continue
        for image, own in found.items():
            layout.entries.append(MaskEntry(image, own, folder.split))
            shown[f'"{image.name}" with "{own[0].name}"'] += 1
        used = {file for own in found.values() for file in own}
        layout.alone += [file for file in named if not named[file] and file not in found]
        layout.strangers += [file for file in named if named[file] and file not in used]
    if not layout.entries or len(layout.entries) < len(layout.alone):
        return None
    layout.per_object = any(len(entry.masks) > 1 for entry in layout.entries)
    layout.understood = f"images and masks in one folder, {next(iter(shown))} for example"
    if len(others := sorted({folder.rest for folder in folders if folder.rest})) > 1:
        layout.understood += f"; {', '.join('/'.join(rest) for rest in others[:5])} are not read as classes"
    return layout


def _drawn_twins(folder: Folder) -> dict[Path, str]:
    """Return which files are the masks of photographs of their own name (`a.jpg` and `a.png`), with that name.

    They are where most photographs have one, and those that are looked at hold few values.
    """
    photographs = {file.stem for file in folder.files if file.suffix.lower() in (".jpg", ".jpeg")}
    others = {
        file: file.stem
        for file in folder.files
        if file.stem in photographs and file.suffix.lower() not in (".jpg", ".jpeg")
    }
    if not others or 2 * len(others) < len(photographs) or any(map(are_full_of_values, [*others][:3])):
        return {}
    return others


def _mask_name(stem: str) -> str | None:
    """Return the name of the image that a file is the mask of by its own name ("a_mask", "a_mask_1")."""
    if annotator_of(stem) and without_annotator(stem):
        return without_annotator(stem)
    match = _MANY.match(stem)
    if match and match["word"].lower() in MASK_WORDS:
        return match["key"]
    words = BETWEEN.split(stem)
    return bare_name(stem) if len(words) > 1 and words[0].lower() in MASK_WORDS else None


# --- one file an object


def _object_files(root: Path, folders: Sequence[Folder]) -> MaskLayout | None:
    masks = {_key(folder): folder for folder in folders if folder.role in ("mask", "instance")}
    layout = MaskLayout(per_object=True)
    used = set()
    for folder in (folder for folder in folders if folder.role == "image"):
        own = masks.get(_key(folder))
        alike = own is not None and (
            bool(folder.stems & own.stems)
            or (len(own.files) == 1 and bare_name(folder.files[0].stem) == bare_name(own.files[0].stem))
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
