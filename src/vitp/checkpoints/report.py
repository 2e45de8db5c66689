"""Loading by name, with a report of what became of every name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from vitp.core.errors import CheckpointError


@dataclass(frozen=True)
class WeightsReport:
    """What became of every name, in the names of the model that was filled.

    Attributes:
        source: File or folder.
        layout: Whose names it held.
        loaded: Copied as they were.
        resampled: Position tables and patch kernels that were resized, with both shapes.
        missing: Parameters of the model that the source lacks.
        unexpected: Names of the source that the model lacks.
        other_shape: Names whose shapes differ, with both.
        ignored: Names of the source that are known not to belong to the model: classifiers, decoders, values that
            the architecture computes.
        notes: What else happened, in words.
    """

    source: str
    layout: str
    loaded: tuple[str, ...] = ()
    resampled: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    other_shape: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every parameter got its value and no name was left over."""
        return not (self.missing or self.unexpected or self.other_shape)

    def require_complete(self) -> None:
        """Do nothing when complete.

        Raises:
            CheckpointError: With numbers and first names of what doesn't fit.
        """
        if self.complete:
            return
        parts = [
            f"{len(names)} {title} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
            for title, names in (
                ("missing", self.missing),
                ("unexpected", self.unexpected),
                ("of another shape", self.other_shape),
            )
            if names
        ]
        raise CheckpointError(
            f"is of another architecture: {'; '.join(parts)}",
            where=self.source,
            fix="check that file and architecture belong together",
        )

    def summary(self) -> str:
        """Return one line: layout and numbers of names."""
        counts = [
            f"{len(names)} {title}"
            for title, names in (
                ("loaded", self.loaded),
                ("resampled", self.resampled),
                ("missing", self.missing),
                ("unexpected", self.unexpected),
                ("of another shape", self.other_shape),
                ("ignored", self.ignored),
            )
            if names
        ]
        return f"{self.layout} layout: {', '.join(counts) or 'nothing loaded'}"

    def __rich__(self) -> Table:
        table = Table(
            "what", "number", "names", title=f"weights of {escape(self.source)} ({self.layout} layout)"
        )
        rows: tuple[tuple[str, Sequence[str]], ...] = (
            ("loaded", self.loaded),
            ("resampled", self.resampled),
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of another shape", self.other_shape),
            ("ignored", self.ignored),
            ("note", self.notes),
        )
        for title, names in rows:
            if not names:
                continue
            shown = names if title not in ("loaded", "ignored") else names[:2]
            more = len(names) - len(shown)
            text = "\n".join(shown) + (f"\n… and {more} more" if more else "")
            table.add_row(title, str(len(names)), escape(text))
        return table


def apply_weights(
    module: nn.Module,
    weights: Mapping[str, Tensor],
    *,
    source: str,
    layout: str,
    resampled: Mapping[str, str] | None = None,
    unexpected: Iterable[str] = (),
    ignored: Iterable[str] = (),
    notes: Iterable[str] = (),
    strict: bool = True,
) -> WeightsReport:
    """Copy tensors into the module, converted to its types; with `strict` all of them or none.

    Args:
        module: To be filled.
        weights: Tensors under the module's names, already of its sizes where they could be resampled.
        source: File or folder, for messages.
        layout: Whose names the source held.
        resampled: Name → the change of its shape, for the report.
        unexpected: Names of the source that no rule understood.
        ignored: Names of the source that were left out on purpose.
        notes: Other remarks.
        strict: Refuse anything missing, unexpected or of another shape.

    Raises:
        CheckpointError: With `strict`, when not everything fits; nothing is changed then.
    """
    own = module.state_dict()
    second = _second_names(own)
    resampled = dict(resampled or {})
    fitting = [n for n in own if n in weights and weights[n].shape == own[n].shape]
    report = WeightsReport(
        source=source,
        layout=layout,
        loaded=tuple(n for n in fitting if n not in resampled),
        resampled=tuple(f"{n} {change}" for n, change in resampled.items()),
        missing=tuple(n for n in own if n not in weights and n not in second),
        unexpected=(*unexpected, *(n for n in weights if n not in own)),
        other_shape=tuple(
            f"{n} {tuple(weights[n].shape)} instead of {tuple(own[n].shape)}"
            for n in own
            if n in weights and weights[n].shape != own[n].shape
        ),
        ignored=tuple(ignored),
        notes=tuple(notes),
    )
    if strict:
        report.require_complete()
    with torch.no_grad():
        for name in fitting:
            own[name].copy_(weights[name])
    return report


def _second_names(state: Mapping[str, Tensor]) -> set[str]:
    """Names under which a tied tensor appears again: the source may hold it under the first name alone."""
    seen: set[int] = set()
    second: set[str] = set()
    for name, tensor in state.items():
        if tensor.numel() and tensor.data_ptr() in seen:
            second.add(name)
        seen.add(tensor.data_ptr())
    return second
