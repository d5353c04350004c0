"""Shards that are compared with their index while they pass: `wds-cat --verify`."""

from __future__ import annotations

import os

from wdstools import _core, urls
from wdstools.comparison import verify
from wdstools.errors import NotFoundError, StaleIndexError, UrlError
from wdstools.finding import load_stored
from wdstools.index import Index
from wdstools.passing import Outlet, Tee
from wdstools.sets import shard_sets
from wdstools.shardtable import canonical
from wdstools.storage import open_source
from wdstools.store import Stores


def send_verified(url: str, outlet: Outlet, stores: Stores, idle: float | None, index_path: str | None) -> None:
    """Pass a shard on, and raise where it is not whole (ShardError) or not as its index says (StaleIndexError).

    A shard of another size is found before its first byte, where the store tells sizes; a broken one at the byte
    where it breaks; one with its samples elsewhere when all of it has passed. `index_path`: None for the index beside
    the shard. NotFoundError: there is none, or it does not have the shard.
    """
    index = _load(url, stores, index_path)
    number = _number(index, url)
    nbytes = index.shards.nbytes[number]
    if url != "-" and urls.scheme(url) != "pipe":
        store, path = stores.of(url)
        _compare_sizes(index, url, nbytes, store.size(path).nbytes)
    with open_source(url, stores, raw=True) as source:
        began = outlet.nbytes
        tee = Tee(source, outlet, idle)
        columns = _core.scan(tee, url)
        _compare_sizes(index, url, nbytes, outlet.nbytes - began)
        verify(index, number, columns)


def _compare_sizes(index: Index, url: str, wanted: int, found: int) -> None:
    if found != wanted:
        raise StaleIndexError(f"{index.name}: {url}: {found} bytes, where the index has {wanted}")


_loaded: dict[str, Index] = {}  # a set has one index for all of its shards


def _load(url: str, stores: Stores, path: str | None) -> Index:
    if path is None:
        if url == "-" or urls.scheme(url) == "pipe":
            raise UrlError(f"{url}: there is no index beside this: give --index FILE")
        path = shard_sets([url])[0].index
    if path not in _loaded:
        local = urls.local_path(path)
        if local is None:
            _loaded[path] = load_stored(path, stores)
        elif os.path.exists(local):
            _loaded[path] = Index.load(local)
        else:
            raise NotFoundError(f"{path}: no index there: `wds-index build` writes one, --index FILE names another")
    return _loaded[path]


def _number(index: Index, url: str) -> int:
    """The number of a shard in the shard table: by its URL, or by its name where only one shard has it."""
    known = [canonical(other) for other in index.shards.url]
    if canonical(url) in known:
        return known.index(canonical(url))
    name = url.rpartition("/")[2]
    same = [i for i, other in enumerate(known) if other.rpartition("/")[2] == name]
    if len(same) != 1:
        raise NotFoundError(f"{index.name}: does not have {url}; `wds-index build` refreshes it")
    return same[0]
