"""Modules as graphs that run without their code: ONNX, or a program of torch.export.

Shapes: B images.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitp.core.extras import need, silenced

GraphKind = Literal["onnx", "torch-export"]
OPSET = 18

_MOST_IMAGES = 4096


def write_graph(
    module: nn.Module,
    sample: Tensor,
    kind: GraphKind,
    path: Path,
    *,
    outputs: Sequence[str],
    any_batch: bool = True,
) -> None:
    """Write a module of one input, `image`.

    Args:
        module: In eval mode, on the CPU.
        sample: (B, …) an input; the batch isn't 1 where any number of images may come.
        kind: "onnx" or "torch-export".
        path: File.
        outputs: Names of what the module returns.
        any_batch: Whether the graph takes any number of images; False: as many as the sample has.
    """
    batch = {0: torch.export.Dim("batch", min=1, max=_MOST_IMAGES)}
    shapes = (batch,) if any_batch else None
    if kind == "torch-export":
        program = torch.export.export(module, (sample,), dynamic_shapes=shapes)
        for part in program.graph_module.modules():
            for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
                node.meta.pop("stack_trace", None)  # folders of this machine, which are nobody's business
        torch.export.save(program, path)
        return
    names: dict[str, Any] = {"input_names": ["image"], "output_names": list(outputs), "opset_version": OPSET}
    # The exporters tell what they take for constant; a comparison follows anyway.
    with silenced("torch.onnx"):
        # The newer exporter needs onnxscript; the older one does without it, and is told in other words which sizes are
        # free.
        if importlib.util.find_spec("onnxscript") is not None:
            names |= {"dynamic_shapes": shapes, "external_data": False, "verbose": False}
            torch.onnx.export(module, (sample,), path, dynamo=True, **names)
            _forget_places(path)
        else:
            if any_batch:
                names["dynamic_axes"] = {name: {0: "batch"} for name in ("image", *outputs)}
            torch.onnx.export(module, (sample,), path, dynamo=False, **names)


def _forget_places(path: Path) -> None:
    """Remove from an ONNX file in which lines of which folders its nodes were made."""
    onnx = need("onnx", "onnx", str(path))
    model = onnx.load(path)
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for node in nodes:
            kept = [entry for entry in node.metadata_props if not entry.key.startswith("pkg.torch.onnx.")]
            del node.metadata_props[:]
            node.metadata_props.extend(kept)
    onnx.save(model, path)


def add_metadata(path: Path, texts: Mapping[str, str]) -> None:
    """Write texts into an ONNX file by their names."""
    onnx = need("onnx", "onnx", str(path))
    model = onnx.load(path)
    kept = {entry.key: entry.value for entry in model.metadata_props} | dict(texts)
    onnx.helper.set_model_props(model, kept)
    onnx.save(model, path)
