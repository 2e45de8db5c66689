"""`vitp convert`: a model or vision tower from one layout into another, compared before the folder appears."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from vitp.checkpoints import export_format, pretrained
from vitp.checkpoints.build import build_tower, build_vlm
from vitp.checkpoints.checkpoint import Checkpoint, Hints, read_checkpoint
from vitp.checkpoints.checks import (
    compare_outputs,
    compare_weights,
    hf_outputs,
    random_images,
    tower_outputs,
    vlm_outputs,
)
from vitp.checkpoints.export import (
    Check,
    VerifyReport,
    check_target,
    own_folder,
    provenance_of,
    verify_export,
)
from vitp.checkpoints.layouts import Layout
from vitp.checkpoints.open import read_tokenizer
from vitp.checkpoints.report import WeightsReport
from vitp.checkpoints.tensors import MAX_SHARD
from vitp.checkpoints.writing import image_token_id, write_hf, write_original
from vitp.core.errors import CheckpointError, ConfigError, VitpError
from vitp.core.files import atomic_dir
from vitp.data.chat import ChatTokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Conversion:
    """What was converted.

    Attributes:
        folder: Where it is.
        read: What became of the names of the source.
        checks: What was compared, with the numbers. All held: else nothing would have been written.
        whole: Whether it holds a language model, or the vision tower alone.
    """

    folder: Path
    read: WeightsReport
    checks: VerifyReport
    whole: bool


def convert(
    source: str | Path,
    out: str | Path,
    to: Layout,
    *,
    hints: Hints | None = None,
    dtype: str | None = None,
    revision: str | None = None,
    max_shard: int = MAX_SHARD,
    vision_only: bool = False,
    overwrite: bool = False,
    tolerance: float = 1e-5,
) -> Conversion:
    """Write a model in another layout; the folder appears only when weights and outputs are the same.

    Args:
        source: Whatever `load_vlm` or `load_backbone` take.
        out: New folder.
        to: "original" (InternVL's), "hf" (transformers'), "timm" (the vision tower alone) or "vitp".
        hints: What the source doesn't say about itself.
        dtype: "float32", "bfloat16" or "float16"; None: as the source has it. An exported tower is always float32.
        revision: Of the hub's repository.
        max_shard: Bytes of a shard.
        vision_only: Leave projector and language model out.
        overwrite: Replace an older conversion.
        tolerance: Largest difference of an output, relative to the largest value where that exceeds 1.

    Raises:
        CheckpointError: The source can't be read, the target has no place for a part, or something differs.
        ConfigError: There is no such layout or type.
        VitpError: `out` exists, or can't be written.
    """
    out = Path(out)
    writers = _writers()
    if to not in writers:
        raise ConfigError(
            f'there is no layout "{to}"', where="--to", fix=f"choose one of {', '.join(writers)}"
        )
    check_target(out, overwrite)
    checkpoint = read_checkpoint(
        own_folder(source) or source,
        hints=hints,
        vision_only=vision_only or to == "timm",  # timm has no place for the rest
        revision=revision,
    )
    checkpoint = _cast(checkpoint, dtype)
    # Towers in timm's layout, and on their own in ours, are exports: always float32.
    exported = checkpoint.vlm is None and to in ("timm", "vitp")
    reference = _Reference(checkpoint)
    with atomic_dir(out) as temporary:
        if exported:
            tower, _ = build_tower(checkpoint)
            export_format.write_backbone(temporary, tower, provenance_of(source), name=out.resolve().name)
        else:
            writers[to](temporary, reference.checkpoint, max_shard)
        checks = _compare(temporary, reference, to, exported, tolerance)
    return Conversion(out, reference.report, VerifyReport(out, checks), checkpoint.vlm is not None)


def _writers() -> dict[str, Callable[[Path, Checkpoint, int], None]]:
    return {
        "original": lambda folder, checkpoint, size: write_original(folder, checkpoint, max_shard=size),
        "hf": lambda folder, checkpoint, size: write_hf(folder, checkpoint, max_shard=size),
        "timm": lambda _folder, _checkpoint, _size: None,
        "vitp": lambda folder, checkpoint, _size: _write_vlm(folder, checkpoint),
    }


def _write_vlm(folder: Path, checkpoint: Checkpoint) -> None:
    vlm, _ = build_vlm(checkpoint)
    assert checkpoint.tokenizer is not None
    chat = ChatTokenizer(
        read_tokenizer(checkpoint.tokenizer),
        template=vlm.config.template,
        tokens_per_tile=vlm.tokens_per_tile,
    )
    pretrained.write_vlm(folder, vlm, chat, dtype=_common_dtype(checkpoint.weights))


class _Reference:
    """Outputs of the source through our own model, and its weights at the sizes that are wanted.

    The model is let go after that: two of them may not fit into memory.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        images = random_images(checkpoint.vision.image_size)
        if checkpoint.vlm is None:
            tower, self.report = build_tower(checkpoint)
            self.outputs = tower_outputs(tower, images)
            fitted = {f"vision.{name}": t for name, t in tower.state_dict().items()}
        else:
            vlm, self.report = build_vlm(checkpoint)
            tower = vlm.vision
            self.outputs = vlm_outputs(vlm, images, image_token_id(checkpoint))
            fitted = vlm.state_dict()
        self.normalised = tower.normalize(images)
        # Only what was resampled comes from the model: all else stays in the type of the file.
        weights = {
            name: tensor if tensor.shape == fitted[name].shape else fitted[name].to(tensor.dtype)
            for name, tensor in checkpoint.weights.items()
        }
        self.checkpoint = replace(checkpoint, weights=weights)


def _compare(
    folder: Path, reference: _Reference, to: str, exported: bool, tolerance: float
) -> tuple[Check, ...]:
    """Every comparison of the written folder with the source.

    Raises:
        CheckpointError: With what differs; the folder is not kept then.
    """
    checks = []
    if exported:
        # Reads the folder with timm and with vitp, and compares weights, features and what the card says.
        checks += list(verify_export(folder, tolerance=tolerance).checks)
    steps: list[tuple[str, Callable[[], str]]] = [
        ("weights", lambda: _weights_read_back(folder, reference, to, exported)),
        ("outputs through vitp", lambda: _outputs_read_back(folder, reference, tolerance)),
    ]
    if to == "hf":
        steps.append(("outputs through transformers", lambda: _outputs_of_hf(folder, reference, tolerance)))
    for name, step in steps:
        try:
            checks.append(Check(name, True, step()))
        except VitpError as error:
            raise CheckpointError(
                f"the converted {name} differ: {error}", where=reference.checkpoint.source
            ) from error
    return tuple(checks)


def _weights_read_back(folder: Path, reference: _Reference, to: str, exported: bool) -> str:
    written = dict(reference.checkpoint.weights)
    if exported or to == "vitp":  # these have one type for all numbers
        kind = torch.float32 if exported else _common_dtype(written)
        written = {name: t.to(kind) if t.is_floating_point() else t for name, t in written.items()}
    read = read_checkpoint(folder).weights
    # Layer scales of one, where the source has none, are the only names that a layout adds.
    added = {n for n in read.keys() - written.keys() if n.endswith(".gamma") and bool((read[n] == 1).all())}
    return compare_weights(written, {name: t for name, t in read.items() if name not in added})


def _outputs_read_back(folder: Path, reference: _Reference, tolerance: float) -> str:
    checkpoint = read_checkpoint(folder)
    images = random_images(checkpoint.vision.image_size)
    if checkpoint.vlm is None:
        outputs = tower_outputs(build_tower(checkpoint)[0], images)
        return compare_outputs({"vision": reference.outputs["vision"]}, outputs, tolerance)
    outputs = vlm_outputs(build_vlm(checkpoint)[0], images, image_token_id(checkpoint))
    return compare_outputs(reference.outputs, outputs, tolerance)


def _outputs_of_hf(folder: Path, reference: _Reference, tolerance: float) -> str:
    whole = reference.checkpoint.vlm is not None
    outputs = hf_outputs(folder, reference.normalised, whole=whole)
    return compare_outputs(reference.outputs, outputs, tolerance)


def _cast(checkpoint: Checkpoint, dtype: str | None) -> Checkpoint:
    if dtype is None:
        return checkpoint
    if dtype not in DTYPES:
        raise ConfigError(
            f'there is no type "{dtype}"', where="--dtype", fix=f"choose one of {', '.join(DTYPES)}"
        )
    kind = DTYPES[dtype]
    weights = {n: t.to(kind) if t.is_floating_point() else t for n, t in checkpoint.weights.items()}
    return replace(checkpoint, weights=weights)


def _common_dtype(weights: dict[str, Tensor]) -> torch.dtype:
    kinds = {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()}
    return kinds.pop() if len(kinds) == 1 else torch.float32
