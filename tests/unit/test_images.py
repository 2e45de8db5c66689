"""Loading of images: every kind of file becomes upright 8-bit RGB, and damage is never swallowed."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from vitp.core.errors import DataError
from vitp.io import image_file, pixels
from vitp.io.images import image_size, load_image, load_label_pixels, load_planes
from vitp.io.pixels import as_rgb


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


def _png(values: np.ndarray, kind: int, bits: int, further: bytes = b"") -> bytes:
    """A PNG written by hand: Pillow writes none of 16-bit colours."""
    rows = values.astype(">u2" if bits == 16 else np.uint8)
    body = b"".join(b"\0" + row.tobytes() for row in rows)
    size = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, kind, 0, 0, 0)
    parts = [_chunk(b"IHDR", size), further, _chunk(b"IDAT", zlib.compress(body)), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _stretched(values: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    values = values.astype(np.float64)
    low, high = np.percentile(values if valid is None else values[valid], (2, 98))
    eight = np.clip((values - low) * (255 / (high - low)), 0, 255)
    return eight if valid is None else np.where(valid[..., None], eight, 0)


def _twelve_bits(channels: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 4096, (60, 50, channels)).astype(np.uint16)


def test_sixteen_bit_colours_of_a_png_are_stretched_like_grey_ones(tmp_path: Path) -> None:
    values = _twelve_bits(3)
    (tmp_path / "a.png").write_bytes(_png(values, 2, 16))
    assert np.abs(np.asarray(load_image(tmp_path / "a.png")) - _stretched(values)).max() <= 0.51
    # A channel that is darker stays darker: all are stretched together.
    values[..., 2] //= 4
    cv2.imwrite(str(tmp_path / "b.png"), values[..., ::-1])
    pixels = np.asarray(load_image(tmp_path / "b.png"))
    assert np.abs(pixels - _stretched(values)).max() <= 0.51
    assert pixels[..., 2].mean() < 0.5 * pixels[..., 1].mean()
    for suffix in ("a", "b"):
        with pytest.raises(DataError, match="holds colours of 16 bits as labels"):
            load_label_pixels(tmp_path / f"{suffix}.png")


@pytest.mark.parametrize(("channels", "kind"), [(4, 6), (2, 4)])
def test_sixteen_bit_transparency_is_black_and_does_not_count(
    tmp_path: Path, channels: int, kind: int
) -> None:
    values = _twelve_bits(channels)
    values[..., -1] = 65535
    values[:9, :, -1] = 0
    (tmp_path / "a.png").write_bytes(_png(values, kind, 16))
    expected = _stretched(values[..., :-1], values[..., -1] > 0)
    assert np.abs(np.asarray(load_image(tmp_path / "a.png")) - expected).max() <= 0.51


@pytest.mark.parametrize(("channels", "kind"), [(1, 0), (3, 2)])
def test_a_transparent_colour_of_sixteen_bits_is_black_and_does_not_count(
    tmp_path: Path, channels: int, kind: int
) -> None:
    values = _twelve_bits(channels)
    values[:9] = 7
    further = _chunk(b"tRNS", struct.pack(f">{channels}H", *[7] * channels))
    (tmp_path / "a.png").write_bytes(_png(values, kind, 16, further))
    expected = _stretched(values, (values != 7).any(axis=2))
    assert np.abs(np.asarray(load_image(tmp_path / "a.png")) - expected).max() <= 0.51


@pytest.mark.parametrize("largest", [3, 255, 1023, 4095, 65535])
@pytest.mark.parametrize("kind", ["P5", "P6", "P2"])
def test_netpbm_files_keep_their_values(tmp_path: Path, largest: int, kind: str) -> None:
    values = np.random.default_rng(0).integers(0, largest + 1, (40, 50, 3 if kind == "P6" else 1))
    head = f"{kind}\n# a comment\n50 40\n{largest}\n".encode()
    binary = values.astype(">u2" if largest > 255 else np.uint8).tobytes()
    plain = " ".join(map(str, values.reshape(-1))).encode()
    (tmp_path / "a.ppm").write_bytes(head + (plain if kind == "P2" else binary))
    expected = _stretched(values) if largest > 255 else values * (255 / largest)
    assert np.abs(np.asarray(load_image(tmp_path / "a.ppm")) - expected).max() <= 0.51
    if kind == "P6" and largest > 255:
        with pytest.raises(DataError, match="colours of 16 bits as labels"):
            load_label_pixels(tmp_path / "a.ppm")
    else:
        labels = load_label_pixels(tmp_path / "a.ppm")
        assert np.array_equal(labels.reshape(values.shape), values), "labels are never rescaled"


def test_netpbm_files_that_end_early_are_damaged(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(b"P5\n50 40\n4095\n" + b"\0" * 999)
    for read in (load_image, load_label_pixels):
        with pytest.raises(DataError, match=r"a\.pgm: image is damaged \(it ends before its last pixel\)"):
            read(tmp_path / "a.pgm")


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_animations_are_refused_with_their_number(tmp_path: Path, suffix: str) -> None:
    frames = [Image.fromarray(_photo(seed=seed)) for seed in range(3)]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    for read in (load_image, image_size, load_label_pixels):
        with pytest.raises(DataError, match=r"holds 3 images \(an animation\), only the first"):
            read(tmp_path / f"a.{suffix}")
    frames[0].save(tmp_path / f"b.{suffix}")
    assert load_image(tmp_path / f"b.{suffix}").size == (40, 24)


def test_the_previews_of_a_camera_are_no_animation(tmp_path: Path) -> None:
    picture = Image.fromarray(_photo())
    picture.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[picture.reduce(2)])
    assert load_image(tmp_path / "a.jpg").size == (40, 24)


@pytest.mark.parametrize(
    ("head", "text"),
    [
        (b"", "the file is empty"),
        (b"%PDF-1.7", "but a PDF file"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "but a PostScript file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "but a pointer of Git LFS .run git lfs pull"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "is a JPEG 2000 file that can't be decoded here; convert it to TIFF"),
        (b"\x89HDF\r\n", "can't be read .*not recognized as being in a supported file format"),
    ],
)
def test_other_kinds_of_files_are_named(tmp_path: Path, head: bytes, text: str) -> None:
    (tmp_path / "a.png").write_bytes(head)
    with pytest.raises(DataError, match=rf"a\.png: .*{text}"):
        load_image(tmp_path / "a.png")


def test_a_wrong_suffix_does_not_matter(tmp_path: Path) -> None:
    Image.fromarray(_photo()).save(tmp_path / "a.jpg", "PNG")
    assert np.array_equal(np.asarray(load_image(tmp_path / "a.jpg")), _photo())


def test_pipes_and_folders_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", tmp_path):
        with pytest.raises(DataError, match="image is not a file"):
            image_size(path)


def _claiming(path: Path, width: int, height: int) -> Path:
    data = _png(np.zeros((1, 1, 3)), 2, 8)
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:])
    return path


def test_sizes_that_a_file_only_claims_are_refused_before_room_is_made(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"60000×60000 px take 14\.4 GB, the limit is 4 GB; cut it"):
        load_image(_claiming(tmp_path / "a.png", 60_000, 60_000))
    with pytest.raises(DataError, match=r"says 20000×20000 px, which 69 bytes can't hold"):
        load_image(_claiming(tmp_path / "b.png", 20_000, 20_000))


def test_multiplied_transparency_and_lab_become_rgb() -> None:
    rgba = Image.fromarray(np.array([[[200, 100, 50, 128], [9, 9, 9, 255]]], np.uint8))
    over_black = np.asarray(as_rgb(rgba)).astype(int)
    assert np.abs(over_black - np.asarray(as_rgb(rgba.convert("RGBa")))).max() <= 1
    assert over_black[0].tolist() == [[100, 50, 25], [9, 9, 9]]
    grey = Image.fromarray(np.array([[[200, 128]]], np.uint8), "LA")
    assert np.asarray(as_rgb(grey.convert("La")))[0, 0].tolist() == [100, 100, 100]
    lab = Image.merge("LAB", [Image.new("L", (2, 2), value) for value in (136, 208, 195)])
    red = np.asarray(as_rgb(lab)).astype(int)[0, 0]
    assert np.abs(red - (255, 0, 0)).max() <= 12, "L* 53, a* 80, b* 67 is red"


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P"])
def test_large_png_files_come_out_as_small_ones_do(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Smooth colours make the encoder use all kinds of row filters.
    blocks = np.random.default_rng(0).integers(0, 256, (9, 7, 4), dtype=np.uint8)
    smooth = Image.fromarray(blocks).resize((203, 301), Image.Resampling.BICUBIC)
    image = smooth.convert("RGB").quantize(64) if mode == "P" else smooth.convert(mode)
    path = tmp_path / "a.png"
    image.save(path, **({"transparency": 5} if mode == "P" else {}))
    whole = load_image(path)
    monkeypatch.setattr(image_file, "LARGE_PIXELS", 1000)
    monkeypatch.setattr(pixels, "LARGE_PIXELS", 1000)
    monkeypatch.setattr(pixels, "_BAND_PIXELS", 1 << 12)
    assert np.array_equal(np.asarray(load_image(path)), np.asarray(whole))
    assert np.array_equal(load_planes(path), np.asarray(whole).transpose(2, 0, 1))
    small = load_image(path, enough=lambda width, height: (50, 50))
    assert np.array_equal(np.asarray(small), np.asarray(whole.reduce(4)))
    data = path.read_bytes()
    place = data.index(b"IDAT") + 40
    path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    with pytest.raises(DataError, match="the checksum of its part IDAT is wrong"):
        load_image(path)
    path.write_bytes(data[:-600])
    with pytest.raises(DataError, match="it ends before its last row"):
        load_image(path)


@pytest.mark.parametrize("length", [1 << 40, (1 << 62) + 7])
def test_a_part_that_says_it_is_larger_than_memory_is_damage(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.jp2"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path, "JPEG2000")
    data = path.read_bytes()
    place = data.index(b"jp2h") - 4
    path.write_bytes(data[:place] + struct.pack(">I4sQ", 1, b"jp2h", length) + data[place + 8 :])
    for read in (load_image, image_size, load_label_pixels):
        with pytest.raises(DataError, match=r"a\.jp2: is a JPEG 2000 file that can't be decoded"):
            read(path)
