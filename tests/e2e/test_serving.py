"""The process of `vitp serve` under hostile requests, slow clients, kill -9 and SIGTERM."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from vitp.models.vision import VisionSettings, VisionTower
from vitp.tasks.base import InputSize
from vitp.tasks.build import NeckSettings, build_model

pytestmark = pytest.mark.slow

VISION = {"arguments": {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8}, "image_size": 32}
PATIENCE = 240.0
"""Seconds after which a test gives up; nothing is asserted about time."""


def picture(width: int = 64, height: int = 48) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


class Process:
    """A running server."""

    def __init__(self, folder: Path, port: int = 0, *more: str) -> None:
        environment = {**os.environ, "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"}
        (folder / "tmp").mkdir(exist_ok=True)
        command = [
            sys.executable,
            "-m",
            "vitp",
            "serve",
            f"mine={folder / 'model'}",
            "--port",
            str(port),
            *more,
        ]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        self.lines: list[str] = []
        self._started = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._started.wait(PATIENCE), self.lines
        found = re.search(r"open http://127\.0\.0\.1:(\d+)", "\n".join(self.lines))
        assert found is not None, self.lines
        self.port = int(found[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if line.startswith("open http"):
                self._started.set()
        self._started.set()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def answers(self) -> bool:
        """Return whether an ordinary client gets its prediction."""
        answer = httpx.post(f"{self.url}/predict", files={"file": ("a.png", picture())}, timeout=PATIENCE)
        return answer.status_code == 200 and len(answer.json()["scores"]) == 3

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)


def save_model(folder: Path) -> None:
    torch.manual_seed(0)
    backbone = VisionTower(VisionSettings.model_validate(VISION))
    model = build_model("classification", backbone, ("sea", "land", "ice"), NeckSettings(), {}).eval()
    model.input_size = InputSize(mode="fixed", size=32)
    model.description["input"] = model.input_size.model_dump()
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve")
    save_model(folder / "model")
    (folder / "root").mkdir()
    (folder / "root" / "inside.png").write_bytes(picture())
    (folder / "secret.png").write_bytes(picture())
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Process]:
    process = Process(
        folder, 0, "--root", str(folder / "root"), "--max-upload-mb", "8", "--max-pixels", "4000000"
    )
    try:
        yield process
    finally:
        process.end()


def response_of(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    """Return status and JSON of the answer on a connection, read to its end."""
    content = b""
    try:
        while piece := connection.recv(65_536):
            content += piece
            head, _, body = content.partition(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            if length is not None and len(body) >= int(length[1]):
                break
    except ConnectionResetError:
        pass
    head, _, body = content.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


@pytest.mark.parametrize(
    "target",
    [
        *(
            "/../secret.png",
            "/..%2fsecret.png",
            "/%2e%2e/%2e%2e/etc/passwd",
            "//etc/passwd",
            "/page/../app.py",
        ),
        *("/images/..%2f..%2fsecret.png/tiles/0/0/0.png", "/etc/passwd%00.png", "/%5c%5chost%5cshare"),
    ],
)
def test_no_address_leads_to_a_file(server: Process, target: str) -> None:
    with server.connect() as connection:
        connection.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        status, values = response_of(connection)
    assert status == 404 and set(values) == {"error"}


def test_no_name_leads_out_of_the_root(server: Process) -> None:
    for name in ("../secret.png", "..%2fsecret.png", "/etc/passwd", "inside.png/../../secret.png"):
        answer = httpx.post(f"{server.url}/predict", data={"path": name}, timeout=PATIENCE)
        assert answer.status_code == 404 and set(answer.json()) == {"error"}
    answer = httpx.post(f"{server.url}/predict", data={"path": "inside.png"}, timeout=PATIENCE)
    assert answer.status_code == 200


@pytest.mark.parametrize("length", ["chunked", "stated"])
def test_an_endless_upload_is_refused_early(server: Process, length: str) -> None:
    total, sent = 2 << 30, 0
    how = "Transfer-Encoding: chunked" if length == "chunked" else f"Content-Length: {total}"
    head = f"POST /images HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n{how}\r\n\r\n"
    start = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
    block = bytes(1 << 16)
    with server.connect() as connection:
        connection.sendall(head.encode())
        try:
            while sent < total:
                piece = start if sent == 0 else block
                connection.sendall(b"%x\r\n%s\r\n" % (len(piece), piece) if length == "chunked" else piece)
                sent += len(piece)
                connection.setblocking(False)
                try:
                    if connection.recv(1, socket.MSG_PEEK):
                        break
                except BlockingIOError:
                    pass
                finally:
                    connection.settimeout(PATIENCE)
        except (BrokenPipeError, ConnectionResetError):
            pass
        status, values = response_of(connection)
    assert status == 413 and "8,388,608 bytes" in values["error"]
    assert sent < total / 8, "of the 2 GB little was taken"
    assert server.answers()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def test_a_bomb_of_pixels_is_refused_before_it_is_decoded(server: Process) -> None:
    side = 30_000
    rows = zlib.compressobj(1)
    content = b"".join(rows.compress(bytes(1 + side // 8)) for _ in range(side)) + rows.flush()
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    bomb += chunk(b"IDAT", content) + chunk(b"IEND", b"")
    for route in ("predict", "images"):
        answer = httpx.post(f"{server.url}/{route}", files={"file": ("a.png", bomb)}, timeout=PATIENCE)
        assert answer.status_code == 413 and "30000×30000" in answer.json()["error"]
    claim = bomb.replace(struct.pack(">II", side, side), struct.pack(">II", 1 << 20, 1 << 20), 1)
    answer = httpx.post(f"{server.url}/predict", files={"file": ("a.png", claim)}, timeout=PATIENCE)
    assert answer.status_code in (413, 415, 422) and set(answer.json()) == {"error"}
    assert server.answers()


def test_what_is_no_image_is_refused(server: Process) -> None:
    for content in (b"%PDF-1.7", b"", os.urandom(5000), picture()[:60], b"<svg/>"):
        answer = httpx.post(f"{server.url}/predict", files={"file": ("a.png", content)}, timeout=PATIENCE)
        assert answer.status_code in (415, 422) and set(answer.json()) == {"error"}
    answer = httpx.post(f"{server.url}/predict", content=b"\0" * 100, timeout=PATIENCE)
    assert answer.status_code == 422
    with server.connect() as connection:
        connection.sendall(b"NONSENSE\r\n\r\n" * 10)
        assert b"400" in connection.recv(100)
    assert not any("Traceback" in line for line in server.lines)


def test_a_hundred_slow_clients_stop_nobody_and_are_sent_away(server: Process) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\n"
    body = b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 5000\r\n\r\n--b\r\n"
    slow = [server.connect() for _ in range(100)]
    try:
        for number, connection in enumerate(slow):
            connection.sendall(head + body if number % 2 else head)
        assert server.answers()
        for number, connection in enumerate(slow):
            if number % 2:  # its body never comes
                status, values = response_of(connection)
                assert status == 408 and "slowly" in values["error"]
            else:  # its head never ends
                with contextlib.suppress(ConnectionResetError):
                    assert connection.recv(100) == b""
        assert server.answers()
    finally:
        for connection in slow:
            connection.close()
    assert httpx.get(f"{server.url}/health", timeout=PATIENCE).json()["queue"] == 0


def test_after_kill_9_it_starts_again_and_at_sigterm_it_finishes_what_it_has_begun(
    folder: Path, server: Process
) -> None:
    httpx.post(f"{server.url}/images", files={"file": ("a.png", picture())}, timeout=PATIENCE)
    before = list((folder / "tmp").glob(".vitp-serve.*/upload-*"))
    assert before
    server.process.kill()
    server.end()
    second = Process(folder, server.port)  # the port is free again, and no lock is left
    try:
        assert not any(file.exists() for file in before)
        assert second.answers()
        content = picture()
        body = (
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
            + content
            + b"\r\n--b--\r\n"
        )
        head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: {len(body)}\r\n\r\n"
        with second.connect() as begun, second.connect() as late:
            begun.sendall(head.encode() + body[:200])
            deadline = time.monotonic() + PATIENCE
            time.sleep(0.5)  # so that the head has arrived
            second.process.send_signal(signal.SIGTERM)
            while not any(line.startswith("ending: ") for line in second.lines):
                assert time.monotonic() < deadline, second.lines
                time.sleep(0.05)
            assert any(line.startswith("ending: 1 ") for line in second.lines), second.lines
            late.sendall(b"GET /models HTTP/1.1\r\nHost: localhost\r\n\r\n")
            status, values = response_of(late)
            assert status == 503 and "shutting down" in values["error"]
            begun.sendall(body[200:])
            status, found = response_of(begun)
            assert status == 200 and len(found["scores"]) == 3
        assert second.process.wait(PATIENCE) == 0
        assert not list((folder / "tmp").glob(".vitp-serve.*"))
        assert second.lines[-1] == "ended"
    finally:
        second.end()
