"""Readers of instruction rows: forms, lazy access, messages, the index cache and mixture files."""

from __future__ import annotations

import json
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitp.core.errors import DataError
from vitp.data.readers import index as row_index
from vitp.data.readers.records import JsonArrayRecords, JsonlRecords
from vitp.data.readers.rows import RowPlace, record_from_row
from vitp.data.record_set import ListRecords, SampleSet
from vitp.data.sources import open_records, read_mixture
from vitp.records.instructions import InstructionRecord, Region, Turn, record_to_json, to_line

QUESTION = {"from": "human", "value": "<image>\nWhat is it?"}
ANSWER = {"from": "gpt", "value": "A ship."}
ROW: dict[str, Any] = {"id": "a", "image": "a.png", "conversations": [QUESTION, ANSWER]}


def read(row: Any, root: Path | None = None) -> InstructionRecord:
    return record_from_row(row, place=RowPlace("rows.jsonl", 7), root=root, source="set")


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


# Forms of a row


def test_internvl_row() -> None:
    record = read({**ROW, "width": 640, "height": 480}, Path("pictures"))
    assert record.id == "a"
    assert record.images == ("pictures/a.png",)
    assert record.sizes == ((640, 480),)
    assert record.turns == (Turn("<image>\nWhat is it?", "A ship."),)
    assert (record.source, record.origin) == ("set", "rows.jsonl:7")


def test_several_images_with_lists_of_sizes() -> None:
    messages = [{"from": "human", "value": "<image>\n<image>\nChanged?"}, ANSWER]
    row = {
        "id": 5,
        "image": ["a.png", "/b.png"],
        "width": [10, 30],
        "height": [20, 40],
        "conversations": messages,
    }
    record = read(row, Path("root"))
    assert record.id == "5"
    assert record.images == ("root/a.png", "/b.png")
    assert record.sizes == ((10, 20), (30, 40))


def test_missing_mark_is_prepended_for_one_image_only() -> None:
    bare = [{"from": "human", "value": "What is it?"}, ANSWER]
    assert read({**ROW, "conversations": bare}).turns[0].question == "<image>\nWhat is it?"
    with pytest.raises(DataError, match="0 <image> marks but 2 images"):
        read({**ROW, "image": ["a", "b"], "conversations": bare})


def test_mark_at_the_end_stays_where_it_is() -> None:
    row = {**ROW, "conversations": [{"from": "human", "value": "What?\n<image>"}, ANSWER]}
    assert read(row).turns[0].question == "What?\n<image>"


def test_chat_messages_with_parts() -> None:
    parts = [{"type": "image", "image": "p.png"}, {"type": "text", "text": "What?"}]
    record = read(
        {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "Sea."}]}
    )
    assert record.images == ("p.png",)
    assert record.turns == (Turn("<image>\nWhat?", "Sea."),)
    assert record.id == "rows:7"


def test_sharegpt_images_key_and_text_only_rows() -> None:
    row = {"images": ["x.png"], "conversations": [QUESTION, ANSWER]}
    assert read(row).images == ("x.png",)
    text_only = {"conversations": [{"from": "human", "value": "Why?"}, ANSWER]}
    assert read(text_only).images == ()


def test_generated_images_are_not_joined_to_the_root() -> None:
    assert read({**ROW, "image": "scene:1/2"}, Path("root")).images == ("scene:1/2",)


def test_canonical_rows_come_back_as_they_were() -> None:
    record = InstructionRecord(
        id="x",
        images=("a.png", "b.png"),
        turns=(Turn("<image><image>\nQ1", "A1"), Turn("Q2", "A2")),
        sizes=((3, 4), (5, 6)),
        independent=True,
        regions=(Region("ship", (1, 2, 3, 4), (1, 2, 3, 2, 3, 4, 1, 4), 1), Region("car", (0, 0, 9, 9))),
        source="s",
        licence="MIT",
        origin="rows.jsonl:7",
    )
    assert read(record_to_json(record)) == record


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20).map(
    lambda t: t.replace("<image>", "")
)
TURNS = st.lists(st.builds(Turn, TEXT, TEXT.map(lambda t: "a" + t)), min_size=1, max_size=4).map(tuple)


@given(turns=TURNS, name=st.from_regex(r"[\w é]{1,8}\.png", fullmatch=True))
@settings(max_examples=60, deadline=None)
def test_round_trip_through_json(turns: tuple[Turn, ...], name: str) -> None:
    first = Turn("<image>\n" + turns[0].question, turns[0].answer)
    record = InstructionRecord("i", (name,), (first, *turns[1:]), source="set", origin="rows.jsonl:7")
    assert read(json.loads(to_line(record))) == record


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"conversations": [QUESTION]}, "the last question has no answer"),
        ({"conversations": [ANSWER, QUESTION]}, "message 1 is an answer where a question is due"),
        ({"conversations": [QUESTION, QUESTION]}, "message 2 is a question where an answer is due"),
        ({"conversations": [{"from": "system", "value": "Be brief."}, QUESTION, ANSWER]}, "system message"),
        ({"conversations": [{"from": "tool", "value": "x"}]}, "from 'tool'"),
        ({"conversations": []}, "must be a list with messages"),
        ({"conversations": [{"from": "human"}, ANSWER]}, "message 1 has no text"),
        ({"conversations": [QUESTION, {"from": "gpt", "value": "  "}]}, "answer 1 is empty"),
        ({"image": 5}, '"image" must be a path'),
        ({"images": ["b"]}, "both"),
        ({"width": 0, "height": 4}, "above 0"),
        ({"width": [1, 2], "height": [1, 2]}, "2 widths and 2 heights but 1 images"),
        ({"regions": [{"box": [0, 0, 1, 1]}]}, "region 1 has no label"),
        ({"regions": [{"label": "a", "box": [0, 0, 1]}]}, "four whole numbers"),
        ({"regions": [{"label": "a", "box": [0, 0, 1, 1], "image": 1}]}, "image 1 of 1"),
        ({"independent": "yes"}, "true or false"),
        ({"image": None, "video": "a.mp4"}, "video"),
    ],
)
def test_unusable_rows_name_place_id_and_remedy(change: dict, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        read({**ROW, **change})
    assert caught.value.where == "rows.jsonl:7 (id a)"
    assert caught.value.fix


# Files


def test_jsonl_is_indexed_around_blank_lines_and_other_line_ends(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    lines = [json.dumps({**ROW, "id": name}) for name in "abc"]
    file.write_bytes(("\ufeff" + lines[0] + "\r\n\n  \n" + lines[1] + "\n" + lines[2]).encode())
    records = JsonlRecords(file)
    assert [record.id for record in records] == ["a", "b", "c"]
    assert [records.place(i).line for i in range(3)] == [1, 4, 5]
    assert records[1].images == (str(tmp_path / "a.png"),)
    assert records[-1].id == "c"
    assert isinstance(records, SampleSet)
    with pytest.raises(IndexError):
        records[3]


def test_broken_line_names_line_and_column_and_leaves_the_others_readable(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text(json.dumps(ROW) + '\n{"id": "x", "image" "a"}\n' + json.dumps(ROW) + "\n")
    records = JsonlRecords(file)
    assert records[2].id == "a"
    with pytest.raises(DataError, match=r"r\.jsonl:2: broken JSON, column 21: Expecting ':'"):
        records[1]


def test_not_utf8_names_the_line(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    file.write_bytes(b'{"id": "\xff"}\n')
    with pytest.raises(DataError, match=r"r\.jsonl:1: is not UTF-8 \(byte 9"):
        JsonlRecords(file)[0]


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jsonl: can't be read"):
        JsonlRecords(tmp_path / "gone.jsonl")
    with pytest.raises(DataError, match="is a folder"):
        JsonlRecords(tmp_path)


def test_a_file_that_changes_in_use_is_refused(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "r.jsonl", [ROW])
    records = JsonlRecords(file)
    write_lines(file, [ROW, ROW])
    with pytest.raises(DataError, match="has changed"):
        records[0]


ROWS = st.lists(
    st.dictionaries(TEXT, st.recursive(TEXT | st.integers() | st.none(), lambda s: st.lists(s, max_size=3))),
    max_size=6,
)


@given(rows=ROWS, indent=st.sampled_from([None, 1]), ascii_only=st.booleans())
@settings(max_examples=80, deadline=None)
def test_array_index_finds_every_row(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict], indent: int | None, ascii_only: bool
) -> None:
    file = tmp_path_factory.mktemp("array") / "r.json"
    text = json.dumps(rows, indent=indent, ensure_ascii=ascii_only)
    file.write_text(text, encoding="utf-8", newline="")
    records = JsonArrayRecords(file)
    assert [records.row(i) for i in range(len(records))] == rows
    if indent:  # rows that are not empty begin on lines that hold an opening brace alone
        begins = [n for n, line in enumerate(text.split("\n"), 1) if line in (" {", " {}", " {},")]
        assert [records.place(i).line for i in range(len(rows))] == begins


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ('{"id": 1}', "is not a list of rows"),
        ('[{"id": 1}, 5]', "entry 2 of the list is not an object"),
        ('[{"id": 1}, {"id": 2', r"r\.json:1: broken JSON, column 21"),
        ('[{"id": 1} {"id": 2}]', r"r\.json:1: broken JSON, column 12"),
        ('[{"id": 1},\n]', r"r\.json:[12]: broken JSON"),
        ('[{"id": 1}] x', r"r\.json:1: broken JSON, column 13"),
        ('[{"id": 1}]]', r"r\.json:1: broken JSON, column 12"),
    ],
)
def test_array_files_that_are_no_list_of_objects(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "r.json"
    file.write_text(text)
    with pytest.raises(DataError, match=words):
        JsonArrayRecords(file)


def test_broken_row_of_an_array_names_its_own_line_and_column(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    file.write_text('[{"id": 1}, {"id" 2},\n {"id":\n  tru}]')
    records = JsonArrayRecords(file)
    with pytest.raises(DataError, match=r"r\.json:1: broken JSON, column 19"):
        records.row(1)
    with pytest.raises(DataError, match=r"r\.json:3: broken JSON, column 3"):
        records.row(2)


def test_content_decides_how_a_file_is_read(tmp_path: Path) -> None:
    lines = write_lines(tmp_path / "lines.json", [ROW])
    array = tmp_path / "array.jsonl"
    array.write_text("\n " + json.dumps([ROW, ROW]))
    assert isinstance(open_records(lines), JsonlRecords)
    assert len(open_records(array)) == 2


# Index cache, processes


def test_index_is_cached_and_follows_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITP_CACHE", str(tmp_path / "cache"))
    file = write_lines(tmp_path / "r.jsonl", [{**ROW, "id": str(i)} for i in range(100)])
    first = JsonlRecords(file, cache_above=1)
    plain = JsonlRecords(file)
    scans: list[Path] = []
    real = row_index._scanning

    def counted(path: Path, *others: Any) -> Any:
        scans.append(path)
        return real(path, *others)

    monkeypatch.setattr(row_index, "_scanning", counted)
    again = JsonlRecords(file, cache_above=1)
    assert not scans
    assert isinstance(again._indices[0].rows, np.memmap)
    assert first.fingerprint() == again.fingerprint() == plain.fingerprint()
    assert [again[i] for i in range(100)] == [plain[i] for i in range(100)]
    write_lines(file, [ROW])
    assert len(JsonlRecords(file, cache_above=1)) == 1
    assert scans == [file]


def test_no_place_for_the_cache_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "blocked").write_text("a file where the folder should be")
    monkeypatch.setenv("VITP_CACHE", str(tmp_path / "blocked"))
    records = JsonlRecords(write_lines(tmp_path / "r.jsonl", [ROW, ROW]), cache_above=1)
    assert records[1].id == "a"


def test_a_damaged_cache_is_built_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITP_CACHE", str(tmp_path / "cache"))
    file = write_lines(tmp_path / "r.jsonl", [ROW])
    JsonlRecords(file, cache_above=1)
    (cached,) = (tmp_path / "cache" / "index").glob("*.npy")
    cached.write_bytes(cached.read_bytes()[:50])
    assert JsonlRecords(file, cache_above=1)[0].id == "a"


def _ids(records: JsonlRecords) -> list[str]:
    return [record.id for record in records]


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_records_travel_to_other_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setenv("VITP_CACHE", str(tmp_path / "cache"))
    file = write_lines(tmp_path / "r.jsonl", [{**ROW, "id": str(i)} for i in range(50)])
    records = JsonlRecords(file, cache_above=1)
    assert records[0].id == "0"  # the file is open before the fork
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(_ids, [records, records]) == [[str(i) for i in range(50)]] * 2


def test_a_pickle_of_a_cached_set_is_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITP_CACHE", str(tmp_path / "cache"))
    file = write_lines(tmp_path / "r.jsonl", [ROW] * 1000)
    assert len(pickle.dumps(JsonlRecords(file, cache_above=1))) < 2000
    assert pickle.loads(pickle.dumps(JsonlRecords(file)))[999].id == "a"


def test_list_records_hash_their_content() -> None:
    one, two = read(ROW), read({**ROW, "id": "b"})
    assert ListRecords([one], "n").fingerprint() != ListRecords([two], "n").fingerprint()
    assert ListRecords([one], "n").fingerprint() == ListRecords([one], "m").fingerprint()


# Mixture files


def mixture_file(folder: Path, **fields: Any) -> Path:
    write_lines(folder / "rows" / "a.jsonl", [ROW, ROW]) if (folder / "rows").is_dir() else None
    file = folder / "mixture.json"
    file.write_text(json.dumps({"ships": {"annotation": "rows/a.jsonl", **fields}}))
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rows").mkdir()
    return tmp_path


def test_mixture_file_of_the_paper(folder: Path) -> None:
    file = mixture_file(
        folder, root="img", data_augment=True, repeat_time=0.5, length=2, max_dynamic_patch=12
    )
    (entry,) = read_mixture(file)
    assert (entry.rate, entry.max_tiles, entry.augment, len(entry.records)) == (0.5, 12, True, 2)
    assert entry.records.name == "ships"
    assert entry.records[0].images == (str(folder / "img" / "a.png"),)
    assert entry.records[0].source == "ships"


def test_mixture_file_defaults(folder: Path) -> None:
    (entry,) = read_mixture(mixture_file(folder))
    assert (entry.rate, entry.max_tiles, entry.augment) == (1.0, None, False)
    assert entry.records[0].images == (str(folder / "rows" / "a.png"),)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"repeat_tme": 2}, 'unknown key "repeat_tme"; did you mean "repeat_time"'),
        ({"length": 5}, "says 5 rows, the file has 2"),
        ({"repeat_time": "2"}, '"repeat_time" is "2"; it must be a number'),
        ({"repeat_time": 0}, "its rate is 0"),
        ({"repeat_time": 0.1}, "takes none of its 2 records; use 0.5 or more"),
        ({"data_augment": 1}, "must be true or false"),
        ({"max_dynamic_patch": True}, "must be a whole number"),
        ({"annotation": "rows/b.jsonl"}, r"b\.jsonl: can't be read"),
        ({"annotation": ""}, 'has no "annotation"'),
    ],
)
def test_mixture_file_mistakes(folder: Path, fields: dict, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_mixture(mixture_file(folder, **fields))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": {"annotation": "x"}, "a": {"annotation": "y"}}', 'the key "a" is given twice'),
        ("[1]", "is not a mixture"),
        ("{}", "has no sets"),
        ('{"a": }', "broken JSON, column 7"),
    ],
)
def test_files_that_are_no_mixture(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(DataError, match=words):
        read_mixture(tmp_path / "m.json")
