"""The simulated disk: the model against closed forms in virtual time, and one mounted disk in real time."""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.spindle_model import AGED, Array, Disk, Order, Request, Spindle, simulate

K, M = 1 << 10, 1 << 20
TB = 10**12


def run(start: int, count: int, nbytes: int = 128 * K) -> Iterator[tuple[int, int]]:
    """A sequential reader."""
    return iter([(start + i * nbytes, nbytes) for i in range(count)])


def anywhere(count: int, nbytes: int = 4096, seed: int = 0) -> Iterator[tuple[int, int]]:
    rng = random.Random(seed)
    return iter([(rng.randrange(TB // nbytes) * nbytes, nbytes) for _ in range(count)])


def interleaved(readers: int, nbytes: int, depth: int, order: Order = "batch", span: float = 150e9) -> float:
    """MB/s of readers side by side, each of a file of its own."""
    count = 64 * M // nbytes
    streams = [run(int(i * span / readers), count, nbytes) for i in range(readers)]
    return readers * count * nbytes / max(simulate(Array(Disk(order=order)), streams, depth, think=1e-4)) / 1e6


def test_the_seek_curve_is_that_of_the_data_sheet() -> None:
    disk, rng = Disk(), random.Random(0)
    assert disk.seek(0) == 0
    assert disk.seek(1) == pytest.approx(0.001, rel=0.01)
    assert disk.seek(disk.capacity) == disk.seek(-disk.capacity) == pytest.approx(0.016)
    pairs = [disk.seek(rng.random() * TB - rng.random() * TB) for _ in range(20_000)]
    assert sum(pairs) / len(pairs) == pytest.approx(0.0085, rel=0.02)
    distances = [disk.seek(d) for d in range(1, TB, TB // 100)]
    assert distances == sorted(distances)


@given(st.integers(0, TB), st.floats(0, 1e5))
def test_rotation_is_less_than_a_revolution_and_ends_at_the_position(position: int, now: float) -> None:
    disk = Disk()
    wait = disk.rotation(position, now)
    assert 0 <= wait <= disk.revolution  # equal where a float rounds up
    again = disk.rotation(position, now + wait)
    assert min(again, disk.revolution - again) < 1e-6


@pytest.mark.parametrize("think", [0.0, 0.0003])
def test_a_sequential_reader_gets_the_rate_of_the_platter(think: float) -> None:
    """Also one that sends its next read a little late: the drive has read on meanwhile."""
    seconds = simulate(Array(Disk()), [run(0, 4000)], think=think)[0]
    assert 4000 * 128 * K / seconds / 1e6 == pytest.approx(200, rel=0.02)


def test_random_reads_get_what_such_disks_get() -> None:
    """1 / (8.5 ms + 4.17 ms + 20 us) a second; more where the drive may choose: data sheets say two times at 32."""
    alone = 2000 / simulate(Array(Disk()), [anywhere(2000)])[0]
    assert alone == pytest.approx(79, rel=0.04)
    assert 2000 / simulate(Array(Disk(order="fifo")), [anywhere(2000)], 32)[0] == pytest.approx(79, rel=0.04)
    assert 1.5 < 2000 / simulate(Array(Disk()), [anywhere(2000)], 32)[0] / alone < 2
    assert 2 < 2000 / simulate(Array(Disk(order="greedy")), [anywhere(2000)], 32)[0] / alone < 2.6


def test_interleaved_readers_pay_a_seek_for_each_read() -> None:
    assert 10 < interleaved(8, 128 * K, 1) < 24  # a tenth of 200
    assert 25 < interleaved(8, 128 * K, 2) < 45  # two windows of read-ahead lie together in a sweep
    assert interleaved(8, M, 1) > 100
    assert interleaved(8, 32 * M, 1) > 185


def test_a_greedy_drive_keeps_to_a_stream_until_another_has_aged() -> None:
    assert interleaved(8, 128 * K, 2, "greedy") > 150
    assert interleaved(8, 128 * K, 2, "fifo") < 45
    spindle = Spindle(Disk(order="greedy"))
    spindle.submit(other := Request(0.0, 10**11, 4096))
    near = [Request(0.0, TB // 2 + i * M, M) for i in range(300)]
    for request in near:
        spindle.submit(request)
    spindle.advance(100.0)
    assert other.done is not None
    assert AGED <= other.done < AGED + 0.05


def test_a_short_jump_ahead_costs_its_passing_and_not_a_seek() -> None:
    spindle = Spindle(Disk())
    spindle.submit(Request(0.0, 0, 128 * K))
    [first] = spindle.advance(0.0)
    assert spindle.seeks == 1
    assert first.done is not None
    spindle.submit(jump := Request(first.done, 256 * K, 128 * K))
    spindle.submit(between := Request(first.done, 128 * K, 128 * K))  # in the wrong order, as threads send them
    spindle.advance(first.done + 1)
    assert jump.done is not None
    assert jump.done - first.done == pytest.approx(256 * K / 200e6)
    assert between.done is not None
    assert between.done <= jump.done
    assert spindle.seeks == 1


def test_a_request_never_waits_for_one_that_came_later_with_the_disk_idle() -> None:
    spindle = Spindle(Disk())
    spindle.submit(late := Request(1.0, 0, 4096))
    assert spindle.advance(0.5) == []
    spindle.submit(early := Request(0.6, TB - 4096, 4096))
    assert spindle.advance(2.0) == [early, late]


@given(
    st.sampled_from(["batch", "greedy", "fifo"]), st.lists(st.tuples(st.floats(0, 2), st.integers(0, 1000)), min_size=1)
)
def test_one_head_serves_everything_once_and_one_at_a_time(order: Order, reads: list[tuple[float, int]]) -> None:
    spindle = Spindle(Disk(order=order))
    for arrival, where in sorted(reads):
        spindle.submit(Request(arrival, where * M, 64 * K))
    taken = spindle.advance(1e9)
    assert len(taken) == len(reads)
    assert spindle.pending == []
    done = [request.done or 0.0 for request in taken]
    assert done == sorted(done)
    assert all(request.done is not None and request.done >= request.arrival for request in taken)
    assert spindle.busy <= done[-1] + 1e-9


@given(st.integers(0, 1 << 30), st.integers(1, 8 * M), st.sampled_from([(1, None), (2, 0), (4, 0), (3, 5), (5, 5)]))
def test_an_array_places_every_byte_once(position: int, nbytes: int, kind: tuple[int, int | None]) -> None:
    array = Array(Disk(), *kind)
    pieces = list(array.place(position, nbytes))
    assert sum(n for _, _, n in pieces) == nbytes
    assert sum(request.nbytes for _, request in array.split(0.0, position, nbytes)) == nbytes
    ranges = sorted((spindle, where, where + n) for spindle, where, n in pieces)
    for (s, _, end), (s2, begin, _) in itertools.pairwise(ranges):
        assert s != s2 or end <= begin


def test_raid_5_keeps_one_chunk_of_each_row_for_the_parity() -> None:
    array = Array(Disk(), 4, 5, chunk=4096)
    rows: dict[int, list[int]] = {}
    for spindle, where, _ in array.place(0, 4096 * 3 * 8):
        rows.setdefault(where // 4096, []).append(spindle)
    assert [set(range(4)) - set(row) for row in rows.values()] == [{3}, {2}, {1}, {0}] * 2
    assert [row[0] for row in rows.values()] == [0, 3, 2, 1] * 2  # left-symmetric, as md does


@pytest.mark.parametrize(("spindles", "raid", "rate"), [(4, 0, 800), (4, 5, 600), (5, 5, 800)])
def test_the_rate_of_an_array(spindles: int, raid: int, rate: float) -> None:
    seconds = simulate(Array(Disk(), spindles, raid), [run(0, 1000, M)], depth=8)[0]
    assert 1000 * M / seconds / 1e6 == pytest.approx(rate, rel=0.03)


@pytest.mark.parametrize(("spindles", "raid"), [(2, None), (1, 0), (2, 5), (4, 1)])
def test_an_array_that_cannot_be(spindles: int, raid: int | None) -> None:
    with pytest.raises(ValueError, match="RAID"):
        Array(Disk(), spindles, raid)


def read_all(path: Path, block: int = M) -> bytes:
    """Everything, by big reads of a cold file."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        return b"".join(iter(lambda: os.read(file, block), b""))
    finally:
        os.close(file)


@pytest.mark.may_skip("FUSE needs /dev/fuse, which some containers do not have")
def test_a_mounted_disk(tmp_path: Path) -> None:
    """The bytes are right, and a mount costs what the model says: one reader the rate, random reads a seek each."""
    if not os.path.exists("/dev/fuse"):
        pytest.skip("no /dev/fuse")
    from bench.spindle import mounted

    (tmp_path / "in").mkdir()
    content = {name: random.Random(name).randbytes(16 * M) for name in ("a.tar", "in/b.tar", "in/c.tar")}
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    with mounted(tmp_path, "--rate", "100MB") as disk:
        assert sorted(str(p.relative_to(disk)) for p in disk.rglob("*.tar")) == sorted(content)
        assert (disk / "a.tar").stat().st_size == 16 * M
        with pytest.raises(OSError, match="Read-only"):
            (disk / "a.tar").open("r+b")
        began = time.monotonic()
        assert read_all(disk / "a.tar") == content["a.tar"]
        assert 0.155 < time.monotonic() - began < 2  # 16 MiB at 100 MB/s: 0.168 s
        began = time.monotonic()
        assert read_all(disk / "a.tar") == content["a.tar"]  # cold again
        assert time.monotonic() - began > 0.12
        warm = []
        for _ in range(3):
            began = time.monotonic()
            assert (disk / "a.tar").read_bytes() == content["a.tar"]
            warm.append(time.monotonic() - began)
        assert min(warm) < 0.1  # the page cache
        with ThreadPoolExecutor(3) as pool:
            assert list(pool.map(lambda name: read_all(disk / name), content)) == list(content.values())
        mountpoint = disk
    assert not os.path.ismount(mountpoint)
    assert not mountpoint.exists()
