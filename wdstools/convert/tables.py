"""Tables (.csv .tsv .jsonl .parquet), row by row, and what the text in the columns of a CSV stands for."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from wdstools.convert.sources import Faults
from wdstools.errors import SourceError

_INT, _FLOAT = r"^-?(0|[1-9][0-9]{0,17})$", r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?$"
_BATCH = 16_384

Row = dict[str, Any]
Kinds = dict[str, Callable[[str], Any]]
"""What the text in a column stands for, where it goes into json: fields have it as it is."""


class Table:
    """A manifest, row by row. `shown`: what messages call it; `kinds`: of the columns of a table of text, known when
    its first row is."""

    def __init__(self, path: str, shown: str, faults: Faults) -> None:
        self.path, self.shown, self.faults = path, shown, faults
        self.kinds: Kinds = {}

    def typed(self, item: tuple[str, Row]) -> Row:
        """What a condition sees of a row."""
        return {n: self.kinds[n](v) if n in self.kinds and v is not None else v for n, v in item[1].items()}

    def rows(self) -> Iterator[tuple[str, Row]]:
        """Yield (where, row)."""
        path, shown, kind = self.path, self.shown, os.path.splitext(self.path)[1].lower()
        try:
            if kind == ".parquet":
                rows: Iterable[tuple[int, Row]] = enumerate(_parquet(path, shown), 1)
            elif kind in (".csv", ".tsv"):
                delimiter = "," if kind == ".csv" else "\t"
                self.kinds = _kinds(path, shown, delimiter, self.faults.skip)
                rows = _csv(path, shown, delimiter, self.faults)
            else:
                rows = _jsonl(path, shown, self.faults)
            for number, row in rows:
                yield f"{shown}: row {number}", row
        except OSError as error:
            if error.errno is not None:
                raise
            raise SourceError(f"{shown}: cannot be read: {error}") from error


def _jsonl(path: str, shown: str, faults: Faults) -> Iterator[tuple[int, Row]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
            except ValueError as error:
                faults.add(f"row {number}", f"{shown}: row {number}", "not JSON", str(error))
                continue
            if isinstance(row, dict):
                yield number, row
            else:
                faults.add(f"row {number}", f"{shown}: row {number}", "not a JSON object")


def _parquet(path: str, shown: str) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH):
                yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise SourceError(f"{shown}: not a parquet file: {error}") from error


def _csv(path: str, shown: str, delimiter: str, faults: Faults) -> Iterator[tuple[int, Row]]:
    """Yield (number, row): text, an empty cell as None."""
    number = 0
    for batch in _batches(path, shown, delimiter, faults):
        columns = [[value or None for value in column.to_pylist()] for column in batch.columns]
        for values in zip(*columns, strict=True):
            number += 1
            yield number, dict(zip(batch.schema.names, values, strict=True))


def _batches(path: str, shown: str, delimiter: str, faults: Faults) -> Iterator[Any]:
    import pyarrow as pa
    from pyarrow import csv

    def bad(row: Any) -> str:
        if not faults.skip:
            return "error"
        where = f"{shown}: {row.text[:80]!r}"
        faults.add(where, where, "a row with too few or too many columns")
        return "skip"

    parse = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=bad)
    one = csv.ReadOptions(use_threads=False)  # so that rows are left out in their order
    try:
        with csv.open_csv(path, one, csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)) as reader:
            names = reader.schema.names
    except pa.ArrowInvalid:
        names = []
    try:
        if twice := {name for name in names if names.count(name) > 1}:
            raise SourceError(f"{shown}: two columns are called {sorted(twice)[0]!r}")
        text = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.utf8()), strings_can_be_null=False)
        with csv.open_csv(path, one, parse, text) as reader:
            yield from reader
    except pa.ArrowException as error:
        raise SourceError(f"{shown}: not a table: {error}") from error


def _kinds(path: str, shown: str, delimiter: str, lenient: bool) -> Kinds:
    """A column is numbers or booleans where all of it is; an empty cell fits everywhere."""
    import pyarrow.compute as pc

    left: dict[str, list[tuple[str, Callable[[str], Any]]]] = {}
    forms: list[tuple[str, Callable[[str], Any]]] = [
        (_INT, int),
        (_FLOAT, float),
        (r"^(true|false)$", lambda text: text == "true"),
        ("", str),
    ]
    for batch in _batches(path, shown, delimiter, Faults(lenient)):
        for name in batch.schema.names:
            column = batch.column(name)
            filled = column.filter(pc.not_equal(column, ""))
            candidates = left.setdefault(name, list(forms))
            while len(candidates) > 1 and not pc.all(pc.match_substring_regex(filled, candidates[0][0])).as_py():
                if candidates[0][1] is int and pc.all(pc.match_substring_regex(filled, _FLOAT)).as_py():
                    candidates.pop(0)
                else:
                    del candidates[: 2 if candidates[0][1] is int else 1]
    return {name: candidates[0][1] for name, candidates in left.items()}
