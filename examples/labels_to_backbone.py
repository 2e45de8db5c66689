"""From labels to a backbone: compile instructions, pretrain by them, export the ViT, load it in timm.

    python examples/labels_to_backbone.py FOLDER OUT [STEPS]

FOLDER is a labelled set in any format that `vitp data compile` reads. The run continues the packaged starter model.
"""

from __future__ import annotations

import sys
from pathlib import Path

import timm
import torch

import vitp


def main(folder: Path, out: Path, steps: int = 200) -> torch.Size:
    """Write OUT/data, OUT/run and OUT/backbone; return the shape of the backbone's patch features."""
    summary = vitp.compile_labels(folder, "auto", out / "data")
    print(*summary.understood, sep="\n")
    config = vitp.starter_config([out / "data"], steps=steps)
    vitp.run_pretraining(config, out / "run")
    vitp.export_backbone(out / "run", out / "backbone")

    # The export is a timm checkpoint; its config.json says how images are normalised.
    model = timm.create_model(f"local-dir:{out / 'backbone'}", pretrained=True).eval()
    size = model.pretrained_cfg["input_size"]
    with torch.no_grad():
        features = model.forward_features(torch.zeros(1, *size))
    return features.shape


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:])))
