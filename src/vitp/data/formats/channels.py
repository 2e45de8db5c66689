"""The channels of a labelled set: which bands of its files are seen, and which of their values become 0 and 255.

They are decided once for a set, by the heads of its files and what the user declares
(`vitp.data.formats.band_options`).

Sets of pictures (8-bit grey or RGB, with transparency or without) have none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitp.core.errors import ConfigError, DataError, did_you_mean
from vitp.data.formats.band_options import CHANNEL_OPTIONS, BandEntry, BandsFile, ChannelOptions
from vitp.data.formats.image_labels import FEWEST_FOR_SHARE
from vitp.data.formats.value_windows import ValueWindows, unknown_hint, windows_of
from vitp.data.formats.walk import within
from vitp.io.images import is_scene
from vitp.io.measure import measure_channels
from vitp.io.open_pixels import open_pixels
from vitp.io.parts import base_address
from vitp.records.channels import Channel, Channels, at_step, band_key
from vitp.records.labels import LabelledSet

MOST_HEADS = 2000
"""Files whose heads are looked at; of larger sets an evenly spread choice. The others are checked as they are read."""

PERCENTILES = (2.0, 98.0)
"""Of a band's values in the training images: what becomes 0 and 255 where nothing is declared."""

_LINES = ("band ", "bands ")
"""How the line begins that says what is seen of one band, or of several."""

_COLOURS_NM = {"red": 660.0, "green": 560.0, "blue": 485.0}
_NEAR_NM = 45.0
"""Bands whose wavelength is nearer than this to a colour's are shown as it."""


@dataclass(frozen=True)
class _Head:
    """What the head of a file says: its bands, their wavelengths, the type of their values, which kind it is."""

    names: tuple[str, ...]
    wavelengths: tuple[float | None, ...]
    dtype: str
    is_picture: bool
    is_volume: bool = False
    modality: str | None = None

    @classmethod
    def of(cls, address: str) -> _Head:
        """Look at a file."""
        with open_pixels(address) as pixels:
            waves = tuple(band.wavelength for band in pixels.bands)
            taken = pixels.acquisition
            modality = None if taken is None else taken.modality
            medical = taken is not None or pixels.spacing is not None
            return cls(pixels.names, waves, pixels.dtype.name, pixels.is_picture, medical, modality)

    @property
    def is_unnamed(self) -> bool:
        """Whether the file calls its bands by their numbers."""
        return self.names == tuple(str(number) for number in range(1, len(self.names) + 1))


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
    windows = _windows_of(labelled, heads, declared, root)
    _check_alike(heads, declared, windows is not None)
    head = heads[0][1]
    entries = _located(declared, heads, labelled.band_names)
    if windows is not None:
        return _windowed(labelled, entries, head, windows, declared)
    around = 0 if declared is None else declared.around
    grey = (declared is None or around > 0) and len(entries) == 1
    lost: dict[str, DataError] = {}
    channels, measured = _scaled(labelled, entries, head, declared, lost)
    if lost:
        labelled = _without_files(labelled, lost, root)
    measured += unknown_hint(head.is_volume and "given" not in measured)
    channels = channels.model_copy(update={"composite": _composite(entries, declared)})
    line = _told(channels, entries, head, measured)
    if around:
        channels = _with_neighbours(channels, around)
        line += _around_words(around)
    elif grey:
        channels = Channels(channels=channels.channels * 3)
    return replace(labelled, channels=channels, understood=(*labelled.understood, line))


def _without_files(labelled: LabelledSet, lost: Mapping[str, DataError], root: Path) -> LabelledSet:
    """Return a set without the images of files that turned out to be damaged, and with a finding for each file.

    Raises:
        DataError: They are more than half of the set's files.
    """
    errors = {base_address(address): error for address, error in lost.items()}
    files = {base_address(address) for address in _addresses(labelled)}
    if (len(errors) > len(files) / 2 and len(files) >= FEWEST_FOR_SHARE) or errors.keys() >= files:
        first = next(iter(errors.values()))
        what = (
            f"{len(errors):,} of {len(files):,} files can't be read (the first: {first.where}: {first.what})"
        )
        raise DataError(what, where=str(root), fix="copy them again from their source")
    kept = []
    counts: Counter[str] = Counter()
    for item in labelled.items:
        own = [base_address(one) for one in (item.image, item.second_image) if one is not None]
        damaged = next((file for file in own if file in errors), None)
        if damaged is None:
            kept.append(item)
        else:
            counts[damaged] += 1
    base = root if root.is_dir() else root.parent
    lines = [
        f"{within(file, base)}: {error.what}; {counts[file]:,} image{'s' * (counts[file] != 1)} of it left out"
        for file, error in errors.items()
    ]
    said = f"left out: {counts.total():,} images of {len(errors):,} files that can't be read; splits were drawn with them"
    return replace(
        labelled,
        items=kept,
        findings=(*labelled.findings, *lines),
        understood=(*labelled.understood, said),
    )


def _windows_of(
    labelled: LabelledSet, heads: Sequence[tuple[str, _Head]], declared: BandsFile | None, root: Path
) -> ValueWindows | None:
    """Return the windows that medical images are seen by; None: they are seen as all others."""
    named = None if declared is None else declared.window
    if named is None and all(head.is_picture or not head.is_volume for _, head in heads):
        return None
    said = {item.image: (item.metadata or {}).get("modality") for item in labelled.items}
    modalities = {head.modality or said.get(where) for where, head in heads}
    return windows_of(named, modalities, declared is not None and declared.ranged, str(root))


def _windowed(
    labelled: LabelledSet,
    entries: Sequence[BandEntry],
    head: _Head,
    windows: ValueWindows,
    declared: BandsFile | None,
) -> LabelledSet:
    """Return a set that is seen through windows, and the line that says so."""
    around = 0 if declared is None else declared.around
    channels = Channels(channels=windows.channels([(entry.name, entry.number) for entry in entries], around))
    names = ", ".join(entry.name for entry in entries)
    line = f"{_LINES[len(entries) > 1]}{names} ({head.dtype}): 0–255 from {windows.words} ({windows.why})"
    return replace(
        labelled, channels=channels, understood=(*labelled.understood, line + _around_words(around))
    )


def _with_neighbours(channels: Channels, around: int) -> Channels:
    """Return channels with those of the slices around: all of the slice below first."""
    steps = range(-around, around + 1)
    found = [
        one.model_copy(update={"band": at_step(one.band, step)})
        for step in steps
        for one in channels.channels
    ]
    return Channels(channels=tuple(found))


def _around_words(around: int) -> str:
    return f"; with {around} slice{'s' * (around > 1)} on either side as channels" if around else ""


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


def _check_alike(
    heads: Sequence[tuple[str, _Head]], declared: BandsFile | None, windowed: bool = False
) -> None:
    """Refuse files that differ: one range of values can't mean the same in both, unless it is one of a quantity."""
    named = declared is not None and declared.bands is not None
    ranged = windowed or (
        declared is not None
        and (
            declared.range is not None
            or all(entry.range is not None for entry in declared.bands or [BandEntry(name="")])
        )
    )
    if declared is None:
        # Few of another kind are the ones to be named, not what else they differ from: pictures may be grey or RGB.
        pictures, others = ([one for one in heads if one[1].is_picture is kind] for kind in (True, False))
        few, many = sorted((others, pictures), key=len)
        heads = [many[0], *few, *many[1:]] if len(few) < len(many) else heads
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


def _located(
    declared: BandsFile | None, heads: Sequence[tuple[str, _Head]], own_names: Sequence[str] = ()
) -> list[BandEntry]:
    """Return the bands that are seen, each with its number where the files don't name theirs.

    Args:
        declared: By the user.
        heads: What the heads of the files say.
        own_names: What the set calls the bands of files that call them by number.

    Raises:
        DataError: A file lacks one.
    """
    head = heads[0][1]
    named = head.is_unnamed and len(own_names) == len(head.names)
    if declared is None or declared.bands is None:
        names = own_names if named else head.names
        return [
            BandEntry(name=name, wavelength=wave, number=place if named else None)
            for place, (name, wave) in enumerate(zip(names, head.wavelengths, strict=True), 1)
        ]
    entries = list(declared.bands)
    if named:
        places = {band_key(name): place for place, name in enumerate(own_names, 1)}
        entries = [
            entry
            if entry.number is not None or entry.name in head.names
            else entry.model_copy(update={"number": places.get(band_key(entry.name))})
            for entry in entries
        ]
    lengths = dict(zip(head.names, head.wavelengths, strict=True))
    if head.is_unnamed and not all(entry.name in head.names or entry.number for entry in entries):
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
    labelled: LabelledSet,
    entries: Sequence[BandEntry],
    head: _Head,
    declared: BandsFile | None,
    lost: dict[str, DataError],
) -> tuple[Channels, str]:
    """Return channels with their ranges, and in words where those come from; unreadable files go to `lost`."""
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
    fills: set[float] = set()
    for kind in ("linear", "db"):
        places = [place for place in open_ if plain[place].transform == kind]
        bands = [str(names[place]) for place in places]
        readable = [file for file in files if file not in lost]
        if not bands:
            continue
        found = measure_channels(
            readable, bands, transform=kind, percentiles=PERCENTILES, lost=lost.__setitem__, fills=fills
        ).channels
        for place, one in zip(places, found, strict=True):
            plain[place] = plain[place].model_copy(update={"low": one.low, "high": one.high})
    whose = "training images" if train else "images, as none is for training"
    listed = ", ".join(f"{value:g}" for value in sorted(fills))
    more = f", {listed} left out as it marks missing pixels in most files" if fills else ""
    return Channels(channels=tuple(plain)), f"2nd to 98th percentile of the {whose}{more}"


def _composite(entries: Sequence[BandEntry], declared: BandsFile | None) -> tuple[int, int, int] | None:
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
    ranges = [channel.range_words for channel in channels.channels]
    if len(entries) == 1:
        return f"{_LINES[0]}{names[0]} ({head.dtype}): seen as grey, 0–255 from {ranges[0]} ({measured})"
    alike = ranges[:1] if len(set(ranges)) == 1 else ranges
    shown = ", ".join(channels.bands[number] for number in channels.shown)
    return f"{_LINES[1]}{', '.join(names)} ({head.dtype}): 0–255 from {', '.join(alike)} ({measured}); shown as {shown}"


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
    return ", ".join(f"{channel.band} from {channel.range_words}" for channel in channels.channels)
