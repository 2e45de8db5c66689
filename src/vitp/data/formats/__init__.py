"""Label formats: a folder of labels in any of the usual forms → `LabelledSet`.

    read_labels("voc", root, licence="MIT")
    read_labels("auto", root, group_regex=r"^P\\d+")

How a folder becomes a set:

1. **Detect** (`detect`). Each format has a sign that only it leaves in a folder. The first that fits is the format;
   what has two readings is refused, and the message names the option for each.
2. **Walk** (`walk`). All readers list files, folders and splits through it: `train/images` and `images/train` are the
   same to them. `label_files` adds the walk of formats with one text file an image, `mask_layouts` that of masks.
3. **Read** (`read_coco`, `read_voc`, … of `LABEL_FORMATS`, one file a format). A reader understands rows or pixels,
   and gives each image with what was found to the `SetBuilder` (`builder`).
4. **Tally** (`image_labels`). Each label is used, ignored in its place, or lost; a set that lost too many is refused.
   Nothing that can't be used becomes "there is nothing".
5. **Build** (`SetBuilder.build`). Splits come from the user, from lists, from folders, or are drawn (`splits`); equal
   images and series of names stay on one side (`identity`); names of classes are checked (`class_names`).
6. **Resolution** (`slides`). Whole slides, and their labels with them, are read at so many micrometres a pixel.
7. **Channels** (`channels`). Which bands of the files are seen, and which of their values become 0 and 255; pictures
   have none.

What was chosen on the way stands in `LabelledSet.understood`, what was left out or mended in `findings`. `vitp_labels`
writes a set down and reads it back; `crops` cuts its images.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from vitp.core.errors import ConfigError, DataError, did_you_mean
from vitp.data.formats.aerial_boxes import read_nwpu, read_ucas
from vitp.data.formats.anomalies import read_anomalies
from vitp.data.formats.band_options import CHANNEL_OPTIONS
from vitp.data.formats.bare_images import read_images
from vitp.data.formats.box_tables import read_box_tables
from vitp.data.formats.builder import ReadOptions
from vitp.data.formats.captions import read_captions
from vitp.data.formats.channels import declare_channels
from vitp.data.formats.class_lists import read_class_lists
from vitp.data.formats.class_tables import read_class_tables
from vitp.data.formats.coco import read_coco
from vitp.data.formats.cvat import read_cvat
from vitp.data.formats.dates import join_dates
from vitp.data.formats.datumaro import read_datumaro
from vitp.data.formats.detect import detect, detect_format, only_place
from vitp.data.formats.disasters import read_xbd
from vitp.data.formats.dota import read_dota
from vitp.data.formats.findings import declare_findings
from vitp.data.formats.folders import read_folders
from vitp.data.formats.generated import read_scenes
from vitp.data.formats.geo import read_geo
from vitp.data.formats.kitti import read_kitti
from vitp.data.formats.label_studio import read_label_studio
from vitp.data.formats.labelme import read_labelme
from vitp.data.formats.masks import read_masks
from vitp.data.formats.metadata import with_metadata
from vitp.data.formats.only_folder import SET_IS
from vitp.data.formats.option_types import typed_options
from vitp.data.formats.pairs import read_pairs
from vitp.data.formats.pannuke import read_pannuke
from vitp.data.formats.panoptic import read_panoptic
from vitp.data.formats.parquet import read_parquet
from vitp.data.formats.people import read_crowdhuman, read_widerface
from vitp.data.formats.privacy import with_privacy_findings
from vitp.data.formats.qupath import read_qupath
from vitp.data.formats.rle_tables import read_run_tables
from vitp.data.formats.scalabel import read_scalabel
from vitp.data.formats.sentinel_sets import read_bigearthnet, read_oscd
from vitp.data.formats.slide_xml import read_asap, read_imagescope
from vitp.data.formats.slides import SLIDE_OPTIONS, at_resolution
from vitp.data.formats.studies import join_studies
from vitp.data.formats.tool_shapes import read_createml, read_darwin, read_supervisely
from vitp.data.formats.via import read_via
from vitp.data.formats.visdrone import read_visdrone
from vitp.data.formats.vitp_labels import read_compiled
from vitp.data.formats.voc import read_voc
from vitp.data.formats.volumes import read_volumes
from vitp.data.formats.walk import within
from vitp.data.formats.xview import read_xview
from vitp.data.formats.yolo import read_yolo
from vitp.records.labels import LabelledSet

__all__ = ["LABEL_FORMATS", "ReadOptions", "detect", "detect_format", "option_names", "read_labels"]

LABEL_FORMATS: dict[str, Callable[..., LabelledSet]] = {
    "coco": read_coco,
    "panoptic": read_panoptic,
    "label-studio": read_label_studio,
    "cvat": read_cvat,
    "labelme": read_labelme,
    "via": read_via,
    "createml": read_createml,
    "supervisely": read_supervisely,
    "darwin": read_darwin,
    "scalabel": read_scalabel,
    "datumaro": read_datumaro,
    "crowdhuman": read_crowdhuman,
    "widerface": read_widerface,
    "imagescope": read_imagescope,
    "asap": read_asap,
    "voc": read_voc,
    "yolo": read_yolo,
    "dota": read_dota,
    "kitti": read_kitti,
    "visdrone": read_visdrone,
    "nwpu": read_nwpu,
    "ucas": read_ucas,
    "bigearthnet": read_bigearthnet,
    "oscd": read_oscd,
    "masks": read_masks,
    "anomalies": read_anomalies,
    "volumes": read_volumes,
    "folders": read_folders,
    "pairs": read_pairs,
    "geo": read_geo,
    "qupath": read_qupath,
    "xview": read_xview,
    "xbd": read_xbd,
    "boxes": read_box_tables,
    "rle": read_run_tables,
    "captions": read_captions,
    "classes": read_class_tables,
    "lists": read_class_lists,
    "parquet": read_parquet,
    "pannuke": read_pannuke,
    "images": read_images,
    "scenes": read_scenes,
    "vitp": read_compiled,
}
"""Format → reader. All take the folder first; "scenes" takes the name of a domain instead."""

_FILES = ("coco", "panoptic", "boxes", "rle", "captions", "classes", "label-studio", "cvat", "parquet")
"""Formats that read single files, too."""

_COMMON = tuple(field.name for field in fields(ReadOptions))


def option_names(fmt: str) -> tuple[str, ...]:
    """Return the names of all options of a format.

    Raises:
        ConfigError: There is no such format.
    """
    parameters = inspect.signature(_reader(fmt)).parameters
    # A reader can't have a parameter called "class".
    own = [name.rstrip("_") for name in parameters if name != "options"][1:]
    common = _COMMON if "options" in parameters else ()
    return (*own, *common, *((*CHANNEL_OPTIONS, *SLIDE_OPTIONS) if fmt != "scenes" else ()))


def read_labels(fmt: str, root: str | Path, **options: Any) -> LabelledSet:
    """Read labels.

    Args:
        fmt: A key of `LABEL_FORMATS`, the name of a published set (`vitp.data.benchmarks`), or "auto".
        root: The set's folder (or file, for tables and single COCO files; or the domain of "scenes").
        **options: Those of the format's reader, and the fields of `ReadOptions` and `ChannelOptions`.

    Raises:
        ConfigError: There is no such format or option.
        DataError: The labels can't be read.
    """
    if fmt == "auto":
        found = detect(Path(root), options)
        labelled = read_labels(found.format, found.root, **options)
        return replace(labelled, understood=(*found.understood, *labelled.understood))
    reader = _reader(fmt)
    known = option_names(fmt)
    for name in options:
        if name not in known:
            fix = did_you_mean(name, known) or f"known are {', '.join(known)}"
            raise ConfigError(f'no option "{name}"', where=f"format {fmt}", fix=fix)
    if (inner := only_place(fmt, Path(root), options)) != Path(root):
        labelled = read_labels(fmt, inner, **options)
        return replace(labelled, understood=(SET_IS + within(inner, Path(root)), *labelled.understood))
    if "class" in options:
        options["class_"] = options.pop("class")
    options = typed_options(options, {**get_type_hints(ReadOptions), **_declared(reader)})
    if fmt == "scenes":
        return reader(str(root), **options)
    root = Path(root)
    if not root.exists():
        raise DataError("doesn't exist", where=str(root), fix="check the path")
    if not root.is_dir() and fmt not in _FILES:
        raise DataError("is not a folder", where=str(root), fix="name the folder of the set")
    seen = {name: options.pop(name) for name in CHANNEL_OPTIONS if name in options}
    sizes = {name: options.pop(name) for name in SLIDE_OPTIONS if name in options}
    if "options" not in inspect.signature(reader).parameters:
        return declare_channels(at_resolution(reader(root, **options), sizes), root, seen)
    common = ReadOptions(**{name: options.pop(name) for name in _COMMON if name in options})
    labelled = join_dates(with_metadata(reader(root, common, **options), root), common.dates)
    labelled = declare_findings(join_studies(labelled, common.studies), common.abnormal)
    labelled = with_privacy_findings(labelled, root)
    return declare_channels(at_resolution(labelled, sizes), root, seen)


def _declared(reader: Callable[..., LabelledSet]) -> dict[str, Any]:
    """Return the types of a reader's options; readers of published sets that are made of others declare none."""
    return get_type_hints(reader) if inspect.isfunction(reader) else {}


def _reader(fmt: str) -> Callable[..., LabelledSet]:
    if fmt in LABEL_FORMATS:
        return LABEL_FORMATS[fmt]
    # Published sets are formats of their own; their readers are built from those above.
    from vitp.data.benchmarks.catalogue import BENCHMARK_READERS

    if fmt not in BENCHMARK_READERS:
        others = f"known are {', '.join(LABEL_FORMATS)}, and the sets that `vitp data sets` lists"
        fix = did_you_mean(fmt, [*LABEL_FORMATS, *BENCHMARK_READERS]) or others
        raise ConfigError(f'no label format "{fmt}"', where="format", fix=fix)
    return BENCHMARK_READERS[fmt]
