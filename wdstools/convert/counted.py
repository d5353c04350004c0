"""Samples that are computed, cut by --maxcount of the source: a shard is what its samples become, however many that is.

So a shard depends on its own samples alone: any engine may write any of them, in any order and again, and the bytes are
the same. It holds fewer samples than maxcount where some are left out or become none (where all do, it is an empty
tar), more where some become several.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Sequence

from wdstools.convert import journal, transform
from wdstools.convert.destination import ShardPlan
from wdstools.convert.images import Failure
from wdstools.convert.journal import Written
from wdstools.convert.options import Options, Summary
from wdstools.convert.plan import Plan
from wdstools.convert.planned import Progress, entries_of, what_is_left
from wdstools.convert.put import left_out, open_shard, put
from wdstools.convert.sources import Faults, Listing
from wdstools.convert.transform import Item
from wdstools.convert.upload import Shard


def write_counted(ready: Plan, options: Options, progress: Progress, summary: Summary) -> list[list[Written]]:
    """Write the shards that are not there, one after the other, while the samples of the next ones are computed; return
    all, by target."""
    done, todo = what_is_left(ready, options, progress, summary)
    with contextlib.ExitStack() as stack:
        entries = itertools.chain.from_iterable(entries_of(ready, t, shard) for t, _, shard in todo)
        groups = transform.start(stack, options)(transform.read(ready.listing, entries))
        for t, s, shard in todo:
            mine = itertools.islice(groups, shard.stop - shard.start)
            done[t][s] = written = write_shard(ready.listing, mine, shard, ready.lift, options, ready.check, progress)
            summary.skipped += written.skipped
    return [[written for written in found if written is not None] for found in done]


def write_shard(
    listing: Listing,
    groups: Iterable[list[Item]],
    shard: ShardPlan,
    lift: Sequence[str] | None,
    options: Options,
    check: Callable[[], object],
    tell: Progress,
) -> Written:
    """Write one shard with its part, of what its samples have become. `check` and `tell`: as in planned.write_shard."""
    faults = Faults(options.on_error == "skip", listing.moved)
    file: Shard | None = None
    try:
        for group in groups:
            before = 0 if file is None else file.nbytes
            for key, fields in group:
                if isinstance(fields, Failure):
                    faults.add(key, *fields)
                    continue
                if file is None:
                    file = open_shard(shard.path, transform.columns(lift, fields), options)
                put(file, key, fields, faults)
            tell(1, 0 if file is None else file.nbytes - before)
        if file is None:
            file = open_shard(shard.path, lift or (), options)
        file.metadata = {**left_out(faults.skipped), journal.COVERS: shard.digest}
        check()
        nsamples = len(file.commit())
        return Written(shard.path, nsamples, file.nbytes, faults.skipped, shard.digest)
    finally:
        if file is not None:
            file.abort()
