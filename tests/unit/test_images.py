"""Loading of images: every kind of file becomes upright 8-bit RGB, and damage is never swallowed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from vitp.data.images import image_size, load_image, load_label_pixels
from vitp.errors import DataError


def _photo(width: int = 40, height: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_rgb_png_is_returned_unchanged(tmp_path: Path) -> None:
    pixels = _photo()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png")
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), pixels)
    assert image_size(tmp_path / "a.png") == (40, 24)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_stretched_between_its_percentiles(tmp_path: Path, suffix: str) -> None:
    ramp = np.linspace(1000, 21_000, 100 * 100).astype(np.uint16).reshape(100, 100)
    Image.fromarray(ramp).save(tmp_path / f"a.{suffix}")
    grey = np.asarray(load_image(tmp_path / f"a.{suffix}"))
    assert grey.shape == (100, 100, 3)
    low, high = np.percentile(ramp, (2, 98))
    expected = np.clip((ramp - low) / (high - low), 0, 1) * 255
    assert np.abs(grey[..., 0] - expected).max() <= 0.51
    assert (grey[..., 0] == grey[..., 2]).all()
    assert 0.015 < (grey == 0).mean() < 0.03


def test_constant_and_not_a_number_values_give_black(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 700, np.uint16)).save(tmp_path / "a.png")
    assert np.asarray(load_image(tmp_path / "a.png")).max() == 0
    values = np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)
    values[0, 0] = np.nan
    Image.fromarray(values).save(tmp_path / "b.tif")
    pixels = np.asarray(load_image(tmp_path / "b.tif"))
    assert pixels[0, 0, 0] == 0
    assert pixels.max() == 255


def test_transparent_pixels_turn_black_and_palettes_are_resolved(tmp_path: Path) -> None:
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[..., 0], rgba[:2, :, 3], rgba[2:, :, 3] = 200, 255, 0
    Image.fromarray(rgba).save(tmp_path / "a.png")
    pixels = np.asarray(load_image(tmp_path / "a.png"))
    assert (pixels[:2] == (200, 0, 0)).all()
    assert (pixels[2:] == 0).all()
    palette = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "b.png")
    assert np.asarray(load_image(tmp_path / "b.png")).tolist()[0] == [[10, 20, 30], [40, 50, 60]]
    assert load_label_pixels(tmp_path / "b.png").tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_exif_orientation_is_applied_to_pixels_and_size(
    tmp_path: Path, orientation: int, suffix: str
) -> None:
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16] = (255, 0, 0)  # red corner at the top left
    # The stored picture that a viewer has to turn back, by the definition of the tag.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    tag = {"tiffinfo": {0x0112: orientation}} if suffix == "tif" else {"exif": exif}
    Image.fromarray(np.ascontiguousarray(stored)).save(path, **tag)
    pixels = np.asarray(load_image(path)).astype(int)
    assert image_size(path) == (32, 16)
    assert pixels.shape == (16, 32, 3)
    assert np.abs(pixels - upright).mean() < 12


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("tolerant", [False, True])
def test_truncated_files_are_refused(
    tmp_path: Path, share: float, suffix: str, tolerant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)
    path = tmp_path / f"whole.{suffix}"
    Image.fromarray(_photo(200, 160)).save(path)
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(DataError, match=r"cut\.\w+: image is damaged .* copy it again"):
        load_image(cut)
    assert tolerant == ImageFile.LOAD_TRUNCATED_IMAGES


def test_missing_files_and_other_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.png: image is missing; check"):
        load_image(tmp_path / "nowhere.png")
    (tmp_path / "text.png").write_text("hello")
    for read in (load_image, image_size, load_label_pixels):
        with pytest.raises(DataError, match=r"text\.png: is not an image"):
            read(tmp_path / "text.png")
    (tmp_path / "empty.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"empty\.jpg: is not an image"):
        image_size(tmp_path / "empty.jpg")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=300),
    head=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"II*\0"]),
)
def test_any_bytes_give_an_image_or_a_data_error(tmp_path: Path, data: bytes, head: bytes) -> None:
    (tmp_path / "fuzz.png").write_bytes(head + data)
    for read in (load_image, image_size):
        try:
            read(tmp_path / "fuzz.png")
        except DataError as error:
            assert "fuzz.png" in str(error)


def test_scene_addresses_are_rendered() -> None:
    address = "scene:general/3/5?size=64&split=val"
    image = load_image(address)
    assert image.size == image_size(address) == (64, 64)
    assert np.array_equal(np.asarray(image), np.asarray(load_image(address)))
    assert np.asarray(image).std() > 1
