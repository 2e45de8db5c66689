"""DICOM: pydicom's own files, series, frames, and what values mean."""

from pathlib import Path

import numpy as np
import pydicom
import pydicom.data
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

import vitp
from tests.volume_files import affine, dicom_image, save_dicom, voxels, write_series
from vitp.core.errors import DataError
from vitp.core.extras import need
from vitp.io import dicom_header
from vitp.io.images import image_size

PACKAGED = Path(pydicom.data.__file__).parent
IMAGE = voxels((6, 5, 1))[:, :, 0]
PLACED = {
    "ImagePositionPatient": [0, 0, 0],
    "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
    "PixelSpacing": [0.8, 0.7],
}


def _packaged():
    for path in sorted(PACKAGED.rglob("*")):
        if path.is_file() and path.suffix not in (
            ".py",
            ".pyc",
            ".json",
            ".md",
            ".txt",
            ".icc",
            ".dump",
            ".gz",
        ):
            yield path


@pytest.mark.filterwarnings("ignore")
def test_every_packaged_image_is_read_as_pydicom_reads_it_or_refused_in_one_line():
    """Frame by frame, in the file's own order."""
    equal, refused = 0, []
    for path in _packaged():
        try:
            wanted = pydicom.dcmread(path).pixel_array
        except Exception:  # no image, or one that pydicom can't read
            wanted = None
        try:
            volume = vitp.open_volume(path)
            got = np.stack([volume.read_slice(k, "stored") for k in range(volume.grid.shape[2])])
        except DataError as error:
            assert wanted is None, f"{path.name}: {error}"
            assert "\n" not in str(error)
            refused.append(str(error))
            continue
        assert wanted is not None, path.name
        if len(got) == 1 and wanted.ndim == 2 + (len(volume.bands) > 1):
            wanted = wanted[None]
        wanted = wanted[:, None] if wanted.ndim == 3 else np.moveaxis(wanted, 3, 1)
        np.testing.assert_array_equal(got, wanted, err_msg=path.name)
        assert got.dtype == wanted.dtype.newbyteorder("="), path.name
        assert image_size(f"{path}#slice=0&plane=stored") == wanted.shape[:-3:-1], path.name
        equal += 1
    assert equal == 100
    assert sum("without pixels" in line for line in refused) > 80
    extended = [line for line in refused if "JPEG Extended" in line]
    assert len(extended) == 2
    assert all("pylibjpeg-libjpeg" in line for line in extended)


def test_a_missing_plug_in_is_named(monkeypatch):
    path = next(PACKAGED.rglob("JPEG2000.dcm"))
    real = need("medical", "pydicom.pixels", "").get_decoder

    def bare(uid):
        decoder = real(uid)
        monkeypatch.setattr(decoder, "_available", {})
        monkeypatch.setattr(decoder, "_unavailable", {"pylibjpeg": ("pylibjpeg", "pylibjpeg-openjpeg>=2.0")})
        return decoder

    monkeypatch.setattr("pydicom.pixels.get_decoder", bare)
    with pytest.raises(
        DataError, match=r"JPEG 2000.*isn't installed \(.*openjpeg.*pip install 'vitp\[medical\]'"
    ):
        vitp.open_volume(path).read_slice(0, "stored")
    assert vitp.open_volume(path).grid.shape == (256, 1024, 1)  # sizes need none


@pytest.mark.parametrize("name", ["plain", "no suffix.", "dicom.png.bak"])
def test_content_tells_what_is_dicom(tmp_path, name):
    path = save_dicom(dicom_image(IMAGE), tmp_path / name)
    np.testing.assert_array_equal(vitp.open_pixels(path).read()[0], IMAGE)


def test_the_stored_value_is_read_and_the_quantity_is_hounsfield(tmp_path):
    path = save_dicom(
        dicom_image(IMAGE, RescaleSlope=2, RescaleIntercept=-1024, RescaleType="HU"), tmp_path / "a"
    )
    with vitp.open_pixels(path) as pixels:
        band = pixels.bands[0]
        assert (band.scale, band.offset, band.unit) == (2, -1024, "HU")
        np.testing.assert_array_equal(pixels.read()[0], IMAGE)
        quantity, valid = pixels.read_quantity((1, 2, 4, 5))
        np.testing.assert_array_equal(quantity[0], IMAGE[2:5, 1:4] * 2.0 - 1024)
        assert valid.all()


def test_each_file_of_a_series_has_its_own_scale(tmp_path):
    values_IJK = voxels((5, 6, 4), np.uint16)
    folder = write_series(tmp_path / "pt", values_IJK, affine())
    slopes = {}
    for path in folder.iterdir():
        data = pydicom.dcmread(path)
        place = round((float(data.ImagePositionPatient[2]) - 5) / 3)
        slopes[place] = 0.5 + place
        data.Modality, data.Units = "PT", "BQML"
        data.RescaleSlope, data.RescaleIntercept = slopes[place], 0
        data.save_as(path)
    wanted_IJK = values_IJK * np.array([slopes[k] for k in range(4)])
    volume = vitp.open_volume(folder)
    for k in range(4):
        assert volume.slice(k, "axial").bands[0].scale == slopes[k]
        assert volume.slice(k, "axial").bands[0].unit == "Bq/ml"
        np.testing.assert_allclose(volume.slice(k, "axial").read_quantity()[0][0], wanted_IJK[:, :, k].T)
    around = volume.slice(1, "axial", 1)
    assert [band.scale for band in around.bands] == [0.5, 1.5, 2.5]
    np.testing.assert_allclose(around.read_quantity()[0], wanted_IJK[:, :, :3].transpose(2, 1, 0))
    for plane in ("coronal", "sagittal"):
        seen = np.stack(
            [volume.slice(n, plane).read_quantity()[0][0] for n in range(volume.grid.slices_shape(plane)[0])]
        )
        np.testing.assert_allclose(seen, volume.grid.as_slices(wanted_IJK, plane), rtol=1e-6)


def test_several_series_of_a_folder_are_listed_and_one_is_chosen(tmp_path):
    for number, uid in ((3, "1.2.77.1"), (12, "1.2.77.2")):
        folder = write_series(
            tmp_path / str(number), voxels(seed=number), affine(), SeriesInstanceUID=uid, SeriesNumber=number
        )
        for path in folder.iterdir():
            path.rename(tmp_path / f"{number}-{path.name}")
    with pytest.raises(DataError, match=r"holds 2 series: 12 \(CT, 4 images\), 3 \(CT, 4 images\)") as caught:
        vitp.open_volume(tmp_path)
    assert "77." not in str(caught.value)  # no part of a UID, which tells whose images these are
    for chosen, number in (("3", 3), ("12", 12), ("77.1", 3), (".2", 12)):
        volume = vitp.open_volume(f"{tmp_path}#series={chosen}")
        np.testing.assert_array_equal(volume.read_slice(1, "stored")[0], voxels(seed=number)[:, :, 1].T)
    with pytest.raises(DataError, match="no series 9"):
        vitp.open_volume(f"{tmp_path}#series=9")


def _changed(folder, change):
    """Change some files of a series: `change` gets the number of the slice and the data set."""
    for path in folder.iterdir():
        data = pydicom.dcmread(path)
        place = round((float(data.ImagePositionPatient[2]) - 5) / 3)
        if change(place, data) == "remove":
            path.unlink()
        else:
            data.save_as(path)
    return vitp.open_volume(folder)


def _moved(place, data):
    if place == 3:
        data.ImagePositionPatient = [*data.ImagePositionPatient[:2], 5 + 3 * 3 + 0.4]


def _tilted(place, data):
    x, y, z = data.ImagePositionPatient
    data.ImagePositionPatient = [x, float(y) + 0.5 * place, z]


def _wider(place, data):
    if place == 7:
        data.Columns, data.Rows = data.Rows, data.Columns


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda place, _: "remove" if place in (2, 3) else None, "misses about 2 slices of 8 (after slice 1"),
        (_moved, "uneven steps, 2.6 to 3.4 mm"),
        (_tilted, "sheared by 9.5°"),
        (_wider, "2 sizes in one series; 1 that differ"),
    ],
)
def test_what_is_wrong_with_a_series_is_a_finding(tmp_path, change, words):
    folder = write_series(tmp_path / "ct", voxels((5, 6, 8)), affine())
    assert vitp.open_volume(folder).findings == ()
    volume = _changed(folder, change)
    assert len(volume.findings) == 1
    assert words in volume.findings[0]


@pytest.mark.parametrize(
    ("change", "off", "said"),
    [
        (
            lambda place, _: "remove" if place in (2, 3) else None,
            3.6,
            r"3\.6 mm off .*misses about 2\): complete",
        ),
        (_moved, 0.4, r"up to 0\.4 mm off an even grid: complete the series, or resample it"),
        (lambda place, _: "remove" if place in (0, 7) else None, 0, None),  # what is there is even
        (_tilted, 0, None),
    ],
)
def test_missing_or_uneven_slices_lie_off_the_even_grid(tmp_path, change, off, said):
    volume = _changed(write_series(tmp_path / "ct", voxels((5, 6, 8)), affine()), change)
    assert volume.off_grid == pytest.approx(off, abs=1e-6)
    # What headers round lies within a tenth of the step.
    assert volume.slice(1, "stored").read().shape == (1, 6, 5)
    if said is None:
        volume.check_even()
        return
    with pytest.raises(DataError, match=said):
        volume.check_even()


def test_slices_that_headers_round_are_even_and_joined_files_are_not_where_one_is_uneven(tmp_path):
    folder = write_series(tmp_path / "a", voxels((5, 6, 8)), affine())
    even = vitp.open_volume(write_series(tmp_path / "b", voxels((5, 6, 8)), affine()))

    def rounded(place, data):
        x, y, z = data.ImagePositionPatient
        data.ImagePositionPatient = [x, y, float(z) + 0.25 * (place == 4)]

    _changed(folder, rounded).check_even()
    joined = vitp.open_volume(f"{tmp_path}/{{a,b}}")
    assert (joined.off_grid, even.off_grid) == (pytest.approx(0.25), 0)
    joined.check_even()
    _changed(folder, _moved)
    with pytest.raises(DataError, match=r"0\.4 mm off"):
        vitp.open_volume(f"{tmp_path}/{{b,a}}").check_even()


def test_images_at_one_place_are_bands_or_a_finding(tmp_path):
    folder = write_series(tmp_path / "mr", voxels((5, 6, 4)), affine())
    for path in list(folder.iterdir()):
        data = pydicom.dcmread(path)
        data.SOPInstanceUID, data.TemporalPositionIdentifier = generate_uid(), 2
        data.PixelData = (np.frombuffer(data.PixelData, np.int16) + 1000).tobytes()
        save_dicom(data, path.with_name(f"later-{path.name}"))
    volume = vitp.open_volume(folder)
    assert [band.name for band in volume.bands] == ["1", "2"]
    assert "2 images at each place" in volume.notes[0]
    first, second = volume.read_slice(2, "stored")
    np.testing.assert_array_equal(first, voxels((5, 6, 4))[:, :, 2].T)
    np.testing.assert_array_equal(second, first + 1000)
    next(folder.glob("later-*")).unlink()
    volume = vitp.open_volume(folder)
    assert "not the same number at each" in volume.findings[0]
    copy = next(folder.glob("im*"))
    (folder / "copy.dcm").write_bytes(copy.read_bytes())
    assert any("twice" in line for line in vitp.open_volume(folder).findings)


def test_three_orientations_are_no_volume(tmp_path):
    for turn in ("LPS", "RAS", "PIL"):
        for path in write_series(tmp_path / turn, voxels((5, 6, 2)), affine(turn)).iterdir():
            path.rename(tmp_path / f"{turn}-{path.name}")
    with pytest.raises(DataError, match=r"images of 3 .*no volume"):
        vitp.open_volume(tmp_path)


def _enhanced(count=3):
    """Return a multi-frame object whose groups say where each frame lies and what its values mean."""
    stored = voxels((count, 6, 5))
    data = dicom_image(stored[0], NumberOfFrames=count, SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1")
    data.PixelData = stored.tobytes()
    shared, measures, turn = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.8, 0.7], 2
    turn.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [turn]
    data.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for place in range(count):
        own, where, value, window = Dataset(), Dataset(), Dataset(), Dataset()
        where.ImagePositionPatient = [1, 2, [20, 10, 15][place]]
        value.RescaleSlope, value.RescaleIntercept, value.RescaleType = place + 1, -5, "HU"
        window.WindowCenter, window.WindowWidth = 20 * (place + 1), 30
        own.PlanePositionSequence, own.PixelValueTransformationSequence = [where], [value]
        own.FrameVOILUTSequence = [window]
        groups.append(own)
    data.PerFrameFunctionalGroupsSequence = groups
    return data, stored


def test_frames_of_an_enhanced_object_lie_where_their_groups_say(tmp_path):
    data, stored = _enhanced()
    volume = vitp.open_volume(save_dicom(data, tmp_path / "a.dcm"))
    assert volume.grid.spacing == pytest.approx((0.7, 0.8, 5))
    np.testing.assert_allclose(volume.grid.to_world(np.array([[0, 0, 0]])), [[-1, -2, 10]])
    for number, frame in enumerate((1, 2, 0)):
        with volume.slice(number, "axial") as pixels:
            np.testing.assert_array_equal(pixels.read()[0], stored[frame])
            np.testing.assert_array_equal(pixels.read_quantity()[0][0], stored[frame] * (frame + 1.0) - 5)
            shown = pixels.shown(np.array([[20 * (frame + 1.0) - 0.5]]), "1")
            assert shown[0, 0] == pytest.approx(127.5)


def test_padding_holds_nothing(tmp_path):
    image = IMAGE.copy()
    image[0] = -2000
    path = save_dicom(
        dicom_image(image, PixelPaddingValue=-2000, RescaleSlope=1, RescaleIntercept=0), tmp_path / "a"
    )
    with vitp.open_pixels(path) as pixels:
        assert pixels.nodata == -2000
        np.testing.assert_array_equal(pixels.valid(), image != -2000)
        low, high = pixels.percentiles("1", 0, 100)
        assert (low, high) == (image[image > 0].min(), image.max())
    path = save_dicom(dicom_image(IMAGE, PixelPaddingValue=3, PixelPaddingRangeLimit=7), tmp_path / "b")
    with vitp.open_pixels(path) as pixels:
        np.testing.assert_array_equal(pixels.valid(), (IMAGE < 3) | (IMAGE > 7))


def test_spacing_and_acquisition_are_codes_alone(tmp_path):
    elements = {
        "BodyPartExamined": "CHEST",
        "ViewPosition": "PA",
        "Laterality": "L",
        "BurnedInAnnotation": "YES",
    }
    path = save_dicom(
        dicom_image(IMAGE, Modality="DX", ImagerPixelSpacing=[0.2, 0.1], **elements), tmp_path / "a"
    )
    with vitp.open_pixels(path) as pixels:
        assert pixels.spacing == (0.1, 0.2)
        taken = pixels.acquisition
    assert (taken.modality, taken.body_part, taken.view, taken.laterality, taken.burnt_in) == (
        "DX", "chest", "PA", "left", True,
    )  # fmt: skip
    secret = dict.fromkeys(("BodyPartExamined", "ViewPosition", "Modality", "RescaleType"), "Doe^Jane")
    path = save_dicom(
        dicom_image(IMAGE, PatientName="Doe^Jane", ContrastBolusAgent="Doe", **secret), tmp_path / "b"
    )
    with vitp.open_pixels(path) as pixels:
        said = f"{pixels.acquisition} {pixels.bands} {pixels.notes}"
    assert "Doe" not in said
    assert pixels.acquisition.contrast


HOSTILE = {
    "rows": ({"Rows": 60000, "Columns": 60000}, "says that an image has"),
    "frames": ({"NumberOfFrames": 2_000_000_000}, "says that it holds"),
    "bits": ({"BitsAllocated": 24}, "24 bits"),
    "samples": ({"SamplesPerPixel": 9}, "9 samples"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_header_claims_is_not_believed(tmp_path, name):
    elements, words = HOSTILE[name]
    path = save_dicom(dicom_image(IMAGE, **elements), tmp_path / "a.dcm")
    with pytest.raises(DataError, match=words):
        vitp.open_pixels(path)


def test_damaged_places_are_no_places(tmp_path):
    for number, turn in enumerate(([0] * 6, [1, 0, 0, 1, 0, 0])):
        path = save_dicom(
            dicom_image(IMAGE, **{**PLACED, "ImageOrientationPatient": turn}), tmp_path / f"{number}"
        )
        assert vitp.open_volume(path).grid.affine is None
    path = save_dicom(dicom_image(IMAGE, **{**PLACED, "PixelSpacing": [0, 0]}), tmp_path / "c")
    assert vitp.open_volume(path).grid.spacing is None
    data = path.read_bytes()
    path.write_bytes(data[:-7])
    with pytest.raises(DataError, match="damaged, or cut off"):
        vitp.open_pixels(path).read()
    path.write_bytes(data[:200])
    with pytest.raises(DataError, match="without pixels"):
        vitp.open_pixels(path)


def test_a_deflated_file_is_inflated_within_bounds(tmp_path, monkeypatch):
    path = next(PACKAGED.rglob("image_dfl.dcm"))
    monkeypatch.setattr(dicom_header, "LARGEST_INFLATED_BYTES", 1000)
    copy = tmp_path / "a.dcm"
    copy.write_bytes(path.read_bytes())
    with pytest.raises(DataError, match="more than 1,000 bytes once it is inflated"):
        vitp.open_pixels(copy)


def test_images_of_one_uid_at_several_places_are_refused(tmp_path):
    folder = write_series(tmp_path / "ct", voxels((5, 6, 8)), affine())
    copy = pydicom.dcmread(next(folder.iterdir()))
    copy.ImagePositionPatient[2] += 0.004  # written anew, with fewer digits
    copy.save_as(folder / "copy.dcm")
    volume = vitp.open_volume(folder)
    assert volume.grid.shape[2] == 8 and any("1 images twice" in line for line in volume.findings)
    other = copy.pixel_array.copy()
    other[2, 3] += 1
    copy.PixelData = other.tobytes()
    copy.save_as(folder / "copy.dcm")
    with pytest.raises(DataError, match=r"as \S+\.dcm, but other pixels: one of them is no copy") as caught:
        vitp.open_volume(folder)
    assert {"copy.dcm"} < {Path(caught.value.where).name, caught.value.what.split()[5].rstrip(",")}
    (folder / "copy.dcm").unlink()
    with pytest.raises(DataError, match="same SOPInstanceUID as another image"):
        _changed(folder, lambda _, data: setattr(data, "SOPInstanceUID", "1.2.3"))


def test_a_slope_of_zero_is_a_finding(tmp_path):
    folder = write_series(tmp_path / "ct", voxels((5, 6, 8)), affine())
    volume = _changed(folder, lambda place, data: setattr(data, "RescaleSlope", 0 if place == 2 else 1))
    assert volume.findings == ("has a rescale slope of 0 in 1 images, which is taken for 1",)
