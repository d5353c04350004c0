"""An index of a thousand million rows: opening it, its memory, and random rows of it; `python -m bench.bench_billion`
measures each in a process of its own, the functions below compare with pyarrow.

Its file would have 63 GB. This one is an Arrow file whose footer names the same batches, ten million different rows in
all, again and again, which is legal; all rows are in one of 10,000 shards, as their shards would repeat, too. Opening
and looking rows up do what they would do in the whole file, but for the disk: the page cache holds all of it. Queries
and find() make no sense there. The index of twenty million rows is a real one.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from bench.compare import compare
from wdstools import _core, indexfile
from wdstools.columns import make_fields
from wdstools.index import BATCH_ROWS, Index
from wdstools.shardtable import Shards

HUGE, DIFFERENT, REAL = 1_000_000_000, 153 * BATCH_ROWS, 20_000_000
PER_SHARD, SHARDS = 100_000, 10_000
ROW_BYTES = 2048  # of a sample in its shard
CALLS = 100_000


def batch(first: int, count: int, shard: Any, hashes: Any, rows: Any) -> pa.RecordBatch:
    """Rows as wds-index writes them: a key of ten digits, one field."""
    numbers = np.arange(first, first + count, dtype=np.int64)
    starts = (numbers % PER_SHARD).astype(np.uint64) * np.uint64(ROW_BYTES)
    places = [starts, starts + np.uint64(512), np.full(count, 1024, np.uint64)]
    columns = {
        "key": pa.array(numbers + HUGE).cast(pa.utf8()),
        "shard": pa.array(shard, pa.uint32()),
        "start": pa.array(starts),
        "end": pa.array(starts + np.uint64(ROW_BYTES)),
        "fields": make_fields(np.arange(1, count + 1), np.zeros(count, np.int32), ["jpg"], places),
        "_hash": pa.array(hashes, pa.uint64()),
        "_row": pa.array(rows, pa.uint64()),
    }
    return pa.RecordBatch.from_pydict(columns)


def shard_table(nsamples: list[int]) -> Shards:
    n = len(nsamples)
    urls = [f"/data/train-{i:06d}.tar" for i in range(n)]
    return Shards(urls, [PER_SHARD * ROW_BYTES + 1024] * n, [0] * n, nsamples, nsamples)


def real(path: Path, rows: int = REAL) -> Path:
    """An index of so many rows, with everything that belongs to it."""
    hashes = np.fromiter((_core.hash_key(b"%d" % (HUGE + i)) for i in range(rows)), np.uint64, rows)
    order = np.argsort(hashes, kind="stable").astype(np.uint64)
    hashes = hashes[order]

    def batches() -> Iterator[pa.RecordBatch]:
        for first in range(0, rows, BATCH_ROWS):
            part = slice(first, min(first + BATCH_ROWS, rows))
            shard = np.arange(part.start, part.stop) // PER_SHARD
            yield batch(first, part.stop - first, shard, hashes[part], order[part])

    schema = batch(0, 1, [0], [0], [0]).schema
    full, rest = divmod(rows, PER_SHARD)
    indexfile.write(path, schema, batches(), shard_table([PER_SHARD] * full + [rest] * bool(rest)), {}, sync=False)
    return path


def huge(path: Path) -> Path:
    """The index of a thousand million rows that is described above."""
    last = HUGE % BATCH_ROWS
    sizes = [BATCH_ROWS] * (DIFFERENT // BATCH_ROWS) + [last]
    parts = (
        batch(i * BATCH_ROWS, n, np.zeros(n), np.arange(n) + i * BATCH_ROWS, np.arange(n)) for i, n in enumerate(sizes)
    )
    schema = batch(0, 1, [0], [0], [0]).schema
    indexfile.write(path, schema, parts, shard_table([HUGE] + [0] * (SHARDS - 1)), {}, sync=False)
    with open(path, "r+b") as file:
        file.seek(-10, 2)
        (nbytes,) = struct.unpack("<i", file.read(4))
        start = file.seek(-10 - nbytes, 2)
        footer = repeated(file.read(nbytes), HUGE // BATCH_ROWS)
        file.seek(start)
        file.write(footer + struct.pack("<i", len(footer)) + b"ARROW1")
    return path


def repeated(footer: bytes, full: int) -> bytes:
    """The footer (a flatbuffer) with another list of batches, put behind it: all but the last, in turn, until there are
    `full`, and the last."""
    (root,) = struct.unpack_from("<I", footer)
    vtable = root - struct.unpack_from("<i", footer, root)[0]
    at = root + struct.unpack_from("<H", footer, vtable + 4 + 2 * 3)[0]  # the fourth field: recordBatches
    begin = at + struct.unpack_from("<I", footer, at)[0]
    (count,) = struct.unpack_from("<I", footer, begin)
    blocks = [
        footer[begin + 4 + 24 * i :][:24] for i in range(count)
    ]  # struct Block {offset, metaDataLength, bodyLength}
    footer += bytes(-(len(footer) + 4) % 8)  # blocks are aligned to 8 bytes
    patched = footer[:at] + struct.pack("<I", len(footer) - at) + footer[at + 4 :]
    many = [blocks[i % (count - 1)] for i in range(full)] + [blocks[-1]]
    return patched + struct.pack("<I", len(many)) + b"".join(many)


# ---- in a process of its own

PROBE = """
import json, random, statistics, sys, time
import numpy, pyarrow, wdstools
from wdstools.index import Index
def resident(what="VmRSS"):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(what))
imported, times = resident(), []
start = time.perf_counter()
index = Index.load(sys.argv[1])
opened, calls = time.perf_counter() - start, int(sys.argv[2])
rng = random.Random(0)
for _ in range(10):
    rows = [rng.randrange(len(index)) for _ in range(calls // 10)]
    start = time.perf_counter(), time.process_time()
    for row in rows:
        index.locate(row)
    times.append(((time.perf_counter() - start[0]) / len(rows), (time.process_time() - start[1]) / len(rows)))
wall, cpu = zip(*times)
print(json.dumps({"open": opened, "imported": imported, "resident": resident(), "peak": resident("VmHWM"),
    "first": wall[0], "all": sum(wall) / 10, "cpu": sum(cpu) / 10, "steady": statistics.median(wall[2:])}))
"""


def probe(path: Path, calls: int) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", PROBE, str(path), str(calls)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="keep the files here, and use those that are there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        print(
            "| index | open ms | resident MB after (imports alone) | peak MB "
            "| us a row: all | of it CPU | first tenth | last 80% |"
        )
        print("|---|---|---|---|---|---|---|---|")
        for name, make in {"huge": huge, "real": real}.items():
            path = folder / f"{name}.wdsindex"
            if not path.exists():
                make(path)
            runs = [probe(path, arguments.calls) for _ in range(arguments.runs)]
            middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            low, high = (pick(run["open"] for run in runs) * 1e3 for pick in (min, max))
            least, most = (pick(run["all"] for run in runs) * 1e6 for pick in (min, max))
            print(
                f"| {name}, {len(Index.load(path)):,} rows | {middle['open'] * 1e3:.1f} ({low:.1f} to {high:.1f}) "
                f"| {middle['resident'] / 1e6:.0f} ({middle['imported'] / 1e6:.0f}) | {middle['peak'] / 1e6:.0f} "
                f"| {middle['all'] * 1e6:.2f} ({least:.2f} to {most:.2f}) | {middle['cpu'] * 1e6:.2f} "
                f"| {middle['first'] * 1e6:.2f} | {middle['steady'] * 1e6:.2f} |",
                flush=True,
            )


# ---- against pyarrow


@pytest.fixture(scope="session")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("indexes")
    return {"10**9": huge(folder / "huge.wdsindex"), "2 * 10**7": real(folder / "real.wdsindex")}


@pytest.mark.parametrize("rows", ["10**9", "2 * 10**7"])
def bench_open(benchmark: Any, paths: dict[str, Path], rows: str) -> None:
    def theirs() -> None:
        with pa.memory_map(str(paths[rows])) as file, pa.ipc.open_file(file) as reader:
            reader.read_all()

    compare(
        benchmark, f"open an index of {rows} rows", 1, "opens/s", lambda: Index.load(paths[rows]), {"pyarrow": theirs}
    )


@pytest.mark.parametrize("rows", ["10**9", "2 * 10**7"])
def bench_locate(benchmark: Any, paths: dict[str, Path], rows: str) -> None:
    """Against the columns of a mapped table, row by row. A round that is not counted has looked at the batches."""
    index = Index.load(paths[rows])
    rng = random.Random(0)
    wanted = [rng.randrange(len(index)) for _ in range(CALLS)]
    with pa.memory_map(str(paths[rows])) as file, pa.ipc.open_file(file) as reader:
        table = reader.read_all()
    columns = [table.column(name) for name in ("key", "shard", "start", "end")]

    def ours() -> None:
        for row in wanted:
            index.locate(row)

    def theirs() -> float:
        start = time.perf_counter()
        for row in wanted[::100]:
            tuple(column[row].as_py() for column in columns)
        return (time.perf_counter() - start) * 100

    compare(benchmark, f"rows of {rows} located at random", CALLS, "rows/s", ours, {"pyarrow": theirs})


if __name__ == "__main__":
    main()
