"""Shards whose contents are known beforehand: written several at a time, by threads, a shard each.

The C writer moves the bytes without the GIL; what lies in a shard does not depend on who writes it, or when.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from wdstools.convert import journal, place
from wdstools.convert.destination import ShardPlan, Target
from wdstools.convert.entries import Entry
from wdstools.convert.journal import Written
from wdstools.convert.options import Options, Summary
from wdstools.convert.plan import Plan
from wdstools.convert.put import left_out, open_shard, put, read_ahead
from wdstools.convert.sources import Faults, Listing
from wdstools.errors import DestinationError

Progress = Callable[[int, int], object]
"""Called with (samples, bytes of tar) as they are done."""

POLL = 0.2  # seconds between two calls of Progress


class Stopped(Exception):
    """Another shard has failed, or the user has had enough."""


class _Counter:
    """What the threads have done since the main thread last asked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._samples = self._nbytes = 0

    def add(self, samples: int, nbytes: int) -> None:
        with self._lock:
            self._samples += samples
            self._nbytes += nbytes

    def take(self) -> tuple[int, int]:
        with self._lock:
            found = self._samples, self._nbytes
            self._samples = self._nbytes = 0
            return found


Done = list[list[Written | None]]
"""What is finished, by target and number."""


def what_is_left(
    ready: Plan, options: Options, progress: Progress, summary: Summary
) -> tuple[Done, list[tuple[int, int, ShardPlan]]]:
    """Return the shards that an earlier run has finished, and (target, number, shard) of the others."""
    done: Done = [[None] * len(plans) for plans in ready.shards or []]
    todo: list[tuple[int, int, ShardPlan]] = []
    lenient = options.on_error == "skip"
    for t, plans in enumerate(ready.shards or []):
        there = place.names(ready.targets[t].folder)
        for s, shard in enumerate(plans):
            part = journal.load_part(shard.path, lenient, there)
            if part is not None and _covers(part, shard, ready.counted):
                done[t][s] = part
                summary.skipped += part.skipped
                summary.kept += 1
                progress(shard.stop - shard.start, part.nbytes)
            else:
                todo.append((t, s, shard))
        _check_beyond(ready.targets[t], len(plans), options)
    return done, todo


def _covers(part: Written, shard: ShardPlan, counted: bool) -> bool:
    """Say whether a finished shard is of all samples that are planned for it."""
    if counted:
        return part.covers == shard.digest
    return part.nsamples + len(part.skipped) == shard.stop - shard.start


def entries_of(ready: Plan, t: int, shard: ShardPlan) -> Iterator[Entry]:
    """The entries that go into a shard of target t."""
    numbers = ready.orders[t]
    return (ready.entries[numbers[position]] for position in range(shard.start, shard.stop))


def write_planned(ready: Plan, options: Options, progress: Progress, summary: Summary) -> list[list[Written]]:
    """Write the shards of a plan, several at a time; return them, by target."""
    done, todo = what_is_left(ready, options, progress, summary)
    stop, counter, failures = threading.Event(), _Counter(), list[BaseException]()

    def tell(samples: int, nbytes: int) -> None:
        if stop.is_set():
            raise Stopped
        counter.add(samples, nbytes)

    def one(t: int, shard: ShardPlan) -> Written | None:
        if stop.is_set():
            return None
        try:
            entries = entries_of(ready, t, shard)
            return write_shard(ready.listing, entries, shard.path, ready.lift or (), options, ready.check, tell, behind)
        except Stopped:
            return None
        except BaseException as error:  # noqa: BLE001  raised below, where no frame holds it: that would be a circle
            failures.append(error)
            stop.set()
            return None

    cores = os.cpu_count() or 1
    workers = max(1, min(options.workers or cores, len(todo)))
    behind = workers < cores
    with ThreadPoolExecutor(workers, "wds-shard") as pool:
        futures: dict[Future[Written | None], tuple[int, int]] = {}
        try:
            for t, s, shard in todo:
                futures[pool.submit(one, t, shard)] = (t, s)
            pending = set(futures)
            while pending:
                finished, pending = wait(pending, POLL)
                progress(*counter.take())
                for future in finished:
                    if (written := future.result()) is not None:
                        t, s = futures[future]
                        done[t][s] = written
                        summary.skipped += written.skipped
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    if failures:
        raise failures.pop(0)
    return [[written for written in found if written is not None] for found in done]


def _check_beyond(target: Target, count: int, options: Options) -> None:
    """Shards with numbers past the end, in the folder of a job that goes on, are not ours."""
    for number, path in target.existing():
        if number >= count or target.pattern % number != path:
            if not options.overwrite:
                raise DestinationError(f"{path}: this job did not write it. Remove it, or give --overwrite")
            place.remove(path)


def write_shard(
    listing: Listing,
    entries: Iterable[Entry],
    path: str,
    lift: Sequence[str],
    options: Options,
    check: Callable[[], object],
    tell: Callable[[int, int], object],
    behind: bool = True,
) -> Written:
    """Write one shard with its part. `check` raises where it must not appear any more; `tell`: as Progress, and where
    it raises the shard is given up. `behind`: see ShardFile."""
    faults = Faults(options.on_error == "skip", listing.moved)
    file = open_shard(path, lift, options, behind)
    try:
        told, samples = 0, 0
        for entry, fields in read_ahead(entries, listing.fields, listing.ahead):
            if samples == 32:
                tell(samples, file.nbytes - told)
                told, samples = file.nbytes, 0
            put(file, entry.key, fields, faults)
            samples += 1
        file.metadata = left_out(faults.skipped)
        check()
        nsamples = len(file.commit())
        tell(samples, file.nbytes - told)
        return Written(path, nsamples, file.nbytes, faults.skipped)
    finally:
        file.abort()
