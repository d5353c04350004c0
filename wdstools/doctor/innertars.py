"""Members that may be of a tar within the shard: of a payload whose header is lost."""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterator

import numpy as np

from wdstools.doctor.holes import Hole
from wdstools.doctor.survey import BLOCK, NONE, Survey

BACK = 100  # members before zeros that are looked at
LOOKED_INTO = 1000  # payloads that are looked into for tars


class Tars:
    """Which of the first members of a shard hold tars, and which members may be those of a tar whose header is lost."""

    def __init__(self, survey: Survey, fd: int, holes: list[Hole], bad: dict[int, str]) -> None:
        self._survey, self._fd = survey, fd
        some = np.flatnonzero(survey.sizes >= 2 * BLOCK)[:LOOKED_INTO].tolist()
        self._holders = [member for member in some if member not in bad and _holds_tar(survey, member, fd)]
        self._begins = sorted({hole.after for hole in holes if hole.after is not None})

    def inner(self, hole: Hole) -> Iterator[range]:
        """Members beside damage that may be of such a tar: where other payloads of the shard are tars, and theirs are
        not. Those behind it, up to the next hole; and those before zeros that are no end marker."""
        if hole.end == hole.start or not self._holders:
            return
        behind = front = range(0)
        if hole.after is not None and not hole.sure:
            next_begin = bisect.bisect_right(self._begins, hole.after)
            stop = self._begins[next_begin] if next_begin < len(self._begins) else len(self._survey)
            behind = range(hole.after, stop)
        if any(_holds_tar(self._survey, member, self._fd) for member in behind[:LOOKED_INTO]):
            behind = range(0)
        if hole.before is not None and not any(os.pread(self._fd, BLOCK, hole.start)):
            front = self._front(hole.before)
        if sum(self._count(some) for some in (behind, front)) < len(self._holders):
            yield from (behind, front)

    def _front(self, last: int) -> range:
        """The members up to `last` behind those of the last sample that holds a tar."""
        first = last
        while first >= 0 and last - first < BACK and not _holds_tar(self._survey, first, self._fd):
            first -= 1
        if first < 0 or last - first >= BACK:
            return range(0)
        same = [member for member in range(first + 1, last + 1) if _same_key(self._survey, member, first)]
        return range(max([first, *same]) + 1, last + 1)

    def _count(self, some: range) -> int:
        return bisect.bisect_left(self._holders, some.stop) - bisect.bisect_left(self._holders, some.start)


def _same_key(survey: Survey, member: int, other: int) -> bool:
    if NONE in (survey.codes[member], survey.codes[other]):
        return False
    return survey.raw_key(member) == survey.raw_key(other)


def _holds_tar(survey: Survey, member: int, fd: int) -> bool:
    if int(survey.sizes[member]) < BLOCK:
        return False
    block = os.pread(fd, BLOCK, int(survey.offsets[member]))
    digits = block[148:156].strip(b" \0")
    if len(block) < BLOCK or not digits or digits.strip(b"01234567"):
        return False
    return int(digits, 8) == sum(block) - sum(block[148:156]) + 8 * 32
