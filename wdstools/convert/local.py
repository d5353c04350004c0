"""convert(): a source into shards, on this machine. The front door of the room.

Copies run in threads, a shard each: the C writer moves the bytes without the GIL. What must be computed (smaller images)
or comes as a stream is packed by one writer, in order, by the sizes that come out; the computing is done by processes.
Either way the bytes depend on the source and the options alone.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any

from wdstools import build, writer
from wdstools.convert import destination, images, journal, manifest, order, shards, tree
from wdstools.convert.destination import ShardPlan, Target
from wdstools.convert.options import Options, Skipped, Summary
from wdstools.convert.sources import Entry, Faults, Fields, Listing, number_keys, sizes
from wdstools.errors import DestinationError, SourceError, StoreError, WdsError
from wdstools.index import Index

Progress = Callable[[int, int], object]
"""Called with (samples, bytes of tar) as they are done."""

POLL = 0.2  # seconds between two calls of Progress
_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "a file may not be so large",
}


@dataclass
class Plan:
    """A conversion, ready to run. `orders`: for each target, the numbers of its entries; `shards`: how they are packed,
    None where the sizes are known only once they are computed."""

    listing: Listing
    targets: list[Target]
    entries: list[Entry]
    orders: list[list[int]]
    shards: list[list[ShardPlan]] | None
    lift: tuple[str, ...] | None
    description: dict[str, Any]
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def total(self) -> int | None:
        """Samples to write, None where a stream does not tell."""
        return None if self.listing.stream is not None else len(self.entries)


def list_source(source: str, options: Options, faults: Faults, paths: Iterable[str] = ()) -> Listing:
    """List a SOURCE of any kind; `paths` are those on stdin, for `-`. Raises SourceError."""
    if source == "-":
        return tree.list_paths(paths, options, faults)
    if source.endswith(".wdsindex") or shards.is_shards(source):
        return shards.list_shards(source, options, faults)
    if os.path.isdir(source):
        return tree.list_tree(source, options, faults)
    if not os.path.exists(source):
        raise SourceError(f"{source}: no such file or folder")
    return manifest.list_manifest(source, options, faults)


def plan(source: str, dest: str, options: Options, paths: Iterable[str] = ()) -> Plan:
    """Say what a conversion would do; nothing is written. Raises SourceError, DestinationError."""
    faults = Faults(options.on_error == "skip")
    listing = list_source(source, options, faults, paths)
    _check_fields(options, listing)
    found = destination.targets(dest, listing.name, options.splits)
    _check_apart(listing, found)
    entries = listing.entries
    shuffle = listing.shuffle if options.shuffle is None else options.shuffle
    if options.splits:
        split = order.split(entries, options.splits, options.seed, options.by is not None)
        orders = [split[target.split] for target in found]
    else:
        orders = [list(range(len(entries)))]
    if shuffle:
        orders = [order.shuffled(entries, numbers, options.seed) for numbers in orders]
    lift = options.lift
    if lift is None and listing.stream is None:
        lift = ("cls",) if any("cls" in entry.parts[::3] for entry in entries) else ()
    description = journal.describe(listing, options, lift, shuffle)
    if options.keys == "number":
        entries = number_keys(entries)
    packed = None
    if options.resize is None and listing.stream is None:
        packed = [destination.pack(entries, numbers, t, options) for t, numbers in zip(found, orders, strict=True)]
    return Plan(listing, found, entries, orders, packed, lift, description, faults.skipped)


def _check_fields(options: Options, listing: Listing) -> None:
    if options.by is not None:
        if not options.splits:
            raise SourceError("--by says what --split keeps in proportion: give --split too")
        if listing.kind in ("flat", "paths") or (listing.kind == "classes" and options.by != "cls"):
            raise SourceError(f"--by {options.by}: the samples have no such field before they are read")
    if listing.kind not in ("shards", "stream") and (options.rename or options.drop or options.keep):
        raise SourceError("--rename, --drop and --keep are for existing shards")
    if listing.kind != "manifest" and (options.files or options.inline or options.key_column):
        raise SourceError("--files, --inline and --key-column are for manifests")
    if listing.stream is not None and options.keys == "number":
        raise SourceError("--keys number needs shards that can be read in any order")


def _check_apart(listing: Listing, found: list[Target]) -> None:
    folder = os.path.realpath(os.path.dirname(found[0].pattern) or ".")
    if listing.kind in ("classes", "flat"):
        root = os.path.realpath(listing.root)
        if folder == root or folder.startswith(root.rstrip("/") + "/"):
            raise DestinationError(f"{found[0].pattern}: lies inside of the source {listing.root}: write elsewhere")
    mine = set(listing.local_shards)
    for target in found:
        for _, path in target.existing():
            if os.path.realpath(path) in mine:
                raise DestinationError(f"{path}: is a shard of the source: write elsewhere, or under another name")


def convert(
    source: str,
    dest: str,
    options: Options | None = None,
    *,
    paths: Iterable[str] = (),
    progress: Progress = lambda samples, nbytes: None,
    planned: Callable[[Plan], object] = lambda plan: None,
) -> Summary:
    """Turn a source into shards with an index. `paths`: what stdin lists, for the source `-`.

    An interrupted conversion goes on where it stopped when it is called again. `planned` is called before the writing
    begins. Raises SourceError for what cannot be made a sample (unless options.on_error is "skip"), DestinationError
    where other shards lie, StoreError for a full disk.
    """
    options = options or Options()
    began = time.monotonic()
    ready = plan(source, dest, options, paths)
    planned(ready)
    job = journal.Job(ready.targets, ready.description, options.overwrite)
    _check_classes(ready, job, options)
    with _explained(job.folder):
        job.open()
        try:
            summary = _run(ready, job, options, progress)
        except BaseException:
            destination.sweep(job.targets, parts=False)
            job.close()
            raise
        job.close(remove=True)
    summary.seconds = time.monotonic() - began
    return summary


def _run(ready: Plan, job: journal.Job, options: Options, progress: Progress) -> Summary:
    summary = Summary(skipped=list(ready.skipped))
    if job.state == "complete":
        summary.complete = True
        found = [Index.load(target.index) for target in job.targets]
        summary.skipped += [Skipped(*s) for i in found for s in json.loads(i.metadata.get(journal.SKIPPED, "[]"))]
        _count(summary, job.targets, found)
        summary.kept = summary.shards
        destination.sweep(job.targets, parts=True)
        return summary
    if ready.shards is not None:
        done = _write_planned(ready, options, progress, summary)
    else:
        done = _write_in_order(ready, options, progress, summary)
    if not sum(sum(part.shards.nsamples) for parts in done for part in parts):
        raise SourceError("every sample was left out: there is nothing to write")
    if ready.listing.classes is not None:
        text = json.dumps(ready.listing.classes, indent=1, ensure_ascii=False) + "\n"
        journal.put_file(os.path.join(job.folder, "classes.json"), text.encode("utf-8", "surrogateescape"))
    summary.skipped.sort()
    if summary.skipped:
        lines = [json.dumps(item._asdict(), ensure_ascii=True) + "\n" for item in summary.skipped]
        journal.put_file(os.path.join(job.folder, "skipped.jsonl"), "".join(lines).encode())
    merged = []
    early = set(ready.skipped)
    late = [[list(item) for item in summary.skipped if item not in early]]
    for target, parts in zip(job.targets, done, strict=True):
        index = build.merge(parts)
        index.metadata = {journal.METADATA: job.text}
        if late and late[0]:
            index.metadata[journal.SKIPPED] = json.dumps(late.pop())
        index.save(target.index)
        merged.append(index)
    destination.sweep(job.targets, parts=True)
    _count(summary, job.targets, merged)
    return summary


def _count(summary: Summary, found: list[Target], indexes: list[Index]) -> None:
    for target, index in zip(found, indexes, strict=True):
        summary.shards += len(index.shards)
        summary.samples += len(index)
        summary.nbytes += sum(index.shards.nbytes)
        summary.indexes.append(target.index)
        summary.names += [target.pattern % number for number in range(len(index.shards))]


def _check_classes(ready: Plan, job: journal.Job, options: Options) -> None:
    """Two trees with different numbers for one class must not share a folder."""
    path = os.path.join(job.folder, "classes.json")
    if ready.listing.classes is None or options.overwrite:
        return
    with contextlib.suppress(FileNotFoundError):
        with open(path, "rb") as file:
            try:
                old = json.load(file)
            except ValueError:
                old = None
        if old != ready.listing.classes:
            raise DestinationError(
                f"{path}: is there with other classes or numbers: those shards and these would mean different things by "
                "one number. Write elsewhere, or give --overwrite"
            )


@contextlib.contextmanager
def _explained(folder: str) -> Iterator[None]:
    """A full disk, told as what it is and what to do."""
    try:
        yield
    except OSError as error:
        if isinstance(error, WdsError) or error.errno not in _FULL:
            raise
        raise StoreError(
            f"{folder}: {_FULL[error.errno]} ({error.strerror}). What is finished stays; make room, and run the same "
            "command again to go on"
        ) from error


class _Stopped(Exception):
    """Another shard has failed, or the user has had enough."""


def _reason(error: Exception) -> tuple[str, str]:
    """A short reason, the same for all samples with the same fault, and the detail."""
    if isinstance(error, OSError) and not isinstance(error, WdsError):
        return (error.strerror or str(error)).lower(), ""
    text = str(error)
    for known in ("not a regular file", "changed while it was packed", "cut short while it was read"):
        if known in text:
            return known, text.partition(known)[2].lstrip(": ")
    return text, ""


def _put(file: writer.ShardFile, key: str, fields: Fields, faults: Faults) -> bool:
    """Write a sample; false where it was left out. Raises SourceError where it must not be, OSError for the disk."""
    try:
        file.write(key, fields)
    except SourceError as error:
        faults.add(key, _culprit(fields, error), *_reason(error))
        return False
    except OSError as error:
        name = error.filename
        if name is None:
            bad = _unreadable(fields)
            if bad is None:
                raise
            raise SourceError(f"{bad}: cannot be read to its end: {error.strerror}") from error
        faults.add(key, os.fsdecode(name), *_reason(error))
        return False
    return True


def _culprit(fields: Fields, error: Exception) -> str:
    paths = [os.fspath(value[0]) for value in fields.values() if isinstance(value, tuple)]
    return next((path for path in paths if path in str(error)), paths[0] if len(paths) == 1 else "sample")


def _unreadable(fields: Fields) -> str | None:
    """The file among the fields that cannot be read, if one cannot: the C core says only that reading or writing failed."""
    for value in fields.values():
        if isinstance(value, tuple):
            try:
                with open(value[0], "rb") as file:
                    while file.read(1 << 22):
                        pass
            except OSError:
                return os.fspath(value[0])
    return None


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


def _write_planned(ready: Plan, options: Options, progress: Progress, summary: Summary) -> list[list[Index]]:
    """Write the shards of a plan, several at a time; return their indexes, by target."""
    done: list[list[Index | None]] = [[None] * len(plans) for plans in ready.shards or []]
    todo: list[tuple[int, int, ShardPlan]] = []
    lenient = options.on_error == "skip"
    for t, plans in enumerate(ready.shards or []):
        for s, shard in enumerate(plans):
            part = journal.load_part(shard.path, lenient)
            if part is not None and len(part[0]) + len(part[1]) == shard.stop - shard.start:
                done[t][s] = part[0]
                summary.skipped += part[1]
                summary.kept += 1
                progress(shard.stop - shard.start, shard.nbytes)
            else:
                todo.append((t, s, shard))
        _check_beyond(ready.targets[t], len(plans), options)
    stop, counter = threading.Event(), _Counter()

    def one(t: int, shard: ShardPlan) -> tuple[Index, list[Skipped]]:
        return _write_shard(ready, ready.orders[t], shard, options, stop, counter)

    workers = max(1, min(options.workers or os.cpu_count() or 1, len(todo)))
    with ThreadPoolExecutor(workers, "wds-shard") as pool:
        futures: dict[Future[tuple[Index, list[Skipped]]], tuple[int, int]] = {}
        try:
            for t, s, shard in todo:
                futures[pool.submit(one, t, shard)] = (t, s)
            pending = set(futures)
            while pending:
                finished, pending = wait(pending, POLL, FIRST_EXCEPTION)
                progress(*counter.take())
                for future in finished:
                    t, s = futures[future]
                    index, skipped = future.result()
                    done[t][s] = index
                    summary.skipped += skipped
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return [[index for index in indexes if index is not None] for indexes in done]


def _check_beyond(target: Target, count: int, options: Options) -> None:
    """Shards with numbers past the end, in the folder of a job that goes on, are not ours."""
    for number, path in target.existing():
        if number >= count or target.pattern % number != path:
            if not options.overwrite:
                raise DestinationError(f"{path}: this job did not write it. Remove it, or give --overwrite")
            os.unlink(path)


def _write_shard(
    ready: Plan, numbers: list[int], shard: ShardPlan, options: Options, stop: threading.Event, counter: _Counter
) -> tuple[Index, list[Skipped]]:
    faults = Faults(options.on_error == "skip")
    entries, fields = ready.entries, ready.listing.fields
    file = writer.ShardFile(shard.path, lift=ready.lift or (), part=True, sync=options.sync)
    try:
        told, samples = 0, 0
        for position in range(shard.start, shard.stop):
            if stop.is_set():
                raise _Stopped
            entry = entries[numbers[position]]
            _put(file, entry.key, fields(entry), faults)
            samples += 1
            if samples == 32:
                counter.add(samples, file.nbytes - told)
                told, samples = file.nbytes, 0
        file.metadata = _left_out(faults.skipped)
        index = file.commit()
        counter.add(samples, file.nbytes - told)
        return index, faults.skipped
    finally:
        file.abort()


def _left_out(skipped: list[Skipped]) -> dict[str, str]:
    return {journal.SKIPPED: json.dumps(skipped)} if skipped else {}


Item = tuple[str, Fields | images.Failure]


def _write_in_order(ready: Plan, options: Options, progress: Progress, summary: Summary) -> list[list[Index]]:
    """Write samples as they are computed or come in; return the indexes of the shards, by target."""
    done = []
    with contextlib.ExitStack() as stack:
        apply = _applier(stack, options)
        for target, numbers in zip(ready.targets, ready.orders, strict=True):
            kept, skipped, start = _kept_prefix(target, options)
            summary.kept += len(kept)
            summary.skipped += skipped
            progress(start, sum(part.shards.nbytes[0] for part in kept))
            for number, path in target.existing():
                if number >= len(kept):
                    os.unlink(path)  # of this job, as Job has checked, and behind one that must be written anew
            items = apply(_samples(ready, numbers, start))
            found, skipped = _write_target(target, items, len(kept), ready.lift, options, progress)
            summary.skipped += skipped
            done.append(kept + found)
    return done


def _kept_prefix(target: Target, options: Options) -> tuple[list[Index], list[Skipped], int]:
    """The finished shards from number 0 on, what was left out of them, and how many samples of the source they cover."""
    kept: list[Index] = []
    skipped: list[Skipped] = []
    start = 0
    while (part := journal.load_part(target.pattern % len(kept), options.on_error == "skip")) is not None:
        kept.append(part[0])
        skipped += part[1]
        start += len(part[0]) + len(part[1])
    return kept, skipped, start


def _samples(ready: Plan, numbers: list[int], start: int) -> Iterator[tuple[str, Fields]]:
    listing = ready.listing
    if listing.stream is not None:
        yield from itertools.islice(listing.stream(), start, None)
        return
    for number in itertools.islice(numbers, start, None):
        entry = ready.entries[number]
        yield entry.key, listing.fields(entry)


def _applier(stack: contextlib.ExitStack, options: Options) -> Callable[[Iterator[tuple[str, Fields]]], Iterator[Item]]:
    """A function that makes images smaller on their way, in processes if there may be several."""
    if options.resize is None:
        return lambda samples: samples
    shrink = images.Shrink(options.resize, options.quality, options.resize_fields)
    workers = options.workers or os.cpu_count() or 1
    if workers == 1:
        return lambda samples: (
            (key, _replaced(fields, images.shrink_fields(shrink, fields))) for key, fields in samples
        )
    import multiprocessing

    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), images.prepare_worker)
    stack.callback(pool.shutdown, wait=True, cancel_futures=True)

    def apply(samples: Iterator[tuple[str, Fields]]) -> Iterator[Item]:
        pending: deque[tuple[str, Fields, Future[Any]]] = deque()
        try:
            for key, fields in samples:
                wanted = {n: v if isinstance(v, tuple) else bytes(v) for n, v in fields.items() if shrink.wants(n)}
                others = dict.fromkeys(fields.keys() - wanted.keys(), b"")  # only their names matter there
                pending.append((key, fields, pool.submit(images.shrink_fields, shrink, {**others, **wanted})))
                if len(pending) >= 8 * workers:
                    key, fields, future = pending.popleft()
                    yield key, _replaced(fields, future.result())
            while pending:
                key, fields, future = pending.popleft()
                yield key, _replaced(fields, future.result())
        except BrokenProcessPool as error:
            raise StoreError(
                "a process that makes images smaller has died (out of memory?): run the same command again to go on, "
                "with fewer --workers"
            ) from error

    return apply


def _replaced(fields: Fields, small: dict[str, tuple[str, bytes]] | images.Failure) -> Fields | images.Failure:
    if isinstance(small, images.Failure):
        return small
    found: Fields = {}
    for name, value in fields.items():
        new, value = small.get(name, (name, value))  # type: ignore[assignment]
        found[new] = value
    return found


def _write_target(
    target: Target,
    items: Iterator[Item],
    first: int,
    lift: tuple[str, ...] | None,
    options: Options,
    progress: Progress,
) -> tuple[list[Index], list[Skipped]]:
    """Write samples one by one, from shard number `first` on. What is left out counts to the shard in hand, so that a
    run that goes on knows from where."""
    packer = writer.Packer(options.maxcount, options.maxsize)
    faults = Faults(options.on_error == "skip")
    done: list[Index] = []
    skipped: list[Skipped] = []
    file: writer.ShardFile | None = None
    try:
        for key, fields in items:
            nbytes = 0
            if isinstance(fields, images.Failure):
                faults.add(key, *fields)
            else:
                nbytes = writer.sample_nbytes(key, {n: _size(value) for n, value in fields.items()})
                if file is not None and packer.is_full(nbytes):
                    file.metadata = _left_out(faults.skipped)
                    done.append(file.commit())
                    skipped += faults.skipped
                    faults.skipped = []
                    file = None
                if file is None:
                    columns = lift if lift is not None else ("cls",) if "cls" in fields else ()
                    path = target.pattern % (first + len(done))
                    file = writer.ShardFile(path, lift=columns, part=True, sync=options.sync)
                    packer.reset()
                if _put(file, key, fields, faults):
                    packer.add(nbytes)
            progress(1, nbytes)
        if file is not None and file.nsamples:
            file.metadata = _left_out(faults.skipped)
            done.append(file.commit())
        return done, skipped + faults.skipped
    finally:
        if file is not None:
            file.abort()


def _size(value: writer.Value) -> int:
    return value[1] if isinstance(value, tuple) else len(value)


def estimate(ready: Plan) -> int:
    """Return the bytes of the tars that a plan would write; before images become smaller."""
    if ready.shards is not None:
        return sum(shard.nbytes for plans in ready.shards for shard in plans)
    return sum(writer.sample_nbytes(entry.key, sizes(entry)) for entry in ready.entries)
