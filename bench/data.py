"""Data for the comparisons: made once a session, of random bytes: nothing compresses, nothing is downloaded."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SMALL = 1024  # bytes of a small sample
LARGE = 110_000  # and of one as large as an ImageNet JPEG


def samples(count: int, nbytes: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Samples of `bin` and `cls`; the payloads repeat after some megabytes, to be cheaper than what is measured."""
    rng = random.Random(seed)
    payloads = [rng.randbytes(nbytes) for _ in range(max(1, min(1000, (32 << 20) // nbytes)))]
    for i in range(count):
        yield {"__key__": f"{i:08d}", "bin": payloads[i % len(payloads)], "cls": i % 1000}


def webdataset_shards(folder: Path, count: int, nbytes: int, per_shard: int) -> list[str]:
    """Shards as people have them: written by webdataset, a PAX header before every member."""
    import webdataset

    with webdataset.ShardWriter(f"{folder}/wds-%06d.tar", maxcount=per_shard, verbose=0) as sink:
        for sample in samples(count, nbytes):
            sink.write(sample)
    return sorted(str(path) for path in folder.glob("wds-*.tar"))


def tree(folder: Path, count: int, nbytes: int, classes: int = 100) -> Path:
    """A class-per-folder tree of files as large as JPEGs."""
    rng = random.Random(0)
    payloads = [rng.randbytes(nbytes) for _ in range(256)]
    for c in range(classes):
        (folder / f"n{c:08d}").mkdir(parents=True)
    for i in range(count):
        (folder / f"n{i % classes:08d}" / f"img_{i:07d}.jpg").write_bytes(payloads[i % 256])
    return folder


def total_bytes(paths: list[str]) -> int:
    return sum(os.path.getsize(path) for path in paths)


def warm(paths: list[str]) -> None:
    """Read everything once, so that every contestant finds it in the page cache."""
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while file.read(8 << 20):
                pass
