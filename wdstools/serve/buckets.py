"""Buckets: names that lie together, out of a folder, an index file or a remote prefix.

A key is the name of an object in its bucket, with slashes. Files and folders whose name starts with a dot are not
served, nor are files that are being written (.part, .tmp, .partial). All methods may take a while: see `Bucket.slow`.
"""

from __future__ import annotations

import abc
import logging
import os
import time
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple
from urllib.parse import quote

from wdstools import urls
from wdstools.errors import IndexFileError
from wdstools.index import Index
from wdstools.serve.blobs import Blob, Files, etag_of, is_beneath
from wdstools.serve.remotes import Objects

log = logging.getLogger("wdstools")

UNFINISHED = (".part", ".tmp", ".partial")
AT_ONCE = 64  # objects of a remote store that are asked for together
SETTLED = 2.0  # seconds after which a folder's mtime tells whether anything changed in it


class Entry(NamedTuple):
    """One line of a listing: an object, or, with `etag` None, a folder of them, whose key ends with a slash."""

    key: str
    nbytes: int = 0
    etag: str | None = None  # without quotes
    mtime_ns: int | None = None


def is_served(key: str) -> bool:
    """Whether a key can name an object."""
    parts = key.split("/")
    return all(part and part[0] != "." for part in parts) and not key.endswith(UNFINISHED) and "\0" not in key


class Bucket(abc.ABC):
    """`slow`: whether find() may wait for a network."""

    slow = False

    def __init__(self, name: str, source: str) -> None:
        self.name, self.source = name, source

    @abc.abstractmethod
    def find(self, key: str) -> Blob | None:
        """What a key names, or None."""

    @abc.abstractmethod
    def entries(self, prefix: str, after: str, flat: bool) -> Iterator[Entry]:
        """The objects whose keys start with a prefix and come after `after`, sorted by key. `flat`: folders below the
        prefix may come as one entry each."""

    def all_keys(self) -> list[str]:
        return [entry.key for entry in self.entries("", "", False)]


class FolderBucket(Bucket):
    """The files in a folder and in the folders below it."""

    def __init__(self, name: str, folder: str, files: Files) -> None:
        super().__init__(name, folder)
        self.root = os.path.realpath(folder)
        self._files = files
        self._scans: OrderedDict[str, tuple[int, list[tuple[str, bool]]]] = OrderedDict()

    def find(self, key: str) -> Blob | None:
        return self._files.find(f"{self.root}/{key}", self.root) if is_served(key) else None

    def entries(self, prefix: str, after: str, flat: bool) -> Iterator[Entry]:
        folder = prefix[: prefix.rfind("/") + 1]
        if folder and not is_served(folder[:-1]):
            return
        if folder and not is_beneath(os.path.realpath(f"{self.root}/{folder}"), self.root):
            return
        yield from self._walk(folder, prefix, after, flat)

    def _walk(self, folder: str, prefix: str, after: str, flat: bool) -> Iterator[Entry]:
        for name, is_folder in self._scan(folder):
            key = folder + name
            if is_folder:
                key += "/"
                # a folder of which a part may come after `after` is entered
                if not (key.startswith(prefix) or prefix.startswith(key)) or (
                    key <= after and after[: len(key)] != key
                ):
                    continue
                inside = self._walk(key, prefix, after, flat and not key.startswith(prefix))
                if flat and key.startswith(prefix):
                    if next(inside, None) is not None:
                        yield Entry(key)
                else:
                    yield from inside
            elif key > after and key.startswith(prefix):
                entry = self._entry(key)
                if entry is not None:
                    yield entry

    def _entry(self, key: str) -> Entry | None:
        path = f"{self.root}/{key}"
        try:
            about = os.lstat(path)
            if os.path.islink(path):
                if not is_beneath(os.path.realpath(path), self.root):
                    return None
                about = os.stat(path)
        except OSError:  # gone meanwhile
            return None
        return Entry(key, about.st_size, etag_of(about), about.st_mtime_ns)

    def _scan(self, folder: str) -> list[tuple[str, bool]]:
        """The names in a folder and which are folders, in the order of keys; kept until the folder changes. Links to
        folders are left out: they may go round."""
        path = f"{self.root}/{folder}"
        try:
            before = os.stat(path).st_mtime_ns
            kept = self._scans.get(path)
            if kept is not None and kept[0] == before:
                return kept[1]
            with os.scandir(path) as found:
                names = [
                    (entry.name, entry.is_dir(follow_symlinks=False))
                    for entry in found
                    if is_served(entry.name) and (entry.is_dir(follow_symlinks=False) or entry.is_file())
                ]
        except OSError:
            return []
        names.sort(key=lambda item: item[0] + "/" if item[1] else item[0])
        if time.time_ns() - before > SETTLED * 1e9:
            self._scans[path] = before, names
            if len(self._scans) > 64:
                self._scans.pop(next(iter(self._scans)), None)
        return names


class NamesBucket(Bucket):
    """A bucket that knows its keys."""

    @abc.abstractmethod
    def names(self) -> Sequence[str]:
        """The keys, sorted."""

    def lines(self, keys: Sequence[str]) -> Iterable[Entry | None]:
        """What a listing says of keys; None for those that are gone."""
        return map(self._line, keys)

    def _line(self, key: str) -> Entry | None:
        blob = self.find(key)
        return None if blob is None else Entry(key, blob.nbytes, blob.version.strip('"'), blob.mtime_ns)

    def entries(self, prefix: str, after: str, flat: bool) -> Iterator[Entry]:
        names = self.names()
        at = max(bisect_left(names, prefix), bisect_right(names, after))
        while at < len(names) and names[at].startswith(prefix):
            slash = names[at].find("/", len(prefix)) if flat else -1
            if slash >= 0:
                folder = names[at][: slash + 1]
                yield Entry(folder)
                at = bisect_left(names, folder[:-1] + "0", at)  # "0" follows "/"
                continue
            end = at + 1
            while end < min(at + AT_ONCE, len(names)) and names[end].startswith(prefix):
                if flat and "/" in names[end][len(prefix) :]:
                    break
                end += 1
            yield from filter(None, self.lines(names[at:end]))
            at = end

    def all_keys(self) -> list[str]:
        return list(self.names())


class IndexBucket(NamesBucket):
    """An index file, and the shards that it names, wherever they lie."""

    def __init__(self, name: str, path: str, files: Files, objects: Objects) -> None:
        super().__init__(name, path)
        self._path, self._files, self._objects = os.path.abspath(path), files, objects
        self._version: tuple[int, int] | None = None
        self._places: dict[str, str] = {}  # key -> path or URL
        self._names: list[str] = []
        self._read(os.stat(self._path))
        self.slow = any(urls.scheme(place) != "file" for place in self._places.values())

    def _load(self) -> None:
        """Read the index again where it was replaced; one that cannot be read changes nothing."""
        try:
            about = os.stat(self._path)
            if (about.st_ino, about.st_mtime_ns) != self._version:
                self._read(about)
        except (OSError, IndexFileError) as error:
            log.warning("%s: what was in it before is served on: %s", self._path, error)

    def _read(self, about: os.stat_result) -> None:
        """Raises NotFoundError, IndexFileError."""
        folder = os.path.dirname(self._path)
        places = {os.path.basename(self._path): self._path}
        for url in Index.load(self._path).shards.url:
            path = urls.local_path(url)
            place = url if path is None else os.path.abspath(path)
            key = place[len(folder) + 1 :] if is_beneath(place, folder) else urls.basename(url)
            if places.setdefault(key, place) != place:
                raise IndexFileError(f"{self._path}: two shards would be served as {key}: {places[key]} and {place}")
        self._places, self._names, self._version = places, sorted(places), (about.st_ino, about.st_mtime_ns)

    def names(self) -> Sequence[str]:
        self._load()
        return self._names

    def find(self, key: str) -> Blob | None:
        self._load()
        place = self._places.get(key)
        if place is None:
            return None
        return self._files.find(place, None) if urls.scheme(place) == "file" else self._objects.find(place)


class PrefixBucket(NamesBucket):
    """The objects of a remote store whose URLs start with a prefix that ends with a slash."""

    slow = True

    def __init__(self, name: str, url: str, objects: Objects) -> None:
        super().__init__(name, url)
        self._url, self._objects = url.rstrip("/") + "/", objects
        self._http = urls.scheme(url) in ("http", "https")
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="wds-serve-sizes")

    def names(self) -> Sequence[str]:
        return [name for name in self._objects.names(self._url) if is_served(name)]

    def lines(self, keys: Sequence[str]) -> Iterable[Entry | None]:
        return self._pool.map(self._line, keys)

    def find(self, key: str) -> Blob | None:
        if not is_served(key):
            return None
        return self._objects.find(self._url + (quote(key, errors="surrogateescape") if self._http else key))
