"""In which order samples are written, and into which split: hashes of their keys, so that neither depends on the
order of a listing, on the platform or on the version of Python."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from wdstools.convert.sources import Entry
from wdstools.errors import SourceError

_SHUFFLE, _SPLIT = b"wds-shuffle", b"wds-split"


def hasher(seed: int, purpose: bytes) -> Callable[[str], bytes]:
    """Return a function of a key: 8 bytes, BLAKE2b keyed with the decimal seed, big-endian."""
    base = hashlib.blake2b(digest_size=8, key=str(seed).encode("ascii")[:64], person=purpose)

    def digest(key: str) -> bytes:
        state = base.copy()
        state.update(key.encode("utf-8", "surrogatepass"))
        return state.digest()

    return digest


def shuffled(entries: Sequence[Entry], numbers: list[int], seed: int) -> list[int]:
    """Return the numbers of entries, sorted by key, in the order of the hashes of their keys."""
    digest = hasher(seed, _SHUFFLE)
    return sorted(numbers, key=lambda i: digest(entries[i].key))


def split(
    entries: Sequence[Entry], splits: Sequence[tuple[str, float]], seed: int, stratify: bool
) -> dict[str, list[int]]:
    """Return the numbers of the entries in each split, ascending.

    By the hash of the key: fractions hold on average, and a sample stays in its split whatever else comes or goes.
    With `stratify` they hold exactly for every group (to the sample; what is left of one group is made up by the next).
    Raises SourceError where a split would be empty.
    """
    digest = hasher(seed, _SPLIT)
    found: dict[str, list[int]] = {name: [] for name, _ in splits}
    if stratify:
        _by_group(entries, splits, digest, found)
    else:
        limits, total = [], 0.0
        for name, fraction in splits:
            total += fraction
            limits.append((int(total * 2.0**64), found[name]))
        last = limits[-1][1]
        for i, entry in enumerate(entries):
            value = int.from_bytes(digest(entry.key), "big")
            next((into for limit, into in limits if value < limit), last).append(i)
    for name, numbers in found.items():
        if not numbers:
            raise SourceError(f"split {name!r} would get none of {len(entries)} samples: give it more, or use --by")
        numbers.sort()
    return found


def _by_group(
    entries: Sequence[Entry],
    splits: Sequence[tuple[str, float]],
    digest: Callable[[str], bytes],
    found: dict[str, list[int]],
) -> None:
    groups: dict[Any, list[int]] = {}
    for i, entry in enumerate(entries):
        groups.setdefault(entry.group, []).append(i)
    owed = [0.0] * len(splits)
    for group in sorted(groups, key=lambda value: (str(type(value)), value)):
        numbers = sorted(groups[group], key=lambda i: digest(entries[i].key))
        wanted = [o + fraction * len(numbers) for o, (_, fraction) in zip(owed, splits, strict=True)]
        counts = _round(wanted, len(numbers))
        owed = [w - c for w, c in zip(wanted, counts, strict=True)]
        at = 0
        for (name, _), count in zip(splits, counts, strict=True):
            found[name] += numbers[at : at + count]
            at += count


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
