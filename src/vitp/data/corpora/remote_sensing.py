"""RSVQA, DIOR-RSVG, RSVG, LevirCC, GAIA and sets of class folders (Million-AID, SAR classification)."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from vitp.core.errors import DataError
from vitp.core.reading import parse_xml
from vitp.data.corpora.base import Convert, Source, box_text, images_by_name, read_json
from vitp.data.formats.walk import read_label_text
from vitp.io.images import IMAGE_SUFFIXES, image_size
from vitp.records.instructions import InstructionRecord, Turn

_RSVQA_PARTS = (("LR_split_train", "Images_LR"), ("USGS_split_train", "Data"))
_GROUND = "Give the box of what this sentence describes: {}"
_DESCRIBE = "Describe the image."
_CHANGE = "The two images show one place at two dates. Describe what has changed."


def rsvqa(source: Source) -> Iterator[InstructionRecord]:
    """Yield one record an image of RSVQA (low or high resolution, or both), its questions independent.

    Three JSON files belong together: images, questions and answers; rows that are not `active` were withdrawn.
    """
    parts = [(prefix, folder) for prefix, folder in _RSVQA_PARTS if _rsvqa_file(source, prefix, "questions")]
    if not parts:
        source.refuse("LR_split_train_questions.json (or USGS_split_train_questions.json) is missing")
    for prefix, folder in parts:
        tables = {
            kind: source.path(f"{prefix}_{kind}.json", f"{folder}/{prefix}_{kind}.json")
            for kind in ("questions", "answers")
        }
        images = source.path(folder)
        answers = {row["question_id"]: row["answer"] for row in _active(tables["answers"], "answers")}
        by_image: dict[Any, list[Turn]] = {}
        for number, row in enumerate(_active(tables["questions"], "questions"), 1):
            answer = str(answers.get(row["id"], "")).strip()
            if not answer:
                source.note(tables["questions"], number, f"question {row['id']} has no answer; left out")
                continue
            by_image.setdefault(row["img_id"], []).append(Turn(str(row["question"]).strip(), answer))
        for key, turns in by_image.items():
            image = source.image(images / f"{key}.tif", tables["questions"], f"image {key}")
            if image is not None:
                yield source.record(f"{prefix}_{key}", [image], turns, independent=True)


def _rsvqa_file(source: Source, prefix: str, kind: str) -> bool:
    return bool(
        list(source.root.glob(f"{prefix}_{kind}.json")) or list(source.root.glob(f"*/{prefix}_{kind}.json"))
    )


def _active(path: Path, key: str) -> list[dict[str, Any]]:
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise DataError(f'has no list "{key}"', where=str(path), fix="download the file again")
    return [row for row in content[key] if isinstance(row, dict) and row.get("active")]


def dior_rsvg(source: Source) -> Iterator[InstructionRecord]:
    """Yield one record an image of DIOR-RSVG, a question for each described object of the training split.

    `train.txt` holds numbers of objects, counted over all XML files in the order of their names.
    """
    annotations, images = source.path("Annotations"), source.path("JPEGImages")
    split = source.path("train.txt")
    try:
        wanted = {int(word) for word in read_label_text(split).split()}
    except ValueError as error:
        raise DataError(f"holds no numbers ({error})", where=str(split), fix="download it again") from error
    number = 0
    for path in sorted(annotations.glob("*.xml")):
        try:
            tree = parse_xml(read_label_text(path))
        except ElementTree.ParseError as error:
            raise DataError(f"is not XML ({error})", where=str(path), fix="unpack it again") from error
        chosen = []
        for node in tree.iter("object"):
            if number in wanted:
                chosen.append(node)
            number += 1
        image = source.image(images / f"{path.stem}.jpg", path, "image") if chosen else None
        if image is None:
            continue
        size = image_size(image)
        turns = [turn for node in chosen if (turn := _described(source, path, node, size)) is not None]
        if turns:
            yield source.record(path.stem, [image], turns, independent=True, sizes=(size,))


def _described(source: Source, path: Path, node: ElementTree.Element, size: tuple[int, int]) -> Turn | None:
    sentence = " ".join((node.findtext("description") or "").split())
    try:
        box = [float(node.findtext(f"bndbox/{key}") or "") for key in ("xmin", "ymin", "xmax", "ymax")]
    except ValueError:
        box = []
    if not sentence or not box:
        source.note(path, "object", "has no description or no box; left out")
        return None
    return Turn(_GROUND.format(sentence), box_text(sentence, box, size))


def rsvg(source: Source) -> Iterator[InstructionRecord]:
    """Yield one record a row `image,x1,y1,x2,y2,sentence` (pixels) of RSVG's training table.

    The sentence may hold commas.
    """
    path = source.path("rsvg_train.txt", "train.txt", "annotations/train.txt")
    images = images_by_name(source.path("images", "image", "JPEGImages"))
    for number, row in enumerate(csv.reader(read_label_text(path).splitlines()), 1):
        if not row:
            continue
        try:
            name, box, sentence = row[0].strip(), [float(v) for v in row[1:5]], ",".join(row[5:]).strip()
            if len(box) != 4 or not sentence:
                raise ValueError(f"{len(row)} columns")
        except (ValueError, IndexError) as error:
            raise DataError(
                f"is no row of RSVG ({error})",
                where=f"{path}:{number}",
                fix='write "image,x1,y1,x2,y2,sentence"',
            ) from error
        image = images.get(Path(name).name)
        if image is None:
            source.note(path, number, f"{name} is missing; left out")
            continue
        size = image_size(image)
        turn = Turn(_GROUND.format(sentence), box_text(sentence, box, size))
        yield source.record(f"{Path(name).stem}:{number}", [image], [turn], sizes=(size,))


def levir_cc(source: Source) -> Iterator[InstructionRecord]:
    """Yield one record a pair and distinct caption of LevirCC's training split."""
    path = source.path("LevirCCcaptions.json")
    images = source.path("images")
    content = read_json(path)
    rows = content.get("images") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise DataError('has no list "images"', where=str(path), fix="download the file again")
    for number, row in enumerate(rows):
        if row.get("split") != "train":
            continue
        folder = images / str(row.get("filepath") or "train")
        pair = [
            source.image(folder / date / str(row["filename"]), path, f"images[{number}]") for date in "AB"
        ]
        if pair[0] is None or pair[1] is None:
            continue
        texts = dict.fromkeys(" ".join(str(s.get("raw", "")).split()) for s in row.get("sentences", []))
        for k, caption in enumerate(caption for caption in texts if caption):
            yield source.record(
                f"{Path(row['filename']).stem}:{k}", [pair[0], pair[1]], [Turn(_CHANGE, caption)]
            )


def gaia(source: Source) -> Iterator[InstructionRecord]:
    """Yield one record a caption of GAIA's training split.

    The set is a table of addresses; img2dataset fetches the images and names them by the rows' ids.
    """
    path = source.path("train_data.json")
    images = {Path(name).stem: file for name, file in images_by_name(source.path("images", "train")).items()}
    for number, row in enumerate(read_json(path)):
        image = images.get(str(row.get("id")))
        if image is None:
            source.note(path, f"[{number}]", f"image {row.get('id')} is missing; left out")
            continue
        captions = row.get("captions")
        texts = [captions] if isinstance(captions, str) else list(captions or [])
        for k, caption in enumerate(text for text in (" ".join(str(t).split()) for t in texts) if text):
            yield source.record(f"{row['id']}:{k}", [image], [Turn(_DESCRIBE, caption)])


def class_folders(*places: str, question: str, only: str = "") -> Convert:
    """Return the conversion of folders of classes, which may be nested (Million-AID): the innermost name counts.

    Args:
        *places: Where the folders are, by all names; "" is the download itself.
        question: What is asked; the class names are listed behind it.
        only: Name of a folder below each class that holds the images (Sentinel-1&2: s1); others are left out.
    """

    def convert(source: Source) -> Iterator[InstructionRecord]:
        base = source.path(*places)
        found: list[tuple[Path, str]] = []
        for path in sorted(base.rglob("*")):
            if path.suffix.lower() not in IMAGE_SUFFIXES:
                continue
            parts = path.relative_to(base).parts[:-1]
            if only and (not parts or parts[-1] != only):
                continue
            names = parts[:-1] if only else parts
            if names:
                found.append((path, names[-1].replace("_", " ")))
        if not found:
            source.refuse("holds no folder of images a class")
        classes = ", ".join(dict.fromkeys(sorted(name for _, name in found)))
        for path, name in found:
            turn = Turn(f"{question} Choose one of: {classes}.", name)
            yield source.record(path.relative_to(base).with_suffix("").as_posix(), [path], [turn])

    return convert
