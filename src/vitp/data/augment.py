"""Random changes of training images: crops, turns, colours. The one place where chance changes pixels.

There are three kinds, each with the random numbers that its runs have always drawn: `make_view` for what an image
objective sees of an image, `augment_with_mask` for dense pretraining, and `augment` for the downstream tasks, whose
labels move along (`vitp.data.image_sample`). `jitter_tiles` changes the colours of ViTP's tiles. All are pure functions
of image, settings and generator: neither workers nor ranks nor a resume change what they return.

Shapes: C channels, H × W pixels, S side of a view, T tiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import cv2
import numpy as np
import torch
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from vitp.core.config import Positive, SettingsModel, Share
from vitp.data.image_sample import ImageSample, crop, flip, quarter_turns, resize, rotate
from vitp.data.mixing import MixSettings
from vitp.data.seen import PixelImage, size_of
from vitp.data.tiling import resampled
from vitp.records.labels import IGNORE

_CROP_TRIES = 10
"""Random crops that are tried before one with too much of one class is taken."""

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_BLUR_SIGMA = (0.1, 2.0)
_BLUR_REFERENCE = 224
"""The published range of the blur is for views of this many pixels; it shrinks with the view."""


class ViewSettings(SettingsModel):
    """How an image may change. `ViewSettings.neutral()` changes nothing but the size."""

    crop: tuple[Share, Share] = (0.4, 1.0)
    """Smallest and largest share of the image's area that is kept; (1, 1): the whole image, squeezed."""
    aspect: float = Field(4 / 3, ge=1, le=100)
    """Largest ratio of a crop's sides to each other, relative to the image's own."""
    flip: bool = True
    """Mirror left-right and top-bottom, each with probability ½."""
    rotate90: bool = True
    """Turn by a random multiple of 90°; overhead images have no up."""
    colour: float = Field(0.4, ge=0, le=1)
    """Strength of the change of brightness, contrast and saturation: factors on 1 ± this."""
    hue: float = Field(0.1, ge=0, le=0.5)
    """Largest turn of the hue, as a share of the colour circle."""
    colour_probability: float = Field(0.8, ge=0, le=1)
    """Share of the views whose colours change."""
    grey: float = Field(0.2, ge=0, le=1)
    """Share of the views without colour."""
    blur: float = Field(0.5, ge=0, le=1)
    """Share of the views that are blurred."""
    solarize: float = Field(0.0, ge=0, le=1)
    """Share of the views whose bright half is inverted."""

    @model_validator(mode="after")
    def _check(self) -> ViewSettings:
        low, high = self.crop
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop must rise within (0, 1], not {self.crop}")
        return self

    @classmethod
    def neutral(cls) -> ViewSettings:
        """Return the setting that only resizes."""
        return cls(crop=(1, 1), flip=False, rotate90=False, colour=0, hue=0, grey=0, blur=0)

    @classmethod
    def geometric(cls, crop: tuple[float, float] = (0.5, 1.0)) -> ViewSettings:
        """Return crops, flips and turns with all colours as they are."""
        return cls(crop=crop, colour=0, hue=0, grey=0, blur=0)


def make_view(
    image: PixelImage,
    size: int,
    config: ViewSettings,
    rng: np.random.Generator,
    *,
    rgb: bool = True,
    dropped_C: np.ndarray | None = None,
) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """Return one view and the part of the image that it shows.

    Args:
        image: Image of C channels.
        size: Side of the view in pixels.
        config: What may change.
        rng: Gives all that is random. As many numbers are drawn whatever the settings are, so that switching one change
            off leaves the others as they were.
        rgb: Whether the channels are red, green and blue. Of others only brightness and contrast change, those of all
            channels alike, and the contrast of each around its own mean; hue, saturation and `grey` need colours.
        dropped_C: Channels that are 0 in the view; None: none.

    Returns:
        (S, S, C) uint8, and the crop's window before it was mirrored and turned.
    """
    draws = rng.random(16)
    window = _crop_window(*size_of(image), config, draws[:4])
    # Bicubic with averaging over the pixels that fall together, as ViTP's tiles are made.
    small_SSC = resampled(image, (size, size), window)
    view_SSC = turned(small_SSC, config, draws[4:6], int(draws[6] * 4))
    return without_channels(_recoloured(view_SSC, config, draws[7:], rgb), dropped_C), window


def without_channels(image_HWC: np.ndarray, dropped_C: np.ndarray | None) -> np.ndarray:
    """Return an image with some of its channels 0."""
    return image_HWC if dropped_C is None else np.where(dropped_C, np.uint8(0), image_HWC)


def _crop_window(
    width: int, height: int, config: ViewSettings, draws: np.ndarray
) -> tuple[float, float, float, float]:
    low, high = config.crop
    if low == high == 1.0:
        return 0.0, 0.0, float(width), float(height)
    share = low + (high - low) * draws[0]
    stretch = config.aspect ** (draws[1] - 0.5)  # of each side: the ratio of the sides is its square
    wide, tall = (min(1.0, math.sqrt(share) * factor) for factor in (stretch, 1 / stretch))
    wide, tall = max(wide * width, 1.0), max(tall * height, 1.0)
    x, y = draws[2] * (width - wide), draws[3] * (height - tall)
    return x, y, x + wide, y + tall


def _recoloured(view_SSC: np.ndarray, config: ViewSettings, draws: np.ndarray, rgb: bool) -> np.ndarray:
    # Each change has its own place among `draws`: switching one off leaves the others as they were.
    if draws[0] < config.colour_probability and (config.colour or config.hue):
        factors = 1 + config.colour * (2 * draws[1:4] - 1)
        if rgb:
            view_SSC = jittered(view_SSC, *factors, hue=config.hue * (2 * draws[4] - 1))
        else:
            view_SSC = brightened(view_SSC, *factors[:2])
    if rgb and draws[5] < config.grey:
        grey_SS1 = (view_SSC.astype(np.float32) @ _LUMA)[..., None]
        view_SSC = np.rint(grey_SS1).astype(np.uint8).repeat(3, axis=2)
    if draws[6] < config.blur:
        low, high = _BLUR_SIGMA
        # A smaller view is blurred less, so that the same share of its detail is lost.
        sigma = (low + (high - low) * draws[7]) * len(view_SSC) / _BLUR_REFERENCE
        view_SSC = cv2.GaussianBlur(view_SSC, (0, 0), max(sigma, 0.05)).reshape(view_SSC.shape)
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


def brightened(image_HWC: np.ndarray, brightness: float, contrast: float) -> np.ndarray:
    """Return an image (H, W, C) uint8 of any channels under another brightness and contrast.

    Args:
        image_HWC: Of any number of channels.
        brightness: Factor on all values.
        contrast: Factor on the distance from each channel's mean.
    """
    values_HWC = image_HWC.astype(np.float32) * brightness
    mean_C = values_HWC.mean(axis=(0, 1))
    changed_HWC: np.ndarray = np.rint(np.clip(mean_C + (values_HWC - mean_C) * contrast, 0, 255))
    return changed_HWC.astype(np.uint8)


@dataclass(frozen=True)
class MaskAugmentation:
    """Random changes of an image and its mask. `MaskAugmentation.none()` changes nothing.

    Attributes:
        flip: Mirror left-right and top-bottom, each with probability ½.
        rotate90: Turn by a random multiple of 90°; overhead images have no up.
        crop: Smallest share of the short side that a random square crop keeps; 1: the whole image.
        photometric: Strength of brightness, contrast, gamma and channel changes; 0: none.
    """

    flip: bool = True
    rotate90: bool = True
    crop: float = 0.6
    photometric: float = 0.2

    @classmethod
    def none(cls) -> MaskAugmentation:
        """Return the neutral setting."""
        return cls(flip=False, rotate90=False, crop=1.0, photometric=0.0)


def augment_with_mask(
    image_HWC: np.ndarray, mask_HW: np.ndarray, size: int, wanted: MaskAugmentation, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, tuple[int, int, int, int]]:
    """Return a random square part of an image and its mask, and the part's window x1, y1, x2, y2.

    As many random numbers are drawn whatever crop and turns are asked for.

    Args:
        image_HWC: uint8.
        mask_HW: uint8.
        size: Side of what is returned, in pixels.
        wanted: What may change.
        rng: Decides.
    """
    height, width = mask_HW.shape
    share = rng.uniform(wanted.crop, 1.0)
    x_share, y_share = rng.random(2)
    x, y, wide, tall = 0, 0, width, height
    if wanted.crop < 1.0:  # otherwise the whole image is squeezed to a square
        wide = tall = max(1, round(share * min(height, width)))
        x, y = round(x_share * (width - wide)), round(y_share * (height - tall))
    part = np.s_[y : y + tall, x : x + wide]
    image_HWC, mask_HW = resize_image(image_HWC[part], (size, size)), resize_mask(mask_HW[part], (size, size))
    mirrors, quarters = rng.random(2), int(rng.integers(4))
    image_HWC, mask_HW = (turned(pixels, wanted, mirrors, quarters) for pixels in (image_HWC, mask_HW))
    return _toned(image_HWC, wanted.photometric, rng), mask_HW, (x, y, x + wide, y + tall)


def turned(
    pixels_HW: np.ndarray, wanted: ViewSettings | MaskAugmentation, mirrors: np.ndarray, quarters: int
) -> np.ndarray:
    """Return pixels (H, W, …) mirrored and turned counter-clockwise, as far as it is wanted.

    Args:
        pixels_HW: Of an image or a mask.
        wanted: Its `flip` and `rotate90` count.
        mirrors: Two random numbers on 0..1: left-right and top-bottom are swapped below ½.
        quarters: Turns of 90°.
    """
    if wanted.flip and mirrors[0] < 0.5:
        pixels_HW = pixels_HW[:, ::-1]
    if wanted.flip and mirrors[1] < 0.5:
        pixels_HW = pixels_HW[::-1]
    return np.ascontiguousarray(np.rot90(pixels_HW, quarters) if wanted.rotate90 else pixels_HW)


def _toned(image_HWC: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Return the image under a random tone curve for each channel, as one table look-up."""
    if strength == 0:
        return image_HWC
    gamma, contrast = np.exp(rng.uniform(-strength, strength, 2))
    brightness = rng.uniform(-strength, strength) / 2
    channels = image_HWC.shape[2]
    gain_C = np.exp(rng.uniform(-strength, strength, channels) / 2)
    tone = (np.linspace(0, 1, 256)[:, None] ** gamma - 0.5) * contrast + 0.5 + brightness
    table_VC = (np.clip(tone * gain_C, 0, 1) * 255).round().astype(np.uint8)
    return np.stack([cv2.LUT(image_HWC[..., c], table_VC[:, c]) for c in range(channels)], axis=2)


def resize_image(image_HWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the image at `size` (height, width), averaged over areas when it shrinks."""
    if image_HWC.shape[:2] == size:
        return np.ascontiguousarray(image_HWC)
    shrinks = image_HWC.shape[0] > size[0] and image_HWC.shape[1] > size[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    if image_HWC.shape[2] == 3:
        return cv2.resize(np.ascontiguousarray(image_HWC), size[::-1], interpolation=how)
    planes = (np.ascontiguousarray(image_HWC[..., channel]) for channel in range(image_HWC.shape[2]))
    return np.stack([cv2.resize(plane, size[::-1], interpolation=how) for plane in planes], axis=2)


def resize_mask(mask_HW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the mask at `size` (height, width); classes are never mixed."""
    if mask_HW.shape == size:
        return np.ascontiguousarray(mask_HW)
    # INTER_NEAREST of OpenCV takes the upper left neighbour, half a pixel off; the exact one doesn't.
    return cv2.resize(np.ascontiguousarray(mask_HW), size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def jitter_tiles(tiles_TCHW: np.ndarray, rng: np.random.Generator, *, rgb: bool = True) -> np.ndarray:
    """Return tiles with brightness, contrast and saturation changed by up to 25 %; the geometry stays.

    All tiles of a record change alike. Positions in the answers stay true, and so do colour names as long as
    the change is small. Channels that aren't red, green and blue (`rgb`) have no saturation; see `brightened`.
    """
    factors = rng.uniform(0.75, 1.25, size=3)
    changed = np.empty_like(tiles_TCHW)
    if not rgb:
        for number, tile_CHW in enumerate(tiles_TCHW):
            changed[number] = brightened(tile_CHW.transpose(1, 2, 0), *factors[:2]).transpose(2, 0, 1)
        return changed
    for number, tile_CHW in enumerate(tiles_TCHW):
        # As PIL images: torchvision's arithmetic on tensors rounds otherwise, and runs have always had PIL's.
        image = Image.fromarray(tile_CHW.transpose(1, 2, 0))
        for adjust, factor in zip(_ADJUST, factors, strict=False):
            image = adjust(image, float(factor))
        changed[number] = np.asarray(image).transpose(2, 0, 1)
    return changed


_ADJUST: Sequence[Callable[..., Any]] = (
    transforms.adjust_brightness,
    transforms.adjust_contrast,
    transforms.adjust_saturation,
    transforms.adjust_hue,
)


_OF_ANY_CHANNELS = (0, 1)
"""Which of `_ADJUST` channels that aren't colours have, too: brightness and contrast."""


class AugmentSettings(MixSettings):
    """Random changes. `AugmentSettings.none()` changes nothing."""

    scale: tuple[Positive, Positive] = (1.0, 1.0)
    """Smallest and largest factor on the size."""
    crop: int | None = Field(None, ge=8, le=65_536)
    """Side of the square that is cut out at random, padded where the image is smaller (zeros, and 255 in
    masks); none: where scale or rotate changed the size, the size from before."""
    max_class_share: float = Field(0.75, gt=0, le=1)
    """Largest share of the labelled pixels of a crop that one class may fill, where ten tries find such a
    crop."""
    flip: bool | Literal["horizontal"] = True
    """Mirror left-right and top-bottom, each with probability ½; `horizontal`: left-right only."""
    rotate90: bool = True
    """Turn by a random multiple of 90°; overhead images have no up."""
    rotate: float = Field(0.0, ge=0, le=180)
    """Turn by a random angle of at most this many degrees, for oriented boxes."""
    rotate_probability: float = Field(1.0, ge=0, le=1)
    """Share of the images that `rotate` turns."""
    photometric: float = Field(0.25, ge=0, le=1)
    """Strength of brightness, contrast, saturation and hue changes; 0: none, 1: as is usual in
    segmentation (±50 %, hue ±18°). Dates change independently."""
    swap_dates: float = Field(0.5, ge=0, le=1)
    """Probability that the two dates of a pair are swapped."""
    min_visible: float = Field(0.3, gt=0, le=1)
    """Objects of which less of the area is left are difficult: neither objects nor background."""
    band_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the training images in which each channel of the input is set to 0 (one is always left): the model
    then serves data that lack bands."""
    window_jitter: float = Field(0.0, ge=0, lt=1)
    """How far chance moves and stretches the ranges of values that become 0 and 255, as a share of their width: the
    windows of CT, above all. Pictures have none."""

    @classmethod
    def none(cls) -> AugmentSettings:
        """Return the neutral setting."""
        return cls(flip=False, rotate90=False, photometric=0.0, swap_dates=0.0)


def augment(
    sample: ImageSample,
    settings: AugmentSettings,
    rng: np.random.Generator,
    *,
    size: tuple[int, int] | None = None,
    rgb: bool = True,
) -> ImageSample:
    """Return the sample under random changes that `rng` decides.

    Args:
        sample: Image and labels; not changed.
        settings: What may happen.
        rng: Decides.
        size: Height and width that the image is resized to (before the random scale); None: as it is.
        rgb: Whether the channels are red, green and blue; see `distort`.
    """
    height, width = size or sample.size
    low, high = settings.scale
    # Uniform in the logarithm: as much enlarged as reduced.
    factor = float(np.exp(rng.uniform(np.log(low), np.log(high)))) if low < high else low
    sample = resize(sample, (max(1, round(height * factor)), max(1, round(width * factor))))
    if settings.rotate and (settings.rotate_probability >= 1 or rng.random() < settings.rotate_probability):
        sample = rotate(sample, float(rng.uniform(-settings.rotate, settings.rotate)))
    wanted = (height, width) if settings.crop is None else (settings.crop, settings.crop)
    if settings.crop is not None or settings.rotate or sample.size != wanted:
        sample = random_crop(sample, wanted, settings, rng)
    if settings.flip:
        left_right, top_bottom = (bool(value) for value in rng.random(2) < 0.5)
        sample = flip(sample, left_right, top_bottom and settings.flip is True)
    if settings.rotate90:
        sample = quarter_turns(sample, int(rng.integers(4)))
    if settings.photometric:
        later = sample.later_CHW
        sample = replace(
            sample,
            image_CHW=distort(sample.image_CHW, settings.photometric, rng, rgb=rgb),
            later_CHW=None if later is None else distort(later, settings.photometric, rng, rgb=rgb),
        )
    if sample.later_CHW is not None and rng.random() < settings.swap_dates:
        sample = replace(sample, image_CHW=sample.later_CHW, later_CHW=sample.image_CHW)
    return sample


def random_crop(
    sample: ImageSample, size: tuple[int, int], settings: AugmentSettings, rng: np.random.Generator
) -> ImageSample:
    """Return a random part of `size` (height, width), padded at the bottom and the right where that is more.

    With a mask the part is drawn anew while one class fills too much of it, at most ten times.
    """
    height, width = sample.size
    for _ in range(_CROP_TRIES):
        y = int(rng.integers(max(height - size[0], 0) + 1))
        x = int(rng.integers(max(width - size[1], 0) + 1))
        if sample.semantic_HW is None or settings.max_class_share >= 1:
            break
        part_HW = sample.semantic_HW[y : y + size[0], x : x + size[1]]
        counts_V = torch.bincount(part_HW[part_HW != IGNORE].flatten(), minlength=1)
        if 0 < int(counts_V.max()) <= settings.max_class_share * int(counts_V.sum()):
            break
    return crop(sample, (x, y, x + size[1], y + size[0]), min_visible=settings.min_visible)


def distort(image_CHW: Tensor, strength: float, rng: np.random.Generator, *, rgb: bool = True) -> Tensor:
    """Return the image under random brightness, contrast, saturation and hue, each with probability ½.

    Channels that aren't red, green and blue (`rgb`) change in brightness and contrast only; see `brightened`. As many
    random numbers are drawn.
    """
    low, high = 1 - strength / 2, 1 + strength / 2
    ranges = (*[(low, high)] * 3, (-0.05 * strength, 0.05 * strength))
    for index in rng.permutation(len(_ADJUST)):
        amount = float(rng.uniform(*ranges[index]))
        wanted = rng.random() < 0.5
        if wanted and rgb:
            image_CHW = _ADJUST[index](image_CHW, amount)
        elif wanted and index < len(_OF_ANY_CHANNELS):
            factors = [amount if index == own else 1.0 for own in _OF_ANY_CHANNELS]
            changed_HWC = brightened(image_CHW.permute(1, 2, 0).numpy(), *factors)
            image_CHW = torch.from_numpy(changed_HWC).permute(2, 0, 1).contiguous()
    return image_CHW
