"""The channels of a run: which bands weights were trained with, and what a frozen patch kernel can't learn."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.map_models import channels_of
from vitp.checkpoints.description import Provenance
from vitp.checkpoints.export import write_backbone
from vitp.models.vision import VisionSettings, VisionTower
from vitp.records.channels import Channels
from vitp.runs.channels import frozen_kernel_notes, trained_channels
from vitp.tasks.build import build_model

ARGUMENTS = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}


def tower(channels: Channels | None) -> VisionTower:
    settings = {"arguments": ARGUMENTS, "image_size": 32}
    return VisionTower(VisionSettings.model_validate({**settings, "channels": channels}))


@pytest.mark.parametrize("bands", [(), ("B2", "B3", "B4", "B8")])
@pytest.mark.parametrize("layout", ["export", "finetuned"])
def test_which_bands_weights_see_is_read_beside_them(
    tmp_path: Path, layout: str, bands: tuple[str, ...]
) -> None:
    channels = channels_of(*bands) if bands else None
    if layout == "export":
        write_backbone(tmp_path / "model", tower(channels), Provenance(source="here"))
    else:
        build_model("classification", tower(channels), ("a", "b")).eval().save_pretrained(tmp_path / "model")
    for weights in (tmp_path / "model").rglob("*.safetensors"):
        weights.write_bytes(b"no weights at all")
    assert trained_channels(str(tmp_path / "model"), None) == channels


def test_a_frozen_kernel_that_was_made_for_other_bands_is_said() -> None:
    bands = tower(channels_of("red", "green", "blue", "nir"))
    assert frozen_kernel_notes(bands, "starter", None) == [], "it learns"
    bands.requires_grad_(False)
    (line,) = frozen_kernel_notes(bands, "starter", None)
    assert "red, green, blue continue their own; nir begins with the mean of all" in line
    assert "frozen and keeps these values" in line
    assert frozen_kernel_notes(bands, "scratch", None) == []
    assert frozen_kernel_notes(tower(None).requires_grad_(False), "starter", None) == []
