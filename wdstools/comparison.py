"""An index beside its shards as they are: whatever it says of them that is not so."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from wdstools import _core, urls
from wdstools.errors import IndexFileError, StaleIndexError, UrlError, WdsError
from wdstools.index import Index
from wdstools.shardindex import from_columns, index_shard, unsorted_hashes

CHECK_ROWS = 1 << 14


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
