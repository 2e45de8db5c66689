"""Named tensors on disk, and whether they fit a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from vitp.core.errors import CheckpointError
from vitp.core.sealed import read_safetensors, write_safetensors


def unique_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the module's state by name, tied tensors once, under the first of their names.

    Raises:
        TypeError: The state holds something other than tensors.
    """
    seen: set[object] = set()
    state = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"the state of {type(module).__name__} holds {name}, which is no tensor")
        place = _place(tensor)
        if tensor.numel() and place in seen:
            continue
        seen.add(place)
        state[name] = tensor.detach()
    return state


def _place(tensor: Tensor) -> object:
    """Return what two names of one tensor have in common."""
    if isinstance(tensor, DTensor):  # the part that this rank holds may be empty, and then has no storage
        return id(tensor)
    return tensor.untyped_storage().data_ptr(), int(tensor.storage_offset()), tuple(tensor.shape)


def like(value: Tensor, target: Tensor) -> Tensor:
    """Return a whole tensor in the layout of `target`: this rank's part of it where that is sharded."""
    if not isinstance(target, DTensor) or isinstance(value, DTensor) or value.shape != target.shape:
        return value
    whole = value.to(device=target.device, dtype=target.dtype)
    # Every rank has the whole tensor, so none has to send it.
    return distribute_tensor(whole, target.device_mesh, target.placements, src_data_rank=None)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors with a digest; see `vitp.core.sealed`.

    Raises:
        OSError: As any write does.
    """
    write_safetensors(path, tensors, metadata)


def load_tensors(path: Path, device: str = "cpu", *, fix: str = "copy it again") -> dict[str, Tensor]:
    """Read a safetensors file that vitp wrote.

    Raises:
        DamagedError: The file is missing, cut off, or was changed.
    """
    return read_safetensors(path, device=device, fix=fix, ours=True)


def differences(saved: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Return one line for every name or shape in which the two differ; empty when they fit."""
    lines = [f"{name} is missing" for name in wanted if name not in saved]
    lines += [f"{name} is not in the model" for name in saved if name not in wanted]
    lines += [
        f"{name} is {tuple(saved[name].shape)}, the model's is {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in saved and saved[name].shape != tensor.shape
    ]
    return lines


def load_state(module: nn.Module, saved: Mapping[str, Tensor], where: str) -> None:
    """Copy `saved` into the module; nothing is copied unless every name and shape fits.

    Raises:
        CheckpointError: With the names and shapes that differ.
    """
    wanted = unique_state(module)
    if lines := differences(saved, wanted):
        raise CheckpointError(
            f"is of another architecture, {len(lines)} tensors differ: {'; '.join(lines[:8])}"
            + ("; …" if len(lines) > 8 else ""),
            where=where,
            fix="resume with the configuration that the run began with",
        )
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(like(saved[name], tensor))


class TensorFields:
    """A dataclass whose tensors move together, with those of its fields that are such dataclasses, or tuples of them."""

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Self:
        """Return the same with its tensors on `device`."""
        return map_tensors(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Return the same in page-locked memory, so that copies to a GPU don't wait."""
        return map_tensors(self, lambda tensor: tensor.pin_memory())


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a copy of a dataclass with `change` applied to its tensors; see `TensorFields`."""

    def changed(part: Any) -> Any:
        if isinstance(part, Tensor):
            return change(part)
        if isinstance(part, TensorFields):
            return map_tensors(part, change)
        return tuple(map(changed, part)) if isinstance(part, tuple) else part

    # The fields of a batch are those of its constructor.
    return replace(value, **{f.name: changed(getattr(value, f.name)) for f in fields(value)})
