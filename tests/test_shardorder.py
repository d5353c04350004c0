"""Orders of shards: dealt exactly, drawn evenly, the same everywhere; what a shuffle buffer does to an order."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wdstools.shardorder import ShardOrder, shuffled, tweak

SEEDS = st.integers(0, 2**64 - 1)
EPOCHS = st.integers(0, 2**63 - 1)


def epoch_of(order: ShardOrder, epoch: int, reader: int, readers: int) -> list[int]:
    return [order.shard(k, epoch, reader, readers) for k in range(order.own(reader, readers))]


@given(st.integers(1, 60), st.integers(1, 12), SEEDS, EPOCHS, st.booleans())
def test_every_shard_has_one_reader(n: int, readers: int, seed: int, epoch: int, shuffle: bool) -> None:
    order = ShardOrder(n=n, seed=seed, shuffle=shuffle, allow_empty=True)
    found = [epoch_of(order, epoch, reader, readers) for reader in range(readers)]
    assert sorted(itertools.chain(*found)) == list(range(n))
    sizes = [len(shards) for shards in found]
    assert max(sizes) - min(sizes) <= 1
    assert found == [epoch_of(order, epoch, reader, readers) for reader in range(readers)]
    alone = epoch_of(order, epoch, 0, 1)
    assert found == [alone[reader::readers] for reader in range(readers)]  # as webdataset's splitters deal


@given(st.integers(1, 30), st.integers(1, 6), SEEDS)
def test_unsplit_readers_have_orders_of_their_own(n: int, readers: int, seed: int) -> None:
    order = ShardOrder(n=n, seed=seed, split=False)
    found = [epoch_of(order, 0, reader, readers) for reader in range(readers)]
    assert all(sorted(shards) == list(range(n)) for shards in found)
    if n > 20:
        assert len(set(map(tuple, found))) == readers


def test_seeds_epochs_and_rounds_differ() -> None:
    orders = {
        (seed, epoch, again): tuple(ShardOrder(n=40, seed=seed).shard(40 * again + k, epoch, 0, 1) for k in range(40))
        for seed in range(3) for epoch in range(3) for again in range(3)
    }  # fmt: skip
    assert len(set(orders.values())) == 27
    assert all(sorted(order) == list(range(40)) for order in orders.values())


def test_golden_orders() -> None:
    assert epoch_of(ShardOrder(n=12, seed=7), 3, 0, 2) == [7, 8, 6, 5, 0, 2]
    drawn = ShardOrder(n=12, seed=7, resample=True, epoch_length=10)
    assert [drawn.shard(k, 3, 1, 2) for k in range(8)] == [7, 6, 6, 6, 6, 6, 5, 8]
    assert list(shuffled(range(12), 4, tweak("x", 1))) == [0, 2, 3, 5, 6, 8, 4, 9, 7, 11, 1, 10]


def test_draws_are_even() -> None:
    order = ShardOrder(n=10, resample=True, epoch_length=1)
    for reader in (0, 1):
        counts = Counter(order.shard(k, 0, reader, 2) for k in range(10_000))
        assert set(counts) == set(range(10))
        assert all(abs(count - 1000) < 5 * 30 for count in counts.values())


@given(st.integers(0, 200), st.integers(1, 50), SEEDS)
def test_a_buffer_permutes(n: int, size: int, seed: int) -> None:
    found = list(shuffled(range(n), size, seed))
    assert sorted(found) == list(range(n))
    assert found == list(shuffled(range(n), size, seed))
    assert all(sample < place + size for place, sample in enumerate(found))  # nothing comes before it was read


def test_a_buffer_as_large_as_the_data_is_a_uniform_shuffle() -> None:
    counts = Counter(tuple(shuffled(range(4), 4, tweak("t", epoch))) for epoch in range(24_000))
    assert len(counts) == 24
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 60  # chi-square, 23 degrees of freedom


def test_a_buffer_moves_samples_by_its_size() -> None:
    moved = [abs(place - sample) for place, sample in enumerate(shuffled(range(10_000), 100, 5))]
    assert 50 < sum(moved) / len(moved) < 200


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"n": 0}, "no shards"),
        ({"seed": -1}, "seed must be from 0"),
        ({"epoch_length": -1}, "epoch_length must be from 0"),
        ({"resample": True}, "say how many samples an epoch has"),
        ({"resample": True, "shuffle": False, "epoch_length": 4}, "does not go with shuffle_shards=False"),
    ],
)
def test_bad_arguments(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ShardOrder(**{"n": 3} | options)


def test_too_few_shards() -> None:
    told = r"3 shards for 4 readers \(ranks times workers\) leave some without: .* or say allow_empty=True"
    with pytest.raises(ValueError, match=told):
        ShardOrder(n=3).own(0, 4)
    with pytest.raises(ValueError, match=r"start fewer workers$"):
        ShardOrder(n=3, epoch_length=8, allow_empty=True).own(0, 4)  # it could never be filled
    assert [ShardOrder(n=3, allow_empty=True).own(reader, 4) for reader in range(4)] == [1, 1, 1, 0]
    assert ShardOrder(n=3, resample=True, epoch_length=8).own(3, 4) == 3


def test_parts() -> None:
    assert ShardOrder(n=3).part(4) is None
    assert ShardOrder(n=3, epoch_length=12).part(4) == 3
    with pytest.raises(ValueError, match=r"epoch_length=14 is not the same for each of 4 readers .*: 12 and 16 would"):
        ShardOrder(n=3, epoch_length=14).part(4)
