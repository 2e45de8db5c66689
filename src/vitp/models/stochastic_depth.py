"""Stochastic depth whose rate is a tensor, so that all blocks of a compiled tower share one graph."""

from __future__ import annotations

import torch
from timm.layers.drop import DropPath, drop_path
from torch import Tensor, nn


class StochasticDepth(nn.Module):
    """Drops what a residual branch adds for some samples of a batch, and scales it up for the others.

    timm's `DropPath` has its rate as a number, which a compiler takes for a constant: each block would get a graph of
    its own, and past torch's limit of them nothing is compiled any more. As it is, the random numbers are those of
    timm, bit for bit; compiled, they are others.

    Args:
        rate: Share of the samples that are dropped, in [0, 1).
    """

    rate_tensor: Tensor

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        # Of the architecture, as timm's number is: no checkpoint holds it.
        self.register_buffer("rate_tensor", torch.tensor(float(rate)), persistent=False)

    def forward(self, branch_BLD: Tensor) -> Tensor:
        """Return the branch as the block is to add it."""
        if not self.training:
            return branch_BLD
        if not torch.compiler.is_compiling():
            kept_BLD: Tensor = drop_path(branch_BLD, self.rate, True)
            return kept_BLD
        kept = 1 - self.rate_tensor
        shape = (branch_BLD.shape[0],) + (1,) * (branch_BLD.ndim - 1)
        drawn = torch.rand(shape, device=branch_BLD.device) < kept
        return branch_BLD * (drawn / kept).to(branch_BLD.dtype)

    def extra_repr(self) -> str:
        """Return the rate, for the model's printed form."""
        return f"{self.rate:.3f}"


def share_graphs(model: nn.Module) -> None:
    """Replace timm's `DropPath` in all blocks of a model, in place."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, DropPath):
                setattr(module, name, StochasticDepth(child.drop_prob))
