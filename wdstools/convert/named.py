"""The files that a manifest names: on this machine, or beside it in a bucket or behind http. Paths are relative to the
folder of the manifest."""

from __future__ import annotations

import os
import posixpath
import stat
import tempfile
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from wdstools import urls
from wdstools.convert import objects
from wdstools.convert.sources import Listing, relative_key
from wdstools.errors import AccessError, NotFoundError, SourceError, StoreError, UrlError
from wdstools.store import Stat, Stores

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_PIECE = 1 << 20
Found = tuple[tuple[str, str] | None, Any, int]
"""(what is wrong, where as Entry has it, bytes) of a file."""


def is_remote_table(source: str) -> bool:
    """Say whether a SOURCE is the URL of a manifest."""
    return objects.is_reached(source) and source.partition("?")[0].lower().endswith(TABLES)


class LocalFiles:
    """Files on this machine. `root`: the folder of the manifest, with a slash; `at_once`: rows to be asked about in one
    go."""

    at_once = 1

    def __init__(self, path: str, listing: Listing) -> None:
        self.root = listing.root = os.path.abspath(os.path.dirname(path)).rstrip("/") + "/"
        self._listing = listing

    def is_file(self, value: str) -> bool:
        """Say whether a value names a file."""
        return bool(value) and "\0" not in value and os.path.isfile(os.path.join(self.root, value))

    def ask(self, values: Iterable[Any]) -> None:
        """Get ready to look at these."""

    def key(self, value: str) -> str:
        """The name of a file below the root."""
        return relative_key(value, self.root)

    def look(self, value: str) -> Found:
        """Look at a file."""
        if "\0" in value:
            return ("a NUL in the path", ""), "", 0
        path = os.path.join(self.root, value)
        try:
            about = os.stat(path)
        except OSError as error:
            return ((error.strerror or str(error)).lower(), ""), "", 0
        except UnicodeEncodeError:
            return ("a name that is not UTF-8", ""), "", 0
        if not stat.S_ISREG(about.st_mode):
            return ("not a regular file", ""), "", 0
        self._listing.saw(about, path)
        return None, value if value.startswith("/") else os.path.normpath(value), about.st_size


class ObjectFiles:
    """Files beside a manifest in a bucket or behind http: as LocalFiles. Raises StoreError where nobody answers."""

    at_once = 1024

    def __init__(self, url: str, listing: Listing) -> None:
        url = url.partition("?")[0] if urls.scheme(url).startswith("http") else url
        self._store, path = Stores().of(url)
        self._folder = path[: path.rfind("/") + 1]
        self._quoted = urls.scheme(url).startswith("http")
        if self._quoted:
            self._folder = objects.plain_name(self._folder)
        self.root = listing.root = url[: url.rfind("/") + 1]
        listing.read, listing.ahead = objects.reader(self._store, ""), objects.AHEAD
        self._stats: dict[str, Stat | StoreError] = {}

    def _path(self, value: str) -> str | None:
        """Where a value leads to in the store, None for another one."""
        if urls.scheme(value) != "file":
            path = value.removeprefix(self._store.root)
            return None if path == value else objects.plain_name(path) if self._quoted else path
        if value.startswith("/") or "\0" in value:
            return None
        path = posixpath.normpath(self._folder + value)
        return None if path == ".." or path.startswith(("../", "/../")) else path

    def is_file(self, value: str) -> bool:
        """Say whether a value names a file."""
        self.ask([value])
        try:
            return bool(value) and self.look(value)[0] is None
        except AccessError:  # as S3 says it of what is not there, to who may not list
            return False

    def ask(self, values: Iterable[Any]) -> None:
        """Get ready to look at these."""
        found = {self._path(value): None for value in values if isinstance(value, str) and value}
        paths = [quote(p, safe="/", errors="surrogateescape") if self._quoted else p for p in found if p is not None]
        self._stats = dict(zip((p for p in found if p is not None), self._store.sizes(paths), strict=True))
        for path in paths:
            self._store.forget(path)

    def key(self, value: str) -> str:
        """The name of a file below the root."""
        path = self._path(value) or value
        return path.removeprefix(self._folder).lstrip("/")

    def look(self, value: str) -> Found:
        """Look at a file that was asked about."""
        path = self._path(value)
        if path is None:
            return ("not a file in the bucket, or on the host, of its manifest", repr(value)), "", 0
        found = self._stats[path]
        if isinstance(found, NotFoundError | UrlError):
            return ("no such object", ""), "", 0
        if isinstance(found, StoreError):
            raise found
        spelled = quote(path, safe="/", errors="surrogateescape") if self._quoted else path
        return None, (spelled, found.etag or str(found.mtime_ns or "")), found.nbytes


def fetch(url: str, folder: str) -> str:
    """Copy a manifest into a folder, and return its path. Raises SourceError, StoreError."""
    store, path = Stores().of(url)
    local = os.path.join(folder, "table" + os.path.splitext(url.partition("?")[0])[1].lower())
    try:
        with store.open(path) as file, open(local, "wb") as copy:
            while piece := file.read(_PIECE):
                copy.write(piece)
    except NotFoundError as error:
        raise SourceError(str(error)) from error
    return local


def folder() -> tempfile.TemporaryDirectory[str]:
    """A place for what is fetched."""
    return tempfile.TemporaryDirectory(prefix="wds-")
