"""Volumes: what is read of them is what nibabel, SimpleITK and pydicom read, in every orientation."""

import gzip
import multiprocessing
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from PIL import Image

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
    with pytest.raises(DataError, match=r"volume of 4 axial slices.*#slice=0 … #slice=3"):
        vitp.open_pixels(path)
    with pytest.raises(DataError, match="no slice 4"):
        vitp.open_pixels(f"{path}#slice=4")


@pytest.mark.filterwarnings("ignore")
def test_packaged_volumes_are_read_as_nibabel_reads_them_or_refused_in_one_line():
    folder = Path(nibabel.__file__).parent / "tests" / "data"
    equal = 0
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in (".py", ".m", ".rst", ".tck", ".trk", ".dcm", ""):
            continue
        try:
            volume = vitp.open_volume(path)
        except DataError as error:
            assert "\n" not in str(error)
            assert path.name not in MUST_BE_READ
            continue
        image = nibabel.load(path)
        wanted = np.asanyarray(image.dataobj)
        got = np.stack([volume.slice(k, "stored").read_quantity()[0] for k in range(volume.grid.shape[2])])
        wanted = wanted if wanted.ndim > 3 else wanted[..., None]
        np.testing.assert_allclose(got.transpose(3, 2, 0, 1), wanted, rtol=1e-6, err_msg=path.name)
        np.testing.assert_allclose(np.array(volume.grid.affine), image.affine, atol=1e-6, err_msg=path.name)
        equal += 1
    assert equal >= len(MUST_BE_READ)


MUST_BE_READ = {
    *("anatomical.nii", "example4d.nii.gz", "example_nifti2.nii.gz", "functional.nii", "standard.nii.gz"),
    *("reoriented_anat_moved.nii", "resampled_anat_moved.nii", "test.mgz", "tiny.mnc", "scaled+tlrc.HEAD"),
    *("scaled+tlrc.BRIK", "example4d+orig.BRIK.gz", "phantom_varscale.PAR", "phantom_varscale.REC"),
}


def _nifti(path, values_IJK=None, matrix=None, change=None):
    image = nibabel.Nifti1Image(
        voxels() if values_IJK is None else values_IJK, affine() if matrix is None else matrix
    )
    image.header.set_xyzt_units("mm")
    if change is not None:
        change(image)
    nibabel.save(image, path)
    return path


def _patched(path, *patches):
    data = bytearray(path.read_bytes())
    for offset, form, *numbers in patches:
        data[offset : offset + struct.calcsize(form)] = struct.pack(form, *numbers)
    path.write_bytes(bytes(data))
    return path


QFORM_OFF = (252, "<h", 0)
SFORM = 280
DAMAGED = {
    "a size that no file has": ([(42, "<3h", 32767, 32767, 32767)], "says that it holds 70,362"),
    "a size below 0": ([(42, "<3h", -5, 3, 4)], "its size is"),
    "no size": ([(42, "<3h", 0, 3, 4)], "its size is"),
    "too many axes": ([(40, "<h", 9)], "can't be read"),
    "an unknown type": ([(70, "<h", 9999)], "can't be read"),
    "an affine that isn't finite": ([QFORM_OFF, (SFORM, "<2f", np.nan, np.inf)], "places no voxels"),
    "an affine without volume": ([QFORM_OFF, (SFORM, "<12f", *[0] * 12)], "places no voxels"),
    "voxels behind the end": ([(108, "<f", 1e9)], "says that it holds"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_header_is_one_line(tmp_path, name):
    patches, words = DAMAGED[name]
    with pytest.raises(DataError, match=words) as caught:
        vitp.open_volume(_patched(_nifti(tmp_path / "a.nii"), *patches))
    assert "\n" not in str(caught.value)


def test_one_bad_transform_of_two_is_said_and_the_other_used(tmp_path):
    volume = vitp.open_volume(_patched(_nifti(tmp_path / "a.nii", change=_both), (SFORM, "<12f", *[0] * 12)))
    assert volume.findings == ("has a sform that places no voxels; the qform is used",)
    np.testing.assert_allclose(np.array(volume.grid.affine), affine(), atol=1e-5)


def _both(image):
    image.set_qform(affine(), 1)
    image.set_sform(affine(), 1)


def test_findings_of_a_nifti_header(tmp_path):
    def apart(image):
        image.set_qform(affine("LPS", (1, 1, 1)), 1)
        image.set_sform(affine(), 1)

    assert "lie up to" in vitp.open_volume(_nifti(tmp_path / "a.nii", change=apart)).findings[0]

    def turned(image):  # the axes in another order: on a cube the first and the last voxel lie where they lay
        image.set_sform(np.eye(4), 1)
        image.set_qform(np.eye(4)[[1, 2, 0, 3]], 1)

    cube = _nifti(tmp_path / "cube.nii", np.zeros((5, 5, 5), np.int16), np.eye(4), change=turned)
    assert "lie up to 5.66 units apart" in vitp.open_volume(cube).findings[0]  # 4·√2 at a corner
    for unit, factor, words in (
        ("meter", 1000, "in metres"),
        ("micron", 0.001, "in micrometres"),
        ("unknown", 1, "in which unit"),
    ):
        path = _nifti(
            tmp_path / f"{unit}.nii", change=lambda image, unit=unit: image.header.set_xyzt_units(unit)
        )
        volume = vitp.open_volume(path)
        assert words in volume.findings[0]
        assert volume.grid.spacing == pytest.approx((0.7 * factor, 0.8 * factor, 3 * factor))


def test_without_a_transform_only_stored_slices_are_known(tmp_path):
    def none(image):
        image.set_sform(None, 0)
        image.set_qform(None, 0)

    volume = vitp.open_volume(_nifti(tmp_path / "a.nii", change=none))
    assert volume.grid.affine is None
    assert volume.grid.spacing == pytest.approx((0.7, 0.8, 3))
    np.testing.assert_array_equal(volume.read_slice(2)[0], voxels()[:, :, 2].T)
    with pytest.raises(DataError, match="plane=stored"):
        vitp.open_pixels(f"{tmp_path}/a.nii#slice=1&plane=axial")


def test_cut_and_damaged_voxels_are_one_line(tmp_path):
    path = _nifti(tmp_path / "a.nii")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="cut off"):
        vitp.open_volume(path)
    path = _nifti(
        tmp_path / "b.nii.gz", np.random.default_rng(0).integers(0, 9999, (40, 40, 9)).astype(np.int16)
    )
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="damaged, or cut off"):
        vitp.open_volume(path).read_slice(8, "stored")
    bomb = _patched(_nifti(tmp_path / "c.nii"), (42, "<3h", 2000, 2000, 2000))
    (tmp_path / "c.nii.gz").write_bytes(gzip.compress(bomb.read_bytes()))
    with pytest.raises(DataError, match="says that it holds 16,000,000,352 bytes"):
        vitp.open_volume(tmp_path / "c.nii.gz")
    path = _nifti(tmp_path / "d.nii", voxels().astype(np.complex64))
    with pytest.raises(DataError, match="complex64"):
        vitp.open_volume(path)


HEADERS = {
    "a.nhdr": (b"NRRD0004\ntype: short\ndimension: 3\nsizes: 9 9 9\nencoding: raw\nendian: little\ndata file: no.raw\n\n", "isn't beside"),
    "b.nrrd": (b"NRRD0004\ntype: short\ndimension: 3\nsizes: 9000 9000 900\nencoding: gzip\nendian: little\n\n1", "says that it holds"),
    "c.mhd": (b"ObjectType = Image\nNDims = 3\nDimSize = 9 9 9\nElementType = MET_SHORT\nElementDataFile = no.raw\n", "isn't beside"),
    "d.mha": (b"ObjectType = Image\nNDims = 3\nDimSize = 9 9 9\nElementSpacing = 0 1 1\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n" + bytes(729), "places no voxels"),
    "e.mha": (b"ObjectType = Image\nNDims = 3\nDimSize = 9000 9000 900\nElementType = MET_SHORT\nElementDataFile = LOCAL\n", "says that it holds"),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
def test_damaged_nrrd_and_metaimage_are_one_line(tmp_path, name):
    content, words = HEADERS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        vitp.open_volume(tmp_path / name)


@pytest.mark.parametrize("suffix", [".nhdr", ".mhd"])
def test_headers_with_voxels_in_a_file_beside_them(tmp_path, suffix):
    path = _write(tmp_path, suffix, voxels(), affine("PIL"))
    volume = vitp.open_volume(path)
    np.testing.assert_array_equal(_read_back(volume, "coronal")[..., 0], voxels())


def test_what_is_no_volume(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe.nii")
    (tmp_path / "text.nii.gz").write_bytes(gzip.compress(b"hello"))
    for name, words in (
        ("loop", "missing"),
        ("pipe.nii", "no volume"),
        ("text.nii.gz", "no volume"),
        ("", "no DICOM"),
    ):
        with pytest.raises(DataError, match=words):
            vitp.open_volume(tmp_path / name)
    with pytest.raises(DataError, match="isn't a file of its own here"):
        vitp.open_volume("https://example.com/a.nii.gz")


@pytest.mark.parametrize("part", ["slice=0", "plane=axial", "around=1", "series=2"])
def test_of_a_picture_no_slice_is_chosen_and_of_a_volume_no_page(tmp_path, part):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="is no volume, of which no"):
        vitp.open_pixels(f"{tmp_path}/a.png#{part}")
    path = _nifti(tmp_path / "a.nii")
    with pytest.raises(DataError, match="is a volume, of which no page"):
        vitp.open_pixels(f"{path}#slice=1&page=1")


def test_further_axes_and_colours_are_bands(tmp_path):
    values = voxels((4, 5, 3 * 2)).reshape(4, 5, 3, 2)
    volume = vitp.open_volume(_nifti(tmp_path / "a.nii.gz", values))
    assert [band.name for band in volume.bands] == ["1", "2"]
    for plane in ("axial", "sagittal", "stored"):
        np.testing.assert_array_equal(_read_back(volume, plane), values)
    colours = np.zeros((4, 5, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    colours["G"][1, 2, 0] = 7
    volume = vitp.open_volume(_nifti(tmp_path / "b.nii", colours))
    assert volume.is_picture
    assert volume.read_slice(0, "stored")[:, 2, 1].tolist() == [0, 7, 0]


def test_braces_join_files_on_one_grid(tmp_path):
    _nifti(tmp_path / "c_flair.nii")
    _nifti(tmp_path / "c_t1.nii.gz", voxels(seed=1))
    with vitp.open_pixels(f"{tmp_path}/c_{{flair.nii,t1.nii.gz}}#slice=1&around=1") as pixels:
        assert pixels.names[:3] == ("flair.nii@-1", "t1.nii.gz@-1", "flair.nii")
        np.testing.assert_array_equal(pixels.read()[3], voxels(seed=1)[:, :, 1].T)
    _nifti(tmp_path / "c_t2.nii", matrix=affine("RAS"))
    with pytest.raises(DataError, match="another grid"):
        vitp.open_volume(f"{tmp_path}/c_{{flair,t2}}.nii")
    with pytest.raises(DataError, match="twice"):
        vitp.open_volume(f"{tmp_path}/c_{{t2,t2}}.nii")


def test_a_changed_file_is_opened_again(tmp_path):
    path = _nifti(tmp_path / "a.nii")
    assert vitp.open_volume(path) is vitp.open_volume(path)
    _nifti(path, voxels(seed=5))
    os.utime(path, ns=(1, 1))
    np.testing.assert_array_equal(
        vitp.open_volume(path).read_slice(0, "stored")[0], voxels(seed=5)[:, :, 0].T
    )


def _sum(address):
    with vitp.open_pixels(address) as pixels:
        return int(pixels.read().astype(np.int64).sum())


@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_forked_processes_and_threads_read_the_same(tmp_path):
    values_IJK = np.random.default_rng(0).integers(0, 9999, (40, 40, 30)).astype(np.int16)
    path = _nifti(tmp_path / "a.nii.gz", values_IJK)
    addresses = [f"{path}#slice={k}&plane={plane}" for k in range(30) for plane in ("axial", "sagittal")]
    wanted = [
        int(values_IJK[:, :, k].sum() if n == 0 else values_IJK[k].sum()) for k in range(30) for n in range(2)
    ]
    assert _sum(addresses[0]) == wanted[0]  # opened before the fork
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.map(_sum, addresses)
    assert found == wanted
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(_sum, addresses)) == wanted
