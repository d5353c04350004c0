"""What the tests of the tar core share: the ways into it, and the naive models that it is compared with."""

from __future__ import annotations

import contextlib
import io
import os
import random
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from webdataset.tariterators import group_by_keys, tar_file_expander

from wdstools import _core

URL = "u.tar"
Sample = dict[str, Any]
T = TypeVar("T")


@contextlib.contextmanager
def regular(data: bytes) -> Iterator[int]:
    """Yield the descriptor of a regular file with these bytes."""
    fd = os.memfd_create("shard")
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def pipe(data: bytes) -> Iterator[int]:
    """Yield the reading end of a pipe that a thread fills with these bytes."""
    out, into = os.pipe()

    def fill() -> None:
        with contextlib.suppress(BrokenPipeError), open(into, "wb", buffering=0) as f:
            view = memoryview(data)
            while view:
                view = view[f.write(view) :]

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        yield out
    finally:
        os.close(out)
        thread.join()


class Dribble:
    """A binary file that gives 1..most bytes at a time."""

    def __init__(self, data: bytes, most: int = 700) -> None:
        self.file, self.most, self.random = io.BytesIO(data), most, random.Random(len(data))

    def readinto(self, buffer: memoryview) -> int:
        return self.file.readinto(buffer[: self.random.randint(1, self.most)])


@contextlib.contextmanager
def dribble(data: bytes) -> Iterator[Dribble]:
    yield Dribble(data)


Way = Callable[[bytes], AbstractContextManager[Any]]
WAYS: dict[str, Way] = {"regular": regular, "pipe": pipe, "readinto": dribble}


def take(samples: Iterable[T]) -> tuple[list[T], Exception | None]:
    """Return the samples (or members) that came, and what ended them."""
    got: list[T] = []
    try:
        for sample in samples:
            got.append(sample)
    except Exception as error:  # noqa: BLE001  what it is, is what the caller tests
        return got, error
    return got, None


def stream(data: bytes, way: str = "regular", **options: Any) -> tuple[list[Sample], Exception | None]:
    with WAYS[way](data) as source:
        samples = _core.Stream(source, URL, **options)
        try:
            return take(samples)
        finally:
            samples.close()


def samples_of(data: bytes, way: str = "regular", **options: Any) -> list[Sample]:
    got, error = stream(data, way, **options)
    if error:
        raise error
    return got


def scan(data: bytes) -> dict[str, Any]:
    with regular(data) as fd:
        return _core.scan(fd, URL)


def reference(data: bytes) -> list[Sample]:
    """The samples as webdataset reads them."""
    return list(group_by_keys(tar_file_expander([{"url": URL, "stream": io.BytesIO(data)}])))


def items(samples: Iterable[Sample]) -> list[list[tuple[str, Any]]]:
    """Fields in their order, payloads as bytes."""
    return [[(k, bytes(v) if isinstance(v, memoryview) else v) for k, v in s.items()] for s in samples]


def make_tar(files: Iterable[tuple[str, bytes]], format: int = tarfile.USTAR_FORMAT, mtime: float = 0) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), mtime
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()
