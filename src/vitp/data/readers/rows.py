"""One row of an annotation file → `InstructionRecord`, whichever of the usual forms it has.

| form | conversation | images |
|---|---|---|
| InternVL, LLaVA | `conversations`: `from` human/gpt, `value` | `image`: path or list of paths |
| ShareGPT | the same, or `from` user/assistant | `images`: list |
| chat messages | `messages`: `role` user/assistant, `content` text or parts | `images`, or parts of type `image` |

Beside them the optional keys of `vitp.records.instructions.record_to_json` are read: `id`, `width`, `height`,
`independent`, `regions`, `source`, `licence`. Keys that are not known are left alone: corpora carry many of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from vitp.core.errors import DataError
from vitp.io.storage import join
from vitp.records.instructions import IMAGE_MARK, InstructionRecord, Region, Turn, printable

_ASKS = {"human", "user"}
_ANSWERS = {"gpt", "assistant", "bot", "model"}


@dataclass(frozen=True, slots=True)
class RowPlace:
    """Where a row stands, for messages.

    Attributes:
        file: Annotation file.
        line: Line of the file, from 1, on which the row begins.
    """

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def record_from_row(row: Any, *, place: RowPlace, root: str | Path | None, source: str) -> InstructionRecord:
    """Return the record that a parsed JSON row stands for.

    A row with one image and no `<image>` mark at all gets the mark and a line break in front of its first
    question, as InternVL does. With several images the marks must be there.

    Args:
        row: The parsed row.
        place: File and line, for messages.
        root: Folder or URL that relative image paths start from; None leaves them as they are.
        source: Name of the set, for rows that don't name one.

    Raises:
        DataError: The row can't be used; the message names file, line, id and what to do.
    """
    if not isinstance(row, dict):
        what = f"a row must be an object, this one is {_kind(row)}"
        raise DataError(what, where=str(place), fix='write {"id": …, "image": …, "conversations": […]}')
    return _Row(row, place, root).record(source)


def row_id(row: Any, place: RowPlace) -> str:
    """Return the row's own id as text, or one made of file name and line."""
    given = row.get("id") if isinstance(row, dict) else None
    if isinstance(given, (str, int)) and not isinstance(given, bool) and str(given).strip():
        return str(given)
    return f"{Path(place.file).stem}:{place.line}"


class _Row:
    """One row while it is read; holds what every message needs."""

    def __init__(self, row: Mapping[str, Any], place: RowPlace, root: str | Path | None) -> None:
        self.row, self.root, self.place = row, root, place
        self.id = row_id(row, place)

    def refuse(self, what: str, fix: str) -> NoReturn:
        raise DataError(what, where=f"{self.place} (id {printable(self.id)})", fix=fix)

    def record(self, source: str) -> InstructionRecord:
        images = self._images()
        turns, part_images = self._turns()
        if part_images and images:
            self.refuse("names images twice, in the row and in its messages", "keep one of the two")
        images = images or part_images
        if len(images) == 1 and not any(IMAGE_MARK in turn.question for turn in turns):
            turns = [Turn(f"{IMAGE_MARK}\n{turns[0].question}", turns[0].answer), *turns[1:]]
        return InstructionRecord(
            id=self.id,
            images=tuple(image if self.root is None else join(self.root, image) for image in images),
            turns=tuple(turns),
            sizes=self._sizes(len(images)),
            independent=self._flag("independent"),
            regions=self._regions(len(images)),
            source=self._text("source") or source,
            licence=self._text("licence"),
            origin=str(self.place),
        )

    def _images(self) -> list[str]:
        given = [key for key in ("image", "images") if self.row.get(key)]
        if len(given) == 2:
            self.refuse('has both "image" and "images"', "keep one of the two")
        if not given:
            if self.row.get("video"):
                self.refuse("holds a video", "extract frames and give them as a list of images")
            return []
        value = self.row[given[0]]
        images = [value] if isinstance(value, str) else value
        if not isinstance(images, list) or not all(isinstance(i, str) and i.strip() for i in images):
            self.refuse(f'"{given[0]}" must be a path or a list of paths', "check the row")
        return images

    def _turns(self) -> tuple[list[Turn], list[str]]:
        """Return the turns and the images that are named inside of messages."""
        key = "conversations" if "conversations" in self.row else "messages"
        messages = self.row.get(key)
        if not isinstance(messages, list) or not messages:
            what = f'"{key}" must be a list with messages' if key in self.row else 'has no "conversations"'
            self.refuse(what, 'write [{"from": "human", "value": …}, {"from": "gpt", "value": …}]')
        images: list[str] = []
        said = [self._message(message, number, images) for number, message in enumerate(messages, 1)]
        for number, (asks, _) in enumerate(said, 1):
            if asks != (number % 2 == 1):
                role, due = ("a question", "an answer") if asks else ("an answer", "a question")
                self.refuse(
                    f"message {number} is {role} where {due} is due",
                    "questions and answers must take turns, a question first",
                )
        if len(said) % 2:
            self.refuse("the last question has no answer", "remove it or add the answer")
        pairs = zip(said[::2], said[1::2], strict=True)
        return [Turn(question, answer) for (_, question), (_, answer) in pairs], images

    def _message(self, message: Any, number: int, images: list[str]) -> tuple[bool, str]:
        """Return (is a question, text) of one message; image parts are added to `images`."""
        if not isinstance(message, dict):
            self.refuse(f"message {number} is {_kind(message)}, not an object", "check the row")
        role = message.get("from", message.get("role"))
        content = message.get("value", message.get("content"))
        if role == "system":
            self.refuse(
                "has a system message",
                "remove it: the run's chat template sets one system message for all rows",
            )
        if not isinstance(role, str) or role not in _ASKS | _ANSWERS:
            self.refuse(f"message {number} is from {role!r}", "use human and gpt, or user and assistant")
        if isinstance(content, list):
            content = "".join(self._part(part, number, images) for part in content)
        if not isinstance(content, str):
            self.refuse(f"message {number} has no text", 'give it as "value" or "content"')
        return role in _ASKS, content

    def _part(self, part: Any, number: int, images: list[str]) -> str:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            return str(part["text"])
        if kind != "image":
            self.refuse(f"message {number} has a part of type {kind!r}", "use parts of type text and image")
        path = part.get("image") or part.get("path")
        if isinstance(path, str):
            images.append(path)
        return f"{IMAGE_MARK}\n"

    def _sizes(self, count: int) -> tuple[tuple[int, int], ...] | None:
        width, height = self.row.get("width"), self.row.get("height")
        if width is None or height is None or not count:
            return None
        widths = width if isinstance(width, list) else [width]
        heights = height if isinstance(height, list) else [height]
        if not all(_is_whole(v) and v > 0 for v in widths + heights):
            self.refuse("width and height must be whole numbers above 0", "give pixels, or leave both out")
        if len(widths) != count or len(heights) != count:
            self.refuse(
                f"{len(widths)} widths and {len(heights)} heights but {count} images",
                "give lists with one number an image, or leave both out",
            )
        return tuple((int(w), int(h)) for w, h in zip(widths, heights, strict=True))

    def _regions(self, images: int) -> tuple[Region, ...]:
        regions = self.row.get("regions") or []
        if not isinstance(regions, list):
            self.refuse('"regions" must be a list', 'write [{"label": …, "box": [x1, y1, x2, y2]}]')
        return tuple(self._region(region, number, images) for number, region in enumerate(regions, 1))

    def _region(self, region: Any, number: int, images: int) -> Region:
        if not isinstance(region, dict) or not isinstance(region.get("label"), str):
            self.refuse(f"region {number} has no label", 'write {"label": …, "box": [x1, y1, x2, y2]}')
        box: Any = region.get("box")
        quad, image = region.get("quad"), region.get("image", 0)
        if not _whole_numbers(box, 4):
            self.refuse(
                f"the box of region {number} is not four whole numbers", "use x1, y1, x2, y2 on 0..1000"
            )
        if quad is not None and not _whole_numbers(quad, 8):
            self.refuse(
                f"the quad of region {number} is not eight whole numbers", "use four corners on 0..1000"
            )
        if not _is_whole(image) or not 0 <= image < images:
            self.refuse(f"region {number} is in image {image!r} of {images}", "count images from 0")
        x1, y1, x2, y2 = (int(v) for v in box)
        corners = tuple(int(v) for v in quad) if quad is not None else None
        return Region(region["label"], (x1, y1, x2, y2), corners, int(image))

    def _text(self, key: str) -> str:
        value = self.row.get(key)
        if value is not None and not isinstance(value, str):
            self.refuse(f'"{key}" must be text', "check the row")
        return value or ""

    def _flag(self, key: str) -> bool:
        value = self.row.get(key, False)
        if not isinstance(value, bool):
            self.refuse(f'"{key}" must be true or false', "check the row")
        return value


def _is_whole(value: Any) -> bool:
    whole_float = isinstance(value, float) and value.is_integer()
    return (isinstance(value, int) and not isinstance(value, bool)) or whole_float


def _whole_numbers(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(_is_whole(v) for v in value)


def _kind(value: Any) -> str:
    names = {list: "a list", str: "text", bool: "true or false", dict: "an object", type(None): "null"}
    return names.get(type(value), "a number")
