"""torch.compile over the repeated blocks of a model, so that it holds: few graphs, and never given up in silence.

All blocks of a class share the graphs of its `forward`. A graph is made for each combination of what torch
guards: module structure, training or not, and shapes, apart from those that are marked as dynamic. Past
torch's limit (8 for one function) everything is computed eagerly without a word in the results; `compile_report` tells.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

Backend = str | Callable[..., Any]

_EXPECTED_BREAKS = ("torch.compiler.disable",)
"""Words in the reasons of graph breaks that are meant: attention over packed rows stays out of the graphs."""


class CompiledForward:
    """A module's `forward`, compiled where gradients are wanted; without them, as in probes, it is the plain one.

    It lies in the module's own dictionary, so that hooks (of FSDP, LoRA, profiles) stay outside of the graph, and
    a deep copy of the module is compiled, too.

    Args:
        module: Module whose `forward` is compiled.
        batch_dim: Dimension of the first argument that varies from batch to batch; None: all dimensions may.
        backend: Backend of torch.compile.
    """

    def __init__(self, module: nn.Module, batch_dim: int | None, backend: Backend) -> None:
        self.module, self.batch_dim, self.backend = module, batch_dim, backend
        # The class's function, as the module's own `forward` will be this object.
        self.plain = type(module).forward.__get__(module)
        self.compiled: Callable[..., Any] = torch.compile(
            self.plain, dynamic=batch_dim is None, backend=backend
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the module's own `forward` returns."""
        if not torch.is_grad_enabled():
            return self.plain(*args, **kwargs)
        if self.batch_dim is not None and args and isinstance(args[0], Tensor):
            torch._dynamo.maybe_mark_dynamic(args[0], self.batch_dim)
        return self.compiled(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledForward:
        return CompiledForward(copy.deepcopy(self.module, memo), self.batch_dim, self.backend)

    def __reduce__(self) -> Any:
        return CompiledForward, (self.module, self.batch_dim, self.backend)


def compile_block(block: nn.Module, *, batch_dim: int | None, backend: Backend = "inductor") -> None:
    """Compile a module's `forward`, in place; see `CompiledForward`."""
    block.forward = CompiledForward(block, batch_dim, backend)


def is_compiled(module: nn.Module) -> bool:
    """Return whether a module within `module` is compiled."""
    return any(isinstance(vars(part).get("forward"), CompiledForward) for part in module.modules())


@dataclass(frozen=True)
class CompileReport:
    """What torch.compile has made in this process.

    Attributes:
        graphs: Graphs made.
        given_up: Functions for which torch gave up, with its reason: they are computed eagerly.
        broken: Reasons for which graphs were cut, beside those that are meant → how often.
    """

    graphs: int
    given_up: tuple[str, ...]
    broken: Mapping[str, int]

    @property
    def holds(self) -> bool:
        """Whether nothing that is to be compiled is computed eagerly."""
        return not self.given_up and not self.broken

    def __str__(self) -> str:
        words = [f"{self.graphs} graph{'' if self.graphs == 1 else 's'}"]
        words += [f"GIVEN UP, computed eagerly: {reason}" for reason in self.given_up]
        words += [f"cut {times} times: {reason}" for reason, times in self.broken.items()]
        return "; ".join(words)


def compile_report() -> CompileReport:
    """Return what torch's own counters say since the process began, or since `forget_graphs`."""
    broken: dict[str, int] = {}
    given_up: list[str] = []
    for reason, times in _reasons():
        # torch has renamed this limit between its versions; both names are looked for.
        if "limit" in reason and ("recompile" in reason or "cache_size" in reason):
            given_up.append(reason)
        elif not any(word in reason for word in _EXPECTED_BREAKS):
            broken[reason] = broken.get(reason, 0) + times
    return CompileReport(int(counters["stats"]["unique_graphs"]), tuple(given_up), broken)


def _reasons() -> Iterator[tuple[str, int]]:
    """Return the first line of each reason for which a graph ended early, and how often it did."""
    for kind in ("graph_break", "unimplemented"):
        for reason, times in counters[kind].items():
            yield str(reason).strip().split("\n")[0][:160], int(times)


class CompileWatch:
    """Tells a run's log what the compiler made of its model, once and whenever something is given up.

    Args:
        module: The model; nothing is told of one that is not compiled.
    """

    def __init__(self, module: nn.Module) -> None:
        self._wanted, self._told = is_compiled(module), CompileReport(0, (), {})

    def news(self) -> str | None:
        """Return what is to be said now, None for nothing."""
        if not self._wanted:
            return None
        found, told = compile_report(), self._told
        lost = (found.given_up, found.broken) != (told.given_up, told.broken)
        if not found.graphs or (told.graphs and not lost):
            return None
        self._told = found
        return f"{'' if found.holds else 'WARNING: '}torch.compile: {found}"


def forget_graphs() -> None:
    """Drop all graphs and counts of this process."""
    torch._dynamo.reset()
    counters.clear()
