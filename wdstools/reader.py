"""stream(urls): the samples of shards, in shard order, whole or not at all."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from wdstools import _core, urls
from wdstools.errors import WdsError
from wdstools.samples import Sample
from wdstools.storage import Source, open_object, open_source
from wdstools.store import Stores

log = logging.getLogger("wdstools")

Handler: TypeAlias = str | Callable[[Exception], bool]
"""What to do about a broken shard: "raise"; "warn" (log it, go on with the next shard); "skip" (the same, silently);
or a function of the exception, as webdataset has them: true goes on with the next shard, false ends the stream."""


def stream(
    shards: str | os.PathLike[str] | Iterable[Any],
    fields: Iterable[str] | None = None,
    *,
    views: bool = False,
    handler: Handler = "raise",
    select: Callable[[str], object] | None = None,
    rename: Callable[[str], str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Iterator[Sample]:
    """Yield the samples of shards in order, with webdataset 1.0.2's keys, grouping and metadata rules.

    `shards`: a URL or path, with braces and `::` as webdataset expands them, a list of such, or open binary files.
    Local files, `pipe:`, `-`, `http(s):`, `s3:`, `gs:`, `az:` and whatever fsspec opens are read; tar, and tar under
    gzip, zstd, bzip2 or xz. `storage_options`: for what is remote, as fsspec's file systems spell them; without, the
    environment decides, as for the clouds' own tools.
    `fields`: only these are put into the samples; one that a sample does not have is absent.
    `views`: payloads are memoryviews into recycled 4 MiB blocks instead of bytes. A view keeps its whole block alive:
    for a shuffle buffer take bytes.
    `handler`: see Handler. Whatever it answers, a partial sample is never yielded, and the rest of a broken shard is
    not read. `select(name)` false leaves a member out; `rename(name)` renames it before that (as webdataset's).

    Raises ShardError (TruncatedError, HeaderError, TrailingError, DuplicateFieldError, InterleavedError: with the byte
    offset), NotFoundError, StoreError, PipeError (with the command's stderr), UrlError.
    """
    wanted = None if fields is None else frozenset(fields)
    check_handler(handler)
    stores = None if storage_options is None else Stores(storage_options)
    for shard in _each(shards):
        try:
            source = open_source(shard, stores) if isinstance(shard, str) else open_object(shard)
            with reading(source, wanted, views=views, select=select, rename=rename) as samples:
                yield from samples
        except (WdsError, OSError) as error:
            if not go_on(handler, error):
                return


@contextlib.contextmanager
def reading(
    source: Source,
    fields: frozenset[str] | None = None,
    *,
    views: bool = False,
    select: Callable[[str], object] | None = None,
    rename: Callable[[str], str] | None = None,
) -> Iterator[Iterator[Sample]]:
    """The samples of one opened shard, as a context that closes it. Arguments and errors as for stream()."""
    with source:
        samples = _core.Stream(
            source.handle,
            source.url,
            source.local_path,
            fields=fields,
            views=views,
            select=select,
            rename=rename,
            head=source.head,
        )
        try:
            yield samples
        finally:
            samples.close()


def _each(shards: Any) -> Iterator[Any]:
    """URLs expanded, open files as they are."""
    if isinstance(shards, str | os.PathLike):
        yield from urls.expand(shards)
    elif hasattr(shards, "read") or hasattr(shards, "readinto"):
        yield shards
    else:
        for shard in shards:
            yield from _each(shard)


def check_handler(handler: Handler) -> None:
    """Raises ValueError for what is no Handler."""
    if handler not in ("raise", "warn", "skip") and not callable(handler):
        raise ValueError(f'handler {handler!r} is not "raise", "warn", "skip" or a function')


def go_on(handler: Handler, error: Exception) -> bool:
    """Say whether a stream goes on with the next shard after an error. Raises it where the handler is "raise"."""
    if callable(handler):
        return bool(handler(error))
    if handler == "warn":
        log.warning("skipping the rest of a shard: %s", error)
    elif handler == "raise":
        raise error
    return True
