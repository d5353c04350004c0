"""View: which rows of an index, in which order, and columns joined to them. Views compose, and copy no samples."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wdstools import query
from wdstools.errors import KeyMissingError, QueryError
from wdstools.index import Index
from wdstools.permute import blocks, mix, words
from wdstools.plan import split_of

Array = np.ndarray[Any, Any]
Rows = range | Array

HINTS = 5000  # keys that are looked at for one that is like a wrong one


class View:
    """Rows of an index, in order. Every method that returns a view shares the index, and leaves this one as it is.

    `rows`: a range or an array of row numbers; `joined`: columns beside those of the index, of as many rows.
    """

    index: Index
    rows: Rows
    joined: dict[str, pa.ChunkedArray]

    def _with(self, rows: Rows, joined: dict[str, pa.ChunkedArray] | None = None) -> Self:
        """The view of other rows, with other joined columns if given."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._place(key) is not None

    def keys(self) -> Iterator[str]:
        """Yield the keys, in order."""
        for row in self.rows:
            yield self.index.key(int(row))

    def columns(self) -> list[str]:
        """Return the names of the columns that where() and sort_by() see: those of the index (see Index.view), then
        those that were joined. Raises IndexFileError."""
        return list(self._table().column_names)

    def to_arrow(self) -> pa.Table:
        """Return these columns as an Arrow table, a row for each sample, in the order of this view; a view of
        neighbouring rows copies nothing. Raises IndexFileError."""
        table = self._table()
        rows = self.rows
        if isinstance(rows, range) and rows.step == 1:
            return table.slice(rows.start, len(rows))
        return table.take(pa.array(self._array()))

    def where(self, sql: str) -> Self:
        """Return the view of the samples for which a condition in DuckDB's SQL over columns() holds, in the order of
        this view. Raises QueryError, with the columns that there are; IndexFileError."""
        found = query.where(self._table(), sql)
        if isinstance(self.rows, range) and self.rows == range(len(self.index)):
            return self._with(found)
        holds = np.zeros(len(self.index), bool)
        holds[found] = True
        rows = self._array()
        return self._with(rows[holds[rows]])

    def select(self, indices: Iterable[int]) -> Self:
        """Return the view of the samples with these numbers, in the order given, also more than once; negative ones
        count from the end. An array of bools, one for each sample, picks those that are true. Raises IndexError."""
        if isinstance(indices, range):
            numbers = np.arange(indices.start, indices.stop, indices.step)
        else:
            numbers = np.asarray(indices if isinstance(indices, np.ndarray) else list(indices))
        if numbers.dtype == bool:
            if numbers.size != len(self) or numbers.ndim != 1:
                raise IndexError(f"{numbers.size} bools for {len(self)} samples")
            return self._with(self._array()[numbers])
        if numbers.size and (numbers.dtype.kind not in "iu" or numbers.ndim != 1):
            raise TypeError(f"numbers of samples must be whole, not {numbers.dtype} of {numbers.ndim} dimensions")
        wrong = numbers[(numbers < -len(self)) | (numbers >= len(self))] if numbers.size else numbers
        if wrong.size:
            raise IndexError(f"sample {wrong[0]} of {len(self)}")
        return self._with(self._array()[numbers.astype(np.int64)])

    def sample(self, n: int, seed: int = 0) -> Self:
        """Return a view of n samples drawn without replacement, in the order drawn: the same for the same seed, and
        those of a smaller n first. Raises ValueError where there are fewer."""
        if not 0 <= operator.index(n) <= len(self):
            raise ValueError(f"cannot draw {n} of {len(self)} samples")
        numbers = blocks(len(self), 1, seed).rows(np.arange(n, dtype=np.uint64), 0) if n else np.zeros(0, np.int64)
        return self.select(numbers.astype(np.int64))

    def sort_by(self, column: str, descending: bool = False) -> Self:
        """Return the view in the order of a column; equal values keep their order, null comes last. Raises QueryError
        for a column that is not there or has no order."""
        values = self._column(column)
        if pa.types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        try:
            order = pc.array_sort_indices(values, order="descending" if descending else "ascending")
        except pa.ArrowException as error:
            raise QueryError(f"column {column!r} is {values.type}, which has no order") from error
        return self._with(self._array()[order.to_numpy().astype(np.int64)])

    def split(self, *, seed: int = 0, by: str | None = None, **fractions: float) -> dict[str, Self]:
        """Return disjoint views that together are this one, by name: split(train=0.9, val=0.1)["val"]. Their order is
        that of this view.

        The hash of a sample's key and the seed decide (plan.split_of): a sample stays where it is when others come or
        go. `by`: stratified: of the samples with one value in this column (null is one too), each view gets its
        fraction, to within one sample; then others that come may move a few. Samples with one key stay together (with
        `by`: if they have one value). Without fractions: train=0.9, val=0.1.

        Raises ValueError for fractions that do not add up to 1, QueryError for a column that is not there.
        """
        shares = fractions or {"train": 0.9, "val": 0.1}
        rows = self._array()
        hashes = np.empty(len(self.index), np.uint64)
        self.index.validate()
        hashes[self.index.table.column("_row").to_numpy()] = self.index.table.column("_hash").to_numpy()
        number = split_of(hashes[rows], shares, seed)
        if by is not None:
            stirred = np.asarray(mix(hashes[rows] ^ words(1, f"stratum {seed}")[0]), np.uint64)
            number = _stratified(stirred, _codes(self._column(by)), list(shares.values()))
        return {name: self._with(rows[number == i]) for i, name in enumerate(shares)}

    def join(self, table: Any, on: str = "key") -> Self:
        """Return the view with the columns of a table joined to it, for where(), sort_by(), split() and to_arrow().

        `table`: the path of a .csv or .parquet, an Arrow table, a pandas data frame or another that speaks Arrow's
        protocol, or a dict of lists. `on`: the column, of the table and of the view, whose values have to be equal.
        Samples that the table lacks have null; rows of the table that no sample has are left out.

        Raises QueryError for a value that the table has twice, a column that is there already, a column `on` that is
        lacking or of another type; NotFoundError.
        """
        whole = self._table()
        if on not in whole.column_names:
            raise QueryError(f"there is no column {on!r} to join on\ncolumns: {', '.join(whole.column_names)}")
        found = query.matched(whole.column(on), query.read_table(table, on, whole.column(on).type), on)
        if both := sorted(set(found) & set(whole.column_names)):
            raise QueryError(f"columns that are there already: {', '.join(both)}: rename or drop them in the table")
        return self._with(self.rows, self.joined | found)

    def _table(self) -> pa.Table:
        """What queries see: all rows of the index."""
        table = self.index.view()
        for name, values in self.joined.items():
            table = table.append_column(name, values)
        return table

    def _column(self, name: str) -> pa.Array:
        """The values of a column for the rows of this view."""
        table = self._table()
        if name not in table.column_names:
            raise QueryError(f"there is no column {name!r}\ncolumns: {', '.join(table.column_names)}")
        values = table.column(name)
        if pa.types.is_dictionary(values.type):
            values = values.unify_dictionaries()
        values = values.take(pa.array(self._array()))
        return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values

    def _array(self) -> Array:
        if isinstance(self.rows, range):
            return np.arange(self.rows.start, self.rows.stop, self.rows.step, dtype=np.int64)
        return np.asarray(self.rows, dtype=np.int64)

    def _row(self, number: int) -> int:
        """The row of the sample with a number. Raises IndexError."""
        n = len(self.rows)
        if not -n <= number < n:
            raise IndexError(f"sample {number} of {n}")
        return int(self.rows[number])

    def _row_of(self, key: str) -> int:
        """The row of the first sample of this view with a key. Raises KeyMissingError."""
        place = self._place(key)
        if place is not None:
            return int(self.rows[place])
        near = self._near(key)
        raise KeyMissingError(f"no sample has the key {key!r}{'; near: ' + ', '.join(near) if near else ''}")

    def _place(self, key: str) -> int | None:
        """Where the first sample with a key stands in this view."""
        rows = self.index.find(key)
        if isinstance(self.rows, range):
            return min((self.rows.index(row) for row in rows if row in self.rows), default=None)
        hits = np.flatnonzero(np.isin(self.rows, rows))
        return int(hits[0]) if len(hits) else None

    def _near(self, key: str) -> list[str]:
        """A few keys that look like this one, from the first thousands: a hint, not a search."""
        import difflib

        some = [self.index.key(int(row)) for row in self.rows[:HINTS]]
        return difflib.get_close_matches(key, some, 3, 0.5)


def _codes(values: pa.Array) -> Array:
    """A number for each value, the same for the same one; null is a value too. Raises QueryError."""
    if not pa.types.is_dictionary(values.type):
        try:
            values = values.dictionary_encode("encode")
        except pa.ArrowException as error:
            raise QueryError(f"a column of {values.type} has no strata") from error
    codes: Array = pc.fill_null(values.indices, len(values.dictionary)).to_numpy(zero_copy_only=False).astype(np.int64)
    return codes


def _stratified(hashes: Array, strata: Array, fractions: list[float]) -> Array:
    """The number of the split of each sample. In each stratum samples are ranked by hash, and the ranks are cut at the
    sums of the fractions, moved by a part of a sample that differs from stratum to stratum: so strata of one sample
    are divided like large ones."""
    sums = np.cumsum(fractions)[:-1]
    number = np.zeros(len(hashes), np.uint8)
    order = np.lexsort((hashes, strata))
    limits = np.flatnonzero(np.diff(strata[order])) + 1
    for members in np.split(order, limits) if len(order) else []:
        ranked = hashes[members]
        part = int(mix(int(ranked[0]) ^ len(sums))) / 2.0**64
        for cut in np.floor(sums * len(ranked) + part).astype(np.int64):
            if cut < len(ranked):  # samples with one hash stay together
                number[members] += ranked >= ranked[cut]
    return number


__all__ = ["View"]
