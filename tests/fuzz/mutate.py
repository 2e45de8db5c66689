"""What may be wrong with a file, a value or a name. Everything follows from the random generator that is given."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import yaml
from PIL import Image

NUMBERS: tuple[str, ...] = (
    "-1",
    "0",
    "1",
    "2",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "9" * 20,
    "9" * 5000,
    "abc",
    "",
    "1.5",
    "0x10",
)
"""What is given where a number is due. None is a large number that is allowed: that would only take long."""


def urls(port: int) -> tuple[str, ...]:
    """Return addresses that must not be opened; somebody listens at the port."""
    here = f"127.0.0.1:{port}"
    return (
        f"http://{here}/x.png",
        f"ftp://{here}/x.png",
        f"https://{here}/x",
        f"simplecache::http://{here}/x",
        f"http://{here}/a::ftp://{here}/b",
        "s3://bucket/x.png",
        "file:///etc/passwd",
        "file:///dev/zero",
        f"tar:http://{here}/x.tar#0+10/a.png",
        "hf-hub:timm/nothing",
    )


def words(port: int) -> tuple[str, ...]:
    """Return texts that mean something to somebody."""
    return (
        *urls(port),
        *(
            "",
            " ",
            "\x00",
            "\ud83d",
            "a" * 10_000,
            "../../../../etc/passwd",
            "/dev/zero",
            "/dev/stdin",
            ".",
            "/",
        ),
        *(
            "<image>",
            "<end>",
            "<|im_end|>",
            "<script>alert(1)</script>",
            "\x1b[2J",
            "[",
            "{0..999999999999}",
            "null",
        ),
        *("tar:x#0+9999999999999999999/a", "scene:port/1/99999999999", "scene:x", "x-{0..999999999999}.tar"),
        *("no", "1e-4", "ä" * 300, "NaN", "True", "-", "%s%n", "a\nb"),
    )


def value(random: Random, port: int) -> Any:
    """Return a value that is not the one expected."""
    return random.choice(
        (
            lambda: random.choice((None, True, False, [], {}, [[]], [3], {"a": 1}, [None])),
            lambda: random.choice(
                (-1, 0, 1, 2, 0.5, -0.0, 1e308, -1e308, 1e-320, 10**18, -(10**18), 10**400)
            ),
            lambda: random.choice((float("nan"), float("inf"), -float("inf"))),
            lambda: random.choice(words(port)),
            lambda: [random.choice((1, -1, None, float("nan"), "x"))] * random.choice((1, 4, 7, 1000)),
            lambda: _nested(random.choice((5, 90, 150, 900))),
        )
    )()


def _nested(depth: int) -> Any:
    inner: Any = 1
    for _ in range(depth):
        inner = [inner]
    return inner


def in_tree(random: Random, tree: Any, port: int) -> Any:
    """Return a tree of plain values with one of its nodes changed, removed, doubled or renamed."""
    places = list(_places(tree))
    if not places:
        return value(random, port)
    parent, key = random.choice(places)
    way = random.randrange(5)
    if way == 0:
        del parent[key]
    elif way == 1 and isinstance(parent, dict):
        parent[random.choice(("x", "", "id", "ＩＤ", f"{key} ", str(key).upper()))] = parent.pop(key)
    elif way == 2 and isinstance(parent, list):
        parent.insert(key, parent[key])
    else:
        parent[key] = value(random, port)
    return tree


def _places(tree: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting and len(found) < 2000:
        node = waiting.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            found.append((node, key))
            waiting.append(node[key])
    return found


def raw(random: Random, data: bytes) -> bytes:
    """Return bytes with something wrong anywhere."""
    at = random.randrange(len(data) + 1)
    some = bytes(random.randrange(256) for _ in range(random.choice((1, 4, 64))))
    return random.choice(
        (
            lambda: data[:at],
            lambda: data[:at] + some + data[at:],
            lambda: data[:at] + some + data[at + len(some) :],
            lambda: data[:at] + data[at + random.choice((1, 8, 512)) :],
            lambda: data[:at] + data[max(0, at - 40) :],
            lambda: b"\xef\xbb\xbf" + data,
            lambda: data.replace(b"\n", b"\r\n"),
            lambda: data[:at] + b"\x00" * 16 + data[at:],
            lambda: data + data,
            lambda: b"",
        )
    )()


def json_text(random: Random, data: bytes, port: int) -> bytes:
    """Change a JSON document, or one row of JSON Lines."""
    try:
        text = data.decode()
        lines = text.splitlines()
        by_line = len(lines) > 1 and text.lstrip()[:1] == "{" and lines[0].rstrip().endswith("}")
        at = random.randrange(len(lines)) if by_line else 0
        tree = in_tree(random, json.loads(lines[at] if by_line else text), port)
        changed = json.dumps(tree)
    except (ValueError, RecursionError, IndexError):
        return raw(random, data)
    if random.random() < 0.1:
        changed = random.choice(("[" * 100_000, '{"a":' * 3000 + "1" + "}" * 3000, "1" * 5000, changed[:-1]))
    if not by_line:
        return changed.encode(errors="surrogatepass")
    lines[at] = changed
    return "\n".join(lines).encode(errors="surrogatepass")


def yaml_text(random: Random, data: bytes, port: int) -> bytes:
    """Change a YAML document."""
    if random.random() < 0.25:
        bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
            f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
        )
        extra = random.choice(
            (
                bomb,
                f"{bomb}names: *a9\n",
                "x: !!python/object/apply:os.system [true]\n",
                "x: !!int abc\n",
                "x: !mine 1\n",
                "x: 2024-99-99\n",
                f"x: {'[' * 5000}\n",
                f"x: {'9' * 5000}\n",
                "x: &x {<<: *x}\n",
                "x: [*unknown]\n",
                "\tx: 1\n",
                "x: \x00\n",
                "? [a]\n: 1\n",
            )
        )
        return random.choice((data + b"\n" + extra.encode(), extra.encode() + data))
    try:
        tree = in_tree(random, yaml.safe_load(data.decode()), port)
        text = yaml.safe_dump(tree, allow_unicode=True)
    except (ValueError, yaml.YAMLError, RecursionError):
        return data[: random.randrange(len(data) + 1)]
    return text.encode(errors="surrogatepass")


def plain_text(random: Random, data: bytes, port: int) -> bytes:
    """Change a word of a table of words and numbers."""
    try:
        parts = re.split(r"([\s,]+)", data.decode())
    except UnicodeDecodeError:
        return raw(random, data)
    at = random.randrange(len(parts))
    parts[at] = random.choice((*NUMBERS, *words(port), f"{parts[at]} {parts[at]}", "0.0", "-0.5", "1e-320"))
    return "".join(parts).encode(errors="surrogatepass")


def xml_text(random: Random, data: bytes, port: int) -> bytes:
    """Change a text or a tag of an XML document."""
    text = data.decode(errors="replace")
    ends = list(re.finditer(r">([^<>]*)<", text))
    if not ends or random.random() < 0.2:
        bomb = '<!DOCTYPE a [<!ENTITY a "xxxxxxxxxx"><!ENTITY b "&a;&a;&a;&a;">]>'
        return random.choice(
            (raw(random, data), (bomb + text).encode(), b"<a>" * 5000, (f"<a>{text}</a>").encode())
        )
    match = random.choice(ends)
    new = random.choice((*NUMBERS, *(word.replace("<", "&lt;") for word in words(port)), "", "<x/>"))
    return (text[: match.start(1)] + new + text[match.end(1) :]).encode(errors="surrogatepass")


def image_file(random: Random, path: Path) -> None:
    """Replace an image by one of another kind, or by something that only looks like one."""
    try:
        with Image.open(path) as image:
            size = image.size
    except Image.DecompressionBombError as error:  # a change before has made it so
        raise OSError(str(error)) from error
    pixels = np.random.default_rng(random.randrange(2**32)).integers(
        0, 256, (size[1], size[0], 4), dtype=np.uint8
    )
    rgb = Image.fromarray(pixels[..., :3])
    way = random.randrange(14)
    if way < 5:
        rgb.convert(("1", "L", "P", "CMYK", "LA")[way]).save(path, "TIFF" if way in (3, 4) else "PNG")
    elif way == 5:
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 256).save(path, "PNG")
    elif way == 6:
        floats = pixels[..., 0].astype(np.float32)
        floats[0] = np.nan
        Image.fromarray(floats).save(path, "TIFF")
    elif way == 7:
        rgb.resize((1, 1)).save(path, "PNG")
    elif way == 8:
        rgb.resize((random.choice((1, 3000)), 7)).save(path, "PNG")
    elif way == 9:
        path.write_bytes(
            _png_of(random.choice(((100_000, 100_000), (2**31 - 1, 2**31 - 1), (0, 5), (30_000, 30_000))))
        )
    elif way == 10:
        rgb.save(path, "GIF", save_all=True, append_images=[rgb, rgb])
    elif way == 11:
        rgb.save(path, "JPEG")
        path.write_bytes(raw(random, path.read_bytes()))
    else:
        path.write_bytes(raw(random, path.read_bytes()))


def _png_of(size: tuple[int, int]) -> bytes:
    """Return a PNG that says it has a size, and holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\x00" * 4000))
        + chunk(b"IEND", b"")
    )


def no_file(random: Random, path: Path) -> None:
    """Replace a file by something that isn't one, or give it a name that is hard to say."""
    way = random.randrange(8)
    if way == 0:
        path.unlink()
        os.mkfifo(path)
    elif way == 1:
        path.unlink()
        path.mkdir()
    elif way == 2:
        path.unlink()
        path.symlink_to(path)
    elif way == 3:
        path.unlink()
        path.symlink_to(random.choice(("/dev/zero", "/dev/null", "/nowhere", "/proc/self/mem", "..")))
    elif way == 4:
        path.unlink()
    elif way == 5:
        path.write_bytes(b"")
    elif way == 6:
        path.rename(path.with_name(os.fsdecode(b"im\xe4") + path.suffix))
    else:
        shutil.copy(
            path,
            path.with_name(
                random.choice(("a b", "ä", "x;rm", "-x", "'", '"', "%2e", "#1", "a\nb")) + path.suffix
            ),
        )


def file(random: Random, path: Path, port: int) -> None:
    """Make something wrong with a file, of a kind that its name suggests.

    Raises:
        OSError: A change before has left no file there.
    """
    if path.is_symlink() or not path.is_file():
        raise FileNotFoundError(path)
    if random.random() < 0.12:
        no_file(random, path)
        return
    by_suffix: dict[str, Callable[[Random, bytes, int], bytes]] = {
        ".json": json_text,
        ".jsonl": json_text,
        ".yaml": yaml_text,
        ".xml": xml_text,
        ".txt": plain_text,
    }
    change = by_suffix.get(path.suffix)
    if path.suffix in (".png", ".jpg"):
        image_file(random, path)
    elif change is None or random.random() < (0.05 if path.suffix == ".yaml" else 0.2):
        path.write_bytes(raw(random, path.read_bytes()))
    else:
        path.write_bytes(change(random, path.read_bytes(), port))
