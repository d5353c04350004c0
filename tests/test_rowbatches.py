"""Rows through batches that are looked at when they are needed: from threads, after a fork, pickled."""

from __future__ import annotations

import os
import pickle
import random
import threading
from pathlib import Path
from typing import Any

import pytest
from indexing import index_of, rows_of

from wdstools import indexfile
from wdstools.index import Index

KEYS = [f"k{i % 150}" for i in range(200)]  # fifty come twice, in other batches


@pytest.fixture(params=[1 << 27, 0], ids=["mapped", "read"])
def path(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(indexfile, "MAPPED", request.param)
    monkeypatch.setattr("wdstools.index.BATCH_ROWS", 3)
    index_of(KEYS, 7).save(tmp_path / "t.wdsindex")
    return tmp_path / "t.wdsindex"


def looked(index: Index, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batches that are asked for from now on."""
    asked: list[int] = []
    file = index._file
    assert file is not None
    whole = file.batch
    monkeypatch.setattr(file, "batch", lambda number: asked.append(number) or whole(number))  # type: ignore[func-returns-value]
    return asked


def test_no_batch_is_looked_at_twice_or_in_vain(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index.load(path)
    asked = looked(index, monkeypatch)
    for row in (0, 1, 2, 100, 0, 101, 99):
        index.locate(row)
    assert asked == [0, 33]
    asked.clear()
    assert index.find("k7") == [7, 157]
    assert len(asked) < 12
    asked.clear()
    assert index.find("k7") == [7, 157]
    assert asked == []


def test_opening_looks_at_both_ends_only(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    whole = indexfile.IndexFile.batch
    monkeypatch.setattr(indexfile.IndexFile, "batch", lambda file, n: asked.append(n) or whole(file, n))  # type: ignore[func-returns-value]
    assert len(Index.load(path)) == 200
    assert sorted(asked) == [0, 66]


def test_threads_that_meet_at_batches(path: Path) -> None:
    want = rows_of(index_of(KEYS, 7))
    wrong: list[Any] = []
    for attempt in range(10):
        index = Index.load(path)
        barrier = threading.Barrier(8)

        def work(seed: int, index: Index = index, barrier: threading.Barrier = barrier) -> None:
            rng = random.Random(seed)
            barrier.wait()
            try:
                for _ in range(100):
                    row = rng.randrange(200)
                    if index.locate(row) != want[row][:4] or row not in index.find(KEYS[row]):
                        wrong.append(row)
            except BaseException as error:  # noqa: BLE001  no thread may end in silence
                wrong.append(error)

        threads = [threading.Thread(target=work, args=[8 * attempt + i]) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.parametrize("locked", [False, True])
def test_a_fork_at_any_moment(path: Path, locked: bool) -> None:
    """Also while another thread looks at a batch: that one's lock is not the child's."""
    index = Index.load(path)
    index.locate(5)
    if locked:
        indexfile._lock.acquire()
    try:
        pid = os.fork()
        if pid == 0:
            try:
                good = [index.key(row) for row in range(200)] == KEYS and index.find("k149") == [149]
                os._exit(0 if good else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        if locked:
            indexfile._lock.release()
    assert [index.key(row) for row in range(200)] == KEYS


def test_pickled(path: Path) -> None:
    index = Index.load(path)
    index.locate(5)
    data = pickle.dumps(index)
    assert len(data) < 500
    assert rows_of(pickle.loads(data)) == rows_of(index)
