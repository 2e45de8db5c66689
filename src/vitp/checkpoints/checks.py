"""The same numbers from two implementations: random images and tokens through ours and through transformers'.

Shapes: B images, N patch tokens, D width, n image tokens, H width of the language model, L tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitp.core.errors import CheckpointError
from vitp.models.projector import pixel_shuffle
from vitp.models.vision import VisionTower
from vitp.models.vlm import VisionLanguageModel

TEXT_BEFORE, TEXT_AFTER = 5, 7
"""Text tokens around the image in the prompt that models are compared on."""


def random_images(size: int, count: int = 2, seed: int = 0) -> Tensor:
    """Return uint8 images (B, 3, size, size): noise, which answers to every weight."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, size=(count, 3, size, size), dtype=np.uint8))


def random_prompt(vocabulary: int, image_tokens: int, image_id: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return ids (L,) of a prompt with one image between random texts, and the places (n,) of its image tokens."""
    rng = np.random.default_rng(seed)
    text = rng.integers(0, vocabulary - 1, size=TEXT_BEFORE + TEXT_AFTER)
    text[text >= image_id] += 1  # every token but the placeholder
    ids = np.concatenate([text[:TEXT_BEFORE], np.full(image_tokens, image_id), text[TEXT_BEFORE:]])
    return torch.from_numpy(ids), TEXT_BEFORE + torch.arange(image_tokens)


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
def hf_outputs(
    folder: Path, normalised_BCHW: Tensor, *, whole: bool, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Return what transformers' own InternVL makes of the same images and prompt, loaded from a folder.

    Args:
        folder: In transformers' layout.
        normalised_BCHW: Float images, normalised.
        whole: The folder holds a language model, too.
        dtype: To compute in.

    Raises:
        CheckpointError: transformers can't load the folder, or finds names missing or too many.
    """
    from transformers import InternVLForConditionalGeneration, InternVLVisionModel
    from transformers.utils import logging as transformers_logging

    kind: Any = InternVLForConditionalGeneration if whole else InternVLVisionModel
    shows_progress = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        model, info = kind.from_pretrained(
            folder, dtype=dtype, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"transformers can't load it ({error})", where=str(folder)) from error
    finally:
        if shows_progress:
            transformers_logging.enable_progress_bar()
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, info.get(what) or ())):
            raise CheckpointError(f"transformers finds {len(names)} {what} ({names[0]})", where=str(folder))
    model.eval()
    images = normalised_BCHW.to(dtype)
    if not whole:
        return {"vision": model(pixel_values=images).last_hidden_state[:, 1:].float()}
    vision = model.model.vision_tower(pixel_values=images).last_hidden_state[:, 1:].float()
    features = model.get_image_features(pixel_values=images, return_dict=True)
    projected = features if isinstance(features, Tensor) else features.pooler_output
    rows = model.get_input_embeddings().weight.shape[0]
    ids_N, _ = random_prompt(rows, projected.shape[1], model.config.image_token_id)
    logits = model(input_ids=ids_N[None], pixel_values=images[:1], use_cache=False).logits[0]
    return {"vision": vision, "projector": projected.float(), "logits": logits.float()}


def compare_outputs(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], tolerance: float) -> str:
    """Return the largest difference of each output in words.

    The difference counts relative to the largest value where that exceeds 1.

    Raises:
        CheckpointError: A shape differs, or a difference exceeds the tolerance.
    """
    found = []
    for name, wanted in ours.items():
        given = theirs[name]
        if given.shape != wanted.shape:
            raise CheckpointError(f"{name} is {tuple(given.shape)} instead of {tuple(wanted.shape)}")
        difference = float((given - wanted).abs().max()) / max(1.0, float(wanted.abs().max()))
        if not difference <= tolerance:  # written so that nan fails, too
            raise CheckpointError(f"{name} is off by {difference:.2e}, more than {tolerance:.0e}")
        found.append(f"{name} {difference:.1e}")
    return "largest differences: " + ", ".join(found)


def compare_weights(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> str:
    """Return how many tensors are equal bit for bit.

    Args:
        ours: Name → tensor that was written.
        theirs: What was read back, under the same names.

    Raises:
        CheckpointError: A name is missing or too many, or a tensor differs.
    """
    if odd := sorted(ours.keys() ^ theirs.keys()):
        raise CheckpointError(f"{len(odd)} names are on one side only ({', '.join(odd[:3])})")
    different = [n for n, t in ours.items() if t.dtype != theirs[n].dtype or not torch.equal(t, theirs[n])]
    if different:
        raise CheckpointError(f"{len(different)} tensors differ ({', '.join(different[:3])})")
    return f"{len(ours)} tensors equal bit for bit"
