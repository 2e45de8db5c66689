"""The card of an exported task model: what it takes, what it gives, what was compared, how it is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vitp.checkpoints.card import markdown_table
from vitp.deployment.comparison import ScoreParity
from vitp.deployment.qgis import qgis_metadata, qgis_obstacle
from vitp.runtime.contract import GraphContract
from vitp.tasks.base import TaskModel

if TYPE_CHECKING:
    from vitp.deployment.export import ExportedGraph, GraphOptions

_OUTPUTS = {
    "classification": "`probabilities` ({batch}, {classes}): {shares}",
    "segmentation": "`probabilities` ({batch}, {classes}, {height}, {width}): softmax over the classes",
    "change": "`probabilities` ({batch}, 2, {height}, {width}): softmax over unchanged and changed",
    "detection": "`detections` ({batch}, 4 + {classes}, rows): centre x and y, width, height, scores, before the "
    "suppression of overlapping rows",
    "instance": "`detections` ({batch}, 4 + {classes}, rows): centre x and y, width, height, scores; `masks` "
    "({batch}, rows, cells, cells): the mask of each row's class in its box, on 0..1",
    "oriented": "`detections` ({batch}, 4 + {classes} + 1, rows): centre x and y, longer and shorter side, scores, "
    "angle in radians, clockwise; before the suppression of overlapping rows",
}


def graph_card(done: ExportedGraph, model: TaskModel, options: GraphOptions, name: str) -> str:
    """Return the README of an exported task model.

    Args:
        done: What was written and compared.
        model: What it was made of.
        options: What it was to be.
        name: Of the folder.
    """
    parts = [
        _title(done.contract, model, options, name),
        _what_it_takes(done.contract),
        _use(done.contract, options, name),
        _compared(done),
        _qgis(done.contract, options),
        _trained(model.description.get("card", {})),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _title(contract: GraphContract, model: TaskModel, options: GraphOptions, name: str) -> str:
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    form = "ONNX" if options.kind == "onnx" else "torch.export"
    return (
        f"---\nlibrary_name: {'onnx' if options.kind == 'onnx' else 'pytorch'}\ntags:\n- {contract.task}\n- vitp\n---\n\n"
        f"# {name}\n\nA model for {contract.task} ({len(contract.classes)} classes, {parameters:.1f} M parameters) as a "
        f"graph in {form}."
    )


def _what_it_takes(contract: GraphContract) -> str:
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
    }
    mode, side = contract.resize["mode"], contract.resize["size"]
    first = {
        "none": "their own size",
        "fixed": f"{side} × {side} px",
        "long": f"{side} px on the long side",
        "short": f"{side} px on the short side",
    }[mode]
    rows = [
        (
            "Input",
            f"`image` ({batch}, {channels}, {height}, {width}) float32: {of}{dates}, 8-bit values / 255",
        ),
        (
            "Inside",
            f"normalisation (mean {_numbers(contract.mean)}, std {_numbers(contract.std)}), network, decoding",
        ),
        ("Output", _OUTPUTS[contract.task].format(**values)),
        ("Images first get", first),
        ("Larger than the graph", f"windows that overlap by {contract.overlap:.0%}, merged by the runtime"),
        ("Smaller than the graph", "black at the bottom and the right"),
        ("Classes", ", ".join(contract.classes)),
    ]
    bands = ""
    if contract.channels is not None:
        of_bands = [
            (
                str(one["band"]),
                "10 · log10 (dB)" if one["transform"] == "db" else "",
                f"{one['low']:g}",
                f"{one['high']:g}",
            )
            for one in contract.channels
        ]
        bands = (
            "\n\nA band's value becomes 8 bits by (value − low) / (high − low), clipped. The runtime reads the values of an "
            "image from a `.npy` file of (bands, height, width). It must hold the quantity of each band, such as HU "
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
            numbers = (f"{100 * mine:.2f}", f"{100 * other:.2f}", f"{100 * (mine - other):.2f}")
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
    rows = [(word, str(card[key])) for key, word in words.items() if card.get(key) not in (None, "")]
    return "## Training\n\n" + markdown_table(("", ""), rows)
