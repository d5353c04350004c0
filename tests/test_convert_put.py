"""put(): what is told of a bad file, and what of a bad disk."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from wdstools.convert.put import put
from wdstools.convert.sources import Faults
from wdstools.errors import SourceError
from wdstools.writer import ShardFile

BIG = 1 << 29


class FullFile:
    """A shard on a disk with trouble."""

    def __init__(self, error: OSError) -> None:
        self.error = error

    def write(self, key: str, fields: Any) -> int:
        raise self.error


@pytest.mark.parametrize("there", [True, False])
def test_a_bad_disk_is_no_bad_sample(tmp_path: Path, there: bool) -> None:
    """Even if a file of the sample is gone by then."""
    file = tmp_path / "a"
    if there:
        file.write_bytes(b"1234")
    for code, name in ((errno.ENOSPC, None), (errno.EMFILE, str(file)), (errno.EIO, None)):
        error = OSError(code, os.strerror(code), name)
        with pytest.raises(OSError, match=os.strerror(code)):
            put(FullFile(error), "k", {"jpg": (str(file), 4)}, Faults(True))  # type: ignore[arg-type]


@contextmanager
def shrinking(file: Path, shard: Path) -> Iterator[None]:
    """Cut a file off as soon as some of it is in a shard."""
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set() and not shard.stat().st_size:
            time.sleep(0.0005)
        os.truncate(file, 0)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    """By the core, which opens and reads the files."""
    good, loop, sparse = tmp_path / "good", tmp_path / "loop", tmp_path / "sparse"
    good.write_bytes(b"1234")
    loop.symlink_to(loop)
    sparse.touch()
    os.truncate(sparse, BIG)
    faults = Faults(True)
    with ShardFile(tmp_path / "x.tar") as file:
        for number, (path, nbytes) in enumerate([(tmp_path / "gone", 4), (loop, 4), (tmp_path, 4), (good, 5)]):
            fields: Any = {"cls": b"1", "jpg": (str(path), nbytes), "txt": (str(good), 4)}
            assert not put(file, f"bad{number}", fields, faults)
        with shrinking(sparse, tmp_path / ".x.tar.tmp"):
            assert not put(file, "bad4", {"jpg": (str(sparse), BIG)}, faults)
        assert put(file, "good", {"jpg": (str(good), 4)}, faults)
        assert file.nbytes == 1024 + 1024
    assert [tuple(item) for item in faults.skipped] == [
        ("bad0", str(tmp_path / "gone"), "no such file or directory"),
        ("bad1", str(loop), "too many levels of symbolic links"),
        ("bad2", str(tmp_path), "not a regular file"),
        ("bad3", str(good), "changed while it was packed"),
        ("bad4", str(sparse), "cut short while it was read"),
    ]
    with pytest.raises(SourceError, match=f"{loop}: too many levels"), ShardFile(tmp_path / "y.tar") as file:
        put(file, "bad", {"jpg": (str(loop), 4)}, Faults(False))
