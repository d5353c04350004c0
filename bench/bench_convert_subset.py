"""A tenth of a set of shards as new shards: wds-shard, which copies byte ranges, against reading and writing with
webdataset. Ours is a process of its own, from its start to its end; theirs has been imported already."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import webdataset

import wdstools
from bench import data
from bench.compare import compare
from wdstools.build import refresh

SIZES = {"1 kB": (data.SMALL, int(os.environ.get("BENCH_SUBSET_SMALL", "100000"))),
         "110 kB": (data.LARGE, int(os.environ.get("BENCH_SUBSET_LARGE", "20000")))}  # fmt: skip


def keys(folder: Path) -> list[str]:
    return [str(sample["__key__"]) for sample in wdstools.stream(sorted(map(str, folder.glob("*.tar"))))]


@pytest.mark.parametrize("size", SIZES)
def bench_subset(benchmark: Any, tmp_path: Path, size: str) -> None:
    nbytes, count = SIZES[size]
    (tmp_path / "in").mkdir()
    shards = data.webdataset_shards(tmp_path / "in", count, nbytes, count // 10)
    data.warm(shards)
    refresh(str(tmp_path / "in/wds.wdsindex"), shards, lift=["cls"])
    out = tmp_path / "out"

    def empty() -> None:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()

    def ours() -> None:
        command = [sys.executable, "-c", "from wdstools.cli.shard import main; main()", "--where", "cls % 10 = 3"]
        subprocess.run([*command, str(tmp_path / "in/wds.wdsindex"), f"{out}/s-%06d.tar"], check=True)

    def theirs() -> None:
        with webdataset.ShardWriter(f"{out}/s-%06d.tar", maxcount=10_000, verbose=0) as sink:
            for sample in webdataset.WebDataset(shards, shardshuffle=False):
                if int(sample["cls"]) % 10 == 3:
                    sink.write({name: value for name, value in sample.items() if name != "__url__"})

    work = f"10% of {count:,} samples of {size} as new shards"
    compare(benchmark, work, count // 10, "samples/s", ours, {"webdataset": theirs}, {"webdataset": 20}, before=empty)
    empty()
    ours()
    mine = keys(out)
    empty()
    theirs()
    assert mine == keys(out)
    shutil.rmtree(tmp_path)
