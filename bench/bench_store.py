"""Batches of ranges out of an object 20 ms away: read_ranges, s3fs one by one, and the bare threads of obstore.

The server is nginx, which answers a GET by path as S3 does; tests/faultproxy.py, in a process of its own, adds the
latency. Needs `apt-get install nginx-light` and `pip install s3fs obstore`.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bench.compare import compare
from bench.data import LARGE
from tests.servers import nginx
from wdstools.store import open_store

LATENCY = 0.020  # seconds
BATCH = 256
COUNT = 4000  # samples in the shard
THREADS = 64


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An S3 endpoint with the object bucket/a.tar."""
    folder: Path = tmp_path_factory.mktemp("nginx")
    with nginx(folder) as server:
        (server.root / "bucket").mkdir()
        with open(server.root / "bucket" / "a.tar", "wb") as file:
            for _ in range(COUNT):
                file.write(random.randbytes(LARGE))
        command = [sys.executable, "-m", "tests.faultproxy", str(server.port), str(LATENCY)]
        proxy = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert proxy.stdout is not None
        try:
            yield f"http://127.0.0.1:{proxy.stdout.readline().strip()}"
        finally:
            proxy.kill()
            proxy.communicate()


def bench_ranges(benchmark: Any, endpoint: str) -> None:
    import obstore
    import s3fs
    from obstore.store import S3Store

    batch = [(i * LARGE, (i + 1) * LARGE) for i in random.Random(0).sample(range(COUNT), BATCH)]
    options = {"key": "k", "secret": "s", "endpoint_url": endpoint}
    store, path = open_store("s3://bucket/a.tar", options)
    files = s3fs.S3FileSystem(**options, skip_instance_cache=True)
    bare = S3Store(
        "bucket",
        endpoint=endpoint,
        access_key_id="k",
        secret_access_key="s",
        region="us-east-1",
        client_options={"allow_http": True},
    )
    threads = ThreadPoolExecutor(THREADS)

    def one(span: tuple[int, int]) -> Any:
        return obstore.get_range(bare, "a.tar", start=span[0], end=span[1])

    def ours() -> None:
        assert sum(map(len, store.read_ranges(path, batch))) == BATCH * LARGE

    def one_by_one() -> None:
        assert sum(len(files.cat_file("bucket/a.tar", start=start, end=end)) for start, end in batch) == BATCH * LARGE

    def threaded() -> None:
        assert sum(map(len, threads.map(one, batch))) == BATCH * LARGE

    compare(
        benchmark,
        f"256 ranges of 110 kB, {1000 * LATENCY:g} ms away",
        BATCH,
        "ranges/s",
        ours,
        {"s3fs one by one": one_by_one, f"obstore, {THREADS} threads": threaded},
        {"s3fs one by one": 5, f"obstore, {THREADS} threads": 0.8},
    )
