"""Entries: the samples of a source, known by name and size. There may be millions, so most of them lie on disk."""

from __future__ import annotations

import heapq
import os
import pickle
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

HELD = 100_000  # entries in memory: 50 MB
RUN = 1_000_000  # entries that are sorted at once, by keys in memory: 100 MB
_FLUSH = 1 << 20  # bytes


class Digest(Protocol):
    """A hash of hashlib."""

    def update(self, data: bytes, /) -> object: ...


class Entry(NamedTuple):
    """A sample to be: its key, the value that `--by` goes by, and its fields one after the other in one tuple: (name,
    where, nbytes, name, where, nbytes, ...). `where` is a path relative to the root of the source, the bytes
    themselves, or the row of a sample in an index."""

    key: str
    group: Any
    parts: tuple[Any, ...]


def sizes(entry: Entry) -> dict[str, int]:
    """Return the bytes of every field."""
    parts = entry.parts
    return dict(zip(parts[::3], parts[2::3], strict=True))


class Entries:
    """A list of entries that grows at its end. Past the first HELD they go into a temporary file without a name, which
    several threads may read; a place in it takes 8 bytes of memory."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._held: list[Entry] = []
        self._keep = HELD
        self._ends = array("Q", [0])
        self._tail = bytearray()  # of the file: what is not yet in it
        self._flushed = 0
        self._fd = -1
        self.extend(entries)

    def append(self, entry: Entry) -> None:
        """Add one at the end."""
        if len(self._held) < self._keep:
            self._held.append(entry)
            return
        self._tail += pickle.dumps(tuple(entry), 5)
        self._ends.append(self._flushed + len(self._tail))
        if len(self._tail) >= _FLUSH:
            self._flush()

    def extend(self, entries: Iterable[Entry]) -> None:
        """Add many."""
        for entry in entries:
            self.append(entry)

    def _flush(self) -> None:
        if self._fd < 0:
            with tempfile.TemporaryFile() as file:
                self._fd = os.dup(file.fileno())
        written = os.pwrite(self._fd, self._tail, self._flushed)
        while written < len(self._tail):
            written += os.pwrite(self._fd, self._tail[written:], self._flushed + written)
        self._flushed += written
        self._tail.clear()

    def __len__(self) -> int:
        return len(self._held) + len(self._ends) - 1

    def __getitem__(self, i: int) -> Entry:
        if i < len(self._held):
            return self._held[i]
        i -= len(self._held)
        start, end = self._ends[i], self._ends[i + 1]
        if start >= self._flushed:
            record = bytes(self._tail[start - self._flushed : end - self._flushed])
        else:
            record = os.pread(self._fd, end - start, start)
        return Entry(*pickle.loads(record))

    def __iter__(self) -> Iterator[Entry]:
        yield from self._held
        for i in range(len(self._held), len(self)):
            yield self[i]

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def feed(self, digest: Digest) -> int:
        """Put all that they say into a digest, and return the bytes of all fields."""
        nbytes = 0
        for key, group, parts in self:
            digest.update(repr((key, group, parts)).encode("utf-8", "surrogateescape"))
            nbytes += sum(parts[2::3])
        return nbytes

    def has_field(self, name: str) -> bool:
        """Say whether a sample has a field of this name."""
        return any(name in entry.parts[::3] for entry in self)

    def sorted(self) -> Entries:
        """Return them sorted by key; what has one key stays in its order. Itself where it is sorted already."""
        previous = ""
        for entry in self:
            if entry.key < previous:
                break
            previous = entry.key
        else:
            return self
        if len(self) == len(self._held):
            self._held.sort(key=lambda entry: entry.key)
            return self
        runs = [self._run(start, min(start + RUN, len(self))) for start in range(0, len(self), RUN)]
        return runs[0] if len(runs) == 1 else Entries(heapq.merge(*runs, key=lambda entry: entry.key))

    def _run(self, start: int, stop: int) -> Entries:
        """Some of them, sorted, on disk."""
        keys = [self[i].key for i in range(start, stop)]
        run = Entries()
        run._keep = 0
        run.extend(self[start + i] for i in sorted(range(len(keys)), key=keys.__getitem__))
        return run
