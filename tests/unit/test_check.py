"""`check_records` finds what is planted, says where, and finds nothing in clean data."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tests.conftest import tiny_chat
from tests.unit.test_chat import foreign_tokenizer
from vitp.core.errors import DataError
from vitp.data.chat import TEMPLATES, ChatTokenizer
from vitp.data.check import check_records
from vitp.data.compile import compile_labels
from vitp.data.image_hash import alike_pairs, image_print
from vitp.data.row_checks import CONTROL_TOKENS, coordinate_problems, look_over, mixture_warnings
from vitp.objectives.settings import DataSettings
from vitp.objectives.vitp import open_mixture
from vitp.records.instructions import InstructionRecord, Region, Turn


def picture(seed: int, size: int = 96) -> Image.Image:
    """A random landscape of low frequencies: unlike any other seed's."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)


def row(name: str, image: str | list[str] | None, answer: str = "A ship.", **more: Any) -> dict[str, Any]:
    count = 0 if image is None else len(image) if isinstance(image, list) else 1
    question = "<image>\n" * count + "What is it?"
    talk = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": name, **({"image": image} if image else {}), "conversations": talk, **more}


def write(path: Path, rows: list[Any]) -> Path:
    lines = (r if isinstance(r, str) else json.dumps(r) for r in rows)
    path.write_text("".join(line + "\n" for line in lines))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed in range(4):
        picture(seed).save(tmp_path / f"{seed}.png")
    return tmp_path


def test_clean_data_has_no_findings(folder: Path) -> None:
    rows = [row(str(i), f"{i}.png", width=96, height=96) for i in range(4)]
    report = check_records(write(folder / "a.jsonl", rows))
    assert report.findings == [] and report.exit_code == 0
    (source,) = report.sources
    assert (source.rows, source.usable, source.images) == (4, 4, 4)


def test_everything_that_is_planted_is_found_and_the_rest_is_read(folder: Path) -> None:
    (folder / "half.png").write_bytes((folder / "0.png").read_bytes()[:-400])
    (folder / "text.png").write_text("no picture")
    rows = [
        row("good", "0.png"),
        '{"id": "broken", "image": }',
        row("missing", "gone.png"),
        row("truncated", "half.png"),
        row("text", "text.png"),
        row("marks", ["1.png", "2.png"]) | {"image": "1.png"},
        row("empty", "1.png", "  "),
        row("pixels", "1.png", "<ref>a</ref><box>[[5, 5, 1200, 80]]</box>"),
        row("flat", "1.png", "<ref>a</ref><box>[[5, 5, 5, 80]]</box>"),
        row("good", "2.png"),
        row("size", "3.png", width=100, height=96),
        row("also missing", "gone.png"),
    ]
    report = check_records(write(folder / "a.jsonl", rows))
    found = [(f.severity, f.kind, f.line, f.id) for f in report.findings]
    assert found == [
        ("error", "row", 2, ""),
        ("error", "image", 3, "missing"),
        ("error", "image", 4, "truncated"),
        ("error", "image", 5, "text"),
        ("error", "row", 6, "marks"),
        ("error", "row", 7, "empty"),
        ("error", "coordinates", 8, "pixels"),
        ("warning", "coordinates", 9, "flat"),
        ("warning", "duplicate id", 10, "good"),
        ("warning", "size", 11, "size"),
    ]
    what = [f.what for f in report.findings]
    assert what[0] == "broken JSON, column 27: Expecting value"
    assert "gone.png" in what[1] and "(and in 1 other row)" in what[1]
    assert "damaged" in what[2] and "2 <image> marks but 1 images" in what[4]
    assert what[8] == "line 1 has the same id"
    assert what[9] == "the row says 100×96, the image is 96×96"
    assert all(f.fix and f.file.endswith("a.jsonl") for f in report.findings)
    assert report.exit_code == 1
    assert (report.sources[0].rows, report.sources[0].usable) == (12, 4)
    assert report.counts() == {"error": 7, "warning": 3, "info": 0}


def test_long_rows(folder: Path) -> None:
    file = write(folder / "a.jsonl", [row("a", "0.png"), row("b", "1.png", "word " * 50)])

    def words(record: InstructionRecord, max_tiles: int | None) -> int:
        assert max_tiles is None
        return sum(len(turn.answer.split()) for turn in record.turns)

    (finding,) = check_records(file, max_tokens=40, length_of=words).findings
    assert (finding.kind, finding.line, finding.what) == ("length", 2, "50 tokens, 40 fit")
    with pytest.raises(ValueError, match="go together"):
        check_records(file, max_tokens=40)


# Coordinates


def of_answer(answer: str, question: str = "q", regions: tuple[Region, ...] = ()) -> list[tuple[str, str]]:
    return list(coordinate_problems(InstructionRecord("i", (), (Turn(question, answer),), regions=regions)))


@pytest.mark.parametrize(
    ("answer", "severity", "words"),
    [
        ("<box>[[0, 0, 1001, 5]]</box>", "error", "the box [0, 0, 1001, 5] in answer 1 leaves 0..1000"),
        ("<box>[[-3, 0, 9, 5]]</box>", "error", "leaves 0..1000"),
        ("<box>[[0, 0, 9]]</box>", "error", "has 3 numbers, not 4"),
        ("<box>[[0.5, 0, 9, 9]]</box>", "error", "has fractions"),
        ("<box>nowhere</box>", "error", "holds no list of numbers"),
        ("<box>[[a, b, c, d]]</box>", "error", "is not made of numbers"),
        ("<box>[[9, 9, 3, 12]]</box>", "warning", "has no area"),
        ("<quad>[[0, 0, 5, 5, 9, 9, 4, 4]]</quad>", "warning", "the quad"),
        ("<box>[[0,0,1,1], [0,0,2000,1], [0,0,1,3000]]", "error", "(and 1 more in the row)"),
    ],
)
def test_wrong_coordinates(answer: str, severity: str, words: str) -> None:
    ((kind, text),) = of_answer(answer)
    assert kind == severity and words in text


def test_right_coordinates() -> None:
    answer = "<ref>a</ref><box>[[0, 0, 1000, 1000], [1,2,3,4]]</box><quad>[[0, 0, 9, 0, 9, 9, 0, 9]]</quad>"
    assert of_answer(answer, "Answer as <box>[[x1, y1, x2, y2]]</box>.") == []


def test_regions_are_judged_too() -> None:
    regions = (Region("a", (0, 0, 5, 5), (0, 0, 5, 0, 5, 1001, 0, 5)), Region("b", (4, 4, 4, 9)))
    problems = of_answer("yes", regions=regions)
    assert [kind for kind, _ in problems] == ["error", "warning"]
    assert "region 1" in problems[0][1] and "region 2" in problems[1][1]


# Leaks


def compiled(folder: Path, **splits: list[Any]) -> Path:
    out = folder / "out"
    out.mkdir()
    for split, rows in splits.items():
        write(out / f"{split}.jsonl", rows)
    table = {"set": {"root": "..", "annotation": "train.jsonl", "length": len(splits["train"])}}
    (out / "mixture.json").write_text(json.dumps(table))
    return out


def test_leaks_between_the_splits_of_a_compiled_folder(folder: Path) -> None:
    picture(1).resize((60, 60)).save(folder / "smaller.jpg", quality=70)
    picture(2).save(folder / "copy.png")
    train = [row(f"t{i}", f"{i}.png") for i in range(4)]
    test = [row("x", "smaller.jpg"), row("y", "copy.png"), row("z", "3.png")]
    report = check_records(compiled(folder, train=train, val=[], test=test))
    leaks = report.of_kind("leak")
    assert [(f.severity, f.id) for f in leaks] == [("warning", "t1"), ("error", "t2"), ("error", "t3")]
    assert "nearly the same as a picture of test" in leaks[0].what and "smaller.jpg" in leaks[0].what
    assert "test.jsonl:2" in leaks[1].what
    assert report.exit_code == 1
    assert [(s.name, s.rows, s.usable) for s in report.sources] == [
        ("train", 4, 2),
        ("val", 0, 0),
        ("test", 3, 3),
    ]


def test_held_out_data_elsewhere(folder: Path) -> None:
    picture(7).save(folder / "other.png")
    mine = write(folder / "a.jsonl", [row("a", "0.png"), row("b", "1.png")])
    clean = write(folder / "b.jsonl", [row("c", "other.png"), row("d", "gone.png")])
    leaky = write(folder / "c.jsonl", [row("c", "other.png"), row("d", "1.png")])
    assert check_records(mine, against=clean).findings == []
    (leak,) = check_records(mine, against=leaky).findings
    assert (leak.id, leak.severity) == ("b", "error") and "held-out data" in leak.what


def test_repeats_in_one_split_are_information(folder: Path) -> None:
    picture(0).save(folder / "again.png")
    file = write(folder / "a.jsonl", [row("a", "0.png"), row("b", "again.png"), row("c", "0.png")])
    (finding,) = check_records(file).findings
    assert (finding.severity, finding.line) == ("info", 0)
    assert finding.what.startswith("1 image nearly repeats another one")


def test_generated_scenes_leak_by_address(tmp_path: Path) -> None:
    from vitp.scenes import scene_set

    names = [item.image for item in scene_set("general", count=3, seed=0, size=48).items]
    out = compiled(tmp_path, train=[row("a", names[0]), row("b", names[1])], test=[row("c", names[1])])
    (leak,) = check_records(out).findings
    assert (leak.severity, leak.id) == ("error", "b")


def test_pictures_are_recognised_after_changes_and_not_confused() -> None:
    originals = [image_print(picture(seed, 120)) for seed in range(150)]
    changed = [
        image_print(picture(seed, 120).resize((80, 70)).point(lambda v: int(v * 0.8 + 10)))
        for seed in range(150)
    ]
    assert set(alike_pairs(originals, changed, 4)) == {(i, i) for i in range(150)}
    assert {(i, j) for i, j in alike_pairs(originals, originals, 4) if i != j} == set()


def test_flat_pictures_count_only_when_equal() -> None:
    prints = [image_print(Image.new("RGB", (32, 32), (level,) * 3)) for level in (0, 0, 1)]
    assert set(alike_pairs(prints[:1], prints, 4)) == {(0, 0), (0, 1)}


# Texts, and what is neglected


def test_names_of_control_tokens_are_told_by_row(folder: Path) -> None:
    rows = [
        row("good", "0.png", "a <ship> & <box>[[1, 2, 3, 4]]</box>"),
        row("stop", "1.png", "yes<end> and <user> hi"),
        row("two", "2.png", "no<|im_end|>", conversations=None),
        row("feed", "3.png", "page\fend\x1b"),
    ]
    rows[2]["conversations"] = [
        {"from": "human", "value": "<image>\na <|im_start|>?"},
        {"from": "gpt", "value": "no<|im_end|>"},
    ]
    report = check_records(write(folder / "a.jsonl", rows))
    assert report.exit_code == 0
    assert [(f.severity, f.kind, f.line, f.what) for f in report.findings] == [
        ("warning", "control token", 2, "answer 1 holds the text of a control token, <user>, <end>"),
        (
            "warning",
            "control token",
            3,
            "question 1 holds the text of a control token, <|im_start|> (and 1 more of the row's texts)",
        ),
        ("warning", "control character", 4, "answer 1 holds control characters, U+000C, U+001B"),
    ]
    own = check_records(folder / "a.jsonl", control=("<ship>",))
    assert [f.what for f in own.of_kind("control token")] == [
        "answer 1 holds the text of a control token, <ship>"
    ]


def test_control_tokens_of_all_templates_are_known_without_a_tokenizer() -> None:
    chats = [
        tiny_chat(),
        *(
            ChatTokenizer(foreign_tokenizer(), template=t, tokens_per_tile=1)
            for t in TEMPLATES
            if t != "micro"
        ),
    ]
    names = {name for chat in chats for name in chat.plain.names}
    assert set(CONTROL_TOKENS) == names - {"</s>", "<|fim_prefix|>"}


def test_texts_that_nothing_can_write_are_errors_of_their_row(folder: Path) -> None:
    rows = [
        row("good", "0.png"),
        row("answer", "1.png", "x \udc00"),
        row("id \ud83d", "2.png"),
        row("nul", "3.png", "a\0b"),
        row("name", "\ud8ff.png"),
    ]
    report = check_records(write(folder / "a.jsonl", rows))
    assert [(f.kind, f.line, f.id) for f in report.findings] == [
        ("row", 2, "answer"),
        ("row", 3, "id \\ud83d"),
        ("row", 4, "nul"),
        ("row", 5, "name"),
    ]
    assert [f.what for f in report.findings] == [
        "answer 1 holds half a character (the lone surrogate U+DC00)",
        "its id holds half a character (the lone surrogate U+D83D)",
        "answer 1 holds a NUL character",
        "an image's address holds half a character (the lone surrogate U+D8FF)",
    ]
    json.dumps(report.to_json(), ensure_ascii=False).encode()
    assert report.exit_code == 1


def test_rows_without_image_are_counted_and_nothing_but_them_is_an_error(folder: Path) -> None:
    blind = [row(f"blind{i}", None) for i in range(3)]
    write(folder / "a.jsonl", [row("a", "0.png"), *blind])
    report = check_records(folder / "a.jsonl")
    assert [(f.severity, f.kind, f.line) for f in report.findings] == [("warning", "no image", 0)]
    assert report.findings[0].what == "3 of 4 rows have no image: the ViT learns nothing of them"
    assert report.exit_code == 0
    write(folder / "b.jsonl", blind)
    alone = check_records(folder / "b.jsonl")
    assert [(f.severity, f.what) for f in alone.findings] == [
        ("error", "no row has an image: there is nothing for the ViT to learn")
    ]
    (folder / "m.json").write_text(json.dumps({n: {"annotation": f"{n}.jsonl"} for n in "ab"}))
    both = check_records(folder / "m.json")
    assert [f.what.split(" rows")[0] for f in both.of_kind("no image")] == ["3 of 4", "3 of 3"]
    assert both.exit_code == 0


def test_system_texts_that_are_dropped_are_counted(folder: Path) -> None:
    rows = [
        row("a", "0.png", system="Be brief."),
        row("b", "1.png", system=""),
        row("c", "2.png", system_prompt="X"),
    ]
    report = check_records(write(folder / "a.jsonl", rows))
    assert [(f.severity, f.kind, f.what) for f in report.findings] == [
        ("warning", "system text", "2 of 3 rows have a system text, which is dropped")
    ]


def test_a_run_warns_of_what_it_does_not_learn(folder: Path) -> None:
    rows = [row("a", "0.png", system="Be brief."), row("b", None)]
    write(folder / "a.jsonl", rows)
    mixture = open_mixture(DataSettings(mixture=[str(folder / "a.jsonl")]), 0)
    lines = mixture_warnings(mixture)
    assert [line.split(";")[0] for line in lines] == [
        "a: 1 of 2 rows has no image: the ViT learns nothing of them",
        "a: 1 of 2 rows has a system text, which is dropped",
    ]
    write(folder / "b.jsonl", rows[1:])
    with pytest.raises(DataError, match="b: no row has an image"):
        mixture_warnings(open_mixture(DataSettings(mixture=[str(folder / "b.jsonl")]), 0))
    write(folder / "c.jsonl", [*rows[1:] * 30, rows[0]])
    (records,) = (
        entry.records for entry in open_mixture(DataSettings(mixture=[str(folder / "c.jsonl")]), 0).entries
    )
    assert look_over(records, most=2).lines()[0][1].startswith("1 of 2 rows that were looked at has")
    write(folder / "d.jsonl", [rows[1], rows[0], rows[1]])
    (records,) = (
        entry.records for entry in open_mixture(DataSettings(mixture=[str(folder / "d.jsonl")]), 0).entries
    )
    assert not look_over(records, most=2).has_no_image, "a sample without images is no proof"


# What is named


def test_mixture_with_a_broken_set_goes_on(folder: Path) -> None:
    write(folder / "a.jsonl", [row("a", "0.png")])
    table = {
        "a": {"annotation": "a.jsonl"},
        "b": {"annotation": "b.jsonl"},
        "c": {"annotation": "a.jsonl", "length": 3},
    }
    (folder / "mix.json").write_text(json.dumps(table))
    report = check_records(folder / "mix.json")
    assert [f.kind for f in report.findings] == ["file", "file"]
    assert "says 3 rows, the file has 1" in report.findings[1].what
    assert [s.name for s in report.sources] == ["a"]


def test_a_folder_or_file_that_is_nothing(tmp_path: Path) -> None:
    assert "holds no train.jsonl" in check_records(tmp_path).findings[0].what
    assert check_records(tmp_path / "gone.jsonl").exit_code == 1
    empty = write(tmp_path / "empty.jsonl", [])
    assert check_records(empty).findings[0].what == "holds no rows"


def test_report_as_json_and_as_tables(folder: Path) -> None:
    rows = [row("[bold]odd", "gone.png"), *(row(str(i), "0.png", " ") for i in range(5))]
    report = check_records(write(folder / "a.jsonl", rows))
    value = json.loads(json.dumps(report.to_json()))
    assert value["exit_code"] == 1 and value["counts"]["error"] == 6
    assert value["kinds"] == {"row": 5, "image": 1}
    assert value["findings"][0]["line"] == 1
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    console.print(report.render(most=2))
    text = console.export_text()
    assert "[bold]odd" in text and "… and 3 more of this kind: row" in text
    assert "Some rows can't be used. 6 errors." in text


DATA = Path(os.environ.get("VITP_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.mark.realdata
def test_splits_of_blood_cells_do_not_leak_and_video_frames_do() -> None:
    if not (DATA / "bccd").is_dir() or not (DATA / "kit_ais_cars").is_dir():
        pytest.skip(f"needs bccd and kit_ais_cars in {DATA}; name the folder with VITP_DATA")

    def prints(files: list[Path]) -> list[Any]:
        return [image_print(Image.open(file).convert("RGB")) for file in files]

    cells = prints(sorted((DATA / "bccd" / "JPEGImages").glob("*.jpg"))[:80])
    assert list(alike_pairs(cells[:40], cells[40:], 4)) == []
    frames = prints(sorted((DATA / "kit_ais_cars").glob("MunichStreet02*.png")))
    assert len(list(alike_pairs(frames[::2], frames[1::2], 4))) >= 3


def test_what_a_compilation_left_out_is_told_again(folder: Path) -> None:
    for seed in range(4):
        label = "0 .5 .5 .2 .2" if seed else "0 .5 nan .2 .2"
        (folder / f"{seed}.txt").write_text(label)
    (folder / "classes.txt").write_text("ship\n")
    summary = compile_labels(folder, "yolo", folder / "out", val=0.0, test=0.0)
    assert len(summary.findings) == 2
    for source in (folder / "out", folder / "out" / "mixture.json"):
        report = check_records(source)
        assert [(f.severity, f.kind, f"{f.where}: {f.what}") for f in report.findings] == [
            ("warning", "labels", line) for line in summary.findings
        ]
        assert report.exit_code == 0
    (folder / "out" / "labels" / "set.json").write_text("[")
    (finding,) = check_records(folder / "out").findings
    assert (finding.severity, finding.kind) == ("error", "file") and "can't be read" in finding.what
