"""Runs the cells of a sweep: workers are started, begin together, and are timed until the last one is done."""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from wdstools import urls
from wdstools.cli.bench.journal import Journal, Result
from wdstools.cli.bench.sweep import Cell, Sweep, Variant
from wdstools.cli.bench.worker import drop
from wdstools.errors import StoreError

LIMIT = 4  # a cell ends after as many times the seconds that one reader would need
PATIENCE = 30  # seconds more for a worker that is stuck in a read
LEAST = 1 << 20  # bytes for each worker

_libc = ctypes.CDLL(None, use_errno=True)


def remote(path: str) -> bool:
    return urls.scheme(path) != "file"


def cool(paths: Sequence[str]) -> list[str]:
    """Take local files out of the page cache; returns those that stay there, wholly or in part."""
    kept = []
    for path in paths:
        drop(path)
        if _cached(path):
            kept.append(path)
    return kept


def _cached(path: str) -> bool:
    """Whether more than a hundredth of a file is in the page cache."""
    with open(path, "rb") as file:
        nbytes = os.fstat(file.fileno()).st_size
        if not nbytes:
            return False
        with mmap.mmap(file.fileno(), nbytes, access=mmap.ACCESS_COPY) as mapped:  # maps, and touches nothing
            pages = (ctypes.c_ubyte * -(-nbytes // mmap.PAGESIZE))()
            start = ctypes.c_char.from_buffer(mapped)
            failed = _libc.mincore(ctypes.byref(start), ctypes.c_size_t(nbytes), pages)
            del start  # or the map could not be closed
        if failed:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
        return len(pages) - bytes(pages).count(0) > len(pages) / 100


def measure(cell: Cell, sweep: Sweep, rate: float | None) -> dict[str, Any]:
    """Run a cell once: bytes, seconds, the ratio of the slowest worker to the mean, CPU; or an error.

    `rate`: bytes/s of one reader, which says how much is read; None: as much as comes in sweep.seconds.
    """
    local = [path for path in sweep.paths if not remote(path)]
    if not sweep.warm:
        cool(local)
    limit = sweep.seconds if rate is None else LIMIT * sweep.seconds
    nbytes = 1 << 62 if rate is None else max(int(rate * sweep.seconds / cell.workers), LEAST)
    task: dict[str, Any] = {"reader": cell.variant.reader, "size": cell.variant.size, "flags": cell.variant.flags}
    task |= {"bytes": nbytes, "limit": limit, "cold": bool(local) and not sweep.warm}
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(_worker(task | {"paths": sweep.paths[i :: cell.workers]})) for i in range(cell.workers)
        ]
        try:
            told = _race(started, limit + PATIENCE)
        except (subprocess.TimeoutExpired, ValueError):
            return {"error": f"no answer within {limit + PATIENCE:g} seconds"}
        finally:
            for process in started:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)  # with the command that it reads from
    errors = [str(one["error"]) for one in told if "error" in one]
    if errors:
        return {"error": errors[0]}
    begin = min(one["begin"] for one in told)
    ends = [one["end"] - begin for one in told]
    return {
        "bytes": sum(one["bytes"] for one in told),
        "seconds": max(ends),
        "slowest": max(ends) / (sum(ends) / len(ends)),
        "cpu": sum(one["cpu"] for one in told),
    }


def _worker(task: dict[str, Any]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "wdstools.cli.bench.worker", json.dumps(task)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)


def _race(started: Sequence[subprocess.Popen[str]], seconds: float) -> list[dict[str, Any]]:
    """What the workers told, all having begun at once."""
    for process in started:
        if process.stdout is not None:
            process.stdout.readline()
    for process in started:
        if process.stdin is not None:
            process.stdin.write("go\n")
            process.stdin.flush()
    return [json.loads(process.communicate(timeout=seconds)[0]) for process in started]


def run(sweep: Sweep, journal: Journal, tell: Callable[[Cell, int, dict[str, Any]], object]) -> list[Result]:
    """Measure what the journal does not have yet; `tell` hears of each cell. Returns all results.

    Raises StoreError: the shards cannot be read at all.
    """
    rate = journal.rate
    if rate is None:
        scout = Cell(Variant("store" if remote(sweep.paths[0]) else "plain", None), 1)
        found = measure(scout, sweep, None)
        if "error" in found:
            raise StoreError(found["error"])
        rate = found["bytes"] / found["seconds"]
        journal.begin(rate)
    for number, cell in sweep.turns():
        if not journal.has(cell, number):
            outcome = measure(cell, sweep, rate)
            journal.add(Result(cell, number, outcome))
            tell(cell, number, outcome)
    return journal.results
