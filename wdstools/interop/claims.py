"""From a foreign index to ours: what it claims of a shard, and the proof by the shard's own headers.

A row of ours comes from the headers of the shard only, read by the core that reads every shard; the foreign index
tells where payloads lie, so that those of a remote shard need not be read, and is compared with what was found. So a
stale or hostile one can make an error, and never a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from os import cpu_count
from typing import NamedTuple

import numpy as np

from wdstools import _core, shardindex, urls
from wdstools.errors import ShardError, StaleIndexError, UrlError
from wdstools.index import Index
from wdstools.interop.foreign import Options, stale
from wdstools.merge import Spool
from wdstools.store import Stores
from wdstools.storebase import Store

SKIP = 1 << 16  # bytes of a payload from which on it is cheaper not to read it
PIECE = 1 << 20  # bytes of a shard that are asked for at once
BATCH = 64  # pieces that are asked for together

NO_HEADER = b"\xff"  # what stands for payloads that are not read: no block of it is a header or an end


class Field(NamedTuple):
    """A payload as a foreign index has it: [offset, offset + nbytes). `key`, `ext`: None where it does not tell."""

    key: str | None
    ext: str | None
    offset: int
    nbytes: int


@dataclass
class Claim:
    """What a foreign index says of a shard; None: it does not.

    `samples`: the fields of each sample; `fields`: those of all, in any order; `starts`: where each sample begins;
    `end`: where the last member ends; `nsamples`, `nbytes`: of the shard.
    """

    url: str
    path: str
    samples: list[list[Field]] | None = None
    fields: list[Field] | None = None
    starts: Sequence[int] | None = None
    end: int | None = None
    nsamples: int | None = None
    nbytes: int | None = None
    normalised: bool = False  # keys have no ./ and //, as paths

    def payloads(self) -> list[Field]:
        """All fields that it has."""
        return self.fields if self.fields is not None else list(chain.from_iterable(self.samples or ()))


class Source(NamedTuple):
    """The claim of a shard that is read when its turn has come. `read` is for any thread."""

    url: str
    read: Callable[[], Claim]


@dataclass
class Imported:
    """`index`: the one that was written; `ranges`, `headers`, `whole`: of how many shards ranges were read, headers in
    a local file, or all bytes."""

    index: Index
    ranges: int = 0
    headers: int = 0
    whole: int = 0


def import_claims(path: str, claims: Sequence[Claim | Source], options: Options) -> Imported:
    """Write the index `path` of the shards that claims are of, in their order. Raises IndexFileError, StaleIndexError,
    ShardError, StoreError; then nothing is written."""
    counts = {"ranges": 0, "headers": 0, "whole": 0}
    stores = Stores()
    with Spool(path) as spool:

        def one(item: tuple[int, Claim | Source]) -> str:
            number, claim = item
            claim = claim.read() if isinstance(claim, Source) else claim
            index, how = scan(claim, stores)
            verify(claim, index)
            spool.put(number, index)
            options.progress(1)
            return how

        with ThreadPoolExecutor(options.workers or cpu_count() or 1) as pool:
            for how in pool.map(one, enumerate(claims)):
                counts[how] += 1
        spool.merge()
    return Imported(Index.load(path), counts["ranges"], counts["headers"], counts["whole"])


def scan(claim: Claim, stores: Stores) -> tuple[Index, str]:
    """Index the shard of a claim from its headers. Returns how: "headers" of a local file, "ranges" or "whole"."""
    if urls.scheme(claim.url) == "pipe":
        raise UrlError(f"{claim.url}: the output of a command is not looked for in an index")
    if urls.scheme(claim.url) == "file":
        try:
            return shardindex.index_shard(claim.url), "headers"
        except ShardError as error:
            raise StaleIndexError(f"{claim.path}: its shard cannot be read: {error}") from error
    big = [field for field in claim.payloads() if field.nbytes >= SKIP]
    if not big:
        return shardindex.index_shard(claim.url), "whole"
    store, path = stores.of(claim.url)
    store.forget(path)
    about = store.size(path)
    try:
        columns = _core.scan(Sparse(store, path, about.nbytes, big), claim.url)
    except ShardError as error:
        raise StaleIndexError(f"{claim.path}: does not describe {claim.url}: {error}") from error
    index = shardindex.from_columns(columns, claim.url)
    index.shards.etag, index.shards.mtime = [about.etag or ""], [about.mtime_ns or 0]
    return index, "ranges"


class Sparse:
    """A remote shard as a stream, without the payloads that are said to lie in it: NO_HEADER stands for them, so that
    a walk that comes upon one where it looks for a header fails, whatever was said."""

    def __init__(self, store: Store, path: str, nbytes: int, payloads: Iterable[Field]) -> None:
        self._store, self._path = store, path
        self._parts = _parts(nbytes, payloads)
        self._held: list[tuple[int, memoryview | None]] = []  # (bytes left, where they are read from; None: not read)

    def readinto(self, buffer: memoryview) -> int:
        if not self._held:
            self._fetch()
        if not self._held:
            return 0
        left, data = self._held[0]
        n = min(len(buffer), left)
        buffer[:n] = NO_HEADER * n if data is None else data[:n]
        if n == left:
            self._held.pop(0)
        else:
            self._held[0] = left - n, None if data is None else data[n:]
        return n

    def _fetch(self) -> None:
        parts: list[tuple[int, int, bool]] = []
        while sum(read for _, _, read in parts) < BATCH and (part := next(self._parts, None)) is not None:
            parts.append(part)
        bodies = iter(self._store.read_ranges(self._path, [(start, end) for start, end, read in parts if read]))
        self._held = [(end - start, memoryview(next(bodies)) if read else None) for start, end, read in parts]


def _parts(nbytes: int, payloads: Iterable[Field]) -> Iterator[tuple[int, int, bool]]:
    """(start, end, whether it is to be read) of the parts of a shard, in order."""
    at = 0
    for one in sorted(payloads, key=lambda field: field.offset):
        start, end = one.offset, one.offset + one.nbytes
        if start < at or end > nbytes:
            continue  # verify() will say it; what lies there is read
        yield from ((a, min(a + PIECE, start), True) for a in range(at, start, PIECE))
        yield start, end, False
        at = end
    yield from ((a, min(a + PIECE, nbytes), True) for a in range(at, nbytes, PIECE))


def verify(claim: Claim, index: Index) -> None:
    """Compare a claim with the index of its shard. Raises StaleIndexError, which names both files."""
    if why := _difference(claim, index):
        stale(claim.path, claim.url, why)


def _difference(claim: Claim, index: Index) -> str | None:
    shards = index.shards
    if claim.nbytes is not None and claim.nbytes != shards.nbytes[0]:
        return f"it has {shards.nbytes[0]} bytes, not {claim.nbytes}"
    for count in (claim.nsamples, *(len(x) for x in (claim.samples, claim.starts) if x is not None)):
        if count is not None and count != len(index):
            return f"it has {len(index)} samples, not {count}"
    if claim.starts is not None:
        start = index.table.column("start").to_numpy()
        said = np.array([min(s, (1 << 64) - 1) for s in claim.starts], np.uint64)
        if len(bad := np.flatnonzero(said != start)):
            return f"sample {bad[0]} begins at byte {start[bad[0]]}, not {claim.starts[bad[0]]}"
    last = index.table.column("end")[-1].as_py() if len(index) else 0
    if claim.end is not None and not last <= claim.end <= shards.nbytes[0] - 1024:
        return f"the last member does not end at byte {claim.end}"
    if claim.samples is not None or claim.fields is not None:
        return _fields_differ(claim, index)
    return None


def _fields_differ(claim: Claim, index: Index) -> str | None:
    rows = zip(index.table.column("key").to_pylist(), index.table.column("fields").to_pylist(), strict=True)
    have = [[Field(_norm(key, claim), f["ext"], f["offset"], f["nbytes"]) for f in fields] for key, fields in rows]
    if claim.samples is None:
        one = sorted(claim.fields or (), key=lambda field: field.offset)
        said, have = [one], [list(chain.from_iterable(have))]
    else:
        said = claim.samples
    for i, (theirs, ours) in enumerate(zip(said, have, strict=True)):
        for a, b in zip(theirs, ours, strict=False):
            if not _agree(a, b):
                return f"there is {_say(b)}, where it has {_say(a)}"
        if len(theirs) != len(ours):
            where = f"sample {i}" if claim.samples is not None else "the shard"
            return f"{where} has {len(ours)} fields, not {len(theirs)}"
    return None


def _norm(key: str, claim: Claim) -> str:
    return normal(key) if claim.normalised else key


def normal(name: str) -> str:
    """A name as a path from the root of the archive: without ./, // and .."""
    parts: list[str] = []
    for part in name.split("/"):
        if part == "..":
            parts[-1:] = []
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts) + ("/" if name.endswith("/") else "")


def _agree(said: Field, have: Field) -> bool:
    return (
        (said.offset, said.nbytes) == (have.offset, have.nbytes)
        and said.key in (None, have.key)
        and said.ext in (None, have.ext)
    )


def _say(field: Field) -> str:
    name = (
        f"{field.ext!r} of {field.key!r}" if field.key is not None else f"{field.ext!r}" if field.ext else "a payload"
    )
    return f"{name} at byte {field.offset} with {field.nbytes} bytes"
