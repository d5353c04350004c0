"""Which of several samples with one key are kept, in a repair, and under which keys."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from wdstools import _core

Array = np.ndarray[Any, Any]

KEEP = ("first", "last", "rename")


class Keys:
    """The keys of all shards. First add() says what each shard may give; then count() tells which shards must be gone
    through, to see() their samples; then choose() is asked for every sample, in order."""

    def __init__(self, keep: str | None) -> None:
        if keep is not None and keep not in KEEP:
            raise ValueError(f"keep={keep!r} is not first, last or rename")
        self.keep = keep
        self._hashes: list[Array] = []  # by shard
        self._known: Array = np.zeros(0, np.uint64)  # of all, sorted
        self._twice: set[int] = set()
        self._last: dict[bytes, tuple[int, int]] = {}  # key -> the shard and the place in it of its last sample
        self._given: set[bytes] = set()  # of those that are there more than once
        self._fresh: set[bytes] = set()

    def add(self, keys: Iterable[bytes]) -> None:
        """Note the keys of the next shard."""
        self._hashes.append(np.array([_core.hash_key(key) for key in keys], np.uint64))

    def count(self) -> list[int]:
        """Return the shards that may have keys that are there more than once."""
        every = np.concatenate(self._hashes) if self._hashes else np.zeros(0, np.uint64)
        self._known, counts = np.unique(every, return_counts=True)
        self._twice = set(self._known[counts > 1].tolist())
        return [number for number, hashes in enumerate(self._hashes) if not self._twice.isdisjoint(hashes.tolist())]

    def see(self, key: bytes, number: int, place: int) -> bool:
        """Note a sample by its shard and its place in it; false where nothing says what becomes of two with its key."""
        if _core.hash_key(key) not in self._twice:
            return True
        settled = self.keep is not None or key not in self._last
        self._last[key] = number, place
        return settled

    def choose(self, key: bytes, number: int, place: int) -> bytes | None:
        """Return the key under which a sample is written; None where it is left out."""
        if key not in self._last:  # there once
            return key
        if self.keep == "rename" and key in self._given:
            return self._rename(key)
        if self.keep == "last":
            return key if self._last[key] == (number, place) else None
        if key in self._given:
            return None
        self._given.add(key)
        return key

    def _rename(self, key: bytes) -> bytes:
        count = 2
        while (new := key + b"-%d" % count) in self._fresh or self._is_known(new):
            count += 1
        self._fresh.add(new)
        return new

    def _is_known(self, key: bytes) -> bool:
        wanted = np.uint64(_core.hash_key(key))
        at = int(np.searchsorted(self._known, wanted))
        return at < len(self._known) and bool(self._known[at] == wanted)
