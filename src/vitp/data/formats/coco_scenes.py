"""COCO JSON whose annotations are classes of whole images, as iNaturalist and camera traps are published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitp.data.formats.builder import SetBuilder
from vitp.data.formats.coco import CocoImage, CocoReading
from vitp.data.formats.coco_files import CocoFile
from vitp.records.labels import LabelledSet

_PLACES = ("bbox", "segmentation", "keypoints", "caption", "segments_info", "polygon", "points")
"""Keys of an annotation that say where something is, or something else than a class."""


def labels_scenes(files: Sequence[CocoFile]) -> bool:
    """Return whether all annotations of files name a category and none says where it is."""
    rows = [row for file in files for row in file.content["annotations"]]
    return bool(rows) and all(
        isinstance(row, dict)
        and row.get("category_id") is not None
        and not any(row.get(key) not in (None, "", [], 0) for key in _PLACES)
        for row in rows
    )


class SceneReading(CocoReading):
    """Files whose annotations are classes of whole images, while they are read; see `CocoReading`."""

    def __init__(self, builder: SetBuilder, files: Sequence[CocoFile], known: tuple[str, ...] | None) -> None:
        self.scenes: dict[Path, dict[str, None]] = {}
        super().__init__(builder, files, known)

    def read_annotation(self, row: dict[str, Any], where: str, image: CocoImage) -> None:
        """Take the class of an image."""
        key = row.get("category_id")
        name = self.categories.find(key, "category", where)
        if name is None:
            image.found.lose(where, f"unknown class number {str(key)[:40]}", "")
        elif self.known is None or name in self.known:
            self.scenes.setdefault(image.path, {}).setdefault(name)

    def build(self) -> LabelledSet:
        """Return the set: each image with its class, or all with the classes that fit where one has several."""
        several = any(len(names) > 1 for names in self.scenes.values())
        for image in self.images.values():
            names = tuple(self.scenes.get(image.path, ()))
            if not names or image.found.lost:
                self.builder.note(image.where, "no class is known of the image; left out")
                continue
            told: dict[str, Any] = {"tags": names} if several else {"scene": names[0]}
            self.builder.add_file(image.path, split=image.split, category=names[0], **told)
        self.builder.understand("annotations name a class and no place: they are classes of whole images")
        if several:
            self.builder.understand("images may have several classes")
        used = {name for names in self.scenes.values() for name in names}
        return self.builder.build(
            scene_classes=self.known or tuple(name for name in self.names if name in used)
        )
