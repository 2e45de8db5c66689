"""Predictions of pictures on disk until all are done: one file each, without the class maps, which are large."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import overload

import torch

from vitp.core.tensors import load_tensors, save_tensors
from vitp.inference.inputs import InputFile
from vitp.inference.outputs import Named
from vitp.metrics.results import Prediction


def picture_part(folder: Path, source: InputFile) -> Path:
    """Return the file of one picture."""
    # By its digest: safetensors takes no path that isn't UTF-8.
    name = hashlib.sha256(source.name.encode(errors="surrogateescape")).hexdigest()[:24]
    return folder / "pictures" / f"{name}.safetensors"


def save_part(path: Path, named: Named) -> None:
    """Write a prediction without its class map."""
    path.parent.mkdir(exist_ok=True)
    kept = replace(named.prediction, semantic_HW=None)
    values = {field.name: getattr(kept, field.name) for field in fields(kept)}
    tensors = {name: value.contiguous() for name, value in values.items() if value is not None}
    temporary = path.with_suffix(".part")
    save_tensors(temporary, {**tensors, "size": torch.tensor(named.size)})
    temporary.replace(path)


class PictureParts(Sequence[Named]):
    """Predictions of pictures, read when they are asked for: their masks are large.

    Args:
        folder: Folder of the unfinished prediction.
        sources: The pictures.
    """

    def __init__(self, folder: Path, sources: Sequence[InputFile]) -> None:
        self._folder, self._sources = folder, sources

    def __len__(self) -> int:
        return len(self._sources)

    @overload
    def __getitem__(self, index: int) -> Named: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Named]: ...

    def __getitem__(self, index: int | slice) -> Named | Sequence[Named]:
        if isinstance(index, slice):
            return PictureParts(self._folder, self._sources[index])
        source = self._sources[index]
        tensors = load_tensors(picture_part(self._folder, source))
        height, width = tensors.pop("size").tolist()
        return Named(source.name, source.image, (height, width), Prediction(**tensors))
