"""The process of `vitp serve`: its socket, slow clients, signals and the end."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from vitp.core.distributed import resolve_device
from vitp.core.errors import ConfigError
from vitp.core.leftovers import temporary_folder
from vitp.serving.app import gated_app
from vitp.serving.gate import Gate, ServerLimits
from vitp.serving.models import named_sources, open_models
from vitp.serving.predicting import Predictor
from vitp.serving.service import Service
from vitp.serving.store import ImageStore
from vitp.serving.worker import WaitingLine, Worker

HEAD_SECONDS = 10.0
"""A request's head must be whole by then."""
WRITE_SECONDS = 60.0
"""A client must read on by then."""
DRAIN_SECONDS = 120.0
"""What is computed when the server is told to end has so long."""
_LOOPBACK = ("127.", "::1", "localhost")


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that closes connections whose client neither sends its request's head nor reads the answer."""

    _head: asyncio.TimerHandle | None = None
    _write: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a head."""
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Take bytes."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._wait_for_head()
        elif self._head is not None:
            self._head.cancel()
            self._head = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        for timer in (self._head, self._write):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Begin to wait until the client reads."""
        super().pause_writing()
        self._write = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on."""
        super().resume_writing()
        if self._write is not None:
            self._write.cancel()
            self._write = None

    def _wait_for_head(self) -> None:
        if self._head is None:
            self._head = self.loop.call_later(HEAD_SECONDS, self.transport.abort)


class DrainingServer(uvicorn.Server):
    """A server that finishes what it has begun when it is told to end, and exits with 0.

    Args:
        config: Configuration of uvicorn.
        gate: Refuses what comes after that.
        say: Called with what happens.
    """

    def __init__(self, config: uvicorn.Config, gate: Gate, say: Callable[[str], None]) -> None:
        super().__init__(config)
        self._gate, self._say = gate, say
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until the end."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; at the second signal end at once."""
        if self._gate.draining or self._loop is None:
            self.should_exit = self.force_exit = True
            return
        self._gate.draining = True
        self._loop.call_soon_threadsafe(lambda: asyncio.ensure_future(self._drain()))

    async def _drain(self) -> None:
        self._say(f"ending: {self._gate.active} requests are finished first, new ones are refused")
        until = asyncio.get_running_loop().time() + DRAIN_SECONDS
        # For a moment at least, so that who comes now is told rather than cut off.
        await asyncio.sleep(0.5)
        while self._gate.active and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.05)
        self.should_exit = True


@dataclass(frozen=True)
class ServerOptions:
    """What `vitp serve` is told.

    Attributes:
        host, port: Where it listens; port 0: any that is free.
        root: Below which clients may name files; None: nowhere.
        token: That clients must send; None: none.
        device: Device on which models compute.
        limits: Bounds.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    root: Path | None = None
    token: str | None = None
    device: str = "auto"
    limits: ServerLimits = field(default_factory=ServerLimits)


def serve(words: Sequence[str], options: ServerOptions, say: Callable[[str], None]) -> None:
    """Load models and answer requests until SIGTERM or Ctrl-C.

    Args:
        words: `FOLDER` or `NAME=FOLDER` of each model.
        options: Where and how to serve.
        say: Called with lines for the console.

    Raises:
        VitpError: A model can't be loaded, or the address can't be listened to.
    """
    sources = named_sources(words)
    if options.root is not None and not options.root.is_dir():
        raise ConfigError("is no folder", where=str(options.root), fix="name a folder with --root")
    if options.token is not None and not (
        options.token.isprintable() and options.token.isascii() and options.token.strip()
    ):
        raise ConfigError(
            "is empty, or has marks that no header takes", where="--token", fix="use ASCII letters"
        )
    listening = _socket(options.host, options.port)
    # Notes of readers name files, which are the clients' own.
    logging.getLogger("vitp").setLevel(logging.ERROR)
    limits = options.limits
    with listening, temporary_folder("vitp-serve") as folder:
        models = open_models(
            sources,
            resolve_device(options.device),
            lambda name: Worker(name, limits.batch, limits.pixels),
            say,
        )
        service = Service(
            models,
            ImageStore(folder, options.root, limits.pixels, 4 * limits.upload_bytes),
            WaitingLine(limits.queue),
            Predictor(folder, limits.pixels),
        )
        local = options.host.startswith(_LOOPBACK)
        gate = gated_app(service, limits, token=options.token, local=local, log=say)
        _say_start(options, listening, local, say)
        config = uvicorn.Config(
            gate,
            http=PatientProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            # Anybody can send the headers of a proxy.
            proxy_headers=False,
            timeout_keep_alive=10,
            timeout_graceful_shutdown=5,
        )
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        try:
            DrainingServer(config, gate, say).run(sockets=[listening])
        finally:
            service.predictor.close()
    say("ended")


def _socket(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        fix = "choose another --port or --host; 0 takes any port that is free"
        raise ConfigError(f"can't be listened to ({reason})", where=f"{host}:{port}", fix=fix) from error
    os.set_inheritable(listening.fileno(), False)
    return listening


def _say_start(
    options: ServerOptions, listening: socket.socket, local: bool, say: Callable[[str], None]
) -> None:
    host, port = options.host, listening.getsockname()[1]
    limits = options.limits
    say(
        f"uploads up to {limits.upload_bytes >> 20} MB and {limits.pixels / 1e6:g} million pixels, {limits.queue} "
        f"requests at once, up to {limits.batch} images together"
    )
    if options.root is not None:
        say(f"clients may name files below {options.root}")
    if options.token is not None:
        say("clients must send the token")
    elif not local:
        say(
            "WARNING: everybody who reaches this address may use the models; --token or VITP_TOKEN asks for a token"
        )
    shown = f"[{host}]" if ":" in host else host
    say(f"open http://{shown}:{port} (routes: /api; Ctrl-C ends)")
