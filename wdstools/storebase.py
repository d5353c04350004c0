"""Store: the contract of everything that shards can lie in. `wdstools.store.open_store` finds the one for a URL.

A path names an object in its store; the URL that a user sees is `store.url(path)`. All stores are safe to use from
several threads and after a fork, and pickle (without the pins, see `Store`).
"""

from __future__ import annotations

import abc
import io
import os
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from wdstools import failures
from wdstools.errors import ChangedError, PastEndError, StoreError
from wdstools.ranges import Buffer, Range

PINS = 1 << 16  # objects whose version a store remembers


@dataclass(frozen=True, slots=True)
class Stat:
    """What a store tells of an object. `nbytes`: its size; `etag`: what changes with its content, opaque, or None;
    `mtime_ns`: when it was written, nanoseconds since 1970, or None."""

    nbytes: int
    etag: str | None = None
    mtime_ns: int | None = None

    def same(self, other: Stat) -> bool:
        """Whether both can be of the same object: same size, and same ETag, or time where there is no ETag."""
        if self.nbytes != other.nbytes:
            return False
        if self.etag is not None and other.etag is not None:
            return self.etag == other.etag
        return None in (self.mtime_ns, other.mtime_ns) or self.mtime_ns == other.mtime_ns


@dataclass(frozen=True, slots=True)
class Answer:
    """Bytes, and what the server told with them of the object that they are from; None: nothing."""

    data: Buffer
    stat: Stat | None


class Forks:
    """How many forks lie between this process and the first one. Clients of another count are not to be used."""

    count = 0

    @classmethod
    def note(cls) -> None:
        cls.count += 1


os.register_at_fork(after_in_child=Forks.note)


class Store(abc.ABC):
    """A place with objects in it, each a run of bytes under a path.

    The first answer about an object pins it: whatever is read later has to come from the same one, or the read is a
    ChangedError. `forget` takes the pin away; so does reading tens of thousands of other objects.

    All methods raise NotFoundError, AccessError, UnreachableError, ChangedError, or a plain StoreError; nothing else
    that depends on the world outside. UrlError: a path that can name nothing in this store.
    """

    root = ""  # what stands before the path in a URL: "s3://bucket/", "http://host"; "" for local files

    def __init__(self) -> None:
        self._pins: dict[str, Stat] = {}
        self._forks = Forks.count

    def url(self, path: str) -> str:
        """The URL of a path, for messages: without passwords and signatures."""
        return failures.hide(self.root + path)

    def size(self, path: str) -> Stat:
        """Ask for the size and version of an object."""
        stat = self._stat(path)
        self._pin(path, stat)
        return stat

    def read(self, path: str, start: int, end: int) -> bytes:
        """Read bytes [start, end). PastEndError: the object ends before `end`. ValueError: no range."""
        return bytes(self.read_ranges(path, [(start, end)])[0])

    @abc.abstractmethod
    def read_ranges(self, path: str, ranges: Iterable[Range]) -> list[Buffer]:
        """Read many ranges of one object; they may overlap and come in any order, which is the order of the result.

        All of them or an error, as `read`. The result may hold memoryviews, each of which keeps the at most 8 MiB
        alive that were read with it: copy what you keep. An empty range is b"" and asks nobody.
        """

    def read_many(self, wanted: Iterable[tuple[str, Iterable[Range]]]) -> Iterator[list[Buffer] | StoreError]:
        """Read ranges of many objects, given by path, at once where the store can.

        Yields for each, in the order given, what read_ranges would return, or the StoreError that it would raise: an
        object that is not there takes nothing from the others. Closing the iterator gives up what is under way.
        """
        for path, ranges in wanted:
            try:
                found: list[Buffer] | StoreError = self.read_ranges(path, ranges)
            except StoreError as error:
                found = error
            yield found

    def sizes(self, paths: Iterable[str]) -> Iterator[Stat | StoreError]:
        """As size, for many objects; yields what read_many would of errors."""
        for path in paths:
            try:
                found: Stat | StoreError = self.size(path)
            except StoreError as error:
                found = error
            yield found

    def pinned(self, path: str) -> Stat | None:
        """The version of an object that reads have to come from; None: nothing was asked about it yet."""
        self._after_fork()
        return self._pins.get(path)

    @abc.abstractmethod
    def open(self, path: str) -> BinaryIO:
        """Open an object for reading from its start to its end: `read` and `readinto`, no seeking.

        What comes is the whole object, or an error: a body that breaks off is continued where it broke off.
        """

    @abc.abstractmethod
    def put(self, path: str, data: Buffer) -> None:
        """Write an object, whole or not at all, over what was there."""

    @abc.abstractmethod
    def list(self, prefix: str = "", recursive: bool = False) -> list[str]:
        """Return, sorted, the paths that start with `prefix`; without `recursive`, only those with no further slash.

        "shards/" lists a folder, "shards/train-" part of it. Nothing there: an empty list.
        """

    def forget(self, path: str) -> None:
        """Take whatever is there at the next read for the object itself."""
        self._pins.pop(path, None)

    @abc.abstractmethod
    def _stat(self, path: str) -> Stat: ...

    def _pin(self, path: str, stat: Stat) -> None:
        """Compare with what was seen before. Raises ChangedError."""
        self._after_fork()
        pinned = self._pins.setdefault(path, stat)
        if len(self._pins) > PINS:
            for oldest in list(self._pins)[: PINS // 8]:
                self._pins.pop(oldest, None)
        if pinned is not stat and not pinned.same(stat):
            raise ChangedError(
                f"{self.url(path)}: was replaced while it was being read: "
                f"{_describe(pinned)} before, {_describe(stat)} now; open it anew"
            )

    def _after_fork(self) -> bool:
        """In a child, drop the pins, because another client may spell ETags in another way; true: it was done now."""
        if self._forks == Forks.count:
            return False
        self._pins, self._forks = {}, Forks.count
        return True

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_pins": {}, "_forks": 0}


def _describe(stat: Stat) -> str:
    return f"{stat.nbytes} bytes" + (f", ETag {stat.etag}" if stat.etag else "")


def beyond(url: str, end: int, nbytes: int) -> PastEndError:
    """The error for a range that ends past the end of its object."""
    return PastEndError(f"{url}: has {nbytes} bytes, and a range up to byte {end} was asked for")


def etag_of(value: Any) -> str | None:
    """An ETag without the quotes, which some clients keep and some do not; None for none."""
    return str(value).strip('"') or None if value else None


def as_file(pieces: Generator[Buffer, None, None], nbytes: int) -> BinaryIO:
    """Pieces as a binary file with a buffer of `nbytes`. The first is taken at once: what is wrong shows now."""
    return cast(BinaryIO, io.BufferedReader(_Pieces(pieces), nbytes))


def pieces_of(file: Any) -> Generator[Buffer, None, None]:
    """The bytes of a file that nobody has read from, in pieces: those that it was made of, where as_file made it."""
    raw = getattr(file, "raw", None)
    if isinstance(raw, _Pieces):
        yield from raw.rest()
    else:
        while data := file.read(1 << 20):
            yield data


class _Pieces(io.RawIOBase):
    def __init__(self, pieces: Generator[Buffer, None, None]) -> None:
        self._pieces = pieces  # first: close() is called on what was not finished, too
        self._piece = memoryview(next(pieces, b""))

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._piece:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._piece = memoryview(piece)
        n = min(len(buffer), len(self._piece))
        buffer[:n] = self._piece[:n]
        self._piece = self._piece[n:]
        return n

    def rest(self) -> Generator[Buffer, None, None]:
        """What was not read yet."""
        piece, self._piece = self._piece, memoryview(b"")
        if piece:
            yield piece
        yield from self._pieces

    def close(self) -> None:
        self._pieces.close()
        super().close()


class Counted:
    """Pieces, and what became of them: their bytes, whether all were taken, and the exception that they ended with."""

    def __init__(self, pieces: Iterator[Buffer]) -> None:
        self._pieces = pieces
        self.nbytes, self.ended = 0, False
        self.error: BaseException | None = None

    def __iter__(self) -> Counted:
        return self

    def __next__(self) -> Buffer:
        try:
            piece = next(self._pieces)
        except StopIteration:
            self.ended = True
            raise
        except BaseException as error:
            self.error = error
            raise
        self.nbytes += len(piece)
        return piece
