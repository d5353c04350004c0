"""DALI's `.idx` (wds2idx), text: per sample the field, data offset and size of its members, and their names in v1.2.

    v1.2 <samples>\\n
    <ext> <offset> <nbytes> <name> [<ext> <offset> <nbytes> <name> ...]\\n

The reader splits at white space, so v1.1, which has no names, stands for shards whose names have some.
"""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wdstools.errors import UnsupportedError
from wdstools.index import Index
from wdstools.interop import foreign
from wdstools.interop.claims import Claim, Field
from wdstools.interop.detect import claim_file
from wdstools.interop.foreign import Options, Written, wrong
from wdstools.interop.members import Rows, each, first_rows, names_of, rows_of
from wdstools.samples import split_name

VERSIONS = ("v1.2", "v1.1")
_SPACE = r"[ \t\n\v\f\r]"  # what operator>> of C++ splits at
_SPACES = (b" ", b"\t", b"\n", b"\v", b"\f", b"\r")
_NUMBER = re.compile(r"[0-9]{1,19}")


def index_path(shard: str) -> str:
    """Where DALI's script writes by default: the path up to the first dot of its last part, past its first letter."""
    dot = shard.find(".", shard.rfind("/") + 2)
    return (shard if dot < 0 else shard[:dot]) + ".idx"


def export(index: Index, options: Options) -> Written:
    """Write the index of every shard. Raises UnsupportedError for what the format cannot say, StaleIndexError,
    DestinationError."""
    paths = foreign.beside(index.shards.url, options, "DALI", index_path)
    for path, url in zip(paths, index.shards.url, strict=True):
        claim_file(path, "dali", options.overwrite, url)
    written = Written(paths)

    first = first_rows(index)

    def one(number: int) -> str:
        rows = rows_of(index, number, first)
        text, version = encode(rows, *names_of(index, rows))
        batch.put(paths[number], text)
        return version

    with foreign.Batch() as batch:
        versions = list(each(index, one, options.workers, options.progress))
    if old := [path for path, version in zip(paths, versions, strict=True) if version == "v1.1"]:
        more = f" and {len(old) - 1} more" if len(old) > 1 else ""
        why = "a member's name has a space, at which DALI would cut it"
        written.notes.append(f"{old[0]}{more}: v1.1, without names: {why}")
    return written


def encode(rows: Rows, names: pa.Array, exts: pa.Array) -> tuple[bytes, str]:
    """Return the bytes of the index of a shard, and its version. Raises UnsupportedError."""
    if not len(rows):
        raise UnsupportedError("no samples, and DALI reads no index without one", rows.url)
    some = pc.unique(exts)
    for i in np.flatnonzero(pc.match_substring_regex(some, f"^$|{_SPACE}").to_numpy(zero_copy_only=False)).tolist():
        at = pc.index(exts, some[i]).as_py()
        why = f"DALI's index has no way to say the field {some[i].as_py()!r} of {names[at].as_py()!r}"
        raise UnsupportedError(why, rows.url, int(rows.header[at]))
    version = "v1.1" if _has_space(names) else "v1.2"
    columns = [exts, pa.array(rows.offset).cast(pa.utf8()), pa.array(rows.nbytes).cast(pa.utf8())]
    columns = [column.cast(pa.large_utf8()) for column in (columns if version == "v1.1" else [*columns, names])]
    entries = pc.binary_join_element_wise(*columns, pa.scalar(" ", pa.large_utf8()))
    lists = pa.LargeListArray.from_arrays(pa.array(np.concatenate(([0], rows.ends)), pa.int64()), entries)
    lines = pc.binary_join(lists, pa.scalar(" ", pa.large_utf8()))
    whole = pa.LargeListArray.from_arrays(pa.array([0, len(lines)], pa.int64()), lines)
    body = pc.binary_join(whole, pa.scalar("\n", pa.large_utf8()))
    return b"%s %d\n%s\n" % (version.encode(), len(rows), body[0].as_buffer().to_pybytes()), version


def _has_space(texts: pa.Array) -> bool:
    """Whether any text has white space. It is looked for in all of them at once, which is faster than a pattern."""
    joined = pa.concat_arrays([texts]).buffers()[2]  # of a whole array, from its start
    data = joined.to_pybytes() if joined is not None else b""
    return any(space in data for space in _SPACES)


def read(path: str, shard: str) -> Claim:
    """Read the index of a shard. Raises IndexFileError, NotFoundError."""
    lines = foreign.read_text(path).split("\n")
    head = lines[0].split()
    if len(head) != 2 or head[0] not in VERSIONS or not _NUMBER.fullmatch(head[1]):
        wrong(path, f"line 1: not a DALI index of {' or '.join(VERSIONS)}: {lines[0][:80]!r}")
    count = int(head[1])
    if count != len(lines) - 2 or lines[-1]:
        wrong(path, f"says {count} samples and has {len(lines) - 1 - (not lines[-1])} lines of them")
    samples = [_line(path, number, line.split(), head[0]) for number, line in enumerate(lines[1:-1], 2)]
    return Claim(shard, path, [sample for sample in samples if sample])


def _line(path: str, number: int, parts: list[str], version: str) -> list[Field]:
    width = 4 if version == "v1.2" else 3
    if not parts or len(parts) % width:
        wrong(path, f"line {number}: {len(parts)} words, not {width} for each member")
    found = []
    for i in range(0, len(parts), width):
        if not _NUMBER.fullmatch(parts[i + 1]) or not _NUMBER.fullmatch(parts[i + 2]):
            wrong(path, f"line {number}: {' '.join(parts[i : i + 3])!r} is no member")
        key = None
        if width == 4:
            name = split_name(parts[i + 3])
            if name is None:
                continue  # wds2idx takes it for a sample, webdataset does not
            key, parts[i] = name
        found.append(Field(key, parts[i].lower(), int(parts[i + 1]), int(parts[i + 2])))
    return found
