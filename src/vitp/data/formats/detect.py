"""The detection of a folder's label format. A folder with two readings is refused; the message names both.

Files that are labels by their name and place, but can't be read, are refused, too: no other reading goes past them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from vitp.core.errors import DataError
from vitp.data.formats.aerial_boxes import is_nwpu, is_ucas
from vitp.data.formats.anomalies import anomaly_folders
from vitp.data.formats.box_tables import box_tables
from vitp.data.formats.captions import caption_tables, caption_weight, is_caption_table
from vitp.data.formats.class_columns import (
    check_odd_bits,
    class_tables,
    class_weight,
    columns_of,
    guessed_columns,
)
from vitp.data.formats.class_lists import lists_label
from vitp.data.formats.coco_files import (
    annotation_files,
    is_coco_file,
    is_panoptic_file,
    panoptic_files,
    refuse_results,
)
from vitp.data.formats.cvat import cvat_files
from vitp.data.formats.datumaro import datumaro_files
from vitp.data.formats.disasters import is_xbd
from vitp.data.formats.dota import is_dota
from vitp.data.formats.folders import check_classes, find_class_folders
from vitp.data.formats.geo_files import is_geo
from vitp.data.formats.kitti import is_kitti
from vitp.data.formats.label_studio_files import label_studio_files, refuse_unannotated
from vitp.data.formats.labelme import labelme_files
from vitp.data.formats.look import one_look
from vitp.data.formats.mask_layouts import find_masks
from vitp.data.formats.only_folder import INNER_OPTIONS, SET_IS, is_named_in, only_folder
from vitp.data.formats.pairs import find_pair_places, two_dates
from vitp.data.formats.pannuke import is_pannuke
from vitp.data.formats.parquet import is_parquet
from vitp.data.formats.people import crowdhuman_files, widerface_files
from vitp.data.formats.qupath import is_qupath
from vitp.data.formats.rle_tables import run_column, run_tables
from vitp.data.formats.scalabel import scalabel_files
from vitp.data.formats.sentinel_sets import bigearthnet_files, oscd_regions
from vitp.data.formats.slide_xml import asap_files, imagescope_files
from vitp.data.formats.tables import (
    TABLE_SUFFIXES,
    box_columns,
    first_table_rows,
)
from vitp.data.formats.tool_shapes import createml_files, darwin_files, supervisely_files
from vitp.data.formats.unlabelled import (
    are_class_folders,
    refuse_beside_classes,
    refuse_dates_in_names,
    refuse_images_alone,
    refuse_unlabelled,
    refuse_unread,
)
from vitp.data.formats.unread import Unlabelled, unread_files, way_of, with_unread
from vitp.data.formats.via import is_via, via_files
from vitp.data.formats.visdrone import is_visdrone
from vitp.data.formats.voc import voc_folder, voc_places
from vitp.data.formats.volumes import is_volume_set
from vitp.data.formats.walk import (
    as_option,
    check_ordinary,
    images_below,
    name_index,
    split_of,
    within,
)
from vitp.data.formats.xview import xview_files
from vitp.data.formats.yolo import is_yolo


@dataclass(frozen=True)
class Detected:
    """What a folder holds.

    Attributes:
        format: Key of `vitp.data.formats.LABEL_FORMATS`.
        root: The set's folder or file: the given one, or the only folder in it.
        understood: Lines about what else is there.
    """

    format: str
    root: Path
    understood: tuple[str, ...] = ()


def detect_format(root: Path) -> str:
    """Return the format of a folder; see `detect`."""
    return detect(root).format


def detect(root: Path, options: Collection[str] = ()) -> Detected:
    """Return the format of a folder, by the files and folders that only that format has, and what was understood.

    Args:
        root: The set's folder, or a file.
        options: Names (or names and values) of the options that the user gives: folders of images and masks, or of two
            dates, say the format. A folder that holds one folder alone, as unpacked archives do, stands for it where
            labels are in it, and no option names a file or folder, or all that they name lies in it.

    Raises:
        DataError: None fits, or there are several readings; the message says what was looked for.
    """
    with one_look():
        return _detect(root, options)


def _detect(root: Path, options: Collection[str]) -> Detected:
    if not root.exists():
        raise DataError("doesn't exist", where=str(root), fix="check the path")
    if root.is_file():
        return Detected(_of_file(root), root)
    if not root.is_dir():
        check_ordinary(root)
    inner = only_folder(root)
    if inner is not None and is_named_in(inner, root, options):
        return _inside(root, _detect(inner, options))
    for names, fmt in _TOLD.items():
        if not names <= set(options) or (names == _PEOPLE and inner is not None):
            continue
        # Label Studio and tables of boxes have annotators, too, and volumes have folders of images and masks.
        people = names == _PEOPLE and (label_studio_files(root) or box_tables(root))
        if fmt != "masks" or not (people or (names != _PEOPLE and is_volume_set(root))):
            return Detected(fmt, root)
    inner = None if INNER_OPTIONS & set(options) else inner
    # VisA's Data/ and the data/ of shards are parts of their sets, too.
    if inner is None or anomaly_folders(root) or is_parquet(root):
        return _detected(root, options)
    try:
        # What names classes, splits and bands lies beside the images, in the folder itself, and not above it.
        return _inside(root, _detect(inner, options))
    except Unlabelled:
        return _detected(root, options)


def only_place(fmt: str, root: Path, options: Mapping[str, object]) -> Path:
    """Return the folder in which a set of a known format lies: the given one, or the only one in it, as `detect` does.

    The given one stays where the format's sign is in it, or isn't in the other one, or options name files in it.
    """
    inner = only_folder(root) if fmt in _SIGNS and root.is_dir() else None
    if inner is None or (INNER_OPTIONS & set(options) and not is_named_in(inner, root, options)):
        return root
    place = only_place(fmt, inner, options)
    try:
        with one_look():
            here, there = (bool(_SIGNS[fmt][0](path)) for path in (root, place))
    except DataError:  # the reader will say it
        return root
    return place if there and not here else root


def _inside(root: Path, found: Detected) -> Detected:
    """Return what was found in the only folder of another one, and say which; the outermost says all of the way."""
    rest = [line for line in found.understood if not line.startswith(SET_IS)]
    return replace(found, understood=(SET_IS + within(found.root, root), *rest))


def _detected(root: Path, options: Collection[str]) -> Detected:
    for sign, names in _PUBLISHED.items():
        if "classes" not in options and next(root.glob(sign), None) is not None:
            readings = " or ".join(f"--format {name}" for name in names)
            raise DataError(
                f"is laid out as {_PUBLISHED_NAMES[names[0]]} is published, whose labels mean what its publishers say",
                where=str(root),
                fix=f"{readings} reads it so; --format {_PLAIN[names[0]]} reads it as a set like any other",
            )
    try:
        found = _first_that_fits(root)
    except Unlabelled as error:
        raise with_unread(error, root) from error
    if found is not None:
        others = ", ".join(f"{name} ({_SIGNS[name][1]})" for name in _also(root, found))
        return Detected(
            found, root, (f"not read, but there, too: {others}; --format chooses",) if others else ()
        )
    refuse_unlabelled(root)
    refuse_images_alone(root)
    looked_for = "; ".join(f"{name}: {sign}" for name, (_, sign) in _SIGNS.items())
    there = f": {files} are there, and of no kind that is read" if (files := unread_files(root)) else ""
    what = f"no label format recognised{there} (looked for {looked_for})"
    fix = "name the format, or arrange the files in one of these ways; --format images reads images without labels"
    if (way := way_of(root)) and not images_below(root):
        what, fix = f"no label format recognised{there}", way
    elif way:
        fix = f"{fix}; {way}"
    raise Unlabelled(what, where=str(root), fix=fix)


def _of_file(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return "parquet"
    if suffix == ".json" and is_coco_file(path):
        return "panoptic" if is_panoptic_file(path) else "coco"
    if suffix in (".json", ".xml") and (label_studio_files(path) or cvat_files(path)):
        return "label-studio" if suffix == ".json" else "cvat"
    if is_via(path):
        fix = "name the folder that holds it and the images"
        raise DataError("is a file of the VGG Image Annotator", where=str(path), fix=fix)
    if suffix == ".json":
        refuse_unannotated(path)
        refuse_results([path])
    if (suffix in TABLE_SUFFIXES or suffix == ".txt") and is_caption_table(path):
        return "captions"
    if suffix in TABLE_SUFFIXES and (rows := first_table_rows(path, 1)) and box_columns(rows[0]):
        return "boxes"
    if suffix in TABLE_SUFFIXES and run_column(first_table_rows(path)):
        return "rle"
    if suffix in TABLE_SUFFIXES:
        return "captions" if columns_of(path) is None else "classes"
    raise DataError("is not a table of labels", where=str(path), fix="name the folder of the set")


def _first_that_fits(root: Path) -> str | None:
    """Return the first format whose files are there, unless label files of one before it can't be read."""
    for name, (test, _) in _SIGNS.items():
        for suffix in _UNREAD_BEFORE.get(name, ()):
            refuse_unread(root, suffix)
        if test(root):
            if name == "folders":
                refuse_beside_classes(root)
            return name
    return None


def _also(root: Path, found: str) -> list[str]:
    """Return the other formats that would read the folder, of those that can't be mistaken."""
    also = []
    for name in (
        "voc",
        "coco",
        "volumes",
        "pairs",
        "masks",
        "geo",
        "boxes",
        "rle",
        "captions",
        "classes",
        "folders",
    ):
        if name == "folders" and found not in ("voc", "captions", "classes"):
            continue
        if (
            name == found
            or found in ("vitp", "pairs", "oscd", "xbd", "xview")
            or (name, found) in (("geo", "qupath"), ("masks", "volumes"))
            or (name == "voc" and found in ("imagescope", "asap"))
            or (name == "captions" and found in ("coco", "panoptic"))
            or (name in ("coco", "masks") and found == "panoptic")
            or (name in ("captions", "classes") and found in ("label-studio", "via"))
        ):
            continue
        try:
            if _CERTAIN.get(name, _SIGNS[name][0])(root):
                also.append(name)
        except DataError:
            continue
    return also


_PUBLISHED = {
    "[Tt]rain/Urban/masks_png": ("loveda",),
    "[Tt]rain/Rural/masks_png": ("loveda",),
    "JPEGImages-trainval": ("dior", "dior_r"),
    "train/Semantic_masks": ("isaid",),
}
"""Folders that only published sets have, whose generic reading would be another one → the formats that read these."""

_PUBLISHED_NAMES = {"loveda": "LoveDA", "dior": "DIOR", "isaid": "iSAID"}
_PLAIN = {"loveda": "masks", "dior": "voc", "isaid": "masks"}

_PEOPLE = frozenset({"annotator"})


_TOLD = {
    frozenset({"images", "masks"}): "masks",
    _PEOPLE: "masks",
    frozenset({"before", "after"}): "pairs",
}
"""Options that say the format: they name what only it has."""

# --- the signs


def _is_pairs(root: Path) -> bool:
    refuse_dates_in_names(root)
    return any(place.has_mask for place in two_dates(find_pair_places(root)))


def _is_captions(root: Path) -> bool:
    return _weighs(root, caption_weight(root))


def _weighs(root: Path, weight: str) -> bool:
    """Return whether tables or texts are what labels a folder: those about few images aren't, beside class folders."""
    return weight == "most" or (weight == "some" and not are_class_folders(root))


def _is_classes(root: Path) -> bool:
    if _weighs(root, class_weight(root)):
        # Beside class folders a table in a folder of its own is about something else.
        apart = not any(path.parent == root or split_of(path.parent.name) for path in class_tables(root))
        if not (apart and are_class_folders(root)):
            return True
    guesses = guessed_columns(root)
    if not guesses or are_class_folders(root):
        return False
    # Nothing else says what the images are: a table that names them, under columns of other names, must.
    if any(columns is None for _, _, columns in guesses):
        path, image, _ = next(guess for guess in guesses if guess[2] is None)
        if image in name_index(root):
            what, fix = (
                f'begins with a row of an image ("{image}"), not with a head',
                "write a first row of column names",
            )
            raise DataError(
                what, where=str(path), fix=f"{fix}, such as image,class or image,xmin,ymin,xmax,ymax,class"
            )
        check_odd_bits(path)
        raise DataError(
            f'the column "{image}" of {path.name} names the images, but which column is their class isn\'t known',
            where=str(root),
            fix=f"--format classes {as_option('table', path.name)} {as_option('image_column', image)} -o class_column=COLUMN; for texts "
            f"--format captions {as_option('table', path.name)} {as_option('image_column', image)} -o caption_column=COLUMN",
        )
    return True


def _is_folders(root: Path) -> bool:
    found = find_class_folders(root)
    if found:
        refuse_unlabelled(root)
        check_classes(root, found)
    return bool(found)


_UNREAD_BEFORE = {"pairs": (".json", ".xml"), "masks": (".txt",)}
"""Kinds of label files that must all be readable before a format, or one after it, is taken for the right one."""


_CERTAIN: dict[str, Callable[[Path], object]] = {
    # Text beside images and columns of other names are no sign of a second format: others have them, too.
    "captions": lambda root: caption_tables(root) and caption_weight(root) != "none",
    "classes": lambda root: class_weight(root) != "none",
    "folders": lambda root: are_class_folders(root),
}

# The order matters: a caption file beside an image looks like a label file of YOLO until its row is read, and
# any folder of folders with images passes for class folders.
_SIGNS: dict[str, tuple[Callable[[Path], object], str]] = {
    "vitp": (lambda root: (root / "labels" / "set.json").is_file(), "labels/set.json"),
    "label-studio": (label_studio_files, "JSON with tasks and annotations, or with annotation_id"),
    "cvat": (cvat_files, "XML with <annotations> in the folder or in annotations/"),
    "scalabel": (scalabel_files, "JSON of BDD100K or Scalabel (name, labels with box2d or poly2d)"),
    "datumaro": (datumaro_files, "JSON of Datumaro (categories, items with annotations)"),
    "crowdhuman": (crowdhuman_files, "*.odgt, as CrowdHuman has them"),
    "widerface": (widerface_files, "*_bbx_gt.txt, as WIDER FACE has them"),
    "bigearthnet": (
        bigearthnet_files,
        "folders of bands with *_labels_metadata.json, as BigEarthNet has them",
    ),
    "oscd": (oscd_regions, "Images, Train Labels and Test Labels, as OSCD has them"),
    "pannuke": (is_pannuke, "images.npy with masks.npy, as PanNuke has them"),
    "imagescope": (imagescope_files, "XML of Aperio ImageScope (Annotations, Regions, Vertices)"),
    "asap": (asap_files, "XML of ASAP (ASAP_Annotations)"),
    "voc": (lambda root: voc_places(voc_folder(root)), "*.xml in Annotations/ or beside images"),
    "panoptic": (panoptic_files, "JSON with segments_info, and a folder of PNGs beside it"),
    "coco": (
        lambda root: any(is_coco_file(path) for path in annotation_files(root)),
        "JSON with images and annotations, in annotations/ or the split's folder",
    ),
    "labelme": (labelme_files, "JSON with shapes and imagePath, one for each image"),
    "via": (via_files, "JSON or CSV of the VGG Image Annotator (filename, regions)"),
    "createml": (createml_files, "JSON of Create ML (image, annotations with coordinates)"),
    "supervisely": (supervisely_files, "ann/*.json beside img/, as Supervisely exports them"),
    "darwin": (darwin_files, "JSON of V7 (item with slots, annotations), one for each image"),
    "xbd": (is_xbd, "labels/*_pre_disaster.json with *_post_disaster.json"),
    "xview": (xview_files, "a GeoJSON with bounds_imcoords"),
    "volumes": (
        is_volume_set,
        "volumes with masks: imagesTr/ and labelsTr/, a folder a case, BIDS, DICOM-SEG",
    ),
    "anomalies": (
        anomaly_folders,
        "test/KIND and ground_truth/KIND, as MVTec AD has them; Data/Images and Data/Masks, as VisA",
    ),
    "pairs": (_is_pairs, "folders A, B and label, or before, after and mask"),
    "kitti": (
        is_kitti,
        'label_2/*.txt or labels/*.txt with rows "type truncated occluded alpha x1 y1 x2 y2 …"',
    ),
    "visdrone": (is_visdrone, "annotations/*.txt with rows of eight whole numbers, parted by commas"),
    "nwpu": (is_nwpu, '"positive image set" and "ground truth", as NWPU VHR-10 has them'),
    "ucas": (is_ucas, "CAR/ and PLANE/ with rows of 13 numbers, as UCAS-AOD has them"),
    "dota": (is_dota, 'labelTxt/*.txt with rows "x1 y1 … x4 y4 class"'),
    "yolo": (is_yolo, 'labels/*.txt or text beside images with rows "class cx cy w h"'),
    "masks": (find_masks, "images/ and masks/ with equal names, or a.png and a_mask.png"),
    "qupath": (is_qupath, "GeoJSON of QuPath (objectType, classification) below a folder of images"),
    "geo": (is_geo, "a GeoPackage, Shapefile, GeoJSON or GeoParquet below a folder of images"),
    "boxes": (
        box_tables,
        "a table with columns of image, class and box (xmin, ymin, xmax, ymax or x, y, w, h)",
    ),
    "rle": (run_tables, 'a table with columns of image and runs "start length start length …"'),
    "captions": (_is_captions, "a table with columns of image and caption, or text files beside images"),
    "classes": (_is_classes, "a table with columns of image and class"),
    "lists": (lists_label, 'lists of lines "image class" (train.txt)'),
    "folders": (_is_folders, "one folder of images a class"),
    "parquet": (is_parquet, "*.parquet or datasets.save_to_disk, with images inside"),
}
