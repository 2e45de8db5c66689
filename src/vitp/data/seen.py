"""How a run reads its images: which channels it sees of files with bands, and which of those it leaves out at random.

Shapes: C channels, H × W pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitp.core.errors import ConfigError
from vitp.io.images import MissingBands, is_scene, load_held, load_image, load_planes
from vitp.io.open_pixels import open_pixels
from vitp.io.parts import split_view
from vitp.records.channels import PICTURE, UNMOVED, Channels, Moved, matching
from vitp.records.labels import LabelledSet

_log = logging.getLogger("vitp")
_DROPOUT = 0x42414E44
"""Keeps the random choice of channels apart from other uses of a position."""

_JITTER = 0x57494E44
"""The same for ranges of values."""

PixelImage = Image.Image | np.ndarray
"""Three channels as an RGB image of Pillow's, another number as (H, W, C) uint8."""


@dataclass(frozen=True)
class SeenBands:
    """What is seen of the images of a run. `SeenBands()` is pictures as they stand.

    Attributes:
        channels: What is seen of the files' bands; None: pictures.
        band_dropout: Share of the training images in which each channel is set to 0; one is always left.
        missing_bands: What becomes of channels whose band a file lacks.
        window_jitter: How far the ranges of values move in training, see `at`; pictures have none.
        moved: Where they have been moved to.
    """

    channels: Channels | None = None
    band_dropout: float = 0.0
    missing_bands: MissingBands = "error"
    window_jitter: float = 0.0
    moved: Moved = UNMOVED

    @classmethod
    def by(
        cls, model: Channels | None, labelled: LabelledSet, *, missing_bands: MissingBands = "error"
    ) -> SeenBands:
        """Return how a model sees the images of a set: its own bands, in the scaling that it was trained with.

        Args:
            model: What the model sees; None: pictures.
            labelled: The set.
            missing_bands: `zero`: bands that the set lacks are 0, for models that were trained with band dropout.

        Raises:
            ConfigError: The model wasn't trained to lack bands.
            DataError: The set lacks bands of the model.
        """
        check_missing_bands(model, missing_bands)
        if missing_bands == "zero":
            return cls(model, missing_bands=missing_bands)
        return cls(matching(model, labelled.channels, where=labelled.name))

    @property
    def is_rgb(self) -> bool:
        """Whether the channels have hues."""
        return self.channels is None or self.channels.is_rgb

    def load(self, address: str, enough: Callable[[int, int], tuple[int, int]] | None = None) -> PixelImage:
        """Return an image; see `vitp.io.images.load_image`.

        Raises:
            DataError: The file is missing or damaged, lacks bands, or holds more than a picture and no channels are
                declared.
        """
        if self.channels is None:
            return load_image(address, enough=enough, stretch=False)
        pixels_HWC = np.ascontiguousarray(self.planes(address, enough).transpose(1, 2, 0))
        return Image.fromarray(pixels_HWC) if len(self.channels) == 3 else pixels_HWC

    def planes(self, address: str, enough: Callable[[int, int], tuple[int, int]] | None = None) -> np.ndarray:
        """Return an image as (C, H, W) uint8 that may be written to; see `load`."""
        return load_planes(
            address,
            enough=enough,
            channels=self.channels,
            stretch=False,
            missing_bands=self.missing_bands,
            moved=self.moved,
        )

    def held(self, address: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the whole of an image as `planes` does, and where it holds something; see `load_held`."""
        return load_held(address, self.channels, missing_bands=self.missing_bands, moved=self.moved)

    def at(self, seed: int, position: int) -> SeenBands:
        """Return how the image at a place in the run is read: by ranges that chance has moved and stretched.

        With a jitter of 0.2 the centre of every range moves by up to a tenth of its width to either side, and its width
        becomes 0.8 to 1.2 times as large; all channels alike. It happens before values are clipped, so that it shows
        what lies beyond the range, too. A pure function of seed and position, as `dropped`.
        """
        if not self.window_jitter or self.channels is None:
            return self
        shift, stretch = (
            np.random.default_rng([seed, _JITTER, position]).uniform(-1, 1, 2) * self.window_jitter
        )
        return replace(self, window_jitter=0.0, moved=(float(shift) / 2, 1 + float(stretch)))

    def dropped(self, seed: int, position: int) -> np.ndarray | None:
        """Return which channels are set to 0 at a place in the run, (C,) bool; None: none is.

        A pure function of seed and position: neither workers nor a resume change it.
        """
        if not self.band_dropout:
            return None
        count = 3 if self.channels is None else len(self.channels)
        rng = np.random.default_rng([seed, _DROPOUT, position])
        dropped_C = rng.random(count) < self.band_dropout
        dropped_C[rng.integers(count)] &= not dropped_C.all()
        return dropped_C if dropped_C.any() else None

    def facts(self) -> list[Any]:
        """Return what of it decides the batches, as JSON; nothing for pictures as they stand."""
        if self == PICTURES:
            return []
        channels = (
            None if self.channels is None else self.channels.model_dump(mode="json", exclude={"dropout"})
        )
        own = {"channels": channels, "band_dropout": self.band_dropout, "missing_bands": self.missing_bands}
        return [{**own, "window_jitter": self.window_jitter} if self.window_jitter else own]


def check_missing_bands(model: Channels | None, missing_bands: MissingBands) -> None:
    """Do nothing when a model may be used on images that lack bands, or nobody asked for it.

    Raises:
        ConfigError: The model wasn't trained to lack bands.
    """
    if missing_bands == "zero" and (model is None or not model.dropout):
        raise ConfigError(
            "the model wasn't trained with band dropout, so it doesn't know images that lack bands",
            where="missing_bands",
            fix="name data with all of its bands, or train it with band_dropout",
        )


_ADDRESS = "address"
"""Where `Image.info` of a lone image says where it comes from."""


def lone_image(address: str | Path, channels: Channels | None = None) -> Image.Image:
    """Return an image on its own, that belongs to no set, as RGB to be shown; `seen_again` reads it for a model.

    Without channels values of more than 8 bits are stretched between the file's own percentiles, and a note says so.

    Args:
        address: Address of the image.
        channels: What a model sees of it, whose composite is returned; None: pictures.

    Raises:
        DataError: As `load_image`.
    """
    image = load_image(address, channels=channels)
    if channels is None and (line := stretch_note(address)):
        _log.warning("note: %s", line)
    image.info[_ADDRESS] = str(address)
    return image


def stretch_note(address: str | Path) -> str:
    """Return what is to be said of a lone file that is no picture, and shown as one; "" of pictures."""
    if is_scene(address):
        return ""
    with open_pixels(split_view(address)[0]) as pixels:
        if pixels.is_picture:
            return ""
        if pixels.says_shown:
            return f"{address}: it is shown by the window, or the lookup table, of its own header"
    text = "its values are stretched between its own 2nd and 98th percentile; the same value may be another grey in"
    return f"{address}: {text} the next file"


def seen_again(image: Image.Image | np.ndarray, channels: Channels | None) -> np.ndarray:
    """Return (H, W, C) uint8: what a model sees of an image that is at hand as RGB.

    Args:
        image: An RGB image, or pixels as the model sees them.
        channels: Channels of the model; None: pictures.

    Raises:
        DataError: The model sees bands, and where the image comes from isn't known, or it lacks them.
    """
    if channels is None or isinstance(image, np.ndarray):
        return np.asarray(image)
    address = image.info.get(_ADDRESS)
    if address is None:
        channels.check_bands(PICTURE.bands, where="image")
        return channels.scale(np.asarray(image).transpose(2, 0, 1)[_places(channels)]).transpose(1, 2, 0)
    return np.asarray(SeenBands(channels).load(address))


def _places(channels: Channels) -> list[int]:
    """Return which colour of a picture each channel is."""
    names = channels.named_in(PICTURE.bands)
    return [PICTURE.bands.index(str(name)) for name in names]


PICTURES = SeenBands()
"""8-bit pictures as they stand, all channels."""


def size_of(image: PixelImage) -> tuple[int, int]:
    """Return width and height."""
    return (image.shape[1], image.shape[0]) if isinstance(image, np.ndarray) else image.size
