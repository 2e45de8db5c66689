"""Which values of medical images are black and white: windows by name, and what each modality is seen by.

| `-o window=` | for | what becomes 0 and 255 |
|---|---|---|
| `lung`, `soft_tissue`, `bone`, …, or LEVEL/WIDTH | CT | two fixed values in Hounsfield units |
| `volume` | MR | the 0.5th and 99.5th percentile of each volume's values other than 0 |
| `own` | X-ray | by each file's own lookup table or window; MONOCHROME1 turned round |

One window of one band is seen three times, grey as RGB; three are three channels.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vitp.core.errors import ConfigError, DataError, did_you_mean
from vitp.records.channels import Channel, at_step

WINDOWS: dict[str, tuple[float, float]] = {
    # Level and width in Hounsfield units.
    "lung": (-600, 1500),
    "soft_tissue": (40, 400),
    "bone": (400, 1800),
    "brain": (40, 80),
    "mediastinum": (50, 350),
    "liver": (60, 160),
    "stroke": (40, 40),
    "subdural": (75, 215),
    "angiography": (300, 600),
}
VOLUME, OWN = "volume", "own"
VOLUME_PERCENTILES = (0.5, 99.5)

_X_RAY = frozenset(("CR", "DX", "MG", "RG", "RF", "XA", "IO", "PX"))
_LEVEL_WIDTH = re.compile(r"(-?\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)")
_OTHERS = "-o window=lung,soft_tissue,bone, LEVEL/WIDTH, volume or own chooses"


@dataclass(frozen=True)
class ValueWindows:
    """What was chosen.

    Attributes:
        names: Names of `WINDOWS`, LEVEL/WIDTH, `volume` or `own`.
        why: Where they come from, in words.
    """

    names: tuple[str, ...]
    why: str

    def channels(self, bands: Sequence[tuple[str, int | None]], around: int = 0) -> tuple[Channel, ...]:
        """Return the channels of bands under these windows.

        Args:
            bands: Name of each band, and its number where the files don't name theirs.
            around: Slices on either side that are channels, too: all of the slice below first.

        Raises:
            ConfigError: There are several windows for several bands.
        """
        if len(bands) > 1 and len(self.names) > 1:
            what = f"{len(self.names)} windows for {len(bands)} bands"
            raise ConfigError(
                what, where="-o window", fix="give one for all bands, or choose one band (-o bands=…)"
            )
        own = [_channel(band, number, name) for band, number in bands for name in self.names]
        found = [
            channel.model_copy(update={"band": at_step(channel.band, step)})
            for step in range(-around, around + 1)
            for channel in own
        ]
        return tuple(found * 3 if len(found) == 1 else found)

    @property
    def words(self) -> str:
        """What becomes 0 and 255."""
        return " and ".join(_words(name) for name in self.names)


def parse_windows(value: Iterable[str]) -> tuple[str, ...]:
    """Return the names of windows as they were given.

    Raises:
        ConfigError: One isn't known.
    """
    names = tuple(word.strip().lower().replace(" ", "_").replace("-", "_") if "/" not in word else word.strip()
                  for word in value)  # fmt: skip
    for name in names:
        if name in WINDOWS or name in (VOLUME, OWN):
            continue
        match = _LEVEL_WIDTH.fullmatch(name)
        if match is None or float(match[2]) <= 0:
            known = (*WINDOWS, VOLUME, OWN)
            fix = (
                did_you_mean(name, known)
                or f"name some of {', '.join(known)}, or LEVEL/WIDTH as in -600/1500"
            )
            raise ConfigError(f"{name!r} is no window", where="-o window", fix=fix)
    return names


def windows_of(
    named: tuple[str, ...] | None, modalities: Iterable[str | None], ranged: bool, where: str
) -> ValueWindows | None:
    """Return the windows that were named, else those by which the modality of the files is seen; None: neither.

    Args:
        named: By the user; None: none.
        modalities: Modalities of the files, as DICOM names them; None: a file doesn't say.
        ranged: Whether the user gave ranges, which go before what the modality says.
        where: The set.

    Raises:
        DataError: The files are of several modalities, or of one to which the windows don't belong.
    """
    found = {_modality(one) for one in modalities}
    if named:
        fixed = [name for name in named if name not in (VOLUME, OWN)]
        others = sorted(one for one in found if one is not None and one not in ("CT", "PT"))
        if fixed and others:
            what = f"holds {', '.join(others)}, which has no Hounsfield units, so that the window {fixed[0]} fits nothing"
            raise DataError(what, where=where, fix="leave it out, or name -o window=volume or -o window=own")
        return ValueWindows(named, "as given")
    if ranged:
        return None
    kinds = {_DEFAULT.get(one) if one is not None else None for one in found}
    if len(kinds) > 1:
        listed = ", ".join(sorted(one or "files that don't say" for one in found))
        what = f"holds files of several modalities ({listed}), which one range of values can't show"
        fix = "compile them as sets of their own, or name what all are seen by (-o window=volume or -o window=own)"
        raise DataError(what, where=where, fix=fix)
    kind = next(iter(kinds), None)
    if kind is None:
        return None
    return ValueWindows((kind,), f"as {' and '.join(sorted(map(str, found)))} is seen; {_OTHERS}")


def unknown_hint(is_volume: bool) -> str:
    """Return what to say of files whose modality isn't known; "" of those that are no volumes."""
    if not is_volume:
        return ""
    return (
        "; the modality isn't known: -o window=soft_tissue suits CT, -o window=volume MR, -o window=own X-ray"
    )


_DEFAULT = {"CT": "soft_tissue", "MR": VOLUME, **dict.fromkeys(_X_RAY, OWN)}


def _modality(word: str | None) -> str | None:
    """Return DICOM's code of a modality."""
    text = (word or "").strip().upper()
    return {"": None, "MRI": "MR", "X-RAY": "DX", "XRAY": "DX"}.get(text, text)


def _ends(name: str) -> tuple[float, float]:
    match = _LEVEL_WIDTH.fullmatch(name)
    level, width = WINDOWS[name] if match is None else (float(match[1]), float(match[2]))
    return level - width / 2, level + width / 2


def _channel(band: str, number: int | None, name: str) -> Channel:
    if name == OWN:
        return Channel(band=band, number=number, transform="voi")
    low, high = VOLUME_PERCENTILES if name == VOLUME else _ends(name)
    return Channel(
        band=band, number=number, low=low, high=high, transform="volume" if name == VOLUME else "linear"
    )


def _words(name: str) -> str:
    if name in (VOLUME, OWN):
        return _channel("1", None, name).range_words
    low, high = _ends(name)
    return f"{name} ({low:g} to {high:g} HU)"
