"""Parquet and Arrow files with columns of bytes, as image datasets are published, and the folders of Hugging Face."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from wdstools.convert.options import Options
from wdstools.convert.records import File, Record, Rows, list_records
from wdstools.convert.sources import Listing
from wdstools.errors import SourceError

ARROW = (".parquet", ".arrow")
_SPLIT = re.compile(r"([A-Za-z0-9_]+?)-[0-9]{5,}(-of-[0-9]{5,})?(-[0-9a-f]+)?\.(parquet|arrow)")
_BATCH = 64  # rows in memory: some megabytes of images


def list_source(source: str, options: Options) -> Listing | None:
    """List a file, a pattern or a folder; None for a table of paths, and for a folder without such files.

    Raises SourceError."""
    paths = [source] if os.path.isfile(source) else find_files(source)
    if not paths or (paths == [source] and (options.files or _is_manifest(source, options))):
        return None
    return list_parquet(source, paths, options)


def _is_manifest(path: str, options: Options) -> bool:
    """Say whether a file is a table of paths: its first row names a file, or it has no bytes that nobody asked for."""
    schema = _schema(path)
    held = [f.name for f in schema if _is_media(f.type) or (_is_binary(f.type) and f.name not in options.inline)]
    if not held:
        return True
    texts = [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]
    first = next(_batches(path), None) if texts else None
    folder = os.path.dirname(os.path.abspath(path))
    values = [first.column(name)[0].as_py() for name in texts] if first is not None and len(first) else []
    return any(v and "\0" not in v and os.path.isfile(os.path.join(folder, v)) for v in values)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _is_media(kind: pa.DataType) -> bool:
    """As Hugging Face keeps images and audio: a struct of bytes and path."""
    return bool(pa.types.is_struct(kind)) and {kind.field(i).name for i in range(kind.num_fields)} == {"bytes", "path"}


def _schema(path: str) -> pa.Schema:
    try:
        if path.endswith(".parquet"):
            return pq.read_schema(path)
        with pa.OSFile(path) as file, pa.ipc.open_stream(file) as stream:
            return stream.schema
    except pa.ArrowException as error:
        raise SourceError(f"{path}: not a {os.path.splitext(path)[1][1:]} file: {error}") from error


def find_files(source: str) -> list[str]:
    """Return the files of a folder, at any depth, or of a pattern with `*`, in order: [] where there are none.

    Raises SourceError where they are of several splits: one has to be named.
    """
    if not os.path.isdir(source):
        found = [path for path in sorted(glob.glob(source, recursive=True)) if path.endswith(ARROW)]
        return found if not os.path.exists(source) else []
    found = []
    for folder, folders, names in os.walk(source):
        folders[:] = sorted(name for name in folders if name[0] != ".")
        found += [os.path.join(folder, name) for name in sorted(names) if name.endswith(ARROW) and name[0] != "."]
    found = [path for path in found if not os.path.basename(path).startswith("cache-")]
    splits: dict[str, str] = {}
    for path in found:
        match = _SPLIT.fullmatch(os.path.basename(path))
        name = match[1] if match else ""
        splits.setdefault(os.path.join(os.path.dirname(path), name), path)
    if len(splits) > 1:
        some = "; ".join(f"'{os.path.join(prefix)}*'" for prefix in splits)
        raise SourceError(f"{source}: has several splits: name one of them: {some}")
    return found


def list_parquet(source: str, paths: list[str], options: Options) -> Listing:
    """List files that are read as one table, row by row. Raises SourceError."""
    schema = _schema(paths[0])
    for name in [n for n, _ in options.files] + list(options.inline) + [options.key_column]:
        if name and name not in schema.names:
            raise SourceError(f"{paths[0]}: has no column {name!r}; it has {', '.join(schema.names)}")
    media = {field.name for field in schema if _is_media(field.type)}

    def rows() -> Rows:
        for path in paths:
            number = 0
            for batch in _batches(path):
                for values in batch.to_pylist():
                    number += 1
                    found = {n: _media(v) if n in media else v for n, v in values.items()}
                    yield Record(f"{path}: row {number}", found)

    base = os.path.basename(source.rstrip("/")).partition(".")[0]
    total = _total(paths)
    listing = list_records("parquet", rows, options, paths, re.sub(r"[^A-Za-z0-9_-].*", "", base), total)
    listing.classes = _classes(schema)
    return listing


def _media(value: dict[str, Any] | None) -> File | None:
    """Raises SourceError for what is elsewhere: only its path is here."""
    if value is None or (value["bytes"] is None and not value["path"]):
        return None
    ext = os.path.splitext(value["path"] or "")[1][1:].lower()
    if value["bytes"] is None:
        raise SourceError(f"{value['path']}: the file lies elsewhere, the table has only its path")
    return File(value["bytes"], ext)


def _batches(path: str) -> Iterator[pa.RecordBatch]:
    try:
        if path.endswith(".parquet"):
            with pq.ParquetFile(path) as file:
                yield from file.iter_batches(batch_size=_BATCH)
            return
        with pa.OSFile(path) as stream, pa.ipc.open_stream(stream) as reader:
            for batch in reader:
                yield from (batch.slice(at, _BATCH) for at in range(0, len(batch), _BATCH))
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise SourceError(f"{path}: cannot be read: {error}") from error


def _total(paths: list[str]) -> int | None:
    if not all(path.endswith(".parquet") for path in paths):
        return None
    return sum(int(pq.read_metadata(path).num_rows) for path in paths)


def _classes(schema: pa.Schema) -> dict[str, int] | None:
    """The names of the classes, as Hugging Face keeps them."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        label = features.get("label") or features.get("cls")
        return {name: number for number, name in enumerate(label["names"])}
    except (KeyError, ValueError, TypeError):
        return None
