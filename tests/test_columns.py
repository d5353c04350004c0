"""The columns of an index: fields put together and taken apart, values lifted out of payloads."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from indexing import build_of, labelled, write_shards

from wdstools import build, columns, errors

Rows = list[list[tuple[str, int, int, int]]]
NUMBER = st.integers(0, (1 << 64) - 1)
ROWS: st.SearchStrategy[Rows] = st.lists(
    st.lists(st.tuples(st.sampled_from(["jpg", "cls", "é.x", ""]), NUMBER, NUMBER, NUMBER), max_size=4), max_size=8
)


def put_together(rows: Rows) -> pa.Array:
    flat = [field for row in rows for field in row]
    exts = list(dict.fromkeys(field[0] for field in flat))
    codes = np.array([exts.index(field[0]) for field in flat], np.int32)
    places = [np.array([field[i] for field in flat], np.uint64) for i in (1, 2, 3)]
    return columns.make_fields(np.cumsum([len(row) for row in rows], dtype=np.int64), codes, exts, places)


def taken_apart(table: pa.Table) -> Rows:
    rows: Rows = []
    for chunk in columns.take_fields(table):
        assert chunk.first == len(rows)
        start = 0
        for end in chunk.ends.tolist():
            entries = range(start, end)
            rows.append([(chunk.exts[chunk.codes[i]], *(int(p[i]) for p in chunk.places)) for i in entries])  # type: ignore[misc]
            start = end
    return rows


def as_tuples(column: Any) -> Rows:
    return [[tuple(field.values()) for field in row] for row in column.to_pylist()]


@settings(max_examples=60, deadline=None)
@given(ROWS, st.data())
def test_fields_against_lists(rows: Rows, data: st.DataObject) -> None:
    fields = put_together(rows)
    fields.validate(full=True)
    assert fields.type == pa.list_(columns.FIELD_TYPE)
    assert as_tuples(fields) == rows
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=3)))
    bounds = list(zip([0, *cuts], [*cuts, len(rows)], strict=True))
    chunks = pa.chunked_array([fields.slice(a, b - a) for a, b in bounds], type=fields.type)
    assert taken_apart(pa.table({"fields": chunks})) == rows
    begin = data.draw(st.integers(0, len(rows)))
    assert taken_apart(pa.table({"fields": chunks}).slice(begin)) == rows[begin:]


def test_nothing_is_something_too() -> None:
    assert columns.concat([], np.uint32).dtype == np.uint32
    assert columns.one_chunk(pa.chunked_array([], type=pa.int64())).to_pylist() == []


def test_more_fields_than_a_list_counts() -> None:
    class Many:
        def __len__(self) -> int:
            return 1 << 31

    with pytest.raises(errors.IndexFileError, match="more than one index holds"):
        columns.make_fields(np.zeros(0), Many(), [], [])  # type: ignore[arg-type]


def test_text_is_large_past_2_gib() -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return 1 << 31

    ends = np.array([1, 1, 3], np.uint64)
    for data, kind in ((b"abc", pa.utf8()), (Huge(b"abc"), pa.large_utf8())):
        text = columns.text_array(data, ends)
        assert (text.type, text.to_pylist()) == (kind, ["a", "", "bc"])


# ---------------------------------------------------------------------------------------------------------------- lift


def lift(tmp_path: Path, labels: list[Any], name: str = "cls", ext: str = "cls") -> tuple[pa.DataType, list[Any]]:
    column = build_of(tmp_path, [labelled(labels, ext)], lift=[name]).table.column(name)
    return column.type, column.to_pylist()


BIG = str(1 << 63)


@pytest.mark.parametrize(
    ("labels", "kind", "expected"),
    [
        (["0", "12", "-3"], pa.int64(), [0, 12, -3]),
        (["1\n", " 2 "], pa.int64(), [1, 2]),
        (["1", None, "3"], pa.int64(), [1, None, 3]),
        ([None, None], pa.null(), [None, None]),
        (["1", "2.5", "-1e-3"], pa.float64(), [1.0, 2.5, -0.001]),
        (["inf", "-inf"], pa.float64(), [float("inf"), float("-inf")]),
        (["cat", "dog", None], pa.utf8(), ["cat", "dog", None]),
        (["cat", "1"], pa.utf8(), ["cat", "1"]),
        (["", "1"], pa.utf8(), ["", "1"]),
        (["007", "1"], pa.utf8(), ["007", "1"]),
        (["1_000", "2"], pa.utf8(), ["1_000", "2"]),
        (["+1", "2"], pa.utf8(), ["+1", "2"]),
        (["1.", ".5"], pa.utf8(), ["1.", ".5"]),
        (["٣"], pa.utf8(), ["٣"]),
        ([str((1 << 63) - 1), str(-(1 << 63))], pa.int64(), [(1 << 63) - 1, -(1 << 63)]),
        ([BIG, "1"], pa.utf8(), [BIG, "1"]),
        (["9" * 5000], pa.utf8(), ["9" * 5000]),
        ([b"\xff\xfe", b"\0"], pa.utf8(), ["\ufffd\ufffd", "\0"]),
        (["é", "日本"], pa.utf8(), ["é", "日本"]),
    ],
)
def test_text(tmp_path: Path, labels: list[Any], kind: pa.DataType, expected: list[Any]) -> None:
    assert lift(tmp_path, labels) == (kind, expected)


JSON = [
    ("json:w", ['{"w": 1}', '{"w": 2, "x": 3}'], pa.int64(), [1, 2]),
    ("json:w", ['{"w": 1}', "{}", None, "3", '["w"]', '{"w": null}'], pa.int64(), [1] + [None] * 5),
    ("json:w", ['{"w": 1}', '{"w": 2.5}'], pa.float64(), [1.0, 2.5]),
    ("json:w", ['{"w": true}', '{"w": false}'], pa.bool_(), [True, False]),
    ("json:w", ['{"w": true}', '{"w": 1}'], pa.utf8(), ["true", "1"]),
    ("json:w", ['{"w": "a"}', '{"w": 1}'], pa.utf8(), ["a", "1"]),
    ("json:w", ['{"w": [1, {"a": 2}]}', '{"w": {}}'], pa.utf8(), ['[1, {"a": 2}]', "{}"]),
    ("json:w", [f'{{"w": {BIG}}}', '{"w": 1}'], pa.utf8(), [BIG, "1"]),
    ("json:w", ['{"w": 1%s}' % ("0" * 400), '{"w": 0.5}'], pa.utf8(), ["1" + "0" * 400, "0.5"]),
    ("json:w", ['{"w": 9007199254740993}', '{"w": 0.5}'], pa.utf8(), ["9007199254740993", "0.5"]),
    ("json:w", ['{"w": "\\ud800"}'], pa.utf8(), ["?"]),
    ("json:a.b.c", ['{"a": {"b": {"c": "deep"}}}', '{"a": {"b": 1}}', '{"a.b.c": 1}'], pa.utf8(), ["deep", None, None]),
    ("json:é", ['{"é": 1}'.encode(), '{"é": 2}'.encode("utf-16")], pa.int64(), [1, 2]),
]


@pytest.mark.parametrize(("name", "labels", "kind", "expected"), JSON)
def test_json(tmp_path: Path, name: str, labels: list[Any], kind: pa.DataType, expected: list[Any]) -> None:
    assert lift(tmp_path, labels, name, "json") == (kind, expected)


def test_json_in_a_field_of_another_name(tmp_path: Path) -> None:
    assert lift(tmp_path, ['{"w": 1}'], "meta.json:w", "meta.json") == (pa.int64(), [1])


@pytest.mark.parametrize("bad", ["{", "", "1 2", b"\xff", "[" * 200_000, "9" * 5000])
def test_what_is_not_json_is_told_with_its_place(tmp_path: Path, bad: str | bytes) -> None:
    with pytest.raises(errors.ShardError, match=r"t-000000\.tar: a field that is not JSON .* at byte 3584") as error:
        lift(tmp_path, ['{"w": 1}', bad], "json:w", "json")
    assert error.value.offset == 3584


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.none() | st.integers() | st.floats(allow_nan=False) | st.booleans() | st.text(), min_size=1, max_size=5)
)
def test_json_against_python(tmp_path_factory: pytest.TempPathFactory, values: list[Any]) -> None:
    """Whatever is there comes back as it was, or as the JSON of it."""
    labels = [json.dumps({"w": value}) for value in values]
    kind, found = lift(tmp_path_factory.mktemp("j"), labels, "json:w", "json")
    for value, got in zip(values, found, strict=True):
        if kind == pa.utf8() and value is not None:
            text = value if isinstance(value, str) else json.dumps(value)
            assert got == text.encode("utf-8", "replace").decode()
        else:
            assert got == value


def test_several_columns_of_several_shards(tmp_path: Path) -> None:
    shards = [[("a.cls", b"1"), ("a.json", b'{"w": 3}')], [], [("b.json", b'{"w": 0.5}'), ("c.cls", b"2")]]
    index = build_of(tmp_path, shards, lift=["json:w", "cls", "no"])
    assert index.lifted() == ["json:w", "cls", "no"]
    found = index.table.select(index.lifted()).to_pydict()
    assert found == {"json:w": [3.0, 0.5, None], "cls": [1, None, 2], "no": [None] * 3}


def test_a_shard_that_is_cut_while_it_is_read(tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path, [labelled(["123"])])
    index = build.build([path])
    os.truncate(path, 1537)
    with open(path, "rb") as file, pytest.raises(errors.TruncatedError, match="at byte 1537"):
        columns.lift_column(index.table, file.fileno(), path, "cls")
