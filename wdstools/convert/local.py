"""convert(): a source into shards, on this machine. The front door of the room.

Copies run in threads, a shard each (planned.py). What must be computed is cut by the number of samples (counted.py)
where the options allow it; else, and if it comes as a stream, it is packed by one writer, in order, by the sizes that
come out (inorder.py). Either way the bytes depend on the source and the options alone.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from wdstools.convert import destination, journal, place, proof
from wdstools.convert.counted import write_counted
from wdstools.convert.destination import Target
from wdstools.convert.finished import METADATA
from wdstools.convert.inorder import write_in_order
from wdstools.convert.journal import merge_parts
from wdstools.convert.options import Options, Skipped, Summary
from wdstools.convert.plan import Plan, make_plan
from wdstools.convert.planned import Progress, write_planned
from wdstools.convert.skips import put_skipped
from wdstools.errors import DestinationError, SourceError, StoreError, WdsError

if TYPE_CHECKING:
    from wdstools.index import Index

_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "a file may not be so large",
}


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
    ready = make_plan(source, dest, options, paths)
    planned(ready)
    job = journal.Job(ready.targets, ready.description, options.overwrite, ready.listing.newest, ready.saved)
    _check_classes(ready, job, options)
    with _explained(job.folder):
        job.open()
        ready.check, ready.owner = job.check, job.owner
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
        for index in _count(summary, job.targets):
            summary.skipped += [Skipped(*item) for item in json.loads(index.metadata.get(journal.SKIPPED, "[]"))]
        summary.kept = summary.shards
        if options.verify:
            proof.prove(job.targets, options)
        destination.sweep(job.targets, parts=True)
        return summary
    write = write_in_order if ready.shards is None else write_counted if ready.counted else write_planned
    if options.engine == "ray":
        from wdstools.convert.engine_ray import write_on_ray as write
    done = write(ready, options, progress, summary)
    if options.verify:
        proof.prove_parts(done, options)
    if not sum(written.nsamples for found in done for written in found):
        job.clear()  # nothing to go on from
        raise SourceError("every sample was left out: there is nothing to write")
    if ready.listing.classes is not None:
        place.write(os.path.join(job.folder, "classes.json"), _json(ready.listing.classes))
    summary.skipped.sort()
    put_skipped(job.folder, job.stem, summary.skipped)
    early = set(ready.skipped)
    late = [item for item in summary.skipped if item not in early]
    for number, (target, found) in enumerate(zip(job.targets, done, strict=True)):
        metadata = {METADATA: job.text}
        if late and not number:  # of all targets, in the first
            metadata[journal.SKIPPED] = json.dumps(late)
        merge_parts([w.path for w in found], target.index_path, metadata)
    for target, index in zip(job.targets, _count(summary, job.targets), strict=True):
        _check_sizes(target, index)
    destination.sweep(job.targets, parts=True)
    return summary


def _check_sizes(target: Target, index: Index) -> None:
    """What lies in a bucket is what was sent there, as far as sizes tell."""
    there = place.names(target.folder) if place.is_remote(target.folder) else {}
    for url, nbytes in zip(index.shards.url, index.shards.nbytes, strict=True):
        if there and there.get(os.path.basename(url)) != nbytes:
            raise StoreError(f"{url}: is not there, or not with the {nbytes} bytes that were written")


def _json(value: object) -> bytes:
    """For people, and for any reader of JSON: with escapes where a name is no UTF-8."""
    try:
        return json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(value, indent=1).encode() + b"\n"


def _count(summary: Summary, found: list[Target]) -> list[Index]:
    """Count what the targets hold, and return their indexes."""
    indexes = [place.load_index(target.index_path) for target in found]
    for target, index in zip(found, indexes, strict=True):
        summary.shards += len(index.shards)
        summary.samples += len(index)
        summary.nbytes += sum(index.shards.nbytes)
        summary.indexes.append(target.index_path)
        summary.names += [target.pattern % number for number in range(len(index.shards))]
    return indexes


def _check_classes(ready: Plan, job: journal.Job, options: Options) -> None:
    """Two trees with different numbers for one class must not share a folder."""
    path = os.path.join(job.folder, "classes.json")
    if ready.listing.classes is None or options.overwrite:
        return
    data = place.read(path)
    if data is None:
        return
    try:
        old = json.loads(data)
    except ValueError:
        old = None
    if old != ready.listing.classes:
        raise DestinationError(
            f"{path}: is there with other classes or numbers: those shards and these would mean different things "
            "by one number. Write elsewhere, or give --overwrite"
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
