"""The Arrow columns of an index: the `fields` column put together and taken apart, and columns lifted from payloads."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from wdstools.errors import ShardError

Array = np.ndarray[Any, Any]

FIELD_TYPE = pa.struct(
    [
        ("ext", pa.dictionary(pa.int32(), pa.utf8())),
        ("header", pa.uint64()),
        ("offset", pa.uint64()),
        ("nbytes", pa.uint64()),
    ]
)

Lift = Sequence[str]
"""Columns to lift from fields: "cls" (the field's text, as int64 or float64 where all of it is), "json:width" (a value
of a JSON object; dots go deeper)."""


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
    """Put a fields column together; see Fields."""
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


def merge_fields(tables: Iterable[pa.Table]) -> pa.Array:
    """Put the fields columns of tables one behind the other, with one dictionary of names."""
    names: dict[str, int] = {}
    ends: list[Array] = []
    codes: list[Array] = []
    places: list[list[Array]] = [[], [], []]
    total = 0
    for table in tables:
        for chunk in take_fields(table):
            recode = np.array([names.setdefault(ext, len(names)) for ext in chunk.exts], np.int32)
            ends.append(chunk.ends + total)
            codes.append(recode[chunk.codes] if len(recode) else chunk.codes)
            for all_of_them, part in zip(places, chunk.places, strict=True):
                all_of_them.append(part)
            total += len(chunk.codes)
    joined = [concat(place, np.uint64) for place in places]
    return make_fields(concat(ends, np.int64), concat(codes, np.int32), list(names), joined)


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
    payloads = _payloads(table, fd, ext)
    return pa.array(_parse_json(payloads, path, url) if path else _parse_text(payloads))


def _payloads(table: pa.Table, fd: int, ext: str) -> list[bytes | None]:
    found: list[bytes | None] = [None] * len(table)
    for chunk in take_fields(table):
        if ext not in chunk.exts:
            continue
        hits = np.flatnonzero(chunk.codes == chunk.exts.index(ext))
        rows = np.searchsorted(chunk.ends, hits, side="right") + chunk.first
        _, offsets, sizes = chunk.places
        for row, offset, nbytes in zip(rows.tolist(), offsets[hits].tolist(), sizes[hits].tolist(), strict=True):
            found[row] = os.pread(fd, nbytes, offset)
    return found


def _parse_text(payloads: list[bytes | None]) -> list[Any]:
    texts = [None if p is None else p.decode("utf-8", "replace").strip() for p in payloads]
    for kind in (int, float):
        try:
            return [None if t is None else kind(t) for t in texts]
        except ValueError:
            continue
    return texts


def _parse_json(payloads: list[bytes | None], path: str, url: str) -> list[Any]:
    values: list[Any] = []
    for payload in payloads:
        try:
            value = None if payload is None else json.loads(payload)
        except ValueError as error:
            raise ShardError(f"sample {len(values)} has a field that is not JSON: {error}", url) from error
        for part in path.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        values.append(value)
    kinds = {type(v) for v in values if v is not None}
    if (len(kinds) > 1 and not kinds <= {int, float}) or kinds & {dict, list}:
        return [None if v is None else v if isinstance(v, str) else json.dumps(v) for v in values]
    return [float(v) if v is not None and float in kinds else v for v in values] if kinds <= {int, float} else values
