"""A new shard of members of another one: plain headers, payloads copied by their ranges, an end marker."""

from __future__ import annotations

import os
from typing import Any

from wdstools import tar
from wdstools.errors import TruncatedError

SMALL = 256 << 10  # payloads that are put together in memory
BUFFER = 4 << 20


class ShardCopy:
    """A shard at `path`, of members of the file `fd`; as a context, it is finished unless an exception leaves it.

    Raises OSError; TruncatedError where a payload is shorter than it was, under the name `url`.
    """

    def __init__(self, path: str, fd: int, url: str) -> None:
        self._fd, self._url = fd, url
        self._out = open(path, "xb", buffering=BUFFER)

    def member(self, name: bytes, offset: int, nbytes: int) -> None:
        """Append a member with this name and bytes [offset, offset + nbytes) of the file."""
        self._out.write(tar.format_header(name.decode("utf-8", "surrogateescape"), nbytes, tar.MTIME))
        end = offset + nbytes
        while offset < end:
            data = os.pread(self._fd, min(end - offset, SMALL), offset)
            if not data:
                raise TruncatedError("truncated while it was repaired", self._url, offset)
            self._out.write(data)
            offset += len(data)
        self._out.write(bytes(tar.padded(nbytes) - nbytes))

    def __enter__(self) -> ShardCopy:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            if error is None:
                self._out.write(bytes(tar.END_MARKER))
        finally:
            self._out.close()
