"""Self-contained HTML pages: the report of a run, and comparisons of several."""

from vitp.report.attention import AttentionExplorer, BackboneAttention
from vitp.report.charts import Bar, BarChart, LineChart, Series
from vitp.report.compare import comparison_section
from vitp.report.page import Page
from vitp.report.run_report import write_run_report
from vitp.report.samples import Sample, Samples
from vitp.report.sections import (
    Card,
    Code,
    Column,
    Figure,
    Headline,
    ImageGrid,
    KeyValue,
    Measure,
    Section,
    Table,
    Text,
)

__all__ = [
    "AttentionExplorer",
    "BackboneAttention",
    "Bar",
    "BarChart",
    "Card",
    "Code",
    "Column",
    "Figure",
    "Headline",
    "ImageGrid",
    "KeyValue",
    "LineChart",
    "Measure",
    "Page",
    "Sample",
    "Samples",
    "Section",
    "Series",
    "Table",
    "Text",
    "comparison_section",
    "write_run_report",
]
