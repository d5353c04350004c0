"""Random access, warm: wdstools.open(...)[i] against wids 0.2.111, the same random numbers, every payload touched.

Small payloads are taken out as bytes by both and searched through; numpy's call would cost more than the reading.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import wdstools
from bench.compare import compare, touch
from bench.conftest import LARGE_COUNT, SMALL_COUNT
from wdstools import build


def run(
    benchmark: Any, wids: Any, shards: list[str], count: int, picks: int, work: str, target: float, small: bool
) -> None:
    build.build(shards).save(str(Path(shards[0]).parent / "wds.wdsindex"))
    mine = wdstools.open(shards)
    per_shard = count // len(shards)
    table = [{"url": shard, "nsamples": per_shard} for shard in shards]
    theirs = wids.ShardListDataset(table, lru_size=len(shards), transformations=[])  # raw, as ours
    rng = random.Random(0)
    numbers = [rng.randrange(count) for _ in range(picks)]
    for i in numbers[:20]:
        assert theirs[i][".bin"].read() == mine[i]["bin"]

    def ours() -> None:
        for i in numbers:
            touch(mine[i]["bin"])

    def their() -> None:
        for i in numbers:
            touch(theirs[i][".bin"].getbuffer())

    def ours_small() -> None:
        for i in numbers:
            mine[i]["bin"].count(b"\n")

    def their_small() -> None:
        for i in numbers:
            theirs[i][".bin"].read().count(b"\n")

    calls = (ours_small, their_small) if small else (ours, their)
    compare(benchmark, work, picks, "samples/s", calls[0], {"wids": calls[1]}, {"wids": target})


def bench_small(benchmark: Any, wids: Any, small: list[str]) -> None:
    run(benchmark, wids, small, SMALL_COUNT, 50_000, "open(...)[i], 1 kB, touched", 5, True)


def bench_large(benchmark: Any, wids: Any, large: list[str]) -> None:
    run(benchmark, wids, large, LARGE_COUNT, 10_000, "open(...)[i], 110 kB, touched", 1.2, False)
