"""What is done to standard error while maps are written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vitp.core.errors import VitpError
from vitp.inference.map_files import written_by_gdal


def test_two_that_write_at_once_leave_standard_error_as_it_was(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As two requests of a server do: each ends while the other one goes on."""
    first, second = written_by_gdal(tmp_path), written_by_gdal(tmp_path)
    first.__enter__()
    second.__enter__()
    os.write(2, b"_tiffWriteProc: No space left on device.\nfrom a thread\n")
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "from a thread\nafterwards\n"


def test_without_a_standard_error_maps_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a service may start it, or where no temporary file can be made."""

    def none(*_: object) -> int:
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr(os, "dup", none)
    with written_by_gdal(tmp_path):
        (tmp_path / "map").touch()
    assert (tmp_path / "map").exists()
    with pytest.raises(VitpError, match="mine"), written_by_gdal(tmp_path):
        raise VitpError("mine")
