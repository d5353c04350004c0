"""Random access: wdstools.open(...)[i] and .fetch of batches against wids 0.2.111, warm; .fetch against fio, cold.

The same random numbers, every payload touched. Small payloads are taken out as bytes by both and searched through;
numpy's call would cost more than the reading. wids has no batches: it is asked for one sample after the other, which
are used at once ("wids") or, as fetch gives them, when there are BATCH of them ("in lists").
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import wdstools
from bench.compare import compare, touch
from bench.conftest import LARGE_COUNT, SMALL_COUNT
from wdstools import build

BATCH = 256
DEPTH = 16


def open_both(wids: Any, shards: list[str], count: int) -> tuple[wdstools.Dataset, Any]:
    build.build(shards).save(str(Path(shards[0]).parent / "wds.wdsindex"))
    mine = wdstools.open(shards)
    table = [{"url": shard, "nsamples": count // len(shards)} for shard in shards]
    theirs = wids.ShardListDataset(table, lru_size=len(shards), transformations=[])  # raw, as ours
    for i in random.Random(1).choices(range(count), k=20):
        assert theirs[i][".bin"].read() == mine[i]["bin"]
    return mine, theirs


def search(payload: bytes) -> int:
    return payload.count(b"\n")


def get_bytes(file: Any) -> bytes:
    return file.read()  # type: ignore[no-any-return]


def get_buffer(file: Any) -> memoryview:
    return file.getbuffer()  # type: ignore[no-any-return]


def run(
    benchmark: Any, wids: Any, shards: list[str], count: int, picks: int, work: str, target: float, small: bool
) -> None:
    mine, theirs = open_both(wids, shards, count)
    numbers = random.Random(0).choices(range(count), k=picks)
    use: Callable[[Any], int] = search if small else touch
    get: Callable[[Any], Any] = get_bytes if small else get_buffer

    def ours() -> None:
        for i in numbers:
            use(mine[i]["bin"])

    def their() -> None:
        for i in numbers:
            use(get(theirs[i][".bin"]))

    compare(benchmark, work, picks, "samples/s", ours, {"wids": their}, {"wids": target})


def fetch(
    benchmark: Any, wids: Any, shards: list[str], count: int, batches: int, work: str, target: float, small: bool
) -> None:
    mine, theirs = open_both(wids, shards, count)
    draw = random.Random(0)
    numbers = [draw.choices(range(count), k=BATCH) for _ in range(batches)]
    use: Callable[[Any], int] = search if small else touch
    get: Callable[[Any], Any] = get_bytes if small else get_buffer

    def ours() -> None:
        for batch in numbers:
            for sample in mine.fetch(batch):
                use(sample["bin"])

    def their() -> None:
        for batch in numbers:
            for i in batch:
                use(get(theirs[i][".bin"]))

    def their_lists() -> None:
        for batch in numbers:
            for sample in [theirs[i] for i in batch]:
                use(get(sample[".bin"]))

    peers = {"wids": their, "wids, in lists": their_lists}
    compare(benchmark, work, batches * BATCH, "samples/s", ours, peers, dict.fromkeys(peers, target))


def bench_small(benchmark: Any, wids: Any, small: list[str]) -> None:
    run(benchmark, wids, small, SMALL_COUNT, 50_000, "open(...)[i], 1 kB, touched", 5, True)


def bench_large(benchmark: Any, wids: Any, large: list[str]) -> None:
    run(benchmark, wids, large, LARGE_COUNT, 10_000, "open(...)[i], 110 kB, touched", 1.2, False)


def bench_fetch_small(benchmark: Any, wids: Any, small: list[str]) -> None:
    fetch(benchmark, wids, small, SMALL_COUNT, 200, f"fetch of {BATCH}, 1 kB, touched", 10, True)


def bench_fetch_large(benchmark: Any, wids: Any, large: list[str]) -> None:
    fetch(benchmark, wids, large, LARGE_COUNT, 40, f"fetch of {BATCH}, 110 kB, touched", 1.5, False)


def bench_fetch_cold(benchmark: Any, large: list[str]) -> None:
    """The samples of a batch are dropped from the page cache before it is fetched; fio goes past the page cache."""
    index = build.build(large)
    index.save(str(Path(large[0]).parent / "wds.wdsindex"))
    mine = wdstools.open(large)
    draw = random.Random(0)
    batches = [draw.sample(range(LARGE_COUNT), BATCH) for _ in range(8)]
    _, _, start, end = index.locate(1)  # all are of one size
    command = [
        "fio",
        "--name=cold",
        f"--filename={':'.join(large)}",
        "--rw=randread",
        f"--bs={end - start}",
        "--direct=1",
    ]
    command += ["--ioengine=io_uring", f"--iodepth={DEPTH}", "--time_based", "--runtime=2", "--readonly"]
    files = [os.open(path, os.O_RDONLY) for path in large]

    def ours() -> float:
        took = 0.0
        for batch in batches:
            for fd in files:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            begin = time.perf_counter()
            mine.fetch(batch)
            took += time.perf_counter() - begin
        return took

    def fio() -> float:
        """Seconds for as many bytes."""
        done = subprocess.run([*command, "--output-format=json"], check=True, capture_output=True, text=True)
        rate = json.loads(done.stdout)["jobs"][0]["read"]["bw_bytes"]
        return len(batches) * BATCH * (end - start) / float(rate)

    name = f"fio io_uring, depth {DEPTH}, O_DIRECT"
    units = len(batches) * BATCH * (end - start) / 1e6
    compare(benchmark, f"fetch of {BATCH}, 110 kB, cold", units, "MB/s", ours, {name: fio}, {name: 0.9})
    for fd in files:
        os.close(fd)
