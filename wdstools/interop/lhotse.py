"""Lhotse's `X.tar.idx`: little-endian 64-bit numbers, where each pair of members begins, and the size of the shard."""

from __future__ import annotations

import numpy as np

from wdstools.columns import Array
from wdstools.errors import UnsupportedError
from wdstools.index import Index
from wdstools.interop import foreign
from wdstools.interop.claims import Claim
from wdstools.interop.detect import claim_file
from wdstools.interop.foreign import Options, Written, stale, wrong
from wdstools.interop.members import Members, read_members, write_each


def index_path(shard: str) -> str:
    """Where Lhotse looks: X.tar -> X.tar.idx."""
    return shard + ".idx"


def export(index: Index, options: Options) -> Written:
    """Write the index of every shard. Raises UnsupportedError for shards that are no pairs, StaleIndexError,
    DestinationError."""
    paths = foreign.beside(index.shards.url, options, "Lhotse", index_path)
    for path, url in zip(paths, index.shards.url, strict=True):
        claim_file(path, "lhotse", options.overwrite, url)
    write_each(index, paths, encode, options)
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
    return offsets(members.starts, members.shard_nbytes)


def offsets(starts: Array, nbytes: int) -> bytes:
    """Return the bytes of the index of a shard of this size, from where its members begin."""
    return np.append(starts[::2], np.uint64(nbytes)).astype("<u8").tobytes()


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
    if len(members.starts) % 2 or data != offsets(members.starts, members.shard_nbytes):
        stale(path, shard, "its pairs of members begin elsewhere")
    return Claim(shard, path, nbytes=int(values[-1]))
