"""Corruptions beside the twelve: clouds that throw shadows, and the noise of radar and magnetic resonance.

Shapes: H × W pixels, C = 3 channels.
"""

from __future__ import annotations

import cv2
import numpy as np

from vitp.evaluation.corruptions.levels import as_bytes, level, scaled
from vitp.evaluation.corruptions.weather import fractal_noise

CUMULUS_COVER = (0.10, 0.20, 0.30, 0.45, 0.60)
"""Share of the image where there is any cloud."""

CUMULUS_SIZE = 260.0
"""Distance of the coarsest structures in pixels, at an image side of 800."""

CUMULUS_THICKNESS = 3.0
"""Optical thickness of a cloud where its field is one deviation above its edge."""

CUMULUS_SHADOW = 60.0
"""Distance of shadow and cloud in pixels, at an image side of 800."""

SHADOW_LIGHT = 0.45
"""Light that is left in the deepest shadow: that of the sky."""

LOOKS = (16.0, 8.0, 4.0, 2.0, 1.0)
"""Looks of a radar image that are averaged; the deviation of speckle is mean / √looks."""

RICIAN_DEVIATION = (0.03, 0.06, 0.10, 0.15, 0.20)
"""Standard deviation of the noise in both parts of the complex signal, on 0..1."""

BIAS_STRENGTH = (0.15, 0.30, 0.45, 0.60, 0.80)
"""Largest deviation of the logarithm of the coil's sensitivity."""

BIAS_ORDER = 3


def cumulus(image_HWC: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return the image under a field of cumulus clouds: thin at the edges, shaded by themselves, with shadows.

    A fractal field above a level is the thickness d; a cloud lets e^(−d) of the ground's light pass, is brighter
    where it is thick, and darker on the side that looks away from the sun. Its shadow lies away from the sun.

    Args:
        image_HWC: uint8 RGB.
        severity: 1 to 5; clouds grow with it and never move.
        rng: Decides where clouds and sun are.
    """
    size = (image_HWC.shape[0], image_HWC.shape[1])
    sun = rng.uniform(0, 2 * np.pi)
    away_2 = np.array([np.cos(sun), np.sin(sun)])
    field_HW = fractal_noise(size, rng, coarsest=max(scaled(CUMULUS_SIZE, size), 4.0), persistence=0.55)
    edge = float(np.quantile(field_HW, 1 - level(CUMULUS_COVER, severity)))
    thickness_HW = CUMULUS_THICKNESS * np.maximum(field_HW - edge, 0)
    opacity_HW = 1 - np.exp(-thickness_HW)

    light_HW = 1 - (1 - SHADOW_LIGHT) * _shifted(opacity_HW, away_2 * scaled(CUMULUS_SHADOW, size))
    step = away_2 * max(scaled(CUMULUS_SHADOW, size) / 8, 1.0)
    towards_sun_HW = _shifted(thickness_HW, -step) - _shifted(thickness_HW, step)
    white_HW = (0.86 + 0.06 * np.tanh(thickness_HW) - 0.10 * np.tanh(towards_sun_HW)).clip(0.6, 1.0)

    ground_HWC = image_HWC * light_HW[..., None]
    opacity_HW1 = opacity_HW[..., None]
    return as_bytes(ground_HWC * (1 - opacity_HW1) + 255 * white_HW[..., None] * opacity_HW1)


def _shifted(values_HW: np.ndarray, by_2: np.ndarray) -> np.ndarray:
    """Return values moved by (x, y) pixels; what comes in at the border repeats it."""
    matrix = np.array([[1.0, 0.0, by_2[0]], [0.0, 1.0, by_2[1]]])
    return cv2.warpAffine(
        values_HW.astype(np.float32),
        matrix,
        (values_HW.shape[1], values_HW.shape[0]),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )


def speckle(image_HWC: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return the image times gamma noise of mean 1, the same for all channels: the speckle of an intensity image.

    Of L averaged looks at a rough surface, x · Gamma(L, 1/L) is what a radar measures; L is 16, 8, 4, 2 or 1.

    Args:
        image_HWC: uint8 RGB, grey for a radar image.
        severity: 1 to 5.
        rng: Decides; each severity draws anew, for a gamma variable can't be scaled into another.
    """
    looks = level(LOOKS, severity)
    return as_bytes(image_HWC * rng.gamma(looks, 1 / looks, (*image_HWC.shape[:2], 1)))


def rician_noise(image_HWC: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return √((x + n₁)² + n₂²) with normal n: the magnitude of a noisy complex signal, as in magnetic resonance.

    Where there is no signal, the background rises to σ · √(π/2); all channels get the same noise.

    Args:
        image_HWC: uint8 RGB, grey for a scan.
        severity: 1 to 5.
        rng: Decides.
    """
    noise_2HW1 = rng.standard_normal((2, *image_HWC.shape[:2], 1), dtype=np.float32)
    real_HW1, imaginary_HW1 = 255 * level(RICIAN_DEVIATION, severity) * noise_2HW1
    return as_bytes(np.hypot(image_HWC + real_HW1, imaginary_HW1))


def bias_field(image_HWC: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return the image times a smooth field e^(a · p): the uneven sensitivity of a coil or of a light source.

    p is a random polynomial of third order in x and y with zero mean and a largest magnitude of 1.

    Args:
        image_HWC: uint8 RGB.
        severity: 1 to 5.
        rng: Draws the polynomial.
    """
    y_H, x_W = (
        np.polynomial.legendre.legvander(np.linspace(-1, 1, n), BIAS_ORDER) for n in image_HWC.shape[:2]
    )
    weights = rng.standard_normal((BIAS_ORDER + 1, BIAS_ORDER + 1))
    # Only terms up to the third order together, and no constant one.
    orders = np.add.outer(np.arange(BIAS_ORDER + 1), np.arange(BIAS_ORDER + 1))
    weights[(orders > BIAS_ORDER) | (orders == 0)] = 0
    polynomial_HW = y_H @ weights @ x_W.T
    polynomial_HW -= polynomial_HW.mean()
    polynomial_HW /= max(float(np.abs(polynomial_HW).max()), 1e-9)
    return as_bytes(image_HWC * np.exp(level(BIAS_STRENGTH, severity) * polynomial_HW)[..., None])
