"""What `shardsum -l` and `wds-index info` tell of shards: counts, fields and their sizes, gaps, state of the index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from wdstools import build, sets, urls
from wdstools.columns import VERSION, take_fields
from wdstools.errors import NotFoundError, WdsError
from wdstools.index import Index
from wdstools.sets import ShardSet, State
from wdstools.shardtable import canonical


class FieldCount(NamedTuple):
    """How many samples have a field, and the bytes of its payloads in all."""

    samples: int
    nbytes: int

    @property
    def mean(self) -> float:
        """Bytes of one payload."""
        return self.nbytes / self.samples if self.samples else 0.0


@dataclass
class Counts:
    """What is in some shards. `nbytes`: of the shards, headers included; `fields`: by name."""

    shards: int = 0
    samples: int = 0
    members: int = 0
    nbytes: int = 0
    fields: dict[str, FieldCount] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        found = {name: getattr(self, name) for name in ("shards", "samples", "members", "nbytes")}
        fields = {name: f._asdict() | {"mean": round(f.mean, 1)} for name, f in self.fields.items()}
        return found | {"fields": fields}


@dataclass
class Summary:
    """One set of shards. `counts`: None where a shard could not be read, for the `error`; `counted`: what the counts
    come from, "index", or "headers" where there is no index of these shards as they are."""

    patterns: list[str]
    missing: list[str]
    index: str
    state: State
    counts: Counts | None = None
    counted: str = "index"
    error: WdsError | None = None

    def to_json(self) -> dict[str, Any]:
        s = self.state
        index: dict[str, Any] = {"path": self.index, "state": s.kind}
        if s.kind == "stale":
            index |= {"changed": s.changed, "new": s.new, "gone": s.gone}
        if s.reason:
            index["reason"] = s.reason
        found: dict[str, Any] = {"patterns": self.patterns, "missing": self.missing, "index": index}
        if self.counts is not None:
            found |= self.counts.to_json() | {"counted": self.counted}
        return found | ({"error": str(self.error)} if self.error else {})


def count(index: Index, wanted: Sequence[int] | None = None) -> Counts:
    """Count what an index has. `wanted`: numbers of shards, by default all. Raises IndexFileError."""
    index.validate()
    s = index.shards
    numbers = range(len(s)) if wanted is None else sorted(set(wanted))
    totals = [sum(column[i] for i in numbers) for column in (s.nsamples, s.nmembers, s.nbytes)]
    found = Counts(len(numbers), totals[0], totals[1], totals[2])
    chosen = np.zeros(len(s) + 1, bool)
    chosen[list(numbers)] = True
    shard = index.table.column("shard").to_numpy()
    by_name: dict[str, list[int]] = {}
    for chunk in take_fields(index.table):
        rows = slice(chunk.first, chunk.first + len(chunk.ends))
        per_row = np.diff(chunk.ends, prepend=0)
        mine = np.repeat(chosen[shard[rows]], per_row)
        codes, nbytes = chunk.codes[mine], chunk.places[2][mine]
        for code in np.unique(codes).tolist():
            hits = codes == code
            total = by_name.setdefault(chunk.exts[code], [0, 0])
            total[0] += int(hits.sum())
            total[1] += int(nbytes[hits].sum())
    found.fields = {name: FieldCount(*by_name[name]) for name in sorted(by_name)}
    return found


def summarise(shard_set: ShardSet, *, progress: Callable[[int], None] = lambda nbytes: None) -> Summary:
    """Summarise a set of shards, from its index where that is fresh, else from their headers. Nothing is written.

    A broken shard is told in `error`.
    """
    index, state = sets.load_index(shard_set.index)
    if index is not None:
        state = sets.state(index, shard_set.shards)
    found = Summary(shard_set.patterns, urls.missing(shard_set.shards), shard_set.index, state)
    try:
        if index is not None and state.kind == "fresh":
            try:
                found.counts = count(index, shard_numbers(index, shard_set.shards))
                return found
            except WdsError as error:
                found.state, index = State("unreadable", reason=str(error)), None
        found.counted = "headers"
        found.counts = count(build.build(shard_set.shards, previous=index, progress=progress))
    except WdsError as error:
        found.error = error
    return found


def describe(index: Index, rows: Any = None) -> dict[str, Any]:
    """Return what `wds-index info` tells of an index, or of those shards that `rows` lie in. Raises IndexFileError.

    `columns`: those that are not in every index, with their types; `duplicates`: key -> rows, over the whole index.
    """
    wanted = None
    if rows is not None and not isinstance(rows, range):
        wanted = np.unique(index.table.column("shard").to_numpy()[np.asarray(rows, dtype=np.int64)]).tolist()
    counts = count(index, wanted)
    types = {name: str(index.table.schema.field(name).type) for name in index.lifted()}
    found: dict[str, Any] = {"path": index.path, "version": int(VERSION)}
    found["state"] = str(sets.state(index)) if index.path else "none"
    return found | counts.to_json() | {"columns": types, "duplicates": index.duplicates()}


def shard_numbers(index: Index, shards: Sequence[str]) -> list[int]:
    """Return the numbers of shards in the shard table. Raises NotFoundError for one that it does not have."""
    number = {canonical(url): i for i, url in enumerate(index.shards.url)}
    for url in shards:
        if canonical(url) not in number:
            raise NotFoundError(f"{index.name}: does not have {url}; `wds-index build` refreshes it")
    return [number[canonical(url)] for url in shards]
