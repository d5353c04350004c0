"""Which index describes the shards that a user names: the file beside them, or one that is built in memory and kept
where that is wanted."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from wdstools import _core, build, shardindex, urls
from wdstools.compression import Decompressed
from wdstools.errors import AccessError, ChangedError, DestinationError, NotFoundError, StoreError, WdsError
from wdstools.failures import hide
from wdstools.fetching import is_remote
from wdstools.index import SUFFIX, Index
from wdstools.merge import merge
from wdstools.shardtable import Shards, canonical
from wdstools.storage import open_source
from wdstools.store import Stores
from wdstools.views import Rows

log = logging.getLogger("wdstools")

INDEXED = 8  # shards that are streamed at once, to index them
COMPRESSED = "is compressed ({}): random access needs plain tars; stream() reads it as it is"

Found = tuple[Index, Rows | None]


class StoredIndex(Index):
    """An index that is kept behind a Store, and was read whole. Pickled, it is its URL: a worker reads it again."""

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
        return hide(self.url)

    def __reduce__(self) -> tuple[Any, ...]:
        return load_stored, self._source


def load_stored(url: str, stores: Stores, known: int | None = None) -> StoredIndex:
    """Read an index through its store. `known`: the hash that its bytes must have.

    Raises NotFoundError, StoreError, IndexFileError; ChangedError where it is not the one that is known."""
    store, path = stores.of(url)
    store.forget(path)
    with contextlib.closing(store.open(path)) as file:
        data = file.read()
    found = _core.hash_key(data)
    if known is not None and found != known:
        raise ChangedError(f"{hide(url)}: was replaced while it was in use; open it anew")
    index = Index.parse(data, url, urls.dirname(url))
    return StoredIndex(index.table, index.shards, index.metadata, (url, stores, found))


def find(shards: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], stores: Stores, keep: bool) -> Found:
    """The index for what the user names, and which of its rows, or None for all. `keep`: one that had to be built is
    saved. Raises what open_dataset does."""
    if isinstance(shards, str | os.PathLike):
        path = os.fspath(shards)
        if path.partition("?")[0].endswith(SUFFIX) and is_remote(path):
            return load_stored(path, stores), None
        if path.endswith(SUFFIX):
            return Index.load(urls.local_path(path) or path), None
        if is_remote(path) and path.endswith("/"):
            store, prefix = stores.of(path)
            return _of_folder(path, [name[len(prefix) :] for name in store.list(prefix)], stores, keep)
        if os.path.isdir(path):
            return _of_folder(path, sorted(os.listdir(path)), stores, keep)
    return _of_shards(urls.expand(shards), stores, keep)


def _of_folder(folder: str, names: list[str], stores: Stores, keep: bool) -> Found:
    found = [name for name in names if name.endswith(SUFFIX)]
    if len(found) == 1:
        path = os.path.join(folder, found[0])
        return load_stored(path, stores) if is_remote(path) else Index.load(path), None
    if found:
        raise NotFoundError(f"{folder}: holds {len(found)} indexes ({', '.join(found)}): open one of them")
    shards = [os.path.join(folder, name) for name in names if name.endswith(".tar") and not name.startswith(".")]
    if not shards:
        raise NotFoundError(f"{folder}: no index and no .tar in it")
    return _in_memory(shards, stores, keep), None


def _of_shards(shards: list[str], stores: Stores, keep: bool) -> Found:
    path = urls.index_name([urls.escape(url) for url in shards])
    index = _beside(path, stores)
    if index is None:
        return _in_memory(shards, stores, keep), None
    number = {canonical(url): i for i, url in enumerate(index.shards.url)}
    wanted = [number.get(canonical(url), -1) for url in shards]
    if -1 in wanted:
        lacking = shards[wanted.index(-1)]
        log.warning(
            "%s does not have %s: building an index in memory; `wds-index build` refreshes it",
            hide(path),
            hide(lacking),
        )
        return _index_shards(shards, stores), None
    return index, None if wanted == list(range(len(number))) else index.select_shards(wanted)


def _beside(path: str, stores: Stores) -> Index | None:
    """The index at a path; None: there is none."""
    if not is_remote(path):
        return Index.load(path) if os.path.exists(path) else None
    with contextlib.suppress(NotFoundError, AccessError):  # s3 may refuse what is not there; shards will tell
        return load_stored(path, stores)
    return None


def _in_memory(shards: Sequence[str], stores: Stores, keep: bool) -> Index:
    far = any(map(is_remote, shards))
    log.log(
        logging.WARNING if far else logging.INFO,
        "no index for %d shards: building one in memory%s%s",
        len(shards),
        ", for which they are read as a whole" if far else "",
        "" if keep else "; open(..., save_index=True) or `wds-index build` keeps it",
    )
    index = _index_shards(shards, stores)
    if not keep:
        return index
    try:
        return save(index, stores)
    except (WdsError, OSError) as error:
        log.warning("the index is not saved: %s; name another place: Dataset.save_index(path)", error)
        return index


def save(index: Index, stores: Stores, path: str | None = None) -> Index:
    """Write an index to a path or URL, default: where opening its shards looks for it. Returns the index that is there.

    Raises DestinationError where another index is there, StoreError, OSError, UrlError.
    """
    path = path or urls.index_name([urls.escape(url) for url in index.shards.url])
    path = path if is_remote(path) else urls.local_path(path) or path
    there = _beside(path, stores)
    if there is not None and not there.shards.is_like(index.shards):
        raise DestinationError(f"{path}: is an index of other shards")
    if is_remote(path):
        store, name = stores.of(path)
        data = index.dumps(urls.dirname(path)).to_pybytes()
        store.put(name, data)
        saved: Index = StoredIndex(index.table, index.shards, index.metadata, (path, stores, _core.hash_key(data)))
    else:
        index.save(path)
        saved = Index.load(path)
    log.info("%s: saved, %d samples in %d shards", path, len(index), len(index.shards))
    return saved


def _index_shards(shards: Sequence[str], stores: Stores) -> Index:
    """Index shards in memory, remote ones by streaming them. Raises ShardError, StoreError."""
    if not any(map(is_remote, shards)):
        return build.build(shards)
    with ThreadPoolExecutor(min(INDEXED, len(shards))) as pool:
        for size in [pool.submit(_size, url, stores) for url in shards if is_remote(url)]:
            size.result()  # one that is not there shows before gigabytes of others were read
        return merge(list(pool.map(lambda url: _index_shard(url, stores), shards)))


def _size(url: str, stores: Stores) -> None:
    store, path = stores.of(url)
    store.size(path)


def _index_shard(url: str, stores: Stores) -> Index:
    if not is_remote(url):
        return shardindex.index_shard(url)
    with open_source(url, stores) as source:
        if isinstance(source.handle, Decompressed):
            raise StoreError(f"{hide(url)}: {COMPRESSED.format('gzip, zstd, bzip2 or xz')}")
        return shardindex.scan(source)


__all__ = ["StoredIndex", "find", "load_stored", "save"]
