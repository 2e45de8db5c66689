"""Corruptions that change how an image looks: light, air, the sensor, and what is lost on the way to the user.

Each takes an image (H, W, C) uint8, what the severity means for it (`Corruption.levels`), and the random numbers of
the image, and returns the corrupted image. The random numbers don't depend on the severity: a stronger noise is the
same noise, only stronger, and clouds grow but never move. Labels stay: what is hidden is still to be found.

Lengths of things in the scene are published for an image side of 800 px, and grow with the image (`scaled`). What the
sensor does (noise, blur, compression) happens pixel by pixel, and doesn't.

All are defined for any number of channels, of bytes or of floating numbers on 0–255: light, veils and clouds are the
same in each, noise is its own for each, and JPEG compresses channels that aren't three one by one.

Shapes: H × W pixels, C channels.
"""

from __future__ import annotations

import cv2
import numpy as np

from vitp.evaluation.corruptions.geometry import scaled

CLOUD_SIZE, CUMULUS_SIZE = 200.0, 260.0
"""Distance of the coarsest structures in pixels, at an image side of 800."""

CLOUD_EDGE = 5.0
"""Standard deviation of the edge's blur in pixels, at an image side of 800."""

CLOUD_WHITE = 0.9

CUMULUS_THICKNESS = 3.0
"""Optical thickness of a cloud where its field is one deviation above its edge."""

CUMULUS_SHADOW = 60.0
"""Distance of shadow and cloud in pixels, at an image side of 800."""

SHADOW_LIGHT = 0.45
"""Light that is left in the deepest shadow: that of the sky."""

BIAS_ORDER = 3


def _like(values_HWC: np.ndarray, image_HWC: np.ndarray) -> np.ndarray:
    """Return values within 0–255: whole numbers where the image has bytes, as they are where it is floating."""
    if image_HWC.dtype != np.uint8:
        return values_HWC.clip(0, 255).astype(image_HWC.dtype)
    rounded_HWC: np.ndarray = np.rint(values_HWC)
    return rounded_HWC.clip(0, 255).astype(np.uint8)


def brightness_contrast(
    image_HWC: np.ndarray, gain_offset: tuple[float, float], rng: np.random.Generator
) -> np.ndarray:
    """Return gain · x + offset: less contrast around a rising level; black and white are lost last."""
    gain, offset = gain_offset
    return _like(image_HWC * gain + 255 * offset, image_HWC)


def haze(image_HWC: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Return (1 − share) · x + share · white: an even veil, that adds light and takes as much from the ground's."""
    return _like(image_HWC * (1 - share) + 255 * share, image_HWC)


def gaussian_noise(image_HWC: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """Return the image plus independent normal noise (deviation on 0..1) for each pixel and channel."""
    noise_HWC = rng.standard_normal(image_HWC.shape, dtype=np.float32)
    return _like(image_HWC + 255 * deviation * noise_HWC, image_HWC)


def salt_and_pepper(image_HWC: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Return the image with a share of its channels' values dead (0) or saturated (255), as many of each."""
    chance_HWC = rng.random(image_HWC.shape, dtype=np.float32)
    half = share / 2
    return np.where(chance_HWC < half, 0, np.where(chance_HWC >= 1 - half, 255, image_HWC)).astype(
        image_HWC.dtype
    )


def gaussian_deviation(side: int) -> float:
    """Return the standard deviation in pixels that OpenCV gives a Gaussian kernel of `side` pixels."""
    return 0.3 * ((side - 1) / 2 - 1) + 0.8


def gaussian_blur(image_HWC: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """Return the image out of focus, by a Gaussian kernel of `side` pixels."""
    return cv2.GaussianBlur(image_HWC, (side, side), gaussian_deviation(side), borderType=cv2.BORDER_REFLECT)


def motion_blur(image_HWC: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """Return the image smeared along its rows, the direction of flight: a mean over `length` pixels."""
    # Not `cv2.blur`: OpenCV 5.0 gives wrong values for a box of 2 × 1.
    kernel = np.full((1, length), 1 / length, np.float32)
    return cv2.filter2D(image_HWC, -1, kernel, borderType=cv2.BORDER_REFLECT)


def compression_artefacts(image_HWC: np.ndarray, quality: int, rng: np.random.Generator) -> np.ndarray:
    """Return the image after JPEG: three channels together as colours, others one by one as grey."""
    if image_HWC.dtype != np.uint8:
        coded_HWC = compression_artefacts(np.rint(image_HWC).astype(np.uint8), quality, rng)
        return coded_HWC.astype(image_HWC.dtype)
    if image_HWC.shape[2] != 3:
        planes = (np.ascontiguousarray(plane_HW) for plane_HW in np.moveaxis(image_HWC, 2, 0))
        return np.stack([_grey_jpeg(plane_HW, quality) for plane_HW in planes], axis=2)
    # In OpenCV's order: JPEG makes light and colour of the channels, and keeps colour coarser.
    coded = cv2.imencode(
        ".jpg", cv2.cvtColor(image_HWC, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    decoded = cv2.imdecode(coded[1], cv2.IMREAD_COLOR)
    assert decoded is not None
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)


def _grey_jpeg(plane_HW: np.ndarray, quality: int) -> np.ndarray:
    coded = cv2.imencode(".jpg", plane_HW, [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(coded[1], cv2.IMREAD_GRAYSCALE)
    assert decoded is not None
    return decoded


def gap_mask(size: tuple[int, int], count_width: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return (H, W) bool: parallel stripes across the whole image, as Landsat 7 lost them with its line corrector.

    Args:
        size: Height and width.
        count_width: Stripes on the length of the image's diagonal, and their pixels at an image side of 800.
        rng: Draws their direction and where the first one lies.
    """
    angle, phase = rng.uniform(0, np.pi), rng.random()
    spacing = float(np.hypot(*size)) / count_width[0]
    rows_H1, columns_1W = np.arange(size[0])[:, None], np.arange(size[1])[None]
    across_HW = columns_1W * np.cos(angle) + rows_H1 * np.sin(angle) + phase * spacing
    missing_HW: np.ndarray = across_HW % spacing < scaled(count_width[1], size)
    return missing_HW


def data_gaps(image_HWC: np.ndarray, count_width: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return the image with parallel stripes of zeros; see `gap_mask`."""
    missing_HW = gap_mask((image_HWC.shape[0], image_HWC.shape[1]), count_width, rng)
    return np.where(missing_HW[..., None], 0, image_HWC).astype(image_HWC.dtype)


def fractal_noise(
    size: tuple[int, int],
    rng: np.random.Generator,
    *,
    coarsest: float,
    persistence: float = 0.5,
) -> np.ndarray:
    """Return (H, W) float32 noise of zero mean and unit deviation: six smooth random fields of halving size, summed.

    The field is a function of the random numbers and of the place in the scene: an image of twice the size, with
    `coarsest` twice as far, gets the same field, finer.

    Args:
        size: Height and width.
        rng: Decides.
        coarsest: Distance in pixels of the points that the first field goes through.
        persistence: Height of a field, relative to that of the one before.
    """
    height, width = size
    total_HW = np.zeros(size, np.float32)
    for octave in range(6):
        step = coarsest / 2**octave
        # Cubic interpolation needs a node before and two after the places that it is asked for.
        nodes = (int(np.ceil(height / step)) + 4, int(np.ceil(width / step)) + 4)
        field = rng.standard_normal(nodes, dtype=np.float32)
        columns_HW, rows_HW = np.meshgrid(
            (np.arange(width, dtype=np.float32) + 0.5) / step + 1,
            (np.arange(height, dtype=np.float32) + 0.5) / step + 1,
        )
        total_HW += persistence**octave * cv2.remap(field, columns_HW, rows_HW, cv2.INTER_CUBIC)
    total_HW -= total_HW.mean()
    total_HW /= max(float(total_HW.std()), 1e-6)
    return total_HW


def cloud_opacity(size: tuple[int, int], cover: float, rng: np.random.Generator) -> np.ndarray:
    """Return (H, W) float32 on 0..1: where clouds hide the ground.

    The highest `cover` of a fractal field is cloud, so that clouds grow with it; their edges are blurred.
    """
    height_HW = fractal_noise(size, rng, coarsest=max(scaled(CLOUD_SIZE, size), 4.0))
    covered_HW: np.ndarray = height_HW > np.quantile(height_HW, 1 - cover)
    edge = max(scaled(CLOUD_EDGE, size), 0.5)
    return cv2.GaussianBlur(covered_HW.astype(np.float32), (0, 0), edge, borderType=cv2.BORDER_REFLECT)


def cloud(image_HWC: np.ndarray, cover: float, rng: np.random.Generator) -> np.ndarray:
    """Return the image under thick, evenly light grey clouds (see `cloud_opacity`)."""
    opacity_HW1 = cloud_opacity((image_HWC.shape[0], image_HWC.shape[1]), cover, rng)[..., None]
    return _like(image_HWC * (1 - opacity_HW1) + 255 * CLOUD_WHITE * opacity_HW1, image_HWC)


def cumulus(image_HWC: np.ndarray, cover: float, rng: np.random.Generator) -> np.ndarray:
    """Return the image under a field of cumulus clouds: thin at the edges, shaded by themselves, with shadows.

    A fractal field above a level is the thickness d; a cloud lets e^(−d) of the ground's light pass, is brighter
    where it is thick, and darker on the side that looks away from the sun. Its shadow lies away from the sun.
    `cover` is the share of the image where there is any cloud.
    """
    size = (image_HWC.shape[0], image_HWC.shape[1])
    sun = rng.uniform(0, 2 * np.pi)
    away_2 = np.array([np.cos(sun), np.sin(sun)])
    field_HW = fractal_noise(size, rng, coarsest=max(scaled(CUMULUS_SIZE, size), 4.0), persistence=0.55)
    edge = float(np.quantile(field_HW, 1 - cover))
    thickness_HW = CUMULUS_THICKNESS * np.maximum(field_HW - edge, 0)
    opacity_HW = 1 - np.exp(-thickness_HW)

    light_HW = 1 - (1 - SHADOW_LIGHT) * _shifted(opacity_HW, away_2 * scaled(CUMULUS_SHADOW, size))
    step = away_2 * max(scaled(CUMULUS_SHADOW, size) / 8, 1.0)
    towards_sun_HW = _shifted(thickness_HW, -step) - _shifted(thickness_HW, step)
    white_HW = (0.86 + 0.06 * np.tanh(thickness_HW) - 0.10 * np.tanh(towards_sun_HW)).clip(0.6, 1.0)

    ground_HWC = image_HWC * light_HW[..., None]
    opacity_HW1 = opacity_HW[..., None]
    return _like(ground_HWC * (1 - opacity_HW1) + 255 * white_HW[..., None] * opacity_HW1, image_HWC)


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


def speckle(image_HWC: np.ndarray, looks: float, rng: np.random.Generator) -> np.ndarray:
    """Return the image times gamma noise of mean 1, the same for all channels: the speckle of an intensity image.

    Of L averaged looks at a rough surface, x · Gamma(L, 1/L) is what a radar measures; its deviation is x / √L. Each
    severity draws anew, for a gamma variable can't be scaled into another.
    """
    return _like(image_HWC * rng.gamma(looks, 1 / looks, (*image_HWC.shape[:2], 1)), image_HWC)


def rician_noise(image_HWC: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """Return √((x + n₁)² + n₂²) with normal n: the magnitude of a noisy complex signal, as in magnetic resonance.

    Where there is no signal, the background rises to σ · √(π/2); all channels get the same noise. The deviation of both
    parts is on 0..1.
    """
    noise_2HW1 = rng.standard_normal((2, *image_HWC.shape[:2], 1), dtype=np.float32)
    real_HW1, imaginary_HW1 = 255 * deviation * noise_2HW1
    return _like(np.hypot(image_HWC + real_HW1, imaginary_HW1), image_HWC)


def bias_field(image_HWC: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Return the image times a smooth field e^(a · p): the uneven sensitivity of a coil or of a light source.

    p is a random polynomial of third order in x and y with zero mean and a largest magnitude of 1.
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
    return _like(image_HWC * np.exp(strength * polynomial_HW)[..., None], image_HWC)
