"""Generated volumes: what they hold, and that their files say the same to nibabel, SimpleITK and pydicom."""

from pathlib import Path

import numpy as np
import pytest

from vitp.core.errors import ConfigError
from vitp.scenes.volume_files import write_dicom_series, write_nifti, write_nnunet
from vitp.scenes.volumes import TRUNK_CLASSES, TrunkVolume, make_volume

ORIENTATIONS = ("RAS", "LPS", "ASL", "IPR")


def world(volume: TrunkVolume, name: str) -> np.ndarray:
    """Return (N, 3) millimetres in RAS+ of the voxels of a class."""
    voxels_N3 = np.argwhere(volume.labels_IJK == TRUNK_CLASSES.index(name) + 1)
    return voxels_N3 @ volume.affine_44[:3, :3].T + volume.affine_44[:3, 3]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_organs_lie_where_they_do_in_a_patient(orientation: str) -> None:
    volume = make_volume(3, orientation=orientation, lesions=2)
    middle = {name: world(volume, name).mean(0) for name in TRUNK_CLASSES}
    assert middle["liver"][0] > middle["spleen"][0], "RAS+: x grows to the patient's right"
    assert middle["right kidney"][0] > middle["bone"][0] > middle["left kidney"][0]
    assert middle["bone"][1] < middle["liver"][1], "y grows to the front"
    assert middle["lung"][2] > middle["liver"][2] > middle["left kidney"][2], "z grows upwards"


def test_a_volume_is_the_same_in_every_orientation() -> None:
    nibabel = pytest.importorskip("nibabel")
    plain = make_volume(5, orientation="RAS", tilt=10)
    for orientation in ORIENTATIONS:
        turned = make_volume(5, orientation=orientation, tilt=10)
        assert nibabel.aff2axcodes(turned.affine_44) == tuple(orientation)
        back = nibabel.as_closest_canonical(nibabel.Nifti1Image(turned.voxels_IJK, turned.affine_44))
        np.testing.assert_array_equal(np.asarray(back.dataobj), plain.voxels_IJK)
        np.testing.assert_allclose(back.affine, plain.affine_44, atol=1e-9)


def test_patients_differ_and_lesions_grow() -> None:
    first, again, other = make_volume(1), make_volume(1), make_volume(2)
    np.testing.assert_array_equal(first.voxels_IJK, again.voxels_IJK)
    assert first.spacing != other.spacing
    prior, current = (make_volume(1, lesions=2, study=study) for study in (0, 1))
    assert 0 < prior.millilitres("lesion") < current.millilitres("lesion")
    assert len(np.unique(prior.objects_IJK)) == 3
    assert not (make_volume(1, lesions=0).labels_IJK == 7).any()


def test_voxels_are_hounsfield_units() -> None:
    volume = make_volume(4)
    assert volume.voxels_IJK[volume.labels_IJK == 1].mean() == pytest.approx(-820, abs=3)
    assert volume.voxels_IJK[volume.labels_IJK == 2].mean() == pytest.approx(105, abs=3)
    assert make_volume(4, modality="MR").voxels_IJK.min() >= 0


def test_impossible_requests_name_the_way_out() -> None:
    with pytest.raises(ConfigError, match="such as LPS"):
        make_volume(0, orientation="RRS")
    with pytest.raises(ConfigError, match="CT or MR"):
        make_volume(0, modality="US")


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_series_and_the_nifti_are_one_volume(tmp_path: Path, orientation: str) -> None:
    """SimpleITK sorts the series by position itself, and nibabel reads the other file."""
    sitk, nibabel = pytest.importorskip("SimpleITK"), pytest.importorskip("nibabel")
    volume = make_volume(6, size=(20, 18, 7), orientation=orientation)
    files = write_dicom_series(volume, tmp_path / "series", tags={"PatientName": "Doe^Jane"})
    assert sorted(files) != files
    series = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "series")))
    write_nifti(volume, tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")
    image = nibabel.load(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj), volume.voxels_IJK)
    np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "b.nii.gz").dataobj), volume.labels_IJK)
    np.testing.assert_allclose(image.affine, volume.affine_44, atol=1e-4)
    for voxel in ((0, 0, 0), (3, 5, 2), tuple(n - 1 for n in volume.voxels_IJK.shape)):
        there = volume.affine_44 @ np.array([*voxel, 1.0])
        at = series.TransformPhysicalPointToIndex([-there[0], -there[1], there[2]])
        assert series[at] == volume.voxels_IJK[voxel]


def test_an_nnunet_folder_names_its_cases_and_labels(tmp_path: Path) -> None:
    pytest.importorskip("nibabel")
    cases = write_nnunet(tmp_path, 4, twice=1, size=(16, 16, 6))
    assert list(cases) == ["patient001_1", "patient001_2", "patient002_1", "patient003_1"]
    assert len({volume.voxels_IJK.shape for volume in cases.values()}) == 3
    assert {path.name for path in (tmp_path / "imagesTr").iterdir()} == {
        f"{name}_0000.nii.gz" for name in cases
    }
    assert {path.name for path in (tmp_path / "labelsTr").iterdir()} == {f"{name}.nii.gz" for name in cases}
