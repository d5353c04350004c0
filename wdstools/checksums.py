"""Checksums of shards and samples: computed, kept in an index, and compared with what the shards hold now.

XXH3 with 64 bits: of a shard, all of its bytes, as `xxhsum -H3` prints it; of a sample, its bytes [start, end).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from wdstools import _core, urls
from wdstools.columns import CHECKSUM, HIDDEN
from wdstools.errors import ChecksumError, IndexFileError, TruncatedError, UrlError, WdsError
from wdstools.index import Index
from wdstools.storage import Whole, open_source

Level = Literal["none", "shard", "sample"]
"""Of what an index keeps checksums: nothing, each shard, or each sample too."""

Sums = tuple[int, int, bytes]
"""Of a shard that was read: its bytes, their checksum, and those of samples, native u64."""

LEVELS: tuple[Level, ...] = ("none", "shard", "sample")  # a level has a number, for the core
FORM = "xxh3:{:016x}"
_NOTHING = b""


def level_of(index: Index) -> Level:
    """Return what an index keeps checksums of, for some of its shards at least."""
    if CHECKSUM in index.table.column_names:
        return "sample"
    return "shard" if any(index.shards.checksum) else "none"


def add_checksums(index: Index, url: str, level: Level) -> Index:
    """Return the index of one shard with its checksums, computed where they are lacking. Reads the shard once more.

    Raises ShardError, StoreError."""
    table, shards = index.table, index.shards
    has = CHECKSUM in table.column_names and not table.column(CHECKSUM).null_count
    if level == "none" or (shards.checksum[0] and (has or level == "shard")):
        return index
    places = _places(index, 0) if level == "sample" else (_NOTHING, _NOTHING)
    with _opened(url) as source:
        nbytes, shard, each = _core.checksums(source, url, *places)
    if nbytes != shards.nbytes[0] or len(each) != len(places[0]):
        raise TruncatedError("changed while it was read", url, nbytes)
    shards.checksum = [FORM.format(shard)]
    if level == "sample":
        table = with_column(table.drop_columns([CHECKSUM]) if CHECKSUM in table.column_names else table, each)
    return Index(table, shards, index.path, index.metadata)


def shard_checksum(url: str) -> str:
    """Return the checksum of all bytes of a shard, as an index keeps it. Raises StoreError."""
    with _opened(url) as source:
        return FORM.format(_core.checksums(source, url, _NOTHING, _NOTHING)[1])


def with_column(table: pa.Table, each: bytes) -> pa.Table:
    """Return a table with the checksums of its samples, native u64."""
    return table.add_column(
        table.num_columns - len(HIDDEN), CHECKSUM, pa.array(np.frombuffer(each, np.uint64), pa.uint64())
    )


def verify_checksums(
    index: Index,
    shards: Sequence[int] | None = None,
    *,
    workers: int | None = None,
    run_pipes: bool = False,
    from_disk: bool = False,
    progress: Callable[[int], object] = lambda nbytes: None,
) -> list[WdsError]:
    """Read shards and compare them with the checksums that their index keeps. Returns what is wrong, in order.

    A ChecksumError for every sample that is not what it was, if the index keeps those of samples, else for the shard.
    `shards`: numbers of the shard table, default all; `run_pipes`: as in comparison.check(); `from_disk`: wait until
    local shards are on the disk, and read them from there, not from memory; `progress`: called with the bytes of each.
    """
    try:
        index.validate()
    except IndexFileError as error:
        return [error]

    def one(number: int) -> list[WdsError]:
        try:
            return _verify(index, number, run_pipes, from_disk)
        except WdsError as error:
            return [error]
        finally:
            progress(index.shards.nbytes[number])

    numbers = range(len(index.shards)) if shards is None else shards
    with ThreadPoolExecutor(workers or os.cpu_count() or 1, "wds-verify") as pool:
        return [error for found in pool.map(one, numbers) for error in found]


def _verify(index: Index, number: int, run_pipes: bool, from_disk: bool) -> list[WdsError]:
    url, wanted = index.shards.url[number], index.shards.checksum[number]
    if not wanted:
        raise IndexFileError(f"{index.name}: keeps no checksum of {url}: wds-index build --checksum shard adds it")
    if urls.scheme(url) == "pipe" and not run_pipes:
        raise UrlError(f"{url}: not read: commands that an index names are not run unless asked")
    with _opened(url, from_disk) as source:
        return differences(index, number, _core.checksums(source, url, *places_of(index, number)))


def places_of(index: Index, number: int) -> tuple[bytes, bytes]:
    """Return where the samples lie whose checksums an index keeps: their starts and ends, native u64."""
    return (_NOTHING, _NOTHING) if _sums(index, number) is None else _places(index, number)


def differences(index: Index, number: int, found: Sums) -> list[WdsError]:
    """Compare what was read of a shard with the checksums that its index keeps. `found`: by places_of()."""
    url, wanted, sums = index.shards.url[number], index.shards.checksum[number], _sums(index, number)
    nbytes, shard, each = found
    errors: list[WdsError] = []
    if sums is not None:
        errors += _wrong_samples(index, number, sums, np.frombuffer(each, np.uint64))
    if nbytes != index.shards.nbytes[number]:
        errors.append(ChecksumError(f"{nbytes} bytes, where the index has {index.shards.nbytes[number]}", url))
    elif not errors and FORM.format(shard) != wanted:
        where = "; all samples are what they were" if sums is not None else ""
        errors.append(ChecksumError(f"its checksum is {FORM.format(shard)}, where the index has {wanted}{where}", url))
    return errors


def _wrong_samples(index: Index, number: int, sums: Any, found: Any) -> Iterator[WdsError]:
    first = sum(index.shards.nsamples[:number])
    for place in np.flatnonzero(sums[: len(found)] != found).tolist():
        key, _, start, end = index.locate(first + place)
        reason = (
            f"sample {key!r}, bytes [{start}, {end}): its checksum is {found[place]:016x}, "
            f"where the index has {sums[place]:016x}"
        )
        yield ChecksumError(reason, index.shards.url[number], start)


def _rows(index: Index, number: int) -> slice:
    first = sum(index.shards.nsamples[:number])
    return slice(first, first + index.shards.nsamples[number])


def _places(index: Index, number: int) -> tuple[bytes, bytes]:
    """Where the samples of a shard lie, as the core has it."""
    rows = _rows(index, number)
    table = index.table.slice(rows.start, rows.stop - rows.start)
    start, end = (table.column(name).to_numpy() for name in ("start", "end"))
    return start.tobytes(), end.tobytes()


def _sums(index: Index, number: int) -> Any:
    """The checksums of the samples of a shard; None where they are not kept."""
    if CHECKSUM not in index.table.column_names:
        return None
    rows = _rows(index, number)
    column = index.table.column(CHECKSUM).slice(rows.start, rows.stop - rows.start)
    return None if column.null_count else column.to_numpy()


@contextlib.contextmanager
def _opened(url: str, from_disk: bool = False) -> Iterator[Any]:
    """What the core reads: a descriptor of a plain local shard, or an object."""
    with open_source(url) as source:
        if isinstance(source.handle, int) and not source.head and from_disk:
            os.fsync(source.handle)
            os.posix_fadvise(source.handle, 0, 0, os.POSIX_FADV_DONTNEED)
        yield Whole(source) if source.head else source.handle


__all__ = [
    "FORM", "LEVELS", "Level", "Sums", "add_checksums", "differences", "level_of", "places_of", "shard_checksum",
    "verify_checksums", "with_column",
]  # fmt: skip
