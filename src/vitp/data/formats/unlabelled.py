"""Folders whose labels no format fits: what is wrong with them, said of the first thing that is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from xml.etree import ElementTree

from vitp.core.errors import DataError
from vitp.core.reading import lines_of, open_file, parse_json, parse_xml, read_text
from vitp.data.formats.captions import TEXT_KEYS, caption_tables
from vitp.data.formats.class_columns import (
    CLASS_KEYS,
    class_tables,
    is_box_table,
)
from vitp.data.formats.coco_files import (
    annotation_files,
    refuse_results,
)
from vitp.data.formats.folders import check_classes, find_class_folders
from vitp.data.formats.label_files import TEXTS_BESIDE_LABELS, first_rows, label_places
from vitp.data.formats.label_studio_files import refuse_unannotated
from vitp.data.formats.mask_names import BETWEEN
from vitp.data.formats.pairs import find_pair_places, two_dates
from vitp.data.formats.tables import (
    IMAGE_KEYS,
    find_key,
    first_table_rows,
    raw_rows,
    table_files,
    table_weight,
)
from vitp.data.formats.unread import Unlabelled
from vitp.data.formats.voc import XML_FOLDERS
from vitp.data.formats.volume_names import is_series
from vitp.data.formats.walk import (
    as_option,
    child,
    files_below,
    image_folders,
    images_below,
    list_images,
    role_of,
    split_folders,
    volume_files,
    within,
)


def refuse_unread(root: Path, suffix: str) -> None:
    """Raise for the first label file of one suffix (".json", ".xml" or ".txt") that can't be read."""
    for path in _label_files(root, suffix):
        if (problem := problem_of(path)) is not None:
            fix = "mend it or move it away; --format reads the folder without it"
            raise DataError(f"is a label file by its place, but {problem}", where=str(path), fix=fix)


def refuse_beside_classes(root: Path) -> None:
    """Raise for XML annotations beside the images of what would otherwise pass for class folders."""
    for path in _label_files(root, ".xml"):
        if parse_xml(read_text(path)).tag == "annotation":
            raise DataError(
                "is an annotation of an image in what may be a class folder",
                where=str(path),
                fix="move the XML files into Annotations/ to read them; --format folders reads the folders as classes",
            )


def _label_files(root: Path, suffix: str) -> Iterator[Path]:
    """Yield what are label files by their places.

    These are JSON files in the folder, in annotations/ or in the folders of the splits, XML files in Annotations/ or
    beside the image of their name, and text files in labels/.
    """
    bases = list(dict.fromkeys([root, *(folder for _, folder in split_folders(root))]))
    names = {".json": ("annotations",), ".xml": XML_FOLDERS, ".txt": ("labels",)}[suffix]
    places = [folder for base in bases if (folder := child(base, names)) is not None]
    if suffix == ".json":
        for folder in (*bases, *places):
            yield from (
                path
                for path in sorted(folder.iterdir())
                if path.suffix.lower() == suffix and not path.name.startswith(".") and not path.is_dir()
            )
        return
    for place in places:
        yield from files_below(place, suffix)
    if suffix == ".xml":
        images = {image.with_suffix("") for image in images_below(root)}
        yield from (path for path in files_below(root, suffix) if path.with_suffix("") in images)


def refuse_dates_in_names(root: Path) -> None:
    """Raise when both dates of pairs lie in one folder, as in xView2 (`…_pre_disaster.png`)."""
    for folder in image_folders(root):
        for first, second in (("_pre", "_post"), ("_before", "_after")):
            stems = folder.stems
            twins = [stem for stem in stems if first in stem and stem.replace(first, second) in stems]
            if twins and 4 * len(twins) >= len(stems):
                raise DataError(
                    f"{within(folder.path, root)} holds two dates of each place ({min(twins)} and "
                    f"{min(twins).replace(first, second)}), as xView2 does, which no reader knows",
                    where=str(root),
                    fix="put the earlier images into A/, the later ones into B/ and masks of what changed into "
                    "label/, with equal names",
                )


def refuse_unlabelled(root: Path) -> None:
    """Raise for folders of images whose labels are of a kind that no reader knows."""
    boxes = [path.name for path in table_files(root) if is_box_table(path)]
    if boxes:
        raise DataError(
            f"{boxes[0]} is a table of boxes, outlines or points, whose columns no reader knows or whose images aren't there",
            where=str(root),
            fix="--format boxes -o box_columns=x1,y1,x2,y2 -o box=corners names them (or size, or centre); outlines and points "
            "as COCO JSON (annotations/instances_train.json)",
        )
    _refuse_strange_rows(root)
    _refuse_matlab(root)
    classes = are_class_folders(root)
    for path in table_files(root):
        labels = _has_head(path, IMAGE_KEYS, (*CLASS_KEYS, *TEXT_KEYS))
        if path.suffix.lower() not in (".csv", ".tsv") or (classes and not labels):
            continue
        if (problem := problem_of(path)) is not None:
            fix = "save it as UTF-8, or move it away; --format reads the folder without it"
            raise DataError(f"may be a table of labels, but {problem}", where=str(path), fix=fix)
        # What names images, but has rows that can't be read, is what is wrong where nothing else labels them.
        if (labels or _has_head(path, IMAGE_KEYS)) and not first_table_rows(path):
            list(raw_rows(path))
    if classes:
        return
    refuse_unannotated(root)
    refuse_results(annotation_files(root))
    _refuse_strange_tables(root)
    _refuse_several_names(root)
    _refuse_bare_series(root)
    dates = next((place for place in two_dates(find_pair_places(root)) if not place.has_mask), None)
    if dates is not None:
        before, after = (within(dates.folders[key].path, root) for key in ("before", "after"))
        raise DataError(
            f"{before} and {after} are two dates of which no folder of masks says what changed, or two classes of images",
            where=str(root),
            fix="two dates: add the masks as label/, or name them with --format pairs -o masks=FOLDER; two classes: "
            "--format folders",
        )


def _has_head(path: Path, *kinds: Sequence[str]) -> bool:
    """Return whether the head of a table has a column of each kind of keys, whatever its encoding."""
    try:
        with open_file(path) as file:
            head = file.read(4096).replace(b"\0", b"").decode("latin-1").lstrip("\xfe\xff\xef\xbb\xbf")
    except OSError:
        return True
    row = {cell.strip(' "'): "" for cell in re.split(r"[,;\t|]", (lines_of(head) or [""])[0])}
    return all(find_key(row, keys) is not None for keys in kinds)


def _refuse_strange_rows(root: Path) -> None:
    """Raise for text files of images in labels/ or labelTxt/ whose rows are of no format."""
    for place in label_places(root, ("labels", "labelTxt", "annfiles", "label_2"), ("images", "image_2")):
        rows = [] if place.images == place.labels else first_rows([place], TEXTS_BESIDE_LABELS)
        if rows:
            text = " ".join(rows[0])
            raise DataError(
                f'the first row of the text files is "{text[:60]}", which is of none of YOLO, DOTA and KITTI',
                where=str(place.labels),
                fix='write "class cx cy w h" (shares of the image) or "x1 y1 x2 y2 x3 y3 x4 y4 class difficult" (pixels), '
                "parted by blanks",
            )


def _refuse_matlab(root: Path) -> None:
    """Raise for folders of labels in MATLAB's files beside images, as CrackForest and BSDS have them."""
    found = [
        path
        for path in files_below(root, ".mat")
        if any(role_of(part) == "mask" for part in path.relative_to(root).parts[:-1])
    ]
    stems = {image.stem for image in images_below(root)} if found else set()
    if fitting := [path for path in found if path.stem in stems]:
        raise DataError(
            f"{within(fitting[0].parent, root)} holds labels in {len(fitting)} files of MATLAB, which no reader knows",
            where=str(root),
            fix="write their segmentations as PNG of the images' names into masks/ (SciPy's loadmat, Pillow)",
        )


def _refuse_strange_tables(root: Path) -> None:
    """Raise for tables of captions or classes that are about other images."""
    for path in dict.fromkeys((*caption_tables(root), *class_tables(root))):
        column = find_key(first_table_rows(path, 1)[0], IMAGE_KEYS)
        if column is not None and table_weight(root, path, IMAGE_KEYS) == "none":
            first = str(first_table_rows(path, 1)[0][column])
            raise DataError(
                f"{path.name} names images, but most of them aren't there (the first: {first})",
                where=str(root),
                fix=f"add them, or read it with --format captions or classes and {as_option('table', path.name)}; move it away if "
                "it is about other things",
            )


def _refuse_bare_series(root: Path) -> None:
    """Raise for folders that are a series each: whether these are classes isn't known."""
    series = [path for path in list_images(root) if path.is_dir() and is_series(path)]
    if len(series) > 1:
        names = ", ".join(path.name for path in series[:3])
        raise DataError(
            f"{names} are one series of DICOM each, so {len(series)} volumes, and nothing says what is in them",
            where=str(root),
            fix=f"where they are classes, put each series into a folder of its own in them ({series[0].name}/1/*.dcm); or "
            "add a table of image and class, masks, or --format images for volumes without labels",
        )


def refuse_images_alone(root: Path) -> None:
    """Raise for a folder of images, or of volumes, and nothing else."""
    images = set(images_below(root))
    if not images or images < set(files_below(root, whole=images.__contains__)):
        return
    volumes = images <= set(volume_files(root))
    beside = "imagesTr/ and labelsTr/, a folder a case" if volumes else "masks/, labels/, annotations/"
    noun = "volumes" if volumes else "images"
    raise Unlabelled(
        f"no labels found: the folder holds {len(images):,} {noun} and nothing else",
        where=str(root),
        fix=f"name the folder that holds their labels, too ({beside}), or add a table of image and class; --format images "
        f"reads {noun} without labels",
    )


def _refuse_several_names(root: Path) -> None:
    """Raise for a folder in which each image has several files of its name and a word: of several people, perhaps."""
    for folder in image_folders(root):
        for named, shown in (
            (_words_beside(folder.stems, behind=True), "{0}{1}"),
            (_words_beside(folder.stems, behind=False), "{1}{0}"),
        ):
            common = set.intersection(*named.values()) if named else set()
            if len(named) < 2 or len(common) < 2 or 2 * len(named) * (1 + len(common)) <= len(folder.files):
                continue
            first = min(named)
            files = ", ".join(shown.format(first, word) for word in sorted(common)[:3])
            raise DataError(
                f"{files} lie beside {first}, and so for each of {len(named)} images: masks that several people drew, or "
                "parts or channels of one image",
                where=str(folder.path),
                fix="put the images into images/ and the masks of one person into masks/, under the images' names",
            )


def _words_beside(stems: Set[str], *, behind: bool) -> dict[str, set[str]]:
    """Return name → what others add to it: a separator and a word behind it ("_anna"), else before it ("anna_")."""
    named = dict[str, set[str]]()
    for stem in stems:
        parts = ((stem[: at.start()], stem[at.start() :]) for at in BETWEEN.finditer(stem))
        if not behind:
            parts = ((stem[at.end() :], stem[: at.end()]) for at in BETWEEN.finditer(stem))
        name, word = next(((name, word) for name, word in parts if name in stems), ("", ""))
        if name:
            named.setdefault(name, set()).add(word)
    return named


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


def are_class_folders(root: Path) -> bool:
    """Return whether the folders of images are classes, without doubt."""
    found = find_class_folders(root)
    try:
        if found:
            check_classes(root, found)
    except DataError:
        return False
    return bool(found)
