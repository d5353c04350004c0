"""Building indexes of sets of shards, and refreshing them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from wdstools import urls
from wdstools.checksums import Level, add_checksums, level_of
from wdstools.columns import CHECKSUM, CORE, HIDDEN, Lift, one_chunk
from wdstools.index import Index
from wdstools.merge import Metadata, Spool, merge
from wdstools.shardindex import add_lifted, assemble, index_shard, lifted, unsorted_hashes
from wdstools.shardtable import Shards, canonical
from wdstools.storage import open_local

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
    same = _index_each(shards, parts.__setitem__, lifted(lift), checksum, workers, previous, progress)[1]
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
        reused, same = _index_each(shards, spool.put, lifted(lift), checksum, workers, previous, progress)
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
