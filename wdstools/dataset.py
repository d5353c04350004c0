"""Dataset: any sample of a set of shards, by number or key, in any order."""

from __future__ import annotations

import logging
import operator
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np

from wdstools import _core, build, urls
from wdstools.compression import MAGIC_BYTES, kind
from wdstools.errors import KeyMissingError, NotFoundError, ShardError, StaleIndexError, StoreError
from wdstools.index import SUFFIX, Index
from wdstools.samples import Sample
from wdstools.storage import open_local

log = logging.getLogger("wdstools")

OPEN_FILES = 64  # descriptors that a Dataset holds at most


def open_dataset(
    shards: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    fields: Iterable[str] | None = None,
    views: bool = False,
) -> Dataset:
    """Open shards for random access: `wdstools.open`.

    `shards`: an index file, a folder, or shards as stream() takes them, on local disks. The index is the one that
    wds-shard, ShardWriter and wds-index build write (urls.index_name); where there is none, it is built in memory,
    and the log says so. `fields`, `views`: as in stream(); views here keep just their own sample alive.

    Raises NotFoundError, IndexFileError, ShardError.
    """
    if isinstance(shards, str | os.PathLike):
        path = os.fspath(shards)
        if path.endswith(SUFFIX):
            return Dataset(Index.load(urls.local_path(path) or path), fields=fields, views=views)
        if os.path.isdir(path):
            return Dataset(_of_folder(path), fields=fields, views=views)
    wanted = urls.expand(shards)
    index, rows = _of_shards(wanted)
    return Dataset(index, rows, fields=fields, views=views)


def _of_folder(folder: str) -> Index:
    names = sorted(os.listdir(folder))
    found = [name for name in names if name.endswith(SUFFIX)]
    if len(found) == 1:
        return Index.load(os.path.join(folder, found[0]))
    if found:
        raise NotFoundError(f"{folder}: holds {len(found)} indexes ({', '.join(found)}): open one of them")
    shards = [os.path.join(folder, name) for name in names if name.endswith(".tar") and not name.startswith(".")]
    if not shards:
        raise NotFoundError(f"{folder}: no index and no .tar in it")
    return _in_memory(shards)


def _of_shards(shards: list[str]) -> tuple[Index, np.ndarray[Any, Any] | None]:
    path = urls.index_name([urls.escape(url) for url in shards])
    if not os.path.exists(path):
        return _in_memory(shards), None
    index = Index.load(path)
    number = {url: i for i, url in enumerate(index.shards.url)}
    wanted = [number.get(os.path.abspath(urls.local_path(url) or url), -1) for url in shards]
    if -1 in wanted:
        lacking = shards[wanted.index(-1)]
        log.warning("%s does not have %s: building an index in memory; `wds-index build` refreshes it", path, lacking)
        return _in_memory(shards), None
    return index, None if wanted == list(range(len(number))) else index.select_shards(wanted)


def _in_memory(shards: Sequence[str]) -> Index:
    log.info("no index for %d shards: building one in memory; `wds-index build` keeps it", len(shards))
    return build.build(shards)


class Dataset:
    """Samples by number, by key, by slice. A Dataset is a view: slices share the index and copy nothing.

    `index`: the Index; `rows`: the rows of the index that are in this view, in order, or None for all. Safe to use from
    several threads, after fork, and pickled (workers open their own files).
    """

    def __init__(
        self,
        index: Index,
        rows: range | np.ndarray[Any, Any] | None = None,
        *,
        fields: Iterable[str] | None = None,
        views: bool = False,
    ) -> None:
        self.index = index
        self.rows: Any = range(len(index)) if rows is None else rows
        self._fields = None if fields is None else frozenset(fields)
        self._views = views
        self._files = _Files(index)
        self._reader = _core.SampleReader(self._fields, views)
        index.attach(self._reader)
        self._read_row = self._reader.read_row
        self._whole = rows is None

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, item: int | str) -> Sample: ...
    @overload
    def __getitem__(self, item: slice) -> Dataset: ...
    def __getitem__(self, item: int | str | slice) -> Sample | Dataset:
        """Return a sample by number (negative counts from the end) or key, or the view of a slice.

        Raises IndexError, KeyMissingError (a KeyError) with keys that are near, StaleIndexError where the shard is not
        what the index describes. Of several samples with one key, the first of the view is returned.
        """
        if self._whole and type(item) is int:  # the hot path: rows are numbers
            try:
                sample = self._read_row(item, self._files.open)
            except ShardError as error:
                raise self._stale(error) from error
            except OverflowError:
                sample = None
            if sample is not None:
                return sample
        if isinstance(item, str):
            return self._read(self._row_of(item))
        if isinstance(item, slice):
            return Dataset(self.index, self.rows[item], fields=self._fields, views=self._views)
        return self._read(self._checked(operator.index(item)))

    def __iter__(self) -> Iterator[Sample]:
        for row in self.rows:
            yield self._read(int(row))

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and any(self._position(row) is not None for row in self.index.find(key))

    def fetch(self, numbers: Iterable[int | str]) -> list[Sample]:
        """Return samples in the order asked, read in the order in which they lie on disk. Raises as [] does."""
        rows = [self._row_of(n) if isinstance(n, str) else self._checked(n) for n in numbers]
        order = sorted(range(len(rows)), key=rows.__getitem__)
        found: list[Sample] = [{}] * len(rows)
        for i in order:
            found[i] = self._read(rows[i])
        return found

    def keys(self) -> Iterator[str]:
        """Yield the keys, in order."""
        for row in self.rows:
            yield self.index.key(int(row))

    def where(self, sql: str) -> Dataset:
        """Return the view of the samples for which a condition in DuckDB's SQL over the columns of the index holds, in
        the order of this view. Raises QueryError, IndexFileError."""
        found = self.index.where(sql)
        if not self._whole:
            rows = np.asarray(self.rows, dtype=np.int64)
            found = rows[np.isin(rows, found)]
        return Dataset(self.index, found, fields=self._fields, views=self._views)

    def _checked(self, number: int) -> int:
        n = len(self.rows)
        if not -n <= number < n:
            raise IndexError(f"sample {number} of {n}")
        return int(self.rows[number])

    def _read(self, row: int) -> Sample:
        try:
            sample = self._read_row(row, self._files.open)
            if sample is not None:
                return sample
            key, shard, start, end = self.index.locate(row)
            fd, url, path, _ = self._files.get(shard)
            return self._reader.read(fd, start, end, key, url, path)
        except ShardError as error:
            raise self._stale(error) from error

    def _stale(self, error: ShardError) -> StaleIndexError:
        return StaleIndexError(
            f"{self.index.name}: does not describe {error.url} any more: {error}; rebuild it with wds-index build"
        )

    def _row_of(self, key: str) -> int:
        positions = [p for p in map(self._position, self.index.find(key)) if p is not None]
        if positions:
            return int(self.rows[min(positions)])
        near = _near(self, key)
        raise KeyMissingError(f"no sample has the key {key!r}{'; near: ' + ', '.join(near) if near else ''}")

    def _position(self, row: int) -> int | None:
        """Where a row of the index stands in this view."""
        if isinstance(self.rows, range):
            return self.rows.index(row) if row in self.rows else None
        hits = np.flatnonzero(np.asarray(self.rows) == row)
        return int(hits[0]) if len(hits) else None

    def __reduce__(self) -> tuple[Any, ...]:
        index = self.index
        source = (None, index.path) if index.path else ((index.table, index.shards), None)
        return _restore, (*source, self.rows, self._fields, self._views)

    def __repr__(self) -> str:
        return f"<Dataset of {len(self)} samples in {len(self.index.shards)} shards>"


def _restore(parts: Any, path: str | None, rows: Any, fields: Any, views: bool) -> Dataset:
    index = Index.load(path) if path else Index(*parts)
    return Dataset(index, rows, fields=fields, views=views)


def _near(dataset: Dataset, key: str) -> list[str]:
    """A few keys that look like this one, from the first thousands: a hint, not a search."""
    import difflib

    some = [dataset.index.key(int(row)) for row in dataset.rows[:5000]]
    return difflib.get_close_matches(key, some, 3, 0.5)


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
        raise StoreError(f"{url}: is compressed ({name}): random access needs plain tars; stream() reads it as it is")


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


__all__ = ["Dataset", "open_dataset"]
