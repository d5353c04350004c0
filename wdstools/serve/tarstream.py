"""Samples of a set as the bytes of a tar, as they lie in their shards: large ones are sent by the kernel, small ones
are read together, and all are compared with the index before they are sent.

A sample that comes again gets the key KEY@2 (@3, ...): readers would take the two for one. In a batch wherever it
comes again, in a stream, which may have no end, where it follows itself.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TypeAlias

from wdstools import urls
from wdstools.access import Access
from wdstools.errors import ShardError, StoreError
from wdstools.ranges import Buffer
from wdstools.samples import Sample
from wdstools.serve.blobs import LocalBlob
from wdstools.serve.samplesets import SampleSet
from wdstools.serve.sending import FileSpan, Piece
from wdstools.tar import END_MARKER, MTIME, format_header, padded

GROUP = 4 << 20  # bytes of samples that are made ready while others are sent
MOST = 1024  # samples of them
LARGE = 48 << 10  # bytes from which the kernel sends a sample

Place: TypeAlias = tuple[str, int, int, int]  # key, shard, start, end
Wait: TypeAlias = Callable[..., "asyncio.Future[list[Piece]]"]


class Packer:
    """The samples of rows as pieces of a tar. `fields`: of each sample only these; `distinct`: no two get one key."""

    def __init__(
        self, samples: SampleSet, rows: Iterator[int], fields: frozenset[str] | None = None, distinct: bool = False
    ) -> None:
        self._samples, self._rows = samples, rows
        self._access = None if fields is None else Access(samples.index, fields, False, samples.stores)
        self._times: dict[str, int] = {}  # how often keys came
        self._distinct = distinct
        self._ahead = next(rows, None)
        self.done = False
        self._group = GROUP // 4  # the first bytes come soon
        self._blobs: dict[int, tuple[LocalBlob | None, bool]] = {}

    def next(self) -> list[Piece]:
        """The next samples; `done` tells whether they were the last. Raises WdsError, OSError."""
        locate, places, chosen = self._samples.index.locate, [], []
        nbytes = 0
        while self._ahead is not None:
            row = self._ahead
            place = locate(row)
            places.append(place)
            chosen.append(row)
            nbytes += place[3] - place[2]
            self._ahead = next(self._rows, None)
            if nbytes >= self._group or len(places) == MOST:
                break
        self._group, self._blobs = GROUP, {}
        self.done = self._ahead is None
        if self._access is not None:
            return [b"".join(map(self._made, self._access.read_many(chosen)))]
        pieces: list[Piece] = []
        begin = 0
        for i, place in enumerate(places):
            times = self._count(place[0])
            if times > 1:
                pieces += self._as_they_lie(places[begin:i])
                begin = i + 1
                pieces.append(members(f"{place[0]}@{times}", self._samples.access.read(chosen[i])))
        return pieces + self._as_they_lie(places[begin:])

    def _count(self, key: str) -> int:
        """The how-manieth of its key a sample is."""
        times = self._times.get(key, 0) + 1
        if not self._distinct and times == 1:
            self._times.clear()
        self._times[key] = times
        return times

    def _made(self, sample: Sample) -> bytes:
        """A sample in members of our own."""
        key = sample["__key__"]
        times = self._count(key)
        return members(f"{key}@{times}" if times > 1 else key, sample)

    def _as_they_lie(self, places: list[Place]) -> list[Piece]:
        pieces: list[Piece] = []
        small: list[Place] = []
        far: list[Place] = []
        blobs = self._blobs
        for place in places:
            key, shard, start, end = place
            blob, trusted = blobs.get(shard) or self._blob(shard)
            if blob is None:
                pieces += self._read(small)
                small = []
                far.append(place)
                continue
            if far:
                pieces += self._fetch(far)
                far = []
            if end - start < LARGE or not (trusted and _begins(blob.handle.fd, key, start)):
                small.append(place)
                continue
            if small:
                pieces += self._read(small)
                small = []
            before = pieces[-1] if pieces else None
            if isinstance(before, FileSpan) and before.end == start and before.handle is blob.handle:
                pieces[-1] = FileSpan(blob.handle, before.start, end)
            else:
                pieces.append(FileSpan(blob.handle, start, end))
            _bring(blob.handle.fd, start, end)
        return pieces + self._read(small) + self._fetch(far)

    def _blob(self, shard: int) -> tuple[LocalBlob | None, bool]:
        blob = self._samples.blob(shard)
        found = self._blobs[shard] = blob, blob is not None and self._samples.is_as_indexed(shard, blob)
        return found

    def _read(self, places: list[Place]) -> list[Piece]:
        """Local samples, in memory, neighbours in one read."""
        if not places:
            return []
        buffer = memoryview(bytearray(sum(end - start for _, _, start, end in places)))
        at = i = 0
        n = len(places)
        while i < n:
            _, shard, start, end = places[i]
            stop = i + 1
            while stop < n and places[stop][2] == end and places[stop][1] == shard:
                end = places[stop][3]
                stop += 1
            blob = self._blobs[shard][0]
            got = os.preadv(blob.handle.fd, [buffer[at : at + end - start]], start) if blob is not None else 0
            if got != end - start:
                name = urls.basename(self._samples.index.shards.url[shard])
                raise StoreError(f"{name}: was cut short while it was read")
            at += got
            i = stop
        self._check(places, buffer)
        return [buffer]

    def _check(self, places: list[Place], buffer: memoryview) -> None:
        """Compare samples that follow each other in memory with the index. Raises StaleIndexError."""
        parse, names = self._samples.checker.parse, self._samples.index.shards.url
        at = 0
        for key, shard, start, end in places:
            after = at + end - start
            try:
                parse(buffer[at:after], start, key, names[shard], None)
            except ShardError as error:
                raise self._samples.stale(key, error) from error
            at = after

    def _fetch(self, places: list[Place]) -> list[Piece]:
        """Remote samples, all at once."""
        if not places:
            return []
        found = self._samples.fetch([(shard, (start, end)) for _, shard, start, end in places])
        for data, (key, shard, start, _) in zip(found, places, strict=True):
            self._samples.check(data, key, shard, start)
        return list(found)


def _begins(fd: int, key: str, start: int) -> bool:
    """Whether a sample begins with the header of a plain member of its key. Otherwise that takes a closer look."""
    block = os.pread(fd, 160, start)
    head = key.encode("utf-8", "surrogateescape") + b"."
    at = len(head)
    return block.startswith(head) and at < 100 and block[156:157] in (b"0", b"\0") and b"/" not in block[at:100]


def _bring(fd: int, start: int, end: int) -> None:
    """Have bytes read into the page cache, where they are not there, as their last tells."""
    try:
        os.preadv(fd, [_probe], end - 1, os.RWF_NOWAIT)
    except OSError:  # not there, or a file system that cannot tell
        os.posix_fadvise(fd, start, end - start, os.POSIX_FADV_WILLNEED)


_probe = bytearray(1)


def is_header(block: bytes | memoryview) -> bool:
    """Whether a block of 512 bytes has the checksum of a tar header."""
    text = bytes(block[148:156]).strip(b" \0")
    try:
        return int(text, 8) == sum(block[:148]) + sum(block[156:]) + 8 * 32
    except ValueError:
        return False


def members(key: str, sample: Sample) -> bytes:
    """The members of a sample."""
    pieces: list[Buffer] = []
    for field, payload in sample.items():
        if not field.startswith("__"):
            pieces += member(f"{key}.{field}", payload)
    return b"".join(pieces)


def member(name: str, payload: Buffer) -> list[Buffer]:
    return [format_header(name, len(payload), MTIME), payload, bytes(padded(len(payload)) - len(payload))]


END = bytes(END_MARKER)


async def stream(
    wait: Wait, packer: Packer, last: bytes = END, first: list[Piece] | None = None
) -> AsyncIterator[Buffer | list[Piece]]:
    """The tar of a packer and its end, each part made ready by `wait`, in a thread, while the one before is sent.
    `first`: what the packer gave already."""
    pieces, ahead = first, None
    try:
        if pieces is None:
            ahead = wait(packer.next)
            pieces = await ahead
        while not packer.done:
            ahead = wait(packer.next)
            yield pieces
            pieces = await ahead
    finally:
        if ahead is not None and not ahead.cancel():
            ahead.add_done_callback(_forget)
    yield [*pieces, last]


def _forget(done: asyncio.Future[list[Piece]]) -> None:
    if not done.cancelled():
        done.exception()
