"""Samples on their way through --map and then --resize: some at a time, in processes and threads, or here.

Threads do the resizing: Pillow decodes, resizes and encodes without the GIL.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

from wdstools.convert import images
from wdstools.convert.entries import Entry
from wdstools.convert.images import Failure
from wdstools.convert.options import Options
from wdstools.convert.put import failure, read_ahead
from wdstools.convert.sources import Fields, Listing
from wdstools.errors import SourceError

Item = tuple[str, Fields | Failure]
Apply = Callable[[Iterable[Item]], Iterator[list[Item]]]
"""For each sample, in order, what it becomes."""

_Small = dict[str, tuple[str, bytes]] | Failure


def read(listing: Listing, entries: Iterable[Entry]) -> Iterator[Item]:
    """Yield the samples of a source that is listed."""
    for entry, fields in read_ahead(entries, listing.fields, listing.ahead):
        if isinstance(fields, SourceError):
            yield entry.key, failure(fields)
        else:
            yield entry.key, cast("Fields | Failure", fields)  # a Span is copied, by planned.py


def columns(lift: Sequence[str] | None, fields: Fields) -> Sequence[str]:
    """Return the columns of the index of a shard by those of the plan, or its first sample where they are None."""
    return lift if lift is not None else ("cls",) if "cls" in fields else ()


def start(stack: contextlib.ExitStack, options: Options) -> Apply:
    """Return what the options ask for; its processes and threads last as long as the stack."""
    workers = options.workers or os.cpu_count() or 1
    mapped: Apply = lambda samples: ([item] for item in samples)  # noqa: E731
    if options.map is not None:
        from wdstools.convert import mapping  # with what runs processes

        mapped = mapping.start(stack, options.map, workers)
    if options.resize is None:
        return mapped
    shrink = _shrink(stack, options, options.resize)
    pool = ThreadPoolExecutor(workers, "wds-shard")
    stack.callback(pool.shutdown, wait=True, cancel_futures=True)

    def apply(samples: Iterable[Item]) -> Iterator[list[Item]]:
        pending: deque[list[tuple[str, Fields | Failure, Future[_Small]]]] = deque()
        for group in mapped(samples):
            pending.append([(key, fields, pool.submit(_small, shrink, fields)) for key, fields in group])
            if len(pending) >= 4 * workers:
                yield _finished(pending.popleft())
        while pending:
            yield _finished(pending.popleft())

    return apply


def here(stack: contextlib.ExitStack, options: Options) -> Apply:
    """As start(), one sample after the other in this thread. Raises SourceError for a map that cannot be loaded."""
    function = None
    if options.map is not None:
        from wdstools.convert import mapping

        function = mapping.load(options.map)
    shrink = None if options.resize is None else _shrink(stack, options, options.resize)

    def one(key: str, fields: Fields | Failure) -> list[Item]:
        group = [(key, fields)] if function is None else mapping.apply_to(function, key, fields)
        return group if shrink is None else [(k, _replaced(found, _small(shrink, found))) for k, found in group]

    return lambda samples: (one(key, fields) for key, fields in samples)


def _shrink(stack: contextlib.ExitStack, options: Options, size: int) -> images.Shrink:
    stack.enter_context(warnings.catch_warnings())  # here, before there are threads: it is the process's
    warnings.filterwarnings("ignore", module=r"PIL\.")  # what is wrong with an image, we say
    return images.Shrink(size, options.quality, options.resize_fields)


def _small(shrink: images.Shrink, fields: Fields | Failure) -> _Small:
    return {} if isinstance(fields, Failure) else images.shrink_fields(shrink, fields)


def _finished(group: list[tuple[str, Fields | Failure, Future[Any]]]) -> list[Item]:
    return [(key, _replaced(fields, future.result())) for key, fields, future in group]


def _replaced(fields: Fields | Failure, small: _Small) -> Fields | Failure:
    if isinstance(fields, Failure) or isinstance(small, Failure):
        return fields if isinstance(fields, Failure) else cast("Failure", small)
    found: Fields = {}
    for name, value in fields.items():
        new, data = small.get(name, (name, value))
        found[new] = data
    return found
