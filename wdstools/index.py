"""The index of a set of shards: an Arrow table, one row a sample, in memory or in a file. Look-up, queries, saving.

File format, version 1: an Arrow IPC file, uncompressed, whose batches have these columns (docs/index-format.md):

    key     utf8 (large_utf8 past 2 GiB of keys)
    shard   uint32         row of the shard table
    start   uint64         byte range of the sample in its shard, end exclusive: from the first header (with its PAX and
    end     uint64         long name blocks) to the end of the last padded member
    fields  list<struct<ext: dictionary<int32, utf8>, header: uint64, offset: uint64, nbytes: uint64>>
    ...     any other      columns lifted from fields
    _checksum uint64       XXH3 of the bytes [start, end), where it was asked for
    _hash   uint64         XXH64 of every key, sorted over the whole file, and
    _row    uint64         the row that it belongs to

and whose schema metadata has `wds.version` = "1", `wds.shards`, JSON: {"url": [...], "nbytes": [...], ...}, and
`wds.batch_rows`, the rows of every batch but the last. Opening a file reads its footer and two batches' headers; every
other batch is looked at when a row of it is asked for (indexfile, rowbatches).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from wdstools import _core, indexfile, rowbatches, soundness
from wdstools.columns import CHECKSUM, CORE, HIDDEN, VERSION
from wdstools.errors import IndexFileError, NotFoundError, WdsError
from wdstools.indexfile import IndexFile
from wdstools.rowbatches import RowBatches
from wdstools.samples import hash_key
from wdstools.shardtable import Shards

T = TypeVar("T")

SUFFIX = ".wdsindex"
BATCH_ROWS = 1 << 16  # of every batch but the last; what a merge holds in memory is 50 MB of them


class Field(NamedTuple):
    """Where one payload lies in its shard: [offset, offset + nbytes); `header`: its final 512-byte header."""

    ext: str
    header: int
    offset: int
    nbytes: int


@contextlib.contextmanager
def _as_index_errors(name: str) -> Iterator[None]:
    try:
        yield
    except WdsError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise IndexFileError(f"{name}: not an index: {soundness.line(error)}") from error


class Index:
    """An index, in memory or in a file. Rows are samples, from 0, in the order of the shards.

    `shards`: the shard table; `path`: the file, or None; `metadata`: what else the file says
    of itself, as `wds.job`.
    """

    def __init__(
        self, table: pa.Table, shards: Shards, path: str | None = None, metadata: dict[str, str] | None = None
    ) -> None:
        self._begin(shards, path, metadata or {}, table, rowbatches.of_table(table, shards))

    def _begin(
        self,
        shards: Shards,
        path: str | None,
        metadata: dict[str, str],
        table: pa.Table | None,
        batches: RowBatches,
        file: IndexFile | None = None,
    ) -> None:
        self.shards, self.path, self.metadata = shards, path, metadata
        self._table, self._batches, self._file = table, batches, file
        self._find, self._rows = batches.core.locate, batches.rows
        self._validated = False

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Index:
        """Open an index file; what of it is needed is read later. Raises NotFoundError, IndexFileError."""
        path = os.path.abspath(path)
        with _as_index_errors(path):
            try:
                with indexfile.opened(path) as file:
                    return cls._open(file, path, path, os.path.dirname(path))
            except FileNotFoundError as error:
                raise NotFoundError(f"{path}: no such index") from error

    @classmethod
    def parse(cls, data: bytes | pa.Buffer, name: str, folder: str) -> Index:
        """Return the index whose file has these bytes. `name`: for errors; `folder`: the one that it lies in.

        Raises IndexFileError."""
        with _as_index_errors(name):
            return cls._open(IndexFile(pa.py_buffer(data)), None, name, folder)

    @classmethod
    def _open(cls, file: IndexFile, path: str | None, name: str, folder: str) -> Index:
        index = cls.__new__(cls)
        try:
            shards = Shards.from_json(soundness.check_schema(file.schema), folder)
            first, numbers = indexfile.first_rows(file, sum(shards.nsamples))
            batches = RowBatches(first, lambda i: file.batch(numbers[i]), shards, file)
            index._begin(shards, path, _metadata(file.schema), None, batches, file)
        except (pa.ArrowException, ValueError, LookupError, TypeError, RecursionError, OverflowError) as error:
            raise IndexFileError(f"{name}: not an index of version {VERSION}: {soundness.line(error)}") from error
        return index

    @property
    def table(self) -> pa.Table:
        """The Arrow table of all rows. Raises IndexFileError where the file has batches that are none, or others than
        it says."""
        if self._table is None and self._file is not None:
            with _as_index_errors(self.name):
                table = self._file.table()
                self._batches.check_layout(table)
            self._table = table
        return self._table

    @table.setter
    def table(self, table: pa.Table) -> None:
        self._begin(self.shards, self.path, self.metadata, table, rowbatches.of_table(table, self.shards))

    def dumps(self, folder: str) -> pa.Buffer:
        """Return what save() would write into a file in `folder`."""
        sink = pa.BufferOutputStream()
        batches = indexfile.even_batches(self.table, BATCH_ROWS)
        indexfile.put(sink, self.table.schema, batches, self.shards, self.metadata, folder)
        return sink.getvalue()

    def save(self, path: str | os.PathLike[str], *, sync: bool = True) -> None:
        """Write the index; see indexfile.write()."""
        batches = indexfile.even_batches(self.table, BATCH_ROWS)
        indexfile.write(path, self.table.schema, batches, self.shards, self.metadata, sync=sync)

    def attach(self, reader: _core.SampleReader) -> None:
        """Let a reader find rows by itself, in the batches that locate() or key() was asked for a row of."""
        reader.attach(self._batches.core)

    @property
    def name(self) -> str:
        """What to call it in an error."""
        return self.path or "index in memory"

    def __len__(self) -> int:
        return self._rows

    def key(self, row: int) -> str:
        """Return the key of a row. Raises IndexError past the end, IndexFileError."""
        return self._looked_up(self._batches.core.key, row)

    def locate(self, row: int) -> tuple[str, int, int, int]:
        """Return (key, shard, start, end) of a row: bytes [start, end) of the shard.

        Raises IndexError, IndexFileError.
        """
        try:
            found = self._find(row)
        except (ValueError, OSError) as error:
            raise self._unsound(row, error) from error
        return found if found is not None else self._looked_up(self._find, row)

    def _looked_up(self, function: Callable[[int], T | None], row: int) -> T:
        """What a function finds of a row, whose batch is looked at first if it has to be."""
        self._check(row)
        try:
            found = function(row)
            if found is None:
                self._batches.touch(row)
                found = function(row)
        except (pa.ArrowException, ValueError, OSError) as error:
            raise self._unsound(row, error) from error
        if found is None:
            raise self._unsound(row, "it cannot be found")
        return found

    def _unsound(self, row: int, why: object) -> IndexFileError:
        return IndexFileError(f"{self.name}: row {row}: {why}; build it anew with wds-index build --force")

    def fields(self, row: int) -> list[Field]:
        """Return where the payloads of a row lie, in the order of the shard. Raises IndexError, IndexFileError."""
        self._check(row)
        self.validate()
        return [Field(**item) for item in self.table.column("fields")[row].as_py()]

    def find(self, key: str) -> list[int]:
        """Return the rows of a key, in order: none, one, or more where shards share keys. Raises IndexFileError."""
        wanted = hash_key(key)
        try:
            found = [row for row in self._batches.hashed(wanted) if row < self._rows and self.key(row) == key]
        except WdsError:
            raise
        except (pa.ArrowException, ValueError, OSError) as error:
            raise IndexFileError(f"{self.name}: {soundness.line(error)}") from error
        return sorted(found)

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
        return [name for name in self.table.column_names if name not in HIDDEN and name != CHECKSUM]

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
        if self._file is not None:
            self._file.trim()

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


def _metadata(schema: pa.Schema) -> dict[str, str]:
    own = (b"wds.version", b"wds.shards", b"wds.batch_rows")
    return {k.decode(): v.decode() for k, v in (schema.metadata or {}).items() if k not in own}
