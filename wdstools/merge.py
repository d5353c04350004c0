"""Putting indexes together: any number of parts, batch by batch, in memory that does not grow with their rows.

Two passes over the parts. The first collects their shard tables, field names, columns, and the hashes of their keys,
which go into buckets by their top bits, on disk where they are many. The second copies the rows, a batch at a time,
beside the hashes, bucket by bucket in order.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np
import pyarrow as pa

from wdstools.columns import CORE, FIELD_TYPE, HIDDEN, Array, concat, make_fields, one_chunk, take_fields
from wdstools.errors import IndexFileError, SourceError
from wdstools.index import BATCH_ROWS, Index
from wdstools.indexfile import write
from wdstools.shardtable import Shards, canonical

SPILL_ROWS = 1 << 18  # hashes that are kept in memory before they go to disk
BUCKETS = 256  # by the first byte of the hash: 4 million hashes each for a set of a thousand million samples
Metadata = Mapping[str, str] | Callable[[Shards], Mapping[str, str]]
_PAIR = np.dtype([("hash", np.uint64), ("row", np.uint64)])


def merge(indexes: Sequence[Index]) -> Index:
    """Put indexes together, in order, in memory; columns that only some have are null in the others.

    Raises IndexFileError where a shard is in two of them, or one is not sound. A column with types that do not go
    together becomes text; where that is no way either, IndexFileError.
    """
    if len(indexes) == 1:
        return indexes[0]
    parts = _Parts(indexes.__getitem__, len(indexes), tempfile.gettempdir())
    return Index(pa.Table.from_batches(list(parts.batches()), parts.schema), parts.shards)


def merge_files(
    paths: Sequence[str], path: str, metadata: Metadata | None = None, *, trusted: bool = False, unique: bool = False
) -> None:
    """Put index files together, in order, into another, which appears whole or not at all. Raises as merge() does,
    NotFoundError, and SourceError where keys must be `unique` and one is there twice.

    `metadata`: what the file shall say of itself, or a function of the shard table that tells. `trusted`: this process
    has written the files, or looked at all of them.
    """
    _merge_into(path, lambda number: Index.load(paths[number]), len(paths), metadata, trusted, unique)


def _merge_into(
    path: str, load: Callable[[int], Index], count: int, metadata: Metadata | None, trusted: bool, unique: bool = False
) -> None:
    parts = _Parts(load, count, os.path.dirname(os.path.abspath(path)), trusted, unique)
    told = metadata(parts.shards) if callable(metadata) else metadata or {}
    write(path, parts.schema, parts.batches(), parts.shards, told)


class Spool:
    """Indexes put away, from any thread, until they are merged into the file `path`: in a temporary file beside it that
    has no name, so that nothing is left of it whatever happens. A context."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._folder = os.path.dirname(os.path.abspath(path))
        self._file = tempfile.TemporaryFile(dir=self._folder)
        self._lock = threading.Lock()
        self._end = 0
        self._places: dict[int, tuple[int, int]] = {}

    def put(self, number: int, index: Index) -> None:
        """Put part `number` away."""
        data = index.dumps(self._folder)
        with self._lock:
            start, self._end = self._end, self._end + data.size
            self._places[number] = start, data.size
        _pwrite(self._file.fileno(), memoryview(data), start)

    def load(self, number: int) -> Index:
        """Return part `number`. Raises KeyError where it was not put."""
        start, nbytes = self._places[number]
        return Index.parse(_pread(self._file.fileno(), nbytes, start), "index in memory", self._folder)

    def merge(self, metadata: Metadata | None = None) -> None:
        """Merge the parts, in the order of their numbers; see merge_files()."""
        _merge_into(self._path, self.load, len(self._places), metadata, True)

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _pread(fd: int, nbytes: int, start: int) -> bytes:
    """One call reads 2 GiB at most."""
    pieces = []
    while nbytes and (piece := os.pread(fd, nbytes, start)):
        pieces.append(piece)
        nbytes, start = nbytes - len(piece), start + len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _pwrite(fd: int, data: memoryview, start: int) -> None:
    while data:
        written = os.pwrite(fd, data, start)
        data, start = data[written:], start + written


class _Parts:
    """The parts of a merge, after the first pass. `load(i)` gives part i, twice."""

    def __init__(
        self, load: Callable[[int], Index], count: int, folder: str, trusted: bool = False, unique: bool = False
    ) -> None:
        self._load, self._count, self._unique = load, count, unique
        self._firsts: list[int] = []  # the first row of each part
        self.shards = Shards()
        self._names: dict[str, int] = {}
        self._hashes = _Buckets(folder)
        lifted: list[pa.Schema] = []
        kinds = {pa.utf8()}
        rows = 0
        for number in range(count):
            part = load(number)
            if part.path and not trusted:
                part.validate()
            table = part.table
            self.shards.extend(part.shards)
            for chunk in table.column("fields").chunks:
                for name in chunk.values.field("ext").dictionary.to_pylist():
                    self._names.setdefault(name, len(self._names))
            lifted.append(pa.schema([field for field in table.schema if field.name not in (*CORE, *HIDDEN)]))
            kinds.add(table.schema.field("key").type)
            self._hashes.add(table.column("_hash").to_numpy(), table.column("_row").to_numpy(), rows)
            self._firsts.append(rows)
            rows += len(part)
        for url, times in Counter(canonical(url) for url in self.shards.url).items():
            if times > 1:
                raise IndexFileError(f"shard {url} is there more than once")
        self._lifted = _unify(lifted)
        self.schema = _schema(pa.large_utf8() if pa.large_utf8() in kinds else pa.utf8(), self._lifted)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the batches of the merged index, BATCH_ROWS each but the last."""
        with contextlib.closing(self._hashes):
            hashes, last = _Taker(self._hashes.sorted()), np.empty(0, _PAIR)
            for rows in _regrouped(self._rows(), BATCH_ROWS):
                pairs = hashes.take(len(rows))
                if self._unique:
                    self._check(np.concatenate((last, pairs)))
                    last = pairs[-1:]
                arrays = [one_chunk(column) for column in rows.columns]
                arrays += [pa.array(pairs[name], pa.uint64()) for name in ("hash", "row")]
                yield pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def _check(self, pairs: Array) -> None:
        """Raises SourceError where two neighbours among sorted pairs are of one key."""
        for i in np.flatnonzero(pairs["hash"][1:] == pairs["hash"][:-1]).tolist():
            (key, url), (other, there) = (self._sample(int(row)) for row in pairs["row"][i : i + 2])
            if key == other:
                where = f"{url} and in {there}" if url != there else f"{url}, twice"
                raise SourceError(f"two samples with one key: {key!r} is in {where}: give each a key of its own")

    def _sample(self, row: int) -> tuple[str, str]:
        """The key and the shard of a row."""
        number = bisect_right(self._firsts, row) - 1
        part = self._load(number)
        key, shard, _, _ = part.locate(row - self._firsts[number])
        return key, part.shards.url[shard]

    def _rows(self) -> Iterator[pa.Table]:
        """Yield the rows of each part, with the shards, names and columns of the whole."""
        names, before = list(self._names), 0
        schema = pa.schema([field for field in self.schema if field.name not in HIDDEN])
        for number in range(self._count):
            part = self._load(number)
            table = part.table
            columns: dict[str, Any] = {name: table.column(name) for name in ("key", "start", "end")}
            if columns["key"].type != schema.field("key").type:
                columns["key"] = columns["key"].cast(schema.field("key").type)
            columns["shard"] = pa.array(table.column("shard").to_numpy() + np.uint32(before), pa.uint32())
            columns["fields"] = pa.chunked_array(list(self._recoded(table, names)), pa.list_(FIELD_TYPE))
            for field in self._lifted:
                has = field.name in table.column_names
                columns[field.name] = _cast(table.column(field.name), field) if has else pa.nulls(len(part), field.type)
            yield pa.table({field.name: columns[field.name] for field in schema}, schema)
            before += len(part.shards)

    def _recoded(self, table: pa.Table, names: list[str]) -> Iterator[pa.Array]:
        for chunk in take_fields(table):
            recode = np.array([self._names[ext] for ext in chunk.exts], np.int32)
            yield make_fields(chunk.ends, recode[chunk.codes] if len(recode) else chunk.codes, names, chunk.places)


def _schema(keys: pa.DataType, lifted: Sequence[pa.Field]) -> pa.Schema:
    fields = [pa.field("key", keys), pa.field("shard", pa.uint32()), pa.field("start", pa.uint64())]
    fields += [pa.field("end", pa.uint64()), pa.field("fields", pa.list_(FIELD_TYPE)), *lifted]
    return pa.schema([*fields, *(pa.field(name, pa.uint64()) for name in HIDDEN)])


def _cast(column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    if column.type == field.type:
        return column
    try:
        return column.cast(field.type)
    except pa.ArrowException as error:
        what = f"column {field.name} has types that do not go together: {column.type}, {field.type}"
        raise IndexFileError(what) from error


def _unify(schemas: list[pa.Schema]) -> list[pa.Field]:
    """The lifted columns of all parts, in the order in which they come up; text where types do not go together."""
    fields: dict[str, list[pa.Field]] = {}
    for schema in schemas:
        for field in schema:
            fields.setdefault(field.name, []).append(field.with_nullable(True).remove_metadata())
    found = []
    for name, each in fields.items():
        kinds = [pa.schema([field]) for field in dict.fromkeys(each)]
        try:
            found.append(pa.unify_schemas(kinds, promote_options="permissive").field(name))
        except (pa.ArrowInvalid, pa.ArrowTypeError):  # cls in words here, in numbers there: text holds both
            found.append(pa.field(name, pa.utf8()))
    return found


def _regrouped(tables: Iterator[pa.Table], size: int) -> Iterator[pa.Table]:
    """Tables of exactly `size` rows, but the last."""
    held: list[pa.Table] = []
    rows = 0
    for table in tables:
        while len(table):
            take = table.slice(0, size - rows)
            table = table.slice(len(take))
            held.append(take)
            rows += len(take)
            if rows == size:
                yield pa.concat_tables(held).combine_chunks()
                held, rows = [], 0
    if held:
        yield pa.concat_tables(held).combine_chunks()


class _Buckets:
    """Pairs of hash and row, to be sorted by both: in memory while they are few, else in a temporary file, in runs that
    are sorted by bucket."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._held: list[Array] = []
        self._rows = 0
        self._file: IO[bytes] | None = None
        self._runs: list[Array] = []  # of each: where its buckets begin in the file, and where the last one ends

    def add(self, hashes: Array, rows: Array, before: int) -> None:
        """Add the pairs of a part whose rows begin at `before`."""
        pairs = np.empty(len(hashes), _PAIR)
        pairs["hash"], pairs["row"] = hashes, rows + np.uint64(before)
        self._held.append(pairs)
        self._rows += len(pairs)
        if self._rows > SPILL_ROWS:
            self._spill()

    def _spill(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)
        pairs = concat(self._held, _PAIR)
        self._held, self._rows = [], 0
        numbers = (pairs["hash"] >> np.uint64(56)).astype(np.int64)
        start = int(self._runs[-1][-1]) if self._runs else 0
        counts = np.bincount(numbers, minlength=BUCKETS)
        self._runs.append(start + np.concatenate(([0], np.cumsum(counts))) * _PAIR.itemsize)
        ordered = pairs[np.argsort(numbers, kind="stable")]
        _pwrite(self._file.fileno(), memoryview(ordered.tobytes()), start)

    def sorted(self) -> Iterator[Array]:
        """Yield all pairs in order, bucket by bucket. They can be had once."""
        if self._file is None:
            yield _in_order(concat(self._held, _PAIR))
            return
        self._spill()
        fd = self._file.fileno()
        for bucket in range(BUCKETS):
            pieces = [os.pread(fd, int(run[bucket + 1] - run[bucket]), int(run[bucket])) for run in self._runs]
            yield _in_order(np.frombuffer(b"".join(pieces), _PAIR))

    def close(self) -> None:
        """Give the disk back."""
        if self._file is not None:
            self._file.close()


def _in_order(pairs: Array) -> Array:
    """Sorted by hash; pairs of one hash came in the order of their rows, and keep it."""
    return pairs[np.argsort(pairs["hash"], kind="stable")]


class _Taker:
    """Takes rows off an iterator of arrays, so many at a time."""

    def __init__(self, arrays: Iterator[Array]) -> None:
        self._arrays, self._held = arrays, np.empty(0, _PAIR)

    def take(self, count: int) -> Array:
        taken: list[Array] = []
        while count:
            if not len(self._held):
                self._held = next(self._arrays)
            taken.append(self._held[:count])
            self._held = self._held[count:]
            count -= len(taken[-1])
        return concat(taken, _PAIR)
