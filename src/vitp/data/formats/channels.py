"""The channels of a labelled set: which bands of its files are seen, and which of their values become 0 and 255.

They are decided once for a set, by the heads of its files and what the user declares: options of `read_labels`, or a
`bands.yaml` beside the data:

    bands:
      - {name: B4, number: 4, wavelength: 665, range: [0, 3000]}
      - B8
    composite: [B4, B4, B8]

Sets of pictures (8-bit grey or RGB, with transparency or without) have none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from vitp.core.config import SettingsModel, load_config, make_config
from vitp.core.errors import ConfigError, DataError, did_you_mean
from vitp.data.formats.walk import comma_list
from vitp.io.images import is_scene
from vitp.io.measure import measure_channels
from vitp.io.open_pixels import open_pixels
from vitp.records.channels import BandValue, Channel, Channels
from vitp.records.labels import LabelledSet

BANDS_FILE = "bands.yaml"
"""Declares the bands of the data beside it."""

MOST_HEADS = 2000
"""Files whose heads are looked at; of larger sets an evenly spread choice. The others are checked as they are read."""

PERCENTILES = (2.0, 98.0)
"""Of a band's values in the training images: what becomes 0 and 255 where nothing is declared."""

_LINES = ("band ", "bands ")
"""How the line begins that says what is seen of one band, or of several."""

_COLOURS_NM = {"red": 660.0, "green": 560.0, "blue": 485.0}
_NEAR_NM = 45.0
"""Bands whose wavelength is nearer than this to a colour's are shown as it."""

Transform = Literal["linear", "db"]


@dataclass(frozen=True)
class _Head:
    """What the head of a file says: its bands, their wavelengths, the type of their values, whether it is a picture."""

    names: tuple[str, ...]
    wavelengths: tuple[float | None, ...]
    dtype: str
    is_picture: bool

    @classmethod
    def of(cls, address: str) -> _Head:
        """Look at a file."""
        with open_pixels(address) as pixels:
            waves = tuple(band.wavelength for band in pixels.bands)
            return cls(pixels.names, waves, pixels.dtype.name, pixels.is_picture)

    @property
    def is_unnamed(self) -> bool:
        """Whether the file calls its bands by their numbers."""
        return self.names == tuple(str(number) for number in range(1, len(self.names) + 1))


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
    """

    bands: Any = None
    range: Any = None
    transform: Any = None
    composite: Any = None

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
        return make_config(BandsFile, {**known, "bands": own, "composite": shown}, where="--option")

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


def declare_channels(labelled: LabelledSet, root: Path, options: Mapping[str, Any]) -> LabelledSet:
    """Return a set with its channels and a line that says what they are; as it is when it has pictures.

    Args:
        labelled: A set of files; one that has channels keeps them where no option says otherwise.
        root: Its folder or file, beside which `bands.yaml` may lie.
        options: Some of `ChannelOptions`.

    Raises:
        ConfigError: The declaration can't be understood.
        DataError: Files differ in their bands or types, or lack declared bands.
    """
    if labelled.channels is not None and not options:
        return labelled
    declared = ChannelOptions(**options).declared(root)
    heads = list(_heads(labelled))
    if not heads:
        return labelled
    if declared is None and all(head.is_picture for _, head in heads):
        return labelled
    _check_alike(heads, declared)
    where, head = heads[0]
    entries = _located(declared, heads)
    grey = declared is None and len(entries) == 1
    channels, measured = _scaled(labelled, entries, head, declared)
    channels = channels.model_copy(update={"composite": _composite(entries, declared, where)})
    line = _told(channels, entries, head, measured)
    if grey:
        channels = Channels(channels=channels.channels * 3)
    return replace(labelled, channels=channels, understood=(*labelled.understood, line))


def declare_again(labelled: LabelledSet, root: Path, options: Mapping[str, Any]) -> LabelledSet:
    """Return a set whose splits have changed with the ranges of the training images that it has now.

    Args:
        labelled: The set, with the channels from before.
        root: See `declare_channels`.
        options: Those of the reader, others among them.
    """
    if labelled.channels is None:
        return labelled
    kept = tuple(line for line in labelled.understood if not line.startswith(_LINES))
    own = {name: options[name] for name in CHANNEL_OPTIONS if name in options}
    return declare_channels(replace(labelled, channels=None, understood=kept), root, own)


def _addresses(labelled: LabelledSet, split: str | None = None) -> list[str]:
    """Return the files of a set (or of a split), both dates of pairs, each once."""
    items = (item for item in labelled.items if split is None or item.split == split)
    found = (address for item in items for address in (item.image, item.second_image))
    return list(dict.fromkeys(one for one in found if one is not None and not is_scene(one)))


def _heads(labelled: LabelledSet) -> Iterator[tuple[str, _Head]]:
    """Yield files of a set with what their heads say; whoever reads a file says what is wrong with it."""
    if not isinstance(labelled.items, list | tuple):  # generated ones
        return
    found = _addresses(labelled)
    step = -(-len(found) // MOST_HEADS) or 1
    for address in found[::step]:
        try:
            yield address, _Head.of(address)
        except DataError:
            if step == 1 and len(found) == 1:
                raise


def _check_alike(heads: Sequence[tuple[str, _Head]], declared: BandsFile | None) -> None:
    """Refuse files that differ: one range of values can't mean the same in both."""
    named = declared is not None and declared.bands is not None
    ranged = declared is not None and (
        declared.range is not None
        or all(entry.range is not None for entry in declared.bands or [BandEntry(name="")])
    )
    first, other = heads[0]
    for where, head in heads[1:]:
        same_bands = named or head.names == other.names
        same_type = ranged or head.dtype == other.dtype
        if not (same_bands and same_type):
            raise DataError(
                f"has {_kind(head)}, while {Path(first).name} has {_kind(other)}",
                where=where,
                fix="compile them as sets of their own, or name bands that all have, and their range "
                "(-o bands=… -o range=LOW,HIGH)",
            )


def _kind(head: _Head) -> str:
    count = len(head.names)
    listed = ", ".join(head.names[:8]) + (", …" if count > 8 else "")
    return f"{count} band{'s' * (count != 1)} ({listed}) of {head.dtype}"


def _located(declared: BandsFile | None, heads: Sequence[tuple[str, _Head]]) -> list[BandEntry]:
    """Return the bands that are seen, each with its number where the files don't name theirs.

    Raises:
        DataError: A file lacks one.
    """
    head = heads[0][1]
    if declared is None or declared.bands is None:
        return [
            BandEntry(name=name, wavelength=wave)
            for name, wave in zip(head.names, head.wavelengths, strict=True)
        ]
    entries = list(declared.bands)
    lengths = dict(zip(head.names, head.wavelengths, strict=True))
    if head.is_unnamed and not all(entry.name in head.names for entry in entries):
        by_place = len(entries) == len(head.names) and all(entry.number is None for entry in entries)
        entries = [
            entry.model_copy(update={"number": place}) if by_place else entry
            for place, entry in enumerate(entries, 1)
        ]
    made = Channels(channels=tuple(Channel(band=entry.name, number=entry.number) for entry in entries))
    for where, one in heads:
        try:
            made.check_bands(one.names, where=where)
        except DataError as error:
            near = next(
                filter(None, (did_you_mean(e.name, one.names) for e in entries if e.name not in one.names)),
                None,
            )
            fix = (
                "say which band of the files each is, by number in bands.yaml"
                if one.is_unnamed
                else near or error.fix
            )
            raise DataError(error.what, where=where, fix=fix) from None
    return [
        entry
        if entry.wavelength is not None
        else entry.model_copy(update={"wavelength": lengths.get(entry.name)})
        for entry in entries
    ]


def _scaled(
    labelled: LabelledSet, entries: Sequence[BandEntry], head: _Head, declared: BandsFile | None
) -> tuple[Channels, str]:
    """Return the channels with their ranges, and in words where those come from."""
    common, transform = (None, "linear") if declared is None else (declared.range, declared.transform)
    plain: list[Channel] = []
    open_: list[int] = []
    for place, entry in enumerate(entries):
        own = entry.transform or transform
        low, high = entry.range or common or (0.0, 255.0)
        try:
            plain.append(Channel(band=entry.name, low=low, high=high, transform=own, number=entry.number))
        except ValueError:
            raise ConfigError(
                f"{low:g},{high:g} doesn't rise",
                where=f"range of {entry.name}",
                fix="give the lower value first",
            ) from None
        # Values of 8 bits stand as they are, as in pictures.
        if entry.range is None and common is None and not (head.dtype == "uint8" and own == "linear"):
            open_.append(place)
    if not open_:
        given = common is not None or all(entry.range for entry in entries)
        return Channels(channels=tuple(plain)), "as given" if given else "as they stand"
    train = _addresses(labelled, "train")
    files = train or _addresses(labelled)
    names = Channels(channels=tuple(plain)).named_in(head.names)
    for kind in ("linear", "db"):
        places = [place for place in open_ if plain[place].transform == kind]
        bands = [str(names[place]) for place in places]
        found = (
            measure_channels(files, bands, transform=kind, percentiles=PERCENTILES).channels if bands else ()
        )
        for place, one in zip(places, found, strict=True):
            plain[place] = plain[place].model_copy(update={"low": one.low, "high": one.high})
    whose = "training images" if train else "images, as none is for training"
    return Channels(channels=tuple(plain)), f"2nd to 98th percentile of the {whose}"


def _composite(
    entries: Sequence[BandEntry], declared: BandsFile | None, where: str
) -> tuple[int, int, int] | None:
    names = [entry.name for entry in entries]
    if declared is not None and declared.composite is not None:
        for name in declared.composite:
            if name not in names:
                fix = did_you_mean(name, names) or f"they are {', '.join(names)}"
                raise ConfigError(f"{name} is none of the bands that are seen", where="composite", fix=fix)
        red, green, blue = (names.index(name) for name in declared.composite)
        return red, green, blue
    near = [_nearest(entries, colour) for colour in _COLOURS_NM.values()]
    return None if None in near else (near[0], near[1], near[2])  # type: ignore[return-value]


def _nearest(entries: Sequence[BandEntry], colour: float) -> int | None:
    """Return the band whose wavelength is nearest to a colour's; None: there is none near it."""
    away = [
        (abs(e.wavelength - colour), place) for place, e in enumerate(entries) if e.wavelength is not None
    ]
    return min(away)[1] if away and min(away)[0] <= _NEAR_NM else None


def _told(channels: Channels, entries: Sequence[BandEntry], head: _Head, measured: str) -> str:
    names = [
        f"{entry.name} ({entry.wavelength:g} nm)" if entry.wavelength is not None else entry.name
        for entry in entries
    ]
    ranges = [_range(channel) for channel in channels.channels]
    if len(entries) == 1:
        return f"{_LINES[0]}{names[0]} ({head.dtype}): seen as grey, 0–255 from {ranges[0]} ({measured})"
    alike = ranges[:1] if len(set(ranges)) == 1 else ranges
    shown = ", ".join(channels.bands[number] for number in channels.shown)
    return f"{_LINES[1]}{', '.join(names)} ({head.dtype}): 0–255 from {', '.join(alike)} ({measured}); shown as {shown}"


def _range(channel: Channel) -> str:
    unit = " dB" if channel.transform == "db" else ""
    return f"{channel.low:.6g} to {channel.high:.6g}{unit}"


def agreed(declared: Iterable[tuple[str, Channels | None]]) -> Channels | None:
    """Return the channels that several sets have in common.

    Args:
        declared: Name and channels of each set.

    Raises:
        DataError: Two differ.
    """
    found = list(declared)
    for name, channels in found[1:]:
        first, other = found[0]
        if channels is other or (channels is not None and channels.reads_like(other)):
            continue
        raise DataError(
            f"reads {_words_of(channels)}, while {first} reads {_words_of(other)}",
            where=name,
            fix="compile both with the same -o bands=… -o range=…, or name the run's channels (model.channels)",
        )
    return found[0][1] if found else None


def _words_of(channels: Channels | None) -> str:
    if channels is None:
        return "pictures"
    return ", ".join(f"{channel.band} from {_range(channel)}" for channel in channels.channels)
