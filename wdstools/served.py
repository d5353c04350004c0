"""Sets behind wds-serve: their index comes from the server, and many samples at once come as one batch.

`wdstools.open("http://host:8080/train")` finds that out by itself. A server that is none of ours, a batch that fails,
and a set that was replaced are left to the ranges of the shards, which say what is wrong.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from wdstools import _core, urls
from wdstools.errors import ChangedError, ShardError, StoreError
from wdstools.failures import hide
from wdstools.fetching import Fetcher, Outcome, is_remote, stale
from wdstools.finding import StoredIndex
from wdstools.index import SUFFIX, Index
from wdstools.retrying import Transient
from wdstools.store import Stores

if TYPE_CHECKING:
    from wdstools.httpclient import HttpClient

log = logging.getLogger("wdstools")

MOST = 10_000  # samples of a batch
FEWEST = 2  # that are worth one
VERSION = "wds.served"  # what an index says of the version of its set
_SHARD = re.compile(r"\.(?:tar|tgz|gz|zst|bz2|xz|tzst|tbz2?|txz)$", re.IGNORECASE)

Failed = (StoreError, Transient, ValueError)


class ServedIndex(StoredIndex):
    """The index of a set behind a server. `base`: "http://host:8080"; `served`: the name of the set there. Pickled, it
    is its URL."""

    def __init__(self, index: Index, base: str, served: str, source: tuple[str, Stores, int]) -> None:
        super().__init__(index.table, index.shards, index.metadata, source)
        self.base, self.served = base, served

    def __reduce__(self) -> tuple[Any, ...]:
        _, stores, known = self._source
        return load, (self.base, self.served, stores, known)


def find(shards: object, stores: Stores) -> ServedIndex | None:
    """The index of a set, where this is the URL of one; None: it is something else. Raises IndexFileError."""
    if not isinstance(shards, str | os.PathLike):
        return None
    url = os.fspath(shards)
    if urls.scheme(url) not in ("http", "https") or not is_remote(url) or re.search(r"[{}?#*]|::|/$", url):
        return None
    if _SHARD.search(url) or url.endswith(SUFFIX):
        return None
    base, served = url, ""
    for _ in range(2):  # a name may have one slash
        base, _, part = base.rpartition("/")
        served = f"{part}/{served}" if served else part
        if base.endswith((":/", ":", "/")) or not part:
            return None
        with contextlib.suppress(*Failed):
            client = _client(base, stores.uncached())
            told = None if client is None else json.loads(client.fetch(f"{_path(base)}/-/sets"))
            if served in _names(told):
                return load(base, served, stores)
    return None


def _names(told: Any) -> list[str]:
    """The names of sets in what a server answered, which may be anything."""
    sets = told.get("sets") if isinstance(told, dict) else None
    return [str(one.get("name")) for one in sets if isinstance(one, dict)] if isinstance(sets, list) else []


def load(base: str, served: str, stores: Stores, known: int | None = None) -> ServedIndex:
    """Ask a server for the index of a set. `known`: the hash that its bytes must have.

    Raises StoreError, IndexFileError; ChangedError where it is not the one that is known."""
    url = f"{base}/-/index?set={quote(served, safe='')}"
    store, path = stores.uncached().of(url)
    store.forget(path)
    with contextlib.closing(store.open(path)) as file:
        data = file.read()
    found = _core.hash_key(data)
    if known is not None and found != known:
        raise ChangedError(f"{hide(url)}: was replaced while it was in use; open it anew")
    return ServedIndex(Index.parse(data, url, base), base, served, (url, stores, found))


def fetcher(index: Index, reader: _core.SampleReader, stores: Stores) -> Fetcher:
    """What fetches the samples of the remote shards of an index."""
    if isinstance(index, ServedIndex):
        return BatchFetcher(index, reader, stores)
    return Fetcher(index, reader, stores, index.url if isinstance(index, StoredIndex) else None)


class BatchFetcher(Fetcher):
    """Fetches many samples of a set in one request."""

    def __init__(self, index: ServedIndex, reader: _core.SampleReader, stores: Stores) -> None:
        super().__init__(index, reader, stores, index.url)
        self._set = index
        self._told = False

    def outcomes(self, rows: Iterable[int]) -> Generator[tuple[int, Outcome], None, None]:
        """As those of Fetcher, in the order of the rows in the index."""
        rows = list(rows)
        places: dict[int, list[int]] = {}
        for place, row in enumerate(rows):
            places.setdefault(row, []).append(place)
        left = list(places)
        client = _client(self._set.base, self._stores) if len(left) >= FEWEST else None
        if client is not None:
            left = yield from self._batches(client, places)
        wanted = [place for row in left for place in places[row]]
        for place, outcome in super().outcomes([rows[place] for place in wanted]) if wanted else ():
            yield wanted[place], outcome

    def _batches(
        self, client: HttpClient, places: dict[int, list[int]]
    ) -> Generator[tuple[int, Outcome], None, list[int]]:
        """Yield what batches bring; return the rows that they did not."""
        ordered = sorted(places)
        left: list[int] = []
        for begin in range(0, len(ordered), MOST):
            batch: list[int] = []
            keys: set[str] = set()
            for row in ordered[begin : begin + MOST]:
                key = self._index.locate(row)[0]
                (left if key in keys else batch).append(row)  # a second one would come under another key
                keys.add(key)
            done = 0
            try:
                for row, outcomes in self._batch(client, batch):
                    done += 1
                    for place in places[row]:
                        yield place, outcomes()
            except Failed as error:
                if not self._told:
                    self._told = True
                    log.warning("%s: no batches, samples are read one by one: %s", hide(self._set.base), error)
                return left + batch[done:] + ordered[begin + MOST :]
        return left

    def _batch(self, client: HttpClient, rows: list[int]) -> Iterator[tuple[int, Callable[[], Outcome]]]:
        asked = {"set": self._set.served, "samples": rows, "version": self._index.metadata.get(VERSION)}
        path = f"{_path(self._set.base)}/-/batch"
        with client.post(path, json.dumps(asked, separators=(",", ":")).encode(), "application/json") as read:
            for row in rows:
                key, shard, start, end = self._index.locate(row)
                yield row, self._parser(read(end - start), key, shard, start)

    def _parser(self, data: bytes, key: str, shard: int, start: int) -> Callable[[], Outcome]:
        url = self._index.shards.url[shard]

        def parse() -> Outcome:
            try:
                return self._reader.parse(data, start, key, url, None)
            except ShardError as error:
                return stale(self._index, url, error)

        return parse


def _client(base: str, stores: Stores) -> HttpClient | None:
    """The client for a server; None: what is read there goes through a cache."""
    from wdstools.remote import RemoteStore  # with HTTP, which a local set never needs

    store, _ = stores.of(base)
    return store.http() if isinstance(store, RemoteStore) else None


def _path(base: str) -> str:
    """The path of a base, "" for the root of a host."""
    return re.sub(r"^[^:]+://[^/]*", "", base)


__all__ = ["BatchFetcher", "ServedIndex", "fetcher", "find", "load"]
