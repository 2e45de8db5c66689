"""Finetune a detector from a backbone, and find the objects of new images.

    python examples/finetune_a_detector.py FOLDER BACKBONE OUT [STEPS]

FOLDER is a set with boxes; BACKBONE an export, a run, or "starter".
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import vitp


def main(folder: Path, backbone: str, out: Path, steps: int = 300) -> list[tuple[str, float]]:
    """Write the run to OUT; return class and score of the objects found in one test image, best first."""
    config = vitp.FinetuneConfig.model_validate(
        {
            "task": "detection",
            "backbone": {"init": backbone},
            "data": {"root": str(folder), "global_batch": 4, "resize": {"mode": "fixed", "size": 96}},
            "neck": {"options": {"channels": 64}},
            "head": {"width": 64},
            "train": {"steps": steps},
        }
    )
    result = vitp.run_finetune(config, out)
    print({name: round(value, 3) for name, value in result.scores.values.items()})

    image = next(path for path in sorted(folder.rglob("test/**/*")) if path.suffix in (".png", ".jpg"))
    model = vitp.load_task(out)
    pixels_CHW = torch.from_numpy(np.array(Image.open(image).convert("RGB"))).permute(2, 0, 1)
    (found,) = vitp.predict_images(model, [pixels_CHW])
    return [
        (model.classes[label], score)
        for label, score in zip(found.labels_N.tolist(), found.scores_N.tolist(), strict=True)
    ]


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), *map(int, sys.argv[4:])))
