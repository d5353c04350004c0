"""Mixtures: the line of sources against lists, counts and places both ways, sources read exactly, epochs that go on."""

from __future__ import annotations

import hashlib
import itertools
import math
import time
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wdstools.mix import Line, Mix, Source, parts_of
from wdstools.permute import Permutation, mix
from wdstools.plan import Plan

PARTS = st.lists(st.integers(1, 30), min_size=1, max_size=9)


def array(values: Any) -> Any:
    return np.array(list(values), np.uint64)


def laid_out(parts: list[int], first: int = 0) -> list[int]:
    """One cycle of a line as a list: two lists merged along a rounded straight line, and so on down."""
    if len(parts) == 1:
        return [first] * parts[0]
    middle = len(parts) // 2
    left, right = laid_out(parts[:middle], first), laid_out(parts[middle:], first + middle)
    cycle: list[int] = []
    taken = 0
    for m in range(1, sum(parts) + 1):
        due = math.floor(Fraction(m * len(left), len(left) + len(right)) + Fraction(1, 2))
        cycle.append(left[taken] if due > taken else right[m - 1 - taken])
        taken = due
    return cycle


@settings(max_examples=150, deadline=None)
@given(PARTS)
def test_line_against_lists(parts: list[int]) -> None:
    line = Line(parts)
    order = laid_out(parts) * 3
    assert Counter(order) == {i: 3 * part for i, part in enumerate(parts)}
    sources, occurrences = line.many(array(range(len(order))))
    assert sources.tolist() == order
    counts = [0] * len(parts)
    bound = (1 + math.log2(len(parts))) / 2
    for p, source in enumerate(order):
        assert [line.count(i, p) for i in range(len(parts))] == counts
        assert all(abs(counts[i] - p * part / line.total) <= bound for i, part in enumerate(parts))
        assert line.one(p) == (source, counts[source]) == (source, occurrences[p])
        assert line.place(source, counts[source]) == p
        counts[source] += 1


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=12), st.lists(st.integers(0, 1 << 62), min_size=1, max_size=9)
)
def test_line_far_out(weights: list[float], positions: list[int]) -> None:
    parts = parts_of(weights)
    line = Line(parts)
    assert sum(parts) <= 1 << 31
    sources, occurrences = line.many(array(positions))
    for p, source, occurrence in zip(positions, sources.tolist(), occurrences.tolist(), strict=True):
        assert line.one(p) == (source, occurrence)
        assert line.place(source, occurrence) == p
        assert line.count(source, p) == occurrence
        assert line.count(source, p + 1) == occurrence + 1
        assert sum(line.count(i, p) for i in range(len(parts))) == p


@pytest.mark.parametrize(
    ("weights", "parts"),
    [
        ([1], (1,)),
        ([0.7, 0.3], (7, 3)),
        ([2, 4, 6], (1, 2, 3)),
        ([0.5, 0.25, 0.125], (4, 2, 1)),
        ([1e-3, 1], (1, 1000)),
        ([1e9, 1], (10**9, 1)),
        ([Fraction(1, 3), Fraction(1, 7)], (7, 3)),
        ([np.float32(0.7), np.float64(0.3)], (7, 3)),
        ([1, 2**31], (1, 2**31 - 1)),
        ([1e-30, 1, 1], (1, 2**30 - 1, 2**30)),
    ],
)
def test_parts(weights: list[float], parts: tuple[int, ...]) -> None:
    assert parts_of(weights) == parts


@given(st.lists(st.floats(1e-3, 1), min_size=1, max_size=20))
@settings(max_examples=100, deadline=None)
def test_parts_are_near_the_weights(weights: list[float]) -> None:
    parts = parts_of(weights)
    for part, weight in zip(parts, weights, strict=True):
        assert part / sum(parts) == pytest.approx(weight / sum(weights), abs=len(parts) * 2.0**-31)


@pytest.mark.parametrize("weight", [0, -1, math.inf, math.nan])
def test_bad_weights(weight: float) -> None:
    with pytest.raises(ValueError, match="weights must be finite numbers above 0"):
        Mix([(Plan(3), 1), (Plan(3), weight)])


def epochs_of(plan: Plan, offset: int) -> Iterator[int]:
    """The rows of a source, epoch after epoch of its own."""
    for epoch in itertools.count(plan.epoch):
        yield from (offset + row for row in plan.with_epoch(epoch).rows(0, plan.n).tolist())


def orders(mixture: Mix, epochs: int) -> list[list[int]]:
    """The epochs of a mixture as lists: sources drawn one by one along the line, then windows shuffled."""
    cycle = laid_out(list(mixture.line.parts))
    streams = [epochs_of(s.plan, o) for s, o in zip(mixture.sources, mixture.offsets, strict=False)]
    found = []
    for epoch in range(epochs):
        straight = [next(streams[cycle[p % len(cycle)]]) for p in range(mixture.length)]
        if mixture.shuffle:
            shuffled: list[int] = []
            for first in range(0, mixture.length, mixture.window):
                window = straight[first : first + mixture.window]
                blocks = mixture._windows
                inner = (
                    blocks.inner
                    if len(window) == blocks.block
                    else Permutation(len(window), f"inner mix {mixture.seed}")
                )
                tweak = mix(mix(epoch ^ blocks.key) ^ first // blocks.block)
                shuffled += [window[inner.one(i, tweak)] for i in range(len(window))]
            straight = shuffled
        found.append(straight)
    return found


@st.composite
def mixtures(draw: Any) -> Mix:
    sources = []
    for i in range(draw(st.integers(1, 4))):
        n = draw(st.integers(1, 25))
        shuffle, block = draw(st.booleans()), draw(st.sampled_from([1, 3, 4, 30]))
        sources.append(
            (Plan(n, seed=i, shuffle=shuffle, block=block, epoch=draw(st.integers(0, 3))), draw(st.integers(1, 9)))
        )
    length = draw(st.one_of(st.integers(1, 150), st.sampled_from(["first", "all"])))
    return Mix(
        sources,
        epoch_length=length,
        shuffle=draw(st.booleans()),
        window=draw(st.integers(1, 70)),
        seed=draw(st.integers(0, 9)),
    )


@settings(max_examples=60, deadline=None)
@given(mixtures())
def test_mixture_against_lists(mixture: Mix) -> None:
    for epoch, order in enumerate(orders(mixture, 4)):
        this = mixture.with_epoch(epoch)
        assert this.rows(0, this.length).tolist() == order
        assert [this.row(p) for p in range(this.length)] == order
        sources, rows = this.locate(np.array(order, np.int64))
        assert Counter(sources.tolist()) == {i: c for i, c in enumerate(this.counts) if c}
        assert [this.offsets[s] + r for s, r in zip(sources.tolist(), rows.tolist(), strict=True)] == order


@settings(max_examples=150, deadline=None)
@given(mixtures())
def test_lengths(mixture: Mix) -> None:
    """first: no sample twice, and one position more would need one; all: every sample, and one less would not do."""
    sizes = [source.plan.n for source in mixture.sources]

    def counts(length: int) -> list[int]:
        return [mixture.line.count(i, length) for i in range(len(sizes))]

    first = Mix(mixture.sources, epoch_length="first")
    order = first.rows(0, first.length).tolist()
    assert len(set(order)) == len(order)
    assert any(c > n for c, n in zip(counts(first.length + 1), sizes, strict=True))
    whole = Mix(mixture.sources, epoch_length="all")
    assert set(whole.rows(0, whole.length).tolist()) == set(range(sum(sizes)))
    assert any(c < n for c, n in zip(counts(whole.length - 1), sizes, strict=True))


def test_a_source_is_read_exactly_over_epochs_of_any_length() -> None:
    mixture = Mix([(Plan(70), 0.7), (Plan(9, block=2), 0.3)], epoch_length=31, seed=3)
    rows = np.concatenate([mixture.with_epoch(epoch).rows(0, 31) for epoch in range(100)])
    sources, inside = mixture.locate(rows)
    for number, n in ((0, 70), (1, 9)):
        counts = np.bincount(inside[sources == number], minlength=n)
        assert counts.max() - counts.min() <= 1


def test_composition_of_batches() -> None:
    """Whole windows have the composition of the line; ranks that take turns do not see one source each."""
    mixture = Mix([(Plan(10**6), 1), (Plan(10**6), 1), (Plan(10**6), 2)], batch_size=128, seed=1)
    for rows in itertools.islice(mixture.batches(), 50):
        assert np.bincount(mixture.locate(rows)[0]).tolist() == [32, 32, 64]
    two = Mix([(Plan(10**6), 1), (Plan(10**6), 1)], world=2)
    first = np.concatenate(list(itertools.islice(two.batches(), 1000)))
    assert abs(int((first >= 10**6).sum()) - 500) < 4 * math.sqrt(250)
    straight = np.concatenate(list(itertools.islice(Mix(two.sources, world=2, shuffle=False).batches(), 1000)))
    assert len(set((straight >= 10**6).tolist())) == 1


def test_windows_are_shuffled_in_their_own_way_in_every_epoch() -> None:
    mixture = Mix([(Plan(1000, shuffle=False), 1), (Plan(1000, shuffle=False), 1)], epoch_length=1000)
    orders = [mixture.with_epoch(e).locate(mixture.with_epoch(e).rows(0, 1000))[0] for e in range(3)]
    orders.append(Mix(mixture.sources, epoch_length=1000, seed=1).rows(0, 1000) // 1000)
    for one, other in itertools.combinations(orders, 2):
        assert 400 < (one == other).sum() < 600


def test_golden_mixture() -> None:
    mixture = Mix({"a": (Plan(100, seed=1), 0.7), "b": (Plan(10, block=3), 0.3)}, epoch_length="all", seed=5, epoch=2)
    assert (mixture.length, mixture.counts, mixture.offsets) == (143, (100, 43), (0, 100, 110))
    assert mixture.rows(0, 12).tolist() == [61, 106, 108, 102, 32, 69, 51, 50, 70, 100, 28, 107]
    large = Mix([(Plan(10**9), 1 / 3), (Plan(10**5, block=64), 0.1), (Plan(7), 1e-4)], epoch_length=10**6)
    assert hashlib.sha256(large.rows(0, 100_000).astype("<i8").tobytes()).hexdigest()[:16] == "3831805239017a1b"


def test_many_sources_and_billions_of_samples() -> None:
    mixture = Mix([(Plan(10**10 + i, seed=i), 0.001 + i / 7) for i in range(64)], batch_size=256)
    start = time.process_time()
    rows = [mixture.row(i * 99_999_989) for i in range(100)]
    assert (time.process_time() - start) / 100 < 0.001  # 15 us
    assert rows == [int(mixture.rows(i * 99_999_989, i * 99_999_989 + 1)[0]) for i in range(100)]
    counts = np.bincount(mixture.locate(mixture.rows(10**9, 10**9 + 10**5))[0], minlength=64)
    for count, part in zip(counts, mixture.line.parts, strict=True):
        # two ends, each at most a window of 64 shuffled positions and 3.5 off
        assert abs(count - 10**5 * part / mixture.line.total) < 7 + 64


def test_sources() -> None:
    mixture = Mix([(Plan(5), 1), (Plan(6), 2)])
    assert mixture.sources == (Source(Plan(5), 1, "0"), Source(Plan(6), 2, "1"))
    assert Mix({"x": (Plan(5), 1)}).with_epoch(3).with_rank(0, 1).sources[0].name == "x"
    assert Mix(mixture.sources) == mixture


@pytest.mark.parametrize(
    ("sources", "error", "told"),
    [
        ([], ValueError, "no sources"),
        ({}, ValueError, "no sources"),
        ([(Plan(0), 1)], ValueError, "source '0' has no samples"),
        ([(Plan(2**63), 1), (Plan(1), 1)], ValueError, "more than 2\\*\\*63 samples together"),
        ([Source(Plan(3), 1, "x"), Source(Plan(4), 1, "x")], ValueError, "two sources have one name"),
        ([Plan(3)], TypeError, "source '0' must be \\(Plan, weight\\)"),
        ({Plan(3): 1}, TypeError, "must be \\(Plan, weight\\)"),
        ([(3, 1)], TypeError, "must be \\(Plan, weight\\)"),
        ({3: (Plan(3), 1)}, TypeError, "name of a source must be a string"),
    ],
)
def test_bad_sources(sources: Any, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        Mix(sources)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"epoch_length": -1}, "epoch_length must be from 0"),
        ({"epoch_length": "longest"}, "a number, 'first' or 'all', not 'longest'"),
        ({"window": 0}, "window must be"),
        ({"seed": -1}, "seed must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"epoch_length": "all"}, "an epoch would have .* more than 2\\*\\*63"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Mix([(Plan(2**62), 1), (Plan(1), 100)], **arguments)


def test_an_empty_epoch() -> None:
    mixture = Mix([(Plan(3), 1)], epoch_length=0, tail="uneven")
    assert (mixture.steps, mixture.count(), list(mixture.batches())) == (0, 0, [])
