"""SampleReader.read_rows: what read_row gives, for many rows, in every order, whatever happens to the files."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import random
import resource
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import URL, Sample, items, make_tar, reference, regular
from hypothesis import given, settings
from hypothesis import strategies as st
from test_core_leaks import check
from test_core_reader import HOSTILE, Row, columns, opened, rows_in, rows_of

from wdstools import _core
from wdstools.errors import HeaderError, ShardError

SHARDS = [
    make_tar([(f"a{i:03}.{ext}", ext.encode() * (i * 9 + 1)) for i in range(300) for ext in ("cls", "txt")]),
    make_tar([("é/b.bin", b"B" * 300_000), ("é/b.cls", b"1"), ("c.bin", b"C" * 70_000), ("d.cls", b"")]),
    make_tar([(f"m.f{i}", bytes([65 + i]) * 17_000) for i in range(20)] + [("n.cls", b"n")]),
    make_tar([(f"{i}.{ext}", bytes([i]) * n) for i in range(6) for ext, n in (("cls", 3), ("jpg", 110_000 + 777 * i))]),
    make_tar(
        [(f"v{i}.{ext}", bytes([i]) * n) for i in range(9) for ext, n in (("jpg", 80_000), ("txt", i // 6 * 900))]
    ),
]
ROWS: list[Row] = [row for i, data in enumerate(SHARDS) for row in rows_of(data, i)]
TRUE = [sample for data in SHARDS for sample in items(reference(data))]
SIZES = [len(data) for data in SHARDS]
Files = list[tuple[Any, ...]]


def attached(rows: list[Row] = ROWS, **options: Any) -> _core.SampleReader:
    reader = _core.SampleReader(**options)
    reader.attach(rows_in([columns(rows, SIZES)]))
    return reader


LARGE = next(i for i, row in enumerate(ROWS) if row[0] == 3)  # the first of six of 110 kB


@contextlib.contextmanager
def files_of(folder: Path | None = None) -> Iterator[Files]:
    """The shards as files of a folder, or in memory."""
    with contextlib.ExitStack() as stack:
        fds: list[int] = []
        for i, data in enumerate(SHARDS):
            if folder is None:
                fds.append(stack.enter_context(regular(data)))
            else:
                (folder / f"{i}.tar").write_bytes(data)
                fds.append(os.open(folder / f"{i}.tar", os.O_RDONLY))
                stack.callback(os.close, fds[-1])
        yield [(fd, URL, f"/x/{i}.tar", "more") for i, fd in enumerate(fds)]


@contextlib.contextmanager
def cpus(n: int) -> Iterator[None]:
    """Helper threads are as many as the other CPUs that this thread may use."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:n])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def drop(files: Files) -> None:
    for file in files:
        os.fsync(file[0])
        os.posix_fadvise(file[0], 0, 0, os.POSIX_FADV_DONTNEED)


def one_by_one(reader: _core.SampleReader, rows: list[int], files: Files) -> list[Any]:
    return items([reader.read_row(row, files) or {} for row in rows])


# ---- right data

picks = st.one_of(
    st.lists(st.integers(0, len(ROWS) - 1), max_size=40),
    st.tuples(st.integers(0, 290), st.integers(1, 300)).map(lambda p: list(range(len(ROWS)))[p[0] : p[0] + p[1]]),
    st.integers(0, 10**6).map(lambda seed: random.Random(seed).choices(range(len(ROWS)), k=700)),
)


@settings(max_examples=60, deadline=None)
@given(
    rows=picks,
    views=st.booleans(),
    alone=st.booleans(),
    fields=st.none() | st.sets(st.sampled_from(["cls", "jpg", "bin", "f3", "none"])),
)
def test_a_batch_is_its_rows(rows: list[int], views: bool, alone: bool, fields: set[str] | None) -> None:
    reader, single = attached(fields=fields, views=views), attached(fields=fields, views=views)
    with files_of() as files, cpus(1) if alone else contextlib.nullcontext():
        for _ in range(2):  # large samples are thought to be like those before
            got, left = reader.read_rows(rows, files)
            assert left == []
            assert items([sample or {} for sample in got]) == one_by_one(single, rows, files)
        kinds = {type(v) for sample in got if sample for k, v in sample.items() if not k.startswith("__")}
        assert kinds <= {memoryview if views else bytes}
        assert len({id(sample) for sample in got}) == len(rows), "one that is asked for twice is two"


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("alone", [False, True])
def test_a_batch_that_is_not_in_the_page_cache(views: bool, alone: bool, tmp_path: Path) -> None:
    reader = attached(views=views)
    with files_of(tmp_path) as files, cpus(1) if alone else contextlib.nullcontext():
        for seed in range(6):
            rows = random.Random(seed).choices(range(len(ROWS)), k=5 + 90 * seed)
            drop(files)
            got, left = reader.read_rows(rows, files)
            assert left == []
            assert items([sample or {} for sample in got]) == one_by_one(reader, rows, files)


def test_more_than_a_group_holds() -> None:
    """Of rows, of bytes, of payloads that are read apart (20 in each of the first kind)."""
    many, large = next(i for i, row in enumerate(ROWS) if row[3] == "m"), LARGE
    reader = attached()
    with files_of() as files:
        for rows in ([many] * 100, [large] * 600, list(range(300)) * 4, [many, 5, large] * 90):
            got, _ = reader.read_rows(rows, files)
            want = {row: TRUE[row] for row in set(rows)}
            for row, sample in zip(rows, got, strict=True):
                assert items([{k: v for k, v in (sample or {}).items() if k != "__local_path__"}]) == [want[row]]


def test_views_keep_their_own_sample_alive() -> None:
    reader = attached(views=True)
    with files_of() as files:
        got, _ = reader.read_rows(list(range(len(ROWS))), files)
        backing = {id(view.obj) for sample in got if sample for view in sample.values() if type(view) is memoryview}
        assert len(backing) == len(ROWS)
        view = (got[300] or {})["bin"]
        del got, reader
    gc.collect()
    assert bytes(view) == b"B" * 300_000


# ---- what is for Python, and what is wrong


def test_places_that_are_left() -> None:
    reader = attached()
    with files_of() as files:
        rows: list[Any] = [0, "a001", -1, len(ROWS), 301, 1 << 63, -(1 << 80), 2.0, None, 1, True]
        some: list[Any] = [files[0], None, *files[2:]]
        got, left = reader.read_rows(rows, some)
        assert left == [1, 2, 3, 4, 5, 6, 7, 8]
        assert [sample and sample["__key__"] for sample in got] == ["a000", *[None] * 8, "a001", "a001"]
        assert _core.SampleReader().read_rows([0, 1], files) == ([None, None], [0, 1])
        assert reader.read_rows([], files) == ([], [])
        assert reader.read_rows(iter([]), []) == ([], [])
        assert reader.read_rows((0,), [(0, URL)]) == ([None], [0])
        for arguments in [(), ([0],), (5, files), ([0], tuple(files)), ([0], files, 1)]:
            with pytest.raises(TypeError):
                reader.read_rows(*arguments)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            reader.read_rows([0], [("3", URL, None)])
        with pytest.raises(ValueError, match="negative"):
            reader.read_rows([1, 0], [(-1, URL, None)])
        with pytest.raises(OSError, match="Bad file descriptor"):
            reader.read_rows([1, 0], [(987_654, URL, None)])
        with pytest.raises(ZeroDivisionError):
            reader.read_rows((1 // (3 - i) for i in range(9)), files)
        got, left = reader.read_rows([0], files)
        assert (items([got[0] or {}]), left) == (one_by_one(reader, [0], files), [])


@pytest.mark.parametrize("what", list(HOSTILE))
def test_numbers_that_lie_are_left(what: str) -> None:
    reader = _core.SampleReader()
    reader.attach(rows_in([HOSTILE[what]]))
    with opened() as files:
        got, left = reader.read_rows([0, 0, 0], files)
        assert (got, left) == ([None] * 3, [0, 1, 2])


@pytest.mark.parametrize("views", [False, True])
def test_a_size_that_no_memory_holds(views: bool) -> None:
    parts = columns(ROWS, [1 << 62] * len(SHARDS))
    parts[2][0] = parts[2][1] = (1 << 62) - 512
    reader = _core.SampleReader(views=views)
    reader.attach(rows_in([parts]))
    with files_of() as files, pytest.raises((MemoryError, OverflowError, ShardError)):
        reader.read_rows([0, 1, 5, 301], files)


def error_of(call: Any) -> tuple[str, str] | None:
    try:
        call()
    except (ShardError, OSError) as error:
        return type(error).__name__, str(error)
    return None


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("how", ["cut", "zeros", "swapped", "directory"])
def test_files_that_are_not_as_they_were(how: str, views: bool, tmp_path: Path) -> None:
    """A batch of one says what a single read says, a larger one says what some row of it says."""
    reader = attached(views=views)
    with files_of(tmp_path) as files:
        assert reader.read_rows(list(range(len(ROWS))), files)[1] == []
        for i, data in enumerate(SHARDS):
            if how == "cut":
                os.truncate(tmp_path / f"{i}.tar", len(data) // 2 + 300)
            elif how == "zeros":
                with open(tmp_path / f"{i}.tar", "r+b") as file:
                    file.write(bytes(len(data) // 2 // 512 * 512))
            elif how == "swapped":
                (tmp_path / f"{i}.tar").write_bytes(SHARDS[i - 1])
        if how == "directory":
            folder = os.open(tmp_path, os.O_RDONLY)
            files = [(folder, *file[1:]) for file in files]
        single = [error_of(lambda row=row: reader.read_row(row, files)) for row in range(len(ROWS))]
        wrong = [row for row, error in enumerate(single) if error]
        assert wrong
        right = [i for i, error in enumerate(single) if not error]

        def batch(*rows: int) -> Any:
            return error_of(lambda: reader.read_rows(rows, files))

        for row in [*wrong[::17], *wrong[-20:]]:
            assert batch(row) == batch(*right, row, *right) == single[row]
        assert batch(*range(len(ROWS))[::-1]) in single
        assert batch(*right) is None
        if how == "directory":
            os.close(folder)


@pytest.mark.parametrize("broken", ["key", "cut", "another size", "one block more"])
def test_what_was_guessed_of_large_samples_is_compared(broken: str) -> None:
    """Their headers are, as always: the batch says what a single read says."""
    rows, data = list(range(LARGE, LARGE + 6)), bytearray(SHARDS[3])
    at = ROWS[LARGE + 2][1]
    reader = attached()
    with files_of() as files:
        for _ in range(2):
            assert reader.read_rows(rows, files)[1] == []
        if broken == "key":
            data[at : at + 1] = b"x"
        elif broken == "another size":
            header = data.index(b"2.jpg", at)
            data[header + 124 : header + 136] = b"%011o\0" % 111_000
        elif broken == "one block more":
            data[at:at] = bytes(512)
        else:
            del data[at + 50_000 :]
        os.ftruncate(files[3][0], 0)
        os.pwrite(files[3][0], data, 0)
        single = error_of(lambda: [reader.read_row(row, files) for row in rows])
        assert single is not None
        assert error_of(lambda: reader.read_rows(rows, files)) == single
        for row in rows:
            assert error_of(lambda row=row: reader.read_rows([row], files)) == error_of(
                lambda row=row: reader.read_row(row, files)
            )


def test_the_wrong_key() -> None:
    for row in (3, 301, 304):
        rows = list(ROWS)
        rows[row] = (*ROWS[row][:3], "other")
        with files_of() as files, pytest.raises(HeaderError, match="where the index has 'other'"):
            attached(rows).read_rows(list(range(len(ROWS))), files)


@pytest.mark.parametrize("views", [False, True])
def test_a_file_that_is_cut_and_grows_again(views: bool, tmp_path: Path) -> None:
    """Under the reading, again and again: the right samples, or an error."""
    reader, stop = attached(views=views), threading.Event()
    rows = list(range(LARGE, LARGE + 6)) * 6

    def spoil() -> None:
        draw = random.Random(0)
        with open(tmp_path / "3.tar", "r+b") as file:
            while not stop.is_set():
                file.truncate(draw.randrange(len(SHARDS[3])))
                time.sleep(0.0005)
                file.seek(0)
                file.write(SHARDS[3])
                file.flush()
                time.sleep(0.0005)

    with files_of(tmp_path) as files:
        thread = threading.Thread(target=spoil)
        thread.start()
        ends, right = {True: 0, False: 0}, time.monotonic() + 1.5
        try:
            while time.monotonic() < right:
                try:
                    got, _ = reader.read_rows(rows, files)
                except ShardError:
                    ends[False] += 1
                    continue
                ends[True] += 1
                for row, sample in zip(rows, got, strict=True):
                    payload = (sample or {}).get("jpg")
                    if payload is not None:  # zeros: what was cut off had not been written again
                        assert set(bytes(payload)) <= {int(ROWS[row][3]), 0}
        finally:
            stop.set()
            thread.join()
    assert ends[False]


# ---- threads, processes, signals


def test_threads() -> None:
    reader = attached()
    wrong: list[int] = []
    with files_of() as files:
        want = one_by_one(reader, list(range(len(ROWS))), files)

        def read(seed: int) -> None:
            draw = random.Random(seed)
            for _ in range(25):
                rows = draw.choices(range(len(ROWS)), k=draw.choice([3, 60, 300]))
                got, _ = reader.read_rows(rows, files)
                wrong.extend(row for row, s in zip(rows, got, strict=True) if items([s or {}]) != [want[row]])
                wrong.extend(row for row in rows[:5] if items([reader.read_row(row, files) or {}]) != [want[row]])

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_forks_while_others_read() -> None:
    """A child has none of the helpers, and one of them may have been at work, or have held a lock, at the fork."""
    reader, stop = attached(), threading.Event()
    rows = list(range(len(ROWS))) * 2
    with files_of() as files:
        want = one_by_one(reader, rows, files)

        def read() -> None:
            while not stop.is_set():
                reader.read_rows(rows, files)

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(12):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)
                    child = os.fork()
                if child == 0:
                    signal.alarm(20)
                    got = items([sample or {} for sample in reader.read_rows(rows, files)[0]])
                    os._exit(0 if got == want else 1)
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def test_a_signal_ends_a_long_batch() -> None:
    class Enough(Exception):
        pass

    def handler(*_: Any) -> None:
        raise Enough

    reader, rows = attached(), [LARGE] * 20_000  # two gigabytes
    before = signal.signal(signal.SIGALRM, handler)
    gc.disable()  # its callbacks run Python, where what the handler raises would be lost
    try:
        with files_of() as files:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(Enough):
                reader.read_rows(rows, files)
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert reader.read_rows([3], files)[1] == []
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.enable()


def test_other_threads_run_while_a_batch_is_read() -> None:
    reader, rows, beats = attached(), [LARGE] * 3000, itertools.count()
    stop = threading.Event()

    def beat() -> None:
        while not stop.is_set():
            next(beats)
            time.sleep(0.001)

    thread = threading.Thread(target=beat)
    with files_of() as files:
        thread.start()
        start = time.monotonic()
        reader.read_rows(rows, files)
        took = time.monotonic() - start
        stop.set()
        thread.join()
    assert next(beats) > took * 1000 / 50


# ---- what it keeps


def test_no_leak_in_batches() -> None:
    broken = list(ROWS)
    broken[7] = (*ROWS[7][:3], "other")
    broken[302] = (*ROWS[302][:3], "other")
    readers = [attached(**options) for options in ({}, {"views": True}, {"fields": ["cls"]})]
    readers += [attached(broken), attached(broken, views=True)]
    rows: list[Any] = [*range(20), 300, 301, 302, 303, -5, "key", *range(LARGE, LARGE + 6)]
    with files_of() as files:

        def act() -> None:
            for reader in readers:
                with contextlib.suppress(HeaderError):
                    reader.read_rows(rows, files)
                with contextlib.suppress(TypeError):
                    reader.read_rows([0, 1], [("x", URL, None)])
            fresh = _core.SampleReader()
            fresh.attach(rows_in([columns(ROWS[:3], SIZES)]))
            fresh.read_rows([0, 1], files)

        check(act, 60)


def test_rss_of_large_batches() -> None:
    """A batch needs its result, and little more; one after the other, no more than the first."""
    reader, rows = attached(), [LARGE] * 500  # 55 MB
    with files_of() as files:
        reader.read_rows(rows, files)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(5):
            got: list[Sample | None] = []
            got, _ = reader.read_rows(rows, files)
            del got
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 15_000, f"{grown} kB"
