"""Each corruption against its statistics, its order of severity, and labels that must move with the pixels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tests.corruption_toys import EVERY, natural
from vitp.core.errors import ConfigError
from vitp.evaluation.corruptions.appearance import cloud_opacity, fractal_noise, gap_mask, gaussian_deviation
from vitp.evaluation.corruptions.catalogue import CORRUPTIONS, EXTRAS, SEVERITIES


def flat(value: int, side: int = 256) -> np.ndarray:
    return np.full((side, side, 3), value, np.uint8)


def test_the_twelve_are_those_of_the_paper() -> None:
    assert list(CORRUPTIONS) == [
        "brightness_contrast",
        "cloud",
        "compression_artefacts",
        "data_gaps",
        "gaussian_blur",
        "gaussian_noise",
        "haze",
        "motion_blur",
        "rotation",
        "salt_and_pepper",
        "scale",
        "translation",
    ]
    assert {name for name, one in CORRUPTIONS.items() if one.family == "geometry"} == {
        "rotation",
        "scale",
        "translation",
    }
    assert not set(CORRUPTIONS) & set(EXTRAS)


@pytest.mark.parametrize("name", EVERY)
def test_a_corruption_is_a_function_of_its_seed(name: str) -> None:
    image = natural(64)
    before = image.copy()
    corruption = EVERY[name]
    one, two = (corruption.apply(image, 3, seed=5, image="a") for _ in range(2))
    assert one.dtype == np.uint8 and one.shape == image.shape
    assert np.array_equal(one, two) and np.array_equal(image, before)
    assert np.array_equal(corruption.apply(image, 0, seed=5, image="a"), image)
    random = {"cloud", "data_gaps", "gaussian_noise", "salt_and_pepper", "translation", *EXTRAS}
    others = [corruption.apply(image, 3, seed, other) for seed, other in ((5, "b"), (6, "a"), (7, "c"))]
    assert any(not np.array_equal(one, other) for other in others) == (name in random)
    with pytest.raises(ConfigError, match="no severity 6"):
        corruption.apply(image, 6, seed=0, image="a")


@pytest.mark.parametrize("name", [name for name, one in EVERY.items() if one.family != "geometry"])
def test_every_severity_is_further_from_the_clean_image(name: str) -> None:
    image = natural()
    distance = []
    for severity in SEVERITIES:
        found = [EVERY[name].apply(image, severity, seed, "x").astype(float) for seed in range(3)]
        distance.append(float(np.mean([np.sqrt(np.mean((each - image) ** 2)) for each in found])))
    assert all(later > earlier for earlier, later in itertools.pairwise(distance)), distance
    # As published, the first severity of brightness and contrast is no corruption.
    assert (distance[0] > 0.5) == (name != "brightness_contrast")


@pytest.mark.parametrize("name", ["rotation", "scale", "translation"])
def test_every_severity_moves_points_further(name: str) -> None:
    size = (150, 200)
    grid_N2 = np.stack(np.meshgrid(np.arange(200.0), np.arange(150.0)), -1).reshape(-1, 2)
    moved = []
    for severity in SEVERITIES:
        matrix = CORRUPTIONS[name].matrix(size, severity, 0, "x")
        assert matrix is not None
        moved.append(np.linalg.norm(grid_N2 @ matrix[:, :2].T + matrix[:, 2] - grid_N2, axis=1).mean())
    assert all(later > earlier > 0 for earlier, later in itertools.pairwise(moved)), moved


def test_brightness_and_contrast_are_affine() -> None:
    image = natural()
    found = CORRUPTIONS["brightness_contrast"].apply(image, 4, 0, "x")
    assert np.array_equal(found, np.rint(0.4 * image + 0.3 * 255).astype(np.uint8))
    assert np.array_equal(CORRUPTIONS["brightness_contrast"].apply(image, 1, 0, "x"), image)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_haze_adds_white(severity: int) -> None:
    share = (0.2, 0.3, 0.4, 0.5, 0.6)[severity - 1]
    found = CORRUPTIONS["haze"].apply(flat(40), severity, 0, "x")
    assert (found == round(40 * (1 - share) + 255 * share)).all()


@pytest.mark.parametrize("severity", SEVERITIES)
def test_gaussian_noise_has_its_deviation(severity: int) -> None:
    noise = CORRUPTIONS["gaussian_noise"].apply(flat(128), severity, 0, "x").astype(float) - 128
    expected = 255 * (0.04, 0.05, 0.06, 0.07, 0.08)[severity - 1]
    assert abs(noise.mean()) < 0.15
    # Rounding to whole numbers adds a variance of 1/12.
    assert noise.std() == pytest.approx(np.hypot(expected, 12**-0.5), rel=0.01)
    between = np.corrcoef(noise.reshape(-1, 3), rowvar=False)[np.triu_indices(3, 1)]
    assert np.abs(between).max() < 0.02


@pytest.mark.parametrize("severity", SEVERITIES)
def test_salt_and_pepper_have_their_shares(severity: int) -> None:
    found = CORRUPTIONS["salt_and_pepper"].apply(flat(128), severity, 0, "x")
    share = (0.005, 0.01, 0.02, 0.03, 0.05)[severity - 1]
    assert (found == 0).mean() == pytest.approx(share / 2, rel=0.15)
    assert (found == 255).mean() == pytest.approx(share / 2, rel=0.15)
    assert set(np.unique(found)) == {0, 128, 255}


def test_dead_values_stay_dead() -> None:
    low, high = (CORRUPTIONS["salt_and_pepper"].apply(flat(128), s, 0, "x") for s in (2, 4))
    assert (high[low != 128] == low[low != 128]).all()


@pytest.mark.parametrize("severity", SEVERITIES)
def test_blurs_spread_a_point_as_far_as_they_say(severity: int) -> None:
    point = np.zeros((41, 41, 3), np.uint8)
    point[20, 20] = 255
    places = np.arange(41) - 20
    spread = CORRUPTIONS["gaussian_blur"].apply(point, severity, 0, "x")[..., 0].astype(float)
    across = spread.sum(0) / spread.sum()
    deviation = gaussian_deviation(2 * severity + 1)
    assert deviation == pytest.approx((0.8, 1.1, 1.4, 1.7, 2.0)[severity - 1])
    # The kernel is cut off and rounded, so that it is a little narrower.
    assert np.sqrt((across * places**2).sum()) == pytest.approx(deviation, rel=0.2)
    smeared = CORRUPTIONS["motion_blur"].apply(point, severity, 0, "x")[..., 0].astype(float)
    length = 2 * severity
    assert (smeared.sum(1) > 0).nonzero()[0].tolist() == [20]
    assert (smeared[20] > 0).sum() == length and smeared[20].max() == pytest.approx(255 / length, abs=1)


def test_compression_keeps_flat_images_and_removes_detail() -> None:
    assert (
        np.abs(CORRUPTIONS["compression_artefacts"].apply(flat(100), 5, 0, "x").astype(int) - 100).max() <= 3
    )
    rng = np.random.default_rng(0)
    fine = rng.integers(0, 256, (128, 128, 3), dtype=np.uint8)
    kept = [
        float(
            np.corrcoef(CORRUPTIONS["compression_artefacts"].apply(fine, s, 0, "x").ravel(), fine.ravel())[
                0, 1
            ]
        )
        for s in (1, 5)
    ]
    assert kept[0] > kept[1] + 0.05
    red = np.zeros((64, 64, 3), np.uint8)
    red[..., 0] = 200
    assert CORRUPTIONS["compression_artefacts"].apply(red, 5, 0, "x").mean((0, 1)).argmax() == 0


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("size", [(800, 800), (160, 160)])
def test_gaps_lose_their_share_at_every_size(size: tuple[int, int], severity: int) -> None:
    count, width = severity + 1, severity + 2
    share = width * count / np.hypot(800, 800)
    lost = np.mean([gap_mask(size, (count, width), np.random.default_rng(seed)).mean() for seed in range(12)])
    assert lost == pytest.approx(share, rel=0.15)
    image = CORRUPTIONS["data_gaps"].apply(np.full((*size, 3), 9, np.uint8), severity, 0, "x")
    assert set(np.unique(image)) == {0, 9} and (image.min(-1) == image.max(-1)).all()


@pytest.mark.parametrize("severity", SEVERITIES)
def test_clouds_cover_their_share_and_grow(severity: int) -> None:
    cover = (0.10, 0.15, 0.20, 0.25, 0.30)[severity - 1]
    opacity = cloud_opacity((256, 256), cover, np.random.default_rng(1))
    assert opacity.mean() == pytest.approx(cover, rel=0.1)
    assert opacity.min() >= 0 and opacity.max() <= 1 + 1e-6
    if severity > 1:
        smaller = cloud_opacity((256, 256), cover - 0.05, np.random.default_rng(1))
        assert (opacity >= smaller - 1e-6).all()
    cloudy = CORRUPTIONS["cloud"].apply(flat(60), severity, 0, "x").astype(float)
    assert cloudy.max() == pytest.approx(0.9 * 255, abs=1)
    assert (cloudy.mean() - 60) / (0.9 * 255 - 60) == pytest.approx(cover, rel=0.1)


def test_noise_is_the_same_field_at_every_resolution() -> None:
    small = fractal_noise((100, 80), np.random.default_rng(3), coarsest=25.0)
    large = fractal_noise((200, 160), np.random.default_rng(3), coarsest=50.0)
    assert abs(small.mean()) < 1e-4 and small.std() == pytest.approx(1, abs=1e-3)
    halved = large.reshape(100, 2, 80, 2).mean((1, 3))
    assert np.corrcoef(halved.ravel(), small.ravel())[0, 1] > 0.97
    # Power falls with the frequency: neighbours are alike, places far apart aren't.
    near = np.corrcoef(large[:, 1:].ravel(), large[:, :-1].ravel())[0, 1]
    far = np.corrcoef(large[:, 100:].ravel(), large[:, :-100].ravel())[0, 1]
    assert near > 0.95 and abs(far) < 0.5


@pytest.mark.parametrize("severity", SEVERITIES)
def test_speckle_has_the_mean_and_the_deviation_of_its_looks(severity: int) -> None:
    found = EXTRAS["speckle"].apply(flat(50), severity, 0, "x").astype(float)
    assert (found[..., 0] == found[..., 1]).all()
    looks = (16, 8, 4, 2, 1)[severity - 1]
    if looks >= 2:  # with one look, values above 255 are cut off now and then
        assert found.mean() == pytest.approx(50, rel=0.01)
        assert found.std() == pytest.approx(50 / np.sqrt(looks), rel=0.02)
    else:
        assert found.mean() == pytest.approx(50 * (1 - np.exp(-5.1)), rel=0.02)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_rician_noise_raises_the_background(severity: int) -> None:
    sigma = 255 * (0.03, 0.06, 0.10, 0.15, 0.20)[severity - 1]
    dark = EXTRAS["rician_noise"].apply(flat(0), severity, 0, "x").astype(float)
    assert dark.mean() == pytest.approx(sigma * np.sqrt(np.pi / 2), rel=0.02)
    assert dark.std() == pytest.approx(sigma * np.sqrt(2 - np.pi / 2), rel=0.03)
    # Far above the noise the distribution is normal around √(x² + σ²).
    bright = EXTRAS["rician_noise"].apply(flat(100), 1, 0, "x").astype(float)
    assert bright.mean() == pytest.approx(np.hypot(100, 255 * 0.03), rel=0.01)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_a_bias_field_is_smooth_and_as_strong_as_it_says(severity: int) -> None:
    field = np.log(EXTRAS["bias_field"].apply(flat(100), severity, 0, "x")[..., 0] / 100)
    assert np.abs(field).max() == pytest.approx((0.15, 0.30, 0.45, 0.60, 0.80)[severity - 1], abs=0.01)
    assert np.abs(np.diff(field, axis=0)).max() < 0.05 and field.std() > 0.02
    assert abs(field.mean()) < 0.02


@pytest.mark.parametrize("severity", SEVERITIES)
def test_cumulus_brightens_clouds_and_darkens_their_shadows(severity: int) -> None:
    found = EXTRAS["cumulus"].apply(flat(110), severity, 0, "x").astype(float)
    cover = (0.10, 0.20, 0.30, 0.45, 0.60)[severity - 1]
    assert found.max() > 180 and found.min() < 100
    assert 0.4 * cover < (found[..., 0] > 115).mean() < 1.3 * cover
