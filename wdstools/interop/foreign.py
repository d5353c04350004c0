"""What the formats share: files that appear whole and replace nothing of somebody else's, and their errors."""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NoReturn
from urllib.parse import quote

from wdstools import urls
from wdstools.errors import DestinationError, IndexFileError, NotFoundError, StaleIndexError, UrlError
from wdstools.storage import open_source

SYNCS = 16  # files that are waited for at a time
MOST = 1 << 30  # bytes of a foreign index that are read into memory; one shard's has a few MB


@dataclass
class Options:
    """How to write. `output`: a folder, or for formats of one file that file; None: where the format's reader looks.
    `overwrite`: replace what has the same format."""

    output: str | None = None
    overwrite: bool = False
    workers: int | None = None
    progress: Callable[[int], object] = lambda shards: None


@dataclass
class Written:
    """What an export did. `paths`: the files; `notes`: what whoever reads them has to know, a line each."""

    paths: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def wrong(path: str, why: object) -> NoReturn:
    """Raise IndexFileError for a foreign index that cannot be read."""
    raise IndexFileError(f"{path}: {why}")


def stale(path: str, url: str, why: str) -> NoReturn:
    """Raise StaleIndexError for a foreign index that does not describe its shard."""
    raise StaleIndexError(f"{path}: does not describe {url}: {why}; nothing was written")


def local_path(url: str, format: str) -> str:
    """The path of a shard beside which an index can be written. Raises DestinationError for a remote one."""
    path = urls.local_path(url)
    if path is None:
        raise DestinationError(
            f"{url}: nothing can be written beside it; say with --output where the {format} index goes"
        )
    return path


def beside(shards: Sequence[str], options: Options, format: str, name: Callable[[str], str]) -> list[str]:
    """Where the index of each shard goes: beside it, or in the folder of `options`. `name`: of the index of a shard.

    Raises DestinationError where two shards would have the same.
    """
    found: dict[str, str] = {}
    for url in shards:
        if options.output is None:
            path = name(local_path(url, format))
        else:
            path = os.path.join(options.output, name(urls.basename(url)))
        if path in found:
            raise DestinationError(
                f"{path}: would be the {format} index of {found[path]} and of {url}; rename one of the shards"
            )
        found[path] = url
    return list(found)


def one_file(options: Options, name: str) -> str | None:
    """Where the one file of a format goes: what the options say; a file of this name where that is a folder."""
    output = options.output
    return os.path.join(output, name) if output and (os.path.isdir(output) or output.endswith("/")) else output


class Batch:
    """Files that appear together, each whole, when the context ends without an exception, and else not at all. They are
    waited for together, so that many small ones take the disk hardly longer than one. put() and path() are for any
    thread."""

    def __init__(self) -> None:
        self._made: list[tuple[str, str]] = []  # (temporary path, path)

    def path(self, path: str) -> str:
        """Return a path to write instead of `path`, which it becomes."""
        path = os.path.abspath(path)
        folder, name = os.path.split(path)
        os.makedirs(folder, exist_ok=True)
        short = os.fsdecode(os.fsencode(name)[:200])
        temporary = os.path.join(folder, f".{short}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        self._made.append((temporary, path))
        return temporary

    def put(self, path: str, data: bytes) -> None:
        """Write a file."""
        with open(self.path(path), "xb") as file:
            file.write(data)

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        try:
            if kind is None:
                with ThreadPoolExecutor(SYNCS) as pool:  # a replaced file may wait for the disk, too
                    list(pool.map(_sync, (temporary for temporary, _ in self._made)))
                    list(pool.map(lambda made: os.replace(*made), self._made))
        finally:
            for temporary, _ in self._made:
                for left in (temporary, temporary + "-journal"):
                    if os.path.lexists(left):
                        os.unlink(left)


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read(path: str) -> bytes:
    """Read a foreign index, local or remote. Raises NotFoundError, StoreError, IndexFileError for one past MOST."""
    if urls.scheme(path) == "pipe":
        raise UrlError(f"{path}: a command is no index")
    with open_source(path, raw=True) as source:
        if isinstance(source.handle, int):
            file = open(source.handle, "rb", closefd=False)
            data = file.read(MOST + 1)
        else:
            pieces, left, buffer = [source.head], MOST + 1, bytearray(1 << 20)
            while left > 0 and (n := source.handle.readinto(memoryview(buffer)) or 0):
                pieces.append(bytes(buffer[:n]))
                left -= n
            data = b"".join(pieces)
    if len(data) > MOST:
        wrong(path, f"has more than {MOST:,} bytes, which no index of a shard has")
    return data


def read_text(path: str) -> str:
    """Read a foreign index that is text. Raises as read() does."""
    try:
        return read(path).decode()
    except UnicodeDecodeError as error:
        wrong(path, f"is not UTF-8: {error}")


def resolve(base: str, name: object, path: str) -> str:
    """The URL of a shard that a foreign index names: below its folder, or absolute. A command is refused.

    Raises IndexFileError."""
    if not isinstance(name, str) or not name:
        wrong(path, f"names a shard {name!r}")
    try:
        if urls.scheme(name) == "pipe":
            raise UrlError("a command, which an index may not choose")
        return name if urls.is_absolute(name) else urls.join(base, name)
    except UrlError as error:
        wrong(path, error)


@contextlib.contextmanager
def sqlite(path: str, tables: Sequence[str] = ()) -> Iterator[sqlite3.Connection]:
    """Open a foreign SQLite file for reading; nothing is written beside it. `tables`: what will be read, which must be
    tables, and no views that might compute anything. Raises IndexFileError, NotFoundError."""
    local = urls.local_path(path)
    if local is None:
        raise UrlError(f"{path}: SQLite files are read where they are local; copy it here")
    if not os.path.exists(local):
        raise NotFoundError(f"{path}: no such index")
    try:
        name = quote(os.fsencode(os.path.abspath(local)))
        database = sqlite3.connect(f"file:{name}?mode=ro&immutable=1", uri=True)
        try:
            database.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
            for table in tables:
                kind = database.execute("SELECT type FROM sqlite_master WHERE name = ?", (table,)).fetchone()
                if kind is not None and kind[0] != "table":
                    wrong(path, f"{table} is no table, but a {kind[0]}")
            yield database
        finally:
            database.close()
    except (sqlite3.Error, OverflowError) as error:
        wrong(path, f"not an index: {error}")
