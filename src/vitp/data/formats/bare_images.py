"""Images without labels: any folder of pictures, rasters, volumes and slides, with or without folders of splits.

What the images alone can answer is asked of them (`vitp.data.synthesis.pretext_tasks`), and objectives without labels
learn from them as they are.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Literal

from vitp.core.errors import ConfigError, DataError
from vitp.core.reading import real_path
from vitp.core.tensors import first_of
from vitp.data.formats.builder import ReadOptions, SetBuilder
from vitp.data.formats.slices import is_medical
from vitp.data.formats.walk import image_folders, images_below, role_of, shared, split_in, stem_of, within
from vitp.records.labels import LabelledSet

Words = Literal["", "names", "folders"]
"""What of an image's path is its caption: nothing, the words of its name, or those of its folder."""

_ALIKE = 0.8
"""Share of equal names from which two folders may hold the same images in different forms."""

_LETTERS = re.compile(r"[^\W\d_]{2,}")


def read_images(root: Path, options: ReadOptions = ReadOptions(), *, captions: Words = "") -> LabelledSet:
    """Read images of which nothing is labelled.

    Args:
        root: Holds images at any depth; folders called train, val and test are the splits.
        options: Name, licence, splits. Of volumes every slice is an image, or each whose number `every` divides.
        captions: "names": the words of a file's name are its caption, "folders": those of the folder that it is in.
            Never of medical images, whose names may tell who the patient is.

    Raises:
        DataError: There is no image that can be read, or most of them can't be.
        ConfigError: Captions are wanted of medical images.
    """
    if captions not in ("", "names", "folders"):
        raise ConfigError(f'is "{captions}"', where="captions", fix="choose names or folders")
    builder = SetBuilder(root, replace(options, every=options.every or 1))
    files, masks = [], Counter[str]()
    for path in images_below(root):
        parts = Path(within(path, root)).parts[:-1]
        mask = next((part for part in parts if role_of(part) in ("mask", "instance")), None)
        if mask is None:
            files.append(path)
        else:
            masks[mask] += 1
    if not files:
        raise DataError("holds no image", where=str(root), fix="check the folder; masks alone teach nothing")
    for path in files:
        texts = _caption(path, root, captions) if captions else ()
        builder.add_file(path, split=split_in(Path(within(path, root)))[0], captions=texts)
    broken = list(builder.tally.first.values())
    _refuse_broken(root, len(files), builder.tally.lost.total(), broken)
    for line in _also_there(root, files, masks, broken):
        builder.understand(line)
    if builder.whole_volumes:
        which = "each slice" if not options.every else f"each {options.every}th slice"
        builder.understand(
            f"{builder.whole_volumes:,} volumes: {which} is an image (-o every=N takes each Nth)"
        )
    builder.whole_volumes = 0
    builder.tally.lost.clear()
    labelled = builder.build()
    sizes = Counter((item.width, item.height) for item in labelled.items)
    common = ", ".join(f"{w}×{h} px" for (w, h), _ in sizes.most_common(3))
    counted = f"{len(labelled):,} images without labels: {common}"
    counted += f" and {len(sizes) - 3:,} other sizes" if len(sizes) > 3 else ""
    return replace(labelled, understood=(counted, *labelled.understood))


def _refuse_broken(root: Path, count: int, lost: int, broken: list[str]) -> None:
    if lost and 2 * lost > count:
        raise DataError(
            f"{lost:,} of {count:,} images can't be read (the first: {broken[0]})",
            where=str(root),
            fix="mend them, or move them away",
        )


def _also_there(root: Path, files: list[Path], masks: Counter[str], broken: list[str]) -> Iterator[str]:
    """Yield lines about what lies in the folder and isn't read."""
    for name, count in sorted(masks.items()):
        yield f"{count:,} images below {name}/ are left out: by its name it holds masks, not images"
    for one, other in combinations(image_folders(root), 2):
        if not {one.role, other.role} & {"mask", "instance"} and shared(one, other) > _ALIKE:
            names = f"{within(one.path, root)} and {within(other.path, root)}"
            yield f"{names} hold files of equal names, and all are read: move masks and copies away"
    if broken:
        yield f"left out, as they can't be read: {first_of(broken)}"
    known = {real_path(path) for path in files}
    hidden, others = [], []
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        if any(part.startswith(".") for part in parts):
            if path.is_file():
                hidden.append("/".join(parts))
        elif (
            path.is_file()
            and not any(real_path(up) in known for up in (path, *path.parents))
            and not any(role_of(part) in ("mask", "instance") for part in parts[:-1])
        ):
            others.append("/".join(parts))
    if hidden:
        yield f"{len(hidden):,} hidden files are left out ({first_of(hidden)})"
    if others:
        yield f"{len(others):,} other files are no images ({first_of(others)})"


def _caption(path: Path, root: Path, words: Words) -> tuple[str, ...]:
    if is_medical(path):
        raise ConfigError(
            f"{within(path, root)} is a medical image, and its name may tell who the patient is",
            where="captions",
            fix="leave the option out",
        )
    name = stem_of(path) if words == "names" else "" if path.parent == root else path.parent.name
    found = _LETTERS.findall(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name))
    return (" ".join(found).lower(),) if found else ()
