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


def tensors() -> dict[str, Any]:
    torch = pytest.importorskip("torch")
    big = torch.arange(120_000, dtype=torch.int32).view(10, 4, 50, 60)
    return {
        "plain": big,
        "channels last": big.contiguous(memory_format=torch.channels_last),
        "permuted": big.permute(2, 0, 3, 1),
        "every other": big[::2, :, 3:40, ::3],
        "expanded": torch.ones(1, 3).expand(40_000, 3),
        "one": torch.tensor(1.5),
        "empty": torch.empty(0, 3),
        "half": torch.randn(70_000).bfloat16(),
        "bool": torch.rand(300_000) > 0.5,
        "complex": torch.randn(40_000, dtype=torch.complex64),
        "conj": torch.randn(40_000, dtype=torch.complex64).conj(),
        "negative": torch.randn(40_000, dtype=torch.complex64).conj().imag,
        "gradient": torch.ones(3, requires_grad=True),
        "sparse": torch.eye(5).to_sparse(),
        "shared": torch.ones(100_000).share_memory_(),
        "small": torch.arange(5),
    }


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_tensors_come_as_they_went() -> None:
    torch = pytest.importorskip("torch")
    packer, given = Packer(), tensors()
    for batch in ([given], *([tensor] for tensor in given.values())):
        found = pickle.loads(send(packer(batch)))
        pairs = (
            [(found[0], batch[0])]
            if torch.is_tensor(batch[0])
            else [*zip(found[0].values(), given.values(), strict=True)]
        )
        for one, other in pairs:
            assert one.dtype == other.dtype
            assert one.requires_grad == other.requires_grad
            assert torch.equal(*(t.to_dense() if t.is_sparse else t for t in (one, other)))
            if not one.is_sparse and one.numel():
                one.detach().add_(1) if one.dtype != torch.bool else one.logical_not_()  # it is writable
    last = pickle.loads(send(packer(given)))["channels last"]
    assert last.stride() == given["channels last"].stride()


def test_tensors_are_copies_and_files_are_used_again() -> None:
    torch = pytest.importorskip("torch")
    packer = Packer()
    kept = []
    numbers = torch.zeros(LEAST)
    for i in range(5):
        numbers.fill_(i)
        kept.append(pickle.loads(send(packer({"x": numbers}))))
        assert not numbers.is_shared()
    assert [float(batch["x"].mean()) for batch in kept] == [0, 1, 2, 3, 4]
    assert len(packer.files) == 1
    assert not kept[0]["x"].is_shared()


def test_a_shared_tensor_stays_shared() -> None:
    torch = pytest.importorskip("torch")
    numbers = torch.zeros(LEAST).share_memory_()
    found = pickle.loads(send(Packer()([numbers])))
    numbers[5] = 7
    assert found[0][5] == 7
