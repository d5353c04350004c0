"""The members of a shard beside the rows of its index: what formats need that an index has not, in the letters of the
tar; and the proof that the index still describes the shard."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, islice
from os import cpu_count
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wdstools import _core
from wdstools.columns import Array, concat, one_chunk, take_fields, text_array
from wdstools.errors import ShardError, StaleIndexError
from wdstools.index import Index
from wdstools.interop.foreign import Batch, Options
from wdstools.samples import split_name
from wdstools.storage import Whole, open_source

T = TypeVar("T")

_chance = random.SystemRandom()  # not the generator that the program around us seeds

LOOKS = 8  # samples of a shard that are looked at before its index is believed


class Members(NamedTuple):
    """Every member of a shard, by columns. `names`: Arrow binary; `types`: a letter each, as tar.TYPES; places in bytes
    from the start of the shard; `end`: of the last member, where the end marker begins; `shard_nbytes`: of all."""

    names: pa.Array
    types: Array
    starts: Array
    headers: Array
    offsets: Array
    nbytes: Array
    end: int
    shard_nbytes: int

    def text(self) -> list[str]:
        """The names, as tarfile decodes them."""
        return [name.decode("utf-8", "surrogateescape") for name in self.names.to_pylist()]


def read_members(url: str) -> Members:
    """Walk a shard: headers only where it is a regular file. Raises ShardError, StoreError."""
    with open_source(url) as source:
        return from_columns(_core.members(Whole(source) if source.head else source.handle, url))


def from_columns(columns: _core.Columns) -> Members:
    """Members of what _core.members returned."""
    starts, headers, offsets, nbytes = (
        np.frombuffer(columns[name], np.uint64) for name in ("starts", "headers", "offsets", "nbytes")
    )
    names = text_array(columns["names"], np.frombuffer(columns["name_ends"], np.uint64))
    names = names.view(pa.large_binary() if names.type == pa.large_utf8() else pa.binary())
    types = np.frombuffer(columns["types"], np.uint8)
    return Members(names, types, starts, headers, offsets, nbytes, columns["end"], columns["shard_nbytes"])


@dataclass
class Rows:
    """The rows of one shard in an index. `ends`: for each row the end of its fields in what follows; `names`, `exts`:
    of the member of each field, Arrow text; `header`, `offset`, `nbytes`: of each field."""

    number: int
    url: str
    keys: pa.Array
    start: Array
    end: Array
    ends: Array
    exts: pa.Array
    header: Array
    offset: Array
    nbytes: Array

    def __len__(self) -> int:
        return len(self.start)


def first_rows(index: Index) -> list[int]:
    """Return the first row of every shard, with the end."""
    return [0, *accumulate(index.shards.nsamples)]


def rows_of(index: Index, number: int, first: list[int]) -> Rows:
    """Take the rows of a shard out of an index that was validated. `first`: first_rows() of it."""
    table = index.table.slice(first[number], first[number + 1] - first[number])
    ends, exts, before = [], [], 0
    places: list[list[Array]] = [[], [], []]
    for chunk in take_fields(table):
        ends.append(chunk.ends + before)
        before += len(chunk.codes)
        exts.append(pa.array(chunk.exts, pa.utf8()).take(pa.array(chunk.codes)))
        for column, place in zip(places, chunk.places, strict=True):
            column.append(place)
    header, offset, nbytes = (concat(column, np.uint64) for column in places)
    start, end = (table.column(name).to_numpy() for name in ("start", "end"))
    text = pa.concat_arrays(exts) if exts else pa.array([], pa.utf8())
    keys = one_chunk(table.column("key"))
    return Rows(
        number, index.shards.url[number], keys, start, end, concat(ends, np.int64), text, header, offset, nbytes
    )


def exact_names(index: Index, rows: Rows, members: Members) -> tuple[pa.Array, pa.Array]:
    """The name of the member of every field, and the part of it that is the field's, in the letters of the tar.

    Raises StaleIndexError where the index does not describe the shard.
    """
    at = np.searchsorted(members.headers, rows.header)
    if len(at) and at[-1] >= len(members.headers):
        _stale(index, rows, f"no member at byte {rows.header[-1]}")
    for what in ("header", "offset", "nbytes"):
        have = getattr(members, "headers" if what == "header" else "offsets" if what == "offset" else what)[at]
        if len(bad := np.flatnonzero(have != getattr(rows, what))):
            i = int(bad[0])
            _stale(index, rows, f"the member at byte {members.headers[at][i]} has another {what}")
    if members.shard_nbytes != index.shards.nbytes[rows.number]:
        _stale(index, rows, f"{members.shard_nbytes} bytes, where the index has {index.shards.nbytes[rows.number]}")
    if len(members.types) != index.shards.nmembers[rows.number]:
        known = index.shards.nmembers[rows.number]
        _stale(index, rows, f"{len(members.types)} members, where the index has {known}")
    first = np.concatenate(([0], rows.ends[:-1])).astype(np.int64) if len(rows) else rows.ends
    if np.any(members.starts[at[first]] != rows.start):
        _stale(index, rows, "a sample begins elsewhere")
    names = members.names.take(pa.array(at)).cast(
        pa.large_utf8() if members.names.type == pa.large_binary() else pa.utf8()
    )
    return names, _exact_exts(index, rows, names)


def names_of(index: Index, rows: Rows) -> tuple[pa.Array, pa.Array]:
    """As exact_names(), but without a walk where the index has the names exactly, and its shard is local and has the
    size and mtime that it had: then some samples are looked at. Raises StaleIndexError, ShardError, StoreError."""
    if not _is_exact(index, rows):
        return exact_names(index, rows, read_members(rows.url))
    with open_source(rows.url) as source:
        if source.local_path is None or not isinstance(source.handle, int):
            return exact_names(index, rows, read_members(rows.url))
        if index.shards.is_changed(rows.number, os.fstat(source.handle)):  # copied, maybe
            return exact_names(index, rows, read_members(rows.url))
        names = _usual_names(rows, _keys_of(rows))
        _look_at_some(index, rows, names, source.handle)
    return names, rows.exts


def _is_exact(index: Index, rows: Rows) -> bool:
    """Whether the index says so, and its rows do not say otherwise: what is no field would lie between them."""
    shards, number = index.shards, rows.number
    if not shards.exact[number] or not shards.mtime[number] or not len(rows):
        return False
    apart = rows.start[0] != 0 or np.any(rows.start[1:] != rows.end[:-1])
    return not apart and len(rows.header) == shards.nmembers[number]


def _look_at_some(index: Index, rows: Rows, names: pa.Array, fd: int) -> None:
    """Compare the headers of the first sample, the last and some others with the index. Raises StaleIndexError."""
    n = len(rows)
    for row in sorted({0, n - 1, *_chance.sample(range(n), min(n, LOOKS))}):
        begin, stop = int(rows.ends[row - 1]) if row else 0, int(rows.ends[row])
        walker = _core.Walker(fd, rows.url, start=int(rows.start[row]), end=int(rows.end[row]))
        try:
            found = [(name, kind, *places) for name, kind, _, _, *places in islice(walker, stop - begin)]
        except ShardError as error:
            _stale(index, rows, error.reason)
        for i, have in enumerate(found, begin):
            want = (names[i].as_py(), "f", int(rows.header[i]), int(rows.offset[i]), int(rows.nbytes[i]))
            if have != want:
                _stale(index, rows, f"the member at byte {want[2]} is {have[0]!r}, not {want[0]!r}, or lies elsewhere")


def _keys_of(rows: Rows) -> pa.Array:
    """The key of every field."""
    return rows.keys.take(pa.array(np.repeat(np.arange(len(rows)), np.diff(rows.ends, prepend=0))))


def _usual_names(rows: Rows, keys: pa.Array) -> pa.Array:
    """key.ext of every field."""
    text = pa.large_utf8()
    return pc.binary_join_element_wise(keys.cast(text), rows.exts.cast(text), pa.scalar(".", text))


def _exact_exts(index: Index, rows: Rows, names: pa.Array) -> pa.Array:
    """The fields as the names have them; they are those of the index but for upper and lower case."""
    keys = _keys_of(rows)
    same = pc.equal(_usual_names(rows, keys), names.cast(pa.large_utf8()))
    if pc.all(same, min_count=0).as_py():
        return rows.exts
    exts = rows.exts.to_pylist()
    for i in np.flatnonzero(~same.to_numpy(zero_copy_only=False)).tolist():
        name, key = names[i].as_py(), keys[i].as_py()
        if split_name(name) != (key, exts[i]):
            _stale(index, rows, f"the member at byte {rows.header[i]} is {name!r}, not {key!r} {exts[i]!r}")
        exts[i] = name[len(key) + 1 :]
    return pa.array(exts, pa.utf8())


def _stale(index: Index, rows: Rows, why: str) -> None:
    raise StaleIndexError(f"{index.name}: does not describe {rows.url}: {why}; rebuild it with wds-index build")


def each(
    index: Index, work: Callable[[int], T], workers: int | None, progress: Callable[[int], Any] = lambda n: None
) -> Iterator[T]:
    """Yield what `work` makes of each shard of an index, in order, on threads; few are held that nobody has taken."""
    index.validate()
    n, ahead = len(index.shards), 2 * (workers or cpu_count() or 1)
    with ThreadPoolExecutor(workers or cpu_count() or 1) as pool:
        waiting = [pool.submit(work, i) for i in range(min(ahead, n))]
        try:
            for i in range(n):
                done = waiting[i].result()
                waiting[i] = None  # type: ignore[call-overload]
                if i + ahead < n:
                    waiting.append(pool.submit(work, i + ahead))
                progress(1)
                yield done
        finally:
            for future in waiting:
                if future is not None:
                    future.cancel()


def write_each(index: Index, paths: list[str], encode: Callable[[Members, str], bytes], options: Options) -> None:
    """Write a file for every shard, all or none: what `encode` makes of its members, which are compared with its rows,
    and its URL. Raises as exact_names()."""
    first = first_rows(index)

    def one(number: int) -> None:
        rows = rows_of(index, number, first)
        members = read_members(rows.url)
        exact_names(index, rows, members)
        batch.put(paths[number], encode(members, rows.url))

    with Batch() as batch:
        for _ in each(index, one, options.workers, options.progress):
            pass
