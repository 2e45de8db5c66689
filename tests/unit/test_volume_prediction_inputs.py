"""Inputs of predictions of volumes: series, folders, planes, bands, and what is refused."""

import csv
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from tests.volume_models import HU, WHOLE, HighValues, is_high, names_in, predicted, volume
from vitp.core.errors import VitpError
from vitp.inference.inputs import image_files, unique_names
from vitp.inference.prediction_files import predict_files
from vitp.inference.volume_inputs import looked_at_volume
from vitp.io.volumes import open_volume
from vitp.records.channels import Channel, Channels
from vitp.scenes.volume_files import write_dicom_series, write_nifti


def test_what_cannot_be_read_is_known_first(tmp_path: Path) -> None:
    write_nifti(volume(), tmp_path / "good.nii.gz")
    (tmp_path / "cut.nii.gz").write_bytes((tmp_path / "good.nii.gz").read_bytes()[:900])
    (tmp_path / "words.nii").write_text("no volume")
    nibabel.save(nibabel.Nifti1Image(np.zeros((6, 5, 4, 3), np.uint8), np.eye(4)), tmp_path / "four.nii")
    model = HighValues(
        Channels(channels=(Channel(band="3", low=0, high=9), Channel(band="4", low=0, high=9)))
    )
    order: list[str] = []
    real = model.probabilities
    model.probabilities = lambda *a: order.append("seen") or real(*a)  # type: ignore[method-assign]
    files = [tmp_path / name for name in ("cut.nii.gz", "good.nii.gz", "words.nii", "four.nii")]
    with pytest.raises(VitpError, match="none of the 4 images can be used"):
        predict_files(
            model, files, tmp_path / "out", WHOLE, tell=lambda one: order.append(Path(one.image).name)
        )
    assert order == ["cut.nii.gz", "good.nii.gz", "words.nii", "four.nii"] and not (tmp_path / "out").exists()
    count, left = predict_files(HighValues(), files[:3], tmp_path / "out", WHOLE)
    assert count == 1 and [Path(one.image).name for one in left] == ["cut.nii.gz", "words.nii"]
    assert names_in(tmp_path / "out/masks") == ["good.nii.gz"]


def test_series_off_an_even_grid_are_no_input_but_their_slices_are(tmp_path: Path) -> None:
    step = volume().spacing[2]
    write_dicom_series(volume(), tmp_path / "whole", name="whole")
    for path in write_dicom_series(volume(), tmp_path / "gap", name="gap")[2:3]:
        path.unlink()
    for path in write_dicom_series(volume(), tmp_path / "moved", name="moved")[2:3]:
        data = pydicom.dcmread(path)
        x, y, z = data.ImagePositionPatient
        data.ImagePositionPatient = [x, y, float(z) + 0.2 * step]
        data.save_as(path)
    inputs = [tmp_path / "gap", tmp_path / "whole", tmp_path / "moved", f"{tmp_path / 'gap'}#slice=1"]
    told: list[str] = []
    count, left = predict_files(
        HighValues(plane="axial"), inputs, tmp_path / "out", WHOLE, tell=lambda one: told.append(one.reason)
    )
    assert count == 2 and [Path(one.image).name for one in left] == ["gap", "moved"]
    assert "mm off an even grid (misses about 1): complete the series, or resample it" in told[0]
    assert f"has slices that lie up to {0.2 * step:.2g} mm off an even grid: complete" in told[1]
    assert {row["case"] for row in csv.DictReader((tmp_path / "out/volumes.csv").open())} == {"whole"}
    assert [path.name for path in (tmp_path / "out/masks").glob("*.nii.gz")] == ["whole.nii.gz"]
    assert names_in(tmp_path / "out/pictures") == ["gap-2.png", "whole.png"]  # a slice is a picture


def test_one_image_is_seen_in_its_own_plane_or_not_at_all(tmp_path: Path) -> None:
    for name, size in (("axial", (12, 10, 1)), ("coronal", (12, 1, 10)), ("sagittal", (1, 12, 10))):
        voxels = np.full(size, 200, np.int16)
        nibabel.save(nibabel.Nifti1Image(voxels, np.diag([2.0, 2.0, 5.0, 1.0])), tmp_path / f"{name}.nii")
    inputs = [tmp_path / "axial.nii", tmp_path / "coronal.nii", tmp_path / "sagittal.nii"]
    told: list[str] = []
    named = [f"{tmp_path / 'coronal.nii'}#plane=coronal", f"{tmp_path / 'axial.nii'}#plane=sagittal"]
    count, _ = predict_files(
        HighValues(plane="axial"),
        [*inputs, *named],
        tmp_path / "out",
        WHOLE,
        tell=lambda one: told.append(one.reason),
    )
    assert count == 2 and told == [
        "holds one coronal image, the model sees axial slices; give a volume, or see it as plane=coronal",
        "holds one sagittal image, the model sees axial slices; give a volume, or see it as plane=sagittal",
        "holds one axial image, its address names sagittal slices; give a volume, or see it as plane=axial",
    ]
    # A model of no plane sees each in its own.
    assert predict_files(HighValues(), inputs, tmp_path / "own", WHOLE)[0] == 3


def test_a_plane_is_that_of_the_address_then_of_training_then_the_volumes_own(tmp_path: Path) -> None:
    write_nifti(volume(), tmp_path / "a.nii.gz")
    address = str(tmp_path / "a.nii.gz")
    for given, model, words in (
        (address, HighValues(), "13 sagittal slices (across its widest step) of 11×5 px"),
        (address, HighValues(plane="coronal"), "11 coronal slices (as in training) of 13×5 px"),
        (
            f"{address}#plane=sagittal",
            HighValues(plane="coronal"),
            "13 sagittal slices (as named) of 11×5 px",
        ),
    ):
        said = predicted(model, [given], tmp_path / str(len(words)))
        assert any(words in line for line in said)
    nibabel.save(nibabel.AnalyzeImage(volume().voxels_IJK, np.eye(4)), tmp_path / "old.img")
    with pytest.raises(VitpError, match="how it lies in the patient"):
        predicted(HighValues(plane="coronal"), [tmp_path / "old.hdr"], tmp_path / "none")
    assert any(
        "5 stored slices" in line for line in predicted(HighValues(), [tmp_path / "old.hdr"], tmp_path / "o")
    )
    assert np.array_equal(
        np.asarray(nibabel.load(tmp_path / "o/masks/old.nii.gz").dataobj), is_high(volume().voxels_IJK)
    )


def test_folders_hold_volumes_series_and_cases_of_several_files(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name in ("one_0000.nii.gz", "one_0001.nii.gz", "two_0000.nii.gz", "plain.nii"):
        write_nifti(volume(), folder / name)
    write_dicom_series(volume(), folder / "1.2.840.7")
    write_dicom_series(volume(), folder / "both", name="a", tags={"SeriesNumber": 4})
    for path in write_dicom_series(volume(seed=9), tmp_path / "b", name="b"):
        path.rename(folder / "both" / f"b-{path.name}")
    files = image_files([folder])
    assert [Path(file).name.split("#")[0] for file in files] == [
        "1.2.840.7", "both", "both", "one_{0000,0001}.nii.gz", "plain.nii", "two_0000.nii.gz"
    ]  # fmt: skip
    assert [name.split("-")[0] for name in unique_names(files)] == [
        "1.2.840.7",
        "both",
        "both",
        "one",
        "plain",
        "two_0000",
    ]
    count, left = predict_files(HighValues(), [folder], tmp_path / "out", WHOLE)
    assert (count, left) == (6, [])  # the first of two files is band 1
    assert [Path(file).name for file in files[1:3]] == ["both#series=1", "both#series=4"]
    xrays = tmp_path / "xrays"
    for number in range(3):
        (path,) = write_dicom_series(volume(size=(9, 8, 1), seed=number), tmp_path / "x", name=f"x{number}")
        xrays.mkdir(exist_ok=True)
        path.rename(xrays / f"{number}.dcm")
    assert [Path(file).name for file in image_files([xrays])] == ["0.dcm", "1.dcm", "2.dcm"]
    count, _ = predict_files(HighValues(), [xrays], tmp_path / "xout", WHOLE)
    assert count == 3 and names_in(tmp_path / "xout/masks") == ["0.nii.gz", "1.nii.gz", "2.nii.gz"]


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((4, 9), ("4", "9")),
        ((3, 3, 1), ("series-2", "series-3", "1")),  # 1 is the name of another one
        ((0, None, 7), ("series-1", "series-2", "7")),
        ((-2, 5), ("series-1", "5")),
    ],
)
def test_no_output_of_a_folder_of_several_series_holds_a_uid(
    tmp_path: Path, numbers: Sequence[int | None], words: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "both"
    folder.mkdir()
    sources = [volume(seed=seed, size=(9, 8, 3 + seed)) for seed in range(len(numbers))]
    for place, (number, source) in enumerate(zip(numbers, sources, strict=True)):
        tags = {"SeriesNumber": number, "SeriesInstanceUID": f"1.2.840.99999.{place + 1}.4711"}
        for path in write_dicom_series(source, tmp_path / str(place), name=str(place), tags=tags):
            path.rename(folder / f"{place}-{path.name}")
    (folder / ".hidden.dcm").write_bytes((folder / path.with_name(f"{place}-{path.name}").name).read_bytes())
    files = image_files([folder])
    assert files == [f"{folder}#series={word}" for word in words]
    for address, source in zip(files, sources, strict=True):
        assert open_volume(address).grid.slices_shape("axial")[0] == source.voxels_IJK.shape[2]
    said = predicted(HighValues(), [folder], tmp_path / "out")
    names = {f"both-series-{word.removeprefix('series-')}" for word in words}
    assert set(names_in(tmp_path / "out/masks")) == {f"{name}.nii.gz" for name in names}
    with (tmp_path / "out/volumes.csv").open() as file:
        assert {row["case"] for row in csv.DictReader(file)} == names
    text = capsys.readouterr().out + "\n".join(said)
    for path in (tmp_path / "out").rglob("*"):
        assert "4711" not in path.name
        if path.suffix in (".csv", ".json", ".txt", ".html"):
            text += path.read_text()
    assert "4711" not in text and "99999" not in text


def test_bands_that_the_model_does_not_see_are_named(tmp_path: Path) -> None:
    sources = [volume()] * 3
    for number, source in enumerate(sources):
        write_nifti(source, tmp_path / f"one_000{number}.nii.gz")
    stacked = nibabel.Nifti1Image(np.stack([one.voxels_IJK for one in sources], -1), sources[0].affine_44)
    nibabel.save(stacked, tmp_path / "four.nii.gz")
    second = Channels(channels=(Channel(band="2", low=-1000, high=1000),))
    around = Channels(
        channels=tuple(Channel(band=name, low=-1000, high=1000) for name in ("1@-1", "1", "1@+1"))
    )
    three = Channels(channels=tuple(Channel(band=name, low=-1000, high=1000) for name in "123"))
    for channels, unused in ((HU, "2, 3"), (second, "1, 3"), (around, "2, 3"), (three, "")):
        for name in ("four.nii.gz", "one_{0000,0001,0002}.nii.gz"):
            _, notes = looked_at_volume(f"{tmp_path}/{name}", channels, "error", None)
            found = [note for note in notes if "not used" in note]
            assert [note.rpartition("not used: ")[2] for note in found] == ([unused] if unused else [])
    _, notes = looked_at_volume(f"{tmp_path}/one_0000.nii.gz", HU, "error", None)
    assert not any("not used" in note for note in notes)
