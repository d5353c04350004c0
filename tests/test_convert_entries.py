"""Entries against a list: in memory, on disk, and across the border between them."""

from __future__ import annotations

import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wdstools.convert import entries as room
from wdstools.convert.entries import Entries, Entry, sizes

KEYS = st.text(st.characters(codec=None), max_size=6)  # lone surrogates too: names that are no UTF-8
PARTS = st.lists(st.tuples(KEYS, st.binary(max_size=9) | KEYS | st.integers(), st.integers(0)), max_size=3)
ENTRY = st.builds(
    lambda key, group, parts: Entry(key, group, tuple(x for part in parts for x in part)),
    KEYS,
    st.none() | st.integers() | st.dates(),
    PARTS,
)


@pytest.fixture(params=[0, 3, 1000])
def held(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many stay in memory; the file is written after every 40 bytes."""
    monkeypatch.setattr(room, "HELD", request.param)
    monkeypatch.setattr(room, "_FLUSH", 40)
    monkeypatch.setattr(room, "RUN", 5)
    return int(request.param)


@given(st.lists(ENTRY, max_size=12))
def test_entries_are_a_list(held: int, wanted: list[Entry]) -> None:
    found = Entries(wanted)
    assert list(found) == wanted
    assert [found[i] for i in reversed(range(len(found)))] == wanted[::-1]
    assert all(type(entry) is Entry for entry in found)
    found.append(Entry("more", None, ()))
    assert list(found) == [*wanted, Entry("more", None, ())]
    by_key = sorted(found, key=lambda entry: entry.key)
    assert list(found.sorted()) == by_key
    assert list(Entries(by_key).sorted()) == by_key


def test_what_is_sorted_is_not_copied(held: int) -> None:
    found = Entries(Entry(f"{i:03d}", None, ()) for i in range(50))
    assert found.sorted() is found


def test_threads_read_and_the_file_goes(held: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    wanted = [Entry(f"{i:04d}", i, ("bin", b"x" * (i % 7), i % 7)) for i in range(500)]
    found = Entries(wanted)
    wrong: list[int] = []

    def read(step: int, found: Entries = found) -> None:
        wrong.extend(i for i in range(0, 500, step) if found[i] != wanted[i])

    threads = [threading.Thread(target=read, args=(step,)) for step in (1, 2, 3, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(os.listdir("/proc/self/fd")) == before + (held < 500)
    del found, read, threads
    assert len(os.listdir("/proc/self/fd")) == before


def test_sizes() -> None:
    assert sizes(Entry("a", None, ("jpg", "a.jpg", 5, "cls", b"12", 2))) == {"jpg": 5, "cls": 2}
