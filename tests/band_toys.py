"""Channels and towers with bands, as small as they can be."""

from __future__ import annotations

from vitp.models.vision import VisionSettings, VisionTower
from vitp.records.channels import Channel, Channels


def bands(names: str, *, low: float = 0.0, high: float = 255.0) -> Channels:
    """Channels of these bands, given with spaces between."""
    return Channels(channels=tuple(Channel(band=name, low=low, high=high) for name in names.split()))


def vision_with(names: str | None, **changes) -> VisionSettings:
    """A tower of two blocks with patches of 8 for images of 32 px; None: of pictures."""
    values = {
        "arguments": {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8},
        "image_size": 32,
        "channels": None if names is None else bands(names, low=10, high=3000),
    }
    return VisionSettings(**(values | changes))


def tower_with(names: str | None, **changes) -> VisionTower:
    """See `vision_with`."""
    return VisionTower(vision_with(names, **changes)).eval()
