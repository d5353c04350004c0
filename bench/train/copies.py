"""Samples of shards copied once into what a peer reads: class folders for ImageFolder, litdata's chunks.

A copy is kept beside others in a cache folder, named by the shards, their sizes and times and the fields, and it is
there whole or not at all; of several ranks one makes it. That is no part of what is timed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.train.sources import Place
from wdstools.sampler import fingerprint


def folder() -> Path:
    """Return where copies are kept: $BENCH_TRAIN_CACHE, else a folder in the user's cache."""
    given = os.environ.get("BENCH_TRAIN_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(base) / "wdstools-train"


def copied(what: str, settings: Any, dataset: Any, place: Place, make: Callable[[Path], object]) -> Path:
    """Return the folder with a copy of a dataset, which `make` fills where there is none yet."""
    shards = dataset.index.shards
    told = [what, fingerprint(dataset), settings.data.image, settings.data.label]
    told += [f"{url} {mtime} {etag}" for url, mtime, etag in zip(shards.url, shards.mtime, shards.etag, strict=True)]
    for url in shards.url:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # it is not local
            about = os.stat(url)
            told.append(f"{about.st_size} {about.st_mtime_ns}")
    name = (
        f"{what}-{hashlib.blake2b(chr(10).join(told).encode('utf-8', 'surrogateescape'), digest_size=10).hexdigest()}"
    )
    found = folder() / name
    found.parent.mkdir(parents=True, exist_ok=True)
    with open(found.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not found.exists():
            unfinished = found.with_suffix(".part")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(found)
    return found
