"""A local file that is locked as long as it is open: of who holds it, and of nobody else on this machine."""

from __future__ import annotations

import contextlib
import fcntl
import os

from wdstools.errors import DestinationError


class FileLock:
    """The lock, taken; the file is made where there is none. Raises DestinationError where another process has it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = _locked(path)

    def write(self, data: bytes) -> None:
        """Write this into the file, in place of what was there, and wait for the disk."""
        os.ftruncate(self._fd, 0)
        view = memoryview(data)
        while view:
            view = view[os.pwrite(self._fd, view, len(data) - len(view)) :]
        os.fsync(self._fd)

    def close(self, *, remove: bool = False) -> None:
        """Unlock; with `remove`, or where nothing is in it, the file goes first."""
        if remove or os.fstat(self._fd).st_size == 0:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
        os.close(self._fd)


def _locked(path: str) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise DestinationError(f"{path}: another wds-shard is at work on this destination") from None
        except OSError:
            return fd  # a file system without locks
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(fd)):
                return fd
        os.close(fd)  # the job that held it has just removed it
