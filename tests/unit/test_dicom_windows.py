"""DICOM: the windows and lookup tables of a file's own."""

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import apply_voi_lut, apply_windowing

import vitp
from tests.volume_files import dicom_image, save_dicom, voxels
from vitp.io.images import load_image, load_planes
from vitp.records.channels import Channel, Channels

OWN = Channels(channels=(Channel(band="1", transform="voi"),))
IMAGE = voxels((6, 5, 1))[:, :, 0]


def _seen(path):
    return load_planes(path, channels=OWN)[0]


WINDOWS = [
    {"WindowCenter": 12, "WindowWidth": 9},
    {"WindowCenter": 12, "WindowWidth": 1},
    {"WindowCenter": [12, 400], "WindowWidth": [9, 50]},
    {"WindowCenter": 12, "WindowWidth": 9, "VOILUTFunction": "LINEAR_EXACT"},
    {"WindowCenter": 12, "WindowWidth": 9, "VOILUTFunction": "SIGMOID"},
    {"WindowCenter": -1000, "WindowWidth": 30, "RescaleSlope": 2, "RescaleIntercept": -1024},
]


@pytest.mark.parametrize("elements", WINDOWS)
@pytest.mark.parametrize("kind", ["MONOCHROME2", "MONOCHROME1"])
def test_the_files_own_window(tmp_path, elements, kind):
    """Against pydicom's, whose output fills the range of the stored bits."""
    data = dicom_image(IMAGE.astype(np.uint16), PhotometricInterpretation=kind, **elements)
    path = save_dicom(data, tmp_path / "a.dcm")
    quantity = IMAGE * float(elements.get("RescaleSlope", 1)) + elements.get("RescaleIntercept", 0)
    low, high = 0, 2**16 - 1
    if "RescaleSlope" in elements:
        low, high = low * 2 - 1024, high * 2 - 1024
    wanted = (apply_windowing(quantity, data) - low) * 255 / (high - low)
    wanted = wanted if kind == "MONOCHROME2" else 255 - wanted
    np.testing.assert_allclose(_seen(path), wanted, atol=0.501)
    with vitp.open_pixels(path) as pixels:
        assert pixels.says_shown
    np.testing.assert_array_equal(np.asarray(load_image(path))[..., 0], _seen(path))


def test_the_files_own_lookup_tables(tmp_path):
    table = Dataset()
    table.LUTDescriptor = [20, 3, 12]
    table.LUTData = np.minimum(4095, 200 * np.arange(20)).astype(np.uint16).tobytes()
    data = dicom_image(IMAGE.astype(np.uint16), VOILUTSequence=[table])
    path = save_dicom(data, tmp_path / "voi.dcm")
    np.testing.assert_allclose(
        _seen(path), apply_voi_lut(IMAGE.astype(np.uint16), pydicom.dcmread(path)) * (255 / 4095), atol=0.501
    )
    path = save_dicom(
        dicom_image(IMAGE.astype(np.uint16), ModalityLUTSequence=[table]), tmp_path / "modality.dcm"
    )
    with vitp.open_pixels(path) as pixels:
        np.testing.assert_array_equal(pixels.read()[0], IMAGE)
        np.testing.assert_array_equal(
            pixels.read_quantity()[0][0], np.minimum(4095, 200 * (IMAGE.clip(3, 22) - 3))
        )


def test_without_a_window_the_whole_range_is_shown_and_eight_bits_stand(tmp_path):
    path = save_dicom(
        dicom_image(IMAGE.astype(np.uint16), PhotometricInterpretation="MONOCHROME1"), tmp_path / "a.dcm"
    )
    np.testing.assert_array_equal(_seen(path), np.rint(255 - IMAGE / 29 * 255))
    path = save_dicom(dicom_image(IMAGE.astype(np.uint8)), tmp_path / "b.dcm")
    np.testing.assert_array_equal(_seen(path), IMAGE)
    with vitp.open_pixels(path) as pixels:
        assert pixels.is_picture
