"""Bytes from a URL to a descriptor, as they are: not decompressed, and not copied where the kernel can move them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from wdstools import urls
from wdstools.errors import ChangedError, PastEndError, StoreError
from wdstools.ranges import Buffer
from wdstools.storage import PIPE_BYTES, Source, open_source
from wdstools.store import Store, Stores
from wdstools.storebase import pieces_of

STEP = 1 << 20  # bytes that are moved at a time
PART = 8 << 20  # bytes of one request of a remote range
AT_ONCE = 4  # of them are under way while as many are written

_CANNOT = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)  # of splice and sendfile: not with this output


class Outlet:
    """A descriptor that bytes are written to. `nbytes`: written so far; `told`: called with every number written."""

    def __init__(self, fd: int, told: Callable[[int], object] = lambda nbytes: None) -> None:
        self.fd, self.nbytes, self._told = fd, 0, told
        self._fifo = stat.S_ISFIFO(os.fstat(fd).st_mode)
        if self._fifo:
            with contextlib.suppress(OSError):  # a wider pipe is only faster
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def write(self, data: Buffer) -> None:
        """Write all of it."""
        view = memoryview(data)
        while view:
            try:
                n = os.write(self.fd, view)
            except BlockingIOError:  # somebody made the pipe non-blocking
                select.select([], [self.fd], [])
                continue
            self._count(n)
            view = view[n:]

    def move(self, fd: int, nbytes: int, offset: int | None = None) -> int | None:
        """Let the kernel move at most `nbytes` from a file at `offset`, or from a pipe. Returns how many, 0 at the
        end; None: it cannot."""
        while True:
            try:
                if self._fifo or offset is None:
                    n = os.splice(fd, self.fd, nbytes, offset_src=offset)
                else:
                    n = os.sendfile(self.fd, fd, offset, nbytes)
            except BlockingIOError:
                select.select([], [self.fd], [])
                continue
            except OSError as error:
                if error.errno in _CANNOT:
                    return None
                raise
            self._count(n)
            return n

    def _count(self, n: int) -> None:
        self.nbytes += n
        self._told(n)


class Tee:
    """readinto over a source, with a copy to an outlet of all that is read: what a walker of the bytes reads from."""

    def __init__(self, source: Source, outlet: Outlet, idle: float | None = None) -> None:
        self._raw, self._outlet = reader(source, idle), outlet

    def readinto(self, buffer: memoryview) -> int:
        n = int(self._raw.readinto(buffer) or 0)
        self._outlet.write(buffer[:n])
        return n


def send(url: str, outlet: Outlet, stores: Stores, idle: float | None = None) -> None:
    """Pass all bytes of a URL on, to the last or with an error. `idle`: seconds that a pipe: or stdin may be silent; a
    remote store has its own (Retries). Raises what open_source does, and ChangedError for a file that changed
    meanwhile; OSError where the outlet cannot be written to."""
    with open_source(url, stores, raw=True) as source:
        if _is_file(source):
            _send_file(source, outlet, 0, None)
        else:
            for data in _pieces(source, outlet, idle):
                outlet.write(data)


def send_range(
    url: str, start: int, end: int | None, outlet: Outlet, stores: Stores, idle: float | None = None
) -> None:
    """Pass bytes [start, end) of a URL on; None: to its end. Raises as send, and PastEndError where it ends earlier."""
    if url != "-" and urls.scheme(url) not in ("pipe", "file"):
        _send_parts(*stores.of(url), start, end, outlet)
        return
    with open_source(url, stores, raw=True) as source:
        if _is_file(source):
            _send_file(source, outlet, start, end)
        else:
            _send_part(source, start, end, outlet, idle)


def _is_file(source: Source) -> bool:
    return isinstance(source.handle, int) and stat.S_ISREG(os.fstat(source.handle).st_mode)


def _send_file(source: Source, outlet: Outlet, start: int, end: int | None) -> None:
    fd = source.handle
    if not isinstance(fd, int):
        raise TypeError("a file has a descriptor")
    before = os.fstat(fd)
    nbytes = before.st_size
    if end is None:
        end = nbytes
    if not start <= end <= nbytes:
        raise PastEndError(f"{source.url}: has {nbytes} bytes, and a range from {start} to {end} was asked for")
    with contextlib.suppress(OSError):
        os.posix_fadvise(fd, start, end - start, os.POSIX_FADV_SEQUENTIAL)
    at, kernel = start, True
    while at < end:
        n = outlet.move(fd, min(STEP, end - at), at) if kernel else None
        if n is None:
            kernel = False
            data = os.pread(fd, min(STEP, end - at), at)
            outlet.write(data)
            n = len(data)
        if not n:
            raise ChangedError(f"{source.url}: was cut short while it was being read, at byte {at} of {nbytes}")
        at += n
    after = os.fstat(fd)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise ChangedError(f"{source.url}: was changed while it was being read")


def _pieces(source: Source, outlet: Outlet | None, idle: float | None) -> Iterator[Buffer]:
    """The bytes of a source that is no regular file, less what the kernel moves to an outlet by itself."""
    if not isinstance(source.handle, int):
        yield from pieces_of(source.handle)
        return
    fd = source.handle
    kernel = outlet is not None and stat.S_ISFIFO(os.fstat(fd).st_mode)
    while True:
        _wait(source, idle)
        n = outlet.move(fd, STEP) if kernel and outlet is not None else None
        if n is None:
            kernel = False
            data = os.read(fd, STEP)
            yield data
            n = len(data)
        if not n:
            return


def _wait(source: Source, idle: float | None) -> None:
    if idle is not None and isinstance(source.handle, int) and not select.select([source.handle], [], [], idle)[0]:
        raise StoreError(f"{source.url}: no byte came for {idle:g} seconds")


class _Waiting:
    """readinto over a descriptor, with an end to patience."""

    def __init__(self, source: Source, idle: float | None) -> None:
        self._source, self._idle = source, idle

    def readinto(self, buffer: memoryview) -> int:
        _wait(self._source, self._idle)
        return os.readv(int(self._source.handle), [buffer])  # type: ignore[arg-type]


def reader(source: Source, idle: float | None = None) -> Any:
    """What reads a raw source: an object with readinto. `idle`: seconds that a descriptor may be silent."""
    return _Waiting(source, idle) if isinstance(source.handle, int) else source.handle


def _send_part(source: Source, start: int, end: int | None, outlet: Outlet, idle: float | None) -> None:
    """A part of what can only be read from its start."""
    at = 0
    for data in _pieces(source, None, idle):
        view = memoryview(data)
        outlet.write(view[max(0, start - at) : None if end is None else max(0, end - at)])
        at += len(view)
        if end is not None and at >= end:
            return
    if at < max(start, end or 0):
        raise PastEndError(
            f"{source.url}: has {at} bytes, and a range from {start} to {end or 'its end'} was asked for"
        )


def _send_parts(store: Store, path: str, start: int, end: int | None, outlet: Outlet) -> None:
    store.forget(path)  # what is there now is the shard; one that changes while it is read is an error
    if end is None:
        end = store.size(path).nbytes
        if start > end:
            raise PastEndError(f"{store.url(path)}: has {end} bytes, and a range from {start} was asked for")
    parts = [(at, min(at + PART, end)) for at in range(start, end, PART)]
    if not parts:
        store.size(path)  # an empty range of something that is not there is an error too
    pool = ThreadPoolExecutor(1)
    try:
        batches = [parts[i : i + AT_ONCE] for i in range(0, len(parts), AT_ONCE)]
        coming = [pool.submit(store.read_ranges, path, batch) for batch in batches[:1]]
        for i in range(len(batches)):
            found = coming.pop().result()
            coming += [pool.submit(store.read_ranges, path, batch) for batch in batches[i + 1 : i + 2]]
            for data in found:
                outlet.write(data)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
