"""The cards of task models, as they are and as graphs, and what every card says that is passed on.

What a model takes, what it gives, what was compared and scored, how it is used, what it is not for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vitp.checkpoints.card import (
    bands_section,
    card_head,
    evaluated,
    licence_keys,
    markdown_table,
    start_section,
)
from vitp.checkpoints.description import without_places
from vitp.checkpoints.origin import Origin
from vitp.core.words import decimals
from vitp.deployment.comparison import ScoreParity
from vitp.deployment.qgis import qgis_metadata, qgis_obstacle
from vitp.deployment.seen import said_of_objects, seen_rows
from vitp.models.timm_backbone import TimmSettings
from vitp.models.vision import VisionSettings
from vitp.runtime.contract import GraphContract
from vitp.tasks.base import TaskModel

if TYPE_CHECKING:
    from vitp.deployment.export import ExportedGraph, GraphOptions

_OUTPUTS = {
    "classification": "`probabilities` ({batch}, {classes}): {shares}",
    "segmentation": "`probabilities` ({batch}, {classes}, {height}, {width}): softmax over the classes",
    "change": "`probabilities` ({batch}, 2, {height}, {width}): softmax over unchanged and changed",
    "detection": "`detections` ({batch}, 4 + {classes}, rows): centre x and y, width, height, scores{rows}",
    "instance": "`detections` ({batch}, 4 + {classes}, rows): centre x and y, width, height, scores; `masks` "
    "({batch}, rows, cells, cells): the mask of each row's class in its box, on 0..1",
    "queries": '`classes` ({batch}, queries, {classes}): softmax without "no object"; `masks` ({batch}, queries, '
    "cells, cells): logits of the whole image, to be enlarged to it",
    "panoptic": '`classes` ({batch}, queries, {classes}): softmax without "no object"; `masks` ({batch}, queries, '
    "cells, cells): logits of the whole image; the runtime merges them into segments",
    "oriented": "`detections` ({batch}, 4 + {classes} + 1, rows): centre x and y, longer and shorter side, scores, "
    "angle in radians, clockwise{rows}",
}


PIPELINES = {
    "classification": "image-classification",
    "segmentation": "image-segmentation",
    "change": "image-segmentation",
    "detection": "object-detection",
    "instance": "image-segmentation",
    "oriented": "object-detection",
    "panoptic": "image-segmentation",
    "backbone": "image-feature-extraction",
    "language": "image-text-to-text",
}
"""Kind of model → what the hub calls its use."""


def graph_card(done: ExportedGraph, model: TaskModel, options: GraphOptions, name: str) -> str:
    """Return the README of an exported task model.

    Args:
        done: What was written and compared.
        model: What it was made of.
        options: What it was to be.
        name: Name of the folder.
    """
    parts = [
        _title(done, model, options, name),
        contract_section(done.contract),
        _use(done.contract, options, name),
        _compared(done),
        _qgis(done.contract, options),
        start_section(vision_of(model.description) or Origin()),
        _trained(model.description.get("card", {})),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _title(done: ExportedGraph, model: TaskModel, options: GraphOptions, name: str) -> str:
    contract, scores, use = done.contract, done.scores, PIPELINES[done.contract.task]
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    form = "ONNX" if options.kind == "onnx" else "torch.export"
    head: dict[str, Any] = {
        "library_name": "onnx" if options.kind == "onnx" else "pytorch",
        **licence_keys((vision_of(model.description) or Origin()).licence),
        "tags": [contract.task, "vitp"],
        "pipeline_tag": use,
    }
    if scores is not None:
        head |= evaluated(name, use, scores.data, scores.split, scores.after)
    return (
        f"{card_head(head)}"
        f"# {name}\n\nA model for {contract.task} ({len(contract.classes)} classes, {parameters:.1f} M parameters) as a "
        f"graph in {form}."
    )


def contract_section(contract: GraphContract) -> str:
    """Return the part of a card that says what a graph takes and gives, and what of it is an object."""
    height, width = contract.size
    batch = str(contract.batch or "any number")
    channels = contract.planes * (2 if contract.pairs else 1)
    of = (
        "RGB"
        if contract.channels is None
        else f"the bands {', '.join(str(c['band']) for c in contract.channels)}"
    )
    dates = " of both dates, the earlier first" if contract.pairs else ""
    values = {
        "batch": batch,
        "classes": len(contract.classes),
        "height": height,
        "width": width,
        "shares": "sigmoid" if contract.multi_label else "softmax",
        "rows": "; one row a query" if contract.iou >= 1 else "; before the suppression of overlapping rows",
    }
    of_queries = contract.task == "instance" and contract.mask_patch > 0
    rows = [
        (
            "Input",
            f"`image` ({batch}, {channels}, {height}, {width}) float32: {of}{dates}, 8-bit values / 255",
        ),
        (
            "Inside",
            f"normalisation (mean {_numbers(contract.mean)}, std {_numbers(contract.std)}), network, decoding",
        ),
        ("Output", _OUTPUTS["queries" if of_queries else contract.task].format(**values)),
        *said_of_objects(contract),
        *seen_rows(contract),
        ("Classes", ", ".join(contract.classes)),
    ]
    bands = ""
    if contract.channels is not None:
        of_bands = [
            (
                str(one["band"]),
                "10 · log10 (dB)" if one["transform"] == "db" else "",
                f"{one['low']:.12g}",
                f"{one['high']:.12g}",
            )
            for one in contract.channels
        ]
        bands = (
            "\n\nA band's value becomes 8 bits by 255 · (value − low) / (high − low), cut to 0…255 and rounded to the nearest "
            "whole number (half to even); what isn't finite becomes 0. The runtime reads the values of an image from a `.npy` file of (bands, height, width). It must hold the quantity of each band, such as HU "
            "for CT or reflectance, not the values as they are stored: apply slope and intercept first. `vitp predict` "
            "reads volumes, DICOM and rasters, and applies these itself.\n\n"
            + markdown_table(("Band", "First", "Low", "High"), of_bands)
        )
    return "## Contract\n\n" + markdown_table(("", ""), rows) + bands


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _use(contract: GraphContract, options: GraphOptions, name: str) -> str:
    if options.kind == "torch-export":
        return (
            "## Use\n\n```python\nimport torch\n\n"
            f'model = torch.export.load("{name}/model.pt2").module()\n'
            f"outputs = model(torch.zeros({contract.batch or 2}, {_input_shape(contract)}))\n```"
        )
    suffix = ".png" if contract.channels is None else ".npy"
    later = f" --later later{suffix}" if contract.pairs else ""
    argument = f'"image{suffix}", "later{suffix}"' if contract.pairs else f'"image{suffix}"'
    return (
        "## Use\n\nWith vitp's runtime, which needs numpy, onnxruntime and Pillow alone, on images of any size:\n\n"
        f"```sh\npython -m vitp.runtime {name}/model.onnx image{suffix}{later}\n```\n\n"
        "```python\nfrom vitp.runtime.graph_model import open_graph\n\n"
        f'found = open_graph("{name}/model.onnx").predict_file({argument})\n```\n\n'
        "With onnxruntime or OpenVINO alone:\n\n"
        "```python\nimport numpy as np, onnxruntime\n\n"
        f'session = onnxruntime.InferenceSession("{name}/model.onnx")\n'
        f'outputs = session.run(None, {{"image": np.zeros(({contract.batch or 1}, {_input_shape(contract)}), '
        "np.float32)})\n```"
    )


def _input_shape(contract: GraphContract) -> str:
    channels = contract.planes * (2 if contract.pairs else 1)
    return f"{channels}, {contract.size[0]}, {contract.size[1]}"


def _compared(done: ExportedGraph) -> str:
    outputs = done.outputs
    rows = [
        (f"`{name}`, largest difference", f"{value:.1e}", f"{outputs.tolerance:.0e}")
        for name, value in outputs.largest.items()
    ]
    if outputs.rows:
        rows.append(("rows without a partner", f"{outputs.lonely:.2%} of {outputs.rows}", "1 %"))
    lines = [
        "## Compared with the model",
        f"Outputs on {outputs.images} images ({outputs.of}); places relative to the image's longer side:",
        markdown_table(("", "Found", "Allowed"), rows),
    ]
    found = [("float32", done.scores), ("int8", done.int8)]
    scored = [(of, scores) for of, scores in found if scores is not None]
    if scored:
        first = scored[0][1]
        lines.append(
            f"Scores on {first.images} of {first.available} images of {first.data} ({first.split}), in hundredths:"
        )
        lines.append(markdown_table(("", "Score", "Model", "Graph", "Lost", "Allowed"), _score_rows(scored)))
    else:
        lines.append("No scores were compared: there were no labelled images.")
    lines += [f"- {note}" for note in done.notes]
    return "\n\n".join(lines)


def _score_rows(scored: Sequence[tuple[str, ScoreParity]]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for of, scores in scored:
        for name in scores.before:
            mine, other = scores.before[name], scores.after[name]
            if mine is None or other is None:
                continue
            allowed = f"{scores.tolerance:g}" if name == scores.headline else ""
            numbers = tuple(decimals(100 * value, 2) for value in (mine, other, mine - other))
            rows.append((of, name, *numbers, allowed))
    return rows


def _qgis(contract: GraphContract, options: GraphOptions) -> str:
    if options.kind != "onnx":
        return ""
    obstacle = qgis_obstacle(contract)
    if obstacle is not None:
        return f"## QGIS\n\nThe plug-in Deepness can't run this graph: {obstacle}."
    keys = ", ".join(f"`{key}`" for key in qgis_metadata(contract, options.resolution))
    stacked = (
        " It sees both dates as one raster: stack their bands, the earlier date first."
        if contract.pairs
        else ""
    )
    return f"## QGIS\n\nThe plug-in Deepness runs `model.onnx` as it is; it reads {keys} in its metadata.{stacked}"


def _trained(card: dict[str, Any]) -> str:
    if not card:
        return ""
    words = {
        "backbone": "Backbone",
        "data": "Data",
        "licence": "Licence of the data",
        "train_images": "Training images",
        "steps": "Steps",
        "seed": "Seed",
        "chosen": "Weights",
    }
    told = without_places(card, relative=True)
    rows = [(word, str(told[key])) for key, word in words.items() if told.get(key) not in (None, "")]
    return "## Training\n\n" + markdown_table(("", ""), rows)


def task_card(description: Mapping[str, Any], name: str, parameters: int) -> str:
    """Return the README of a finetuned model that stays one: `config.json` and weights.

    Args:
        description: Content of `config.json`.
        name: Name of the folder; the code of the card runs beside it.
        parameters: Number of weights.
    """
    task, classes = description["task"], description["classes"]
    vision = vision_of(description)
    size = description.get("input", {})
    channels = None if vision is None else vision.channels
    seen = "their own size" if size.get("mode", "none") == "none" else f"{size['size']} px ({size['mode']})"
    rows = [
        ("Task", task),
        ("Input", "8-bit RGB" if channels is None else f"{len(channels)} bands (below)"),
        ("Images first get", seen),
        ("Output", f"`Prediction` of `vitp.metrics.results`: {_FIELDS[task]}"),
        ("Classes", ", ".join(classes)),
    ]
    head = {"library_name": "vitp", "tags": [task, "vitp"], "pipeline_tag": PIPELINES[task]}
    parts = [
        f"{card_head(head)}# {name}\n\nA model for {task} ({len(classes)} classes, {parameters / 1e6:.1f} M parameters), "
        "finetuned with vitp.",
        "## Contract\n\n" + markdown_table(("", ""), rows),
        bands_section(channels),
        _use_of_task(task, name),
        "" if vision is None else start_section(vision),
        _trained(description.get("card", {})),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


_FIELDS = {
    "classification": "`probabilities_C`",
    "segmentation": "`semantic_HW`, the class of each pixel",
    "change": "`semantic_HW`, 1 where something changed",
    "detection": "`boxes_N4`, `scores_N`, `labels_N`",
    "instance": "`boxes_N4`, `scores_N`, `labels_N`, `masks_NHW`",
    "oriented": "`boxes_N4`, `quads_N8`, `scores_N`, `labels_N`",
    "panoptic": "`masks_NHW` (no two share a pixel), `labels_N`, `scores_N`, `boxes_N4`, and `things_N`: which are objects",
}


def vision_of(description: Mapping[str, Any]) -> VisionSettings | TimmSettings | None:
    """Return the backbone of a task model's description; None where it has none."""
    backbone = description.get("backbone") or {}
    kinds: dict[str, type[VisionSettings | TimmSettings]] = {"vision": VisionSettings, "timm": TimmSettings}
    kind = kinds.get(backbone.get("kind", ""))
    return None if kind is None else kind.model_validate(backbone["config"])


def _use_of_task(task: str, name: str) -> str:
    later = " --later later" if task == "change" else ""
    pair = ', None, [read("later.png")]' if task == "change" else ""
    return (
        f"## Use\n\n```sh\nvitp predict {name} images{later} --out found\n```\n\n"
        "```python\nfrom vitp import load_task, predict_images\nfrom vitp.io.images import load_planes\nimport torch\n\n"
        f'model = load_task("{name}")\n\n\n'
        "def read(path):\n    return torch.from_numpy(load_planes(path, channels=model.in_channels))\n\n\n"
        f'(found,) = predict_images(model, [read("image.png")]{pair})\n```'
    )


def shared_card(card: str, head: Mapping[str, Any], sections: Mapping[str, str]) -> str:
    """Return a card with the sections that whoever gets the model needs, each where it isn't there yet.

    Args:
        card: README as it is.
        head: What the hub reads, where the card doesn't say it itself.
        sections: Heading → text; empty texts are left out.
    """
    lines = card_head(head, card).rstrip().splitlines()
    for heading, text in sections.items():
        if text and f"## {heading}" not in lines:
            lines += ["", f"## {heading}", "", *text.splitlines()]
    return "\n".join(lines) + "\n"


def scores_text(scores: Mapping[str, Any] | None, data: str) -> str:
    """Return the scores of a run as text and tables; nothing without scores.

    Args:
        scores: Content of the run's `scores.json`.
        data: Name of the set.
    """
    if not scores or not isinstance(scores.get("values"), dict):
        return ""
    ends, headline = scores.get("intervals", {}), str(scores.get("headline", ""))
    rows = [(name, _shown(name, value), _between(name, ends)) for name, value in scores["values"].items()]
    said = f"On {scores.get('images', 0):,} images of {data or 'the run'} ({scores.get('split', 'test')})"
    parts = [
        f"{said}; shares in hundredths. The headline is {headline}.",
        markdown_table(("Score", "Value", "95 % interval"), rows),
    ]
    of_classes = scores.get("per_class_intervals", {})
    named = [
        (str(one), _shown(headline, row[headline]), _between(headline, of_classes.get(one, {})))
        for one, row in scores.get("per_class", {}).items()
        if headline in row
    ]
    if named:
        parts.append(markdown_table(("Class", headline, "95 % interval"), named))
    return "\n\n".join(parts)


def _shown(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    plain = name in ("images", "cases") or name.endswith(("pixels", "_mm", "_mm2", "_ml"))
    return decimals(value, 2) if plain else decimals(100 * value, 1)


def _between(name: str, ends: Mapping[str, Any]) -> str:
    low, high = ends.get(name) or (None, None)
    return "" if low is None or high is None else f"{_shown(name, low)} – {_shown(name, high)}"


def licences_text(weights: str, licence: str, data: Sequence[tuple[str, str]]) -> str:
    """Return what is known of the licences of weights and data.

    Args:
        weights: Published weights that these go back to; "": none that are known.
        licence: Licence of those; "": none is stated.
        data: Name and licence of each set.
    """
    rows = [(f"Weights that it goes back to: {weights}", licence or "not stated")] if weights else []
    rows += [(f"Data: {name}", stated or "not stated") for name, stated in data]
    if not rows:
        return "Nothing is known of the licences of data or weights."
    return (
        markdown_table(("Of", "Licence"), rows)
        + "\n\nThe licences are those that publishers and records state; whether they bind these weights is for you "
        "to decide."
    )


def limits_text(kind: str, data: Sequence[str], scored: bool) -> str:
    """Return what a model is for, and what it isn't.

    Args:
        kind: Task, "backbone" or "language".
        data: Names of the sets that it learned from.
        scored: Whether the card has scores.
    """
    of = f"images like those of {', '.join(data)}" if data else "images like those that it was trained on"
    use = {
        "backbone": "It is a start for finetuning and a source of features",
        "language": "It answers questions and is a start for further training",
    }.get(kind, f"It is for {kind}")
    measured = (
        "The scores above hold for that set and split alone."
        if scored
        else "No scores come with it: measure it on your own labelled images first."
    )
    written = " Its answers may be wrong however sure they sound." if kind == "language" else ""
    return (
        f"{use} on {of}: of the same sensor, bands, size of a pixel and kind of place. {measured} Nothing is known of "
        f"other images, other seasons or rare classes.{written} No decision about a person's health, safety or rights "
        "should rest on it alone."
    )


def vectors_text(name: str, kind: str) -> str:
    """Return how a loaded model is compared with the test vectors beside it; kind as in `limits_text`."""
    if kind in ("backbone", "language"):
        return (
            "`check/test_vectors.safetensors` holds images, and the features that they must give:\n\n"
            "```python\nimport torch\nfrom safetensors.torch import load_file\nfrom vitp import load_backbone\n\n"
            f'vectors = load_file("{name}/check/test_vectors.safetensors")\ntower = load_backbone("{name}")\n'
            'found = tower.forward_tokens(tower.normalize(vectors["images"]))\n'
            'torch.testing.assert_close(found, vectors["last"], atol=1e-4, rtol=1e-4)\n```'
        )
    later = ', [vectors["later"]]' if kind == "change" else ""
    return (
        "`check/test_vectors.safetensors` holds an image, and what the model must say of it:\n\n"
        "```python\nimport torch\nfrom safetensors.torch import load_file\nfrom vitp import load_task\n\n"
        f'vectors = load_file("{name}/check/test_vectors.safetensors")\n'
        f'(found,) = load_task("{name}").predict([vectors["image"]]{later})\n'
        'for key in vectors.keys() - {"image", "later"}:\n'
        "    torch.testing.assert_close(getattr(found, key), vectors[key], atol=1e-3, rtol=1e-3)\n```"
    )
