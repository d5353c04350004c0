"""Whether an index is sound: what is checked in a file that anybody may have written, before its numbers are used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from wdstools.columns import CHECKSUM, CORE, FIELD_TYPE, HIDDEN, VERSION

BLOCK = 512  # what every header and every end in a tar is a multiple of
CHECK_ROWS = 1 << 20  # rows at a time, so that the memory for it stays small

Array = np.ndarray[Any, Any]


def check_schema(schema: pa.Schema) -> bytes:
    """Return the JSON of the shard table, if this is the schema of an index. Raises ValueError, KeyError."""
    metadata = schema.metadata or {}
    version = metadata.get(b"wds.version", b"nothing").decode()
    if version != VERSION:
        raise ValueError(f"wds.version is {version!r}")
    types = {"shard": pa.uint32(), "start": pa.uint64(), "end": pa.uint64(), "fields": pa.list_(FIELD_TYPE)}
    types |= {"_hash": pa.uint64(), "_row": pa.uint64()}
    if len(set(schema.names)) != len(schema.names):
        raise ValueError("two columns have the same name")
    if CHECKSUM in schema.names:
        types[CHECKSUM] = pa.uint64()
    for name, want in types.items():
        if schema.field(name).type != want:
            raise ValueError(f"column {name} is {schema.field(name).type}, not {want}")
    if schema.field("key").type not in (pa.utf8(), pa.large_utf8()):
        raise ValueError("column key is not text")
    if b"wds.shards" not in metadata:
        raise ValueError("there is no wds.shards")
    return bytes(metadata[b"wds.shards"])


def problem(table: pa.Table, nsamples: Sequence[int], nbytes: Sequence[int]) -> str | None:
    """Return what is wrong with the numbers of an index that Arrow finds well-formed, or None.

    `nsamples`, `nbytes`: of the shards. That hashes are those of their keys is not checked here: a look-up compares
    the key itself.
    """
    for name in (*CORE, *HIDDEN):
        if table.column(name).null_count:
            return f"column {name} has nulls"
    return next(_problems(table, nsamples, nbytes), None)


def _problems(table: pa.Table, nsamples: Sequence[int], nbytes: Sequence[int]) -> Iterator[str]:
    first = np.cumsum([0, *nsamples], dtype=np.int64)
    sizes = np.array([min(n, (1 << 63) - 1) for n in nbytes], np.uint64)
    row, last_shard, last_end = 0, -1, 0
    for batch in table.to_batches(max_chunksize=CHECK_ROWS):
        if not batch.num_rows:
            continue
        rows = np.arange(row, row + batch.num_rows)
        shard, start, end = (batch.column(name).to_numpy() for name in ("shard", "start", "end"))
        if not np.array_equal(shard, np.searchsorted(first, rows, side="right") - 1):
            yield f"rows from {row} on are not in the order of the shard table"
            return  # what follows looks shards up
        if not np.all((start < end) & (end <= sizes[shard]) & (start % BLOCK == 0) & (end % BLOCK == 0)):
            yield f"a row from {row} on lies outside of its shard"
        before = np.concatenate(([np.uint64(last_end if shard[0] == last_shard else 0)], end[:-1]))
        before[1:][shard[1:] != shard[:-1]] = 0
        if not np.all(before <= start):
            yield f"a row from {row} on overlaps with the one before it"
        yield from _field_problems(batch, start, end, row)
        row, last_shard, last_end = row + batch.num_rows, int(shard[-1]), int(end[-1])
    hashes, order = (table.column(name).to_numpy() for name in HIDDEN)
    if np.any(hashes[1:] < hashes[:-1]):
        yield "the hashes of the keys are not sorted"
    if np.any(order >= len(order)) or not np.all(np.bincount(order.astype(np.int64), minlength=len(order)) == 1):
        yield "the hashes of the keys do not belong to the rows"


def _field_problems(batch: pa.RecordBatch, start: Array, end: Array, row: int) -> Iterator[str]:
    fields = batch.column("fields")
    struct = fields.flatten()
    ext, *places = struct.flatten()
    if struct.null_count or ext.null_count or ext.dictionary.null_count or any(p.null_count for p in places):
        yield f"a row from {row} on has a field with nulls"
        return
    header, offset, size = (place.to_numpy() for place in places)
    of = np.repeat(np.arange(batch.num_rows), fields.value_lengths().to_numpy())
    inside = (start[of] <= header) & (header < offset) & (offset <= end[of])
    inside &= (offset - header == BLOCK) & (header % BLOCK == 0)
    if not np.all(inside & (size <= end[of] - np.minimum(offset, end[of]))):
        yield f"a row from {row} on has a field outside of its sample"
        return  # the sums below would overflow
    behind = offset + (size + np.uint64(BLOCK - 1)) // np.uint64(BLOCK) * np.uint64(BLOCK)
    if np.any((of[1:] == of[:-1]) & (header[1:] < behind[:-1])):
        yield f"a row from {row} on has fields that overlap"


def line(error: BaseException) -> str:
    """Return what an error of Arrow says, in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
