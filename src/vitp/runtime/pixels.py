"""Pictures and arrays as what a graph sees: 8-bit planes, resized as torchvision does it, bit for bit.

Shapes: C channels, H × W pixels, K classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vitp.core.errors import DataError

_RASTERS = {".tif", ".tiff", ".vrt", ".jp2", ".nc", ".hdf", ".h5", ".zarr", ".svs"}
_VOLUMES = (
    ".nii",
    ".nrrd",
    ".nhdr",
    ".mha",
    ".mhd",
    ".mgz",
    ".mgh",
    ".mnc",
    ".hdr",
    ".img",
    ".dcm",
    ".dicom",
    ".ima",
)
_PART = re.compile(
    r".+#(window|bands|page|layer|series|slice|plane|around|mpp)=.*|.*\{[^{}]*,[^{}]*\}.*", re.DOTALL
)
"""How parts of files, and volumes of several, are named elsewhere in vitp."""
_READ = (
    "the runtime reads 8-bit pictures and .npy files of bands; vitp predict reads volumes, DICOM and rasters"
)
_WIDE = ["I;16", "I;16B", "I;16L", "I;16N", "I", "F"]
_BITS = 22
_LARGEST_WEIGHT = 1 << 15


def read_planes(path: str | Path, channels: Sequence[Mapping[str, Any]] | None) -> np.ndarray:
    """Return (C, H, W) uint8 of a file: a picture as RGB, or an array of bands by the model's own scaling.

    Args:
        path: A picture of 8 bits, or where the model has bands, a `.npy` file of the quantity
            that they hold (HU for CT, not the stored values), (C, H, W).
        channels: Band, low, high and transform of each channel; None: RGB pictures.

    Raises:
        DataError: It is missing, damaged, or of a kind that isn't read here.
    """
    path = Path(path)
    _check_kind(path)
    if path.suffix.lower() == ".npy":
        return scaled_values(_array(path), channels, where=str(path))
    if channels is not None:
        bands = ", ".join(str(channel["band"]) for channel in channels)
        raise DataError(
            f"is read as a picture, and the model sees the bands {bands}",
            where=str(path),
            fix="save the quantity that they hold (HU for CT, not the stored values) as a .npy file of (bands, height, "
            "width), or use vitp predict, which reads volumes, DICOM and rasters",
        )
    return _picture(path)


def _check_kind(path: Path) -> None:
    """Do nothing for a file that may be a picture or an array; say of what else is there who reads it."""
    if path.is_dir():
        raise DataError("is a folder", where=str(path), fix=_READ)
    if not path.is_file():
        if _PART.fullmatch(str(path)):
            raise DataError("names a part of a file, or several files", where=str(path), fix=_READ)
        raise DataError("doesn't exist", where=str(path), fix="check the path")
    name = path.name.lower()
    is_volume = name.removesuffix(".gz").removesuffix(".bz2").endswith(_VOLUMES)
    if is_volume or _head(path)[128:132] == b"DICM":
        raise DataError("is a volume or a DICOM file", where=str(path), fix=_READ)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            # DICOM's mark stands behind 128 free bytes.
            return file.read(132)
    except OSError as error:
        raise DataError(f"can't be read ({error.strerror})", where=str(path)) from error


def _array(path: Path) -> np.ndarray:
    try:
        values: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"is no array of numbers ({error})", where=str(path)) from error
    return values


def _picture(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as file:
            if file.mode in _WIDE:
                raise DataError(
                    f"holds values of more than 8 bits ({file.mode})",
                    where=str(path),
                    fix=f"save it as an 8-bit picture; {_READ}",
                )
            file.load()
            turned: Image.Image = ImageOps.exif_transpose(file)
            return np.ascontiguousarray(np.asarray(_rgb(turned)).transpose(2, 0, 1))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        what, fix = _refused(path, error)
        raise DataError(what, where=str(path), fix=fix) from error


def _refused(path: Path, error: Exception) -> tuple[str, str]:
    """Return why a picture can't be used, and what to do."""
    convert = f"convert it to PNG or JPEG; {_READ}"
    if not path.stat().st_size:
        return "the file is empty", "copy it again"
    if path.suffix.lower() in _RASTERS:
        return f"is a raster that can't be read here ({error})", convert
    if isinstance(error, UnidentifiedImageError):
        return "is no picture", convert
    if isinstance(error, Image.DecompressionBombError):
        return f"has too many pixels ({error})", "cut it"
    return f"the image is damaged ({error})", "copy it again"


def _rgb(image: Image.Image) -> Image.Image:
    """Return a picture as RGB; what is transparent lies over black, as in training."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba).convert("RGB")
    return image.convert("RGB")


def scaled_values(
    values_CHW: np.ndarray, channels: Sequence[Mapping[str, Any]] | None, *, where: str = "the array"
) -> np.ndarray:
    """Return (C, H, W) uint8 of values in the order of a model's channels; what is no number becomes 0.

    Args:
        values_CHW: Numbers of any type; for a model of pictures uint8 RGB.
        channels: As in `read_planes`.
        where: File or place that messages name.

    Raises:
        DataError: They aren't as many channels, or no pictures.
    """
    count = 3 if channels is None else len(channels)
    if values_CHW.ndim != 3 or len(values_CHW) != count or values_CHW.dtype.kind not in "uif":
        bands = [] if channels is None else [str(channel["band"]) for channel in channels]
        order = (
            f": the quantity of the bands {', '.join(bands)} (HU for CT, not the stored values)"
            if bands
            else ""
        )
        raise DataError(
            f"is {values_CHW.dtype} of shape {values_CHW.shape}, and the model sees ({count}, height, width) "
            f"numbers{order}",
            where=where,
        )
    if channels is None:
        if values_CHW.dtype != np.uint8:
            raise DataError(f"is {values_CHW.dtype}, and the model sees 8-bit pictures", where=where)
        return values_CHW
    return np.stack([_scaled(plane, channel) for plane, channel in zip(values_CHW, channels, strict=True)])


def _scaled(values_HW: np.ndarray, channel: Mapping[str, Any]) -> np.ndarray:
    low, high = float(channel["low"]), float(channel["high"])
    decibels = channel["transform"] == "db"
    if values_HW.dtype == np.uint8 and (low, high) == (0, 255) and not decibels:
        return values_HW
    # In the number types that `Channels.scale` computes in, so that graph and model see the same bytes.
    scaled_HW: Any = values_HW.astype(np.float32 if values_HW.dtype.itemsize <= 2 else np.float64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if decibels:
            scaled_HW = 10 * np.log10(scaled_HW)
        scaled_HW = (scaled_HW - low) * (255 / (high - low))
    seen_HW: np.ndarray = np.rint(np.where(np.isfinite(scaled_HW), scaled_HW, 0).clip(0, 255)).astype(
        np.uint8
    )
    return seen_HW


def resized_planes(planes_CHW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return 8-bit planes at `size` (height, width), bilinear and antialiased.

    Weights are whole numbers of as many bits as fit, and the width is done first: so torch does it on processors with
    AVX2, and the numbers are the same.
    """
    wide = _resized_along(planes_CHW, size[1])
    return np.ascontiguousarray(_resized_along(wide.swapaxes(-1, -2), size[0]).swapaxes(-1, -2))


def _resized_along(planes: np.ndarray, count: int) -> np.ndarray:
    length = planes.shape[-1]
    if length == count:
        return planes
    first, weights, bits = _integer_weights(length, count)
    # Half of the last bit that stays: the shift below then rounds.
    total = np.full((*planes.shape[:-1], count), 1 << (bits - 1), np.int32)
    for tap in range(weights.shape[1]):
        total += planes[..., np.minimum(first + tap, length - 1)].astype(np.int32) * weights[:, tap]
    planes_at_count: np.ndarray = np.clip(total >> bits, 0, 255).astype(np.uint8)
    return planes_at_count


def _integer_weights(length: int, count: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return where each result begins to read, (count, taps) int32 weights, and their bits."""
    scale = length / count
    reach = max(scale, 1.0)
    centre = scale * (np.arange(count) + 0.5)
    first = np.maximum((centre - reach + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + reach + 0.5).astype(np.int64), length)
    tap = np.arange(int((last - first).max()))
    distance = np.abs((tap + first[:, None] - centre[:, None] + 0.5) / reach)
    weights = np.where((distance < 1) & (tap < (last - first)[:, None]), 1 - distance, 0.0)
    weights /= weights.sum(1, keepdims=True)
    # As many bits as leave the largest weight within 16 bits, as Pillow has it: the sums then equal its own.
    bits = 0
    while bits < _BITS and int(0.5 + weights.max() * (1 << (bits + 1))) < _LARGEST_WEIGHT:
        bits += 1
    return first, np.floor(0.5 + weights * (1 << bits)).astype(np.int32), bits


def resized_maps(maps_KHW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return float maps at `size` (height, width), bilinear between the centres of pixels, not antialiased."""
    if maps_KHW.shape[-2:] == size:
        return maps_KHW
    rows = _between(maps_KHW.swapaxes(-1, -2), size[0]).swapaxes(-1, -2)
    return _between(rows, size[1])


def _between(maps: np.ndarray, count: int) -> np.ndarray:
    length = maps.shape[-1]
    at = np.maximum((np.arange(count, dtype=np.float32) + 0.5) * np.float32(length / count) - 0.5, 0)
    low = np.minimum(at.astype(np.int64), length - 1)
    share = (at - low).astype(np.float32)
    high = np.minimum(low + 1, length - 1)
    between: np.ndarray = maps[..., low] * (1 - share) + maps[..., high] * share
    return between
