"""How samples are fetched by their rows: from descriptors of local shards, or by ranges through a Store.

Whichever way bytes come, the same C code parses them and compares them with the index.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pyarrow as pa

from wdstools import _core, build, urls
from wdstools.compression import MAGIC_BYTES, Decompressed, kind
from wdstools.errors import ChangedError, PastEndError, ShardError, StaleIndexError, StoreError
from wdstools.index import Index
from wdstools.merge import merge
from wdstools.samples import Sample
from wdstools.shardtable import Shards
from wdstools.storage import open_local, open_source
from wdstools.store import Stores

log = logging.getLogger("wdstools")
R = TypeVar("R")

OPEN_FILES = 64  # descriptors that a Dataset holds at most
SHARDS = 32  # remote shards that are read at once
INDEXED = 8  # shards that are streamed at once, to index them
AHEAD = 64  # remote samples that are read together where they are asked for one after the other
COMPRESSED = "is compressed ({}): random access needs plain tars; stream() reads it as it is"


def is_remote(url: str) -> bool:
    """Whether a Store reads this URL; commands and local files are not for it."""
    return urls.scheme(url) not in ("file", "pipe") and url != "-"


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

    def read(self, row: int) -> Sample:
        """Return the sample of a row. Raises StaleIndexError, IndexFileError, StoreError."""
        try:
            sample = self.reader.read_row(row, self.files.open)
            if sample is not None:
                return sample
            key, shard, start, end = self.index.locate(row)
            if self.remote[shard]:
                return self._ranges(shard, [(key, start, end)])[0]
            fd, url, path, _ = self.files.get(shard)
            return self.reader.read(fd, start, end, key, url, path)
        except ShardError as error:
            raise self.stale(error) from error

    def read_many(self, rows: Sequence[int]) -> list[Sample]:
        """Return the samples of rows, in their order: read in the order in which they lie in their shards, which is
        that of the rows; remote shards all at once, neighbours in one request. Raises as read() does."""
        found: list[Sample] = [{}] * len(rows)
        order = sorted(range(len(rows)), key=rows.__getitem__)
        if not any(self.remote):
            for i in order:
                found[i] = self.read(rows[i])
            return found
        wanted: dict[int, list[int]] = {}  # remote shard -> places in `rows`
        ranges: dict[int, list[tuple[str, int, int]]] = {}
        for i in order:
            key, shard, start, end = self.index.locate(rows[i])
            if self.remote[shard]:
                wanted.setdefault(shard, []).append(i)
                ranges.setdefault(shard, []).append((key, start, end))
            else:
                found[i] = self.read(rows[i])
        try:
            for shard, samples in zip(wanted, _Threads.map(self._ranges, ranges.items()), strict=True):
                for i, sample in zip(wanted[shard], samples, strict=True):
                    found[i] = sample
        except ShardError as error:
            raise self.stale(error) from error
        return found

    def each(self, rows: Iterable[int]) -> Iterator[Sample]:
        """Yield the samples of rows; remote ones are read AHEAD at a time. Raises as read() does."""
        if not any(self.remote):
            yield from map(self.read, map(int, rows))
            return
        batch: list[int] = []
        for row in rows:
            batch.append(int(row))
            if len(batch) == AHEAD:
                yield from self.read_many(batch)
                batch = []
        yield from self.read_many(batch)

    def _ranges(self, shard: int, wanted: Sequence[tuple[str, int, int]]) -> list[Sample]:
        """Samples (key, start, end) of a remote shard."""
        url, nbytes = self.index.shards.url[shard], self.index.shards.nbytes[shard]
        home = self.index.url if isinstance(self.index, StoredIndex) else url
        store, path = self.stores.beside(home, url).of(url)
        try:
            bodies = store.read_ranges(path, [(start, end) for _, start, end in wanted])
            stat = store._pins.get(path) or store.size(path)  # what came with the bytes
        except (ChangedError, PastEndError) as error:
            raise self._stale(url, error) from error
        if stat.nbytes != nbytes:
            raise self._stale(url, f"{stat.nbytes} bytes, where the index has {nbytes}")
        parse = self.reader.parse
        return [parse(body, start, key, url, None) for (key, start, _), body in zip(wanted, bodies, strict=True)]

    def stale(self, error: ShardError) -> StaleIndexError:
        """The error for a shard whose bytes are not what the index says."""
        return self._stale(str(error.url), error)

    def _stale(self, url: str, why: object) -> StaleIndexError:
        return StaleIndexError(
            f"{self.index.name}: does not describe {url} any more: {why}; rebuild it with wds-index build"
        )


class _Threads:
    """The threads of this process that wait for remote shards. A forked child has no threads of its parent's."""

    pool: ThreadPoolExecutor | None = None
    inherited: list[object] = []  # noqa: RUF012 - kept for ever: its queue may have been locked at the fork

    @classmethod
    def after_fork(cls) -> None:
        cls.inherited.append(cls.pool)
        cls.pool = None

    @classmethod
    def map(cls, function: Callable[..., R], calls: Iterable[tuple[Any, ...]]) -> Iterator[R]:
        """As itertools.starmap, in threads where there are several calls. The first error, after all have ended."""
        todo = list(calls)
        if len(todo) < 2:
            yield from (function(*call) for call in todo)
            return
        if cls.pool is None:
            cls.pool = ThreadPoolExecutor(SHARDS, thread_name_prefix="wdstools-fetch")
        under_way = [cls.pool.submit(function, *call) for call in todo]
        try:
            for future in under_way:
                yield future.result()
        finally:
            for future in under_way:
                future.cancel()


os.register_at_fork(after_in_child=_Threads.after_fork)


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
                fd, path = build.open_shard(self._index, shard)
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


class StoredIndex(Index):
    """An index that was read whole through a Store. Pickled, it is its URL: a worker reads it again."""

    def __init__(
        self, table: pa.Table, shards: Shards, metadata: dict[str, str], source: tuple[str, Stores, int]
    ) -> None:
        super().__init__(table, shards, None, metadata)
        self._source = source  # URL, how it was read, hash of its bytes

    @property
    def url(self) -> str:
        """Where it was read."""
        return self._source[0]

    @property
    def name(self) -> str:
        return self.url

    def __reduce__(self) -> tuple[Any, ...]:
        return load_stored, self._source


def load_stored(url: str, stores: Stores, known: int | None = None) -> StoredIndex:
    """Read an index through its store. `known`: the hash that its bytes must have.

    Raises NotFoundError, StoreError, IndexFileError; ChangedError where it is not the one that is known."""
    store, path = stores.of(url)
    with contextlib.closing(store.open(path)) as file:
        data = file.read()
    found = _core.hash_key(data)
    if known is not None and found != known:
        raise ChangedError(f"{url}: was replaced while it was in use; open it anew")
    index = Index.parse(data, url, urls.dirname(url))
    return StoredIndex(index.table, index.shards, index.metadata, (url, stores, found))


def index_shards(shards: Sequence[str], stores: Stores) -> Index:
    """Index shards in memory, remote ones by streaming them. Raises ShardError, StoreError."""
    if not any(map(is_remote, shards)):
        return build.build(shards)
    one = functools.partial(_index_shard, stores=stores)
    with ThreadPoolExecutor(min(INDEXED, len(shards))) as pool:
        sizes = [pool.submit(_size, url, stores) for url in shards]
        for size in sizes:
            size.result()  # one that is not there shows before gigabytes of others were read
        return merge(list(pool.map(one, shards)))


def _size(url: str, stores: Stores) -> None:
    store, path = stores.of(url)
    store.size(path)


def _index_shard(url: str, stores: Stores) -> Index:
    if not is_remote(url):
        return build.index_shard(url)
    with open_source(url, stores) as source:
        if isinstance(source.handle, Decompressed):
            raise StoreError(f"{url}: {COMPRESSED.format('gzip, zstd, bzip2 or xz')}")
        whole: Any = build._Whole(source) if source.head else source.handle
        return build.from_columns(_core.scan(whole, url), url)


__all__ = ["Access", "StoredIndex", "index_shards", "is_remote", "load_stored"]
