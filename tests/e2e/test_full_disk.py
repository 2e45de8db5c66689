"""A disk that fills up: one line, and what was saved before stays whole."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from tests.e2e.conftest import done, finish, litter, refused, snapshot, vitp, write_config
from tests.forks import Forked
from tests.volume_models import HighValues
from vitp.core.errors import VitpError
from vitp.inference.map_files import write_class_cog, written_by_gdal
from vitp.inference.prediction_files import predict_files
from vitp.inference.raster_files import MapOptions
from vitp.inference.unfinished import unfinished, unfinished_folder
from vitp.scenes.volume_files import write_nifti
from vitp.scenes.volumes import make_volume
from vitp.tasks.base import TestSettings


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A finished run whose last checkpoint and model are gone: two more steps are to be made."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "checkpoints" / "step_00000010")
    shutil.rmtree(folder / "model")
    return folder


@pytest.mark.parametrize("place", ["fsync", "save"])
def test_a_run_keeps_its_last_checkpoint(
    run: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    before = snapshot(run / "checkpoints")
    with monkeypatch.context() as patch:
        if place == "fsync":
            sync = os.fsync
            # The small files of the start go through; the checkpoint doesn't.
            patch.setattr(
                os, "fsync", lambda fd: full() if os.fstat(fd).st_size > 100_000 else sync(fd)
            )  # fmt: skip
        else:
            patch.setattr("vitp.engine.checkpoint.save_tensors", full)
        error = refused("pretrain", "--resume", "--out", run)
    assert "the disk is full" in error and "free some space" in error
    assert snapshot(run / "checkpoints") == before and litter(run) == []
    done("pretrain", "--resume", "--out", run)
    ours, theirs = (load_file(f / "model" / "model.safetensors") for f in (run, finished))
    assert all((tensor == theirs[name]).all() for name, tensor in ours.items())


@pytest.mark.parametrize("what", ["compile", "scenes", "export", "report", "show"])
def test_nothing_half_written_appears(
    finished: Path, scenes: Path, compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    commands: dict[str, tuple[object, ...]] = {
        "compile": ("data", "compile", scenes, "--out", tmp_path / "compiled"),
        "scenes": ("data", "scenes", "port", "--count", 4, "--size", 32, "--out", tmp_path / "scenes"),
        "export": ("export", finished, "--out", tmp_path / "backbone"),
        "report": ("report", finished, "--samples", 1, "--out", tmp_path / "report.html"),
        "show": (
            "data", "show", compiled, "--model", finished, "--count", 2, "--out", tmp_path / "data.html",
        ),
    }  # fmt: skip
    monkeypatch.setattr(os, "fsync", full)
    assert "the disk is full" in refused(*commands[what])
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts file systems of some kilobytes, where that is allowed."""
    mounted: list[Path] = []

    def mount(kilobytes: int) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no file system of its own can be mounted here ({error})")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_run_on_a_real_disk_that_fills_up(
    compiled: Path, tmp_path: Path, small_disk: Callable[[int], Path]
) -> None:
    """A checkpoint is 0.9 MB, and a new one is written before an old one goes."""
    disk = small_disk(1600)
    config = write_config(tmp_path / "run.yaml", compiled)
    error = refused("pretrain", config, "--out", disk / "run")
    assert "the disk is full" in error
    assert [path.name for path in (disk / "run" / "checkpoints").iterdir()] == ["step_00000004"]
    assert litter(disk) == []


def test_an_export_to_a_real_disk_that_is_full(
    finished: Path, scenes: Path, small_disk: Callable[[int], Path]
) -> None:
    disk = small_disk(64)
    assert "the disk is full" in refused("export", finished, "--out", disk / "backbone")
    assert "the disk is full" in refused("data", "compile", scenes, "--out", disk / "compiled")
    assert list(disk.iterdir()) == []
    assert vitp("export", finished, "--out", disk / "backbone", "--force").code == 2


def test_crops_on_a_real_disk_that_fills_up_wait_for_the_same_command(
    scenes: Path, small_disk: Callable[[int], Path]
) -> None:
    disk = small_disk(2000)
    filler, words = disk / "filler", ("data", "compile", scenes, "--out", disk / "c", "--crop", 32)
    filler.write_bytes(bytes(1_900_000))
    line = refused(*words)
    (waiting,) = disk.glob(".c.crops-*")
    assert "the disk is full; free some space" in line and f"wait in {waiting} for the same command" in line
    assert not (disk / "c").exists()
    filler.unlink()
    done(*words)
    assert litter(disk) == [] and (disk / "c" / "summary.json").is_file()


def test_a_prediction_that_can_not_begin_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with (
            pytest.raises(VitpError, match="the disk is full"),
            unfinished(tmp_path / "out", {}, resume=True),
        ):
            pytest.fail("it has begun")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt), unfinished(tmp_path / "out", {}, resume=True) as folder:
        (folder / "parts" / "a").mkdir()
        (folder / "parts" / "a" / "0.npy").touch()
        raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr("vitp.inference.unfinished.is_abandoned", lambda folder: True)  # its process has ended
        patch.setattr(os, "fsync", full)
        with (
            pytest.raises(VitpError, match="the disk is full"),
            unfinished(tmp_path / "out", {}, resume=True),
        ):
            pytest.fail("it has begun")
    assert (unfinished_folder(tmp_path / "out") / "parts" / "a" / "0.npy").is_file()


@pytest.mark.parametrize("vector", ["gpkg", "geojson"])
@pytest.mark.parametrize("kilobytes", [64, 640])
def test_maps_on_a_real_disk_that_fills_up_are_one_line(
    tmp_path: Path,
    small_disk: Callable[[int], Path],
    capfd: pytest.CaptureFixture[str],
    kilobytes: int,
    vector: str,
) -> None:
    """libtiff writes past Python, a line for each tile; GDAL's own errors say nothing of the disk."""
    disk = small_disk(kilobytes)
    noise = np.random.default_rng(0).integers(0, 200, (1200, 1200)).astype(np.uint8)
    shapely, pyogrio = (pytest.importorskip(name) for name in ("shapely", "pyogrio.raw"))
    round_NP = np.array([shapely.to_wkb(shapely.Point(n, 0).buffer(1)) for n in range(4000)], object)
    writes = (
        lambda: write_class_cog(disk / "a.tif", lambda a, b: noise[None, a:b], noise.shape, None, "abc", {}),
        lambda: pyogrio.write(
            disk / f"a.{vector}", round_NP, [], [], driver="GPKG" if vector == "gpkg" else "GeoJSON",
            geometry_type="Polygon", crs="EPSG:32632",
        ),
    )  # fmt: skip
    for write in writes:
        with pytest.raises(VitpError) as caught, written_by_gdal(disk):
            print("a line of ours", file=sys.stderr)
            write()
        assert (
            str(caught.value) == f"{disk}: the disk is full; free some space; nothing that was there is lost"
        )
        assert capfd.readouterr().err == "a line of ours\n"
        for left in disk.iterdir():
            left.unlink()


@pytest.mark.parametrize("kilobytes", [16, 64])
def test_a_prediction_of_a_volume_on_a_real_disk_that_fills_up(
    tmp_path: Path, small_disk: Callable[[int], Path], kilobytes: int
) -> None:
    """Labels are 42 kB, probabilities twice that; in a process of its own, as the system might end it."""
    disk = small_disk(kilobytes)
    write_nifti(make_volume(3, size=(64, 56, 12), orientation="LPS"), tmp_path / "a.nii.gz")

    def predict() -> None:
        options = MapOptions(probabilities=True)
        model = HighValues(plane="axial")
        predict_files(model, [tmp_path / "a.nii.gz"], disk / "out", TestSettings(), options=options)

    result = finish(Forked(predict))
    assert result.code == 1 and "the disk is full; free some space" in result.err
    assert not (disk / "out").exists()
