"""The files of COCO sets: which JSON files belong to a set, their splits, and where their images lie."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitp.core.errors import DataError
from vitp.core.reading import parse_json
from vitp.data.formats.common import SetBuilder, read_text, split_in
from vitp.data.formats.label_files import images_below
from vitp.data.formats.splits import split_of


@dataclass(frozen=True)
class CocoFile:
    """One annotation file.

    Attributes:
        path: The file.
        split: That its name or folder names, if any.
        content: Holds the lists `images` and `annotations`.
        images: Folder of its images, where it is known.
        below: Images in all sub-folders of images/ by name, once they were looked for.
    """

    path: Path
    split: str | None
    content: dict[str, Any]
    images: Path | None = None
    below: dict[str, list[Path]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def labels_objects(self) -> bool:
        """Whether the file labels objects; others hold captions."""
        rows = self.content["annotations"][:100]
        return bool(self.content.get("categories")) or any(
            isinstance(row, dict) and "category_id" in row for row in rows
        )


def annotation_files(root: Path) -> list[Path]:
    """Return the JSON files that may be COCO annotations, sorted."""
    if root.is_file():
        return [root]
    folders = [
        root / "annotations",
        root,
        *sorted(p for p in root.iterdir() if p.is_dir() and split_of(p.name)),
    ]
    for folder in folders[:2]:
        if found := sorted(folder.glob("*.json")):
            return found
    return sorted(path for folder in folders[2:] for path in folder.glob("*.json"))


def without_doubles(builder: SetBuilder, paths: list[Path]) -> list[Path]:
    """Leave out the files that COCO ships beside its instances and that label the same objects again."""
    if not any(path.name.startswith("instances") for path in paths):
        return paths
    doubles = [p for p in paths if p.name.startswith(("person_keypoints", "panoptic", "stuff", "image_info"))]
    for path in doubles:
        builder.note(builder.place(path), "labels the objects of the instances files again; left out")
    return [path for path in paths if path not in doubles]


def load(path: Path, base: Path) -> CocoFile:
    """Read an annotation file.

    Raises:
        DataError: It isn't COCO JSON.
    """
    try:
        content = parse_json(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(
            f"is not JSON ({error.msg})", where=f"{path}:{error.lineno}", fix="mend the file"
        ) from error
    for key in ("images", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(
                f'has no list "{key}"', where=str(path), fix="give a COCO file, or move others away"
            )
    if not isinstance(content.get("categories") or [], list):
        raise DataError("categories is no list", where=str(path), fix='write [{"id": 1, "name": …}]')
    return CocoFile(path, _split_in(path, base), content)


def _split_in(path: Path, base: Path) -> str | None:
    """Return the split in a file's name or in its folder's ("person_keypoints_val2017" → "val")."""
    words = path.stem.replace("-", "_").replace(".", "_").split("_")
    if path.parent != base:
        words.append(path.parent.name)
    found = (split_of(word.rstrip("0123456789")) for word in words)
    return next((split for split in found if split), None)


def image_folders(builder: SetBuilder, file: CocoFile) -> list[Path]:
    """Return where the images of a file may lie, the file's own split first.

    Folders of other splits are left out: two splits may use the same file names for different images.
    """
    if file.images is not None:
        return [file.images]
    folders: list[Path] = []
    for base in dict.fromkeys((file.path.parent, builder.root)):
        plain = [base, base / "images", base / "JPEGImages"]
        places = [
            p for parent in plain[:2] if parent.is_dir() for p in sorted(parent.iterdir()) if p.is_dir()
        ]
        named = [(split_of(place.name.rstrip("0123456789")), place) for place in places]
        own = [place for split, place in named if split and file.split in (None, split)]
        folders += [*(f for place in own for f in (place, place / "images")), *plain]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def find_image(file: CocoFile, name: str, folders: list[Path], root: Path, where: str) -> Path | None:
    """Return the image that a row names, or None.

    The name is looked up as it is written, then without its folders, which may be those of another machine.

    Args:
        file: The annotation file.
        name: `file_name` of the row.
        folders: As `image_folders` gives them.
        root: The set's folder.
        where: The row, for errors.

    Raises:
        DataError: The file has no split, and images of that name lie in the folders of several.
    """
    plain = name.replace("\\", "/")
    for short in dict.fromkeys((name, plain, plain.rpartition("/")[2])):
        found = [path for folder in folders if (path := folder / short).is_file()]
        if not found:
            continue
        if file.split is None and file.images is None:
            splits = {split_of_image(file, path, root) for path in found}
            if len(splits) > 1:
                raise DataError(
                    f"{name} may be {found[0]} or {found[-1]}",
                    where=where,
                    fix="write the folder into file_name, or the split into the name of the file",
                )
        return found[0]
    return _find_below(file, plain, root, where)


def _find_below(file: CocoFile, name: str, root: Path, where: str) -> Path | None:
    """Return the one image of a name in the sub-folders of images/, as in images/default/ of CVAT; None without one.

    Raises:
        DataError: There are several.
    """
    if file.images is not None:
        return None
    if not file.below:
        for base in dict.fromkeys((file.path.parent, root)):
            for path in images_below(base / "images") if (base / "images").is_dir() else ():
                if file.split is None or split_in(path.relative_to(base))[0] in (None, file.split):
                    file.below.setdefault(path.name, []).append(path)
        file.below.setdefault("", [])  # looked through, even where there is no image
    found = file.below.get(name.rpartition("/")[2], [])
    found = [path for path in found if path.as_posix().endswith(f"/{name}")] or found
    if len(found) > 1:
        raise DataError(
            f"{name} may be {found[0]} or {found[-1]}", where=where, fix="write the folder into file_name"
        )
    return found[0] if found else None


def split_of_image(file: CocoFile, path: Path, root: Path) -> str | None:
    """Return the split of a file's image: the file's own, or that of the folder in which the image lies."""
    if file.split is not None or not path.is_relative_to(root):
        return file.split
    return split_in(path.relative_to(root))[0]
