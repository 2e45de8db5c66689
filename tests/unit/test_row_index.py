"""Where rows begin, in files that are looked at piece by piece."""

from __future__ import annotations

import hashlib
import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitp.data.readers import index as row_index

GAPS = st.sampled_from([",", ", ", ",\n", " ,\n  ", ",\r\n" + " " * 80])
PIECES = st.text(st.sampled_from('ab"\\\\{}[],\n é'), max_size=12)


@given(
    st.lists(
        st.dictionaries(PIECES, st.one_of(PIECES, st.lists(PIECES, max_size=2)), max_size=3), max_size=8
    ),
    GAPS,
    st.integers(1, 40),
)
@settings(max_examples=150, deadline=None)
def test_array_scan_in_pieces_of_any_size(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], gap: str, chunk: int
) -> None:
    """Strings with quotes, backslashes and brackets may be cut anywhere."""
    path = tmp_path_factory.mktemp("array") / "rows.json"
    texts = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("[ " + gap.join(texts) + "\n]\n", encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_index, "_CHUNK", chunk)
        found = row_index.array_index(path)
    data = path.read_bytes()
    assert [data[at : at + length].decode() for at, length, _ in found.rows] == texts
    assert [line for _, _, line in found.rows] == [1 + data[:at].count(b"\n") for at, _, _ in found.rows]
    assert found.digest == hashlib.sha256(data).hexdigest()


@given(
    st.lists(st.sampled_from([b"{}", b" ", b"", b"\t", b" {}", b"\x0b", b"x\r"]), max_size=12),
    st.integers(1, 9),
)
@settings(max_examples=100, deadline=None)
def test_line_scan_in_pieces_of_any_size(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], chunk: int
) -> None:
    path = tmp_path_factory.mktemp("lines") / "rows.jsonl"
    data = b"\n".join(lines)
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_index, "_CHUNK", chunk)
        found = row_index.line_index(path)
    expected, offset = [], 0
    for number, line in enumerate(_by_newline(data), 1):
        if not line.isspace():
            expected.append((offset, len(line), number))
        offset += len(line)
    assert [tuple(row) for row in found.rows] == expected
    assert found.digest == hashlib.sha256(data).hexdigest()


def _by_newline(data: bytes) -> list[bytes]:
    """Lines as a file has them: `splitlines` would also break at other characters."""
    return list(io.BytesIO(data))
