"""Colours of masks that their publishers name on a page of their own, in sets that the names of their files tell."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vitp.data.formats.mask_classes import MaskClasses, find_colour_table
from vitp.data.formats.mask_kinds import MaskFacts
from vitp.data.formats.mask_naming import name_file
from vitp.records.labels import IGNORE


@dataclass(frozen=True)
class _Published:
    """What a publisher says: title, how the masks' names (without suffix) look, and colour 0xRRGGBB → class.

    A set is one of it from `least` of its colours on; what is called "" is ignored. `beside` is the end of the name of
    the image beside a mask, instead of `_mask.png`; "" where images may be called otherwise.
    """

    title: str
    stem: re.Pattern[str]
    colours: dict[int, str]
    least: int
    beside: str = ""

    def is_mask(self, path: Path) -> bool:
        """Return whether a file is called as the masks of this publisher are."""
        image = path.with_name(path.stem.removesuffix("_mask") + self.beside)
        return bool(self.stem.match(path.stem)) and (not self.beside or image.is_file())


_SETS = (
    _Published(
        "ISPRS (Potsdam, Vaihingen)",
        re.compile(r"top_(potsdam_\d|mosaic_09cm_area)", re.IGNORECASE),
        {
            0xFFFFFF: "impervious surfaces",
            0x0000FF: "building",
            0x00FFFF: "low vegetation",
            0x00FF00: "tree",
            0xFFFF00: "car",
            0xFF0000: "clutter/background",
        },
        least=2,
    ),
    _Published(
        "DeepGlobe (land cover)",
        re.compile(r"\d+_mask$"),
        {
            0x00FFFF: "urban land",
            0xFFFF00: "agriculture land",
            0xFF00FF: "rangeland",
            0x00FF00: "forest land",
            0x0000FF: "water",
            0xFFFFFF: "barren land",
            0x000000: "",
        },
        least=4,
        beside="_sat.jpg",
    ),
)


def published_classes(root: Path, masks: Sequence[Path], facts: Sequence[MaskFacts]) -> MaskClasses | None:
    """Return the classes of colours by what is published, or None where the set isn't known.

    Colours alone say nothing: all masks have to be called as the publisher calls them, and all colours to be his.

    Args:
        root: The set's folder; a file in it that names the values goes first.
        masks: Paths of the masks.
        facts: What is known of them; their values are colours 0xRRGGBB.
    """
    colours = {value for one in facts for value in one.values}
    if not masks or name_file(root) is not None or find_colour_table(root) is not None:
        return None
    for one in _SETS:
        known = colours <= one.colours.keys() and len(colours) >= one.least
        if known and all(map(one.is_mask, masks)):
            names = tuple(name for name in one.colours.values() if name)
            pairs = tuple((c, names.index(name) if name else IGNORE) for c, name in one.colours.items())
            said = (
                f"colours: named as {one.title} publishes them, by the names of the files; -o classes=… or a table of "
                "names and colours names them otherwise"
            )
            return MaskClasses(names, pairs, (said,), frozenset(one.colours))
    return None
