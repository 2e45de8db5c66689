"""A folder with one file a band is one image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests import ground_files
from tests.raster_files import UTM, values, write_raster
from vitp.core.errors import DataError
from vitp.data.formats import read_labels
from vitp.inference.inputs import image_files
from vitp.io.band_folders import is_band_folder
from vitp.io.images import image_size
from vitp.io.open_pixels import open_pixels

_JP2 = {"driver": "JP2OpenJPEG", "QUALITY": 100, "REVERSIBLE": "YES"}


def _place(metres: float, x: float = 500_000.0, y: float = 5_000_000.0) -> tuple[str, tuple[float, ...]]:
    return "EPSG:32633", (metres, 0.0, x, 0.0, -metres, y)


def _sentinel(folder: Path, names: dict[str, int]) -> dict[str, np.ndarray]:
    """Write bands of 10, 20 and 60 m of 120 × 120 pixels of 10 m, as a .SAFE names them."""
    found = {}
    for seed, (name, metres) in enumerate(names.items()):
        side = 1200 // metres
        band_1HW = values(1, "uint16", (side, side), seed)
        inside = folder / f"R{metres}m"
        inside.mkdir(parents=True, exist_ok=True)
        path = inside / f"T32UQD_20200601T101031_{name}_{metres}m.jp2"
        write_raster(path, band_1HW, _place(metres), **_JP2)
        found[f"{name}_{metres}"] = band_1HW[0]
    return found


def test_a_safe_is_one_image_of_its_finest_bands(tmp_path: Path) -> None:
    inner = tmp_path / "S2A.SAFE" / "GRANULE" / "L2A_T32UQD" / "IMG_DATA"
    found = _sentinel(inner, {"B04": 10, "B02": 10, "B8A": 20, "B11": 20, "B01": 60, "AOT": 10})
    _sentinel(inner, {"B04": 20})
    with open_pixels(tmp_path / "S2A.SAFE") as pixels:
        assert pixels.names == ("B01", "B02", "B04", "B8A", "B11")
        assert pixels.size == image_size(tmp_path / "S2A.SAFE") == (120, 120)
        assert pixels.geometry is not None and pixels.geometry.transform == _place(10)[1]
        assert [band.wavelength for band in pixels.bands] == [442.7, 492.4, 664.6, 864.7, 1613.7]
        assert pixels.notes == (
            "bands B01, B8A, B11 have other pixels, and are repeated on the finest band's",
        )
        read_CHW = pixels.read()
        np.testing.assert_array_equal(read_CHW[1], found["B02_10"])
        np.testing.assert_array_equal(read_CHW[2], found["B04_10"])
        np.testing.assert_array_equal(read_CHW[4], found["B11_20"].repeat(2, axis=0).repeat(2, axis=1))
        np.testing.assert_array_equal(read_CHW[0], found["B01_60"].repeat(6, axis=0).repeat(6, axis=1))
        for x1, y1, x2, y2 in [(0, 0, 1, 1), (7, 13, 101, 120), (59, 60, 61, 62)]:
            np.testing.assert_array_equal(pixels.read((x1, y1, x2, y2)), read_CHW[:, y1:y2, x1:x2])
        np.testing.assert_array_equal(pixels.read(bands=["B8A", "B4"]), read_CHW[[3, 2]])
        assert pixels.valid().all()
        assert pixels.read(level=3).shape == (5, 15, 15)
    with open_pixels(f"{tmp_path}/S2A.SAFE#window=5,6,50,51&bands=B4,B2") as pixels:
        np.testing.assert_array_equal(pixels.read(), read_CHW[[2, 1], 6:51, 5:50])


def test_files_by_number_colour_or_polarisation(tmp_path: Path) -> None:
    for folder, names, wanted in [
        ("oscd", ["B01", "B02", "B10", "B8A"], ("B01", "B02", "B8A", "B10")),
        ("landsat", ["LC08_SR_B5", "LC08_SR_B4", "LC08_ST_B10", "LC08_QA_PIXEL"], ("B4", "B5", "B10")),
        ("radar", ["s1a-iw-grd-vv-20200101", "s1a-iw-grd-vh-20200101"], ("VH", "VV")),
        ("colours", ["red", "nir", "Blue"], ("blue", "nir", "red")),
    ]:
        (tmp_path / folder).mkdir()
        written = {}
        for seed, name in enumerate(names):
            written[name] = values(1, "int16", seed=seed)
            write_raster(tmp_path / folder / f"{name}.tif", written[name])
        with open_pixels(tmp_path / folder) as pixels:
            assert pixels.names == wanted
            for name in wanted:
                source = next(
                    key for key in names if key.lower().endswith(name.lower()) or name.lower() in key
                )
                np.testing.assert_array_equal(pixels.read(bands=[name]), written[source])
    with open_pixels(tmp_path / "radar") as pixels:
        assert [band.polarisation for band in pixels.bands] == ["VH", "VV"]


def test_bands_that_cover_less_hold_nothing_elsewhere(tmp_path: Path) -> None:
    wide = values(1, "uint16", (40, 30))
    part = values(1, "uint16", (10, 8), 1)
    write_raster(tmp_path / "B02.tif", wide, _place(10))
    write_raster(tmp_path / "B05.tif", part, _place(20, 500_100.0, 4_999_940.0))
    with open_pixels(tmp_path) as pixels:
        values_CHW, valid_CHW = pixels.read_valid()
        expected_HW = np.zeros((30, 40), bool)
        expected_HW[6:22, 10:30] = True
        np.testing.assert_array_equal(valid_CHW[1], expected_HW)
        np.testing.assert_array_equal(values_CHW[1, 6:22, 10:30], part[0].repeat(2, axis=0).repeat(2, axis=1))
        assert valid_CHW[0].all()
        assert not pixels.read_valid((0, 0, 9, 5), ["B05"])[1].any()


def test_files_without_places_fit_by_whole_factors_only(tmp_path: Path) -> None:
    write_raster(tmp_path / "B02.tif", values(1, "uint16", (40, 30)), None)
    coarse = values(1, "uint16", (20, 15), 1)
    write_raster(tmp_path / "B05.tif", coarse, None)
    with open_pixels(tmp_path) as pixels:
        assert pixels.geometry is None
        np.testing.assert_array_equal(pixels.read()[1], coarse[0].repeat(2, axis=0).repeat(2, axis=1))
    write_raster(tmp_path / "B05.tif", values(1, "uint16", (21, 15), 1), None)
    with pytest.raises(DataError, match="21×15 px, which don't fit onto 40×30"):
        open_pixels(tmp_path)


def test_folders_of_two_readings_are_refused(tmp_path: Path) -> None:
    one = values(1, "uint16")
    with pytest.raises(DataError, match="but a folder, and not one with a file a band"):
        open_pixels(tmp_path)
    write_raster(tmp_path / "tile1.tif", one)
    write_raster(tmp_path / "tile2.tif", one)
    with pytest.raises(DataError, match="but a folder, and not one with a file a band"):
        open_pixels(tmp_path)
    (tmp_path / "two").mkdir()
    write_raster(tmp_path / "two" / "a_B02.tif", one)
    write_raster(tmp_path / "two" / "b_B02.tif", one)
    with pytest.raises(DataError, match=r"2 files of band B02: a_B02\.tif, b_B02\.tif"):
        open_pixels(tmp_path / "two")
    (tmp_path / "crs").mkdir()
    write_raster(tmp_path / "crs" / "B02.tif", one, UTM)
    write_raster(tmp_path / "crs" / "B03.tif", one, ("EPSG:32634", UTM[1]))
    with pytest.raises(DataError, match="different coordinate systems: EPSG:32633, EPSG:32634"):
        open_pixels(tmp_path / "crs")
    (tmp_path / "rgb").mkdir()
    write_raster(tmp_path / "rgb" / "B02.tif", values(3, "uint8"))
    with pytest.raises(DataError, match="holds 3 bands, where a file of band B02 must hold one"):
        open_pixels(tmp_path / "rgb")


def _tiles(folder: Path, names: list[str], *, apart: bool, bands: int = 1, dtype: str = "uint16") -> Path:
    """Write files of 40 × 30 pixels, each at its own place or all at one."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        place = _place(10, 500_000.0 + 400.0 * number * apart)
        write_raster(folder / name, values(bands, dtype, (40, 30), number), place)
    return folder


@pytest.mark.parametrize(
    "names",
    [
        ["B1.tif", "B2.tif"],
        ["A1.tif", "A2.tif", "B1.tif", "B2.tif"],
        ["tile_B1.tif", "tile_B2.tif", "tile_B3.tif"],
        ["area_B1.tif", "field_B1.tif"],
        ["vv.tif", "vh.tif"],
        ["red.tif", "green.tif"],
    ],
)
def test_tiles_whose_names_look_like_bands_are_images_of_their_own(tmp_path: Path, names: list[str]) -> None:
    folder = _tiles(tmp_path / "tiles", names, apart=True)
    assert not is_band_folder(folder)
    assert image_files([folder], bands=True) == [str(folder / name) for name in sorted(names)]


@pytest.mark.parametrize("others", [["b7.tif"], ["a6.tif", "a8.tif"], []])
def test_files_of_several_bands_are_no_bands(tmp_path: Path, others: list[str]) -> None:
    folder = _tiles(tmp_path / "tiles", ["b6.tif", *others], apart=True, bands=4)
    assert image_files([folder], bands=True) == [str(folder / name) for name in sorted(["b6.tif", *others])]
    together = _tiles(tmp_path / "together", ["B6.tif", "B7.tif"], apart=False, bands=2)
    assert not is_band_folder(together)


def test_cells_without_a_place_are_no_bands(tmp_path: Path) -> None:
    for name in ("A1", "A2", "B1", "B2"):
        write_raster(tmp_path / f"{name}.tif", values(1, "uint16"), None)
    assert len(image_files([tmp_path], bands=True)) == 4
    (tmp_path / "A1.tif").unlink()
    (tmp_path / "A2.tif").unlink()
    assert image_files([tmp_path], bands=True) == [str(tmp_path)]


def test_bands_of_one_ground_are_one_image(tmp_path: Path) -> None:
    folder = _tiles(tmp_path / "scene", ["B02.tif", "B03.tif", "B8A.tif", "SCL.tif"], apart=False)
    write_raster(folder / "B11.tif", values(1, "uint16", (20, 15)), _place(20))
    assert image_files([folder], bands=True) == [str(folder)]
    (folder / "B03.tif").write_bytes(b"II*\0 and nothing more")
    assert is_band_folder(folder)
    write_raster(folder / "SCL.tif", values(1, "uint16"), _place(10, 900_000.0))
    with pytest.raises(DataError, match=r"in it are bands of one image, but other files lie elsewhere"):
        is_band_folder(folder)


def test_bands_of_several_images_in_one_folder_are_refused(tmp_path: Path) -> None:
    folder = _tiles(tmp_path, ["a_B02.tif", "a_B03.tif"], apart=False)
    for name in ("b_B02.tif", "b_B03.tif"):
        write_raster(folder / name, values(1, "uint16"), _place(10, 700_000.0))
    with pytest.raises(DataError, match=r"(a|b)_B02\.tif and \1_B03\.tif in it are bands of one image"):
        image_files([folder], bands=True)


def _scenes(root: Path) -> None:
    for number in range(3):
        _tiles(root / f"scene{number}", ["B02.tif", "B03.tif", "B04.tif", "B08.tif"], apart=False)


def test_vector_labels_lie_on_folders_of_bands(tmp_path: Path) -> None:
    _scenes(tmp_path)
    with open_pixels(tmp_path / "scene0") as pixels:
        assert pixels.geometry is not None
        shape = ground_files.box_on_ground(pixels.geometry, 4, 5, 20, 25)
        expected_CHW = pixels.read()
    ground_files.write_vectors(tmp_path / "labels.gpkg", [shape], "EPSG:32633", kind=["lake"])
    labelled = read_labels("auto", tmp_path)
    assert [item.id for item in labelled.items] == ["scene0", "scene1", "scene2"]
    assert labelled.channels is not None and labelled.channels.bands == ("B02", "B03", "B04", "B08")
    assert "3 images are folders with one file a band (scene0/, for example)" in labelled.understood
    for item in labelled.items:
        assert (item.width, item.height) == (40, 30) and item.objects is not None
        assert item.objects[0].box == pytest.approx((4, 5, 20, 25))
        with open_pixels(item.image) as pixels:
            np.testing.assert_array_equal(pixels.read(), expected_CHW)


def test_masks_and_classes_of_folders_of_bands(tmp_path: Path) -> None:
    _scenes(tmp_path / "a" / "images")
    (tmp_path / "a" / "masks").mkdir()
    for number in range(3):
        mask_1HW = np.zeros((1, 30, 40), np.uint8)
        mask_1HW[:, 5:, 7:] = 1
        write_raster(tmp_path / "a" / "masks" / f"scene{number}.tif", mask_1HW, _place(10))
    labelled = read_labels("masks", tmp_path / "a", classes="land=0,lake=1")
    assert [item.id for item in labelled.items] == [f"images/scene{number}" for number in range(3)]
    assert labelled.channels is not None and len(labelled.channels.channels) == 4
    _scenes(tmp_path / "b" / "forest")
    _scenes(tmp_path / "b" / "field")
    labelled = read_labels("folders", tmp_path / "b")
    assert [item.scene for item in labelled.items] == ["field"] * 3 + ["forest"] * 3
    assert labelled.channels is not None and len(labelled.channels.channels) == 4
    with pytest.raises(DataError, match="scene0: is one image with one file a band"):
        read_labels("folders", tmp_path / "b" / "forest")
