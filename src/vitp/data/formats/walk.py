"""The walk through a set's folder that all readers share: its files, its splits, and what its folders are for.

`train/images`, `images/train`, `train_images` and `imagesTr` say the same: images of the training split.
`image_folders` takes the path of each folder of images apart into split, role and rest; folders belong together where
split and rest are equal.
"""

from __future__ import annotations

import json
import re
import shlex
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from vitp.core.errors import DataError
from vitp.core.reading import check_file, lines_of, parse_json, parse_xml, read_text
from vitp.data.formats.look import entries_of, once, suffix_of
from vitp.data.formats.volume_names import is_series, is_volume_name, volume_suffix
from vitp.io.band_folders import is_band_folder
from vitp.io.images import IMAGE_SUFFIXES
from vitp.io.slides import is_slide_folder
from vitp.io.volume_kinds import is_dicom_slide
from vitp.records.labels import SPLITS

DEEPEST = 4
"""Levels of folders that `image_folders` looks at."""

Note = Callable[[str, str], None]
"""Takes a finding: where, text."""

_ALIASES = {
    **dict.fromkeys(("train", "training", "trainval", "restval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_SHORT_SPLITS = {"tr": "train", "va": "val", "ts": "test", "te": "test"}
_YEAR = re.compile(r"[-_ ]?(19|20)\d\d$")

IMAGE_WORDS = frozenset(
    (
        *("image", "images", "img", "imgs", "input", "inputs", "photo", "photos", "picture", "pictures"),
        *("pic", "pics", "frame", "frames", "sat", "rgb", "original", "originals", "raw", "source", "src"),
        *("scan", "scans", "tile", "tiles", "patch", "patches"),
    )
)
MASK_WORDS = frozenset(
    (
        *("mask", "masks", "label", "labels", "lbl", "lbls", "annotation", "annotations", "annot", "annots"),
        *("anno", "annos", "ann", "gt", "gts", "groundtruth", "truth", "seg", "segs", "segmentation"),
        *("segmentations", "semantic", "target", "targets", "trimap", "trimaps", "manual", "lab", "labs"),
    )
)
INSTANCE_WORDS = frozenset(("instance", "instances", "inst", "insts"))
_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")
_PIECE = re.compile(r"([A-Za-z]+)\d*$")
_WITHOUT = re.compile(r"(?<![A-Za-z])(?i:with|without|no)(?:[_\- ]+[A-Za-z]+|[A-Z][a-z]+)")
"""What a class is about, as in "with_mask" and "without_mask"; it isn't what the folder holds."""
_DEPTH = re.compile(r"\d+bit$", re.IGNORECASE)


# --- reading


def read_label_text(path: Path) -> str:
    """Return a label file's text.

    Raises:
        DataError: It can't be read or isn't UTF-8.
    """
    try:
        return read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        what = f"can't be read ({error})"
        raise DataError(what, where=str(path), fix="check the file; text must be UTF-8") from error


def read_label_lines(path: Path) -> list[str]:
    """Return a label file's lines, without their ends.

    Raises:
        DataError: It can't be read or isn't UTF-8.
    """
    return lines_of(read_label_text(path))


def parse_label_json(text: str, path: Path, fix: str = "mend the file", row: int = 1) -> Any:
    """Return the value of JSON text that begins in a row of a file.

    Raises:
        DataError: It isn't JSON.
    """
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        line = row + error.lineno - 1
        raise DataError(f"is not JSON ({error.msg})", where=f"{path}:{line}", fix=fix) from error


def read_label_xml(path: Path, fix: str = "mend or remove the file") -> ElementTree.Element:
    """Return the root element of an XML file.

    Raises:
        DataError: It can't be read or isn't XML.
    """
    try:
        return parse_xml(read_label_text(path))
    except ElementTree.ParseError as error:
        where = f"{path}:{error.position[0]}"
        raise DataError(f"is not XML ({error})", where=where, fix=fix) from error


def check_ordinary(path: Path) -> None:
    """Make sure that what stands in the place of a label file is a file, where there is anything.

    Raises:
        DataError: It is a folder, a named pipe, a device or a link that leads nowhere.
    """
    try:
        check_file(path)
    except FileNotFoundError as error:
        if path.is_symlink():
            fix = "mend the link, or remove it"
            raise DataError("is a link that leads nowhere", where=str(path), fix=fix) from error
    except OSError as error:
        fix = "put the label file in its place"
        raise DataError(f"can't be read ({error.strerror})", where=str(path), fix=fix) from error


def within(path: str | Path, root: Path) -> str:
    """Return a path relative to `root` with "/" between its parts; as it is where it lies elsewhere."""
    path = Path(path)
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def as_option(name: str, value: object) -> str:
    """Return `-o NAME=VALUE` as a shell takes it: names with spaces, quotes, brackets and the like stand in quotes."""
    return f"-o {shlex.quote(f'{name}={value}')}"


def comma_list(value: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Return "a,b" or a list of words as a tuple of words; None stays None."""
    if value is None:
        return None
    words = value.split(",") if isinstance(value, str) else value
    return tuple(word.strip() for word in words if word.strip())


# --- files


def list_images(folder: Path) -> list[Path]:
    """Return the images of one folder, sorted by name: files, and folders with one file a band."""
    return [
        folder / name
        for name, is_folder in entries_of(folder)
        if (_is_one(folder / name) if is_folder else _is_image(name))
    ]


def _is_one(folder: Path) -> bool:
    """Return whether a folder is one image: a file a band, an OME-Zarr, or the DICOM files of a series or slide."""
    return once("one", folder, lambda path: is_slide_folder(path) or _is_of_bands(path) or is_series(path))


def _is_of_bands(folder: Path) -> bool:
    return once("bands", folder, is_band_folder)


def images_below(folder: Path) -> list[Path]:
    """Return the images in a folder and its sub-folders, sorted; hidden ones are left out.

    A sub-folder with one file a band is one image, and so is an OME-Zarr.

    Raises:
        DataError: The folder itself is one.
    """
    return list(once("images", folder, _images_below))


def _images_below(folder: Path) -> list[Path]:
    _refuse_bands(folder)
    found = files_below(folder, whole=_is_one)
    return [path for path in found if _is_image(path.name) or path.is_dir()]


def _refuse_bands(folder: Path) -> None:
    if _is_of_bands(folder):
        what = "is one image with one file a band, where a folder of images is looked for"
        raise DataError(what, where=str(folder), fix="put its bands into a folder of their own within it")


def files_below(
    folder: Path, suffix: str = "", whole: Callable[[Path], bool] = lambda _: False
) -> list[Path]:
    """Return the files (of one suffix) in a folder and its sub-folders, sorted; hidden ones are left out.

    Args:
        folder: Where the walk begins.
        suffix: In lower case; "": any.
        whole: Tells of a sub-folder whether it is named itself instead of its files.
    """

    def walk(base: Path, above: tuple[Path, ...]) -> Iterator[Path]:
        real = base.resolve()
        if real in above:  # a link that leads in a circle
            return
        for name, is_folder in entries_of(base):
            # A path is made only where it is asked for: most folders hold a million others.
            if is_folder and not whole(path := base / name):
                yield from walk(path, (*above, real))
            elif not suffix or suffix_of(name) == suffix:
                yield base / name

    return list(walk(folder, ()))


def suffixed(folder: Path, suffix: str) -> list[Path]:
    """Return the files of one suffix, which stands here in lower case, in a folder itself, sorted.

    Any case counts; hidden files are left out.
    """
    if not folder.is_dir():
        return []
    names = entries_of(folder)
    return [folder / name for name, is_folder in names if not is_folder and suffix_of(name) == suffix]


def named_file(folder: Path, names: Sequence[str]) -> Path | None:
    """Return the file of a folder that has one of the names, in any case; a name as it is written goes first."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    if not folder.is_dir():
        return None
    files = {path.name.lower(): path for path in sorted(folder.iterdir(), reverse=True)}
    found = (files[name.lower()] for name in names if name.lower() in files)
    return next((path for path in found if path.is_file()), None)


def volume_files(root: Path) -> list[Path]:
    """Return the volumes and medical images below a folder, sorted: files, and folders that hold a series."""
    found = files_below(root, whole=is_series)
    return [path for path in found if path.is_dir() or (is_volume_name(path) and not is_dicom_slide(path))]


def _is_image(name: str) -> bool:
    return suffix_of(name) in IMAGE_SUFFIXES or bool(volume_suffix(name))


def stem_of(path: Path) -> str:
    """Return a file's name without its suffix, of two parts where volumes have them (`.nii.gz`)."""
    suffix = volume_suffix(path.name)
    return path.name[: -len(suffix)] if suffix else path.stem


def child(base: Path, names: Sequence[str]) -> Path | None:
    """Return the sub-folder that has one of the names, in any case; the first name goes first. None without one."""
    if not base.is_dir():
        return None
    folders = {name.lower(): base / name for name, is_folder in reversed(entries_of(base)) if is_folder}
    return next((folders[name.lower()] for name in names if name.lower() in folders), None)


# --- splits


def split_of(word: str) -> str | None:
    """Return the split that a folder, file or column names ("valid" → "val", "train2017" → "train"), or None."""
    return _ALIASES.get(_YEAR.sub("", word.strip().lower()))


def split_word(name: str) -> str | None:
    """Return the split that a word of a name says ("train_labels"), or None."""
    return next((split for word in words_of(name) if (split := split_of(word))), None)


def split_folders(root: Path) -> list[tuple[str | None, Path]]:
    """Return the folders of the splits under `root`, or `root` itself with None when there are none."""
    found = [
        (split_of(name), root / name) for name, is_folder in entries_of(root) if is_folder and split_of(name)
    ]
    found.sort(key=lambda entry: SPLITS.index(entry[0] or "train"))
    return list(found) or [(None, root)]


def bases_of(root: Path) -> list[tuple[str | None, Path]]:
    """Return the folders of the splits, then `root` itself with None."""
    return [*((split, folder) for split, folder in split_folders(root) if split is not None), (None, root)]


def split_in(inside: Path) -> tuple[str | None, str | None]:
    """Return the split that a folder of a relative path names, and that folder ("a/val2017/b.png" → val, val2017)."""
    found = ((split_of(part), part) for part in inside.parts[:-1])
    return next(((split, part) for split, part in found if split), (None, None))


# --- folders by their names


@dataclass(frozen=True)
class Folder:
    """A folder that holds images.

    Attributes:
        path: Path of the folder.
        files: Its images, sorted.
        split: Split that its path names.
        role: "image", "mask", "instance" or "".
        rest: What else its path says, in lower case.
    """

    path: Path
    files: tuple[Path, ...]
    split: str | None
    role: str
    rest: tuple[str, ...]

    @cached_property
    def stems(self) -> set[str]:
        """Names of the files without suffix, with accents as one character: some systems write them as two."""
        return {unicodedata.normalize("NFC", stem_of(file)) for file in self.files}


def words_of(name: str) -> list[str]:
    """Return the words of a name in lower case ("JPEGImages" → jpeg, images; "train_masks" → train, masks).

    Letters between digits are no words: in names like "3f0gt7a" any word comes up by chance.
    """
    pieces = (_PIECE.match(piece) for piece in re.split(r"[^A-Za-z0-9]+", name))
    words = [word.lower() for piece in pieces if piece for word in _WORD.findall(piece[1])]
    return [part for word in words for part in _parted(word)]


def _parted(word: str) -> tuple[str, ...]:
    """Return a split and what its folder holds, written as one word ("trainannot"), as two."""
    match = re.fullmatch(r"(train|val|test)(.+)", word)
    return (match[1], match[2]) if match and match[2] in MASK_WORDS | IMAGE_WORDS else (word,)


def role_of(name: str) -> str:
    """Return what a folder's name says that it holds: "image", "mask", "instance" or ""."""
    words = set(words_of(_WITHOUT.sub("", _DEPTH.sub("", name))))
    if words & INSTANCE_WORDS or {"segmentation", "object"} <= words:
        return "instance"
    if words & MASK_WORDS or words >= {"labeled", "approved"}:  # as CamVid calls them
        return "mask"
    return "image" if words & IMAGE_WORDS else ""


def described(path: Path, parts: Collection[str], files: tuple[Path, ...]) -> Folder:
    """Return a folder with what the parts of its path say.

    Short forms of splits ("imagesTr"), and splits as a part of a name, count only beside a role.
    """
    split, role, rest = None, "", []
    for part in parts:
        own, named = role_of(part), split_of(part)
        if own and named is None:
            words = (split_of(word) or _SHORT_SPLITS.get(word) for word in words_of(part))
            named = next((word for word in words if word), None)
        split = split or named
        if own and not role:
            role = own
        elif not named:
            rest.append(part.lower())
    return Folder(path, files, split, role, tuple(rest))


def image_folders(root: Path) -> list[Folder]:
    """Return the folders under `root` (itself included) that hold images, sorted by path.

    A folder with one file a band is an image, and none of them.

    Raises:
        DataError: A folder can't be read, or `root` itself is one image.
    """
    return list(once("folders", root, _image_folders))


def _image_folders(root: Path) -> list[Folder]:
    _refuse_bands(root)

    def walk(path: Path, parts: tuple[str, ...]) -> Iterator[Folder]:
        try:
            names = [entry for entry in entries_of(path) if not entry[0].startswith("__")]
        except OSError as error:
            what = f"folder can't be read ({error.strerror})"
            raise DataError(what, where=str(path), fix="check its permissions") from error
        whole = {name for name, is_folder in names if is_folder and _is_one(path / name)}
        files = tuple(path / n for n, is_folder in names if n in whole or (not is_folder and _is_image(n)))
        if files:
            yield described(path, parts, files)
        if len(parts) < DEEPEST:
            for name, is_folder in names:
                if is_folder and name not in whole:
                    yield from walk(path / name, (*parts, name))

    return sorted(walk(root, ()), key=lambda folder: folder.path)


def shared(first: Folder, second: Folder) -> float:
    """Return the share of the smaller folder's stems that the other one has, too."""
    a, b = first.stems, second.stems
    return len(a & b) / min(len(a), len(b))


def name_index(root: Path) -> dict[str, list[Path]]:
    """Return a set's images by name, by name without suffix and by path under the set's folder."""
    found: dict[str, list[Path]] = {}
    for folder in image_folders(root):
        for file in folder.files:
            for name in dict.fromkeys((file.name, stem_of(file), within(file, root))):
                found.setdefault(name, []).append(file)
    return found
