"""What rotated boxes cost in plain PyTorch: overlap, suppression and RoIAlign at the sizes of the paper.

Boxes as in a DOTA crop: 1024 × 1024 px, sides of 8–120 px, any angle. "Crowded": all boxes lie on each other, so
that every pair has to be computed. Seconds are of the wall clock and, beside them, of the processor: where other
programs run, only the second is the cost. Memory is the largest growth of the process during one call (on Linux).
"""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from common import median_seconds, save
from vitp.models.rotated.iou import rotated_iou
from vitp.models.rotated.nms import rotated_nms
from vitp.models.rotated.roi_align import MultiScaleRotatedRoIAlign

SIDE, CHANNELS, REGIONS = 1024, 256, 2000
STRIDES = (4, 8, 16, 32)
GENERATOR = torch.Generator().manual_seed(0)


def boxes(count: int, side: float = SIDE) -> Tensor:
    centre = torch.rand(count, 2, generator=GENERATOR) * side
    shape = 8 * (120 / 8) ** torch.rand(count, 2, generator=GENERATOR)
    angle = (torch.rand(count, 1, generator=GENERATOR) - 0.5) * math.pi
    return torch.cat([centre, shape.sort(1, descending=True).values, angle], 1).to(device())


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def cost(run: Callable[[], object], *, repeats: int = 3) -> dict[str, float]:
    """Return wall and processor seconds of `run`, and the memory in MB that it needs beside its input."""
    cpu: list[float] = []

    def timed() -> None:
        began = time.process_time()
        run()
        cpu.append(time.process_time() - began)

    wall = median_seconds(timed, repeats=repeats, warmup=1)
    return {
        "seconds": round(wall, 3),
        "cpu_seconds": round(min(cpu), 3),
        "memory_mb": round(peak_memory(run) / 2**20),
    }


def peak_memory(run: Callable[[], object]) -> int:
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # else what an earlier call left to the allocator hides the growth
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the largest size so far
    run()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main() -> None:
    if not torch.cuda.is_available():
        torch.set_num_threads(2)
    figures: dict[str, object] = {}
    first, second = boxes(2000), boxes(2000)
    figures["iou_2000x2000"] = cost(lambda: rotated_iou(first, second))
    crowd = boxes(2000, side=10)
    figures["iou_2000x2000_crowded"] = cost(lambda: rotated_iou(crowd, crowd))

    many, scores = boxes(10_000), torch.rand(10_000, generator=GENERATOR).to(device())
    figures["nms_10000_at_0.1"] = cost(lambda: rotated_nms(many, scores, 0.1))
    figures["nms_10000_at_0.5"] = cost(lambda: rotated_nms(many, scores, 0.5))
    crowd = boxes(10_000, side=10)
    figures["nms_10000_crowded_at_0.1"] = cost(lambda: rotated_nms(crowd, scores, 0.1))

    maps = [torch.randn(1, CHANNELS, SIDE // s, SIDE // s, device=device()) for s in STRIDES]
    rois = torch.cat([torch.zeros(REGIONS, 1, device=device()), boxes(REGIONS)], 1)
    pool = MultiScaleRotatedRoIAlign(STRIDES)
    with torch.no_grad():
        figures["roi_align_2000_regions"] = cost(lambda: pool(maps, rois))
    for level in maps:
        level.requires_grad_()
    figures["roi_align_512_regions_with_backward"] = cost(lambda: pool(maps, rois[:512]).sum().backward())
    save("rotated_ops", figures)


if __name__ == "__main__":
    main()
