"""Readers of shards on a simulated 7200 rpm disk of 200 MB/s (bench/spindle.py): fread against what people have.

Eight readers of eight shards, each a process of its own that reads 10 kB at a time as tarfile does, every shard cold.
The kernel reads ahead 128 KiB, as it does on a disk; but a single read() larger than that is answered on a disk by
requests of up to 1280 KiB (max_sectors_kb), which FUSE does not do. So whoever reads by more than 128 KiB reads from a
second mount of the same shards whose read-ahead is 1280 KiB: without that, big buffers would look worse than they are.

Needs `apt-get install fuse3 mbuffer`, root for the second mount, and `pip install mfusepy webdataset torch`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import data
from bench.compare import compare
from bench.spindle import mounted
from wdstools.cli.bench.runner import cool, measure
from wdstools.cli.bench.sweep import Cell, Sweep, Variant, parse_size

READERS = 8
SAMPLES = int(os.environ.get("BENCH_SPINDLE", "592"))  # of 110 kB in each shard: 64 MB, two chunks of fread
BIG = 1280 << 10
CHUNK = 512 << 10  # of RAID-0; md sets the read-ahead to two stripes
ARRAY_RATE = "50MB"  # of each spindle of the RAID: 4 x 200 MB/s are more than a FUSE file system in Python carries


@pytest.fixture(scope="module", autouse=True)
def programs() -> Iterator[None]:
    """fread is beside the interpreter, or on PATH."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("spindle")
    data.warm(data.webdataset_shards(folder, READERS * SAMPLES, data.LARGE, SAMPLES))
    return folder


@pytest.fixture(scope="module")
def disk(folder: Path) -> Iterator[list[str]]:
    with mounted(folder) as disk:
        yield sorted(map(str, disk.glob("*.tar")))


@pytest.fixture(scope="module")
def disk_big(folder: Path) -> Iterator[list[str]]:
    """The same shards, where the kernel reads as far ahead as it does on a disk for a reader of big blocks."""
    with mounted(folder, read_ahead=BIG) as disk:
        yield sorted(map(str, disk.glob("*.tar")))


class Readers:
    """Readers side by side, all shards once and cold. Calling it gives the seconds until the last one is done."""

    def __init__(self, paths: list[str], variant: Variant, workers: int = READERS) -> None:
        self.cell, self.total = Cell(variant, workers), data.total_bytes(paths)
        self.sweep = Sweep(tuple(paths), (variant,), seconds=60.0)
        self.slowest: list[float] = []

    def __call__(self) -> float:
        found = measure(self.cell, self.sweep, self.total / self.sweep.seconds)
        assert "error" not in found, found
        assert found["bytes"] >= 0.999 * self.total, (found, self.total)
        self.slowest.append(found["slowest"])
        return float(found["seconds"])


def fread(*flags: str) -> Variant:
    return Variant("fread", parse_size("32M"), flags)


def bench_eight_readers(benchmark: Any, disk: list[str], disk_big: list[str]) -> None:
    ours = Readers(disk, fread())
    peers: dict[str, Callable[[], object]] = {
        "one reader, cat": Readers(disk, Variant("cat"), 1),
        "cat": Readers(disk, Variant("cat")),
        "files, GOPEN_BUFFER unset": Readers(disk, Variant("plain", 8192)),
    }
    for size in ("1M", "8M", "64M"):
        peers[f"files, GOPEN_BUFFER {size}"] = Readers(disk_big, Variant("plain", parse_size(size)))
    for size in ("64K", "1M", "4M"):
        paths = disk if parse_size(size) <= 128 << 10 else disk_big
        peers[f"mbuffer -s {size}"] = Readers(paths, Variant("mbuffer", parse_size(size)))
    targets = dict.fromkeys(peers, 1.0) | {"one reader, cat": 0.9, "cat": 5.0}
    compare(benchmark, "8 readers of a 7200 rpm disk", ours.total / 1e6, "MB/s", ours, peers, targets)
    slowest = sorted(ours.slowest)[len(ours.slowest) // 2]
    benchmark.extra_info["work"] += f" (the last one {slowest:.2f} x the mean)"


def bench_raid(benchmark: Any, folder: Path) -> None:
    array = ("--rate", ARRAY_RATE, "--raid", "0", "--spindles", "4")
    with mounted(folder, "--rate", ARRAY_RATE) as one, mounted(folder, *array, read_ahead=2 * 4 * CHUNK) as four:
        paths = {disk: sorted(map(str, disk.glob("*.tar"))) for disk in (one, four)}
        ours = Readers(paths[four], fread("--slots", "4"))
        peers: dict[str, Callable[[], object]] = {
            "fread, one spindle": Readers(paths[one], fread()),
            "cat, RAID-0": Readers(paths[four], Variant("cat")),
        }
        compare(
            benchmark, f"8 readers of RAID-0 of 4 disks of {ARRAY_RATE}/s, fread --slots 4", ours.total / 1e6, "MB/s",
            ours, peers, {"fread, one spindle": 3.3},
        )  # fmt: skip


def bench_webdataset(benchmark: Any, disk: list[str]) -> None:
    import torch.utils.data
    import webdataset

    def epochs(pattern: str) -> Callable[[], None]:
        shards = webdataset.WebDataset([pattern.format(path) for path in disk], shardshuffle=False)
        loader = torch.utils.data.DataLoader(shards, batch_size=None, num_workers=READERS, persistent_workers=True)

        def epoch() -> None:
            cool(disk)
            assert sum(1 for _ in loader) == READERS * SAMPLES

        return epoch

    compare(
        benchmark, "webdataset, 8 DataLoader workers, pipe:fread", data.total_bytes(disk) / 1e6, "MB/s",
        epochs("pipe:fread {}"), {"files": epochs("{}"), "pipe:cat": epochs("pipe:cat {}")}, {"files": 5.0},
    )  # fmt: skip


def bench_page_cache(benchmark: Any, folder: Path) -> None:
    paths = " ".join(sorted(map(str, folder.glob("*.tar"))))

    def into_a_pipe(command: str) -> Callable[[], object]:
        return lambda: subprocess.run(f"{command} {paths} | cat > /dev/null", shell=True, check=True)

    compare(
        benchmark, "fread of the page cache into a pipe", READERS * SAMPLES * data.LARGE / 1e6, "MB/s",
        into_a_pipe("fread"), {"cat": into_a_pipe("cat")}, {"cat": 0.95},
    )  # fmt: skip


def bench_memory(benchmark: Any, disk: list[str]) -> None:
    """The peak of the resident set in MB, and what it may be: chunk x (ahead + 1) and 2 MB."""
    allowed = (2 * (32 << 20) + 2e6) / 1e6
    peaks = []

    def peak() -> None:
        # VmHWM, and not ru_maxrss, which begins with that of the process that forked
        cool(disk[:1])
        left = os.path.getsize(disk[0]) - (2 << 20)  # more than the pipe holds: fread is there until it is read
        with subprocess.Popen(["fread", disk[0]], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            while left > 0:
                left -= len(child.stdout.read(min(left, 1 << 20)))
            status = Path(f"/proc/{child.pid}/status").read_text()
            child.stdout.read()
        assert child.returncode == 0
        peaks.append(int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6)

    benchmark.pedantic(peak, rounds=3, iterations=1)
    limit = {"rate": allowed, "spread": [allowed, allowed], "ratio": allowed / max(peaks), "target": 1.0}
    benchmark.extra_info.update(
        work="memory of one fread", unit="MB", rate=max(peaks), spread=[min(peaks), max(peaks)],
        peers={"2 chunks and 2 MB": limit},
    )  # fmt: skip
