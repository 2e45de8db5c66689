"""GMAI-MMBench, Open-i, PMC-OA, PMC-VQA, OmniMedVQA and Quilt-1M."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from pathlib import Path

from vitp.core import files
from vitp.core.errors import DataError
from vitp.core.reading import parse_json
from vitp.data.corpora.base import Download, choice_turn, column, json_rows, one_line, table_rows
from vitp.data.formats.walk import read_label_text, read_label_xml
from vitp.records.instructions import InstructionRecord, Turn

_LETTERS = ("A", "B", "C", "D", "E")
_REPORT = "Write the findings and the impression of this chest X-ray."


def gmai_mmbench(source: Download) -> Iterator[InstructionRecord]:
    """Yield one record a question of GMAI-MMBench; images are base64 in the table and are written out once."""
    path = source.path("GMAI_mm_bench_VAL.tsv")
    for line, row in table_rows(path):
        index = column(row, path, "index")
        letter = column(row, path, "answer").upper()
        held = {name: column(row, path, name) for name in _LETTERS if name in row}
        options = [(name, text) for name, text in held.items() if text]
        if letter not in dict(options):
            source.leave_out(path, line, f'answer "{letter}" is none of the options')
            continue
        image = source.work / "images" / f"{files.inner_path(index)}.jpg"
        if not image.is_file():
            try:
                data = base64.b64decode(column(row, path, "image"), validate=True)
            except (binascii.Error, ValueError):
                source.leave_out(path, line, "its image is no base64")
                continue
            with files.atomic_path(image) as temporary:
                temporary.write_bytes(data)
        yield source.record(index, [image], [choice_turn(column(row, path, "question"), options, letter)])


def open_i(source: Download) -> Iterator[InstructionRecord]:
    """Yield one record a report of Open-i (Indiana chest X-rays) with all of its views.

    The reports are XML files; words that were taken out for privacy are XXXX.
    """
    reports = source.path("ecgen-radiology", "reports")
    images = source.images("NLMCXR_png", "images", stems=True)
    for path in sorted(reports.glob("*.xml")):
        tree = read_label_xml(path, "unpack the file again")
        texts = {
            str(node.get("Label", "")).upper(): one_line(node.text or "")
            for node in tree.iter("AbstractText")
        }
        parts = [(label, texts.get(label)) for label in ("FINDINGS", "IMPRESSION")]
        report = "\n".join(f"{label.capitalize()}: {text}" for label, text in parts if text)
        names = [str(node.get("id")) for node in tree.iter("parentImage")]
        views = [images[name] for name in names if name in images]
        if report and views:
            yield source.record(f"CXR{path.stem}", views, [Turn(_REPORT, report)])
        else:
            source.leave_out(path, "report", "has no text or no image")


def pmc_oa(source: Download) -> Iterator[InstructionRecord]:
    """Yield one record a figure of PMC-OA."""
    path = source.path("pmc_oa.jsonl", "train.jsonl", "pmc_oa_beta.jsonl")
    images = source.images("images", "caption_T060_filtered_top4_sep_v0_subfigures")
    return source.captioned(path, images, _figures(path))


def _figures(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield line, image name and caption of PMC-OA's rows."""
    for line, content in enumerate(read_label_text(path).split("\n"), 1):
        if not content.strip():
            continue
        try:
            row = parse_json(content)
            name, caption = Path(str(row["image"])).name, one_line(row["caption"])
        except (ValueError, KeyError, TypeError) as error:
            what = f"is no row of PMC-OA ({error})"
            raise DataError(what, where=f"{path}:{line}", fix="download it again") from error
        yield line, name, caption


def pmc_vqa(source: Download) -> Iterator[InstructionRecord]:
    """Yield one record a question of PMC-VQA's training table; choices begin with their letter (" A:lung ")."""
    path = source.path("train.csv", "train_2.csv")
    images = source.images("figures", "images", "images_2")
    for line, row in table_rows(path):
        name = column(row, path, "Figure_path")
        letter = column(row, path, "Answer_label", "Answer").upper()[:1]
        options = []
        for key in _LETTERS[:4]:
            choice = column(row, path, f"Choice {key}")
            head, colon, rest = choice.partition(":")
            options.append((key, rest.strip() if colon and head.strip() == key else choice))
        if name not in images:
            source.leave_out(path, line, f"{name} is missing")
        elif letter not in dict(options):
            source.leave_out(path, line, f'answer "{letter}" is no choice')
        else:
            turn = choice_turn(column(row, path, "Question"), options, letter)
            yield source.record(f"{Path(name).stem}:{line}", [images[name]], [turn])


def omnimedvqa(source: Download) -> Iterator[InstructionRecord]:
    """Yield one record a question of OmniMedVQA's open-access part: one JSON list a source set."""
    folder = source.path("QA_information/Open-access", "Open-access")
    for path in sorted(folder.glob("*.json")):
        for number, row in enumerate(json_rows(path)):
            options = [(k, str(row[f"option_{k}"]).strip()) for k in _LETTERS if row.get(f"option_{k}")]
            right = str(row.get("gt_answer", "")).strip()
            letter = next((k for k, value in options if value == right), None)
            image = source.image(source.root / str(row.get("image_path")), path, f"[{number}]")
            if letter is None:
                source.leave_out(path, f"[{number}]", f'answer "{right}" is none of the options')
            elif image is not None:
                turn = choice_turn(column(row, path, "question"), options, letter)
                yield source.record(f"{row.get('question_id', f'{path.stem}:{number}')}", [image], [turn])


def quilt_1m(source: Download) -> Iterator[InstructionRecord]:
    """Yield one record a row of Quilt-1M's training part."""
    path = source.path("quilt_1M_lookup.csv")
    images = source.images("quilt_1m", "images")
    rows = (
        (line, column(row, path, "image_path"), one_line(column(row, path, "caption")))
        for line, row in table_rows(path)
        if "split" not in row or column(row, path, "split") in ("train", "")
    )
    return source.captioned(path, images, rows)
