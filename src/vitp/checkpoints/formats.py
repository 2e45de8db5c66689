"""`vitp export --format`: the vision tower in the form that another tool chain reads, each compared numerically.

A graph (ONNX, or a program of torch.export) runs without vitp and timm. The normalisation is part of it: images go in
as RGB on 0..1 (bands likewise, where the tower has some), feature maps come out. The number of images is free, their
size is fixed. Beside the graph stand `vitp_graph.json` with its contract, and the digests of both.

Shapes: B images, H × W pixels, D width, h × w cells.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitp.checkpoints.checkpoint import Hints, provenance_of, read_checkpoint
from vitp.checkpoints.convert import convert_model
from vitp.checkpoints.description import GRAPH_DESCRIPTION, content_hash, tensor_digests
from vitp.checkpoints.export import ExportResult, check_target, export_backbone
from vitp.checkpoints.graphs import GraphKind, write_graph
from vitp.checkpoints.layouts import LayoutName
from vitp.checkpoints.loading import load_backbone
from vitp.checkpoints.origin import told_origin, warn_of_licence
from vitp.checkpoints.verify import Check, VerifyReport, largest_differences, verify_export
from vitp.core.errors import ConfigError, did_you_mean
from vitp.core.extras import need
from vitp.core.files import atomic_dir, write_json
from vitp.core.sealed import write_sums
from vitp.core.version import __version__
from vitp.models.vision import VisionTower

_GRAPHS: dict[GraphKind, str] = {"onnx": "backbone.onnx", "torch-export": "backbone.pt2"}
_TOLERANCES: dict[GraphKind, float] = {"onnx": 1e-4, "torch-export": 1e-5}
"""Largest difference of a feature, relative to the largest one where that exceeds 1: another runtime adds up in
another order."""

LOADS = {
    "timm": 'timm.create_model("local-dir:{out}", pretrained=True) or vitp.load_backbone("{out}")',
    "hf": 'transformers.AutoModel.from_pretrained("{out}") or vitp.load_backbone("{out}")',
    "internvl": 'safetensors.torch.load_file("{out}/model.safetensors") or vitp.load_backbone("{out}")',
    "onnx": 'onnxruntime.InferenceSession("{out}/backbone.onnx")',
    "torch-export": 'torch.export.load("{out}/backbone.pt2").module()',
}
"""Format → how what was written is loaded."""


def export_as(
    source: str | Path,
    out: str | Path,
    form: str = "timm",
    *,
    image_size: int | None = None,
    overwrite: bool = False,
) -> tuple[ExportResult, VerifyReport]:
    """Write the vision tower of `source` and compare what was written with the tower.

    Args:
        source: As `load_backbone`.
        out: New folder, which appears only when it is whole.
        form: "timm", "hf" (transformers' `InternVLVisionModel`), "internvl" (names that begin with `vision_model.`,
            as the released ViTP backbones and InternVL's code have them), "onnx" or "torch-export".
        image_size: Side of the images in pixels, positions resampled; None: as trained. Not for "timm", which takes
            any size when it is loaded.
        overwrite: Replace an older export.

    Returns:
        What was written, and what was compared.

    Raises:
        ConfigError: There is no such format, or a package that it needs isn't installed.
        CheckpointError: `source` holds no usable backbone, the format has no place for it, or the features differ.
        VitpError: `out` exists, or can't be written.
    """
    if form not in LOADS:
        raise ConfigError(
            f'there is no format "{form}"',
            where="--format",
            fix=did_you_mean(form, LOADS) or f"choose one of {', '.join(LOADS)}",
        )
    out = Path(out)
    if form == "timm":
        if image_size is not None:
            raise ConfigError(
                "an export for timm takes images of any size",
                where="--image-size",
                fix="leave it out, and name img_size when the export is loaded",
            )
        result = export_backbone(source, out, overwrite=overwrite)
        return result, verify_export(out)
    if form in _GRAPHS:
        return export_graph(source, out, form, image_size=image_size, overwrite=overwrite)
    layout: LayoutName = "hf" if form == "hf" else "original"
    hints = Hints(image_size=image_size)
    done = convert_model(source, out, layout, hints=hints, vision_only=True, overwrite=overwrite)
    weights = read_checkpoint(out).weights
    parameters = sum(tensor.numel() for tensor in weights.values())
    return ExportResult(out, content_hash(tensor_digests(weights)), parameters), done.checks


class PixelsToFeatures(nn.Module):
    """Images on 0..1 (B, C, H, W) → features of the last layer (B, D, h, w)."""

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
        return torch.unflatten(tokens_BND.transpose(1, 2), 2, (grid, grid))


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
    if kind == "onnx":
        need("onnx", "onnx", "--format onnx", ConfigError)
    check_target(out, overwrite)
    tower = load_backbone(source, image_size=image_size)
    warn_of_licence(tower.config)
    module = PixelsToFeatures(tower.float()).eval()
    with atomic_dir(out) as temporary:
        file = temporary / _GRAPHS[kind]
        # Two images, as torch takes a size of 1 for a constant.
        write_graph(module, _images(tower, 2), kind, file, outputs=("features",))
        check = _compare(module, tower, kind, file)
        description = _describe(source, tower, kind, check)
        write_json(temporary / GRAPH_DESCRIPTION, description)
        write_sums(temporary, (_GRAPHS[kind], GRAPH_DESCRIPTION))
    parameters = sum(tensor.numel() for tensor in tower.model.state_dict().values())
    return ExportResult(out, description["sha256"], parameters), VerifyReport(out, (check,))


def _images(tower: VisionTower, count: int) -> Tensor:
    shape = (count, tower.num_channels, *tower.image_size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(20))


@torch.no_grad()
def _compare(module: PixelsToFeatures, tower: VisionTower, kind: GraphKind, path: Path) -> Check:
    """Run the graph on another number of images than it was traced with."""
    images_BCHW = _images(tower, 3)
    if kind == "torch-export":
        features_BDhw = torch.export.load(path).module()(images_BCHW)
    else:
        features_BDhw = _run_onnx(path, images_BCHW)
    name = "the graph's output"
    found = largest_differences({name: features_BDhw}, {name: module(images_BCHW)}, _TOLERANCES[kind])
    return Check("features of the graph", True, f"largest difference {found[name]:.1e}, 3 images")


def _run_onnx(path: Path, images_BCHW: Tensor) -> Tensor:
    feed = {"image": images_BCHW.numpy()}
    if importlib.util.find_spec("onnxruntime") is not None:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        features: Any = session.run(["features"], feed)
    else:
        from onnx.reference import ReferenceEvaluator

        # Slow, but there wherever onnx is.
        features = ReferenceEvaluator(str(path)).run(["features"], feed)
    return torch.from_numpy(np.asarray(features[0]))


def _describe(source: str | Path, tower: VisionTower, kind: GraphKind, check: Check) -> dict[str, Any]:
    size, grid, channels = tower.image_size[0], tower.grid, tower.in_channels
    values = "RGB on 0..1; the normalisation is part of the graph"
    if channels is not None:
        values = (
            "bands in the order of `channels`, low as 0 and high as 1; the normalisation is part of the graph"
        )
    weights = {name: tensor.float() for name, tensor in tower.model.state_dict().items()}
    return {
        "format": "vitp-graph-1",
        "vitp_version": __version__,
        "kind": kind,
        "file": _GRAPHS[kind],
        "input": {
            "name": "image",
            "shape": ["batch", tower.num_channels, size, size],
            "type": "float32",
            "values": values,
        },
        **({} if channels is None else {"channels": channels.model_dump(mode="json")}),
        "output": {"name": "features", "shape": ["batch", tower.width, grid, grid], "type": "float32"},
        "patch_size": tower.patch_size,
        "normalisation": {"mean": list(tower.mean), "std": list(tower.std)},
        "sha256": content_hash(tensor_digests(weights)),
        "checked": check.detail,
        **told_origin(tower.config),
        "provenance": provenance_of(source).model_dump(mode="json", exclude_none=True),
    }
