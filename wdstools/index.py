"""The index of a set of shards: an Arrow table, one row a sample, memory-mapped. Reading, look-up, queries, saving.

File format, version 1: an Arrow IPC file, uncompressed, whose batches have these columns (docs/index-format.md):

    key     utf8 (large_utf8 past 2 GiB of keys)
    shard   uint32         row of the shard table
    start   uint64         byte range of the sample in its shard, end exclusive: from the first header (with its PAX and
    end     uint64         long name blocks) to the end of the last padded member
    fields  list<struct<ext: dictionary<int32, utf8>, header: uint64, offset: uint64, nbytes: uint64>>
    ...     any other      columns lifted from fields
    _hash   uint64         XXH64 of every key, sorted over the whole file, and
    _row    uint64         the row that it belongs to

and whose schema metadata has `wds.version` = "1" and `wds.shards`, JSON: {"url": [...], "nbytes": [...], ...}.
"""

from __future__ import annotations

import array
import bisect
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from wdstools import _core, soundness, urls
from wdstools.columns import CORE, HIDDEN, VERSION
from wdstools.errors import IndexFileError, NotFoundError
from wdstools.samples import hash_key

SUFFIX = ".wdsindex"
BATCH_ROWS = 1 << 16  # of every batch but the last; what a merge holds in memory is 50 MB of them


@dataclass
class Shards:
    """The shard table, by columns: url, nbytes, mtime in ns since 1970 (0: unknown), number of samples and members."""

    url: list[str] = field(default_factory=list)
    nbytes: list[int] = field(default_factory=list)
    mtime: list[int] = field(default_factory=list)
    nsamples: list[int] = field(default_factory=list)
    nmembers: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.url)

    def extend(self, other: Shards) -> None:
        for column in fields(self):
            getattr(self, column.name).extend(getattr(other, column.name))

    def is_changed(self, number: int, about: os.stat_result) -> bool:
        """Say whether a shard is another one than was indexed, as far as its size and mtime tell."""
        return (self.nbytes[number], self.mtime[number]) != (about.st_size, about.st_mtime_ns)

    def is_like(self, other: Shards) -> bool:
        """Say whether these are the same shards, with as many bytes and samples; mtimes may differ."""
        if list(map(canonical, self.url)) != list(map(canonical, other.url)):
            return False
        return (self.nbytes, self.nsamples) == (other.nbytes, other.nsamples)

    def to_json(self, base: str) -> str:
        columns = {column.name: getattr(self, column.name) for column in fields(self)}
        return json.dumps(
            columns | {"url": [urls.relative(_absolute(url), base) for url in self.url]}, separators=(",", ":")
        )

    @classmethod
    def from_json(cls, text: str | bytes, base: str) -> Shards:
        """Raises ValueError or KeyError where the text is not a shard table."""
        raw = json.loads(text)
        columns = {column.name: raw[column.name] for column in fields(cls)}
        if not all(isinstance(column, list) for column in columns.values()):
            raise ValueError("shard table with a column that is not a list")
        if len({len(column) for column in columns.values()}) != 1:
            raise ValueError("shard table with columns of different lengths")
        if not all(type(value) is int and value >= 0 for name in columns for value in columns[name] if name != "url"):
            raise ValueError("shard table with a count that is not a number")
        if not all(isinstance(url, str) for url in columns["url"]):
            raise ValueError("shard table with a URL that is not text")
        columns["url"] = [_resolve(url, base) for url in columns["url"]]
        return cls(**columns)


def canonical(url: str) -> str:
    """Return the URL by which two indexes know the same shard: local paths are absolute, the others as they are."""
    path = urls.local_path(url)
    return url if path is None else os.path.abspath(path)


def _absolute(url: str) -> str:
    return url if urls.is_absolute(url) else os.path.abspath(url)


def _resolve(url: str, base: str) -> str:
    return url if urls.is_absolute(url) else urls.join(base, url)


class Field(NamedTuple):
    """Where one payload lies in its shard: [offset, offset + nbytes); `header`: its final 512-byte header."""

    ext: str
    header: int
    offset: int
    nbytes: int


class _Batch:
    """Direct access to the numbers of one record batch; every offset is checked before it is used."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self.nrows = batch.num_rows
        self.shard = _numbers(batch.column("shard"), "I")
        self.start = _numbers(batch.column("start"), "Q")
        self.end = _numbers(batch.column("end"), "Q")
        self.hash = _numbers(batch.column("_hash"), "Q")
        self.row = _numbers(batch.column("_row"), "Q")
        key = batch.column("key")
        _, offsets, data = key.buffers()
        wide = key.type == pa.large_utf8()
        self.key_ends = memoryview(offsets).cast("q" if wide else "i")[key.offset :] if self.nrows else memoryview(b"")
        self.key_data = memoryview(data) if data is not None else memoryview(b"")

    def key(self, i: int) -> str:
        a, b = self.key_ends[i], self.key_ends[i + 1]
        if not 0 <= a <= b <= len(self.key_data):
            raise IndexFileError(f"row {i}: key outside of the file")
        return str(self.key_data[a:b], "utf-8", "surrogateescape")


def _numbers(column: pa.Array, code: Literal["I", "Q"]) -> memoryview:
    buffer = column.buffers()[1]
    numbers: memoryview = memoryview(buffer if buffer is not None else b"").cast(code)
    return numbers[column.offset : column.offset + len(column)]


class Index:
    """An index, in memory or mapped from a file. Rows are samples, from 0, in the order of the shards.

    `table`: the Arrow table; `shards`: the shard table; `path`: the file, or None; `metadata`: what else the file says
    of itself, as `wds.job`.
    """

    def __init__(
        self, table: pa.Table, shards: Shards, path: str | None = None, metadata: dict[str, str] | None = None
    ) -> None:
        self.table, self.shards, self.path = table, shards, path
        self.metadata = metadata or {}
        batches = [_Batch(batch) for batch in table.to_batches() if batch.num_rows]
        self._batches = batches
        self._first = [0]
        for batch in batches:
            self._first.append(self._first[-1] + batch.nrows)
        self._validated = False

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Index:
        """Map an index file. Raises NotFoundError, IndexFileError."""
        path = os.path.abspath(path)
        try:
            with pa.memory_map(path) as mapped:
                return cls._read(mapped, path, os.path.dirname(path))
        except FileNotFoundError as error:
            raise NotFoundError(f"{path}: no such index") from error
        except OSError as error:  # a folder, say
            raise IndexFileError(f"{path}: not an index: {soundness.line(error)}") from error

    @classmethod
    def loads(cls, data: bytes, folder: str) -> Index:
        """Return the index that dumps(folder) gave. Raises IndexFileError."""
        return cls._read(pa.BufferReader(data), None, folder)

    @classmethod
    def _read(cls, file: pa.NativeFile, path: str | None, folder: str) -> Index:
        name = path or "index in memory"
        try:
            with pa.ipc.open_file(file) as reader:
                table = reader.read_all()
        except (pa.ArrowException, OSError, ValueError) as error:
            raise IndexFileError(f"{name}: not an index: {soundness.line(error)}") from error
        try:
            return cls(table, _shards(table, folder), path, _metadata(table))
        except (pa.ArrowException, ValueError, LookupError, TypeError, RecursionError) as error:
            raise IndexFileError(f"{name}: not an index of version {VERSION}: {soundness.line(error)}") from error

    def dumps(self, folder: str) -> pa.Buffer:
        """Return what save() would write into a file in `folder`."""
        sink = pa.BufferOutputStream()
        _put(sink, self.table.schema, self.table.to_batches(BATCH_ROWS), self.shards, self.metadata, folder)
        return sink.getvalue()

    def save(self, path: str | os.PathLike[str], *, sync: bool = True) -> None:
        """Write the index; see write()."""
        write(path, self.table.schema, self.table.to_batches(BATCH_ROWS), self.shards, self.metadata, sync=sync)

    def attach(self, reader: _core.SampleReader) -> None:
        """Let a reader find rows by itself, where all batches but the last have as many rows as the first."""
        sizes = {batch.nrows for batch in self._batches[:-1]}
        if not self._batches or len(sizes) > 1 or self._batches[-1].nrows > max(sizes, default=self._batches[-1].nrows):
            return
        nbytes = array.array("Q", [min(n, (1 << 63) - 1) for n in self.shards.nbytes])
        for number, b in enumerate(self._batches):
            if number:
                reader.extend(b.shard, b.start, b.end, b.key_ends, b.key_data)
            else:
                reader.attach(b.shard, b.start, b.end, b.key_ends, b.key_data, nbytes)

    @property
    def name(self) -> str:
        """What to call it in an error."""
        return self.path or "index in memory"

    def __len__(self) -> int:
        return self._first[-1]

    def _at(self, row: int) -> tuple[_Batch, int]:
        if len(self._batches) == 1:
            return self._batches[0], row
        b = bisect.bisect_right(self._first, row) - 1
        return self._batches[b], row - self._first[b]

    def key(self, row: int) -> str:
        """Return the key of a row. Raises IndexError past the end."""
        self._check(row)
        batch, i = self._at(row)
        return batch.key(i)

    def locate(self, row: int) -> tuple[str, int, int, int]:
        """Return (key, shard, start, end) of a row: bytes [start, end) of the shard.

        Raises IndexError, IndexFileError.
        """
        self._check(row)
        batch, i = self._at(row)
        shard, start, end = batch.shard[i], batch.start[i], batch.end[i]
        if shard >= len(self.shards) or not start < end <= self.shards.nbytes[shard]:
            raise IndexFileError(f"{self.name}: row {row} lies outside of its shard")
        return batch.key(i), shard, start, end

    def fields(self, row: int) -> list[Field]:
        """Return where the payloads of a row lie, in the order of the shard. Raises IndexError, IndexFileError."""
        self._check(row)
        self.validate()
        return [Field(**item) for item in self.table.column("fields")[row].as_py()]

    def find(self, key: str) -> list[int]:
        """Return the rows of a key, in order: none, one, or more where shards share keys."""
        wanted = hash_key(key)
        rows = [row for row in self._hashed(wanted) if row < len(self) and self.key(row) == key]
        return sorted(rows)

    def _hashed(self, wanted: int) -> Iterator[int]:
        for batch in self._batches:
            if batch.hash[0] <= wanted <= batch.hash[-1]:
                i = bisect.bisect_left(batch.hash, wanted)
                while i < batch.nrows and batch.hash[i] == wanted:
                    yield batch.row[i]
                    i += 1

    def duplicates(self) -> dict[str, list[int]]:
        """Return the keys that more than one row has, with the rows. Raises IndexFileError."""
        self.validate()
        hashes = self.table.column("_hash").to_numpy()
        rows = self.table.column("_row").to_numpy()
        found: dict[str, list[int]] = {}
        for i in np.flatnonzero(hashes[1:] == hashes[:-1]).tolist():
            a, b = self.key(int(rows[i])), self.key(int(rows[i + 1]))
            if a == b:
                found.setdefault(a, []).extend([int(rows[i]), int(rows[i + 1])])
        return {key: sorted(set(rows)) for key, rows in found.items()}

    def columns(self) -> list[str]:
        """Return the names of the columns that the file has."""
        return [name for name in self.table.column_names if name not in HIDDEN]

    def lifted(self) -> list[str]:
        """Return the names of the columns beside key, shard, start, end and fields."""
        return [name for name in self.columns() if name not in CORE]

    def view(self) -> pa.Table:
        """Return the table that queries and lists see: the columns, and what follows from them. Nothing is copied but
        row and nbytes. Raises IndexFileError.

        `row`: its number; `nbytes`: end - start; `url`, `file`: of the shard, and its last part; and `width` for a
        lifted `json:width`. A column of the file goes before one of these with the same name.
        """
        from wdstools import query  # with Arrow's functions, which take a while to load

        self.validate()
        return query.view(self.table.select(self.columns()), self.lifted(), self.shards.url)

    def where(self, sql: str) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the rows, ascending, for which a condition in DuckDB's SQL over view() holds.

        It reads nothing but the index: files, the network, settings and Python's variables are out of its reach.
        Raises QueryError, IndexFileError.
        """
        from wdstools import query

        return query.where(self.view(), sql)

    def validate(self) -> None:
        """Check everything that came from a file, once, before anybody follows its numbers. Raises IndexFileError.

        A look-up of single rows does without: it checks just these.
        """
        if self._validated:
            return
        try:
            self.table.validate(full=True)
            problem = soundness.problem(self.table, self.shards.nsamples, self.shards.nbytes)
        except (pa.ArrowException, UnicodeError) as error:
            problem = soundness.line(error)
        if problem:
            raise IndexFileError(f"{self.name}: {problem}; build it anew with wds-index build --force")
        self._validated = True

    def _check(self, row: int) -> None:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")

    def __reduce__(self) -> tuple[Any, ...]:
        """An index with a file is pickled as its path, so that workers map the file and copy nothing."""
        if self.path:
            return Index.load, (self.path,)
        return Index, (self.table, self.shards, None, self.metadata)

    def select_shards(self, wanted: Sequence[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the rows of some shards (numbers of the shard table), in the order of the shards given.

        Raises IndexFileError."""
        self.validate()
        ends = np.cumsum(self.shards.nsamples, dtype=np.int64)
        ranges = [np.arange(ends[i] - self.shards.nsamples[i], ends[i]) for i in wanted]
        return np.concatenate(ranges) if ranges else np.zeros(0, np.int64)


def write(
    path: str | os.PathLike[str],
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    shards: Shards,
    metadata: Mapping[str, str],
    *,
    sync: bool = True,
) -> None:
    """Write an index file, which appears whole or not at all. URLs of shards below its folder become relative.

    `batches`: BATCH_ROWS rows each, but the last; `metadata`: what else the file says of itself; `sync`: wait for the
    disk, so that no power failure can leave an empty file under the name.
    """
    path = os.path.abspath(path)
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.tmp")
    try:
        with open(temporary, "wb") as file:
            _put(file, schema, batches, shards, metadata, folder)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def _put(
    sink: Any,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    shards: Shards,
    metadata: Mapping[str, str],
    folder: str,
) -> None:
    said = {**metadata, "wds.version": VERSION, "wds.shards": shards.to_json(folder)}
    with pa.ipc.new_file(sink, schema.with_metadata(said)) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _metadata(table: pa.Table) -> dict[str, str]:
    found = table.schema.metadata or {}
    return {k.decode(): v.decode() for k, v in found.items() if k not in (b"wds.version", b"wds.shards")}


def _shards(table: pa.Table, base: str) -> Shards:
    """The shard table of a file whose schema is that of an index."""
    shards = Shards.from_json(soundness.check_schema(table), base)
    if sum(shards.nsamples) != table.num_rows:
        raise ValueError("the shard table and the rows have different numbers of samples")
    return shards
