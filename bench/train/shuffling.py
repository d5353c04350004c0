"""Pain 1: shuffle globally within fixed memory. An epoch by wdstools' plan, and by shuffle buffers over a stream.

Each contestant reads a whole epoch in a process of its own, `python -m bench.train.shuffling TASK`, undecoded and
without workers, so that all it holds is in that process, and every byte of the pictures is touched; round by round,
all of them in every round.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from bench.compare import touch
from bench.train.classsorted import Sorted

PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Contestant:
    """`way`: plan (`size`: its block), stream (wdstools.iterable) or webdataset (`size`: their buffer, 0: none)."""

    way: str
    size: int

    @property
    def label(self) -> str:
        if self.way == "plan":
            return "wdstools plan" + (f", block={self.size}" if self.size > 1 else ", block=1 (global)")
        name = "wdstools.iterable" if self.way == "stream" else "webdataset"
        return f"{name}, shuffle({self.size:,})" if self.size else f"{name}, no shuffle"


CONTESTANTS = (
    Contestant("plan", 1), Contestant("plan", 4), Contestant("plan", 16), Contestant("stream", 1000),
    Contestant("webdataset", 0), Contestant("webdataset", 1000), Contestant("webdataset", 5000),
)  # fmt: skip


def entropy(labels: Iterable[int]) -> float:
    """Bits of the distribution of the labels in a batch; 0 for none."""
    counts = Counter(labels)
    total = counts.total()
    return sum(count / total * math.log2(total / count) for count in counts.values())


def ideal(counts: Sequence[int], batch: int) -> float:
    """The expected entropy, in bits, of a batch whose labels are drawn independently from the whole set, of which
    `counts` says how many samples each class has: of every class the count in a batch is binomial."""
    total = sum(counts)
    return sum(many * _expected(count / total, batch) for count, many in Counter(counts).items() if count)


def _expected(share: float, batch: int) -> float:
    """What a class of this share of the set adds to the expected entropy of a batch."""
    if share == 1:
        return 0.0
    found = 0.0
    for count in range(1, batch):
        ways = math.lgamma(batch + 1) - math.lgamma(count + 1) - math.lgamma(batch - count + 1)
        chance = math.exp(ways + count * math.log(share) + (batch - count) * math.log1p(-share))
        found += chance * count / batch * math.log2(batch / count)
    return found


def measure(data: Sorted, batch: int, rounds: int, tell: Callable[[str], object]) -> list[dict[str, Any]]:
    """Run every contestant in every round. Returns of each: label, entropy and memory (bytes beyond what the process
    had before it opened the data) by batch, of its first round, and over the rounds the medians of `peak` bytes,
    `seconds`, and `mean` entropy, with the lowest and the highest seconds."""
    runs: dict[Contestant, list[dict[str, Any]]] = {one: [] for one in CONTESTANTS}
    for number in range(rounds):
        first = number * len(CONTESTANTS) // rounds
        for one in CONTESTANTS[first:] + CONTESTANTS[:first]:
            runs[one].append(_run(one, data, batch, seed=number))
            tell(f"round {number + 1} of {rounds}: {one.label}: {runs[one][-1]['seconds']:.1f} s")
    found = []
    for one, several in runs.items():
        seconds = [run["seconds"] for run in several]
        found.append(
            {
                "label": one.label, "way": one.way, "size": one.size, "samples": several[0]["samples"],
                "batches": len(several[0]["entropy"]), "rounds": rounds,
                "mean": statistics.median(statistics.fmean(run["entropy"]) for run in several),
                "peak": statistics.median(max(run["memory"]) for run in several),
                "seconds": statistics.median(seconds), "fastest": min(seconds), "slowest": max(seconds),
                "entropy": several[0]["entropy"], "memory": several[0]["memory"],
            }
        )  # fmt: skip
    return found


def _run(one: Contestant, data: Sorted, batch: int, seed: int) -> dict[str, Any]:
    task = {"way": one.way, "size": one.size, "batch": batch, "seed": seed}
    task |= {"shards": data.shards, "index": data.index, "image": data.image, "label": data.label}
    command = [sys.executable, "-m", "bench.train.shuffling", json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{one.label}: exit {done.returncode}: {done.stderr[-2000:]}")
    return checked(one, json.loads(done.stdout), len(data.open()))


def checked(one: Contestant, found: dict[str, Any], expected: int) -> dict[str, Any]:
    """What epoch() told. Raises RuntimeError where it has not every sample of the set, once."""
    if found["samples"] != expected or found["keys"] != expected:
        raise RuntimeError(f"{one.label}: {found['samples']} samples, {found['keys']} keys: the set has {expected}")
    return found


def batches(task: dict[str, Any]) -> Callable[[], Iterator[list[dict[str, Any]]]]:
    """What opens the data and yields an epoch's batches, the short last one too; all that it needs is imported."""
    way, size, batch, shards = task["way"], task["size"], task["batch"], task["shards"]
    import torch  # noqa: F401  all of them have it in memory, as a training has

    import wdstools

    if way == "plan":
        options = {"block": size, "seed": task["seed"], "tail": "uneven", "rank": 0, "world": 1}
        return lambda: iter(wdstools.loader(wdstools.open(task["index"]), batch, collate=list, **options))
    if way == "stream":
        return lambda: _grouped(wdstools.iterable(shards, buffer=size, seed=task["seed"]), batch)
    import webdataset

    def pipeline() -> Iterator[list[dict[str, Any]]]:
        stream = webdataset.WebDataset(shards, shardshuffle=len(shards) if size else False, empty_check=False)
        return _grouped(stream.shuffle(size) if size else stream, batch)

    return pipeline


def _grouped(samples: Iterable[Any], batch: int) -> Iterator[list[Any]]:
    iterator = iter(samples)
    while group := list(islice(iterator, batch)):
        yield group


def resident() -> int:
    """Bytes of this process that are in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * PAGE


def epoch(task: dict[str, Any]) -> dict[str, Any]:
    """Read an epoch; entropy and resident bytes after each batch."""
    start = batches(task)
    found: dict[str, Any] = {"entropy": [], "memory": [], "samples": 0}
    before, begin = resident(), time.perf_counter()
    keys: set[int] = set()  # hashes: eight bytes each, not the strings
    for batch in start():
        found["memory"].append(resident() - before)
        found["entropy"].append(entropy(int(sample[task["label"]]) for sample in batch))
        for sample in batch:
            touch(sample[task["image"]])
        keys |= {hash(sample["__key__"]) for sample in batch}
        found["samples"] += len(batch)
    return found | {"seconds": time.perf_counter() - begin, "keys": len(keys)}


if __name__ == "__main__":
    print(json.dumps(epoch(json.loads(sys.argv[1]))))
