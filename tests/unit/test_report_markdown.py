"""Pages as Markdown."""

from __future__ import annotations

from vitp.report.charts import Bar, BarChart
from vitp.report.page import Code, Column, HtmlPage, KeyValue, MeanStd, Section, Table, Text


def test_a_page_as_markdown() -> None:
    table = Table(
        ["arm", Column("mIoU", "max", 1), "words"],
        [["a|b", MeanStd(12.34, 0.56, 3), "x\ny"], ["c", None, "z"], ["d", 3.0, ""]],
        note="Percent.",
    )
    chart = BarChart(title="bars", bars=[Bar("a", 1.0)])
    facts = KeyValue({"seed": 3, "sizes": {"width": 64}}, title="All")
    sections = [
        Section("Numbers", [table, chart], "Look."),
        Section("Charts alone", [chart], "Look."),
        Section("How", [Code("vitp demo"), facts]),
    ]
    page = HtmlPage("Title", [*sections, Section("End", [Text("- one\n- two")])], "Sub.", [("k", "v")])
    text = page.markdown()
    assert text == (
        "# Title\n\nSub.\n\nk: v\n\n## Numbers\n\nLook.\n\n"
        "| arm | mIoU | words |\n|---|---:|---|\n"
        "| a\\|b | **12.3 ± 0.6** | x y |\n| c | – | z |\n| d | 3.0 |  |\n\nPercent.\n\n"
        "## How\n\n```\nvitp demo\n```\n\n**All**\n\n- seed: 3\n\nsizes:\n\n```yaml\nwidth: 64\n```\n\n"
        "## End\n\n- one\n- two\n"
    )
