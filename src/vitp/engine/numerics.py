"""Seeds, precision and determinism of a run."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from vitp.engine.config import TrainConfig
from vitp.errors import ConfigError


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
    """Return bf16 where autocast is to use it, or None for fp32.

    Raises:
        ConfigError: bf16 is asked for on a GPU without it.
    """
    if precision == "fp32" or (precision == "auto" and device.type == "cpu"):
        return None
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        if precision == "auto":
            return None
        raise ConfigError("this GPU has no bf16", where="train.precision", fix='use "fp32" or "auto"')
    return torch.bfloat16


def autocast(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[Any]:
    """Return autocast to `dtype`, or nothing for None."""
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


@contextlib.contextmanager
def numerics(config: TrainConfig) -> Iterator[None]:
    """Within this context torch has the run's threads and determinism; afterwards, its own again."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark
