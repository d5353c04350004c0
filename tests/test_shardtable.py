"""The shard table: names resolved all at once are those resolved one by one; numbers that are none."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wdstools import urls
from wdstools.errors import UrlError
from wdstools.shardtable import Shards, canonical

NAME = st.text("ab/.:%?#\n\0é~ ", max_size=6) | st.sampled_from(
    [
        "t.tar",
        "a/b.tar",
        "/t.tar",
        "s3://b/t.tar",
        "pipe:cat x",
        "file:t",
        "./t.tar",
        "../t.tar",
        "a/../t",
        "a//b",
        ".h",
    ]
)
BASE = st.sampled_from(["/d", "/", "/d/", "", "d", "https://h/p?q=1", "s3://b", "s3://b/c d", "file:///d", "http://h"])


def naive(name: str, base: str) -> str:
    return name if urls.is_absolute(name) else urls.join(base, name)


@given(st.lists(NAME | st.just("t.tar"), max_size=4), BASE)
def test_names_against_one_by_one(names: list[str], base: str) -> None:
    n = len(names)
    text = json.dumps({"url": names, "nbytes": [1] * n, "mtime": [0] * n, "nsamples": [2] * n, "nmembers": [3] * n})
    try:
        want = [naive(name, base) for name in names]
    except UrlError:
        with pytest.raises(UrlError):
            Shards.from_json(text, base)
        return
    assert Shards.from_json(text, base) == Shards(want, [1] * n, [0] * n, [2] * n, [3] * n)


@given(st.lists(st.text("abé-_0", min_size=1, max_size=5), max_size=5))
def test_there_and_back(names: list[str]) -> None:
    n = len(names)
    shards = Shards([f"/d/{name}.tar" for name in names], [5] * n, [6] * n, [7] * n, [8] * n)
    assert Shards.from_json(shards.to_json("/d"), "/d") == shards
    assert Shards.from_json(shards.to_json("/elsewhere"), "/d") == shards
    shards.exact = [1] * n
    assert Shards.from_json(shards.to_json("/d"), "/d") == shards


def test_sizes() -> None:
    assert Shards().sizes().tolist() == []
    assert Shards(nbytes=[0, 5]).sizes().tolist() == [0, 5]
    assert Shards(nbytes=[1 << 80, 5]).sizes().tolist() == [(1 << 63) - 1, 5]


def test_likeness() -> None:
    one = Shards(["/d/a.tar"], [1], [2], [3], [4])
    assert one.is_like(Shards(["/d/../d/a.tar"], [1], [9], [3], [9]))
    assert not one.is_like(Shards(["/d/a.tar"], [2], [2], [3], [4]))
    assert not one.is_like(Shards(["/d/b.tar"], [1], [2], [3], [4]))
    assert canonical("s3://b/../a.tar") == "s3://b/../a.tar"


def test_etags_stay_where_they_were_seen() -> None:
    """Shards that were copied with their index have other ETags; those that it names in full are where they were."""
    table = Shards(["s3://b/set/a.tar", "s3://c/d.tar"], [1024, 512], [0, 0], [1, 1], [1, 1], ["abc", "def"])
    text = table.to_json("s3://b/set")
    assert Shards.from_json(text, "s3://b/set") == table
    copied = Shards.from_json(text, "gs://copy/set")
    assert (copied.url, copied.etag) == (["gs://copy/set/a.tar", "s3://c/d.tar"], ["", "def"])
