"""The figures of the documentation as SVG, with what the package computes in them: dropped tokens, attention, results.

`python -m tools.figures docs/pictures/figures` writes all of them; a test tells when they are out of date. Figures have a
ground of their own, so that they can be read on light and on dark pages.
"""

from __future__ import annotations

import base64
import io
import json
import sys
from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vitp.core.files import write_text
from vitp.models.attention_layouts import packed_attention_mask
from vitp.models.vrl import surviving_tokens
from vitp.scenes.address import load_scene

ROOT = Path(__file__).parents[1]
PAPER, INK, SOFT, EDGE = "#f6f8fa", "#1c2733", "#556270", "#c9d2dc"
TEAL, ORANGE, BLUE, GOLD, GREY = "#00796b", "#d1481e", "#1f6fb2", "#b7860b", "#9aa5b1"
PALE = {TEAL: "#d8efec", ORANGE: "#fbe3da", BLUE: "#dcebf8", GOLD: "#f6ecd0", GREY: "#e9edf1"}
SCENE = "scene:port/7/123?size=96&split=val"


def text(
    x: float,
    y: float,
    words: str,
    *,
    size: float = 14,
    colour: str = INK,
    anchor: str = "middle",
    bold: bool = False,
) -> str:
    """Return a line of text around, or from, a point."""
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{colour}" text-anchor="{anchor}"{weight}>'
        f"{escape(words)}</text>"
    )


def box(
    x: float,
    y: float,
    width: float,
    height: float,
    colour: str,
    lines: Iterable[str] = (),
    *,
    size: float = 14,
) -> str:
    """Return a box with centred lines; the first is bold."""
    lines = tuple(lines)
    parts = [
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="8" fill="{PALE[colour]}" '
        f'stroke="{colour}" stroke-width="1.5"/>'
    ]
    top = y + height / 2 - (len(lines) - 1) * size * 0.65 + size * 0.35
    for number, line in enumerate(lines):
        soft = SOFT if number else INK
        parts.append(
            text(
                x + width / 2,
                top + number * size * 1.3,
                line,
                size=size - bool(number),
                colour=soft,
                bold=not number,
            )
        )
    return "".join(parts)


def arrow(x1: float, y1: float, x2: float, y2: float, colour: str = SOFT, *, dashed: bool = False) -> str:
    """Return an arrow."""
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return (
        f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{colour}" stroke-width="2"{dash} '
        f'marker-end="url(#head-{colour[1:]})"/>'
    )


def rect(x: float, y: float, width: float, height: float, fill: str, *, opacity: float = 1) -> str:
    """Return a plain rectangle."""
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{fill}" fill-opacity="{opacity:g}"/>'


def picture(pixels_HWC: np.ndarray, x: float, y: float, side: float) -> str:
    """Return an image, embedded."""
    file = io.BytesIO()
    Image.fromarray(pixels_HWC).save(file, "PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    return (
        f'<image x="{x:g}" y="{y:g}" width="{side:g}" height="{side:g}" href="data:image/png;base64,{data}"/>'
    )


def drawing(width: int, height: int, title: str, *parts: str) -> str:
    """Return the SVG file."""
    heads = "".join(
        f'<marker id="head-{colour[1:]}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 8 4 0 8z" fill="{colour}"/></marker>'
        for colour in (SOFT, TEAL, ORANGE, BLUE)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"><title>{escape(title)}</title>'
        f'<defs>{heads}</defs><rect width="{width}" height="{height}" rx="10" fill="{PAPER}" stroke="{EDGE}"/>'
        + "\n".join(parts)
        + "</svg>\n"
    )


def way() -> str:
    """From labels to use."""
    steps = [
        (GOLD, ("labels", "boxes, masks,", "classes, captions")),
        (BLUE, ("instructions", "questions and", "answers")),
        (TEAL, ("pretraining", "ViT inside a", "language model")),
        (TEAL, ("backbone", "timm, vitp,", "ONNX")),
        (ORANGE, ("task model", "boxes, masks,", "maps, volumes")),
    ]
    words = ["data compile", "pretrain", "export", "finetune"]
    parts = [box(20 + 184 * n, 40, 124, 86, colour, lines) for n, (colour, lines) in enumerate(steps)]
    for n, word in enumerate(words):
        parts += [
            arrow(146 + 184 * n, 83, 202 + 184 * n, 83),
            text(174 + 184 * n, 28, word, size=12.5, colour=SOFT),
        ]
    checks = [
        (266, "check, show"),
        (450, "report, ask"),
        (634, "probe, features"),
        (818, "eval, predict, serve"),
    ]
    parts += [text(x, 150, word, size=12.5, colour=SOFT) for x, word in checks]
    return drawing(900, 168, "From labels to a model that is used", *parts)


def method() -> str:
    """The ViT inside of the language model, and where the gradient goes."""
    scene = np.asarray(load_scene(SCENE).image_HWC)
    rows = [(TEAL, "image tokens that survive", 4), (BLUE, "question", 3), (ORANGE, "answer", 3)]
    parts, x = (
        [picture(scene, 24, 74, 116), text(82, 212, "tiles of an image", size=12.5, colour=SOFT)],
        484.0,
    )
    parts += [arrow(144, 132, 176, 132), box(180, 86, 116, 92, TEAL, ("ViT", "every layer", "is trained"))]
    parts += [arrow(300, 132, 324, 132), box(328, 98, 92, 68, GREY, ("projector", "and VRL"))]
    parts.append(arrow(424, 132, 476, 132))
    for colour, word, count in rows:
        for number in range(count):
            parts.append(
                f'<rect x="{x + number * 25:g}" y="120" width="21" height="24" rx="3" fill="{PALE[colour]}" stroke="{colour}"/>'
            )
        parts.append(
            text(x + count * 12.5 - 2, 164, word if colour != TEAL else "kept tokens", size=12, colour=colour)
        )
        x += count * 25 + 8
    parts += [
        box(484, 34, 262, 50, BLUE, ("language model", "reads left to right"), size=13.5),
        arrow(610, 118, 610, 88),
        arrow(750, 58, 784, 58),
        box(788, 34, 100, 50, ORANGE, ("loss", "answers only"), size=13.5),
        f'<path d="M838 88 V226 H238" fill="none" stroke="{ORANGE}" stroke-width="2" stroke-dasharray="5 4"/>',
        arrow(238, 226, 238, 184, ORANGE, dashed=True),
        text(
            540,
            218,
            "the gradient goes through the language model into the ViT: it is the product",
            size=13,
            colour=ORANGE,
        ),
    ]
    return drawing(910, 246, "A Vision Transformer inside a vision-language model", *parts)


def robustness() -> str:
    """An image of 6 × 6 tokens before and after three quarters of them are dropped, by the package's own choice."""
    scene, side, cells = np.asarray(load_scene(SCENE).image_HWC), 168, 6
    kept = set(surviving_tokens(cells * cells, 0.75, np.random.default_rng(3)).tolist())
    cell, parts = side / cells, []
    for left, dropped in ((24, False), (252, True)):
        parts.append(picture(scene, left, 44, side))
        for number in range(cells * cells):
            x, y = left + number % cells * cell, 44 + number // cells * cell
            if dropped and number not in kept:
                parts.append(rect(x, y, cell, cell, "#dfe5ea"))
            parts.append(
                f'<rect x="{x:g}" y="{y:g}" width="{cell:g}" height="{cell:g}" fill="none" stroke="#ffffff" stroke-width="1"/>'
            )
    parts += [
        text(108, 30, "36 image tokens", bold=True),
        text(336, 30, f"{len(kept)} survive (r = 0.75)", bold=True),
        arrow(198, 128, 246, 128),
        text(660, 30, "the row that the language model reads", bold=True),
    ]
    for top, count, words in ((60, 36, "without VRL"), (140, len(kept), "with VRL 0.75")):
        parts.append(text(450, top + 10, words, size=13, colour=SOFT, anchor="start"))
        numbers = range(36) if count == 36 else sorted(kept)
        for place in range(count):
            parts.append(rect(450 + place * 9.2, top + 20, 7.8, 22, TEAL))
        for extra in range(6):
            parts.append(rect(450 + (count + extra) * 9.2, top + 20, 7.8, 22, ORANGE))
        if count != 36:
            shown = ", ".join(str(number) for number in numbers)
            parts.append(
                text(450, top + 62, f"positions stay: {shown}", size=12, colour=SOFT, anchor="start")
            )
    parts += [
        rect(700, 150, 10, 10, TEAL),
        text(716, 160, "image", size=12, anchor="start"),
        rect(770, 150, 10, 10, ORANGE),
    ]
    parts.append(text(786, 160, "text", size=12, anchor="start"))
    return drawing(870, 236, "Visual Robustness Learning drops image tokens", *parts)


def packing() -> str:
    """Two records in one row, and who sees whom: the package's own mask."""
    runs = [  # record, branch, tokens, colour, what
        (0, 0, 6, TEAL, "image"), (0, 1, 3, BLUE, "question 1"), (0, 2, 3, GOLD, "question 2"),
        (1, 0, 4, TEAL, "image"), (1, 1, 4, ORANGE, "question 1"),
    ]  # fmt: skip
    segments = torch.tensor([[run[0] for run in runs for _ in range(run[2])]])
    branches = torch.tensor([[run[1] for run in runs for _ in range(run[2])]])
    colours = [run[3] for run in runs for _ in range(run[2])]
    sees_LL = packed_attention_mask(segments, branches).squeeze().bool().numpy()
    cell, left, top, parts = 15.0, 500.0, 52.0, []
    count = len(colours)
    for row in range(count):
        for column in range(count):
            seen = bool(sees_LL[row, column])
            parts.append(
                rect(
                    left + column * cell,
                    top + row * cell,
                    cell - 1.5,
                    cell - 1.5,
                    colours[column] if seen else "#e6ebef",
                )
            )
    for number, colour in enumerate(colours):
        parts.append(rect(left + number * cell, top - 10, cell - 1.5, 6, colour))
        parts.append(rect(left - 10, top + number * cell, 6, cell - 1.5, colour))
    parts += [
        text(left + count * cell / 2, 30, "who sees whom (rows look at columns)", bold=True),
        text(230, 30, "one row of the batch", bold=True),
    ]
    x, lines = 24.0, []
    for record, _, tokens, colour, word in runs:
        for number in range(tokens):
            parts.append(
                f'<rect x="{x + number * 21:g}" y="52" width="18" height="26" rx="3" fill="{PALE[colour]}" stroke="{colour}"/>'
            )
        parts.append(text(x + tokens * 10.5 - 1, 96, word, size=11.5, colour=colour))
        lines.append((record, x, x + tokens * 21 - 3))
        x += tokens * 21 + (10 if (record, word) == (0, "question 2") else 0)
    for record in (0, 1):
        begin, end = min(a for r, a, _ in lines if r == record), max(b for r, _, b in lines if r == record)
        parts.append(f'<path d="M{begin:g} 108 v6 H{end:g} v-6" fill="none" stroke="{SOFT}"/>')
        parts.append(text((begin + end) / 2, 132, f"record {record + 1}", size=12.5, colour=SOFT))
    notes = (
        "The image is encoded once for all questions.",
        "A question sees the image and itself, not its neighbours.",
        "Records don't see each other.",
        "Loss and gradients equal those of separate rows.",
    )
    parts += [text(34, 176 + 26 * n, f"• {note}", size=14, anchor="start") for n, note in enumerate(notes)]
    return drawing(830, 376, "Packing: several records and questions in one row", *parts)


def records() -> str:
    """What one labelled image becomes."""
    scene = np.asarray(load_scene(SCENE).image_HWC)
    sources = [
        "COCO, VOC, YOLO, DOTA",
        "masks, class folders",
        "change pairs, captions",
        "GeoTIFF, GeoPackage",
        "NIfTI, DICOM, slides",
    ]
    parts = [text(118, 34, "label files", bold=True)]
    parts += [box(24, 50 + 42 * n, 188, 34, GOLD, [word], size=13) for n, word in enumerate(sources)]
    parts += [
        arrow(218, 150, 252, 150),
        text(342, 34, "LabelledImage", bold=True),
        picture(scene, 262, 50, 120),
    ]
    facts = ("objects, mask, classes,", "captions; where the label", "can't be used: ignored")
    parts += [
        text(262, 194 + 20 * n, line, size=13, colour=SOFT, anchor="start") for n, line in enumerate(facts)
    ]
    parts += [arrow(440, 110, 486, 110, TEAL), text(462, 98, "synthesis", size=12, colour=TEAL)]
    parts += [arrow(440, 226, 486, 226, ORANGE), text(462, 214, "as it is", size=12, colour=ORANGE)]
    parts += [
        text(688, 34, "InstructionRecord", bold=True),
        f'<rect x="494" y="46" width="390" height="122" rx="8" fill="{PALE[TEAL]}" stroke="{TEAL}"/>',
    ]
    turns = (
        ("images", "port-7-123.png"),
        ("question", "<image> How many barges are there?"),
        ("answer", "3"),
        ("question", "Where is the largest barge?"),
        ("answer", "<box>[[333, 615, 594, 993]]</box>"),
    )
    for n, (name, words) in enumerate(turns):
        parts.append(text(508, 70 + 21 * n, name, size=12.5, colour=TEAL, anchor="start", bold=True))
        parts.append(text(576, 70 + 21 * n, words, size=12.5, anchor="start"))
    parts.append(
        box(
            494,
            196,
            390,
            58,
            ORANGE,
            ("probes, finetuning, scores", "read the same labels, understood alike"),
            size=13.5,
        )
    )
    return drawing(910, 280, "From label files to instruction records", *parts)


def better() -> str:
    """Random, starter, after ViTP on the generated ports, with standard deviations."""
    held = json.loads((ROOT / "src" / "vitp" / "assets" / "demo_results.json").read_text(encoding="utf-8"))
    wanted = (("patches linear", "patch mIoU"), ("scene linear", "accuracy"), ("presence linear", "mAP"))
    names = ("frozen patches: mIoU", "frozen scenes: accuracy", "frozen, which objects: mAP")
    arms = tuple(zip(held["probes"], (GREY, BLUE, TEAL), strict=True))
    parts = [
        text(
            24,
            32,
            "Generated ports, frozen features, % (mean ± standard deviation)",
            anchor="start",
            bold=True,
        )
    ]
    for n, ((task, metric), name) in enumerate(zip(wanted, names, strict=True)):
        left = 40 + n * 280
        for number, (arm, colour) in enumerate(arms):
            row = next(r for r in held["probes"][arm]["rows"] if (r["task"], r["metric"]) == (task, metric))
            mean, deviation = 100 * row["mean"], 100 * row["std"]
            x, high = left + number * 76, 2 * mean
            parts += [
                rect(x, 240 - high, 58, high, colour, opacity=0.85),
                f'<path d="M{x + 29:g} {240 - 2 * (mean - deviation):.1f} V{240 - 2 * (mean + deviation):.1f}" stroke="{INK}" stroke-width="1.5"/>',
                text(x + 29, 232 - 2 * (mean + deviation), f"{mean:.1f}", size=13, bold=True),
            ]
        parts += [f'<path d="M{left - 10} 240 h236" stroke="{SOFT}"/>', text(left + 105, 262, name, size=13)]
    for number, (arm, colour) in enumerate(arms):
        parts += [
            rect(600 + number * 96, 22, 12, 12, colour),
            text(617 + number * 96, 33, arm, size=13, anchor="start"),
        ]
    return drawing(900, 280, "Random weights, starter, after ViTP", *parts)


FIGURES: dict[str, Callable[[], str]] = {
    "way": way,
    "vitp": method,
    "vrl": robustness,
    "packing": packing,
    "records": records,
    "better": better,
}

if __name__ == "__main__":
    for name, draw in FIGURES.items():
        write_text(Path(sys.argv[1]) / f"{name}.svg", draw())
