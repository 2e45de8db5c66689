"""Windows, bands and pages in addresses, wherever an image's address is taken."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from tests.raster_files import values, write_raster
from vitp.core.errors import DataError
from vitp.data.fingerprint import labels_digest
from vitp.data.identical import find_equals
from vitp.data.shards import write_shards
from vitp.data.sources import open_sources
from vitp.data.tiles import TileCache, TileLoader
from vitp.io.images import image_size, load_image, load_label_pixels, load_planes
from vitp.io.open_pixels import open_pixels
from vitp.io.parts import FilePart, part_address, split_address, window_address
from vitp.records.channels import Channel, Channels
from vitp.records.instructions import InstructionRecord, Turn
from vitp.records.labels import LabelledImage, LabelledSet

WINDOW = (3, 5, 60, 44)


def test_addresses_are_parsed_in_one_form(tmp_path: Path) -> None:
    assert split_address("a.tif") == ("a.tif", FilePart())
    assert split_address("a#b.tif") == ("a#b.tif", FilePart())
    assert split_address("a#b.tif#window=0,1,2,3") == ("a#b.tif", FilePart((0, 1, 2, 3)))
    part = FilePart((1, 2, 3, 4), ("a,b", "c & d", "50 %", "x#y"), 2, "group/name")
    address = part_address("x/a.tif", part)
    assert split_address(address) == ("x/a.tif", part)
    assert Path(address).parent == Path("x")
    assert (
        window_address("a.tif#window=10,20,30,40&bands=1", (1, 2, 3, 4)) == "a.tif#window=11,22,13,24&bands=1"
    )
    url = "https://h/a.tif#window=0,0,1,1"
    assert split_address(url) == ("https://h/a.tif", FilePart((0, 0, 1, 1)))
    odd = tmp_path / "a.png#window=0,0,2,2"
    Image.fromarray(values(3, "uint8")[0]).save(odd, "PNG")
    assert split_address(odd) == (str(odd), FilePart())
    assert image_size(odd) == load_image(odd).size == (83, 61)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("window=1,2,3", "isn't four whole numbers"),
        ("window=1,2,3,x", "isn't four whole numbers"),
        ("window=-1,2,3,4", "isn't four whole numbers"),
        ("window=3,2,3,4", "is empty"),
        ("window=0,9,3,4", "is empty"),
        ("window=0,0,84,61", "isn't within the image of 83×61 px"),
        ("window=0,0,1,1&window=0,0,1,1", "can't be read"),
        ("window=0,0,1,1&level=2", "can't be read"),
        ("window=", "can't be read"),
        ("page=0", "pages count from 1"),
        ("bands=a,,b", "without a name"),
    ],
)
def test_other_forms_are_refused_wherever_they_are_read(tmp_path: Path, part: str, words: str) -> None:
    Image.fromarray(values(1, "uint8")[0]).save(tmp_path / "a.png")
    for read in (load_image, image_size, load_label_pixels, open_pixels):
        with pytest.raises(DataError, match=words) as caught:
            read(f"{tmp_path}/a.png#{part}")
        assert f"a.png#{part}" in str(caught.value)


def _files(folder: Path) -> list[Path]:
    """Write pictures of many kinds."""
    rgb_HWC = np.ascontiguousarray(np.moveaxis(values(3, "uint8"), 0, 2))
    rgba_HWC = np.ascontiguousarray(np.moveaxis(values(4, "uint8"), 0, 2))
    rgba_HWC[..., 3] = np.where(rgba_HWC[..., 3] > 99, 255, 0)
    paths = []

    def save(name: str, array: np.ndarray, mode: str | None = None, **options: object) -> None:
        image = Image.fromarray(array)
        image = image.convert(mode) if mode else image
        image.save(folder / name, **options)  # type: ignore[arg-type]
        paths.append(folder / name)

    save("rgb.png", rgb_HWC)
    save("rgba.png", rgba_HWC)
    save("palette.png", rgb_HWC, "P")
    save("bits.png", rgb_HWC[..., 0], "1")
    save("deep.png", values(1, "uint16")[0])
    save("rgb.jpg", rgb_HWC)
    turned = Image.Exif()
    turned[0x0112] = 6
    save("turned.jpg", rgb_HWC, exif=turned)
    save("grey.pgm", rgb_HWC[..., 0])
    save("rgb.webp", rgb_HWC, lossless=True)
    save("plain.tif", rgb_HWC)
    save("lzw.tif", rgb_HWC, compression="tiff_lzw")
    save("palette.tif", rgb_HWC, "P")
    save("alpha.tif", rgba_HWC)
    save("turned.tif", rgb_HWC, exif=turned)
    tiles = {"tiled": True, "blockxsize": 16, "blockysize": 32, "photometric": "RGB"}
    for name, options in {
        "deflate": {"compress": "deflate", **tiles},
        "planar": {"compress": "deflate", "interleave": "band", **tiles},
        "jpeg": {"compress": "jpeg", **tiles, "photometric": "YCBCR"},
        "strips": {"blockysize": 5, "photometric": "RGB", "compress": "packbits"},
        "webp": {"compress": "webp", "webp_lossless": True, **tiles},
        "nodata": {"nodata": 7, **tiles},
    }.items():
        paths.append(write_raster(folder / f"{name}.g.tif", values(3, "uint8"), **options))
    mask_HW = values(1, "uint8")[0] > 99
    paths.append(write_raster(folder / "mask.g.tif", values(3, "uint8"), mask_HW=mask_HW, photometric="RGB"))
    paths.append(write_raster(folder / "deep.g.tif", values(1, "uint16")))
    return paths


def test_a_window_of_any_picture_is_a_part_of_it(tmp_path: Path) -> None:
    x1, y1, x2, y2 = WINDOW
    for path in _files(tmp_path):
        whole = np.asarray(load_image(path))
        for window in (WINDOW, (0, 0, 61, 61) if "turned" in path.name else (70, 50, 83, 61)):
            x1, y1, x2, y2 = window
            address = window_address(path, window)
            part = np.asarray(load_image(address))
            if "turned" in path.name:
                assert whole.shape[:2] == (83, 61)
            np.testing.assert_array_equal(part, whole[y1:y2, x1:x2], err_msg=path.name)
            np.testing.assert_array_equal(load_planes(address), part.transpose(2, 0, 1))
            assert image_size(address) == (x2 - x1, y2 - y1)
            if "deep" not in path.name:
                labels = load_label_pixels(path)
                np.testing.assert_array_equal(
                    load_label_pixels(address), labels[y1:y2, x1:x2], err_msg=path.name
                )
            with open_pixels(path) as pixels, open_pixels(address) as own:
                np.testing.assert_array_equal(own.read(), pixels.read(window), err_msg=path.name)
                np.testing.assert_array_equal(own.valid(), pixels.valid(window), err_msg=path.name)


def test_scenes_have_windows() -> None:
    address = "scene:general/3/5?size=64&split=val"
    whole = np.asarray(load_image(address))
    part = f"{address}#window=3,4,30,20"
    np.testing.assert_array_equal(np.asarray(load_image(part)), whole[4:20, 3:30])
    assert image_size(part) == (27, 16)
    with open_pixels(part) as pixels:
        assert (pixels.names, pixels.size, pixels.is_picture) == (("red", "green", "blue"), (27, 16), True)
        np.testing.assert_array_equal(pixels.read().transpose(1, 2, 0), whole[4:20, 3:30])


def test_pictures_that_tiff_stores_otherwise_are_read_like_pictures(tmp_path: Path) -> None:
    rgb = Image.fromarray(np.ascontiguousarray(np.moveaxis(values(3, "uint8"), 0, 2)))
    rgb.convert("CMYK").save(tmp_path / "cmyk.tif")
    turned = Image.Exif()
    turned[0x0112] = 6
    rgb.save(tmp_path / "turned.tif", exif=turned)
    for name in ("cmyk.tif", "turned.tif"):
        with open_pixels(tmp_path / name) as pixels:
            assert pixels.names == ("red", "green", "blue")
            shown = np.asarray(load_image(tmp_path / name))
            np.testing.assert_array_equal(pixels.read().transpose(1, 2, 0), shown)


def test_labels_of_rasters_are_read_by_windows(tmp_path: Path) -> None:
    labels_1HW = values(1, "uint16")
    for number, options in enumerate([{"compress": "zstd"}, {"compress": "lzw", "blockysize": 3}]):
        path = write_raster(tmp_path / f"{number}.tif", labels_1HW, nodata=5, **options)
        np.testing.assert_array_equal(load_label_pixels(path), labels_1HW[0])
        np.testing.assert_array_equal(
            load_label_pixels(f"{path}#window=1,2,50,60"), labels_1HW[0, 2:60, 1:50]
        )
    five = write_raster(tmp_path / "five.tif", values(5, "uint8"))
    with pytest.raises(DataError, match=r"5 bands of uint8, which are no labels.*#bands=1"):
        load_label_pixels(five)
    np.testing.assert_array_equal(load_label_pixels(f"{five}#bands=2"), values(5, "uint8")[1])


def test_palettes_that_rasterio_reads_are_resolved_and_their_numbers_are_labels(tmp_path: Path) -> None:
    labels_1HW = values(1, "uint8") % 5
    path = write_raster(tmp_path / "a.tif", labels_1HW, photometric="PALETTE", compress="zstd")
    colours = {0: (0, 0, 0), 1: (255, 0, 9), 2: (7, 8, 9), 3: (200, 100, 50), 4: (1, 255, 3)}
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, colours)
    expected_HWC = np.array([colours[n] for n in range(5)], np.uint8)[labels_1HW[0]]
    for address in (path, f"{path}#page=1"):
        np.testing.assert_array_equal(np.asarray(load_image(address)), expected_HWC)
        np.testing.assert_array_equal(load_label_pixels(address), labels_1HW[0])
    with open_pixels(path) as pixels:
        assert pixels.is_picture
        np.testing.assert_array_equal(pixels.read(), labels_1HW)


def test_bands_choose_what_is_shown(tmp_path: Path) -> None:
    five_CHW = values(5, "uint8")
    path = write_raster(tmp_path / "a.tif", five_CHW)
    with pytest.raises(DataError, match=r"has 5 bands of 8-bit .* which of them are red.*FILE#bands"):
        load_image(path)
    shown = np.asarray(load_image(f"{path}#bands=5,3,1"))
    np.testing.assert_array_equal(shown, five_CHW[[4, 2, 0]].transpose(1, 2, 0))
    assert load_image(f"{path}#bands=2&window=0,0,9,9").size == (9, 9)
    four = write_raster(tmp_path / "four.tif", five_CHW[:4], None, photometric="RGB", ALPHA="YES")
    with pytest.raises(DataError, match=r"may be a measurement.*FILE#bands=1,2,3"):
        load_image(four)
    for chosen in ("1,2,3", "red,green,blue"):
        shown = np.asarray(load_image(f"{four}#bands={chosen}"))
        np.testing.assert_array_equal(shown, five_CHW[:3].transpose(1, 2, 0))


def test_planes_are_what_channels_say(tmp_path: Path) -> None:
    wanted_CHW = values(5, "int16")
    wanted_CHW[:, 3, 4] = -9999
    wanted_CHW[2, 5, 6] = -9999
    path = write_raster(tmp_path / "a.tif", wanted_CHW, nodata=-9999)
    channels = Channels(
        channels=(Channel(band="3", low=0, high=1000), Channel(band="1", low=-5000.0, high=20_000.0))
    )
    planes_CHW = load_planes(path, channels=channels)
    expected_CHW = channels.scale(wanted_CHW[[2, 0]], (wanted_CHW != -9999).any(axis=0))
    np.testing.assert_array_equal(planes_CHW, expected_CHW)
    assert not planes_CHW[:, 3, 4].any()
    assert planes_CHW[0, 5, 6] == 0
    part = load_planes(f"{path}#window=3,5,60,44", channels=channels)
    np.testing.assert_array_equal(part, expected_CHW[:, 5:44, 3:60])
    few = load_planes(path, channels=channels, enough=lambda width, height: (20, 15))
    assert few.shape == (2, 16, 21)
    with open_pixels(path) as pixels:
        values_CHW, valid_CHW = pixels.read_valid(bands=["3", "1"], level=2)
    np.testing.assert_array_equal(few, np.where(valid_CHW, channels.scale(values_CHW), 0))
    missing = Channels(channels=(Channel(band="B9"), Channel(band="1")))
    with pytest.raises(DataError, match=r"lacks the bands B9; it has 1, 2, 3, 4, 5"):
        load_planes(path, channels=missing)


def _changed(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 5_000_000_000))


def test_a_changed_file_is_seen_behind_its_windows(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    rgb_HWC = np.ascontiguousarray(np.moveaxis(values(3, "uint8"), 0, 2))
    Image.fromarray(rgb_HWC).save(path)
    address = window_address(path, WINDOW)
    read = TileLoader(16, cache=TileCache(1 << 20))
    first = read(address, 1)
    assert not np.array_equal(first, read(window_address(path, (0, 0, 20, 20)), 1))
    Image.fromarray(255 - rgb_HWC).save(tmp_path / "other.png")
    _changed(path, (tmp_path / "other.png").read_bytes())
    assert not np.array_equal(first, read(address, 1))


def test_windows_of_one_file_are_equal_only_where_their_pixels_are(tmp_path: Path) -> None:
    rgb_HWC = np.ascontiguousarray(np.moveaxis(values(3, "uint8"), 0, 2))
    rgb_HWC[20:40, 20:40] = rgb_HWC[0:20, 0:20]
    Image.fromarray(rgb_HWC).save(tmp_path / "a.png")
    deep = write_raster(tmp_path / "a.tif", np.moveaxis(rgb_HWC, 2, 0).astype(np.uint16)[[0, 1, 2, 0]])
    for path in (tmp_path / "a.png", deep):
        windows = [(0, 0, 20, 20), (20, 20, 40, 40), (40, 20, 60, 40)]
        names = [window_address(path, window) for window in windows]
        equals = find_equals([(name, (20, 20)) for name in names])
        assert equals.groups == ((names[0], names[1]),)


def test_shards_hold_the_part(tmp_path: Path) -> None:
    rgb_HWC = np.ascontiguousarray(np.moveaxis(values(3, "uint8"), 0, 2))
    Image.fromarray(rgb_HWC).save(tmp_path / "a.jpg")
    five = write_raster(tmp_path / "five.tif", values(5, "int16"), nodata=-7, names=("a", "b", "c", "d", "e"))
    addresses = [window_address(tmp_path / "a.jpg", WINDOW), f"{five}#window=3,5,60,44&bands=e,a"]
    records = [
        InstructionRecord(id=str(n), images=(address,), turns=(Turn("<image>\nWhat is it?", "A thing."),))
        for n, address in enumerate(addresses)
    ]
    write_shards(records, tmp_path / "out", "set")
    sources, errors = open_sources(tmp_path / "out" / "mixture.json")
    assert not errors
    (picture,), (raster,) = sources[0].records[0].images, sources[0].records[1].images
    np.testing.assert_array_equal(np.asarray(load_image(picture)), np.asarray(load_image(addresses[0])))
    with open_pixels(raster) as held, open_pixels(addresses[1]) as own:
        assert (held.names, held.nodata, held.geometry) == (("e", "a"), -7, own.geometry)
        np.testing.assert_array_equal(held.read(), own.read())


def test_images_of_shards_have_windows(tmp_path: Path) -> None:
    data_HWC = np.ascontiguousarray(np.moveaxis(values(3, "uint8"), 0, 2))
    Image.fromarray(data_HWC).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "x.tar").write_bytes(b"\0" * 512 + data)
    address = f"tar:{tmp_path}/x.tar#512+{len(data)}/a.png#window=3,5,60,44"
    np.testing.assert_array_equal(np.asarray(load_image(address)), data_HWC[5:44, 3:60])


def test_the_content_behind_a_window_counts_in_fingerprints(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(values(1, "uint8")[0]).save(path)
    whole = LabelledImage("a", str(path), 83, 61, "train", scene="x")
    part = replace(whole, image=window_address(path, WINDOW))
    digests = {
        labels_digest(_set(item)) for item in (whole, part, replace(part, image=f"{path}#window=0,0,9,9"))
    }
    assert len(digests) == 3
    before = labels_digest(_set(part))
    assert before == labels_digest(_set(part))
    _changed(path, path.read_bytes()[:-20] + b"\1" * 20)
    assert labels_digest(_set(part)) != before


def _set(item: LabelledImage) -> LabelledSet:
    return LabelledSet(name="set", items=[item], scene_classes=("x",))
