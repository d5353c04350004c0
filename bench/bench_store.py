"""Batches out of objects 20 ms away, of ranges through read_ranges and of samples through a Dataset, beside s3fs one by
one and the bare threads of obstore.

The server is nginx, which answers a GET by path as S3 does; tests/faultproxy.py, in a process of its own, adds the
latency. Needs `apt-get install nginx-light` and `pip install s3fs obstore`.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import wdstools
from bench.compare import compare
from bench.data import LARGE
from tests.servers import nginx
from wdstools import ShardWriter
from wdstools.store import open_store

LATENCY = 0.020  # seconds
BATCH = 256
COUNT = 4000  # samples in the object, and in the shards
SHARDS = 20
THREADS = 64


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An S3 endpoint with the object bucket/a.tar, and the shards bucket/s-*.tar with an index."""
    folder: Path = tmp_path_factory.mktemp("nginx")
    with nginx(folder) as server:
        (server.root / "bucket").mkdir()
        with open(server.root / "bucket" / "a.tar", "wb") as file:
            for _ in range(COUNT):
                file.write(random.randbytes(LARGE))
        with ShardWriter(str(server.root / "bucket" / "s-%03d.tar"), maxcount=COUNT // SHARDS) as sink:
            for i in range(COUNT):
                sink.write({"__key__": f"{i:06d}", "bin": random.randbytes(LARGE)})
        command = [sys.executable, "-m", "tests.faultproxy", str(server.port), str(LATENCY)]
        proxy = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert proxy.stdout is not None
        try:
            yield f"http://127.0.0.1:{proxy.stdout.readline().strip()}"
        finally:
            proxy.kill()
            proxy.communicate()


def bench_ranges(benchmark: Any, endpoint: str) -> None:
    batch = [("a.tar", i * LARGE, (i + 1) * LARGE) for i in random.Random(0).sample(range(COUNT), BATCH)]
    store, path = open_store("s3://bucket/a.tar", options(endpoint))

    def ours() -> None:
        assert sum(map(len, store.read_ranges(path, [(start, end) for _, start, end in batch]))) == BATCH * LARGE

    against(benchmark, endpoint, f"256 ranges of 110 kB, {1000 * LATENCY:g} ms away", "ranges/s", batch, ours)


def bench_fetch(benchmark: Any, endpoint: str) -> None:
    dataset = wdstools.open("s3://bucket/s.wdsindex", storage_options=options(endpoint))
    numbers = random.Random(0).sample(range(COUNT), BATCH)
    places = [dataset.index.locate(number) for number in numbers]
    batch = [(f"s-{shard:03d}.tar", start, end) for _, shard, start, end in places]

    def ours() -> None:
        assert sum(len(sample["bin"]) for sample in dataset.fetch(numbers)) == BATCH * LARGE

    name = f"256 samples of 110 kB out of {SHARDS} shards, {1000 * LATENCY:g} ms away"
    against(benchmark, endpoint, name, "samples/s", batch, ours)


def options(endpoint: str) -> dict[str, str]:
    return {"key": "k", "secret": "s", "endpoint_url": endpoint}


def against(
    benchmark: Any, endpoint: str, name: str, unit: str, batch: list[tuple[str, int, int]], ours: Callable[[], None]
) -> None:
    """Compare with what asks for the same (object, start, end) by itself, one request each."""
    import obstore
    import s3fs
    from obstore.store import S3Store

    files = s3fs.S3FileSystem(**options(endpoint), skip_instance_cache=True)
    bare = S3Store(
        "bucket",
        endpoint=endpoint,
        access_key_id="k",
        secret_access_key="s",
        region="us-east-1",
        client_options={"allow_http": True},
    )
    threads = ThreadPoolExecutor(THREADS)
    nbytes = sum(end - start for _, start, end in batch)

    def one(place: tuple[str, int, int]) -> Any:
        return obstore.get_range(bare, place[0], start=place[1], end=place[2])

    def one_by_one() -> None:
        found = (files.cat_file(f"bucket/{path}", start=start, end=end) for path, start, end in batch)
        assert sum(map(len, found)) == nbytes

    def threaded() -> None:
        assert sum(map(len, threads.map(one, batch))) == nbytes

    compare(
        benchmark,
        name,
        BATCH,
        unit,
        ours,
        {"s3fs one by one": one_by_one, f"obstore, {THREADS} threads": threaded},
        {"s3fs one by one": 5, f"obstore, {THREADS} threads": 0.8},
    )
