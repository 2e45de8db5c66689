"""Training few parameters of a vision tower: which, that the others don't change, and their file.

`model/adapt/adapt.safetensors` of a run holds all that was trained of the tower and nothing else. It fits the tower
that the run began with, whose other weights it names by a hash.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, Discriminator, Tag
from torch import nn

from vitp.core.errors import CheckpointError, ConfigError
from vitp.core.sealed import read_metadata
from vitp.core.tensors import load_tensors, save_tensors, tensor_bytes
from vitp.models.adapt import AdapterSettings, PromptSettings, adapt_kind
from vitp.models.lora import VisionLoRASettings, add_lora
from vitp.models.vision import VisionTower

ADAPT_FILE = "adapt.safetensors"
ADAPT_FOLDER = "adapt"
"""Beside the weights of a model: timm fails on two files of weights in one folder."""


_ADDED = "adapt."
"""Names of what is added begin so; see `VisionTower.adapt`."""


def _by_kind(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


AnyAdapt = Annotated[
    Annotated[
        Annotated[VisionLoRASettings, Tag("lora")]
        | Annotated[PromptSettings, Tag("prompts")]
        | Annotated[AdapterSettings, Tag("adapters")]
        | Annotated[AdapterSettings, Tag("gates")],
        Discriminator(adapt_kind),
    ]
    | None,
    BeforeValidator(_by_kind),
]
"""Settings of what is trained of a tower in place of all its weights; a kind alone stands for its defaults."""


def adapt_tower(tower: VisionTower, settings: AnyAdapt, seed: int = 0) -> None:
    """Freeze a tower but for what the settings name, which is added where the tower doesn't have it, in place.

    Raises:
        ConfigError: The tower has other such parameters already, peft is missing, or a setting doesn't fit the tower.
        CheckpointError: `init` holds none, or those of another tower.
    """
    if settings is None:
        return
    if isinstance(settings, VisionLoRASettings):
        if tower.config.adapt is not None:
            raise ConfigError(
                _HAS_OTHERS.format(tower.config.adapt.kind), where="model.adapt", fix="choose that kind"
            )
        add_lora(tower, settings)
    else:
        kept = settings.model_copy(update={"init": None})
        if tower.config.adapt is None:
            # The start of what is added follows from the seed, and the run's own random numbers go on as without it.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                tower.attach(kept)
        elif tower.config.adapt != kept:
            raise ConfigError(
                _HAS_OTHERS.format(tower.config.adapt.kind),
                where="model.adapt",
                fix="give the settings that it was made with",
            )
        assert tower.adapt is not None
        tower.model.requires_grad_(False)
        tower.adapt.requires_grad_(True)
    tower.tuned_by = settings
    if settings.init is not None:
        _load(tower, Path(settings.init))


_HAS_OTHERS = "the tower has {} of its own already, with other settings"


def own_part(tower: nn.Module) -> dict[str, torch.Tensor]:
    """Return what is trained of a tower, and what was once added to it, by name."""
    named = tower.named_parameters()
    return {name: p.detach() for name, p in named if p.requires_grad or name.startswith(_ADDED)}


def base_digest(tower: nn.Module) -> str:
    """Return a hash of all other weights but the table of positions, which follows the size of the images."""
    digest, own = hashlib.sha256(), own_part(tower)
    for name, parameter in sorted(tower.named_parameters()):
        if name not in own and not name.endswith("pos_embed"):
            # LoRA puts a layer into another one, under this name.
            digest.update(name.replace(".base_layer", "").encode())
            digest.update(tensor_bytes(parameter))
    return digest.hexdigest()


def save_adapt(folder: Path, tower: VisionTower) -> None:
    """Write what was trained of a tower beside its weights, where only few parameters were."""
    settings: Any = tower.tuned_by or tower.config.adapt
    if settings is None:
        return
    (folder / ADAPT_FOLDER).mkdir(parents=True, exist_ok=True)
    metadata = {"settings": settings.model_dump_json(exclude={"init"}), "base": base_digest(tower)}
    save_tensors(folder / ADAPT_FOLDER / ADAPT_FILE, own_part(tower), metadata)


def adapt_file(place: Path) -> Path:
    """Return the file of a run, a model folder, or the file itself.

    Raises:
        CheckpointError: There is none.
    """
    for file in (
        place,
        place / ADAPT_FILE,
        place / ADAPT_FOLDER / ADAPT_FILE,
        place / "model" / ADAPT_FOLDER / ADAPT_FILE,
    ):
        if file.is_file():
            return file
    raise CheckpointError(
        f"holds no {ADAPT_FILE}",
        where=str(place),
        fix="name a run with model.adapt (or backbone.adapt), or its file",
    )


def added_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return what was added to the tower of a model folder, by name in the tower; nothing where its file isn't."""
    file = folder / ADAPT_FOLDER / ADAPT_FILE
    return load_tensors(file, wanted=lambda name: name.startswith(_ADDED)) if file.is_file() else {}


def _load(tower: VisionTower, place: Path) -> None:
    file = adapt_file(place)
    made, weights = read_metadata(file), load_tensors(file)
    own = dict(tower.named_parameters())
    fits = own_part(tower).keys() == weights.keys() and all(
        own[n].shape == w.shape for n, w in weights.items()
    )
    if not fits or made.get("base") != base_digest(tower):
        raise CheckpointError(
            "belongs to a tower with other weights" if fits else "was made with other settings",
            where=str(file),
            fix=f"begin with the tower that it was trained on, and the settings {made.get('settings', 'of its run')}",
        )
    with torch.no_grad():
        for name, tensor in weights.items():
            own[name].copy_(tensor)
