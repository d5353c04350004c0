"""Indexing: build.build, two workers, against iterating with tarfile (which only reads headers, too)."""

from __future__ import annotations

import tarfile
from typing import Any

from bench.compare import compare
from bench.conftest import LARGE_COUNT, SMALL_COUNT
from wdstools import build


def ours(shards: list[str], count: int) -> None:
    assert len(build.build(shards, workers=2)) == count


def theirs(shards: list[str]) -> None:
    for shard in shards:
        with tarfile.open(shard, "r:") as archive:
            for _ in archive:
                archive.members = []  # type: ignore[attr-defined]  # or it keeps them all


def bench_small(benchmark: Any, small: list[str]) -> None:
    compare(
        benchmark,
        "wds-index build, 1 kB members",
        2 * SMALL_COUNT,
        "members/s",
        lambda: ours(small, SMALL_COUNT),
        {"tarfile": lambda: theirs(small)},
        {"tarfile": 100},
    )


def bench_large(benchmark: Any, large: list[str]) -> None:
    compare(
        benchmark,
        "wds-index build, 110 kB members",
        2 * LARGE_COUNT,
        "members/s",
        lambda: ours(large, LARGE_COUNT),
        {"tarfile": lambda: theirs(large)},
        {"tarfile": 30},
    )
