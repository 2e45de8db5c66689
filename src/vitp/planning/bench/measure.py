"""Timed training steps: forward, backward and AdamW, with the loader that a run uses; and the peaks of the machine."""

from __future__ import annotations

import ctypes
import gc
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vitp.core import distributed
from vitp.core.reading import read_text
from vitp.engine.loading import StepLoader, to_device
from vitp.engine.numerics import amp_dtype, autocast
from vitp.models.compilation import compile_report, is_compiled
from vitp.objectives.base import BatchSource, Objective
from vitp.planning.devices import DEVICES

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Peak:
    """The most FLOPs a second that matrix products can reach.

    Attributes:
        flops: A second.
        basis: "data sheet" of the GPU, or "measured" with one large product.
    """

    flops: float
    basis: str


def hardware(device: torch.device) -> str:
    """Return a line about a device, the same for the same kind of machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names = processor_names()
    model = names[0] if names else platform.processor() or platform.machine()
    return f"{model}, {torch.get_num_threads()} threads"


def processor_names() -> list[str]:
    """Return the model of each core, where the system tells it."""
    try:
        lines = read_text("/proc/cpuinfo").splitlines()
    except OSError:
        return []
    return [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]


def data_sheet(name: str) -> float | None:
    """Return the bf16 peak in FLOPs a second of a GPU by torch's name for it, or None for one we don't know."""
    words = name.replace("-", " ").replace("_", " ").upper().replace("RTX ", "RTX")
    best: tuple[int, float] | None = None
    for key, device in DEVICES.items():
        parts = key.upper().split("-")
        # A number is the memory, which torch's names have with GB behind it: A100-SXM4-80GB.
        if all(part in words.split() or (part.isdigit() and f"{part}GB" in words) for part in parts):
            best = max(best or (0, 0.0), (len(parts), device.bf16_tflops * 1e12))
    return best[1] if best else None


def peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """Return the peak of a device: of its data sheet in half precision, measured otherwise."""
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        known = data_sheet(torch.cuda.get_device_name(device))
        if known is not None:
            return Peak(known, "data sheet")
    return Peak(measured_peak(device, dtype), "measured")


def measured_peak(device: torch.device, dtype: torch.dtype, *, side: int | None = None) -> float:
    """Return the FLOPs a second of a square matrix product, the best of some."""
    side = side or (8192 if device.type == "cuda" else 1024)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(6):
        synchronize(device)
        began = time.perf_counter()
        a @ b
        synchronize(device)
        best = max(best, 2.0 * side**3 / (time.perf_counter() - began))
    return best


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def peak_memory(run: Callable[[], object], device: torch.device) -> int:
    """Return the bytes that a call needs at most beyond what is in use before it.

    On a GPU that is what torch allocates. On Linux it is the growth of the process, with freed memory given back
    first; elsewhere the growth of the largest size that the process ever had.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if sys.platform == "linux":
        # The C library keeps freed memory for later, which would hide what the call needs.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the high-water mark
    except OSError:
        before = _largest()
        run()
        return max(0, _largest() - before)
    before = _status("VmRSS")
    run()
    return max(0, _status("VmHWM") - before)


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            # Linux says kB and means 1024 bytes.
            return int(line.split()[1]) * 1024
    return 0


def _largest() -> int:
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Bytes on macOS, kilobytes on Linux.
    return used if sys.platform == "darwin" else used * 1024


@dataclass(frozen=True)
class StepSettings:
    """Number of the steps and how they are made.

    Attributes:
        steps: Timed steps.
        warmup: Steps before them.
        micro_batches: Micro-batches of a step.
        num_workers: Processes that prepare batches.
        precision, device: As in `TrainSettings`.
    """

    steps: int = 8
    warmup: int = 2
    micro_batches: int = 1
    num_workers: int = 0
    precision: str = "auto"
    device: str = "auto"


@dataclass(frozen=True)
class Measurement:
    """Figures of the timed steps.

    Attributes:
        step_s: Median seconds of a step, the wait for its batches not included.
        samples_per_s, questions_per_s, tiles_per_s, tokens_per_s: Over the time of all steps with the wait.
        packing: Tokens over token slots of the rows.
        data_wait: Share of the time spent waiting for batches.
        memory_gb: GiB that a step needs at most beyond weights and moments.
        state_gb: GiB of weights, gradients and moments.
        model_tflops: FLOPs that the model needs, a second, in 10¹².
        mfu: The same as a share of the peak.
        peak_tflops, peak_basis: The peak, and where it is from.
        loss: Mean loss of the last step; not finite means that the figures are worth nothing.
        tile_packing: Share of the tiles computed that are the data's; the others fill a batch up.
        compiled: What torch.compile made, and what it gave up.
    """

    step_s: float
    samples_per_s: float
    questions_per_s: float
    tiles_per_s: float
    tokens_per_s: float
    packing: float
    data_wait: float
    memory_gb: float
    state_gb: float
    model_tflops: float
    mfu: float
    peak_tflops: float
    peak_basis: str
    loss: float
    tile_packing: float = 1.0
    compiled: str = "nothing"

    def figures(self) -> dict[str, Any]:
        """Return the numbers with as many digits as they are worth."""
        return {
            name: float(f"{value:.4g}") if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }


class StepRunner:
    """An objective with an optimizer, ready to make steps.

    Args:
        objective: The model and its loss; moved to the device.
        settings: Settings of the steps.
    """

    def __init__(self, objective: Objective, settings: StepSettings) -> None:
        self.device = distributed.resolve_device(settings.device)
        self.settings, self.objective = settings, objective.to(self.device).train()
        self.dtype = amp_dtype(settings.precision, self.device)
        trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=self.device.type != "mps")

    def step(self, batches: list[Any]) -> float:
        """Make one optimizer step and return the mean loss, having waited for the device."""
        counts = distributed.sum_dicts(self.objective.loss_counts(batch) for batch in batches)
        total = torch.zeros((), device=self.device)
        for batch in batches:
            moved = to_device(batch, self.device)
            with autocast(self.device, self.dtype):
                terms = self.objective(moved)
                loss = torch.stack([terms[n].float() / max(counts[n], 1.0) for n in terms]).sum()
            torch.autograd.backward(loss)
            total += loss.detach()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(total)

    def peak_memory(self, batches: list[Any]) -> int:
        """Return the bytes that a step needs at most beyond weights, gradients and moments."""
        for parameter in self.objective.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        return peak_memory(lambda: self.step(batches), self.device)

    def state_bytes(self) -> int:
        """Return the bytes of weights, gradients and moments."""
        weights = list(self.objective.parameters())
        held = sum(p.numel() * p.element_size() for p in weights)
        trained = sum(p.numel() * p.element_size() for p in weights if p.requires_grad)
        return held + 3 * trained


def measure_steps(
    objective: Objective,
    source: BatchSource,
    settings: StepSettings,
    *,
    on_step: Callable[[int], None] | None = None,
) -> Measurement:
    """Return how fast an objective learns from a source.

    Args:
        objective: Model and loss.
        source: Its batches.
        settings: Settings of the steps.
        on_step: Called after each timed step with its number, by a profiler for instance.
    """
    runner = StepRunner(objective, settings)
    on_gpu, workers = runner.device.type == "cuda", settings.num_workers
    steps = settings.warmup + settings.steps + 1  # the last one is for the peak of memory
    loader = StepLoader(source, 0, steps, settings.micro_batches, num_workers=workers, pin_memory=on_gpu)
    work: dict[str, float] = {}
    flops, loss, times = 0.0, 0.0, []
    try:
        for _ in range(settings.warmup):
            runner.step(loader.next_step())
        wait_before = loader.wait_s
        for number in range(settings.steps):
            batches = loader.next_step()
            work = distributed.sum_dicts([work, *(objective.work(batch) for batch in batches)])
            flops += sum(objective.step_flops(batch) for batch in batches)
            synchronize(runner.device)
            began = time.perf_counter()
            loss = runner.step(batches)
            synchronize(runner.device)
            times.append(time.perf_counter() - began)
            if on_step is not None:
                on_step(number)
        waited = loader.wait_s - wait_before
        memory = runner.peak_memory(loader.next_step())
    finally:
        loader.close()
    limit = peak(runner.device, runner.dtype or torch.float32)
    seconds = sum(times) + waited
    return Measurement(
        step_s=statistics.median(times),
        samples_per_s=work["samples"] / seconds,
        questions_per_s=work["questions"] / seconds,
        tiles_per_s=work["tiles"] / seconds,
        tokens_per_s=work["tokens"] / seconds,
        packing=work["tokens"] / work["capacity"],
        data_wait=waited / seconds,
        memory_gb=memory / 2**30,
        state_gb=runner.state_bytes() / 2**30,
        model_tflops=flops / seconds / 1e12,
        mfu=flops / seconds / limit.flops,
        peak_tflops=limit.flops / 1e12,
        peak_basis=limit.basis,
        loss=loss,
        tile_packing=work["tiles"] / (work.get("tile_slots") or work["tiles"] or 1.0),
        compiled=str(compile_report()) if is_compiled(objective) else "nothing",
    )
