"""Rows of all ranks in one tensor, with gradients: contrastive losses compare a rank's samples with everyone's."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vitp.core import distributed
from vitp.core.errors import ConfigError


class _Gather(torch.autograd.Function):
    """All-gather along the first dimension. Backward: what every rank's loss says about this rank's rows."""

    @staticmethod
    def forward(ctx: Any, rows_BE: Tensor) -> Tensor:
        ctx.rows = len(rows_BE)
        parts = [torch.empty_like(rows_BE) for _ in range(distributed.world_size())]
        dist.all_gather(parts, rows_BE.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        gradient = gradients[0].contiguous()
        # Every rank's loss looks at all rows, so the gradient of a row is the sum over the ranks.
        dist.all_reduce(gradient)
        first = distributed.rank() * ctx.rows
        return gradient[first : first + ctx.rows]


def gather_rows(rows_BE: Tensor) -> Tensor:
    """Return the rows of all ranks, in the order of the ranks; with one process, the rows themselves.

    Every rank must give the same number of rows. The gradient of all ranks' losses arrives, so that the mean over
    ranks that DDP takes of `world × loss` is the gradient of the sum of all losses.
    """
    if distributed.world_size() == 1:
        return rows_BE
    gathered: Tensor = _Gather.apply(rows_BE)
    return gathered


def similarities(left_AE: Tensor, right_BE: Tensor) -> Tensor:
    """Return all inner products (A, B) in float32, under autocast, too.

    They are divided by temperatures of a few hundredths, which would make bf16's rounding as large as a loss.
    """
    with torch.autocast(left_AE.device.type, enabled=False):
        return left_AE.float() @ right_BE.float().T


def check_others(count: int, what: str) -> None:
    """Do nothing where a row is compared with others: alone its loss is 0, and nothing is learned from it.

    Args:
        count: Rows of all ranks that one is compared with, its own among them.
        what: What the rows are, in the plural.

    Raises:
        ConfigError: There is its own alone.
    """
    if count < 2:
        raise ConfigError(
            f"a micro-batch has a single one of the {what} that are told apart, so there is nothing to learn",
            where="data.global_batch",
            fix="choose a larger data.global_batch or fewer train.micro_batches",
        )


def first_row(rows: int) -> int:
    """Return where this rank's rows begin in what `gather_rows` returns for `rows` a rank."""
    return distributed.rank() * rows
