"""Samples of shards that are not local: the ranges of a whole batch at once, and the next batch ahead of its reader.

The same C code parses them as those of local shards, and compares them with the index.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from wdstools import _core, urls
from wdstools.errors import ChangedError, PastEndError, ShardError, StaleIndexError, StoreError, WdsError
from wdstools.failures import hide
from wdstools.index import Index
from wdstools.ranges import Range
from wdstools.samples import Sample
from wdstools.store import Stat, Store, Stores

READERS = 32  # iterators whose next batch is read at once
FIRST = 64  # samples in the first batch that is read ahead; each one has twice as many as the one before,
MOST = 1024  # up to so many,
MOST_BYTES = 32 << 20  # or so many bytes; two such batches are held at once

Outcome = Sample | WdsError


def is_remote(url: str) -> bool:
    """Whether a Store reads this URL; commands and local files are not for it."""
    return urls.scheme(url) not in ("file", "pipe") and url != "-"


class Fetcher:
    """The samples of the remote shards of an index, by row. `home`: where the index was read, if it was remote."""

    def __init__(self, index: Index, reader: _core.SampleReader, stores: Stores, home: str | None) -> None:
        self._index, self._reader, self._stores, self._home = index, reader, stores, home

    def outcomes(self, rows: Iterable[int]) -> Generator[tuple[int, Outcome], None, None]:
        """Yield (place in `rows`, sample or what is wrong with it), shard by shard as they come. All ranges of all
        shards are asked for at once. Raises IndexFileError."""
        wanted: dict[int, list[tuple[int, str, int, int]]] = {}  # shard -> (place, key, start, end)
        for place, row in enumerate(rows):
            key, shard, start, end = self._index.locate(row)
            wanted.setdefault(shard, []).append((place, key, start, end))
        lots: dict[Store, list[tuple[int, str, list[Range]]]] = {}  # (shard, path, ranges)
        for shard, samples in wanted.items():
            store, path = self.store_of(shard)
            lots.setdefault(store, []).append((shard, path, [(start, end) for _, _, start, end in samples]))
        with contextlib.ExitStack() as exits:
            answers = []
            for store, lot in lots.items():
                answers.append(found := store.read_many((path, ranges) for _, path, ranges in lot))
                exits.callback(getattr(found, "close", list))
            for (store, lot), found in zip(lots.items(), answers, strict=True):
                for (shard, path, _), bodies in zip(lot, found, strict=True):
                    yield from self._samples(shard, store, path, wanted[shard], bodies)
                    del bodies

    def store_of(self, shard: int) -> tuple[Store, str]:
        """The store of a shard, and its path in there."""
        url = self._index.shards.url[shard]
        return self._stores.beside(self._home or url, url).of(url)

    def _samples(self, shard: int, store: Store, path: str, samples: Any, bodies: Any) -> Iterator[tuple[int, Outcome]]:
        """Parse what came from a shard."""
        url = self._index.shards.url[shard]
        problem: WdsError | str | None
        problem = bodies if isinstance(bodies, StoreError) else self._changed(shard, store, path)
        if isinstance(problem, ChangedError | PastEndError | str):
            problem = stale(self._index, url, problem)
        for i, (place, key, start, _) in enumerate(samples):
            if problem is not None:
                yield place, problem
                continue
            try:
                outcome: Outcome = self._reader.parse(bodies[i], start, key, url, None)
            except ShardError as error:
                outcome = stale(self._index, url, error)
            yield place, outcome

    def _changed(self, shard: int, store: Store, path: str) -> StoreError | str | None:
        """What tells that a shard which was read is another one than was indexed."""
        shards = self._index.shards
        try:
            stat = store.pinned(path) or store.size(path)  # what came with the bytes
        except StoreError as error:
            return error
        if stat.nbytes != shards.nbytes[shard]:
            return f"{stat.nbytes} bytes, where the index has {shards.nbytes[shard]}"
        if not Stat(stat.nbytes, shards.etag[shard] or None).same(stat):
            return f"its ETag is {stat.etag}, where the index has {shards.etag[shard]}"
        return None


def stale(index: Index, url: str, why: object) -> StaleIndexError:
    """The error for a shard that is not what the index says."""
    error = StaleIndexError(
        f"{index.name}: does not describe {hide(url)} any more: {why}; rebuild it with wds-index build"
    )
    error.__cause__ = why if isinstance(why, BaseException) else None
    return error


class Ahead:
    """Samples of rows in order, while the next batch of them is under way. Closing it gives that up.

    `read(rows, stopped)`: one outcome for each row; `nbytes(row)`: how much a sample takes.
    """

    def __init__(
        self, read: Callable[[Sequence[int], threading.Event], list[Outcome]], nbytes: Callable[[int], int]
    ) -> None:
        self._read, self._nbytes = read, nbytes
        self._stopped = threading.Event()

    def each(self, rows: Iterable[int]) -> Iterator[Sample]:
        """Yield samples; raises what is wrong with one in its place."""
        batches = self._batches(rows)
        under_way = self._begin(next(batches, None))
        try:
            while under_way is not None:
                outcomes = under_way.result()
                under_way = self._begin(next(batches, None))
                for outcome in outcomes:
                    if isinstance(outcome, WdsError):
                        raise outcome
                    yield outcome
        finally:
            self._stopped.set()
            if under_way is not None:
                under_way.cancel()

    def _begin(self, batch: list[int] | None) -> _Batch | None:
        return None if batch is None else _Batch(lambda: self._read(batch, self._stopped))

    def _batches(self, rows: Iterable[int]) -> Iterator[list[int]]:
        batch: list[int] = []
        nbytes, most = 0, FIRST
        for row in rows:
            batch.append(row)
            nbytes += self._nbytes(row)
            if len(batch) >= most or nbytes >= MOST_BYTES:
                yield batch
                batch, nbytes, most = [], 0, min(2 * most, MOST)
        if batch:
            yield batch


class _Batch:
    """Outcomes that are read in another thread. A child that was forked meanwhile reads them itself."""

    pool: ThreadPoolExecutor | None = None
    lock = threading.Lock()
    inherited: list[object] = []  # noqa: RUF012 - kept for ever: its queue may have been locked at the fork

    def __init__(self, read: Callable[[], list[Outcome]]) -> None:
        self._read, self._pid = read, os.getpid()
        with _Batch.lock:
            if _Batch.pool is None:
                _Batch.pool = ThreadPoolExecutor(READERS, thread_name_prefix="wdstools-ahead")
            self._future: Future[list[Outcome]] = _Batch.pool.submit(read)

    def result(self) -> list[Outcome]:
        return self._future.result() if self._pid == os.getpid() else self._read()

    def cancel(self) -> None:
        if self._pid == os.getpid():
            self._future.cancel()

    @classmethod
    def after_fork(cls) -> None:
        cls.inherited.append(cls.pool)
        cls.pool, cls.lock = None, threading.Lock()


os.register_at_fork(after_in_child=_Batch.after_fork)
