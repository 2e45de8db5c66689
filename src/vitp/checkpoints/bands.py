"""Weights of a tower for other channels than it was trained with: which are wanted, and the patch kernel for them.

Shapes: D width, C old and N new channels, P patch side.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vitp.core.errors import CheckpointError
from vitp.models.inflation import in_ranges_of, inflation_note, inheritance, unnamed_channels
from vitp.records.channels import PICTURE, Channels, matching

_log = logging.getLogger("vitp")


@dataclass(frozen=True)
class FittedKernel:
    """A patch kernel for other channels.

    Attributes:
        kernel: (D, N, P, P).
        shapes: The change of its shape; "": there was none.
        note: What was done, in one line; "": nothing that matters for the input.
    """

    kernel: Tensor
    shapes: str
    note: str


def wanted_channels(
    own: Channels | None, asked: Channels | None, data: Channels | None, *, where: str
) -> Channels | None:
    """Return the channels that a tower is to be made for.

    Args:
        own: That it was trained with; None: RGB pictures.
        asked: That somebody asked for; None: nothing.
        data: Of the data that it is to be trained on. A tower of RGB pictures gets these; one with bands keeps its
            own, which the data must have.
        where: The tower, for the message.

    Raises:
        DataError: The data lack bands of the tower.
    """
    if asked is not None or own is None:
        return asked or data
    seen = in_ranges_of(data, own, where=f"the data for {where}")
    return seen if data is None else matching(seen, data, where=f"the data for {where}")


def fit_kernel(
    kernel_DCPP: Tensor, old: Channels | None, new: Channels | None, *, source: str
) -> FittedKernel:
    """Return the kernel for other channels by the rule of `vitp.models.inflation`, and say what was done."""
    fitted_DNPP = inheritance(old, new).kernel(kernel_DCPP)
    before, after = tuple(kernel_DCPP.shape), tuple(fitted_DNPP.shape)
    note = "" if (old or PICTURE).reads_like(new or PICTURE) else inflation_note(old, new)
    if note:
        _log.warning("note: %s: %s", source, note)
    return FittedKernel(fitted_DNPP, f"{before} → {after}" if before != after else "", note)


def fit_first_layers(
    weights: dict[str, Tensor], model: Any, old: Channels | None, new: Channels | None, *, source: str
) -> tuple[str, ...]:
    """Bring the convolutions of a timm model that see the image to other channels, in place; return what was done.

    Args:
        weights: timm's name → tensor.
        model: The timm model, which knows these layers by name.
        old: Bands that the weights are of; None: three are RGB, other numbers are called by number.
        new: Bands that are wanted; None: RGB pictures, for which no weights of bands are taken.
        source: Source of the weights, for messages.

    Raises:
        CheckpointError: A layer has other channels than `old`.
    """
    first, notes = model.pretrained_cfg.get("first_conv") or (), []
    for name in [first] if isinstance(first, str) else first:
        kernel = weights.get(f"{name}.weight")
        if new is None or kernel is None or kernel.ndim != 4:
            continue
        before = unnamed_channels(kernel.shape[1]) if old is None else old
        check_kernel(kernel, before, where=source)
        if before != new:
            changed = fit_kernel(kernel, before, new, source=source)
            weights[f"{name}.weight"] = changed.kernel
            notes.append(changed.note)
    return tuple(filter(None, notes))


def check_kernel(kernel_DCPP: Tensor, channels: Channels | None, *, where: str) -> None:
    """Do nothing when a patch kernel is for as many channels as its tower says.

    Raises:
        CheckpointError: It is for others.
    """
    count = 3 if channels is None else len(channels)
    if kernel_DCPP.ndim == 4 and kernel_DCPP.shape[1] != count:
        said = "RGB pictures" if channels is None else f"{count} channels ({', '.join(channels.bands[:13])})"
        raise CheckpointError(
            f"is described as a tower of {said}, but its patch kernel has {kernel_DCPP.shape[1]} channels",
            where=where,
            fix="one of the files was changed; copy the folder again or export it anew",
        )
