"""RSVQA, DIOR-RSVG, RSVG, LevirCC, GAIA and sets of class folders (Million-AID, SAR classification)."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

from vitp.core.errors import DataError
from vitp.data.corpora.base import DESCRIBE, CorpusConversion, Download, box_text, column, json_rows, one_line
from vitp.data.formats.walk import read_label_text, read_label_xml
from vitp.io.images import IMAGE_SUFFIXES, image_size
from vitp.records.instructions import InstructionRecord, Turn

_RSVQA_PARTS = (("LR_split_train", "Images_LR"), ("USGS_split_train", "Data"))
_GROUND = "Give the box of what this sentence describes: {}"
_CHANGE = "The two images show one place at two dates. Describe what has changed."


def rsvqa(source: Download) -> Iterator[InstructionRecord]:
    """Yield one record an image of RSVQA (low or high resolution, or both), its questions independent.

    Three JSON files belong together: images, questions and answers; rows that are not `active` were withdrawn.
    """
    patterns = ("{}_questions.json", "*/{}_questions.json")
    parts = [
        (prefix, folder)
        for prefix, folder in _RSVQA_PARTS
        if any(list(source.root.glob(pattern.format(prefix))) for pattern in patterns)
    ]
    if not parts:
        source.refuse("LR_split_train_questions.json (or USGS_split_train_questions.json) is missing")
    for prefix, folder in parts:
        questions, answers = (
            source.path(f"{prefix}_{kind}.json", f"{folder}/{prefix}_{kind}.json")
            for kind in ("questions", "answers")
        )
        images = source.path(folder)
        active = [row for row in json_rows(answers, "answers") if row.get("active")]
        given = {column(row, answers, "question_id"): column(row, answers, "answer") for row in active}
        by_image: dict[str, list[Turn]] = {}
        active = [row for row in json_rows(questions, "questions") if row.get("active")]
        for number, row in enumerate(active, 1):
            key = column(row, questions, "id")
            if answer := given.get(key):
                turn = Turn(column(row, questions, "question"), answer)
                by_image.setdefault(column(row, questions, "img_id"), []).append(turn)
            else:
                source.leave_out(questions, number, f"question {key} has no answer")
        for key, turns in by_image.items():
            image = source.image(images / f"{key}.tif", questions, f"image {key}")
            if image is not None:
                yield source.record(f"{prefix}_{key}", [image], turns, independent=True)


def dior_rsvg(source: Download) -> Iterator[InstructionRecord]:
    """Yield one record an image of DIOR-RSVG, a question for each described object of the training split.

    `train.txt` holds numbers of objects, counted over all XML files in the order of their names.
    """
    annotations, images = source.path("Annotations"), source.path("JPEGImages")
    split = source.path("train.txt")
    try:
        wanted = {int(word) for word in read_label_text(split).split()}
    except ValueError as error:
        raise DataError(f"holds no numbers ({error})", where=str(split), fix="download it again") from error
    before = 0
    for path in sorted(annotations.glob("*.xml")):
        nodes = list(read_label_xml(path, "unpack the file again").iter("object"))
        chosen = [node for number, node in enumerate(nodes, before) if number in wanted]
        before += len(nodes)
        image = source.image(images / f"{path.stem}.jpg", path, "image") if chosen else None
        if image is None:
            continue
        size = image_size(image)
        turns = [turn for node in chosen if (turn := _described(source, path, node, size)) is not None]
        if turns:
            yield source.record(path.stem, [image], turns, independent=True, sizes=(size,))


def _described(source: Download, path: Path, node: ElementTree.Element, size: tuple[int, int]) -> Turn | None:
    sentence = one_line(node.findtext("description") or "")
    try:
        box = [float(node.findtext(f"bndbox/{key}") or "") for key in ("xmin", "ymin", "xmax", "ymax")]
    except ValueError:
        box = []
    if not sentence or not box:
        source.leave_out(path, "object", "has no description or no box")
        return None
    return Turn(_GROUND.format(sentence), box_text(sentence, box, size))


def rsvg(source: Download) -> Iterator[InstructionRecord]:
    """Yield one record a row `image,x1,y1,x2,y2,sentence` (pixels) of RSVG's training table.

    The sentence may hold commas.
    """
    path = source.path("rsvg_train.txt", "train.txt", "annotations/train.txt")
    images = source.images("images", "image", "JPEGImages")
    for number, row in enumerate(csv.reader(StringIO(read_label_text(path), newline="")), 1):
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
            source.leave_out(path, number, f"{name} is missing")
            continue
        size = image_size(image)
        turn = Turn(_GROUND.format(sentence), box_text(sentence, box, size))
        yield source.record(f"{Path(name).stem}:{number}", [image], [turn], sizes=(size,))


def levir_cc(source: Download) -> Iterator[InstructionRecord]:
    """Yield one record a pair and distinct caption of LevirCC's training split."""
    path = source.path("LevirCCcaptions.json")
    images = source.path("images")
    for number, row in enumerate(json_rows(path, "images")):
        if row.get("split") != "train":
            continue
        folder, name = images / str(row.get("filepath") or "train"), column(row, path, "filename")
        before, after = (source.image(folder / date / name, path, f"images[{number}]") for date in "AB")
        if before is None or after is None:
            continue
        texts = dict.fromkeys(one_line(sentence.get("raw", "")) for sentence in row.get("sentences", []))
        for k, caption in enumerate(filter(None, texts)):
            yield source.record(f"{Path(name).stem}:{k}", [before, after], [Turn(_CHANGE, caption)])


def gaia(source: Download) -> Iterator[InstructionRecord]:
    """Yield one record a caption of GAIA's training split.

    The set is a table of addresses; img2dataset fetches the images and names them by the rows' ids.
    """
    path = source.path("train_data.json")
    images = source.images("images", "train", stems=True)
    for number, row in enumerate(json_rows(path)):
        image = images.get(str(row.get("id")))
        if image is None:
            source.leave_out(path, f"[{number}]", f"image {row.get('id')} is missing")
            continue
        captions = row.get("captions") or []
        texts = map(one_line, [captions] if isinstance(captions, str) else captions)
        for k, caption in enumerate(filter(None, texts)):
            yield source.record(f"{row['id']}:{k}", [image], [Turn(DESCRIBE, caption)])


def scene_folders(*places: str, question: str, only: str = "") -> CorpusConversion:
    """Return the conversion of folders of classes, which may be nested (Million-AID): the innermost name counts.

    Args:
        *places: Where the folders are, by all names; "" is the download itself.
        question: What is asked; the class names are listed behind it.
        only: Name of a folder below each class that holds the images (Sentinel-1&2: s1); others are left out.
    """

    def convert(source: Download) -> Iterator[InstructionRecord]:
        base = source.path(*places)
        found: list[tuple[Path, str]] = []
        for path in sorted(base.rglob("*")):
            names = path.relative_to(base).parts[:-1]
            if path.suffix.lower() not in IMAGE_SUFFIXES or (only and names[-1:] != (only,)):
                continue
            if names := names[:-1] if only else names:
                found.append((path, names[-1].replace("_", " ")))
        if not found:
            source.refuse("holds no folder of images a class")
        classes = ", ".join(dict.fromkeys(sorted(name for _, name in found)))
        for path, name in found:
            turn = Turn(f"{question} Choose one of: {classes}.", name)
            yield source.record(path.relative_to(base).with_suffix("").as_posix(), [path], [turn])

    return convert
