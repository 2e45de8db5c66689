"""Volumes, series and rasters that are damaged: each is left out by name, and the others compile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.volume_files import affine, save_dicom, write_series
from vitp.cli import run
from vitp.core.errors import DataError
from vitp.data.formats import read_labels
from vitp.io.volumes import open_volume

nibabel = pytest.importorskip("nibabel")
itk = pytest.importorskip("SimpleITK")
pydicom = pytest.importorskip("pydicom")

SHAPE = (14, 12, 6)


def _cut(share: float) -> Callable[[Path], None]:
    def cut(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return cut


def _text(path: Path) -> None:
    path.write_text("no volume" * 50)


def _save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith((".nii.gz", ".nii")):
        image = nibabel.Nifti1Image(values, np.diag([2.0, 2.0, 5.0, 1.0]))
        image.header.set_xyzt_units("mm")
        nibabel.save(image, path)
    else:
        itk.WriteImage(
            itk.GetImageFromArray(np.ascontiguousarray(values.T)), str(path), path.suffix == ".mha"
        )


def _set(root: Path, suffix: str = ".nii.gz", cases: int = 5) -> Path:
    for number in range(cases):
        draw = np.random.default_rng(number)
        _save(root / f"images/c{number}{suffix}", draw.integers(-1000, 1000, SHAPE).astype(np.int16))
        _save(root / f"labels/c{number}{suffix}", draw.integers(0, 3, SHAPE).astype(np.uint8))
    (root / "classes.txt").write_text("background\nliver\nspleen\n")
    return root


def _cases(found: Any) -> set[str]:
    return {item.id.split("/")[0] for item in found.items}


@pytest.mark.parametrize(
    ("side", "suffix", "damage"),
    [
        ("images", ".nii.gz", _cut(0.97)),
        ("images", ".nii.gz", _cut(0)),
        ("images", ".nii", _cut(0.9)),
        ("images", ".nrrd", _cut(0.9)),
        ("images", ".mha", _cut(0.9)),
        ("labels", ".nii.gz", _cut(0.5)),
        ("labels", ".nii.gz", _text),
        ("labels", ".mha", _cut(0.9)),
    ],
)
def test_a_damaged_volume_or_mask_is_left_out_by_name(
    tmp_path: Path, side: str, suffix: str, damage: Callable[[Path], None]
) -> None:
    root = _set(tmp_path / "set", suffix)
    damage(root / f"{side}/c2{suffix}")
    # A window that is given looks at no values: what is damaged is found all the same.
    found = read_labels("auto", root, window="soft_tissue", background=10)
    assert _cases(found) == {"c0", "c1", "c3", "c4"}
    assert [line for line in found.findings if line.startswith(f"{side}/c2{suffix}: ")] == list(
        found.findings
    )
    assert "left out" in found.findings[0]
    assert "labels: 4 used, 1 can't be used" in found.understood


def test_the_rest_compiles_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = _set(tmp_path / "set")
    _cut(0.5)(root / "images/c1.nii.gz")
    assert run(["data", "compile", str(root), "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "images/c1.nii.gz: can't be read" in shown and "volume left out" in shown


def test_when_more_than_half_is_lost_the_set_is_refused(tmp_path: Path) -> None:
    root = _set(tmp_path / "set", cases=12)
    for number in range(6):
        _cut(0.5)(root / f"images/c{number}.nii.gz")
    assert len(_cases(read_labels("auto", root))) == 6
    _cut(0.5)(root / "labels/c6.nii.gz")
    with pytest.raises(DataError, match=r"7 of 12 labels can't be used \(the first: images/c0.nii.gz"):
        read_labels("auto", root)


def _blank(path: Path) -> None:
    path.write_bytes(b"\0" * 400 + path.read_bytes()[400:])


def _head_only(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize("damage", [_cut(0.9), _cut(0), _blank, _head_only])
def test_a_series_with_a_damaged_file_is_left_out_and_the_file_named(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    root = tmp_path / "set"
    for number in range(6):
        folder = root / ("ill" if number % 2 else "well") / f"v{number}"
        values = np.random.default_rng(number).integers(0, 900, (10, 12, 6)).astype(np.int16)
        write_series(folder, values, affine(), PatientID=f"P{number}", SeriesInstanceUID=f"1.2.{number + 1}")
    order = np.random.default_rng(3).permutation(6)  # of names, as the files are written
    name = f"im{order[2]}"
    damage(root / "well/v2" / name)
    found = read_labels("auto", root, window="soft_tissue")
    assert len(found.items) == 5 and not any("v2" in item.id for item in found.items)
    (line,) = found.findings
    assert line.startswith("well/v2") and name in line and line.endswith("image left out")


def test_compressed_images_that_are_cut_off_are_found_without_decoding(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 900, (10, 12, 4)).astype(np.int16)
    folder = write_series(tmp_path / "s", values, affine())
    for path in folder.iterdir():
        image = pydicom.dcmread(path)
        image.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
        save_dicom(image, path)
    open_volume(folder).check_whole()
    _cut(0.8)(folder / "im2")
    with pytest.raises(DataError, match="doesn't hold all of its 1 images") as caught:
        open_volume(folder).check_whole()
    assert caught.value.where == str(folder / "im2")


@pytest.mark.parametrize("compression", ["zlib", None])
def test_a_damaged_raster_is_left_out_when_values_are_measured(
    tmp_path: Path, compression: str | None
) -> None:
    tifffile = pytest.importorskip("tifffile")
    pytest.importorskip("rasterio")
    root = tmp_path / "set"
    for number in range(10):
        path = root / "ab"[number % 2] / f"{number}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(number).integers(0, 3000, (4, 32, 32)).astype(np.uint16)
        tifffile.imwrite(
            path, values, photometric="minisblack", planarconfig="separate", compression=compression
        )
    _cut(0.5)(root / "a/4.tif")
    found = read_labels("auto", root, splits="drawn", val=0, test=0)
    assert len(found.items) == 9 and len(found.findings) == 1
    assert (
        found.findings[0].startswith(("a/4.tif: can't be read", "a/4.tif: is damaged"))
        and "1 image of it left out" in found.findings[0]
    )
    for number in (0, 1, 2, 3, 5):
        _cut(0.5)(root / "ab"[number % 2] / f"{number}.tif")
    with pytest.raises(DataError, match="6 of 10 files can't be read"):
        read_labels("auto", root, splits="drawn", val=0, test=0)
