"""Which members of a shard are not to be trusted: those that are damaged, and those that damage beside them touches."""

from __future__ import annotations

import os

import numpy as np

from wdstools.doctor.holes import REASONS, Hole
from wdstools.doctor.innertars import Tars
from wdstools.doctor.survey import BLOCK, CUT, LITTER, PADDING, RESERVED, TRUNCATED, Survey

ZERO_RUN = 16  # bytes at the end of a payload that tell nothing if they are zero, as is what follows


def bad_members(survey: Survey, holes: list[Hole], fd: int) -> dict[int, str]:
    """Return the members of a shard that are not to be trusted, each with the reason."""
    bad = dict.fromkeys(np.flatnonzero(survey.flags & PADDING != 0).tolist(), REASONS[PADDING])
    bad |= dict.fromkeys(np.flatnonzero(survey.flags & CUT != 0).tolist(), REASONS[CUT])
    bad |= dict.fromkeys(survey.sparse.tolist(), "it is sparse")
    for hole in holes:
        if hole.before is not None and (reason := _spoils(survey, hole, fd)):
            bad.setdefault(hole.before, reason)
        if hole.after is not None and (reason := _spoils_next(survey, hole, holes)):
            bad.setdefault(hole.after, reason)
    tars = Tars(survey, fd, holes, bad)
    for hole in holes:
        for segment in tars.inner(hole):
            bad.update(dict.fromkeys(segment, "it may be of a tar that is the payload of a lost member"))
    cut = all(mark.kind == TRUNCATED and mark.before == len(survey) for mark in survey.marks)
    if survey.nbytes % BLOCK and cut and len(survey) and _ends_short(survey, fd):
        bad.setdefault(len(survey) - 1, "bytes are missing in it or behind it: the shard is no multiple of 512 bytes")
    for member in survey.fields.tolist():
        if survey.ext(member) in RESERVED:
            bad[member] = f"its field has the reserved name {survey.ext(member)}"
    return bad | dict.fromkeys(survey.not_text, "its name is not UTF-8")


def _spoils(survey: Survey, hole: Hole, fd: int) -> str | None:
    """Why the member before a hole may be damaged, too."""
    member = hole.before or 0
    size, padding = int(survey.sizes[member]), int(survey.ends[member] - survey.offsets[member] - survey.sizes[member])
    if hole.start != int(survey.ends[member]) or not size or hole.sure:
        return None
    doubtful = not padding or survey.flags[member] & LITTER
    ended = hole.after is None and not any(mark.kind == TRUNCATED for mark in survey.marks[-1:])
    end = survey.nbytes if ended else hole.end
    if doubtful and hole.hard and (ended or hole.after is not None) and (end - hole.start) % BLOCK:
        return f"bytes were lost or put in, in it or behind it, before byte {hole.end}"
    if survey.flags[member] & LITTER:
        return None
    here = os.pread(fd, ZERO_RUN, hole.start)
    last = os.pread(fd, min(ZERO_RUN, size), int(survey.offsets[member]) + size - min(ZERO_RUN, size))
    if here and not any(here) and not any(last) and len(last) == ZERO_RUN:
        return f"it ends in zeros, as the damage at byte {hole.start} begins: it may have been overwritten, too"
    return None


def _spoils_next(survey: Survey, hole: Hole, holes: list[Hole]) -> str | None:
    """Why the member behind a hole may be another one than its header says: an extension header before it is lost."""
    member = hole.after or 0
    if not hole.hard or survey.starts[member] != survey.headers[member] or hole.end - hole.start < 2 * BLOCK:
        return None
    name = survey.raw_name(member)
    if len(name) in (99, 100) or b"?" in name:
        return "its name may go on in a header that is lost"
    if not survey.sizes[member] and any(other.hard and other.before == member for other in holes):
        return "its size may be in a header that is lost"
    return None


def _ends_short(survey: Survey, fd: int) -> bool:
    """Whether the last payload ends in zeros that may be those of the end marker, moved up by lost bytes."""
    size = int(survey.sizes[-1])
    n = min(-survey.nbytes % BLOCK, ZERO_RUN, size)
    return n > 0 and not any(os.pread(fd, n, int(survey.offsets[-1]) + size - n))
