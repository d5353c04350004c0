"""A shard that goes into a bucket while it is written.

The C writer fills a file in memory; a thread sends what is whole of it, in parts, and gives the memory of what was sent
back. So a shard takes some tens of megabytes of memory on its way, whatever its size, and no disk.
"""

from __future__ import annotations

import ctypes
import os
import queue
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeAlias

from wdstools import tar, writer
from wdstools.convert import place
from wdstools.openshard import OpenShard

if TYPE_CHECKING:
    from wdstools.columns import Lift
    from wdstools.index import Index

_PAGE = 4096
_AHEAD = 4  # parts that are written and not yet taken to be sent
_PUNCH = 3  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
_PIECE = 4 << 20


class UploadedShard(OpenShard):
    """As writer.ShardFile with `part` and without `mtime`, for a shard with a URL. What lies under its name must have
    been removed before. The part is written before the shard appears."""

    def __init__(self, url: str, *, lift: Lift = (), checksum: int = 0) -> None:
        super().__init__(url, os.memfd_create("shard", os.MFD_CLOEXEC), list(lift), checksum=checksum)
        self._lifted = {name.partition(":")[0] for name in self._lift}
        self._kept: list[tuple[int, int]] = []  # byte ranges that the index wants, when all is sent
        self._store, self._name = place.bucket(url)
        self._ready: queue.Queue[int] = queue.Queue()  # bytes that may be sent: ever more; -1: there is no more
        self._given = 0
        self._sent = 0
        self._moved = threading.Condition()
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def write(self, key: str, fields: dict[str, writer.Value]) -> int:
        """Append a sample, fields sorted by name, and return its bytes in the shard."""
        start = self._core.nbytes
        nbytes = self._core.write(key, fields)
        if self._lifted:
            self._keep(key, fields, start)
        self._give_whole()
        return nbytes

    def copy(self, key: str, fd: int, start: int, end: int, url: str) -> int:
        """Append bytes [start, end) of another shard, as ShardFile does."""
        at = self._core.nbytes
        nbytes = self._core.copy(key, fd, start, end, url)
        if self._lifted:
            self._kept.append((at, self._core.nbytes))
        self._give_whole()
        return nbytes

    def _give_whole(self) -> None:
        whole = min(self._core.nbytes, os.fstat(self._fd).st_size)  # in the file, and of finished samples
        if whole - self._given >= place.PART:
            self._give(whole)

    def _keep(self, key: str, fields: dict[str, writer.Value], at: int) -> None:
        for name in sorted(fields):
            value = fields[name]
            size = value[1] if isinstance(value, tuple) else memoryview(value).nbytes
            if isinstance(value, tuple) and size < 0:
                raise ValueError("a file without a size")
            total = tar.member_nbytes(f"{key}.{name}", size)
            if name.lower() in self._lifted:
                end = at + total
                self._kept.append((end - (size + 511 & -512), end))
            at += total

    def _give(self, whole: int) -> None:
        """Let bytes be sent; waits where much is not sent yet."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._send, name="wds-upload", daemon=True)
            self._thread.start()
        self._given = whole
        self._ready.put(whole)
        with self._moved:
            self._moved.wait_for(lambda: self._error is not None or self._given - self._sent <= _AHEAD * place.PART)
        if self._error is not None:
            raise self._error

    def _send(self) -> None:
        try:
            self._store.upload(self._name, self._pieces(), place.PART)
        except BaseException as error:  # noqa: BLE001 - raised in the thread that writes
            self._error = error
        with self._moved:
            self._moved.notify_all()

    def _pieces(self) -> Iterator[bytes]:
        at, punched = 0, 0
        while (end := self._ready.get()) >= 0:
            while at < end:
                piece = os.pread(self._fd, min(end - at, _PIECE), at)
                at += len(piece)
                yield piece
            punched = self._punch(punched, at)
            with self._moved:
                self._sent = at
                self._moved.notify_all()
        if end == _ABORT:
            raise _Aborted

    def _punch(self, start: int, end: int) -> int:
        """Give the memory of sent bytes back, but what is to be lifted; returns from where to go on."""
        kept = [span for span in list(self._kept) if span[1] > start and span[0] < end]
        for first, last in [*kept, (end, end)]:
            a, b = (start + _PAGE - 1) // _PAGE * _PAGE, first // _PAGE * _PAGE
            if b > a and _fallocate(self._fd, _PUNCH, a, b - a):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "memory file")
            start = max(start, last)
        return end

    def commit(self) -> Index:
        """Send the rest, save the part, let the shard appear, and return its index."""
        columns = self._core.finish()
        self._give(columns["nbytes"])  # under way while the index is made; it appears only after the part
        index = self._index(columns, os.path.join("/", os.path.basename(self.path)), mtime=False)
        place.write(writer.part_name(self.path), index.dumps("/").to_pybytes())
        self._ready.put(_DONE)
        self._join()
        if self._error is not None:
            raise self._error
        return index

    def abort(self) -> None:
        """Take back what was sent and not committed."""
        self._core.stop()
        if self._thread is not None:
            self._ready.put(_ABORT)
            self._join()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None


Shard: TypeAlias = "writer.ShardFile | UploadedShard"
"""A shard on its way, wherever it goes."""

_DONE, _ABORT = -1, -2


class _Aborted(Exception):
    """The shard is not to be."""


_libc = ctypes.CDLL(None, use_errno=True)


def _fallocate(fd: int, mode: int, start: int, nbytes: int) -> int:
    return int(_libc.fallocate64(fd, mode, ctypes.c_int64(start), ctypes.c_int64(nbytes)))
