"""One reader of a cell, in a process of its own, as a worker of a DataLoader is.

`python -m wdstools.cli.bench.worker TASK`: TASK is JSON (see `run`). It says "ready", waits for a line on stdin, reads,
and says as JSON when it began and ended (monotonic seconds), how many bytes it got, and its seconds of CPU.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from itertools import cycle
from typing import Any

from wdstools.cli.bench.sweep import Variant

BLOCK = 10240  # bytes of a read by tarfile, and so by webdataset


class FailedError(Exception):
    """A reader that did not do what it should; the message says why."""


def drop(path: str) -> None:
    """Take a file out of the page cache, as far as nobody else uses it."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)


def amounts(variant: Variant, url: str, wanted: int) -> Generator[int, None, None]:
    """Read a shard, at least `wanted` bytes of it if it has as many; yields the bytes of each read."""
    if variant.reader == "plain":
        raw, before = io.FileIO(url), 0
        with io.BufferedReader(raw, variant.size or io.DEFAULT_BUFFER_SIZE) as file:  # as open(url, "rb", size)
            while file.read(BLOCK):
                # what has come into the buffer counts: a cell may be over before the reader has had all of it
                now = raw.tell()
                yield now - before
                before = now
    elif variant.reader == "stream":
        from wdstools.reader import stream

        for sample in stream([url]):
            yield sum(len(value) for value in sample.values() if isinstance(value, bytes))
    elif variant.reader in ("store", "parts"):
        yield from _stored(variant, url)
    else:
        command = variant.command(shlex.quote(url))
        if command is None:
            raise FailedError(f"{variant.reader}: no such reader")
        if variant.reader == "fread" and wanted < os.path.getsize(url):
            command = command.replace("fread ", f"fread --range 0-{wanted} ", 1)  # reads nothing that nobody wants
        yield from _piped(command)


def _stored(variant: Variant, url: str) -> Generator[int, None, None]:
    from wdstools.store import open_store

    store, path = open_store(url)
    if variant.size is None:
        with store.open(path) as file:
            while data := file.read(BLOCK):
                yield len(data)
        return
    nbytes = store.size(path).nbytes
    for start in range(0, nbytes, variant.size):
        yield len(store.read(path, start, min(start + variant.size, nbytes)))


def _piped(command: str) -> Generator[int, None, None]:
    """What a command writes. FailedError: it ended by itself with another status than 0."""
    with tempfile.TemporaryFile() as said:
        # exec: what is stopped is the program and not a shell around it
        with subprocess.Popen(f"exec {command}", shell=True, stdout=subprocess.PIPE, stderr=said) as process:
            try:
                while process.stdout is not None and (data := process.stdout.read(BLOCK)):
                    yield len(data)
                status = process.wait()
            finally:
                process.kill()
        if status:
            said.seek(0)
            reason = said.read(2000).decode(errors="replace").strip()
            raise FailedError(f"{command}: exit {status}: {reason}")


def read(task: dict[str, Any]) -> int:
    """Read until the task's bytes are there or its seconds are over. Returns the bytes."""
    variant = Variant(task["reader"], task["size"], tuple(task["flags"]))
    done, wanted, deadline = 0, int(task["bytes"]), time.monotonic() + task["limit"]
    seen: set[str] = set()
    for path in cycle(task["paths"]):
        before = done
        if path in seen and task["cold"]:
            drop(path)
        seen.add(path)
        with contextlib.closing(amounts(variant, path, wanted - done)) as reads:
            for n in reads:
                done += n
                if done >= wanted or time.monotonic() >= deadline:
                    return done
        if done == before:
            raise FailedError(f"{path}: nothing to read")
    return done


def main() -> None:
    """Run the task of the command line."""
    task = json.loads(sys.argv[1])
    for name in ("wdstools.reader",) if task["reader"] == "stream" else ():
        __import__(name)
    print("ready", flush=True)
    if not sys.stdin.readline():
        return  # whoever started this is gone
    told: dict[str, Any] = {"begin": time.monotonic()}
    try:
        told["bytes"] = read(task)
    except Exception as error:  # noqa: BLE001  whatever it is, the cell says it
        told["error"] = f"{type(error).__name__}: {error}" if not isinstance(error, FailedError) else str(error)
    told["end"] = time.monotonic()
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    told["cpu"] = sum(usage.ru_utime + usage.ru_stime for usage in used)
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
