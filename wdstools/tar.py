"""The members of a tar, as they lie in the file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from wdstools import _core

BLOCK = 512
END_MARKER = 2 * BLOCK  # two zero blocks end an archive
MTIME = 946_684_800  # 2000-01-01: of every member that is written, so that the same samples give the same bytes

TYPES = {
    "f": "file",
    "d": "dir",
    "s": "symlink",
    "h": "hardlink",
    "v": "device",  # character and block devices, fifos
    "S": "sparse",
    "o": "other",  # volume labels, multi-volume pieces, vendors' types
}


class Member(NamedTuple):
    """One member. Offsets are bytes from the start of the tar.

    `start`: its first block, PAX and GNU long name headers included; `header`: the final 512-byte header;
    `offset`, `nbytes`: the payload, [offset, offset + nbytes), without its padding. `type`: a value of TYPES.
    Names are UTF-8 with surrogateescape, as tarfile decodes them; a directory's has no trailing slash.
    """

    name: str
    type: str
    linkname: str
    start: int
    header: int
    offset: int
    nbytes: int


def walk(file: str | os.PathLike[str] | int | _core.Readable) -> Iterator[Member]:
    """Yield every Member of a tar, in order: of a path, a file descriptor or a binary file with `readinto`.

    Only headers are read where the file is regular; payloads are skipped otherwise. A descriptor is read from byte 0
    of a regular file, else from where it stands, and stays open.

    Raises TruncatedError (the tar ends before its two zero blocks), HeaderError (a bad checksum, number, PAX record),
    TrailingError (bytes after the end), OSError. Formats: POSIX.1-1988 ustar, POSIX.1-2001 pax, GNU, v7.
    """
    if isinstance(file, str | os.PathLike):
        path = os.fspath(file)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield from _members(fd, path)
        finally:
            os.close(fd)
    else:
        yield from _members(file, str(getattr(file, "name", "tar")))


def _members(source: _core.Source, url: str) -> Iterator[Member]:
    for name, kind, linkname, start, header, offset, nbytes in _core.Walker(source, url):
        yield Member(name, TYPES[kind], linkname, start, header, offset, nbytes)


def format_header(name: str, nbytes: int, mtime: int = 0) -> bytes:
    """Return the header group of a regular file: 512 bytes of ustar, with a PAX header before it only where the name
    (over 100 bytes, and no slash to split it at) or the size (over 8 GiB) needs one.

    `mtime`: seconds since 1970. Raises ValueError for an empty name or one with a NUL. Source: POSIX.1-2001, pax.
    """
    return _core.format_header(name.encode("utf-8", "surrogateescape"), nbytes, mtime)


def padded(nbytes: int) -> int:
    """Return the bytes that a payload of nbytes takes with its padding."""
    return -(-nbytes // BLOCK) * BLOCK


def member_nbytes(name: str, nbytes: int) -> int:
    """Return the bytes that a member of this name and payload takes in a tar that we write."""
    size = len(name) if name.isascii() else len(name.encode("utf-8", "surrogateescape"))
    header = BLOCK if size <= 100 and nbytes < 1 << 33 else len(format_header(name, nbytes))
    return header + padded(nbytes)
