"""The training loop's side: wdstools.loader against webdataset + WebLoader and litdata, two workers, raw samples; the
iterable path against webdataset's own; the first batch after a resume against that of an epoch's start.

Each gives shuffled batches of BATCH samples as a dict of lists of bytes, for an epoch; the consumer touches every byte
of every payload. Workers are kept from epoch to epoch by all three, and start in the round that is not counted.
"""

from __future__ import annotations

import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import webdataset

import wdstools
import wdstools.loader
from bench import data
from bench.compare import compare, touch
from bench.conftest import LARGE_COUNT
from wdstools import build

BATCH = 64
WORKERS = 2


def lists(samples: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [sample[name] for sample in samples] for name in samples[0]}


def consume(batches: Any, least: int) -> None:
    n = 0
    for batch in batches:
        payloads = batch["bin"]
        for payload in payloads:
            touch(payload)
        n += len(payloads)
    assert n >= least, n


@pytest.fixture(scope="module")
def litdata_large(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same samples, optimised by litdata into a format of its own."""
    folder = tmp_path_factory.mktemp("litdata")
    script = Path(__file__).with_name("litdata_optimize.py")
    command = [sys.executable, str(script), str(folder), str(LARGE_COUNT), str(data.LARGE)]
    subprocess.run(command, check=True, capture_output=True)
    data.warm([str(path) for path in folder.glob("*.bin")])
    return str(folder)


def bench_large(benchmark: Any, large: list[str], litdata_large: str) -> None:
    import litdata

    build.build(large).save(str(Path(large[0]).parent / "wds.wdsindex"))
    dataset = wdstools.open(large)
    mine = wdstools.loader.loader(dataset, BATCH, num_workers=WORKERS, persistent_workers=True)
    pipeline = webdataset.WebDataset(large, shardshuffle=len(large)).shuffle(1000)  # the buffer of its examples
    web = webdataset.WebLoader(
        pipeline.batched(BATCH, collation_fn=lists), batch_size=None, num_workers=WORKERS, persistent_workers=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lit = litdata.StreamingDataLoader(
            litdata.StreamingDataset(litdata_large, shuffle=True),
            batch_size=BATCH, num_workers=WORKERS, persistent_workers=True, collate_fn=lists,
        )  # fmt: skip
    least = LARGE_COUNT - BATCH * WORKERS * 2
    compare(
        benchmark,
        f"loader, {WORKERS} workers, raw 110 kB samples, shuffled, touched",
        LARGE_COUNT,
        "samples/s",
        lambda: consume(mine, least),
        {"webdataset + WebLoader": lambda: consume(web, least), "litdata": lambda: consume(lit, least)},
        {"webdataset + WebLoader": 2, "litdata": 2},
    )


def bench_iterable(benchmark: Any, large: list[str]) -> None:
    """Webdataset's way on both sides: shards dealt to two workers, a buffer of 1000, batches made in the workers."""
    shards = wdstools.iterable(large, buffer=1000)
    collate = wdstools.loader.Collate()
    mine: Any = torch.utils.data.DataLoader(
        shards, batch_size=BATCH, num_workers=WORKERS, collate_fn=collate, persistent_workers=True
    )
    pipeline = webdataset.WebDataset(large, shardshuffle=len(large)).shuffle(1000)
    web = webdataset.WebLoader(
        pipeline.batched(BATCH, collation_fn=lists), batch_size=None, num_workers=WORKERS, persistent_workers=True
    )
    compare(
        benchmark,
        f"iterable, {WORKERS} workers, raw 110 kB samples, buffer of 1000, touched",
        LARGE_COUNT,
        "samples/s",
        lambda: consume(mine, LARGE_COUNT),
        {"webdataset + WebLoader": lambda: consume(web, LARGE_COUNT)},
    )


@pytest.mark.parametrize("workers", [0, WORKERS])
def bench_resume(benchmark: Any, large: list[str], workers: int) -> None:
    """Seconds to the first batch of a new loader: after load_state_dict() at 90% of an epoch, and at its start."""
    build.build(large).save(str(Path(large[0]).parent / "wds.wdsindex"))
    dataset = wdstools.open(large)
    steps = LARGE_COUNT // BATCH

    def first(step: int) -> float:
        mine = wdstools.loader.loader(dataset, BATCH, num_workers=workers)
        if step:
            mine.load_state_dict({**mine.state_dict(), "step": step})
        start = time.perf_counter()
        batches = iter(mine)
        batch = next(batches)
        seconds = time.perf_counter() - start
        assert len(batch["bin"]) == BATCH
        return seconds

    def several(step: int) -> float:
        return sum(first(step) for _ in range(5))

    compare(
        benchmark,
        f"first batch after a resume at 90%, {workers} workers",
        5,
        "first batches/s",
        lambda: several(steps * 9 // 10),
        {"at the start of an epoch": lambda: several(0)},
        {"at the start of an epoch": 1},
    )
