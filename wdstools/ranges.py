"""Which reads serve a batch of byte ranges: sorted, neighbours merged, long ones split, and cut up again. No I/O.

A range is (start, end): bytes from the start of the object, end exclusive.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import TypeAlias

GAP = 128 * 1024  # bytes between two ranges that cost less to read than a request of their own
MOST = 8 * 1024 * 1024  # bytes of one read

Range: TypeAlias = tuple[int, int]
Buffer: TypeAlias = bytes | memoryview


def plan(ranges: Iterable[Range], gap: int = GAP, most: int = MOST) -> list[Range]:
    """Return the reads that cover all ranges: sorted, disjoint, none empty, none longer than `most`.

    Ranges that overlap, touch or lie at most `gap` bytes apart share a read while it stays within `most`; a range
    that does not fit is continued in the next read, which then starts where the first ends. No byte is read twice.
    ValueError: a range that starts below zero or ends before it starts.
    """
    reads: list[Range] = []
    first, last = 0, -1  # the read that is being put together; none yet
    for start, end in sorted(ranges):
        if not 0 <= start <= end:
            raise ValueError(f"({start}, {end}) is not a range of bytes")
        if end <= max(start, last):
            continue  # empty, or covered
        if last < 0 or start > last + gap or (start >= last and end - first > most):
            if last >= 0:
                reads.append((first, last))
            first = last = start
        while end - first > most:
            reads.append((first, first + most))
            first += most
        last = end
    if last >= 0:
        reads.append((first, last))
    return reads


def scatter(ranges: Sequence[Range], reads: Sequence[Range], bodies: Sequence[Buffer]) -> list[Buffer]:
    """Return the bytes of every range, in the order of `ranges`, out of the bodies of the reads of `plan`.

    They are views of the bodies: one that is kept keeps its body (at most `most` bytes) alive. A range that spans
    several reads is copied. An empty range is b"".
    """
    starts = [start for start, _ in reads]
    views = [memoryview(body) for body in bodies]
    found: list[Buffer] = []
    for start, end in ranges:
        if start == end:
            found.append(b"")
            continue
        i = bisect_right(starts, start) - 1
        at = start - starts[i]
        piece = views[i][at : at + end - start]
        if len(piece) == end - start:
            found.append(piece)
            continue
        pieces = [piece]
        while starts[i] + len(views[i]) < end:
            i += 1
            pieces.append(views[i][: end - starts[i]])
        found.append(b"".join(pieces))
    return found
