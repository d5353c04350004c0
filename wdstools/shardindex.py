"""The index of one shard: from a scan of it, or from what a writer counted; the columns of any index."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from wdstools import _core
from wdstools.checksums import FORM, with_column
from wdstools.columns import CHECKSUM, CORE, HIDDEN, Lift, lift_column, make_fields, text_array
from wdstools.errors import IndexFileError, ShardError
from wdstools.index import Index
from wdstools.shardtable import Shards
from wdstools.storage import Source, Whole, open_source


def lifted(lift: Lift) -> list[str]:
    """The columns to lift, each once. Raises IndexFileError."""
    for name in lift:
        if name in CORE or name in HIDDEN or name == CHECKSUM:
            raise IndexFileError(f"column {name!r} is the index's own")
        if not name or name.endswith(":"):
            raise IndexFileError(f"{name!r} is no column: write a field (cls) or a value of a JSON field (json:width)")
    return list(dict.fromkeys(lift))


def index_shard(url: str, *, lift: Lift = ()) -> Index:
    """Index one shard. Raises ShardError, StoreError; UnicodeError becomes a ShardError."""
    with open_source(url) as source:
        if source.local_path is None or not isinstance(source.handle, int):
            if lift:
                raise ShardError("columns can be lifted from plain local shards only", url)
            return scan(source)
        columns = _core.scan(source.handle, url)
        return from_columns(columns, url, fd=source.handle, lift=lift)


def scan(source: Source) -> Index:
    """Index an opened shard by reading it from its start to its end; of a remote one the version is kept."""
    columns = _core.scan(Whole(source) if source.head else source.handle, source.url)
    index = from_columns(columns, source.url)
    version = source.version()
    if version is not None and version.nbytes == index.shards.nbytes[0]:  # else it was compressed
        index.shards.etag, index.shards.mtime = [version.etag or ""], [version.mtime_ns or 0]
    return index


def from_columns(columns: _core.Columns, url: str, *, fd: int | None = None, lift: Lift = ()) -> Index:
    """Make the index of one shard from what _core.scan or _core.Writer counted. `fd`: the shard, for its mtime and for
    `lift`."""
    key_ends = _u64(columns["key_ends"])
    nsamples = len(key_ends)
    keys = text_array(columns["keys"], key_ends)
    try:
        keys.validate(full=True)
    except pa.ArrowInvalid as error:
        raise ShardError("a member name that is not UTF-8 has no place in an index", url) from error
    codes = np.frombuffer(columns["field_codes"], np.uint32).astype(np.int32)
    raw = text_array(columns["exts"], _u64(columns["ext_ends"])).to_pylist()
    codes, exts = _lower_exts(codes, raw)
    places = [_u64(columns[name]) for name in ("field_headers", "field_offsets", "field_nbytes")]
    table = assemble(
        keys,
        np.zeros(nsamples, np.uint32),
        _u64(columns["starts"]),
        _u64(columns["ends"]),
        make_fields(_u64(columns["field_ends"]), codes, exts, places),
        _u64(columns["hashes"]),
        {},
    )
    mtime = os.fstat(fd).st_mtime_ns if fd is not None else 0
    shards = Shards([url], [columns["nbytes"]], [mtime], [nsamples], [columns["nmembers"]])
    shards.exact = [int(columns["exact"] and exts == raw)]
    if "checksum" in columns:
        shards.checksum = [FORM.format(columns["checksum"])]
    if "checksums" in columns:
        table = with_column(table, columns["checksums"])
    index = Index(table, shards)
    return index if fd is None or not lift else add_lifted(index, fd, lift)


def _u64(data: bytes) -> np.ndarray[Any, np.dtype[np.uint64]]:
    return np.frombuffer(data, np.uint64)


def _lower_exts(codes: np.ndarray[Any, Any], exts: list[str]) -> tuple[np.ndarray[Any, Any], list[str]]:
    """The core lowers ASCII only; the rest is Python's str.lower, as webdataset does it."""
    lowered = [ext.lower() for ext in exts]
    if lowered == exts:
        return codes, exts
    unique = list(dict.fromkeys(lowered))
    return np.array([unique.index(ext) for ext in lowered], np.int32)[codes], unique


def assemble(
    keys: pa.Array,
    shard: np.ndarray[Any, Any],
    start: np.ndarray[Any, Any],
    end: np.ndarray[Any, Any],
    fields: pa.Array,
    hashes: np.ndarray[Any, Any],
    extra: dict[str, Any],
) -> pa.Table:
    """Put the columns of an index together, and sort the hashes."""
    order = np.argsort(hashes, kind="stable").astype(np.uint64)
    columns = {"key": keys, "shard": pa.array(shard, pa.uint32()), "start": pa.array(start, pa.uint64())}
    columns |= {"end": pa.array(end, pa.uint64()), "fields": fields, **extra}
    columns |= {"_hash": pa.array(hashes[order], pa.uint64()), "_row": pa.array(order, pa.uint64())}
    return pa.table(columns)


def add_lifted(index: Index, fd: int, lift: Lift) -> Index:
    """Return the index of one plain local shard with columns lifted from its fields. Raises ShardError."""
    table = index.table
    for name in lifted(lift):
        values = lift_column(index.table, fd, index.shards.url[0], name)
        table = table.add_column(table.num_columns - len(HIDDEN), name, values)
    return Index(table, index.shards, index.path)


def add_columns(index: Index, columns: Mapping[str, Any]) -> None:
    """Put columns into an index in memory, a value for each row."""
    table = index.table
    for name, values in columns.items():
        table = table.add_column(table.num_columns - len(HIDDEN), name, values)
    index.table = table


def unsorted_hashes(index: Index) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Return the hash of the key of every row."""
    hashes = np.empty(len(index), np.uint64)
    hashes[index.table.column("_row").to_numpy()] = index.table.column("_hash").to_numpy()
    return hashes
