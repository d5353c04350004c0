"""In which order samples are written, and into which split: hashes of their keys, so that neither depends on the
order of a listing, on the platform or on the version of Python. Splits are those of Dataset.split (plan.split_of)."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from wdstools.convert.entries import Entries
from wdstools.errors import SourceError
from wdstools.permute import MASK
from wdstools.plan import split_of, stirred
from wdstools.samples import hash_key

Numbers: TypeAlias = "range | array[int]"
"""Of entries, in some order."""

_SHUFFLE = b"wds-shuffle"


def hasher(seed: int, purpose: bytes) -> Callable[[str], bytes]:
    """Return a function of a key: 8 bytes, BLAKE2b keyed with the decimal seed, big-endian."""
    base = hashlib.blake2b(digest_size=8, key=str(seed).encode("ascii")[:64], person=purpose)

    def digest(key: str) -> bytes:
        state = base.copy()
        state.update(key.encode("utf-8", "surrogatepass"))
        return state.digest()

    return digest


def shuffled(entries: Entries, numbers: Numbers, seed: int) -> Numbers:
    """Return the numbers of entries, ascending, in the order of the hashes of their keys."""
    hashes = _hashes(entries, numbers, hasher(seed, _SHUFFLE))
    return _at(numbers, np.argsort(hashes, kind="stable"))


def _hashes(entries: Entries, numbers: Numbers, digest: Callable[[str], bytes]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """The hashes of the keys of some entries."""
    found = entries if isinstance(numbers, range) else map(entries.__getitem__, numbers)
    hashes = bytearray()
    for entry in found:
        hashes += digest(entry.key)
    return np.frombuffer(hashes, ">u8").astype(np.uint64)


def _at(numbers: Numbers, places: np.ndarray[Any, Any]) -> array[int]:
    """The numbers at these places, 8 bytes each."""
    taken = places + numbers.start if isinstance(numbers, range) else np.frombuffer(numbers, np.int64)[places]
    return array("q", taken.astype(np.int64, copy=False).tobytes())


def split(entries: Entries, splits: Sequence[tuple[str, float]], seed: int, stratify: bool) -> dict[str, array[int]]:
    """Return the numbers of the entries in each split, ascending.

    As plan.split_of() decides by the hash of the key and the seed (modulo 2**64): fractions hold on average, and a
    sample stays in its split whatever else comes or goes. Fractions that miss 1 by a rounding are scaled to it.
    With `stratify` they hold exactly for every group (to the sample; what is left of one group is made up by the next).
    Raises SourceError where a split would be empty.
    """
    keys = np.fromiter((hash_key(entry.key) for entry in entries), np.uint64, len(entries))
    if stratify:
        chosen = _by_group(entries, splits, stirred(keys, seed & MASK))
    else:
        total = sum(part for _, part in splits)
        scale = 1.0 if abs(total - 1) < 1e-9 else 1 / total
        chosen = split_of(keys, {name: part * scale for name, part in splits}, seed & MASK)
    found = {}
    for i, (name, _) in enumerate(splits):
        found[name] = _at(range(len(entries)), np.flatnonzero(chosen == i))
        if not found[name]:
            raise SourceError(f"split {name!r} would get none of {len(entries)} samples: give it more, or use --by")
    return found


def _by_group(
    entries: Entries, splits: Sequence[tuple[str, float]], hashes: np.ndarray[Any, np.dtype[np.uint64]]
) -> np.ndarray[Any, np.dtype[Any]]:
    """The number of the split of each entry."""
    groups: dict[Any, array[int]] = {}
    for i, entry in enumerate(entries):
        groups.setdefault(entry.group, array("q")).append(i)
    chosen = np.zeros(len(entries), np.int64)
    owed = [0.0] * len(splits)
    for group in sorted(groups, key=lambda value: (str(type(value)), value)):
        numbers = np.asarray(groups[group])
        numbers = numbers[np.argsort(hashes[numbers], kind="stable")]
        wanted = [o + fraction * len(numbers) for o, (_, fraction) in zip(owed, splits, strict=True)]
        counts = _round(wanted, len(numbers))
        owed = [w - c for w, c in zip(wanted, counts, strict=True)]
        chosen[numbers] = np.repeat(np.arange(len(splits)), counts)
    return chosen


def _round(wanted: list[float], total: int) -> list[int]:
    """Whole numbers near the wanted ones whose sum is the total: the largest remainders are rounded up."""
    counts = [max(0, int(w + 1e-9)) for w in wanted]
    while sum(counts) < total:
        worst = max(range(len(wanted)), key=lambda i: wanted[i] - counts[i])
        counts[worst] += 1
    while sum(counts) > total:
        worst = min((i for i in range(len(wanted)) if counts[i]), key=lambda i: wanted[i] - counts[i])
        counts[worst] -= 1
    return counts
