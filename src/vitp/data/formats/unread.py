"""Files that are labels by their name and place, but can't be read: no other reading of the folder goes past them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from vitp.core.errors import DataError
from vitp.core.reading import parse_json, parse_xml, read_text
from vitp.data.formats.common import child, split_folders
from vitp.data.formats.label_files import files_below, images_below

_XML_FOLDERS = ("Annotations", "Annotation", "xml", "xmls")
_FIX = "mend it or move it away; --format reads the folder without it"


def problem_of(path: Path) -> str | None:
    """Return why a JSON, XML or text file can't be read, or None."""
    try:
        text = read_text(path)
        if path.suffix.lower() == ".json":
            parse_json(text)
        elif path.suffix.lower() == ".xml":
            parse_xml(text)
    except OSError as error:
        return f"can't be read ({error.strerror})"
    except UnicodeDecodeError:
        return "is not UTF-8 text"
    except json.JSONDecodeError as error:
        return f"is not JSON (line {error.lineno}: {error.msg})"
    except ElementTree.ParseError as error:
        return f"is not XML ({error})"
    return None


def refuse_unread(root: Path, suffix: str) -> None:
    """Raise for the first label file of one suffix (".json", ".xml" or ".txt") that can't be read.

    These are JSON files in the folder, in annotations/ or in the folders of the splits, XML files in Annotations/ or
    beside the image of their name, and text files in labels/.

    Raises:
        DataError: There is one.
    """
    for path in _label_files(root, suffix):
        if (problem := problem_of(path)) is not None:
            raise DataError(f"is a label file by its place, but {problem}", where=str(path), fix=_FIX)


def refuse_beside_classes(root: Path) -> None:
    """Raise for XML annotations beside the images of what would otherwise pass for class folders.

    Raises:
        DataError: There is one.
    """
    for path in _label_files(root, ".xml"):
        if parse_xml(read_text(path)).tag == "annotation":
            raise DataError(
                "is an annotation of an image in what may be a class folder",
                where=str(path),
                fix="move the XML files into Annotations/ to read them; --format folders reads the folders as classes",
            )


def _label_files(root: Path, suffix: str) -> Iterator[Path]:
    bases = list(dict.fromkeys([root, *(folder for _, folder in split_folders(root))]))
    if suffix == ".json":
        folders = [*bases, *(f for base in bases if (f := child(base, ("annotations",))) is not None)]
        yield from (
            path for folder in folders for path in sorted(folder.iterdir()) if _is_named(path, suffix)
        )
        return
    names = _XML_FOLDERS if suffix == ".xml" else ("labels",)
    places = [folder for base in bases if (folder := child(base, names)) is not None]
    yield from (path for place in places for path in files_below(place) if _is_named(path, suffix))
    if suffix == ".xml":
        images = {image.with_suffix("") for image in images_below(root)}
        for path in files_below(root):
            if _is_named(path, suffix) and path.with_suffix("") in images:
                yield path


def _is_named(path: Path, suffix: str) -> bool:
    return path.suffix.lower() == suffix and not path.name.startswith(".") and not path.is_dir()
