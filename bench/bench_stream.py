"""Samples in shard order: wdstools.stream against webdataset, litdata and dd, on the shards that webdataset wrote."""

from __future__ import annotations

import re
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import webdataset

import wdstools
from bench import data
from bench.compare import compare, touch
from bench.conftest import LARGE_COUNT, SMALL_COUNT


def count_ours(shards: list[str], **options: Any) -> None:
    n = sum(1 for _ in wdstools.stream(shards, **options))
    assert n in (SMALL_COUNT, LARGE_COUNT)


def count_webdataset(shards: list[str]) -> None:
    n = sum(1 for _ in webdataset.WebDataset(shards, shardshuffle=False))
    assert n in (SMALL_COUNT, LARGE_COUNT)


def touch_all(samples: Any) -> None:
    for sample in samples:
        touch(sample["bin"])


def dd(shards: list[str]) -> float:
    """The seconds that dd itself reports."""
    said = [
        subprocess.run(["dd", f"if={s}", "of=/dev/null", "bs=4M"], capture_output=True, text=True).stderr
        for s in shards
    ]
    return sum(float(re.findall(r"([0-9.e-]+) s,", text)[-1]) for text in said)


@pytest.fixture(scope="module")
def litdata_small(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], None]:
    """The same samples, optimised by litdata into a format of its own."""
    import litdata

    folder = tmp_path_factory.mktemp("litdata")
    script = Path(__file__).with_name("litdata_optimize.py")
    subprocess.run(
        ["python", str(script), str(folder), str(SMALL_COUNT), str(data.SMALL)], check=True, capture_output=True
    )

    def run() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert sum(1 for _ in litdata.StreamingDataset(str(folder))) == SMALL_COUNT

    return run


def bench_small(benchmark: Any, small: list[str], litdata_small: Callable[[], None]) -> None:
    compare(
        benchmark,
        "stream 1 kB samples, one process",
        SMALL_COUNT,
        "samples/s",
        lambda: count_ours(small),
        {"webdataset": lambda: count_webdataset(small), "litdata": litdata_small},
        {"webdataset": 100, "litdata": 4},
    )


def bench_small_own(benchmark: Any, tmp_path: Path) -> None:
    with wdstools.ShardWriter(f"{tmp_path}/own-%06d.tar", maxcount=SMALL_COUNT // 4) as sink:
        for sample in data.samples(SMALL_COUNT, data.SMALL):
            sink.write(sample)
    shards = sorted(map(str, tmp_path.glob("*.tar")))
    compare(
        benchmark,
        "the same from shards that wdstools wrote (plain ustar)",
        SMALL_COUNT,
        "samples/s",
        lambda: count_ours(shards),
        {"webdataset": lambda: count_webdataset(shards)},
    )


def bench_large_views(benchmark: Any, large: list[str]) -> None:
    compare(
        benchmark,
        "stream 110 kB samples as views, every byte touched",
        LARGE_COUNT,
        "samples/s",
        lambda: touch_all(wdstools.stream(large, views=True)),
        {"webdataset": lambda: touch_all(webdataset.WebDataset(large, shardshuffle=False)), "dd": lambda: dd(large)},
        {"webdataset": 10, "dd": 0.85},
    )


def bench_large_bytes(benchmark: Any, large: list[str]) -> None:
    compare(
        benchmark,
        "stream 110 kB samples as bytes, every byte touched",
        LARGE_COUNT,
        "samples/s",
        lambda: touch_all(wdstools.stream(large)),
        {"webdataset": lambda: touch_all(webdataset.WebDataset(large, shardshuffle=False))},
        {"webdataset": 6},
    )
