"""Queries over an index: the table that they see, and conditions in DuckDB's SQL that can reach nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wdstools import urls
from wdstools.errors import QueryError

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


def where(view: pa.Table, sql: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the rows of a view, ascending, for which a condition holds; see Index.where. Raises QueryError."""
    import duckdb

    number = next(name for name in ("_n", "__n", "___n") if name not in view.column_names)
    table = view.append_column(number, pa.array(np.arange(len(view), dtype=np.int64)))
    try:
        with duckdb.connect(config=dict.fromkeys(_OFF, "false")) as connection:
            connection.register("samples", table)
            connection.execute("SET lock_configuration = true")
            # filter() takes one expression, so that nothing can stand behind the parenthesis
            found = connection.table("samples").filter(f"({sql}\n)").project(number).fetchnumpy()[number]
    except (duckdb.Error, UnicodeError) as error:
        raise QueryError(f"{str(error).strip()}\ncolumns: {', '.join(view.column_names)}") from error
    return np.sort(np.asarray(found, dtype=np.int64))


def _named(shard: pa.ChunkedArray, names: Sequence[str]) -> pa.ChunkedArray:
    texts = pa.array([name.encode("utf-8", "backslashreplace").decode() for name in names], pa.utf8())
    chunks = [pa.DictionaryArray.from_arrays(chunk, texts) for chunk in shard.chunks]
    return pa.chunked_array(chunks, type=pa.dictionary(pa.uint32(), pa.utf8()))


def _file(url: str) -> str:
    return url if urls.scheme(url) == "pipe" else urls.basename(url)
