"""`Backbone`: images → features at the asked layers, with everything a head has to know attached.

Shapes: B images, C channels, H × W pixels or cells, N tokens, D width.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vitp.records.channels import Channels


class Backbone(nn.Module, ABC):
    """What pretraining, export, probes and every head meet at.

    Attributes:
        image_size: Height and width in pixels that it was pretrained at.
        in_channels: Bands that it sees, and how their values become 0–255; None: RGB pictures.
        mean, std: Normalisation of values on 0..1, one number a channel of the input.
        num_layers: Layers that `forward_features` can be asked for.
        channels: Channels of each layer's features.
        strides: Pixels a feature cell, for each layer.
    """

    image_size: tuple[int, int]
    in_channels: Channels | None = None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_layers: int
    channels: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def num_channels(self) -> int:
        """Channels of the images that it takes: 3 for pictures."""
        return 3 if self.in_channels is None else len(self.in_channels)

    @abstractmethod
    def forward_features(self, image_BCHW: Tensor, layers: Sequence[int] = (-1,)) -> list[Tensor]:
        """Return one (B, D, H / stride, W / stride) map for each layer asked for, in that order.

        Args:
            image_BCHW: Normalised float images (see `normalize`).
            layers: Layer numbers; negative ones count from the end. The last layer's features are the
                ones that go to the projector, final norm (if there is one) included.
        """

    def normalize(self, image_BCHW: Tensor) -> Tensor:
        """Return uint8 (0..255) or float (0..1) images of `num_channels` channels as normalised float images."""
        if image_BCHW.dtype == torch.uint8:
            image_BCHW = image_BCHW.float() / 255
        mean_C11, std_C11 = self._normalisation_on(image_BCHW.device)
        return (image_BCHW - mean_C11) / std_C11

    def _normalisation_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return mean and deviation as (C, 1, 1), made once a device: each batch would wait for two copies."""
        known: dict[Any, tuple[Tensor, Tensor]] = self.__dict__.setdefault("_normalisation", {})
        key = (tuple(self.mean), tuple(self.std), device)
        if key not in known or torch.compiler.is_compiling():
            # Tensors made in inference mode couldn't be used later, where gradients are wanted.
            with torch.inference_mode(False):
                made = (
                    torch.tensor(self.mean, device=device).view(-1, 1, 1),
                    torch.tensor(self.std, device=device).view(-1, 1, 1),
                )
            if torch.compiler.is_compiling():  # belongs to the graph
                return made
            known[key] = made
        return known[key]


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode without gradients, and each of its parts back afterwards."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode
