"""The blocks of a page: text, tables, charts and samples."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from PIL import Image

from vitp.core.errors import DataError
from vitp.evaluation.answers import Answered
from vitp.report.answered import AnsweredCards, score_badge
from vitp.report.charts import Bar, BarChart, Chart, Curve, HeatMap, Histogram, LineChart
from vitp.report.page import Column, Figure, HtmlPage, ImageGrid, MeanStd, Section, Table, Text
from vitp.report.places import asked_outlines, grid_answer, outlines_in, text_parts
from vitp.report.run_report import smoothed
from vitp.report.text import format_number, format_tick


def picture(seed: int = 0, size: tuple[int, int] = (60, 40)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def page_of(*blocks) -> str:
    return HtmlPage("Title", [Section("Only", list(blocks))]).html()


def test_emphasis_and_code():
    html = page_of(Text("**a** and *b*, `**c**`, 2 * 3 * 4\n\n- one\n- *two*"))
    assert "<p><strong>a</strong> and <em>b</em>, <code>**c**</code>, 2 * 3 * 4</p>" in html
    assert "<ul><li>one</li><li><em>two</em></li></ul>" in html


def test_table_marks_the_best_of_each_column():
    table = Table(
        ["name", Column("up", "max", 1), Column("down", "min", 2), Column("plain")],
        [
            ["a", MeanStd(50.04, 1.26, 3), 0.5, 1.0],
            ["b", MeanStd(50.01, 0.2, 3), 0.25, 2.0],
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


@pytest.fixture
def image(tmp_path: Path) -> str:
    picture(size=(200, 100)).save(tmp_path / "a.png")
    return str(tmp_path / "a.png")


def test_boxes_are_drawn_where_the_text_says(image: str):
    expected = "<ref>ship</ref><box>[[100, 200, 300, 400]]</box>"
    answer = "<ref>boat</ref><quad>[[0, 0, 500, 0, 500, 1000, 0, 1000]]</quad>"
    more = "<ref>ship</ref>{<400><450><600><550>|<90>}"
    html = page_of(AnsweredCards([Answered(image, "Where?", expected, answer + more, "box", 0.0)]))
    assert 'class="shape expected" points="100,200 300,200 300,400 100,400"' in html
    assert 'class="shape answer" points="0,0 500,0 500,1000 0,1000"' in html
    # GeoChat's angle is one of pixels: 40 × 10 around the centre become 10 × 40.
    assert 'class="shape answer" points="525,300 525,700 475,700 475,300"' in html
    assert "aspect-ratio: 200 / 100" in html
    text = re.sub(r"<[^>]+>", "", html)
    assert "ship · 1 box" in text and "boat · 1 oriented box" in text
    assert html.count('class="tag answer"') == 2


def test_broken_answers_draw_nothing():
    assert outlines_in("<ref>ship</ref><box>[[300, 2, 100]]</box>", (10, 10)) == []
    assert outlines_in("no ships here [[1, 2, 3, 4]]", (10, 10)) == []
    assert asked_outlines("What is in <box>[[900, 0, 100, 50]]</box>?") == []
    (asked,) = asked_outlines("What is in <box>[[10, 20, 30, 40]]</box>?")
    assert asked.corners == (10, 20, 30, 20, 30, 40, 10, 40)


def test_questions_keep_their_words():
    def readable(text: str) -> list[tuple[str, str]]:
        return [(part.kind, part.words or part.text) for part in text_parts(text)]

    assert readable("<image>\nWhat is in <box>[[1, 2, 3, 4]]</box>?") == [
        ("mark", "image"),
        ("text", "\nWhat is in "),
        ("places", "the marked place"),
        ("text", "?"),
    ]
    assert readable("<ref>a b</ref><box>[[1, 2, 3, 4], [5, 6, 7, 8]]</box>") == [
        ("class", "a b"),
        ("places", "2 boxes"),
    ]
    assert readable("<ref>a</ref>{<1><2><3><4>|<5>}{<1><2><3><4>|<6>}")[1] == ("places", "2 oriented boxes")
    assert readable("in <box>[[1, 2, 3, 4], [5, 6, 7, 8]]</box>")[1] == ("places", "the 2 marked places")


def test_grids_are_told_from_other_answers():
    assert grid_answer("water road; storage-tank road") == [["water", "road"], ["storage-tank", "road"]]
    for other in ("2,3; 2,4", "yes", "Two ships; one is large.", "water; road", "", "water road; water"):
        assert grid_answer(other) == []


def test_grid_answers_cross_the_wrong_cells(image: str):
    truth, given_answer = "water road; road water", "water road; water water"
    block = AnsweredCards([Answered(image, "Grid?", truth, given_answer, "grid", 0.75)])
    html = page_of(block)
    assert html.count('class="cell"') == 8
    assert html.count('class="miss"') == 1
    assert 'x="0.0" y="500.0" width="500.0" height="500.0"' in html
    assert "3 of 4 cells right" in html
    (card,) = block.cards
    assert [name for name, _ in card["legend"]] == ["water", "road"]
    few = AnsweredCards([Answered(image, "Grid?", truth, "road road; road road; road road", "grid", 0.5)])
    assert few.cards[0]["answer"] == "2 of 4 cells right"


def test_pictures_are_stored_once(tmp_path):
    picture(size=(300, 200)).save(tmp_path / "a.png")
    answered = [Answered("a.png", f"question {i}", "yes", "no", "presence", 0.0) for i in range(5)]
    html = page_of(AnsweredCards(answered, base=tmp_path))
    assert html.count("data:image/jpeg") == 1
    assert html.count("<use ") == 5


def test_unreadable_picture_is_shown_as_such(tmp_path):
    html = page_of(AnsweredCards([Answered(str(tmp_path / "gone.png"), "q", "yes", "no")]))
    assert "gone.png" in html
    with pytest.raises(DataError):
        page_of(ImageGrid([Figure(np.zeros((2, 2), np.float32))]))


def test_badges():
    assert score_badge(None) is None
    assert score_badge(1.0) == ("good", "✓ right")
    assert score_badge(0.0) == ("bad", "✗ wrong")
    assert score_badge(0.4) == ("part", "40 %")


ODD = float("nan")
CHARTS: list[Chart] = [
    *(
        LineChart(title="t", lines=lines, from_zero=zero)
        for zero in (False, True)
        for lines in (
            [],
            [Curve("a", [], [])],
            [Curve("a", [3], [0.0])],
            [Curve("_a $x$ \udce4", [0, 1, 2], [ODD, 1e-9, ODD], error=[1, 0, 1], raw=[1, 2, 3])],
        )
    ),
    BarChart(title="t", bars=[Bar("a", ODD), Bar("b", 0.0), Bar("c", -2.0, 0.5, [-2.5])]),
    BarChart(title="t", bars=[Bar("漢字 \udce4 $a_b$" * 9, 1.0)], x_label="\udce4"),
    HeatMap(title="t", rows=["a"], columns=["\udce4"], values=[[ODD]], reference=ODD),
    Histogram(title="t", values=[0], unit="\udce4"),
    Histogram(title="t", values=[0.5, 1e9], unit="px"),
]


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: type(chart).__name__)
def test_charts_survive_odd_data(chart: Chart, tmp_path):
    html = page_of(chart)
    assert not re.search(r"\bnan\b|\binf\b", html.split("<main>")[1], re.IGNORECASE)
    assert chart.svg == chart.svg
    chart.write_png(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").size[0] == (1791 if chart.wide else 1000)


def test_long_names_and_titles_are_broken_not_cut(tmp_path: Path):
    name, title = "ViTP, all instructions (ceiling)", " ".join(["words"] * 30)
    chart = BarChart(title=title, bars=[Bar(name, 1.0), Bar("x" * 99, 2.0)])
    drawn = re.sub(r"<[^>]*>|\s", " ", str(chart.svg))
    assert "ViTP, all instructions" in drawn and "(ceiling)" in drawn and "…" in drawn
    short = replace(chart, title="words")
    for one, path in ((chart, tmp_path / "a.png"), (short, tmp_path / "b.png")):
        one.write_png(path)
    tall, low = (Image.open(tmp_path / f"{path}.png").size[1] for path in "ab")
    assert tall - low == pytest.approx(2 * 0.2 * 150, abs=2)  # three lines of 66 letters instead of one


def test_charts_follow_the_theme_and_the_font_of_the_page():
    lines = [Curve("a", [0, 1], [1, 2]), Curve("b", [0, 1], [2, 1], runs=[(0, 2.0)])]
    chart = LineChart(title="t", lines=lines)
    assert chart.legend == [("a", "var(--c0)"), ("b", "var(--c1)")]
    assert chart.svg.startswith('<svg viewBox="0 0 480 270"')
    for variable in ("--c0", "--c1", "--edge", "--faint"):
        assert f"var({variable})" in chart.svg
    assert "DejaVu" not in chart.svg and "<metadata" not in chart.svg and ' id="axes' not in chart.svg


def test_charts_do_not_depend_on_the_settings_of_the_user():
    import matplotlib as mpl

    chart = BarChart(title="t", bars=[Bar("a", 1.0)])
    with mpl.rc_context(
        {"font.size": 31, "axes.facecolor": "red", "svg.hashsalt": "x", "svg.fonttype": "path"}
    ):
        other = chart.svg
    assert other == chart.svg


def drawn(chart: Chart) -> Axes:
    with chart._figure() as figure:
        return figure.axes[0]


def test_line_charts_draw_error_bars_within_the_axes() -> None:
    axes = drawn(LineChart(title="c", lines=[Curve("a", [0, 1], [1.0, 2.0], error=[0.5, 4.0])]))
    low, high = axes.get_ylim()
    assert low < 2 - 4 and high > 2 + 4
    (bars,) = (one for one in axes.collections)
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [[0.5, 1.5], [-2.0, 6.0]]
    assert not drawn(LineChart(title="c", lines=[Curve("a", [0, 1], [1.0, 2.0])])).collections


def test_axes_end_where_they_are_told_to() -> None:
    lines = [Curve("a", [0, 1, 2], [3.0, 4.0, 5.0], runs=[(0, 2.5), (0, 3.5)])]
    assert drawn(LineChart(title="c", lines=lines, from_zero=True, highest=9.0)).get_ylim() == (0.0, 9.0)
    low, high = drawn(LineChart(title="c", lines=lines)).get_ylim()
    assert 2.3 < low < 2.5 and 5.0 < high < 5.2
    below = [Curve("a", [0, 1], [-3.0, 4.0])]
    assert drawn(LineChart(title="c", lines=below, from_zero=True)).get_ylim()[0] == -3.0


def test_tables_of_curves_hold_their_values_and_their_runs() -> None:
    lines = [
        Curve("a", [0, 1], [2.0, 5.0], runs=[(0, 1.0), (0, 3.0), (1, 5.0)]),
        Curve("b", [1, 2], [7.0, 8.0]),
    ]
    assert LineChart(title="c", lines=lines, x_label="layer").table == [
        ("layer", "a", "b"),
        ("0", "2 (1, 3)", ""),
        ("1", "5 (5)", "7"),
        ("2", "", "8"),
    ]


def test_bars_stand_where_their_values_are() -> None:
    chart = BarChart(title="t", bars=[Bar("a", 2.0, 0.5, [1.5, 2.5], 1), Bar("b", -1.0)], digits=1, unit=" %")
    axes = drawn(chart)
    assert [bar.get_width() for bar in axes.patches] == [2.0, -1.0]
    assert axes.get_xlim()[0] <= -1.0 and axes.get_xlim()[1] >= 2.5
    assert [text.get_text() for text in axes.texts] == ["2.0 ± 0.5 %", "−1.0 %"]
    assert "<title>a: 2.0 ± 0.5 % (1.5, 2.5)</title>" in chart.svg


def test_lone_chart_takes_the_whole_row():
    def chart(wide: bool = False) -> BarChart:
        return BarChart(title="t", bars=[Bar("a", 1.0)], wide=wide)

    section = Section(
        "s", [chart(), chart(), chart(), Text("x"), chart(), chart(wide=True), chart(), chart()]
    )
    wide = [getattr(block, "wide", None) for block in section.laid_out]
    assert wide == [False, False, True, None, True, True, False, False]


def test_long_curves_are_thinned_but_keep_their_ends():
    rng = np.random.default_rng(0)
    chart = LineChart(title="t", lines=[Curve("a", range(5000), rng.random(5000).tolist())])
    (line, _) = drawn(chart).lines
    x = np.asarray(line.get_xdata(), float)
    assert len(x) == 600 and (x[0], x[-1]) == (0, 4999)
    assert len(chart.table) == 25 and (chart.table[1][0], chart.table[-1][0]) == ("0", "4,999")


def test_smoothing_is_a_symmetric_mean():
    assert smoothed([2.0] * 7, 0.9) == pytest.approx([2.0] * 7)
    values = [0.0, 0.0, 1.0, 0.0, 0.0]
    half = smoothed(values, 0.5)
    assert half == pytest.approx(half[::-1])
    assert half[2] == pytest.approx(1 / (1 + 2 * (0.5 + 0.25)))


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=60), st.floats(0.1, 0.95))
def test_smoothing_is_the_weighted_mean(values, weight):
    places = np.arange(len(values))
    weights = weight ** np.abs(places[:, None] - places)
    wanted = (weights * values).sum(1) / weights.sum(1)
    assert smoothed(values, weight) == pytest.approx(wanted.tolist(), abs=1e-6)


def test_numbers_read_well():
    assert [format_number(v) for v in (0, 12, 1234567, 0.12345, 2e-5, -3.5)] == [
        "0",
        "12",
        "1,234,567",
        "0.1235",
        "2e-5",
        "−3.5",
    ]
    assert (format_number(1234.567, 1), format_number(-0.0001, 2), format_number(float("inf"))) == (
        "1,234.6",
        "0.00",
        "–",
    )
    assert [format_tick(v) for v in (0, 0.25, 15000, 2.5e6, 2e-5)] == ["0", "0.25", "15k", "2.5M", "2e-5"]
    assert [format_number(v, 1, signed=True) for v in (2.0, 0.0, -2.0)] == ["+2.0", "0.0", "−2.0"]
    assert [format_number(v, 1, signed=True) for v in (0.04, -0.04, -0.0, 1000.0)] == [
        "0.0",
        "0.0",
        "0.0",
        "+1,000.0",
    ]
    assert format_number(-0.0) == "0"


def test_pages_with_equal_titles_have_distinct_anchors():
    html = HtmlPage("t", [Section("Results", []), Section("Results", [])]).html()
    assert 'id="results"' in html
    assert 'id="results-2"' in html
