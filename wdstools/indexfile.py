"""The file of an index: opening it, its record batches one by one, and writing it (docs/index-format.md)."""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import pyarrow as pa

from wdstools.columns import VERSION
from wdstools.shardtable import Shards

MAPPED = 1 << 27  # bytes of a file whose numbers are read through the map: they may all become resident
TRIM = 8  # batches of a larger one that are looked at before its map is let go of

_lock = threading.Lock()  # a reader of pyarrow is not for two threads


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()  # another thread may have held it


os.register_at_fork(after_in_child=_after_fork)


class IndexFile:
    """An index file that is open, or its bytes: `schema`, `num_batches`, batches when they are asked for.

    `fd`: of a file larger than MAPPED, as long as opened() lasts, else -1: its rows are to be read, not mapped, so that
    memory does not grow with the rows that were looked at. Raises ArrowException, OSError, ValueError.
    """

    def __init__(self, data: pa.Buffer, mapped: mmap.mmap | None = None, fd: int = -1) -> None:
        self._data, self._mapped, self.fd = data, mapped, fd
        self._reader = pa.ipc.open_file(pa.BufferReader(data))
        self.schema: pa.Schema = self._reader.schema
        self.num_batches: int = self._reader.num_record_batches
        self._looked = 0

    def batch(self, number: int) -> pa.RecordBatch:
        """Return a record batch; nothing of its columns has been read or checked."""
        self._looked += 1
        if self._looked % TRIM == 0:
            self.trim()
        with _lock:
            return self._reader.get_batch(number)

    def table(self) -> pa.Table:
        """Return all batches."""
        with _lock:
            return self._reader.read_all()

    def place(self, buffer: pa.Buffer) -> int:
        """Return where a buffer of a batch begins in the file; -1: it is a copy. An empty one may be anywhere."""
        at: int = buffer.address - self._data.address
        return at if 0 <= at <= self._data.size - buffer.size else -1 if buffer.size else 0

    def trim(self) -> None:
        """Let go of the pages of a large map; they come back when they are looked at."""
        if self._mapped is not None:
            self._mapped.madvise(mmap.MADV_DONTNEED)


@contextlib.contextmanager
def opened(path: str) -> Iterator[IndexFile]:
    """Open a file for a context; what has been read of it stays good afterwards. Raises as IndexFile does."""
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size <= MAPPED:
            with pa.memory_map(path) as whole:
                found = IndexFile(whole.read_buffer())
            yield found
            return
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        found = IndexFile(pa.py_buffer(mapped), mapped, file.fileno())
        try:
            yield found
        finally:
            found.fd = -1


def first_rows(file: IndexFile, rows: int) -> tuple[list[int], Sequence[int]]:
    """Return the first row of every batch, with the end, and the numbers of these batches, which are those with rows.

    A file that declares the rows of its batches is looked at at both ends only: the others are to be compared when they
    are used. `rows`: of all. Raises ValueError where they are others.
    """
    declared = (file.schema.metadata or {}).get(b"wds.batch_rows")
    n = file.num_batches
    if declared is not None:
        if not declared.isdigit() or len(declared) > 9 or not int(declared):
            raise ValueError("wds.batch_rows is not a number")
        size = int(declared)
        if n != -(-rows // size):
            raise ValueError("the shard table and the batches have different numbers of samples")
        first = [*range(0, rows, size), rows]
        for number in {0, n - 1} if n else ():
            check_rows(file.batch(number), first[number + 1] - first[number])
        return first, range(n)
    numbers, first = [], [0]
    for number in range(n):
        if count := file.batch(number).num_rows:
            numbers.append(number)
            first.append(first[-1] + count)
    if first[-1] != rows:
        raise ValueError("the shard table and the rows have different numbers of samples")
    return first, numbers


def check_rows(batch: pa.RecordBatch, rows: int) -> None:
    """Raises ValueError for a batch that has not as many rows as it should."""
    if batch.num_rows != rows:
        raise ValueError(f"a batch has {batch.num_rows} rows, where there should be {rows}")


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
    disk, so that no power failure can leave an empty file under the name. Several processes may write one index: the
    last one to end wins.
    """
    path = os.path.abspath(path)
    folder, name = os.path.split(path)
    short = os.fsdecode(os.fsencode(name)[:200])
    temporary = os.path.join(folder, f".{short}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            put(file, schema, batches, shards, metadata, folder)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def put(
    sink: Any,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    shards: Shards,
    metadata: Mapping[str, str],
    folder: str,
) -> None:
    """Write into a file what write() does. Raises ValueError for batches of other sizes than they must have."""
    each = iter(batches)
    first = next(each, None)
    size = first.num_rows if first is not None else 1
    said = {**metadata, "wds.version": VERSION, "wds.shards": shards.to_json(folder), "wds.batch_rows": str(size)}
    with pa.ipc.new_file(sink, schema.with_metadata(said)) as writer:
        before = size
        for batch in chain([] if first is None else [first], each):
            if before != size or not 0 < batch.num_rows <= size:
                raise ValueError("all batches but the last must have as many rows as the first")
            writer.write_batch(batch)
            before = batch.num_rows


def even_batches(table: pa.Table, size: int) -> list[pa.RecordBatch]:
    """Return the rows of a table in batches of `size` rows, but the last; what lies otherwise is copied."""
    batches = [batch for batch in table.to_batches(size) if batch.num_rows]
    if all(batch.num_rows == size for batch in batches[:-1]):
        return batches
    pieces = (table.slice(start, size).combine_chunks() for start in range(0, len(table), size))
    return [batch for piece in pieces for batch in piece.to_batches()]
