"""Repair: what can be saved of shards, written as new ones, with an index. Never in place; whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import IO

from wdstools import _core, build, sets, urls
from wdstools.doctor import survey as surveys
from wdstools.doctor.copying import ShardCopy
from wdstools.doctor.keeping import Keys
from wdstools.doctor.newfolder import new_folder
from wdstools.doctor.repaired import Repaired, text
from wdstools.doctor.salvage import Salvage, Sample, judge, salvage
from wdstools.doctor.survey import Survey
from wdstools.errors import ChangedError, DestinationError, ShardError, SourceError
from wdstools.storage import Whole, open_source

SPOOL = 4 << 20


def repair(
    shards: Sequence[str],
    out: str,
    *,
    keep: str | None = None,
    partial: bool = False,
    progress: Callable[[int], object] = lambda nbytes: None,
) -> Repaired:
    """Write every intact sample of shards into new ones of the same names in the folder `out`, which must not be there,
    or be empty; beside them their index, and repair.json, which lists what could not be saved.

    Members of one key are put together, in one shard; PAX headers stay only where they are needed. A sample with a
    damaged member, or one that may have lost members, is not written; with `partial`, its good members are. `keep`:
    which of samples with one key, or under which key both. `progress` is called twice a shard.

    Raises SourceError for duplicate keys without `keep` and shards of one name, DestinationError, StoreError,
    ChangedError where a shard changes meanwhile.
    """
    keys = Keys(keep)
    names = _names(shards)
    _check_destination(out, shards)
    with new_folder(out) as folder:
        job = _Job(keys, partial, folder)
        for url in shards:
            job.look(url)
            progress(1)
        job.settle(shards)
        for number, url in enumerate(shards):
            job.write(number, url, os.path.join(folder, names[number]))
            progress(1)
        job.finish(folder, out)
    return job.done


def _names(shards: Sequence[str]) -> list[str]:
    """A name for each shard. Raises SourceError where two would have one."""
    names: dict[str, str] = {}
    for number, url in enumerate(shards):
        path = urls.local_path(url)
        plain = path if path is not None else url.partition("?")[0].partition("#")[0]
        name = os.path.basename(plain)
        if urls.scheme(url) == "pipe" or url == "-" or not name:
            name = f"shard-{number:06d}.tar"
        stem = name
        for ending in (".gz", ".zst", ".bz2", ".xz"):
            stem = stem.removesuffix(ending)
        for ending in (".tgz", ".tzst", ".tbz2", ".tbz", ".txz"):
            stem = stem[: -len(ending)] + ".tar" if stem.endswith(ending) else stem
        name = stem if stem.endswith(".tar") else stem + ".tar"
        if name in names:
            raise SourceError(f"{url} and {names[name]} would both become {name}: repair them one at a time")
        names[name] = url
    return list(names)


def _check_destination(out: str, shards: Sequence[str]) -> None:
    if urls.scheme(out) != "file":
        raise DestinationError(f"{out}: repaired shards are written to a local folder")
    folder = os.path.realpath(out)
    for url in shards:
        path = urls.local_path(url)
        if path is not None and folder in (os.path.dirname(os.path.realpath(path)), os.path.realpath(path)):
            raise DestinationError(f"{out}: has {url}, and shards are not repaired in place: name another folder")
    if os.path.lexists(out) and (not os.path.isdir(out) or os.path.islink(out) or os.listdir(out)):
        raise DestinationError(f"{out}: is there already, and not an empty folder: name another")


class _Job:
    """One repair. All shards are looked at first: others tell whether a sample is whole, or there twice."""

    def __init__(self, keys: Keys, partial: bool, folder: str) -> None:
        self.keys, self.partial, self.folder = keys, partial, folder
        self.done = Repaired()
        self._sets: dict[frozenset[str], int] = {}
        self._prints: list[int] = []

    def look(self, url: str) -> None:
        """Note what the sets of fields and the keys of a shard are."""
        with self._opened(url) as (fd, survey):
            saved = salvage(survey, fd)
            self._prints.append(_fingerprint(survey))
        for fields, count in saved.sets().items():
            if fields in self._sets or len(self._sets) < 1000:
                self._sets[fields] = self._sets.get(fields, 0) + count
        self.keys.add(sample.key for sample in saved.samples if (sample.good if self.partial else not sample.bad))

    def settle(self, shards: Sequence[str]) -> None:
        """Find the duplicates. Raises SourceError where nothing says what is to become of them."""
        for number in self.keys.count():
            with self._opened(shards[number]) as (fd, survey):
                for place, sample in enumerate(self._judged(salvage(survey, fd))):
                    if self._wanted(sample) and not self.keys.see(sample.key, number, place):
                        raise SourceError(
                            f"{survey.url}: key {text(sample.key)!r} is there more than once: "
                            "say --keep first, --keep last or --keep rename"
                        )

    def _judged(self, saved: Salvage) -> list[Sample]:
        judge(saved, self._sets)
        return saved.samples

    def _wanted(self, sample: Sample) -> bool:
        return bool(sample.good) and (self.partial or not (sample.bad or sample.why))

    def write(self, number: int, url: str, path: str) -> None:
        """Write what is left of a shard. Nothing is written where nothing is left."""
        with self._opened(url) as (fd, survey):
            if _fingerprint(survey) != self._prints[number]:
                raise ChangedError(f"{url}: changed while it was repaired; do it again")
            saved = salvage(survey, fd)
            samples = self._judged(saved)
            self.done.lose_holes(saved)
            chosen = list(self._choose(number, survey, samples))
            if not chosen:
                return
            with ShardCopy(path, fd, url) as copy:
                for member, name in _members(saved, chosen):
                    copy.member(name, int(survey.offsets[member]), int(survey.sizes[member]))
            self.done.won += max(0, survey.pax_bytes)
        self.done.shards.append(path)
        self.done.samples += len(chosen)

    def _choose(self, number: int, survey: Survey, samples: Sequence[Sample]) -> Iterator[tuple[Sample, bytes]]:
        """The samples to write, each with the key that it gets."""
        for place, sample in enumerate(samples):
            wanted = self._wanted(sample)
            self.done.lose_members(survey, sample, wanted)
            if not wanted:
                continue
            if sample.bad or sample.why:
                self.done.partial.append(text(sample.key))
            key = self.keys.choose(sample.key, number, place)
            if key is None:
                self.done.drop(survey, sample, self.keys.keep)
                continue
            if key != sample.key:
                self.done.renamed.append({"shard": survey.url, "key": text(sample.key), "to": text(key)})
            yield sample, key

    def finish(self, folder: str, out: str) -> None:
        """Index the new shards, which reads them as strictly as any reader, and write the report."""
        found = 0
        for one in sets.shard_sets(self.done.shards):
            found += len(build.refresh(one.index, one.shards).index)
            self.done.indexes.append(one.index)
        if found != self.done.samples:
            raise ShardError(f"{found} samples came out, and not {self.done.samples}: nothing is kept", out)
        for paths in (self.done.shards, self.done.indexes):
            paths[:] = [os.path.join(out, os.path.relpath(path, folder)) for path in paths]
        self.done.save(folder)

    @contextlib.contextmanager
    def _opened(self, url: str) -> Iterator[tuple[int, Survey]]:
        """A shard that can be read anywhere: as it lies there, or a copy of it for the moment."""
        with contextlib.ExitStack() as stack:
            source = stack.enter_context(open_source(url))
            if isinstance(source.handle, int) and source.local_path and os.path.isfile(source.local_path):
                fd = source.handle
            else:
                fd = _spool(Whole(source), stack, self.folder)
            yield fd, surveys.of_columns(_core.survey(fd), url)


def _members(saved: Salvage, chosen: Sequence[tuple[Sample, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Yield the members to write, with their names: those of samples, and between them the others, as they stood."""
    survey, others = saved.survey, deque(saved.others)
    for sample, key in chosen:
        while others and others[0] < sample.good[0]:
            yield others[0], survey.raw_name(others.popleft())
        for member in sample.good:
            yield member, key + survey.raw_name(member)[len(sample.key) :]
    for other in others:
        yield other, survey.raw_name(other)


def _spool(whole: Whole, stack: contextlib.ExitStack, folder: str) -> int:
    os.makedirs(folder, exist_ok=True)
    file: IO[bytes] = stack.enter_context(tempfile.TemporaryFile(dir=folder, buffering=0))
    view = memoryview(bytearray(SPOOL))
    while n := whole.readinto(view):
        written = 0
        while written < n:
            written += file.write(view[written:n])
    return file.fileno()


def _fingerprint(survey: Survey) -> int:
    text = survey.names + survey.headers.tobytes() + survey.sizes.tobytes() + str(survey.nbytes).encode()
    return _core.hash_key(text)
