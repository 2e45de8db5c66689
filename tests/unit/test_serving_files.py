"""What the server keeps and reads: images that were sent, tiles, files below its root; and what clients may not do."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.map_models import BrightestBand, BrightObjects, channels_of, write_raster
from tests.serving_toys import Served, bright, known, noise, png, serving
from tests.volume_files import affine, write_series
from vitp.core.tensors import present
from vitp.io.images import load_planes
from vitp.records.channels import Channel, Channels
from vitp.serving.gate import ServerLimits
from vitp.tasks.predict import predict_images

__all__ = ["known"]  # a fixture


# Images, samples, tiles.


def test_an_image_that_was_sent_is_used_again(known: Served) -> None:
    sent = known.post("/images", png(bright((10, 20, 30, 40)))).json()
    assert (sent["width"], sent["height"], sent["name"], len(sent["bands"])) == (80, 60, "upload", 3)
    found = known.post("/predict", image=sent["id"], model="boxes", threshold=0).json()
    assert found["objects"][0]["box"] == [10, 20, 30, 40]
    sample = known.post("/images", path="utm.tif").json()
    assert sample["name"] == "utm.tif" and sample["placed"]
    assert {one["name"] for one in known.client.get("/samples").json()} == {
        *("later.tif", "plain.png", "utm.tif", "wide/bands.tif")
    }


def test_tiles_are_parts_of_the_image_at_every_level(known: Served) -> None:
    pixels = noise(5, (300, 520))
    number = known.post("/images", png(pixels)).json()["id"]

    def tile(level: int, x: int, y: int) -> np.ndarray:
        answer = known.client.get(f"/images/{number}/tiles/{level}/{x}/{y}.png")
        assert answer.status_code == 200, answer.text
        return np.array(Image.open(io.BytesIO(answer.content)))

    assert (tile(0, 0, 0)[..., :3] == pixels[:256, :256]).all()
    corner = tile(0, 2, 1)
    assert (corner[:44, :8, :3] == pixels[256:, 512:]).all() and corner[..., 3].sum() == 255 * 44 * 8
    half = tile(1, 0, 0)
    wanted = pixels[:256, :512].reshape(128, 2, 256, 2, 3).mean((1, 3))
    assert np.abs(half[:128, :256, :3] - wanted).max() <= 1
    for place in ("0/3/0", "0/0/2", "30/0/0", "-1/0/0", "0/-1/0"):
        assert known.client.get(f"/images/{number}/tiles/{place}.png").status_code == 404
    wide = known.post("/images", path="wide/bands.tif").json()["id"]
    assert known.client.get(f"/images/{wide}/tiles/0/0/0.png").status_code == 200


def test_the_oldest_images_go_first_and_their_files_with_them(tmp_path: Path) -> None:
    limits = ServerLimits(upload_bytes=20_000)  # 80,000 bytes of images are kept
    with serving(tmp_path / "files", {"boxes": BrightObjects()}, limits=limits) as served:
        sent = [served.post("/images", png(noise(seed, (64, 64)))).json()["id"] for seed in range(8)]
        states = [served.post("/predict", image=one, model="boxes").status_code for one in sent]
        assert states[0] == 404 and states[-1] == 200
        assert len(list((tmp_path / "files").iterdir())) == states.count(200) < 8
        served.post("/predict", png(noise()), model="boxes")
        assert len(list((tmp_path / "files").iterdir())) == states.count(200), (
            "a passing upload leaves nothing"
        )


# What clients may not do.


@pytest.fixture(scope="module")
def rooted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with a root from which links lead outside."""
    folder = tmp_path_factory.mktemp("rooted")
    root = folder / "root"
    (root / "folder").mkdir(parents=True)
    image = png(bright((1, 1, 9, 9)))
    (root / "inside.png").write_bytes(image)
    (folder / "secret.png").write_bytes(image)
    (root / "link.png").symlink_to(folder / "secret.png")
    (root / "out").symlink_to(folder)
    with serving(folder / "files", {"boxes": BrightObjects()}, root=root) as served:
        yield served


@pytest.mark.parametrize(
    "name",
    [
        *(
            "../secret.png",
            "/etc/passwd",
            "a/../../secret.png",
            "..\\secret.png",
            "link.png",
            "out/secret.png",
        ),
        *(
            "%2e%2e/secret.png",
            "..%2fsecret.png",
            "in\0side.png",
            "\\\\host\\share\\a.png",
            "C:\\a.png",
            "//host/a.png",
        ),
        *(
            "file:///etc/passwd",
            "scene:port/1",
            "tar:x.tar#0+10/a.png",
            "{inside,inside}.png",
            ".",
            "",
            "a" * 5000,
        ),
        *("https://example.org/a.png", "folder", "inside.png#window=0,0,4,4"),
    ],
)
def test_no_file_outside_the_root_is_read(rooted: Served, name: str) -> None:
    answer = rooted.client.post("/predict", data={"model": "boxes", "path": name})
    assert answer.status_code in (404, 422), answer.text
    assert str(rooted.service.store.root) not in answer.text


@pytest.mark.parametrize(
    "stem",
    [
        *("a b", "a#b", "50%", "%41", "c:d", "e?f", "g&h", "x=y", "é", "日本", "a+b", "q;r"),
        *("a\\b", "a\tb", "a\u00a0b", "a#window=0,0,4,4", "a#slice=3", "a#mirror=1", "a#bands=1"),
    ],
)
def test_a_file_of_any_name_is_read(tmp_path: Path, stem: str) -> None:
    root = tmp_path / "root"
    (root / "a folder #1").mkdir(parents=True)
    place = f"a folder #1/{stem}.png"
    (root / place).write_bytes(png(bright((1, 1, 9, 9), (20, 20, 40, 40))))
    write_raster(root / f"{stem}.tif", np.full((3, 40, 40), 200, np.uint8), "utm")
    with serving(tmp_path / "files", {"boxes": BrightObjects()}, root=root) as served:
        assert [one["name"] for one in served.client.get("/samples").json()] == sorted([place, f"{stem}.tif"])
        found = served.post("/predict", model="boxes", path=place)
        assert found.status_code == 200 and len(found.json()["objects"]) == 2
        assert served.client.get("/samples/picture", params={"path": place}).status_code == 200
        shapes = served.post("/predict", model="boxes", path=f"{stem}.tif", format="geojson")
        assert shapes.status_code == 200 and len(shapes.json()["features"]) == 1
        kept = served.client.post("/images", data={"path": place}).json()
        assert (
            served.post("/predict", model="boxes", image=kept["id"]).json()["objects"]
            == found.json()["objects"]
        )


def test_a_file_below_the_root_is_read(rooted: Served) -> None:
    assert rooted.post("/predict", model="boxes", path="inside.png").status_code == 200
    assert [one["name"] for one in rooted.client.get("/samples").json()] == ["inside.png"]


def test_without_a_root_no_file_can_be_named(tmp_path: Path) -> None:
    with serving(tmp_path / "files", {"boxes": BrightObjects()}) as served:
        answer = served.post("/predict", model="boxes", path="a.png")
        assert answer.status_code == 422 and "--root" in answer.json()["error"]
        assert served.client.get("/samples").json() == []


def vrt(source: str) -> bytes:
    return (
        f'<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f"<SourceFilename>{source}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    ).encode()


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b"%PDF-1.7 not an image", 415, "a PDF"),
        (b"", 415, "empty"),
        (b"\x00" * 4000, 415, "are read"),
        (vrt("/etc/passwd"), 415, "virtual raster"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 500, 415, "isn't taken from clients"),
        (b"EHFA_HEADER_TAG" + b"\0" * 500, 415, "isn't taken from clients"),
        (b"PK\x03\x04" + b"\0" * 500, 415, "are read"),
    ],
)
def test_what_is_no_image_is_refused_by_its_content(
    known: Served, content: bytes, status: int, words: str
) -> None:
    for name in ("a.png", "a.tif", "a.vrt"):
        answer = known.client.post("/images", files={"file": (name, content)})
        assert answer.status_code == status, answer.text
        assert words in answer.json()["error"]
    assert not list(known.service.store.folder.glob("*.vrt"))


def test_a_single_dicom_image_is_read_as_predict_reads_it(tmp_path: Path) -> None:
    values_IJK = np.random.default_rng(4).permutation(48 * 40 * 3).reshape(48, 40, 3).astype(np.int16)
    write_series(tmp_path / "series", values_IJK, affine(), RescaleSlope=1, RescaleIntercept=-1000)
    ct = tmp_path / "one.dcm"
    ct.write_bytes((tmp_path / "series" / "im1").read_bytes())
    ranges = ((-1000, 4000), (0, 2000), (0, 3000))
    alone = BrightestBand(
        channels=Channels(channels=tuple(Channel(band="1", low=low, high=high) for low, high in ranges))
    )
    around = BrightestBand(channels=channels_of("1@-1", "1", "1@+1", high=2000.0))
    with serving(tmp_path / "files", {"alone": alone, "around": around}) as served:

        def asked(model: str) -> Any:
            # Its name may say nothing: the content tells what it is.
            return served.client.post(
                "/predict", files={"file": ("scan", ct.read_bytes())}, data={"model": model}
            )

        answer = asked("alone")
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert (found["width"], found["height"]) == (48, 40)
        planes_CHW = torch.from_numpy(load_planes(f"{ct}#slice=0", channels=alone.in_channels))
        (wanted,) = predict_images(alone, [planes_CHW])
        mask_HW = np.array(Image.open(io.BytesIO(base64.b64decode(found["mask"]["png"]))))
        assert (torch.from_numpy(mask_HW) == present(wanted.semantic_HW)).all()
        assert np.unique(mask_HW).tolist() == [0, 1]
        refused = asked("around")
        assert refused.status_code == 422
        assert refused.json()["error"] == (
            "the image is one slice, and around sees the slices beside it, too (1@-1, 1@+1): vitp predict reads the "
            "whole series"
        )


def test_a_bomb_is_refused_by_its_head(tmp_path: Path) -> None:
    bomb = io.BytesIO()
    Image.new("1", (8_000, 4_000)).save(bomb, format="PNG", compress_level=1)
    with serving(
        tmp_path / "files", {"boxes": BrightObjects()}, limits=ServerLimits(pixels=1_000_000)
    ) as served:
        answer = served.post("/predict", bomb.getvalue(), model="boxes")
        assert answer.status_code == 413 and "8000×4000" in answer.json()["error"]
        assert served.post("/images", bomb.getvalue()).status_code == 413
        assert not list((tmp_path / "files").iterdir())


def test_too_much_is_refused_whatever_the_head_says(tmp_path: Path) -> None:
    with serving(
        tmp_path / "files", {"boxes": BrightObjects()}, limits=ServerLimits(upload_bytes=10_000)
    ) as served:
        stated = served.post("/predict", b"x" * 20_000, model="boxes")
        assert stated.status_code == 413 and "10,000 bytes" in stated.json()["error"]
        sent = 0

        def pieces() -> Iterator[bytes]:
            nonlocal sent
            yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            for _ in range(1000):
                sent += 1
                yield b"x" * 1000

        headers = {"content-type": "multipart/form-data; boundary=b"}
        answer = served.client.post("/images", content=pieces(), headers=headers)
        assert answer.status_code == 413 and "bytes" in answer.json()["error"]


def test_a_full_line_says_when_to_come_again(tmp_path: Path) -> None:
    with serving(tmp_path / "files", {"boxes": BrightObjects()}, limits=ServerLimits(queue=2)) as served:
        with served.service.line.place(), served.service.line.place():
            answer = served.post("/predict", png(noise()), model="boxes")
            assert answer.status_code == 503 and int(answer.headers["retry-after"]) >= 1
            assert served.client.get("/health").json()["queue"] == 2
        assert served.post("/predict", png(noise()), model="boxes").status_code == 200
        assert served.client.get("/health").json()["queue"] == 0


def test_a_token_is_asked_for(tmp_path: Path) -> None:
    with serving(tmp_path / "files", {"boxes": BrightObjects()}, token="sesame") as served:
        wrong = "is not the server's token"
        for headers, words in (
            ({}, "a token is needed"),
            ({"Authorization": "Bearer open"}, wrong),
            ({"Authorization": "sesame"}, wrong),
        ):
            answer = served.client.get("/models", headers=headers)
            assert answer.status_code == 401 and words in answer.json()["error"]
            assert answer.headers["www-authenticate"] == "Bearer"
        key = {"Authorization": "Bearer sesame"}
        assert served.client.get("/models", headers=key).status_code == 200
        assert served.client.get("/health").json()["models"] == []
        assert served.client.get("/health", headers=key).json()["models"] == ["boxes"]
        assert served.client.get("/", headers={}).status_code != 401


def test_a_foreign_name_of_this_machine_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path / "files", {"boxes": BrightObjects()}, local=True) as served:
        for host, status in (
            ("localhost:8000", 200),
            ("127.0.0.1", 200),
            ("[::1]:80", 200),
            ("evil.example", 421),
        ):
            assert served.client.get("/models", headers={"host": host}).status_code == status
    with serving(tmp_path / "files", {"boxes": BrightObjects()}, local=True, token="sesame") as served:
        headers = {"host": "models.example", "Authorization": "Bearer sesame"}
        assert served.client.get("/models", headers=headers).status_code == 200


def test_the_end_is_told(tmp_path: Path) -> None:
    with serving(tmp_path / "files", {"boxes": BrightObjects()}) as served:
        served.gate.draining = True
        answer = served.client.get("/models")
        assert answer.status_code == 503 and "shutting down" in answer.json()["error"]
        assert answer.headers["retry-after"] == "10"


def test_the_log_names_routes_alone(known: Served) -> None:
    known.client.post("/images", files={"file": ("Mustermann^Max.png", png(noise()))})
    known.client.get("/nothing/Mustermann?path=Mustermann.png")
    known.post("/predict", model="boxes", path="Mustermann.png")
    text = "\n".join(known.lines)
    assert "POST /images 200" in text and "GET - 404" in text and "Mustermann" not in text


def test_a_fault_of_the_program_is_one_sentence_and_a_place_in_the_log(
    known: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError("Mustermann.png")

    monkeypatch.setattr(known.service.store, "samples", broken)
    answer = known.client.get("/samples")
    assert answer.status_code == 500 and set(answer.json()) == {"error"}
    assert "Mustermann" not in answer.text
    assert any("KeyError at " in line for line in known.lines)
    assert not any("Mustermann" in line for line in known.lines)
