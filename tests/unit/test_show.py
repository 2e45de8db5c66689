"""The page of `show_records`: what it holds, that it needs nothing else, and that it escapes what it is given."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import tiny_chat
from vitp.core.errors import DataError
from vitp.data.lengths import RecordLength
from vitp.records.instructions import InstructionRecord, Region, Turn
from vitp.records.labels import LabelledImage
from vitp.report.charts import Histogram
from vitp.report.places import Colours
from vitp.report.records_page import answer_kind, counted_bars, record_card, show_records


def write_rows(folder: Path, rows: list[dict[str, Any]], name: str = "ships.jsonl") -> Path:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


def row(name: str, answer: str, image: str = "a.png", **more: Any) -> dict[str, Any]:
    talk = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": answer}]
    return {"id": name, "image": image, "conversations": talk, **more}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (600, 300), (10, 200, 30)).save(tmp_path / "a.png")
    return tmp_path


def test_page_is_self_contained_and_escaped(folder: Path) -> None:
    rows = [
        row("<script>bad()</script>", "<ref>ship</ref><box>[[100, 200, 300, 400]]</box>"),
        row("b", "Sea & sky."),
    ]
    out = folder / "page.html"
    summary = show_records(
        write_rows(folder, rows), out, measure=lambda record, most: (164, 2), measured="as <it> reads"
    )
    assert (summary.shown, summary.counted, summary.unreadable) == (2, 2, ())
    page = out.read_text()
    assert "<script>bad()" not in page and "&lt;script&gt;bad()" in page
    assert "Sea &amp; sky." in page
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)|url\((?!#)|@import|https?://""", page)
    assert 'points="100,200 300,200 300,400 100,400"' in page
    assert "<dt>records</dt><dd>2</dd>" in page and "Tiles in a record" in page
    assert "median 164 · as &lt;it&gt; reads" in page and "164 tokens, 2 tiles" in page
    (data, _) = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (480, 240)


def test_the_same_seed_gives_the_same_page(folder: Path) -> None:
    file = write_rows(folder, [row(str(i), f"answer {i}") for i in range(40)])
    pages = []
    for seed in (0, 0, 1):
        show_records(file, folder / "p.html", count=5, seed=seed)
        pages.append((folder / "p.html").read_text())
    assert pages[0] == pages[1] != pages[2]
    assert pages[0].count('<article class="record"') == 5


def test_broken_records_are_skipped_and_named(folder: Path) -> None:
    file = write_rows(folder, [row("good", "yes"), row("gone", "no", image="gone.png")])
    summary = show_records(file, folder / "p.html")
    assert summary.shown == 1
    assert "gone.png" in summary.unreadable[0] and "gone.png" in (folder / "p.html").read_text()
    with pytest.raises(DataError, match="no record can be shown"):
        show_records(write_rows(folder, [row("gone", "no", image="gone.png")]), folder / "p.html")
    with pytest.raises(DataError, match="can't be read"):
        show_records(folder / "none.jsonl", folder / "p.html")


def test_sets_of_a_mixture_take_turns(folder: Path) -> None:
    write_rows(folder, [row(f"a{i}", "x") for i in range(30)], "a.jsonl")
    write_rows(folder, [row(f"b{i}", "x") for i in range(3)], "b.jsonl")
    (folder / "m.json").write_text(json.dumps({n: {"annotation": f"{n}.jsonl"} for n in "ab"}))
    show_records(folder / "m.json", folder / "p.html", count=6)
    ids = re.findall(r"<footer><b>(\w)\d+</b>", (folder / "p.html").read_text())
    assert sorted(ids) == ["a", "a", "a", "b", "b", "b"]


def test_tokens_and_tiles_are_those_of_the_set(folder: Path) -> None:
    """A 600×300 image takes two tiles and a thumbnail where nothing is said, and one where its mixture says so."""
    write_rows(folder, [row("a", "x"), row("b", "x", width=600, height=300)], "train.jsonl")
    length = RecordLength(tiny_chat(), 32, 6)
    seen: list[tuple[int, int]] = []

    def measure(record: InstructionRecord, most: int | None) -> tuple[int, int]:
        seen.append(length.both(record, most))
        return seen[-1]

    tiles = {}
    for most in (None, 1, 2):
        fields = {"annotation": "train.jsonl"} | ({} if most is None else {"max_dynamic_patch": most})
        (folder / "mixture.json").write_text(json.dumps({"ships": fields}))
        for source in (folder, folder / "mixture.json"):
            seen.clear()
            show_records(source, folder / "p.html", measure=measure)
            assert len(set(seen)) == 1
            tiles[most, source.name == "mixture.json"] = seen[0][1]
            assert f"{seen[0][0]} tokens" in (folder / "p.html").read_text()
    assert tiles == {
        (None, False): 3,
        (None, True): 3,
        (1, False): 1,
        (1, True): 1,
        (2, False): 3,
        (2, True): 3,
    }


def test_card_has_regions_masks_and_a_legend(folder: Path) -> None:
    mask = np.zeros((300, 600), np.uint8)
    mask[:, 300:] = 1
    record = InstructionRecord(
        "i",
        (str(folder / "a.png"),),
        (Turn("<image>\nGrid?", "sea sea storage-tank; sea sea sea; sea sea sea"), Turn("Where?", "none")),
        regions=(Region("ship", (0, 0, 10, 10), (5, 0, 10, 5, 5, 10, 0, 5)),),
    )
    labels = LabelledImage("i", record.images[0], 600, 300, semantic=lambda: mask)
    colours = Colours()
    card = record_card(record, colours, labels=labels, classes=("background", "sea"))
    (picture,) = card.pictures
    assert [(s.label, s.points, s.turn) for s in picture.outlines] == [("ship", "5,0 10,5 5,10 0,5", 0)]
    assert card.legend == ["ship", "background", "sea", "storage tank"]
    assert len({colours(name) for name in card.legend}) == 4 and colours("background") == "#98a2b0"
    drawn = Image.open(io.BytesIO(base64.b64decode(picture.mask.split(",")[1]))).convert("RGBA")
    assert drawn.size == (480, 240)
    right, expected = drawn.getpixel((400, 100)), tuple(bytes.fromhex(colours("sea")[1:]))
    assert isinstance(right, tuple) and np.abs(np.subtract(right[:3], expected)).max() <= 4
    (grid,) = card.turns[0][1]
    assert grid.kind == "grid" and list(grid.rows[0]) == ["sea", "sea", "storage-tank"]


def test_turned_boxes_are_drawn_in_pixels(folder: Path) -> None:
    answer = "<ref>ship</ref>{<400><450><600><550>|<90>}"
    record = InstructionRecord("i", (str(folder / "a.png"),), (Turn("<image>\nWhere?", answer),))
    (shape,) = record_card(record, Colours()).pictures[0].outlines
    # 120 × 30 pixels around the centre become 30 × 120: 0.475..0.525 of 600, 0.3..0.7 of 300.
    assert shape.points == "525,300 525,700 475,700 475,300"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("Yes.", "yes or no"),
        ("no", "yes or no"),
        ("12", "number"),
        ("37 %", "number"),
        ("<ref>a</ref><box>[[1, 2, 3, 4]]</box>", "places"),
        ("a b; c d; e f", "grid or cells"),
        ("storage tank", "word or two"),
        ("A ship lies at the pier of the harbour.", "sentence"),
        ("word " * 30, "long text"),
    ],
)
def test_kinds_of_answers(answer: str, kind: str) -> None:
    assert answer_kind(answer) == kind


def test_histogram_counts_everything_once() -> None:
    values = np.random.default_rng(0).integers(0, 500, 1000).tolist()
    chart = Histogram(title="t", values=values, unit="words")
    assert sum(int(n.replace(",", "")) for n in re.findall(r"words: ([\d,]+)<", chart.svg)) == 1000
    assert len(chart.counted) == 24 and chart.counted[0][0] == min(values)
    assert [count for *_, count in Histogram(title="t", values=[3, 3], unit="tiles").counted] == [2]
    assert Histogram(title="t", values=[3, 3], unit="tiles").svg.count("3 tiles: 2") == 1


def test_bars_are_ordered_and_the_tail_is_added_up() -> None:
    chart = counted_bars("t", [(f"c{i}", i + 1) for i in range(10)], most=3)
    assert [(bar.label, bar.value, bar.text) for bar in chart.bars] == [
        ("c9", 10, "18%"),
        ("c8", 9, "16%"),
        ("c7", 8, "15%"),
        ("others", 28, "51%"),
    ]
    assert chart.note == "55 in all"
    assert counted_bars("t", [("many", 999), ("few", 1)]).bars[1].text == "<1%"
