"""GMAI-MMBench, Open-i, PMC-OA, PMC-VQA, OmniMedVQA and Quilt-1M."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from vitp.core import files
from vitp.core.errors import DataError
from vitp.core.reading import parse_json, parse_xml
from vitp.data.corpora.base import Source, choice_turn, column, images_by_name, read_json, read_rows
from vitp.data.formats.walk import read_label_text
from vitp.records.instructions import InstructionRecord, Turn

_LETTERS = ("A", "B", "C", "D", "E")
_DESCRIBE = "Describe the image."
_REPORT = "Write the findings and the impression of this chest X-ray."


def gmai_mmbench(source: Source) -> Iterator[InstructionRecord]:
    """Yield one record a question of GMAI-MMBench; images are base64 in the table and are written out once."""
    path = source.path("GMAI_mm_bench_VAL.tsv")
    for line, row in read_rows(path):
        index = column(row, path, "index")
        letter = column(row, path, "answer").upper()
        options = [(name, row[name].strip()) for name in _LETTERS if row.get(name, "").strip()]
        if letter not in dict(options):
            source.note(path, line, f'answer "{letter}" is none of the options; left out')
            continue
        image = source.work / "images" / f"{files.inner_path(index)}.jpg"
        if not image.is_file():
            try:
                data = base64.b64decode(column(row, path, "image"), validate=True)
            except (binascii.Error, ValueError):
                source.note(path, line, "its image is no base64; left out")
                continue
            with files.atomic_path(image) as temporary:
                temporary.write_bytes(data)
        yield source.record(index, [image], [choice_turn(column(row, path, "question"), options, letter)])


def open_i(source: Source) -> Iterator[InstructionRecord]:
    """Yield one record a report of Open-i (Indiana chest X-rays) with all of its views.

    The reports are XML files; words that were taken out for privacy are XXXX.
    """
    reports = source.path("ecgen-radiology", "reports")
    images = {
        Path(name).stem: file for name, file in images_by_name(source.path("NLMCXR_png", "images")).items()
    }
    for path in sorted(reports.glob("*.xml")):
        try:
            tree = parse_xml(read_label_text(path))
        except ElementTree.ParseError as error:
            raise DataError(f"is not XML ({error})", where=str(path), fix="unpack it again") from error
        texts = {
            str(node.get("Label", "")).upper(): " ".join((node.text or "").split())
            for node in tree.iter("AbstractText")
        }
        report = "\n".join(
            f"{label.capitalize()}: {texts[label]}"
            for label in ("FINDINGS", "IMPRESSION")
            if texts.get(label)
        )
        views = [
            images[str(node.get("id"))] for node in tree.iter("parentImage") if str(node.get("id")) in images
        ]
        if not report or not views:
            source.note(path, "report", "has no text or no image; left out")
            continue
        yield source.record(f"CXR{path.stem}", views, [Turn(_REPORT, report)])


def pmc_oa(source: Source) -> Iterator[InstructionRecord]:
    """Yield one record a figure of PMC-OA."""
    path = source.path("pmc_oa.jsonl", "train.jsonl", "pmc_oa_beta.jsonl")
    images = images_by_name(source.path("images", "caption_T060_filtered_top4_sep_v0_subfigures"))
    with path.open(encoding="utf-8") as file:
        for line, content in enumerate(file, 1):
            if not content.strip():
                continue
            try:
                row = parse_json(content)
                name, caption = Path(str(row["image"])).name, " ".join(str(row["caption"]).split())
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"is no row of PMC-OA ({error})", where=f"{path}:{line}", fix="download it again"
                ) from error
            if name not in images or not caption:
                source.note(path, line, f"{name} is missing or has no caption; left out")
                continue
            yield source.record(f"{Path(name).stem}:{line}", [images[name]], [Turn(_DESCRIBE, caption)])


def pmc_vqa(source: Source) -> Iterator[InstructionRecord]:
    """Yield one record a question of PMC-VQA's training table; choices begin with their letter (" A:lung ")."""
    path = source.path("train.csv", "train_2.csv")
    images = images_by_name(source.path("figures", "images", "images_2"))
    for line, row in read_rows(path):
        name = column(row, path, "Figure_path")
        letter = column(row, path, "Answer_label", "Answer").upper()[:1]
        options = []
        for key in _LETTERS[:4]:
            choice = column(row, path, f"Choice {key}")
            head, colon, rest = choice.partition(":")
            options.append((key, rest.strip() if colon and head.strip() == key else choice))
        if name not in images or letter not in _LETTERS[:4]:
            what = f"{name} is missing" if name not in images else f'answer "{letter}" is no choice'
            source.note(path, line, f"{what}; left out")
            continue
        turn = choice_turn(column(row, path, "Question"), options, letter)
        yield source.record(f"{Path(name).stem}:{line}", [images[name]], [turn])


def omnimedvqa(source: Source) -> Iterator[InstructionRecord]:
    """Yield one record a question of OmniMedVQA's open-access part: one JSON list a source set."""
    folder = source.path("QA_information/Open-access", "Open-access")
    for path in sorted(folder.glob("*.json")):
        for number, row in enumerate(read_json(path)):
            options = [(k, str(row[f"option_{k}"]).strip()) for k in _LETTERS if row.get(f"option_{k}")]
            right = str(row.get("gt_answer", "")).strip()
            letter = next((k for k, value in options if value == right), None)
            image = source.image(source.root / str(row.get("image_path")), path, f"[{number}]")
            if letter is None:
                source.note(path, f"[{number}]", f'answer "{right}" is none of the options; left out')
            elif image is not None:
                turn = choice_turn(str(row["question"]).strip(), options, letter)
                yield source.record(f"{row.get('question_id', f'{path.stem}:{number}')}", [image], [turn])


def quilt_1m(source: Source) -> Iterator[InstructionRecord]:
    """Yield one record a row of Quilt-1M's training part."""
    path = source.path("quilt_1M_lookup.csv")
    images = images_by_name(source.path("quilt_1m", "images"))
    for line, row in read_rows(path):
        if row.get("split", "train").strip() not in ("train", ""):
            continue
        name, caption = column(row, path, "image_path"), " ".join(column(row, path, "caption").split())
        if name not in images or not caption:
            source.note(path, line, f"{name} is missing or has no caption; left out")
            continue
        yield source.record(f"{Path(name).stem}:{line}", [images[name]], [Turn(_DESCRIBE, caption)])
