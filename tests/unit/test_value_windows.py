"""What is seen of medical images: windows by name, defaults of modalities, and the same planes everywhere."""

import nibabel
import numpy as np
import pytest

import vitp
from tests.volume_files import affine, dicom_image, save_dicom, voxels, write_series
from vitp.core.errors import ConfigError, DataError
from vitp.data.augment import AugmentSettings
from vitp.data.compile import compile_labels
from vitp.data.formats.channels import declare_channels
from vitp.data.formats.value_windows import WINDOWS
from vitp.data.formats.vitp_labels import read_compiled
from vitp.data.seen import SeenBands
from vitp.data.shards import write_shards
from vitp.io.images import load_planes
from vitp.io.open_pixels import open_seen
from vitp.io.part_files import part_bytes
from vitp.io.parts import file_stamp
from vitp.records.channels import Channel, Channels
from vitp.records.instructions import InstructionRecord, Turn
from vitp.records.labels import LabelledImage, LabelledSet
from vitp.tasks.ground import RasterGround

HU = voxels((5, 6, 4), np.int16) * 20 - 1000


def _nifti(path, values_IJK=HU, scale=None):
    image = nibabel.Nifti1Image(values_IJK, affine())
    image.header.set_xyzt_units("mm")
    if scale is not None:
        image.header.set_slope_inter(*scale)
    nibabel.save(image, path)
    return path


def _set(*addresses, modality=None, split="train"):
    metadata = None if modality is None else {"modality": modality}
    items = []
    for number, address in enumerate(addresses):
        with vitp.open_pixels(address) as pixels:
            width, height = pixels.size
        items.append(
            LabelledImage(
                id=str(number), image=str(address), width=width, height=height, split=split, metadata=metadata
            )
        )
    return LabelledSet(name="set", items=items)


def _ct(folder, values_IJK=HU + 1024, **elements):
    return write_series(
        folder, values_IJK.astype(np.int16), affine(), RescaleSlope=1, RescaleIntercept=-1024, **elements
    )


def _between(values, low, high):
    return (values.astype(np.float64) - low).clip(0, high - low) * 255 / (high - low)


def _check_seen(seen, wanted):
    """Values in proportion, rounded: those in the middle of two either way."""
    np.testing.assert_allclose(seen, wanted, atol=0.501)


def test_ct_is_seen_through_a_window_of_soft_tissue_and_it_is_said(tmp_path):
    folder = _ct(tmp_path / "ct")
    found = declare_channels(_set(f"{folder}#slice=1"), tmp_path, {})
    assert found.channels == Channels(channels=(Channel(band="1", low=-160, high=240),) * 3)
    assert "soft_tissue (-160 to 240 HU) (as CT is seen" in found.understood[-1]
    assert "-o window=" in found.understood[-1]
    _check_seen(
        load_planes(f"{folder}#slice=1", channels=found.channels), [_between(HU[:, :, 1].T, -160, 240)] * 3
    )


def test_hounsfield_units_are_seen_alike_whatever_stores_them(tmp_path):
    """To the last bit: the same values as they stand, or with an offset, of another type."""
    channels = Channels(
        channels=tuple(Channel(band="1", low=low, high=low + 150) for low in (-1350, -160.5, 31))
    )
    path, folder = _nifti(tmp_path / "a.nii"), _ct(tmp_path / "ct")
    seen = [load_planes(f"{one}#slice=2&plane=stored", channels=channels) for one in (path, folder)]
    np.testing.assert_array_equal(*seen)


def test_three_windows_are_three_channels_and_own_ones_are_level_and_width(tmp_path):
    folder = _ct(tmp_path / "ct")
    found = declare_channels(_set(f"{folder}#slice=0"), tmp_path, {"window": "lung,soft_tissue,100/50"})
    assert [(one.low, one.high) for one in found.channels.channels] == [(-1350, 150), (-160, 240), (75, 125)]
    found = declare_channels(_set(f"{folder}#slice=0"), tmp_path, {"window": ["brain"], "around": 1})
    assert found.channels.bands == ("1@-1", "1", "1@+1")
    seen = load_planes(f"{folder}#slice=0", channels=found.channels)
    wanted = [_between(HU[:, :, k].T, 0, 80) for k in (0, 0, 1)]
    _check_seen(seen, wanted)


@pytest.mark.parametrize("name", ["lungs", "40/0", "40/-3", "", "3"])
def test_what_is_no_window_is_refused(tmp_path, name):
    path = _nifti(tmp_path / "a.nii")
    with pytest.raises(ConfigError, match="window"):
        declare_channels(_set(f"{path}#slice=0"), tmp_path, {"window": name})


def test_magnetic_resonance_is_seen_by_percentiles_of_its_volume(tmp_path):
    values_IJK = voxels((5, 6, 4), np.float32)
    values_IJK[:2] = 0
    path = _nifti(tmp_path / "mr.nii.gz", values_IJK)
    found = declare_channels(_set(f"{path}#slice=2", modality="MRI"), tmp_path, {})
    assert {one.transform for one in found.channels.channels} == {"volume"}
    low, high = np.percentile(values_IJK[values_IJK != 0], (0.5, 99.5))
    seen = load_planes(f"{path}#slice=2", channels=found.channels)[1]
    _check_seen(seen, _between(values_IJK[:, :, 2].T, low, high))


def test_x_rays_are_seen_as_their_headers_say(tmp_path):
    image = voxels((6, 5, 1), np.uint16)[:, :, 0]
    path = save_dicom(
        dicom_image(
            image, Modality="DX", PhotometricInterpretation="MONOCHROME1", WindowCenter=15, WindowWidth=11
        ),
        tmp_path / "a.dcm",
    )
    found = declare_channels(_set(path), tmp_path, {})
    assert "each file's own window (as DX is seen" in found.understood[-1]
    np.testing.assert_array_equal(
        load_planes(path, channels=found.channels)[0], np.rint(255 - (image - 9.5).clip(0, 10) * 25.5)
    )


def test_an_unknown_modality_keeps_the_percentiles_of_the_set_and_names_the_options(tmp_path):
    path = _nifti(tmp_path / "a.nii")
    found = declare_channels(_set(f"{path}#slice=0", f"{path}#slice=1"), tmp_path, {})
    assert "2nd to 98th percentile of the training images; the modality isn't known" in found.understood[-1]
    assert "-o window=soft_tissue suits CT" in found.understood[-1]


def test_two_readings_are_refused(tmp_path):
    ct, mr = _ct(tmp_path / "ct"), _ct(tmp_path / "mr", Modality="MR")
    both = _set(f"{ct}#slice=0", f"{mr}#slice=0")
    with pytest.raises(DataError, match=r"several modalities \(CT, MR\)"):
        declare_channels(both, tmp_path, {})
    with pytest.raises(DataError, match="MR, which has no Hounsfield units"):
        declare_channels(both, tmp_path, {"window": "lung"})
    assert declare_channels(both, tmp_path, {"window": "volume"}).channels is not None
    assert declare_channels(both, tmp_path, {"range": "0,100"}).channels.channels[0].high == 100


def test_several_modalities_of_a_case_are_bands(tmp_path):
    for number in range(2):
        _nifti(tmp_path / f"c_000{number}.nii.gz", HU + number)
    address = f"{tmp_path}/c_{{0000,0001}}.nii.gz#slice=3"
    found = declare_channels(_set(address, modality="MR"), tmp_path, {"bands": "flair,t1"})
    assert [(one.band, one.number, one.transform) for one in found.channels.channels] == [
        ("flair", 1, "volume"), ("t1", 2, "volume"),
    ]  # fmt: skip
    with vitp.open_pixels(address) as pixels:
        np.testing.assert_array_equal(pixels.read(), [HU[:, :, 3].T, HU[:, :, 3].T + 1])
    assert file_stamp(address)[0] == sum(path.stat().st_size for path in tmp_path.glob("c_*"))


def test_a_slice_is_the_same_in_training_prediction_and_pictures(tmp_path):
    """From the files to a compiled set, to its batches, and to what a predictor reads."""
    labels = tmp_path / "labels"
    for name in ("liver", "spleen"):
        (labels / name).mkdir(parents=True)
        for number in range(2):
            image = (voxels((24, 20, 1), np.uint16, number)[:, :, 0] * 3).astype(np.uint16)
            data = dicom_image(image, Modality="CT", RescaleSlope=2, RescaleIntercept=-1024)
            save_dicom(data, labels / name / f"{name}{number}.dcm")
    compile_labels(labels, "folders", tmp_path / "set", window="lung,bone")
    compiled = read_compiled(tmp_path / "set")
    assert [(one.low, one.high) for one in compiled.channels.channels] == [(-1350, 150), (-500, 1300)]
    for item in compiled.items:
        with vitp.open_pixels(item.image) as pixels:
            hu_HW = pixels.read_quantity()[0][0]
        seen = SeenBands.by(compiled.channels, compiled).planes(item.image)
        _check_seen(seen, [_between(hu_HW, -1350, 150), _between(hu_HW, -500, 1300)])
        with open_seen(item.image, compiled.channels) as pixels:
            ground = RasterGround(pixels, compiled.channels)
            height, width = ground.size
            np.testing.assert_array_equal(ground.planes((0, 0, width, height), ground.size).numpy(), seen)


@pytest.mark.parametrize("transform", ["linear", "volume", "voi"])
def test_window_jitter_moves_ranges_before_values_are_clipped(tmp_path, transform):
    path = f"{_nifti(tmp_path / 'a.nii')}#slice=1"
    low, high = {"linear": (-160, 240), "volume": (10, 90), "voi": (0, 255)}[transform]
    channels = Channels(channels=(Channel(band="1", low=low, high=high, transform=transform),) * 3)
    still, seen = SeenBands(channels), SeenBands(channels, window_jitter=0.3)
    assert still.facts() == SeenBands(channels, window_jitter=0.0).facts() != seen.facts()
    np.testing.assert_array_equal(seen.planes(path), still.planes(path))  # only at a place of a run
    moved = seen.at(7, 3)
    assert moved == seen.at(7, 3) != seen.at(7, 4)
    assert abs(moved.moved[0]) <= 0.15
    assert 0.7 <= moved.moved[1] <= 1.3
    if transform == "linear":
        centre, width = 40 + moved.moved[0] * 400, 400 * moved.moved[1]
        wanted = _between(HU[:, :, 1].T, centre - width / 2, centre + width / 2)
        _check_seen(moved.planes(path)[0], wanted)
    assert not np.array_equal(moved.planes(path), still.planes(path))
    assert still.at(7, 3) is still
    assert SeenBands(window_jitter=0.3).at(7, 3).moved == (0, 1)
    assert AugmentSettings().window_jitter == 0


def test_a_shard_holds_the_quantity_and_refuses_what_it_would_lose(tmp_path):
    path = f"{_nifti(tmp_path / 'a.nii', scale=(2, -1000))}#slice=1"
    suffix, data = part_bytes(path)
    (tmp_path / f"part{suffix}").write_bytes(data)
    with vitp.open_pixels(tmp_path / f"part{suffix}") as pixels, vitp.open_pixels(path) as own:
        np.testing.assert_array_equal(pixels.read(), own.read_quantity()[0])
    record = InstructionRecord("a", (path,), (Turn("<image>What is it?", "a slice"),))
    channels = Channels(channels=(Channel(band="1", low=0.5, high=99.5, transform="volume"),))
    with pytest.raises(DataError, match="a shard doesn't hold"):
        write_shards([record], tmp_path / "out", "set", channels=channels)


def test_the_table_of_windows():
    assert WINDOWS["lung"] == (-600, 1500)
    assert WINDOWS["soft_tissue"] == (40, 400)
    assert WINDOWS["bone"] == (400, 1800)
    assert WINDOWS["brain"] == (40, 80)
