"""Rasters with vector labels: which files there are, which belong together, and which column is the class."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitp.core.errors import ConfigError, DataError, did_you_mean
from vitp.core.reading import real_path
from vitp.data.formats.mask_names import without_affix
from vitp.data.formats.walk import (
    MASK_WORDS,
    as_option,
    comma_list,
    files_below,
    images_below,
    within,
    words_of,
)
from vitp.io.raster_sources import vrt_sources
from vitp.io.vectors import VectorLayer, is_vector, read_features, vector_layers

CLASS_COLUMNS = frozenset(
    (
        *(
            "class",
            "classname",
            "class_name",
            "classid",
            "class_id",
            "label",
            "labels",
            "category",
            "cat",
            "kind",
        ),
        *(
            "type",
            "type_id",
            "klass",
            "landcover",
            "land_cover",
            "lc_class",
            "landuse",
            "land_use",
            "species",
            "crop",
        ),
    )
)
"""Names of columns that say what an object is, in lower case."""

_MOST_CLASSES = 64
_PER_CLASS = 2
"""Objects of each class, on average, from which on texts of a column may be classes."""

_SPACENET = re.compile(r"AOI_(\d+)_([A-Za-z]+).*?((?:img|chip|tile)_?\d+.*)$")
_OTHERS = frozenset(
    ("geojson", "geojsons", "vector", "vectors", "shp", "gpkg", "shapes", "polygons", "train", "test")
)


def without_sources(root: Path, images: Sequence[Path]) -> tuple[list[Path], str]:
    """Return images without the files that VRTs among them show, and a line about these.

    Args:
        root: The set's folder.
        images: Its rasters.

    Raises:
        DataError: A VRT puts several of them together, so that it, or they, may be the images.
    """
    shown: dict[Path, tuple[Path, bool]] = {}
    for vrt in (path for path in images if path.suffix.lower() == ".vrt"):
        sources, mosaic = vrt_sources(vrt)
        shown |= dict.fromkeys(sources, (vrt, mosaic))
    double = [path for path in images if real_path(path) in shown]
    if not double:
        return list(images), ""
    first = next((path for path in double if shown[real_path(path)][1]), double[0])
    vrt, mosaic = shown[real_path(first)]
    if mosaic:
        raise DataError(
            f"{within(vrt, root)} is put together of {within(first, root)} and others, and both are among the images: what "
            "lies there would count twice",
            where=str(root),
            fix="name the folder of those that are meant with -o images=FOLDER, or move the others away",
        )
    said = (
        f"{len(double):,} files that VRTs show are no images of their own ({within(first, root)} of {within(vrt, root)}, for "
        "example)"
    )
    return [path for path in images if path not in double], said


@dataclass(frozen=True)
class LabelSource:
    """A layer with labels.

    Attributes:
        features: Features of the layer.
        image: The raster that it belongs to; None: to all.
        title: What objects without a class of their own are called.
    """

    features: VectorLayer
    image: Path | None
    title: str


def vector_files(root: Path) -> list[Path]:
    """Return the vector files under a folder, sorted."""
    return [path for path in files_below(root) if is_vector(path)]


def is_geo(root: Path) -> bool:
    """Return whether a folder holds images and vector files."""
    return bool(vector_files(root)) and bool(images_below(root))


def find_sources(
    root: Path,
    rasters: Sequence[Path],
    *,
    labels: str | list[str] | None,
    layer: str | list[str] | None,
    crs: str | None,
    without: Path | None,
) -> list[LabelSource]:
    """Return the labels of a folder.

    Args:
        root: The set's folder.
        rasters: Its images.
        labels: Files (or a folder of files, one a raster) below it; by default those that are there.
        layer: Names of the layers that are read; needed where a file has several.
        crs: What the coordinates are in, whatever the files say.
        without: A vector file that holds no labels.

    Raises:
        DataError: There is none, or it isn't clear which is meant.
    """
    told = comma_list(labels)
    if told is None:
        found = [path for path in vector_files(root) if path != without]
    else:
        found = _told(root, told)
    if not found:
        fix = "put a GeoPackage, Shapefile or GeoJSON beside the images, or name it with -o labels=FILE"
        raise DataError("holds no vector labels", where=str(root), fix=fix)
    named = comma_list(layer)
    if len(found) > 1 and not (told is not None and len(told) == len(found)):
        return _one_each(root, rasters, found, crs)
    sources = []
    for path in found:
        for name in _layers(path, named, several=len(found) > 1):
            title = name if named is not None and len(named) > 1 else path.stem if len(found) > 1 else ""
            sources.append(LabelSource(read_features(path, name, crs), None, title or _title(name, path)))
    return sources


def _told(root: Path, told: tuple[str, ...]) -> list[Path]:
    found: list[Path] = []
    for name in told:
        path = root / name
        if path.is_dir():
            found += vector_files(path)
        elif path.is_file():
            found.append(path)
        else:
            raise DataError("doesn't exist", where=str(path), fix="check the option labels")
    return found


def _layers(path: Path, named: tuple[str, ...] | None, *, several: bool) -> list[str]:
    known = vector_layers(path)
    if not known:
        raise DataError(
            "has no layer with geometries", where=str(path), fix="name another file with -o labels=FILE"
        )
    if named is None:
        if len(known) > 1:
            raise DataError(
                f"has the layers {', '.join(known)}",
                where=str(path),
                fix=f"name one with {as_option('layer', known[0])}, or several, whose names are the classes then "
                f"({as_option('layer', ','.join(known[:2]))})",
            )
        return known
    for name in named:
        if name not in known and not several:
            fix = did_you_mean(name, known) or f"it has {', '.join(known)}"
            raise ConfigError(f'{path.name} has no layer "{name}"', where="layer", fix=fix)
    return [name for name in named if name in known]


def _one_each(
    root: Path, rasters: Sequence[Path], found: Sequence[Path], crs: str | None
) -> list[LabelSource]:
    """Return the labels where each raster has a file of its own.

    Raises:
        DataError: Names don't say so, or a file may belong to two rasters.
    """
    owners = match_names(root, rasters, found)
    if 2 * len(owners) < len(found):
        shown = ", ".join(within(path, root) for path in found[:6]) + (" …" if len(found) > 6 else "")
        raise DataError(
            f"holds {len(found)} vector files whose names aren't those of the images: {shown}",
            where=str(root),
            fix="name the one with the labels (-o labels=FILE), or several, whose names are the classes then "
            "(-o labels=FILE,FILE); -o area=FILE names the area that is labelled",
        )
    sources = []
    for path, image in owners.items():
        known = vector_layers(path)
        if len(known) != 1:
            fix = "keep one layer in each file"
            raise DataError(f"has {len(known)} layers with geometries", where=str(path), fix=fix)
        sources.append(LabelSource(read_features(path, known[0], crs), image, _title("", path.parent)))
    return sources


def match_names(root: Path, rasters: Sequence[Path], vectors: Sequence[Path]) -> dict[Path, Path]:
    """Return vector file → raster, by equal names, SpaceNet's chip ids, or a word before or after the name.

    Raises:
        DataError: A file may belong to two rasters, or two files to one.
    """
    by_name: dict[str, list[Path]] = defaultdict(list)
    for raster in rasters:
        for name in {raster.stem, _bare(raster.stem), chip_id(raster.stem)} - {""}:
            by_name[name].append(raster)
    owners: dict[Path, Path] = {}
    taken: dict[Path, Path] = {}
    for path in vectors:
        names = (path.stem, chip_id(path.stem), _bare(path.stem), path.stem.removeprefix("labels_"))
        hits = next((by_name[name] for name in names if by_name.get(name)), [])
        if len(hits) > 1:
            raise DataError(
                f"may belong to {within(hits[0], root)} or to {within(hits[1], root)}",
                where=within(path, root),
                fix=f"name the folder of the images with {as_option('images', within(hits[0].parent, root))}",
            )
        if not hits:
            continue
        if (other := taken.setdefault(hits[0], path)) != path:
            what = f"has the labels {within(other, root)} and {within(path, root)}"
            fix = f"name the folder of the labels with {as_option('labels', within(other.parent, root))}"
            raise DataError(what, where=within(hits[0], root), fix=fix)
        owners[path] = hits[0]
    return owners


def chip_id(stem: str) -> str:
    """Return what SpaceNet's files of one chip share ("RGB-PanSharpen_AOI_2_Vegas_img1" → 2_Vegas_img1), or ""."""
    match = _SPACENET.search(stem)
    return f"{match[1]}_{match[2]}_{match[3]}" if match else ""


def _bare(stem: str) -> str:
    """Return a name without a word for labels at its begin or end ("tile_1_labels" → tile_1)."""
    return without_affix(stem, MASK_WORDS | _OTHERS | {"building", "buildings", "image", "img", "rgb"})


def _title(name: str, path: Path) -> str:
    """Return what a layer or file is named after, or "object" where that says nothing."""
    for text in (name, path.stem):
        words = [w for w in words_of(text) if w not in MASK_WORDS and w not in _OTHERS and w != "aoi"]
        if words and not any(char.isdigit() for char in text):
            return " ".join(words)
    return "object"


# --- the class


@dataclass(frozen=True)
class ClassColumn:
    """The column of the class; `name` is empty where the sources' titles are the classes."""

    name: str
    said: str


def class_column(
    sources: Sequence[LabelSource], told: str | None, root: Path, *, named_by_option: bool = False
) -> ClassColumn:
    """Return the column that holds the class of each object.

    It is the one that is told, else the only one that is named like a class, else the only one whose texts repeat
    like classes. `named_by_option`: without such a column an option names all objects, whatever other columns hold.

    Raises:
        ConfigError: There is no column of that name.
        DataError: There are several; or there is none, and others may be one.
    """
    columns: dict[str, list[np.ndarray]] = defaultdict(list)
    for source in sources:
        for name, values_N in source.features.columns.items():
            columns[name].append(values_N)
    if told is not None:
        if told not in columns:
            fix = did_you_mean(told, columns) or f"there are {', '.join(columns) or 'none'}"
            raise ConfigError(f'the labels have no column "{told}"', where="class", fix=fix)
        return ClassColumn(told, f'column "{told}"')
    named = [name for name in columns if name.lower() in CLASS_COLUMNS and _classes_in(columns[name])]
    if not named and len({source.title for source in sources}) < 2:
        named = [name for name in columns if _repeat(columns[name])]
    if len(named) > 1:
        shown = " and ".join(f'"{name}" ({_some(columns[name])})' for name in named[:4])
        fix = f"choose one with {as_option('class', named[0])}"
        raise DataError(f"the class may stand in the columns {shown}", where=str(root), fix=fix)
    if named:
        return ClassColumn(named[0], f'column "{named[0]}"')
    titles = list(dict.fromkeys(source.title for source in sources))
    if len(titles) == 1 and not named_by_option:
        _refuse_maybe(columns, titles[0], root)
    said = f"no column; all are {', '.join(titles)}, named after file or layer (-o class=COLUMN, -o classes=NAME)"
    return ClassColumn("", said)


def _refuse_maybe(columns: dict[str, list[np.ndarray]], title: str, root: Path) -> None:
    """Refuse columns that may be the class: a few of whose texts repeat, or whose name has a word for classes in it.

    Raises:
        DataError: There is one.
    """
    maybe = []
    for name, values in columns.items():
        counts = _classes_in(values)
        texts = all(part.dtype.kind in "OU" for part in values)
        if 2 <= len(counts) <= min(_MOST_CLASSES, counts.total() - 1) and (
            texts or CLASS_COLUMNS & set(words_of(name))
        ):
            maybe.append(name)
    if maybe:
        shown = " and ".join(f'"{name}" ({_some(columns[name])})' for name in maybe[:4])
        raise DataError(
            f"no column is named like a class, but {shown} may hold it",
            where=str(root),
            fix=f"choose one with {as_option('class', maybe[0])}; if all objects are of one class, name it: {as_option('classes', title)}",
        )


def class_text(value: Any) -> str | None:
    """Return a column's value as the name of a class, or None where there is none."""
    if value is None or (isinstance(value, float | np.floating) and not np.isfinite(value)):
        return None
    if isinstance(value, float | np.floating) and float(value).is_integer():
        value = int(value)  # whole numbers with gaps are read as numbers with a fraction
    return " ".join(str(value).split()) or None


def _classes_in(values: Sequence[np.ndarray]) -> Counter[str]:
    return Counter(
        text for part in values for value in part.tolist() if (text := class_text(value)) is not None
    )


def _repeat(values: Sequence[np.ndarray]) -> bool:
    """Return whether a column holds texts of which most occur again, as classes do."""
    if not all(part.dtype.kind in "OU" for part in values):
        return False
    found = _classes_in(values)
    return 2 <= len(found) <= min(_MOST_CLASSES, found.total() / _PER_CLASS)


def _some(values: Sequence[np.ndarray]) -> str:
    found = [name for name, _ in _classes_in(values).most_common(4)]
    return ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
