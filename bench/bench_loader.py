"""The training loop's side: wdstools.loader against webdataset + WebLoader and litdata, two workers, raw samples.

Each gives shuffled batches of BATCH samples as a dict of lists of bytes, for an epoch; the consumer touches every byte
of every payload. Workers are kept from epoch to epoch by all three, and start in the round that is not counted.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
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
