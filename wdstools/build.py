"""Building indexes: from shards or from what a writer counted; refreshing and checking them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from wdstools import _core, urls
from wdstools.checksums import FORM, Level, add_checksums, level_of, with_column
from wdstools.columns import CHECKSUM, CORE, HIDDEN, Lift, lift_column, make_fields, one_chunk, text_array
from wdstools.errors import IndexFileError, NotFoundError, ShardError, StaleIndexError, UrlError, WdsError
from wdstools.index import Index
from wdstools.merge import Metadata, Spool, merge
from wdstools.shardtable import Shards, canonical
from wdstools.storage import Source, Whole, open_local, open_source

CHECK_ROWS = 1 << 14


Progress = Callable[[int], object]


@dataclass(frozen=True)
class Built:
    """An index, how many of its shards were taken over from the previous one without being read, and whether it was
    written: it was not where it is the previous one."""

    index: Index
    reused: int
    written: bool


def build(
    shards: Sequence[str],
    *,
    lift: Lift = (),
    checksum: Level | None = None,
    workers: int | None = None,
    previous: Index | None = None,
    progress: Progress = lambda nbytes: None,
) -> Index:
    """Index shards, in the order given, in memory; refresh() does it in a file. Raises as refresh() does."""
    parts: list[Index | None] = [None] * len(shards)
    same = _index_each(shards, parts.__setitem__, _checked(lift), checksum, workers, previous, progress)[1]
    if previous is not None and same:
        return previous
    return merge([part for part in parts if part is not None])


def refresh(
    path: str,
    shards: Sequence[str],
    *,
    lift: Lift = (),
    checksum: Level | None = None,
    workers: int | None = None,
    previous: Index | None = None,
    metadata: Metadata | None = None,
    progress: Progress = lambda nbytes: None,
) -> Built:
    """Index shards, in the order given, into the file `path`, `workers` (default: one a core) at a time. What it holds
    in memory does not grow with the shards.

    Headers only are read from regular files, unless `checksum` asks for those of shards or samples, too; default: what
    `previous` keeps. `previous`: an index whose rows are taken over for local shards that have
    the same path, size and mtime there; columns that it lacks are read from these shards. The index has the columns of
    `lift` and no others. Where it would be the same as `previous`, nothing is written. `metadata`: see
    merge_files(). `progress` is called with the bytes of each shard.

    Raises ShardError for the first broken shard, NotFoundError, StoreError; IndexFileError for a previous index that
    is not sound, a column that has the name of one of the index's own, and a shard that is given twice.
    """
    with Spool(path) as spool:
        reused, same = _index_each(shards, spool.put, _checked(lift), checksum, workers, previous, progress)
        if previous is not None and same:
            return Built(previous, reused, False)
        spool.merge(metadata)
    return Built(Index.load(path), reused, True)


def _index_each(
    shards: Sequence[str],
    put: Callable[[int, Index], object],
    lift: list[str],
    checksum: Level | None,
    workers: int | None,
    previous: Index | None,
    progress: Progress,
) -> tuple[int, bool]:
    """Index each shard, and put() it away with its number. Returns how many came from `previous`, and whether all of
    that is what `previous` is."""
    kept: Level = level_of(previous) if previous is not None else "none"
    level = checksum or kept
    known = _Known(previous, lift, level) if previous is not None else None

    def one(item: tuple[int, str]) -> bool:
        number, url = item
        old = known.unchanged(url) if known else None
        index = add_checksums(old or index_shard(url, lift=lift), url, level)
        put(number, index)
        progress(index.shards.nbytes[0])
        return old is not None

    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        reused = sum(pool.map(one, enumerate(shards)))
    if previous is None or reused < len(shards) or lift != previous.lifted() or not _has_sums(previous, level):
        return reused, False
    return reused, [canonical(url) for url in previous.shards.url] == [canonical(url) for url in shards]


def _has_sums(index: Index, level: Level) -> bool:
    """Whether an index keeps the checksums of this level, and no others."""
    if level == "none" or level_of(index) != level:
        return level_of(index) == level
    return all(index.shards.checksum) and (level == "shard" or not index.table.column(CHECKSUM).null_count)


def _checked(lift: Lift) -> list[str]:
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
    for name in _checked(lift):
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


class _Known:
    """The rows of an earlier index, by shard, for the shards that are as they were."""

    def __init__(self, index: Index, lift: Lift, level: Level) -> None:
        index.validate()
        self.index, self.lift, self.level = index, lift, level
        self.kept = [name for name in index.lifted() if name in lift]
        self.lacking = [name for name in lift if name not in self.kept]
        self.number = {canonical(url): i for i, url in enumerate(index.shards.url)}
        self.first = np.cumsum([0, *index.shards.nsamples]).tolist()
        self.hashes = unsorted_hashes(index)

    def unchanged(self, url: str) -> Index | None:
        number, path = self.number.get(canonical(url)), urls.local_path(url)
        if number is None or path is None:
            return None
        try:
            about = os.stat(path)
        except OSError:
            return None  # index_shard will say it better
        if self.index.shards.is_changed(number, about):
            return None
        index = self._part(url, number)
        if not self.lacking:
            return index
        fd, _ = open_local(url)
        try:
            table = add_lifted(index, fd, self.lacking).table
        finally:
            os.close(fd)
        sums = [CHECKSUM] if CHECKSUM in table.column_names else []
        return Index(table.select([*CORE, *self.lift, *sums, *HIDDEN]), index.shards)

    def _part(self, url: str, number: int) -> Index:
        first, end = self.first[number], self.first[number + 1]
        part = self.index.table.slice(first, end - first)
        columns = [one_chunk(part.column(name)) for name in ("key", "fields")]
        places = [part.column(name).to_numpy() for name in ("start", "end")]
        zeros = np.zeros(len(part), np.uint32)
        sums = [CHECKSUM] if self.level == "sample" and CHECKSUM in part.column_names else []
        extra = {name: one_chunk(part.column(name)) for name in [*self.kept, *sums]}
        table = assemble(columns[0], zeros, places[0], places[1], columns[1], self.hashes[first:end], extra)
        s = self.index.shards
        shards = Shards([url], [s.nbytes[number]], [s.mtime[number]], [s.nsamples[number]], [s.nmembers[number]])
        shards.exact = [s.exact[number]]
        if self.level != "none":
            shards.checksum = [s.checksum[number]]
        return Index(table, shards)


def check(
    index: Index,
    *,
    workers: int | None = None,
    run_pipes: bool = False,
    progress: Callable[[int], None] = lambda nbytes: None,
) -> list[WdsError]:
    """Compare an index with its shards, whose headers are read anew. Returns what is wrong, one error a shard.

    `run_pipes`: whether the commands of pipe: URLs are run; whoever wrote the index chose them. Columns lifted from
    payloads are not compared.
    """
    try:
        index.validate()
    except IndexFileError as error:
        return [error]
    ends = np.cumsum([0, *index.shards.nsamples])
    hashes = unsorted_hashes(index)

    def one(number: int) -> WdsError | None:
        url = index.shards.url[number]
        rows = slice(int(ends[number]), int(ends[number + 1]))
        try:
            if urls.scheme(url) == "pipe" and not run_pipes:
                raise UrlError(f"{url}: not checked: commands that an index names are not run unless asked")
            found = index_shard(url)
            reason = difference(index, number, rows, hashes[rows], found)
        except WdsError as error:
            return error
        finally:
            progress(index.shards.nbytes[number])
        return StaleIndexError(f"{index.name}: {url}: {reason}") if reason else None

    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        return [error for error in pool.map(one, range(len(index.shards))) if error]


def verify(index: Index, number: int, columns: _core.Columns) -> None:
    """Compare a shard of an index with what _core.scan found; hashes, which follow from the keys, are left to check().

    Raises StaleIndexError, IndexFileError, ShardError."""
    index.validate()
    url, end = index.shards.url[number], sum(index.shards.nsamples[: number + 1])
    rows = slice(end - index.shards.nsamples[number], end)
    found = from_columns(columns, url)
    reason = difference(index, number, rows, unsorted_hashes(found), found)
    if reason:
        raise StaleIndexError(f"{index.name}: {url}: {reason}")


def difference(
    index: Index, number: int, rows: slice, hashes: np.ndarray[Any, np.dtype[np.uint64]], found: Index
) -> str | None:
    """Return the first thing that an index says of a shard and that is not so, or None. `rows`: of the shard; `hashes`:
    what the index has for them; `found`: the index of the shard as it is."""
    mine, s = index.table.slice(rows.start, rows.stop - rows.start), index.shards
    if s.nbytes[number] != found.shards.nbytes[0]:
        return f"{found.shards.nbytes[0]} bytes, where the index has {s.nbytes[number]}"
    if len(mine) != len(found):
        return f"{len(found)} samples, where the index has {len(mine)}"
    if s.nmembers[number] != found.shards.nmembers[0]:
        return f"{found.shards.nmembers[0]} members, where the index has {s.nmembers[number]}"
    if s.exact[number] and not found.shards.exact[0]:
        return "a member that is no field, or has capitals, where the index says that none is and none has"
    for name in ("key", "start", "end", "fields"):
        for begin in range(0, len(mine), CHECK_ROWS):  # as Python's values, which are large, but few at a time
            a, b = (t.column(name).slice(begin, CHECK_ROWS).to_pylist() for t in (mine, found.table))
            if a != b:
                row = next(i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
                return f"sample {begin + row}: {name} is {b[row]!r}, where the index has {a[row]!r}"
    wrong = np.flatnonzero(hashes != unsorted_hashes(found))
    if len(wrong):
        return f"sample {wrong[0]}: its hash is not that of its key"
    return None


def shard_numbers(index: Index, shards: Sequence[str]) -> list[int]:
    """Return the numbers of shards in the shard table. Raises NotFoundError for one that it does not have."""
    number = {canonical(url): i for i, url in enumerate(index.shards.url)}
    for url in shards:
        if canonical(url) not in number:
            raise NotFoundError(f"{index.name}: does not have {url}; `wds-index build` refreshes it")
    return [number[canonical(url)] for url in shards]


def open_shard(index: Index, number: int) -> tuple[int, str]:
    """Open a shard of an index for random access: (descriptor, path). Raises StaleIndexError where its size is not the
    one that the index has, NotFoundError, StoreError, UrlError for a compressed one."""
    url = index.shards.url[number]
    fd, path = open_local(url)
    nbytes = os.fstat(fd).st_size
    if nbytes != index.shards.nbytes[number]:
        os.close(fd)
        if re.search(r"\.(gz|tgz|zst|tzst|bz2|tbz2?|xz|txz)$", path, re.IGNORECASE):
            raise UrlError(f"{url}: random access needs a plain tar, not a compressed one")
        raise StaleIndexError(
            f"{index.name}: does not describe {url} any more: {nbytes} bytes, where the index has "
            f"{index.shards.nbytes[number]}; rebuild it with wds-index build"
        )
    return fd, path
