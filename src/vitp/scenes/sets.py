"""Generated scenes as a `LabelledSet`, rendered when they are looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np

from vitp.core.errors import ConfigError
from vitp.records.geometry import as_flat
from vitp.records.labels import LabelledImage, LabelledSet, ObjectLabel
from vitp.records.regions import outline
from vitp.scenes.address import SceneAddress, load_pair, load_scene
from vitp.scenes.domains import SceneDomain, check_split, get_domain
from vitp.scenes.types import Scene


@dataclass(frozen=True)
class _Mask:
    """Renders one mask of a scene when it is called; can be pickled into data workers.

    Attributes:
        address: Address of the scene.
        change: The change mask of the pair, not the semantic mask.
    """

    address: SceneAddress
    change: bool = False

    def __call__(self) -> np.ndarray:
        mask = load_pair(self.address).change_HW if self.change else load_scene(self.address).semantic_HW
        return mask.copy()


def object_labels(scene: Scene) -> tuple[ObjectLabel, ...]:
    """Return the labels of a scene's objects with boxes, quads and outlines."""
    size = scene.semantic_HW.shape[0]
    labels = []
    for number, item in enumerate(scene.objects, 1):
        x1, y1 = (max(int(np.floor(value)), 0) for value in item.box[:2])
        x2, y2 = (min(int(np.ceil(value)), size) for value in item.box[2:])
        # Only the object's own window is traced: whole images would cost their area for each object.
        found = outline(scene.instance_HW[y1:y2, x1:x2] == number)
        corner = np.array((x1, y1))
        rings, holes = (tuple(as_flat(r + corner) for r in each) for each in (found.rings, found.holes))
        labels.append(ObjectLabel(item.category, item.box, item.quad, rings, holes=holes))
    return tuple(labels)


@dataclass(frozen=True)
class SceneSet(Sequence[LabelledImage]):
    """A lazy sequence of generated images with all their labels; it can be pickled into data workers.

    Attributes:
        domain: Name of the domain.
        seed: Seed of the set.
        indices: Indices of the scenes.
        size: Side in pixels.
        split: Whose textures and shapes are used.
        pairs: Two dates of each place. Objects, scene class, captions and mask are those of the later one's
            place at the earlier date (`image`); `change` tells what differs in `second_image`.
    """

    domain: str
    seed: int
    indices: range
    size: int = 96
    split: str = "train"
    pairs: bool = False

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, at: int) -> LabelledImage: ...

    @overload
    def __getitem__(self, at: slice) -> SceneSet: ...

    def __getitem__(self, at: int | slice) -> LabelledImage | SceneSet:
        """Render and return one item, or return a part of the set without rendering."""
        if isinstance(at, slice):
            return replace(self, indices=self.indices[at])
        index, date = self.indices[at], "before" if self.pairs else None
        address = SceneAddress(self.domain, self.seed, index, self.size, self.split, date)
        scene = load_scene(address)
        later = replace(address, date="after") if self.pairs else None
        name = f"{self.domain}-{self.split}-{self.seed}-{index}"
        return LabelledImage(
            id=name,
            image=str(address),
            width=self.size,
            height=self.size,
            split=self.split,
            group=name,
            objects=object_labels(scene),
            scene=scene.scene_type,
            captions=(scene.caption,),
            semantic=_Mask(address),
            second_image=str(later) if later else None,
            later_objects=object_labels(load_scene(later)) if later else None,
            change=_Mask(address, change=True) if later else None,
        )


def scene_set(
    domain: SceneDomain | str,
    *,
    seed: int,
    count: int,
    size: int = 96,
    split: str = "train",
    pairs: bool = False,
) -> LabelledSet:
    """Return a set of `count` generated scenes that are rendered on access.

    Args:
        domain: Domain or its name.
        seed: Seed of the set; sets with different seeds share no place.
        count: Number of scenes.
        size: Side in pixels.
        split: Which bank of textures and shapes.
        pairs: Two dates of each place.

    Raises:
        ConfigError: Unknown domain or split, or a negative number.
    """
    domain = get_domain(domain)
    check_split(split)
    if count < 0 or seed < 0:
        raise ConfigError("count and seed of a scene set must not be negative", fix="use 0 or more")
    return LabelledSet(
        name=f"scenes-{domain.name}" + ("-pairs" if pairs else ""),
        items=SceneSet(domain.name, seed, range(count), size, split, pairs),
        object_classes=domain.object_classes,
        scene_classes=domain.scene_types,
        semantic_classes=domain.semantic_classes,
        licence=domain.licence,
    )
