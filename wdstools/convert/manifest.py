"""Tables (.csv .tsv .jsonl .parquet) -> entries: columns of paths, columns that are fields, the rest as json."""

from __future__ import annotations

import itertools
import json
import math
import os
from typing import Any, NamedTuple, TypeAlias

from wdstools import encode
from wdstools.convert import named
from wdstools.convert.condition import holding
from wdstools.convert.entries import Entry
from wdstools.convert.named import LocalFiles, ObjectFiles
from wdstools.convert.options import Options
from wdstools.convert.sources import Faults, Listing, finish, split_file, why_no_field
from wdstools.convert.tables import Kinds, Row, Table
from wdstools.errors import EncodeError, SourceError
from wdstools.failures import hide

_KEYS = ("__key__", "key", "id")
_FIELDS = ("cls", "txt", "json")  # columns with these names become fields

Files: TypeAlias = "LocalFiles | ObjectFiles"


class _Bad(Exception):
    """A row that makes no sample: (key, where, reason, detail)."""


class _Columns(NamedTuple):
    """What the columns are for. `files`: (column, field or "" for the extension of each file)."""

    key: str | None
    files: list[tuple[str, str]]
    inline: list[str]
    by: str | None


def list_manifest(path: str, options: Options, faults: Faults) -> Listing:
    """List a manifest, also one in a bucket or behind http. Paths in it are relative to its folder. Raises
    SourceError."""
    remote = named.is_remote_table(path)
    base = os.path.basename(path.partition("?")[0] if remote else path)
    listing = Listing("manifest", name=base.partition(".")[0])
    if not remote:
        return _list(Table(path, path, faults), listing, LocalFiles(path, listing), options)
    with named.folder() as folder:
        table = Table(named.fetch(path, folder), hide(path), faults)
        return _list(table, listing, ObjectFiles(path, listing), options)


def _list(table: Table, listing: Listing, files: Files, options: Options) -> Listing:
    columns: _Columns | None = None
    rows = iter(holding(table.rows(), options.where, table.typed))
    while some := list(itertools.islice(rows, files.at_once)):
        if columns is None:
            columns = _choose(table.shown, some[0][1], files, options)
        files.ask(row.get(column) for _, row in some for column, _ in columns.files)
        for where, row in some:
            try:
                listing.entries.append(_entry(row, where, columns, options, table.kinds, files))
            except _Bad as bad:
                table.faults.add(*bad.args)
    if columns is None:
        raise SourceError(f"{table.shown}: no rows")
    return finish(listing, options, table.faults, table.shown)


def _choose(path: str, first: Row, there: Files, options: Options) -> _Columns:
    names = list(first)
    for name in [n for n, _ in options.files] + list(options.inline) + [options.key_column, options.by]:
        if name and name not in first:
            raise SourceError(f"{path}: has no column {name!r}; it has {', '.join(names)}")
    key = options.key_column or next((name for name in _KEYS if name in first), None)
    files = list(options.files)
    if not files:
        files = [(n, "") for n in names if n != key and isinstance(first[n], str) and there.is_file(first[n])]
    taken = {key, *(name for name, _ in files)}
    inline = [n for n in names if n in options.inline or (n in _FIELDS and n not in taken)]
    if not files and not inline:
        raise SourceError(
            f"{path}: no column of its first row names a file below {there.root}: say which with --files COLUMN, "
            "or which columns are fields with --inline"
        )
    if not files and key is None:
        raise SourceError(f"{path}: nothing to make keys of: name a column with --key-column")
    by = options.by
    return _Columns(key, files, inline, by)


def _entry(row: Row, where: str, columns: _Columns, options: Options, kinds: Kinds, there: Files) -> Entry:
    """Raises _Bad."""
    parts: dict[str, tuple[Any, int]] = {}
    key = "" if columns.key is None or row.get(columns.key) is None else str(row[columns.key])
    for column, field in columns.files:
        value = row.get(column)
        if not isinstance(value, str) or not value:
            raise _Bad(key or where, where, "no file in its row", f"column {column!r} is {value!r}")
        wrong, name, place, nbytes = _look(value, there, field, options)
        if not key:
            folder, slash, base = there.key(value).rpartition("/")
            key = folder + slash + split_file(base, options.dotted, options.keys == "number")[0]
        if wrong is None and name in parts:
            wrong = ("two files for one field", f"field {name!r}; name the fields: --files {column}=FIELD")
        if wrong is not None:
            raise _Bad(key, f"{where}: {os.path.join(there.root, value)}", *wrong)
        parts[name] = (place, nbytes)
    if not key:
        raise _Bad(where, where, "no key in its row", f"column {columns.key!r} is empty")
    used = {columns.key, *(column for column, _ in columns.files)}
    rest = {n: v for n, v in row.items() if n not in used and n not in columns.inline}
    for name in kinds.keys() & rest.keys():
        rest[name] = None if rest[name] is None else kinds[name](rest[name])
    try:
        inlined = _inlined(row, rest, columns)
    except (EncodeError, ValueError) as error:
        raise _Bad(key, where, "a value that is no field", str(error)) from error
    for name, data in inlined.items():
        if name in parts:
            raise _Bad(key, where, "two files for one field", f"field {name!r} is a file and a column")
        parts[name] = (data, len(data))
    if not parts:
        raise _Bad(key, where, "no field in its row", "all of its columns are empty")
    group = None if columns.by is None else str(row.get(columns.by))
    return Entry(key, group, tuple(x for name in sorted(parts) for x in (name, *parts[name])))


def _look(value: str, there: Files, field: str, options: Options) -> tuple[tuple[str, str] | None, str, Any, int]:
    """(what is wrong, field, where, bytes) of a file that a row names."""
    base = value.rpartition("/")[2]
    name = field.lower() or split_file(base, options.dotted, options.keys == "number")[1]
    if not name:
        return why_no_field(base), name, "", 0
    wrong, place, nbytes = there.look(value)
    return wrong, name, place, nbytes


def _inlined(row: Row, rest: Row, columns: _Columns) -> dict[str, bytes]:
    """The columns of a row as fields; `rest` joins the json, where there is one. Raises EncodeError, ValueError."""
    found: dict[str, bytes] = {}
    for name in columns.inline:
        value = row.get(name)
        if value is None:
            continue
        if name == "json" and rest:
            whole = json.loads(value) if isinstance(value, str | bytes) else value
            if not isinstance(whole, dict):
                raise ValueError("column 'json' is no JSON object, so that the other columns cannot join it")
            if both := [n for n in rest if n in whole]:
                raise ValueError(f"{both[0]!r} is a column and a name in column 'json'")
            rest = {**whole, **rest}
            continue
        found[name.lower()] = as_bytes(value, name)
    if rest:
        found["json"] = json.dumps(plain(rest), ensure_ascii=False).encode("utf-8", "surrogatepass")
    return found


def as_bytes(value: Any, name: str) -> bytes:
    """Return a value as a field of this name. Raises EncodeError, ValueError."""
    if isinstance(value, bool | dict | list):
        return json.dumps(plain(value), ensure_ascii=False).encode()
    if isinstance(value, float) and value.is_integer() and name == "cls":
        value = int(value)  # a column of integers with a null, as pandas writes it
    return encode.encode(value if isinstance(value, bytes | str) else str(value), name)


def plain(value: Any) -> Any:
    """A value as JSON has it: no NaN, dates and decimals as text. Raises ValueError for bytes."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, bytes):
        raise ValueError("a column of bytes has no place in json: make it a field with --inline")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)
