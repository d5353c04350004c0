"""Conditions in SQL: what they find, and what they cannot reach."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from indexing import build_of, labelled

from wdstools import errors
from wdstools.index import Index


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    rng = random.Random(1)
    shards = [
        [
            (f"p{n}/s{i}.{ext}", data)
            for i in range(10)
            for ext, data in (("cls", str(rng.randrange(5)).encode()), ("txt", b"x" * rng.randrange(3000)))
        ]
        for n in range(3)
    ]
    shards.append(labelled(["1", None], prefix="last/"))
    return build_of(tmp_path_factory.mktemp("q"), shards, lift=["cls"])


@pytest.mark.parametrize(
    ("sql", "condition"),
    [
        ("cls = 3", lambda r: r["cls"] == 3),
        ("cls is null", lambda r: r["cls"] is None),
        ("cls <> 3", lambda r: r["cls"] not in (3, None)),
        ("cls + 1 in (2, 3) and not nbytes > 3000", lambda r: r["cls"] in (1, 2) and r["nbytes"] <= 3000),
        ("key like 'p1/%'", lambda r: r["key"].startswith("p1/")),
        ("row between 3 and 5", lambda r: 3 <= r["row"] <= 5),
        ("row < 2 or row > 30", lambda r: r["row"] < 2 or r["row"] > 30),
        ("file = 't-000002.tar'", lambda r: r["file"] == "t-000002.tar"),
        ("url like '%000001.tar' and shard = 1", lambda r: r["shard"] == 1),
        ("len(fields) = 1", lambda r: len(r["fields"]) == 1),
        ("not list_contains([f.ext for f in fields], 'cls')", lambda r: "cls" not in [f["ext"] for f in r["fields"]]),
        ("'end' is not null and \"end\" % 1024 = 0", lambda r: r["end"] % 1024 == 0),
        ("true -- all of them", lambda r: True),
        ("true\n", lambda r: True),
        ("false", lambda r: False),
        ("null", lambda r: False),
        ("1", lambda r: True),
        ("cls = (select max(cls) from samples)", None),
        ("key = 'p0/s1' or (key = 'p0/s2')", lambda r: r["key"] in ("p0/s1", "p0/s2")),
        ("true) or (true", lambda r: True),
    ],
)
def test_against_python(index: Index, sql: str, condition: object) -> None:
    rows = index.view().to_pylist()
    if not callable(condition):
        top = max(r["cls"] for r in rows if r["cls"] is not None)
        assert index.where(sql).tolist() == [r["row"] for r in rows if r["cls"] == top]
    else:
        assert index.where(sql).tolist() == [r["row"] for r in rows if condition(r)]


@pytest.mark.parametrize(
    "sql",
    [
        "",
        " ",
        "nothing = 1",
        "cls = 'cat'",
        "cls = 1 order by cls",
        "cls = 1 limit 1",
        "(cls = 1",
        "cls = 1)",
        "true; select 1",
        "true); drop table samples; --",
        "true /* never closed",
        "true), (false",
        "1=1) union select (1",
        "sum(cls) > 1",
        "row_number() over () < 3",
        "?",
        "$1",
        "$name",
        "\0",
        "cls = '\udcff'",
        "'" * 3,
        "(" * 200,
        "(select 1 from range(2)) = 1",
    ],
)
def test_refused(index: Index, sql: str) -> None:
    with pytest.raises(errors.QueryError, match="columns: key, shard, start, end, fields, cls, row, nbytes, url, file"):
        index.where(sql)


ATTACKS = [
    "exists(select * from read_csv('SECRET'))",
    "exists(select * from read_text('SECRET'))",
    "exists(select * from read_blob('SECRET'))",
    "exists(select * from read_json('SECRET'))",
    "exists(select * from read_parquet('SECRET'))",
    "exists(select * from 'SECRET')",
    "exists(from 'SECRET')",
    "exists(select * from glob('FOLDER/*'))",
    "exists(select * from query('from read_csv(''SECRET'')'))",
    "exists(select * from sqlite_scan('SECRET', 'a'))",
    "exists(select * from read_csv('http://127.0.0.1:9/x'))",
    "exists(select * from secret)",
    "exists(select * from index)",
    'exists(select * from "view")',
    'exists(select * from "table")',
    "exists(select * from duckdb_secrets())) or exists(select * from read_csv('SECRET')",
    "true; copy samples to 'FOLDER/out'",
    "exists(copy samples to 'FOLDER/out')",
    "true; attach 'FOLDER/out' as a",
    "true; create table x as select 1",
    "true; set enable_external_access = true",
    "true; install httpfs",
    "true; load 'SECRET'",
    "true; export database 'FOLDER/out'",
    "getenv('HOME') is not null",
    "true) limit (select count(*) from read_csv('SECRET')",
    "write_csv('FOLDER/out') is null",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_files_are_out_of_reach(index: Index, tmp_path: Path, attack: str) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n")
    with pytest.raises(errors.QueryError) as refused:
        index.where(attack.replace("SECRET", str(secret)).replace("FOLDER", str(tmp_path)))
    assert os.listdir(tmp_path) == ["secret.csv"]
    assert "Internal" not in str(refused.value)


WORDS = [
    "cls",
    "row",
    "key",
    "=",
    "<",
    "and",
    "or",
    "not",
    "(",
    ")",
    "1",
    "'a'",
    "null",
    ",",
    ";",
    "--",
    "in",
    "*",
    '"',
    "x",
]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join) | st.text(max_size=12))
def test_anything_is_rows_or_an_error(index: Index, sql: str) -> None:
    try:
        rows = index.where(sql).tolist()
    except errors.QueryError:
        return
    assert rows == sorted(set(rows))
    assert set(rows) <= set(range(len(index)))


def test_columns_named_like_ours(tmp_path: Path) -> None:
    """A lifted column goes before one that we add; names of the machinery are free."""
    files = [("a.row", b"7"), ("a._n", b"8"), ("a.json", b'{"nbytes": 9, "width": 1}'), ("a.url", b"u")]
    index = build_of(tmp_path, [files], lift=["row", "_n", "json:nbytes", "json:width", "url", "json:"[:4]])
    (row,) = index.view().to_pylist()
    assert (row["row"], row["_n"], row["json:nbytes"], row["url"], row["width"]) == (7, 8, 9, "u", 1)
    assert row["nbytes"] == 4096
    assert index.where('row = 7 and _n = 8 and "json:nbytes" = 9 and width = 1').tolist() == [0]
    assert index.where("nbytes = 9").tolist() == []
