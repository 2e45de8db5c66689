"""What a user says of the bands of a set: options of `read_labels`, or a `bands.yaml` beside the data.

bands:
  - {name: B4, number: 4, wavelength: 665, range: [0, 3000]}
  - B8
composite: [B4, B4, B8]
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from vitp.core.config import SettingsModel, load_config, make_config
from vitp.core.errors import ConfigError
from vitp.data.formats.value_windows import parse_windows
from vitp.data.formats.walk import comma_list
from vitp.records.channels import BandValue

BANDS_FILE = "bands.yaml"
"""Declares the bands of the data beside it."""

Transform = Literal["linear", "db"]


class BandEntry(SettingsModel):
    """One band of `bands.yaml`."""

    name: str
    """As the files call it; where they don't name their bands, what it is to be called."""
    number: int | None = Field(None, ge=1, le=100_000)
    """Which band of the files it is, from 1, where they don't name their bands; none: by its place in the list."""
    wavelength: float | None = Field(None, gt=0, le=1e9)
    """Centre in nanometres."""
    range: tuple[BandValue, BandValue] | None = None
    """Values that become 0 and 255 (in dB where `transform` is `db`); none: measured on the training images."""
    transform: Transform | None = None
    """`db`: 10 · log10 of the values is taken first."""


class BandsFile(SettingsModel):
    """What `bands.yaml` may hold."""

    bands: tuple[BandEntry, ...] | None = Field(None, min_length=1)
    """Bands that are seen, in this order; a name alone stands for a band without more. none: all of the files."""
    range: tuple[BandValue, BandValue] | None = None
    """`range` of all bands that have none of their own."""
    transform: Transform = "linear"
    """`transform` of all bands that have none of their own."""
    composite: tuple[str, str, str] | None = None
    """Bands that are shown as red, green and blue."""
    window: tuple[str, ...] | None = Field(None, min_length=1)
    """What medical images are seen by; see `vitp.data.formats.value_windows`."""
    around: int = Field(0, ge=0, le=16)
    """How many slices on either side of a volume's slice are channels, too."""

    @property
    def ranged(self) -> bool:
        """Whether it says which values become 0 and 255."""
        own = [(entry.range, entry.transform) for entry in self.bands or ()]
        return self.range is not None or self.transform != "linear" or any(map(any, own))

    @field_validator("window", mode="before")
    @classmethod
    def _known_windows(cls, value: Any) -> Any:
        words = comma_list(value) if isinstance(value, str) else value
        return parse_windows(map(str, words)) if isinstance(words, list | tuple) else words

    @field_validator("bands", mode="before")
    @classmethod
    def _names_alone(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        return [{"name": str(one)} if isinstance(one, str | int) else one for one in value]

    @field_validator("composite", mode="before")
    @classmethod
    def _numbers_as_names(cls, value: Any) -> Any:
        return [str(one) for one in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class ChannelOptions:
    """Options of every label format about the bands of its files; they go before `bands.yaml`.

    Attributes:
        bands: Names (or numbers, from 1) of the bands that are seen, in this order, as in "B4,B3,B2,B8".
        range: Two numbers, the values that become 0 and 255, or two for each band, as in "0,3000".
        transform: "linear" or "db", for all bands or one for each.
        composite: Three bands that are shown as red, green and blue.
        window: What medical images are seen by, as in "lung,soft_tissue,bone", "volume" or "own".
        around: How many slices on either side of a volume's slice are channels, too.
    """

    bands: Any = None
    range: Any = None
    transform: Any = None
    composite: Any = None
    window: Any = None
    around: Any = None

    def declared(self, root: Path) -> BandsFile | None:
        """Return what the options and a `bands.yaml` in the set's folder say together; None: nothing.

        Raises:
            ConfigError: They can't be understood.
        """
        path = (root if root.is_dir() else root.parent) / BANDS_FILE
        beside = load_config(BandsFile, path) if path.is_file() else None
        if all(getattr(self, one.name) is None for one in fields(self)):
            return beside
        known = {} if beside is None else beside.model_dump()
        own = self._entries(known.get("bands"))
        ranges, transforms = _pairs(self.range), _words(self.transform, "transform")
        if own is None and max(len(ranges), len(transforms)) > 1:
            fix = "name the bands, too (-o bands=…)"
            raise ConfigError("several values for bands that aren't named", where="-o range", fix=fix)
        for name, values in (("range", ranges), ("transform", transforms)):
            if own is not None and len(values) not in (0, 1, len(own)):
                what = f"{len(values)} for {len(own)} bands"
                raise ConfigError(what, where=f"-o {name}", fix="give one for all bands, or one for each")
            if own is None:
                known |= {name: values[0]} if values else {}
                continue
            for place, entry in enumerate(own):
                entry |= {name: values[place % len(values)]} if values else {}
        composite = _words(self.composite, "composite")
        if composite and len(composite) != 3:
            what = f"{', '.join(composite)} {'is one band' if len(composite) == 1 else f'are {len(composite)} bands'}"
            fix = "name three, those that are shown as red, green and blue (one may come twice)"
            raise ConfigError(what, where="-o composite", fix=fix)
        shown = composite or known.get("composite")
        window = _words(self.window, "window") or known.get("window")
        around = known.get("around", 0) if self.around is None else self.around
        seen = {"bands": own, "composite": shown, "window": window, "around": around}
        return make_config(BandsFile, {**known, **seen}, where="--option")

    def _entries(self, known: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        """Return the bands to see, with what the file says about those of the same name."""
        names = _words(self.bands, "bands")
        if not names:
            return None if known is None else [dict(entry) for entry in known]
        by_name = {entry["name"]: entry for entry in known or ()}
        return [dict(by_name.get(name, {"name": name})) for name in names]


CHANNEL_OPTIONS = tuple(one.name for one in fields(ChannelOptions))


def _words(value: Any, name: str) -> list[str]:
    words = value if isinstance(value, list | tuple) else [] if value is None else comma_list(str(value))
    if value is not None and not words:
        raise ConfigError("is empty", where=f"-o {name}", fix="leave it out, or give values between commas")
    return [str(word) for word in words or ()]


def _pairs(value: Any) -> list[tuple[float, float]]:
    try:
        numbers = [float(word) for word in _words(value, "range")]
    except ValueError:
        numbers = [0.0]
    if len(numbers) % 2:
        fix = "give two numbers, as in -o range=0,3000, or two for each band"
        raise ConfigError(f"{value!r} are no pairs of numbers", where="-o range", fix=fix)
    return list(zip(numbers[::2], numbers[1::2], strict=True))
