"""One sample into an open shard, and the difference between a bad sample, a bad source and a bad disk."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeAlias

from wdstools import writer
from wdstools.convert import journal, place
from wdstools.convert.entries import Entry
from wdstools.convert.images import Failure
from wdstools.convert.options import Skipped
from wdstools.convert.sources import Faults, Fields
from wdstools.errors import SourceError, WdsError

if TYPE_CHECKING:
    from wdstools.convert.options import Options
    from wdstools.convert.subset import Span  # with Arrow
    from wdstools.convert.upload import Shard

Content: TypeAlias = "Fields | Span | Failure"  # of a sample

_OURS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""What opening a file can fail with although nothing is wrong with the file."""


def _reason(error: Exception) -> tuple[str, str]:
    """A short reason, the same for all samples with the same fault, and the detail."""
    if isinstance(error, OSError) and not isinstance(error, WdsError):
        return (error.strerror or str(error)).lower(), ""
    text = str(error)
    for known in ("not a regular file", "changed while it was packed", "cut short while it was read"):
        if known in text:
            return known, text.partition(known)[2].lstrip(": ")
    return text, ""


def open_shard(path: str, lift: Sequence[str], options: Options, behind: bool = True) -> Shard:
    """Begin a shard with its part; one of an earlier run is removed. `behind`: see ShardFile."""
    place.remove(path)  # the part of the new shard must never stand beside the old one
    if place.is_remote(path):
        from wdstools.convert.upload import UploadedShard

        return UploadedShard(path, lift=lift, checksum=options.checksums)
    return writer.ShardFile(
        path, lift=lift, part=True, mtime=False, sync=options.sync, checksum=options.checksums,
        attempt=secrets.token_hex(4), behind=behind,
    )  # fmt: skip


def read_ahead(
    entries: Iterable[Entry], read: Callable[[Entry], Content], ahead: int
) -> Iterator[tuple[Entry, Content | SourceError]]:
    """Yield entries with their fields, or what is wrong with them; `ahead` of them are read at once, if any."""
    if not ahead:
        for entry in entries:
            yield entry, read(entry)
        return

    def one(entry: Entry) -> Content | SourceError:
        try:
            return read(entry)
        except SourceError as error:
            return error

    pending: deque[tuple[Entry, Future[Content | SourceError]]] = deque()
    pool = ThreadPoolExecutor(ahead, "wds-read")
    try:
        for entry in entries:
            pending.append((entry, pool.submit(one, entry)))
            if len(pending) >= 2 * ahead:
                entry, future = pending.popleft()
                yield entry, future.result()
        while pending:
            entry, future = pending.popleft()
            yield entry, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def failure(error: SourceError) -> Failure:
    """Return what is wrong with a sample that cannot be read."""
    return Failure(str(error).partition(": ")[0], *_reason(error))


def put(file: Shard, key: str, fields: Content | SourceError, faults: Faults) -> bool:
    """Write a sample; false where it was left out. Raises SourceError where it must not be, OSError for the disk,
    StaleIndexError for a Span that is not what its index says."""
    if isinstance(fields, Failure | SourceError):
        faults.add(key, *(fields if isinstance(fields, Failure) else failure(fields)))
        return False
    try:
        if isinstance(fields, dict):
            file.write(key, fields)
        else:
            fields.source.copy(fields.row, file)
    except SourceError as error:
        faults.add(key, _culprit(fields, error), *_reason(error))
        return False
    except OSError as error:
        if error.filename is None or error.errno in _OURS:
            raise  # the disk: what is wrong with a file of the sample has its name
        faults.add(key, os.fsdecode(error.filename), *_reason(error))
        return False
    return True


def _culprit(fields: Fields | Span, error: Exception) -> str:
    if not isinstance(fields, dict):
        return "sample"
    paths = [os.fspath(value[0]) for value in fields.values() if isinstance(value, tuple)]
    return next((path for path in paths if path in str(error)), paths[0] if len(paths) == 1 else "sample")


def left_out(skipped: list[Skipped]) -> dict[str, str]:
    """The metadata of a part: what was left out of its shard."""
    return {journal.SKIPPED: json.dumps(skipped)} if skipped else {}
