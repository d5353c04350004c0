"""The Arrow columns of an index: the `fields` column put together and taken apart, and columns lifted from payloads."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from wdstools.errors import IndexFileError, ShardError, TruncatedError

Array = np.ndarray[Any, Any]

VERSION = "1"  # of the index
CORE = ("key", "shard", "start", "end", "fields")
HIDDEN = ("_hash", "_row")
CHECKSUM = "_checksum"  # XXH3 of the bytes [start, end) of every sample, where it was asked for

FIELD_TYPE = pa.struct(
    [
        ("ext", pa.dictionary(pa.int32(), pa.utf8())),
        ("header", pa.uint64()),
        ("offset", pa.uint64()),
        ("nbytes", pa.uint64()),
    ]
)

Lift = Sequence[str]
"""Columns to lift from fields: "cls" (the field's text; int64 or double where all of a shard are numbers, written
plainly: 007 stays text), "json:width" (a value of a JSON object; dots go deeper; objects and lists stay JSON)."""


class Fields(NamedTuple):
    """A chunk of the fields column, taken apart. `first`: its first row; `ends`: for each row the end of its entries;
    `codes`: per entry, which of `exts` it is; `places`: header, offset and nbytes, one array each."""

    first: int
    ends: Array
    codes: Array
    exts: list[str]
    places: list[Array]


def text_array(data: bytes, ends: Array) -> pa.Array:
    """Text from one run of bytes and the end of each piece in it: utf8, or large_utf8 past 2 GiB."""
    small = len(data) < 1 << 31
    offsets = np.zeros(len(ends) + 1, np.int32 if small else np.int64)
    offsets[1:] = ends
    kind = pa.StringArray if small else pa.LargeStringArray
    return kind.from_buffers(len(ends), pa.py_buffer(offsets), pa.py_buffer(data))


def make_fields(ends: Array, codes: Array, exts: list[str], places: list[Array]) -> pa.Array:
    """Put a fields column together; see Fields. Raises IndexFileError past 2**31 entries."""
    if len(codes) >= 1 << 31:
        raise IndexFileError(f"{len(codes)} fields are more than one index holds; index parts of the set")
    ext = pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), pa.array(exts, pa.utf8()))
    struct = pa.StructArray.from_arrays([ext, *(pa.array(p, pa.uint64()) for p in places)], fields=list(FIELD_TYPE))
    offsets = np.zeros(len(ends) + 1, np.int32)
    offsets[1:] = ends
    return pa.ListArray.from_arrays(pa.array(offsets), struct, type=pa.list_(FIELD_TYPE))


def take_fields(table: pa.Table) -> Iterator[Fields]:
    """Take the fields column of a table apart, chunk by chunk."""
    row = 0
    for chunk in table.column("fields").chunks:
        offsets = chunk.offsets.to_numpy()
        struct = chunk.values.slice(offsets[0], offsets[-1] - offsets[0]) if len(chunk) else chunk.values.slice(0, 0)
        ext = struct.field("ext")
        places = [struct.field(name).to_numpy() for name in ("header", "offset", "nbytes")]
        ends = offsets[1:].astype(np.int64) - offsets[0]
        yield Fields(row, ends, ext.indices.to_numpy(), ext.dictionary.to_pylist(), places)
        row += len(chunk)


def concat(arrays: Sequence[Array], kind: Any) -> Array:
    """np.concatenate that knows what nothing is."""
    return np.concatenate(arrays) if arrays else np.zeros(0, kind)


def one_chunk(column: pa.ChunkedArray) -> pa.Array:
    """The column as one contiguous array."""
    combined = column.combine_chunks()
    return combined if isinstance(combined, pa.Array) else pa.concat_arrays(combined.chunks)


def lift_column(table: pa.Table, fd: int, url: str, name: str) -> pa.Array:
    """Read one column of an index out of its shard: see Lift. Raises ShardError where a field is not JSON."""
    ext, _, path = name.partition(":")
    payloads = _payloads(table, fd, url, ext)
    return _array(_parse_json(payloads, path, url) if path else _parse_text(payloads))


def _payloads(table: pa.Table, fd: int, url: str, ext: str) -> list[tuple[bytes, int] | None]:
    """Per row (payload, its offset), or None where it has no such field."""
    found: list[tuple[bytes, int] | None] = [None] * len(table)
    for chunk in take_fields(table):
        if ext not in chunk.exts:
            continue
        hits = np.flatnonzero(chunk.codes == chunk.exts.index(ext))
        rows = np.searchsorted(chunk.ends, hits, side="right") + chunk.first
        _, offsets, sizes = chunk.places
        for row, offset, nbytes in zip(rows.tolist(), offsets[hits].tolist(), sizes[hits].tolist(), strict=True):
            payload = os.pread(fd, nbytes, offset)
            if len(payload) != nbytes:
                raise TruncatedError("truncated while it was read", url, offset + len(payload))
            found[row] = payload, offset
    return found


# A number that is written as it would be printed: 007 and 1_000 are words
_INT = re.compile(r"-?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(r"-?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|inf)|nan")
_INT64 = range(-(1 << 63), 1 << 63)


def _parse_text(payloads: Iterable[tuple[bytes, int] | None]) -> list[Any]:
    texts = [None if p is None else p[0].decode("utf-8", "replace").strip() for p in payloads]
    for kind, form in ((int, _INT), (float, _FLOAT)):
        if all(t is None or form.fullmatch(t) for t in texts):
            try:
                return [None if t is None else kind(t) for t in texts]
            except ValueError:
                break  # more digits than int() takes
    return texts


def _parse_json(payloads: Iterable[tuple[bytes, int] | None], path: str, url: str) -> list[Any]:
    values: list[Any] = []
    for payload in payloads:
        try:
            value = None if payload is None else json.loads(payload[0])
        except (ValueError, RecursionError) as error:
            offset = payload[1] if payload else None
            raise ShardError(f"a field that is not JSON ({error})", url, offset) from error
        for part in path.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        values.append(value)
    return values


def _array(values: list[Any]) -> pa.Array:
    """An array of one type: bool, int64, double or text, which holds what the others do not."""
    kinds = {type(v) for v in values if v is not None}
    if kinds == {int, float} and not any(abs(v) > 1 << 53 for v in values if type(v) is int):
        return pa.array([None if v is None else float(v) for v in values], pa.float64())
    if len(kinds) > 1 or not kinds <= {bool, int, float, str} or any(v not in _INT64 for v in values if type(v) is int):
        values = [v if v is None or isinstance(v, str) else json.dumps(v) for v in values]
    return pa.array([v.encode("utf-8", "replace").decode() if isinstance(v, str) else v for v in values])
