"""Reading what is not in the page cache, so that one cold file does not hold up all connections of a process."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor

from wdstools.serve.blobs import Handle

WINDOW = 8 * 1024 * 1024  # bytes that are brought in at once
GRAIN = 18  # what was in memory is remembered by pieces of 2**GRAIN bytes
THREADS = 8


class Disk:
    """The disks behind a process. What is about to be sent goes through reading() first."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="wds-serve-disk")
        self._probe = [bytearray(1)]
        self._age = 0

    def forget(self) -> None:
        """Look again whether things are in memory: the kernel may have dropped them."""
        self._age += 1

    def reading(self, handle: Handle, start: int, end: int) -> asyncio.Future[None] | None:
        """None: bytes [start, end) of a file are in memory, as far as their first and last tell, and sendfile will not
        wait for the disk. Otherwise a future, done when they have been read."""
        if handle.age != self._age:
            handle.age = self._age
            handle.warm.clear()
        first, last, warm = start >> GRAIN, (end - 1) >> GRAIN, handle.warm
        if first in warm and last in warm:
            return None
        try:
            os.preadv(handle.fd, self._probe, start, os.RWF_NOWAIT)
            os.preadv(handle.fd, self._probe, end - 1, os.RWF_NOWAIT)
        except BlockingIOError:
            return asyncio.get_running_loop().run_in_executor(self._pool, bring_in, handle, start, end)
        except OSError:  # a file system that cannot tell
            pass
        warm.add(first)
        warm.add(last)
        return None

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


_buffers = threading.local()


def bring_in(handle: Handle, start: int, end: int) -> None:
    """Read bytes [start, end) into the page cache, in a thread. Here readers of a rotational disk would take turns."""
    buffer = getattr(_buffers, "buffer", None)
    if buffer is None:
        buffer = _buffers.buffer = bytearray(1024 * 1024)
    os.posix_fadvise(handle.fd, start, end - start, os.POSIX_FADV_WILLNEED)
    while start < end:
        got = os.preadv(handle.fd, [memoryview(buffer)[: end - start]], start)
        if not got:
            return  # cut short: whoever sends it will notice
        start += got
