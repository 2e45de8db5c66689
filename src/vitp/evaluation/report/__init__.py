"""Self-contained HTML pages: the report of a run, and comparisons of several."""

from vitp.evaluation.report.attention import AttentionExplorer, BackboneAttention
from vitp.evaluation.report.charts import Bar, BarChart, LineChart, Series
from vitp.evaluation.report.compare import comparison_section
from vitp.evaluation.report.page import Page
from vitp.evaluation.report.run_report import write_run_report
from vitp.evaluation.report.samples import Sample, Samples
from vitp.evaluation.report.sections import (
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
