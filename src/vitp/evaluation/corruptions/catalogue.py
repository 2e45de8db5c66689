"""The twelve corruptions of the paper's robustness test, and the extras, by name.

The twelve are those of REOBench (Li et al. 2025, arXiv 2505.16793) with its published levels.

Shapes: H × W pixels, C channels.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from vitp.core.errors import ConfigError, did_you_mean
from vitp.evaluation.corruptions import appearance, geometry

SEVERITIES = (1, 2, 3, 4, 5)
"""From hardly visible to hard."""

Family = Literal["appearance", "geometry", "extra"]


@dataclass(frozen=True)
class Corruption:
    """One way in which an image can be worse than those that were learned from; it has the name of its function.

    Attributes:
        function: Image (H, W, C) uint8, level, random numbers → image of the same size. Of geometry: height and width,
            level, random numbers → 2 × 3 matrix in edge coordinates, for pixels and labels.
        levels: What the five severities are for the function.
        words: What they are in words.
        family: Whether it changes how things look or moves them; the extras are a family of their own.
    """

    function: Callable[[Any, Any, np.random.Generator], np.ndarray]
    levels: tuple[Any, Any, Any, Any, Any]
    words: str
    family: Family = "appearance"

    @property
    def name(self) -> str:
        """Name, as it is written on the command line."""
        return self.function.__name__

    def _level(self, severity: int) -> Any:
        if severity not in SEVERITIES:
            raise ConfigError(f"there is no severity {severity}", where="severities", fix="choose 1 to 5")
        return self.levels[severity - 1]

    def _rng(self, seed: int, image: str, date: int = 0) -> np.random.Generator:
        """Return the random numbers of an image: the same at every severity, so that only the strength differs."""
        # Checksums, as `hash` of a text is another one in each process; names may hold bytes that are no text.
        return np.random.default_rng(
            [seed, zlib.crc32(self.name.encode()), zlib.crc32(image.encode(errors="surrogatepass")), date]
        )

    def matrix(self, size: tuple[int, int], severity: int, seed: int, image: str) -> np.ndarray | None:
        """Return how points move (2 × 3, edge coordinates), or None where they stay. Both dates move alike."""
        if self.family != "geometry" or severity == 0:
            return None
        return self.function(size, self._level(severity), self._rng(seed, image))

    def apply(self, image_HWC: np.ndarray, severity: int, seed: int, image: str, date: int = 0) -> np.ndarray:
        """Return the corrupted image.

        Args:
            image_HWC: uint8, of any number of channels; not changed.
            severity: 1 to 5; 0 leaves the image as it is.
            seed: Seed of the test.
            image: Id of the image, which gets clouds and noise of its own.
            date: 1 for the later image of a pair: the weather differs, the viewpoint doesn't.

        Raises:
            ConfigError: There is no such severity.
        """
        if severity == 0:
            return image_HWC
        matrix = self.matrix((image_HWC.shape[0], image_HWC.shape[1]), severity, seed, image)
        if matrix is not None:
            return geometry.warp(image_HWC, matrix).reshape(image_HWC.shape)
        changed: np.ndarray = self.function(image_HWC, self._level(severity), self._rng(seed, image, date))
        return changed.reshape(image_HWC.shape)  # OpenCV drops the axis of a single channel


def _by_name(*corruptions: Corruption) -> dict[str, Corruption]:
    return {corruption.name: corruption for corruption in corruptions}


CORRUPTIONS: dict[str, Corruption] = _by_name(
    Corruption(
        appearance.brightness_contrast,
        # As published, the first severity leaves the image as it is.
        ((1.0, 0.0), (0.8, 0.1), (0.6, 0.2), (0.4, 0.3), (0.2, 0.4)),
        "x, 0.8x + 0.1, 0.6x + 0.2, 0.4x + 0.3, 0.2x + 0.4",
    ),
    Corruption(appearance.cloud, (0.10, 0.15, 0.20, 0.25, 0.30), "10, 15, 20, 25, 30 % of the image"),
    Corruption(appearance.compression_artefacts, (30, 25, 20, 15, 10), "JPEG quality 30, 25, 20, 15, 10"),
    Corruption(
        appearance.data_gaps,
        ((2, 3), (3, 4), (4, 5), (5, 6), (6, 7)),
        "2 to 6 stripes, 3 to 7 px wide at 800 px",
    ),
    Corruption(appearance.gaussian_blur, (3, 5, 7, 9, 11), "deviation 0.8, 1.1, 1.4, 1.7, 2.0 px"),
    Corruption(appearance.gaussian_noise, (0.04, 0.05, 0.06, 0.07, 0.08), "deviation 4, 5, 6, 7, 8 %"),
    Corruption(appearance.haze, (0.2, 0.3, 0.4, 0.5, 0.6), "20, 30, 40, 50, 60 % white"),
    Corruption(appearance.motion_blur, (2, 4, 6, 8, 10), "2, 4, 6, 8, 10 px"),
    Corruption(geometry.rotation, (30.0, 45.0, 60.0, 75.0, 90.0), "30°, 45°, 60°, 75°, 90°", "geometry"),
    Corruption(
        appearance.salt_and_pepper, (0.005, 0.01, 0.02, 0.03, 0.05), "0.5, 1, 2, 3, 5 % of the values"
    ),
    Corruption(geometry.scale, (0.9, 0.8, 0.7, 0.6, 0.5), "0.9, 0.8, 0.7, 0.6, 0.5 of the size", "geometry"),
    Corruption(
        geometry.translation, (15.0, 20.0, 25.0, 30.0, 35.0), "15, 20, 25, 30, 35 px at 800 px", "geometry"
    ),
)
"""The twelve of the paper's table 13, in its order."""

EXTRAS: dict[str, Corruption] = _by_name(
    Corruption(
        appearance.cumulus,
        (0.10, 0.20, 0.30, 0.45, 0.60),
        "10, 20, 30, 45, 60 % of the image, with shadows",
        "extra",
    ),
    Corruption(appearance.speckle, (16.0, 8.0, 4.0, 2.0, 1.0), "16, 8, 4, 2, 1 looks", "extra"),
    Corruption(
        appearance.rician_noise, (0.03, 0.06, 0.10, 0.15, 0.20), "deviation 3, 6, 10, 15, 20 %", "extra"
    ),
    Corruption(
        appearance.bias_field, (0.15, 0.30, 0.45, 0.60, 0.80), "up to e^±0.15, 0.3, 0.45, 0.6, 0.8", "extra"
    ),
)
"""Clouds as they look, and the noise of radar and magnetic resonance."""


def corruptions_of(names: Iterable[str] | None) -> tuple[Corruption, ...]:
    """Return corruptions by name; None: the twelve; "extras": the extras; "all": both.

    Raises:
        ConfigError: There is none of that name, or none is named.
    """
    if names is None:
        return tuple(CORRUPTIONS.values())
    known = {**CORRUPTIONS, **EXTRAS}
    found: dict[str, Corruption] = {}
    for name in names:
        if name in ("extras", "all"):
            found |= EXTRAS if name == "extras" else known
        elif name in known:
            found[name] = known[name]
        else:
            hint = did_you_mean(name, known) or f"there are {', '.join(known)}"
            raise ConfigError(f'no corruption "{name}"', where="corruptions", fix=hint)
    if not found:
        raise ConfigError("none is named", where="corruptions", fix=f"there are {', '.join(known)}")
    return tuple(found.values())


def checked_severities(severities: Iterable[int]) -> tuple[int, ...]:
    """Return severities sorted, each once.

    Raises:
        ConfigError: One is not 1 to 5, or there is none.
    """
    found = tuple(sorted(set(severities)))
    if not found or not set(found) <= set(SEVERITIES):
        what = f"severities {', '.join(map(str, found)) or 'none'}"
        raise ConfigError(what, where="severities", fix="choose some of 1 to 5")
    return found
