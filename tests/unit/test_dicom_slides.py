"""DICOM whole-slide images: several resolutions as files in a folder, read by tiles, at micrometres a pixel."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import vitp
from vitp.core.errors import DataError
from vitp.data.formats import read_labels
from vitp.inference.volume_inputs import volumes_at
from vitp.io.slides import slide_kind, slide_place
from vitp.io.volumes import is_volume

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("tiffslide")

WSI = "1.2.840.10008.5.1.4.1.1.77.1.6"


def level_file(
    path: Path,
    pixels: np.ndarray,
    mpp: float,
    *,
    kind: str = "VOLUME",
    tile: int = 32,
    uid: str = "1.2.9",
    sparse: tuple[tuple[int, int], ...] | None = None,
) -> Path:
    """Write one resolution (H, W, 3) as a file of tiles; `sparse` names column and row of those that are stored."""
    from pydicom.dataset import Dataset, FileMetaDataset

    height, width = pixels.shape[:2]
    across, down = -(-width // tile), -(-height // tile)
    canvas = np.full((down * tile, across * tile, 3), 255, np.uint8)
    canvas[:height, :width] = pixels
    places = [(c, r) for r in range(down) for c in range(across)] if sparse is None else list(sparse)
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = WSI
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = pydicom.uid.generate_uid()
    data.Modality, data.SeriesInstanceUID, data.StudyInstanceUID = "SM", uid, "1.2"
    data.PatientName, data.PatientID, data.ImageType = (
        "Doe^Jane",
        "77-1",
        ["ORIGINAL", "PRIMARY", kind, "NONE"],
    )
    data.Rows = data.Columns = tile
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation, data.NumberOfFrames = 7, 0, len(places)
    data.TotalPixelMatrixColumns, data.TotalPixelMatrixRows = width, height
    data.DimensionOrganizationType = "TILED_FULL" if sparse is None else "TILED_SPARSE"
    measures, groups = Dataset(), Dataset()
    measures.PixelSpacing = [mpp / 1000, mpp / 1000]
    groups.PixelMeasuresSequence = [measures]
    data.SharedFunctionalGroupsSequence = [groups]
    if sparse is not None:
        frames = []
        for column, row in places:
            place, frame = Dataset(), Dataset()
            place.ColumnPositionInTotalImagePixelMatrix = column * tile + 1
            place.RowPositionInTotalImagePixelMatrix = row * tile + 1
            frame.PlanePositionSlideSequence = [place]
            frames.append(frame)
        data.PerFrameFunctionalGroupsSequence = frames
    tiles = [canvas[r * tile : (r + 1) * tile, c * tile : (c + 1) * tile] for c, r in places]
    data.PixelData = np.stack(tiles).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, data, enforce_file_format=True)
    return path


def slide(folder: Path, seed: int = 0) -> np.ndarray:
    """Write 200 × 152 px in three resolutions, with a label; return the finest."""
    noise = np.random.default_rng(seed).integers(0, 256, (19, 25, 3)).astype(np.uint8)
    pixels = np.kron(noise, np.ones((8, 8, 1), np.uint8))
    for number, step in enumerate((4, 1, 2)):  # in no order
        small = pixels.reshape(152 // step, step, 200 // step, step, 3).mean((1, 3)).astype(np.uint8)
        level_file(folder / f"{number}.dcm", small, 0.25 * step)
    level_file(folder / "label.dcm", np.zeros((40, 40, 3), np.uint8), 10.0, kind="LABEL")
    return pixels


def test_a_folder_of_levels_is_one_slide(tmp_path: Path) -> None:
    pixels = slide(tmp_path / "eve")
    folder = str(tmp_path / "eve")
    assert slide_kind(folder) == "dicom" and not is_volume(folder) and volumes_at(folder) is None
    with vitp.open_pixels(folder) as whole:
        assert whole.size == (200, 152) and whole.names == ("red", "green", "blue") and whole.is_picture
        assert whole.spacing == pytest.approx((0.00025, 0.00025))
        assert np.array_equal(whole.read(), pixels.transpose(2, 0, 1))
        # Across tiles, and at the end, which tiles don't divide.
        assert np.array_equal(whole.read((25, 30, 70, 100)), pixels[30:100, 25:70].transpose(2, 0, 1))
        assert np.array_equal(whole.read((180, 140, 200, 152)), pixels[140:152, 180:200].transpose(2, 0, 1))
    for mpp, step in ((0.5, 2), (1.0, 4)):
        with vitp.open_pixels(f"{folder}#mpp={mpp}&window=3,2,40,30") as part:
            small = pixels.reshape(152 // step, step, 200 // step, step, 3).mean((1, 3)).astype(np.uint8)
            assert np.array_equal(part.read(), small[2:30, 3:40].transpose(2, 0, 1))
    place = slide_place(f"{folder}#mpp=0.5&window=3,2,40,30")
    assert place is not None and place.corner == (6, 4) and place.mpp == pytest.approx((0.5, 0.5))


def test_a_single_file_and_tiles_that_are_not_stored(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 255, (64, 96, 3)).astype(np.uint8)
    path = level_file(tmp_path / "a.dcm", pixels, 0.5, sparse=((2, 1), (0, 0)))
    assert slide_kind(path) == "dicom" and not is_volume(path)
    with vitp.open_pixels(path) as one:
        valid_HW = one.valid()
        assert valid_HW[:32, :32].all() and valid_HW[32:, 64:].all() and valid_HW.sum() == 2 * 32 * 32
        assert np.array_equal(one.read((0, 0, 32, 32)), pixels[:32, :32].transpose(2, 0, 1))
        assert np.array_equal(one.read((64, 32, 96, 64)), pixels[32:, 64:].transpose(2, 0, 1))


def test_what_is_no_single_slide_is_refused_without_the_headers_words(tmp_path: Path) -> None:
    slide(tmp_path / "two")
    level_file(tmp_path / "two" / "x.dcm", np.zeros((32, 32, 3), np.uint8), 0.5, uid="1.2.10")
    with pytest.raises(DataError, match="holds files of 2 slides"):
        vitp.open_pixels(tmp_path / "two")
    level_file(tmp_path / "only" / "l.dcm", np.zeros((32, 32, 3), np.uint8), 0.5, kind="OVERVIEW")
    with pytest.raises(DataError, match="none of its resolutions"):
        vitp.open_pixels(tmp_path / "only")
    path = level_file(tmp_path / "few.dcm", np.zeros((64, 64, 3), np.uint8), 0.5)
    data = pydicom.dcmread(path)
    data.TotalPixelMatrixColumns = 96
    data.save_as(path)
    with pytest.raises(DataError, match="holds 4 tiles, fewer than its 96×64 px have") as caught:
        vitp.open_pixels(path)
    assert "Doe" not in str(caught.value) and "77-1" not in str(caught.value)


def test_outlines_label_dicom_slides_at_a_resolution(tmp_path: Path) -> None:
    pytest.importorskip("shapely")
    for number, name in enumerate(("ann", "bob", "cem")):
        slide(tmp_path / name, number)
        ring = [[8, 8], [72, 8], [72, 72], [8, 72], [8, 8]]
        feature = {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {"objectType": "annotation", "classification": {"name": "tumor"}},
        }
        (tmp_path / f"{name}.geojson").write_text(
            json.dumps({"type": "FeatureCollection", "features": [feature]})
        )
    found = read_labels("auto", tmp_path, mpp=0.5)
    assert len(found.items) == 3 and (found.items[0].width, found.items[0].height) == (100, 76)
    assert found.items[0].objects is not None
    assert found.items[0].objects[0].box == pytest.approx((4, 4, 36, 36))
