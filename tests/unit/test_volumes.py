"""Volumes: what is read of them is what nibabel, SimpleITK and pydicom read, in every orientation."""

import nibabel
import numpy as np
import pytest
import SimpleITK

import vitp
from tests.volume_files import ORIENTATIONS, affine, voxels, write_series
from vitp.core.errors import DataError

SUFFIXES = (".nii", ".nii.gz", ".mgz", ".nrrd", ".mha", "series")


def _write(folder, suffix, values_IJK, matrix):
    path = folder / f"volume{suffix}"
    if suffix == "series":
        return write_series(folder / "series", values_IJK, matrix)
    if suffix == ".mgz":
        nibabel.save(nibabel.MGHImage(values_IJK, matrix), path)
    elif suffix.startswith(".nii"):
        image = nibabel.Nifti1Image(values_IJK, matrix)
        image.header.set_xyzt_units("mm")
        nibabel.save(image, path)
    else:
        image = SimpleITK.GetImageFromArray(values_IJK.T)
        lps = np.diag([-1, -1, 1, 1]) @ matrix
        steps = np.linalg.norm(lps[:3, :3], axis=0)
        image.SetSpacing(steps.tolist())
        image.SetOrigin(lps[:3, 3].tolist())
        image.SetDirection((lps[:3, :3] / steps).ravel().tolist())
        SimpleITK.WriteImage(image, str(path))
    return path


def _read_back(volume, plane):
    back = np.zeros((*volume.grid.shape, len(volume.bands)), volume.dtype)
    for number, seen_HWC in enumerate(volume.grid.as_slices(back, plane)):
        seen_HWC[:] = np.moveaxis(volume.read_slice(number, plane), 0, 2)
    return back


@pytest.mark.parametrize("turn", ORIENTATIONS)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_volume_is_read_voxel_for_voxel_in_every_plane(tmp_path, suffix, turn):
    values_IJK, matrix = voxels(), affine(turn)
    if suffix == "series":  # its images count along the normal of their plane
        matrix[:3, 2] = np.cross(matrix[:3, 0], matrix[:3, 1]) / (0.7 * 0.8) * 3.0
    volume = vitp.open_volume(_write(tmp_path, suffix, values_IJK, matrix))
    np.testing.assert_allclose(np.array(volume.grid.affine), matrix, atol=1e-5)
    assert volume.findings == ()
    for plane in ("axial", "coronal", "sagittal", "stored", None):
        np.testing.assert_array_equal(_read_back(volume, plane)[..., 0], values_IJK)


def test_the_address_of_a_slice(tmp_path):
    values_IJK, matrix = voxels(), affine("LPS")
    path = _write(tmp_path, ".nii.gz", values_IJK, matrix)
    with vitp.open_pixels(f"{path}#slice=2&plane=axial&around=1") as pixels:
        assert pixels.names == ("1@-1", "1", "1@+1")
        assert pixels.size == (5, 6)
        assert pixels.spacing == pytest.approx((0.7, 0.8))
        np.testing.assert_array_equal(pixels.read(), values_IJK.transpose(2, 1, 0)[1:4])
    with vitp.open_pixels(f"{path}#slice=0&window=1,2,4,5&around=1&bands=1@-1,1@%2B1") as pixels:
        np.testing.assert_array_equal(pixels.read(), values_IJK[1:4, 2:5, :2].transpose(2, 1, 0))
    with pytest.raises(DataError, match="volume of 4 axial slices.*#slice=0 … #slice=3"):
        vitp.open_pixels(path)
    with pytest.raises(DataError, match="no slice 4"):
        vitp.open_pixels(f"{path}#slice=4")
