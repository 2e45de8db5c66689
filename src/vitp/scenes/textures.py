"""Banks of land textures and object variants. Each split has its own, so no test image shows a known one."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from vitp.scenes.domains import LandSpec, check_split, get_domain
from vitp.scenes.named import entered

TILE_SIDE = 192
"""Side of a texture tile in pixels; tiles continue periodically."""

LAND_VARIANTS = {"train": 12, "val": 6, "test": 6}
_OBJECT_VARIANTS = {"train": 16, "val": 8, "test": 8}
SHAPE_PARAMETERS = 10

Texture = Callable[[np.random.Generator], np.ndarray]
TEXTURES: dict[str, Texture] = {}
"""Family of textures → function that makes one of its tiles: float32 (TILE_SIDE, TILE_SIDE)."""


def name_seed(*names: str) -> list[int]:
    """Return stable integers for names; `hash()` differs from process to process."""
    return [zlib.crc32(name.encode()) for name in names]


@dataclass(frozen=True)
class LandVariant:
    """One appearance of a land class.

    Attributes:
        texture_HW: float32 (TILE_SIDE, TILE_SIDE), zero mean, unit deviation, periodic.
        level_B: float32 (6,), mean of red, green, blue, near infrared, radar, temperature, 0..1.
        swing_B: float32 (6,), what one deviation of the texture adds to each band.
    """

    texture_HW: np.ndarray
    level_B: np.ndarray
    swing_B: np.ndarray


@dataclass(frozen=True)
class ObjectVariant:
    """One appearance of an object class: numbers in 0..1 that shape functions turn into proportions."""

    shape: tuple[float, ...]
    tint: tuple[float, ...]


@dataclass(frozen=True)
class Bank:
    """Everything that the images of one domain and split are made of."""

    land: dict[str, tuple[LandVariant, ...]]
    objects: dict[str, tuple[ObjectVariant, ...]]
    relief: tuple[np.ndarray, ...]


_FY = np.fft.fftfreq(TILE_SIDE)[:, None].astype(np.float32)
_FX = np.fft.rfftfreq(TILE_SIDE)[None, :].astype(np.float32)


def _unit(tile_HW: np.ndarray) -> np.ndarray:
    tile_HW = tile_HW - tile_HW.mean()
    unit_HW: np.ndarray = np.clip(tile_HW / (tile_HW.std() + 1e-6), -3, 3).astype(np.float32)
    return unit_HW


def _filtered(
    rng: np.random.Generator,
    wavelength: float,
    width: float,
    *,
    power: float = 0.0,
    stretch: float = 1.0,
    angle: float = 0.0,
) -> np.ndarray:
    """Return periodic noise: a log-normal band around `wavelength` px, or 1/f^power noise when width is 0."""
    # Single precision throughout: the bank is built at the start of every data worker.
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    along = _FX * cos + _FY * sin
    across = (_FY * cos - _FX * sin) * np.float32(stretch)
    radius = np.sqrt(along * along + across * across)
    # The mean has no wavelength: any number that keeps logarithm and power finite, as its gain becomes 0.
    radius[0, 0] = 1.0
    if width > 0:
        gain = np.exp(-((np.log(radius * wavelength) / width) ** 2))
    else:
        gain = np.where(radius > 1 / wavelength, radius ** (-power), 0.0)
    gain[0, 0] = 0.0
    noise = rng.standard_normal((TILE_SIDE, TILE_SIDE), dtype=np.float32)
    return _unit(np.fft.irfft2(np.fft.rfft2(noise) * gain, s=(TILE_SIDE, TILE_SIDE)))


@entered(TEXTURES)
def _cloud(rng: np.random.Generator) -> np.ndarray:
    return _filtered(rng, rng.uniform(30, 90), 0.0, power=rng.uniform(0.9, 1.9))


@entered(TEXTURES)
def _grain(rng: np.random.Generator) -> np.ndarray:
    return _filtered(rng, rng.uniform(2.2, 4.5), rng.uniform(0.4, 0.9))


@entered(TEXTURES)
def _patches(rng: np.random.Generator) -> np.ndarray:
    coarse = _filtered(rng, rng.uniform(14, 34), 0.6)
    return _unit(np.round(coarse * rng.uniform(0.8, 1.6)) + 0.5 * _grain(rng))


@entered(TEXTURES)
def _canopy(rng: np.random.Generator) -> np.ndarray:
    crowns = _filtered(rng, rng.uniform(5, 11), rng.uniform(0.5, 0.9))
    lit = crowns - np.roll(crowns, (1, 1), (0, 1))
    return _unit(np.maximum(crowns, -0.6) + rng.uniform(0.6, 1.6) * lit + 0.25 * _grain(rng))


@entered(TEXTURES)
def _rows(rng: np.random.Generator) -> np.ndarray:
    count = int(rng.integers(TILE_SIDE // 9, TILE_SIDE // 3))
    bend = _filtered(rng, 80, 0.5) * rng.uniform(0.0, 0.9)
    wave = np.sin(2 * np.pi * count * np.arange(TILE_SIDE)[:, None] / TILE_SIDE + bend)
    return _unit(np.sign(wave) * np.abs(wave) ** rng.uniform(0.4, 1.5) + rng.uniform(0.2, 0.7) * _cloud(rng))


@entered(TEXTURES)
def _waves(rng: np.random.Generator) -> np.ndarray:
    swell = _filtered(rng, rng.uniform(4, 12), 0.4, stretch=rng.uniform(0.15, 0.5), angle=rng.uniform(0, 3))
    return _unit(swell + rng.uniform(0, 0.8) * _grain(rng))


@entered(TEXTURES)
def _ripples(rng: np.random.Generator) -> np.ndarray:
    bend = _filtered(rng, rng.uniform(25, 50), 0.5) * rng.uniform(1.0, 2.5)
    count = int(rng.integers(TILE_SIDE // 14, TILE_SIDE // 6))
    return _unit(
        np.sin(2 * np.pi * count * np.arange(TILE_SIDE)[None, :] / TILE_SIDE + bend) + 0.5 * _cloud(rng)
    )


@entered(TEXTURES)
def _slabs(rng: np.random.Generator) -> np.ndarray:
    period_y, period_x = rng.choice([6, 8, 12, 16, 24], size=2)
    tones = rng.standard_normal((TILE_SIDE // period_y, TILE_SIDE // period_x))
    tile = np.repeat(np.repeat(tones, period_y, 0), period_x, 1) * rng.uniform(0.2, 0.8)
    tile[::period_y] -= rng.uniform(0.8, 2.0)
    tile[:, ::period_x] -= rng.uniform(0.8, 2.0)
    return _unit(tile + 0.6 * _grain(rng))


@entered(TEXTURES)
def _sleepers(rng: np.random.Generator) -> np.ndarray:
    # Ballast only: `vitp.scenes.paint` adds rails and ties along each track.
    return _unit(_grain(rng) + 0.5 * _patches(rng))


def _land_variant(spec: LandSpec, number: int, rng: np.random.Generator) -> LandVariant:
    # By number and not by chance, so that each split has all families.
    family = spec.textures[number % len(spec.textures)]
    weights = rng.dirichlet(np.full(len(spec.colours), 0.7))
    rgb = weights @ np.asarray(spec.colours, np.float64) / 255
    rgb = np.clip(rgb * rng.uniform(0.8, 1.2) + rng.normal(0, 0.02, 3), 0.03, 0.95)
    other = np.asarray(spec.bands) * rng.uniform(0.75, 1.25, 3) + rng.normal(0, 0.03, 3)
    contrast = spec.contrast * rng.uniform(0.7, 1.4)
    swing = np.array([1, 1, 1, 1.2, 0.8, 0.9]) * rng.uniform(0.75, 1.25, 6) * contrast
    level = np.concatenate([rgb, np.clip(other, 0.03, 0.95)])
    return LandVariant(TEXTURES[family](rng), level.astype(np.float32), swing.astype(np.float32))


_BANK_NUMBER: dict[str, tuple[str, ...]] = {"test": ("2",)}
"""Splits whose bank was made anew. Test scenes that development has looked at are no test any more."""


@lru_cache(maxsize=8)
def bank(domain: str, split: str) -> Bank:
    """Return the textures and variants of one domain and split; built once per process.

    Raises:
        ConfigError: Unknown domain or split.
    """
    specs = get_domain(domain)
    check_split(split)
    # The split is part of the seed: banks are different samples of one distribution, so they share nothing.
    names = ("bank", domain, split, *_BANK_NUMBER.get(split, ()))
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(name_seed(*names))))
    land = {
        name: tuple(_land_variant(spec, k, rng) for k in range(LAND_VARIANTS[split]))
        for name, spec in specs.land.items()
    }
    objects = {
        name: tuple(
            ObjectVariant(
                tint=tuple(rng.normal(0, 9, 3).tolist()), shape=tuple(rng.random(SHAPE_PARAMETERS).tolist())
            )
            for _ in range(_OBJECT_VARIANTS[split])
        )
        for name in specs.objects
    }
    return Bank(land, objects, tuple(_cloud(rng) for _ in range(4)))
