"""The plan of shards as the journal keeps it: a row for each shard, so that another run can say which one differs.

In the journal, under "plan": for each target {"pattern", "shards": [[samples, bytes of the tar, digest, first key],
...]}. The digest is of the keys, fields, sizes and versions of what goes into the shard. Journals without it are read
too.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from wdstools import writer
from wdstools.convert import place
from wdstools.convert.destination import ShardPlan, Target
from wdstools.convert.entries import Entries, sizes
from wdstools.convert.order import Numbers
from wdstools.errors import IndexFileError, NotFoundError

if TYPE_CHECKING:
    from wdstools.index import Index

LOOKED_AT = 1_000_000  # samples of a finished job that are compared one by one
Sample = tuple[str, int]  # key, bytes in the tar


class Saved:
    """The shards that a job is going to write. `entries` and `orders` as those of a Plan; `exact`: samples are written
    as they are listed, so that an index of what is written tells which one differs."""

    def __init__(
        self,
        found: Sequence[Target],
        shards: Sequence[Sequence[ShardPlan]],
        entries: Entries,
        orders: Sequence[Numbers],
        exact: bool = True,
    ) -> None:
        self._exact = exact
        self._targets, self._shards, self._entries, self._orders = found, shards, entries, orders

    def to_json(self) -> list[dict[str, Any]]:
        """The plan as the journal keeps it."""
        return [
            {
                "pattern": os.path.basename(target.pattern),
                "shards": [[p.stop - p.start, p.nbytes, p.digest, self._first(t, p)] for p in plans],
            }
            for t, (target, plans) in enumerate(zip(self._targets, self._shards, strict=True))
        ]

    def _first(self, t: int, plan: ShardPlan) -> str:
        key = self._entries[self._orders[t][plan.start]].key
        return key.encode("utf-8", "backslashreplace").decode()

    def samples(self, t: int, start: int, stop: int) -> Iterator[Sample]:
        """The samples at these places of a target."""
        for position in range(start, stop):
            entry = self._entries[self._orders[t][position]]
            yield entry.key, entry.parts[2] if entry.parts[0] == "" else writer.sample_nbytes(entry.key, sizes(entry))

    def against(self, journal: Any) -> str:
        """Say which shard is the first that an unfinished job, by its journal, would write otherwise, and why; "" where
        none is, or the journal does not tell."""
        try:
            old = {item["pattern"]: [tuple(row) for row in item["shards"]] for item in journal}
            for t, mine in enumerate(self.to_json()):
                for s, (was, now) in enumerate(itertools.zip_longest(old.get(mine["pattern"], []), mine["shards"])):
                    if was is None or now is None or was[:3] != tuple(now[:3]):
                        return self._told(t, s, was, now)
        except (LookupError, TypeError):
            return ""  # nothing that is compared here is taken for true
        return ""

    def _told(self, t: int, s: int, was: Sequence[Any] | None, now: Sequence[Any] | None) -> str:
        path = self._targets[t].pattern % s
        name = os.path.basename(path)
        if was is None:
            return f"{name} is one more shard, from sample {now[3]!r} on" if now is not None else ""
        had = f"{was[0]} samples of {was[1]} bytes"
        if now is None:
            return f"{name} is not written any more: it had {had}, from sample {was[3]!r} on"
        plan = self._shards[t][s]
        why = _of_part(path, lambda: self.samples(t, plan.start, plan.stop)) if self._exact else ""
        if not why and was[3] != now[3]:
            why = f"it began with sample {was[3]!r} and begins with {now[3]!r}"
        if not why and tuple(was[:2]) == tuple(now[:2]):
            why = "names, sizes or versions in it are not what they were"
        return f"{name} is the first shard that differs: {had} before, {now[0]} of {now[1]} now{why and ': ' + why}"

    def against_index(self, t: int, index: Index) -> str:
        """As `against`, of a finished job, by an index."""
        if len(index) > LOOKED_AT or not self._exact:
            return ""
        old = (_sample(index, row) for row in range(len(index)))
        return _difference(old, self.samples(t, 0, len(self._orders[t])), LOOKED_AT)


def _of_part(path: str, planned: Callable[[], Iterator[Sample]]) -> str:
    """What differs between a finished shard and what is planned for it; "" where it is not finished."""
    try:
        index = place.load_index(writer.part_name(path))
        return _difference((_sample(index, row) for row in range(len(index))), planned(), len(index) + 1)
    except (NotFoundError, FileNotFoundError, IndexFileError, ValueError):
        return ""


def _sample(index: Index, row: int) -> Sample:
    key, _, start, end = index.locate(row)
    return key, end - start


def _difference(old: Iterator[Sample], new: Iterator[Sample], most: int) -> str:
    """The first sample that differs, and how."""
    for was, now in itertools.zip_longest(old, new):
        if was == now:
            continue
        if was is None or now is None:
            return f"sample {now[0]!r} was added" if now is not None else f"sample {was[0]!r} was removed"
        if was[0] == now[0]:
            return f"sample {was[0]!r} was changed: {was[1]} bytes in its tar before, {now[1]} now"
        before = {key for key, _ in itertools.islice(old, most)}
        after = {key for key, _ in itertools.islice(new, most)}
        if now[0] not in before and was[0] in after:
            return f"sample {now[0]!r} was added"
        if was[0] not in after and now[0] in before:
            return f"sample {was[0]!r} was removed"
        return f"where sample {was[0]!r} was, {now[0]!r} is"
    return ""
