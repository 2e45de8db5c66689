"""Seeds, precision and determinism of a run."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitp.core.errors import ConfigError, VitpError, did_you_mean
from vitp.engine.config import TrainSettings


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed Python, NumPy and torch as a function of the place in the run.

    Random numbers in training are those of dropout and drop path. With their state a function of the place
    there is none to save, a resumed run has the same ones, and no probe in between can change them.
    """
    digest = hashlib.blake2b(f"{seed}:{step}:{rank}".encode(), digest_size=8).digest()
    value = int.from_bytes(digest, "little")
    random.seed(value)
    np.random.seed(value % 2**32)  # noqa: NPY002 - augmentations of other libraries draw from the global one
    torch.manual_seed(value >> 1)


def amp_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Return the half precision that autocast is to use, or None for fp32.

    Raises:
        ConfigError: bf16 is asked for on a device without it.
    """
    if precision == "fp16":
        return torch.float16
    if precision == "fp32" or (precision == "auto" and device.type != "cuda"):
        return None
    # Metal has bf16 from macOS 14 on; a GPU that only emulates it would gain nothing.
    lacks = device.type == "mps" and not torch.backends.mps.is_macos_or_newer(14, 0)
    if lacks or (device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)):
        if precision == "auto":
            return None
        raise ConfigError("this GPU has no bf16", where="train.precision", fix='use "fp16", "fp32" or "auto"')
    return torch.bfloat16


def autocast(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[Any]:
    """Return autocast to `dtype`, or nothing for None."""
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


class HostReading:
    """A few numbers on their way from a device to the host: the copy is queued now, and waited for by `wait` alone.

    What is queued in between, such as an optimizer's step, runs while the host reads.

    Args:
        values_N: Numbers on any device.
    """

    def __init__(self, values_N: Tensor) -> None:
        self._host_N, self._event = values_N, None
        if values_N.is_cuda:
            # Into other memory than pinned one the copy would not run beside what is queued next.
            self._host_N = torch.empty(values_N.shape, dtype=values_N.dtype, pin_memory=True)
            self._host_N.copy_(values_N, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def wait(self) -> list[float]:
        """Return the numbers."""
        if self._event is not None:
            self._event.synchronize()
        values: list[float] = self._host_N.tolist()
        return values


@contextlib.contextmanager
def numerics(config: TrainSettings) -> Iterator[None]:
    """Within this context torch has the run's threads and determinism; afterwards, its own again."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.deterministic:
        # Without a fixed workspace cuBLAS isn't deterministic, and torch refuses to use it.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark


def check_loss_names(
    config: TrainSettings, counts: Mapping[str, float], weights: Mapping[str, float]
) -> None:
    """Do nothing when every weight of the run is of a loss that there is.

    Raises:
        ConfigError: One isn't.
    """
    known = [*counts, *weights]
    for name in config.loss_weights:
        if name not in known:
            hint = did_you_mean(name, known) or f"the losses are {', '.join(counts)}"
            raise ConfigError(f'unknown loss "{name}"', where="train.loss_weights", fix=hint)


def not_finite_error(what: str, names: Sequence[str], kept: str, step: int, run_dir: Path) -> VitpError:
    """Return the error that stops a run at a step whose loss or gradient is not finite.

    Args:
        what: Is not finite, in words.
        names: Records that may be the cause.
        kept: What of the run is safe, in words.
        step: Number of the step, from 1.
        run_dir: Folder of the run.
    """
    listed = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    return VitpError(
        f"{what} in step {step}" + (f", with {listed}" if listed else "") + f"; {kept}",
        where=str(run_dir),
        fix="look at these records, lower the learning rate or use fp32",
    )


def what_is_not_finite(
    batches: Sequence[Any], losses_MK: Tensor, losses: Mapping[str, float]
) -> tuple[str, list[Any]]:
    """Return in words what of a step isn't finite, and this rank's batches that may be the cause.

    Args:
        batches: The M micro-batches of this rank.
        losses_MK: Their parts of the K losses.
        losses: Name → loss of the step, over all ranks.
    """
    bad = {name: loss for name, loss in losses.items() if not math.isfinite(loss)}
    if not bad:
        return "the gradient is not finite", list(batches)
    bad_M = ~torch.isfinite(losses_MK).all(1)
    suspects = [batch for batch, is_bad in zip(batches, bad_M.tolist(), strict=True) if is_bad]
    return "the loss " + ", ".join(f"{name} is {loss}" for name, loss in bad.items()), suspects
