"""Pictures keep their pixels and lose what is written about them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitp.io.images import load_image
from vitp.io.jpeg_segments import write_bare_jpeg


def jpeg(path: Path, *, orientation: int = 1, **options: object) -> Path:
    rng = np.random.default_rng(1)
    exif = Image.Exif()
    exif[0x0112], exif[0x013B] = orientation, "NAME"
    image = Image.fromarray(rng.integers(0, 255, (40, 56, 3), dtype=np.uint8))
    image.save(path, quality=90, exif=exif, comment=b"NAME", icc_profile=b"NAME" * 40, **options)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0, "restart_marker_rows": 1}])
def test_a_bare_jpeg_has_the_same_pixels(
    orientation: int, options: dict[str, object], tmp_path: Path
) -> None:
    source, target = jpeg(tmp_path / "a.jpg", orientation=orientation, **options), tmp_path / "b.jpg"
    with source.open("ab") as file:
        file.write(b"NAME behind the end")
    assert write_bare_jpeg(source, target, orientation)
    assert b"NAME" not in target.read_bytes()
    np.testing.assert_array_equal(np.asarray(load_image(target)), np.asarray(load_image(source)))


def test_what_is_no_jpeg_or_cut_off_is_not_written(tmp_path: Path) -> None:
    source = jpeg(tmp_path / "a.jpg")
    (tmp_path / "cut.jpg").write_bytes(source.read_bytes()[:-40])
    Image.new("RGB", (4, 4)).save(tmp_path / "png.jpg", format="PNG")
    for name in ("cut.jpg", "png.jpg"):
        assert not write_bare_jpeg(tmp_path / name, tmp_path / "b.jpg", 1)
    assert not (tmp_path / "b.jpg").exists()


def test_loaded_pictures_carry_nothing_that_would_be_saved(tmp_path: Path) -> None:
    image = load_image(jpeg(tmp_path / "a.jpg"))
    for kind in ("PNG", "JPEG"):
        buffer = io.BytesIO()
        image.save(buffer, kind)
        assert b"NAME" not in buffer.getvalue() and b"iCCP" not in buffer.getvalue()
