"""A profile of training steps: a trace for a viewer, and one page that says where the time went."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from vitp.core.files import write_text
from vitp.models.vlm import VisionLanguageModel

_KINDS = {
    "attention": ("attention", "flash", "fmha", "flex"),
    "convolution": ("conv",),
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "linear", "gemm", "cutlass", "cublas"),
    "normalisation": ("norm",),
    "activation functions": ("gelu", "silu", "softmax", "sigmoid"),
    "optimizer": ("adam", "foreach"),
    "copies and gathers": (
        *("copy", "index", "cat", "gather", "scatter"),
        *("clone", "memcpy", "memset", "fill", "zero"),
    ),
}
"""Kind of work → words in the names of its operations; the first kind that fits counts."""


def kind_of(name: str) -> str:
    """Return what kind of work an operation is, by its name."""
    lower = name.lower()
    return next((kind for kind, words in _KINDS.items() if any(word in lower for word in words)), "other")


@contextlib.contextmanager
def profiled(vlm: VisionLanguageModel, folder: Path) -> Iterator[Callable[[int], None]]:
    """Profile the block; afterwards `folder` holds `trace.json` and `summary.md`.

    Yields a function that is to be called after each step.
    """
    folder.mkdir(parents=True, exist_ok=True)
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with _parts_marked(vlm), profile(activities=activities, acc_events=True) as profiler:
        yield lambda _number: profiler.step()
    profiler.export_chrome_trace(str(folder / "trace.json"))
    write_text(folder / "summary.md", profile_page(profiler))


def profile_page(profiler: Any) -> str:
    """Return the page: by part, by kind of work, and the operations that take longest."""
    averages = profiler.key_averages()
    events = [event for event in averages if not event.key.startswith(("ProfilerStep", "vitp."))]
    gpu = any(_own_time(event, gpu=True) for event in events)
    times = {event.key: _own_time(event, gpu=gpu) for event in events}
    total = sum(times.values()) or 1.0
    kinds: dict[str, float] = {}
    for name, microseconds in times.items():
        kinds[kind_of(name)] = kinds.get(kind_of(name), 0.0) + microseconds
    where = "on the GPU" if gpu else "on the CPU"
    lines = ["# Where the time went", "", f"{total / 1e3:,.1f} ms {where}, over all profiled steps.", ""]
    parts = {event.key.removeprefix("vitp."): event for event in averages if event.key.startswith("vitp.")}
    if parts:
        lines += ["| part, forward | ms of the host |", "|---|---|"]
        lines += [f"| {name} | {event.cpu_time_total / 1e3:,.1f} |" for name, event in parts.items()] + [""]
    lines += ["| kind of work | ms | share |", "|---|---|---|"]
    lines += [
        f"| {kind} | {value / 1e3:,.1f} | {value / total:.0%} |"
        for kind, value in sorted(kinds.items(), key=lambda item: -item[1])
    ]
    lines += ["", "| operation | calls | ms | share |", "|---|---|---|---|"]
    calls = {event.key: event.count for event in events}
    for name, value in sorted(times.items(), key=lambda item: -item[1])[:15]:
        lines.append(f"| `{name[:80]}` | {calls[name]} | {value / 1e3:,.1f} | {value / total:.0%} |")
    lines += ["", "The whole course is in `trace.json`: open it in Perfetto or chrome://tracing.", ""]
    return "\n".join(lines)


def _own_time(event: Any, *, gpu: bool) -> float:
    """Microseconds of an operation without those that it calls."""
    return float(event.self_device_time_total if gpu else event.self_cpu_time_total)


@contextlib.contextmanager
def _parts_marked(vlm: VisionLanguageModel) -> Iterator[None]:
    """Name the forward passes of the three parts in the trace."""
    # The modules that are called: wrappers around them are not.
    called = {
        "vision": vlm.vision.model.blocks,
        "projector": vlm.projector,
        "language": vlm.language.get_decoder(),
    }
    handles = [handle for part, module in called.items() for handle in _marks(module, f"vitp.{part}")]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _marks(module: nn.Module, name: str) -> list[Any]:
    open_ranges: list[contextlib.ExitStack] = []

    def enter(*_: Any) -> None:
        stack = contextlib.ExitStack()
        stack.enter_context(record_function(name))
        open_ranges.append(stack)

    def leave(*_: Any) -> None:
        open_ranges.pop().close()

    return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)]
