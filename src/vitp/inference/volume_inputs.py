"""Volumes among the inputs of a prediction: which a folder holds, what they are called, and what is to be said of them.

Shapes: C channels, H × W pixels of a slice.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from vitp.core.errors import DataError
from vitp.inference.volumes import plane_seen, slices_around
from vitp.io.dicom_header import Header, read_header
from vitp.io.dicom_volume import series_words
from vitp.io.images import MissingBands
from vitp.io.parts import braced, split_address
from vitp.io.volume import Volume
from vitp.io.volume_kinds import holds_dicom, is_dicom_file, is_dicom_slide, volume_kind
from vitp.io.volumes import is_volume, open_volume
from vitp.records.channels import Channels, band_step
from vitp.tasks.ground import RasterGround

_SUFFIXES = re.compile(
    r"(\.(nii|mgh|hdr|img))?\.(gz|bz2)$|\.(nii|mgz|mgh|nrrd|nhdr|mha|mhd|hdr|img|mnc|dcm)$", re.IGNORECASE
)
_CHANNEL = re.compile(r"(?P<case>.+)_(?P<number>\d{4})(?P<suffix>\.(nii|nii\.gz|nrrd|mha|mgz))")
"""How nnU-Net calls the files of a case, one for each channel."""
_BRACES = re.compile(r"\{[^{}]*,[^{}]*\}")
_BANDS_NAMED = 8
_BESIDE = frozenset({".img", ".raw", ".zraw", ".brik"})
"""Voxels of a header in a file of its own."""


def is_whole_volume(address: str, task: str) -> bool:
    """Return whether an input is a volume that is predicted as a whole, and not one of its slices.

    Of a single slice the class is that of an image.
    """
    if task == "change" or split_address(address)[1].slice is not None or not is_volume(address):
        return False
    if task != "classification":
        return True
    return max(open_volume(address).grid.slices_shape(split_address(address)[1].plane)[0], 1) > 1


def volumes_at(path: str) -> list[str] | None:
    """Return the addresses of the volumes that a path names; None: it names none as a whole.

    A folder of DICOM is its series, each of them where it holds several; single images of several series, such as
    X-rays, are one input each. Words in braces name several files as the bands of one volume.
    """
    base, part = split_address(path)
    if braced(base):
        return [path]
    folder = Path(base)
    if not folder.is_dir() or not holds_dicom(folder) or is_dicom_slide(folder):
        return None
    if part.series is not None:
        return [path]
    files: dict[str, list[Path]] = {}
    first: dict[str, Header] = {}
    for file in sorted(folder.iterdir()):
        if file.name.startswith(".") or file.name.upper() == "DICOMDIR":
            continue
        if file.is_file() and is_dicom_file(file):
            try:
                header = read_header(file)
            except DataError:
                continue  # the reader tells what is wrong, where it counts
            first.setdefault(header.series, header)
            files.setdefault(header.series, []).append(file)
    if len(files) < 2:
        return [path]
    if all(len(own) == 1 for own in files.values()):
        return sorted(str(file) for own in files.values() for file in own)
    # Addresses are written into results and become names: a UID would tell whose images these are.
    return [f"{base}#series={word}" for word in series_words(first).values()]


def volumes_in(folder: Path) -> list[str]:
    """Return the volumes of a folder: files, folders of DICOM, and cases of one file a channel, each as one."""
    found: dict[str, list[tuple[str, Path]]] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix.lower() in _BESIDE:
            continue
        if path.is_dir():
            found |= {address: [] for address in (volumes_at(str(path)) if holds_dicom(path) else None) or ()}
        elif volume_kind(path) is not None:
            match = _CHANNEL.fullmatch(path.name)
            key = str(path) if match is None else f"{match['case']}{match['suffix']}"
            found.setdefault(key, []).append((match["number"] if match else "", path))
    return sorted(_case_address(key, files) for key, files in found.items())


def _case_address(key: str, files: Sequence[tuple[str, Path]]) -> str:
    if not files:
        return key
    if len(files) == 1:
        return str(files[0][1])
    first = files[0][1]
    match = _CHANNEL.fullmatch(first.name)
    assert match is not None
    numbers = ",".join(number for number, _ in files)
    return str(first.with_name(f"{match['case']}_{{{numbers}}}{match['suffix']}"))


def volume_name(address: str) -> str | None:
    """Return what the files of a volume are called, without suffix; None: it is none by its name."""
    base, part = split_address(address)
    series = "" if part.series is None else f"-series-{part.series.removeprefix('series-')}"
    if braced(base):
        name = _BRACES.sub("", base, count=1)
        return _SUFFIXES.sub("", Path(name).name).rstrip("_-. ") + series
    if Path(base).is_dir():
        return Path(base).resolve().name + series
    plain = _SUFFIXES.sub("", Path(base).name)
    return plain + series if plain != Path(base).name else None


def looked_at_volume(
    address: str, channels: Channels | None, missing_bands: MissingBands, trained: str | None
) -> tuple[list[RasterGround], tuple[str, ...]]:
    """Return a few slices of a volume as a model sees them, and what is to be said of it.

    Args:
        address: Address of the volume.
        channels: What the model sees; None: pictures.
        missing_bands: See `RasterGround`.
        trained: Plane of the model's training images.

    Raises:
        DataError: It can't be read, lacks what the model sees, lies on no even grid, or is one image of another plane.
    """
    volume = open_volume(address)
    volume.check_even()
    volume.check_whole()
    plane, why = plane_seen(trained, address, volume)
    named = split_address(address)[1].plane is not None
    volume.grid.check_single(plane, "its address names" if named else "the model sees")
    count, height, width = volume.grid.slices_shape(plane)
    spacing = volume.grid.slice_spacing(plane)
    size = (
        "of unknown spacing"
        if spacing is None
        else f"{spacing[2]:.3g} × {spacing[1]:.3g} × {spacing[0]:.3g} mm"
    )
    words = f"{count} {plane} slices ({why}) of {width}×{height} px, {size}"
    notes = [words, *volume.notes, *(f"FINDING: {line}" for line in volume.findings)]
    numbers = sorted({0, count // 2, count - 1})
    around = slices_around(channels)
    looked = [
        RasterGround(volume.slice(number, plane, around), channels, missing_bands=missing_bands)
        for number in numbers
    ]
    notes += [line] if (line := _unused_bands(volume, looked[0])) else []
    return looked, tuple(f"{address}: {note}" for note in notes)


def _unused_bands(volume: Volume, ground: RasterGround) -> str:
    """Return which bands of a volume a model doesn't see; "" where it sees all."""
    seen = list(dict.fromkeys(band_step(name)[0] for name in ground.bands if name is not None))
    others = [band.name for band in volume.bands if band.name not in seen]
    if not others:
        return ""
    named = ", ".join(others[:_BANDS_NAMED]) + (", …" if len(others) > _BANDS_NAMED else "")
    return (
        f"has {len(volume.bands)} bands (channels, times or echoes), of which the model sees {', '.join(seen)}; "
        f"not used: {named}"
    )
