"""Files that VRTs of a set are made of: no images beside them, unless a mosaic puts several of them together."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import rasterio

from tests.ground_files import UTM, box_on_ground, moved, write_raster, write_vectors
from vitp.core.errors import DataError
from vitp.data.formats import read_labels

SIZE = (60, 50)


def write_vrt(path: Path, *sources: Path) -> Path:
    """Write a VRT that shows one raster as it is, or several one beside the other."""
    with rasterio.open(sources[0]) as first:
        place = ", ".join(map(str, first.transform.to_gdal()))
        crs = first.crs.to_string()
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = SIZE
    bands = ""
    for band in (1, 2, 3):
        shown = "".join(
            f'<SimpleSource><SourceFilename relativeToVRT="0">{source}</SourceFilename><SourceBand>{band}</SourceBand>'
            f'<SrcRect xOff="0" yOff="0" xSize="{width}" ySize="{height}"/>'
            f'<DstRect xOff="{number * width}" yOff="0" xSize="{width}" ySize="{height}"/></SimpleSource>'
            for number, source in enumerate(sources)
        )
        bands += f'<VRTRasterBand dataType="Byte" band="{band}">{shown}</VRTRasterBand>'
    head = f'<VRTDataset rasterXSize="{width * len(sources)}" rasterYSize="{height}"><SRS>{crs}</SRS>'
    path.write_text(f"{head}<GeoTransform>{place}</GeoTransform>{bands}</VRTDataset>")
    return path


def scenes(root: Path) -> list[Path]:
    """Write two rasters side by side in `sources/`, each with a ship."""
    boxes = [box_on_ground(UTM, 60 * k + 5, 10, 60 * k + 25, 30) for k in range(2)]
    write_vectors(root / "ships.gpkg", boxes, type=["ship", "ship"])
    return [write_raster(root / f"sources/s{k}.tif", moved(UTM, 60 * k, 0), SIZE) for k in range(2)]


def test_what_a_vrt_shows_is_no_second_image(tmp_path: Path) -> None:
    for k, source in enumerate(scenes(tmp_path)):
        write_vrt(tmp_path / f"images/{k}.vrt", source)
    found = read_labels("geo", tmp_path)
    assert [Path(item.image).name for item in found.items] == ["0.vrt", "1.vrt"]
    assert [len(item.objects or ()) for item in found.items] == [1, 1]
    expected = (
        "2 files that VRTs show are no images of their own (sources/s0.tif of images/0.vrt, for example)"
    )
    assert expected in found.understood


def test_a_mosaic_beside_its_parts_has_two_readings(tmp_path: Path) -> None:
    write_vrt(tmp_path / "mosaic/all.vrt", *scenes(tmp_path))
    with pytest.raises(
        DataError, match=r"mosaic/all\.vrt is put together of sources/s0\.tif and others"
    ) as caught:
        read_labels("geo", tmp_path)
    assert "-o images=FOLDER" in caught.value.fix
    assert len(read_labels("geo", tmp_path, images="sources").items) == 2
    (whole,) = read_labels("geo", tmp_path, images="mosaic").items
    assert (whole.width, whole.height) == (120, 50) and len(whole.objects or ()) == 2


def test_a_folder_of_what_vrts_show_is_no_class(tmp_path: Path) -> None:
    for name in ("field", "forest"):
        for k in range(3):
            source = write_raster(
                tmp_path / f"sources/{name}{k}.tif", moved(UTM, 99 * k + len(name), 0), SIZE
            )
            write_vrt(tmp_path / name / f"{name}-{k}.vrt", source)
    found = read_labels("auto", tmp_path)
    assert found.scene_classes == ("field", "forest") and len(found.items) == 6
    assert "sources: holds the files that VRTs show; no class" in found.findings
    for name in ("field", "forest"):  # a mosaic in the set's folder shows what the classes hold
        shutil.rmtree(tmp_path / name)
        (tmp_path / name).mkdir()
        for k in range(3):
            (tmp_path / f"sources/{name}{k}.tif").rename(tmp_path / name / f"{name}{k}.tif")
    (tmp_path / "sources").rmdir()
    write_vrt(tmp_path / "all.vrt", *sorted(tmp_path.rglob("*.tif")))
    assert read_labels("auto", tmp_path).scene_classes == ("field", "forest")
