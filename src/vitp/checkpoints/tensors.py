"""Files of named tensors as they are published: safetensors, sharded safetensors with an index, PyTorch files.

Safetensors are mapped into memory: reading a name costs nothing until its numbers are used.
"""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitp.core.errors import CheckpointError
from vitp.core.files import write_json
from vitp.core.reading import check_file, read_json
from vitp.core.tensors import load_tensors, save_tensors

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_SHARD = 5 * 10**9
"""Bytes of a shard."""

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar")

_AGAIN = "copy or download it again"

Wanted = Callable[[str], bool]
"""Says by its name whether a tensor is to be read."""


def everything(_name: str) -> bool:
    """Want every tensor."""
    return True


def weights_file(folder: Path) -> Path:
    """Return the file of a folder that holds its weights, or the index of its shards.

    A folder with one safetensors file of any name is understood, too: that is how backbones are published.

    Raises:
        CheckpointError: There is none, or it can't be told which one is meant.
    """
    for name in (WEIGHTS, INDEX, "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    if found:
        raise CheckpointError(
            f"holds {len(found)} weights files ({', '.join(f.name for f in found[:3])}, …) and no {INDEX}",
            where=str(folder),
            fix="name one of the files",
        )
    if (folder / "pytorch_model.bin.index.json").is_file():
        raise CheckpointError(
            "holds sharded PyTorch files", where=str(folder), fix="convert them to safetensors first"
        )
    raise CheckpointError(
        "holds no weights",
        where=str(folder),
        fix=f"look for {WEIGHTS} or {INDEX}; the download may be partial",
    )


def holds_weights(path: Path) -> bool:
    """Return whether there is a file, or a folder with a file that is one of weights by its name."""
    suffixes = {".safetensors", *TORCH_SUFFIXES}
    return path.is_file() or (path.is_dir() and any(file.suffix in suffixes for file in path.iterdir()))


def read_tensors(path: Path, wanted: Wanted = everything, *, ours: bool = False) -> dict[str, Tensor]:
    """Return name → tensor of a safetensors file, of the shards of an index, or of a PyTorch file.

    Args:
        path: The file; for shards the index.
        wanted: Says by name what to read; shards without a wanted tensor aren't opened.
        ours: vitp has written them: tell when no digest is known.

    Raises:
        CheckpointError: A file is missing, broken or was changed, or holds no tensors by name.
    """
    if path.name.endswith(".index.json"):
        return _read_shards(path, wanted, ours)
    if path.suffix == ".safetensors":
        return load_tensors(path, wanted=wanted, fix=_AGAIN, ours=ours)
    if path.suffix in TORCH_SUFFIXES:
        state = read_torch(path)
        if not all(isinstance(value, Tensor) for value in state.values()):
            raise CheckpointError(
                "holds more than named tensors",
                where=str(path),
                fix="name its architecture, so that the weights can be looked for inside of it",
            )
        return {name: tensor for name, tensor in state.items() if wanted(name)}
    raise CheckpointError(
        "is no weights file by its name",
        where=str(path),
        fix=f"weights end in .safetensors or one of {', '.join(TORCH_SUFFIXES)}",
    )


def read_weights(path: Path) -> Mapping[str, Any]:
    """Return what a weights file holds: named tensors, or the nested state of a training run.

    Raises:
        CheckpointError: The file is missing or broken, or holds objects that code would have to make.
    """
    return read_torch(path) if path.suffix in TORCH_SUFFIXES else read_tensors(path)


def _read_shards(index: Path, wanted: Wanted, ours: bool) -> dict[str, Tensor]:
    by_file: dict[str, set[str]] = {}
    for name, file in read_index(index).items():
        if wanted(name):
            by_file.setdefault(file, set()).add(name)
    missing = sorted(file for file in by_file if not (index.parent / file).is_file())
    if missing:
        raise CheckpointError(
            f"{len(missing)} of {len(by_file)} shards are missing, the first is {missing[0]}",
            where=str(index.parent),
            fix=_AGAIN,
        )
    weights: dict[str, Tensor] = {}
    for file, names in sorted(by_file.items()):
        found = load_tensors(index.parent / file, wanted=names.__contains__, fix=_AGAIN, ours=ours)
        if absent := sorted(names - found.keys()):
            raise CheckpointError(
                f"lacks {len(absent)} tensors that {index.name} places there, the first is {absent[0]}",
                where=str(index.parent / file),
                fix="index and shards are of different releases: download both again",
            )
        weights |= found
    return weights


def read_index(index: Path) -> dict[str, str]:
    """Return name → shard of an index file.

    Raises:
        CheckpointError: It is no index, or names a file outside of its folder.
    """
    try:
        places = {str(name): str(file) for name, file in read_json(index)["weight_map"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"is no index of shards ({error})", where=str(index), fix=_AGAIN) from error
    if outside := [file for file in places.values() if Path(file).name != file]:
        raise CheckpointError(f"names a file outside of its folder ({outside[0]})", where=str(index))
    return places


def read_torch(path: Path) -> Mapping[str, Any]:
    """Return what a PyTorch file holds. Only tensors and plain values are unpickled: no code runs.

    Raises:
        CheckpointError: The file is missing, broken, or holds other objects.
    """
    try:
        check_file(path)
        # Training scripts of this field put their parsed arguments beside the weights; they are plain values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            value = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError("is missing", where=str(path)) from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            "holds Python objects beside tensors, or is broken",
            where=str(path),
            fix="save its state dict alone: loading arbitrary objects would run code from the file",
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"is no whole PyTorch file ({reason})", where=str(path), fix=_AGAIN) from error
    if not isinstance(value, Mapping):
        raise CheckpointError(f"holds a {type(value).__name__}, no state dict", where=str(path))
    return value


def write_tensors(folder: Path, weights: Mapping[str, Tensor], *, max_shard: int = MAX_SHARD) -> None:
    """Write `model.safetensors`, or shards with an index when the weights exceed `max_shard` bytes.

    Args:
        folder: An existing folder.
        weights: Name → tensor.
        max_shard: Bytes of a shard; a larger tensor has a shard of its own.
    """
    shards = _shards(weights, max_shard)
    if len(shards) == 1:
        save_tensors(folder / WEIGHTS, weights, {"format": "pt"})
        return
    places: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_tensors(folder / file, {name: weights[name] for name in names}, {"format": "pt"})
        places |= dict.fromkeys(names, file)
    total = sum(tensor.nbytes for tensor in weights.values())
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def _shards(weights: Mapping[str, Tensor], max_shard: int) -> list[list[str]]:
    """Return names in their order, cut where the next tensor would exceed the size."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, tensor in weights.items():
        # A tensor that is larger than a shard has one of its own.
        if shards[-1] and filled + tensor.nbytes > max_shard:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += tensor.nbytes
    return shards
