"""A checkup: every shard surveyed, compared with the index that has it and with the others."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from wdstools import urls
from wdstools.checksums import FORM, Sums, differences, places_of, shard_checksum, verify_checksums
from wdstools.doctor import across, foreign, payloads
from wdstools.doctor import survey as surveys
from wdstools.doctor.agreement import Claims
from wdstools.doctor.examine import examine, signatures
from wdstools.doctor.problems import Problem
from wdstools.doctor.survey import Survey
from wdstools.errors import IndexFileError, ShardError, UrlError, WdsError
from wdstools.index import Index
from wdstools.shardtable import canonical
from wdstools.storage import open_source


@dataclass(frozen=True)
class Lot:
    """Shards to look at together. `index`: the one that has them, or None; `name`: what to call it."""

    shards: list[str]
    index: Index | None
    name: str | None


@dataclass
class Report:
    """What was found. `samples`: of the index where there is one, else of the shards; `checksums`: by shard."""

    problems: list[Problem] = field(default_factory=list)
    shards: int = 0
    samples: int = 0
    members: int = 0
    nbytes: int = 0
    checksums: dict[str, str] = field(default_factory=dict)

    @property
    def errors(self) -> int:
        return sum(problem.level == "error" for problem in self.problems)


class Options(NamedTuple):
    """`workers`: threads, or processes for `decode`; `run_pipes`: the commands of pipe: shards that an index names;
    `decode`: images, JSON and arrays; `checksums`: of whole shards."""

    workers: int | None = None
    run_pipes: bool = False
    decode: bool = False
    checksums: bool = False


class _Shard(NamedTuple):
    """What is kept of one."""

    problems: list[Problem]
    samples: int
    members: int
    nbytes: int
    digest: across.Digest | None = None
    foreign: foreign.Foreign | None = None
    checksum: str | None = None


def checkup(lot: Lot, options: Options, progress: Callable[[int], object] = lambda nbytes: None) -> Report:
    """Look at the shards of a lot. What is wrong is returned, not raised.

    `progress` is called with the bytes of each shard."""
    report = Report(shards=len(lot.shards))
    claims = None
    if lot.index is not None:
        try:
            claims = Claims(lot.index)
        except IndexFileError as error:
            report.problems.append(Problem("index", None, str(error), index=lot.name))
    numbers = {canonical(url): i for i, url in enumerate(lot.index.shards.url)} if lot.index is not None else {}
    workers = options.workers or os.cpu_count() or 1

    def one(url: str) -> _Shard:
        found = _look(url, claims, numbers.get(canonical(url)), options)
        progress(found.nbytes)
        return found

    with ThreadPoolExecutor(workers) as pool:
        shards = list(pool.map(one, lot.shards))
    for url, shard in zip(lot.shards, shards, strict=True):
        report.problems += [replace(problem, index=lot.name) for problem in shard.problems]
        report.members += shard.members
        report.nbytes += shard.nbytes
        if shard.checksum:
            report.checksums[url] = shard.checksum
    report.samples = len(lot.index) if lot.index is not None else sum(shard.samples for shard in shards)
    together = [
        *across.compare([s.digest for s in shards if s.digest], options.run_pipes),
        *foreign.problems([s.foreign for s in shards if s.foreign]),
    ]
    if options.decode:
        readable = [s.digest.url for s in shards if s.digest]
        together += payloads.decode_all(readable, workers, progress)
    report.problems += [replace(problem, index=lot.name) for problem in together]
    return report


def _look(url: str, claims: Claims | None, number: int | None, options: Options) -> _Shard:
    expected = claims.index.shards.nbytes[number] if claims is not None and number is not None else 0
    try:
        if urls.scheme(url) == "pipe" and not options.run_pipes and number is not None:
            raise UrlError(f"{url}: not checked: commands that an index names are not run unless asked")
        survey, sums = _survey(url, claims, number) if options.checksums else (survey_of(url), None)
        found = examine(survey)
        if claims is not None and number is not None and not any(p.level == "error" for p in found):
            found += _against_index(claims, number, survey)
        checksum = None
        if options.checksums:
            checksum, wrong = _against_checksum(claims, number, url, options.run_pipes, sums)
            found += wrong
    except (WdsError, OSError) as error:
        return _Shard([_unreadable(url, error)], 0, 0, expected)
    return _Shard(
        found, len(survey.groups), len(survey), survey.nbytes, _digest(survey, found), foreign.beside(survey), checksum
    )


def survey_of(url: str) -> Survey:
    """Survey a shard by its URL. Raises WdsError, OSError."""
    with open_source(url) as source:
        return surveys.take(source)


def _survey(url: str, claims: Claims | None, number: int | None) -> tuple[Survey, Sums | None]:
    """Survey a shard, and compute its checksums where that takes no second pass."""
    places = places_of(claims.index, number) if claims is not None and number is not None else (b"", b"")
    with open_source(url) as source:
        return surveys.take_summed(source, places) or (surveys.take(source), None)


def _unreadable(url: str, error: WdsError | OSError) -> Problem:
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return Problem("unreadable", url, said.removeprefix(f"{url}: ").removeprefix(f"{url!r}: "))


def _digest(survey: Survey, found: Sequence[Problem]) -> across.Digest:
    torn = any(problem.level == "error" for problem in found)  # parts of samples have other fields than samples
    sets = {} if torn else signatures(survey)
    told = {
        fields: (count, survey.key(int(survey.groups[group]))) for fields, (count, group) in list(sets.items())[:1000]
    }
    return across.Digest(survey.url, survey.distinct_hashes, told)


def _against_index(claims: Claims, number: int, survey: Survey) -> Iterator[Problem]:
    reason = claims.contradicts(number, survey)
    if reason:
        yield Problem("index", survey.url, f"{reason} ({claims.index.name})")
        return
    path = urls.local_path(survey.url)
    shards = claims.index.shards
    if path is not None and shards.mtime[number] and shards.is_changed(number, os.stat(path)):
        reason = "changed after it was indexed: the headers are as they were, what is in the payloads is not known"
        yield Problem("index-older", survey.url, reason)


def _against_checksum(
    claims: Claims | None, number: int | None, url: str, run_pipes: bool, sums: Sums | None
) -> tuple[str, list[Problem]]:
    """Return the checksum of a shard, and how it differs from what its index keeps."""
    kept = claims.index.shards.checksum[number] if claims is not None and number is not None else ""
    if claims is None or number is None or not kept:
        found = FORM.format(sums[1]) if sums else shard_checksum(url)
        return found, [Problem("no-checksum", url, f"{found}, but no index keeps one to compare it with")]
    if sums:
        wrong = differences(claims.index, number, sums)
    else:
        wrong = verify_checksums(claims.index, [number], workers=1, run_pipes=run_pipes)
    problems = [
        Problem("checksum", url, f"{error.reason} ({claims.index.name})", error.offset)
        if isinstance(error, ShardError)
        else _unreadable(url, error)
        for error in wrong
    ]
    if not wrong:
        return kept, problems
    return FORM.format(sums[1]) if sums else shard_checksum(url), problems
