"""Where shards lie: `open_store` finds the store for any URL; local files and memory are here.

The contract of a Store is in `wdstools.storebase`, what is behind a network in `wdstools.remote`. No library for any
network is loaded before something is read through it.
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import io
import os
import re
import stat
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

from wdstools import urls
from wdstools.errors import AccessError, NotFoundError, StoreError, UrlError
from wdstools.ranges import Buffer, Range
from wdstools.retrying import Retries
from wdstools.storebase import Stat, Store, beyond

__all__ = ["LocalStore", "MemoryStore", "Retries", "Stat", "Store", "Stores", "open_store"]

_ALIASES = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az", "https": "http"}
_ROOT = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://[^/?#]*)(.*)", re.DOTALL)


def open_store(
    url: str,
    storage_options: Mapping[str, Any] | None = None,
    *,
    cache: str | None = None,
    retries: Retries | None = None,
) -> tuple[Store, str]:
    """Return the store of a URL, and the path of the URL in it. Nothing is asked of anybody yet.

    `storage_options`: as s3fs, gcsfs, adlfs and fsspec spell them (key, secret, token, endpoint_url, client_kwargs,
    anon, profile, project, account_name, ...; headers for http); without them the environment decides, as for the
    clouds' own tools. `cache`: "FOLDER:SIZE", such as "/nvme/cache:200GB", keeps blocks of remote objects on disk.
    `retries`: time-outs and attempts. UrlError: `pipe:`, `-`, or a URL without a host or bucket.
    """
    return Stores(storage_options, cache=cache, retries=retries).of(url)


class Stores:
    """The stores of many URLs: one for each bucket, container or host, so that connections are shared."""

    def __init__(
        self,
        storage_options: Mapping[str, Any] | None = None,
        *,
        cache: str | None = None,
        retries: Retries | None = None,
    ) -> None:
        self._options, self._cache, self._retries = dict(storage_options or {}), cache, retries or Retries()
        self._stores: dict[str, Store] = {}
        self._strangers: Stores | None = None
        self._direct: Stores | None = None
        if cache is not None:
            from wdstools.cache import parse

            parse(cache)  # a mistake shows now

    def of(self, url: str) -> tuple[Store, str]:
        """As open_store."""
        scheme = urls.scheme(url)
        if scheme == "pipe" or url == "-":
            raise UrlError(f"{url[:200]}: can only be streamed")
        if scheme == "file":
            return self._store("", "file"), urls.local_path(url) or ""
        root, path = _split(url)
        scheme = _ALIASES.get(scheme, scheme)
        if scheme == "http":
            _check(url, root)
            path = path.partition("#")[0]
            return self._store(root, scheme), path if path.startswith("/") else "/" + path
        if scheme in ("s3", "gs", "az") and root.endswith("//"):
            raise UrlError(f"{url}: names no bucket")
        return self._store(root + "/", scheme), path.removeprefix("/")

    def uncached(self) -> Stores:
        """Return the stores for what is not to be kept on disk."""
        if self._cache is None:
            return self
        if self._direct is None:
            self._direct = Stores(self._options, retries=self._retries)
        return self._direct

    def beside(self, home: str, url: str) -> Stores:
        """Return the stores for a URL that was found at `home`: options, which may be credentials, stay with the bucket
        or host of home."""
        if not self._options or _split(url)[0] == _split(home)[0]:
            return self
        if self._strangers is None:
            self._strangers = Stores(cache=self._cache, retries=self._retries)
        return self._strangers

    def _store(self, root: str, scheme: str) -> Store:
        store = self._stores.get(root)
        return store or self._stores.setdefault(root, self._make(root, scheme))  # one for all threads

    def _make(self, root: str, scheme: str) -> Store:
        if scheme == "file":
            return LocalStore()
        from wdstools.remote import RemoteStore

        store: Store = RemoteStore(scheme, root, self._options, self._retries)
        if self._cache is not None:
            from wdstools.cache import CachedStore

            store = CachedStore(store, self._cache)
        return store


def _split(url: str) -> tuple[str, str]:
    """(scheme and host or bucket, the rest)."""
    match = _ROOT.fullmatch(url)
    return (match[1], match[2]) if match else (url, "")


def _check(url: str, root: str) -> None:
    """UrlError: no http client can take this."""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(root)
        port = parts.port
    except ValueError as error:
        raise UrlError(f"{url!r}: {error}") from error
    if not parts.hostname or port == 0 or any(c < " " or c == "\x7f" for c in url):
        raise UrlError(f"{url!r}: names no host, or has control characters in it")


class LocalStore(Store):
    """Files, by their paths."""

    def read_ranges(self, path: str, ranges: Iterable[Range]) -> list[Buffer]:
        wanted = list(ranges)
        found: list[Buffer] = [b""] * len(wanted)
        if any(not 0 <= start <= end for start, end in wanted):
            raise ValueError("a range must start at 0 or later and not end before it starts")
        with self._translated(path), open(path, "rb", buffering=0) as file:
            stat = self._pinned(path, file.fileno())
            for i in sorted(range(len(wanted)), key=wanted.__getitem__):
                found[i] = self._pread(path, file.fileno(), *wanted[i], stat)
        return found

    def open(self, path: str) -> BinaryIO:
        with self._translated(path):
            file = open(path, "rb")
            try:
                self._pinned(path, file.fileno())
            except BaseException:
                file.close()
                raise
            return file

    def put(self, path: str, data: Buffer) -> None:
        folder, name = os.path.split(path)
        self.forget(path)
        with self._translated(path):
            if folder:
                os.makedirs(folder, exist_ok=True)
            partial = os.path.join(folder, f".{name[:100]}.{uuid.uuid4().hex}.partial")
            try:
                with open(partial, "xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(partial, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(partial)
                raise

    def list(self, prefix: str = "", recursive: bool = False) -> list[str]:
        folder = prefix[: prefix.rfind("/") + 1]
        with self._translated(prefix):
            return sorted(path for path in _files(folder, recursive) if path.startswith(prefix))

    def _stat(self, path: str) -> Stat:
        with self._translated(path), open(path, "rb", buffering=0) as file:
            return _stat_of(path, file.fileno())

    def _pinned(self, path: str, fd: int) -> Stat:
        stat = _stat_of(path, fd)
        self._pin(path, stat)
        return stat

    def _pread(self, path: str, fd: int, start: int, end: int, stat: Stat) -> bytes:
        if start == end:
            return b""
        if end > stat.nbytes:
            raise beyond(path, end, stat.nbytes)
        data = os.pread(fd, end - start, start)
        while len(data) < end - start:  # more than 2 GiB come in several reads
            more = os.pread(fd, end - start - len(data), start + len(data))
            if not more:
                raise StoreError(f"{path}: was cut short while it was being read")
            data += more
        return data

    @contextlib.contextmanager
    def _translated(self, path: str) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except OSError as error:
            kind = {errno.ENOENT: NotFoundError, errno.ENOTDIR: NotFoundError, errno.EACCES: AccessError}
            error_type = kind.get(error.errno or 0, StoreError)
            raise error_type(error.errno, error.strerror or str(error), path) from error
        except ValueError as error:
            if "null" not in str(error) and not isinstance(error, UnicodeError):
                raise
            raise UrlError(f"{path!r}: no name of a file: {error}") from error


def _stat_of(path: str, fd: int) -> Stat:
    found = os.fstat(fd)
    if stat.S_ISDIR(found.st_mode):
        raise StoreError(errno.EISDIR, "is a folder, not an object", path)
    return Stat(found.st_size, f"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}", found.st_mtime_ns)


def _files(folder: str, recursive: bool) -> Iterator[str]:
    """The files in a folder, given with its slash (or "" for the current one); nothing where there is none."""
    try:
        entries = list(os.scandir(folder or "."))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.is_file():
            yield folder + entry.name
        elif recursive and entry.is_dir(follow_symlinks=False):
            yield from _files(f"{folder}{entry.name}/", True)


class MemoryStore(Store):
    """Objects in a dict: for tests, and for whoever has shards in memory already."""

    root = "memory:"

    def __init__(self, objects: Mapping[str, bytes] | None = None) -> None:
        super().__init__()
        self._objects: dict[str, tuple[bytes, Stat]] = {}
        self._version = 0
        for path, data in (objects or {}).items():
            self.put(path, data)

    def read_ranges(self, path: str, ranges: Iterable[Range]) -> list[Buffer]:
        data = memoryview(self._take(path))
        found: list[Buffer] = []
        for start, end in ranges:
            if not 0 <= start <= end:
                raise ValueError(f"({start}, {end}) is not a range of bytes")
            if end > len(data) and end > start:
                raise beyond(self.url(path), end, len(data))
            found.append(data[start:end])
        return found

    def open(self, path: str) -> BinaryIO:
        return io.BytesIO(self._take(path))

    def put(self, path: str, data: Buffer) -> None:
        self.forget(path)
        self._version += 1
        self._objects[path] = (bytes(data), Stat(len(data), str(self._version)))

    def list(self, prefix: str = "", recursive: bool = False) -> list[str]:
        paths = sorted(self._objects)
        found = paths[bisect.bisect_left(paths, prefix) :]
        return [p for p in found if p.startswith(prefix) and (recursive or "/" not in p[len(prefix) :])]

    def _take(self, path: str) -> bytes:
        stat = self._stat(path)
        self._pin(path, stat)
        return self._objects[path][0]

    def _stat(self, path: str) -> Stat:
        if path not in self._objects:
            raise NotFoundError(f"{self.url(path)}: nothing is there")
        return self._objects[path][1]
