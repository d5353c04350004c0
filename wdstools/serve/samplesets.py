"""The sets of samples behind a server: found in its buckets, opened when first asked for, looked at again for changes.

A folder has one set for each index in it, and for shards that no index has, one that is indexed in memory; an index
file is a set; a remote prefix has the sets of the indexes below it. Everything here may wait for a disk: call it in
a thread.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias, TypeVar, cast
from urllib.parse import quote

import pyarrow as pa

from wdstools import _core, urls
from wdstools.access import Access
from wdstools.columns import CORE
from wdstools.dataset import Dataset, open_dataset
from wdstools.errors import IndexFileError, QueryError, ShardError, StaleIndexError, StoreError
from wdstools.index import SUFFIX, Index
from wdstools.ranges import Buffer, Range
from wdstools.serve.blobs import Files, LocalBlob, is_beneath
from wdstools.serve.buckets import Bucket, FolderBucket, IndexBucket, PrefixBucket
from wdstools.serve.settings import Settings
from wdstools.serve.tree import Tree
from wdstools.served import VERSION
from wdstools.sets import shard_sets
from wdstools.shardtable import Shards
from wdstools.store import Store, Stores

log = logging.getLogger("wdstools")

FRESH = 2.0  # seconds for which nobody looks whether sets have changed
_DERIVED = (*CORE, "row", "nbytes", "url", "file")  # columns of a view that say where a sample lies

T = TypeVar("T")
Opener: TypeAlias = Callable[[], Dataset]


class SampleSet:
    """One set. `name`: what it is called; `version`: changes with its index; `path`: the folder, URL or index file in
    its bucket that keys of shards start from. Everything else is there once it is open."""

    def __init__(self, name: str, bucket: Bucket, version: str, opener: Opener, annotations: tuple[str, ...]) -> None:
        self.name, self.bucket, self.version = name, bucket, version
        self._opener, self._annotations = opener, annotations
        self._lock = threading.RLock()
        self._dataset: Dataset | None = None
        self._table: pa.Table | None = None
        self._files = Files(256)
        self._local: list[str | None] = []
        self._kept: dict[str, Any] = {}
        self.checker = _core.SampleReader([], True)  # walks the headers of a sample, and copies nothing

    @property
    def dataset(self) -> Dataset:
        """All its samples. Raises WdsError, OSError."""
        if self._dataset is None:
            with self._lock:
                if self._dataset is None:
                    dataset = self._opener()
                    for path in self._annotations:
                        try:
                            dataset = dataset.join(path)
                        except QueryError as error:
                            raise StoreError(f"{path} cannot be joined to {self.name}: {error}") from error
                    self._local = [urls.local_path(url) for url in dataset.index.shards.url]
                    self._dataset = dataset
        return self._dataset

    @property
    def index(self) -> Index:
        return self.dataset.index

    @property
    def table(self) -> pa.Table:
        """What queries see: a row for each row of the index."""
        if self._table is None:
            with self._lock:
                if self._table is None:
                    dataset = self.dataset
                    table = dataset.index.view()
                    for name, values in dataset.joined.items():
                        table = table.append_column(name, values)
                    self._table = table
        return self._table

    @property
    def columns(self) -> list[str]:
        """The columns that were lifted from fields or joined."""
        return [name for name in self.table.column_names if name not in _DERIVED]

    def kept(self, name: str, make: Callable[[], T]) -> T:
        """What `make` returned when it was first called for this name."""
        if name not in self._kept:
            self._kept[name] = make()
        return cast(T, self._kept[name])

    @property
    def joined(self) -> set[str]:
        return set(self.dataset.joined)

    @property
    def nbytes(self) -> int:
        return sum(self.index.shards.nbytes)

    def row(self, asked: str | int, by_key: bool = False) -> int | None:
        """The row of a number or key; None: there is none."""
        if isinstance(asked, int):
            return asked if 0 <= asked < len(self.index) else None
        if not by_key and asked.isascii() and asked.isdigit():
            return self.row(int(asked)) if len(asked) < 19 else None
        try:
            found = self.index.find(asked)
        except UnicodeError:  # half of a surrogate pair is no key
            return None
        return found[0] if found else None

    # bytes of shards

    def blob(self, shard: int) -> LocalBlob | None:
        """The file of a shard; None: it is remote. Raises StaleIndexError where it is not what was indexed."""
        shards = self.index.shards
        path = self._local[shard]
        if path is None:
            return None
        with self._lock:
            blob = self._files.find(path, None)
        if blob is None or blob.nbytes != shards.nbytes[shard]:
            there = "is not there" if blob is None else f"has {blob.nbytes} bytes"
            raise StaleIndexError(f"{self.name}: {urls.basename(path)} {there}; rebuild its index: wds-index build")
        return blob

    def is_as_indexed(self, shard: int, blob: LocalBlob) -> bool:
        """Whether size and mtime are those that were indexed; otherwise every header of a sample is to be checked."""
        return self.index.shards.mtime[shard] == blob.mtime_ns

    def read(self, shard: int, ranges: list[Range]) -> list[Buffer]:
        """Bytes of a shard, wherever it lies. Raises WdsError, OSError."""
        blob = self.blob(shard)
        if blob is None:
            store, path = self._store(shard)
            return store.read_ranges(path, ranges)
        found: list[Buffer] = []
        for start, end in ranges:
            data = os.pread(blob.handle.fd, end - start, start)
            if len(data) != end - start:
                raise StoreError(f"{self.name}: {urls.basename(blob.path)} was cut short while it was read")
            found.append(data)
        return found

    def fetch(self, wanted: list[tuple[int, Range]]) -> list[Buffer]:
        """Ranges of remote shards, all at once, in the order given. Raises StoreError."""
        lots: dict[Store, dict[str, list[int]]] = {}
        for place, (shard, _) in enumerate(wanted):
            store, path = self._store(shard)
            lots.setdefault(store, {}).setdefault(path, []).append(place)
        found: list[Buffer] = [b""] * len(wanted)
        for store, paths in lots.items():
            bodies = store.read_many((path, [wanted[i][1] for i in places]) for path, places in paths.items())
            for places, body in zip(paths.values(), bodies, strict=True):
                if isinstance(body, StoreError):
                    raise body
                for place, data in zip(places, body, strict=True):
                    found[place] = data
        return found

    def _store(self, shard: int) -> tuple[Store, str]:
        return self.access.fetcher.store_of(shard)

    @property
    def access(self) -> Access:
        """Whole samples by row."""
        return self.dataset.access

    @property
    def stores(self) -> Stores:
        return self.access.stores

    def check(self, data: Buffer, key: str, shard: int, start: int) -> None:
        """Compare a whole sample with the index. Raises StaleIndexError."""
        try:
            self.checker.parse(data, start, key, self.index.shards.url[shard], None)
        except ShardError as error:
            raise self.stale(key, error) from error

    def stale(self, key: str, why: object) -> StaleIndexError:
        """The error for a sample that is not what the index says."""
        return StaleIndexError(f"{self.name}: {key!r} is not where its index says: {why}")

    # for clients that read by themselves

    def dumps(self, base: str) -> bytes:
        """Its index as a file, whose shards have the URLs under which this server has them. `base`: "http://host"."""
        index, root = self.index, f"{base}/{quote(self.bucket.name)}/"
        table = index.shards
        names, etags = [], []
        for number, url in enumerate(table.url):
            names.append(root + quote(self._key(url), errors="surrogateescape"))
            blob = self.blob(number)
            etags.append("" if blob is None else blob.version.strip('"'))
        shards = Shards(names, table.nbytes, table.mtime, table.nsamples, table.nmembers, etags)
        data: bytes = (
            Index(index.table, shards, None, index.metadata | {VERSION: self.version}).dumps(base).to_pybytes()
        )
        return data

    def _key(self, url: str) -> str:
        """The key of a shard in its bucket."""
        path = urls.local_path(url)
        place = url if path is None else os.path.abspath(path)
        for root in (getattr(self.bucket, "root", None), self.bucket.source.rstrip("/"), os.path.dirname(self._home)):
            if root and is_beneath(place, root):
                return place[len(root.rstrip("/")) + 1 :]
        return urls.basename(url)

    @property
    def _home(self) -> str:
        return os.path.abspath(self.bucket.source)


class SampleSets:
    """The sets of all buckets, by name: that of the index; "bucket/name" where two have one."""

    def __init__(self, tree: Tree, settings: Settings) -> None:
        self._tree, self._settings = tree, settings
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str, str], SampleSet] = {}  # (bucket, where, version)
        self._sets: dict[str, SampleSet] = {}
        self._looked = float("-inf")

    def all(self) -> dict[str, SampleSet]:
        """The sets, by name. Raises StoreError, OSError."""
        if time.monotonic() - self._looked > FRESH:
            with self._lock:
                if time.monotonic() - self._looked > FRESH:
                    self._look()
        return self._sets

    def get(self, name: str | None) -> SampleSet | None:
        """The set of this name; the first one where none is named."""
        found = self.all()
        if name:
            return found.get(name)
        return next(iter(found.values()), None)

    def _look(self) -> None:
        known: dict[tuple[str, str, str], SampleSet] = {}
        sets: dict[str, SampleSet] = {}
        joined = self._settings.annotations and _version(*self._settings.annotations)
        for bucket in self._tree.buckets.values():
            for where, name, version, opener in self._find(bucket):
                if joined:  # with other columns it is another set, to who keeps answers by their ETag
                    version = hashlib.sha256(f"{version} {joined}".encode()).hexdigest()[:16]
                unique = name if name not in sets else f"{bucket.name}/{name}"
                number = 2
                while unique in sets:
                    unique, number = f"{bucket.name}/{name}-{number}", number + 1
                key = bucket.name, where, version
                found = self._known.get(key)
                if found is None or found.name != unique:
                    found = SampleSet(unique, bucket, version, opener, self._settings.annotations)
                known[key] = sets[unique] = found
        self._known, self._sets, self._looked = known, sets, time.monotonic()

    def _find(self, bucket: Bucket) -> Iterator[tuple[str, str, str, Opener]]:
        """(where, name, version, opener) of each set of a bucket."""
        if isinstance(bucket, FolderBucket):
            yield from self._in_folder(bucket)
        elif isinstance(bucket, IndexBucket):
            path = os.path.abspath(bucket.source)
            yield path, bucket.name, _version(path), lambda: self._open(path)
        elif isinstance(bucket, PrefixBucket):
            try:
                names = bucket.all_keys()
            except StoreError as error:
                log.warning("%s cannot be listed, so that none of its samples is known: %s", bucket.name, error)
                return
            for name in names:
                if name.endswith(SUFFIX):
                    yield self._remote(bucket, name)

    def _remote(self, bucket: Bucket, name: str) -> tuple[str, str, str, Opener]:
        url = bucket.source.rstrip("/") + "/" + name
        blob = bucket.find(name)
        version = hashlib.sha256(f"{url} {blob.version if blob else ''}".encode()).hexdigest()[:16]
        return url, urls.basename(name).removesuffix(SUFFIX), version, lambda: self._open(url)

    def _in_folder(self, bucket: FolderBucket) -> Iterator[tuple[str, str, str, Opener]]:
        shards = [f"{bucket.root}/{key}" for key in bucket.all_keys() if key.endswith(".tar")]
        for found in shard_sets(shards):
            name = urls.basename(found.index).removesuffix(SUFFIX)
            if os.path.exists(found.index) and is_beneath(os.path.realpath(found.index), bucket.root):
                path = found.index
                yield path, name, _version(path), lambda path=path: self._open(path, bucket.root)  # type: ignore[misc]
            else:
                names = found.shards
                yield found.index, name, _version(*names), lambda names=names: self._open(names)  # type: ignore[misc]

    def _open(self, what: str | list[str], root: str | None = None) -> Dataset:
        began = time.monotonic()
        if not isinstance(what, str):
            log.info("%s: has no index, one is made in memory; `wds-index build` keeps it", what[0])
            what = [urls.escape(name) for name in what]
        dataset = open_dataset(what, storage_options=self._settings.storage_options, cache=self._settings.cache)
        if root is not None:
            for url in dataset.index.shards.url:
                path = urls.local_path(url)
                if path is None or not is_beneath(os.path.realpath(path), root):
                    raise IndexFileError(f"{what}: names {url}, which is outside of {root}")
        log.info("%d samples opened in %.1f s", len(dataset), time.monotonic() - began)
        return dataset


def _version(*paths: str) -> str:
    """What changes with files."""
    found = hashlib.sha256()
    for path in paths:
        about = os.stat(path)
        found.update(f"{path} {about.st_ino} {about.st_mtime_ns} {about.st_size}\n".encode("utf-8", "surrogateescape"))
    return found.hexdigest()[:16]


def plain(value: Any) -> Any:
    """A value of a column as JSON has it: what is not finite becomes null, what JSON has no word for is text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    return str(value)
