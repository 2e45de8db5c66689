"""Sensors: from six physical bands to the picture that one kind of instrument would take."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from vitp.scenes.chance import uniform

Render = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]


class Look(NamedTuple):
    """One kind of picture.

    Attributes:
        render: (red-green-blue, infrared-radar-heat, rng) → (H, W, 3) float32, about 0..1.
        phrases: How captions call such a picture, each with its article.
        true_colour: Colours of objects can be read off it.
    """

    render: Render
    phrases: tuple[str, ...]
    true_colour: bool = False


LOOKS: dict[str, Look] = {}


def _look(*phrases: str, true_colour: bool = False) -> Callable[[Render], Render]:
    """Enter a function into `LOOKS` under its name."""

    def enter(render: Render) -> Render:
        LOOKS[render.__name__.lstrip("_")] = Look(render, phrases, true_colour)
        return render

    return enter


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    if sigma <= 0.25:
        return image
    blurred: np.ndarray = cv2.GaussianBlur(image, (0, 0), sigma)
    return blurred


def _noise(image: np.ndarray, rng: np.random.Generator, sigma: float) -> np.ndarray:
    noisy: np.ndarray = image + sigma * rng.standard_normal(image.shape, dtype=np.float32)
    return noisy


def _grey(image_HW: np.ndarray) -> np.ndarray:
    return np.repeat(image_HW[..., None], 3, axis=2)


def _air(image_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Exposure, colour cast, haze and sharpness of a camera above the air."""
    cast = 1 + np.float32(0.06) * rng.standard_normal(3, dtype=np.float32)
    image_HWC = image_HWC * (np.float32(uniform(rng, 0.75, 1.3)) * cast)
    if rng.random() < 0.4:
        haze = uniform(rng, 0.03, 0.32)
        image_HWC = image_HWC * (1 - haze) + haze * np.float32(uniform(rng, 0.6, 0.85))
    image_HWC = _blur(image_HWC, uniform(rng, 0.0, 0.75))
    return _noise(image_HWC, rng, uniform(rng, 0.004, 0.03))


@_look("a colour photo", "an aerial photo", "a satellite image", true_colour=True)
def _rgb(rgb_HWC: np.ndarray, other_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _air(rgb_HWC, rng)


@_look("an infrared image", "a false colour image")
def _infrared(rgb_HWC: np.ndarray, other_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _air(np.dstack([other_HWC[..., 0], rgb_HWC[..., 0], rgb_HWC[..., 1]]), rng)


@_look("a black and white aerial photo", "a gray aerial photo")
def _gray(rgb_HWC: np.ndarray, other_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    # Old aerial film: soft, grainy, dark towards the corners.
    image_HW = rgb_HWC @ np.array([0.35, 0.5, 0.15], np.float32)
    image_HW = (image_HW - 0.35) * uniform(rng, 0.8, 1.3) + uniform(rng, 0.3, 0.5)
    size = image_HW.shape[0]
    ramp = np.linspace(-1, 1, size, dtype=np.float32) ** 2
    image_HW = image_HW * (1 - uniform(rng, 0.0, 0.18) * (ramp[:, None] + ramp[None, :]))
    return _grey(_noise(_blur(image_HW, uniform(rng, 0.3, 0.8)), rng, uniform(rng, 0.01, 0.04)))


@_look("a panchromatic image", "a sharp gray satellite image")
def _pan(rgb_HWC: np.ndarray, other_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    # Panchromatic: sees infrared as well, so plants are bright, and the contrast is stretched.
    image_HW = rgb_HWC @ np.array([0.25, 0.25, 0.1], np.float32) + 0.4 * other_HWC[..., 0]
    low, high = np.percentile(image_HW[::3, ::3], (1, 99))
    image_HW = (image_HW - low) / max(float(high - low), 0.15) * uniform(rng, 0.8, 1.0)
    sharp = image_HW + 0.5 * (image_HW - _blur(image_HW, 1.0))
    return _grey(_noise(sharp, rng, uniform(rng, 0.004, 0.015)))


def _speckle(echo_HW: np.ndarray, rng: np.random.Generator, looks: float) -> np.ndarray:
    # Radar's noise multiplies: gamma of mean 1, weaker the more looks are averaged.
    grain = rng.standard_gamma(looks, echo_HW.shape, dtype=np.float32) / np.float32(looks)
    return _blur(echo_HW * grain, 0.45)


@_look("a radar image", "a SAR image")
def _sar(rgb_HWC: np.ndarray, other_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    # Metal and corners return far more than the ground does: the echo grows steeply with the band.
    echo_HW = _speckle(0.02 + other_HWC[..., 1] ** uniform(rng, 1.6, 2.4), rng, uniform(rng, 2.0, 6.0))
    return _grey(np.sqrt(echo_HW) * uniform(rng, 0.7, 1.0))


@_look("a thermal image", "a heat image")
def _thermal(rgb_HWC: np.ndarray, other_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    # A line scanner: each row has its own offset, detail is soft, and gain follows the scene's own range.
    heat_HW = other_HWC[..., 2] + 0.10 * rgb_HWC[..., 1]
    heat_HW = _blur(heat_HW, uniform(rng, 0.45, 0.8))
    # The 0.03 keeps a scene of almost one temperature from being stretched to noise.
    middle, spread = float(heat_HW.mean()), float(heat_HW.std()) + 0.03
    heat_HW = 0.5 + (heat_HW - middle) / spread * uniform(rng, 0.15, 0.22)
    rows = rng.standard_normal((heat_HW.shape[0], 1), dtype=np.float32)
    heat_HW = _noise(heat_HW, rng, uniform(rng, 0.015, 0.045)) + uniform(rng, 0.005, 0.03) * rows
    return _grey(heat_HW)


@_look("a composite image", "a heat and radar composite")
def _composite(rgb_HWC: np.ndarray, other_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    # Temperature, infrared and radar of one platform in one picture, each with the noise of its kind.
    heat_HW = _noise(_blur(other_HWC[..., 2], 0.5), rng, 0.02) * uniform(rng, 0.9, 1.3)
    radar_HW = np.sqrt(_speckle(0.02 + other_HWC[..., 1] ** 1.5, rng, uniform(rng, 4.0, 9.0)))
    near_HW = _noise(other_HWC[..., 0], rng, 0.012) * uniform(rng, 1.0, 1.6)
    return np.dstack([heat_HW, near_HW, radar_HW]).astype(np.float32)


def take_picture(
    look: str, rgb_HWC: np.ndarray, other_HWC: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return the (H, W, 3) uint8 picture of a look."""
    image_HWC = LOOKS[look].render(rgb_HWC, other_HWC, rng)
    picture_HWC: np.ndarray = np.rint(np.clip(image_HWC, 0, 1) * 255).astype(np.uint8)
    return picture_HWC
