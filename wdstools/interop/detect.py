"""Which tool a file belongs to, told by what is in it: several tools give the name X.tar.idx to different things."""

from __future__ import annotations

import json
import os
import re
import sqlite3

import numpy as np

from wdstools import _core, urls
from wdstools.errors import DestinationError
from wdstools.interop import foreign
from wdstools.interop.foreign import sqlite

AISTORE_SEED = 1103515245  # of the XXH64 in AIStore's indexes
HEAD = 1 << 20  # bytes of a file that are looked at

WHAT = {
    "dali": "an index of DALI (text that begins with v1.1 or v1.2)",
    "energon": "an index of Energon (64-bit offsets of samples, the last of them where the members end)",
    "lhotse": "an index of Lhotse (64-bit offsets of pairs, the last of them the size of the shard)",
    "offsets": "an index of Energon or Lhotse (64-bit offsets)",
    "aistore": "an index of AIStore (binary, with names and a checksum)",
    "wids": "a shard index of wids (JSON)",
    "energon-info": "the shard table of Energon (JSON)",
    "ratarmount": "an index of ratarmount (SQLite, with a table of files)",
    "energon-sqlite": "the sample index of Energon (SQLite, with a table of samples)",
    "parquet": "a Parquet file",
    "wdsindex": "an index of wdstools",
    "unknown": "something else",
}


def kind(path: str, shard: str | None = None) -> str:
    """Return which of WHAT a local file is. `shard`: the one that lies beside it, which tells Energon's offsets from
    Lhotse's."""
    with open(path, "rb") as file:
        head = file.read(HEAD)
    nbytes = os.path.getsize(path)
    if is_dali(head):
        return "dali"
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(b"ARROW1"):
        return "wdsindex"
    if head.startswith(b"SQLite format 3\0"):
        return _sqlite_kind(path)
    if head[:1] == b"{" and nbytes <= HEAD * 64:
        return _json_kind(path)
    if head.startswith(b"\1\0\1") and nbytes <= foreign.MOST:
        data = foreign.read(path)
        if _core.hash_key(data[11:], AISTORE_SEED) == int.from_bytes(data[3:11], "big"):
            return "aistore"
    if nbytes >= 8 and nbytes % 8 == 0:
        return _offsets_kind(path, shard)
    return "unknown"


def is_dali(head: bytes) -> bool:
    """Say whether a file begins as DALI's indexes do."""
    return re.match(rb"v1\.[12]\s+[0-9]+\s", head) is not None


def _sqlite_kind(path: str) -> str:
    try:
        with sqlite(path) as database:
            tables = {row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except (sqlite3.Error, ValueError):
        return "unknown"
    if {"files", "versions"} <= tables:
        return "ratarmount"
    return "energon-sqlite" if {"samples", "sample_parts"} <= tables else "unknown"


def _json_kind(path: str) -> str:
    try:
        told = json.loads(foreign.read(path))
    except (ValueError, RecursionError):
        return "unknown"
    if told.get("__kind__") == "wids-shard-index-v1" or ("shardlist" in told and "wids_version" in told):
        return "wids"
    return "energon-info" if "shard_counts" in told else "unknown"


def _offsets_kind(path: str, shard: str | None) -> str:
    values = np.fromfile(path, "<u8")
    local = urls.local_path(shard) if shard is not None else None
    if np.any(values % 512) or np.any(values[1:] < values[:-1]):
        return "unknown"
    if local is None or not os.path.exists(local):
        return "offsets"
    nbytes = os.path.getsize(local)
    if values[-1] == nbytes:
        return "lhotse"
    return "energon" if values[-1] < nbytes else "offsets"


def claim_file(path: str, format: str, overwrite: bool, shard: str | None = None) -> None:
    """Make sure that a file may be written: nothing is there, or what has the same format and may be replaced.

    Raises DestinationError, which names the difference.
    """
    if not os.path.lexists(path):
        return
    if not os.path.isfile(path):
        raise DestinationError(f"{path}: is there and is no file; write elsewhere with --output")
    found = kind(path, shard)
    if found != format:
        raise DestinationError(f"{path}: is {WHAT[found]}, not {WHAT[format]}; write elsewhere with --output")
    if not overwrite:
        raise DestinationError(f"{path}: is there already; --overwrite replaces it")
