"""The way in: a vision tower or a vision-language model of any source, with the report of its names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from vitp.checkpoints import hub
from vitp.checkpoints.build import build_tower, build_vlm, grow_embeddings
from vitp.checkpoints.checkpoint import Hints, read_checkpoint, read_config
from vitp.checkpoints.report import WeightsReport
from vitp.core.errors import CheckpointError
from vitp.data.chat import ChatTokenizer
from vitp.models.plain_vit import PlainViT
from vitp.models.vlm import VisionLanguageModel


def open_tower(
    source: str | Path,
    *,
    hints: Hints | None = None,
    drop_path: float = 0.0,
    revision: str | None = None,
    strict: bool = True,
) -> tuple[PlainViT, WeightsReport]:
    """Return a vision tower in eval mode, and what became of every name.

    Args:
        source: A weights file; a folder in InternVL's original layout, transformers' or timm's, or ours; an id of the
            hub.
        hints: What the file doesn't say about itself. With an architecture the file is taken for timm's or a
            publication's, and the tower may be a rotary one.
        drop_path: Stochastic depth rate of the last block.
        revision: Of the hub's repository.
        strict: Refuse anything missing, unexpected or of another shape.

    Raises:
        CheckpointError: Nothing is there, a file is broken, or names and shapes don't fit.
    """
    hints = hints or Hints()
    if hints.architecture is not None:
        from vitp.checkpoints.timm_vit import load_timm_vit

        path = hub.locate(source, revision=revision)
        if path is None:
            raise CheckpointError("is no file or folder", where=str(source), fix="check the path")
        return load_timm_vit(path, str(source), hints, drop_path=drop_path, strict=strict)
    checkpoint = read_checkpoint(source, hints=hints, vision_only=True, revision=revision)
    return build_tower(checkpoint, drop_path=drop_path, strict=strict)


def open_vlm(
    source: str | Path,
    *,
    hints: Hints | None = None,
    drop_path: float = 0.0,
    revision: str | None = None,
    strict: bool = True,
) -> tuple[VisionLanguageModel, ChatTokenizer, WeightsReport]:
    """Return a published vision-language model in float32 and eval mode, its tokenizer, and the report.

    Args:
        source: A folder in InternVL's original layout, transformers' or ours, or an id of the hub.
        hints: Chat template and image size, where they are to differ from what the folder says.
        drop_path: Stochastic depth rate of the vision tower while training.
        revision: Of the hub's repository.
        strict: Refuse anything missing, unexpected or of another shape.

    Raises:
        CheckpointError: Nothing is there, a file is broken, the language model is of a kind that vitp can't run, or
            names and shapes don't fit.
    """
    checkpoint = read_checkpoint(source, hints=hints, revision=revision)
    vlm, report = build_vlm(checkpoint, drop_path=drop_path, strict=strict)
    assert checkpoint.tokenizer is not None
    chat = ChatTokenizer(
        read_tokenizer(checkpoint.tokenizer),
        template=vlm.config.template,
        tokens_per_tile=vlm.tokens_per_tile,
    )
    grow_embeddings(vlm, chat)
    return vlm, chat, report


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a folder; nothing is fetched, and no code of the folder runs.

    Raises:
        CheckpointError: There is none, or its files are broken.
    """
    from transformers import AutoTokenizer, PreTrainedConfig

    whole = (folder / "tokenizer.json").is_file()
    # The first releases of InternVL2.5 hold the parts alone.
    parts = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    if not (whole or parts):
        raise CheckpointError(
            "holds no tokenizer.json, nor vocab.json and merges.txt",
            where=str(folder),
            fix="copy the folder again",
        )
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    if read_config(folder).get("model_type") in (None, "internvl_chat"):
        # transformers doesn't know these configurations, and would warn; the tokenizer's own names its class.
        options["config"] = PreTrainedConfig()
    try:
        return AutoTokenizer.from_pretrained(folder, **options)
    except Exception as error:  # the tokenizers library raises plain `Exception` on a broken file
        raise CheckpointError(
            f"holds no tokenizer that can be read ({error})", where=str(folder), fix="copy the folder again"
        ) from error
