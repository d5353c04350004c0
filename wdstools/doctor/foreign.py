"""Indexes of other programs beside a shard: which format each is, since two share the name X.tar.idx."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from wdstools import urls
from wdstools.doctor.problems import Problem
from wdstools.doctor.survey import Survey
from wdstools.interop import detect, energon, lhotse

MOST = 1 << 28  # bytes of an index that is read


class Foreign(NamedTuple):
    """An index beside a shard. `kinds`: the formats that it may be; none: one that is not known, or of other data."""

    shard: str
    path: str
    kinds: frozenset[str]


def beside(survey: Survey) -> Foreign | None:
    """Return the index SHARD.idx of a local shard, if there is one."""
    path = urls.local_path(survey.url)
    if path is None or not os.path.isfile(path + ".idx"):
        return None
    if os.path.getsize(path + ".idx") > MOST:
        return Foreign(survey.url, path + ".idx", frozenset())
    with open(path + ".idx", "rb") as file:
        data = file.read()
    return Foreign(survey.url, path + ".idx", frozenset(kinds(data, survey)))


def kinds(data: bytes, survey: Survey) -> Iterator[str]:
    """Yield the formats in which these bytes are an index of the shard: "dali", "energon", "lhotse"."""
    if detect.is_dali(data):
        if _is_of(data, survey):
            yield "dali"
        return
    end = int(survey.ends[-1]) if len(survey) else 0
    if data == energon.encode(survey.starts[survey.groups], end):
        yield "energon"
    if data == lhotse.offsets(survey.starts, survey.nbytes):
        yield "lhotse"


def _is_of(data: bytes, survey: Survey) -> bool:
    """Whether a file of DALI's is of this shard: it has as many lines as it says, and begins with one of its fields."""
    head, *lines = data.split(b"\n", 2)
    if not lines or head.split()[1:] != [b"%d" % (data.count(b"\n") - 1)]:
        return False
    line = lines[0].split()
    return len(line) > 2 and line[1] in [b"%d" % offset for offset in survey.offsets[:64].tolist()]


def problems(found: Sequence[Foreign]) -> Iterator[Problem]:
    """Yield what is wrong with the foreign indexes of a set of shards."""
    for one in found:
        if not one.kinds:
            reason = (
                f"{one.path} is no index of this shard as DALI, Energon or Lhotse write it: stale, or of other data"
            )
            yield Problem("foreign-index", one.shard, reason)
    known = [one for one in found if one.kinds]
    common = frozenset.intersection(*(one.kinds for one in known)) if known else frozenset()
    if not known or common:
        energon = [one for one in known if _is_energon(one.path) and "energon" not in one.kinds]
        for one in energon:
            reason = f"{one.path} is of {_names(one.kinds)}, but .nv-meta beside it is Energon's, which reads this name"
            yield Problem("foreign-index", one.shard, reason)
        return
    counts = {kind: sum(kind in one.kinds for one in known) for one in known for kind in one.kinds}
    usual = max(counts, key=lambda kind: (counts[kind], kind))
    for one in known:
        if usual not in one.kinds:
            other = next(other for other in known if usual in other.kinds)
            reason = f"{one.path} is of {_names(one.kinds)}, but {other.path} is of {_names(other.kinds)}"
            yield Problem("foreign-index", one.shard, f"two formats under one name: {reason}")


def _is_energon(path: str) -> bool:
    return os.path.isdir(os.path.join(os.path.dirname(path), ".nv-meta"))


def _names(which: frozenset[str]) -> str:
    return " or ".join({"dali": "DALI", "energon": "Energon", "lhotse": "Lhotse"}[kind] for kind in sorted(which))
