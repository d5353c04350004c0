"""Lhotse's `X.tar.idx`: little-endian 64-bit numbers, where each pair of members begins, and the size of the shard."""

from __future__ import annotations

import numpy as np

from wdstools.errors import UnsupportedError
from wdstools.index import Index
from wdstools.interop import foreign
from wdstools.interop.claims import Claim
from wdstools.interop.detect import claim_file
from wdstools.interop.foreign import Options, Written, stale, wrong
from wdstools.interop.members import Members, each, exact_names, first_rows, read_members, rows_of


def index_path(shard: str) -> str:
    """Where Lhotse looks: X.tar -> X.tar.idx."""
    return shard + ".idx"


def export(index: Index, options: Options) -> Written:
    """Write the index of every shard. Raises UnsupportedError for shards that are no pairs, StaleIndexError,
    DestinationError."""
    paths = foreign.beside(index.shards.url, options, "Lhotse", index_path)
    for path, url in zip(paths, index.shards.url, strict=True):
        claim_file(path, "lhotse", options.overwrite, url)

    first = first_rows(index)

    def one(number: int) -> None:
        rows = rows_of(index, number, first)
        members = read_members(rows.url)
        exact_names(index, rows, members)
        batch.put(paths[number], encode(members, rows.url))

    with foreign.Batch() as batch:
        for _ in each(index, one, options.workers, options.progress):
            pass
    return Written(paths)


def encode(members: Members, url: str) -> bytes:
    """Return the bytes of the index of a shard. Raises UnsupportedError."""
    n = len(members.starts)
    if n % 2:
        raise UnsupportedError(f"{n} members are no pairs of data and metadata, which Lhotse's index is of", url)
    long = np.flatnonzero(members.headers != members.starts)
    if len(long):
        at = int(members.starts[long[0]])
        why = "Lhotse's reader takes no PAX or long name header; wds-shard writes shards without"
        raise UnsupportedError(why, url, at)
    return np.append(members.starts[::2], np.uint64(members.shard_nbytes)).astype("<u8").tobytes()


def read(path: str, shard: str) -> Claim:
    """Read the index of a shard, and compare it with its members. Raises IndexFileError, NotFoundError,
    StaleIndexError."""
    data = foreign.read(path)
    if not data or len(data) % 8:
        wrong(path, f"{len(data)} bytes are no array of 64-bit numbers")
    values = np.frombuffer(data, "<u8")
    members = read_members(shard)
    if values[-1] != members.shard_nbytes:
        note = ": it is Energon's: import --from energon" if values[-1] == members.end else ""
        stale(path, shard, f"it has {members.shard_nbytes} bytes, not {values[-1]}{note}")
    if len(members.starts) % 2 or not np.array_equal(values[:-1], members.starts[::2]):
        stale(path, shard, "its pairs of members begin elsewhere")
    return Claim(shard, path, nbytes=int(values[-1]))
