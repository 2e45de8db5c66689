"""Folders whose files a counter named: whether equal names mean the same place, or nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations
from pathlib import Path

import numpy as np

from vitp.core.errors import DataError
from vitp.data.formats.walk import Folder, stem_of
from vitp.data.image_hash import image_print
from vitp.io.images import load_image, load_label_pixels

_LOOKED_AT = 16
"""Files of a folder that are compared, and folders."""
_FEWEST = 8
"""Pairs of files of one name from which on these tell whether they are more alike than others."""
_BY_CHANCE, _BY_CHANCE_OF_TWO = 0.65, 0.85
"""Share of the other files that a file of the same name may be more alike than: of all folders, and of two of them."""
_ALL_ALIKE = 0.97
"""Likeness of the images of one folder from which on the names of others can't be told by it."""
_FEW_VALUES = 8
"""Values up to which an image may be a mask."""
_YEAR = re.compile(r"(19|20)\d\d")


def are_counted_apart(folders: Sequence[Folder]) -> bool:
    """Return whether folders hold different things under equal names, because a counter named the files of each.

    Names count from 0 or 1 in each folder, what has the same name is no more alike than what hasn't, and no folder
    holds masks beside one of images. Images and masks, dates, bands and frames of one place are alike, name by name.
    False, too, where too few files, or files that are all alike, don't tell.
    """
    folders = folders[:_LOOKED_AT]
    if not all(map(_is_counted, folders)) or all(_YEAR.search(folder.path.name) for folder in folders):
        return False
    names = sorted(set.intersection(*(set(folder.stems) for folder in folders)))
    names = names[:: max(1, len(names) // _LOOKED_AT)][:_LOOKED_AT]
    paths = [{stem_of(path): path for path in folder.files} for folder in folders]
    whole: list[str] = []
    rows: list[list[np.ndarray]] = []
    for name in names:
        thumbnails = [_thumbnail(own[name], _changed(own[name])) for own in paths]
        # Damaged files tell nothing, and the others tell without them.
        if len(told := [one_D for one_D in thumbnails if one_D is not None]) == len(folders):
            whole.append(name)
            rows.append(told)
    if len(whole) < 2:
        return False
    prints = [np.stack(own) for own in zip(*rows, strict=True)]
    masks = [_may_be_masks([own[name] for name in whole]) for own in paths]
    pairs = [_alike_by_name(first_ND, other_ND) for first_ND, other_ND in combinations(prints, 2)]
    if len(set(masks)) > 1 or len(whole) * len(pairs) < _FEWEST or any(map(_are_all_alike, prints)):
        return False
    most = max(pairs) if len(whole) >= _FEWEST else 0.0
    return float(np.mean(pairs)) <= _BY_CHANCE and most <= _BY_CHANCE_OF_TWO


def _is_counted(folder: Folder) -> bool:
    found = [re.fullmatch(r"(\D*)(\d+)(\D*)", stem) for stem in folder.stems]
    if not all(found) or len({(match[1], match[3]) for match in found if match}) > 1:
        return False
    numbers = {int(match[2]) for match in found if match}
    return min(numbers) in (0, 1) and max(numbers) - min(numbers) == len(folder.stems) - 1 == len(numbers) - 1


def _changed(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


# Detection asks several times.
@lru_cache(maxsize=4096)
def _thumbnail(path: Path, changed: int) -> np.ndarray | None:
    """Return a small picture of an image; None where it can't be read."""
    try:
        return image_print(load_image(path, enough=lambda width, height: (64, 64)), b"-").thumbnail
    except DataError:
        return None


@lru_cache(maxsize=4096)
def _has_few_values(path: Path, changed: int) -> bool:
    try:
        pixels = load_label_pixels(path)
    except DataError:  # bands or depths that no mask has
        return False
    return len(np.unique(pixels.reshape(-1, *pixels.shape[2:]), axis=0)) <= _FEW_VALUES


def _are_all_alike(prints_ND: np.ndarray) -> bool:
    likeness_NN = prints_ND @ prints_ND.T
    others = ~np.eye(len(prints_ND), dtype=bool)
    return not prints_ND.any() or float(np.median(np.abs(likeness_NN[others]))) > _ALL_ALIKE


def _alike_by_name(first_ND: np.ndarray, other_ND: np.ndarray) -> float:
    """Return the share of files of other names that those of the same name are more alike than; by chance 0.5."""
    likeness_NN = np.abs(first_ND @ other_ND.T)
    own_N = np.diag(likeness_NN)
    others = ~np.eye(len(own_N), dtype=bool)
    wins_2NN = np.stack([np.sign(own - likeness_NN) for own in (own_N[:, None], own_N[None])])
    return float(wins_2NN[:, others].mean() / 2 + 0.5) if others.any() else 1.0


def _may_be_masks(files: Sequence[Path]) -> bool:
    """Return whether files have so few values as masks have."""
    paths = files[:: max(1, len(files) // 4)][:4]
    return all(_has_few_values(path, _changed(path)) for path in paths)
