"""The patch kernel, mean and deviation of a tower for other channels than it was trained with.

One rule for all of them. Each new channel continues old ones:

- the channels of its band's name (in any case, B4 for B04), their mean where a band stands in several;
- against RGB pictures, on either side: the colour of its name; three channels are red, green and blue in the given
  order, whatever their names (`Channels.colours`);
- as many channels as old ones that were only numbered: those at their places;
- a band that is new: the mean of all old ones.

The kernel is then multiplied by old / new number of channels (3 / N from RGB), so that tokens keep their size:
where all channels show the same, more of them would only add up. Where every channel stays, so does the kernel,
bit for bit.

Shapes: D width, C old and N new channels, P patch side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from vitp.core.errors import ConfigError, DataError
from vitp.models.timm_backbone import TimmSettings
from vitp.models.vision import VisionSettings
from vitp.records.channels import MOST_CHANNELS, PICTURE, Channel, Channels, band_key

Tower = TypeVar("Tower", VisionSettings, TimmSettings)


@dataclass(frozen=True)
class Inheritance:
    """Which old channels each new one continues.

    Attributes:
        old: Number of old channels.
        parents: For each new channel the old ones whose mean it becomes; empty: it is new, the mean of all.
    """

    old: int
    parents: tuple[tuple[int, ...], ...]

    @property
    def is_same(self) -> bool:
        """Whether every channel stays at its place."""
        return self.parents == tuple((number,) for number in range(self.old))

    def kernel(self, kernel_DCPP: Tensor) -> Tensor:
        """Return the kernel (D, N, P, P) for the new channels, in the type of the old one."""
        if self.is_same:
            return kernel_DCPP
        wide_DCPP = kernel_DCPP.float()
        slices = [
            wide_DCPP[:, parents[0]]
            if len(parents) == 1
            else wide_DCPP[:, list(parents or range(self.old))].mean(1)
            for parents in self.parents
        ]
        return (torch.stack(slices, 1) * (self.old / len(self.parents))).to(kernel_DCPP.dtype)

    def numbers(self, old: Sequence[float]) -> tuple[float, ...]:
        """Return a number for each new channel, as a mean or a deviation is, of one for each old channel."""
        if self.is_same:
            return tuple(old)
        chosen = [[old[n] for n in parents or range(self.old)] for parents in self.parents]
        return tuple(values[0] if len(values) == 1 else sum(values) / len(values) for values in chosen)


def unnamed_channels(count: int) -> Channels | None:
    """Return the channels of a tower that names no bands: None (RGB pictures) for three, else 1, 2, 3, …

    Raises:
        ConfigError: There are none, or too many.
    """
    if not isinstance(count, int) or not 1 <= count <= MOST_CHANNELS:
        raise ConfigError(
            f"towers see 1 to {MOST_CHANNELS} channels, not {str(count)[:40]}", where="in_chans"
        )
    if count == 3:
        return None
    return Channels(channels=tuple(Channel(band=str(number)) for number in range(1, count + 1)))


def is_numbered(channels: Channels | None) -> bool:
    """Return whether these are channels of a tower whose file says neither which bands they are nor their ranges."""
    if channels is None or len(channels) == 3:
        return False
    return channels.reads_like(unnamed_channels(len(channels)))


def in_ranges_of(data: Channels | None, own: Channels | None, *, where: str) -> Channels | None:
    """Return a tower's channels, with the data's ranges where they are only numbered: 0–255 is nobody's statement.

    Args:
        data: Of the data that it is to see; None: pictures, whose values are 0–255.
        own: Of the tower; None: RGB pictures.
        where: The data, for messages.

    Raises:
        DataError: The data have other bands, or read one of them in several ways.
    """
    if data is None or own is None or not is_numbered(own):
        return own
    known = [c for place, c in enumerate(data.channels) if c not in data.channels[:place]]
    ways = [[c for c in known if band_key(c.band) == band] for band in own.bands]
    if any(len(found) != 1 for found in ways):
        raise DataError(
            f"has the channels {_listed(data.bands)}, and the tower doesn't say which of them its {len(own)} channels are",
            where=where,
            fix="name them in the tower's order, with the values that become 0 and 255, in model.channels "
            "(backbone.channels of a finetuning): {channels: [{band: B2, low: 0, high: 3000}, …]}",
        )
    return own.model_copy(update={"channels": tuple(channel for found in ways for channel in found)})


def inheritance(old: Channels | None, new: Channels | None) -> Inheritance:
    """Return which channels of `old` those of `new` continue; None: RGB pictures. See the module for the rule."""
    before, after = old or PICTURE, new or PICTURE
    count = len(before)
    places = tuple((number,) for number in range(count))
    theirs: tuple[object, ...] = tuple(map(band_key, before.bands))
    ours: tuple[object, ...] = tuple(map(band_key, after.bands))
    if theirs == ours:
        return Inheritance(count, places)
    if old is None or new is None:
        theirs, ours = before.colours(), after.colours()
    else:
        unnamed = before.bands == tuple(str(number) for number in range(1, count + 1))
        if unnamed and len(after) == count and not set(theirs) & set(ours):
            return Inheritance(count, places)
    parents = (
        tuple(number for number, other in enumerate(theirs) if name is not None and other == name)
        for name in ours
    )
    return Inheritance(count, tuple(parents))


def with_channels(settings: Tower, channels: Channels | None) -> Tower:
    """Return the settings of a tower for other channels; its mean and deviation go with the bands."""
    if channels == settings.channels:
        return settings
    heirs = inheritance(settings.channels, channels)

    def inherited(values: tuple[float, ...] | None) -> tuple[float, ...] | None:
        # Three numbers are of red, green and blue, and are shared out when they are used (`per_channel`).
        if values is None or settings.channels is None or len(values) != heirs.old:
            return values
        return heirs.numbers(values)

    update = {
        "channels": channels,
        "mean": inherited(settings.mean),
        "std": inherited(settings.std),
        "arguments": {key: value for key, value in settings.arguments.items() if key != "in_chans"},
    }
    return settings.model_copy(update=update)


def inflation_note(old: Channels | None, new: Channels | None) -> str:
    """Return in one line what becomes of a kernel."""
    heirs, before, after = inheritance(old, new), old or PICTURE, new or PICTURE
    if list(map(band_key, before.bands)) == list(map(band_key, after.bands)):
        if is_numbered(old):
            ranges = ", ".join(dict.fromkeys(channel.range_words for channel in after.channels[:13]))
            return f"doesn't say which values its channels are trained on; 0–255 are those of the data ({ranges})"
        return f"the values of {_listed(after.bands)} are scaled otherwise than in its training"
    change = f"patch kernel of {_listed(before.bands)} for {_listed(after.bands)}"
    if heirs.is_same:
        return f"{change}: taken as it is, in the given order"
    fresh = [band for band, parents in zip(after.bands, heirs.parents, strict=True) if not parents]
    kept = [band for band, parents in zip(after.bands, heirs.parents, strict=True) if parents]
    parts = [f"{_listed(kept)} continue{'s' * (len(kept) == 1)} their own" if kept else ""]
    parts += [f"{_listed(fresh)} begin{'s' * (len(fresh) == 1)} with the mean of all" if fresh else ""]
    return f"{change}: {'; '.join(filter(None, parts))}; times {heirs.old}/{len(after)}"


def _listed(bands: Sequence[str], most: int = 13) -> str:
    return ", ".join(bands[:most]) + (f", … ({len(bands)})" if len(bands) > most else "")
