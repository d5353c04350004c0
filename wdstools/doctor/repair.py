"""Repair: what can be saved of shards, written as new ones, with an index. Never in place; whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import IO, Any

import numpy as np

from wdstools import _core, build, sets, urls
from wdstools.doctor import survey as surveys
from wdstools.doctor.copying import ShardCopy
from wdstools.doctor.newfolder import new_folder
from wdstools.doctor.salvage import Salvage, Sample, judge, salvage
from wdstools.doctor.survey import Survey
from wdstools.errors import ChangedError, DestinationError, ShardError, SourceError
from wdstools.storage import Whole, open_source

Array = np.ndarray[Any, Any]

KEEP = ("first", "last", "rename")
REPORT = "repair.json"
SPOOL = 4 << 20


@dataclass(frozen=True)
class Lost:
    """What was not written. `shard`, `offset`: where it was; `member`, `key`: None where they are not known."""

    shard: str
    key: str | None
    member: str | None
    offset: int | None
    nbytes: int | None
    reason: str


@dataclass
class Repaired:
    """What a repair did. `shards`: the paths written; `dropped`: duplicates that were left out, by --keep; `renamed`:
    new keys; `partial`: keys of samples that were written without their damaged members; `won`: bytes of headers."""

    shards: list[str] = field(default_factory=list)
    indexes: list[str] = field(default_factory=list)
    samples: int = 0
    lost: list[Lost] = field(default_factory=list)
    dropped: list[Lost] = field(default_factory=list)
    renamed: list[dict[str, str]] = field(default_factory=list)
    partial: list[str] = field(default_factory=list)
    won: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


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
    if keep is not None and keep not in KEEP:
        raise ValueError(f"keep={keep!r} is not first, last or rename")
    names = _names(shards)
    _check_destination(out, shards, names)
    with new_folder(out) as folder:
        job = _Job(keep, partial, folder)
        for number, url in enumerate(shards):
            job.look(number, url)
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


def _check_destination(out: str, shards: Sequence[str], names: Sequence[str]) -> None:
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

    def __init__(self, keep: str | None, partial: bool, folder: str) -> None:
        self.keep, self.partial, self.folder = keep, partial, folder
        self.done = Repaired()
        self._sets: dict[frozenset[str], int] = {}
        self._prints: list[int] = []
        self._hashes: list[Array] = []  # of the keys that a shard may give
        self._twice: set[int] = set()
        self._known: Array = np.zeros(0, np.uint64)
        self._last: dict[bytes, tuple[int, int]] = {}  # key -> the shard and the place in it of its last sample
        self._given: set[bytes] = set()  # of those that are there more than once
        self._fresh: set[bytes] = set()

    def look(self, number: int, url: str) -> None:
        """Note what the sets of fields and the keys of a shard are."""
        with self._opened(url) as (fd, survey):
            saved = salvage(survey, fd)
            self._prints.append(_fingerprint(survey))
        for fields, count in saved.sets().items():
            if fields in self._sets or len(self._sets) < 1000:
                self._sets[fields] = self._sets.get(fields, 0) + count
        keys = [_core.hash_key(sample.key) for sample in saved.samples if self._usable(sample)]
        self._hashes.append(np.array(keys, np.uint64))

    def _usable(self, sample: Sample) -> bool:
        return bool(sample.good) if self.partial else not sample.bad

    def settle(self, shards: Sequence[str]) -> None:
        """Find the duplicates. Raises SourceError where nothing says what is to become of them."""
        every = np.concatenate(self._hashes) if self._hashes else np.zeros(0, np.uint64)
        self._known, counts = np.unique(every, return_counts=True)
        self._twice = set(self._known[counts > 1].tolist())
        if not self._twice:
            return
        seen: set[bytes] = set()
        example: tuple[bytes, str] | None = None
        for number, url in enumerate(shards):
            if not self._twice & set(self._hashes[number].tolist()):
                continue
            with self._opened(url) as (fd, survey):
                for place, sample in enumerate(self._judged(salvage(survey, fd))):
                    if not self._wanted(sample) or _core.hash_key(sample.key) not in self._twice:
                        continue
                    if sample.key in seen and example is None:
                        example = sample.key, url
                    seen.add(sample.key)
                    self._last[sample.key] = number, place
        if example is not None and self.keep is None:
            raise SourceError(
                f"{example[1]}: key {_text(example[0])!r} is there more than once: "
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
            self._list_holes(saved)
            chosen = list(self._choose(number, survey, samples))
            if not chosen:
                return
            others = iter(saved.others)
            other = next(others, None)
            with ShardCopy(path, fd, url) as copy:
                for sample, key in chosen:
                    while other is not None and other < sample.good[0]:
                        copy.member(survey.raw_name(other), int(survey.offsets[other]), int(survey.sizes[other]))
                        other = next(others, None)
                    for member in sample.good:
                        name = key + survey.raw_name(member)[len(sample.key) :]
                        copy.member(name, int(survey.offsets[member]), int(survey.sizes[member]))
                while other is not None:
                    copy.member(survey.raw_name(other), int(survey.offsets[other]), int(survey.sizes[other]))
                    other = next(others, None)
            self.done.won += max(0, survey.pax_bytes)
        self.done.shards.append(path)
        self.done.samples += len(chosen)

    def _choose(self, number: int, survey: Survey, samples: Sequence[Sample]) -> Iterator[tuple[Sample, bytes]]:
        """The samples to write, each with the key that it gets."""
        for place, sample in enumerate(samples):
            self._list_members(survey, sample)
            if not self._wanted(sample):
                continue
            if sample.bad or sample.why:
                self.done.partial.append(_text(sample.key))
            if sample.key not in self._last:  # there once
                yield sample, sample.key
            elif self.keep == "rename":
                yield sample, self._renamed(survey.url, sample)
            elif self._last[sample.key] == (number, place) if self.keep == "last" else sample.key not in self._given:
                self._given.add(sample.key)
                yield sample, sample.key
            else:
                self._drop(survey, sample)

    def _renamed(self, url: str, sample: Sample) -> bytes:
        if sample.key not in self._given:
            self._given.add(sample.key)
            return sample.key
        count = 2
        while (key := sample.key + b"-%d" % count) in self._fresh or self._is_known(key):
            count += 1
        self._fresh.add(key)
        self.done.renamed.append({"shard": url, "key": _text(sample.key), "to": _text(key)})
        return key

    def _is_known(self, key: bytes) -> bool:
        wanted = np.uint64(_core.hash_key(key))
        at = int(np.searchsorted(self._known, wanted))
        return at < len(self._known) and bool(self._known[at] == wanted)

    def _drop(self, survey: Survey, sample: Sample) -> None:
        member = sample.members[0]
        nbytes = sum(int(survey.sizes[m]) for m in sample.members)
        offset = int(survey.starts[member])
        reason = f"another sample has its key, and --keep {self.keep} prefers that"
        self.done.dropped.append(Lost(survey.url, _text(sample.key), None, offset, nbytes, reason))

    def _list_holes(self, saved: Salvage) -> None:
        for hole in saved.holes:
            if hole.hard and hole.end > hole.start:
                nbytes = hole.end - hole.start
                self.done.lost.append(Lost(saved.survey.url, None, hole.name, hole.start, nbytes, hole.reason))

    def _list_members(self, survey: Survey, sample: Sample) -> None:
        key = _text(sample.key)
        for member, reason in sample.bad.items():
            offset, nbytes = int(survey.headers[member]), int(survey.sizes[member])
            self.done.lost.append(Lost(survey.url, key, survey.name(member), offset, nbytes, reason))
        if self._wanted(sample):
            return
        others = f"member {survey.name(next(iter(sample.bad)))!r} of it is damaged" if sample.bad else ""
        for member in sample.good:
            offset, nbytes = int(survey.headers[member]), int(survey.sizes[member])
            self.done.lost.append(
                Lost(survey.url, key, survey.name(member), offset, nbytes, sample.why or others or "it is not whole")
            )

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
        with open(os.path.join(folder, REPORT), "w", encoding="utf-8", errors="backslashreplace") as file:
            json.dump(self.done.to_json(), file, indent=1, ensure_ascii=False)
            file.write("\n")

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


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")
