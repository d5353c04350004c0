"""Batches packed and unpacked: equal, in files that are written again only once they were read."""

from __future__ import annotations

import gc
import os
import pickle
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import wait_until
from hypothesis import given
from hypothesis import strategies as st

from wdstools.parcel import APART, KEPT, LEAST, PIECES, Packer

payloads = st.one_of(
    st.binary(max_size=40),
    st.integers(APART - 2, APART + 2).map(bytes),
    st.integers(LEAST - 2, LEAST + 2).map(lambda n: os.urandom(8) * (n // 8) + bytes(n % 8)),
)
values = st.recursive(
    st.one_of(payloads, st.none(), st.integers(), st.text(max_size=3)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=4),
    max_leaves=8,
)


def send(parcel: Any) -> bytes:
    return bytes(ForkingPickler.dumps(parcel))


@given(st.lists(values, max_size=4))
def test_what_comes_is_what_went(batches: list[Any]) -> None:
    packer = Packer()
    sent = [send(packer(batch)) for batch in batches]
    assert [pickle.loads(data) for data in sent] == batches
    assert all(os.pread(fd, 8, 0) == bytes(8) for fd in packer.files)


def test_files_are_written_again_once_they_were_read(no_leaks: None) -> None:
    packer = Packer()
    pickle.loads(send(packer([bytes(LEAST)])))  # starts the thread that sends descriptors; it stays
    big = [[os.urandom(LEAST) for _ in range(3)] for _ in range(3)]
    one, two = send(packer(big[0])), send(packer(big[1]))
    assert len(packer.files) == 2
    assert pickle.loads(one) == big[0]
    three = send(packer(big[2]))
    assert len(packer.files) == 2
    assert (pickle.loads(two), pickle.loads(three)) == (big[1], big[2])


def test_files_that_nobody_reads_are_given_up() -> None:
    packer = Packer()
    batches = [[os.urandom(LEAST)] for _ in range(KEPT + 5)]
    sent = [send(packer(batch)) for batch in batches]
    assert len(packer.files) == KEPT
    assert [pickle.loads(data) for data in sent] == batches  # all of them can still be read
    before = len(os.listdir("/proc/self/fd"))
    del packer
    gc.collect()
    assert wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before - KEPT)


def test_more_payloads_than_a_write_takes() -> None:
    batch = [os.urandom(APART + i) for i in range(2 * PIECES + 3)]
    assert pickle.loads(send(Packer()(batch))) == batch


def test_writes_and_reads_that_end_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they do from 2 GiB on."""
    writes, reads = os.pwritev, os.pread

    def write(fd: int, pieces: list[memoryview], at: int) -> int:
        return writes(fd, [memoryview(b"".join(pieces)[:100_001])], at)

    batch = [os.urandom(size) for size in (APART, 150_000, 2 * APART, LEAST, APART + 1)]
    packer = Packer()
    monkeypatch.setattr(os, "pwritev", write)
    monkeypatch.setattr(os, "pread", lambda fd, size, at: reads(fd, min(size, 60_000), at))
    assert pickle.loads(send(packer(batch))) == batch


class Named(NamedTuple):
    view: Any
    rest: Any


def test_views_in_named_tuples() -> None:
    found = pickle.loads(send(Packer()({"x": Named(memoryview(b"abc"), [Named(memoryview(bytes(APART)), 1)])})))
    assert found == {"x": Named(b"abc", [Named(bytes(APART), 1)])}
    assert type(found["x"]) is Named


def test_views_and_arrays() -> None:
    data = os.urandom(LEAST)
    array = np.arange(LEAST)
    view, every, small, out = pickle.loads(
        send(Packer()([memoryview(data), memoryview(data)[::2], memoryview(b"x"), array]))
    )
    assert (view, every, small) == (data, data[::2], b"x")
    assert np.array_equal(out, array)
    out[0] = 7
    assert array[0] == 0
    (inside,) = pickle.loads(send(Packer()([array[:1000]])))
    inside[0] = 7
    with pytest.raises(TypeError, match="memoryview"):
        Packer()({1, memoryview(b"x")})
    assert pickle.loads(pickle.dumps(Packer())).files == []
