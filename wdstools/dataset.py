"""Dataset: any sample of a set of shards, by number or key, in any order."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np

from wdstools import served
from wdstools.access import Access
from wdstools.decode import Decode, make_decoder
from wdstools.errors import ShardError
from wdstools.finding import StoredIndex, find, save
from wdstools.index import Index
from wdstools.samples import Sample
from wdstools.store import Stores
from wdstools.views import Rows, View


def open_dataset(
    shards: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    fields: Iterable[str] | None = None,
    views: bool = False,
    decode: Decode = None,
    storage_options: Mapping[str, Any] | None = None,
    cache: str | None = None,
    save_index: bool = False,
) -> Dataset:
    """Open shards for random access: `wdstools.open`.

    `shards`: an index file, a folder (remote ones with a slash at the end), a set behind wds-serve
    ("http://host:8080/train", which reads batches in one request), or shards as stream() takes them; on local disks,
    http(s), s3, gs, az, or whatever fsspec opens. The index is the one that wds-shard, ShardWriter and wds-index build
    write (urls.index_name); where there is none, it is built in memory, for which remote shards are streamed once, and
    the log says so; with `save_index` it is then written where the next call finds it, for which a place that cannot be
    written to is no more than a warning. `fields`, `views`: as in stream(); views here keep just their own sample
    alive. `decode`: see decode.make_decoder. `storage_options`: for what is remote, as in stream(); `cache`:
    "FOLDER:SIZE", such as "/nvme/cache:200GB", keeps blocks of remote shards on disk.

    Raises NotFoundError, StoreError, IndexFileError, ShardError, UrlError.
    """
    stores = Stores(storage_options, cache=cache)
    behind = served.find(shards, stores)
    index, rows = (behind, None) if behind is not None else find(shards, stores, save_index)
    return Dataset(index, rows, fields=fields, views=views, decode=decode, stores=stores)


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

    @property
    def is_remote(self) -> bool:
        """Whether samples come over a network."""
        return not self._access.local

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
        if self._whole:  # rows are numbers
            samples = self._access.read_many(list(numbers), self._any_row)
        else:
            samples = self._access.read_many(list(map(self._any_row, numbers)))
        return samples if self._decode is None else list(map(self._decode, samples))

    @property
    def access(self) -> Access:
        """How its samples are read, by row."""
        return self._access

    def _any_row(self, number: int | str) -> int:
        return self._row_of(number) if isinstance(number, str) else self._row(operator.index(number))

    def __getitems__(self, numbers: Sequence[int | str]) -> list[Sample]:
        """Return what fetch() does: torch's DataLoader asks for whole batches by this name."""
        return self.fetch(numbers)

    def save_index(self, path: str | os.PathLike[str] | None = None) -> str:
        """Write the index, of all its samples, to a path or URL, and return that. Default: where open() looks for it,
        beside the shards (urls.index_name).

        Raises DestinationError where an index of other shards is there; StoreError or OSError where it cannot be
        written; UrlError.
        """
        saved = save(self.index, self._options[3], None if path is None else os.fspath(path))
        return saved.url if isinstance(saved, StoredIndex) else saved.name

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
