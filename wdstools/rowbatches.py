"""The rows of an index by number and by hash, through its record batches, each looked at when it is first needed."""

from __future__ import annotations

import array
import bisect
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

import pyarrow as pa

from wdstools import _core
from wdstools.indexfile import IndexFile, check_rows
from wdstools.shardtable import Shards

_Pairs = tuple[memoryview, memoryview]  # hashes, rows


class RowBatches:
    """`first`: the first row of every batch, and the end; `batch(i)`: the i-th; `file`: that they come from.

    `core`: what SampleReader.attach takes: a batch appears in it when touch() was called for a row of it. Safe to use
    from several threads and after a fork. Every method raises ValueError or ArrowException where the batches are not
    what they should be.
    """

    def __init__(
        self, first: Sequence[int], batch: Callable[[int], pa.RecordBatch], shards: Shards, file: IndexFile | None
    ) -> None:
        self._first, self._batch = first, batch
        self.rows = first[-1]
        large = file is not None and file.fd >= 0
        self._large = file if large else None
        rows, sizes = array.array("Q", first), shards.sizes()
        self._ends = array.array("Q", accumulate(shards.nsamples) if file is not None else [])
        if self._large is not None:
            self.core = _core.Rows(rows, sizes, self._ends, self._large.fd)
        else:
            self.core = _core.Rows(rows, sizes)
        self._pairs: dict[int, _Pairs] = {}

    def touch(self, row: int) -> None:
        """Attach the batch of a row, which is before the end, to `core`."""
        number = bisect.bisect_right(self._first, row) - 1
        batch = self._checked(number)
        key, n = batch.column("key"), batch.num_rows
        width = 8 if key.type == pa.large_utf8() else 4
        if key.null_count:
            raise ValueError("column key has nulls")
        _, ends, data = key.buffers()
        columns = [_numbers(batch, name, size) for name, size in (("shard", 4), ("start", 8), ("end", 8))]
        columns += [_part(ends, "key", key.offset * width, (n + 1) * width), data if data else pa.py_buffer(b"")]
        self._compare_shards(number, memoryview(columns[0]).cast("I"))
        if self._large is not None:
            start, end, key_ends, key_data = map(self._large.place, columns[1:])
            if min(start, end, key_ends, key_data) >= 0:
                self.core.put_at(number, start, end, key_ends, key_data, columns[-1].size, width)
                return
        self.core.put(number, *map(_view, columns, (4, 8, 8, width, 1)))

    def check_layout(self, table: pa.Table) -> None:
        """Compare with the table of all batches."""
        batches = (batch.num_rows for batch in table.to_batches() if batch.num_rows)
        if list(accumulate(batches, initial=0)) != list(self._first):
            raise ValueError("the batches have other numbers of rows than the file says")

    def _checked(self, number: int) -> pa.RecordBatch:
        batch = self._batch(number)
        check_rows(batch, self._first[number + 1] - self._first[number])
        return batch

    def hashed(self, wanted: int) -> Iterator[int]:
        """Yield the rows that a hash belongs to."""
        n = len(self._first) - 1
        after = bisect.bisect_left(range(n), wanted, key=self._least) if n > 1 else 0
        for number in range(max(after - 1, 0), n):
            hashes, rows = self._hashes(number)
            i = bisect.bisect_left(hashes, wanted)
            while i < len(hashes) and hashes[i] == wanted:
                yield rows[i]
                i += 1
            if i < len(hashes):
                break
        if self._large is not None:
            self._large.trim()

    def _least(self, number: int) -> int:
        return self._hashes(number)[0][0]

    def _hashes(self, number: int) -> _Pairs:
        pairs = self._pairs.get(number)
        if pairs is None:
            batch = self._checked(number)
            hashes, rows = (memoryview(_numbers(batch, name, 8)).cast("Q") for name in ("_hash", "_row"))
            pairs = self._pairs[number] = hashes, rows
        return pairs

    def _compare_shards(self, number: int, shard: memoryview) -> None:
        """Whether both ends of a batch are in the shards that the shard table says: a sign that batches before it have
        not as many rows as the file declares."""
        if not self._ends or len(self._first) == 2:
            return
        for i in (0, -1):
            if shard[i] != bisect.bisect_right(self._ends, self._first[number - i] + i):
                raise ValueError("a batch is in another shard than the shard table says")


def of_table(table: pa.Table, shards: Shards) -> RowBatches:
    """The rows of a table in memory."""
    batches = [batch for batch in table.to_batches() if batch.num_rows]
    first = list(accumulate((batch.num_rows for batch in batches), initial=0))
    return RowBatches(first, batches.__getitem__, shards, None)


def _view(buffer: pa.Buffer, width: int) -> memoryview:
    view: memoryview = memoryview(buffer).cast("B")
    return view.cast("Q") if width == 8 else view.cast("I") if width == 4 else view


def _numbers(batch: pa.RecordBatch, name: str, width: int) -> pa.Buffer:
    column = batch.column(name)
    if column.null_count:
        raise ValueError(f"column {name} has nulls")
    return _part(column.buffers()[1], name, column.offset * width, len(column) * width)


def _part(buffer: pa.Buffer | None, name: str, start: int, nbytes: int) -> pa.Buffer:
    if buffer is None or start + nbytes > buffer.size:
        raise ValueError(f"column {name} is shorter than its batch")
    return buffer.slice(start, nbytes)
