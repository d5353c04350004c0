"""Dataset: any sample of a set of shards, by number or key, in any order."""

from __future__ import annotations

import contextlib
import logging
import operator
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np

from wdstools import urls
from wdstools.access import Access, index_shards, is_remote, load_stored
from wdstools.decode import Decode, make_decoder
from wdstools.errors import AccessError, NotFoundError, ShardError
from wdstools.index import SUFFIX, Index
from wdstools.samples import Sample
from wdstools.shardtable import canonical
from wdstools.store import Stores
from wdstools.views import Rows, View

log = logging.getLogger("wdstools")


def open_dataset(
    shards: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    fields: Iterable[str] | None = None,
    views: bool = False,
    decode: Decode = None,
    storage_options: Mapping[str, Any] | None = None,
    cache: str | None = None,
) -> Dataset:
    """Open shards for random access: `wdstools.open`.

    `shards`: an index file, a folder (remote ones with a slash at the end), or shards as stream() takes them; on local
    disks, http(s), s3, gs, az, or whatever fsspec opens. The index is the one that wds-shard, ShardWriter and wds-index
    build write (urls.index_name); where there is none, it is built in memory, for which remote shards are streamed
    once, and the log says so. `fields`, `views`: as in stream(); views here keep just their own sample alive.
    `decode`: see decode.make_decoder. `storage_options`: for what is remote, as in stream(); `cache`: "FOLDER:SIZE",
    such as "/nvme/cache:200GB", keeps blocks of remote shards on disk.

    Raises NotFoundError, StoreError, IndexFileError, ShardError, UrlError.
    """
    stores = Stores(storage_options, cache=cache)
    index, rows = _find(shards, stores)
    return Dataset(index, rows, fields=fields, views=views, decode=decode, stores=stores)


def _find(shards: Any, stores: Stores) -> tuple[Index, Rows | None]:
    if isinstance(shards, str | os.PathLike):
        path = os.fspath(shards)
        if path.partition("?")[0].endswith(SUFFIX) and is_remote(path):
            return load_stored(path, stores), None
        if path.endswith(SUFFIX):
            return Index.load(urls.local_path(path) or path), None
        if is_remote(path) and path.endswith("/"):
            store, prefix = stores.of(path)
            return _of_folder(path, [name[len(prefix) :] for name in store.list(prefix)], stores)
        if os.path.isdir(path):
            return _of_folder(path, sorted(os.listdir(path)), stores)
    return _of_shards(urls.expand(shards), stores)


def _of_folder(folder: str, names: list[str], stores: Stores) -> tuple[Index, None]:
    found = [name for name in names if name.endswith(SUFFIX)]
    if len(found) == 1:
        path = os.path.join(folder, found[0])
        return load_stored(path, stores) if is_remote(path) else Index.load(path), None
    if found:
        raise NotFoundError(f"{folder}: holds {len(found)} indexes ({', '.join(found)}): open one of them")
    shards = [os.path.join(folder, name) for name in names if name.endswith(".tar") and not name.startswith(".")]
    if not shards:
        raise NotFoundError(f"{folder}: no index and no .tar in it")
    return _in_memory(shards, stores), None


def _of_shards(shards: list[str], stores: Stores) -> tuple[Index, Rows | None]:
    path = urls.index_name([urls.escape(url) for url in shards])
    index = _beside(path, stores)
    if index is None:
        return _in_memory(shards, stores), None
    number = {canonical(url): i for i, url in enumerate(index.shards.url)}
    wanted = [number.get(canonical(url), -1) for url in shards]
    if -1 in wanted:
        lacking = shards[wanted.index(-1)]
        log.warning("%s does not have %s: building an index in memory; `wds-index build` refreshes it", path, lacking)
        return _in_memory(shards, stores), None
    return index, None if wanted == list(range(len(number))) else index.select_shards(wanted)


def _beside(path: str, stores: Stores) -> Index | None:
    """The index at a path; None: there is none."""
    if not is_remote(path):
        return Index.load(path) if os.path.exists(path) else None
    with contextlib.suppress(NotFoundError, AccessError):  # s3 may refuse what is not there; shards will tell
        return load_stored(path, stores)
    return None


def _in_memory(shards: Sequence[str], stores: Stores) -> Index:
    level = logging.WARNING if any(map(is_remote, shards)) else logging.INFO
    how = ", for which they are read as a whole" if level == logging.WARNING else ""
    log.log(level, "no index for %d shards: building one in memory%s; `wds-index build` keeps it", len(shards), how)
    return index_shards(shards, stores)


class Dataset(View):
    """Samples by number, by key, by slice. A Dataset is a view: slices share the index and copy nothing.

    `index`: the Index; `rows`: the rows of the index that are in this view, in order, or None for all; `stores`: for
    shards that are not local; `joined`: columns beside those of the index. Safe to use from several threads, after
    fork, and pickled (workers open their own files).
    """

    def __init__(
        self,
        index: Index,
        rows: Rows | None = None,
        *,
        fields: Iterable[str] | None = None,
        views: bool = False,
        decode: Decode = None,
        stores: Stores | None = None,
        joined: Mapping[str, Any] | None = None,
    ) -> None:
        self.index = index
        self.rows = range(len(index)) if rows is None else rows
        self.joined = dict(joined or {})
        self._options = (None if fields is None else frozenset(fields), views, decode, stores or Stores())
        self._access = Access(index, self._options[0], views, self._options[3])
        self._decode = make_decoder(decode)
        self._read_row, self._files = self._access.reader.read_row, self._access.files
        self._whole = rows is None

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
                raise self._access.stale(error) from error
            except OverflowError:
                sample = None
            if sample is not None:
                return sample if self._decode is None else self._decode(sample)
        if isinstance(item, slice):
            return self._with(self.rows[item])
        sample = self._access.read(self._row_of(item) if isinstance(item, str) else self._row(operator.index(item)))
        return sample if self._decode is None else self._decode(sample)

    def __iter__(self) -> Iterator[Sample]:
        samples = self._access.each(map(int, self.rows))
        return samples if self._decode is None else map(self._decode, samples)

    def fetch(self, numbers: Iterable[int | str]) -> list[Sample]:
        """Return samples, by number or key, in the order asked. They are read in the order in which they lie in their
        shards; remote ones concurrently, neighbours in one request. Raises as [] does."""
        if isinstance(numbers, np.ndarray):
            numbers = numbers.tolist()  # Python's own numbers are faster
        rows = [self._row_of(n) if isinstance(n, str) else self._row(operator.index(n)) for n in numbers]
        samples = self._access.read_many(rows)
        return samples if self._decode is None else list(map(self._decode, samples))

    def __getitems__(self, numbers: Sequence[int | str]) -> list[Sample]:
        """Return what fetch() does: torch's DataLoader asks for whole batches by this name."""
        return self.fetch(numbers)

    def _with(self, rows: Rows, joined: Mapping[str, Any] | None = None) -> Dataset:
        view = object.__new__(type(self))
        view.__dict__ |= self.__dict__  # opened files too
        view.rows, view._whole = rows, False
        view.joined = self.joined if joined is None else dict(joined)
        return view

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self.index, None if self._whole else self.rows, self.joined, *self._options)

    def __repr__(self) -> str:
        return f"<Dataset of {len(self)} samples in {len(self.index.shards)} shards>"


def _restore(index: Index, rows: Any, joined: Any, fields: Any, views: bool, decode: Decode, stores: Stores) -> Dataset:
    return Dataset(index, rows, fields=fields, views=views, decode=decode, stores=stores, joined=joined)


__all__ = ["Dataset", "open_dataset"]
