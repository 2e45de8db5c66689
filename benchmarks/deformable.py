"""What deformable attention costs in plain PyTorch, at the paper's sizes and at micro size.

One injector and one extractor layer of ViT-Adapter, forward and backward, beside the ViT block that they stand
next to. Paper: ViT-L (width 1024, 16 heads), an image of 1024 × 1024 px, 64 × 64 patches, maps at 1/8, 1/16 and
1/32, values at a quarter of the width. Micro: width 192, 3 heads, 96 × 96 px, patches of 8.

Command: `python benchmarks/deformable.py`
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from common import median_seconds, save
from vitp.models.adapter import Extractor, Injector
from vitp.models.deformable import cell_centers, deformable_attention

STRIDES = (8, 16, 32)
SIZES = {
    "paper": {"width": 1024, "heads": 16, "image": 1024, "patch": 16},
    "micro": {"width": 192, "heads": 3, "image": 96, "patch": 8},
}


def trained(module: nn.Module, inputs: list[Tensor], run: Callable[..., Tensor]) -> Callable[[], None]:
    """Return a function that runs the layer forward and backward, its inputs included."""

    def step() -> None:
        module.zero_grad()
        for tensor in inputs:
            tensor.grad = None
        run(*inputs).sum().backward()

    return step


def measure(width: int, heads: int, image: int, patch: int, device: torch.device) -> dict[str, object]:
    torch.manual_seed(0)
    grid = (image // patch, image // patch)
    shapes = [(image // stride, image // stride) for stride in STRIDES]
    cells = sum(height * width for height, width in shapes)
    frame = (image, image)
    places_N2 = cell_centers(grid, patch, frame, device)
    places_S2 = torch.cat(
        [cell_centers(shape, stride, frame, device) for shape, stride in zip(shapes, STRIDES, strict=True)]
    )
    patches = torch.randn(1, grid[0] * grid[1], width, device=device, requires_grad=True)
    maps = torch.randn(1, cells, width, device=device, requires_grad=True)
    attention = {"heads": heads, "points": 4, "value_ratio": 0.25}
    injector = Injector(width, **attention).to(device)
    extractor = Extractor(width, width // 4, 0.0, **attention).to(device)
    block = Block(width, heads, qkv_bias=True).to(device)
    value = torch.randn(1, cells, heads, width // 4 // heads, device=device, requires_grad=True)
    locations = torch.rand(1, patches.shape[1], heads, 3, 4, 2, device=device, requires_grad=True)
    weights = torch.rand(1, patches.shape[1], heads, 3, 4, device=device, requires_grad=True)
    steps = {
        "injector": trained(injector, [patches, maps], lambda p, m: injector(p, places_N2, m, shapes)),
        "extractor": trained(
            extractor, [maps, patches], lambda m, p: extractor(m, places_S2, shapes, p, grid)
        ),
        "injector_sampling_alone": trained(
            injector, [value, locations, weights], lambda v, at, w: deformable_attention(v, shapes, at, w)
        ),
        "vit_block": trained(block, [patches], block),
    }
    seconds = {name: round(median_seconds(step, repeats=3, warmup=1), 5) for name, step in steps.items()}
    return {
        "patches": patches.shape[1],
        "cells": cells,
        "seconds": seconds,
        "injector_and_extractor_over_vit_block": round(
            (seconds["injector"] + seconds["extractor"]) / seconds["vit_block"], 2
        ),
    }


def main() -> None:
    torch.set_num_threads(2)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    figures: dict[str, object] = {name: measure(**size, device=device) for name, size in SIZES.items()}
    # Others' work on the machine makes every figure larger, the ratios less so.
    figures["load_average"] = [round(value, 1) for value in os.getloadavg()]
    save("deformable", figures)


if __name__ == "__main__":
    main()
