"""Conversions of the paper's pretraining sets: published folders in, records that train out."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.benchmark_fixtures import text
from tests.corpus_fixtures import WRITERS, write_corpus
from vitp.cli import run
from vitp.core.errors import ConfigError, DataError
from vitp.data.corpora.base import box_text
from vitp.data.corpora.catalogue import CORPORA, corpus
from vitp.data.corpora.conversations import percent_boxes
from vitp.data.corpora.convert import Converted, convert_corpus
from vitp.data.row_checks import coordinate_problems
from vitp.data.sources import read_mixture
from vitp.io.images import load_image
from vitp.records.instructions import InstructionRecord

COUNTS = {
    "rsvqa": (2, 3),
    "fit_rs": (1, 1),
    "geochat": (1, 1),
    "vrsbench": (2, 2),
    "rsvg": (1, 1),
    "dior_rsvg": (2, 2),
    "isprs_sar": (2, 2),
    "sentinel12": (2, 2),
    "vhm": (1, 1),
    "levir_cc": (2, 2),
    "gaia": (2, 2),
    "million_aid": (2, 2),
    "gmai_mmbench": (1, 1),
    "open_i": (1, 1),
    "huatuo_oa": (1, 1),
    "huatuo_vqa": (1, 1),
    "pmc_oa": (1, 1),
    "pmc_vqa": (1, 1),
    "omnimedvqa": (1, 1),
    "quilt_1m": (1, 1),
    "quilt_instruct": (1, 1),
    "general": (2, 2),
}
"""Set → records and questions that its fixture holds."""


def made(name: str, tmp_path: Path) -> tuple[Converted, list[InstructionRecord]]:
    root = write_corpus(name, tmp_path / "download")
    result = convert_corpus(name, root, tmp_path / "out")
    (entry,) = read_mixture(tmp_path / "out" / "mixture.json")
    return result, [entry.records[k] for k in range(len(entry.records))]


def test_every_set_has_a_conversion_and_a_fixture() -> None:
    assert CORPORA.keys() == WRITERS.keys() == COUNTS.keys()
    assert all(c.name == name and c.layout and "http" not in c.published_by for name, c in CORPORA.items())
    with pytest.raises(ConfigError, match='did you mean "geochat"'):
        corpus("geo_chat")


@pytest.mark.parametrize("name", CORPORA)
def test_a_published_folder_becomes_records(name: str, tmp_path: Path) -> None:
    result, records = made(name, tmp_path)
    assert (result.records, result.questions) == COUNTS[name]
    assert (len(records), sum(len(r.turns) for r in records)) == COUNTS[name]
    for record in records:
        assert record.source == name and not coordinate_problems(record)
        assert all(load_image(image).size[0] > 0 for image in record.images)
    again = convert_corpus(name, tmp_path / "download", tmp_path / "out")
    assert again.again and again.records == result.records
    assert not list(tmp_path.glob(".out.*"))


@pytest.mark.parametrize("name", CORPORA)
def test_an_empty_folder_is_told_where_the_set_is_published(name: str, tmp_path: Path) -> None:
    (tmp_path / "download").mkdir()
    with pytest.raises(DataError) as caught:
        convert_corpus(name, tmp_path / "download", tmp_path / "out")
    assert CORPORA[name].published_by in str(caught.value) and not (tmp_path / "out").exists()


def test_rsvqa_joins_questions_of_an_image_and_leaves_withdrawn_ones_out(tmp_path: Path) -> None:
    _, records = made("rsvqa", tmp_path)
    first = next(r for r in records if r.images[0].endswith("0.tif"))
    assert first.independent and [t.answer for t in first.turns] == ["yes", "3"]
    assert first.turns[0].question == "<image>\nIs there a road?"


def test_boxes_come_to_a_thousand_and_tags_go(tmp_path: Path) -> None:
    _, geochat = made("geochat", tmp_path / "a")
    assert geochat[0].turns[0].question == "<image>\nwhere is <p>1 ship</p> ?"
    assert geochat[0].turns[0].answer == "<p>ship</p> <box>[[250, 400, 330, 550]]</box>|<8>"
    result, vrsbench = made("vrsbench", tmp_path / "b")
    assert [r.turns[0].question for r in vrsbench] == [
        "<image>\nDescribe the image in detail",
        "<image>\nthe ship",
    ]
    assert vrsbench[1].turns[0].answer == "<box>[[100, 200, 300, 400]]</box>"
    assert result.findings == ("VRSBench_train.json:1: gone.png is missing; left out",)


def test_dior_rsvg_counts_objects_over_all_files(tmp_path: Path) -> None:
    _, records = made("dior_rsvg", tmp_path)
    assert [(r.id, r.turns[0].answer) for r in records] == [
        ("00002", "<ref>vehicle 0 of 00002</ref><box>[[0, 100, 50, 200]]</box>"),
        ("00007", "<ref>vehicle 0 of 00007</ref><box>[[0, 100, 50, 200]]</box>"),
    ]


def test_rsvg_sentences_may_hold_commas(tmp_path: Path) -> None:
    _, records = made("rsvg", tmp_path)
    expected = "<ref>a large ship, on the left</ref><box>[[100, 100, 600, 500]]</box>"
    assert records[0].turns[0].answer == expected
    text(tmp_path / "download" / "rsvg_train.txt", "00001.jpg,10,5,60\n")
    with pytest.raises(DataError, match=r"rsvg_train\.txt:1: is no row of RSVG"):
        convert_corpus("rsvg", tmp_path / "download", tmp_path / "other")


def test_pairs_nested_classes_and_radar_only(tmp_path: Path) -> None:
    _, pairs = made("levir_cc", tmp_path / "a")
    assert [t.answer for r in pairs for t in r.turns] == ["a road is built .", "some trees are cut ."]
    assert all(len(r.images) == 2 and r.turns[0].question.startswith("<image>\n<image>\n") for r in pairs)
    _, scenes = made("million_aid", tmp_path / "b")
    assert [r.turns[0].answer for r in scenes] == ["dry field", "lake"]
    _, radar = made("sentinel12", tmp_path / "c")
    assert {Path(r.images[0]).parent.name for r in radar} == {"s1"}
    assert radar[0].turns[0].question.endswith("Choose one of: agri, urban.")


def test_medical_choices_views_and_embedded_images(tmp_path: Path) -> None:
    result, gmai = made("gmai_mmbench", tmp_path / "a")
    assert gmai[0].turns[0].answer == "B. lung" and "A. liver\nB. lung\n" in gmai[0].turns[0].question
    assert gmai[0].images == (str(tmp_path / "a" / "out" / "images" / "5.jpg"),)
    assert result.findings == ('GMAI_mm_bench_VAL.tsv:3: answer "C" is none of the options; left out',)
    _, reports = made("open_i", tmp_path / "b")
    assert len(reports[0].images) == 2
    assert reports[0].turns[0].answer == "Findings: The heart is normal.\nImpression: No acute disease."
    _, several = made("huatuo_vqa", tmp_path / "c")
    assert several[0].turns[0].question == "<image>\n<image>\nWhat do they show?"
    _, pmc = made("pmc_vqa", tmp_path / "d")
    assert pmc[0].turns[0].answer == "B. MRI"
    _, omni = made("omnimedvqa", tmp_path / "e")
    assert [(r.id, r.turns[0].answer) for r in omni] == [("Chest_0001", "B. Lung")]


@pytest.mark.parametrize(
    ("name", "file", "content", "told"),
    [
        ("gaia", "train_data.json", "[1, 2]", r"train_data\.json:\[0\]: is no object"),
        ("gaia", "train_data.json", '{"images": 3}', r"train_data\.json: is no list of rows"),
        ("omnimedvqa", "QA_information/Open-access/Chest.json", "[[]]", r"Chest\.json:\[0\]: is no object"),
        ("levir_cc", "LevirCCcaptions.json", '{"images": [{"split": "train"}]}', "has no column filename"),
        ("levir_cc", "LevirCCcaptions.json", '{"images": 3}', 'has no list "images"'),
        ("rsvqa", "LR_split_train_answers.json", '{"answers": [{"active": 1}]}', "has no column question_id"),
        ("rsvqa", "LR_split_train_questions.json", '{"questions": [7]}', r"questions\[0\]: is no object"),
        ("pmc_oa", "pmc_oa.jsonl", "7\n", r"pmc_oa\.jsonl:1: is no row of PMC-OA"),
        ("open_i", "ecgen-radiology/1.xml", "<a>", r"1\.xml:1: is not XML"),
    ],
)
def test_rows_that_are_none_are_named(name: str, file: str, content: str, told: str, tmp_path: Path) -> None:
    root = write_corpus(name, tmp_path / "download")
    assert (root / file).is_file()
    text(root / file, content)
    with pytest.raises(DataError, match=told):
        convert_corpus(name, root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@given(st.lists(st.integers(0, 100), min_size=4, max_size=4), st.integers(-90, 90), st.booleans())
def test_percent_boxes_stay_in_range_and_in_order(values: list[int], angle: int, turned: bool) -> None:
    written = "{" + "".join(f"<{v}>" for v in values) + (f"|<{angle}>" if turned else "") + "}"
    found = percent_boxes(f"a {written} b")
    x, y = sorted(values[::2]), sorted(values[1::2])
    box = f"<box>[[{x[0] * 10}, {y[0] * 10}, {x[1] * 10}, {y[1] * 10}]]</box>"
    assert found == f"a {box}{f'|<{angle}>' if turned else ''} b"
    assert percent_boxes(found) == found


def test_boxes_are_clipped_to_the_image() -> None:
    assert box_text("dam", (-5, 10, 250, 40), (200, 40)) == "<ref>dam</ref><box>[[0, 250, 1000, 1000]]</box>"


def test_the_command_converts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_corpus("levir_cc", tmp_path / "download")
    arguments = ["data", "prepare", "levir_cc", "--root", str(root), "--out", str(tmp_path / "out")]
    assert run(arguments) == 0
    assert "levir_cc: converted (2 records, 2 questions, 2 images)" in capsys.readouterr().out
    assert run([*arguments, "--crop", "64"]) == 2
    assert "is a pretraining set" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "file", "column", "other"),
    [
        ("quilt_1m", "quilt_1M_lookup.csv", "caption", "Necrosis."),
        ("quilt_1m", "quilt_1M_lookup.csv", "split", "val"),
        ("pmc_vqa", "train.csv", "Choice B", "B:US"),
        ("gmai_mmbench", "GMAI_mm_bench_VAL.tsv", "A", "no lung"),
    ],
)
def test_two_columns_of_one_name_are_refused_where_they_are_read_and_differ(
    tmp_path: Path, name: str, file: str, column: str, other: str
) -> None:
    root = write_corpus(name, tmp_path / "download")
    mark = "\t" if file.endswith(".tsv") else ","
    with (root / file).open(newline="") as table:
        head, *rows = csv.reader(table, delimiter=mark)

    def written(named: str, cell: str | None) -> None:
        with (root / file).open("w", newline="") as table:
            own = [row[head.index(column)] if cell is None else cell for row in rows]
            lines = [[*head, named], *([*row, one] for row, one in zip(rows, own, strict=True))]
            csv.writer(table, delimiter=mark).writerows(lines)

    written(column, other)
    with pytest.raises(DataError, match=f'in two columns that are both called "{column}"') as caught:
        convert_corpus(name, root, tmp_path / "out")
    assert str(caught.value).startswith(f"{root / file}:2: ") and other in str(caught.value)
    assert not (tmp_path / "out").exists()
    # Columns that agree, and those that nobody reads, say nothing of the rows.
    for named, cell in ((column, None), ("", other), ("note", other)):
        written(named, cell)
        assert convert_corpus(name, root, tmp_path / f"out-{named or 'blank'}").records == COUNTS[name][0]


@pytest.mark.parametrize(
    ("name", "file", "marks"),
    [("quilt_1m", "quilt_1M_lookup.csv", '","'), ("gmai_mmbench", "GMAI_mm_bench_VAL.tsv", "tabs")],
)
def test_a_row_of_more_cells_than_the_head_is_told_and_never_cut(
    tmp_path: Path, name: str, file: str, marks: str
) -> None:
    root = write_corpus(name, tmp_path / "download")
    table, mark = root / file, "\t" if file.endswith(".tsv") else ","
    head, first, *rest = table.read_text(encoding="utf-8").splitlines(keepends=True)
    count = len(head.rstrip("\r\n").split(mark))

    def written(end: str) -> None:
        row = next(csv.reader([first], delimiter=mark))
        cells = io.StringIO(newline="")
        csv.writer(cells, delimiter=mark, lineterminator="").writerow(row)
        table.write_text(head + cells.getvalue() + end + "\n" + "".join(rest), encoding="utf-8", newline="")

    written(f"{mark}and more")
    with pytest.raises(DataError) as caught:
        convert_corpus(name, root, tmp_path / "out")
    told = f"{table}:2: has {count + 1} cells, the head {count}; put cells that hold {marks} into quotes"
    assert str(caught.value) == told and not (tmp_path / "out").exists()
    written(mark)  # an empty cell at the end shifts nothing
    assert convert_corpus(name, root, tmp_path / "out").records == COUNTS[name][0]
