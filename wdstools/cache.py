"""CachedStore: a store whose reads go through blocks on a local disk (`wdstools.blocks`).

Blocks are keyed by URL, version and number. The version is the ETag, or size and time: a replaced object has other
blocks, and the old ones are the next to go.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, TypeAlias, cast

from wdstools.blocks import Blocks
from wdstools.errors import StoreError, UrlError
from wdstools.ranges import Buffer, Range
from wdstools.storebase import Stat, Store, as_file, beyond

BLOCK = 4 * 1024 * 1024  # bytes of an object in a block
WINDOW = 32  # blocks that are fetched and held at once

Numbers: TypeAlias = list[int]
Found: TypeAlias = list[Buffer] | StoreError

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


@dataclass(eq=False)
class _Job:
    """One object of a batch. `pieces`: of each range, what each of its blocks gives; `lacking`: for the blocks that are
    not here, the places that wait for them; `uncached`: it has no version that blocks could be kept under."""

    path: str
    ranges: list[Range]
    stat: Stat | None = None
    error: StoreError | None = None
    uncached: bool = False
    pieces: list[list[Buffer]] = field(default_factory=list)
    lacking: dict[int, list[tuple[int, int]]] = field(default_factory=dict)

    def span(self, number: int) -> Range:
        """The bytes of a block in the object."""
        return number * BLOCK, min(number * BLOCK + BLOCK, cast(Stat, self.stat).nbytes)

    def put(self, number: int, block: Buffer) -> None:
        """Give a block to the ranges that wait for it: copied, as a view would keep the block, and with it all that was
        read together."""
        view = memoryview(block)
        for i, j in self.lacking[number]:
            start, end = self.ranges[i]
            self.pieces[i][j] = bytes(view[max(0, start - number * BLOCK) : end - number * BLOCK])

    def joined(self) -> list[Buffer]:
        if not self.pieces:  # all of its ranges are empty
            return [b""] * len(self.ranges)
        return [found[0] if len(found) == 1 else b"".join(found) for found in self.pieces]


class CachedStore(Store):
    """A store whose reads go through blocks on disk. `cache`: as `parse` takes it."""

    def __init__(self, store: Store, cache: str) -> None:
        super().__init__()
        self.root = store.root
        self._store, self._blocks = store, Blocks(*parse(cache))

    def size(self, path: str) -> Stat:
        return self._store.size(path)

    def read_ranges(self, path: str, ranges: Iterable[Range]) -> list[Buffer]:
        (found,) = self.read_many([(path, ranges)])
        if isinstance(found, StoreError):
            raise found
        return found

    def read_many(self, wanted: Iterable[tuple[str, Iterable[Range]]]) -> Iterator[list[Buffer] | StoreError]:
        jobs = [_Job(path, list(ranges)) for path, ranges in wanted]
        if any(not 0 <= start <= end for job in jobs for start, end in job.ranges):
            raise ValueError("a range must start at 0 or later and not end before it starts")
        return self._answers(jobs)

    def sizes(self, paths: Iterable[str]) -> Iterator[Stat | StoreError]:
        return self._store.sizes(paths)

    def pinned(self, path: str) -> Stat | None:
        return super().pinned(path) or self._store.pinned(path)

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
        stat = self._pins.get(path)
        if stat is None:
            stat = self._store.size(path)
            self._pin(path, stat)
        return stat

    def _key(self, path: str, stat: Stat, number: int) -> str:
        version = stat.etag if stat.etag is not None else f"{stat.nbytes}-{stat.mtime_ns}"
        text = "\0".join((self.url(path), version, str(stat.nbytes), str(BLOCK), str(number)))
        return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=20).hexdigest()

    def _piece(self, path: str, stat: Stat, number: int, start: int, end: int) -> bytes | None:
        """What a block has of [start, end) of the object; None: the block is not here."""
        at = number * BLOCK
        nbytes = min(BLOCK, stat.nbytes - at)
        return self._blocks.read(self._key(path, stat, number), max(0, start - at), min(end - at, nbytes), nbytes)

    def _answers(self, jobs: Sequence[_Job]) -> Generator[Found, None, None]:
        """The ranges of each object: blocks that are here, then the others, WINDOW at a time."""
        self._know([job for job in jobs if any(start < end for start, end in job.ranges)])
        for job in jobs:
            if job.stat is not None:
                self._take(job, job.stat)
        missing = [(job, number) for job in jobs for number in sorted(job.lacking)]
        for first in range(0, len(missing), WINDOW):
            self._fetch(missing[first : first + WINDOW])
        for job in jobs:
            if job.error is not None:
                yield job.error
            elif job.uncached:
                yield from self._store.read_many([(job.path, job.ranges)])
            else:
                yield job.joined()

    def _know(self, jobs: Sequence[_Job]) -> None:
        """Find the versions whose blocks are read; each is asked for once."""
        self._after_fork()
        unknown = [job for job in jobs if job.path not in self._pins]
        for job, found in zip(unknown, self._store.sizes([job.path for job in unknown]), strict=True):
            if isinstance(found, StoreError):
                job.error = found
            else:
                self._pin(job.path, found)
        for job in jobs:
            if job.error is None:
                job.stat = self._known(job.path)

    def _take(self, job: _Job, stat: Stat) -> None:
        """Read what is here of an object, and note which blocks are lacking."""
        if (end := max(end for start, end in job.ranges if start < end)) > stat.nbytes:
            job.error = beyond(self.url(job.path), end, stat.nbytes)
        elif stat.etag is None and stat.mtime_ns is None:  # nothing tells one version from the next
            job.uncached = True
        else:
            for i, (start, end) in enumerate(job.ranges):
                job.pieces.append([b""] * (-(-end // BLOCK) - start // BLOCK))
                for j, number in enumerate(range(start // BLOCK, -(-end // BLOCK)) if start < end else ()):
                    piece = self._piece(job.path, stat, number, start, end)
                    if piece is None:
                        job.lacking.setdefault(number, []).append((i, j))
                    else:
                        job.pieces[i][j] = piece

    def _fetch(self, missing: Sequence[tuple[_Job, int]]) -> None:
        """Blocks that were not here: from whoever fetched them meanwhile, else from the store, all at once."""
        keys = [self._key(job.path, cast(Stat, job.stat), number) for job, number in missing]
        with self._blocks.alone(keys):
            left: defaultdict[_Job, Numbers] = defaultdict(Numbers)  # that nobody else has fetched
            for job, number in missing:
                stat = cast(Stat, job.stat)
                data = self._piece(job.path, stat, number, 0, stat.nbytes)
                if data is not None:
                    job.put(number, data)
                elif job.error is None:
                    left[job].append(number)
            wanted = [(job.path, [job.span(number) for number in numbers]) for job, numbers in left.items()]
            for (job, numbers), found in zip(left.items(), self._store.read_many(wanted), strict=True):
                if isinstance(found, StoreError):
                    job.error = found
                    continue
                for number, block in zip(numbers, found, strict=True):
                    self._blocks.write(self._key(job.path, cast(Stat, job.stat), number), block)
                    job.put(number, block)

    def _pieces(self, path: str) -> Generator[Buffer, None, None]:
        """A whole object, a few blocks at a time."""
        nbytes = self._known(path).nbytes
        step = BLOCK * 4
        for start in range(0, nbytes, step):
            yield self.read_ranges(path, [(start, min(start + step, nbytes))])[0]
