"""Energon's `X.tar.idx`: native 64-bit numbers, where each sample begins, and last where the members end."""

from __future__ import annotations

import os
import sys

import numpy as np

from wdstools import urls
from wdstools.columns import Array
from wdstools.interop import foreign
from wdstools.interop.claims import Claim
from wdstools.interop.foreign import stale, wrong

SUFFIX = ".tar.idx"
ZEROS = bytes(512)


def index_path(shard: str) -> str:
    """Where Energon looks: X.tar -> X.tar.idx."""
    head, dot, _ = shard.rpartition(".")
    return (head if dot and "/" not in _ else shard) + SUFFIX


def encode(starts: Array, end: int) -> bytes:
    """Return the bytes of the index of a shard."""
    return np.append(starts, np.uint64(end)).astype("=u8").tobytes()


def read(path: str, shard: str) -> Claim:
    """Read the index of a shard. Raises IndexFileError, NotFoundError."""
    data = foreign.read(path)
    if not data or len(data) % 8 or sys.byteorder != "little":
        wrong(path, f"{len(data)} bytes are no array of 64-bit numbers")
    values = np.frombuffer(data, "<u8")
    if np.any(values[1:] < values[:-1]):
        wrong(path, "its offsets do not ascend")
    claim = Claim(shard, path, starts=values[:-1].tolist(), end=int(values[-1]))
    _check_end(claim)
    return claim


def _check_end(claim: Claim) -> None:
    """Where the members are said to end there are zeros, as Lhotse's index would not have it."""
    local, end = urls.local_path(claim.url), claim.end or 0
    if local is None or not os.path.exists(local):
        return
    with open(local, "rb") as file:
        nbytes = os.fstat(file.fileno()).st_size
        if end == nbytes:
            stale(
                claim.path,
                claim.url,
                "its last number is the size of the shard, so it is Lhotse's: import --from lhotse",
            )
        if os.pread(file.fileno(), 512, end if end < 1 << 63 else nbytes) != ZEROS:
            stale(claim.path, claim.url, f"the members do not end at byte {end}")
