"""A vision tower as a graph that runs without vitp and timm: ONNX, or a program of torch.export.

The normalisation is part of the graph: images go in as RGB on 0..1, feature maps come out. The number of images is
free, their size is fixed. Beside the graph stand `vitp_graph.json` with its contract, and the digests of both.

Shapes: B images, H × W pixels, D width, h × w cells.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from vitp.checkpoints.export import (
    GRAPH_DESCRIPTION,
    Check,
    ExportResult,
    VerifyReport,
    check_target,
    load_backbone,
    provenance_of,
)
from vitp.checkpoints.export_format import content_hash, tensor_digests
from vitp.core.errors import CheckpointError, ConfigError
from vitp.core.files import atomic_dir, write_json
from vitp.core.sealed import write_sums
from vitp.core.version import __version__
from vitp.models.resample import resized_tower
from vitp.models.vision import VisionTower

GraphKind = Literal["onnx", "torch-export"]

FILES: dict[GraphKind, str] = {"onnx": "backbone.onnx", "torch-export": "backbone.pt2"}
TOLERANCES: dict[GraphKind, float] = {"onnx": 1e-4, "torch-export": 1e-5}
"""Largest difference of a feature, relative to the largest one where that exceeds 1: another runtime adds up in
another order."""

OPSET = 18


class PixelsToFeatures(nn.Module):
    """RGB images on 0..1 (B, 3, H, W) → features of the last layer (B, D, h, w)."""

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, tower: VisionTower) -> None:
        super().__init__()
        self.tower = tower
        self.register_buffer("mean_C11", torch.tensor(tower.mean).view(-1, 1, 1))
        self.register_buffer("std_C11", torch.tensor(tower.std).view(-1, 1, 1))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Return the feature maps."""
        tokens_BND = self.tower.forward_tokens((image_BCHW - self.mean_C11) / self.std_C11)
        grid = self.tower.grid
        return tokens_BND.transpose(1, 2).unflatten(2, (grid, grid))


def export_graph(
    source: str | Path,
    out: str | Path,
    kind: GraphKind,
    *,
    image_size: int | None = None,
    overwrite: bool = False,
) -> tuple[ExportResult, VerifyReport]:
    """Write the vision tower of `source` as a graph, run the graph, and compare.

    Args:
        source: As `load_backbone`.
        out: New folder, which appears only when the graph gives the tower's features.
        kind: "onnx" or "torch-export".
        image_size: Side of the images in pixels; None: as trained.
        overwrite: Replace an older export.

    Raises:
        ConfigError: A package that ONNX needs isn't installed.
        CheckpointError: `source` holds no usable backbone, or the graph's features differ.
        VitpError: `out` exists, or can't be written.
    """
    out = Path(out)
    write, run = _tools(kind)
    check_target(out, overwrite)
    tower = load_backbone(source)
    if image_size is not None and image_size != tower.image_size[0]:
        tower = resized_tower(tower, image_size=image_size)
    module = PixelsToFeatures(tower.float()).eval()
    with atomic_dir(out) as temporary:
        write(module, _images(tower, 2), temporary / FILES[kind])
        check = _compare(module, tower, run, temporary / FILES[kind], TOLERANCES[kind])
        description = _describe(source, tower, kind, check)
        write_json(temporary / GRAPH_DESCRIPTION, description)
        write_sums(temporary, (FILES[kind], GRAPH_DESCRIPTION))
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    parameters = sum(tensor.numel() for tensor in tower.model.state_dict().values())
    return ExportResult(out, description["sha256"], parameters, size), VerifyReport(out, (check,))


Writer = Callable[[PixelsToFeatures, Tensor, Path], None]
Runner = Callable[[Path, Tensor], Tensor]


def _tools(kind: GraphKind) -> tuple[Writer, Runner]:
    if kind == "torch-export":
        return _write_program, _run_program
    if importlib.util.find_spec("onnx") is None:
        raise ConfigError(
            "ONNX needs the packages onnx and onnxruntime",
            where="--format onnx",
            fix='install them with: pip install "vitp[onnx]"',
        )
    return _write_onnx, _run_onnx


def _images(tower: VisionTower, count: int) -> Tensor:
    shape = (count, 3, *tower.image_size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(20))


@torch.no_grad()
def _compare(
    module: PixelsToFeatures, tower: VisionTower, run: Runner, path: Path, tolerance: float
) -> Check:
    """Run the graph on another number of images than it was traced with."""
    images_BCHW = _images(tower, 3)
    wanted, given = module(images_BCHW), run(path, images_BCHW)
    if given.shape != wanted.shape:
        raise CheckpointError(f"the graph gives {tuple(given.shape)} instead of {tuple(wanted.shape)}")
    difference = float((given - wanted).abs().max()) / max(1.0, float(wanted.abs().max()))
    if not difference <= tolerance:  # written so that nan fails, too
        raise CheckpointError(
            f"the graph's features are off by {difference:.2e}, more than {tolerance:.0e}", where=path.name
        )
    return Check("features of the graph", True, f"largest difference {difference:.1e}, 3 images")


def _write_program(module: PixelsToFeatures, sample: Tensor, path: Path) -> None:
    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.export.export(module, (sample,), dynamic_shapes={"image_BCHW": {0: batch}})
    torch.export.save(program, path)


def _run_program(path: Path, images_BCHW: Tensor) -> Tensor:
    return torch.export.load(path).module()(images_BCHW)


def _write_onnx(module: PixelsToFeatures, sample: Tensor, path: Path) -> None:
    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["features"], "opset_version": OPSET}
    with warnings.catch_warnings():
        # The exporters warn of what they take for constant; the comparison that follows tells whether it is.
        warnings.simplefilter("ignore")
        if importlib.util.find_spec("onnxscript") is not None:
            batch = {0: torch.export.Dim("batch", min=1, max=4096)}
            names |= {"dynamic_shapes": {"image_BCHW": batch}, "external_data": False, "verbose": False}
            torch.onnx.export(module, (sample,), path, dynamo=True, **names)
        else:
            names["dynamic_axes"] = {"image": {0: "batch"}, "features": {0: "batch"}}
            torch.onnx.export(module, (sample,), path, dynamo=False, **names)


def _run_onnx(path: Path, images_BCHW: Tensor) -> Tensor:
    feed = {"image": images_BCHW.numpy()}
    if importlib.util.find_spec("onnxruntime") is not None:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        features: Any = session.run(["features"], feed)
    else:
        from onnx.reference import ReferenceEvaluator

        features = ReferenceEvaluator(str(path)).run(["features"], feed)
    return torch.from_numpy(np.asarray(features[0]))


def _describe(source: str | Path, tower: VisionTower, kind: GraphKind, check: Check) -> dict[str, Any]:
    size, grid = tower.image_size[0], tower.grid
    weights = {name: tensor.float() for name, tensor in tower.model.state_dict().items()}
    return {
        "format": "vitp-graph-1",
        "vitp_version": __version__,
        "kind": kind,
        "file": FILES[kind],
        "input": {
            "name": "image",
            "shape": ["batch", 3, size, size],
            "type": "float32",
            "values": "RGB on 0..1; the normalisation is part of the graph",
        },
        "output": {"name": "features", "shape": ["batch", tower.width, grid, grid], "type": "float32"},
        "patch_size": tower.patch_size,
        "normalisation": {"mean": list(tower.mean), "std": list(tower.std)},
        "sha256": content_hash(tensor_digests(weights)),
        "checked": check.detail,
        "provenance": provenance_of(source).model_dump(mode="json", exclude_none=True),
    }
