"""What the routes of a server share."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from fastapi import UploadFile

from vitp.core.errors import VitpError
from vitp.serving.models import ServedModel
from vitp.serving.predicting import Predictor
from vitp.serving.refusal import Refusal, refusal_of
from vitp.serving.store import ImageStore, StoredImage
from vitp.serving.tiles import OpenImages
from vitp.serving.worker import WaitingLine


@dataclass
class Service:
    """What the routes share.

    Attributes:
        models: By their names.
        store: Images.
        line: Requests on their way.
        predictor: Answers.
        open_images: Open images whose tiles are read.
    """

    models: dict[str, ServedModel]
    store: ImageStore
    line: WaitingLine
    predictor: Predictor
    open_images: OpenImages = field(default_factory=OpenImages)

    async def image(self, stack: ExitStack, fields: Mapping[str, UploadFile | str | None]) -> StoredImage:
        """Return the image that a request names, which stays until the stack is closed.

        Args:
            stack: Stack of the request.
            fields: Name → value of the fields that can name it: a file, the id of an image (whose field ends with
                "image"), a place below the root.

        Raises:
            Refusal: It is named twice or not at all, isn't there, or can't be used.
        """
        given = {name: value for name, value in fields.items() if value is not None and value != ""}
        if len(given) != 1:
            raise Refusal(422, f"give the image once, as {' or '.join(fields)}; {len(given)} are given")
        ((name, value),) = given.items()
        found: StoredImage | str
        if not isinstance(value, str):
            assert value is not None
            found = await asyncio.to_thread(self.store.take, value.file, value.filename or "")
            self.store.passing(found)
        elif name.endswith("image"):
            found = value
        else:
            found = await asyncio.to_thread(self.store.below_root, value)
        return stack.enter_context(self.store.used(found))

    async def result(self, stack: ExitStack, future: Future[Any], names: Mapping[str, str]) -> Any:
        """Return what a worker has computed; the stack is closed then, even where the client has gone.

        Raises:
            Refusal: The images can't be used.
        """
        kept = stack.pop_all()
        future.add_done_callback(lambda done: kept.close())
        try:
            return await asyncio.wrap_future(future)
        except (VitpError, MemoryError) as error:
            raise refusal_of(error, names) from error
