"""Shards under gzip, zstd, bzip2 or xz: recognised by their first bytes, read as one stream, each part of it whole.

The standard library's file objects do not serve: BZ2File and LZMAFile pass over what stands behind the last stream,
and zstandard's reader takes a cut one for its end. Here both are errors, as they are in a plain tar.
"""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from typing import Any, Protocol

from wdstools.errors import ShardError, StoreError, TruncatedError

MAGIC_BYTES = 6  # how many first bytes kind() wants
INPUT_BYTES = 1 << 16
ZSTD_BYTES = 1 << 12  # zstandard gives all that its input makes: of a bomb, at most 128 MiB for these

_MAGIC = {"gz": b"\x1f\x8b", "zst": b"\x28\xb5\x2f\xfd", "bz2": b"BZh", "xz": b"\xfd7zXZ\0"}
_PADDED = ("gz", "xz")  # zeros may stand behind their streams


def kind(head: bytes) -> str | None:
    """Return the compression that the first bytes of a shard belong to: a key of _MAGIC, or None for none."""
    return next((name for name, magic in _MAGIC.items() if head.startswith(magic)), None)


class Raw(Protocol):
    """What compressed bytes come from."""

    def read1(self, nbytes: int, /) -> bytes: ...


class _Decompressor(Protocol):
    """One compressed stream: what bz2 and lzma have. decompress() returns max_length bytes at most, if it can."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class Decompressed(io.RawIOBase):
    """readinto over compressed bytes. Raises TruncatedError, ShardError, and what `raw` raises."""

    def __init__(self, raw: Raw, url: str, name: str) -> None:
        self._raw, self._url, self._name = raw, url, name
        self._new, self._step = _maker(name, url)
        self._stream: _Decompressor | None = None  # None: between two of them
        self._input = b""  # read, and not yet given to a decompressor
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            if self._stream is None and not self._begin():
                return 0
            self._output = memoryview(self._more(len(buffer)))
        n = min(len(buffer), len(self._output))
        buffer[:n], self._output = self._output[:n], self._output[n:]
        return n

    def _begin(self) -> bool:
        """Begin the next stream; false where there is none."""
        padding = b"\0" if self._name in _PADDED else b""
        between = self._input.lstrip(padding)
        while len(between) < MAGIC_BYTES and (more := self._raw.read1(self._step)):
            between = (between + more).lstrip(padding)
        self._input = between
        if not between:
            return False
        if kind(between) != self._name and not _is_skippable(between, self._name):
            if _MAGIC[self._name].startswith(between):
                raise TruncatedError(f"truncated {self._name} stream", self._url)
            raise ShardError(f"bytes that are no {self._name} stream after the end of one", self._url)
        self._stream = self._new()
        return True

    def _more(self, room: int) -> bytes:
        stream = self._stream
        if stream is None:
            return b""
        data = b""
        if stream.needs_input:
            data, self._input = self._input or self._raw.read1(self._step), b""
            if not data:
                raise TruncatedError(f"truncated {self._name} stream", self._url)
            data, self._input = data[: self._step], data[self._step :]
        try:
            output = stream.decompress(data, room)
        except EOFError as error:
            raise TruncatedError(f"truncated {self._name} stream", self._url) from error
        except Exception as error:
            if not isinstance(error, OSError | ValueError | zlib.error | lzma.LZMAError) and "Zstd" not in repr(error):
                raise
            raise ShardError(f"broken {self._name} stream ({error})", self._url) from error
        if stream.eof:
            self._input = stream.unused_data + self._input
            self._stream = None
        return output


def _is_skippable(head: bytes, name: str) -> bool:
    """A frame of zstd that holds no data: pzstd and seekable archives have them."""
    return name == "zst" and 0x184D2A50 <= int.from_bytes(head[:4], "little") <= 0x184D2A5F


class _Gzip:
    """One gzip member, its CRC and length checked."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(31)

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def needs_input(self) -> bool:
        return not self._zlib.unconsumed_tail  # there is one, if only the CRC, as long as zlib holds output back

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)


class _Zstandard:
    """One frame, by the zstandard package."""

    def __init__(self, package: Any) -> None:
        self._frame = package.ZstdDecompressor().decompressobj()
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return bool(self._frame.eof)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._frame.unused_data)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return bytes(self._frame.decompress(data))


def _maker(name: str, url: str) -> tuple[Callable[[], _Decompressor], int]:
    """What begins a stream, and how many bytes to give it at a time."""
    if name == "gz":
        return _Gzip, INPUT_BYTES
    if name == "bz2":
        return bz2.BZ2Decompressor, INPUT_BYTES
    if name == "xz":
        return lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ), INPUT_BYTES
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]  # Python 3.14

        return zstd.ZstdDecompressor, INPUT_BYTES
    except ImportError:
        pass
    try:
        import zstandard
    except ImportError as error:
        raise StoreError(f"{url}: a zstd shard needs Python 3.14 or `pip install wdstools[zstd]`") from error
    return lambda: _Zstandard(zstandard), ZSTD_BYTES
