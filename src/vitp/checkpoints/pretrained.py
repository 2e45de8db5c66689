"""Vision-language models on disk: one folder with weights, configuration and tokenizer.

Published models (InternVL in its original layout or transformers') are read through `vitp.checkpoints`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from vitp.checkpoints import hub
from vitp.checkpoints.checkpoint import Hints, read_config
from vitp.checkpoints.open import open_vlm, read_tokenizer
from vitp.checkpoints.report import WeightsReport
from vitp.checkpoints.tensors import INDEX
from vitp.core.errors import CheckpointError
from vitp.core.files import atomic_dir, write_json
from vitp.core.reading import parse_json, read_text
from vitp.core.sealed import read_safetensors
from vitp.core.tensors import save_tensors
from vitp.core.version import __version__
from vitp.data.chat import ChatTokenizer
from vitp.models.foreign import described_by
from vitp.models.vlm import VisionLanguageModel, VLMConfig

FORMAT = "vitp-vlm-1"
WEIGHTS = "model.safetensors"
CONFIG = "config.json"

STARTER = Path(__file__).parent.parent / "assets" / "starter"
"""The vision-language model that comes with the package."""


@dataclass
class LoadedVLM:
    """A vision-language model with its tokenizer.

    Attributes:
        vlm: In eval mode.
        chat: Its tokenizer.
        report: What became of the names of a published model; None for vitp's own, which are always whole.
    """

    vlm: VisionLanguageModel
    chat: ChatTokenizer
    report: WeightsReport | None = None


def write_vlm(
    folder: Path, vlm: VisionLanguageModel, chat: ChatTokenizer, *, dtype: torch.dtype = torch.float32
) -> None:
    """Write the model into an existing or new folder. Tied weights are written once.

    Use `save_vlm` for a folder that appears only when it is whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights: dict[str, Tensor] = {}
    seen: dict[int, str] = {}
    for name, tensor in vlm.state_dict().items():
        if tensor.data_ptr() in seen and tensor.numel():
            continue
        seen[tensor.data_ptr()] = name
        weights[name] = (
            tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
        )
    save_tensors(folder / WEIGHTS, weights, {"format": "pt"})
    chat.tokenizer.save_pretrained(folder)
    write_json(folder / CONFIG, describe_vlm(vlm.config, vlm.language.config.vocab_size))


def describe_vlm(config: VLMConfig, vocabulary: int) -> dict[str, Any]:
    """Return the `config.json` of a model with these sizes."""
    # Drop path is a matter of the run that trains, not of the weights.
    sizes = config.model_copy(update={"drop_path": 0.0}).model_dump()
    return {"format": FORMAT, "vitp_version": __version__, "vocabulary": vocabulary, "model": sizes}


def save_vlm(
    folder: Path, vlm: VisionLanguageModel, chat: ChatTokenizer, *, dtype: torch.dtype = torch.float32
) -> None:
    """Write the model into a folder that appears only when it is whole; an older one is replaced."""
    with atomic_dir(folder) as temporary:
        write_vlm(temporary, vlm, chat, dtype=dtype)


def load_vlm(
    source: str | Path,
    *,
    drop_path: float = 0.0,
    template: str | None = None,
    image_size: int | None = None,
    revision: str | None = None,
) -> LoadedVLM:
    """Return the model of a folder, of a run, of the hub, or the starter that comes with the package ("starter").

    Args:
        source: "starter", a folder written by `save_vlm`, a run folder (its `model/` is taken), a folder with an
            InternVL model (original layout or transformers'), or an id of the hub such as "OpenGVLab/InternVL2_5-1B".
        drop_path: Stochastic depth rate of the vision tower while training.
        template: Chat template of a published model that names another; None: as it says.
        image_size: Side of a tile of a published model in pixels, positions resampled; None: as it says.
        revision: Branch, tag or commit, for the hub.

    Raises:
        CheckpointError: No model is there, a file is broken, or names and shapes don't fit.
    """
    folder = _find(source)
    if folder is None:
        if hub.hub_id(str(source)) is None:
            raise _nothing(source)
        published: str | Path = source
    elif is_vitp_model(folder):
        return _load_own(folder, drop_path)
    else:
        published = folder
    hints = Hints(template=template, image_size=image_size)
    vlm, chat, report = open_vlm(published, hints=hints, drop_path=drop_path, revision=revision)
    return LoadedVLM(vlm, chat, report)


def _load_own(folder: Path, drop_path: float) -> LoadedVLM:
    try:
        description = parse_json(read_text(folder / CONFIG))
        config = VLMConfig.model_validate(description["model"])
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise CheckpointError(
            "is no configuration of a vitp model", where=str(folder / CONFIG), fix="export or train it anew"
        ) from error
    with described_by(folder / CONFIG):
        vlm = VisionLanguageModel(
            config.model_copy(update={"drop_path": drop_path}), vocabulary=int(description["vocabulary"])
        )
    weights = read_safetensors(folder / WEIGHTS, ours=True)
    load_weights(vlm, weights, where=str(folder / WEIGHTS), tied=tied_names(vlm))
    tokenizer = load_tokenizer(folder)
    chat = ChatTokenizer(tokenizer, template=config.template, tokens_per_tile=vlm.tokens_per_tile)
    return LoadedVLM(vlm.eval(), chat)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a folder; nothing is fetched.

    Raises:
        CheckpointError: There is none, or its files are broken.
    """
    return read_tokenizer(folder)


def is_vitp_model(folder: Path) -> bool:
    """Return whether the folder holds a model in vitp's own layout.

    Raises:
        CheckpointError: Its configuration can't be read.
    """
    if not (folder / WEIGHTS).is_file():
        return False
    config = read_config(folder)
    return "model" in config or str(config.get("format", "")).startswith("vitp-vlm")


def _find(source: str | Path) -> Path | None:
    """The local folder with configuration and weights that a source names, or None."""
    folder = STARTER if str(source) == "starter" else Path(source)
    for candidate in (folder, folder / "model"):
        if (candidate / CONFIG).is_file() and any((candidate / name).is_file() for name in (WEIGHTS, INDEX)):
            return candidate
    return None


def resolve(source: str | Path) -> Path:
    """Return the folder that holds the model named by `source`.

    Raises:
        CheckpointError: There is none.
    """
    folder = _find(source)
    if folder is None:
        raise _nothing(source)
    return folder


def _nothing(source: str | Path) -> CheckpointError:
    return CheckpointError(
        "holds no vision-language model",
        where=str(source),
        fix=f"name a run that has finished, a folder with {CONFIG} and {WEIGHTS}, or a model of the hub",
    )


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        DamagedError: The file is missing, broken, or isn't as it was written.
    """
    return read_safetensors(path)


def tied_names(module: nn.Module) -> set[str]:
    """Return the names under which a tensor appears a second time."""
    seen: set[int] = set()
    second: set[str] = set()
    for name, tensor in module.state_dict().items():
        if tensor.data_ptr() in seen and tensor.numel():
            second.add(name)
        seen.add(tensor.data_ptr())
    return second


def load_weights(
    module: nn.Module, weights: dict[str, Tensor], *, where: str, tied: Collection[str] = ()
) -> None:
    """Load all weights or none, with a report name by name when they don't fit.

    Args:
        module: To be filled.
        weights: Name → tensor; converted to the module's types.
        where: File, for the message.
        tied: Names that may be missing because another name holds the tensor.

    Raises:
        CheckpointError: Missing or unexpected names, or other shapes.
    """
    own = module.state_dict()
    missing = [n for n in own if n not in weights and n not in tied]
    unexpected = [n for n in weights if n not in own]
    other_shape = [
        f"{n} {tuple(weights[n].shape)} instead of {tuple(own[n].shape)}"
        for n in own
        if n in weights and weights[n].shape != own[n].shape
    ]
    if missing or unexpected or other_shape:
        parts = [
            f"{len(names)} {title} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
            for title, names in (
                ("missing", missing),
                ("unexpected", unexpected),
                ("of another shape", other_shape),
            )
            if names
        ]
        raise CheckpointError(
            f"is of another architecture: {'; '.join(parts)}",
            where=where,
            fix="use the configuration it was made with",
        )
    module.load_state_dict(weights, strict=False)  # completeness is checked above; tied names may be absent
