"""Random views of an image: crop, turn, colour, blur. What the baselines of ViTP learn from.

A view is a pure function of image, settings and random generator; sources make the generator from the seed of the run
and the image's position in it, so that neither workers nor ranks nor a resume change a view.

Shapes: H × W pixels, S side of the view, C channels.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from vitp.core.config import SettingsModel, Share

Window = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels of the image, x2 and y2 exclusive."""

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_BLUR_SIGMA = (0.1, 2.0)
_BLUR_REFERENCE = 224
"""The published range of the blur is for views of this many pixels; it shrinks with the view."""


class ViewConfig(SettingsModel):
    """How an image may change. `ViewConfig.neutral()` changes nothing but the size.

    Attributes:
        crop: Smallest and largest share of the image's area that is kept; (1, 1): the whole image, squeezed.
        aspect: Largest ratio of a crop's sides to each other, relative to the image's own.
        flip: Mirror left-right and top-bottom, each with probability ½.
        rotate90: Turn by a random multiple of 90°; overhead images have no up.
        colour: Strength of the change of brightness, contrast and saturation: factors on 1 ± this.
        hue: Largest turn of the hue, as a share of the colour circle.
        colour_probability: Share of the views whose colours change.
        grey: Share of the views without colour.
        blur: Share of the views that are blurred.
        solarize: Share of the views whose bright half is inverted.
    """

    crop: tuple[Share, Share] = (0.4, 1.0)
    aspect: float = Field(4 / 3, ge=1, le=100)
    flip: bool = True
    rotate90: bool = True
    colour: float = Field(0.4, ge=0, le=1)
    hue: float = Field(0.1, ge=0, le=0.5)
    colour_probability: float = Field(0.8, ge=0, le=1)
    grey: float = Field(0.2, ge=0, le=1)
    blur: float = Field(0.5, ge=0, le=1)
    solarize: float = Field(0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> ViewConfig:
        low, high = self.crop
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop must rise within (0, 1], not {self.crop}")
        return self

    @classmethod
    def neutral(cls) -> ViewConfig:
        """Return the setting that only resizes."""
        return cls(crop=(1, 1), flip=False, rotate90=False, colour=0, hue=0, grey=0, blur=0)

    @classmethod
    def geometric(cls, crop: tuple[float, float] = (0.5, 1.0)) -> ViewConfig:
        """Return crops, flips and turns with all colours as they are."""
        return cls(crop=crop, colour=0, hue=0, grey=0, blur=0)


def make_view(
    image: Image.Image, size: int, config: ViewConfig, rng: np.random.Generator
) -> tuple[np.ndarray, Window]:
    """Return one view and the part of the image that it shows.

    Args:
        image: RGB.
        size: Side of the view in pixels.
        config: What may change.
        rng: Gives all that is random. As many numbers are drawn whatever the settings are, so that switching one change
            off leaves the others as they were.

    Returns:
        (S, S, 3) uint8, and the crop's window before it was mirrored and turned.
    """
    draws = rng.random(16)
    window = _crop_window(image.width, image.height, config, draws[:4])
    # Bicubic with averaging over the pixels that fall together, as ViTP's tiles are made.
    small = image.resize((size, size), Image.Resampling.BICUBIC, box=window)
    view_SSC = _turned(np.asarray(small), config, draws[4:7])
    return _recoloured(view_SSC, config, draws[7:]), window


def _crop_window(width: int, height: int, config: ViewConfig, draws: np.ndarray) -> Window:
    low, high = config.crop
    if low == high == 1.0:
        return 0.0, 0.0, float(width), float(height)
    share = low + (high - low) * draws[0]
    stretch = config.aspect ** (draws[1] - 0.5)  # of each side: the ratio of the sides is its square
    wide, tall = (min(1.0, math.sqrt(share) * factor) for factor in (stretch, 1 / stretch))
    wide, tall = max(wide * width, 1.0), max(tall * height, 1.0)
    x, y = draws[2] * (width - wide), draws[3] * (height - tall)
    return x, y, x + wide, y + tall


def _turned(view_SSC: np.ndarray, config: ViewConfig, draws: np.ndarray) -> np.ndarray:
    if config.flip and draws[0] < 0.5:
        view_SSC = view_SSC[:, ::-1]
    if config.flip and draws[1] < 0.5:
        view_SSC = view_SSC[::-1]
    if config.rotate90:
        view_SSC = np.rot90(view_SSC, int(draws[2] * 4))
    return np.ascontiguousarray(view_SSC)


def _recoloured(view_SSC: np.ndarray, config: ViewConfig, draws: np.ndarray) -> np.ndarray:
    if draws[0] < config.colour_probability and (config.colour or config.hue):
        factors = 1 + config.colour * (2 * draws[1:4] - 1)
        view_SSC = jittered(view_SSC, *factors, hue=config.hue * (2 * draws[4] - 1))
    if draws[5] < config.grey:
        grey_SS1 = (view_SSC.astype(np.float32) @ _LUMA)[..., None]
        view_SSC = np.rint(grey_SS1).astype(np.uint8).repeat(3, axis=2)
    if draws[6] < config.blur:
        low, high = _BLUR_SIGMA
        sigma = (low + (high - low) * draws[7]) * len(view_SSC) / _BLUR_REFERENCE
        view_SSC = cv2.GaussianBlur(view_SSC, (0, 0), max(sigma, 0.05))
    if draws[8] < config.solarize:
        view_SSC = np.where(view_SSC >= 128, 255 - view_SSC, view_SSC)
    return view_SSC


def jittered(
    image_HWC: np.ndarray, brightness: float, contrast: float, saturation: float, *, hue: float = 0.0
) -> np.ndarray:
    """Return an image (H, W, 3) uint8 with its colours changed.

    Args:
        image_HWC: RGB, uint8.
        brightness: Factor on all values.
        contrast: Factor on the distance from the image's mean luma.
        saturation: Factor on the distance of each pixel from its own luma; 0: grey.
        hue: Turn of the hue, as a share of the colour circle.
    """
    values_HWC = image_HWC.astype(np.float32) * brightness
    mean = float((values_HWC @ _LUMA).mean())
    values_HWC = mean + (values_HWC - mean) * contrast
    luma_HW1 = (values_HWC @ _LUMA)[..., None]
    values_HWC = luma_HW1 + (values_HWC - luma_HW1) * saturation
    changed_HWC = np.rint(np.clip(values_HWC, 0, 255)).astype(np.uint8)
    turn = round(hue * 180)  # OpenCV's hue of 8-bit images goes from 0 to 179
    if not turn:
        return changed_HWC
    hsv_HWC = cv2.cvtColor(changed_HWC, cv2.COLOR_RGB2HSV)
    hsv_HWC[..., 0] = (hsv_HWC[..., 0].astype(np.int16) + turn) % 180
    return cv2.cvtColor(hsv_HWC, cv2.COLOR_HSV2RGB)
