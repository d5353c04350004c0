"""How samples are fetched by their rows: from descriptors of local shards, or by ranges through a Store.

Whichever way bytes come, the same C code parses them and compares them with the index.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from wdstools import _core
from wdstools.compression import MAGIC_BYTES, kind
from wdstools.errors import IndexFileError, ShardError, StaleIndexError, StoreError, UrlError, WdsError
from wdstools.fetching import Ahead, Outcome, is_remote, stale
from wdstools.finding import COMPRESSED
from wdstools.index import Index
from wdstools.samples import Sample
from wdstools.served import fetcher
from wdstools.storage import open_local
from wdstools.store import Stores

log = logging.getLogger("wdstools")

OPEN_FILES = 64  # descriptors that a Dataset holds at most


class Access:
    """The samples of an index by row. Safe to use from several threads and after a fork.

    `fields`, `views`: as in stream(); `stores`: for shards that are not local. `files` and `reader` are for a caller
    in a hurry: reader.read_row(row, files.open) is a sample, or None where read() is to be asked.
    """

    def __init__(self, index: Index, fields: frozenset[str] | None, views: bool, stores: Stores) -> None:
        self.index, self.stores = index, stores
        self.files = _Files(index)
        self.reader = _core.SampleReader(fields, views)
        index.attach(self.reader)
        self.remote = [is_remote(url) for url in index.shards.url]
        self.local = not any(self.remote)
        self.fetcher = fetcher(index, self.reader, stores)

    def read(self, row: int) -> Sample:
        """Return the sample of a row. Raises StaleIndexError, IndexFileError, StoreError."""
        try:
            sample = self.reader.read_row(row, self.files.open)
            if sample is not None:
                return sample
            key, shard, start, end = self.index.locate(row)
            if self.remote[shard]:
                ((_, outcome),) = self.fetcher.outcomes([row])
                if isinstance(outcome, WdsError):
                    raise outcome
                return outcome
            fd, url, path, _ = self.files.get(shard)
            return self.reader.read(fd, start, end, key, url, path)
        except ShardError as error:
            raise self.stale(error) from error

    def read_many(self, rows: Sequence[Any], row_of: Callable[[Any], int] = int) -> list[Sample]:
        """Return the samples of rows, in their order: read in the order in which they lie in their shards, which is
        that of the rows; remote shards all at once, neighbours in one request. `row_of` is asked for the rows of what
        is not a number from 0 to that of the rows. Raises as read() does."""
        try:
            found, left = self.reader.read_rows(rows, self.files.open)
        except ShardError as error:
            raise self.stale(error) from error
        if left:
            self._read_left({i: row_of(rows[i]) for i in left}, found)
        return found  # type: ignore[return-value]  # nothing is None any more

    def _read_left(self, rows: dict[int, int], found: list[Sample | None]) -> None:
        """Put the samples of rows[i] into found[i]."""
        local: dict[int, list[int]] = {}  # shard -> places in `found`
        far: list[int] = []
        for i in sorted(rows, key=rows.__getitem__):
            shard = self.index.locate(rows[i])[1]
            if self.remote[shard]:
                far.append(i)
            else:
                local.setdefault(shard, []).append(i)
        for place, outcome in self.fetcher.outcomes([rows[i] for i in far]):
            if isinstance(outcome, WdsError):
                raise outcome
            found[far[place]] = outcome
        self._read_local(rows, found, local)

    def _read_local(self, rows: dict[int, int], found: list[Sample | None], local: dict[int, list[int]]) -> None:
        """The samples of shards that were not open, of as many shards at once as may be."""
        shards = iter(local)
        while group := list(itertools.islice(shards, OPEN_FILES)):
            try:
                for shard in group:
                    self.files.get(shard)
                places = [i for shard in group for i in local[shard]]
                samples, left = self.reader.read_rows([rows[i] for i in places], self.files.open)
            except ShardError as error:
                raise self.stale(error) from error
            for i, sample in zip(places, samples, strict=True):
                found[i] = sample
            for k in left:  # another thread has opened others since, or it is not sound
                found[places[k]] = self.read(rows[places[k]])

    def each(self, rows: Iterable[int]) -> Iterator[Sample]:
        """Yield the samples of rows, remote ones while the next are under way. Raises as read() does, in the place of
        the sample that cannot be had."""
        if self.local:
            yield from map(self.read, map(int, rows))
            return
        yield from Ahead(self._outcomes, self._nbytes).each(map(int, rows))

    def _outcomes(self, rows: Sequence[int], stopped: threading.Event) -> list[Outcome]:
        """The sample of each row, or what is wrong with it, until somebody says stop."""
        found: list[Outcome] = [{}] * len(rows)
        far: list[int] = []
        for i, row in enumerate(rows):
            try:
                if self.remote[self.index.locate(row)[1]]:
                    far.append(i)
                else:
                    found[i] = self.read(row)
            except WdsError as error:
                found[i] = error
        with contextlib.closing(self.fetcher.outcomes([rows[i] for i in far])) as outcomes:
            for place, outcome in outcomes:
                if stopped.is_set():
                    break
                found[far[place]] = outcome
        return found

    def _nbytes(self, row: int) -> int:
        try:
            _, _, start, end = self.index.locate(row)
        except IndexFileError:  # which is raised in its place
            return 0
        return end - start

    def stale(self, error: ShardError) -> StaleIndexError:
        """The error for a shard whose bytes are not what the index says."""
        return stale(self.index, str(error.url), error)


class _Descriptor:
    """Closes a descriptor with the last reference to it, so that no reader loses it when others are opened."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


_File = tuple[int, str, str, _Descriptor]  # descriptor, url, path, what closes it


def _refuse_compressed(url: str) -> None:
    """Raises StoreError. It would not be of the size that its index has, and building that anew would not help."""
    fd, _ = open_local(url)
    try:
        name = kind(os.pread(fd, MAGIC_BYTES, 0))
    finally:
        os.close(fd)
    if name:
        raise StoreError(f"{url}: {COMPRESSED.format(name)}")


class _Files:
    """The last shards that were opened, checked against the index. `open`: per shard a _File or None."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self.open: list[_File | None] = [None] * len(index.shards)
        self._order: deque[int] = deque()
        self._told = False

    def get(self, shard: int) -> _File:
        file = self.open[shard]
        if file is None:
            try:
                fd, path = open_shard(self._index, shard)
            except StaleIndexError:
                _refuse_compressed(self._index.shards.url[shard])
                raise
            file = self.open[shard] = (fd, self._index.shards.url[shard], path, _Descriptor(fd))
            self._compare_mtime(fd, shard)
            self._order.append(shard)
            if len(self._order) > OPEN_FILES:
                self.open[self._order.popleft()] = None
        return file

    def _compare_mtime(self, fd: int, shard: int) -> None:
        """Say once that shards have another mtime than the index knows: they may have been copied, which is no harm,
        or written anew. Headers that do not fit are an error at the read; this is a hint at those that happen to."""
        known = self._index.shards.mtime[shard]
        if known and not self._told and os.fstat(fd).st_mtime_ns != known:
            self._told = True
            log.warning(
                "%s: %s has been copied or changed since it was indexed; `wds-index check` compares them",
                self._index.name, self._index.shards.url[shard],
            )  # fmt: skip


__all__ = ["Access", "is_remote"]


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
