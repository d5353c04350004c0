"""A folder that appears whole or not at all: it is filled under a temporary name beside its place.

Who fills one holds a lock on it, which ends with the process, however that ends: so the next to make the same folder
can tell what a dead process has left from what another is still at work on.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def new_folder(path: str) -> Iterator[str]:
    """Give a folder to fill, which becomes `path` when the context ends without an exception, and else is removed.

    What dead processes have left of the same folder is removed first. Raises OSError, also where `path` is there by
    then and is not empty.
    """
    parent, name = os.path.split(os.path.abspath(path))
    os.makedirs(parent, exist_ok=True)
    sweep(parent, name)
    temporary, fd = _make(parent, name)
    try:
        os.chmod(temporary, 0o777 & ~_umask())
        yield temporary
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(path)  # if it is empty
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        os.close(fd)


def sweep(parent: str, name: str) -> None:
    """Remove the folders that were to become `name`, and that nobody fills. Those that cannot be locked stay."""
    form = re.compile(rf"\.{re.escape(name)}\.[a-z0-9_]{{8}}\.tmp")  # as mkdtemp() names them
    for item in sorted(os.listdir(parent)):
        if form.fullmatch(item):
            with contextlib.suppress(OSError):  # no folder, or being filled, or removed meanwhile
                folder = os.path.join(parent, item)
                fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder)
                finally:
                    os.close(fd)


def _make(parent: str, name: str) -> tuple[str, int]:
    """Make a folder, and lock it where the file system has locks; return it with the descriptor that holds it."""
    while True:
        temporary = tempfile.mkdtemp(prefix=f".{name}.", suffix=".tmp", dir=parent)
        try:
            fd = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # a sweep took it before it was locked
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX)
        if os.path.isdir(temporary):
            return temporary, fd
        os.close(fd)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
