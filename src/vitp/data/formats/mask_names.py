"""The names of masks: which image a mask belongs to, and which of several people drew it."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from itertools import islice
from pathlib import Path

import numpy as np

from vitp.core.errors import DataError
from vitp.data.formats.pixel_masks import mask_values
from vitp.data.formats.walk import IMAGE_WORDS, MASK_WORDS, as_option, split_of, within
from vitp.io.images import load_label_pixels

_AFFIXES = (
    MASK_WORDS | IMAGE_WORDS | {"rgbir", "rgbi", "nir", "ir", "ortho", "im", "hr", "merged", "leftimg8bit"}
)
LABEL_IDS = "labelIds"
CITYSCAPES = re.compile(rf"_gt(?:Fine|Coarse)_{LABEL_IDS}$")
"""How Cityscapes ends the names of masks of classes; others beside them hold colours and instances."""
_CITYSCAPES_KIND = re.compile(r"_gt(?:Fine|Coarse)_([A-Za-z]+)$")
BETWEEN = re.compile(r"[_\-. ]+")
"""What parts the words of a file's name."""

_CHANNEL = re.compile(r"_\d{4}$")
"""How nnU-Net ends the names of the channels of an image."""

_PEOPLE = r"(?:manual|observer|annotator|labell?er|expert|grader|rater|reader|radiologist|pathologist|doctor)"
_WORD = rf"(?:{'|'.join(sorted(MASK_WORDS))})"
_ANNOTATOR = re.compile(
    rf"(?:[_\-. ]{_WORD})?(?:^|[_\-. ])(?:(\d)(?:st|nd|rd|th)[_\-. ]?(?:HO|{_PEOPLE})|(?:HO|{_PEOPLE})[_\-. ]?(\d)|"
    rf"{_PEOPLE}[_\-. ]?([A-H]))(?:[_\-. ]{_WORD})?$",
    re.IGNORECASE,
)
"""Who drew a mask, by a number or a letter, with a word for what it is before or behind."""
_VIEW_SHARE = 0.3
"""Share of an image from which one region may be its field of view."""


def pair_files(root: Path, images: Sequence[Path], masks: Sequence[Path]) -> dict[Path, Path]:
    """Return image → mask of the same name, or of the same name without the word for what it is.

    Where no name fits so, masks whose names all are those of images with one ending (`im1.png`, `im1.ah.png`) or one
    beginning (`anna_im1.png`) are theirs, and then those that fit without words for splits, people and folders
    (`21_training.tif`, `21_manual1.gif`).

    Raises:
        DataError: Two masks or two images have the same name.
    """
    by_stem = _unique(root, {path: _stem(path) for path in masks}, "masks")
    pairs = {image: by_stem[_stem(image)] for image in images if _stem(image) in by_stem}
    _unique(root, {image: _stem(image) for image in pairs}, "images")
    if len(pairs) == len(images):
        return pairs
    taken = set(pairs.values())
    by_key = _unique(root, {mask: bare_name(_stem(mask)) for mask in masks if mask not in taken}, "masks")
    fitting: dict[Path, str] = {}
    for image in images:
        key = bare_name(_stem(image))
        if key not in by_key:  # nnU-Net numbers the channels: "case_0000" belongs to "case"
            key = _CHANNEL.sub("", key)
        if image not in pairs and key in by_key:
            fitting[image] = key
    _unique(root, fitting, "images")
    pairs |= {image: by_key[key] for image, key in fitting.items()}
    pairs |= _in_other_case(
        [i for i in images if i not in pairs], [m for m in masks if m not in set(pairs.values())]
    )
    return (
        pairs
        or _with_one_ending(images, masks)
        or _with_one_beginning(images, masks)
        or _by_core(images, masks)
    )


def _in_other_case(images: Sequence[Path], masks: Sequence[Path]) -> dict[Path, Path]:
    """Return image → mask of names that differ in upper and lower case alone, where only one of each has the name."""
    own = Counter(bare_name(_stem(image)).casefold() for image in images)
    others = Counter(bare_name(_stem(mask)).casefold() for mask in masks)
    by_name = {bare_name(_stem(mask)).casefold(): mask for mask in masks}
    names = {image: bare_name(_stem(image)).casefold() for image in images}
    return {image: by_name[name] for image, name in names.items() if own[name] == others[name] == 1}


def _with_one_ending(images: Sequence[Path], masks: Sequence[Path]) -> dict[Path, Path]:
    """Return image → mask where each mask's name is an image's with one ending, the same for all; else nothing."""
    stems = {_stem(image): image for image in images}
    names = {_stem(mask): mask for mask in masks}
    if len(masks) < 2:
        return {}
    first = _stem(masks[0])
    for cut in range(len(first) - 1, 0, -1):
        ending = first[cut:]
        # Digits after digits are another number: "1" isn't the name in "10".
        if first[:cut] not in stems or not (
            BETWEEN.match(ending) or (ending[0].isalpha() and first[cut - 1].isdigit())
        ):
            continue
        pairs = {
            stems.get(name.removesuffix(ending)): mask
            for name, mask in names.items()
            if name.endswith(ending)
        }
        if None not in pairs and len(pairs) == len(masks):
            return {image: mask for image, mask in pairs.items() if image is not None}
    return {}


def _with_one_beginning(images: Sequence[Path], masks: Sequence[Path]) -> dict[Path, Path]:
    """Return image → mask where each mask's name is one word, the same for all, and an image's name; else nothing."""
    stems = {_stem(image): image for image in images}
    names = {_stem(mask): mask for mask in masks}
    words = {BETWEEN.split(name)[0] for name in names}
    if len(masks) < 2 or len(words) > 1:
        return {}
    (word,) = words
    pairs = {}
    for name, mask in names.items():
        rest = name[len(word) + 1 :]
        if (image := stems.get(rest) or stems.get(bare_name(rest))) is None or image in pairs:
            return {}
        pairs[image] = mask
    return pairs


def _by_core(images: Sequence[Path], masks: Sequence[Path]) -> dict[Path, Path]:
    """Return image → mask of the same name without words for splits, people and what it is, if all masks fit."""
    by_core = {_core(mask): mask for mask in masks}
    cores = {_core(image): image for image in images}
    if len(by_core) < len(masks) or len(cores) < len(images) or not by_core.keys() <= cores.keys():
        return {}
    return {cores[core]: mask for core, mask in by_core.items()}


def _stem(path: Path) -> str:
    """Return a file's name without suffix, with accents as one character: some systems write them as two."""
    return unicodedata.normalize("NFC", path.stem)


def _core(path: Path) -> str:
    """Return a file's name without words for splits, people and what it is, and without its folder's own name."""
    stem, previous = _stem(path), ""
    folder = unicodedata.normalize("NFC", path.parent.name)
    if re.search(rf"[_\-. ]{re.escape(folder)}$", stem, re.IGNORECASE):
        stem = stem[: -len(folder) - 1]
    while stem != previous:
        previous = stem
        stem = bare_name(without_annotator(stem) or stem)
        *words, last = BETWEEN.split(stem)
        if words and split_of(last):
            stem = stem[: -len(last)].rstrip("_-. ")
    return stem


def bare_name(stem: str) -> str:
    """Return a file's name without the word in front or at its end that says what it is ("a_mask" → "a")."""
    return without_affix(CITYSCAPES.sub("", stem), _AFFIXES)


def without_affix(stem: str, affixes: Set[str]) -> str:
    """Return a name without its last word, or else its first, where that is one of some words in small letters."""
    words = BETWEEN.split(stem)
    if len(words) > 1 and words[-1].lower() in affixes:
        return stem[: -len(words[-1])].rstrip("_-. ")
    if len(words) > 1 and words[0].lower() in affixes:
        return stem[len(words[0]) :].lstrip("_-. ")
    return stem


def kind_of_cityscapes(stem: str) -> str:
    """Return what Cityscapes' file of labels holds by its name ("labelIds", "color", "instanceIds"), or ""."""
    match = _CITYSCAPES_KIND.search(stem)
    return match[1] if match else ""


def _unique(root: Path, names: Mapping[Path, str], kind: str) -> dict[str, Path]:
    """Return name → file.

    Raises:
        DataError: Two files have one name.
    """
    found: dict[str, Path] = {}
    for path, name in names.items():
        if (other := found.setdefault(name, path)) != path:
            if _CHANNEL.search(path.stem) and _CHANNEL.sub("", path.stem) == _CHANNEL.sub("", other.stem):
                one = f"{_CHANNEL.sub('', path.stem)}_0000.tif"
                raise DataError(
                    f"{within(other, root)} and {within(path, root)} are two channels of one case, as nnU-Net writes them; "
                    "of 2-D images a file with all channels is read",
                    where=str(root),
                    fix=f"write the channels of each case as the bands of one file, as {one} (with rasterio or tifffile), "
                    "and move those of single channels away",
                )
            raise DataError(
                f"two {kind} belong to one name: {within(other, root)} and {within(path, root)}",
                where=str(root),
                fix="keep one of them; channels of one image must be in one file",
            )
    return found


# --- people


def annotator_of(name: str) -> int | None:
    """Return the number of who drew a mask, by the name of its file or folder ("1st_manual", "a_2ndHO"), or None.

    Letters count from A.

    >>> annotator_of("a_reader2_mask"), annotator_of("a_readerB"), annotator_of("a_manuals"), annotator_of("a_hog")
    (2, 2, None, None)
    """
    match = _ANNOTATOR.search(name)
    if match is None:
        return None
    return int(match[1] or match[2] or ord(match[3].upper()) - ord("A") + 1)


def without_annotator(stem: str) -> str:
    """Return a file's name without who drew it ("Image_01L_1stHO" → "Image_01L")."""
    return _ANNOTATOR.sub("", stem)


def is_drawn_by(name: str, who: str, places: Sequence[int] = (-1, 0)) -> bool:
    """Return whether the name of a file or folder ends or begins with a word ("a_anna", "masks-anna", "anna_a").

    Args:
        name: The name, without suffix.
        who: The word.
        places: Which of the name's words count: -1 the last one, 0 the first.
    """
    words = BETWEEN.split(unicodedata.normalize("NFC", name).lower())
    return unicodedata.normalize("NFC", who).lower() in [words[place] for place in places]


def _by_word(images: Sequence[Path], masks: Sequence[Path], *, last: bool) -> dict[str, dict[str, Path]]:
    """Return image's name → word → mask, of masks called after images and a word; nothing where one is not."""
    stems = {_stem(image) for image in images}
    named: dict[str, dict[str, Path]] = {}
    for mask in masks:
        words = BETWEEN.split(_stem(mask))
        word = words[-1] if last else words[0]
        name = _stem(mask)[: -len(word) - 1] if last else _stem(mask)[len(word) + 1 :]
        name = name if name in stems else bare_name(name)
        if name not in stems or word.isdigit():
            return {}
        named.setdefault(name, {})[word] = mask
    return named


def refuse_readers(root: Path, images: Sequence[Path], masks: Sequence[Path]) -> None:
    """Raise for masks that are called after their images and a word, where images have several and words come again.

    Raises:
        DataError: They are so: several people drew them, or each shows one class.
    """
    named = _by_word(images, masks, last=True)
    ends = "end" if named else "begin"
    named = named or _by_word(images, masks, last=False)
    words = Counter(word for own in named.values() for word in own)
    several = [own for own in named.values() if len(own) > 1]
    if not several or min(words.values()) < 2:
        return
    who = sorted(words)
    example = " and ".join(within(path, root) for path in sorted(several[0].values())[:2])
    raise DataError(
        f"{len(several)} images have several masks each, {example} for example: of several people ({', '.join(who[:4])}), "
        "who are never mixed, or of one class each",
        where=str(root),
        fix=f"{as_option('annotator', who[0])} reads those whose names {ends} so; classes of one image have to be in one mask",
    )


def of_annotator(root: Path, paths: Sequence[Path], annotator: int | str | None) -> tuple[Path, ...]:
    """Return those of files and folders that are masks of one annotator, or whose names tell none.

    Raises:
        DataError: Several people drew the masks, and nobody said whose are read; or none is of the one asked for.
    """
    if isinstance(annotator, str):
        own = tuple(path for path in paths if is_drawn_by(path.stem, annotator, (-1,)))
        own = own or tuple(path for path in paths if is_drawn_by(path.stem, annotator, (0,)))
        if paths and not own:
            what = f'no name of a mask ends or begins with the word "{annotator}"'
            raise DataError(
                what,
                where=str(root),
                fix="check the option annotator, or name folders: -o images=… -o masks=…",
            )
        return own
    numbers: dict[int, Path] = {}
    for path in paths:
        if number := annotator_of(path.stem):
            numbers.setdefault(number, path)
    if annotator is None and len(numbers) > 1:
        raise DataError(
            f"{len(numbers)} people have drawn the masks ({' and '.join(within(p, root) for p in numbers.values())}): "
            "they differ, and are never mixed",
            where=str(root),
            fix=" or ".join(as_option("annotator", number) for number in sorted(numbers))
            + " reads one's masks",
        )
    if annotator is not None and numbers and annotator not in numbers:
        known = ", ".join(map(str, sorted(numbers)))
        raise DataError(f"no mask is of annotator {annotator}", where=str(root), fix=f"there are {known}")
    if annotator is None:
        return tuple(paths)
    return tuple(path for path in paths if annotator_of(path.stem) in (annotator, None))


def are_views(files: Sequence[Path], drawn: Sequence[Path]) -> bool:
    """Return whether masks show fields of view: each is one large part, in which all lies that was drawn by hand.

    Args:
        files: What may be fields of view.
        drawn: Masks that were drawn by hand, of the same images.
    """
    views = {_core(path): path for path in files}
    pairs = {path: views[_core(path)] for path in drawn if _core(path) in views}
    for hand, view in islice(pairs.items(), 5):
        try:
            hand_HW, view_HW = (mask_values(load_label_pixels(path)) > 0 for path in (hand, view))
        except DataError:
            return False
        inside = (
            hand_HW.shape == view_HW.shape and np.count_nonzero(hand_HW & ~view_HW) <= 0.01 * hand_HW.sum()
        )
        if not inside or view_HW.mean() < _VIEW_SHARE:
            return False
    return bool(pairs)


_MANY_VALUES = 32
"""Values of an image from which it is no mask …"""

_FLAT = 0.95
"""… unless two of them fill this share of it, as in masks that were saved as JPEG."""


def are_full_of_values(path: Path) -> bool:
    """Return whether an image has so many values, and so evenly, as photographs have and masks don't."""
    try:
        pixels = load_label_pixels(path)
    except DataError:
        return False
    counts = np.unique(pixels.reshape(-1, *pixels.shape[2:]), axis=0, return_counts=True)[1]
    return len(counts) >= _MANY_VALUES and bool(np.sort(counts)[-2:].sum() <= _FLAT * counts.sum())
