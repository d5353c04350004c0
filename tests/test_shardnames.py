"""Patterns for names of shards: the files that a pattern has named, whatever else is in them and beside them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wdstools.errors import DestinationError
from wdstools.shardnames import check_pattern, existing_shards

TEXT = st.text(st.sampled_from("a.-[]*?{}()^$+\\ é"), max_size=5)


@given(TEXT, TEXT, st.sampled_from(["%d", "%06d", "%02d"]), st.sets(st.integers(0, 2_000_000), max_size=4))
def test_what_a_pattern_has_named_is_found(head: str, tail: str, number: str, numbers: set[int]) -> None:
    tail += ".tar"
    with tempfile.TemporaryDirectory() as folder:
        pattern = f"{folder}/{head}{number}{tail}"
        check_pattern(pattern)
        mine = {pattern % i for i in numbers}
        others = {f"{folder}/{head}{what}{tail}" for what in ("", "1x", "-1", "1 ", "one")}
        for path in (mine | others | {f"{folder}/other"}) - {f"{folder}/."}:
            Path(path).touch()
        assert existing_shards(pattern) == sorted(mine)
        assert set(existing_shards(f"{folder}/{head}%d{tail}")) == mine, "of any width"


@pytest.mark.parametrize("pattern", ["a.tar", "a-%d-%d.tar", "%d/a.tar", "a-%s.tar", "s3://b/a-%d.tar", "a-%d.tar.gz"])
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(DestinationError):
        check_pattern(pattern)
