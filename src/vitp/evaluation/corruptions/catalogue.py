"""The twelve corruptions of the paper's robustness test, and the extras, by name.

The twelve are those of REOBench (Li et al. 2025, arXiv 2505.16793) with its published levels. Lengths of things in
the scene are published for images of 800 px and grow with the image here.

Shapes: H × W pixels, C = 3 channels.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vitp.core.errors import ConfigError, did_you_mean
from vitp.evaluation.corruptions import blur, extras, geometry, noise, photometric, transmission, weather
from vitp.evaluation.corruptions.levels import SEVERITIES

Change = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]
"""Image (H, W, 3) uint8, severity 1 to 5, random numbers → image of the same size."""

Motion = Callable[[tuple[int, int], int, np.random.Generator], np.ndarray]
"""Height and width, severity, random numbers → 2 × 3 matrix in edge coordinates."""

Family = Literal["appearance", "geometry", "extra"]


@dataclass(frozen=True)
class Corruption:
    """One way in which an image can be worse than those that were learned from.

    Attributes:
        name: As it is written on the command line.
        family: Of the twelve those that change how things look, and those that move them; or an extra.
        levels: What the five severities are, in words.
        change: Of the pixels; None for geometry.
        motion: Of pixels and labels; None for what changes pixels only.
    """

    name: str
    family: Family
    levels: str
    change: Change | None = None
    motion: Motion | None = None

    def rng(self, seed: int, image: str, date: int = 0) -> np.random.Generator:
        """Return the random numbers of an image: the same at every severity, so that only the strength differs.

        Args:
            seed: Of the test.
            image: Id of the image.
            date: 1 for the later image of a pair.
        """
        return np.random.default_rng(
            [seed, zlib.crc32(self.name.encode()), zlib.crc32(image.encode(errors="surrogatepass")), date]
        )

    def matrix(self, size: tuple[int, int], severity: int, seed: int, image: str) -> np.ndarray | None:
        """Return how points move (2 × 3, edge coordinates), or None where they stay. Both dates move alike."""
        if self.motion is None or severity == 0:
            return None
        return self.motion(size, severity, self.rng(seed, image))

    def apply(self, image_HWC: np.ndarray, severity: int, seed: int, image: str, date: int = 0) -> np.ndarray:
        """Return the corrupted image.

        Args:
            image_HWC: uint8 RGB; not changed.
            severity: 1 to 5; 0 leaves the image as it is.
            seed: Of the test.
            image: Id of the image: it gets clouds and noise of its own.
            date: 1 for the later image of a pair: the weather differs, the viewpoint doesn't.

        Raises:
            ConfigError: There is no such severity.
        """
        if severity == 0:
            return image_HWC
        if self.change is not None:
            return self.change(image_HWC, severity, self.rng(seed, image, date))
        matrix = self.matrix((image_HWC.shape[0], image_HWC.shape[1]), severity, seed, image)
        assert matrix is not None
        return geometry.warp(image_HWC, matrix)


def _by_name(*corruptions: Corruption) -> dict[str, Corruption]:
    return {corruption.name: corruption for corruption in corruptions}


CORRUPTIONS: dict[str, Corruption] = _by_name(
    Corruption(
        "brightness_contrast",
        "appearance",
        "x, 0.8x + 0.1, 0.6x + 0.2, 0.4x + 0.3, 0.2x + 0.4",
        photometric.brightness_contrast,
    ),
    Corruption("cloud", "appearance", "10, 15, 20, 25, 30 % of the image", weather.cloud),
    Corruption(
        "compression_artefacts",
        "appearance",
        "JPEG quality 30, 25, 20, 15, 10",
        transmission.compression_artefacts,
    ),
    Corruption(
        "data_gaps",
        "appearance",
        "2 to 6 stripes, 3 to 7 px wide at 800 px",
        transmission.data_gaps,
    ),
    Corruption("gaussian_blur", "appearance", "deviation 0.8, 1.1, 1.4, 1.7, 2.0 px", blur.gaussian_blur),
    Corruption("gaussian_noise", "appearance", "deviation 4, 5, 6, 7, 8 %", noise.gaussian_noise),
    Corruption("haze", "appearance", "20, 30, 40, 50, 60 % white", weather.haze),
    Corruption("motion_blur", "appearance", "2, 4, 6, 8, 10 px", blur.motion_blur),
    Corruption("rotation", "geometry", "30°, 45°, 60°, 75°, 90°", motion=geometry.rotation),
    Corruption("salt_and_pepper", "appearance", "0.5, 1, 2, 3, 5 % of the values", noise.salt_and_pepper),
    Corruption("scale", "geometry", "0.9, 0.8, 0.7, 0.6, 0.5 of the size", motion=geometry.scale),
    Corruption("translation", "geometry", "15, 20, 25, 30, 35 px at 800 px", motion=geometry.translation),
)
"""The twelve of the paper's table 13, in its order."""

EXTRAS: dict[str, Corruption] = _by_name(
    Corruption("cumulus", "extra", "10, 20, 30, 45, 60 % of the image, with shadows", extras.cumulus),
    Corruption("speckle", "extra", "16, 8, 4, 2, 1 looks", extras.speckle),
    Corruption("rician_noise", "extra", "deviation 3, 6, 10, 15, 20 %", extras.rician_noise),
    Corruption("bias_field", "extra", "up to e^±0.15, 0.3, 0.45, 0.6, 0.8", extras.bias_field),
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
        raise ConfigError(
            f"severities {', '.join(map(str, found)) or 'none'}",
            where="severities",
            fix="choose some of 1 to 5",
        )
    return found
