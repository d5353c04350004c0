"""The sample routes of wds-serve: a batch against single requests, a virtual shard against a whole one, the first
screen of a gallery over a million samples.

The client of batches and single requests is a socket and nothing else, so that no client library is measured. Needs
curl and `pip install "wdstools[serve]"`.
"""

from __future__ import annotations

import http.client
import io
import json
import random
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import wdstools
from bench.compare import compare
from bench.data import LARGE, SMALL, samples, warm
from tests.serving import Live, serving
from wdstools.writer import ShardWriter

BATCH = 256
SIZES = {SMALL: 50_000, LARGE: 8_000}  # nbytes: how many samples
MILLION = 1_000_000
SCREEN = 60


class Served(NamedTuple):
    live: Live
    folder: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("samples")
    root = folder / "root"
    root.mkdir()
    for nbytes, count in SIZES.items():
        with ShardWriter(f"{root}/s{nbytes}-%06d.tar", maxcount=count // 4) as writer:
            for sample in samples(count, nbytes):
                writer.write(sample)
    warm([str(path) for path in root.glob("*.tar")])
    with serving(folder, root) as live:
        yield Served(live, root)


class Client:
    """One connection that stays open."""

    def __init__(self, port: int) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port))
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = memoryview(bytearray(64 << 20))

    def range(self, path: str, start: int, end: int) -> memoryview:
        """Bytes [start, end) of a file."""
        self._sock.sendall(
            b"GET %b HTTP/1.1\r\nHost: x\r\nRange: bytes=%d-%d\r\n\r\n" % (path.encode(), start, end - 1)
        )
        at, head = self._head()
        while at < head + end - start:
            at += self._sock.recv_into(self._buffer[at:])
        return self._buffer[head:at]

    def batch(self, body: bytes) -> memoryview:
        """All chunks of the answer to a batch."""
        self._sock.sendall(b"POST /-/batch HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        at, head = self._head()
        while self._buffer[at - 7 : at] != b"\r\n0\r\n\r\n":
            at += self._sock.recv_into(self._buffer[at:])
        return self._buffer[head:at]

    def close(self) -> None:
        self._sock.close()

    def _head(self) -> tuple[int, int]:
        at = 0
        while True:
            at += self._sock.recv_into(self._buffer[at:])
            head = bytes(self._buffer[:4096]).find(b"\r\n\r\n", 0, at) + 4
            if head > 3:
                assert bytes(self._buffer[:10]).startswith(b"HTTP/1.1 2")
                return at, head


@pytest.mark.parametrize(("nbytes", "target"), [(SMALL, 10), (LARGE, 1.5)])
def bench_serve_batch(benchmark: Any, served: Served, nbytes: int, target: float) -> None:
    """Random samples in one request, against a range request for each."""
    index = wdstools.open(f"{served.folder}/s{nbytes}.wdsindex").index
    client = Client(served.live.port)
    rng = random.Random(1)
    lots = [[rng.randrange(len(index)) for _ in range(BATCH)] for _ in range(8)]
    total = sum(end - start for lot in lots for _, _, start, end in map(index.locate, set(lot)))
    names = [f"/root/{url.rpartition('/')[2]}" for url in index.shards.url]
    bodies = [json.dumps({"set": f"s{nbytes}", "samples": lot}).encode() for lot in lots]

    def batches() -> None:
        assert sum(len(client.batch(body)) for body in bodies) > total

    def singles() -> None:
        got = 0
        for lot in lots:
            for row in lot:
                _, shard, start, end = index.locate(row)
                got += len(client.range(names[shard], start, end))
        assert got >= total

    count = len(lots) * BATCH
    work = f"{BATCH} random samples of {nbytes} bytes, on one connection"
    compare(benchmark, work, count, "samples/s", batches, {"range requests": singles}, {"range requests": target})
    client.close()


def curl(url: str) -> None:
    subprocess.run(["curl", "-sSf", "-o", "/dev/null", url], check=True)


def bench_serve_stream(benchmark: Any, served: Served) -> None:
    """An epoch of a virtual shard in shuffled order, against the same bytes as whole shards."""
    live = served.live
    shards = sorted(served.folder.glob(f"s{LARGE}-*.tar"))
    nbytes = sum(path.stat().st_size for path in shards)
    seeds = iter(range(1000))

    def stream() -> None:
        curl(f"{live.url}/-/stream?set=s{LARGE}&seed={next(seeds)}")

    def whole() -> None:
        subprocess.run(
            ["curl", "-sSf", *(x for path in shards for x in ("-o", "/dev/null", f"{live.url}/{path.name}"))],
            check=True,
        )

    work = f"{SIZES[LARGE]} samples of {LARGE} bytes to curl, shuffled"
    compare(benchmark, work, nbytes / 1e6, "MB/s", stream, {"whole shards": whole}, {"whole shards": 0.5})


@pytest.fixture(scope="module")
def million(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """256 pictures of 1.3 kB, again and again under new keys."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("million")
    rng = random.Random(0)
    pictures = []
    for _ in range(256):
        small = Image.frombytes("RGB", (4, 4), rng.randbytes(48)).resize((64, 64), Image.Resampling.BICUBIC)
        out = io.BytesIO()
        small.save(out, "JPEG", quality=85)
        pictures.append(out.getvalue())
    with ShardWriter(f"{folder}/train-%06d.tar", maxcount=10_000, lift=["cls"]) as writer:
        for i in range(MILLION):
            writer.write({"__key__": f"{i:08d}", "jpg": pictures[i % 256], "cls": i % 1000})
    return folder


def screen(live: Live, query: str) -> float:
    """Seconds for what the gallery asks at first, thumbnails on six connections, as browsers do."""
    began = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", live.port)

    def ask(connection: http.client.HTTPConnection, path: str) -> bytes:
        connection.request("GET", path)
        response = connection.getresponse()
        data = response.read()
        assert response.status == 200, data
        return data

    ask(connection, "/-/sets")
    ask(connection, "/-/info")
    rows = [one["n"] for one in json.loads(ask(connection, f"/-/samples?limit={SCREEN}{query}"))["samples"]]
    assert len(rows) == SCREEN

    def pictures(part: list[int]) -> None:
        mine = http.client.HTTPConnection("127.0.0.1", live.port)
        for row in part:
            ask(mine, f"/-/thumbnails/{row}?size=160")
        mine.close()

    threads = [threading.Thread(target=pictures, args=(rows[i::6],)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    connection.close()
    return time.perf_counter() - began


@pytest.mark.parametrize("query", ["", "&where=cls%20between%203%20and%20400&sort=cls&desc=1"], ids=["all", "query"])
def bench_serve_gallery(benchmark: Any, million: Path, tmp_path: Path, query: str) -> None:
    """The first screen of a server that was just started, and the same again."""
    cold, again = [], []

    def first() -> float:
        with serving(tmp_path, million) as live:
            cold.append(screen(live, query))
            again.append(screen(live, query))
        return cold[-1]

    run: Callable[[], float] = first
    benchmark.pedantic(run, rounds=5)
    cold, again = sorted(cold), sorted(again)
    benchmark.extra_info.update(
        work=f"first screen, {SCREEN} thumbnails of {MILLION} samples: {cold[2]:.3f} s cold, {again[2]:.3f} s warm",
        unit="screens/s",
        rate=1 / cold[2],
        spread=[1 / cold[-1], 1 / cold[0]],
    )
