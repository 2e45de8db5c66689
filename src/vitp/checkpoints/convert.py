"""`vitp convert`: a model or vision tower from one layout into another, compared before the folder appears.

The comparison sends random images and tokens through our model and through what was written, also with transformers'
own code.

Shapes: B images, N patch tokens, D width, n image tokens, H width of the language model, L tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import transformers
from torch import Tensor

from vitp.checkpoints.checkpoint import Checkpoint, Hints, provenance_of, read_checkpoint
from vitp.checkpoints.export import check_target, write_backbone
from vitp.checkpoints.layouts import LayoutName
from vitp.checkpoints.loading import build_tower, build_vlm, chat_of
from vitp.checkpoints.origin import warn_of_licence
from vitp.checkpoints.tensors import MAX_SHARD
from vitp.checkpoints.verify import Check, VerifyReport, largest_differences, verify_export
from vitp.checkpoints.writing import image_token_id, write_hf, write_original, write_vlm
from vitp.core.errors import CheckpointError, ConfigError, VitpError
from vitp.core.files import atomic_dir
from vitp.core.tensors import WeightsReport, first_of
from vitp.models.projector import pixel_shuffle
from vitp.models.vision import VisionTower
from vitp.models.vlm import VisionLanguageModel

_TEXT_BEFORE, _TEXT_AFTER = 5, 7
"""Text tokens around the image in the prompt that models are compared on."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Conversion:
    """What was converted.

    Attributes:
        folder: Folder of the model.
        read: What became of the names of the source.
        checks: What was compared, with the numbers. All held: else nothing would have been written.
        whole: Whether it holds a language model, or the vision tower alone.
    """

    folder: Path
    read: WeightsReport
    checks: VerifyReport
    whole: bool


def convert_model(
    source: str | Path,
    out: str | Path,
    to: LayoutName,
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
        revision: Revision of the hub's repository.
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
    if to not in get_args(LayoutName):
        choices = ", ".join(get_args(LayoutName))
        raise ConfigError(f'there is no layout "{to}"', where="--to", fix=f"choose one of {choices}")
    check_target(out, overwrite)
    alone = vision_only or to == "timm"  # timm has no place for projector and language model
    checkpoint = read_checkpoint(source, hints=hints, vision_only=alone, revision=revision)
    if dtype is not None:
        if dtype not in _DTYPES:
            fix = f"choose one of {', '.join(_DTYPES)}"
            raise ConfigError(f'there is no type "{dtype}"', where="--dtype", fix=fix)
        checkpoint = checkpoint.cast(_DTYPES[dtype])
    warn_of_licence(checkpoint.vision)
    # Towers in timm's layout, and on their own in ours, are exports: always float32.
    exported = checkpoint.vlm is None and to in ("timm", "vitp")
    reference = _Reference(checkpoint)
    with atomic_dir(out) as temporary:
        if exported:
            tower, _ = build_tower(checkpoint)
            write_backbone(temporary, tower, provenance_of(source), name=out.resolve().name)
        elif to == "vitp":
            vlm, _ = build_vlm(checkpoint)
            write_vlm(temporary, vlm, chat_of(checkpoint, vlm), dtype=checkpoint.dtype)
        else:
            write = write_original if to == "original" else write_hf
            write(temporary, reference.checkpoint, max_shard=max_shard)
        checks = _compare(temporary, reference, to, exported, tolerance)
    return Conversion(out, reference.report, VerifyReport(out, checks), checkpoint.vlm is not None)


class _Reference:
    """Outputs of the source through our own model, and its weights at the sizes that are wanted.

    The model is let go after that: two of them may not fit into memory.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        channels = checkpoint.vision.channels
        images = random_images(checkpoint.vision.image_size, 3 if channels is None else len(channels))
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
    """Compare the written folder with the source in every way.

    Raises:
        CheckpointError: With what differs; the folder is not kept then.
    """
    checks = []
    if exported:
        # Reads the folder with timm and with vitp, and compares weights, features and what the card says.
        checks += list(verify_export(folder, tolerance=tolerance).checks)
    wanted, whole = reference.outputs, reference.checkpoint.vlm is not None
    steps: dict[str, Callable[[], str]] = {
        "weights": lambda: _weights_read_back(folder, reference, to, exported),
        "outputs through vitp": lambda: _differences(
            _Reference(read_checkpoint(folder)).outputs, wanted, tolerance
        ),
    }
    if to == "hf":
        steps["outputs through transformers"] = lambda: _differences(
            hf_outputs(folder, reference.normalised, whole=whole), wanted, tolerance
        )
    for name, step in steps.items():
        try:
            checks.append(Check(name, True, step()))
        except VitpError as error:
            raise CheckpointError(
                f"the converted {name} differ: {error}", where=reference.checkpoint.source
            ) from error
    return tuple(checks)


def _weights_read_back(folder: Path, reference: _Reference, to: str, exported: bool) -> str:
    source = reference.checkpoint
    if exported or to == "vitp":  # these have one type for all numbers
        source = source.cast(torch.float32 if exported else source.dtype)
    written, read = source.weights, read_checkpoint(folder).weights
    # Layer scales of one, where the source has none, are the only names that a layout adds.
    added = {n for n in read.keys() - written.keys() if n.endswith(".gamma") and bool((read[n] == 1).all())}
    return compare_weights(written, {name: t for name, t in read.items() if name not in added})


def _differences(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], tolerance: float) -> str:
    found = largest_differences(given, wanted, tolerance)
    return "largest differences: " + ", ".join(f"{name} {value:.1e}" for name, value in found.items())


def random_images(size: int, channels: int = 3, *, count: int = 2, seed: int = 0) -> Tensor:
    """Return uint8 images (B, C, size, size): noise, which answers to every weight."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, size=(count, channels, size, size), dtype=np.uint8))


def random_prompt(vocabulary: int, image_tokens: int, image_id: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return ids (L,) of a prompt with one image between random texts, and the places (n,) of its image tokens."""
    rng = np.random.default_rng(seed)
    text = rng.integers(0, vocabulary - 1, size=_TEXT_BEFORE + _TEXT_AFTER)
    text[text >= image_id] += 1  # every token but the placeholder
    ids = np.concatenate([text[:_TEXT_BEFORE], np.full(image_tokens, image_id), text[_TEXT_BEFORE:]])
    return torch.from_numpy(ids), _TEXT_BEFORE + torch.arange(image_tokens)


@torch.no_grad()
def tower_outputs(tower: VisionTower, images_BCHW: Tensor) -> dict[str, Tensor]:
    """Return {"vision": patch tokens (B, N, D)} of uint8 images."""
    return {"vision": tower.forward_tokens(tower.normalize(images_BCHW)).float()}


@torch.no_grad()
def vlm_outputs(vlm: VisionLanguageModel, images_BCHW: Tensor, image_id: int) -> dict[str, Tensor]:
    """Return vision (B, N, D), projector (B, n, H) and logits (L, V) of images and of a prompt with the first one."""
    rows = vlm.language.get_input_embeddings().weight.shape[0]
    ids_N, places_K = random_prompt(rows, vlm.tokens_per_tile, image_id)
    vision_BND = vlm.vision.forward_tokens(vlm.vision.normalize(images_BCHW))
    projected_BnH = vlm.projector(pixel_shuffle(vision_BND, vlm.config.shuffle))
    inputs_1LH = vlm.language.get_input_embeddings()(ids_N[None])
    inputs_1LH[0, places_K] = projected_BnH[0]
    return {
        "vision": vision_BND.float(),
        "projector": projected_BnH.float(),
        "logits": vlm.language(inputs_embeds=inputs_1LH, use_cache=False).logits[0].float(),
    }


@torch.no_grad()
def hf_outputs(folder: Path, normalised_BCHW: Tensor, *, whole: bool) -> dict[str, Tensor]:
    """Return what transformers' own InternVL makes of the same images and prompt, loaded from a folder.

    Args:
        folder: Folder in transformers' layout.
        normalised_BCHW: Float images, normalised.
        whole: The folder holds a language model, too.

    Raises:
        CheckpointError: transformers can't load the folder, or finds names missing or too many.
    """
    library: Any = transformers  # which imports the code of a model when it is named
    kind = library.InternVLForConditionalGeneration if whole else library.InternVLVisionModel
    shows_progress = library.utils.logging.is_progress_bar_enabled()
    library.utils.logging.disable_progress_bar()
    try:
        model, info = kind.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"transformers can't load it ({error})", where=str(folder)) from error
    finally:
        if shows_progress:
            library.utils.logging.enable_progress_bar()
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, info.get(what) or ())):
            raise CheckpointError(f"transformers finds {len(names)} {what} ({names[0]})", where=str(folder))
    model.eval()
    images = normalised_BCHW.float()
    if not whole:
        # Without [CLS], which our tokens don't hold either.
        return {"vision": model(pixel_values=images).last_hidden_state[:, 1:].float()}
    vision = model.model.vision_tower(pixel_values=images).last_hidden_state[:, 1:].float()
    features = model.get_image_features(pixel_values=images, return_dict=True)
    # Older releases return the tensor itself.
    projected = features if isinstance(features, Tensor) else features.pooler_output
    rows = model.get_input_embeddings().weight.shape[0]
    ids_N, _ = random_prompt(rows, projected.shape[1], model.config.image_token_id)
    logits = model(input_ids=ids_N[None], pixel_values=images[:1], use_cache=False).logits[0]
    return {"vision": vision, "projector": projected.float(), "logits": logits.float()}


def compare_weights(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> str:
    """Return how many tensors are equal bit for bit.

    Args:
        ours: Name → tensor that was written.
        theirs: What was read back, under the same names.

    Raises:
        CheckpointError: A name is missing or too many, or a tensor differs.
    """
    if odd := sorted(ours.keys() ^ theirs.keys()):
        raise CheckpointError(f"{len(odd)} names are on one side only ({first_of(odd)})")
    different = [n for n, t in ours.items() if t.dtype != theirs[n].dtype or not torch.equal(t, theirs[n])]
    if different:
        raise CheckpointError(f"{len(different)} tensors differ ({first_of(different)})")
    return f"{len(ours)} tensors equal bit for bit"
