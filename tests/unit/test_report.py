"""The report page: self-contained, true to its inputs, safe against its inputs."""

from __future__ import annotations

import base64
import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vitp.core.errors import ConfigError, DataError, VitpError
from vitp.evaluation.answers import Answered
from vitp.evaluation.probe_table import ProbeRow
from vitp.report.answered import AnsweredCards
from vitp.report.attention import AttentionExplorer, BackboneAttention, quantise
from vitp.report.charts import Bar, BarChart, Curve, HeatMap, Histogram, LineChart
from vitp.report.compare import comparison_section
from vitp.report.page import Card, Code, Figure, Headline, HtmlPage, ImageGrid, KeyValue, Section, Table, Text
from vitp.report.run_report import report_run, write_run_report

LOADING = {"src", "href", "xlink:href", "data", "poster", "srcset", "action"}


class Loads(HTMLParser):
    """Collects what a page would fetch, and whether its tags are balanced."""

    VOID = frozenset({"meta", "img", "input", "br", "link", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in LOADING]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in LOADING]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parse(html: str) -> Loads:
    loads = Loads()
    loads.feed(html)
    loads.close()
    assert loads.open == []
    return loads


def assert_self_contained(html: str) -> None:
    loads = parse(html)
    assert loads.addresses
    assert all(a.startswith(("data:image/", "#")) for a in loads.addresses), loads.addresses
    # Clip paths of charts point into the page.
    assert set(re.findall(r"url\((.)", html)) <= {"#"}
    assert "link" not in loads.tags
    style = html.split("<style>")[1].split("</style>")[0]
    assert "@import" not in style
    assert "url(" not in style
    assert "xmlns" not in html
    assert not re.search(r"\b(fetch|XMLHttpRequest|import)\s*\(", html)


def picture(seed: int = 0, size: tuple[int, int] = (60, 40)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def attention(rng: np.random.Generator, *shape: int) -> np.ndarray:
    weights = rng.random(shape) ** 4
    return weights / weights.sum(-1, keepdims=True)


def restored(quantised: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """Attention from what `quantise` gave: what the page's script computes."""
    return quantised.astype(np.float32) / 255 * largest[..., None]


def page_of(*blocks) -> str:
    return HtmlPage("Title", [Section("Only", list(blocks))]).html()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run folder with every part in it."""
    folder = tmp_path / "my-run"
    folder.mkdir()
    (folder / "config.yaml").write_text("recipe: micro\nseed: 3\noptim:\n  lr: 0.0005\n")
    rows = [
        {
            "step": step,
            "loss": 4.0 - step / 25,
            "losses": {"answer": 3.0 - step / 50, "aux": 0.5},
            "lr": 5e-4,
            "grad_norm": 1.5,
            "grad_share": {"vision tower": 0.25, "language model": 0.75},
            "samples_per_s": 123.0,
            "tokens_per_s": 4567.0,
            "data_wait": 0.02,
            "elapsed_s": step * 7.5,
            "memory_gb": 1.25,
        }
        for step in range(1, 61)
    ]
    rows.insert(30, {"step": 30, "probe/knn/accuracy": 0.9})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    layers = [{"layer": "patch_embed", "change": 0.0125}, {"layer": "blocks.0", "change": 0.3456}]
    evidence = {
        "step": 60,
        "meant_to_train": True,
        "relative_change": 0.1875,
        "gradient_share": 0.25,
        "cka": 0.615,
        "layers": layers,
    }
    (folder / "evidence.json").write_text(json.dumps(evidence))
    probes = [
        {"step": 0, "probe/patches_linear/mIoU": 0.111},
        {"step": 60, "probe/patches_linear/mIoU": 0.432},
    ]
    (folder / "probes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in probes))
    picture().save(folder / "ship.png")
    box = "<ref>ship</ref><box>[[100, 200, 300, 400]]</box>"
    samples = [
        {
            "image": "ship.png",
            "question": "<image>\nWhere?",
            "expected": box,
            "answer": box,
            "task": "box",
            "score": 1,
        },
        {
            "image": "ship.png",
            "question": "How many?",
            "expected": "3",
            "answer": "4",
            "task": "count",
            "score": 0,
        },
    ]
    (folder / "samples.json").write_text(json.dumps(samples))
    return folder


def test_run_report_is_self_contained_and_shows_the_numbers(run_dir):
    explorer = AttentionExplorer(
        "A",
        [picture()],
        [BackboneAttention("b", [0], (2, 3), [attention(np.random.default_rng(0), 1, 6, 6)])],
    )
    out = write_run_report(run_dir, attention=explorer)
    assert out == run_dir / "report.html"
    html = out.read_text(encoding="utf-8")
    assert_self_contained(html)
    text = unescape(re.sub(r"<[^>]+>", " ", html))
    for shown in (
        "18.8 %",
        "1.25 %",
        "34.56 %",
        "25 %",
        "0.615",
        "0.111",
        "0.432",
        "+0.321",
        "123",
        "7 min 30 s",
    ):
        assert shown in text, shown
    # Mean of the last twentieth (three of sixty steps) and of the first.
    assert f"{4.0 - 59 / 25:.3f}" in text
    assert f"from {4.0 - 2 / 25:.3f}" in text
    assert "recipe: micro" in text
    assert not list(run_dir.glob(".*tmp*"))


def numbers_of(html: str, title: str) -> list[list[str]]:
    """The rows of the numbers that are folded away under a chart, heads first."""
    part = html.split(f"<h3>{title}</h3>")[1].split("</figure>")[0]
    rows = part.split('<details class="numbers">')[1].split("<tr>")[1:]
    return [[unescape(cell) for cell in re.findall(r">([^<>]*)</t[hd]>", row)] for row in rows]


def test_loss_curve_holds_the_logged_values(run_dir):
    html = write_run_report(run_dir).read_text()
    named = numbers_of(html, "Losses by name")
    assert named[0] == ["step", "answer", "aux"] and len(named) == 25
    assert [float(row[2]) for row in named[1:]] == pytest.approx([0.5] * 24)
    steps = [int(row[0]) for row in named[1:]]
    assert (steps[0], steps[-1]) == (1, 60) and steps == sorted(set(steps))
    rate = numbers_of(html, "Throughput: samples a second")
    assert [float(row[1]) for row in rate[1:]] == pytest.approx([123.0] * 24)


def test_equal_runs_have_equal_pages(run_dir):
    first = write_run_report(run_dir).read_bytes()
    assert write_run_report(run_dir).read_bytes() == first
    assert b"<dc:date>" not in first


def test_missing_parts_are_absent_and_named(run_dir):
    for name in ("evidence.json", "samples.json", "config.yaml"):
        (run_dir / name).unlink()
    text = write_run_report(run_dir).read_text()
    for name in ("evidence.json", "samples.json", "config.yaml"):
        assert f"<code>{name}</code>" in text
    assert "<code>probes.jsonl</code>" not in text
    assert "The ViT learned" not in text
    assert "What the model answers" not in text


def test_probes_of_hooks_stand_in_for_a_missing_probe_file(run_dir):
    (run_dir / "probes.jsonl").unlink()
    assert "knn · accuracy" in write_run_report(run_dir).read_text()


def test_frozen_tower_is_not_called_a_success(run_dir):
    evidence = json.loads((run_dir / "evidence.json").read_text()) | {
        "meant_to_train": False,
        "relative_change": 0,
    }
    (run_dir / "evidence.json").write_text(json.dumps(evidence))
    html = write_run_report(run_dir).read_text()
    assert "frozen on purpose" in html
    assert "tone-good" not in html.split("</style>")[1]


def test_run_without_any_part_is_refused(tmp_path):
    with pytest.raises(DataError, match="is no run folder"):
        write_run_report(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        write_run_report(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "text", "where"),
    [
        ("metrics.jsonl", '{"step": 1, "loss": 2}\n{"step": 2, "lo', "metrics.jsonl:2"),
        ("metrics.jsonl", '{"step": 1, "loss": 2}\n\n[1]\n', "metrics.jsonl:3"),
        ("probes.jsonl", '{"probe/a/b": 1}\n', "probes.jsonl:1"),
        ("evidence.json", '{"layers": 3}', "evidence.json"),
        ("evidence.json", '{\n"layers": [}', "evidence.json:2"),
        ("samples.json", '[{"image": "a.png", "question": "q", "expected": "e"}]', "samples.json, sample 1"),
        ("samples.json", '{"image": "a.png"}', "samples.json"),
        ("config.yaml", "a: 1\nb: [", "config.yaml:"),
    ],
)
def test_malformed_files_are_named(run_dir, name, text, where):
    (run_dir / name).write_text(text)
    with pytest.raises(DataError) as caught:
        write_run_report(run_dir)
    assert caught.value.where is not None
    assert where in caught.value.where
    assert caught.value.fix
    assert not (run_dir / "report.html").exists()


def test_score_outside_its_range_is_refused(run_dir):
    rows = json.loads((run_dir / "samples.json").read_text())
    rows[1]["score"] = 7
    (run_dir / "samples.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match="sample 2"):
        write_run_report(run_dir)


@pytest.mark.parametrize("evil", ['<script>alert("x")</script>', '\']]><script>alert("x")</script>&#60;'])
def test_user_text_is_escaped_everywhere(evil, tmp_path):
    picture().save(tmp_path / "a.png")
    blocks = [
        Text(f"{evil} **{evil}** `{evil}`\n\n- {evil}"),
        Headline([Card(evil, evil, evil)]),
        Table([evil], [[evil]], note=evil),
        LineChart(
            title=evil,
            lines=[Curve(evil, [0, 1], [1, 2]), Curve("b", [0, 1], [2, 1])],
            x_label=evil,
            y_label=evil,
            note=evil,
        ),
        BarChart(title=evil, bars=[Bar(evil, 1.0), Bar("b", 1.0, text=evil)], unit=evil, x_label=evil),
        HeatMap(title=evil, rows=[evil], columns=[evil], values=[[1.0]], reference=1.0),
        Histogram(title=evil, values=[1, 2], unit=evil),
        ImageGrid([Figure(picture(), evil)], evil, note=evil),
        KeyValue({evil: evil, "nested": {evil: [evil]}}, evil),
        Code(evil, evil),
        AnsweredCards(
            [Answered(str(tmp_path / "a.png"), evil, f"<ref>{evil}</ref>", evil, evil, 0.5)], note=evil
        ),
        AttentionExplorer(
            evil,
            [picture()],
            [BackboneAttention(evil, [0], (1, 1), [np.ones((1, 1, 1))])],
            image_names=[evil],
            note=evil,
        ),
    ]
    html = HtmlPage(evil, [Section(evil, blocks, lead=evil)], subtitle=evil, facts=[(evil, evil)]).html()
    assert "<script>alert" not in html
    # Behaviour, and the data of one explorer: no script more.
    assert parse(html).tags.count("script") == 2
    assert "alert(&#34;x&#34;)" in html


def test_comparison_says_who_wins():
    def row(*values: float) -> ProbeRow:
        return ProbeRow("patches", "mIoU", values)

    section = comparison_section(
        {"random": [row(0.20, 0.21, 0.22)], "tied": [row(0.50, 0.52, 0.47)], "ours": [row(0.50, 0.51, 0.49)]},
        ours="ours",
    )
    html = unescape(HtmlPage("t", [section]).html())
    assert "<strong>ours</strong> against <strong>random</strong>: better on 1 of 1" in html
    assert "<strong>ours</strong> against <strong>tied</strong>: undecided on 1 of 1" in html
    assert "50.0 ± 1.0" in html
    assert "+29.0" in html
    table = next(block for block in section.blocks if isinstance(block, Table))
    assert [row[1]["text"] for row in table.cells] == ["21.0", "49.7", "50.0"]
    assert [row[1]["best"] for row in table.cells] == [False, False, True]
    with pytest.raises(ConfigError, match='did you mean "ours"'):
        comparison_section({"ours": [row(1.0)]}, ours="our")


def test_draws_of_one_pretrained_backbone_are_no_evidence():
    def section(draws: int) -> str:
        rows = {
            "a": [ProbeRow("patches", "mIoU", (0.2, 0.21, 0.22))],
            "b": [ProbeRow("patches", "mIoU", (0.5, 0.51, 0.52))],
        }
        return unescape(HtmlPage("t", [comparison_section(rows, ours="b", draws_per_seed=draws)]).html())

    assert "<strong>b</strong> against <strong>a</strong>: better on 1 of 1" in section(1)
    assert "<strong>b</strong> against <strong>a</strong>: undecided on 1 of 1" in section(3)


def test_comparison_turns_round_for_errors():
    rows = {
        "a": [ProbeRow("boxes", "error", (1.0, 1.1, 1.2))],
        "b": [ProbeRow("boxes", "error", (0.5, 0.6, 0.7))],
    }
    section = comparison_section(rows, ours="b", percent=False, lower_is_better=[("boxes", "error")])
    html = unescape(HtmlPage("t", [section]).html())
    assert "<strong>b</strong> against <strong>a</strong>: better on 1 of 1" in html
    assert "−0.5" in html


def test_attention_round_trips_through_the_page():
    rng = np.random.default_rng(1)
    maps = [attention(rng, 2, 3, 12, 12), attention(rng, 2, 3, 12, 12)]
    explorer = AttentionExplorer(
        "A", [picture(1), picture(2)], [BackboneAttention("b", [3, 11], (3, 4), maps)]
    )
    html = page_of(explorer)
    data = json.loads(unescape(re.findall(r'application/json">(.*?)</script>', html)[0]))
    backbone = data["backbones"][0]
    assert backbone["layers"] == [3, 11]
    assert backbone["grid"] == [3, 4]
    for image, expected in enumerate(maps):
        for layer in range(2):
            planes = backbone["maps"][image][layer]
            assert len(planes) == 4
            wanted = [expected[layer].mean(0), *expected[layer]]
            for plane, target in zip(planes, wanted, strict=True):
                q = np.frombuffer(base64.b64decode(plane["q"]), np.uint8).reshape(12, 12)
                most = np.frombuffer(base64.b64decode(plane["m"]), "<f4")
                error = np.abs(restored(q, most) - target)
                assert (error <= target.max(-1, keepdims=True) / 510 + 1e-6).all()


@given(st.integers(1, 9), st.integers(0, 2**31), st.floats(1e-6, 1e3))
def test_quantisation_error_is_bounded(count, seed, scale):
    values = np.random.default_rng(seed).random((count, count)) ** 6 * scale
    values[0] = 0
    back = restored(*quantise(values))
    assert (np.abs(back - values) <= values.max(-1, keepdims=True) * (1 / 510 + 1e-5)).all()


def test_attention_keeps_its_budget():
    rng = np.random.default_rng(0)
    backbone = BackboneAttention("b", list(range(6)), (6, 6), [attention(rng, 6, 4, 36, 36)])
    whole = AttentionExplorer("A", [picture()], [backbone])
    assert (whole.head_count, whole.layer_count, whole.left_out) == (4, 6, "")
    means = AttentionExplorer("A", [picture()], [backbone], megabytes=0.015)
    assert (means.head_count, means.layer_count) == (0, 6)
    assert "single heads" in means.left_out
    few = AttentionExplorer("A", [picture()], [backbone], megabytes=0.006)
    assert few.data["backbones"][0]["layers"] == [0, 2, 5]
    assert "3 of 6 layers" in few.left_out
    encoded = len(json.dumps(few.data["backbones"]))
    assert encoded < 6_000 * 1.1


def test_attention_of_wrong_shape_is_refused():
    with pytest.raises(VitpError, match="shape"):
        BackboneAttention("b", [0], (2, 2), [np.ones((1, 5, 5))])
    with pytest.raises(VitpError, match="negative"):
        BackboneAttention("b", [0], (1, 2), [np.full((1, 2, 2), -1.0)])
    good = BackboneAttention("b", [0], (1, 2), [np.ones((1, 2, 2))])
    with pytest.raises(VitpError, match="outside"):
        AttentionExplorer("A", [picture()], [good], patch=(1, 0))
    with pytest.raises(VitpError, match="differ"):
        AttentionExplorer("A", [picture(), picture()], [good])


def test_what_is_no_run_with_a_language_model_is_told_in_one_line(tmp_path: Path) -> None:
    def folder(name: str, config: str | None) -> Path:
        (tmp_path / name / "model").mkdir(parents=True)
        for file in ("config.json", "model.safetensors"):
            (tmp_path / name / "model" / file).write_text("{}")
        if config is not None:
            (tmp_path / name / "config.yaml").write_text(config)
        return tmp_path / name

    cases = (
        (tmp_path / "gone", "gone: there is no such file or folder; name a run that has finished"),
        (folder("fine", "task: segmentation\n"), "is a finetuned run, whose model answers no questions"),
        (
            folder("dino", "objective: dino\ndata: {mixture: [set]}\n"),
            "is a run of dino, whose model answers no questions; vitp probe",
        ),
        (folder("model_alone", None), r"is no run folder: it has no config\.yaml; name a folder"),
    )
    for run, message in cases:
        with pytest.raises(VitpError, match=message):
            report_run(run)
        assert not (run / "report.html").exists()
