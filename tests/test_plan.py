"""The order of samples: exact, uniform, the same everywhere, without memory; splits."""

from __future__ import annotations

import hashlib
import itertools
import math
import subprocess
import sys
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wdstools import _core
from wdstools.permute import mix
from wdstools.plan import Plan, split_of

GOLDEN: list[tuple[Plan, list[int]]] = [
    (Plan(10), [1, 0, 2, 4, 7, 5, 8, 9, 6, 3]),
    (Plan(10, seed=1), [5, 0, 6, 2, 8, 1, 7, 4, 9, 3]),
    (Plan(10, epoch=1), [1, 6, 4, 3, 5, 2, 0, 7, 8, 9]),
    (Plan(10, block=3), [2, 0, 1, 9, 3, 4, 5, 7, 6, 8]),
    (Plan(10, block=10), [1, 7, 6, 5, 0, 2, 3, 8, 9, 4]),
    (Plan(10, resample=True), [7, 2, 2, 9, 3, 9, 0, 8, 8, 9]),
    (Plan(10**10, seed=2**64 - 1, epoch=2**63), [9287335784, 1122245876, 8628740908, 4526681324]),
    (Plan(10**10, seed=7, block=1000), [2702258128, 2702258890, 2702258360, 2702258662]),
    (Plan(2**63, seed=7), [7053919258580340186, 164883017955777086, 5814629340888175194, 239149889900225133]),
    (Plan(2**63, seed=7, block=3), [618552238226684338, 618552238226684337, 618552238226684339, 8331033184990495738]),
    (
        Plan(2**63, seed=7, resample=True),
        [1859242393435153062, 4423309535472845651, 2512118820840065949, 263585379323137428],
    ),
]
HASHES: list[tuple[Plan, str]] = [
    (Plan(100_000), "b92d4a1ea1f1bc1d"),
    (Plan(100_000, seed=1, epoch=5), "35433ce5b95e3885"),
    (Plan(100_000, block=64), "56b5c841fd5cdda2"),
    (Plan(100_000, block=1000, seed=3), "166bacd114ab1ecd"),
    (Plan(99_999, block=1000, seed=3), "03fc4ab70dd568e3"),
    (Plan(100_000, resample=True), "492762ad6acfbfa8"),
]


def digest(rows: Any) -> str:
    return hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()[:16]


@pytest.mark.parametrize(("plan", "rows"), GOLDEN)
def test_golden_rows(plan: Plan, rows: list[int]) -> None:
    """The same on any machine, Python and numpy: to change them is to break every state that users keep."""
    assert plan.rows(0, len(rows)).tolist() == rows
    assert [plan.row(p) for p in range(len(rows))] == rows


@pytest.mark.parametrize(("plan", "expected"), HASHES)
def test_golden_hashes(plan: Plan, expected: str) -> None:
    assert digest(plan.rows(0, plan.length)) == expected


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 1 << 63), st.integers(0, (1 << 64) - 1), st.integers(0, 1 << 63), st.integers(1, 1 << 63),
    st.floats(0, 1), st.booleans(),
)  # fmt: skip
def test_any_size(n: int, seed: int, epoch: int, block: int, where: float, shuffle: bool) -> None:
    plan = Plan(n, seed=seed, epoch=epoch, block=block, shuffle=shuffle)
    start = min(n - 1, int(n * where))
    stop = min(n, start + 3)
    rows = plan.rows(start, stop).tolist()
    assert [plan.row(p) for p in range(start, stop)] == rows
    assert [plan.position_of(row) for row in rows] == list(range(start, stop))
    assert all(0 <= row < n for row in rows)
    assert shuffle or rows == list(range(start, stop))
    drawn = Plan(n, seed=seed, epoch=epoch, resample=True)
    assert drawn.rows(start, stop).tolist() == [drawn.row(p) for p in range(start, stop)]


@pytest.mark.parametrize("block", [1, 2, 7, 64, 1000, 30_000])
def test_every_row_once_and_blocks_together(block: int) -> None:
    n = 30_011
    rows = Plan(n, block=block, seed=5).rows(0, n)
    assert (np.sort(rows) == np.arange(n)).all()
    runs = [len(list(run)) for _, run in itertools.groupby(rows // block)]
    assert sorted(runs, reverse=True) == [block] * (n // block) + [n % block] * (n % block > 0)


def test_seeds_epochs_and_blocks_give_different_orders() -> None:
    n = 10_000
    plans = [Plan(n, seed=s, epoch=e, block=b) for s in (0, 1, 2**63) for e in (0, 1, 2**63) for b in (1, 2, 100)]
    orders = [plan.rows(0, n) for plan in plans]
    for one, other in itertools.combinations(orders, 2):
        # rows that stay where they were: a Poisson number of mean 1 between unrelated orders
        assert (one == other).sum() <= 12
    for plan, order in zip(plans, orders, strict=True):
        assert (plan.rows(0, n) == order).all()


def excess(counts: Any) -> float:
    """Chi-square of counts that should all be equal, in standard deviations above its mean."""
    counts = np.asarray(counts, np.float64).ravel()
    expected, free = counts.mean(), counts.size - 1
    return float((((counts - expected) ** 2).sum() / expected - free) / math.sqrt(2 * free))


@pytest.mark.parametrize("n", [1_000_000, 999_983, 1 << 20])
def test_a_global_shuffle_is_uniform(n: int) -> None:
    for seed in range(3):
        rows = Plan(n, seed=seed).rows(0, n)
        place, value = np.arange(n) * 100 // n, rows * 100 // n
        # rows against positions; over all n, both sides have fixed sums, so chi-square has 99 * 99 degrees, not 9999
        assert abs(excess(np.bincount(place * 100 + value, minlength=10_000)) + 199 / math.sqrt(2 * 9999)) < 4
        for lag in (1, 2, 3, 1000, math.isqrt(n - 1) + 1):  # the last: the base of the Feistel network
            pairs = np.bincount(value[:-lag] * 100 + value[lag:], minlength=10_000)
            assert abs(excess(pairs)) < 4.5, lag
            assert abs(np.corrcoef(rows[:-lag], rows[lag:])[0, 1]) < 4 / math.sqrt(n), lag
        assert abs((rows[1:] > rows[:-1]).mean() - 0.5) < 4 / math.sqrt(12 * n)


def test_sums_of_short_batches_are_those_of_random_ones() -> None:
    """The spread of batch means: a stratified or clumped order would have less or more than random choice has."""
    rows = Plan(1_000_000, seed=9).rows(0, 1_000_000).reshape(-1, 100)
    spread = rows.mean(axis=1).std() / (1_000_000 / math.sqrt(12) / 10)
    assert abs(spread - 1) < 4 / math.sqrt(2 * 10_000)


def test_resampling_is_uniform_and_independent() -> None:
    n = 1000
    rows = np.concatenate([Plan(n, epoch=epoch, resample=True).rows(0, n) for epoch in range(1000)])
    assert abs(excess(np.bincount(rows, minlength=n))) < 4
    assert abs(excess(np.bincount(rows[:-1] // 10 * 100 + rows[1:] // 10, minlength=10_000))) < 4
    # of n draws with replacement, (1 - 1/n)**n are never drawn
    missing = 1 - np.mean([len(set(draws)) for draws in rows.reshape(1000, n).tolist()]) / n
    assert missing == pytest.approx(math.exp(-1), abs=0.002)
    other = Plan(n, seed=1, resample=True).rows(0, n)
    assert (rows[:n] == other).sum() <= 12  # a Poisson number of mean 1
    with pytest.raises(ValueError, match="no one position"):
        Plan(10, resample=True).position_of(3)


@pytest.mark.parametrize(("block", "batch"), [(1, 256), (16, 256), (32, 256), (100, 256), (256, 256), (1000, 64)])
def test_mates(block: int, batch: int) -> None:
    """The figure of quality is what a batch of the plan shows."""
    plan = Plan(1_000_000, block=block, batch_size=batch // 4, world=4)
    number = plan.rows(0, plan.steps * batch).reshape(-1, batch) // block
    together = [sum(c * (c - 1) for c in np.unique(row, return_counts=True)[1].tolist()) for row in number[:1000]]
    # with block=1 none is, but a mate is any other sample
    assert plan.mates() == pytest.approx(np.mean(together) / (batch * (batch - 1)), rel=0.02, abs=1e-12)


def test_mates_in_words() -> None:
    assert Plan(10**6, block=32, batch_size=256).mates() == pytest.approx(31 / 255)
    assert Plan(10**6, block=512, batch_size=256).mates() == 1
    assert Plan(10**6, batch_size=256).mates() == 0
    assert Plan(10**6, batch_size=256, shuffle=False).mates() == 1
    assert Plan(10**6, batch_size=256, resample=True).mates() == 0
    assert Plan(0, block=5, batch_size=256).mates() == 0


def test_ten_billion_in_microseconds_without_memory() -> None:
    for block in (1, 1000):
        plan = Plan(10**10, seed=1, block=block, batch_size=256, world=8, rank=3)
        plan.batch(0), plan.row(0)
        tracemalloc.start()
        try:
            start = time.process_time()
            rows = [plan.row(i * 99_999_989) for i in range(100)]
            taken = (time.process_time() - start) / 100
            batch = next(plan.batches(plan.steps * 9 // 10))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert len(set(rows)) == 100
        assert len(batch) == 256
        assert taken < 0.001  # 4 to 8 us; with tracemalloc, on a busy machine, more
        assert peak < 1_500_000


def test_no_samples() -> None:
    for tail in ("drop", "pad", "uneven"):
        for resample in (False, True):
            plan = Plan(0, batch_size=4, world=3, rank=1, tail=tail, resample=resample)
            assert (len(plan), plan.steps, plan.count(), list(plan.batches())) == (0, 0, 0, [])
            assert plan.rows(0, 0).tolist() == []
            assert plan.resume(plan.state_dict(0)) == (plan, 0)
            with pytest.raises(IndexError):
                plan.row(0)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"n": -1}, "n must be from 0 to 9223372036854775808, not -1"),
        ({"n": 2**63 + 1}, "n must be"),
        ({"seed": -1}, "seed must be"),
        ({"seed": 2**64}, "seed must be"),
        ({"epoch": -1}, "epoch must be"),
        ({"epoch": 2**63 + 1}, "epoch must be"),
        ({"block": 0}, "block must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"world": 0}, "world must be"),
        ({"rank": -1}, "rank must be"),
        ({"rank": 2, "world": 2}, "rank 2 is not below world 2"),
        ({"batch_size": 2**40, "world": 2**40}, "batch_size \\* world is more than 2\\*\\*63"),
        ({"tail": "cut"}, "tail is none of drop, pad, uneven: 'cut'"),
        ({"resample": True, "shuffle": False}, "resample draws at random"),
        ({"resample": True, "block": 2}, "resample draws single samples"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Plan(**{"n": 10} | arguments)


def test_bad_types() -> None:
    for arguments in ({"n": 1.5}, {"n": "10"}, {"seed": None}, {"block": 2.0}, {"batch_size": "4"}, {"data": 3}):
        with pytest.raises(TypeError):
            Plan(**{"n": 10} | arguments)
    assert Plan(np.int64(10), block=np.uint8(2)) == Plan(10, block=2)  # type: ignore[arg-type]
    for row in (-1, 10):
        with pytest.raises(IndexError, match=f"row {row} of 10"):
            Plan(10).position_of(row)


def test_import_loads_no_numpy() -> None:
    code = "import sys, wdstools.plan, wdstools.mix; p = wdstools.plan.Plan(10**9); p.row(3), p.span(5); "
    code += "print('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


KEYS = np.array([_core.hash_key(b"sample %06d" % i) for i in range(100_000)], np.uint64)


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_splits_have_their_fractions(seed: int) -> None:
    for fractions in ({"train": 0.9, "val": 0.1}, {"a": 0.5, "b": 0.3, "c": 0.2}, {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}):
        counts = np.bincount(split_of(KEYS, fractions, seed), minlength=len(fractions))
        for count, fraction in zip(counts, fractions.values(), strict=True):
            assert abs(count / len(KEYS) - fraction) < 0.005  # the issue asks for 0.01
            assert abs(count - len(KEYS) * fraction) < 4 * math.sqrt(len(KEYS) * fraction * (1 - fraction))


def test_splits_depend_on_the_key_and_the_seed_only() -> None:
    fractions = {"train": 0.8, "val": 0.2}
    whole = split_of(KEYS, fractions)
    some = np.random.default_rng(0).permutation(len(KEYS))[:777]
    assert (split_of(KEYS[some], fractions) == whole[some]).all()
    assert split_of(KEYS[:0], fractions).tolist() == []
    finer = split_of(KEYS, {"train": 0.8, "val": 0.1, "test": 0.1})
    assert ((finer == 0) == (whole == 0)).all()
    grown = split_of(KEYS, {"train": 0.9, "val": 0.1})
    assert (grown[whole == 0] == 0).all()
    both = ((split_of(KEYS, fractions, 1) == 1) & (whole == 1)).sum()
    assert abs(both - 4000) < 4 * math.sqrt(4000)  # independent
    assert (split_of(KEYS, {"all": 1.0}) == 0).all()
    assert [split_of(KEYS[i : i + 1], fractions)[0] for i in range(20)] == whole[:20].tolist()


def test_golden_split() -> None:
    fractions = {"a": 0.5, "b": 0.25, "c": 0.25}
    assert "".join("abc"[i] for i in split_of(KEYS[:40], fractions, 7)) == "bacbaccaacabaaacbaccbacbabacacbabaaccbba"
    assert mix(int(KEYS[0])) == int(mix(KEYS[:1])[0])


@pytest.mark.parametrize(
    ("fractions", "told"),
    [
        ({}, "1 to 255 numbers above 0"),
        ({str(i): 1 / 300 for i in range(300)}, "1 to 255 numbers"),
        ({"a": 0.5, "b": 0.4}, "add up to 0.9, not 1"),
        ({"a": 0.5, "b": 0.6}, "add up to 1.1, not 1"),
        ({"a": 1.0, "b": 0.0}, "above 0"),
        ({"a": 1.5, "b": -0.5}, "above 0"),
        ({"a": math.nan}, "above 0"),
    ],
)
def test_bad_fractions(fractions: dict[str, float], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        split_of(KEYS, fractions)
    with pytest.raises(ValueError, match="seed must be"):
        split_of(KEYS, {"a": 1.0}, -1)
