"""Convolution with normalisation, as pyramids and decoders stack it.

Shapes: B images, C channels, h × w cells.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from vitp.core.errors import ConfigError

NormKind = Literal["group", "batch", "sync"]
"""`group` (the default everywhere here), `batch` (statistics of one rank's micro-batch) or `sync` (of all ranks').

The published decoders use synchronised batch norm on eight GPUs. Group norm keeps images independent of each
other: a batch can be cut over micro-batches and ranks without changing the gradient, a batch of one image is
no special case, recomputation under gradient checkpointing counts nothing twice, and a model answers the same
in training and in use. Choose `sync` to load published weights or to repeat a published run (several ranks
must then be on GPUs).
"""


def make_norm(kind: NormKind, channels: int) -> nn.Module:
    """Return a normalisation of (B, C, h, w) maps.

    Raises:
        ConfigError: There is no such kind.
    """
    if kind == "group":
        return nn.GroupNorm(group_count(channels), channels)
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "sync":
        return nn.SyncBatchNorm(channels)
    raise ConfigError(f'there is no norm "{kind}"', where="norm", fix="choose group, batch or sync")


def group_count(channels: int) -> int:
    """Return the number of groups: at most 32, and none of fewer than 8 channels where that is possible.

    On a map of a single cell (a globally pooled one) a group of one channel would be normalised to zero.
    """
    most = min(32, max(1, channels // 8))
    return max(groups for groups in range(1, most + 1) if channels % groups == 0)


class ConvNorm(nn.Sequential):
    """Convolution without bias, normalisation, ReLU: (B, C_in, h, w) → (B, C_out, ⌈h / stride⌉, ⌈w / stride⌉)."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, norm: NormKind = "group"
    ) -> None:
        conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        super().__init__(conv, make_norm(norm, channels_out), nn.ReLU())


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each cell of (B, C, h, w) maps, as ViTDet uses it."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised maps."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
