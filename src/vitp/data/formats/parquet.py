"""Parquet files, and folders that `datasets.save_to_disk` wrote: tables that hold their images as bytes.

Shards are read row group by row group; images are written to files as they come, and nothing else stays in memory but
the labels. Columns are found by name and type; what has two readings is refused, with the option for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from vitp.core.errors import DataError, did_you_mean
from vitp.core.extras import need
from vitp.core.reading import parse_json
from vitp.data.formats.builder import ReadOptions, SetBuilder
from vitp.data.formats.captions import TEXT_KEYS
from vitp.data.formats.class_columns import CLASS_KEYS, GROUP_KEYS, SPLIT_KEYS
from vitp.data.formats.walk import as_option, split_of, within
from vitp.records.instructions import IMAGE_MARK, text_problem
from vitp.records.labels import LabelledSet

_ROWS = 64
"""That are decoded at a time."""

_TALKS = ("conversations", "conversation", "messages", "texts")
_MARKS = (
    *((b"\xff\xd8\xff", ".jpg"), (b"\x89PNG\r\n\x1a\n", ".png"), (b"GIF8", ".gif"), (b"BM", ".bmp")),
    *((b"II*\0", ".tif"), (b"MM\0*", ".tif"), (b"II+\0", ".tif"), (b"\0\0\0\x0cjP  ", ".jp2")),
)
"""How files of images begin."""


@dataclass(frozen=True)
class ParquetColumns:
    """Columns of a table by what they hold, "" where there is none; `names` are those of numbered classes."""

    image: str
    caption: str = ""
    label: str = ""
    talk: str = ""
    split: str = ""
    group: str = ""
    names: tuple[str, ...] = ()

    @property
    def read(self) -> list[str]:
        """Names of the columns that are read."""
        found = (self.image, self.caption, self.label, self.talk, self.split, self.group)
        return [name for name in found if name]


@dataclass(frozen=True)
class ParquetRow:
    """One row.

    Attributes:
        shard: File, relative to the set.
        number: From 1, in the file.
        values: Column → value.
        split: Split of the file, where its name says it.
    """

    shard: str
    number: int
    values: dict[str, Any]
    split: str | None

    def place(self, column: str) -> str:
        """Return where a value stands, for messages."""
        return f"{self.shard}:{self.number}, column {column}"


def is_parquet(root: Path) -> bool:
    """Return whether a file or folder is a table that holds its images."""
    found = _shards(root)
    return bool(found) and any(_holds_images(kind) for kind in _schema(found[0][0]).types)


def _shards(root: Path) -> list[tuple[Path, str | None]]:
    """Return the files of a table and the splits that their names or folders say."""
    if root.is_file():
        return [(root, split_of(root.stem.split("-")[0]))] if root.suffix.lower() == ".parquet" else []
    paths = sorted(path for path in root.rglob("*.parquet") if not within(path, root).startswith("."))
    if not paths:
        folders = [root, *sorted(path for path in root.iterdir() if path.is_dir())]
        saved = [folder for folder in folders if (folder / "dataset_info.json").is_file()]
        paths = [path for folder in saved for path in sorted(folder.glob("data-*.arrow"))]
    return [(path, _split_of_shard(path, root)) for path in paths]


def _split_of_shard(path: Path, root: Path) -> str | None:
    words = [path.stem.split("-")[0], *reversed(Path(within(path, root)).parts[:-1])]
    return next((split for word in words if (split := split_of(word)) is not None), None)


def _damaged(path: Path, error: Exception) -> DataError:
    reason = (str(error).splitlines() or ["no reason given"])[0].rstrip(".")
    return DataError(f"can't be read ({reason})", where=str(path), fix="download or write the file again")


def _schema(path: Path) -> Any:
    pyarrow = need("parquet", "pyarrow", str(path))
    try:
        if path.suffix.lower() == ".arrow":
            with pyarrow.memory_map(str(path)) as file:
                return need("parquet", "pyarrow.ipc", str(path)).open_stream(file).schema
        return need("parquet", "pyarrow.parquet", str(path)).read_schema(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise _damaged(path, error) from error


def _batches(path: Path, columns: list[str]) -> Iterator[Any]:
    """Yield parts of a file, one row group after the other."""
    if path.suffix.lower() == ".arrow":
        with need("parquet", "pyarrow", str(path)).memory_map(str(path)) as source:
            for batch in need("parquet", "pyarrow.ipc", str(path)).open_stream(source):
                for start in range(0, batch.num_rows, _ROWS):
                    yield batch.select(columns).slice(start, _ROWS)
        return
    with need("parquet", "pyarrow.parquet", str(path)).ParquetFile(path, pre_buffer=False) as file:
        for group in range(file.num_row_groups):
            yield from file.iter_batches(batch_size=_ROWS, row_groups=[group], columns=columns)


def parquet_rows(root: Path, columns: ParquetColumns) -> Iterator[ParquetRow]:
    """Yield the rows of all shards, in the order of their names.

    Raises:
        DataError: A shard is damaged, or has other columns than the first.
    """
    pyarrow = need("parquet", "pyarrow", str(root))
    shards = _shards(root)
    first = _schema(shards[0][0])
    for path, split in shards:
        own = _schema(path)
        for name in columns.read:
            if name not in own.names or own.field(name).type != first.field(name).type:
                kind = own.field(name).type if name in own.names else "missing"
                what = f"its column {name} is {kind}, that of {shards[0][0].name} {first.field(name).type}"
                raise DataError(what, where=str(path), fix="write all shards with the same columns")
        number = 0
        try:
            for batch in _batches(path, columns.read):
                for values in batch.to_pylist():
                    number += 1
                    yield ParquetRow(
                        path.name if root.is_file() else within(path, root), number, values, split
                    )
        except (OSError, pyarrow.ArrowException, UnicodeDecodeError) as error:
            raise _damaged(path, error) from error


def _is_bytes(kind: Any) -> bool:
    types = need("parquet", "pyarrow.types", "a table")
    if types.is_struct(kind):
        return any(field.name == "bytes" and _is_bytes(field.type) for field in kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _is_list(kind: Any) -> bool:
    types = need("parquet", "pyarrow.types", "a table")
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _holds_images(kind: Any) -> bool:
    return _is_bytes(kind.value_type if _is_list(kind) else kind)


def _is_text(kind: Any) -> bool:
    types = need("parquet", "pyarrow.types", "a table")
    kind = kind.value_type if _is_list(kind) else kind
    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind))


def _is_class(kind: Any) -> bool:
    own = kind.value_type if _is_list(kind) else kind
    return _is_text(kind) or bool(need("parquet", "pyarrow.types", "a table").is_integer(own))


def _is_talk(kind: Any) -> bool:
    return _is_list(kind) and bool(need("parquet", "pyarrow.types", "a table").is_struct(kind.value_type))


_ROLES: dict[str, tuple[Any, tuple[str, ...] | None, str]] = {
    "image_column": (_holds_images, None, "images (bytes, or a struct with bytes)"),
    "conversation_column": (_is_talk, _TALKS, "conversations (lists of messages)"),
    "caption_column": (_is_text, TEXT_KEYS, "captions (text)"),
    "class_column": (_is_class, CLASS_KEYS, "classes (text or whole numbers)"),
}
"""Option → test of a column's type, names that it is known by, and what it holds."""


def parquet_columns(root: Path, asked: dict[str, str | None], patient: str = "") -> ParquetColumns:
    """Return what the columns of a table are.

    Args:
        root: File or folder.
        asked: Option of `_ROLES` → the column that the user names.
        patient: Column of the patient that the user names.

    Raises:
        DataError: A role is missing or has several columns; the message lists all, with the option for each.
    """
    found = _shards(root)
    if not found:
        fix = "name a .parquet file, a folder of them, or one that datasets.save_to_disk wrote"
        raise DataError("holds no Parquet file", where=str(root), fix=fix)
    path, schema = found[0][0], _schema(found[0][0])
    columns = {option: _column(path, schema, option, asked.get(option)) for option in _ROLES}
    image, talk, caption, label = (columns[option] for option in _ROLES)
    if not image:
        _refuse(
            path,
            schema,
            f"has no column of {_ROLES['image_column'][2]}",
            "give the images' bytes, not their names",
        )
    if talk and (caption or label) and not asked.get("conversation_column"):
        chosen = asked.get("caption_column") or asked.get("class_column")
        if not chosen:
            other, option = (caption, "caption_column") if caption else (label, "class_column")
            what = f"has conversations ({talk}) and labels ({other})"
            _refuse(
                path,
                schema,
                what,
                f"choose {as_option('conversation_column', talk)} or {as_option(option, other)}",
            )
        talk = ""
    if talk:
        caption = label = ""
    if not (talk or caption or label):
        fix = " or ".join(f"-o {option}=NAME" for option in list(_ROLES)[1:])
        _refuse(path, schema, "has no column of conversations, captions or classes", f"name one with {fix}")
    split, group = (
        next(
            (name for name in schema.names if name.lower() in keys and _is_class(schema.field(name).type)), ""
        )
        for keys in (SPLIT_KEYS, (patient.lower(), *GROUP_KEYS))
    )
    return ParquetColumns(image, caption, label, talk, split, group, _class_names(schema, label))


def _column(path: Path, schema: Any, option: str, asked: str | None) -> str:
    fits, names, what = _ROLES[option]
    if asked is not None:
        if asked not in schema.names:
            _refuse(
                path,
                schema,
                f'has no column "{asked}"',
                did_you_mean(asked, schema.names) or f"mend {option}",
            )
        if not fits(schema.field(asked).type):
            _refuse(
                path,
                schema,
                f'column "{asked}" is {schema.field(asked).type}, not {what}',
                "name another one",
            )
        return asked
    found = [
        field.name for field in schema if fits(field.type) and (names is None or field.name.lower() in names)
    ]
    if len(found) > 1:
        either = " or ".join(f"-o {option}={name}" for name in found)
        _refuse(path, schema, f"has several columns of {what}: {', '.join(found)}", f"choose {either}")
    return found[0] if found else ""


def _refuse(path: Path, schema: Any, what: str, fix: str) -> NoReturn:
    listed = ", ".join(f"{field.name} ({field.type})" for field in schema)
    raise DataError(f"{what}; its columns: {listed[:600]}", where=str(path), fix=fix)


def _class_names(schema: Any, label: str) -> tuple[str, ...]:
    """Return the names of numbered classes that `datasets` keeps beside the table, none where it keeps none."""
    try:
        features = parse_json((schema.metadata or {})[b"huggingface"].decode())["info"]["features"]
        told = features[label]
        told = told[0] if isinstance(told, list) else told.get("feature", told)
        return tuple(str(name) for name in told["names"])
    except (KeyError, ValueError, TypeError, AttributeError, IndexError):
        return ()


def unpack_image(value: Any, row: ParquetRow, column: str, folder: Path, number: int = 0) -> Path:
    """Write one image of a row to a file of its own, as it is, and return its path.

    Raises:
        DataError: There are no bytes of an image.
    """
    data = value.get("bytes") if isinstance(value, dict) else value
    fix = "write the table with its images, or remove the row"
    if data is None:
        named = isinstance(value, dict) and value.get("path")
        what = f"names the file {value['path']} and doesn't hold it" if named else "is null"
        raise DataError(what, where=row.place(column), fix=fix)
    suffix = next((suffix for mark, suffix in _MARKS if data.startswith(mark)), "")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        suffix = ".webp"
    if not suffix:
        raise DataError(f"holds {len(data):,} bytes that are no image", where=row.place(column), fix=fix)
    stem = Path(row.shard).with_suffix("").as_posix().replace("..", "_")
    path = folder / stem / f"{row.number:08d}{f'_{number}' if number else ''}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def read_parquet(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    image_column: str | None = None,
    caption_column: str | None = None,
    class_column: str | None = None,
    conversation_column: str | None = None,
    images_to: str | Path | None = None,
) -> LabelledSet:
    """Read images with captions or classes; those with conversations are `vitp.data.compile_conversations`' business.

    Args:
        root: A Parquet file, a folder of shards, or a folder of `datasets.save_to_disk`.
        options: Name, licence, splits. Names of shards (`train-00000-of-00002`) tell their splits.
        image_column: Column of the images' bytes, where there are several.
        caption_column: Column of the text, or of lists of texts, likewise.
        class_column: Column of a class or of lists of classes, likewise.
        conversation_column: Column of lists of messages, likewise.
        images_to: Folder for the images; `vitp data compile` gives its own.

    Raises:
        DataError: The table is damaged, or its columns can't be told.
    """
    asked = {
        "image_column": image_column,
        "caption_column": caption_column,
        "class_column": class_column,
        "conversation_column": conversation_column,
    }
    columns = parquet_columns(root, asked, options.patient)
    if images_to is None or columns.talk:
        fix = "compile it first: vitp data compile TABLE --out FOLDER"
        raise DataError("holds its images, or conversations, inside of a table", where=str(root), fix=fix)
    return _read(root, columns, SetBuilder(Path(images_to), replace(options, name=options.name or root.stem)))


def _read(root: Path, columns: ParquetColumns, builder: SetBuilder) -> LabelledSet:
    """Write the images to the builder's folder, and return the set."""
    said = {
        "image": columns.image,
        "caption": columns.caption,
        "class": columns.label,
        "split": columns.split,
    }
    builder.understand("columns: " + ", ".join(f"{name} from {own}" for name, own in said.items() if own))
    several = bool(columns.label) and _is_list(_schema(_shards(root)[0][0]).field(columns.label).type)
    seen: set[str] = set()
    for row in parquet_rows(root, columns):
        told = _labels(row, columns, builder, several)
        if told is None:
            continue
        try:
            path = unpack_image(row.values[columns.image], row, columns.image, builder.root)
        except DataError as error:
            absent = row.values[columns.image] is None  # which is no fault of its label
            builder.lose(
                error.where or "", f"{error.what}; left out", str(told.get("scene", "")), absent=absent
            )
            continue
        split = split_of(str(row.values.get(columns.split) or "")) or row.split
        builder.splits_from = builder.splits_from or ("the table" if split else "")
        group = str(row.values.get(columns.group) or "")
        if builder.add_file(path, split=split, where=row.place(columns.image), group=group, **told):
            seen.update(told.get("tags", ()), filter(None, [told.get("scene")]))
    numbers = all(name.isdigit() for name in seen)
    return builder.build(scene_classes=columns.names or sorted(seen, key=int if numbers else str))


def _labels(
    row: ParquetRow, columns: ParquetColumns, builder: SetBuilder, several: bool
) -> dict[str, Any] | None:
    """Return the labels of a row as fields of `LabelledImage`, None with a finding where it has none."""
    told: dict[str, Any] = {}
    for column in filter(None, (columns.caption, columns.label)):
        value = row.values[column]
        values = [one for one in (value if isinstance(value, list) else [value]) if one is not None]
        if column == columns.label and any(
            isinstance(one, int) and columns.names and not 0 <= one < len(columns.names) for one in values
        ):
            builder.note(row.place(column), f"{value} is no number of a class; left out")
            continue
        texts = [
            columns.names[one] if isinstance(one, int) and columns.names else " ".join(str(one).split())
            for one in values
        ]
        if problem := next((problem for text in texts if (problem := text_problem(text))), None):
            raise DataError(problem, where=row.place(column), fix="mend the text or remove the row")
        texts = [text.replace(IMAGE_MARK, "image") for text in texts if text]
        if not texts and not (several and column == columns.label and value is not None):
            builder.note(row.place(column), "is null or empty; left out")
        elif column == columns.caption:
            told["captions"] = tuple(texts)
        elif several:
            told["tags"] = tuple(dict.fromkeys(texts))
        else:
            told["scene"] = texts[0]
    return told or None


def talk_of(row: ParquetRow, column: str) -> Sequence[dict[str, Any]]:
    """Return the messages of a row; pairs of `user` and `assistant` become two messages.

    Raises:
        DataError: There are none.
    """
    talk = row.values[column]
    if not talk or not all(isinstance(message, dict) for message in talk):
        what = "is null" if talk is None else "has no messages" if not talk else "has a message that is null"
        raise DataError(what, where=row.place(column), fix="mend or remove the row")
    if not all("user" in message and "assistant" in message for message in talk):
        return list(talk)
    roles = (("human", "user"), ("gpt", "assistant"))
    return [{"from": role, "value": message[key]} for message in talk for role, key in roles]
