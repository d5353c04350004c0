"""Blocks of remote objects in a folder on a local disk, shared by processes, under a byte budget.

    FOLDER/blocks/ab/cd...                  one block; the name is a hash of URL, version and number of the block
    FOLDER/used                             8 bytes: how much the blocks take, as far as known
    FOLDER/evict                            locked by the process that removes blocks
    FOLDER/lock                             one byte of it is locked for each block that somebody is fetching

A block file is the data (4 MiB, less at the end of an object), the CRC-32 of each 64 KiB of it, and at its end the
length of the data and a magic word. It is written under another name and renamed, and every read checks the length
and the sums of what it reads: a block that a killed process, a lost write or a bad disk left is fetched again.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import struct
import time
import uuid
import zlib
from collections.abc import Iterator, Sequence

from wdstools.ranges import Buffer
from wdstools.retrying import wait

log = logging.getLogger("wdstools")

PAGE = 64 * 1024  # bytes with a checksum of their own
MAGIC = b"wdsblk1\n"
FOOTER = struct.Struct("<Q8s")
PATIENCE = 120.0  # seconds to wait for another process that fetches a block
TOUCH = 600.0  # seconds in which the use of a block is noted once
KEEP = 0.9  # of the budget stays when blocks go
ABANDONED = 3600.0  # seconds after which a file that was never renamed belongs to nobody


class Blocks:
    """The blocks in a folder. Safe to use from any number of threads and processes. What the disk refuses is not
    cached: one warning says so, and reads go on. `budget`: bytes that the files may take."""

    def __init__(self, folder: str, budget: int) -> None:
        self.folder, self.budget = os.path.abspath(folder), budget
        self._told = False

    def read(self, key: str, start: int, end: int, nbytes: int) -> bytes | None:
        """Bytes [start, end) of a block that has `nbytes` bytes; None: it is not here, or not as it was written."""
        path = self._path(key)
        try:
            with open(path, "rb", buffering=0) as file:
                found = os.fstat(file.fileno())
                data = self._checked(file.fileno(), start, end, nbytes, found.st_size)
                if data is not None and time.time() - found.st_mtime > TOUCH:
                    os.utime(file.fileno())
        except OSError:
            return None
        if data is None:
            log.warning("%s: a block of the cache is damaged: it is fetched again", path)
            self._remove(path, found.st_size)
        return data

    @staticmethod
    def _checked(fd: int, start: int, end: int, nbytes: int, size: int) -> bytes | None:
        pages = -(-nbytes // PAGE)
        if size != nbytes + 4 * pages + FOOTER.size:
            return None
        first, last = start // PAGE, -(-end // PAGE)
        data = os.pread(fd, min(last * PAGE, nbytes) - first * PAGE, first * PAGE)
        tail = os.pread(fd, 4 * pages + FOOTER.size, nbytes)
        if len(tail) != 4 * pages + FOOTER.size or FOOTER.unpack(tail[-FOOTER.size :]) != (nbytes, MAGIC):
            return None
        view = memoryview(data)
        sums = struct.unpack_from(f"<{last - first}I", tail, 4 * first)
        if any(zlib.crc32(view[i * PAGE : (i + 1) * PAGE]) != found for i, found in enumerate(sums)):
            return None
        return data[start - first * PAGE : end - first * PAGE]

    def write(self, key: str, data: Buffer) -> None:
        """Keep a block; make room for it first."""
        view = memoryview(data)
        sums = [zlib.crc32(view[i : i + PAGE]) for i in range(0, len(view), PAGE)]
        tail = struct.pack(f"<{len(sums)}I", *sums) + FOOTER.pack(len(view), MAGIC)
        size, path = len(view) + len(tail), self._path(key)
        if size > self.budget:
            return
        partial = os.path.join(self.folder, "blocks", f"{uuid.uuid4().hex}.partial")
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if self._reserve(size) > self.budget:
                self._evict(size)
                self._reserve(size)  # it counted only what is there
            with open(partial, "xb", buffering=0) as file:
                for part in (view, memoryview(tail)):
                    while part:
                        part = part[file.write(part) :]
            os.replace(partial, path)
        except OSError as error:
            for undo in (lambda: os.unlink(partial), lambda: self._reserve(-size)):
                with contextlib.suppress(OSError):
                    undo()
            if not self._told:
                self._told = True
                log.warning("%s: cannot be written (%s): reads go on without the cache", self.folder, error)

    @contextlib.contextmanager
    def alone(self, keys: Sequence[str]) -> Iterator[None]:
        """Hold blocks while they are fetched, against other threads and processes; a killed holder lets go.

        After PATIENCE seconds it goes on without: a block that is fetched twice is no harm.
        """
        numbers = sorted(int(key[:15], 16) for key in keys)
        try:
            os.makedirs(self.folder, exist_ok=True)
            fd = os.open(os.path.join(self.folder, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError:
            yield
            return
        try:
            deadline = time.monotonic() + PATIENCE
            for number in numbers:
                pause = 0.001
                while not _lock(fd, fcntl.F_WRLCK, number) and time.monotonic() < deadline:
                    wait(pause)
                    pause = min(2 * pause, 0.05)
            yield
        finally:
            for number in numbers:  # by hand: a child that was forked meanwhile has the descriptor, too
                _lock(fd, fcntl.F_UNLCK, number)
            os.close(fd)

    def _path(self, key: str) -> str:
        return os.path.join(self.folder, "blocks", key[:2], key[2:])

    def _remove(self, path: str, size: int) -> None:
        with contextlib.suppress(OSError):
            os.unlink(path)
            self._reserve(-size)

    def _reserve(self, nbytes: int, whole: bool = False) -> int:
        """Add to the bytes in use, or set them; returns how many they are now."""
        fd = os.open(os.path.join(self.folder, "used"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            text = os.pread(fd, 8, 0)
            used = int.from_bytes(text, "little") if len(text) == 8 and not whole else 0
            used = max(0, used + nbytes)
            os.pwrite(fd, used.to_bytes(8, "little"), 0)
            return used
        finally:
            os.close(fd)

    def _evict(self, room: int) -> None:
        """Count what is there, and remove what was used least lately until there is room for more bytes. One process
        does it, and the others that want to write wait for it."""
        fd = os.open(os.path.join(self.folder, "evict"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if self._reserve(0) <= self.budget:
                return  # somebody else was faster
            found = sorted(self._scan())
            used = sum(size for _, size, _ in found)
            for _, size, path in found:
                if used <= min(self.budget * KEEP, self.budget - room):
                    break
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
                used -= size
            self._reserve(used, whole=True)
        finally:
            os.close(fd)

    def _scan(self) -> Iterator[tuple[float, int, str]]:
        """When each block was used, its bytes and its path; what a killed process left half-written is removed."""
        base = os.path.join(self.folder, "blocks")
        for entry in os.scandir(base):
            with contextlib.suppress(FileNotFoundError):  # of two that remove
                if entry.is_dir():
                    for block in os.scandir(entry.path):
                        with contextlib.suppress(FileNotFoundError):
                            found = block.stat()
                            yield found.st_mtime, found.st_size, block.path
                else:
                    found = entry.stat()
                    if time.time() - found.st_mtime > ABANDONED:
                        os.unlink(entry.path)
                    else:
                        yield time.time(), found.st_size, entry.path


def _lock(fd: int, kind: int, number: int) -> bool:
    """Lock one byte for this open file (not for the process, as plain fcntl locks are), without waiting."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, number, 1, 0))
    except OSError:
        return False
    return True
