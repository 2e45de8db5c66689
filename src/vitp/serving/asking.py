"""Answers of a vision-language model as they come, as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from typing import Any

from fastapi.responses import StreamingResponse

from vitp.core.tensors import present
from vitp.inference.ask import answer_outlines
from vitp.records.instructions import COORDINATE_RANGE
from vitp.serving.models import ServedModel
from vitp.serving.refusal import Refusal
from vitp.serving.service import Service
from vitp.serving.store import StoredImage


class _Gone(Exception):
    """The client doesn't listen any more."""


async def streamed(
    service: Service,
    stack: ExitStack,
    served: ServedModel,
    image: StoredImage,
    question: str,
    max_tokens: int,
) -> StreamingResponse:
    """Return the answer as it comes; what is wrong before the first piece is refused."""
    assistant, loop = present(served.assistant), asyncio.get_running_loop()
    pieces: asyncio.Queue[str | None] = asyncio.Queue()
    listening = True

    def send(piece: str | None) -> None:
        if not listening:
            raise _Gone
        loop.call_soon_threadsafe(pieces.put_nowait, piece)

    def answer() -> str:
        try:
            return assistant.answer([image.address], question, max_new_tokens=max_tokens, stream=send)
        finally:
            # Where the client or the loop has gone nobody waits for the end.
            with suppress(_Gone, RuntimeError):
                send(None)

    # What the request holds is let go when its answer is computed, not when this function returns.
    kept, names = stack.pop_all(), {image.address: "the image"}
    future = served.worker.call(answer)
    future.add_done_callback(lambda done: kept.close())
    first = await pieces.get()
    if first is None:
        await service.result(ExitStack(), future, names)

    async def events() -> AsyncIterator[str]:
        nonlocal listening
        try:
            piece = first
            while piece is not None:
                yield _event({"text": piece})
                piece = await pieces.get()
            try:
                text = await service.result(ExitStack(), future, names)
            except Refusal as refusal:
                yield _event({"error": refusal.detail, "done": True})
                return
            yield _event({"answer": text, "boxes": _boxes(text, image.size), "done": True})
        finally:
            listening = False

    return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


def _event(values: dict[str, Any]) -> str:
    return f"data: {json.dumps(values, ensure_ascii=False)}\n\n"


def _boxes(answer: str, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Return the places of an answer in pixels of the image."""
    found = []
    for label, corners in answer_outlines(answer):
        points = [
            (round(x * size[0] / COORDINATE_RANGE, 2), round(y * size[1] / COORDINATE_RANGE, 2))
            for x, y in corners
        ]
        xs, ys = zip(*points, strict=True)
        found.append({"label": label, "box": [min(xs), min(ys), max(xs), max(ys)], "outline": points})
    return found
