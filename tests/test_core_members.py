"""_core.members: what Walker yields, by columns, with the same errors; _core.hash_key with a seed."""

from __future__ import annotations

import tarfile
from typing import Any

import numpy as np
import pytest
import xxhash
from helpers import URL, WAYS, make_tar, take
from hypothesis import given
from hypothesis import strategies as st
from indexing import random_files

from wdstools import _core

GOOD = make_tar(random_files(1, samples=40), tarfile.PAX_FORMAT, mtime=1.5)


def members(data: bytes, way: str = "regular") -> list[tuple[Any, ...]]:
    with WAYS[way](data) as source:
        found = _core.members(source, URL)
    ends = np.frombuffer(found["name_ends"], np.uint64).tolist()
    names = [found["names"][a:b].decode("utf-8", "surrogateescape") for a, b in zip([0, *ends], ends, strict=False)]
    places = [np.frombuffer(found[name], np.uint64).tolist() for name in ("starts", "headers", "offsets", "nbytes")]
    assert found["shard_nbytes"] == len(data)
    last = (places[2][-1] + -(-places[3][-1] // 512) * 512) if names else 0
    assert found["end"] == last
    return list(zip(names, found["types"].decode(), *places, strict=True))


def walked(data: bytes, way: str = "regular") -> tuple[list[tuple[Any, ...]], Exception | None]:
    with WAYS[way](data) as source:
        found, error = take(_core.Walker(source, URL))
    return [(name, kind, *places) for name, kind, _, *places in found], error


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("data", [GOOD, make_tar([]), make_tar([("é", b"x"), ("d/" * 80 + "n", b"")])])
def test_members_are_those_of_the_walker(data: bytes, way: str) -> None:
    assert (members(data, way), None) == walked(data, way)


@given(st.lists(st.tuples(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1),
                          st.binary(max_size=1200))))  # fmt: skip
def test_members_of_any_tar(files: list[tuple[str, bytes]]) -> None:
    data = make_tar([(name.strip("/") or "n", payload) for name, payload in files], tarfile.PAX_FORMAT)
    assert (members(data), None) == walked(data)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("data", [b"", GOOD[:700], GOOD[:4096] + b"g" * 512, GOOD + b"x", GOOD[:2048] + b"\0" * 512])
def test_errors_are_those_of_the_walker(data: bytes, way: str) -> None:
    error = walked(data, way)[1]
    assert error is not None
    with pytest.raises(type(error)) as caught:
        members(data, way)
    assert str(caught.value) == str(error)


def test_arguments_that_are_refused() -> None:
    for args in ((), (0,), (-1, URL), (0, b"u")):
        with pytest.raises((TypeError, ValueError)):
            _core.members(*args)


@given(st.binary(max_size=200), st.integers(0, (1 << 64) - 1))
def test_hash_with_a_seed(data: bytes, seed: int) -> None:
    assert _core.hash_key(data, seed) == xxhash.xxh64_intdigest(data, seed)


def test_seeds_that_are_none() -> None:
    for seed in (-1, 1 << 64, "1"):
        with pytest.raises((TypeError, OverflowError, ValueError)):
            _core.hash_key(b"", seed)
