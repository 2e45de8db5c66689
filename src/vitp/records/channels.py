"""What a vision tower sees of files with bands: which bands, and which of their values are black and white.

A set declares its channels once; they are stored in the run, the export and the task model, and applied everywhere
alike. Pictures (8-bit grey and RGB) need none: `None` in the place of `Channels` means RGB as it stands in the file.

Shapes: C channels, H × W pixels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal, Protocol, Self

import numpy as np
from pydantic import Field, model_validator

from vitp.core.config import SettingsModel
from vitp.core.errors import DataError

BandValue = Annotated[float, Field(ge=-1e30, le=1e30)]
"""A value of a file."""

MOST_CHANNELS = 1024

_Number = Annotated[int, Field(ge=0, lt=MOST_CHANNELS)]

RED, GREEN, BLUE = "red", "green", "blue"


Moved = tuple[float, float]
"""How a range of values is changed: its centre is moved by so many of its widths, its width becomes so many times as
large."""
UNMOVED: Moved = (0.0, 1.0)

_NEIGHBOUR = re.compile(r"(?P<band>.+)@(?P<step>[+-]\d+)")


class ValueSource(Protocol):
    """A file that knows its own values; `vitp.io.contract.Pixels` is one."""

    def percentiles(self, band: str, low: float, high: float) -> tuple[float, float]:
        """Return two percentiles of a band's values other than 0, of the whole volume."""

    def shown(self, values_HW: np.ndarray, band: str) -> np.ndarray:
        """Return values as the file itself says that they are shown, 0 (black) to 255 (white)."""


def band_step(name: str) -> tuple[str, int]:
    """Return a band's own name, and of which slice it is: `1@-1` is band 1 of the slice below."""
    match = _NEIGHBOUR.fullmatch(name)
    return (name, 0) if match is None else (match["band"], int(match["step"]))


def at_step(name: str, step: int) -> str:
    """Return the name of a band of a neighbouring slice."""
    return f"{name}@{step:+d}" if step else name


def band_key(name: str) -> str:
    """Return what counts in a band's name: not its case, and not the zeros of B04."""
    return re.sub(r"^b0+(?=\d)", "b", name.strip().casefold())


class Channel(SettingsModel):
    """One channel of a tower's input: a band of the file, and how its values become 0–255."""

    band: str
    """Name of the band in the file; bands without a name are called by their number from 1."""
    low: BandValue = 0.0
    """Value that becomes 0 (in dB where `transform` is `db`; a percentile where it is `volume`)."""
    high: BandValue = 255.0
    """Value that becomes 255."""
    transform: Literal["linear", "db", "volume", "voi"] = "linear"
    """`db`: 10 · log10 of the value is taken first, as radar intensities are shown. `volume`: `low` and `high` are
    percentiles of the values other than 0 of the whole volume, as magnetic resonance has no unit. `voi`: as the file
    itself says that it is shown, by its lookup table or window, 0–255."""
    number: int | None = Field(None, ge=1, le=100_000)
    """Which band it is, from 1, in files that don't name their bands; none: only files that name it have it."""

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low ({self.low:g}) must be smaller than high ({self.high:g})")
        if self.transform == "volume" and not (self.low >= 0 and self.high <= 100):
            raise ValueError("low and high must be percentiles, 0 to 100")
        return self

    @property
    def by_file(self) -> bool:
        """Whether each file has a range of its own."""
        return self.transform in ("volume", "voi")

    @property
    def range_words(self) -> str:
        """Which values become 0 and 255, in words."""
        if self.transform == "voi":
            return "each file's own window"
        if self.transform == "volume":
            return f"the {self.low:g}th to the {self.high:g}th percentile of each volume"
        return f"{self.low:.6g} to {self.high:.6g}{' dB' if self.transform == 'db' else ''}"


class Channels(SettingsModel):
    """All channels of a tower's input, in their order."""

    channels: tuple[Channel, ...] = Field(min_length=1, max_length=MOST_CHANNELS)
    """One for each plane of the input; a band may stand in several (a grey band three times is grey as RGB)."""
    composite: tuple[_Number, _Number, _Number] | None = None
    """Which channels, from 0, are shown as red, green and blue; none: those with these names, else the first three."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the training images in which a channel was set to 0. Above 0 files may lack bands, on request."""

    @model_validator(mode="after")
    def _shown(self) -> Self:
        if self.composite is not None and not all(0 <= n < len(self.channels) for n in self.composite):
            raise ValueError(f"composite must name channels 0 to {len(self.channels) - 1}")
        return self

    def __len__(self) -> int:
        return len(self.channels)

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands, channel by channel."""
        return tuple(channel.band for channel in self.channels)

    @property
    def around(self) -> int:
        """How many slices on either side of a volume's slice are seen, too."""
        return max(abs(band_step(channel.band)[1]) for channel in self.channels)

    @property
    def shown(self) -> tuple[int, int, int]:
        """Which channels stand for red, green and blue in pictures."""
        if self.composite is not None:
            return self.composite
        if {RED, GREEN, BLUE} <= set(self.bands):
            return self.bands.index(RED), self.bands.index(GREEN), self.bands.index(BLUE)
        last = len(self) - 1
        return (0, 1, 2) if last >= 2 else (0, last, last) if last else (0, 0, 0)

    def colours(self) -> tuple[int | None, ...]:
        """Return for each channel which colour of an RGB picture it continues: 0 red, 1 green, 2 blue; None: none.

        Three channels are red, green and blue in the given order, whatever their names: a grey band three times, or
        near infrared as red. Of another number those are that bear the names, in any case.
        """
        if len(self) == 3:
            return (0, 1, 2)
        named: dict[str, int] = {RED: 0, GREEN: 1, BLUE: 2}
        return tuple(named.get(band_key(band)) for band in self.bands)

    @property
    def is_rgb(self) -> bool:
        """Whether the channels are red, green and blue, of which hue and saturation can be told."""
        return self.bands == (RED, GREEN, BLUE)

    def reads_like(self, other: Channels | None) -> bool:
        """Return whether two read the same values of a file; what is shown and how they were trained may differ."""
        return other is not None and self.channels == other.channels

    def part(self, places: Sequence[int]) -> Channels:
        """Return some of the channels, in this order."""
        chosen = tuple(self.channels[place] for place in places)
        return self.model_copy(update={"channels": chosen, "composite": None})

    def named_in(self, known: Sequence[str]) -> tuple[str | None, ...]:
        """Return what each channel's band is called in a file with these bands; None: the file lacks it.

        A band goes by its name, in any case and with B4 for B04. Files that don't name their bands call them by number,
        from 1: there it is the band of the channel's `number`.
        """
        bases = list(dict.fromkeys(band_step(name)[0] for name in known))
        unnamed = bases == [str(number) for number in range(1, len(bases) + 1)]
        keys = [band_key(name) for name in known]

        def name(channel: Channel) -> str | None:
            if channel.band in known:
                return channel.band
            if keys.count(band_key(channel.band)) == 1:
                return known[keys.index(band_key(channel.band))]
            own = "" if channel.number is None else at_step(str(channel.number), band_step(channel.band)[1])
            return own if unnamed and own in known else None

        return tuple(name(channel) for channel in self.channels)

    def check_bands(self, known: Sequence[str], *, where: str) -> None:
        """Do nothing when a file has all bands.

        Raises:
            DataError: It lacks some; the message names them and what the file has.
        """
        named = zip(self.bands, self.named_in(known), strict=True)
        missing = list(dict.fromkeys(band for band, name in named if name is None))
        if missing:
            raise DataError(
                f"lacks the bands {', '.join(missing)}; it has {', '.join(known)}",
                where=where,
                fix="name files with these bands, or choose others where the set is compiled (-o bands=…)",
            )

    def scale(
        self,
        values_CHW: np.ndarray,
        valid_HW: np.ndarray | None = None,
        *,
        of: ValueSource | None = None,
        bands: Sequence[str] | None = None,
        moved: Moved = UNMOVED,
    ) -> np.ndarray:
        """Return what a tower sees of a file's own values: (C, H, W) uint8.

        `low` becomes 0 and `high` 255, values between lie in proportion and are rounded, those outside are clipped.
        Pixels without a value (not valid, NaN, infinite; for `db` not positive) become 0.

        Args:
            values_CHW: In the order of the channels.
            valid_HW: False where a pixel holds nothing.
            of: The file, for channels whose range is each file's own; None: their values are seen as they stand,
                0–255.
            bands: What the file calls the bands; None: as the channels do.
            moved: How every range is moved and stretched, as training does by chance.
        """
        out_CHW = np.empty(values_CHW.shape, np.uint8)
        names = self.bands if bands is None else bands
        for channel, name, values_HW, out_HW in zip(self.channels, names, values_CHW, out_CHW, strict=True):
            if channel.transform == "voi" and of is not None:
                values_HW = of.shown(values_HW, name)
            low, high = channel.low, channel.high
            if channel.transform == "volume":
                low, high = (0.0, 255.0) if of is None else of.percentiles(name, low, high)
            if moved != UNMOVED:
                centre, half = (low + high) / 2 + moved[0] * (high - low), moved[1] * (high - low) / 2
                low, high = centre - half, centre + half
            if (low, high) == (0, 255) and channel.transform != "db" and values_HW.dtype == np.uint8:
                out_HW[:] = values_HW
                continue
            # float32 holds values of 16 bits exactly; longer ones need float64.
            scaled_HW = values_HW.astype(np.float32 if values_HW.dtype.itemsize <= 2 else np.float64)
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                if channel.transform == "db":
                    scaled_HW = 10 * np.log10(scaled_HW)
                scaled_HW = (scaled_HW - low) * (255 / (high - low))
            finite_HW = np.isfinite(scaled_HW)
            out_HW[:] = np.rint(np.where(finite_HW, scaled_HW, 0).clip(0, 255))
        if valid_HW is not None:
            out_CHW[:, ~valid_HW] = 0
        return out_CHW

    def unscale(self, seen_CHW: np.ndarray) -> np.ndarray:
        """Return values of a file that `scale` turns into what is given: (C, H, W) float64.

        Of channels whose range is each file's own they are 0–255, as files of 8 bits are seen.
        """
        ends_C2 = [(0.0, 255.0) if one.by_file else (one.low, one.high) for one in self.channels]
        low_C, high_C = np.array(ends_C2).T
        values_CHW: np.ndarray = low_C[:, None, None] + seen_CHW / 255 * (high_C - low_C)[:, None, None]
        for channel, values_HW in zip(self.channels, values_CHW, strict=True):
            if channel.transform == "db":
                values_HW[:] = 10 ** (values_HW / 10)
        return values_CHW


PICTURE = Channels(channels=tuple(Channel(band=name) for name in (RED, GREEN, BLUE)))
"""How pictures would be declared: values 0–255 as they stand."""


def matching(model: Channels | None, data: Channels | None, *, where: str = "data") -> Channels | None:
    """Return how images of a set have to be read for a model: with its own bands, in its own scaling.

    A model of RGB pictures takes red, green and blue of data with these bands, and data of three channels (a grey
    band three times, near infrared as red) in the given order. A model with bands takes pictures when it needs no
    others than red, green and blue.

    Args:
        model: What the model sees; None: RGB pictures.
        data: What the set declares; None: pictures.
        where: The set or the file, for the message.

    Raises:
        DataError: The data lack bands of the model; the message names them.
    """
    if model is not None:
        model.check_bands((PICTURE if data is None else data).bands, where=where)
        return model
    if data is None or len(data) == 3:
        return data
    colours = data.colours()
    if not {0, 1, 2} <= set(colours):
        PICTURE.check_bands(data.bands, where=where)
    return Channels(channels=tuple(data.channels[colours.index(colour)] for colour in range(3)))
