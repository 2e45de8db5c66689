"""Predictions of volumes: a model that says where values are high is seen in every orientation and comes back whole."""

import csv
import errno
import itertools
import json
import math
import os
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from torch import Tensor

from tests.map_models import BrightObjects
from tests.volume_models import HU, HighValues, is_high, names_in, predicted, volume
from vitp.core.errors import VitpError
from vitp.inference import volumes
from vitp.inference.prediction_files import predict_files
from vitp.inference.raster_files import MapOptions
from vitp.inference.unfinished import unfinished_folder
from vitp.inference.volumes import slices_around
from vitp.io.volumes import open_volume
from vitp.metrics.results import Prediction
from vitp.records.channels import Channel, Channels
from vitp.scenes.volume_files import write_dicom_series, write_nifti
from vitp.tasks.base import TestSettings

ORIENTATIONS = [
    "".join(letters)
    for axes in itertools.permutations(("RL", "AP", "SI"))
    for letters in itertools.product(*axes)
]


def labels_of(path: Path) -> Any:
    return nibabel.load(path)


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_all_48_orientations_come_back_voxel_for_voxel(tmp_path: Path, step: int) -> None:
    files = []
    orientations = ORIENTATIONS[::step]
    for orientation in orientations:
        files.append(tmp_path / "in" / f"{orientation}.nii")
        write_nifti(volume(orientation), files[-1])
    for plane, step in ((None, 1), ("axial", 3)):
        out = tmp_path / f"out-{plane}"
        predicted(HighValues(plane=plane), files[::step] if plane else [tmp_path / "in"], out)
        for orientation, file in zip(orientations[::step], files[::step], strict=True):
            source, found = nibabel.load(file), nibabel.load(out / "masks" / f"{orientation}.nii.gz")
            assert found.shape == source.shape and found.get_data_dtype() == np.uint8
            assert np.array_equal(found.affine, source.affine) and nibabel.aff2axcodes(found.affine) == tuple(
                orientation
            )
            wanted = is_high(np.asarray(source.dataobj))
            assert wanted.any() and not wanted.all()
            assert np.array_equal(np.asarray(found.dataobj), wanted)
            for name in ("qform_code", "sform_code", "xyzt_units", "quatern_b", "qoffset_x", "pixdim"):
                assert np.array_equal(found.header[name], source.header[name])
    # In the world all of them are one: SimpleITK puts each onto the first one's grid.
    first = sitk.ReadImage(str(tmp_path / "out-None/masks" / f"{orientations[0]}.nii.gz"))
    for orientation in orientations[3::3]:
        other = sitk.ReadImage(str(tmp_path / "out-axial/masks" / f"{orientation}.nii.gz"))
        moved = sitk.Resample(other, first, sitk.Transform(), sitk.sitkNearestNeighbor)
        assert np.array_equal(sitk.GetArrayFromImage(moved), sitk.GetArrayFromImage(first))


def test_dicom_nrrd_mha_and_mgz_are_the_same_voxels_as_nifti(tmp_path: Path) -> None:
    source = volume("LPS", tilt=12.0)
    write_nifti(source, tmp_path / "as.nii.gz")
    write_dicom_series(source, tmp_path / "series")
    image = sitk.ReadImage(str(tmp_path / "as.nii.gz"))
    sitk.WriteImage(image, str(tmp_path / "as.nrrd"))
    sitk.WriteImage(image, str(tmp_path / "as.mha"))
    nibabel.save(nibabel.MGHImage(source.voxels_IJK, source.affine_44), tmp_path / "as.mgz")
    inputs = [tmp_path / name for name in ("as.nii.gz", "series", "as.nrrd", "as.mha", "as.mgz")]
    said = predicted(HighValues(plane="axial"), inputs, tmp_path / "out")
    assert any("5 axial slices (as in training) of 13×11 px" in line for line in said)
    wanted = is_high(source.voxels_IJK)
    for name in ("as", "series", "as-2", "as-3", "as-4"):
        found = nibabel.load(tmp_path / "out/masks" / f"{name}.nii.gz")
        np.testing.assert_allclose(found.affine, source.affine_44, atol=2e-4)
        np.testing.assert_allclose(found.header.get_qform(), source.affine_44, atol=2e-4)
        assert np.array_equal(np.asarray(found.dataobj), wanted)
        other = sitk.ReadImage(str(tmp_path / "out/masks" / f"{name}.nii.gz"))
        np.testing.assert_allclose(other.GetOrigin(), image.GetOrigin(), atol=1e-3)
        np.testing.assert_allclose(other.GetDirection(), image.GetDirection(), atol=1e-5)
    rows = list(csv.DictReader((tmp_path / "out/volumes.csv").open()))
    assert [row["case"] for row in rows] == ["as", "series", "as-2", "as-3", "as-4"]
    millilitres = wanted.sum() * abs(np.linalg.det(source.affine_44[:3, :3])) / 1000
    for row in rows:
        assert row["class"] == "liver" and int(row["voxels"]) == wanted.sum()
        assert float(row["ml"]) == pytest.approx(millilitres, rel=1e-5)
    assert (tmp_path / "out/classes.txt").read_text() == "background\nliver\n"
    assert not list((tmp_path / "out").rglob("*.dcm"))


@pytest.mark.parametrize(
    "orientation", ["LPS", *(pytest.param(each, marks=pytest.mark.slow) for each in ("RAI", "SLP"))]
)
def test_dicom_seg_is_read_by_highdicom_and_overlays_its_series(tmp_path: Path, orientation: str) -> None:
    source = volume(orientation, tilt=7.0)
    tags = {
        "PatientName": "Doe^Jane",
        "PatientID": "77",
        "StudyDate": "20240102",
        "SeriesDescription": "secret words",
    }
    files = write_dicom_series(source, tmp_path / "series", tags=tags)
    model = HighValues(classes=("background", "left kidney"))
    for name in ("out", "again"):
        predicted(model, [tmp_path / "series"], tmp_path / name, format="dicom-seg", probabilities=True)
    path = tmp_path / "out/dicom-seg/series.dcm"
    assert path.read_bytes() == (tmp_path / "again/dicom-seg/series.dcm").read_bytes()
    segmentation = highdicom.seg.segread(path)
    headers = {k: pydicom.dcmread(file, stop_before_pixels=True) for k, file in enumerate(files)}
    uids = [str(header.SOPInstanceUID) for header in headers.values()]
    found = segmentation.get_pixels_by_source_instance(uids, combine_segments=True, ignore_spatial_locations=True,
                                                       assert_missing_frames_are_empty=True)  # fmt: skip
    wanted_KJI = is_high(source.voxels_IJK).transpose(2, 1, 0)
    assert np.array_equal(found, wanted_KJI)
    geometry = segmentation.get_volume(combine_segments=True).get_affine("LPS")
    headers_0 = headers[0]
    assert segmentation.FrameOfReferenceUID == headers_0.FrameOfReferenceUID
    assert segmentation.StudyInstanceUID == headers_0.StudyInstanceUID
    assert str(segmentation.PatientName) == "Doe^Jane" and segmentation.PatientID == "77"
    assert abs(np.linalg.det(geometry[:3, :3])) == pytest.approx(math.prod(source.spacing), rel=1e-4)
    description = segmentation.get_segment_description(1)
    assert (
        description.segment_label == "left kidney"
        and description.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Kidney"
    )
    assert (
        description.SegmentedPropertyTypeCodeSequence[0]
        .SegmentedPropertyTypeModifierCodeSequence[0]
        .CodeMeaning
        == "Left"
    )
    assert len(description.RecommendedDisplayCIELabValue) == 3
    # Nothing but the DICOM-SEG, which the user asked for, tells of whom it is.
    for name in names_in(tmp_path / "out"):
        content = (tmp_path / "out" / name).read_bytes()
        assert b"secret words" not in content
        assert name.endswith(".dcm") or not (b"Doe" in content or b"20240102" in content)


def test_a_multi_frame_source_and_what_a_dicom_seg_cannot_refer_to(tmp_path: Path) -> None:
    write_nifti(volume(), tmp_path / "ct.nii.gz")
    write_dicom_series(volume(), tmp_path / "series")
    said = predicted(
        HighValues(), [tmp_path / "ct.nii.gz", tmp_path / "series"], tmp_path / "out", format="dicom-seg"
    )
    assert any("is no DICOM series, which a DICOM-SEG has to refer to" in line for line in said)
    assert names_in(tmp_path / "out/masks") == ["series.nii.gz"]
    with pytest.raises(VitpError, match="none of the 1 images can be used"):
        predicted(HighValues(), [tmp_path / "ct.nii.gz"], tmp_path / "none", format="dicom-seg")


class Neighbours(HighValues):
    """Says `high` where the slice below is brighter than the one above."""

    def maps(self, images_BCHW: Tensor, later_BCHW: Tensor | None) -> list[Tensor]:
        more_BHW = images_BCHW[:, 0].float() - images_BCHW[:, 2].float() - 0.5
        return torch.stack([-more_BHW, more_BHW], 1)  # type: ignore[return-value]


def test_neighbouring_slices_are_channels(tmp_path: Path) -> None:
    channels = Channels(
        channels=tuple(Channel(band=name, low=-1000, high=1000) for name in ("1@-1", "1", "1@+1"))
    )
    assert slices_around(channels) == 1 and slices_around(HU) is None and slices_around(None) is None
    source = volume("LPI")
    write_nifti(source, tmp_path / "a.nii")
    predicted(Neighbours(channels, "axial"), [tmp_path / "a.nii"], tmp_path / "out")
    upwards = np.rint((source.voxels_IJK[..., ::-1].astype(np.float32) + 1000) * (255 / 2000)).clip(0, 255)
    below = np.concatenate([upwards[..., :1], upwards[..., :-1]], axis=2)
    above = np.concatenate([upwards[..., 1:], upwards[..., -1:]], axis=2)
    found = np.asarray(nibabel.load(tmp_path / "out/masks/a.nii.gz").dataobj)
    assert np.array_equal(found, (below - above > 0.5)[..., ::-1]) and found.any()


def test_windows_scales_and_probabilities(tmp_path: Path) -> None:
    source = volume("PSR", size=(40, 36, 4))
    write_nifti(source, tmp_path / "a.nii.gz")
    settings = TestSettings(window=16, overlap=0.5, tta="d4", batch_size=3)
    predicted(HighValues(), [tmp_path / "a.nii.gz"], tmp_path / "out", settings, probabilities=True)
    wanted = is_high(source.voxels_IJK)
    assert np.array_equal(np.asarray(nibabel.load(tmp_path / "out/masks/a.nii.gz").dataobj), wanted)
    shares = nibabel.load(tmp_path / "out/probabilities/a.nii.gz")
    assert shares.shape == (*wanted.shape, 2) and np.array_equal(
        shares.affine, source.affine_44.astype(np.float32)
    )
    values = shares.get_fdata()
    np.testing.assert_allclose(values.sum(-1), 1, atol=0.006)
    assert np.array_equal(values.argmax(-1), wanted)


def test_voxels_that_hold_nothing_are_unknown_and_counted_so(tmp_path: Path) -> None:
    voxels = volume().voxels_IJK.astype(np.float32)
    voxels[:3] = np.nan
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([2.0, 2, 3, 1])), tmp_path / "a.nii.gz")
    predicted(HighValues(), [tmp_path / "a.nii.gz"], tmp_path / "out", probabilities=True)
    found = np.asarray(nibabel.load(tmp_path / "out/masks/a.nii.gz").dataobj)
    assert (found[:3] == 255).all() and np.array_equal(found[3:], is_high(voxels[3:]))
    assert not nibabel.load(tmp_path / "out/probabilities/a.nii.gz").get_fdata()[:3].any()
    rows = [list(row.values()) for row in csv.DictReader((tmp_path / "out/volumes.csv").open())]
    assert rows[1] == ["a", "(no data)", str(3 * 11 * 5), f"{3 * 11 * 5 * 12 / 1000:g}"]


def test_objects_say_where_they_are_in_slices_voxels_and_millimetres(tmp_path: Path) -> None:
    voxels = np.full((12, 10, 4), -1000, np.int16)
    voxels[2:5, 6:9, 1] = 900  # 3 × 3 voxels in slice k = 1
    affine = np.array([[0, 2.0, 0, 5], [-1.5, 0, 0, 7], [0, 0, -4.0, 9], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(voxels, affine), tmp_path / "a.nii.gz")
    for task in ("detection", "instance", "oriented"):
        out = tmp_path / task
        predicted(BrightObjects(task, HU), [tmp_path / "a.nii.gz"], out)
        content = json.loads((out / "objects/a.json").read_text())
        (one,) = content["objects"]
        assert content["plane"] == "axial" and one["slice"] == 2  # counted upwards, k downwards
        assert one["box_voxels"] == [2, 6, 1, 5, 9, 2]
        assert one["centre_mm"] == list(affine @ [3, 7, 1, 1])[:3]
        assert (
            one["size_mm"] == [6.0, 4.5] and one["class"] == "car" and ("mask" in one) == (task == "instance")
        )
        (row,) = csv.DictReader((out / "objects/a.csv").open())
        assert [float(row[name]) for name in ("x_mm", "y_mm", "z_mm", "k1", "k2")] == [
            *one["centre_mm"],
            1,
            2,
        ]
        pixels = open_volume(tmp_path / "a.nii.gz").slice(2, "axial").read()[0]
        x1, y1, x2, y2 = map(int, one["box_px"])
        assert (pixels[y1:y2, x1:x2] == 900).all() and (pixels == 900).sum() == (x2 - x1) * (y2 - y1)


class Brightness(BrightObjects):
    """Gives a slice the class `ship` as surely as its brightest pixel is bright."""

    def __init__(self, *, several: bool) -> None:
        super().__init__("classification", HU)
        self.description = {"head": {"multi_label": several}, "trained": {"plane": "axial"}}

    def predict_batch(self, images_BCHW: Tensor, later_BCHW: Tensor | None) -> list[Prediction]:
        shares = [float(image.float().mean()) / 255 for image in images_BCHW]
        return [Prediction(probabilities_C=torch.tensor([share, 1 - share])) for share in shares]


def test_the_class_of_a_volume_is_the_mean_or_the_surest_of_its_slices(tmp_path: Path) -> None:
    source = volume()
    write_nifti(source, tmp_path / "a.nii.gz")
    for several, words in ((False, "the mean of its slices"), (True, "the largest probability")):
        out = tmp_path / str(several)
        said = predicted(Brightness(several=several), [tmp_path / "a.nii.gz"], out)
        assert any(words in line for line in said)
        seen = np.rint((source.voxels_IJK.astype(np.float64) + 1000) * (255 / 2000)).clip(0, 255)
        by_slice = seen.mean((0, 1)) / 255
        slices = list(csv.DictReader((out / "slices/a.csv").open()))
        assert [float(row["ship"]) for row in slices] == pytest.approx(by_slice, abs=1e-3)
        (whole,) = csv.DictReader((out / "predictions.csv").open())
        assert float(whole["ship"]) == pytest.approx(by_slice.max() if several else by_slice.mean(), abs=1e-3)


def test_slices_of_padding_say_nothing_of_their_volume(tmp_path: Path) -> None:
    """They would be black to a model, whose answer about black is no part of a mean."""
    voxels = volume().voxels_IJK.astype(np.float32)
    seen = np.rint((voxels + 1000) * (255 / 2000)).clip(0, 255).mean((0, 1))[1:4] / 255
    voxels[:, :, [0, 4]] = np.nan
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([2.0, 2, 3, 1])), tmp_path / "a.nii.gz")
    nibabel.save(nibabel.Nifti1Image(voxels * np.nan, np.diag([2.0, 2, 3, 1])), tmp_path / "b.nii.gz")
    out = tmp_path / "out"
    said = predicted(Brightness(several=False), [tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"], out)
    slices = list(csv.DictReader((out / "slices/a.csv").open()))
    assert [row["class"] == row["ship"] == "" for row in slices] == [True, False, False, False, True]
    assert [float(row["ship"]) for row in slices[1:4]] == pytest.approx(seen, abs=1e-3)
    (whole,) = csv.DictReader((out / "predictions.csv").open())
    assert float(whole["ship"]) == pytest.approx(seen.mean(), abs=1e-3)
    assert any("holds nothing but padding or nodata, so it has no class" in line for line in said)


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_an_interrupted_prediction_of_a_volume_goes_on_to_the_same_bits(
    tmp_path: Path, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_nifti(volume(size=(20, 18, 9)), tmp_path / "in" / "a.nii.gz")
    write_nifti(volume(size=(20, 18, 7), seed=5), tmp_path / "in" / "b.nii.gz")
    settings = TestSettings(batch_size=2)
    model, options = HighValues(plane="axial"), MapOptions(probabilities=True)
    predict_files(model, [tmp_path / "in"], tmp_path / "whole", settings, options=options)
    out, calls = tmp_path / f"out{stop}", 0
    real = volumes.VolumePrediction._write_maps

    def stopping(self: Any, *arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > stop:
            raise KeyboardInterrupt
        real(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(volumes.VolumePrediction, "_write_maps", stopping)
        with pytest.raises(KeyboardInterrupt):
            predict_files(model, [tmp_path / "in"], out, settings, options=options)
    assert not out.exists()
    for note in unfinished_folder(out).glob(".owner.*"):
        note.rename(note.with_name(note.name.replace("-", "-9", 1)))  # as if another process had left it
    with pytest.raises(VitpError, match="of other settings"):
        predict_files(model, [tmp_path / "in"], out, TestSettings(batch_size=3), resume=True, options=options)
    model.seen.clear()
    predict_files(model, [tmp_path / "in"], out, settings, resume=True, options=options)
    assert len(model.seen) == 5 + 4 - stop, "what was done was done again"
    assert names_in(out) == names_in(tmp_path / "whole")
    for name in names_in(out):
        assert (out / name).read_bytes() == (
            tmp_path / "whole" / name
        ).read_bytes() or name == "vitp_predictions.json"


def test_a_disk_that_fills_up_is_one_line_and_the_volume_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written through a mapped file, the system would end the process instead."""
    write_nifti(volume(size=(20, 18, 9)), tmp_path / "a.nii.gz")
    settings, options = TestSettings(batch_size=2), MapOptions(probabilities=True)
    model, out = HighValues(plane="axial"), tmp_path / "out"
    predict_files(model, [tmp_path / "a.nii.gz"], tmp_path / "whole", settings, options=options)
    real, left = os.pwrite, 4 * 2 * 20 * 18

    def pwrite(file: int, content: bytes, place: int) -> int:
        nonlocal left
        if not left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = real(file, content[:left], place)
        left -= written
        return written

    with monkeypatch.context() as patched, pytest.raises(VitpError, match="the disk is full"):
        patched.setattr(os, "pwrite", pwrite)
        predict_files(model, [tmp_path / "a.nii.gz"], out, settings, options=options)
    assert not out.exists()
    for note in unfinished_folder(out).glob(".owner.*"):
        note.rename(note.with_name(note.name.replace("-", "-9", 1)))  # as if another process had left it
    model.seen.clear()
    predict_files(model, [tmp_path / "a.nii.gz"], out, settings, resume=True, options=options)
    assert model.seen == [2, 2, 2, 1], "the first block fitted"
    for name in ("masks/a.nii.gz", "probabilities/a.nii.gz", "volumes.csv"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
