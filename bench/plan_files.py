"""Memory and time of what wds-shard does before and after the writing, with any number of files, none of them on disk:

`python -m bench.plan_files [--files 1000000]`

Listing, shuffling and planning: class folders of 1,300 files, as ImageNet has them, whose contents are made up where
the folder would be scanned; everything behind that is what runs otherwise. Merging: parts of 10,000 samples, as shards
leave them. Each runs on N files and on four times as many, in a process of its own. What 100,000,000 files take is a
straight line through both: a calculation, and no measurement.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

PER_CLASS, PER_SHARD = 1300, 10_000
NBYTES = 110_000
WANTED = 100_000_000


class Made:
    """What os.scandir would tell of a file that is not there."""

    __slots__ = ("name",)
    ABOUT = SimpleNamespace(st_mode=0o100644, st_size=NBYTES, st_mtime_ns=1_700_000_000_000_000_000)

    def __init__(self, name: str) -> None:
        self.name = name

    def is_dir(self) -> bool:
        return False

    def is_symlink(self) -> bool:
        return False

    def stat(self) -> SimpleNamespace:
        return self.ABOUT


def scan(folder: str) -> Iterator[Made]:
    """The files of a class, in an order that is not theirs."""
    for i in range(PER_CLASS):
        yield Made(f"n{folder[-8:-1]}_{i * 997 % PER_CLASS:06d}.JPEG")


def plan(folder: Path, count: int) -> int:
    """List, shuffle and pack; returns the samples in the plan, and its journal is made."""
    from wdstools.convert.options import Options
    from wdstools.convert.plan import make_plan

    for c in range(count // PER_CLASS):
        (folder / "in" / f"n{c:08d}").mkdir(parents=True)
    with mock.patch("wdstools.convert.tree._scan", scan):
        ready = make_plan(str(folder / "in"), str(folder / "out/t-%06d.tar"), Options(maxcount=PER_SHARD))
    assert ready.saved is not None
    return sum(row[0] for target in ready.saved.to_json() for row in target["shards"])


def merge(folder: Path, count: int) -> int:
    """Merge the parts of all shards; returns the samples of the index."""
    from wdstools.index import Index
    from wdstools.merge import merge_files

    paths = [str(folder / f"{number}.part") for number in range(count // PER_SHARD)]
    merge_files(paths, str(folder / "t.wdsindex"), trusted=True)
    return len(Index.load(str(folder / "t.wdsindex")))


def parts(folder: Path, count: int) -> None:
    """Write the parts that merge() reads."""
    import numpy as np
    import pyarrow as pa

    from bench.bench_billion import HUGE, ROW_BYTES, batch
    from bench.bench_billion import PER_SHARD as ROWS
    from wdstools import _core
    from wdstools.index import Index
    from wdstools.shardtable import Shards

    assert PER_SHARD <= ROWS
    for number in range(count // PER_SHARD):
        first = number * PER_SHARD
        keys = (b"%d" % (HUGE + first + i) for i in range(PER_SHARD))
        hashes = np.fromiter((_core.hash_key(key) for key in keys), np.uint64, PER_SHARD)
        order = np.argsort(hashes, kind="stable").astype(np.uint64)
        rows = batch(first, PER_SHARD, np.zeros(PER_SHARD, np.uint32), hashes[order], order)
        shards = Shards([f"/data/t-{number:06d}.tar"], [ROWS * ROW_BYTES + 1024], [0], [PER_SHARD], [PER_SHARD])
        Index(pa.Table.from_batches([rows]), shards).save(folder / f"{number}.part", sync=False)


JOBS: dict[str, Callable[[Path, int], int]] = {"list, shuffle, plan": plan, "merge the parts": merge}


def measure(job: str, folder: str, count: int) -> None:
    """In a process of its own: seconds, and the peak of the resident set in bytes."""
    import resource

    import numpy  # noqa: F401  with pyarrow: what any job has in memory
    import pyarrow  # noqa: F401

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    began = time.monotonic()
    found = JOBS[job](Path(folder), count)
    seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"files": found, "seconds": seconds, "before": before, "peak": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1_000_000)
    least = parser.parse_args().files
    print(f"| job | files | seconds | peak MB | {WANTED:,} files, calculated |\n|---|---|---|---|---|")
    for job in JOBS:
        told: list[dict[str, Any]] = []
        for count in (least, 4 * least):
            with tempfile.TemporaryDirectory() as folder:
                if job == "merge the parts":
                    parts(Path(folder), count)
                code = f"from bench.plan_files import measure; measure({job!r}, {folder!r}, {count})"
                done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
                told.append(json.loads(done.stdout))
        few, many = told
        slope = (many["peak"] - few["peak"]) / (many["files"] - few["files"])
        reach = many["peak"] + slope * (WANTED - many["files"])
        for one, more in ((few, ""), (many, f"{reach / 1e9:.1f} GB ({slope:.0f} bytes a file)")):
            print(f"| {job} | {one['files']:,} | {one['seconds']:.0f} | {one['peak'] / 1e6:.0f} | {more} |", flush=True)


if __name__ == "__main__":
    main()
