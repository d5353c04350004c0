"""The index of one shard: its fields, its columns, and what has no place in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import make_tar
from indexing import (
    build_of,
    labelled,
    touch,
)

from wdstools import build, comparison, errors, shardindex
from wdstools.index import Index


def test_names_that_are_no_utf8_have_no_place(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    path.write_bytes(make_tar([("a\udcff.txt", b"")]))
    with pytest.raises(errors.ShardError, match="not UTF-8"):
        build.build([str(path)])


def test_fields_in_capitals_that_only_python_lowers(tmp_path: Path) -> None:
    index = build_of(tmp_path, [[("a.ÄÖ", b"x"), ("b.äö", b"y"), ("b.TXT", b"z")]])
    assert [[f.ext for f in index.fields(row)] for row in range(2)] == [["äö"], ["äö", "txt"]]


def test_exact_is_what_has_no_other_members_and_no_capitals(tmp_path: Path) -> None:
    sets = [["a.jpg", "a.cls"], ["a.JPG"], ["a.\u00c9"], ["a.jpg", "readme"], ["a.jpg", "__x__/y.txt"], ["A/B.jpg"], []]
    paths = []
    for number, names in enumerate(sets):
        paths.append(str(tmp_path / f"{number}.tar"))
        Path(paths[-1]).write_bytes(make_tar([(name, b"1") for name in names]))
    index = build.build(paths)
    assert index.shards.exact == [1, 0, 0, 0, 0, 1, 1]
    index.save(tmp_path / "t.wdsindex")
    index = Index.load(tmp_path / "t.wdsindex")
    assert index.shards.exact == [1, 0, 0, 0, 0, 1, 1]
    touch(paths[0])
    assert build.build(paths, previous=index).shards.exact == index.shards.exact
    assert comparison.check(index) == []
    index.shards.exact = [1] * len(sets)
    assert [error.args[0].split(".tar")[0][-1] for error in comparison.check(index)] == ["1", "2", "3", "4"]


def test_columns_given_twice_are_one(tmp_path: Path) -> None:
    index = build_of(tmp_path, [labelled(["1"])], lift=["cls", "txt", "cls"])
    assert index.lifted() == ["cls", "txt"]
    assert shardindex.index_shard(index.shards.url[0], lift=["cls", "cls"]).lifted() == ["cls"]
