"""The model of a plan: read from a folder's configuration, or known by name, never with its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from vitp.checkpoints.description import CONFIG, read_config, vlm_of_config
from vitp.checkpoints.loading import read_tokenizer, vlm_folder
from vitp.core.errors import ConfigError
from vitp.data.chat import ChatTokenizer
from vitp.models.flops import TransformerShape, language_shape, vision_shape
from vitp.models.inflation import with_channels
from vitp.models.language import QWEN2_VOCABULARY, qwen2_half_billion
from vitp.models.vision import VisionSettings
from vitp.models.vlm import VisionLanguageModel, VLMSettings
from vitp.objectives.settings import ModelSettings

INTERNVL_1B = VLMSettings(
    vision=VisionSettings(architecture="vit_intern300m_patch14_448", image_size=448),
    language=qwen2_half_billion(tied=False),
    shuffle=2,
)
"""InternViT-300M, a projector and Qwen2.5-0.5B with an output layer of its own: what the paper starts from."""

INTERNVL_VOCABULARY = QWEN2_VOCABULARY

_BY_NAME = ("InternVL2_5-1B", "InternVL2.5-1B", "InternVL3-1B")


@dataclass(frozen=True)
class ModelShape:
    """A vision-language model as far as cost is concerned.

    Attributes:
        vision, language: The two transformers.
        tile: Side of a tile in pixels.
        patches: Patch tokens a tile.
        prefix: Tokens before the patches.
        patch_size: Side of a patch in pixels.
        shuffle: Side of the square of patches folded into an image token.
        layer_scale: Whether the ViT's blocks scale what they add.
        channels: Channels of the images.
        parameters: Part → number of parameters, embeddings counted once.
    """

    vision: TransformerShape
    language: TransformerShape
    tile: int
    patches: int
    prefix: int
    patch_size: int
    shuffle: int
    layer_scale: bool
    channels: int
    parameters: dict[str, int]

    @property
    def image_tokens(self) -> int:
        """Image tokens a tile."""
        return self.patches // self.shuffle**2

    @property
    def total_parameters(self) -> int:
        """Of all parts."""
        return sum(self.parameters.values())


def model_shape(config: VLMSettings, vocabulary: int) -> ModelShape:
    """Return the shape of a model without making its weights.

    Raises:
        ConfigError: The model can't be built.
    """
    with torch.device("meta"):
        vlm = VisionLanguageModel(config, vocabulary=vocabulary)
    return vlm_shape(vlm)


def vlm_shape(vlm: VisionLanguageModel) -> ModelShape:
    """Return the shape of a model."""
    tower: Any = vlm.vision
    return ModelShape(
        vision=vision_shape(tower),
        language=language_shape(vlm.language),
        tile=tower.image_size[0],
        patches=tower.grid**2,
        prefix=int(tower.model.num_prefix_tokens),
        patch_size=tower.patch_size,
        shuffle=vlm.config.shuffle,
        layer_scale=any(name.startswith(("ls1.", "gamma_1")) for name in tower.model.blocks[0].state_dict()),
        channels=tower.num_channels,
        parameters={
            name: sum(parameter.numel() for parameter in getattr(vlm, name).parameters())
            for name in ("vision", "projector", "language")
        },
    )


def planned_model(settings: ModelSettings) -> tuple[ModelShape, ChatTokenizer | None]:
    """Return the shape of the model that a run would start from, and its tokenizer where it is on disk.

    Raises:
        ConfigError, CheckpointError: The model is neither a folder of ours nor known by name.
    """
    if settings.init == "scratch":
        if settings.scratch is None:
            raise ConfigError(
                "doesn't say the sizes", where="model.scratch", fix='set it, or use model.init: "starter"'
            )
        return model_shape(_for_channels(settings.scratch, settings), settings.vocabulary), None
    if settings.init.rstrip("/").endswith(tuple(f"{name}{end}" for name in _BY_NAME for end in ("", "-hf"))):
        return model_shape(_for_channels(INTERNVL_1B, settings), INTERNVL_VOCABULARY), None
    folder = vlm_folder(settings.init)
    config, vocabulary = vlm_of_config(read_config(folder), folder / CONFIG)
    shape, tokenizer = model_shape(_for_channels(config, settings), vocabulary), read_tokenizer(folder)
    return shape, ChatTokenizer(tokenizer, template=config.template, tokens_per_tile=shape.image_tokens)


def _for_channels(config: VLMSettings, settings: ModelSettings) -> VLMSettings:
    """Return a model for the bands that a run names, else as it is."""
    vision = with_channels(config.vision, settings.channels or config.vision.channels)
    return config.model_copy(update={"vision": vision})
