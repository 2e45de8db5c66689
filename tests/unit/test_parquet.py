"""Tables that hold their images: Parquet shards and folders of `datasets.save_to_disk`, whole and damaged."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitp.core.errors import ConfigError, DataError
from vitp.data.compile import compile_labels
from vitp.data.formats import detect, read_labels
from vitp.data.formats.parquet import parquet_columns, parquet_rows
from vitp.data.formats.vitp_labels import read_compiled
from vitp.data.sources import read_mixture

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def picture(number: int, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (24, 30, 3), dtype=np.uint8)
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, kind)
    return held.getvalue()


def struct(number: int) -> dict[str, Any]:
    return {"bytes": picture(number), "path": f"{number}.png"}


NAMES = {"label": {"names": ["cat", "dog", "ox"], "_type": "ClassLabel"}}


def write(path: Path, columns: dict[str, Any], names: Any = None, group: int = 5) -> Path:
    table = pa.table(columns)
    if names is not None:
        metadata = {b"huggingface": json.dumps({"info": {"features": names}}).encode()}
        table = table.replace_schema_metadata(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group)
    return path


def talk(number: int) -> list[dict[str, str]]:
    return [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": f"Number {number}."},
    ]


def test_classes_and_captions_of_shards(tmp_path: Path) -> None:
    for split, first in (("train", 0), ("test", 100)):
        columns = {
            "image": [struct(first + k) for k in range(12)],
            "label": [k % 3 for k in range(12)],
            "caption": [[f"picture {k}", "a second text"] for k in range(12)],
        }
        write(tmp_path / "set" / "data" / f"{split}-00000-of-00001.parquet", columns, NAMES)
    assert detect(tmp_path / "set").format == "parquet"
    found = compile_labels(tmp_path / "set", "auto", tmp_path / "out", val=0.25)
    assert found.understood[0] == "columns: image from image, caption from caption, class from label"
    labelled = read_compiled(tmp_path / "out")
    assert labelled.scene_classes == ("cat", "dog", "ox") and len(labelled) == 24
    item = next(item for item in labelled.items if item.id == "data/test-00000-of-00001/00000002")
    assert (item.split, item.scene, item.captions) == ("test", "dog", ("picture 1", "a second text"))
    assert Path(item.image).read_bytes() == picture(101) and "/out/images/" in item.image
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "set"]
    again = compile_labels(tmp_path / "set", "parquet", tmp_path / "again", val=0.25)
    assert again.content_hash == found.content_hash
    (entry,) = read_mixture(tmp_path / "out" / "mixture.json")
    assert len(entry.records) == found.splits["train"].records
    with pytest.raises(DataError, match=r"inside of a table.*compile it first"):
        read_labels("parquet", tmp_path / "set")


def test_conversations_become_records(tmp_path: Path) -> None:
    messages = [
        [{"role": "user", "content": "And this?"}, {"role": "assistant", "content": f"It is {k}."}]
        for k in range(7)
    ]
    columns = {"images": [[struct(k)] for k in range(7)], "messages": messages}
    write(tmp_path / "talks.parquet", columns, group=3)
    found = compile_labels(tmp_path / "talks.parquet", "auto", tmp_path / "out", max_tiles=4, licence="MIT")
    assert (found.splits["train"].records, found.splits["train"].turns) == (7, 7)
    (entry,) = read_mixture(tmp_path / "out" / "mixture.json")
    record = entry.records[4]
    assert (record.turns[0].question, record.turns[0].answer) == ("<image>\nAnd this?", "It is 4.")
    assert Path(record.images[0]).read_bytes() == picture(4) and record.licence == "MIT"
    assert entry.max_tiles == 4
    with pytest.raises(ConfigError, match="about whole images"):
        compile_labels(tmp_path / "talks.parquet", "auto", tmp_path / "crops", crop=12)
    pairs = [[{"user": "Who?", "assistant": "me", "source": "x"}] for _ in range(3)]
    write(tmp_path / "pairs.parquet", {"images": [[struct(k)] for k in range(3)], "texts": pairs})
    compile_labels(tmp_path / "pairs.parquet", "auto", tmp_path / "pairs")
    (entry,) = read_mixture(tmp_path / "pairs" / "mixture.json")
    assert entry.records[0].turns[0].answer == "me"


def test_a_folder_of_datasets(tmp_path: Path) -> None:
    """As `save_to_disk` of a dictionary of splits leaves it; labels that are lists are several classes."""
    for split, first in (("train", 0), ("test", 50)):
        folder = tmp_path / "saved" / split
        folder.mkdir(parents=True)
        (folder / "dataset_info.json").write_text("{}")
        table = pa.table(
            {
                "image": [picture(first + k, "JPEG") for k in range(9)],
                "tags": [["a"], ["b", "a"], []] * 3,
            }
        )
        with (
            pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as file,
            pa.ipc.new_stream(file, table.schema) as stream,
        ):
            stream.write_table(table)
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert detect(tmp_path / "saved").format == "parquet"
    compile_labels(tmp_path / "saved", "auto", tmp_path / "out")
    labelled = read_compiled(tmp_path / "out")
    by_id = {item.id: item for item in labelled.items}
    item = by_id["test/data-00000-of-00001/00000002"]
    assert item.tags == ("b", "a") and item.split == "test" and item.image.endswith(".jpg")
    assert by_id["test/data-00000-of-00001/00000003"].tags == ()


def test_rows_come_group_by_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(
        tmp_path / "a.parquet", {"image": [picture(k) for k in range(12)], "caption": ["x"] * 12}, group=4
    )
    asked: list[Any] = []
    real = pq.ParquetFile.iter_batches

    def iter_batches(self: Any, *rest: Any, **more: Any) -> Any:
        asked.append(more["row_groups"])
        return real(self, *rest, **more)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
    rows = parquet_rows(path, parquet_columns(path, {}))
    assert [next(rows).number for _ in range(5)] == [1, 2, 3, 4, 5]
    assert asked == [[0], [1]]


IMAGES = [struct(k) for k in range(6)]


@pytest.mark.parametrize(
    ("columns", "options", "said"),
    [
        ({"image": IMAGES, "mask": IMAGES, "caption": ["a"] * 6}, {}, "several columns of images.*: image, mask; its columns.*-o image_column=image or -o image_column=mask"),
        ({"image": IMAGES, "caption": ["a"] * 6, "text": ["b"] * 6}, {}, "several columns of captions.*-o caption_column=caption or -o caption_column=text"),
        ({"image": IMAGES, "label": ["a"] * 6, "messages": [talk(0)] * 6}, {}, "has conversations .messages. and labels .label.*-o conversation_column=messages or -o class_column=label"),
        ({"image": ["a.png"] * 6, "label": ["a"] * 6}, {}, "has no column of images.*image .string., label .string."),
        ({"image": IMAGES, "size": [1.5] * 6}, {}, "no column of conversations, captions or classes.*-o caption_column=NAME"),
        ({"image": IMAGES, "label": [1.5] * 6}, {"class_column": "label"}, 'column "label" is double, not classes'),
        ({"image": IMAGES, "label": ["a"] * 6}, {"class_column": "labl"}, 'no column "labl".*"label"'),
        ({"image": [*IMAGES[:2], None, *IMAGES[3:]], "messages": [talk(0)] * 6}, {}, "bad.parquet:3, column image: is null"),
        ({"image": [*IMAGES[:4], {"bytes": None, "path": "a.png"}, IMAGES[5]], "messages": [talk(0)] * 6}, {}, "bad.parquet:5, column image: names the file a.png and doesn't hold it"),
        ({"image": [b"nothing"] * 6, "messages": [talk(0)] * 6}, {}, "bad.parquet:1, column image: holds 7 bytes that are no image"),
        ({"image": [b"\x89PNG\r\n\x1a\nxx"] * 6, "messages": [talk(0)] * 6}, {}, "bad.parquet:1, column image: "),
        ({"image": IMAGES, "messages": [talk(0)] * 3 + [talk(0)[:1]] + [talk(0)] * 2}, {}, "bad.parquet:4, column messages: the last question has no answer"),
        ({"image": IMAGES, "messages": [talk(0), None] + [talk(0)] * 4}, {}, "bad.parquet:2, column messages: is null"),
        ({"image": [None] * 6, "caption": ["a"] * 6}, {"image_column": "image"}, 'column "image" is null, not images'),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named(
    tmp_path: Path, columns: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    write(tmp_path / "set" / "bad.parquet", columns)
    with pytest.raises(DataError) as raised:
        compile_labels(tmp_path / "set", "parquet", tmp_path / "out", **options)
    assert re.search(said, str(raised.value)), str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["set"], "something half-written is left"


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[200:4000] = bytes(3800)
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [_cut, _flip, lambda path: path.write_bytes(b"PAR1")])
def test_damaged_files(tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    columns = {"image": [struct(k) for k in range(30)], "caption": [f"text {k}" for k in range(30)]}
    write(tmp_path / "set" / "train-0.parquet", columns)
    damage(write(tmp_path / "set" / "train-1.parquet", columns))
    with pytest.raises(DataError) as raised:
        compile_labels(tmp_path / "set", "parquet", tmp_path / "out")
    # A table without checksums may read as other bytes.
    found = (
        r"train-1\.parquet: can't be read|\(the first: train-1\.parquet:\d+, column image: holds \d+ bytes"
    )
    assert re.search(found, str(raised.value)) and ".tmp" not in str(raised.value), str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_single_rows_without_image_or_label_are_findings(tmp_path: Path) -> None:
    images: list[Any] = [struct(k) for k in range(30)]
    images[3] = None
    labels: list[Any] = [k % 3 for k in range(30)]
    labels[4], labels[5] = None, 7
    write(tmp_path / "set" / "a.parquet", {"image": images, "label": labels}, NAMES)
    found = compile_labels(tmp_path / "set", "parquet", tmp_path / "out")
    assert [line for line in found.findings if line.startswith("a.parquet")] == [
        "a.parquet:4, column image: is null; left out",
        "a.parquet:5, column label: is null or empty; left out",
        "a.parquet:6, column label: 7 is no number of a class; left out",
    ]
    assert len(read_compiled(tmp_path / "out")) == 27


def test_shards_have_the_same_columns(tmp_path: Path) -> None:
    write(tmp_path / "set" / "train-0.parquet", {"image": IMAGES, "label": ["a", "b"] * 3})
    write(tmp_path / "set" / "train-1.parquet", {"image": IMAGES, "label": [1, 2] * 3})
    with pytest.raises(DataError, match=r"its column label is int64, that of train-0.parquet string"):
        compile_labels(tmp_path / "set", "parquet", tmp_path / "out")
