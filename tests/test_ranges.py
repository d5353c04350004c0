"""Plans of reads, against slices of bytes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wdstools.ranges import plan, scatter

RANGES = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 60)).map(lambda r: (r[0], r[0] + r[1])), max_size=15)


@given(RANGES, st.integers(0, 30), st.integers(1, 80))
def test_every_range_comes_back(ranges: list[tuple[int, int]], gap: int, most: int) -> None:
    data = bytes(range(256)) * 2
    reads = plan(ranges, gap, most)
    found = scatter(ranges, reads, [data[start:end] for start, end in reads])
    assert [bytes(body) for body in found] == [data[start:end] for start, end in ranges]


@given(RANGES, st.integers(0, 30), st.integers(1, 80))
def test_reads_are_sorted_disjoint_bounded_and_needed(ranges: list[tuple[int, int]], gap: int, most: int) -> None:
    reads = plan(ranges, gap, most)
    assert all(0 < end - start <= most for start, end in reads)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(reads))
    wanted = {i for start, end in ranges for i in range(start, end)}
    read = [i for start, end in reads for i in range(start, end)]
    assert wanted <= set(read)
    for start, end in reads:  # they begin and end with bytes that are wanted, and no gap in them is too long
        inside = sorted(wanted & set(range(start, end)))
        assert (inside[0], inside[-1]) == (start, end - 1)
        assert all(b - a - 1 <= gap for a, b in itertools.pairwise(inside))


@pytest.mark.parametrize(
    ("ranges", "reads"),
    [
        ([], []),
        ([(5, 5)], []),
        ([(0, 10), (10, 20)], [(0, 20)]),
        ([(30, 40), (0, 10)], [(0, 40)]),  # 20 apart
        ([(31, 41), (0, 10)], [(0, 10), (31, 41)]),  # 21 apart
        ([(0, 90), (95, 120)], [(0, 90), (95, 120)]),  # together too long
        ([(0, 250)], [(0, 100), (100, 200), (200, 250)]),
        ([(0, 90), (50, 150)], [(0, 100), (100, 150)]),  # no byte twice
        ([(0, 50), (10, 20), (10, 20)], [(0, 50)]),
    ],
)
def test_plans(ranges: list[tuple[int, int]], reads: list[tuple[int, int]]) -> None:
    assert plan(ranges, gap=20, most=100) == reads


@pytest.mark.parametrize("wrong", [(-1, 3), (4, 3)])
def test_no_range(wrong: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="range of bytes"):
        plan([(0, 100), wrong])


def test_a_range_in_one_read_is_a_view() -> None:
    body = b"0123456789"
    found = scatter([(102, 104), (100, 110)], [(100, 110)], [body])
    assert all(isinstance(piece, memoryview) and piece.obj is body for piece in found)
