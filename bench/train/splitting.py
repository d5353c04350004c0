"""Pain 2: change the split. wdstools decides by the hash of keys, over the index; with webdataset, shards are written
anew."""

from __future__ import annotations

import hashlib
import os
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import webdataset

import wdstools
from bench.train.classsorted import Sorted

SPLITS: dict[str, dict[str, Any]] = {
    "train 0.9, val 0.1": {"train": 0.9, "val": 0.1},
    "train 0.8, val 0.1, test 0.1; seed 1": {"seed": 1, "train": 0.8, "val": 0.1, "test": 0.1},
    "train 0.9, val 0.1, stratified by class; seed 2": {"seed": 2, "by": "", "train": 0.9, "val": 0.1},
}


def measure(data: Sorted, folder: Path, rounds: int, tell: Callable[[str], object]) -> list[dict[str, Any]]:
    """Each split in every round, by both. Returns of each: seconds and bytes written of both (medians), and the counts
    by class in each part. RuntimeError: parts that overlap, or do not make up the set."""
    labels = data.labels()
    found: list[dict[str, Any]] = []
    ours: dict[str, list[float]] = {name: [] for name in SPLITS}
    theirs: dict[str, list[float]] = {name: [] for name in SPLITS}
    written: dict[str, tuple[int, int]] = {}
    parts: dict[str, Any] = {}
    for number in range(rounds):
        for name, split in SPLITS.items():
            start, before = time.perf_counter(), bytes_written()
            parts[name] = data.open().split(**split | ({"by": data.label} if "by" in split else {}))
            ours[name].append(time.perf_counter() - start)
            mine, before = bytes_written() - before, bytes_written()
            start = time.perf_counter()
            rewrite(data.shards, folder / "rewritten", _fractions(split), int(split.get("seed", 0)))
            theirs[name].append(time.perf_counter() - start)
            written[name] = mine, bytes_written() - before
            shutil.rmtree(folder / "rewritten")
            tell(f"round {number + 1} of {rounds}: split {name}: {ours[name][-1]:.3f} s, {theirs[name][-1]:.1f} s")
    for name, views in parts.items():
        _check(views, data)
        counts = {part: dict(sorted(Counter(_labels_of(view, data.label)).items())) for part, view in views.items()}
        found.append(
            {
                "split": name, "rounds": rounds, "classes": len(set(labels.tolist())),
                "seconds": statistics.median(ours[name]), "written": written[name][0],
                "webdataset_seconds": statistics.median(theirs[name]), "webdataset_written": written[name][1],
                "samples": {part: len(view) for part, view in views.items()}, "counts": counts,
            }
        )  # fmt: skip
    return found


def rewrite(shards: list[str], folder: Path, fractions: dict[str, float], seed: int) -> None:
    """webdataset's way: every sample is read, and written to the shards of its part. (By class it would have to be read
    twice; that is not charged here: the hash decides for all.)"""
    folder.mkdir()
    sinks = {part: webdataset.ShardWriter(f"{folder}/{part}-%06d.tar", maxcount=1000, verbose=0) for part in fractions}
    try:
        for sample in webdataset.WebDataset(shards, shardshuffle=False, empty_check=False):
            kept = {name: value for name, value in sample.items() if name == "__key__" or not name.startswith("__")}
            sinks[part_of(sample["__key__"], fractions, seed)].write(kept)
    finally:
        for sink in sinks.values():
            sink.close()


def part_of(key: str, fractions: dict[str, float], seed: int) -> str:
    """The part of a key, by its hash: what people write themselves."""
    place = int.from_bytes(hashlib.blake2b(f"{seed} {key}".encode(), digest_size=8).digest(), "big") / 2**64
    ends = zip(fractions, accumulate(fractions.values()), strict=True)
    return next((part for part, end in ends if place < end), list(fractions)[-1])


def bytes_written() -> int:
    """Bytes that this process has handed to write() so far."""
    with open("/proc/self/io") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("wchar:"))


def _fractions(split: dict[str, Any]) -> dict[str, float]:
    return {part: value for part, value in split.items() if part not in ("seed", "by")}


def _labels_of(view: Any, label: str) -> list[int]:
    return [int(value) for value in view.to_arrow().column(label).to_pylist()]


def _check(views: dict[str, Any], data: Sorted) -> None:
    keys = [key for view in views.values() for key in view.keys()]  # noqa: SIM118  a view is no dict
    if sorted(keys) != sorted(wdstools.open(data.index).keys()):
        raise RuntimeError(f"{os.fspath(data.index)}: the parts of a split are not the set")
