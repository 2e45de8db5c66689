"""The categories of COCO files: numbers, names, and what only groups others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vitp.core.errors import ConfigError, DataError
from vitp.data.formats.coco_files import CocoFile, Ids


def read_categories(files: Sequence[CocoFile]) -> tuple[Ids[str], tuple[str, ...]]:
    """Return the classes by number and their names in order.

    Raises:
        DataError: A category has no id or no name, or one number has two names; or objects have classes without names.
    """
    categories: Ids[str] = Ids()
    names: dict[str, None] = {}
    for file in files:
        own: set[str] = set()
        for number, row in enumerate(file.content.get("categories") or ()):
            where = f"{file.path}: categories[{number}]"
            name = row.get("name") if isinstance(row, dict) else None
            if not isinstance(name, str | int | float) or not str(name).strip():
                raise DataError("has no id or name", where=where, fix="give both")
            key, name = row.get("id"), str(name).strip()
            try:
                before = categories.add(key, name)
            except ValueError as error:
                raise DataError(str(error), where=where, fix="give each category a number") from error
            if before != name:
                place = "this file" if before in own else "another file"
                what = f'number {key} is "{before}" in {place} and "{name}" here'
                raise DataError(what, where=where, fix="number the categories alike in all files, each once")
            own.add(name)
            names[name] = None
    named = next((file for file in files if _first_category(file.content) is not None), None)
    if named is not None and not names:
        what = f"has no categories, so class {_first_category(named.content)} has no name"
        raise DataError(what, where=str(named.path), fix='add "categories": [{"id": 1, "name": …}]')
    return categories, tuple(names)


def refuse_shifted(files: Sequence[CocoFile]) -> None:
    """Refuse annotations that count the classes from another number than the categories.

    Raises:
        DataError: A number has no category, and one less (or one more) than each number is that of one, so that every
            object would have the class beside its own.
    """
    for file in files:
        listed = _numbers(file.content.get("categories"), "id")
        used = _numbers(file.content["annotations"], "category_id")
        for step in (1, -1):
            if used - listed and {number + step for number in used} <= listed and len(listed) > 1:
                raise DataError(
                    f"numbers the classes of its objects from {min(used)} to {max(used)}, but its categories from "
                    f"{min(listed)} to {max(listed)}: each object would have the class beside its own",
                    where=str(file.path),
                    fix="number annotations and categories alike; if the numbers are right, add the missing category",
                )


def _numbers(rows: Any, key: str) -> set[int]:
    """Return the whole numbers that rows have under a key; empty where one of them is something else."""
    found = [row.get(key) for row in rows or () if isinstance(row, dict)]
    texts = [str(value) for value in found]
    return {int(text) for text in texts} if all(text.isdigit() for text in texts) else set()


def _first_category(content: dict[str, Any]) -> Any:
    rows = (row.get("category_id") for row in content["annotations"] if isinstance(row, dict))
    return next((key for key in rows if key is not None), None)


def grouping(files: Sequence[CocoFile]) -> tuple[str, ...]:
    """Return categories that only group others: their supercategory, of which no object is (Roboflow writes one).

    As a class such a name would be absent everywhere, also where an object of its group is.
    """
    rows = [row for file in files for row in file.content.get("categories") or () if isinstance(row, dict)]
    above = {
        str(row["supercategory"]).strip()
        for row in rows
        if row.get("supercategory") and str(row["supercategory"]).strip() != str(row.get("name")).strip()
    }
    used = {
        str(row.get("category_id"))
        for file in files
        for row in file.content["annotations"]
        if isinstance(row, dict)
    }
    own = [str(row.get("name")).strip() for row in rows if str(row.get("id")) in used]
    names = dict.fromkeys(str(row.get("name")).strip() for row in rows)
    return tuple(name for name in names if name in above and name not in own)


_PLACES = ("bbox", "segmentation", "keypoints", "caption", "segments_info", "polygon", "points")
"""Keys of an annotation that say where something is, or something else than a class."""


def says_place(row: dict[str, Any]) -> bool:
    """Return whether an annotation says where something is, or something else than a class."""
    return any(row.get(key) not in (None, "", [], 0) for key in _PLACES)


EMPTY = ("empty", "blank", "nothing", "none", "no object", "no objects", "no animal")
"""Categories of annotations without a place that say that nothing is in the image, as camera traps have them."""


def labels_scenes(files: Sequence[CocoFile], about: str) -> bool:
    """Return whether annotations are classes of whole images: all name a category, and none says where it is.

    Args:
        files: The files.
        about: "images": they are, whatever places some have; "objects": those without a place say nothing of objects.

    Raises:
        ConfigError: `about` is something else.
        DataError: Most name a category alone and some a place, too, as camera traps have them, and `about` is "".
    """
    if about not in ("", "images", "objects"):
        raise ConfigError(f'is "{about}"', where="about", fix="choose images or objects")
    rows = [row for file in files for row in file.content["annotations"]]
    if not rows or not all(isinstance(row, dict) and row.get("category_id") is not None for row in rows):
        return about == "images"
    placed = sum(map(says_place, rows))
    names = {
        str(row.get("id")): str(row.get("name")).strip().lower()
        for file in files
        for row in file.content.get("categories") or ()
        if isinstance(row, dict)
    }
    bare = [row for row in rows if not says_place(row) and names.get(str(row["category_id"])) not in EMPTY]
    if placed and len(bare) > placed and not about:
        raise DataError(
            f"{len(bare):,} annotations name a class and no place, {placed:,} have a box or outline: they may be classes "
            "of whole images, or objects of which most have no box yet",
            where=str(files[0].path),
            fix="-o about=images reads the classes of the images and no place, -o about=objects the images all of whose "
            "annotations have one",
        )
    return about == "images" or (not placed and about != "objects")


_GROUPS = ("location", "seq_id", "video_id")
"""What the rows of images are called after that one camera, burst or video took, the widest first."""


_FEWEST_GROUPS = 10
_NO_GROUP = frozenset({"", "-1", "none", "null", "nan", "unknown", "n/a", "na"})


def group_of(row: Mapping[str, Any], key: str) -> str:
    """Return the value of a row under a key, "" where it says that there is none (-1, "unknown")."""
    value = row.get(key)
    text = "" if value is None or isinstance(value, list | dict | bool) else str(value).strip()
    return "" if text.lower() in _NO_GROUP else text


def group_key(files: Sequence[CocoFile]) -> str:
    """Return the key of the rows of images that says which of them belong together, "" without one.

    Nearly all images have it, with ten values at least, and fewer than there are images: `location` may also be one of
    a few kinds (left, right; urban, rural), which tell nothing of what belongs together.
    """
    rows = [row for file in files for row in file.content["images"] if isinstance(row, dict)]
    for key in _GROUPS:
        values = [value for row in rows if (value := group_of(row, key))]
        if 10 * len(values) >= 9 * len(rows) and _FEWEST_GROUPS <= len({*values}) < len(rows):
            return key
    return ""


def refuse_panoptic(files: Sequence[CocoFile]) -> None:
    """Raise a DataError where a file is one of segments."""
    if panoptic := next((file for file in files if file.is_panoptic), None):
        fix = "read it with --format panoptic, or move it away"
        raise DataError("labels segments, whose masks lie in PNGs", where=str(panoptic.path), fix=fix)


def stated_pixels(value: Any) -> Any:
    """Return a width or height as a number; 0 where a file doesn't say it."""
    if value in (None, ""):
        return 0
    try:
        return int(float(value))
    except (TypeError, ValueError, OverflowError):
        return str(value)[:40]
