"""One folder a class, optionally under folders of the splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

from PIL import Image

from vitp.core.errors import DataError
from vitp.core.reading import real_path
from vitp.data.formats.builder import ReadOptions, SetBuilder
from vitp.data.formats.class_names import first_synonyms
from vitp.data.formats.counted_files import are_counted_apart
from vitp.data.formats.mask_names import are_full_of_values
from vitp.data.formats.unread import STRUCTURED, Unlabelled, unread_files
from vitp.data.formats.walk import (
    INSTANCE_WORDS,
    MASK_WORDS,
    Folder,
    as_option,
    comma_list,
    image_folders,
    list_images,
    named_file,
    read_label_lines,
    role_of,
    shared,
    split_folders,
    split_of,
    split_word,
    stem_of,
    within,
    words_of,
)
from vitp.io.dicom_labels import dicom_role
from vitp.io.images import image_size
from vitp.io.raster_sources import vrt_sources
from vitp.io.volume_kinds import is_dicom_file
from vitp.records.labels import LabelledSet

_ALIKE = 0.5
"""Share of equal names from which two folders hold the same images in different forms, not two classes."""

_ALIKE_NUMBERS = 0.8
"""The same for names that are numbers, as in folders that each count from 1."""

_LOOKED_AT = 16
"""Pairs of files of one name whose sizes are compared."""

_THINGS = frozenset(("tile", "frame", "picture", "photo", "patch", "scan", "raw"))
"""Words for what a folder may hold that are things and states, too."""

_CONTENTS = frozenset(("images", "imgs", "image", "img", "photos", "pictures"))
"""Names of folders within one of a class that hold its images."""

_WORDS = ("words.txt", "synset_words.txt", "LOC_synset_mapping.txt")
"""Files of lines "n01443537 goldfish, Carassius auratus" beside folders of the classes of ImageNet."""

_ONE = frozenset(
    ("mask", "label", "gt", "truth", "target", "manual", "lab", "instance", "semantic", "trimap")
)
"""Words for a folder of masks that may be in the name of a class. Those of several ("masks", "labels") aren't."""


def read_folders(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    classes: str | list[str] | None = None,
    level: int | None = None,
) -> LabelledSet:
    """Read class folders.

    Args:
        root: Holds `{class}/*.png` or `{train,val,test}/{class}/*.png`; classes may be nested.
        options: Name, licence, splits.
        classes: The classes in order, others are left out; by default the folders' names, sorted.
        level: Which folder below the split names the class, from 1, where folders are nested; by default the
            innermost, where its name is no number.

    Raises:
        DataError: There is no image in any class folder, or nested folders have two readings.
    """
    builder = SetBuilder(root, options)
    known = comma_list(classes)
    spoken_as = {} if known else _words(builder)
    seen: set[str] = set()
    depths: set[int] = set()
    unsorted, sources = _unsorted(root), _sources(root)
    foldered = {path.name for _, base in _bases(root) if base not in unsorted for path in base.iterdir()}
    for split, base in _bases(root):
        if base in unsorted:
            for image, name in _listed(builder, base, unsorted[base], foldered):
                if known is None or name in known:
                    name = spoken_as.get(name, name)
                    seen.add(name)
                    builder.add_file(image, split=split, category=name, scene=name)
            continue
        for top in sorted(p for p in base.iterdir() if p.is_dir() and not p.name.startswith(".")):
            folders = image_folders(top)
            if not list_images(top) and not any(folder.path != top for folder in folders):
                unknown = known is not None and top.name not in known
                text = "unknown class; 0 images left out" if unknown else "class folder without images"
                builder.note(builder.place(top), text)
            for folder in folders:
                if sources.issuperset(map(real_path, folder.files)):
                    builder.note(builder.place(folder.path), "holds the files that VRTs show; no class")
                    continue
                parts = _without_contents(folder.path.relative_to(base).parts)
                name = _class_name(builder, parts, level)
                name = spoken_as.get(name, name)
                depths.add(len(parts))
                if known is not None and name not in known:
                    count = len(folder.files)
                    builder.note(builder.place(folder.path), f"unknown class; {count} images left out")
                    continue
                seen.add(name)
                for image in folder.files:
                    builder.add_file(image, split=split, category=name, scene=name)
    names = known or sorted(seen)
    nested_text = "" if depths <= {1} else f", the {'innermost' if level is None else f'{level}.'} folders'"
    builder.understand(f"classes are the folders' names{nested_text}: {', '.join(names[:20])}")
    _say_unread(builder)
    return builder.build(scene_classes=names)


def _say_unread(builder: SetBuilder) -> None:
    """Say which files that may hold labels lie beside the images."""
    if there := unread_files(builder.root, STRUCTURED):
        builder.understand(f"there, and not read: {there}")


def _bases(root: Path) -> list[tuple[str | None, Path]]:
    """Return the folders of the splits, or the set's own, without a folder that holds all classes (`images/cat`)."""
    return [(split, _within_contents(base)) for split, base in split_folders(_within_contents(root))]


def _within_contents(base: Path) -> Path:
    """Return the only folder in one where it is called after its contents and holds folders of images itself."""
    tops = {folder.path.relative_to(base).parts[:1] for folder in image_folders(base)}
    if len(tops) != 1 or not (top := next(iter(tops))) or top[0].lower() not in _CONTENTS:
        return base
    return base / top[0] if len(image_folders(base / top[0])) > 1 and not list_images(base / top[0]) else base


def _unsorted(root: Path) -> dict[Path, Path]:
    """Return the folders of splits whose images all lie in one (`val/images`), where another has classes' folders."""
    bases = [base for split, base in _bases(root) if split is not None]
    own = {base: [folder.path for folder in image_folders(base)] for base in bases}
    found = {
        base: paths[0]
        for base, paths in own.items()
        if len(paths) == 1 and paths[0].parent == base and paths[0].name.lower() in _CONTENTS
    }
    return found if any(len(paths) > 1 for paths in own.values()) else {}


def _listed(
    builder: SetBuilder, base: Path, images: Path, folders: Collection[str]
) -> Iterator[tuple[Path, str]]:
    """Yield images and classes as Tiny ImageNet's `val_annotations.txt` has them; images without are a finding.

    So is a class that none of the other splits' folders is called after.
    """
    path = named_file(base, (f"{base.name}_annotations.txt",))
    strange: dict[str, int] = {}
    left = set(list_images(images))
    for row, line in enumerate(read_label_lines(path) if path else (), 1):
        name, _, rest = line.strip().partition("\t")
        image, label = images / name, rest.split("\t")[0].strip()
        if not name or path is None:
            continue
        if not label:
            fix = "write the image, a tab and its class"
            raise DataError("names no image and class", where=f"{path}:{row}", fix=fix)
        if image in left:
            left.remove(image)
            if label not in folders:
                strange.setdefault(label, row)
            yield image, label
        else:
            builder.lose(builder.place(path, row), f"{name} is missing; left out", absent=True)
    for label, row in strange.items():
        builder.note(
            builder.place(path or base, row),
            f'no folder of training images is called after its class "{label}"',
        )
    if left:
        builder.note(builder.place(images), f"{len(left):,} images of no known class; left out")


def _words(builder: SetBuilder) -> dict[str, str]:
    """Return what the classes are called in words, where folders have the numbers of ImageNet's classes."""
    path = named_file(builder.root, _WORDS)
    if path is None:
        return {}
    names = {part for folder in find_class_folders(builder.root) for part in folder.path.parts}
    pairs = (line.strip().split(maxsplit=1) for line in read_label_lines(path))
    told = {pair[0]: pair[1] for pair in pairs if len(pair) == 2 and pair[0] in names}
    if not told:
        return {}
    builder.understand(f"{builder.place(path)}: the names of {len(told):,} classes, the first word for each")
    return dict(zip(told, first_synonyms([*told.values()]), strict=True))


def _without_contents(parts: tuple[str, ...]) -> tuple[str, ...]:
    """Return the parts of a path without a last one that says "images" below the name of the class ("cat/images")."""
    return parts[:-1] if len(parts) > 1 and parts[-1].lower() in _CONTENTS else parts


def _class_name(builder: SetBuilder, parts: tuple[str, ...], level: int | None) -> str:
    if level is not None:
        return parts[min(level, len(parts)) - 1]
    if len(parts) > 1 and (split_of(parts[-1]) or any(character.isdigit() for character in parts[-1])):
        raise DataError(
            f'folders are nested, as in {"/".join(parts)}: the class may be "{parts[0]}" or "{parts[-1]}"',
            where=str(builder.root),
            fix=f"-o level=1 takes the outer folder's name, -o level={len(parts)} the inner one's",
        )
    return parts[-1]


def find_class_folders(root: Path) -> list[Folder]:
    """Return the folders of images that may be classes, whatever the files in them are called."""
    found = []
    for split, base in _bases(root):
        own = [folder for folder in image_folders(base) if folder.path not in (base, root)]
        found += [replace(folder, split=split) for folder in own]
    unsorted, sources = set(_unsorted(root).values()), _sources(root)
    return [
        folder
        for folder in found
        if folder.path not in unsorted and not sources.issuperset(map(real_path, folder.files))
    ]


def _sources(root: Path) -> set[Path]:
    """Return the files that VRTs of classes show; a mosaic of many, or one in the set's own folder, is no such VRT."""
    folders = (folder for folder in image_folders(root) if folder.path != root)
    vrts = (path for folder in folders for path in folder.files if path.suffix.lower() == ".vrt")
    told = map(vrt_sources, vrts)
    return {source for sources, mosaic in told if not mosaic for source in sources}


def check_classes(root: Path, folders: Sequence[Folder]) -> None:
    """Make sure that folders are classes, when nobody said so.

    Raises:
        DataError: They hold images and masks, several forms of the same images, or one class only.
    """
    explicit = "--format folders reads each folder as a class"
    by_split: dict[str | None, list[Folder]] = defaultdict(list)
    for folder in folders:
        by_split[folder.split].append(folder)
    for own in by_split.values():
        alike = [pair for pair in combinations(own[:50], 2) if _are_alike(*pair)]
        if alike and not are_counted_apart([f for f in own if any(f in pair for pair in alike)]):
            _refuse_alike(root, *alike[0], own, explicit)
    roles = [f for f in folders if role_of(f.path.name) and not _is_class(f, folders)]
    if not roles and {"image", "mask"} <= {f.role for f in folders if not role_of(f.path.name)}:
        roles = [folder for folder in folders if folder.role]  # images/bonn and masks/bonn
    if roles:
        names = ", ".join(sorted({within(folder.path, root) for folder in roles})[:4])
        one = len(roles) == 1
        raise Unlabelled(
            f"no labels found: {names} {'is' if one else 'are'} named after what {'it holds' if one else 'they hold'}, "
            f"images or masks, or {'is a class' if one else 'are classes'}{_differ(roles)}",
            where=str(root),
            fix=f"{explicit}; -o images=FOLDER -o masks=FOLDER reads images and masks; for other labels put them beside "
            "the images (masks/, labels/, annotations/, a table); --format images reads images without labels",
        )
    innermost = {_without_contents(folder.path.relative_to(root).parts)[-1] for folder in folders}
    # Splits may have other words beside them, all the same ones ("cars_train", "cars_test").
    rest = {tuple(word for word in words_of(name) if not split_of(word)) for name in innermost}
    are_splits = all(map(split_of, innermost)) or (all(map(split_word, innermost)) and len(rest) == 1)
    if len(innermost) < 2 or are_splits:
        only = " and ".join(sorted(within(folder.path, root) for folder in folders)[: len(innermost)])
        what = f"no labels found: all images lie in {only}{'' if len(innermost) < 2 else ', which are splits and no classes'}"
        raise Unlabelled(what, where=str(root), fix=f"put labels beside them, or name the format; {explicit}")


def _is_class(folder: Folder, folders: Sequence[Folder]) -> bool:
    """Return whether a folder is a class although its name may say what it holds.

    Photographs are no masks, so a folder of them that is called "gt", "mask" or "label_0" is a class beside others,
    where none of these holds the images. "tile" and "frame" are classes beside two that are named after no contents.
    """
    if folder.path.name.lower() in _CONTENTS and "mask" not in {f.role for f in folders}:
        above = {
            f.path.parent.name for f in folders if f.path.name == folder.path.name and f.split == folder.split
        }
        # Splits, and the set's own folder, are no classes.
        alone = not any(p.is_dir() and p != folder.path for p in folder.path.parent.iterdir())
        return len(above) > 1 and alone and bool(folder.rest) and not split_of(folder.path.parent.name)
    beside = [f for f in folders if f.path.parent == folder.path.parent and f.path != folder.path]
    roles = [role_of(other.path.name) for other in beside]
    words = set(words_of(folder.path.name))
    if role_of(folder.path.name) != "image":
        contents = words & (MASK_WORDS | INSTANCE_WORDS)
        named = contents <= _ONE and "ground" not in words
        return named and bool(beside) and "image" not in roles and _are_full_of_values(folder)
    return words <= _THINGS and roles.count("") >= 2


def _are_full_of_values(folder: Folder) -> bool:
    """Return whether images have so many values, and so evenly, as photographs have and masks don't."""
    return all(map(are_full_of_values, folder.files[:: max(1, len(folder.files) // 3)][:3]))


def _differ(folders: Sequence[Folder]) -> str:
    """Return that the files of masks aren't called like those of images, with an example; "" where there are none."""
    image, mask = (
        next((folder for folder in folders if folder.role == role), None) for role in ("image", "mask")
    )
    if image is None or mask is None:
        return ""
    return f", and masks have other names than images ({mask.files[0].name}, {image.files[0].name})"


def _refuse_alike(
    root: Path, first: Folder, second: Folder, folders: Sequence[Folder], explicit: str
) -> None:
    # The reading with photographs as images comes first.
    pair = sorted((first, second), key=lambda folder: not _are_photographs(folder))
    one, other = (within(path, root) for path in _forks(*(f.path for f in pair)))
    alike = [folder for folder in folders if folder in pair or _are_alike(first, folder)]
    drawn = [within(folder.path, root) for folder in alike if not _are_photographs(folder)]
    photographs = [within(folder.path, root) for folder in alike if _are_photographs(folder)]
    if len(drawn) > 1 and len(photographs) == 1:
        one, other = photographs[0], drawn[0]
        raise DataError(
            f"{', '.join(drawn[:4])} have files of the same names as {one}: masks that several people drew, who are never "
            "mixed, or of several classes; or each folder is a class",
            where=str(root),
            fix=f"--format masks {as_option('images', one)} {as_option('masks', other)} reads those of one; {explicit}",
        )
    raise DataError(
        f"{one} and {other} have {len(first.stems & second.stems)} files of equal names: images and masks, two dates, or "
        "classes",
        where=str(root),
        fix=f"--format masks {as_option('images', one)} {as_option('masks', other)} (or the other way round) reads masks, --format pairs "
        f"{as_option('before', one)} {as_option('after', other)} -o masks=FOLDER dates; {explicit}; or name one of the folders",
    )


def _forks(first: Path, second: Path) -> tuple[Path, Path]:
    """Return the folders in which two paths part: color/apple and grey/apple are of color and grey."""
    while first.name == second.name:
        first, second = first.parent, second.parent
    return first, second


def _are_alike(first: Folder, second: Folder) -> bool:
    """Return whether two folders hold files of the same names, as different forms of the same images do."""
    a, b = first.stems, second.stems
    common = a & b
    if len(common) < 2 or _of_other_patients(first, second):
        return False
    numbers = all(stem.isdigit() for stem in common)
    if numbers:
        return len(common) / len(a | b) >= _ALIKE_NUMBERS and not _are_of_other_sizes(first, second)
    return shared(first, second) >= _ALIKE


def _are_of_other_sizes(first: Folder, second: Folder) -> bool:
    """Return whether most files of one name differ in size between two folders: a counter named them alike."""
    found = {stem_of(path): path for path in first.files}
    pairs = [(found[name], path) for path in second.files if (name := stem_of(path)) in found][:_LOOKED_AT]
    try:
        return 2 * sum(image_size(one) != image_size(other) for one, other in pairs) > len(pairs)
    except DataError:
        return False


def _of_other_patients(first: Folder, second: Folder) -> bool:
    """Return whether DICOM files of one name in two folders are of two patients, so not forms of one image."""
    found = {stem_of(path): path for path in first.files}
    pairs = ((found[stem_of(path)], path) for path in second.files if stem_of(path) in found)
    roles = []
    for path in next(pairs, ()):
        file = next(iter(sorted(path.iterdir())), path) if path.is_dir() else path
        if not file.is_file() or not is_dicom_file(file):
            return False
        try:
            roles.append(dicom_role(file))
        except DataError:
            return False
    return len({role.study for role in roles}) == len({role.patient or role.study for role in roles}) == 2


def _are_photographs(folder: Folder) -> bool:
    if role_of(folder.path.name) == "mask":
        return False
    try:
        with Image.open(folder.files[0]) as file:
            return file.format == "JPEG" or file.mode in ("RGB", "RGBA", "CMYK")
    except OSError:
        return False
