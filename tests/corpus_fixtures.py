"""Tiny copies of the published pretraining sets: their folders, file names and annotation syntax."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmark_fixtures import picture, text


def _json(path: Path, value: Any) -> None:
    text(path, json.dumps(value))


def _table(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> None:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    text(path, buffer.getvalue())


def _said(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[k % 2], "value": value} for k, value in enumerate(texts)]


def write_rsvqa(root: Path) -> None:
    """Low resolution: three files, a withdrawn question, one image for two questions."""
    picture(root / "Images_LR" / "0.tif", 1)
    picture(root / "Images_LR" / "1.tif", 2)
    ask = [(0, 0, "Is there a road?", True), (1, 0, "How many buildings are there?", True), (2, 1, "Is it rural?", True), (3, 1, "Withdrawn?", False)]  # fmt: skip
    questions = [{"id": i, "img_id": image, "question": q, "type": "presence", "answers_ids": [i], "active": a} for i, image, q, a in ask]  # fmt: skip
    answers = [{"id": i, "question_id": i, "answer": a, "active": i < 3} for i, a in enumerate(("yes", "3", "rural", "x"))]  # fmt: skip
    _json(root / "LR_split_train_questions.json", {"questions": questions})
    _json(root / "LR_split_train_answers.json", {"answers": answers})


def write_geochat(root: Path) -> None:
    """Boxes on 0..100 with an angle, and a task tag behind the image mark."""
    picture(root / "images" / "a.png", 1)
    row = {"id": "a", "image": "a.png", "conversations": _said("<image>\n[refer] where is <p>1 ship</p> ?", "<p>ship</p> {<25><40><33><55>|<8>}")}  # fmt: skip
    _json(root / "GeoChat_Instruct.json", [row])


def write_vrsbench(root: Path) -> None:
    """The archive unpacks into a folder of its own name; one image of the table is missing."""
    picture(root / "Images_train" / "Images_train" / "P0003_0002.png", 1)
    rows = [
        {"id": "P0003_0002.png", "image": "P0003_0002.png", "conversations": _said("<image>\n[caption] Describe the image in detail", "A port.")},
        {"id": "P0003_0002.png", "image": "P0003_0002.png", "conversations": _said("<image>\n[refer] the ship", "{<10><20><30><40>}")},
        {"id": "gone.png", "image": "gone.png", "conversations": _said("<image>\n[vqa] how many?", "2")},
    ]  # fmt: skip
    _json(root / "VRSBench_train.json", rows)


def write_fit_rs(root: Path) -> None:
    """InternVL's JSON Lines of FIT-RS."""
    picture(root / "FIT-RS_Img" / "imgv2_split_512_100_vaild" / "0000__512__0___0.png", 1)
    row = {"id": 0, "image": "0000__512__0___0.png", "conversations": _said("<image>\nWhat is it?", "A dam.")}
    text(root / "fit_rs_vqa_100k.jsonl", json.dumps(row) + "\n")


def write_rsvg(root: Path) -> None:
    """Rows image, box, sentence; the sentence holds a comma."""
    picture(root / "images" / "00001.jpg", 1, (100, 50))
    text(root / "rsvg_train.txt", "00001.jpg,10,5,60,25,a large ship, on the left\n")


def write_dior_rsvg(root: Path) -> None:
    """Objects are numbered over all files; 0 and 2 are training objects."""
    for stem, count in (("00002", 2), ("00007", 1)):
        picture(root / "JPEGImages" / f"{stem}.jpg", int(stem), (800, 400))
        nodes = "".join(
            f"<object><name>vehicle</name><bndbox><xmin>{80 * k}</xmin><ymin>40</ymin><xmax>{80 * k + 40}</xmax>"
            f"<ymax>80</ymax></bndbox><description>vehicle {k} of {stem}</description></object>"
            for k in range(count)
        )
        text(
            root / "Annotations" / f"{stem}.xml",
            f"<annotation><filename>{stem}.jpg</filename>{nodes}</annotation>",
        )
    text(root / "train.txt", "0\n2\n")
    text(root / "test.txt", "1\n")


def write_classes(root: Path) -> None:
    """One folder a class."""
    for name in ("farm_land", "water"):
        picture(root / name / "1.png", len(name))


def write_sentinel12(root: Path) -> None:
    """Radar and optical twins below four classes."""
    for k, name in enumerate(("agri", "urban")):
        for kind in ("s1", "s2"):
            picture(root / "v_2" / name / kind / f"ROIs1868_{kind}_p{k}.png", k)


def write_vhm(root: Path) -> None:
    """LLaVA rows."""
    picture(root / "images" / "fmow" / "a.jpg", 1)
    _json(root / "VHM_sft.json", [{"id": "1", "image": "fmow/a.jpg", "conversations": _said("<image>\nWhat?", "An airport.")}])  # fmt: skip


def write_levir_cc(root: Path) -> None:
    """Pairs with five sentences, two of them equal; a test row."""
    rows = []
    for split in ("train", "test"):
        name = f"{split}_000001.png"
        for date in "AB":
            picture(root / "images" / split / date / name, ord(date))
        said = [" a road is built .", " a road is built .", " some trees are cut ."]
        rows.append({"filepath": split, "filename": name, "sentences": [{"raw": raw} for raw in said], "split": split, "changeflag": 1})  # fmt: skip
    _json(root / "LevirCCcaptions.json", {"images": rows, "dataset": "LEVIR_CC"})


def write_gaia(root: Path) -> None:
    """Two captions of an image that was fetched, one of an image that wasn't."""
    picture(root / "images" / "7.jpg", 1)
    _json(root / "train_data.json", [{"id": 7, "image_src": "x", "captions": ["A fire.", "Smoke."]}, {"id": 8, "captions": ["Ice."]}])  # fmt: skip


def write_million_aid(root: Path) -> None:
    """Nested classes: the innermost folder counts."""
    picture(root / "train" / "agriculture_land" / "arable_land" / "dry_field" / "P0000001.jpg", 1)
    picture(root / "train" / "water_area" / "lake" / "P0000002.jpg", 2)


def write_gmai_mmbench(root: Path) -> None:
    """Images as base64 in a table; an empty option; an answer that is no option."""
    data = base64.b64encode(picture(root.parent / "gmai.jpg", 3).read_bytes()).decode()
    row = {
        "index": 5,
        "image": data,
        "question": "Which organ?",
        "A": "liver",
        "B": "lung",
        "C": "",
        "answer": "B",
    }
    _table(root / "GMAI_mm_bench_VAL.tsv", [row, {**row, "index": 6, "answer": "C"}], "\t")


def write_open_i(root: Path) -> None:
    """A report with two views, and one without text."""
    for k in (1, 2):
        picture(root / "NLMCXR_png" / f"CXR1_1_IM-0001-000{k}.png", k)
    body = (
        '<Abstract><AbstractText Label="FINDINGS">The heart is normal.</AbstractText>'
        '<AbstractText Label="IMPRESSION">No acute disease.</AbstractText></Abstract>'
    )
    views = "".join(f'<parentImage id="CXR1_1_IM-0001-000{k}"/>' for k in (1, 2))
    text(root / "ecgen-radiology" / "1.xml", f"<eCitation>{body}{views}</eCitation>")
    text(root / "ecgen-radiology" / "2.xml", f"<eCitation>{views}</eCitation>")


def write_huatuo_oa(root: Path, name: str = "PubMedVision_Alignment_VQA.json") -> None:
    """Several images a row, without a mark."""
    for k in range(2):
        picture(root / "images" / f"pmc_1_{k}.jpg", k)
    row = {"id": "pmc_1", "image": ["images/pmc_1_0.jpg", "images/pmc_1_1.jpg"], "conversations": _said("What do they show?", "A fracture."), "modality": "CT"}  # fmt: skip
    _json(root / name, [row])


def write_huatuo_vqa(root: Path) -> None:
    """The same form under another name."""
    write_huatuo_oa(root, "PubMedVision_InstructionTuning_VQA.json")


def write_pmc_oa(root: Path) -> None:
    """JSON Lines of figure and caption."""
    picture(root / "images" / "PMC1_Fig1.jpg", 1)
    text(root / "pmc_oa.jsonl", '{"image": "PMC1_Fig1.jpg", "caption": "A  scan."}\n\n')


def write_pmc_vqa(root: Path) -> None:
    """Choices that begin with their letter."""
    picture(root / "figures" / "PMC1_F1.jpg", 1)
    choices = {
        f"Choice {k}": f" {k}:{value} " for k, value in zip("ABCD", ("CT", "MRI", "PET", "US"), strict=True)
    }
    _table(root / "train.csv", [{"Figure_path": "PMC1_F1.jpg", "Question": "Which modality?", "Answer": "MRI", **choices, "Answer_label": "B"}])  # fmt: skip


def write_omnimedvqa(root: Path) -> None:
    """One list a source set; the answer is a text."""
    picture(root / "Images" / "Chest" / "1.png", 1)
    row = {"dataset": "Chest", "question_id": "Chest_0001", "question": "What is seen?", "gt_answer": "Lung", "option_A": "Liver", "option_B": "Lung", "image_path": "Images/Chest/1.png"}  # fmt: skip
    _json(root / "QA_information" / "Open-access" / "Chest.json", [row, {**row, "question_id": "2", "gt_answer": "Bone"}])  # fmt: skip


def write_quilt_1m(root: Path) -> None:
    """A table with train and val rows."""
    picture(root / "quilt_1m" / "a.jpg", 1)
    row = {"": 0, "caption": "Mitosis.", "image_path": "a.jpg", "subset": "quilt", "split": "train"}
    _table(root / "quilt_1M_lookup.csv", [row, {**row, "split": "val"}])


def write_quilt_instruct(root: Path) -> None:
    """LLaVA rows."""
    picture(root / "quilt_1m" / "a.jpg", 1)
    _json(root / "quilt_instruct_107k.json", [{"id": "a", "image": "a.jpg", "conversations": _said("<image>\nWhat?", "A cell.")}])  # fmt: skip


def write_general(root: Path) -> None:
    """InternVL rows, one without an image."""
    picture(root / "images" / "a.jpg", 1)
    rows = [{"id": 1, "image": "images/a.jpg", "conversations": _said("<image>\nWhat?", "A cat.")}, {"id": 2, "conversations": _said("2 + 2?", "4")}]  # fmt: skip
    text(root / "train.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


WRITERS: dict[str, Callable[[Path], None]] = {
    "rsvqa": write_rsvqa,
    "fit_rs": write_fit_rs,
    "geochat": write_geochat,
    "vrsbench": write_vrsbench,
    "rsvg": write_rsvg,
    "dior_rsvg": write_dior_rsvg,
    "isprs_sar": write_classes,
    "sentinel12": write_sentinel12,
    "vhm": write_vhm,
    "levir_cc": write_levir_cc,
    "gaia": write_gaia,
    "million_aid": write_million_aid,
    "gmai_mmbench": write_gmai_mmbench,
    "open_i": write_open_i,
    "huatuo_oa": write_huatuo_oa,
    "huatuo_vqa": write_huatuo_vqa,
    "pmc_oa": write_pmc_oa,
    "pmc_vqa": write_pmc_vqa,
    "omnimedvqa": write_omnimedvqa,
    "quilt_1m": write_quilt_1m,
    "quilt_instruct": write_quilt_instruct,
    "general": write_general,
}
"""Name of a pretraining set → function that writes a tiny copy of its published folder."""


def write_corpus(name: str, root: Path) -> Path:
    """Write a tiny copy of a pretraining set and return its folder."""
    root.mkdir(parents=True, exist_ok=True)
    WRITERS[name](root)
    return root
