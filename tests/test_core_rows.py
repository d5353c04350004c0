"""_core.Rows: rows of batches in memory and in a file, batches that come later, columns that lie, files that change."""

from __future__ import annotations

import array
import itertools
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wdstools import _core

Row = tuple[str, int, int, int]
SIZES = array.array("Q", [5000, 1 << 62])
ROWS: list[Row] = [(f"{'é' * (i % 3)}{'k' * (i * 37 % 300)}{i}", i // 11, i * 100, i * 100 + 1 + i) for i in range(20)]
ENDS = array.array("Q", [11, 20])


def columns(rows: Sequence[Row], kind: str = "i") -> list[Any]:
    keys = [key.encode() for key, *_ in rows]
    numbers = [array.array(code, [row[i] for row in rows]) for i, code in ((1, "I"), (2, "Q"), (3, "Q"))]
    return [*numbers, array.array(kind, itertools.accumulate(map(len, keys), initial=0)), b"".join(keys)]


def split(rows: Sequence[Row], sizes: Sequence[int]) -> tuple[array.array[int], list[Sequence[Row]]]:
    first = array.array("Q", itertools.accumulate(sizes, initial=0))
    return first, [rows[a:b] for a, b in itertools.pairwise(first)]


def in_file(parts: Sequence[Sequence[Row]], file: Any, kinds: str = "iq") -> list[list[int]]:
    """Write columns into a file, at any place, and return what put_at() takes."""
    places = []
    for number, part in enumerate(parts):
        kind = kinds[number % len(kinds)]
        at = []
        for column in columns(part, kind)[1:]:
            file.write(b"x" * (number % 5))
            at.append(file.tell())
            file.write(bytes(column))
        places.append([*at, len(columns(part)[4]), 8 if kind == "q" else 4])
    file.flush()
    return places


LAYOUTS = st.lists(st.integers(1, 7), max_size=6).filter(lambda sizes: sum(sizes) <= len(ROWS))


@settings(max_examples=150, deadline=None)
@given(sizes=LAYOUTS, order=st.lists(st.integers(-2, len(ROWS) + 2), max_size=20), filed=st.booleans())
def test_any_layout_and_batches_that_come_one_by_one(sizes: list[int], order: list[int], filed: bool) -> None:
    first, parts = split(ROWS, sizes)
    with tempfile.TemporaryFile() as file:
        places = in_file(parts, file)
        rows = _core.Rows(first, SIZES, ENDS, file.fileno()) if filed else _core.Rows(first, SIZES)
    there: set[int] = set()
    for row in order:
        number = next((i for i, (a, b) in enumerate(itertools.pairwise(first)) if a <= row < b), None)
        if number is None or number not in there:
            assert (rows.locate(row), rows.key(row)) == (None, None)
        if number is not None:
            there.add(number)
            for _ in range(2):  # the second is not taken
                if filed:
                    rows.put_at(number, *places[number])
                else:
                    rows.put(number, *columns(parts[number], "iq"[number % 2]))
            assert rows.locate(row) == ROWS[row]
            assert rows.key(row) == ROWS[row][0]


def test_numbers_that_are_no_rows() -> None:
    rows = _core.Rows(array.array("Q", [0, 20]), SIZES)
    rows.put(0, *columns(ROWS))
    for row in (-1, 20, 1 << 63, 1 << 80, -(1 << 80)):
        assert rows.locate(row) is None
    assert rows.locate(np.int64(3)) == ROWS[3]  # type: ignore[arg-type]
    for what in ("1", 1.0, None):
        with pytest.raises(TypeError):
            rows.locate(what)  # type: ignore[arg-type]


@pytest.mark.parametrize("first", [[], [1], [1, 2], [0, 0], [0, 5, 5], [0, 5, 4], [0, 1 << 62], [0, (1 << 64) - 1]])
def test_layouts_that_cannot_be(first: list[int]) -> None:
    with pytest.raises(ValueError, match="first rows"):
        _core.Rows(array.array("Q", first), SIZES)


def test_arguments() -> None:
    one = array.array("Q", [0, 20])
    with pytest.raises(ValueError, match="first rows"):
        _core.Rows(array.array("I", [0, 20]), SIZES)
    with pytest.raises(ValueError, match="64 bits"):
        _core.Rows(one, array.array("I", [1]))
    with pytest.raises(ValueError, match="one end for every shard"):
        _core.Rows(one, SIZES, ENDS[:1], 0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        _core.Rows(one, SIZES, ENDS, 987_654)
    rows = _core.Rows(one, SIZES)
    for number in (-1, 1, 1 << 40):
        with pytest.raises(IndexError, match="of 1"):
            rows.put(number, *columns(ROWS))
    with pytest.raises(ValueError, match="not places in a file"):
        rows.put_at(0, 0, 0, 0, 0, 0, 4)
    with open("/dev/null", "rb") as file:
        filed = _core.Rows(one, SIZES, ENDS, file.fileno())
    for bad in ([1 << 62, 0, 0, 0, 0, 4], [0, 0, 0, 0, 1 << 62, 4], [0, 0, 0, 0, 0, 2], [0, 0, 0, 0, 0, 0]):
        with pytest.raises(ValueError, match="not places in a file"):
            filed.put_at(0, *bad)
    with pytest.raises(OverflowError):
        filed.put_at(0, -1, 0, 0, 0, 0, 4)
    with pytest.raises(TypeError):
        rows.put(0, *columns(ROWS)[:4])  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"attach\(rows: Rows\)"):
        _core.SampleReader().attach(columns(ROWS))  # type: ignore[arg-type]


GOOD = columns(ROWS)
MISMATCHED: dict[str, list[Any]] = {
    "starts short": [GOOD[0], array.array("Q", [0]), *GOOD[2:]],
    "ends long": [*GOOD[:2], array.array("Q", range(99)), *GOOD[3:]],
    "rows too few": columns(ROWS[:19]),
    "rows too many": columns([*ROWS, ROWS[0]]),
    "one key end too few": [*GOOD[:3], array.array("i", range(len(ROWS))), *GOOD[4:]],
    "shard of 64 bits": [array.array("Q", [0] * len(ROWS)), *GOOD[1:]],
    "starts of 32 bits": [GOOD[0], array.array("I", [0] * len(ROWS)), *GOOD[2:]],
    "bytes for starts": [GOOD[0], bytes(8 * len(ROWS)), *GOOD[2:]],
    "16-bit key ends": [*GOOD[:3], array.array("h", [0] * 99), *GOOD[4:]],
}


@pytest.mark.parametrize("what", list(MISMATCHED))
def test_columns_that_do_not_go_together(what: str) -> None:
    rows = _core.Rows(array.array("Q", [0, 20]), SIZES)
    with pytest.raises(ValueError, match="do not go together"):
        rows.put(0, *MISMATCHED[what])
    assert rows.locate(0) is None
    for i in range(5):
        with pytest.raises(TypeError):
            rows.put(0, *GOOD[:i], "text", *GOOD[i + 1 :])  # type: ignore[call-arg]
    with pytest.raises(BufferError):
        rows.put(0, GOOD[0], memoryview(array.array("Q", range(40)))[::2], *GOOD[2:])
    rows.put(0, *GOOD)
    assert rows.locate(0) == ROWS[0]


LIES: dict[str, tuple[Row, Row]] = {  # what a row should be, what it is
    "end before start": (ROWS[3], (ROWS[3][0], 0, 300, 300)),
    "past the shard": (ROWS[3], (ROWS[3][0], 0, 300, 5001)),
    "huge": (ROWS[12], (ROWS[12][0], 1, 0, (1 << 63) + 5)),
}


@pytest.mark.parametrize("what", LIES)
@pytest.mark.parametrize("filed", [False, True])
def test_rows_that_lie_outside_of_their_shard(what: str, filed: bool) -> None:
    right, wrong = LIES[what]
    at = ROWS.index(right)
    told = [*ROWS[:at], wrong, *ROWS[at + 1 :]]
    rows = made(told, filed)
    with pytest.raises(ValueError, match="outside of its shard"):
        rows.locate(at)
    assert rows.locate(0) == ROWS[0]
    assert rows.key(at) == right[0]


def made(rows: Sequence[Row], filed: bool, size: int = 7) -> _core.Rows:
    sizes = [size] * (len(rows) // size) + [len(rows) % size] * bool(len(rows) % size)
    first, parts = split(rows, sizes)
    with tempfile.TemporaryFile() as file:
        found = _core.Rows(first, SIZES, ENDS, file.fileno()) if filed else _core.Rows(first, SIZES)
        for number, place in enumerate(in_file(parts, file)):
            if filed:
                found.put_at(number, *place)
            else:
                found.put(number, *columns(parts[number]))
    return found


def test_a_shard_that_is_not_there() -> None:
    rows = _core.Rows(array.array("Q", [0, 1]), SIZES)
    rows.put(0, *columns([("a", 2, 0, 1)]))
    with pytest.raises(ValueError, match="outside of its shard"):
        rows.locate(0)


@pytest.mark.parametrize("kind", "iq")
@pytest.mark.parametrize("ends", [(5, 1), (0, 1 << 30), (-1, 0), (-5, 2), (0, -1)])
@pytest.mark.parametrize("filed", [False, True])
def test_keys_that_lead_elsewhere(ends: tuple[int, int], kind: str, filed: bool) -> None:
    good = columns([("ab", 0, 0, 1)])
    good[3] = array.array(kind, ends)
    with tempfile.TemporaryFile() as file:
        first = array.array("Q", [0, 1])
        rows = _core.Rows(first, SIZES, ENDS, file.fileno())
        if filed:
            for column in good[1:]:
                file.write(bytes(column))
            file.flush()
            rows.put_at(0, 0, 8, 16, 16 + len(bytes(good[3])), 2, 8 if kind == "q" else 4)
        else:
            rows.put(0, *good)
        for look in (rows.locate, rows.key):
            with pytest.raises(ValueError, match="key outside of the file"):
                look(0)


def test_a_file_that_is_cut() -> None:
    """Every read of it is an error or the truth."""
    with tempfile.TemporaryFile() as file:
        first, parts = split(ROWS, [20])
        (place,) = in_file(parts, file)
        rows = _core.Rows(first, SIZES, ENDS, file.fileno())
        rows.put_at(0, *place)
        for size in range(file.tell(), -1, -13):
            os.ftruncate(file.fileno(), size)
            for row in (0, 10, 19):
                try:
                    assert rows.locate(row) == ROWS[row]
                except ValueError as error:
                    assert "cut" in str(error)  # noqa: PT017
        with pytest.raises(ValueError, match="cut"):
            rows.key(0)


def test_columns_stay_while_a_reader_has_them() -> None:
    parts = columns(ROWS)
    rows = _core.Rows(array.array("Q", [0, 20]), SIZES)
    rows.put(0, *parts)
    reader = _core.SampleReader()
    reader.attach(rows)
    del rows
    with pytest.raises(BufferError):
        parts[1].append(5)
    reader.attach(_core.Rows(array.array("Q", [0]), SIZES))
    parts[1].append(5)
