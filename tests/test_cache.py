"""The disk cache: right bytes whatever happens to its files and its processes, few requests, and its budget."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faultproxy import proxied
from tests.servers import Servers
from wdstools import blocks, cache
from wdstools.blocks import Blocks
from wdstools.cache import CachedStore, parse
from wdstools.errors import ChangedError, PastEndError, UrlError
from wdstools.ranges import Buffer, Range
from wdstools.store import MemoryStore, Stat, open_store

DATA = random.Random(5).randbytes(1_000_000)


class Counting(MemoryStore):
    """Notes what is read from it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.asked: list[Range] = []

    def read_ranges(self, path: str, ranges: Iterable[Range]) -> list[Buffer]:
        wanted = list(ranges)
        self.asked += wanted
        return super().read_ranges(path, wanted)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "BLOCK", 100_000)
    monkeypatch.setattr(blocks, "PAGE", 7_000)


@pytest.fixture
def origin() -> Counting:
    return Counting({"a.tar": DATA})


def cached(origin: MemoryStore, folder: Path, size: str = "100MB") -> CachedStore:
    return CachedStore(origin, f"{folder}:{size}")


def files(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "blocks").rglob("*") if path.is_file())


def test_reads_are_right_and_come_from_the_disk(origin: Counting, tmp_path: Path) -> None:
    rng = random.Random(1)
    for _ in range(20):
        store = cached(origin, tmp_path)
        ranges = [(7, 7), (0, 0)]
        for _ in range(10):
            start = rng.randrange(len(DATA))
            ranges.append((start, min(len(DATA), start + rng.choice([1, 7_000, 250_000]))))
        rng.shuffle(ranges)
        found = store.read_ranges("a.tar", ranges)
        assert [bytes(data) for data in found] == [DATA[start:end] for start, end in ranges]
    assert sorted(origin.asked) == sorted(set(origin.asked))  # no block twice
    origin.asked.clear()
    with cached(origin, tmp_path).open("a.tar") as file:
        assert file.read() == DATA
    assert origin.asked == []
    assert len(files(tmp_path)) == 10


def test_edges(origin: Counting, tmp_path: Path) -> None:
    store = cached(origin, tmp_path)
    assert store.read_ranges("a.tar", []) == []
    assert store.read("a.tar", 100_000, 200_000) == DATA[100_000:200_000]
    assert store.read("a.tar", 999_999, 1_000_000) == DATA[-1:]
    assert len(origin.asked) == 2
    with pytest.raises(PastEndError):
        store.read("a.tar", 0, 1_000_001)
    with pytest.raises(ValueError, match="range"):
        store.read("a.tar", 5, 4)
    origin.put("empty", b"")
    with store.open("empty") as file:
        assert file.read() == b""
    assert store.size("a.tar").nbytes == len(DATA)
    assert store.list("") == ["a.tar", "empty"]


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "cut":
        data = data[:50_000]
    elif how == "empty":
        data.clear()
    elif how == "flip":
        data[60_000] ^= 1
    elif how == "zeros":
        data[:] = bytes(len(data))
    elif how == "footer":
        data[-1] ^= 1
    else:
        data += b"more"
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["cut", "empty", "flip", "zeros", "footer", "longer"])
def test_damaged_blocks_are_fetched_again(
    origin: Counting, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    with cached(origin, tmp_path).open("a.tar") as file:
        file.read()
    for path in files(tmp_path):
        damage(path, how)
    store = cached(origin, tmp_path)
    assert store.read("a.tar", 0, len(DATA)) == DATA
    assert len(origin.asked) == 20
    assert "damaged" in caplog.text
    assert store.read("a.tar", 0, len(DATA)) == DATA
    assert len(origin.asked) == 20


def test_a_replaced_object_has_other_blocks(origin: Counting, tmp_path: Path) -> None:
    store = cached(origin, tmp_path)
    assert store.read("a.tar", 0, 1000) == DATA[:1000]
    origin.put("a.tar", DATA[::-1])
    origin._pin("a.tar", store._pins["a.tar"])  # put took it away
    with pytest.raises(ChangedError):
        store.read("a.tar", 500_000, 500_010)
    store.forget("a.tar")
    assert store.read("a.tar", 0, 1000) == DATA[::-1][:1000]


def test_without_a_version_nothing_is_kept(origin: Counting, tmp_path: Path) -> None:
    origin._objects["a.tar"] = (DATA, Stat(len(DATA)))
    store = cached(origin, tmp_path)
    assert store.read("a.tar", 5, 1000) == DATA[5:1000]
    assert origin.asked == [(5, 1000)]
    assert not (tmp_path / "blocks").exists()


def test_the_budget_holds_and_the_least_used_go(origin: Counting, tmp_path: Path) -> None:
    store = cached(origin, tmp_path, "450kB")
    rng = random.Random(2)
    for _ in range(200):
        start = rng.randrange(len(DATA) - 1000)
        assert store.read("a.tar", start, start + 1000) == DATA[start : start + 1000]
        assert sum(path.stat().st_size for path in files(tmp_path)) <= 450_000
    now = time.time()
    for path in files(tmp_path):
        os.utime(path, (now - 10_000, now - 10_000))
    keep = next(n for n in range(10) if (tmp_path / "blocks" / name(store, n)[:2] / name(store, n)[2:]).exists())
    store.read("a.tar", keep * 100_000, keep * 100_000 + 10)  # notes the use
    for number in [n for n in range(10) if n != keep][:2]:
        store.read("a.tar", number * 100_000, number * 100_000 + 10)
    origin.asked.clear()
    store.read("a.tar", keep * 100_000, keep * 100_000 + 10)
    assert origin.asked == []


def name(store: CachedStore, number: int) -> str:
    return store._key("a.tar", store._known("a.tar"), number)


def test_a_cache_that_is_too_small_is_no_error(origin: Counting, tmp_path: Path) -> None:
    store = cached(origin, tmp_path, "50kB")
    assert store.read("a.tar", 0, len(DATA)) == DATA
    assert files(tmp_path) == []


def test_a_full_disk(
    origin: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = cached(origin, tmp_path)
    monkeypatch.setattr(os, "replace", full)
    assert store.read("a.tar", 0, len(DATA)) == DATA
    assert store.read("a.tar", 5, 10) == DATA[5:10]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "No space left" in caplog.text
    assert files(tmp_path) == []
    assert int.from_bytes((tmp_path / "used").read_bytes(), "little") == 0


def test_a_folder_that_cannot_be(origin: Counting, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = cached(origin, tmp_path / "file")
    assert store.read("a.tar", 0, len(DATA)) == DATA
    assert len(caplog.records) == 1


def test_threads_fetch_a_block_once(tmp_path: Path) -> None:
    class Slow(Counting):
        def read_ranges(self, path: str, ranges: Iterable[Range]) -> list[Buffer]:
            time.sleep(0.05)
            return super().read_ranges(path, ranges)

    origin = Slow({"a.tar": DATA})
    found: list[bytes] = []

    def read() -> None:
        found.append(cached(origin, tmp_path).read("a.tar", 150_000, 950_000))

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [DATA[150_000:950_000]] * 6
    assert len(origin.asked) == 9


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    servers = Servers(tmp_path_factory.mktemp("servers"))
    yield servers
    servers.close()


READER = """
import hashlib, json, sys
from wdstools import blocks, cache
from wdstools.store import open_store
cache.BLOCK, blocks.PAGE = 100_000, 7_000
url, folder, ranges = json.loads(sys.argv[1])
store, path = open_store(url, cache=f"{folder}:100MB")
print("ready", flush=True)
sys.stdin.readline()
print(hashlib.sha256(b"".join(store.read_ranges(path, ranges))).hexdigest())
"""


def start(url: str, folder: Path, ranges: list[Range]) -> subprocess.Popen[str]:
    arguments = json.dumps([url, str(folder), ranges])
    command = [sys.executable, "-c", READER, arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_processes_fetch_a_block_once(servers: Servers, tmp_path: Path) -> None:
    server = servers.get("http")
    (server.root / "a.tar").write_bytes(DATA)
    ranges = [(start, start + 5000) for start in range(0, 990_000, 30_000)]
    with proxied(server.port, latency=0.2) as proxy:
        processes = [start(f"{proxy.url}/a.tar", tmp_path / "cache", ranges) for _ in range(2)]
        said = [process.communicate("\n", timeout=60)[0] for process in processes]
        assert said[0] == said[1]
        sizes = [last + 1 - first for first, last in proxy.ranges]
        assert sum(sizes) == len(DATA), proxy.ranges  # every byte once, for both
    assert open_store(f"{proxy.url}/a.tar", cache=f"{tmp_path}/cache:1GB")[0] is not None


def test_kill_9_at_any_point(servers: Servers, tmp_path: Path) -> None:
    """Whatever a killed process leaves, the next one reads the right bytes, and nobody waits for the dead."""
    server, folder = servers.get("http"), tmp_path / "cache"
    (server.root / "a.tar").write_bytes(DATA)
    rng = random.Random(9)
    with proxied(server.port, latency=0.01) as proxy:
        killed = 0
        for _ in range(12):
            process = start(f"{proxy.url}/a.tar", folder, [(0, len(DATA))])
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
            time.sleep(rng.random() * 0.12)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            killed += process.returncode == -signal.SIGKILL
            for path in files(folder) if rng.random() < 0.4 else []:
                path.unlink()
        assert killed > 3
    began = time.monotonic()
    store, path = open_store(f"{server.url}/a.tar", cache=f"{folder}:100MB")
    assert store.read(path, 0, len(DATA)) == DATA
    assert time.monotonic() - began < 5


def test_a_holder_that_is_killed_lets_go(tmp_path: Path) -> None:
    code = """
import sys, time
from wdstools.blocks import Blocks
with Blocks(sys.argv[1], 10**9).alone(["0" * 40, "1" * 40]):
    print("held", flush=True)
    time.sleep(100)
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    got = threading.Event()

    def take() -> None:
        with Blocks(str(tmp_path), 10**9).alone(["1" * 40]):
            got.set()

    thread = threading.Thread(target=take)
    thread.start()
    assert not got.wait(0.2)
    process.kill()
    process.communicate()
    assert got.wait(5)
    thread.join()


def test_patience_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "PATIENCE", 0.1)
    made = Blocks(str(tmp_path), 10**9)
    with made.alone(["1" * 40]), made.alone(["1" * 40]):
        pass


def test_leftovers_go(origin: Counting, tmp_path: Path) -> None:
    store = cached(origin, tmp_path, "450kB")
    (tmp_path / "blocks").mkdir()
    old, new = tmp_path / "blocks" / "old.partial", tmp_path / "blocks" / "new.partial"
    for path in (old, new):
        path.write_bytes(b"x" * 1000)
    os.utime(old, (1, 1))
    store.read("a.tar", 0, len(DATA))
    assert not old.exists()


@pytest.mark.parametrize(
    ("text", "folder", "nbytes"),
    [
        ("/nvme/cache:200GB", "/nvme/cache", 200_000_000_000),
        ("c:1.5TiB", "c", 3 << 39),
        ("a:b:10kB", "a:b", 10_000),
        ("x:5 MB", "x", 5_000_000),
        ("x:7B", "x", 7),
    ],
)
def test_parse(text: str, folder: str, nbytes: int) -> None:
    assert parse(text) == (folder, nbytes)


@pytest.mark.parametrize("text", ["/nvme/cache", "x:", "x:0GB", "x:-5GB", ":5GB", "x:5", "x:1.2.3GB", "x:5XB", ""])
def test_no_cache(text: str) -> None:
    with pytest.raises(UrlError, match="FOLDER:SIZE"):
        parse(text)
    with pytest.raises(UrlError):
        open_store("http://h/x", cache=text)
