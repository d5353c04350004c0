"""A checkup of a warm set with its index: headers only against iterating with tarfile; with checksums against dd."""

from __future__ import annotations

import re
import subprocess
import tarfile
from typing import Any

from bench import data
from bench.compare import compare
from bench.conftest import LARGE_COUNT, SMALL_COUNT
from wdstools import build
from wdstools.doctor.checkup import Lot, Options, checkup


def ours(shards: list[str], index: Any, count: int, **options: Any) -> None:
    report = checkup(Lot(shards, index, "bench"), Options(workers=2, **options))
    assert (report.errors, report.samples) == (0, count)
    assert not options or len(report.checksums) == len(shards)


def theirs(shards: list[str]) -> None:
    for shard in shards:
        with tarfile.open(shard, "r:") as archive:
            for _ in archive:
                archive.members = []  # type: ignore[attr-defined]  # or it keeps them all


def dd(shards: list[str]) -> float:
    """The seconds that dd itself reports."""
    said = [
        subprocess.run(["dd", f"if={s}", "of=/dev/null", "bs=4M"], capture_output=True, text=True).stderr
        for s in shards
    ]
    return sum(float(re.findall(r"([0-9.e-]+) s,", text)[-1]) for text in said)


def headers(benchmark: Any, shards: list[str], count: int, what: str) -> None:
    index = build.build(shards)
    work = f"wds-index check, headers, {what} samples"
    peers = {"tarfile": lambda: theirs(shards)}
    compare(benchmark, work, 2 * count, "members/s", lambda: ours(shards, index, count), peers, {"tarfile": 30})


def checksums(benchmark: Any, shards: list[str], count: int, what: str) -> None:
    index = build.build(shards)
    work, nbytes = f"wds-index check --checksums, {what} samples", data.total_bytes(shards)
    peers = {"dd": lambda: dd(shards)}
    compare(
        benchmark, work, nbytes / 1e6, "MB/s", lambda: ours(shards, index, count, checksums=True), peers, {"dd": 0.5}
    )


def bench_small_headers(benchmark: Any, small: list[str]) -> None:
    headers(benchmark, small, SMALL_COUNT, "1 kB")


def bench_large_headers(benchmark: Any, large: list[str]) -> None:
    headers(benchmark, large, LARGE_COUNT, "110 kB")


def bench_small_checksums(benchmark: Any, small: list[str]) -> None:
    checksums(benchmark, small, SMALL_COUNT, "1 kB")


def bench_large_checksums(benchmark: Any, large: list[str]) -> None:
    checksums(benchmark, large, LARGE_COUNT, "110 kB")
