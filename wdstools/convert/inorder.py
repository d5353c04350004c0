"""Samples that come as a stream, or are computed and cut by the sizes that come out: packed by one writer, in order."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator

from wdstools import writer
from wdstools.convert import images, journal, place, transform
from wdstools.convert.destination import Target
from wdstools.convert.journal import Written
from wdstools.convert.options import Options, Skipped, Summary
from wdstools.convert.order import Numbers
from wdstools.convert.plan import Plan
from wdstools.convert.planned import Progress
from wdstools.convert.put import left_out, open_shard, put
from wdstools.convert.sources import Faults
from wdstools.convert.transform import Item
from wdstools.convert.upload import Shard
from wdstools.errors import SourceError

ANEW = "Give --overwrite to make all anew"


def write_in_order(ready: Plan, options: Options, progress: Progress, summary: Summary) -> list[list[Written]]:
    """Write samples as they are computed or come in; return the shards, by target."""
    done = []
    with contextlib.ExitStack() as stack:
        apply = transform.start(stack, options)
        for target, numbers in zip(ready.targets, ready.orders, strict=True):
            kept = _kept_prefix(target, options)
            summary.kept += len(kept)
            progress(_covered(kept), sum(part.nbytes for part in kept))
            for number, path in target.existing():
                if number >= len(kept):
                    place.remove(path)  # of this job, as Job has checked, and behind one that must be written anew
            if options.map is None:
                items = _flat(apply(_samples(ready, numbers, kept)))
            else:  # how many a sample becomes is known when it has been mapped
                items = _flat(apply(_samples(ready, numbers, [])))
                _pass_over(itertools.islice(items, _covered(kept)), kept)
            found, rest = _write_target(target, items, len(kept), ready.lift, options, progress, ready.check)
            done.append(kept + found)
            summary.skipped += [item for written in done[-1] for item in written.skipped] + rest
    return done


def _kept_prefix(target: Target, options: Options) -> list[Written]:
    """The finished shards from number 0 on."""
    kept: list[Written] = []
    there = place.names(target.folder)
    while (part := journal.load_part(target.pattern % len(kept), options.on_error == "skip", there)) is not None:
        kept.append(part)
    return kept


def _covered(kept: list[Written]) -> int:
    """How many samples of the source finished shards hold or left out."""
    return sum(part.nsamples + len(part.skipped) for part in kept)


def _samples(ready: Plan, numbers: Numbers, kept: list[Written]) -> Iterator[Item]:
    """The samples of a target that the finished shards do not cover."""
    listing = ready.listing
    start = _covered(kept)
    if listing.stream is None:
        yield from transform.read(listing, (ready.entries[number] for number in itertools.islice(numbers, start, None)))
        return
    samples = listing.stream()
    _pass_over(itertools.islice(samples, start), kept)
    yield from samples


def _pass_over(samples: Iterator[Item], kept: list[Written]) -> None:
    """Raises SourceError where a stream does not begin with what the finished shards hold and what they left out."""
    keys = (index.key(row) for part in kept for index in (part.load(),) for row in range(len(index)))
    gone = {item.key for part in kept for item in part.skipped}
    wanted = next(keys, None)
    for key, _ in samples:
        if key == wanted:
            wanted = next(keys, None)
        elif key not in gone:
            raise SourceError(f"sample {key!r} comes where {wanted!r} was: the source has changed. {ANEW}")
    if wanted is not None:
        raise SourceError(f"the source ends before sample {wanted!r}, which it had: it has changed. {ANEW}")


_flat = itertools.chain.from_iterable


def _write_target(
    target: Target,
    items: Iterator[Item],
    first: int,
    lift: tuple[str, ...] | None,
    options: Options,
    progress: Progress,
    check: Callable[[], object],
) -> tuple[list[Written], list[Skipped]]:
    """Write samples one by one, from shard number `first` on. What is left out counts to the shard in hand, so that a
    run that goes on knows from where; or to none, at the end (the second that is returned)."""
    packer = writer.Packer(*options.limits)
    faults = Faults(options.on_error == "skip")
    done: list[Written] = []
    file: Shard | None = None
    try:
        for key, fields in items:
            nbytes = 0
            if isinstance(fields, images.Failure):
                faults.add(key, *fields)
            else:
                nbytes = writer.sample_nbytes(key, {n: _size(value) for n, value in fields.items()})
                if file is not None and packer.is_full(nbytes):
                    check()
                    done.append(_commit(file, faults))
                    file = None
                if file is None:
                    path = target.pattern % (first + len(done))
                    file = open_shard(path, transform.columns(lift, fields), options)
                    packer.reset()
                if put(file, key, fields, faults):
                    packer.add(nbytes)
            progress(1, nbytes)
        check()
        if file is not None and file.nsamples:
            done.append(_commit(file, faults))
        return done, faults.skipped
    finally:
        if file is not None:
            file.abort()


def _commit(file: Shard, faults: Faults) -> Written:
    """Finish a shard, and take what was left out of it from the faults."""
    skipped, faults.skipped = faults.skipped, []
    file.metadata = left_out(skipped)
    return Written(file.path, len(file.commit()), file.nbytes, skipped)


def _size(value: writer.Value) -> int:
    return value[1] if isinstance(value, tuple) else len(value)
