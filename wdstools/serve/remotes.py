"""Objects of remote stores: found, kept under a version, and read once for all who ask at the same time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from wdstools.errors import ChangedError, NotFoundError
from wdstools.ranges import Buffer
from wdstools.serve.blobs import Blob
from wdstools.store import Stores
from wdstools.storebase import Stat, Store

FRESH = 5.0  # seconds for which nobody asks whether an object or a listing has changed
PIECE = 1024 * 1024  # bytes that are read at once
AHEAD = 7  # pieces that are under way while one is sent, as long as
MANY = 96  # pieces are not held by all connections together
THREADS = 32


class RemoteBlob(Blob):
    """One version of an object. `store`: reads this version or raises ChangedError."""

    __slots__ = ("checked", "path", "stat", "store", "url")

    def __init__(self, url: str, store: Store, path: str, stat: Stat) -> None:
        version = stat.etag or (f"{stat.mtime_ns:x}-{stat.nbytes:x}" if stat.mtime_ns else f"{stat.nbytes:x}")
        super().__init__(path, stat.nbytes, version, stat.mtime_ns)
        self.url, self.store, self.path, self.stat = url, store, path, stat
        self.checked = time.monotonic()

    def read(self, start: int, end: int) -> Buffer:
        """Bytes [start, end), from whichever thread. Raises StoreError."""
        try:
            return self.store.read_ranges(self.path, [(start, end)])[0]
        except ChangedError:
            self.checked = float("-inf")  # the next request looks for the new one
            raise


class Objects:
    """Remote objects by URL. `options`, `cache`: as Stores takes them. Its methods wait for the network."""

    def __init__(self, options: Mapping[str, Any], cache: str | None) -> None:
        self._options, self._cache = dict(options), cache
        self._asks = Stores(self._options)  # for sizes and listings; its pins come and go
        self._reads = Stores(self._options, cache=cache)
        self._blobs: dict[str, RemoteBlob] = {}
        self._names: dict[str, tuple[float, list[str]]] = {}
        self._locks = [threading.Lock() for _ in range(64)]

    def find(self, url: str) -> RemoteBlob | None:
        """The object at a URL as it is now, or was at most FRESH seconds ago; None: nothing is there. StoreError."""
        blob = self._blobs.get(url)
        if blob is not None and time.monotonic() - blob.checked < FRESH:
            return blob
        with self._locks[hash(url) % len(self._locks)]:
            blob = self._blobs.get(url)
            if blob is not None and time.monotonic() - blob.checked < FRESH:
                return blob
            try:
                return self._look(url, blob)
            except NotFoundError:
                self._blobs.pop(url, None)
                return None

    def _look(self, url: str, known: RemoteBlob | None) -> RemoteBlob:
        if known is not None:
            store, path = self._asks.of(url)
            store.forget(path)
            try:
                if store.size(path).same(known.stat):
                    known.checked = time.monotonic()
                    return known
            except ChangedError:
                pass  # between two of us
            # Whoever still reads the old version keeps its store, whose pins do not change.
            self._reads = Stores(self._options, cache=self._cache)
        store, path = self._reads.of(url)
        blob = self._blobs[url] = RemoteBlob(url, store, path, store.size(path))
        return blob

    def names(self, prefix: str) -> list[str]:
        """The names below a URL that ends with a slash, sorted, without it."""
        kept = self._names.get(prefix)
        if kept is None or time.monotonic() - kept[0] > FRESH:
            store, path = self._asks.of(prefix)
            names = sorted(name[len(path) :] for name in store.list(path, recursive=True))
            kept = self._names[prefix] = time.monotonic(), names
        return kept[1]


class Flights:
    """Reads of an event loop: whoever asks for a piece that is being read waits for that read."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="wds-serve-remote")
        self._held = 0  # pieces that somebody waits for or sends
        self._under_way: dict[tuple[str, bytes, int, int], asyncio.Future[Buffer]] = {}

    async def pieces(self, blob: RemoteBlob, start: int, end: int) -> AsyncIterator[Buffer]:
        """Bytes [start, end), in order. Raises StoreError."""
        waiting: deque[asyncio.Future[Buffer]] = deque()
        try:
            while start < end or waiting:
                while start < end and (not waiting or (len(waiting) <= AHEAD and self._held < MANY)):
                    stop = min(end, (start // PIECE + 1) * PIECE)
                    waiting.append(self._read(blob, start, stop))
                    self._held += 1
                    start = stop
                piece = await asyncio.shield(waiting[0])
                yield piece
                del piece, waiting[0]
                self._held -= 1
        finally:
            self._held -= len(waiting)

    def _read(self, blob: RemoteBlob, start: int, end: int) -> asyncio.Future[Buffer]:
        key = blob.url, blob.etag, start, end
        found = self._under_way.get(key)
        if found is None:
            found = asyncio.get_running_loop().run_in_executor(self._pool, blob.read, start, end)
            self._under_way[key] = found
            found.add_done_callback(lambda done: self._landed(key, done))
        return found

    def _landed(self, key: tuple[str, bytes, int, int], done: asyncio.Future[Buffer]) -> None:
        self._under_way.pop(key, None)
        if not done.cancelled():
            done.exception()  # whoever waits sees it; where nobody waits any more, nobody has to

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
