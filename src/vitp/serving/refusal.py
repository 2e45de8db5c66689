"""What the server refuses, in one sentence with a status; what went wrong elsewhere, in words for a client."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from starlette.exceptions import HTTPException

from vitp.core.errors import CheckpointError, VitpError


class Refusal(HTTPException):
    """An answer that is one sentence.

    Args:
        status: 401, 404, 408, 413, 415, 422 or 503.
        sentence: Without a final stop.
        retry_after: Seconds after which it makes sense to ask again.
    """

    def __init__(self, status: int, sentence: str, *, retry_after: int | None = None) -> None:
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        if status == 401:
            # HTTP demands it of a 401.
            headers["WWW-Authenticate"] = "Bearer"
        super().__init__(status, detail=sentence, headers=headers or None)


def refusal_of(error: Exception, names: Mapping[str, str]) -> Refusal:
    """Return what a client is told of something that went wrong with its input; names of files are no part of it.

    Args:
        error: A `VitpError`, or that memory was not enough.
        names: Address of a file → what it is called in the sentence, "the image" for one.
    """
    if not isinstance(error, VitpError):
        what = "there is not enough memory for this image; send a smaller one, or a part of it"
        return Refusal(503, what, retry_after=10)
    where = names.get(str(error.where), error.where) if error.where else None
    if where is None or any(name in where for name in names):
        where = "the image"
    what = error.what.removeprefix("image ") if where.endswith("image") else error.what
    sentence = f"{where} {what}" if where.startswith("the ") else f"{where}: {what}"
    # Options of commands, and parts of files, are of no use to a client.
    of_use = [way for way in (error.fix or "").split(", or ") if not ("--" in way or "FILE#" in way)]
    if any(of_use):
        sentence += f"; {', or '.join(of_use)}"
    for address, word in names.items():
        file = address.partition("#")[0]
        for known in (address, file, *([Path(file).name] if "." in Path(file).name else [])):
            sentence = sentence.replace(known, word)
    return Refusal(503 if isinstance(error, CheckpointError) else 422, " ".join(sentence.split()))
