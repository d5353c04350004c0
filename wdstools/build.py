"""Building indexes: from shards or from what a writer counted; refreshing, merging and checking them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from wdstools import _core, urls
from wdstools.columns import Lift, concat, lift_column, make_fields, merge_fields, one_chunk, text_array
from wdstools.errors import IndexFileError, ShardError, StaleIndexError, WdsError
from wdstools.index import CORE, HIDDEN, Index, Shards
from wdstools.storage import open_local, open_source


def build(
    shards: Sequence[str],
    *,
    lift: Lift = (),
    workers: int | None = None,
    previous: Index | None = None,
    progress: Callable[[int], None] = lambda nbytes: None,
) -> Index:
    """Index shards, in the order given, `workers` (default: one a core) at a time.

    Headers only are read from regular files. `previous`: an index whose rows are taken over for shards that have the
    same URL, size and mtime there, if it has the columns to lift. `progress` is called with the bytes of each shard.

    Raises ShardError for the first broken shard, NotFoundError, StoreError.
    """
    known = _Known(previous) if previous is not None and set(lift) <= set(previous.columns()) else None

    def one(url: str) -> Index:
        index = (known.unchanged(url, lift) if known else None) or index_shard(url, lift=lift)
        progress(index.shards.nbytes[0])
        return index

    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        return merge(list(pool.map(one, shards)))


def index_shard(url: str, *, lift: Lift = ()) -> Index:
    """Index one shard. Raises ShardError, StoreError; UnicodeError becomes a ShardError."""
    with open_source(url) as source:
        if source.local_path is None or not isinstance(source.handle, int):
            if lift:
                raise ShardError("columns can be lifted from plain local shards only", url)
            return from_columns(_core.scan(source.handle, url), url)
        columns = _core.scan(source.handle, url)
        return from_columns(columns, url, fd=source.handle, lift=lift)


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
    codes, exts = _lower_exts(codes, text_array(columns["exts"], _u64(columns["ext_ends"])).to_pylist())
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
    index = Index(table, Shards([url], [columns["nbytes"]], [mtime], [nsamples], [columns["nmembers"]]))
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
    for name in lift:
        if name in CORE or name in HIDDEN:
            raise ValueError(f"column {name!r} is the index's own")
        values = lift_column(index.table, fd, index.shards.url[0], name)
        table = table.add_column(table.num_columns - len(HIDDEN), name, values)
    return Index(table, index.shards, index.path)


def merge(indexes: Sequence[Index]) -> Index:
    """Put indexes together, in order; columns that only some have are null in the others.

    Raises IndexFileError where a shard is in two of them. A column with types that do not go together becomes text.
    """
    if len(indexes) == 1:
        return indexes[0]
    shards, shard, start, end, hashes = Shards(), [], [], [], []
    for index in indexes:
        table = index.table
        shard.append(table.column("shard").to_numpy() + np.uint32(len(shards)))
        start.append(table.column("start").to_numpy())
        end.append(table.column("end").to_numpy())
        hashes.append(_unsorted_hashes(index))
        shards.extend(index.shards)
    for url, count in Counter(shards.url).items():
        if count > 1:
            raise IndexFileError(f"shard {url} is in more than one of the indexes")
    extra = _merge_extra(indexes)
    table = assemble(
        _merge_keys(indexes), concat(shard, np.uint32), concat(start, np.uint64), concat(end, np.uint64),
        merge_fields(i.table for i in indexes), concat(hashes, np.uint64), extra,
    )  # fmt: skip
    return Index(table, shards)


def _merge_keys(indexes: Sequence[Index]) -> pa.Array:
    columns = [index.table.column("key") for index in indexes]
    kind = pa.large_utf8() if sum(column.nbytes for column in columns) >= 1 << 31 else pa.utf8()
    return one_chunk(pa.chunked_array([chunk for column in columns for chunk in column.cast(kind).chunks], type=kind))


def _merge_extra(indexes: Sequence[Index]) -> dict[str, Any]:
    tables = [i.table.select([n for n in i.columns() if n not in CORE]) for i in indexes]
    names = list(dict.fromkeys(name for table in tables for name in table.column_names))
    extra = {}
    for name in names:
        parts = [
            table.select([name]) if name in table.column_names else pa.table({name: pa.nulls(len(index))})
            for table, index in zip(tables, indexes, strict=True)
        ]
        try:
            whole = pa.concat_tables(parts, promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError):  # cls in words here, in numbers there: text holds both
            whole = pa.concat_tables([part.cast(pa.schema([(name, pa.utf8())])) for part in parts])
        extra[name] = one_chunk(whole.column(name))
    return extra


def _unsorted_hashes(index: Index) -> np.ndarray[Any, np.dtype[np.uint64]]:
    hashes = np.empty(len(index), np.uint64)
    hashes[index.table.column("_row").to_numpy()] = index.table.column("_hash").to_numpy()
    return hashes


class _Known:
    """The rows of an earlier index, by shard, for the shards that are as they were."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self.number = {url: i for i, url in enumerate(index.shards.url)}
        self.first = np.cumsum([0, *index.shards.nsamples]).tolist()
        self.hashes = _unsorted_hashes(index)

    def unchanged(self, url: str, lift: Lift) -> Index | None:
        s, path = self.index.shards, urls.local_path(url)
        if url not in self.number or path is None:
            return None
        number = self.number[url]
        try:
            about = os.stat(path)
        except OSError:
            return None  # index_shard will say it better
        if (s.nbytes[number], s.mtime[number]) != (about.st_size, about.st_mtime_ns):
            return None
        first, end = self.first[number], self.first[number + 1]
        part = self.index.table.slice(first, end - first)
        columns = [one_chunk(part.column(name)) for name in ("key", "fields")]
        places = [part.column(name).to_numpy() for name in ("start", "end")]
        zeros = np.zeros(len(part), np.uint32)
        extra = {name: one_chunk(part.column(name)) for name in lift}
        table = assemble(columns[0], zeros, places[0], places[1], columns[1], self.hashes[first:end], extra)
        shard = Shards([url], *([getattr(s, n)[number]] for n in ("nbytes", "mtime", "nsamples", "nmembers")))
        return Index(table, shard)


def check(index: Index, *, workers: int | None = None) -> list[WdsError]:
    """Compare an index with its shards, whose headers are read anew. Returns what is wrong, one error a shard."""
    ends = np.cumsum([0, *index.shards.nsamples])

    def one(number: int) -> WdsError | None:
        url = index.shards.url[number]
        try:
            found = index_shard(url)
        except WdsError as error:
            return error
        mine = index.table.slice(int(ends[number]), index.shards.nsamples[number])
        reason = _difference(index, number, mine, found)
        return StaleIndexError(f"{index.name}: {url}: {reason}") if reason else None

    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        return [error for error in pool.map(one, range(len(index.shards))) if error]


def _difference(index: Index, number: int, mine: pa.Table, found: Index) -> str | None:
    if index.shards.nbytes[number] != found.shards.nbytes[0]:
        return f"{found.shards.nbytes[0]} bytes, where the index has {index.shards.nbytes[number]}"
    if len(mine) != len(found):
        return f"{len(found)} samples, where the index has {len(mine)}"
    for name in ("key", "start", "end", "fields"):
        a, b = mine.column(name).to_pylist(), found.table.column(name).to_pylist()
        if a != b:
            row = next(i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
            return f"sample {row}: {name} is {b[row]!r}, where the index has {a[row]!r}"
    return None


def open_shard(index: Index, number: int) -> tuple[int, str]:
    """Open a shard of an index for random access: (descriptor, path). Raises StaleIndexError where its size is not the
    one that the index has, NotFoundError, StoreError."""
    url = index.shards.url[number]
    fd, path = open_local(url)
    nbytes = os.fstat(fd).st_size
    if nbytes != index.shards.nbytes[number]:
        os.close(fd)
        raise StaleIndexError(
            f"{index.name}: does not describe {url} any more: {nbytes} bytes, where the index has "
            f"{index.shards.nbytes[number]}; rebuild it with wds-index build"
        )
    return fd, path
