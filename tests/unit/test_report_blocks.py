"""The blocks of a page: text, tables, charts and samples."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vitp.core.errors import DataError
from vitp.report import (
    Bar,
    BarChart,
    Column,
    Figure,
    ImageGrid,
    LineChart,
    Measure,
    Page,
    Sample,
    Samples,
    Section,
    Series,
    Table,
    Text,
)
from vitp.report.charts import smoothed
from vitp.report.samples import asked_shapes, badge, grid_of, readable, shapes_in
from vitp.report.svg import linear_ticks, log_ticks, number, spread, tick_label


def picture(seed: int = 0, size: tuple[int, int] = (60, 40)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def page_of(*blocks) -> str:
    return Page("Title", [Section("Only", list(blocks))]).html()


def test_emphasis_and_code():
    html = str(Text("**a** and *b*, `**c**`, 2 * 3 * 4").html)
    assert html == "<p><strong>a</strong> and <em>b</em>, <code>**c**</code>, 2 * 3 * 4</p>"


def test_table_marks_the_best_of_each_column():
    table = Table(
        ["name", Column("up", "max", 1), Column("down", "min", 2), Column("plain")],
        [
            ["a", Measure(50.04, 1.26, 3), 0.5, 1.0],
            ["b", Measure(50.01, 0.2, 3), 0.25, 2.0],
            ["c", 40.0, float("nan"), 3.0],
            ["d", None, None, 4.0],
        ],
    )
    texts = [[cell["text"] for cell in row] for row in table.cells]
    assert texts == [
        ["a", "50.0", "0.50", "1"],
        ["b", "50.0", "0.25", "2"],
        ["c", "40.0", "–", "3"],
        ["d", "–", "–", "4"],
    ]
    best = [[cell["best"] for cell in row] for row in table.cells]
    # 50.04 and 50.01 read the same, so neither is the better one.
    assert best == [[False, True, False, False], [False, True, True, False], [False] * 4, [False] * 4]
    level = Table([Column("up", "max", 1)], [[0.04], [0.01], [None]])
    assert not any(cell["best"] for row in level.cells for cell in row)
    assert table.cells[0][1]["spread"] == "1.3"
    with pytest.raises(ValueError, match="1 cells"):
        Table(["a", "b"], [["x"]])


def test_boxes_are_drawn_where_the_text_says():
    expected = "<ref>ship</ref><box>[[100, 200, 300, 400]]</box>"
    answer = "<ref>ship</ref><quad>[[0, 0, 500, 0, 500, 1000, 0, 1000]]</quad>"
    html = page_of(Samples([Sample(picture(size=(200, 100)), "Where?", expected, answer, "box", 0.0)]))
    # 400 units wide, so 200 high; corners clockwise.
    assert 'class="shape expected" points="40.0,40.0 120.0,40.0 120.0,80.0 40.0,80.0"' in html
    assert 'class="shape answered" points="0.0,0.0 200.0,0.0 200.0,200.0 0.0,200.0"' in html
    assert "ship · 1 box" in html
    assert "ship · 1 oriented box" in html


def test_broken_answers_draw_nothing():
    assert shapes_in("<ref>ship</ref><box>[[300, 2, 100]]</box>") == []
    assert shapes_in("no ships here [[1, 2, 3, 4]]") == []
    assert asked_shapes("What is in <box>[[900, 0, 100, 50]]</box>?") == []
    (asked,) = asked_shapes("What is in <box>[[10, 20, 30, 40]]</box>?")
    assert asked.corners == (10, 20, 30, 20, 30, 40, 10, 40)


def test_questions_keep_their_words():
    assert (
        readable("<image>\nWhat is in <box>[[1, 2, 3, 4]]</box>?").striptags()
        == "What is in the marked place?"
    )
    assert readable("<ref>a b</ref><box>[[1, 2, 3, 4], [5, 6, 7, 8]]</box>").striptags() == "a b · 2 boxes"


def test_grids_are_told_from_other_answers():
    assert grid_of("water road; storage-tank road") == [["water", "road"], ["storage-tank", "road"]]
    for other in ("2,3; 2,4", "yes", "Two ships; one is large.", "water; road", "", "water road; water"):
        assert grid_of(other) == []


def test_grid_answers_cross_the_wrong_cells():
    truth, given_answer = "water road; road water", "water road; water water"
    block = Samples([Sample(picture(), "Grid?", truth, given_answer, "grid", 0.75)])
    html = page_of(block)
    assert html.count('class="cell"') == 8
    assert html.count('class="miss"') == 1
    assert "3 of 4 cells right" in html
    assert set(block.colours) == {"water", "road"}


def test_pictures_are_stored_once(tmp_path):
    picture(size=(300, 200)).save(tmp_path / "a.png")
    samples = [Sample("a.png", f"question {i}", "yes", "no", "presence", 0.0) for i in range(5)]
    html = page_of(Samples(samples, base=tmp_path))
    assert html.count("data:image/jpeg") == 1
    assert html.count("<use ") == 5


def test_unreadable_picture_is_shown_as_such(tmp_path):
    html = page_of(Samples([Sample(str(tmp_path / "gone.png"), "q", "yes", "no")]))
    assert "gone.png" in html
    with pytest.raises(DataError):
        page_of(ImageGrid([Figure(np.zeros((2, 2), np.float32))]))


def test_badges():
    assert badge(None) is None
    assert badge(1.0) == {"style": "good", "text": "✓ right"}
    assert badge(0.0) == {"style": "bad", "text": "✗ wrong"}
    assert badge(0.4) == {"style": "part", "text": "40 %"}


def test_charts_survive_odd_data():
    nan = float("nan")
    for series in (
        [],
        [Series("a", [], [])],
        [Series("a", [3], [0.0])],
        [Series("a", [0, 1, 2], [nan, 1e-9, nan])],
    ):
        for log in (False, True):
            assert "NaN" not in page_of(LineChart("t", series, y_log=log))
    assert "nan" not in str(BarChart("t", [Bar("a", nan), Bar("b", 0.0), Bar("c", -2.0, 0.5, [-2.5])]).svg)


def test_lone_chart_takes_the_whole_row():
    def chart(wide: bool = False) -> BarChart:
        return BarChart("t", [Bar("a", 1.0)], wide=wide)

    section = Section("s", [chart(), chart(), chart(), Text("x"), chart()])
    assert [getattr(block, "wide", None) for block in section.laid_out] == [False, False, True, None, True]


def test_long_curves_are_thinned_but_keep_their_ends():
    chart = LineChart("t", [Series("a", range(5000), [float(i) for i in range(5000)])])
    (line,) = chart.data["series"]
    assert len(line["x"]) == 600
    assert (line["x"][0], line["x"][-1]) == (0, 4999)


def test_smoothing_is_a_symmetric_mean():
    assert smoothed([2.0] * 7, 0.9) == pytest.approx([2.0] * 7)
    values = [0.0, 0.0, 1.0, 0.0, 0.0]
    half = smoothed(values, 0.5)
    assert half == pytest.approx(half[::-1])
    assert half[2] == pytest.approx(1 / (1 + 2 * (0.5 + 0.25)))


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 10))
def test_ticks_lie_within_and_are_few(low, width, count):
    high = low + width
    ticks = linear_ticks(low, high, count)
    margin = (high - low) * 1e-6 + 1e-9
    assert all(low - margin <= tick <= high + margin for tick in ticks)
    assert len(ticks) <= count + 2


@given(st.lists(st.floats(0, 100), min_size=1, max_size=6))
def test_labels_are_spread_without_changing_order(positions):
    moved = spread(positions, 10, 0, 100)
    ranked = [moved[i] for i in sorted(range(len(positions)), key=lambda i: positions[i])]
    assert all(b - a >= 10 - 1e-6 for a, b in pairwise(ranked))
    assert max(moved) <= 100 + 1e-6


def test_numbers_read_well():
    assert [number(v) for v in (0, 12, 1234567, 0.12345, 2e-5, -3.5)] == [
        "0",
        "12",
        "1,234,567",
        "0.1235",
        "2e-5",
        "−3.5",
    ]
    assert (number(1234.567, 1), number(-0.0001, 2), number(float("inf"))) == ("1,234.6", "0.00", "–")
    assert [tick_label(v) for v in (0, 0.25, 15000, 2.5e6, 2e-5)] == ["0", "0.25", "15k", "2.5M", "2e-5"]
    assert log_ticks(0.9, 12) == pytest.approx([1, 2, 5, 10])


def test_pages_with_equal_titles_have_distinct_anchors():
    html = Page("t", [Section("Results", []), Section("Results", [])]).html()
    assert 'id="results"' in html
    assert 'id="results-2"' in html
