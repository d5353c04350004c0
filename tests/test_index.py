"""The index: what is in it, against a model made with tarfile; its file; look-up; files that someone made to hurt."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from indexing import (
    as_file,
    build_of,
    fields_of,
    index_of,
    labelled,
    metadata_of,
    model,
    naive_hash,
    payloads,
    random_files,
    rows_of,
    save,
    with_column,
    write_shards,
)

import wdstools.index
from wdstools import build, comparison, errors, indexfile
from wdstools.dataset import Dataset
from wdstools.index import Field, Index
from wdstools.merge import merge
from wdstools.shardtable import Shards


@pytest.fixture(autouse=True, params=["mapped", "read"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test with rows that are looked up in the map, and with rows that are read, as those of large files are."""
    if request.param == "read":
        monkeypatch.setattr(indexfile, "MAPPED", 0)


def make(tmp_path: Path, shards: int = 3, samples: int = 6, **options: Any) -> Index:
    return build_of(tmp_path, [random_files(i, samples) for i in range(shards)], **options)


def contents(index: Index) -> list[bytes]:
    return [Path(url).read_bytes() for url in index.shards.url]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 7)), min_size=1, max_size=4))
def test_index_is_what_tarfile_finds(tmp_path_factory: pytest.TempPathFactory, seeds: list[tuple[int, int]]) -> None:
    folder = tmp_path_factory.mktemp("set")
    index = build_of(folder, [random_files(seed, samples) for seed, samples in seeds])
    expected = model(contents(index))
    assert rows_of(index) == expected
    assert rows_of(save(index, folder / "t.wdsindex")) == expected
    dataset = Dataset(index)
    for row, found in enumerate(expected):
        assert fields_of(dataset, row) == payloads(index, row)
        assert row in index.find(found.key)


def test_round_trip(tmp_path: Path) -> None:
    index = make(tmp_path, lift=["cls"])
    index.metadata = {"wds.job": "{}"}
    again = save(index, tmp_path / "t.wdsindex")
    again.validate()
    assert rows_of(again) == rows_of(index)
    assert again.shards == index.shards
    assert again.table.column("cls").to_pylist() == index.table.column("cls").to_pylist()
    assert again.metadata == {"wds.job": "{}"}
    assert again.name == again.path == str(tmp_path / "t.wdsindex")
    assert index.name == "index in memory"
    assert sorted(os.listdir(tmp_path)) == ["t-000000.tar", "t-000001.tar", "t-000002.tar", "t.wdsindex"]


def test_save_replaces_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = make(tmp_path, 1)
    index.save(tmp_path / "t.wdsindex")
    before = (tmp_path / "t.wdsindex").read_bytes()
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        make(tmp_path, 2).save(tmp_path / "t.wdsindex")
    assert (tmp_path / "t.wdsindex").read_bytes() == before
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]


def test_a_mapped_index_stays_as_it_was_when_its_file_is_replaced(tmp_path: Path) -> None:
    index = save(make(tmp_path), tmp_path / "t.wdsindex")
    rows = rows_of(index)
    build.build(index.shards.url[:1]).save(tmp_path / "t.wdsindex")
    assert rows_of(index) == rows
    assert len(Index.load(tmp_path / "t.wdsindex").shards) == 1


def test_a_moved_folder_takes_its_index_along(tmp_path: Path) -> None:
    (tmp_path / "a" / "deep").mkdir(parents=True)
    paths = write_shards(tmp_path / "a", [random_files(1)]) + write_shards(tmp_path / "a/deep", [random_files(2)])
    elsewhere = write_shards(tmp_path, [random_files(3)])
    index = save(build.build([*paths, *elsewhere]), tmp_path / "a" / "t.wdsindex")
    (tmp_path / "a").rename(tmp_path / "b")
    moved = Index.load(tmp_path / "b" / "t.wdsindex")
    b = tmp_path / "b"
    assert moved.shards.url == [str(b / "t-000000.tar"), str(b / "deep/t-000000.tar"), elsewhere[0]]
    assert [fields_of(Dataset(moved), row) for row in range(len(moved))] == [
        payloads(moved, r) for r in range(len(index))
    ]


def test_relative_paths_are_those_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, 1)
    monkeypatch.chdir(tmp_path)
    build.build(["t-000000.tar"]).save("t.wdsindex")
    monkeypatch.chdir("/")
    index = Index.load(tmp_path / "t.wdsindex")
    assert index.shards.url == [str(tmp_path / "t-000000.tar")]
    assert b'"url":["t-000000.tar"]' in (tmp_path / "t.wdsindex").read_bytes()


def test_the_file_is_as_the_format_page_says(tmp_path: Path) -> None:
    """Read back with pyarrow alone, written down value by value: a change here is a change of the format."""
    (path,) = write_shards(tmp_path, [[("a.cls", b"7"), ("a.txt", b"x" * 600), ("dir/b.txt", b"")]])
    os.utime(path, ns=(10, 20))
    build.build([path], lift=["cls"]).save(tmp_path / "t.wdsindex")
    data = (tmp_path / "t.wdsindex").read_bytes()
    assert data[:6] == data[-6:] == b"ARROW1"
    with pa.ipc.open_file(data) as reader:
        table = reader.read_all()
    field = pa.struct([
        ("ext", pa.dictionary(pa.int32(), pa.utf8())), ("header", pa.uint64()), ("offset", pa.uint64()),
        ("nbytes", pa.uint64()),
    ])  # fmt: skip
    types = {
        "key": pa.utf8(),
        "shard": pa.uint32(),
        "start": pa.uint64(),
        "end": pa.uint64(),
        "fields": pa.list_(field),
    }
    types |= {"cls": pa.int64(), "_hash": pa.uint64(), "_row": pa.uint64()}
    assert {name: table.schema.field(name).type for name in table.column_names} == types
    hashes = sorted([(naive_hash("a"), 0), (naive_hash("dir/b"), 1)])
    assert table.to_pydict() == {
        "key": ["a", "dir/b"], "shard": [0, 0], "start": [0, 2560], "end": [2560, 3072],
        "fields": [
            [
                {"ext": "cls", "header": 0, "offset": 512, "nbytes": 1},
                {"ext": "txt", "header": 1024, "offset": 1536, "nbytes": 600},
            ],
            [{"ext": "txt", "header": 2560, "offset": 3072, "nbytes": 0}],
        ],
        "cls": [7, None], "_hash": [h for h, _ in hashes], "_row": [r for _, r in hashes],
    }  # fmt: skip
    assert table.schema.metadata[b"wds.version"] == b"1"
    nbytes = os.path.getsize(path)
    shards = {"url": ["t-000000.tar"], "nbytes": [nbytes], "mtime": [20], "nsamples": [2], "nmembers": [3]}
    shards["exact"] = [1]
    assert json.loads(table.schema.metadata[b"wds.shards"]) == shards
    assert table.schema.metadata[b"wds.batch_rows"] == b"2"
    assert set(table.schema.metadata) == {b"wds.version", b"wds.shards", b"wds.batch_rows"}


def test_an_index_made_by_hand_is_read(tmp_path: Path) -> None:
    """A writer that knows only the format page: several batches, large_utf8, unknown metadata and columns."""
    index = make(tmp_path)
    table = index.table.set_column(0, "key", index.table.column("key").cast(pa.large_utf8()))
    table = table.append_column("mine", pa.array([[1.5]] * len(table)))
    table = table.replace_schema_metadata(metadata_of(index, str(tmp_path)) | {"else": "x"})
    with pa.ipc.new_file(str(tmp_path / "t.wdsindex"), table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    found = Index.load(tmp_path / "t.wdsindex")
    assert found.table.column("key").num_chunks > 2
    assert found.metadata == {"else": "x"}
    assert found.lifted() == ["mine"]
    check_every_way(found, model(contents(index)))


def check_every_way(index: Index, expected: list[Any]) -> None:
    index.validate()
    assert rows_of(index) == expected
    dataset = Dataset(index)
    for row, (key, *_) in enumerate(expected):
        assert index.find(key) == [i for i, other in enumerate(expected) if other.key == key]
        assert fields_of(dataset, row) == payloads(index, row)
    assert index.find("nobody") == []
    twice = {r.key for r in expected if len(index.find(r.key)) > 1}
    assert set(index.duplicates()) == twice


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_several_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(wdstools.index, "BATCH_ROWS", rows)
    index = make(tmp_path, 4)
    again = save(index, tmp_path / "t.wdsindex")
    assert again.table.column("key").num_chunks > 1
    check_every_way(again, model(contents(index)))
    assert again.where("row % 2 = 1").tolist() == list(range(1, len(index), 2))
    refreshed = build.refresh(str(tmp_path / "new.wdsindex"), index.shards.url, previous=again)
    assert (refreshed.index is again, refreshed.reused) == (True, 4)
    more = write_shards(tmp_path, [random_files(9)], first=4)
    larger = build.build([*index.shards.url, *more], previous=again)
    check_every_way(larger, model(contents(larger)))
    assert comparison.check(again) == []


def test_batches_of_an_index_in_memory(tmp_path: Path) -> None:
    index = make(tmp_path)
    parts = [index.table.slice(0, 5), index.table.slice(5, 0), index.table.slice(5)]
    batches = [batch for part in parts for batch in part.to_batches()]
    check_every_way(Index(pa.Table.from_batches(batches), index.shards), model(contents(index)))


def test_an_empty_index(tmp_path: Path) -> None:
    for number, index in enumerate([build.build([]), build_of(tmp_path, [[]])]):
        again = save(index, tmp_path / f"{number}.wdsindex")
        again.validate()
        assert (len(again), again.find("a"), again.duplicates(), again.where("true").tolist()) == (0, [], {}, [])
        with pytest.raises(IndexError):
            again.key(0)
        assert len(merge([again, build.build([])])) == 0
    assert len(Dataset(again)) == 0


def test_rows_past_the_end(tmp_path: Path) -> None:
    index = make(tmp_path, 1)
    for row in (-1, len(index), 1 << 70):
        for method in (index.key, index.locate, index.fields):
            with pytest.raises(IndexError, match=f"row {row} of {len(index)}"):
                method(row)


def test_keys_that_come_more_than_once(tmp_path: Path) -> None:
    index = build_of(tmp_path, [labelled(["1", "2"]), labelled(["3"]), labelled(["4", "5"], prefix="t")])
    assert index.find("s0") == [0, 2]
    assert index.find("s1") == [1]
    assert index.duplicates() == {"s0": [0, 2]}
    assert Dataset(index)["s0"]["cls"] == b"1"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text("ab/", min_size=1, max_size=3), max_size=30))
def test_find_against_a_list(keys: list[str]) -> None:
    """Keys in any order, of any number, also where hashes are all one."""
    index = index_of(keys)
    for key in {*keys, "nobody"}:
        assert index.find(key) == [i for i, k in enumerate(keys) if k == key]
    assert index.duplicates() == {k: [i for i, o in enumerate(keys) if o == k] for k in keys if keys.count(k) > 1}


def test_hashes_that_collide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wdstools.index, "hash_key", lambda key: 5)
    keys = ["a", "b", "a", "c"]
    index = index_of(keys)
    table = with_column(index, "_hash", [5] * 4)
    index = Index(with_column(Index(table, index.shards), "_row", [3, 1, 0, 2]), index.shards)
    assert [index.find(key) for key in "abcd"] == [[0, 2], [1], [3], []]


def test_pickled_with_and_without_a_file(tmp_path: Path) -> None:
    index = make(tmp_path, lift=["cls"])
    index.metadata = {"a": "b"}
    for one in (index, save(index, tmp_path / "t.wdsindex")):
        again = pickle.loads(pickle.dumps(one))
        assert rows_of(again) == rows_of(index)
        assert (again.path, again.shards, again.metadata) == (one.path, one.shards, {"a": "b"})
    assert len(pickle.dumps(one)) < 500


def test_lists_of_columns(tmp_path: Path) -> None:
    index = build_of(tmp_path, [labelled(['{"width": 3}'], "json")], lift=["json:width"])
    assert index.columns() == ["key", "shard", "start", "end", "fields", "json:width"]
    assert index.lifted() == ["json:width"]
    view = index.view().to_pylist()[0]
    assert {k: v for k, v in view.items() if k != "fields"} == {
        "key": "s0", "shard": 0, "start": 0, "end": 2048, "json:width": 3, "row": 0, "nbytes": 2048, "width": 3,
        "url": index.shards.url[0], "file": "t-000000.tar",
    }  # fmt: skip
    assert index.fields(0) == [Field("txt", 0, 512, 4), Field("json", 1024, 1536, 12)]


def test_the_rows_of_some_shards(tmp_path: Path) -> None:
    index = build_of(tmp_path, [labelled(["1"] * n, prefix=f"p{n}") for n in (2, 0, 3)])
    assert index.select_shards([2, 0]).tolist() == [2, 3, 4, 0, 1]
    assert index.select_shards([1]).tolist() == index.select_shards([]).tolist() == []


# ------------------------------------------------------------------------------------------------- what is not an index


def test_not_an_index(tmp_path: Path) -> None:
    path = tmp_path / "t.wdsindex"
    with pytest.raises(errors.NotFoundError, match="no such index"):
        Index.load(path)
    for data in (b"", b"x", b"ARROW1", b"ARROW1\0\0" + b"\0" * 100 + b"ARROW1", os.urandom(5000)):
        path.write_bytes(data)
        with pytest.raises(errors.IndexFileError, match="not an index"):
            Index.load(path)
    with pytest.raises(errors.IndexFileError):
        Index.load(tmp_path)


GOOD_SHARDS: dict[str, Any] = {"url": ["t.tar"], "nbytes": [1024], "mtime": [0], "nsamples": [2], "nmembers": [2]}
BAD_SHARDS = {
    "no JSON": "{",
    "a list": "[]",
    "a number": "1",
    "null": "null",
    "deep": "[" * 100_000,
    "long number": "1" * 5000,
    "no url": json.dumps({k: v for k, v in GOOD_SHARDS.items() if k != "url"}),
    **{
        what: json.dumps(GOOD_SHARDS | change)
        for what, change in {
            "text for a list": {"url": "t"},
            "object for a list": {"url": {"t.tar": 1}},
            "url a number": {"url": [1]},
            "url out of the folder": {"url": ["../t.tar"]},
            "url empty": {"url": [""]},
            "url NUL": {"url": ["a\0b"]},
            "negative size": {"nbytes": [-1]},
            "size a float": {"nbytes": [1024.0]},
            "size a bool": {"nbytes": [True]},
            "size null": {"nbytes": [None]},
            "size text": {"nbytes": ["1024"]},
            "lengths": {"nbytes": [1, 2]},
            "too few samples": {"nsamples": [1]},
            "too many samples": {"nsamples": [1 << 80]},
            "negative samples": {"nsamples": [-1]},
        }.items()
    },
}


@pytest.mark.parametrize("what", BAD_SHARDS)
def test_bad_shard_tables(tmp_path: Path, what: str) -> None:
    table = index_of(["a", "b"]).table
    good = {"wds.version": "1", "wds.shards": json.dumps(GOOD_SHARDS)}
    Index.load(as_file(table, tmp_path / "good.wdsindex", good)).validate()
    path = as_file(table, tmp_path / "t.wdsindex", good | {"wds.shards": BAD_SHARDS[what]})
    with pytest.raises(errors.IndexFileError, match="not an index of version 1"):
        Index.load(path)


@pytest.mark.parametrize("version", ["2", "", "1 ", "one", None])
def test_other_versions(tmp_path: Path, version: str | None) -> None:
    metadata = {"wds.shards": json.dumps(GOOD_SHARDS)} | ({} if version is None else {"wds.version": version})
    with pytest.raises(errors.IndexFileError, match=r"wds\.version"):
        Index.load(as_file(index_of(["a", "b"]).table, tmp_path / "t.wdsindex", metadata))


def test_numbers_that_no_shard_has(tmp_path: Path) -> None:
    """Sizes and times past 64 bits are only numbers of a shard that is not there."""
    path = tmp_path / "t.wdsindex"
    huge = {"nbytes": [1 << 90], "mtime": [1 << 90], "nmembers": [1 << 90]}
    metadata = {"wds.version": "1", "wds.shards": json.dumps(GOOD_SHARDS | huge)}
    index = Index.load(as_file(index_of(["a", "b"]).table, path, metadata))
    index.validate()
    with pytest.raises(errors.NotFoundError):
        Dataset(index)[0]
    assert [type(e) for e in comparison.check(index)] == [errors.NotFoundError]


NULL = object()
U64, U32 = pa.uint64(), pa.uint32()
BAD_COLUMNS: dict[str, tuple[str, Any, Any]] = {
    "start signed": ("start", [0, 512], pa.int64()),
    "start null": ("start", [None, 512], U64),
    "end before start": ("end", [512, 512], U64),
    "end past the shard": ("end", [512, 1536], U64),
    "end huge": ("end", [512, (1 << 64) - 512], U64),
    "start off the block": ("start", [1, 512], U64),
    "rows overlap": ("start", [0, 0], U64),
    "shard of another": ("shard", [0, 1], U32),
    "shard huge": ("shard", [0, (1 << 32) - 1], U32),
    "shard wide": ("shard", [0, 0], U64),
    "hashes unsorted": ("_hash", [2, 1], U64),
    "hash text": ("_hash", ["2", "1"], pa.utf8()),
    "row twice": ("_row", [0, 0], U64),
    "row past the end": ("_row", [0, 2], U64),
    "row huge": ("_row", [0, (1 << 64) - 1], U64),
    "key binary": ("key", [b"a", b"b"], pa.binary()),
    "key null": ("key", ["a", None], pa.utf8()),
    "fields text": ("fields", ["a", "b"], pa.utf8()),
}


@pytest.mark.parametrize("what", BAD_COLUMNS)
def test_bad_columns(tmp_path: Path, what: str) -> None:
    refuse(with_column(index_of(["a", "b"]), *BAD_COLUMNS[what]), tmp_path)


def refuse(table: pa.Table | bytes, tmp_path: Path) -> None:
    """Neither loaded, nor validated, nor followed into another sample."""
    metadata = {"wds.version": "1", "wds.shards": json.dumps(GOOD_SHARDS)}
    path = tmp_path / "t.wdsindex"
    if isinstance(table, bytes):
        path.write_bytes(table)
    else:
        as_file(table, path, metadata)
    try:
        index = Index.load(path)
    except errors.IndexFileError:
        return
    for method in (
        index.validate,
        index.view,
        index.duplicates,
        lambda: index.fields(0),
        lambda: merge([index] * 2),
    ):
        with pytest.raises(errors.IndexFileError, match="build it anew"):
            method()
    with pytest.raises(errors.IndexFileError):
        build.refresh(str(tmp_path / "new.wdsindex"), ["t.tar"], previous=index)
    assert [type(e) for e in comparison.check(index)] == [errors.IndexFileError]
    for key in "ab":
        with contextlib.suppress(errors.IndexFileError):
            assert index.find(key) in ([], ["ab".index(key)])
    for row in range(2):
        with pytest.raises(errors.WdsError):  # there is no shard; a number too large never gets as far
            Dataset(index)[row]


HUGE = (1 << 64) - 512
BAD_FIELDS: dict[str, list[tuple[Any, Any, Any, Any]]] = {
    "header before the sample": [("x", 0, 512, 0)],
    "header off": [("x", 513, 1025, 0)],
    "payload away from its header": [("x", 512, 1536, 0)],
    "payload before its header": [("x", 1024, 512, 0)],
    "payload past the end": [("x", 512, 1024, 1)],
    "size huge": [("x", 512, 1024, HUGE)],
    "offsets huge": [("x", HUGE, 0, 0)],
    "all huge": [("x", HUGE - 512, HUGE, HUGE)],
    "null name": [(None, 512, 1024, 0)],
    "null offset": [("x", 512, None, 0)],
    "twice": [("x", 512, 1024, 0), ("y", 512, 1024, 0)],
}


@pytest.mark.parametrize("what", BAD_FIELDS)
def test_bad_fields(tmp_path: Path, what: str) -> None:
    names = ("ext", "header", "offset", "nbytes")
    bad = [dict(zip(names, field, strict=True)) for field in BAD_FIELDS[what]]
    good = {"ext": "x", "header": 0, "offset": 512, "nbytes": 0}
    Index.load(
        as_file(
            with_column(index_of(["a", "b"]), "fields", [[good], [good | {"header": 512, "offset": 1024}]]),
            tmp_path / "good.wdsindex",
            {"wds.version": "1", "wds.shards": json.dumps(GOOD_SHARDS)},
        )
    ).validate()
    refuse(with_column(index_of(["a", "b"]), "fields", [[good], bad]), tmp_path)
    refuse(with_column(index_of(["a", "b"]), "fields", [[good], [None]]), tmp_path)
    refuse(with_column(index_of(["a", "b"]), "fields", [[good], None]), tmp_path)


@pytest.mark.parametrize(
    "places",
    [
        [(0, 1024, 0)],
        [(1, 513, 0)],
        [(0, 512, 600), (1024, 1536, 0)],
        [(0, 512, 0), (0, 512, 0)],
        [(1024, 1536, 0), (0, 512, 0)],
        [(0, 512, 1), (512, 1024, 0)],
    ],
)
def test_fields_inside_but_not_as_in_a_tar(tmp_path: Path, places: list[tuple[int, int, int]]) -> None:
    metadata = {"wds.version": "1", "wds.shards": json.dumps(GOOD_SHARDS | {"nbytes": [4096], "nsamples": [1]})}
    wide = with_column(index_of(["a"]), "end", [4096])
    for index, fields in enumerate([[(0, 512, 600), (1536, 2048, 2048)], places]):
        column = [[{"ext": "x", "header": h, "offset": o, "nbytes": n} for h, o, n in fields]]
        table = with_column(Index(wide, Shards(["/t.tar"], [4096], [0], [1], [1])), "fields", column)
        found = Index.load(as_file(table, tmp_path / "t.wdsindex", metadata))
        if index:
            with pytest.raises(errors.IndexFileError, match=r"field outside of its sample|fields that overlap"):
                found.validate()
        else:
            found.validate()


@pytest.mark.parametrize("name", ["key", "shard", "start", "end", "fields", "_hash", "_row"])
def test_columns_that_are_missing_or_twice(tmp_path: Path, name: str) -> None:
    table = index_of(["a", "b"]).table
    refuse(table.drop_columns([name]), tmp_path)
    refuse(table.append_column(name, table.column(name)), tmp_path)


@pytest.mark.parametrize("ends", [[0, 1, 1 << 30], [0, -5, 2], [5, 1, 2], [0, 3, 2], [-1, 1, 2], [0, 1, -1]])
@pytest.mark.parametrize("which", [0, 1])
def test_lists_that_lie_about_their_length(tmp_path: Path, ends: list[int], which: int) -> None:
    """Offsets, of keys and of lists of fields, that lead out of their buffers or go back."""
    metadata = {"wds.version": "1", "wds.shards": json.dumps(GOOD_SHARDS)}
    data = as_file(index_of(["a", "b"]).table, tmp_path / "t.wdsindex", metadata).read_bytes()
    before = np.array([0, 1, 2], np.int32).tobytes()
    places = [at for at in range(0, len(data), 8) if data[at : at + 12] == before]
    assert len(places) == 2
    at = places[which]
    refuse(data[:at] + np.array(ends, np.int32).tobytes() + data[at + 12 :], tmp_path)


@pytest.mark.parametrize("text", [b"\xff\xfe", b"a\x80"])
def test_keys_that_are_no_text(tmp_path: Path, text: bytes) -> None:
    offsets = pa.py_buffer(np.array([0, 1, 2], np.int32))
    keys = pa.Array.from_buffers(pa.utf8(), 2, [None, offsets, pa.py_buffer(text)])
    refuse(index_of(["a", "b"]).table.set_column(0, "key", keys), tmp_path)


def small(tmp_path: Path) -> tuple[Path, dict[str, dict[str, bytes]], list[str]]:
    """An index of two shards, what is in them, and the keys in order."""
    labels = [labelled(["1", "22"]), labelled(["333"], prefix="longer/key")]
    index = build_of(tmp_path, labels, lift=["cls"])
    index.save(tmp_path / "t.wdsindex")
    keys = [index.key(row) for row in range(3)]
    return tmp_path / "t.wdsindex", {keys[row]: payloads(index, row) for row in range(3)}, keys


def survive(path: Path, truth: dict[str, dict[str, bytes]], keys: list[str], slow: bool = True) -> bool:
    """Use an index in every way: right samples or a WdsError. Returns whether it was refused from the start."""
    try:
        index = Index.load(path)
    except errors.WdsError:
        return True
    dataset = Dataset(index)
    for row in range(min(len(index), 4)):
        try:
            sample = dataset[row]
        except errors.WdsError:
            continue
        assert {k: v for k, v in sample.items() if not k.startswith("__")} == truth[keys[row]]
        assert sample["__key__"] == keys[row]
    for key in keys:
        try:
            assert fields_of(dataset, key) == truth[key]
        except errors.WdsError:
            continue
    with contextlib.suppress(errors.WdsError):
        index.duplicates()
    if slow:
        with contextlib.suppress(errors.WdsError):
            index.where("cls > 1")
        with contextlib.suppress(errors.WdsError):
            build.build(index.shards.url, previous=index)
    return False


def test_survive_can_fail(tmp_path: Path) -> None:
    path, truth, keys = small(tmp_path)
    assert not survive(path, truth, keys)
    with pytest.raises(AssertionError):
        survive(path, truth | {keys[1]: {"txt": b"text", "cls": b"23"}}, keys)


def test_a_bit_flipped_in_every_byte(tmp_path: Path) -> None:
    path, truth, keys = small(tmp_path)
    data = path.read_bytes()
    refused = 0
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << (at * 5 + 3) % 8]) + data[at + 1 :])
        refused += survive(path, truth, keys, at % 24 == 0)
    assert 500 < refused < len(data)


def test_truncated_at_every_byte(tmp_path: Path) -> None:
    path, truth, keys = small(tmp_path)
    data = path.read_bytes()
    for end in range(len(data)):
        path.write_bytes(data[:end])
        assert survive(path, truth, keys), end


def test_a_shard_that_is_another_one(tmp_path: Path) -> None:
    """An index that is sound, of shards of other content: an error that names both, at every sample."""
    index = save(build_of(tmp_path, [labelled(["1", "2"])]), tmp_path / "t.wdsindex")
    write_shards(tmp_path, [labelled(["1", "2"], prefix="u")])
    for row in range(2):
        with pytest.raises(errors.StaleIndexError, match=r"t\.wdsindex: does not describe .*t-000000\.tar any more"):
            Dataset(index)[row]


def test_etags_are_optional(tmp_path: Path) -> None:
    """A file without them is as it was before there were any; one with them keeps them."""
    plain = Shards(["/a.tar", "s3://b/c.tar"], [1024, 1024], [0, 7], [0, 0], [0, 0])
    assert "etag" not in json.loads(plain.to_json("/"))
    assert Shards.from_json(plain.to_json("/"), "/") == plain
    known = Shards(["/a.tar", "s3://b/c.tar"], [1024, 1024], [0, 7], [0, 0], [0, 0], ["", "abc"])
    assert Shards.from_json(known.to_json("/"), "/") == known
    plain.extend(known)
    assert plain.etag == ["", "", "", "abc"]
    for wrong in ([1, 2], ["a"], "ab", None):
        with pytest.raises((ValueError, TypeError)):
            Shards.from_json(json.dumps(json.loads(known.to_json("/")) | {"etag": wrong}), "/")
