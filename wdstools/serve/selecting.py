"""Which rows of a set a request is about: a condition, a part of the key, an order; kept for the requests after it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wdstools import query
from wdstools.columns import one_chunk
from wdstools.errors import QueryError
from wdstools.serve.samplesets import SampleSet

KEPT = 64 << 20  # bytes of row numbers

Rows: TypeAlias = range | np.ndarray[Any, Any]


class Selection(NamedTuple):
    """`where`: SQL; `sort`: a column; `key`: a part of the key; "" for none."""

    where: str = ""
    sort: str = ""
    descending: bool = False
    key: str = ""


class Selections:
    """The rows of selections. `seconds`: that a query may take."""

    def __init__(self, seconds: float) -> None:
        self._limits = query.Limits(seconds)
        self._kept: OrderedDict[tuple[str, str, Selection], Rows] = OrderedDict()
        self._nbytes = 0
        self._lock = threading.Lock()

    def rows(self, samples: SampleSet, selection: Selection) -> Rows:
        """The rows of a set, in the order asked. Raises QueryError; IndexFileError."""
        name = samples.name, samples.version, selection
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
                return self._kept[name]
        found = self._find(samples, selection)
        with self._lock:
            if name not in self._kept and not isinstance(found, range):
                self._kept[name] = found
                self._nbytes += found.nbytes
            while self._nbytes > KEPT and len(self._kept) > 1:
                self._nbytes -= getattr(self._kept.popitem(last=False)[1], "nbytes", 0)
        return found

    def _find(self, samples: SampleSet, selection: Selection) -> Rows:
        if selection.sort:  # the order of what was found before
            return self._sorted(samples, selection)
        rows: Rows = samples.dataset.rows
        if not selection.where and not selection.key:
            return rows
        holds = np.ones(len(samples.index), bool)
        if selection.key:
            keys = samples.table.column("key")
            try:
                holds &= pc.match_substring(keys, selection.key).to_numpy()
            except UnicodeError as error:
                raise QueryError("a key is text in UTF-8") from error
        if selection.where:
            found = np.zeros(len(holds), bool)
            found[query.where(samples.table, selection.where, self._limits)] = True
            holds &= found
        array = np.arange(rows.start, rows.stop, rows.step) if isinstance(rows, range) else rows
        return _small(array[holds[array]], len(holds))

    def _sorted(self, samples: SampleSet, selection: Selection) -> Rows:
        table = samples.table
        if selection.sort not in table.column_names:
            raise QueryError(f"there is no column {selection.sort!r}; columns: {', '.join(table.column_names)}")
        rows = self.rows(samples, selection._replace(sort="", descending=False))
        values = table.column(selection.sort)
        if pa.types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        array = np.arange(rows.start, rows.stop, rows.step) if isinstance(rows, range) else rows
        if len(array) < len(table) or not isinstance(rows, range):
            values = values.take(pa.array(array))
        try:
            direction = "descending" if selection.descending else "ascending"
            order = pc.array_sort_indices(one_chunk(values), order=direction)  # null last
        except pa.ArrowException as error:
            raise QueryError(f"column {selection.sort!r} is {values.type}, which has no order") from error
        return _small(array[order.to_numpy()], len(table))


def _small(rows: np.ndarray[Any, Any], n: int) -> np.ndarray[Any, Any]:
    return rows.astype(np.uint32 if n < 1 << 32 else np.int64)


def neighbours(rows: Rows, row: int) -> tuple[int | None, int | None, int | None]:
    """Where a row stands, the row before it and the one after it."""
    if isinstance(rows, range):
        place = rows.index(row) if row in rows else None
    else:
        hits = np.flatnonzero(rows == row)
        place = int(hits[0]) if len(hits) else None
    if place is None:
        return None, None, None
    before = int(rows[place - 1]) if place else None
    after = int(rows[place + 1]) if place + 1 < len(rows) else None
    return place, before, after
