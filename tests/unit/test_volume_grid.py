"""Where voxels lie, and how slices are turned: against nibabel's own reorientation."""

import itertools

import nibabel
import numpy as np
import pytest

from vitp.core.errors import DataError
from vitp.io.volume_grid import VolumeGrid

SHAPE = (4, 5, 6)


def _affine(axes, signs, steps=(0.7, 0.8, 3.0)):
    matrix = np.eye(4)
    matrix[:3, :3] = 0
    for axis, (world, sign) in enumerate(zip(axes, signs, strict=True)):
        matrix[world, axis] = sign * steps[axis]
    matrix[:3, 3] = (11, -7, 5)
    return tuple(tuple(map(float, row)) for row in matrix)


ORIENTATIONS = [
    _affine(axes, signs)
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


@pytest.mark.parametrize("affine", ORIENTATIONS)
def test_slices_are_those_of_the_canonical_volume(affine):
    voxels = np.arange(np.prod(SHAPE), dtype=np.int32).reshape(SHAPE)
    grid = VolumeGrid(SHAPE, affine)
    canonical = np.asarray(
        nibabel.as_closest_canonical(nibabel.Nifti1Image(voxels, np.array(affine))).dataobj
    )
    axial = canonical.transpose(2, 1, 0)[:, ::-1, ::-1]
    np.testing.assert_array_equal(grid.as_slices(voxels, "axial"), axial)
    coronal = canonical.transpose(1, 2, 0)[:, ::-1, ::-1]
    np.testing.assert_array_equal(grid.as_slices(voxels, "coronal"), coronal)
    sagittal = canonical.transpose(0, 2, 1)[::-1, ::-1, ::-1]
    np.testing.assert_array_equal(grid.as_slices(voxels, "sagittal"), sagittal)
    for plane in ("axial", "coronal", "sagittal", "stored"):
        assert grid.slices_shape(plane) == grid.as_slices(voxels, plane).shape


@pytest.mark.parametrize("affine", ORIENTATIONS[::7])
@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal", "stored", None])
def test_what_is_written_into_a_slice_lies_in_its_voxels(affine, plane):
    grid = VolumeGrid(SHAPE, affine)
    voxels = np.random.default_rng(0).integers(0, 99, SHAPE)
    back = np.zeros_like(voxels)
    for number, seen_HW in enumerate(grid.as_slices(voxels, plane)):
        grid.as_slices(back, plane)[number] = seen_HW
    np.testing.assert_array_equal(back, voxels)


def test_the_plane_of_an_anisotropic_volume_is_across_its_widest_step():
    assert VolumeGrid(SHAPE, _affine((0, 1, 2), (1, 1, 1))).plane == "axial"
    assert VolumeGrid(SHAPE, _affine((0, 2, 1), (1, 1, 1))).plane == "coronal"
    assert VolumeGrid(SHAPE, _affine((1, 2, 0), (1, 1, 1))).plane == "sagittal"
    assert VolumeGrid(SHAPE, _affine((1, 2, 0), (1, 1, 1), (1, 1, 1))).plane == "axial"
    assert VolumeGrid(SHAPE).plane == "stored"


def test_spacing_follows_the_axes():
    grid = VolumeGrid(SHAPE, _affine((1, 2, 0), (1, -1, -1)))
    assert grid.spacing == pytest.approx((0.7, 0.8, 3.0))
    # World x runs along the third axis (3.0), y along the first (0.7), z along the second (0.8).
    assert grid.slice_spacing("axial") == pytest.approx((0.8, 0.7, 3.0))
    assert grid.slice_spacing("sagittal") == pytest.approx((3.0, 0.8, 0.7))


def test_an_oblique_volume_takes_each_axis_once():
    turned = 0.7
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(turned), -np.sin(turned)], [np.sin(turned), np.cos(turned)]]
    grid = VolumeGrid(SHAPE, tuple(map(tuple, matrix)))
    assert sorted(grid.slices_shape("axial")) == sorted(SHAPE)
    np.testing.assert_allclose(grid.to_world(np.array([[1, 0, 0]])), [[np.cos(0.7), np.sin(0.7), 0]])


def test_planes_need_an_affine():
    grid = VolumeGrid(SHAPE, None, (1.0, 1.0, 2.0))
    assert grid.slice_spacing() == (2.0, 1.0, 1.0)
    with pytest.raises(DataError, match="which slices are axial isn't known"):
        grid.slices_shape("axial")


def test_one_slice_is_itself_however_wide_its_pixels_are() -> None:
    """Scintigraphy has pixels that are wider than its slices are thick."""
    affine = ((-8.0, 0.0, 0.0, 0.0), (0.0, -8.0, 0.0, 0.0), (0.0, 0.0, 3.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    assert VolumeGrid((16, 12, 1), affine).plane == "axial"
    assert VolumeGrid((16, 12, 1), affine).slices_shape() == (1, 12, 16)
    assert VolumeGrid((16, 12, 2), affine).plane == "sagittal"
