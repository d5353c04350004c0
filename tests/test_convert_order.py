"""Orders and splits: arithmetic of keys, checked against what they promise."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from wdstools.convert import order
from wdstools.convert.entries import Entries, Entry
from wdstools.errors import SourceError
from wdstools.plan import split_of
from wdstools.samples import hash_key

KEYS = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=60, unique=True).map(sorted)
SPLITS = st.sampled_from([[0.9, 0.1], [0.5, 0.5], [0.8, 0.1, 0.1], [1.0], [1 / 3, 1 / 3, 1 / 3]]).map(
    lambda parts: [(f"s{i}", part) for i, part in enumerate(parts)]
)


def entries(keys: list[str], groups: int = 1) -> Entries:
    return Entries(Entry(key, sum(map(ord, key)) % groups, ()) for key in keys)


def split(given: Entries, splits: list[tuple[str, float]], seed: int, stratify: bool) -> dict[str, list[int]] | None:
    try:
        return {name: list(numbers) for name, numbers in order.split(given, splits, seed, stratify).items()}
    except SourceError:
        return None


@given(KEYS, st.integers(-5, 5), st.data())
def test_a_shuffle_is_a_permutation_that_only_keys_decide(keys: list[str], seed: int, data: st.DataObject) -> None:
    found = order.shuffled(entries(keys), range(len(keys)), seed)
    assert sorted(found) == list(range(len(keys)))
    fewer = sorted(data.draw(st.sets(st.sampled_from(keys), min_size=1)))
    expected = [i for i in found if keys[i] in set(fewer)]
    assert [fewer[i] for i in order.shuffled(entries(fewer), range(len(fewer)), seed)] == [keys[i] for i in expected]
    some = array("q", sorted(expected))
    assert list(order.shuffled(entries(keys), some, seed)) == expected


def test_a_shuffle_mixes_and_the_seed_matters() -> None:
    given = entries([f"{i:05d}" for i in range(1000)])
    one, two = (order.shuffled(given, range(1000), seed) for seed in (0, 1))
    assert one != two
    for found in (one, two):
        assert abs(sum(abs(i - p) for i, p in enumerate(found)) / 1000 - 333) < 40  # of a random permutation: n/3


def test_the_hash_is_what_the_text_says() -> None:
    by_hand = hashlib.blake2b("ké".encode(), digest_size=8, key=b"-7", person=b"wds-shuffle").digest()
    assert order.hasher(-7, b"wds-shuffle")("ké") == by_hand
    assert order.hasher(0, b"wds-shuffle")("\udcff") != order.hasher(0, b"wds-shuffle")("\ud800")


@given(KEYS, SPLITS, st.integers(0, 3), st.booleans())
def test_splits_are_a_partition(keys: list[str], splits: list[tuple[str, float]], seed: int, stratify: bool) -> None:
    found = split(entries(keys, 3), splits, seed, stratify)
    assume(found is not None)
    assert found is not None
    assert sorted(i for numbers in found.values() for i in numbers) == list(range(len(keys)))
    assert all(numbers == sorted(numbers) and numbers for numbers in found.values())
    assert list(found) == [name for name, _ in splits]


@given(KEYS, SPLITS, st.integers(-3, 2**70))
def test_a_split_is_that_of_the_plan(keys: list[str], splits: list[tuple[str, float]], seed: int) -> None:
    """And so of Dataset.split: whichever of the two divides samples, they fall alike."""
    found = split(entries(keys), splits, seed, False)
    assume(found is not None)
    assert found is not None
    hashes = np.array([hash_key(key) for key in keys], np.uint64)
    chosen = split_of(hashes, dict(splits), seed % 2**64)
    assert found == {name: np.flatnonzero(chosen == i).tolist() for i, (name, _) in enumerate(splits)}


def test_fractions_that_miss_one_by_a_rounding() -> None:
    given = entries([f"{i:03d}" for i in range(300)])
    found = order.split(given, [("a", 0.3333333), ("b", 0.3333333), ("c", 0.3333333)], 0, False)
    assert sum(map(len, found.values())) == 300


@given(KEYS, SPLITS, st.data())
def test_a_sample_stays_in_its_split(keys: list[str], splits: list[tuple[str, float]], data: st.DataObject) -> None:
    fewer = sorted(data.draw(st.sets(st.sampled_from(keys), min_size=1)))
    before, after = (split(entries(k), splits, 0, False) for k in (fewer, keys))
    assume(before is not None and after is not None)
    assert before is not None
    assert after is not None
    where = {keys[i]: name for name, numbers in after.items() for i in numbers}
    assert all(where[fewer[i]] == name for name, numbers in before.items() for i in numbers)


@given(KEYS, SPLITS, st.integers(1, 5))
def test_stratified_proportions_hold(keys: list[str], splits: list[tuple[str, float]], groups: int) -> None:
    given = entries(keys, groups)
    found = split(given, splits, 0, True)
    assume(found is not None)
    assert found is not None
    sizes = Counter(entry.group for entry in given)
    for name, part in splits:
        assert abs(len(found[name]) - part * len(keys)) < len(splits)  # of all
        for group, size in sizes.items():  # of each: to the sample, and what was left of the one before
            assert abs(sum(given[i].group == group for i in found[name]) - part * size) <= 2


def test_proportions_of_a_hash() -> None:
    given = entries([f"n{i}" for i in range(20_000)])
    found = order.split(given, [("train", 0.9), ("val", 0.07), ("test", 0.03)], 0, False)
    for name, wanted in (("train", 18_000), ("val", 1_400), ("test", 600)):
        assert abs(len(found[name]) - wanted) < 5 * wanted**0.5


def test_exact_proportions_where_they_can_be() -> None:
    given = Entries(Entry(f"{i:04d}", i % 4, ()) for i in range(400))
    found = order.split(given, [("train", 0.9), ("val", 0.1)], 0, True)
    assert Counter(given[i].group for i in found["val"]) == dict.fromkeys(range(4), 10)


def test_groups_of_any_kind() -> None:
    given = Entries(Entry(str(i), group, ()) for i, group in enumerate([None, 1, "1", "a"] * 5))
    assert sum(map(len, order.split(given, [("a", 0.5), ("b", 0.5)], 0, True).values())) == 20


def test_a_split_that_would_be_empty() -> None:
    with pytest.raises(SourceError, match="split 'val' would get none of 2 samples"):
        order.split(entries(["a", "b"]), [("train", 0.99), ("val", 0.01)], 0, True)
