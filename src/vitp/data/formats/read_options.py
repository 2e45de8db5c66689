"""`ReadOptions`: the options that all label formats have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args, get_type_hints

from vitp.core.errors import ConfigError


@dataclass(frozen=True)
class ReadOptions:
    """Options of every label format.

    Attributes:
        name: Name of the set; the folder's name by default.
        licence: Licence of the data, as its publisher states it.
        split_file: File that names the split of each image; goes before the layout's splits.
        val: Share of validation images where neither the layout nor `split_file` says it.
        test: Share of test images, likewise.
        seed: Decides which images the shares get.
        group_regex: Finds a file name's group (its first bracket, or its match); groups are never split.
        group: "folder": images of one folder are a group.
        patient: Column of a table, or an expression that finds the patient in a path (its first bracket, or its match);
            by default what tables, folders and headers say. A patient's images are never split.
        splits: Which of the set's own splits count: "lists", "folders", or "drawn" for none; by default the lists, else
            the folders.
        partial: Images that lists, tables and labels name may be missing.
        block: Side in metres of the blocks that splits are drawn in, where the files say where they lie.
        buffer: Metres that images of different splits are apart at least, likewise.
        plane: Of the slices of volumes ("axial", "coronal", "sagittal", "stored"); by default across their widest step.
        every: Of volumes with masks each slice whose number this divides, by default all; of volumes that are labelled
            as a whole, by default the middle one alone.
        orientation: "shown": labels lie on images that EXIF turns as viewers show these, where nothing else tells it.
        modality: DICOM's code (CT, MR, …) of medical images whose files don't tell it.
        dates: Most dates of one place that are joined into one record; 1: each image is one of its own.
        studies: Two studies of a patient on equal grids are pairs of a prior and a current one.
        abnormal: Classes that are findings, between commas; "": of a medical set those with evident names.
    """

    name: str = ""
    licence: str = ""
    split_file: str | Path | None = None
    val: float = 0.1
    test: float = 0.1
    seed: int = 0
    group_regex: str | None = None
    group: Literal["", "folder"] = ""
    patient: str = ""
    splits: Literal["", "lists", "folders", "drawn"] = ""
    partial: bool = False
    block: float | None = None
    buffer: float = 0.0
    dates: int = 1
    studies: bool = False
    abnormal: str | list[str] = ""
    plane: Literal["", "axial", "coronal", "sagittal", "stored"] = ""
    every: int = 0
    orientation: Literal["", "shown"] = ""
    modality: str = ""

    def __post_init__(self) -> None:
        if type(self.every) is not int or not 0 <= self.every <= 10_000:
            raise ConfigError(f"is {self.every!r}", where="every", fix="give a whole number from 1")
        for name in ("group", "splits", "plane", "orientation"):
            known = get_args(get_type_hints(ReadOptions)[name])
            if getattr(self, name) not in known:
                fix = f"choose {' or '.join(filter(None, known))}"
                raise ConfigError(f'is "{getattr(self, name)}"', where=name, fix=fix)
