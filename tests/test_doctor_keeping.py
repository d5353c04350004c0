"""Which of several samples with one key are kept: against a naive model that has them all in memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wdstools.doctor.keeping import KEEP, Keys

Shards = list[list[tuple[bytes, bool]]]
SHARDS = st.lists(
    st.lists(st.tuples(st.sampled_from([b"a", b"b", b"a-2", b"a-2-2", b"b-3"]), st.booleans())), max_size=4
)


def seen(keys: Keys, shards: Shards) -> bool:
    """Go through the shards as a repair does. True: of each sample it is known what becomes of it."""
    for shard in shards:
        keys.add(key for key, _ in shard)
    known = [
        keys.see(key, number, place)
        for number in keys.count()
        for place, (key, wanted) in enumerate(shards[number])
        if wanted
    ]
    return all(known)


@given(SHARDS, st.sampled_from(KEEP))
def test_against_a_model(shards: Shards, keep: str) -> None:
    """Of each sample: its key, and whether it turns out to be good enough to be written."""
    keys = Keys(keep)
    assert seen(keys, shards)
    samples = [(n, p, key) for n, shard in enumerate(shards) for p, (key, wanted) in enumerate(shard) if wanted]
    got = [(key, keys.choose(key, n, p)) for n, p, key in samples]
    there = {key for shard in shards for key, _ in shard}
    if keep == "rename":
        written = [new for _, new in got]
        assert len(set(written)) == len(samples)
        firsts = set()
        for key, new in got:
            assert new is not None
            assert new == key if key not in firsts else (new.startswith(key + b"-") and new not in there)
            firsts.add(key)
        return
    kept = samples if keep == "first" else samples[::-1]
    wanted = {key: (n, p) for n, p, key in reversed(kept)}
    assert got == [(key, key if wanted[key] == (n, p) else None) for n, p, key in samples]


@given(SHARDS)
def test_without_a_choice_two_with_one_key_are_told(shards: Shards) -> None:
    keys = [key for shard in shards for key, wanted in shard if wanted]
    assert seen(Keys(None), shards) == (len(set(keys)) == len(keys))


def test_another_choice() -> None:
    with pytest.raises(ValueError, match="keep='any' is not first, last or rename"):
        Keys("any")
