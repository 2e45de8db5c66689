"""The tensors of a checkpoint of which every process writes its part: torch's distributed checkpoint.

    shards/
        .metadata       names, shapes, which part stands where
        __0_0.distcp    what rank 0 wrote

The parts know their place in the whole, so any number of processes can read them, one included.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_shares
from torch.distributed.checkpoint.state_dict_saver import async_save, save

from vitp.core import distributed
from vitp.core.errors import DamagedError, VitpError
from vitp.core.files import as_user_error, sha256
from vitp.core.tensors import trained_parameters, unique_state
from vitp.engine.metadata import PartsReader

FOLDER = "shards"
_DAMAGE = (
    *(CheckpointException, OSError, EOFError, ValueError, RuntimeError, KeyError, TypeError),
    # What a cut-off pickle raises depends on where it was cut.
    *(AttributeError, IndexError, pickle.PickleError),
)
WRITE_ERRORS = (Exception, CheckpointException)
"""What a failed write may raise: torch's own exception is a `BaseException`."""

_MODEL, _MOMENTS, _AVERAGE = "model/", "optimizer/", "ema/"


def new_group() -> Any:
    """Return a group of all processes for saving only, None where there is one process.

    A save in the background talks to the other processes while training does. Messages of the two in one group
    would be taken for each other's.
    """
    return dist.new_group(backend="gloo") if dist.is_initialized() else None


def write(
    path: Path,
    model: Mapping[str, Tensor],
    moments: Mapping[str, Tensor],
    group: Any,
    average: Mapping[str, Tensor] | None = None,
) -> Future[dict[str, str]]:
    """Write this process's part into `path/shards`. A collective call.

    Returns:
        Done; its result is name → SHA-256 of the files that this process wrote, relative to `path`.

    Raises:
        VitpError: The disk is full or can't be written, here or on another process.
    """
    try:
        save(_flat(model, moments, average or {}), storage_writer=_writer(path), process_group=group)
    except CheckpointException as error:
        raise as_write_error(error, path) from error
    done: Future[dict[str, str]] = Future()
    done.set_result(_digests(path))
    return done


def _digests(path: Path) -> dict[str, str]:
    """Return the digests of what this process wrote; the first one has the list of all parts, too."""
    patterns = [f"__{distributed.rank()}_*", *([".metadata"] if distributed.rank() == 0 else [])]
    files = [file for pattern in patterns for file in (path / FOLDER).glob(pattern)]
    return {f"{FOLDER}/{file.name}": sha256(file) for file in files}


def write_later(
    path: Path,
    model: Mapping[str, Tensor],
    moments: Mapping[str, Tensor],
    group: Any,
    average: Mapping[str, Tensor] | None = None,
) -> Future[dict[str, str]]:
    """Copy this process's part, and write it while the caller goes on. A collective call.

    Returns:
        As `write`, done when the part is written; its exception is a `CheckpointException`.
    """
    # torch copies what is on a GPU; what is in main memory already it may take as it is.
    copies = {
        name: tensor.detach().clone() if tensor.device.type == "cpu" else tensor
        for name, tensor in _flat(model, moments, average or {}).items()
    }
    response: Any = async_save(copies, storage_writer=_writer(path), process_group=group)
    upload = getattr(response, "upload_completion", response)
    # A process of its own may do the upload, and the list of parts is there when all have ended theirs.
    pool = ThreadPoolExecutor(1, thread_name_prefix="digests")
    done = pool.submit(lambda: (upload.result(), _digests(path))[1])
    pool.shutdown(wait=False)  # which lets it finish what it has begun
    return done


def as_write_error(error: BaseException, path: Path) -> VitpError:
    """Return what a failed write means to the user."""
    causes = [cause for cause, _ in error.failures.values()] if isinstance(error, CheckpointException) else []
    for cause in (*causes, error):
        if isinstance(cause, OSError):
            return as_user_error(cause, path)
        if "No space left" in str(cause):  # torch's zip writer says it in text only
            return as_user_error(OSError(28, "No space left on device"), path)
    reason = (str((causes or [error])[0]).splitlines() or ["no reason given"])[0]
    return VitpError(f"can't be written ({reason})", where=str(path), fix="look at the disk, then resume")


def load(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, names: Sequence[Sequence[str]]
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Read a checkpoint's parts in the layout of a model: (state, moments, average), nothing in place.

    Where names or shapes don't fit the model's, nothing is read, and the tensors have shapes only (on the meta
    device): enough to tell what doesn't fit.

    Args:
        path: Checkpoint folder.
        model: The objective.
        optimizer: Optimizer of its parameters.
        names: Parameter names, parallel to the optimizer's groups.

    Raises:
        DamagedError: A part is missing or damaged.
    """
    own = {f"{_MODEL}{name}": tensor for name, tensor in unique_state(model).items()}
    trained = trained_parameters(optimizer, names)
    targets: dict[str, Tensor] = {}
    try:
        reader = PartsReader(path / FOLDER)
        for key, stored in reader.read_metadata().state_dict_metadata.items():
            if not isinstance(stored, TensorStorageMetadata):
                raise ValueError(f"{key} is no tensor")
            pattern = own.get(key)
            if pattern is None and key.startswith(_MOMENTS):
                pattern = trained.get(key.removeprefix(_MOMENTS).partition(":")[2])
            elif pattern is None and key.startswith(_AVERAGE):
                pattern = trained.get(key.removeprefix(_AVERAGE))
            targets[key] = _target(stored, pattern)
        if not any(tensor.device.type == "meta" for tensor in targets.values()):
            with warnings.catch_warnings():
                # One process may read what several wrote; torch warns of it.
                warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
                load_shares(targets, storage_reader=reader, no_dist=not dist.is_initialized())
    except _DAMAGE as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise DamagedError(
            f"can't be read ({reason})", where=str(path), fix="copy the checkpoint again or remove it"
        ) from error
    model_state, moments, average = (
        {key.removeprefix(part): value for key, value in targets.items() if key.startswith(part)}
        for part in (_MODEL, _MOMENTS, _AVERAGE)
    )
    return model_state, moments, average


def _target(stored: TensorStorageMetadata, pattern: Tensor | None) -> Tensor:
    """Return what a stored tensor is to be read into."""
    dtype = stored.properties.dtype
    if stored.size == torch.Size([]):  # AdamW's count of steps
        return torch.zeros((), dtype=dtype)
    if pattern is None or pattern.shape != stored.size:
        return torch.empty(stored.size, dtype=dtype, device="meta")
    return torch.zeros_like(pattern.detach(), dtype=dtype)


def _flat(*parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return state, moments and average under the names that they are saved by."""
    prefixes = (_MODEL, _MOMENTS, _AVERAGE)
    return {
        f"{prefix}{name}": t for prefix, part in zip(prefixes, parts, strict=True) for name, t in part.items()
    }


def _writer(path: Path) -> FileSystemWriter:
    return FileSystemWriter(path / FOLDER, sync_files=True)
