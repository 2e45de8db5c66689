"""What the folders of a set are for, by their names and by the names of the files in them.

`train/images`, `images/train`, `train_images` and `imagesTr` say the same: images of the training split. A folder's path
is taken apart into its split, its role and the rest, and folders belong together where split and rest are equal.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from vitp.core.errors import DataError
from vitp.data.formats.splits import split_of
from vitp.io.images import IMAGE_SUFFIXES

DEEPEST = 4
"""Levels of folders that are looked at."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


IMAGE_WORDS = _words(
    "image images img imgs input inputs photo photos picture pictures pic pics frame frames sat rgb original "
    "originals raw source src scan scans tile tiles patch patches"
)
MASK_WORDS = _words(
    "mask masks label labels lbl lbls annotation annotations annot annots anno annos ann gt gts groundtruth truth "
    "seg segs segmentation segmentations semantic target targets trimap trimaps manual"
)
INSTANCE_WORDS = _words("instance instances inst insts")
_SHORT_SPLITS = {"tr": "train", "va": "val", "ts": "test", "te": "test"}
_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")
_PIECE = re.compile(r"([A-Za-z]+)\d*$")


@dataclass(frozen=True)
class Folder:
    """A folder that holds images.

    Attributes:
        path: Of the folder.
        files: Its images, sorted.
        split: That its path names.
        role: "image", "mask", "instance" or "".
        rest: What else its path says, in lower case.
    """

    path: Path
    files: tuple[Path, ...]
    split: str | None
    role: str
    rest: tuple[str, ...]

    @property
    def stems(self) -> set[str]:
        """Names of the files without suffix."""
        return {file.stem for file in self.files}


def words_of(name: str) -> list[str]:
    """Return the words of a name in lower case ("JPEGImages" → jpeg, images; "train_masks" → train, masks).

    Letters between digits are no words: in names like "3f0gt7a" any word comes up by chance.
    """
    pieces = (_PIECE.match(piece) for piece in re.split(r"[^A-Za-z0-9]+", name))
    return [word.lower() for piece in pieces if piece for word in _WORD.findall(piece[1])]


def role_of(name: str) -> str:
    """Return what a folder's name says that it holds: "image", "mask", "instance" or ""."""
    words = set(words_of(name))
    if words & INSTANCE_WORDS or {"segmentation", "object"} <= words:
        return "instance"
    if words & MASK_WORDS:
        return "mask"
    return "image" if words & IMAGE_WORDS else ""


def split_word(name: str, *, role: bool) -> str | None:
    """Return the split in a folder's name; short forms ("imagesTr") and parts of names only beside a role."""
    if (split := split_of(name)) is not None:
        return split
    found = (split_of(word) or _SHORT_SPLITS.get(word) for word in words_of(name)) if role else ()
    return next((split for split in found if split), None)


def image_folders(root: Path, deepest: int = DEEPEST) -> list[Folder]:
    """Return the folders under `root` (itself included) that hold images, sorted by path."""
    found: list[Folder] = []
    _walk(root, (), deepest, found)
    return sorted(found, key=lambda folder: folder.path)


def _walk(path: Path, parts: tuple[str, ...], deepest: int, found: list[Folder]) -> None:
    try:
        with os.scandir(path) as entries:
            names = sorted(
                (entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith((".", "__"))
            )
    except OSError as error:
        raise DataError(
            f"folder can't be read ({error.strerror})", where=str(path), fix="check its permissions"
        ) from error
    files = tuple(
        path / name
        for name, is_folder in names
        if not is_folder and Path(name).suffix.lower() in IMAGE_SUFFIXES
    )
    if files:
        found.append(described(path, parts, files))
    if len(parts) < deepest:
        for name, is_folder in names:
            if is_folder:
                _walk(path / name, (*parts, name), deepest, found)


def described(path: Path, parts: tuple[str, ...], files: tuple[Path, ...]) -> Folder:
    """Return a folder with what its path under the root says."""
    split, role, rest = None, "", []
    for part in parts:
        own = role_of(part)
        named = split_word(part, role=bool(own))
        split = split or named
        if own and not role:
            role = own
        elif not named:
            rest.append(part.lower())
    return Folder(path, files, split, role, tuple(rest))


def shared(first: Folder, second: Folder) -> float:
    """Return the share of the smaller folder's stems that the other one has, too."""
    a, b = first.stems, second.stems
    return len(a & b) / min(len(a), len(b))
