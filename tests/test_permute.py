"""Computed orders: bijections against lists, uniformity by fixed draws, the same numbers on every machine."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wdstools.permute import GOLDEN, LIMIT, MASK, Blocks, Permutation, block_share, draw, mix, words

WORD = st.integers(0, MASK)
SIZE = st.one_of(st.integers(1, 70), st.integers(1, 1200), st.integers(1, LIMIT))


def array(values: Any) -> Any:
    return np.array(list(values), np.uint64)


def excess(counts: Any, expected: float) -> float:
    """Chi-square of counts that should all be equal, in standard deviations above its mean."""
    counts = np.asarray(counts, np.float64)
    free = counts.size - 1
    return float((((counts - expected) ** 2).sum() / expected - free) / math.sqrt(2 * free))


def test_mix_is_that_of_splitmix64() -> None:
    outputs = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert [mix(1234567 + i * GOLDEN & MASK) for i in range(1, 6)] == outputs  # of the public-domain splitmix64.c
    assert mix(1234567 + np.arange(1, 6, dtype=np.uint64) * np.uint64(GOLDEN)).tolist() == outputs


def test_words() -> None:
    assert words(2, "a")[0] == words(1, "a")[0] != words(1, "b")[0]
    assert words(1, "golden") == [16506168709980768649]


@settings(max_examples=150, deadline=None)
@given(SIZE, WORD, st.lists(WORD, min_size=1, max_size=5))
@example(LIMIT, 0, [0, LIMIT - 1])
@example((1 << 62) + 1, 1, [0, 1 << 62])
def test_permutation_and_its_inverse(n: int, tweak: int, some: list[int]) -> None:
    permutation = Permutation(n, "test")
    assert n <= permutation.a * permutation.b < n + permutation.a
    numbers = [x % n for x in some]
    images = [permutation.one(x, tweak) for x in numbers]
    assert all(0 <= image < n for image in images)
    assert [permutation.inverse(image, tweak) for image in images] == numbers
    assert permutation.many(array(numbers), tweak).tolist() == images
    tweaks = [tweak ^ i for i in range(len(numbers))]
    assert permutation.many(array(numbers), array(tweaks)).tolist() == list(map(permutation.one, numbers, tweaks))


@pytest.mark.parametrize("n", [*range(1, 40), 63, 64, 65, 1000, 1023, 1024, 1025, 4096, 10_007])
def test_every_number_once(n: int) -> None:
    for tweak in (0, 1, MASK):
        assert sorted(Permutation(n, "test").many(array(range(n)), tweak).tolist()) == list(range(n))


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_all_orders_of_few_are_equally_likely(n: int) -> None:
    trials = 100 * math.factorial(n) if n > 4 else 20_000
    tweaks = mix(np.arange(trials, dtype=np.uint64))
    permutation = Permutation(n, "test")
    orders = np.stack([permutation.many(np.full(trials, x, np.uint64), tweaks) for x in range(n)])
    found = Counter(map(tuple, orders.T.tolist()))
    counts = [found[order] for order in itertools.permutations(range(n))]
    assert excess(counts, trials / len(counts)) < 4


@pytest.mark.parametrize("n", [30, 64, 66, 100, 1024])
def test_pairs_are_uniform(n: int) -> None:
    """Also pairs that share a half of the Feistel network, which few rounds betray (12.7 at n = 64 and 6 rounds)."""
    trials = 400_000
    tweaks = mix(np.arange(trials, dtype=np.uint64) + np.uint64(77))
    permutation = Permutation(n, "test")
    first, neighbour, below = (
        permutation.many(np.full(trials, x, np.uint64), tweaks).astype(np.int64) for x in (0, 1, permutation.b)
    )
    for one, other in ((first, neighbour), (first, below), (neighbour, below)):
        if n <= 100:
            counts = np.bincount(one * n + other, minlength=n * n).reshape(n, n)
            assert (np.diag(counts) == 0).all()
            counts = counts[~np.eye(n, dtype=bool)]
        else:
            counts = np.bincount((other - one) % n, minlength=n)[1:]
        assert excess(counts, trials / counts.size) < 4


@given(st.lists(WORD, min_size=1, max_size=4), st.integers(1, LIMIT), WORD)
@settings(max_examples=100, deadline=None)
def test_draw(positions: list[int], n: int, tweak: int) -> None:
    expected = [mix(tweak + (p + 1) * GOLDEN & MASK) * n >> 64 for p in positions]
    assert [draw(p, n, tweak) for p in positions] == expected
    assert draw(array(positions), n, tweak).tolist() == expected
    assert all(0 <= x < n for x in expected)


def naive(blocks: Blocks, epoch: int) -> list[int]:
    """The order as lists: blocks in their slots, each shuffled, one behind the other."""
    tweak = mix(epoch ^ blocks.key)
    order = []
    for slot in range(blocks.count):
        number = slot if blocks.outer is None else blocks.outer.one(slot, tweak)
        block = list(range(blocks.n))[number * blocks.block :][: blocks.block]
        inner = blocks.inner if len(block) == blocks.block else blocks.last
        assert inner is not None
        order += [block[inner.one(i, mix(tweak ^ number))] for i in range(len(block))]
    return order


BLOCKS = st.integers(1, 300).flatmap(
    lambda n: st.builds(Blocks, st.just(n), st.integers(1, n + 2), st.integers(0, 99), st.booleans())
)


@settings(max_examples=150, deadline=None)
@given(BLOCKS, st.integers(0, LIMIT))
def test_blocks_against_lists(blocks: Blocks, epoch: int) -> None:
    order = naive(blocks, epoch)
    assert sorted(order) == list(range(blocks.n))
    everything = array(range(blocks.n))
    assert blocks.rows(everything, epoch).tolist() == order
    assert [blocks.row(p, epoch) for p in range(blocks.n)] == order
    assert [blocks.position(row, epoch) for row in order] == list(range(blocks.n))
    epochs = array([epoch, epoch + 1] * blocks.n)[: blocks.n]
    other = naive(blocks, epoch + 1)
    assert blocks.rows(everything, epochs).tolist() == [(order, other)[p % 2][p] for p in range(blocks.n)]


def test_the_short_block_goes_everywhere() -> None:
    blocks = Blocks(25, 10, 0)
    starts = Counter(min(blocks.position(row, epoch) for row in range(20, 25)) for epoch in range(3000))
    assert starts.keys() == {0, 10, 20}
    assert excess(list(starts.values()), 1000) < 4


@pytest.mark.parametrize(("n", "block"), [(100, 1), (100, 10), (103, 10), (100, 99), (64, 64), (37, 5)])
def test_a_number_stands_anywhere(n: int, block: int) -> None:
    """Over epochs, every number is equally often at a position: chi-square of the first, a middle and the last."""
    epochs = np.arange(40_000, dtype=np.uint64)
    for position in (0, n // 2, n - 1):
        rows = Blocks(n, block, 3).rows(np.full(len(epochs), position, np.uint64), epochs)
        counts = np.bincount(rows.astype(np.int64), minlength=n)
        short = n % block
        if not short:
            assert excess(counts, len(epochs) / n) < 4
        elif position == 0:  # the short block is first as often as another: its numbers share that among fewer
            whole, rest = counts[: n - short], counts[n - short :]
            slots = -(-n // block)
            assert excess(whole, len(epochs) / slots / block) < 4
            assert short == 1 or excess(rest, len(epochs) / slots / short) < 4


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40))
def test_block_share_against_counting(block: int, batch: int) -> None:
    together = pairs = 0
    for step in range(math.lcm(block, batch) // batch):
        number = [p // block for p in range(step * batch, (step + 1) * batch)]
        together += sum(a == b for a, b in itertools.combinations(number, 2))
        pairs += batch * (batch - 1) // 2
    assert block_share(block, batch) == pytest.approx(together / max(1, pairs), abs=1e-12)


def test_orders_of_the_python_generator_pass_the_same_test() -> None:
    """excess() itself: a true shuffle passes, a shuffle of one swap too many at the same place does not."""
    generator = random.Random(1)
    good = Counter(tuple(generator.sample(range(4), 4)) for _ in range(20_000))
    bad = Counter(
        tuple(sorted(generator.sample(range(4), 4), key=lambda x: x * generator.random())) for _ in range(20_000)
    )
    orders = list(itertools.permutations(range(4)))
    assert excess([good[o] for o in orders], 20_000 / 24) < 4 < 50 < excess([bad[o] for o in orders], 20_000 / 24)
