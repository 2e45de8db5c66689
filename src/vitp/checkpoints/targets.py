"""`vitp export --format`: the vision tower in the form that another tool chain reads, each compared numerically."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vitp.checkpoints.checkpoint import Hints, read_checkpoint
from vitp.checkpoints.convert import convert
from vitp.checkpoints.export import ExportResult, VerifyReport, export_backbone, verify_export
from vitp.checkpoints.export_format import content_hash, tensor_digests
from vitp.checkpoints.graph import GraphKind, export_graph
from vitp.checkpoints.layouts import Layout
from vitp.core.errors import ConfigError, did_you_mean

Exporter = Callable[[str | Path, Path, int | None, bool], tuple[ExportResult, VerifyReport]]

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
    exporters = _exporters()
    if form not in exporters:
        raise ConfigError(
            f'there is no format "{form}"',
            where="--format",
            fix=did_you_mean(form, exporters) or f"choose one of {', '.join(exporters)}",
        )
    return exporters[form](source, Path(out), image_size, overwrite)


def _exporters() -> dict[str, Exporter]:
    return {
        "timm": _as_timm,
        "hf": _as_layout("hf"),
        "internvl": _as_layout("original"),
        "onnx": _as_graph("onnx"),
        "torch-export": _as_graph("torch-export"),
    }


def _as_timm(
    source: str | Path, out: Path, image_size: int | None, overwrite: bool
) -> tuple[ExportResult, VerifyReport]:
    if image_size is not None:
        raise ConfigError(
            "an export for timm takes images of any size",
            where="--image-size",
            fix="leave it out, and name img_size when the export is loaded",
        )
    result = export_backbone(source, out, overwrite=overwrite)
    return result, verify_export(out)


def _as_layout(layout: Layout) -> Exporter:
    def write(
        source: str | Path, out: Path, image_size: int | None, overwrite: bool
    ) -> tuple[ExportResult, VerifyReport]:
        hints = Hints(image_size=image_size)
        done = convert(source, out, layout, hints=hints, vision_only=True, overwrite=overwrite)
        weights = read_checkpoint(out).weights
        size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
        parameters = sum(tensor.numel() for tensor in weights.values())
        return ExportResult(out, content_hash(tensor_digests(weights)), parameters, size), done.checks

    return write


def _as_graph(kind: GraphKind) -> Exporter:
    def write(
        source: str | Path, out: Path, image_size: int | None, overwrite: bool
    ) -> tuple[ExportResult, VerifyReport]:
        return export_graph(source, out, kind, image_size=image_size, overwrite=overwrite)

    return write
