"""Another vision tower or another language model in a vision-language model; the projector between them is made anew.

The result answers nothing sensible before it is aligned: pretrain it with `objective.align.steps`
(docs/weights.md).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitp.checkpoints import hub, layouts
from vitp.checkpoints.checkpoint import read_checkpoint
from vitp.checkpoints.description import CONFIG, is_vlm_config, read_config
from vitp.checkpoints.layouts import DERIVED
from vitp.checkpoints.loading import LoadedVLM, grow_embeddings, read_tokenizer
from vitp.checkpoints.published import language_config
from vitp.checkpoints.tensors import read_tensors, weights_file
from vitp.core.errors import CheckpointError, ConfigError
from vitp.core.tensors import load_weights
from vitp.data.chat import ChatTokenizer
from vitp.models.language import LanguageSettings, build_language_model
from vitp.models.resample import resized_tower
from vitp.models.vision import VisionTower
from vitp.models.vlm import VisionLanguageModel

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def swap_vision(
    loaded: LoadedVLM,
    tower: VisionTower,
    *,
    shuffle: int | None = None,
    keep_projector: bool = False,
    seed: int = 0,
) -> LoadedVLM:
    """Return the model with another vision tower; language model and tokenizer are the same.

    Args:
        loaded: The model; it isn't changed, and shares its language model with the new one.
        tower: The tower, in the model's place from then on. An image size whose grid can't be folded is rounded down.
        shuffle: Side of the square of patches folded into a token; None: as before.
        keep_projector: Keep the projector's weights: for a tower that was trained on from the one before.
        seed: Seed of the new projector.

    Raises:
        ConfigError: The projector is to be kept, but its sizes don't fit.
    """
    old = loaded.vlm
    shuffle = shuffle or old.config.shuffle
    if tower.grid % shuffle:
        tower = resized_tower(tower, image_size=tower.grid // shuffle * shuffle * tower.patch_size)
    config = old.config.model_copy(update={"vision": tower.config, "shuffle": shuffle})
    vlm = _assemble(config, tower, old.language, old if keep_projector else None, seed)
    chat = ChatTokenizer(loaded.chat.tokenizer, template=config.template, tokens_per_tile=vlm.tokens_per_tile)
    return LoadedVLM(vlm.eval(), chat)


def swap_language(
    loaded: LoadedVLM,
    source: str | Path,
    *,
    template: str | None = None,
    layers: int | None = None,
    trained: bool = True,
    seed: int = 0,
) -> LoadedVLM:
    """Return the model with another language model and its tokenizer; the vision tower is the same.

    Args:
        loaded: The model; it isn't changed, and shares its vision tower with the new one.
        source: Folder or hub id of a causal language model (Qwen2, Qwen2.5, Qwen3, Llama) in transformers' layout, or
            of a vision-language model, whose language model is taken.
        template: Chat template; None: that of the vision-language model, or ChatML for a language model.
        layers: Take its first layers only, with its embeddings and its last norm; None: all.
        trained: False: its sizes and its tokenizer, with random weights.
        seed: Seed of the new projector, of new tokens, and of random weights.

    Raises:
        CheckpointError: It holds no language model that vitp can run.
        ConfigError: The tokenizer doesn't know the template's marks, or it has fewer layers.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # also of the rows of new tokens
        language_settings, language, folder, own_template = _read_language(source, layers, trained)
        config = loaded.vlm.config.model_copy(
            update={"language": language_settings, "template": template or own_template}
        )
        vlm = _assemble(config, loaded.vlm.vision, language, None, seed)
        tokenizer = read_tokenizer(folder)
        chat = ChatTokenizer(tokenizer, template=config.template, tokens_per_tile=vlm.tokens_per_tile)
        grow_embeddings(vlm, chat)
    return LoadedVLM(vlm.eval(), chat)


def _assemble(
    config: Any, tower: VisionTower, language: Any, projector_of: VisionLanguageModel | None, seed: int
) -> VisionLanguageModel:
    """Put given parts into a model: only the projector is new."""
    rows = int(language.get_input_embeddings().weight.shape[0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # The parts that are there already are put in as they are; the ones made here cost memory for a moment only.
        with torch.device("meta"):
            vlm = VisionLanguageModel(config, vocabulary=rows)
        # `to_empty` leaves what happened to lie in memory, so each layer is drawn anew.
        vlm.projector.to_empty(device="cpu")
        for layer in vlm.projector:
            if isinstance(layer, nn.Linear | nn.LayerNorm):
                layer.reset_parameters()
    vlm.vision, vlm.language = tower, language
    if projector_of is not None:
        kept = projector_of.projector.state_dict()
        own = vlm.projector.state_dict()
        if any(kept[name].shape != tensor.shape for name, tensor in own.items()):
            raise ConfigError(
                "the projector's sizes don't fit the new part",
                where="--keep-projector",
                fix="let it be made anew",
            )
        vlm.projector.load_state_dict(kept)
    return vlm


def _read_language(
    source: str | Path, layers: int | None, trained: bool
) -> tuple[LanguageSettings, Any, Path, str]:
    """Return settings, model, folder of the tokenizer and chat template."""
    path = hub.locate(source)
    if path is None or not path.is_dir():
        raise CheckpointError("is no folder of a language model", where=str(source), fix="check the path")
    values = read_config(path)
    if "vision_config" in values or is_vlm_config(values):
        checkpoint = read_checkpoint(path)
        assert checkpoint.vlm is not None and checkpoint.vocabulary is not None
        weights = layouts.part_of(checkpoint.weights, layouts.LANGUAGE)
        settings, rows, template = checkpoint.vlm.language, checkpoint.vocabulary, checkpoint.vlm.template
    else:
        weights = {
            name: t for name, t in read_tensors(weights_file(path)).items() if not DERIVED.search(name)
        }
        settings = language_config(values, where=str(path / CONFIG), tied="lm_head.weight" not in weights)
        if (table := weights.get("model.embed_tokens.weight")) is None:
            raise CheckpointError(
                "holds no token embeddings", where=str(path), fix="name a causal language model"
            )
        rows, template = int(table.shape[0]), "chatml"
    if layers is not None:
        settings, weights = _first_layers(settings, weights, layers, str(source))
    model: Any = build_language_model(settings, vocabulary=rows)
    if trained:
        load_weights(model, weights, source=str(source), layout="hf")
    return settings, model.eval(), path, template


def _first_layers(
    settings: LanguageSettings, weights: dict[str, Tensor], layers: int, where: str
) -> tuple[LanguageSettings, dict[str, Tensor]]:
    """Return settings and weights of the first layers, with the embeddings and the last norm."""
    there = int(settings.arguments["num_hidden_layers"])
    if not 1 <= layers <= there:
        raise ConfigError(f"has {there} layers, not {layers}", where=where, fix=f"take 1 to {there}")
    # Lists with an entry for each layer, such as their types, are cut as the layers are.
    arguments = {
        key: value[:layers] if isinstance(value, list) and len(value) == there else value
        for key, value in settings.arguments.items()
    }
    arguments["num_hidden_layers"] = layers
    kept = {
        name: tensor
        for name, tensor in weights.items()
        if not (layer := _LAYER.search(name)) or int(layer[1]) < layers
    }
    return settings.model_copy(update={"arguments": arguments}), kept
