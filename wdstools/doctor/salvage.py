"""Which samples of a shard can be saved: what each member is worth, and which members belong together."""

from __future__ import annotations

import bisect
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

BACK = 100  # members before zeros that are looked at
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


@dataclass
class Salvage:
    """What is left of a shard. `others`: good members that are no fields of samples."""

    survey: Survey
    samples: list[Sample]
    holes: list[Hole]
    others: list[int]
    edges: dict[int, list[Hole]]  # id(sample) -> the holes beside it

    def sets(self) -> dict[frozenset[str], int]:
        """How many samples that stand beside no hole have each set of fields."""
        found: dict[frozenset[str], int] = {}
        for sample in self.samples:
            if id(sample) not in self.edges and not sample.bad:
                fields = frozenset(sample.fields)
                found[fields] = found.get(fields, 0) + 1
        return found


@dataclass
class Known:
    """The sets of fields that samples have, how many each; what sets lack of larger ones, once it was looked up."""

    sets: dict[frozenset[str], int]
    lacks: dict[frozenset[str], str] = field(default_factory=dict)


def salvage(survey: Survey, fd: int) -> Salvage:
    """Sort the members of a shard, which `fd` reads, into samples. judge() then says which are whole."""
    holes = [*_holes(survey, fd), *_torn(survey)]
    bad = _bad_members(survey, holes, fd)
    samples = list(_assemble(survey, bad))
    of_member = {member: sample for sample in samples for member in sample.members}
    edges: dict[int, list[Hole]] = {}
    fields = survey.fields
    for hole in holes:
        at = int(np.searchsorted(fields, len(survey) if hole.after is None else hole.after))
        for place in (at - 1, at):  # the fields beside it; what is no field does not matter
            if 0 <= place < len(fields):
                sample = of_member[int(fields[place])]
                edges.setdefault(id(sample), []).append(hole)
                if place < at:
                    _read_name(sample, hole)
    regular = np.flatnonzero((survey.types == ord("f")) & (survey.codes == NONE)).tolist()
    return Salvage(survey, samples, holes, [m for m in regular if m not in bad and survey.raw_name(m)], edges)


def judge(saved: Salvage, sets: dict[frozenset[str], int]) -> None:
    """Say of the samples beside holes whether they are whole. `sets`: of fields, that samples of all shards have."""
    known = Known(sets or {frozenset(sample.fields): 1 for sample in saved.samples if len(saved.samples) > 1})
    _doubt_payloads(saved, known)
    for sample in saved.samples:
        for hole in saved.edges.get(id(sample), ()):
            if not (sample.why or sample.bad):
                sample.why = _why_not_whole(sample, hole, known)


def _why_not_whole(sample: Sample, hole: Hole, known: Known) -> str | None:
    fields = frozenset(sample.fields)
    lacks = _lacks(fields, known)
    if lacks and (hole.hard or fields not in known.sets):
        return f"it may have lost members in the damage beside it, at byte {hole.start} (others have {lacks})"
    if hole.hard and fields not in known.sets and not _is_closed(sample, hole):
        return f"it may have lost members in the damage beside it, at byte {hole.start}: none has its fields"
    return None


def _lacks(fields: frozenset[str], known: Known) -> str:
    """The fields that samples have which have all of these and more, or nothing."""
    if fields not in known.lacks:
        larger = [other for other in known.sets if other > fields]
        most = max(larger, key=lambda other: known.sets[other], default=fields)
        known.lacks[fields] = ", ".join(sorted(most - fields))
    return known.lacks[fields]


def _doubt_payloads(saved: Salvage, known: Known) -> None:
    """Where no member seems to be lost in a hole, nor would a sample have room in it, bytes were put in: most
    likely into the payload before it, which shows in its padding, if it has any."""
    survey = saved.survey
    of_member = {member: sample for sample in saved.samples for member in sample.members}
    spans = [
        int(survey.ends[sample.members[-1]] - survey.starts[sample.members[0]])
        for sample in saved.samples
        if id(sample) not in saved.edges and not sample.bad
    ]
    for hole in saved.holes:
        if hole.before is None or not hole.hard or hole.before not in of_member:
            continue
        before = of_member[hole.before]
        beside = [before] if hole.after is None else [before, of_member.get(hole.after, before)]
        whole = all(
            (fields := frozenset(sample.fields)) in known.sets and not _lacks(fields, known) for sample in beside
        )
        if not whole or hole.name or hole.start != int(survey.ends[hole.before]):
            continue
        if survey.sizes[hole.before] % BLOCK == 0 and hole.end - hole.start < min(spans, default=0):
            reason = f"bytes were put in, in it or behind it, before byte {hole.end}"
            before.bad.setdefault(hole.before, reason)


def _read_name(sample: Sample, hole: Hole) -> None:
    """What can still be read of the header behind a sample may tell that its next member is lost."""
    split = split_name(hole.name) if hole.name is not None else None
    if split is not None and _raw(split[0]) == sample.key and split[1] not in sample.fields:
        sample.why = f"its member {hole.name!r} is lost in the damage at byte {hole.start}"


def _is_closed(sample: Sample, hole: Hole) -> bool:
    """Whether what can still be read of the header behind a sample is that of another one: it ends there, then."""
    split = split_name(hole.name) if hole.name is not None and hole.before in sample.members else None
    return split is not None and _raw(split[0]) != sample.key


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _holes(survey: Survey, fd: int) -> Iterator[Hole]:
    for number, mark in enumerate(survey.marks):
        after = mark.before if mark.before < len(survey) else None
        before = mark.before - 1 if mark.before else None
        follows = survey.marks[number + 1] if number + 1 < len(survey.marks) else None
        if mark.kind == TRAILING or (mark.kind == END and after is None):
            continue  # garbage behind the last member, or a part of the hole that the zeros before it begin
        if mark.kind == END:
            trailed = follows is not None and follows.kind == TRAILING and follows.start == mark.end
            end = follows.end if trailed and follows else mark.end
            hard = trailed or not survey.is_marker(number)
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


def _bad_members(survey: Survey, holes: list[Hole], fd: int) -> dict[int, str]:
    bad = dict.fromkeys(np.flatnonzero(survey.flags & PADDING != 0).tolist(), REASONS[PADDING])
    bad |= dict.fromkeys(np.flatnonzero(survey.flags & CUT != 0).tolist(), REASONS[CUT])
    bad |= {int(m): "it is sparse" for m in survey.fields[survey.types[survey.fields] == ord("S")]}
    for hole in holes:
        if hole.before is not None and (reason := _spoils(survey, hole, fd)):
            bad.setdefault(hole.before, reason)
        if hole.after is not None and (reason := _spoils_next(survey, hole, holes)):
            bad.setdefault(hole.after, reason)
    tars = _Tars(survey, fd, holes, bad)
    for hole in holes:
        for segment in tars.inner(hole):
            bad.update(dict.fromkeys(segment, "it may be of a tar that is the payload of a lost member"))
    cut = all(mark.kind == TRUNCATED and mark.before == len(survey) for mark in survey.marks)
    if survey.nbytes % BLOCK and cut and len(survey) and _ends_short(survey, fd):
        bad.setdefault(len(survey) - 1, "bytes are missing in it or behind it: the shard is no multiple of 512 bytes")
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


class _Tars:
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
