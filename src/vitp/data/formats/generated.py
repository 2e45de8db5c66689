"""The embedded scenes generator as a label format: nothing on disk, images by address."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import overload

from vitp.core.errors import ConfigError, did_you_mean
from vitp.data.formats.pixel_masks import SceneChangeMask, SceneSemantic
from vitp.records.labels import SPLITS, LabelledImage, LabelledSet
from vitp.scenes import DOMAINS, scene_set


@dataclass(frozen=True)
class Chained(Sequence[LabelledImage]):
    """Lazy sequences one after the other. Masks are replaced by readers that can be written down."""

    parts: tuple[Sequence[LabelledImage], ...]

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    @overload
    def __getitem__(self, index: int) -> LabelledImage: ...
    @overload
    def __getitem__(self, index: slice) -> list[LabelledImage]: ...
    def __getitem__(self, index: int | slice) -> LabelledImage | list[LabelledImage]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = index + len(self) if index < 0 else index
        if not 0 <= index < len(self):
            raise IndexError(index)
        ends = list(accumulate(len(part) for part in self.parts))
        k = bisect_right(ends, index)
        item = self.parts[k][index - (ends[k - 1] if k else 0)]
        semantic = SceneSemantic(item.image) if item.semantic is not None else None
        change = SceneChangeMask(item.image) if item.change is not None else None
        return replace(item, semantic=semantic, change=change)


def read_scenes(
    domain: str,
    *,
    count: int = 1000,
    size: int = 96,
    seed: int = 0,
    val: float = 0.1,
    test: float = 0.1,
    pairs: bool = False,
    name: str = "",
) -> LabelledSet:
    """Return generated scenes, each split from its own textures and shapes.

    Args:
        domain: A key of `vitp.scenes.DOMAINS`.
        count: Scenes in all splits together.
        size: Width and height in pixels.
        seed: Seed of the scenes.
        val: Share of validation scenes.
        test: Share of test scenes.
        pairs: Two dates of each place.
        name: Name of the set; the domain's by default.

    Raises:
        ConfigError: There is no such domain, or the numbers can't be used.
    """
    if domain not in DOMAINS:
        fix = did_you_mean(domain, DOMAINS) or f"known are {', '.join(DOMAINS)}"
        raise ConfigError(f'no domain "{domain}"', where="scenes", fix=fix)
    if count < 1 or size < 16 or min(val, test) < 0 or val + test >= 1:
        what = f"count={count}, size={size}, val={val}, test={test} can't be used"
        raise ConfigError(what, where="scenes", fix="count from 1, size from 16, val + test below 1")
    counts = {"val": round(count * val), "test": round(count * test)}
    counts["train"] = count - sum(counts.values())
    sets = [
        scene_set(domain, seed=seed, count=counts[split], size=size, split=split, pairs=pairs)
        for split in SPLITS
        if counts[split]
    ]
    return replace(sets[0], name=name or sets[0].name, items=Chained(tuple(part.items for part in sets)))
