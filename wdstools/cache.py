"""CachedStore: a store whose reads go through blocks on a local disk (`wdstools.blocks`).

Blocks are keyed by URL, version and number. The version is the ETag, or size and time: a replaced object has other
blocks, and the old ones are the next to go.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import BinaryIO

from wdstools.blocks import Blocks
from wdstools.errors import UrlError
from wdstools.ranges import Buffer, Range
from wdstools.storebase import Stat, Store, as_file, beyond

BLOCK = 4 * 1024 * 1024  # bytes of an object in a block
WINDOW = 16  # blocks that are fetched and held at once

_SIZE = re.compile(r"(.+):([0-9.]+)\s*([kKMGT]?)(i?)B", re.DOTALL)
_UNITS = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4}


def parse(text: str) -> tuple[str, int]:
    """The folder and the bytes of "FOLDER:SIZE", such as "/nvme/cache:200GB" or "cache:1.5TiB". UrlError: it is not."""
    match = _SIZE.fullmatch(text)
    try:
        nbytes = int(float(match[2]) * (1024 if match[4] else 1000) ** _UNITS[match[3]]) if match else 0
    except ValueError:
        nbytes = 0
    if match is None or nbytes <= 0:
        raise UrlError(f"{text!r} is no cache: write it as FOLDER:SIZE, such as /nvme/cache:200GB")
    return match[1], nbytes


class CachedStore(Store):
    """A store whose reads go through blocks on disk. `cache`: as `parse` takes it."""

    def __init__(self, store: Store, cache: str) -> None:
        super().__init__()
        self.root = store.root
        self._store, self._blocks = store, Blocks(*parse(cache))

    def size(self, path: str) -> Stat:
        return self._store.size(path)

    def read_ranges(self, path: str, ranges: Iterable[Range]) -> list[Buffer]:
        wanted = list(ranges)
        if any(not 0 <= start <= end for start, end in wanted):
            raise ValueError("a range must start at 0 or later and not end before it starts")
        if not any(start < end for start, end in wanted):
            return [b""] * len(wanted)
        stat = self._known(path)
        if (end := max(end for start, end in wanted if start < end)) > stat.nbytes:
            raise beyond(self.url(path), end, stat.nbytes)
        if stat.etag is None and stat.mtime_ns is None:  # nothing tells one version from the next
            return self._store.read_ranges(path, wanted)
        pieces: list[list[Buffer]] = [[b""] * (-(-end // BLOCK) - start // BLOCK) for start, end in wanted]
        lacking: dict[int, list[tuple[int, int]]] = {}
        for i, (start, end) in enumerate(wanted):
            for j, number in enumerate(range(start // BLOCK, -(-end // BLOCK)) if start < end else ()):
                piece = self._piece(path, stat, number, start, end)
                if piece is None:
                    lacking.setdefault(number, []).append((i, j))
                else:
                    pieces[i][j] = piece
        numbers = sorted(lacking)
        for first in range(0, len(numbers), WINDOW):
            for number, block in self._fetch(path, stat, numbers[first : first + WINDOW]):
                view = memoryview(block)
                for i, j in lacking[number]:
                    start, end = wanted[i]
                    # copied: a view would keep the block, and with it all that was read together
                    pieces[i][j] = bytes(view[max(0, start - number * BLOCK) : end - number * BLOCK])
        return [found[0] if len(found) == 1 else b"".join(found) for found in pieces]

    def open(self, path: str) -> BinaryIO:
        return as_file(self._pieces(path), BLOCK // 16)

    def put(self, path: str, data: Buffer) -> None:
        self._store.put(path, data)
        self.forget(path)

    def list(self, prefix: str = "", recursive: bool = False) -> list[str]:
        return self._store.list(prefix, recursive)

    def forget(self, path: str) -> None:
        super().forget(path)
        self._store.forget(path)

    def _stat(self, path: str) -> Stat:
        return self._store._stat(path)

    def _known(self, path: str) -> Stat:
        """The version whose blocks are read: asked for once."""
        self._after_fork()
        if path not in self._pins:
            self._pins[path] = self._store.size(path)
        return self._pins[path]

    def _key(self, path: str, stat: Stat, number: int) -> str:
        version = stat.etag if stat.etag is not None else f"{stat.nbytes}-{stat.mtime_ns}"
        text = "\0".join((self.url(path), version, str(stat.nbytes), str(BLOCK), str(number)))
        return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=20).hexdigest()

    def _piece(self, path: str, stat: Stat, number: int, start: int, end: int) -> bytes | None:
        """What a block has of [start, end) of the object; None: the block is not here."""
        at = number * BLOCK
        nbytes = min(BLOCK, stat.nbytes - at)
        return self._blocks.read(self._key(path, stat, number), max(0, start - at), min(end - at, nbytes), nbytes)

    def _fetch(self, path: str, stat: Stat, numbers: Sequence[int]) -> Iterator[tuple[int, Buffer]]:
        """Blocks that were not here: from whoever fetched them meanwhile, else from the store, all at once."""
        keys = {number: self._key(path, stat, number) for number in numbers}
        found: list[tuple[int, Buffer]] = []
        with self._blocks.alone(list(keys.values())):
            lacking = []
            for number in numbers:
                data = self._piece(path, stat, number, 0, stat.nbytes)
                if data is None:
                    lacking.append(number)
                else:
                    found.append((number, data))
            ranges = [(number * BLOCK, min(number * BLOCK + BLOCK, stat.nbytes)) for number in lacking]
            for number, block in zip(lacking, self._store.read_ranges(path, ranges), strict=True):
                self._blocks.write(keys[number], block)
                found.append((number, block))
        yield from found

    def _pieces(self, path: str) -> Generator[Buffer, None, None]:
        """A whole object, a few blocks at a time."""
        nbytes = self._known(path).nbytes
        step = BLOCK * 4
        for start in range(0, nbytes, step):
            yield self.read_ranges(path, [(start, min(start + step, nbytes))])[0]
