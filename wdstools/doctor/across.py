"""What only shows when shards are compared: keys that several have, samples with other fields than most."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from wdstools.doctor import survey as surveys
from wdstools.doctor.problems import Problem
from wdstools.errors import WdsError
from wdstools.storage import open_source

Array = np.ndarray[Any, Any]

NAMED = 8  # shards whose keys in other shards are told by an example
SETS_MOST = 1000  # of fields, that are told apart


class Digest(NamedTuple):
    """What is kept of a shard to compare it with others. `hashes`: of its keys, each once, sorted; `sets`: how many
    samples have each set of fields, and the key of one of them."""

    url: str
    hashes: Array
    sets: dict[frozenset[str], tuple[int, str]]


def compare(digests: Sequence[Digest], run_pipes: bool) -> Iterator[Problem]:
    """Yield what is wrong with shards together."""
    yield from _duplicates(digests, run_pipes)
    yield from _fields(digests)


def _duplicates(digests: Sequence[Digest], run_pipes: bool) -> Iterator[Problem]:
    hashes = np.concatenate([d.hashes for d in digests]) if digests else np.zeros(0, np.uint64)
    shard = np.repeat(np.arange(len(digests)), [len(d.hashes) for d in digests])
    order = np.argsort(hashes, kind="stable")
    again = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    if not len(again):
        return
    later, earlier = shard[order[again + 1]], shard[order[again]]
    named = 0
    for number in np.unique(later).tolist():
        hits = np.flatnonzero(later == number)
        first = int(earlier[hits[0]])
        count, example = len(hits), ""
        if named < NAMED and (run_pipes or not any(digests[i].url.startswith("pipe:") for i in (number, first))):
            named += 1
            wanted = int(hashes[order[again[hits[0]]]])
            keys = [_key_of(digests[i].url, wanted) for i in (number, first)]
            if keys[0] != keys[1]:  # two keys with one hash
                count -= 1
            else:
                example = f", such as {keys[0]!r} in {digests[first].url}"
        if count:
            reason = f"{count:,} keys are in earlier shards, too{example}"
            yield Problem("duplicate-across", digests[number].url, reason, None, count)


def _key_of(url: str, wanted: int) -> str | None:
    with contextlib.suppress(WdsError, OSError):  # it was readable a moment ago; without it there is no example
        with open_source(url) as source:
            survey = surveys.take(source)
        hits = np.flatnonzero(survey.hashes[survey.groups] == np.uint64(wanted))
        if len(hits):
            return survey.key(int(survey.groups[hits[0]]))
    return None


def _fields(digests: Sequence[Digest]) -> Iterator[Problem]:
    total: dict[frozenset[str], int] = {}
    for digest in digests:
        for fields, (count, _) in digest.sets.items():
            if fields in total or len(total) < SETS_MOST:
                total[fields] = total.get(fields, 0) + count
    if len(total) < 2:
        return
    usual = max(total, key=lambda fields: (total[fields], len(fields), sorted(fields)))
    for digest in digests:
        other = {fields: told for fields, told in digest.sets.items() if fields != usual}
        if not other:
            continue
        lacks: dict[str, int] = {}
        more: dict[str, int] = {}
        for fields, (count, _) in other.items():
            for name in usual - fields:
                lacks[name] = lacks.get(name, 0) + count
            for name in fields - usual:
                more[name] = more.get(name, 0) + count
        parts = [f"{n:,} lack {name}" for name, n in sorted(lacks.items())][:5]
        parts += [f"{n:,} have {name}" for name, n in sorted(more.items())][:5]
        count = sum(n for n, _ in other.values())
        example = next(iter(other.values()))[1]
        reason = (
            f"{count:,} samples have other fields than most ({', '.join(sorted(usual))}): "
            f"{', '.join(parts)}; such as {example!r}"
        )
        yield Problem("fields", digest.url, reason, None, count, detail={"lack": lacks, "more": more})
