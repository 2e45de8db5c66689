"""Big JPEGs decoded small, tiles that come again kept."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitp.core.errors import DataError
from vitp.data.tiles import InputSettings, TileCache, TileLoader
from vitp.data.tiling import cut_tiles
from vitp.io.images import load_image


def smooth(width: int, height: int) -> Image.Image:
    """A picture with structure that survives JPEG: waves of a few periods."""
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    waves = [np.sin(2 * np.pi * (a * x + b * y)) for a, b in ((3, 1), (1, 4), (5, 2))]
    return Image.fromarray(np.stack([127 + 100 * wave for wave in waves], axis=2).astype(np.uint8))


@pytest.mark.parametrize("size", [(64, 48), (120, 127), (127, 300)])
def test_small_jpegs_are_bit_equal(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "small.jpg"
    smooth(*size).save(path, quality=90)
    plain = cut_tiles(load_image(path), 32, 4)
    assert np.array_equal(TileLoader(32)(str(path), 4), plain)
    assert np.array_equal(TileLoader(32, draft=False)(str(path), 4), plain)


@pytest.mark.parametrize(("size", "tiles"), [((1024, 1024), 1), ((2048, 1024), 4), ((1031, 2057), 4)])
def test_big_jpegs_are_decoded_small_and_look_the_same(
    tmp_path: Path, size: tuple[int, int], tiles: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "big.jpg"
    smooth(*size).save(path, quality=95)
    plain = cut_tiles(load_image(path), 32, tiles)
    decoded: list[tuple[int, int]] = []
    real = Image.Image.resize

    def resize(image: Image.Image, *rest: object, **options: object) -> Image.Image:
        decoded.append(image.size)
        return real(image, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "resize", resize)
    drafted = TileLoader(32)(str(path), tiles)
    assert drafted.shape == plain.shape
    width, height = decoded[-1]
    columns = 1 + (tiles > 1 and size[0] > size[1])
    rows = 1 + (tiles > 1 and size[1] > size[0])
    assert 64 * columns <= width <= size[0] // 4 + 1 and 64 * rows <= height <= size[1] // 4 + 1
    difference = np.abs(drafted.astype(int) - plain)
    assert difference.mean() < 1.0 and difference.max() <= 12


def test_images_that_exif_turns_come_in_full_size(tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    smooth(1200, 500).save(path, quality=95, exif=exif)
    plain, drafted = cut_tiles(load_image(path), 32, 2), TileLoader(32)(str(path), 2)
    assert plain.shape == (3, 3, 32, 32)
    assert np.array_equal(plain, drafted)


def test_other_formats_come_in_full_size(tmp_path: Path) -> None:
    path = tmp_path / "big.png"
    smooth(512, 512).save(path)
    assert np.array_equal(TileLoader(32)(str(path), 1), cut_tiles(load_image(path), 32, 1))
    with pytest.raises(DataError, match="image is missing"):
        TileLoader(32)(str(tmp_path / "none.jpg"), 1)


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_cache_gives_what_was_put_in_and_keeps_to_its_size(tmp_path: Path, on_disk: bool) -> None:
    tile_bytes = 3 * 32 * 32
    cache = TileCache(8 * tile_bytes, tmp_path / "cache" if on_disk else None)
    loader = TileLoader(32, cache=cache)
    paths = []
    for number in range(12):
        smooth(40 + number, 40).save(path := tmp_path / f"{number}.png")
        os.utime(path, (1000, 1000))
        paths.append(path)
    plain = [cut_tiles(load_image(path), 32, 1) for path in paths]
    for _ in range(2):
        for path, tiles in zip(paths, plain, strict=True):
            assert np.array_equal(loader(str(path), 1), tiles)
    if on_disk:
        files = list((tmp_path / "cache").rglob("*.npy"))
        assert 0 < sum(file.stat().st_size for file in files) <= cache.max_bytes + tile_bytes + 256
    else:
        assert len(cache._held) == 8
        assert cache._bytes == 8 * tile_bytes
        assert len(pickle.dumps(cache)) < 1000, "workers start with an empty one"
    smooth(99, 99).save(paths[-1])
    assert np.array_equal(loader(str(paths[-1]), 1), cut_tiles(load_image(paths[-1]), 32, 1)), "a new file"


def test_the_image_is_not_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smooth(64, 64).save(path := tmp_path / "a.png")
    loader = TileLoader(32, cache=TileCache(1 << 20))
    first = loader(str(path), 1)
    monkeypatch.setattr("vitp.data.seen.load_image", lambda *_, **__: pytest.fail("opened again"))
    assert np.array_equal(loader(str(path), 1), first)
    with pytest.raises(ValueError, match="read-only"):
        loader(str(path), 1)[0] = 0


def test_a_damaged_cache_file_is_made_again(tmp_path: Path) -> None:
    smooth(64, 64).save(path := tmp_path / "a.png")
    loader = TileLoader(32, cache=TileCache(1 << 20, tmp_path / "cache"))
    first = loader(str(path), 1)
    (file,) = (tmp_path / "cache").rglob("*.npy")
    file.write_bytes(file.read_bytes()[:100])
    assert np.array_equal(loader(str(path), 1), first)


def test_settings_make_the_loader(tmp_path: Path) -> None:
    assert InputSettings().loader(32) == TileLoader(32, draft=True, cache=None)
    loader = InputSettings(draft=False, cache_gb=0.5, cache_folder=str(tmp_path)).loader(32)
    assert loader.cache is not None and not loader.draft
    assert (loader.cache.max_bytes, loader.cache.folder) == (500_000_000, tmp_path)
