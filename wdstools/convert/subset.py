"""Subsets and other orders of shards that have an index: which rows (`--join`, `--where`, `--sample`, `--sort-by`), and
how they are copied: the byte range of every sample as it is, headers included, and its row of the index with it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wdstools.access import Access
from wdstools.columns import CHECKSUM
from wdstools.convert.destination import ShardPlan, Target, digester
from wdstools.convert.entries import Digest, Entries, Entry
from wdstools.convert.options import Options
from wdstools.convert.order import Numbers
from wdstools.convert.sources import Faults, Listing, check_key
from wdstools.errors import ChecksumError, ShardError, SourceError
from wdstools.index import Index
from wdstools.store import Stores
from wdstools.tar import END_MARKER

if TYPE_CHECKING:
    from wdstools.convert.upload import Shard
    from wdstools.dataset import Dataset

Array = np.ndarray[Any, Any]
SPAN = ""  # what stands for the fields of a sample that is copied whole
_UNSAFE = r"^/|(^|/)\.\.(/|$)"


def select(data: Dataset, options: Options, source: str) -> Dataset:
    """Return the rows that the options ask for, in their order: that of the index, unless they are sorted.

    Raises SourceError where none is left, QueryError, NotFoundError.
    """
    for table in options.join:
        data = data.join(table)
    if options.where is not None:
        data = data.where(options.where)
    if options.sample is not None:
        n = options.sample if isinstance(options.sample, int) else math.floor(options.sample * len(data) + 0.5)
        if n > len(data):
            raise SourceError(f"--sample {n}: there are {len(data)} samples to draw from")
        data = data.select(np.isin(np.asarray(data.rows), np.asarray(data.sample(n, options.seed).rows)))
    if options.sort_by is not None:
        data = data.sort_by(options.sort_by, options.descending)
    if not len(data):
        raise SourceError(f"{source}: no sample is left: --where and --sample take all of them away")
    return data


class RowEntries(Entries):
    """Rows of an index as entries; they take 16 bytes each."""

    def __init__(self, index: Index, rows: Array, nbytes: Array, groups: Sequence[Any] | None) -> None:
        super().__init__()
        self.index, self.rows, self.nbytes, self._groups = index, rows, nbytes, groups

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Entry:
        row = int(self.rows[i])
        group = None if self._groups is None else self._groups[row]
        return Entry(self.index.key(row), group, (SPAN, row, int(self.nbytes[i])))

    def __iter__(self) -> Iterator[Entry]:
        return map(self.__getitem__, range(len(self)))

    def feed(self, digest: Digest) -> int:
        """The rows and their keys, which with the shards of the index are all there is."""
        keys = self.index.table.column("key").take(pa.array(self.rows))
        for chunk in [pa.array(self.rows), pa.array(self.nbytes), *keys.cast(pa.large_utf8()).chunks]:
            for buffer in filter(None, chunk.buffers()):
                digest.update(buffer)
        digest.update(repr(None if self._groups is None else [self._groups[row] for row in self.rows]).encode())
        return int(self.nbytes.sum())

    def has_field(self, name: str) -> bool:
        """No: they are not looked at."""
        return False

    def sorted(self) -> Entries:
        """As it is: the order was chosen."""
        return self


class Spans:
    """The shards of an index, to copy samples from. Safe to use from several threads.

    `columns`: what the new index takes over, by name; of all rows.
    """

    def __init__(self, index: Index, columns: dict[str, pa.ChunkedArray]) -> None:
        self.index, self._columns = index, columns
        self._access = Access(index, None, True, Stores())

    def __reduce__(self) -> tuple[Any, ...]:
        return Spans, (self.index, self._columns)  # files are opened where it is read

    def copy(self, row: int, file: Shard) -> None:
        """Append the sample of a row to a shard. Raises StaleIndexError, SourceError, OSError."""
        key, shard, start, end = self.index.locate(row)
        opened = self._access.files.get(shard)
        try:
            file.copy(key, opened[0], start, end, opened[1])
        except ShardError as error:
            raise self._access.stale(error) from error
        file.rows.append(row)
        file.columns = self.take

    def take(self, rows: Sequence[int], index: Index) -> dict[str, pa.ChunkedArray]:
        """Return the columns of some rows, which have become those of an index.

        Where both indexes keep checksums of samples, they are compared: raises ChecksumError.
        """
        numbers = pa.array(rows, pa.int64())
        old = self.index.table
        if CHECKSUM in old.column_names and CHECKSUM in index.table.column_names:
            wrong = pc.not_equal(old.column(CHECKSUM).take(numbers), index.table.column(CHECKSUM))
            place = pc.index(wrong, True).as_py()
            if place >= 0:
                key, shard, start, end = self.index.locate(rows[place])
                reason = f"sample {key!r}, bytes [{start}, {end}): its checksum is not that of {self.index.name}"
                raise ChecksumError(reason, self.index.shards.url[shard], start)
        return {name: values.take(numbers) for name, values in self._columns.items()}


class Span(NamedTuple):
    """A sample to copy whole."""

    source: Spans
    row: int


def list_spans(listing: Listing, data: Dataset, options: Options, faults: Faults, groups: Sequence[Any] | None) -> None:
    """Fill a listing with samples that are copied whole, in the order of `data`. Raises SourceError."""
    index = data.index
    index.validate()
    rows = np.asarray(data.rows, np.int64)
    rows = rows[_good(index, rows, faults)]
    if not len(rows):
        raise SourceError("no sample is left")
    start, end = (index.table.column(name).to_numpy()[rows] for name in ("start", "end"))
    carried = _carried(data, options)
    spans = Spans(index, carried)
    listing.entries = RowEntries(index, rows, (end - start).astype(np.int64), groups)
    listing.carried = frozenset(carried)
    listing.read = lambda entry: Span(spans, entry.parts[1])


def _carried(data: Dataset, options: Options) -> dict[str, pa.ChunkedArray]:
    """Columns of the old index, or those of it and of the joined tables that `--column` names."""
    own = {name: data.index.table.column(name) for name in data.index.lifted() if name != CHECKSUM}
    if options.lift is None:
        return own
    return {name: values for name, values in (own | data.joined).items() if name in options.lift}


def _good(index: Index, rows: Array, faults: Faults) -> Array:
    """Which of the rows can be written: keys that come once, and stay in their folder."""
    good = np.ones(len(rows), bool)
    keys = index.table.column("key").take(pa.array(rows))
    for place in np.flatnonzero(pc.match_substring_regex(keys, _UNSAFE).to_numpy()).tolist():
        if wrong := check_key(keys[place].as_py()):
            faults.add(keys[place].as_py(), f"sample {keys[place]}", *wrong)
            good[place] = False
    hashes = np.empty(len(index), np.uint64)
    hashes[index.table.column("_row").to_numpy()] = index.table.column("_hash").to_numpy()
    _, first, counts = np.unique(hashes[rows], return_index=True, return_counts=True)
    if len(first) == len(rows):
        return good
    seen: set[str] = set()
    twice = np.isin(hashes[rows], hashes[rows][first[counts > 1]])
    for place in np.flatnonzero(twice).tolist():
        key = keys[place].as_py()
        if key in seen:
            url = index.shards.url[index.locate(int(rows[place]))[1]]
            faults.add(key, url, "two samples with one key", f"{key!r}; --on-error skip keeps the first")
            good[place] = False
        seen.add(key)
    return good


def pack(entries: RowEntries, order: Numbers, target: Target, options: Options) -> list[ShardPlan]:
    """Say which samples go into which shard, as destination.pack does it."""
    nbytes = entries.nbytes if isinstance(order, range) else entries.nbytes[np.asarray(order)]
    ends = np.cumsum(nbytes)
    plans: list[ShardPlan] = []
    start = before = 0
    maxcount, maxsize = options.limits
    while start < len(ends):
        most = before + maxsize - END_MARKER
        stop = min(int(np.searchsorted(ends, most, side="right")), start + maxcount)
        stop = max(stop, start + 1)  # a larger sample gets a shard of its own
        after = int(ends[stop - 1])
        digest = _digest(entries, order[start:stop])
        plans.append(ShardPlan(target.pattern % len(plans), start, stop, after - before + END_MARKER, digest))
        start, before = stop, after
    return plans


def _digest(entries: RowEntries, numbers: Numbers) -> str:
    state = digester()
    some = np.asarray(numbers)
    RowEntries(entries.index, entries.rows[some], entries.nbytes[some], None).feed(state)
    return state.hexdigest()
