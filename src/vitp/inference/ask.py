"""Asking a vision-language model about images, and drawing what it points at."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from vitp.core.errors import DataError
from vitp.data.chat import ChatTokenizer
from vitp.data.seen import PixelImage, SeenBands, lone_image, seen_again
from vitp.data.synthesis.answers import parse_boxes, parse_geochat, parse_quads
from vitp.data.tiling import cut_tiles
from vitp.inference.plates import LabelPlates
from vitp.io.images import load_image
from vitp.models.vlm import VisionLanguageModel
from vitp.records.channels import Channels
from vitp.records.instructions import COORDINATE_RANGE, IMAGE_MARK

ImageLike = str | Path | Image.Image

_COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#f032e6", "#9a6324")
"""One a label, in the order in which labels appear; dark enough for white text."""


class Assistant:
    """Answers questions about images.

    Args:
        vlm: The model; it is moved to the device and put into eval mode.
        chat: Its tokenizer.
        device: Device on which to compute.
        max_tiles: Tiles an image is cut into at most; several images share them.
    """

    def __init__(
        self,
        vlm: VisionLanguageModel,
        chat: ChatTokenizer,
        device: str | torch.device = "cpu",
        *,
        max_tiles: int = 6,
    ) -> None:
        self.vlm, self.chat = vlm.to(device).eval(), chat
        self.device, self.max_tiles = torch.device(device), max_tiles

    def answer(
        self,
        images: Sequence[ImageLike],
        question: str,
        *,
        max_new_tokens: int = 128,
        history: Sequence[tuple[str, str]] = (),
        stream: Callable[[str], None] | None = None,
        do_sample: bool = False,
        temperature: float = 1.0,
    ) -> str:
        """Return the answer, markup such as `<ref>`, `<box>` and `<quad>` kept.

        Args:
            images: Paths, `scene:` addresses or 8-bit PIL images, all that the conversation is about.
            question: With one `<image>` mark an image, or with none: then they are put in front.
            max_new_tokens: The answer ends there at the latest.
            history: Earlier questions and answers; the marks may stand in them.
            stream: Called with each piece of text as it comes; the pieces joined are the answer.
            do_sample: Draw from the distribution instead of taking the likeliest token.
            temperature: Temperature of the distribution, when drawing.

        Raises:
            DataError: An image can't be read, marks and images differ in number, or the conversation is longer
                than the language model can read.
        """
        question, history = place_marks(question, list(history), len(images))
        budget = max(1, self.max_tiles // max(1, len(images)))
        size = self.vlm.vision.image_size[0]
        tiles = [cut_tiles(self._read(image), size, budget) for image in images]
        prompt = self.chat.encode_prompt(question, [len(t) for t in tiles], history)
        self._check_length(len(prompt), max_new_tokens)
        none = np.empty((0, self.vlm.vision.num_channels, size, size), dtype=np.uint8)
        tiles_TCHW = np.concatenate(tiles) if tiles else none
        ids = self.vlm.generate(
            torch.from_numpy(tiles_TCHW).to(self.device),
            torch.from_numpy(prompt.ids_N).to(self.device),
            torch.from_numpy(np.flatnonzero(prompt.image_N)).to(self.device),
            max_new_tokens=max_new_tokens,
            do_sample=do_sample,
            # The defaults of a language model's own generation settings are meant for sampling.
            temperature=temperature if do_sample else None,
            top_p=None,
            top_k=None,
            eos_token_id=self.chat.stop_id,
            pad_token_id=self.chat.pad_id,
            # A placeholder in an answer would stand for an image that isn't there when the answer is read again.
            suppress_tokens=[self.chat.image_id, self.chat.image_start_id, self.chat.image_end_id],
            streamer=None if stream is None else _PieceStreamer(self.chat, stream),
        )
        return self.chat.decode(ids.tolist())

    def _read(self, image: ImageLike) -> PixelImage:
        channels = self.vlm.vision.in_channels
        if isinstance(image, Image.Image):
            return image.convert("RGB") if channels is None else seen_again(image.convert("RGB"), channels)
        return lone_image(image) if channels is None else SeenBands(channels).load(str(image))

    def _check_length(self, prompt: int, new: int) -> None:
        limit = getattr(self.vlm.language.config, "max_position_embeddings", None)
        if limit is not None and prompt + new > limit:
            raise DataError(
                f"{prompt} tokens and an answer of up to {new} exceed the {limit} that the language model reads",
                where="question",
                fix="use fewer images or tiles, a shorter history or a smaller max_new_tokens",
            )


def place_marks(
    question: str, history: list[tuple[str, str]], images: int
) -> tuple[str, list[tuple[str, str]]]:
    """Return question and history with one mark an image: in front of the first question when there was none.

    Several images are numbered ("Image-1: …"), the way the training data do it.

    Raises:
        DataError: There are marks, but not as many as images.
    """
    marks = question.count(IMAGE_MARK) + sum(past.count(IMAGE_MARK) for past, _ in history)
    if marks == images:
        return question, history
    if marks:
        raise DataError(
            f"{marks} {IMAGE_MARK} marks but {images} images",
            where="question",
            fix="give one mark an image, or none at all",
        )
    lines = (
        [f"Image-{n}: {IMAGE_MARK}\n" for n in range(1, images + 1)] if images > 1 else [f"{IMAGE_MARK}\n"]
    )
    front = "".join(lines)
    if history:
        (first, answer), *rest = history
        return question, [(front + first, answer), *rest]
    return front + question, history


class _PieceStreamer(BaseStreamer):
    """Hands out text as soon as its characters are whole.

    transformers' own streamer waits for spaces, which coordinates don't have to have, and prints.
    """

    def __init__(self, chat: ChatTokenizer, send: Callable[[str], None]) -> None:
        self.chat, self.send = chat, send
        self.ids: list[int] = []
        self.sent = ""

    def put(self, value: Tensor) -> None:
        """Take new token ids. Those of the prompt aren't among them, as it goes in as embeddings."""
        self.ids += value.flatten().tolist()
        text = self.chat.decode(self.ids)
        # Bytes of an unfinished character decode to U+FFFD.
        if not text.endswith("�"):
            self._send(text)

    def end(self) -> None:
        """Hand out what was held back."""
        self._send(self.chat.decode(self.ids))

    def _send(self, text: str) -> None:
        if piece := text[len(self.sent) :]:
            self.send(piece)
            self.sent = text


def draw_answer(image: ImageLike, answer: str, channels: Channels | None = None) -> Image.Image:
    """Return a copy of the image with the boxes and oriented boxes of an answer, and their labels.

    Coordinates are on 0..1000 of the whole image; broken ones are left out.

    Args:
        image: A file, or an image as it is shown.
        answer: Text with boxes in it.
        channels: What the model sees of a file's bands, of which the composite is shown.
    """
    if isinstance(image, Image.Image):
        canvas = image.convert("RGB").copy()
    else:
        canvas = load_image(image, channels=channels)
    shapes = answer_outlines(answer)
    colours = {
        label: _COLOURS[i % len(_COLOURS)]
        for i, label in enumerate(dict.fromkeys(label for label, _ in shapes))
    }
    draw = ImageDraw.Draw(canvas)
    width = max(1, round(max(canvas.size) / 300))
    scale = (canvas.width / COORDINATE_RANGE, canvas.height / COORDINATE_RANGE)
    outlines = [(label, [(x * scale[0], y * scale[1]) for x, y in corners]) for label, corners in shapes]
    for label, corners in outlines:
        draw.line([*corners, corners[0]], fill=colours[label], width=width, joint="curve")
    # Labels come last, so that no outline crosses them.
    plates = LabelPlates(draw, canvas.size)
    for label, corners in outlines:
        plates.beside(label, corners, colours[label])
    return canvas


def answer_outlines(answer: str) -> list[tuple[str, list[tuple[float, float]]]]:
    """Return label and corners of all boxes in the text, whichever form they are written in."""
    found: list[tuple[str, list[tuple[float, float]]]] = []
    for label, (x1, y1, x2, y2) in parse_boxes(answer):
        found.append((label, [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]))
    for label, quad in parse_quads(answer):
        found.append((label, list(zip(quad[::2], quad[1::2], strict=True))))
    for label, (x1, y1, x2, y2), degrees in parse_geochat(answer):
        # The corners turned clockwise around the centre, in the image, where y points down.
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        x, y, right, down = (x1 + x2) / 2, (y1 + y2) / 2, (x2 - x1) / 2, (y2 - y1) / 2
        sides = ((-right, -down), (right, -down), (right, down), (-right, down))
        found.append((label, [(x + cos * dx - sin * dy, y + sin * dx + cos * dy) for dx, dy in sides]))
    return found
