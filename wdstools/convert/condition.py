"""`--where` for sources without an index: a condition in DuckDB's SQL over the columns of rows, thousands at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

ROWS = 4096  # that a condition is put to at a time


def holding(items: Iterable[T], sql: str | None, values: Callable[[T], Mapping[str, Any] | None]) -> Iterator[T]:
    """Yield the items for whose values a condition holds, in order, and those that have none: they are told of later.

    A column whose values are of several types is seen as JSON. Raises QueryError.
    """
    if sql is None:
        yield from items
        return
    held: list[T] = []
    known: dict[str, None] = {}  # columns may be lacking in some rows: they are null there
    for item in items:
        held.append(item)
        if len(held) == ROWS:
            yield from _some(held, sql, values, known)
            held = []
    if held:
        yield from _some(held, sql, values, known)


def _some(
    held: list[T], sql: str, values: Callable[[T], Mapping[str, Any] | None], known: dict[str, None]
) -> Iterator[T]:
    import pyarrow as pa

    from wdstools import query

    rows = [values(item) for item in held]
    good = [row for row in rows if row is not None]
    for row in good:
        known |= dict.fromkeys(row)
    chosen: set[int] = set()
    if good:
        columns = {}
        for name in known:
            try:
                columns[name] = pa.array([row.get(name) for row in good])
            except (pa.ArrowException, TypeError, ValueError):  # values of several types
                columns[name] = pa.array([json.dumps(row.get(name), default=str) for row in good])
        chosen = set(query.where(pa.table(columns), sql).tolist())
    number = -1
    for item, has in zip(held, (row is not None for row in rows), strict=True):
        number += has
        if not has or number in chosen:
            yield item
