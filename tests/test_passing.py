"""Bytes to a descriptor: what the kernel cannot move is copied; nothing is lost to short writes."""

from __future__ import annotations

import os
import random
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from wdstools import passing
from wdstools.errors import PastEndError, StoreError
from wdstools.passing import Outlet
from wdstools.storage import open_source
from wdstools.store import Stores

DATA = random.Random(2).randbytes(3_000_000)


def through(make: Callable[[], tuple[int, int]], work: Callable[[Outlet], None], **how: bool) -> bytes:
    """What comes out of the other end."""
    read, write = make()
    os.set_blocking(write, how.get("blocking", True))
    found: list[bytes] = []

    def drain() -> None:
        while data := os.read(read, 100_000):
            found.append(data)

    thread = threading.Thread(target=drain)
    thread.start()
    try:
        work(Outlet(write))
    finally:
        os.close(write)
        thread.join()
        os.close(read)
    return b"".join(found)


def sockets() -> tuple[int, int]:
    a, b = socket.socketpair()
    return a.detach(), b.detach()


@pytest.mark.parametrize("make", [os.pipe, sockets])
@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_all_of_it(kind: str, blocking: bool, make: Callable[[], tuple[int, int]], tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(DATA)
    url = str(tmp_path / "a") if kind == "file" else f"pipe:cat {tmp_path}/a"
    told: list[int] = []

    def work(outlet: Outlet) -> None:
        outlet._told = told.append  # type: ignore[attr-defined]
        passing.send(url, outlet, Stores())
        assert outlet.nbytes == sum(told) == len(DATA)

    assert through(make, work, blocking=blocking) == DATA
    for start, end in ((0, 10), (1_000_001, 2_999_999), (5, None)):
        part = through(make, lambda outlet, a=start, b=end: passing.send_range(url, a, b, outlet, Stores()))
        assert part == DATA[start:end]


def test_without_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(DATA)
    monkeypatch.setattr(Outlet, "move", lambda *_: None)
    for url in (str(tmp_path / "a"), f"pipe:cat {tmp_path}/a"):
        assert through(os.pipe, lambda outlet, url=url: passing.send(url, outlet, Stores())) == DATA


def test_a_tee(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(DATA)
    for url in (str(tmp_path / "a"), f"pipe:cat {tmp_path}/a"):
        seen = bytearray()

        def work(outlet: Outlet, url: str = url, seen: bytearray = seen) -> None:
            with open_source(url, raw=True) as source:
                tee, buffer = passing.Tee(source, outlet), memoryview(bytearray(70_000))
                while n := tee.readinto(buffer):
                    seen.extend(buffer[:n])

        assert through(os.pipe, work) == DATA == seen


def test_errors(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    with open(tmp_path / "out", "wb") as out:
        outlet = Outlet(out.fileno())
        for span in ((6, None), (0, 6)):
            with pytest.raises(PastEndError):
                passing.send_range(str(tmp_path / "a"), *span, outlet, Stores())
        with pytest.raises(StoreError, match=r"no byte came for 0\.1 seconds"):
            passing.send("pipe:sleep 0.5", outlet, Stores(), 0.1)
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        passing.send(str(tmp_path / "a"), Outlet(writer), Stores())
    os.close(writer)
