from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias

from typing_extensions import Buffer

class Readable(Protocol):
    def readinto(self, buffer: memoryview, /) -> int | None: ...

Source: TypeAlias = int | Readable
Columns: TypeAlias = dict[str, Any]

BLOCK_BYTES: int

def scan(source: Source, url: str) -> Columns: ...
def split_name(name: str, /) -> tuple[str, str] | None: ...
def hash_key(data: Buffer, /) -> int: ...
def format_header(name: bytes, nbytes: int, mtime: int, /) -> bytes: ...

class Stream(Iterator[dict[str, Any]]):
    def __new__(
        cls,
        source: Source,
        url: str,
        local_path: str | None = None,
        *,
        fields: Iterable[str] | None = None,
        views: bool = False,
        select: Callable[[str], object] | None = None,
        rename: Callable[[str], str] | None = None,
        head: bytes = b"",
        block_bytes: int = ...,
    ) -> Stream: ...
    def __next__(self) -> dict[str, Any]: ...
    def close(self) -> None: ...

class Walker(Iterator[tuple[str, str, str, int, int, int, int]]):
    def __new__(cls, source: Source, url: str) -> Walker: ...
    def __next__(self) -> tuple[str, str, str, int, int, int, int]: ...

class Rows:
    def __new__(cls, first: Buffer, shard_nbytes: Buffer, shard_ends: Buffer = ..., fd: int = -1) -> Rows: ...
    def put(
        self, number: int, shard: Buffer, start: Buffer, end: Buffer, key_ends: Buffer, key_data: Buffer, /
    ) -> None: ...
    def put_at(
        self,
        number: int,
        start: int,
        end: int,
        key_ends: int,
        key_data: int,
        key_nbytes: int,
        key_width: int,
        /,
    ) -> None: ...
    def locate(self, row: int, /) -> tuple[str, int, int, int] | None: ...
    def key(self, row: int, /) -> str | None: ...

class SampleReader:
    def __new__(cls, fields: Iterable[str] | None = None, views: bool = False) -> SampleReader: ...
    def read(self, fd: int, start: int, end: int, key: str, url: str, local_path: str | None, /) -> dict[str, Any]: ...
    def parse(self, data: Buffer, start: int, key: str, url: str, local_path: str | None, /) -> dict[str, Any]: ...
    def attach(self, rows: Rows, /) -> None: ...
    def read_row(self, row: int, files: Sequence[tuple[Any, ...] | None], /) -> dict[str, Any] | None: ...
    def read_rows(
        self, rows: Iterable[object], files: Sequence[tuple[Any, ...] | None], /
    ) -> tuple[list[dict[str, Any] | None], list[int]]: ...

class Writer:
    nbytes: int
    nsamples: int
    def __new__(
        cls,
        fd: int,
        mtime: int,
        *,
        encode: Callable[[Any, str], bytes] | None = None,
        maxcount: int = ...,
        maxsize: int = ...,
    ) -> Writer: ...
    def add(self, sample: dict[str, Any], /) -> int | None: ...
    def stop(self) -> None: ...
    def write(self, key: str, fields: dict[str, Any], /) -> int:
        """A value is a Buffer, or (path: str | PathLike, nbytes: int) of a file to copy."""
    def finish(self) -> Columns: ...
