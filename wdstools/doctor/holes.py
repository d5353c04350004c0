"""Where a shard has no members: what was damaged, is missing or was put in, and the members beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from wdstools.doctor.survey import (
    BLOCK,
    CUT,
    DAMAGE,
    END,
    LONE,
    PADDING,
    SHIFT,
    TRAILING,
    TRUNCATED,
    ZEROS,
    Mark,
    Survey,
)  # fmt: skip

REASONS = {
    CUT: "its payload is not all there",
    PADDING: "its payload does not end where its header says: damaged, or bytes are missing",
}


@dataclass(frozen=True)
class Hole:
    """Bytes [start, end) that are no members. `before`, `after`: the members beside it, or None; `name`: of the member
    whose header was there, as far as it can be read; `hard`: whether members may have been lost in it; `sure`: it is
    the end of an archive beyond doubt."""

    start: int
    end: int
    before: int | None
    after: int | None
    name: str | None
    hard: bool
    reason: str
    sure: bool = False


def find_holes(survey: Survey, fd: int) -> list[Hole]:
    """Return the holes of a shard, which `fd` reads, in order; then the payloads that do not end where they should."""
    return [*_between(survey, fd), *_torn(survey)]


def _between(survey: Survey, fd: int) -> Iterator[Hole]:
    for number, mark in enumerate(survey.marks):
        after = mark.before if mark.before < len(survey) else None
        before = mark.before - 1 if mark.before else None
        if mark.kind == TRAILING or (mark.kind == END and after is None):
            continue  # garbage behind the last member, or a part of the hole that the zeros before it begin
        if mark.kind == END:
            end = survey.past_marker(number)
            hard = end > mark.end or not survey.is_marker(number)
            reason = "zeros" if hard else "an end-of-archive marker"
            sure = not hard and mark.end - mark.start > 2 * BLOCK
            yield Hole(mark.start, end, before, after, None, hard, reason, sure)
        elif mark.kind == TRUNCATED and number and survey.marks[number - 1].end == mark.start:
            continue  # the hole reaches to the end
        else:
            name = _legible(fd, mark.start, min(mark.end, survey.nbytes)) if mark.kind == DAMAGE else None
            end = _last_byte(fd, mark.start, mark.end) if mark.kind == DAMAGE and after is None else mark.end
            yield Hole(mark.start, end, before, after, name, mark.kind != LONE, _reason(mark))


def _torn(survey: Survey) -> Iterator[Hole]:
    """Where a payload ends otherwise than its header says, though a header follows: members may be lost in it."""
    for member in () if survey.is_dirty else np.flatnonzero(survey.flags & PADDING != 0).tolist():
        at = int(survey.ends[member])
        after = member + 1 if member + 1 < len(survey) else None
        yield Hole(at, at, member, after, None, True, REASONS[PADDING])


def _reason(mark: Mark) -> str:
    told = {
        SHIFT: "bytes are missing",
        ZEROS: "zeros",
        TRAILING: "bytes after an end-of-archive marker",
        LONE: "a lone zero block",
    }
    return told.get(mark.kind) or mark.reason or "damage"


def _last_byte(fd: int, start: int, end: int) -> int:
    """Where the blocks that are not zero end, if they do in the last MiB."""
    begin = max(start, end - (1 << 20))
    data = os.pread(fd, end - begin, begin).rstrip(b"\0")
    return min(end, start - (start - begin - len(data)) // BLOCK * BLOCK) if data else begin


def _legible(fd: int, start: int, end: int) -> str | None:
    """The name in a header whose checksum is wrong, if it looks like one."""
    block = os.pread(fd, min(BLOCK, max(end - start, 0)), start)
    raw = block[:100].partition(b"\0")[0]
    if len(raw) == len(block) or not raw or not raw.isascii() or (len(block) > 265 and b"ustar" not in block[257:265]):
        return None
    name = raw.decode()
    return name if name.isprintable() and not block[len(raw) : 100].strip(b"\0") else None
