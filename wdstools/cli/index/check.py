"""`wds-index check`: what is wrong with shards and their indexes, and what to do about it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from wdstools.cli.common import emit, emit_json, progress, talk
from wdstools.errors import NotFoundError

if TYPE_CHECKING:
    from wdstools.doctor.checkup import Lot
    from wdstools.doctor.problems import Problem

SUFFIX = ".wdsindex"
SHOWN = 1000  # rows of the table


@click.command(
    epilog="""\b
Examples:
  $ wds-index check out
  $ wds-index check out --decode --strict
  $ wds-index check 's3://bucket/train-{000000..000146}.tar' --no-index
  $ wds-index check out/train.wdsindex --json | jq -r '.problems[].message'"""
)
@click.argument("target")
@click.option("--workers", type=click.IntRange(1), metavar="N", help="Default: the number of cores.")
@click.option("--decode", is_flag=True, help="Decode images, JSON and arrays too, in processes.")
@click.option("--checksums", is_flag=True, help="Read every byte, and compare with the checksums in the index.")
@click.option("--no-index", is_flag=True, help="Look at the shards only: that there is no index is no problem.")
@click.option("--strict", is_flag=True, help="Exit status 1 for warnings, too.")
@click.option("--run-pipes", is_flag=True, help="Run the commands of pipe: shards, which the index names.")
@click.option("--json", "as_json", is_flag=True, help="Print the indexes, counts and problems as JSON.")
def check(
    target: str, workers: int | None, decode: bool, checksums: bool, no_index: bool, strict: bool, run_pipes: bool,
    as_json: bool,
) -> int:  # fmt: skip
    """Find what is wrong with the shards of TARGET and their index. Prints a row a problem, with what to do about it.

    TARGET: an index, a folder (all indexes in it) or shards, also remote ones. Headers are read, and by them is found:
    truncated shards, bad headers, lost bytes, garbage and archives behind the end, keys that come back or are there
    twice, in other shards too, samples with other fields than most, empty payloads, PAX headers that only cost space,
    indexes that are wrong or older than the shards, and indexes of other programs under one name.

    Bytes of a payload that changed are found by nothing of that, only by --checksums, where the index keeps them, and
    as far as they spoil an image by --decode. Exit status: 0 healthy (or only warnings), 1 problems, 2 wrong usage.
    """
    from wdstools.doctor.checkup import Options, Report, checkup

    began = time.monotonic()
    lots, problems = _bare(target) if no_index else _lots(target)
    options = Options(workers, run_pipes, decode, checksums)
    total = Report(problems)
    with progress(sum(len(lot.shards) for lot in lots), "shards", "check") as bar:

        def step(nbytes: int) -> None:
            bar.update(1)

        for lot in lots:
            one = checkup(lot, options, step)
            total.problems += one.problems
            total.checksums |= one.checksums
            for name in ("shards", "samples", "members", "nbytes"):
                setattr(total, name, getattr(total, name) + getattr(one, name))
    errors, warnings = total.errors, len(total.problems) - total.errors
    if as_json:
        emit_json(
            {
                "indexes": [lot.name for lot in lots if lot.index is not None], "shards": total.shards,
                "samples": total.samples, "members": total.members, "nbytes": total.nbytes,
                "seconds": round(time.monotonic() - began, 3), "errors": errors, "warnings": warnings,
                "problems": [problem.to_json() for problem in total.problems], "checksums": total.checksums,
            }
        )  # fmt: skip
    else:
        emit(_table(total.problems[:SHOWN]))
        if len(total.problems) > SHOWN:
            talk(f"{len(total.problems) - SHOWN:,} more problems are not shown; --json has all")
        talk(f"{total.shards:,} shards, {total.samples:,} samples: {_counted(errors, warnings)}")
    return 1 if errors or (strict and warnings) else 0


def _counted(errors: int, warnings: int) -> str:
    parts = [f"{errors:,} problem{'s' * (errors != 1)}"] if errors else ["no problems"]
    if warnings:
        parts.append(f"{warnings:,} warning{'s' * (warnings != 1)}")
    return ", ".join(parts)


def _table(problems: Sequence[Problem]) -> list[str]:
    """Level, kind, what and where, and the fix; errors first."""
    ordered = sorted(problems, key=lambda problem: problem.level != "error")
    rows = [(problem.level, problem.kind, f"{problem.message}; fix: {problem.fix}") for problem in ordered]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(2)]
    return [f"{level:{widths[0]}}  {kind:{widths[1]}}  {said}" for level, kind, said in rows]


def _bare(target: str) -> tuple[list[Lot], list[Problem]]:
    from wdstools import sets
    from wdstools.doctor.checkup import Lot
    from wdstools.index import Index

    if target.endswith(SUFFIX):
        return [Lot(Index.load(target).shards.url, None, None)], []
    return [Lot(sets.list_shards([target]), None, None)], []


def _lots(target: str) -> tuple[list[Lot], list[Problem]]:
    """The shards with their indexes, and the problems that show before a shard is read."""
    from wdstools import sets, urls
    from wdstools.doctor.checkup import Lot
    from wdstools.doctor.problems import Problem
    from wdstools.shardtable import canonical

    problems: list[Problem] = []
    lots: dict[str, Lot] = {}

    def load(path: str) -> Any:
        index, reason = _load(path)
        if index is None and reason:
            problems.append(Problem("index", None, reason, index=path))
        return index

    def put(path: str, index: Any, more: Sequence[str]) -> None:
        lots[path] = Lot([*(index.shards.url if index is not None else ()), *more], index, path)

    if target.endswith(SUFFIX):
        index = load(target)
        if index is not None:
            put(target, index, ())
        elif not problems:
            problems.append(Problem("index", None, f"{target}: no such index", index=target))
        return list(lots.values()), problems
    folder = urls.scheme(target) == "file" and os.path.isdir(target)
    names = [n for n in sorted(os.listdir(target)) if n.endswith(SUFFIX)] if folder else []
    try:
        shards = sets.list_shards([target], compressed=False)
    except NotFoundError:
        if not names:
            raise
        shards = []
    for name in names:
        path = os.path.join(target, name)
        index = load(path)
        if index is not None:
            put(path, index, ())
    for one in sets.shard_sets(shards):
        index = lots[one.index].index if one.index in lots else None
        if index is None and (not folder or os.path.basename(one.index) not in names):
            index = load(one.index)
            if index is None and one.index not in {problem.index for problem in problems}:
                said = f"{' '.join(one.patterns)}: no index" if folder else f"{one.index}: no such index"
                problems.append(Problem("index", None, said, index=one.index, detail={"shards": one.patterns}))
        known = set(map(canonical, index.shards.url)) if index is not None else set()
        new = [url for url in one.shards if canonical(url) not in known]
        if index is not None:
            problems += [Problem("index", url, f"is not in the index {one.index}", index=one.index) for url in new]
        put(one.index, index, new)
    return list(lots.values()), problems


def _load(path: str) -> tuple[Any, str]:
    """(the index at a path or URL, why there is none): neither where nothing is there."""
    from wdstools import sets, urls
    from wdstools.errors import IndexFileError
    from wdstools.finding import load_stored
    from wdstools.store import Stores

    if urls.scheme(path) == "file":
        index, state = sets.load_index(urls.local_path(path) or path)
        return index, state.reason
    if urls.scheme(path) not in ("http", "https", "s3", "gs", "az"):
        return None, ""
    try:
        return load_stored(path, Stores()), ""
    except NotFoundError:
        return None, ""
    except IndexFileError as error:
        return None, str(error)
