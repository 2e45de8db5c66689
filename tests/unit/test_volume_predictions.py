"""Predictions of volumes: a model that says where values are high is seen in every orientation and comes back whole."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from tests.map_models import BrightestBand
from vitp.inference.prediction_files import predict_files
from vitp.inference.raster_files import MapOptions
from vitp.records.channels import Channel, Channels
from vitp.scenes.volume_files import write_nifti
from vitp.scenes.volumes import TrunkVolume, make_volume
from vitp.tasks.base import TestSettings

ORIENTATIONS = [
    "".join(letters)
    for axes in itertools.permutations(("RL", "AP", "SI"))
    for letters in itertools.product(*axes)
]
HU = Channels(channels=(Channel(band="1", low=-1000, high=1000),))
WHOLE = TestSettings()


class HighValues(BrightestBand):
    """Says `high` where the first channel is above 139 (90 HU), `low` elsewhere; knows no place and no neighbours."""

    def __init__(
        self,
        channels: Channels | None = HU,
        plane: str | None = None,
        classes: Sequence[str] = ("background", "liver"),
    ):
        super().__init__(classes, channels)
        if plane is not None:
            self.description = {"trained": {"plane": plane, "scale": 1.0, "longest": 4096}}

    def maps(self, images_BCHW: Tensor, later_BCHW: Tensor | None) -> list[Tensor]:
        self.seen.append(len(images_BCHW))
        more_BHW = images_BCHW[:, 0].float() - 139.5
        return torch.stack([-more_BHW, more_BHW], 1)  # type: ignore[return-value]


def is_high(voxels: np.ndarray) -> np.ndarray:
    """Return what `HighValues` says of voxels in HU."""
    return np.rint((voxels.astype(np.float32) + 1000) * (255 / 2000)).clip(0, 255) > 139.5


def volume(
    orientation: str = "LPS", seed: int = 3, size: tuple[int, int, int] = (13, 11, 5), **more: Any
) -> TrunkVolume:
    return make_volume(seed, size=size, orientation=orientation, lesions=1, **more)


def predicted(
    model: Any, inputs: list[Path | str], out: Path, settings: TestSettings = WHOLE, **options: Any
) -> list[str]:
    said: list[str] = []
    predict_files(
        model,
        inputs,
        out,
        settings,
        options=MapOptions(**options),
        say=said.append,
        tell=lambda one: said.append(one.reason),
    )
    return said


def labels_of(path: Path) -> Any:
    return nibabel.load(path)


def test_all_48_orientations_come_back_voxel_for_voxel(tmp_path: Path) -> None:
    files = []
    for orientation in ORIENTATIONS:
        files.append(tmp_path / "in" / f"{orientation}.nii")
        write_nifti(volume(orientation), files[-1])
    for plane in (None, "sagittal"):
        out = tmp_path / f"out-{plane}"
        predicted(HighValues(plane=plane), [tmp_path / "in"], out)
        for orientation, file in zip(ORIENTATIONS, files, strict=True):
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
    first = sitk.ReadImage(str(tmp_path / "out-None/masks" / f"{ORIENTATIONS[0]}.nii.gz"))
    for orientation in ORIENTATIONS[1::9]:
        other = sitk.ReadImage(str(tmp_path / "out-sagittal/masks" / f"{orientation}.nii.gz"))
        moved = sitk.Resample(other, first, sitk.Transform(), sitk.sitkNearestNeighbor)
        assert np.array_equal(sitk.GetArrayFromImage(moved), sitk.GetArrayFromImage(first))
