"""What a survey of one shard says is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from wdstools.doctor.problems import Problem
from wdstools.doctor.survey import (
    BLOCK,
    CUT,
    DAMAGE,
    END,
    LITTER,
    LONE,
    PADDING,
    RESERVED,
    SHIFT,
    TRAILING,
    TRUNCATED,
    ZEROS,
    Mark,
    Survey,
)  # fmt: skip

Array = np.ndarray[Any, Any]

MOST = 100  # places of damage that are told one by one
CUT_HEADER = "truncated in a header"


def examine(survey: Survey) -> list[Problem]:
    """Return everything that one shard shows by itself, damage first."""
    found = [*_damage(survey), *_payloads(survey), *_members(survey), *_keys(survey), *_costs(survey)]
    return [problem for problem in found if problem]


def _damage(survey: Survey) -> Iterator[Problem]:
    for number, mark in enumerate(survey.marks):
        if number == MOST:
            rest = len(survey.marks) - MOST
            yield Problem("header", survey.url, f"{rest:,} more places of damage follow", mark.at, rest)
            return
        yield from _mark(survey, mark, number)


def _mark(survey: Survey, mark: Mark, number: int) -> Iterator[Problem]:
    url, lost = survey.url, mark.end - mark.start
    detail = {"from": mark.start, "to": mark.end}
    goes_on = mark.before < len(survey)
    if mark.kind == DAMAGE and mark.reason == CUT_HEADER:
        return  # the mark of the end follows
    if mark.kind == DAMAGE:
        then = f"the next member is at byte {mark.end}" if goes_on else "no member follows"
        yield Problem("header", url, f"{mark.reason}; {then};", mark.at, lost, detail=detail)
    elif mark.kind == SHIFT:
        name = survey.name(mark.before - 1)
        reason = (
            f"bytes are missing in {name!r}: the next member begins inside of it, at byte {mark.end}; its header is"
        )
        yield Problem("missing-bytes", url, reason, mark.at, detail=detail | {"member": name})
    elif mark.kind == ZEROS:
        yield Problem("zeros", url, "zeros where a member should begin", mark.at, lost, detail=detail)
    elif mark.kind == LONE:
        yield Problem("zeros", url, "lone zero block between members", mark.at, detail=detail)
    elif mark.kind == TRAILING:
        yield Problem("trailing", url, "bytes after the end-of-archive marker", mark.at, lost, detail=detail)
    elif mark.kind == TRUNCATED:
        before = survey.marks[number - 1] if number else None
        cut_header = before is not None and before.reason == CUT_HEADER and before.end == mark.at
        reason = CUT_HEADER if cut_header else mark.reason or ""
        if not reason.startswith(("truncated", "empty")):
            reason = f"truncated: {reason}"
        yield Problem("truncated", url, reason, mark.at)
    elif mark.kind == END and goes_on and not survey.is_marker(number):
        yield Problem("zeros", url, "zeros between members", mark.at, lost, detail=detail)
    elif mark.kind == END and goes_on:
        at = survey.past_marker(number)
        reason = f"another archive follows its end-of-archive marker, at byte {at}: readers stop at the marker"
        yield Problem("concatenated", url, reason, mark.at, detail=detail)


def _payloads(survey: Survey) -> Iterator[Problem]:
    for flag, kind, reason in (
        (PADDING, "payload", "the padding is not zero from its first byte on: damaged, or bytes are missing"),
        (LITTER, "padding", "the padding is not zero"),
    ):
        hits = np.flatnonzero((survey.flags & flag != 0) & (survey.flags & CUT == 0))
        kind = "padding" if survey.is_dirty else kind
        if len(hits):
            first = int(hits[0])
            more = f" and {len(hits) - 1:,} others" if len(hits) > 1 else ""
            name = survey.name(first)
            yield Problem(kind, survey.url, f"{name!r}{more}: {reason}", int(survey.headers[first]), len(hits),
                          detail={"member": name})  # fmt: skip


def _members(survey: Survey) -> Iterator[Problem]:
    if len(survey.sparse):
        first = int(survey.sparse[0])
        reason = f"sparse member, which cannot be a field: {survey.name(first)!r}"
        yield Problem("sparse", survey.url, reason, int(survey.headers[first]), len(survey.sparse))
    if bad := survey.not_text:
        reason = f"a member name that is not UTF-8 has no place in an index: {survey.name(bad[0])!r}"
        reason = reason.encode("utf-8", "backslashreplace").decode()
        yield Problem("name", survey.url, reason, int(survey.headers[bad[0]]), len(bad))
    for code, ext in enumerate(survey.exts):
        if ext in RESERVED:
            hits = np.flatnonzero(survey.codes == code)
            if len(hits):
                reason = f"a field has the reserved name {ext}"
                yield Problem("name", survey.url, reason, int(survey.headers[hits[0]]), len(hits))


def repeated_fields(survey: Survey) -> Array:
    """Return the members whose field their group has already."""
    group, codes = survey.group_of.astype(np.int64), survey.codes[survey.fields].astype(np.int64)
    order = np.lexsort((np.arange(len(group)), codes, group))
    same = (group[order][1:] == group[order][:-1]) & (codes[order][1:] == codes[order][:-1])
    return np.sort(survey.fields[order[1:][same]])


def returning_groups(survey: Survey) -> list[list[int]]:
    """Return the groups that have one key, for every key that comes back after another, in the order of the shard."""
    hashes = survey.hashes[survey.groups]
    if len(survey.distinct_hashes) == len(hashes):
        return []
    order = np.argsort(hashes, kind="stable")
    same = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    found: dict[bytes, list[int]] = {}
    for i in same.tolist():
        for group in (int(order[i]), int(order[i + 1])):
            numbers = found.setdefault(survey.raw_key(int(survey.groups[group])), [])
            if not numbers or numbers[-1] != group:
                numbers.append(group)
    return sorted(numbers for numbers in found.values() if len(numbers) > 1)


def codes_of(survey: Survey, group: int) -> list[int]:
    """Return the codes of the fields of a group."""
    begin = int(survey.firsts[group])
    end = int(survey.firsts[group + 1]) if group + 1 < len(survey.firsts) else len(survey.fields)
    return survey.codes[survey.fields[begin:end]].tolist()  # type: ignore[no-any-return]


def _keys(survey: Survey) -> Iterator[Problem]:
    twice = repeated_fields(survey)
    if len(twice):
        first = int(twice[0])
        reason = f"two members of a sample have one field: {survey.name(first)!r}"
        yield Problem("duplicate-field", survey.url, reason, int(survey.headers[first]), len(twice))
    interleaved: list[list[int]] = []
    duplicate: list[list[int]] = []
    for groups in returning_groups(survey):
        codes = [code for group in groups for code in set(codes_of(survey, group))]
        (interleaved if len(set(codes)) == len(codes) else duplicate).append(groups)
    for kind, which, reason in (
        ("interleaved", interleaved, "a key comes back after other keys: its sample is cut in two"),
        ("duplicate-key", duplicate, "two samples have one key"),
    ):
        if which:
            member = int(survey.groups[which[0][1]])
            key = survey.key(member)
            more = f", and {len(which) - 1:,} others" if len(which) > 1 else ""
            yield Problem(kind, survey.url, f"{reason}: {key!r}{more}", int(survey.headers[member]), len(which),
                          detail={"keys": [survey.key(int(survey.groups[g[0]])) for g in which[:10]]})  # fmt: skip


def _costs(survey: Survey) -> Iterator[Problem]:
    empty = survey.fields[survey.sizes[survey.fields] == 0]
    if len(empty):
        counts: dict[str, int] = {}
        for code, count in zip(*np.unique(survey.codes[empty], return_counts=True), strict=True):
            counts[survey.exts[int(code)]] = int(count)
        told = ", ".join(f"{count:,} {ext}" for ext, count in counts.items())
        first = int(empty[0])
        reason = f"empty payloads: {told}, such as {survey.name(first)!r}"
        yield Problem("empty", survey.url, reason, int(survey.headers[first]), len(empty), detail={"fields": counts})
    if survey.pax_bytes:
        share = 100 * survey.pax_bytes / max(survey.nbytes, 1)
        reason = (
            f"{survey.pax_members:,} members have PAX or GNU headers that they do not need: "
            f"{survey.pax_bytes:,} bytes to win, {share:.0f}% of the shard"
        )
        yield Problem("pax", survey.url, reason, None, survey.pax_members, detail={"bytes": survey.pax_bytes})
    if survey.nbytes % BLOCK and not survey.marks:
        reason = f"{survey.nbytes:,} bytes are no multiple of {BLOCK}: some were lost or put in behind the last member"
        yield Problem("size", survey.url, reason)


def signatures(survey: Survey) -> dict[frozenset[str], tuple[int, int]]:
    """Return how many groups have each set of fields, and the first group that has it."""
    count = len(survey.groups)
    if not count:
        return {}
    rng = np.random.default_rng(0)
    weights = rng.integers(1, 1 << 63, len(survey.exts), np.uint64, endpoint=True)
    total = np.add.reduceat(weights[survey.codes[survey.fields]], survey.firsts)
    _, first, counts = np.unique(total, return_index=True, return_counts=True)
    found: dict[frozenset[str], tuple[int, int]] = {}
    for group, n in sorted(zip(first.tolist(), counts.tolist(), strict=True)):
        exts = frozenset(survey.exts[code] for code in codes_of(survey, group))
        before = found.get(exts, (0, group))
        found[exts] = before[0] + n, before[1]
    return found
