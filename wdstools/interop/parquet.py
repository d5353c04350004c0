"""The index as a Parquet file, for anybody's tools: a row a sample, with key, shard (its URL), start, end, fields, and
the columns that were lifted."""

from __future__ import annotations

import os
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from wdstools import urls
from wdstools.columns import CORE
from wdstools.index import BATCH_ROWS, Index
from wdstools.interop import foreign
from wdstools.interop.claims import Claim, Field
from wdstools.interop.detect import claim_file
from wdstools.interop.foreign import Options, Written, wrong
from wdstools.soundness import line

FIELD = pa.struct([("ext", pa.utf8()), ("header", pa.uint64()), ("offset", pa.uint64()), ("nbytes", pa.uint64())])
COLUMNS = {"key": pa.large_utf8(), "start": pa.uint64(), "end": pa.uint64(), "fields": pa.list_(FIELD)}
KEY_VALUE = b"wds.shards"


def index_path(index: Index) -> str:
    """Beside the index, with its name, or beside the shards."""
    named = index.path or urls.index_name([urls.escape(url) for url in index.shards.url])
    return named.removesuffix(".wdsindex") + ".parquet"


def export(index: Index, options: Options) -> Written:
    """Write one file. `options.output`: that file, or a folder. Raises IndexFileError, DestinationError."""
    index.validate()
    name = index_path(index)
    path = foreign.one_file(options, os.path.basename(name)) or foreign.local_path(name, "Parquet")
    claim_file(path, "parquet", options.overwrite)
    folder = os.path.dirname(os.path.abspath(path))
    names = [_name(url, folder) for url in index.shards.url]
    schema = _schema(index).with_metadata({KEY_VALUE: index.shards.to_json(folder)})
    with foreign.Batch() as files, pq.ParquetWriter(files.path(path), schema, compression="zstd") as writer:
        dictionary = pa.array(names, pa.utf8())
        for batch in index.table.to_batches(BATCH_ROWS):
            columns: dict[str, Any] = {name: batch.column(name) for name in batch.schema.names if name in schema.names}
            columns["shard"] = dictionary.take(batch.column("shard"))
            columns = {field.name: columns[field.name].cast(field.type) for field in schema}
            writer.write_table(pa.table(columns, schema))
    options.progress(len(index.shards))
    return Written([path])


def _name(url: str, folder: str) -> str:
    local = urls.local_path(url)
    return url if local is None else urls.relative(os.path.abspath(local), folder)


def _schema(index: Index) -> pa.Schema:
    lifted = [index.table.schema.field(name) for name in index.lifted()]
    fields = [pa.field("key", pa.large_utf8()), pa.field("shard", pa.utf8())]
    fields += [pa.field(name, kind) for name, kind in COLUMNS.items() if name != "key"]
    return pa.schema([*fields, *(field for field in lifted if field.name not in CORE)])


def read(path: str) -> list[Claim]:
    """Read a file that has these columns, from us or from others; lifted ones are left. Raises IndexFileError,
    NotFoundError."""
    local = urls.local_path(path)
    if local is None or not os.path.exists(local):
        foreign.read(path)  # says what is wrong
    found: dict[str, Claim] = {}
    try:
        with pq.ParquetFile(path) as file:
            shard_type = pa.utf8()
            wanted = pa.schema([*(pa.field(n, k) for n, k in COLUMNS.items()), pa.field("shard", shard_type)])
            _check_schema(path, file.schema_arrow)
            for batch in file.iter_batches(BATCH_ROWS // 8, columns=["key", "shard", "start", "end", "fields"]):
                table = pa.Table.from_batches([batch]).select(wanted.names).cast(wanted)
                for row in table.to_pylist():
                    _add(path, row, found)
    except (pa.ArrowException, OSError, UnicodeError) as error:
        wrong(path, f"not a Parquet file of an index: {line(error)}")
    return list(found.values())


def _check_schema(path: str, schema: pa.Schema) -> None:
    for name in (*COLUMNS, "shard"):
        if name not in schema.names:
            wrong(path, f"there is no column {name}; an index has key, shard, start, end, fields")


def _add(path: str, row: dict[str, Any], found: dict[str, Claim]) -> None:
    if any(value is None for value in row.values()) or any(None in (f or {0: None}).values() for f in row["fields"]):
        wrong(path, f"a row of {row['key']!r} with nulls")
    claim = found.get(row["shard"])
    if claim is None:
        folder = os.path.dirname(os.path.abspath(path))
        claim = Claim(foreign.resolve(folder, row["shard"], path), path, samples=[], starts=[])
        found[row["shard"]] = claim
    claim.samples.append([Field(row["key"], f["ext"], f["offset"], f["nbytes"]) for f in row["fields"]])  # type: ignore[union-attr]
    claim.starts.append(row["start"])  # type: ignore[union-attr]
