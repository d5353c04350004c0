"""Trying again: a listing that breaks off goes on behind what came, and gives up where nothing comes any more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wdstools.errors import StoreError
from wdstools.retrying import Retries, Transient

QUICK = Retries(attempts=4, first=0.0, most=0.0)
NAMES = [f"{i:02d}" for i in range(20)]


@given(st.lists(st.integers(0, 6), max_size=30))
def test_a_listing_goes_on_where_it_broke(breaks: list[int]) -> None:
    """`breaks`: how many names each answer brings before it breaks off; after these, answers are whole."""
    left, barren, asked = iter(breaks), 0, []

    def begin(last: str) -> Iterator[tuple[str, int]]:
        asked.append(last)
        names = [name for name in NAMES if name > last]
        stop = next(left, len(names) + 1)
        for name in names[:stop]:
            yield name, int(name)
        if stop <= len(names):
            raise Transient(StoreError(f"broke {len(asked)}"))

    found, done = [], 0
    for n in breaks:  # the model: as many attempts as there may be, in a row, that bring nothing
        if done + n > len(NAMES):
            break
        done, barren = done + n, (barren + 1 if not n else 1)
        if barren >= QUICK.attempts:
            with pytest.raises(StoreError, match="broke"):
                found += QUICK.resume(begin)
            return
    found += QUICK.resume(begin)
    assert found == [(name, int(name)) for name in NAMES]
    assert asked[0] == ""
