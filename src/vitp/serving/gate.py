"""What every request passes: who may ask, how much and how slowly, one sentence for what is refused, a line in the log.

It stands before the application as ASGI, because bodies are to be counted while they come.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Callable, Collection, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from vitp.serving.refusal import Refusal

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]

READ_SECONDS = 20.0
"""A body may take so long, and longer by what has come of it."""
LEAST_BYTES_A_SECOND = 16_384
LINGER_SECONDS, LINGER_BYTES = 2.0, 64 << 20
"""A refused client is listened to for so long, so that it gets to read why."""
_LOCAL = frozenset({"localhost", "127.0.0.1", "[::1]"})


@dataclass(frozen=True)
class ServerLimits:
    """Bounds of a server.

    Attributes:
        upload_bytes: Most bytes of a request's body.
        pixels: Pixels of an image that is decoded or predicted.
        queue: Requests that wait or are computed.
        batch: Images that are computed at once.
    """

    upload_bytes: int = 256 << 20
    pixels: int = 100_000_000
    queue: int = 64
    batch: int = 8


@dataclass
class _Exchange:
    """One request and its answer."""

    scope: Scope
    received: int = 0
    whole: bool = False
    status: int = 0
    started: float = field(default_factory=time.monotonic)


class Gate:
    """The application behind its limits.

    Args:
        app: ASGI application.
        limits: Bounds.
        token: What clients must send; None: nothing.
        public: Paths that are answered without a token.
        local: Whether only this machine is served: then a name that an outsider has pointed here is refused.
        log: Called with a line about each request.
    """

    def __init__(
        self,
        app: Callable[..., Any],
        limits: ServerLimits,
        *,
        token: str | None = None,
        public: Collection[str] = (),
        local: bool = False,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.app, self.limits, self.log = app, limits, log
        self._token = None if token is None else f"Bearer {token}".encode()
        self._public, self._local = frozenset(public), local
        self.active = 0
        self.bodies = 0
        self.draining = False

    async def __call__(self, scope: Scope, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1003})
            return
        headers = dict(scope["headers"])
        exchange = _Exchange(scope)
        exchange.whole = b"content-length" not in headers and b"transfer-encoding" not in headers
        self.active += 1
        try:
            await self._answer(exchange, headers, receive, send)
        finally:
            self.active -= 1
            self.bodies -= exchange.received
            self.log(_line(exchange))

    async def _answer(
        self,
        exchange: _Exchange,
        headers: dict[bytes, bytes],
        receive: Callable[..., Any],
        send: Callable[..., Any],
    ) -> None:
        bounded = self._bounded(exchange, receive)
        watched = self._watched(exchange, receive, send)
        try:
            self._check(exchange.scope, headers)
            await self.app(exchange.scope, bounded, watched)
        except Refusal as refusal:
            await _say(refusal, watched)
        except Exception as error:
            self.log(f"internal error: {_place(error)}")  # the application has told the client

    def _check(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        """Refuse what can be refused by its head."""
        if self.draining:
            raise Refusal(503, "the server is shutting down; try again later", retry_after=10)
        # Without this a page of any site could read answers under a name of its own that leads here (DNS rebinding).
        if self._token is None and self._local:
            host = headers.get(b"host", b"").decode("latin-1").lower()
            if host.rpartition(":")[0] not in _LOCAL and host not in _LOCAL:
                raise Refusal(
                    421,
                    "the server answers to localhost alone; start it with a token to give it another name",
                )
        if self._token is not None and scope["path"] not in self._public:
            given = headers.get(b"authorization", b"")
            # How long this takes doesn't tell how much of a wrong token is right.
            if not hmac.compare_digest(given, self._token):
                what = "this is not the server's token" if given else "a token is needed"
                raise Refusal(401, f"{what}: send Authorization: Bearer TOKEN")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.limits.upload_bytes:
            raise self._too_large()

    def _too_large(self) -> Refusal:
        return Refusal(
            413, f"the request has more than {self.limits.upload_bytes:,} bytes, which is the most"
        )

    def authorised(self, headers: Any) -> bool:
        """Return whether a request has the token, or none is needed."""
        given = str(headers.get("authorization", "")).encode("latin-1", "replace")
        return self._token is None or hmac.compare_digest(given, self._token)

    def _bounded(self, exchange: _Exchange, receive: Callable[..., Any]) -> Callable[..., Any]:
        """Return what hands out a body piece by piece while it is neither too large nor too slow."""

        async def read() -> Message:
            if exchange.whole:
                message: Message = await receive()
                return message
            deadline = exchange.started + READ_SECONDS + exchange.received / LEAST_BYTES_A_SECOND
            try:
                message = await asyncio.wait_for(receive(), max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                raise Refusal(408, "the request came too slowly") from None
            if message["type"] == "http.request":
                count = len(message.get("body", b""))
                exchange.received += count
                self.bodies += count
                exchange.whole = not message.get("more_body", False)
                if exchange.received > self.limits.upload_bytes:
                    raise self._too_large()
                if self.bodies > 4 * self.limits.upload_bytes:
                    raise Refusal(503, "too much is being sent at once; try again later", retry_after=5)
            else:
                exchange.whole = True
            return message

        return read

    def _watched(
        self, exchange: _Exchange, receive: Callable[..., Any], send: Callable[..., Any]
    ) -> Callable[..., Any]:
        """Return what sends an answer; one that comes before the end of the request ends the connection after it."""

        async def write(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                headers = [*message.get("headers", ()), (b"x-content-type-options", b"nosniff")]
                if not exchange.whole or self.draining:
                    headers.append((b"connection", b"close"))
                await send({**message, "headers": headers})
                return
            last = not message.get("more_body", False)
            if last and not exchange.whole:
                # All but the end of the answer goes out before the client is listened to.
                await send({**message, "more_body": True})
                await _lingered(receive)
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        return write


async def _lingered(receive: Callable[..., Any]) -> None:
    """Read on for a while: a connection that is closed on unread bytes may lose the answer."""
    count, until = 0, time.monotonic() + LINGER_SECONDS
    while count < LINGER_BYTES:
        try:
            message = await asyncio.wait_for(receive(), max(0.0, until - time.monotonic()))
        except TimeoutError:
            return
        count += len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return


async def _say(refusal: Refusal, send: Callable[..., Any]) -> None:
    body = json.dumps({"error": refusal.detail}, ensure_ascii=False).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in (refusal.headers or {}).items()]
    await send({"type": "http.response.start", "status": refusal.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _line(exchange: _Exchange) -> str:
    """Return a line about a request; of its path the route alone, as it may name a file."""
    route = getattr(exchange.scope.get("route"), "path", "-")
    milliseconds = 1000 * (time.monotonic() - exchange.started)
    at = time.strftime("%H:%M:%S")
    return f"{at} {exchange.scope['method']} {route} {exchange.status or 'gone'} {milliseconds:.0f} ms"


def _place(error: BaseException) -> str:
    """Return kind and place of an error; its words may name a file."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        place = f"{trace.tb_frame.f_code.co_filename.rpartition('vitp/')[2]}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__} at {place}"
