"""Queries over an index: the table that they see, conditions in DuckDB's SQL that can reach nothing else, and tables
that are joined to it."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wdstools import urls
from wdstools.errors import NotFoundError, QueryError

# what a condition could otherwise read: files and the network, variables of Python, code that is fetched when named
_OFF = ("enable_external_access", "python_enable_replacements", "autoload_known_extensions")


def view(table: pa.Table, lifted: Sequence[str], shards: Sequence[str]) -> pa.Table:
    """Return the visible columns of an index with those that follow from them; see Index.view. `shards`: their URLs."""
    shard = table.column("shard")
    more: dict[str, Any] = {
        "row": np.arange(len(table), dtype=np.int64),
        "nbytes": pc.subtract(table.column("end"), table.column("start")),
        "url": _named(shard, shards),
        "file": _named(shard, [_file(url) for url in shards]),
    }
    for name in lifted:
        more.setdefault(name.partition(":")[2], table.column(name))
    for name, column in more.items():
        if name and name not in table.column_names:
            table = table.append_column(name, column if isinstance(column, pa.ChunkedArray) else pa.array(column))
    return table


@dataclass(frozen=True)
class Limits:
    """What a query may take: seconds, bytes of memory, threads. It is not let on the disk for more."""

    seconds: float = 10.0
    nbytes: int = 1 << 30
    threads: int = 2

    def config(self) -> dict[str, Any]:
        return {"memory_limit": f"{self.nbytes}B", "threads": str(self.threads), "temp_directory": ""}


def where(view: pa.Table, sql: str, limits: Limits | None = None) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the rows of a view, ascending, for which a condition holds; see Index.where. Raises QueryError."""
    import duckdb

    number = next(name for name in ("_n", "__n", "___n") if name not in view.column_names)
    table = view.append_column(number, pa.array(np.arange(len(view), dtype=np.int64)))
    try:
        config: dict[str, Any] = dict.fromkeys(_OFF, "false") | (limits.config() if limits else {})
        with duckdb.connect(config=config) as connection:
            connection.register("samples", table)
            connection.execute("SET lock_configuration = true")
            alarm = threading.Timer(limits.seconds if limits else 0.0, connection.interrupt)
            alarm.daemon = True
            if limits is not None:
                alarm.start()
            try:
                # filter() takes one expression, so that nothing can stand behind the parenthesis
                found = connection.table("samples").filter(f"({sql}\n)").project(number).fetchnumpy()[number]
            finally:
                alarm.cancel()
    except (duckdb.Error, UnicodeError) as error:
        if limits is not None and isinstance(error, duckdb.InterruptException):
            raise QueryError(f"the query was given up after {limits.seconds:g} seconds") from error
        raise QueryError(f"{str(error).strip()}\ncolumns: {', '.join(view.column_names)}") from error
    return np.sort(np.asarray(found, dtype=np.int64))


def read_table(table: Any, on: str, kind: pa.DataType) -> pa.Table:
    """Return an Arrow table of what View.join takes. `on`, `kind`: a column whose text in a CSV has this type, so that
    the key 0012 does not become a number. Raises QueryError, NotFoundError."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    try:
        if isinstance(table, str | os.PathLike):
            return _read_file(os.fspath(table), on, kind)
        if isinstance(table, Mapping):
            return pa.table({name: pa.array(values) for name, values in table.items()})
        if isinstance(table, pa.Table):
            return table
        if hasattr(table, "__arrow_c_stream__"):
            return pa.table(table)
        if hasattr(table, "iloc"):  # a pandas of before 2.2
            return pa.Table.from_pandas(table, preserve_index=False)
    except FileNotFoundError as error:
        raise NotFoundError(f"{table}: no such table") from error
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        what = table if isinstance(table, str | os.PathLike) else f"a {type(table).__name__}"
        raise QueryError(f"{what}: cannot be read as a table: {error}") from error
    raise QueryError(f"a {type(table).__name__} is no table: give a .csv, a .parquet, an Arrow table or a data frame")


def _read_file(path: str, on: str, kind: pa.DataType) -> pa.Table:
    if path.endswith(".parquet"):
        import pyarrow.parquet

        return pyarrow.parquet.read_table(path)
    if path.endswith((".csv", ".csv.gz")):
        import pyarrow.csv

        # text is null only where it is empty and bare: a key may be called NA
        options = pyarrow.csv.ConvertOptions(column_types={on: kind}, quoted_strings_can_be_null=False)
        return pyarrow.csv.read_csv(path, convert_options=options)
    raise QueryError(f"{path}: is no .csv or .parquet")


def matched(values: pa.ChunkedArray, table: pa.Table, on: str) -> dict[str, pa.ChunkedArray]:
    """Return the columns of a table, but `on`, with the row for each value that has it in `on`; null where none has.

    Raises QueryError for a value that `on` has twice, a table without it, or with another type there."""
    if len(set(table.column_names)) < len(table.column_names):
        raise QueryError(f"the table has two columns with one name: {', '.join(table.column_names)}")
    if on not in table.column_names:
        raise QueryError(f"the table has no column {on!r}\ncolumns: {', '.join(table.column_names)}")
    known = _plain(table.column(on))
    values = _plain(values)
    if known.type != values.type:
        if not len(known) or _family(known.type) is None or _family(known.type) != _family(values.type):
            if len(known):
                raise QueryError(f"column {on!r} is {known.type} in the table and {values.type} in the index")
            known = pa.chunked_array([], values.type)
        try:
            known = known.cast(values.type)
        except pa.ArrowException as error:
            raise QueryError(f"column {on!r}: {error}") from error
    counts = known.drop_null().value_counts()
    twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values") if len(counts) else counts
    if len(twice):
        some = ", ".join(repr(value) for value in twice[:3].to_pylist())
        raise QueryError(f"the table has {len(twice)} values of {on!r} more than once: {some}")
    places = pc.index_in(values, value_set=known, skip_nulls=True)
    found = table.drop_columns([on]).take(places)
    return dict(zip(found.column_names, found.columns, strict=True))


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _family(kind: pa.DataType) -> str | None:
    """Types of one family can be compared, once cast."""
    tests = {"text": (pa.types.is_string, pa.types.is_large_string), "number": (pa.types.is_integer,)}
    if kind == pa.string_view():
        return "text"
    return next((name for name, is_one in tests.items() if any(test(kind) for test in is_one)), None)


def _named(shard: pa.ChunkedArray, names: Sequence[str]) -> pa.ChunkedArray:
    texts = pa.array([name.encode("utf-8", "backslashreplace").decode() for name in names], pa.utf8())
    chunks = [pa.DictionaryArray.from_arrays(chunk, texts) for chunk in shard.chunks]
    return pa.chunked_array(chunks, type=pa.dictionary(pa.uint32(), pa.utf8()))


def _file(url: str) -> str:
    return url if urls.scheme(url) == "pipe" else urls.basename(url)
