"""Files that appear together, what is read, and which tool a file belongs to."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from interoping import PAIRS, export, indexed

from wdstools.errors import DestinationError, IndexFileError, NotFoundError, StaleIndexError, UrlError
from wdstools.interop import detect, foreign, members
from wdstools.interop.foreign import Batch, Options


def test_files_appear_together(tmp_path: Path) -> None:
    with Batch() as batch:
        batch.put(str(tmp_path / "a" / "x"), b"1")
        batch.put(str(tmp_path / "y"), b"2")
        assert not (tmp_path / "y").exists()
    assert ((tmp_path / "a" / "x").read_bytes(), (tmp_path / "y").read_bytes()) == (b"1", b"2")
    assert sorted(os.listdir(tmp_path)) == ["a", "y"]


def test_or_none_does(tmp_path: Path) -> None:
    (tmp_path / "y").write_bytes(b"old")

    def stopped() -> None:
        with Batch() as batch:
            batch.put(str(tmp_path / "x"), b"1")
            batch.put(str(tmp_path / "y"), b"2")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert (os.listdir(tmp_path), (tmp_path / "y").read_bytes()) == (["y"], b"old")

    def lacking() -> None:
        with Batch() as batch:
            batch.path(str(tmp_path / "never written"))
            batch.put(str(tmp_path / "x"), b"1")

    with pytest.raises(FileNotFoundError):
        lacking()
    assert os.listdir(tmp_path) == ["y"]


def test_long_names(tmp_path: Path) -> None:
    name = "é" * 120 + ".idx"
    with Batch() as batch:
        batch.put(str(tmp_path / name), b"1")
    assert os.listdir(tmp_path) == [name]


def test_what_is_too_much_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "MOST", 100)
    (tmp_path / "x").write_bytes(bytes(100))
    assert foreign.read(str(tmp_path / "x")) == bytes(100)
    os.truncate(tmp_path / "x", 1 << 40)
    with pytest.raises(IndexFileError, match="has more than 100 bytes"):
        foreign.read(str(tmp_path / "x"))
    with pytest.raises(UrlError):
        foreign.read("pipe:cat x")
    with pytest.raises(NotFoundError):
        foreign.read(str(tmp_path / "nosuch"))


def test_text_is_utf8(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff")
    with pytest.raises(IndexFileError, match="is not UTF-8"):
        foreign.read_text(str(tmp_path / "x"))


def test_where_files_go() -> None:
    shards = ["a/t-0.tar", "s3://b/t-1.tar"]
    with pytest.raises(DestinationError, match="nothing can be written beside it"):
        foreign.beside(shards, Options(), "X", lambda shard: shard + ".x")
    assert foreign.beside(shards, Options("out"), "X", lambda s: s + ".x") == ["out/t-0.tar.x", "out/t-1.tar.x"]
    with pytest.raises(DestinationError, match="rename one of the shards"):
        foreign.beside(["a/t.tar", "b/t.tar"], Options("out"), "X", lambda s: s + ".x")


def test_kinds(tmp_path: Path) -> None:
    index = indexed(tmp_path)
    shard = index.shards.url[0]
    for format, name, kind in [
        ("dali", "t-000000.idx", "dali"), ("energon", "t-000000.tar.idx", "energon"),
        ("energon", ".nv-meta/.info.json", "energon-info"), ("energon", ".nv-meta/index.sqlite", "energon-sqlite"),
        ("wids", "shardindex.json", "wids"), ("ratarmount", "t-000000.tar.index.sqlite", "ratarmount"),
        ("parquet", "t.parquet", "parquet"), ("lhotse", "o/t-000000.tar.idx", "lhotse"),
        ("aistore", "a/t-000000.tar.idx", "aistore"),
    ]:  # fmt: skip
        out = tmp_path / name[0] if format in ("lhotse", "aistore") else None
        if not (tmp_path / name).exists():
            export(index, format, out)
        assert detect.kind(str(tmp_path / name), shard) == kind
    assert detect.kind(str(tmp_path / "t.wdsindex")) == "wdsindex"
    assert detect.kind(str(tmp_path / "t-000000.tar.idx")) == "offsets"
    for data in (b"", b"x", b"{", b"[]", b"{}", b"SQLite format 3\0", b"\1\0\1", bytes(7), struct.pack("<2Q", 512, 0),
                 struct.pack("<Q", 5), b"v1.2", b"{" * 100_000):  # fmt: skip
        (tmp_path / "x").write_bytes(data)
        assert detect.kind(str(tmp_path / "x"), shard) == "unknown"


def test_members_are_those_that_the_index_has(tmp_path: Path) -> None:
    index = indexed(tmp_path)
    index.validate()
    rows = members.rows_of(index, 1, members.first_rows(index))
    names, exts = members.exact_names(index, rows, members.read_members(rows.url))
    assert names.to_pylist() == [name for name, _ in PAIRS[1]]
    assert exts.to_pylist() == ["jpg", "cls"] * 4
    with pytest.raises(StaleIndexError, match="t-000001"):
        members.exact_names(index, rows, members.read_members(index.shards.url[0]))


def test_each_stops_at_the_first_error(tmp_path: Path) -> None:
    index = indexed(tmp_path, [[(f"{i}.jpg", b"")] for i in range(30)])
    done = []

    def work(number: int) -> int:
        if number == 3:
            raise ValueError("no")
        return number

    with pytest.raises(ValueError, match="no"):
        done.extend(members.each(index, work, 2))
    assert list(members.each(index, lambda n: n, 3)) == list(range(30))
