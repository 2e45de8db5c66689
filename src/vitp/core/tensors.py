"""Named tensors: writing and reading safetensors files, and the strict load of a model with its report by name.

A file carries the SHA-256 of all its other bytes in its own metadata (`vitp.core.sealed`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from rich.markup import escape
from rich.table import Table
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from vitp.core import sealed
from vitp.core.errors import CheckpointError
from vitp.core.reading import check_file

Held = TypeVar("Held")

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors as safetensors with a digest of the file in it. Equal tensors and metadata give equal files.

    Args:
        path: The file.
        tensors: Name → tensor, on any device.
        metadata: Further texts of the header.

    Raises:
        OSError: As any write does.
        TypeError: A tensor is of a type that the format has no name for.
    """
    # As the library orders them: the widest numbers first, so that every tensor is aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": {**(metadata or {}), sealed.KEY: sealed.MARK + sealed.ZEROS}}
    offset = 0
    for name in names:
        tensor = tensors[name]
        if tensor.dtype not in _DTYPES:
            raise TypeError(f"{name} is of type {tensor.dtype}, which safetensors files don't hold")
        end = offset + tensor.nbytes
        shape = list(tensor.shape)
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    # As the library does it: tensors begin at multiples of 8 bytes.
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    with path.open("wb") as file:
        digest = hashlib.sha256(head)
        file.write(head)
        for name in names:
            data = tensor_bytes(tensors[name])
            digest.update(data)
            file.write(data)
        # The digest is known when all is written; it replaces the zeros that it was computed with.
        file.seek(head.index(f'"{sealed.MARK}{sealed.ZEROS}"'.encode()) + 1 + len(sealed.MARK))
        file.write(digest.hexdigest().encode())


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor on any device, row by row."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def load_tensors(
    path: Path,
    *,
    wanted: Callable[[str], bool] | None = None,
    fix: str = "copy it again",
    ours: bool = True,
) -> dict[str, Tensor]:
    """Return name → tensor of a safetensors file that is as it was written. Numbers are read when they are used.

    Args:
        path: The file.
        wanted: Says by name what to return; None: all.
        fix: What to do about a damaged file.
        ours: vitp has written it: tell when no digest of it is known.

    Raises:
        DamagedError: It is missing, cut off, or was changed.
    """
    try:
        check_file(path)
        with safe_open(path, framework="pt", device="cpu") as file:
            names = [name for name in file.keys() if wanted is None or wanted(name)]  # noqa: SIM118
            tensors = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise sealed.not_whole(path, error, fix) from error
    if not sealed.check(path, fix=fix) and ours:
        sealed.tell_unknown(path)
    return tensors


def trained_parameters(
    optimizer: torch.optim.Optimizer, names: Sequence[Sequence[str]]
) -> dict[str, nn.Parameter]:
    """Return an optimizer's parameters by name, in its order; `names` are parallel to its groups."""
    return {
        name: parameter
        for group, group_names in zip(optimizer.param_groups, names, strict=True)
        for parameter, name in zip(group["params"], group_names, strict=True)
    }


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
        if isinstance(tensor, DTensor):  # the part that this rank holds may be empty, and then has no storage
            place: object = id(tensor)
        else:
            place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape))
        if tensor.numel() and place in seen:
            continue
        seen.add(place)
        state[name] = tensor.detach()
    return state


def weights_sha256(module: nn.Module) -> str:
    """Return one SHA-256 of a module's weights, by which files name the model that made them."""
    digest = hashlib.sha256()
    for name, tensor in unique_state(module).items():
        digest.update(name.encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def like(value: Tensor, target: Tensor) -> Tensor:
    """Return a whole tensor in the layout of `target`: this rank's part of it where that is sharded."""
    if not isinstance(target, DTensor) or isinstance(value, DTensor) or value.shape != target.shape:
        return value
    whole = value.to(device=target.device, dtype=target.dtype)
    # Every rank has the whole tensor, so none has to send it.
    return distribute_tensor(whole, target.device_mesh, target.placements, src_data_rank=None)


@dataclass(frozen=True)
class WeightsReport:
    """What became of every name, in the names of the model that was filled.

    Attributes:
        source: File or folder.
        layout: Whose names it held.
        loaded: Copied as they were.
        resampled: Position tables and patch kernels that were resized, with both shapes.
        missing: Parameters of the model that the source lacks.
        unexpected: Names of the source that the model lacks.
        other_shape: Names whose shapes differ, with both.
        ignored: Names of the source that are known not to belong to the model: classifiers, decoders, values that
            the architecture computes.
        notes: What else happened, in words.
    """

    source: str
    layout: str
    loaded: tuple[str, ...] = ()
    resampled: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    other_shape: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every parameter got its value and no name was left over."""
        return not (self.missing or self.unexpected or self.other_shape)

    def require_complete(self, fix: str) -> None:
        """Do nothing when complete.

        Raises:
            CheckpointError: With numbers and first names of what doesn't fit.
        """
        if not self.complete:
            wrong = ("missing", "unexpected", "of another shape")
            parts = [f"{len(n)} {what} ({first_of(n)})" for what, n in self._names().items() if what in wrong]
            raise CheckpointError(
                f"is of another architecture: {'; '.join(parts)}", where=self.source, fix=fix
            )

    def _names(self) -> dict[str, tuple[str, ...]]:
        """Return what became of names → the names, in the order of the report."""
        names = {
            "loaded": self.loaded,
            "resampled": self.resampled,
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": self.other_shape,
            "ignored": self.ignored,
            "note": self.notes,
        }
        return {what: some for what, some in names.items() if some}

    def summary(self) -> str:
        """Return one line: layout and numbers of names."""
        counts = [f"{len(names)} {what}" for what, names in self._names().items() if what != "note"]
        return f"{self.layout} layout: {', '.join(counts) or 'nothing loaded'}"

    def __rich__(self) -> Table:
        title = f"weights of {escape(self.source)} ({self.layout} layout)"
        table = Table("what", "number", "names", title=title)
        for what, names in self._names().items():
            shown = names if what not in ("loaded", "ignored") else names[:2]
            more = len(names) - len(shown)
            text = "\n".join(shown) + (f"\n… and {more} more" if more else "")
            table.add_row(what, str(len(names)), escape(text))
        return table


def first_of(names: Sequence[str], most: int = 3) -> str:
    """Return the first of some names with commas between them, and … where there are more."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def load_weights(
    module: nn.Module,
    weights: Mapping[str, Tensor],
    *,
    source: str,
    layout: str = "vitp",
    resampled: Mapping[str, str] | None = None,
    unexpected: Iterable[str] = (),
    ignored: Iterable[str] = (),
    notes: Iterable[str] = (),
    strict: bool = True,
    fix: str = "check that file and architecture belong together",
) -> WeightsReport:
    """Copy tensors into the module, converted to its types; with `strict` all of them or none.

    Args:
        module: To be filled; it may be sharded.
        weights: Tensors under the module's names, already of its sizes where they could be resampled. A tied tensor
            may come under one of its names alone.
        source: File or folder, for messages.
        layout: Whose names the source held.
        resampled: Name → the change of its shape, for the report.
        unexpected: Names of the source that no rule understood.
        ignored: Names of the source that were left out on purpose.
        notes: Other remarks.
        strict: Refuse anything missing, unexpected or of another shape.
        fix: What to do when they don't fit.

    Raises:
        CheckpointError: With `strict`, when not everything fits; nothing is changed then.
    """
    own = {name: tensor.detach() for name, tensor in module.state_dict(keep_vars=True).items()}
    needed, resampled = unique_state(module), dict(resampled or {})
    odd = [n for n in own if n in weights and weights[n].shape != own[n].shape]
    fitting = [n for n in own if n in weights and n not in odd]
    report = WeightsReport(
        source=source,
        layout=layout,
        loaded=tuple(n for n in fitting if n not in resampled),
        resampled=tuple(f"{n} {change}" for n, change in resampled.items()),
        missing=tuple(n for n in needed if n not in weights),
        unexpected=(*unexpected, *(n for n in weights if n not in own)),
        other_shape=tuple(f"{n} {tuple(weights[n].shape)} instead of {tuple(own[n].shape)}" for n in odd),
        ignored=tuple(ignored),
        notes=tuple(notes),
    )
    if strict:
        report.require_complete(fix)
    with torch.no_grad():
        for name in fitting:
            own[name].copy_(like(weights[name], own[name]))
    return report


def present(value: Held | None) -> Held:
    """Return what an optional field holds, a tensor for one, that is known to be there."""
    assert value is not None
    return value


_BUFFER = "_buffer"

_ALIGNMENT = 64
"""Bytes at whose multiples a tensor begins within a buffer."""


def _view(buffer: Tensor, like_this: Tensor, offset: int) -> Tensor:
    """Return the part of a buffer of bytes that begins at `offset`, as a tensor of the type and shape of another."""
    return buffer[offset : offset + like_this.nbytes].view(like_this.dtype).view(like_this.shape)


class TensorFields:
    """A dataclass whose tensors move together, those in fields that are such dataclasses or tuples of them included."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Return the same with its tensors on `device`; without waiting only where nobody reads them on the host.

        Tensors that share one buffer (`pin_memory`) are copied as one.
        """
        buffer: Tensor | None = self.__dict__.get(_BUFFER)
        if buffer is None or torch.device(device).type == "cpu":
            moved: Self = map_tensors(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))
            return moved
        copied = buffer.to(device, non_blocking=non_blocking)
        in_copy: Self = map_tensors(
            self, lambda tensor: _view(copied, tensor, int(tensor.storage_offset()) * tensor.element_size())
        )
        return in_copy

    def pin_memory(self) -> Self:
        """Return the same in one page-locked buffer, so that a single copy takes it to a GPU, which doesn't wait."""
        return self.in_one_buffer(pinned=True)

    def in_one_buffer(self, *, pinned: bool = False) -> Self:
        """Return the same with all tensors as parts of one buffer on the host.

        Args:
            pinned: In page-locked memory.
        """
        places, size = [], 0
        for tensor in tensors_of(self):
            places.append(size)
            size += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        buffer, rest = torch.empty(size, dtype=torch.uint8, pin_memory=pinned), iter(places)

        def placed(tensor: Tensor) -> Tensor:
            return _view(buffer, tensor, next(rest)).copy_(tensor)

        found: Self = map_tensors(self, placed)
        # Beside the fields: whoever replaces one of them gets an object without it.
        object.__setattr__(found, _BUFFER, buffer)
        return found


def tensors_of(value: Any) -> list[Tensor]:
    """Return the tensors of a dataclass, in the order in which `map_tensors` changes them."""
    found: list[Tensor] = []

    def noted(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(value, noted)
    return found


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
