"""One process or many: the same calls work in both."""

from __future__ import annotations

import atexit
import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore  # type: ignore[attr-defined]  # not in the list of its names
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from vitp.core.config import DEVICE_PATTERN
from vitp.core.errors import ConfigError, VitpError

Value = TypeVar("Value")


@dataclass(frozen=True)
class RankReport:
    """What the ranks tell each other before a step: its size, and whether someone has to stop.

    Attributes:
        counts: Loss name → terms.
        work: What the step amounts to.
        stop: Signal that came.
        error: What kept the rank from having its batches.
        saved: Whether the checkpoint that is being written is done on this rank.
    """

    counts: dict[str, float]
    work: dict[str, float]
    stop: int | None
    error: VitpError | None
    saved: bool


def _environment(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{text!r} is not a number", where=f"environment variable {name}") from None


def resolve_device(wanted: str) -> torch.device:
    """Return the device of this process. `auto` and `cuda` are the GPU of the local rank; `auto` never takes `mps`.

    Raises:
        ConfigError: There is no such device, or several processes are to share Apple's GPU.
    """
    if not re.fullmatch(DEVICE_PATTERN, wanted):
        fix = "choose auto, cpu, cuda, cuda:N or mps"
        raise ConfigError(f'there is no device "{wanted}"', where="train.device", fix=fix)
    if wanted == "mps":
        return _mps()
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("CUDA is not available", where="train.device", fix='use "auto" or "cpu"')
    index = int(wanted.split(":")[1]) if ":" in wanted else _environment("LOCAL_RANK", 0)
    if index >= torch.cuda.device_count():
        raise ConfigError(
            f"there is no GPU {index}, only {torch.cuda.device_count()}",
            where="train.device",
            fix="start fewer processes or name another GPU",
        )
    return torch.device("cuda", index)


def _mps() -> torch.device:
    if not torch.backends.mps.is_available():
        fix = 'use "auto" or "cpu"'
        raise ConfigError("Apple's GPU (mps) is not available", where="train.device", fix=fix)
    if _environment("WORLD_SIZE", 1) > 1:
        fix = "start one process, or use the cpu"
        raise ConfigError("several processes can't share Apple's GPU", where="train.device", fix=fix)
    return torch.device("mps", 0)


def initialize(device: torch.device) -> None:
    """Join the processes that torchrun started; with one process, or when already joined, do nothing."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if dist.is_initialized() or _environment("WORLD_SIZE", 1) < 2:
        return
    # Counts, errors and interrupts go over gloo, so that they never wait for the GPU.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    attempt = _environment("TORCHELASTIC_RESTART_COUNT", 0)
    if attempt and _environment("GROUP_WORLD_SIZE", 1) == 1:
        # torchrun keeps its store over restarts. Under the same names the new processes would find the addresses of
        # those that are gone. On several machines the counts may differ, and can't serve as a name.
        store, own_rank, size = next(rendezvous("env://"))
        dist.init_process_group(
            backend, store=PrefixStore(f"restart{attempt}", store), rank=own_rank, world_size=size
        )
    else:
        dist.init_process_group(backend)
    atexit.register(shutdown)


def shutdown() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def restarted(marker: Path) -> bool:
    """Return whether this run was going before its processes were started again.

    torchrun (`--max-restarts`) and Slurm (`--requeue`) start the very same command once more, which is then to
    continue what the first one began.

    Args:
        marker: A file that a run writes when it begins, its configuration.
    """
    again = any(_environment(name, 0) for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))
    return again and marker.is_file()


def local_world_size() -> int:
    """Return the number of processes on this machine, as torchrun says; all of them where it doesn't."""
    return _environment("LOCAL_WORLD_SIZE", world_size())


@contextlib.contextmanager
def _in_touch() -> Iterator[None]:
    """Turn the failure of a collective call into the error that a user can act on."""
    try:
        yield
    except RuntimeError as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise VitpError(
            f"lost touch with another process of the run ({reason})",
            where=f"rank {rank()}",
            fix="the output of that process says why it ended; resume from the last checkpoint",
        ) from error


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather(value: Value) -> list[Value]:
    """Return every rank's value, in the order of the ranks. Also a barrier."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    with _in_touch():
        dist.all_gather_object(values, value)
    return values


def gather_numbers(numbers: Tensor) -> list[list[float]]:
    """Return every rank's vector, which are equally long, in the order of the ranks; over the host's network."""
    rows = [torch.empty_like(numbers) for _ in range(world_size())]
    with _in_touch():
        dist.all_gather(rows, numbers)
    return [row.tolist() for row in rows]


def barrier() -> None:
    """Wait for all ranks."""
    gather(None)


def sum_dicts(dicts: Iterable[dict[str, float]]) -> dict[str, float]:
    """Return the sum by name; a name that some lack counts 0 there."""
    total: dict[str, float] = {}
    for values in dicts:
        for name, value in values.items():
            total[name] = total.get(name, 0.0) + float(value)
    return total


def sum_tensor(tensor: Tensor) -> Tensor:
    """Sum a tensor over ranks in place, on its own device, and return it."""
    if world_size() > 1:
        with _in_touch():
            dist.all_reduce(tensor)
    return tensor


def broadcast_state(module: nn.Module) -> None:
    """Give every rank the parameters and buffers of rank 0, in place."""
    if world_size() > 1:
        with _in_touch(), torch.no_grad():
            for tensor in (*module.parameters(), *module.buffers()):
                dist.broadcast(tensor, 0)


def raise_together(error: VitpError | None) -> None:
    """Raise the first rank's error on every rank, so that none waits for one that has gone.

    Raises:
        VitpError: This rank's, or another rank's.
    """
    for other in gather(error):
        if other is not None:
            raise error or other


def on_main(action: Callable[[], Any], main: bool) -> Any:
    """Do something on the rank that is `main`; its user errors are raised on every rank. None elsewhere."""
    result, error = None, None
    if main:
        try:
            result = action()
        except VitpError as caught:
            error = caught
    raise_together(error)
    return result


def wrap(objective: nn.Module) -> nn.Module:
    """Return the objective in DDP when there are several ranks, else itself.

    DDP's search for unused parameters stays off: it looks at one backward pass, and would skip the reduction
    of parameters that only earlier micro-batches used. `touch` makes every parameter used instead.
    """
    if world_size() == 1:
        return objective
    return DistributedDataParallel(objective, gradient_as_bucket_view=True)


class _Touch(torch.autograd.Function):
    """Identity on a loss that tells autograd of parameters without computing a gradient for them."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *parameters: Tensor) -> Tensor:
        ctx.parameters = len(parameters)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], *([None] * ctx.parameters)


def touch(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return the loss so that its backward pass reaches every parameter, used or not.

    DDP waits for each parameter once per reduction; a batch without images, say, leaves the vision tower
    unused, and the run would stop. The untouched gradient is undefined, which DDP counts as zero.
    """
    touched: Tensor = _Touch.apply(loss, *parameters)
    return touched
