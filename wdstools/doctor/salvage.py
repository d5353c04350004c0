"""Which samples of a shard can be saved: what each member is worth, and which members belong together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wdstools.doctor.holes import Hole, find_holes
from wdstools.doctor.survey import BLOCK, NONE, Survey
from wdstools.doctor.suspects import bad_members
from wdstools.samples import split_name

Array = np.ndarray[Any, Any]


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
    holes = find_holes(survey, fd)
    bad = bad_members(survey, holes, fd)
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
