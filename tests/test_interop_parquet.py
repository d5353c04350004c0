"""The Parquet file: what anybody's tool reads in it, columns that were lifted, files from others, attacks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from indexing import labelled
from interoping import PAIRS, export, imported, indexed, same, write

from wdstools import build
from wdstools.errors import IndexFileError, NotFoundError
from wdstools.index import Index
from wdstools.interop.formats import read_claims


def test_golden(tmp_path: Path) -> None:
    index = indexed(tmp_path, [[("a.jpg", b"1"), ("b.cls", b"22")], [("c.jpg", b"")]])
    (path,) = export(index, "parquet").paths
    assert path == str(tmp_path / "t.parquet")
    table = pq.read_table(path)
    assert table.column_names == ["key", "shard", "start", "end", "fields"]
    rows = [tuple(row.values()) for row in table.to_pylist()]
    assert rows == [
        ("a", "t-000000.tar", 0, 1024, [{"ext": "jpg", "header": 0, "offset": 512, "nbytes": 1}]),
        ("b", "t-000000.tar", 1024, 2048, [{"ext": "cls", "header": 1024, "offset": 1536, "nbytes": 2}]),
        ("c", "t-000001.tar", 0, 512, [{"ext": "jpg", "header": 0, "offset": 512, "nbytes": 0}]),
    ]
    assert json.loads(pq.read_metadata(path).metadata[b"wds.shards"])["nsamples"] == [2, 1]
    asked = duckdb.sql(f"SELECT shard, sum(\"end\" - start) FROM '{path}' GROUP BY shard ORDER BY shard").fetchall()
    assert asked == [("t-000000.tar", 2048), ("t-000001.tar", 512)]


def test_lifted_columns_go_out_and_not_in(tmp_path: Path) -> None:
    """What was lifted from payloads cannot be compared with headers."""
    index = build.build(write(tmp_path, [labelled(["1", "2"]), labelled(["3"], prefix="t")]), lift=["cls"])
    index.save(tmp_path / "t.wdsindex")
    (path,) = export(Index.load(tmp_path / "t.wdsindex"), "parquet").paths
    assert pq.read_table(path).column("cls").to_pylist() == [1, 2, 3]
    again = imported(read_claims("parquet", [path]), tmp_path / "again.wdsindex")
    assert (same(index, again), again.lifted()) == (True, [])


def test_elsewhere(tmp_path: Path) -> None:
    index = indexed(tmp_path / "shards")
    for output in (tmp_path / "out.parquet", tmp_path):
        (path,) = export(index, "parquet", output).paths
        assert pq.read_table(path).column("shard")[0].as_py() == "shards/t-000000.tar"
        assert same(index, imported(read_claims("parquet", [path]), tmp_path / "again.wdsindex"))


def test_from_others(tmp_path: Path) -> None:
    """Other integers, other strings, other columns, in any order."""
    index = indexed(tmp_path)
    (path,) = export(index, "parquet").paths
    columns = 'fields, CAST("end" AS BIGINT) AS "end", CAST(start AS INT) AS start, shard, key'
    duckdb.sql(f"COPY (SELECT 5 AS more, {columns} FROM '{path}') TO '{tmp_path}/other.parquet'")
    assert same(index, imported(read_claims("parquet", [f"{tmp_path}/other.parquet"]), tmp_path / "again.wdsindex"))


def rewritten(path: str, **columns: Any) -> None:
    table = pq.read_table(path)
    for name, values in columns.items():
        table = table.drop_columns([name])
        if values is not None:
            table = table.append_column(name, values)
    pq.write_table(table, path)


def test_attacks(tmp_path: Path) -> None:
    index = indexed(tmp_path, PAIRS[:1])
    n = len(index)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"key": None}, "there is no column key"),
        ({"fields": pa.array(["x"] * n)}, "not a Parquet file of an index"),
        ({"start": pa.array([-1] * n)}, "not a Parquet file of an index"),
        ({"start": pa.array([None] * n, pa.uint64())}, "with nulls"),
        ({"start": pa.array([0, 0, 0, 0], pa.uint64())}, "sample 1 begins at byte 2048, not 0"),
        ({"start": pa.array([(1 << 64) - 1] * n, pa.uint64())}, "begins at byte 0, not 18446744073709551615"),
        ({"shard": pa.array(["../t.tar"] * n)}, "does not name something inside"),
        ({"shard": pa.array(["pipe:touch x"] * n)}, "a command"),
        ({"shard": pa.array([""] * n)}, "names a shard ''"),
        ({"key": pa.array(["z"] * n)}, "'jpg' of 'z'"),
        ({"fields": pa.array([[]] * n, pq.read_table(export(index, "parquet").paths[0]).schema.field("fields").type)},
         "sample 0 has 2 fields, not 0"),
    ]  # fmt: skip
    for columns, message in cases:
        (path,) = export(index, "parquet", overwrite=True).paths
        rewritten(path, **columns)
        with pytest.raises(IndexFileError, match=message) as caught:
            imported(read_claims("parquet", [path]), tmp_path / "again.wdsindex")
        assert path in str(caught.value)
    for data in (b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1"):
        Path(path).write_bytes(data)
        with pytest.raises(IndexFileError, match="not a Parquet file of an index"):
            read_claims("parquet", [path])
    with pytest.raises(NotFoundError):
        read_claims("parquet", [str(tmp_path / "nosuch.parquet")])
