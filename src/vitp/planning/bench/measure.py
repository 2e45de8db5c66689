"""Some training steps, timed: forward, backward and AdamW, with the loader that a run uses."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from vitp.core import distributed
from vitp.engine.loading import StepLoader, to_device
from vitp.engine.numerics import amp_dtype, autocast
from vitp.objectives.base import BatchSource
from vitp.objectives.vitp import ViTPObjective, vlm_step_flops
from vitp.planning.bench.machine import Peak, peak, peak_memory, synchronize


@dataclass(frozen=True)
class StepSettings:
    """How steps are made and how many.

    Attributes:
        steps: That are timed.
        warmup: Before them.
        micro_batches: A step.
        num_workers: Processes that prepare batches.
        precision: As in `TrainConfig`.
        device: As in `TrainConfig`.
    """

    steps: int = 8
    warmup: int = 2
    micro_batches: int = 1
    num_workers: int = 0
    precision: str = "auto"
    device: str = "auto"


@dataclass(frozen=True)
class Measurement:
    """What the steps amounted to.

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
        settings: Of the steps.
    """

    def __init__(self, objective: ViTPObjective, settings: StepSettings) -> None:
        self.device = distributed.resolve_device(settings.device)
        self.settings, self.objective = settings, objective.to(self.device).train()
        self.dtype = amp_dtype(settings.precision, self.device)
        trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)

    def step(self, batches: list[Any]) -> float:
        """Make one optimizer step and return the mean loss, having waited for the device."""
        terms = sum(self.objective.loss_counts(batch)["language"] for batch in batches)
        total = torch.zeros((), device=self.device)
        for batch in batches:
            moved = to_device(batch, self.device)
            with autocast(self.device, self.dtype):
                loss = self.objective(moved)["language"].float() / max(terms, 1.0)
            loss.backward()
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


def measure(
    objective: ViTPObjective,
    source: BatchSource,
    settings: StepSettings,
    *,
    on_step: Callable[[int], None] | None = None,
) -> Measurement:
    """Return how fast an objective learns from a source.

    Args:
        objective: ViTP's.
        source: Of batches.
        settings: Of the steps.
        on_step: Called after each timed step with its number; a profiler's, say.
    """
    runner = StepRunner(objective, settings)
    steps = settings.warmup + settings.steps + 1
    loader = StepLoader(
        source,
        0,
        steps,
        settings.micro_batches,
        num_workers=settings.num_workers,
        pin_memory=runner.device.type == "cuda",
    )
    try:
        for _ in range(settings.warmup):
            runner.step(loader.next_step())
        wait_before, times = loader.wait_s, []
        work: dict[str, float] = {}
        flops, loss = 0.0, 0.0
        for number in range(settings.steps):
            batches = loader.next_step()
            work = distributed.sum_dicts([work, *(objective.work(batch) for batch in batches)])
            flops += sum(vlm_step_flops(objective.vlm, batch) for batch in batches)
            synchronize(runner.device)
            began = time.perf_counter()
            loss = runner.step(batches)
            synchronize(runner.device)
            times.append(time.perf_counter() - began)
            if on_step is not None:
                on_step(number)
        waited = loader.wait_s - wait_before
        last = loader.next_step()
        memory = runner.peak_memory(last)
    finally:
        loader.close()
    limit = peak(runner.device, runner.dtype or torch.float32)
    return _summary(work, times, waited, flops, memory, runner, limit, loss)


def _summary(
    work: dict[str, float],
    times: list[float],
    waited: float,
    flops: float,
    memory: int,
    runner: StepRunner,
    limit: Peak,
    loss: float,
) -> Measurement:
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
    )
