"""Which samples of a shard can be saved: what each member is worth, and which members belong together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wdstools.doctor.examine import RESERVED
from wdstools.doctor.survey import (
    BLOCK,
    CUT,
    DAMAGE,
    END,
    LITTER,
    LONE,
    NONE,
    PADDING,
    SHIFT,
    TRAILING,
    TRUNCATED,
    ZEROS,
    Mark,
    Survey,
)  # fmt: skip
from wdstools.samples import split_name

Array = np.ndarray[Any, Any]

HARD = (DAMAGE, SHIFT, ZEROS, TRUNCATED, TRAILING)  # marks beside which members may have been lost
LOOKED_INTO = 1000  # payloads that are looked into for tars
ZERO_RUN = 16  # bytes at the end of a payload that tell nothing if they are zero, as is what follows
REASONS = {
    CUT: "its payload is not all there",
    PADDING: "its payload does not end where its header says: damaged, or bytes are missing",
}


@dataclass
class Sample:
    """The members of a sample, in the order of the shard. `bad`: those that are damaged, with the reason; `why`: what
    else speaks against it being whole, or None."""

    key: bytes
    members: list[int] = field(default_factory=list)
    fields: set[str] = field(default_factory=set)
    bad: dict[int, str] = field(default_factory=dict)
    why: str | None = None

    @property
    def good(self) -> list[int]:
        return [member for member in self.members if member not in self.bad]


@dataclass(frozen=True)
class Hole:
    """Bytes [start, end) that are no members. `before`, `after`: the members beside it, or None; `name`: of the member
    whose header was there, as far as it can be read; `hard`: whether members may have been lost in it."""

    start: int
    end: int
    before: int | None
    after: int | None
    name: str | None
    hard: bool
    reason: str


@dataclass
class Salvage:
    """What is left of a shard. `others`: good members that are no fields of samples."""

    survey: Survey
    samples: list[Sample]
    holes: list[Hole]
    others: list[int]
    edges: dict[int, Hole]  # id(sample) -> a hole beside it

    def sets(self) -> dict[frozenset[str], int]:
        """How many samples that stand beside no hole have each set of fields."""
        found: dict[frozenset[str], int] = {}
        for sample in self.samples:
            if id(sample) not in self.edges and not sample.bad:
                fields = frozenset(sample.fields)
                found[fields] = found.get(fields, 0) + 1
        return found


def salvage(survey: Survey, fd: int) -> Salvage:
    """Sort the members of a shard, which `fd` reads, into samples. judge() then says which are whole."""
    holes = list(_holes(survey, fd))
    bad = _bad_members(survey, holes, fd)
    samples = list(_assemble(survey, bad))
    of_member = {member: sample for sample in samples for member in sample.members}
    edges: dict[int, Hole] = {}
    fields = survey.fields
    for hole in holes:
        at = int(np.searchsorted(fields, len(survey) if hole.after is None else hole.after))
        for place in (at - 1, at):  # the fields beside it; what is no field does not matter
            if 0 <= place < len(fields):
                sample = of_member[int(fields[place])]
                if id(sample) not in edges or hole.hard:
                    edges[id(sample)] = hole
                _read_name(sample, hole, place < at)
    regular = np.flatnonzero((survey.types == ord("f")) & (survey.codes == NONE)).tolist()
    return Salvage(survey, samples, holes, [member for member in regular if member not in bad], edges)


def judge(saved: Salvage, sets: dict[frozenset[str], int]) -> None:
    """Say of the samples beside holes whether they are whole. `sets`: of fields, that samples of all shards have."""
    known = sets or {frozenset(sample.fields): 1 for sample in saved.samples}
    for sample in saved.samples:
        hole = saved.edges.get(id(sample))
        if hole is None or sample.why or sample.bad or _is_bounded(sample, hole):
            continue
        fields = frozenset(sample.fields)
        larger = [other for other in known if other > fields]
        if larger and (hole.hard or fields not in known):
            lacks = ", ".join(sorted(max(larger, key=lambda other: known[other]) - fields))
            sample.why = f"it may have lost members in the damage beside it, at byte {hole.start} (others have {lacks})"
        elif hole.hard and fields not in known:
            sample.why = f"it may have lost members in the damage beside it, at byte {hole.start}: none has its fields"


def _is_bounded(sample: Sample, hole: Hole) -> bool:
    """No header fits in there."""
    return hole.before is not None and hole.after is not None and hole.end - hole.start < BLOCK


def _read_name(sample: Sample, hole: Hole, before: bool) -> None:
    """What can still be read of the header behind a sample tells whether its next member is lost."""
    if not before or hole.name is None:
        return
    split = split_name(hole.name)
    if (
        split is not None
        and split[0].encode("utf-8", "surrogateescape") == sample.key
        and split[1] not in sample.fields
    ):
        sample.why = f"its member {hole.name!r} is lost in the damage at byte {hole.start}"


def _holes(survey: Survey, fd: int) -> Iterator[Hole]:
    for number, mark in enumerate(survey.marks):
        after = mark.before if mark.before < len(survey) else None
        before = mark.before - 1 if mark.before else None
        follows = survey.marks[number + 1] if number + 1 < len(survey.marks) else None
        if mark.kind == END and (follows is None or follows.kind != TRAILING or follows.start != mark.end):
            if after is not None:
                yield Hole(mark.start, mark.end, before, after, None, False, "an end-of-archive marker")
        elif mark.kind == END:
            continue  # what trails it is the hole
        elif mark.kind == TRAILING and after is None:
            continue  # garbage behind the last member
        elif mark.kind == TRUNCATED and number and survey.marks[number - 1].end == mark.start:
            continue  # the hole reaches to the end
        else:
            name = _legible(fd, mark.start, min(mark.end, survey.nbytes)) if mark.kind == DAMAGE else None
            yield Hole(mark.start, mark.end, before, after, name, mark.kind != LONE, _reason(mark))


def _reason(mark: Mark) -> str:
    told = {
        SHIFT: "bytes are missing",
        ZEROS: "zeros",
        TRAILING: "bytes after an end-of-archive marker",
        LONE: "a lone zero block",
    }
    return told.get(mark.kind) or mark.reason or "damage"


def _legible(fd: int, start: int, end: int) -> str | None:
    """The name in a header whose checksum is wrong, if it looks like one."""
    block = os.pread(fd, min(BLOCK, max(end - start, 0)), start)
    raw = block[:100].partition(b"\0")[0]
    if len(block) < BLOCK or not raw or b"ustar" not in block[257:265] or not raw.isascii():
        return None
    name = raw.decode()
    return name if name.isprintable() and not block[len(raw) : 100].strip(b"\0") else None


def _bad_members(survey: Survey, holes: list[Hole], fd: int) -> dict[int, str]:
    bad = dict.fromkeys(np.flatnonzero(survey.flags & PADDING != 0).tolist(), REASONS[PADDING])
    bad |= dict.fromkeys(np.flatnonzero(survey.flags & CUT != 0).tolist(), REASONS[CUT])
    bad |= {int(m): "it is sparse" for m in survey.fields[survey.types[survey.fields] == ord("S")]}
    for hole in holes:
        if hole.before is not None and (reason := _spoils(survey, hole, fd)):
            bad.setdefault(hole.before, reason)
        if hole.after is not None and (reason := _spoils_next(survey, hole, holes)):
            bad.setdefault(hole.after, reason)
    for number, mark in enumerate(survey.marks):
        if mark.kind == DAMAGE and (segment := _inner(survey, number, bad, fd)):
            bad.update(dict.fromkeys(segment, "it may be of a tar that is the payload of a lost member"))
    for member in survey.fields.tolist():
        if survey.ext(member) in RESERVED:
            bad[member] = f"its field has the reserved name {survey.ext(member)}"
    try:
        survey.names.decode()
    except UnicodeDecodeError:
        for member in survey.fields.tolist():
            try:
                survey.raw_name(member).decode()
            except UnicodeDecodeError:
                bad[member] = "its name is not UTF-8"
    return bad


def _spoils(survey: Survey, hole: Hole, fd: int) -> str | None:
    """Why the member before a hole may be damaged, too."""
    member = hole.before or 0
    size, padding = int(survey.sizes[member]), int(survey.ends[member] - survey.offsets[member] - survey.sizes[member])
    if not hole.hard or hole.start != int(survey.ends[member]) or not size or survey.flags[member] & LITTER:
        return None
    if not padding and hole.after is not None and (hole.end - hole.start) % BLOCK:
        return f"bytes were lost or put in, in it or behind it, before byte {hole.end}"
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


def _inner(survey: Survey, number: int, bad: dict[int, str], fd: int) -> range | None:
    """The members from damage to the next mark, where other payloads of the shard are tars and none of theirs is: they
    may be those of a tar whose own header is lost."""
    mark = survey.marks[number]
    stop = next((other.before for other in survey.marks[number + 1 :]), len(survey))
    segment = range(mark.before, stop)
    if not segment or any(_holds_tar(survey, member, fd) for member in segment[:LOOKED_INTO]):
        return None
    outside = [m for m in range(min(len(survey), 4 * LOOKED_INTO)) if m not in segment and m not in bad]
    return segment if any(_holds_tar(survey, member, fd) for member in outside[:LOOKED_INTO]) else None


def _holds_tar(survey: Survey, member: int, fd: int) -> bool:
    if int(survey.sizes[member]) < BLOCK:
        return False
    block = os.pread(fd, BLOCK, int(survey.offsets[member]))
    digits = block[148:156].strip(b" \0")
    if len(block) < BLOCK or not digits or digits.strip(b"01234567"):
        return False
    return int(digits, 8) == sum(block) - sum(block[148:156]) + 8 * 32


def _assemble(survey: Survey, bad: dict[int, str]) -> Iterator[Sample]:
    """Put members of one key together: a field that a sample has already begins another sample of that key."""
    found: dict[bytes, Sample] = {}
    samples: list[Sample] = []
    for member in survey.fields.tolist():
        key, ext = survey.raw_key(member), survey.ext(member)
        sample = found.get(key)
        if sample is None or ext in sample.fields:
            sample = found[key] = Sample(key)
            samples.append(sample)
        sample.members.append(member)
        sample.fields.add(ext)
        if member in bad:
            sample.bad[member] = bad[member]
    return iter(samples)
