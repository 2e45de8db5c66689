"""Which model a plan is for: read from a folder's configuration, or known by name, never with its weights."""

from __future__ import annotations

from vitp.checkpoints.description import CONFIG, read_config, vlm_of_config
from vitp.checkpoints.loading import read_tokenizer, vlm_folder
from vitp.core.errors import ConfigError
from vitp.data.chat import ChatTokenizer
from vitp.models.language import QWEN2_VOCABULARY, qwen2_half_billion
from vitp.models.vision import VisionConfig
from vitp.models.vlm import VLMConfig
from vitp.objectives.settings import ModelSettings
from vitp.planning.memory import ModelShape, model_shape

INTERNVL_1B = VLMConfig(
    vision=VisionConfig(architecture="vit_intern300m_patch14_448", image_size=448),
    language=qwen2_half_billion(tied=False),
    shuffle=2,
)
"""InternViT-300M, a projector and Qwen2.5-0.5B with an output layer of its own: what the paper starts from."""

INTERNVL_VOCABULARY = QWEN2_VOCABULARY

_BY_NAME = ("InternVL2_5-1B", "InternVL2.5-1B", "InternVL3-1B")


def planned_model(settings: ModelSettings) -> tuple[ModelShape, ChatTokenizer | None]:
    """Return the shape of the model that a run would start from, and its tokenizer where it is on disk.

    Raises:
        ConfigError, CheckpointError: The model is neither a folder of ours nor known by name.
    """
    if settings.init == "scratch":
        if settings.scratch is None:
            raise ConfigError(
                "says no sizes", where="model.scratch", fix='set it, or use model.init: "starter"'
            )
        return model_shape(settings.scratch, settings.vocabulary), None
    if settings.init.rstrip("/").endswith(tuple(f"{name}{end}" for name in _BY_NAME for end in ("", "-hf"))):
        return model_shape(INTERNVL_1B, INTERNVL_VOCABULARY), None
    folder = vlm_folder(settings.init)
    config, vocabulary = vlm_of_config(read_config(folder), folder / CONFIG)
    shape = model_shape(config, vocabulary)
    return shape, ChatTokenizer(
        read_tokenizer(folder), template=config.template, tokens_per_tile=shape.image_tokens
    )
