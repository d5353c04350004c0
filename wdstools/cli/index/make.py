"""`wds-index build` and `merge`: what writes indexes."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import click

from wdstools.cli.common import emit, emit_json, progress, split_commas, talk
from wdstools.errors import DestinationError, IndexFileError, UrlError

if TYPE_CHECKING:
    from wdstools.checksums import Level
    from wdstools.index import Index
    from wdstools.sets import ShardSet
    from wdstools.shardtable import Shards

SUFFIX = ".wdsindex"


def _index_path(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    if value is not None and not value.endswith(SUFFIX):
        raise click.BadParameter(f"{value!r}: the name of an index ends with {SUFFIX}")
    return value


@click.command(
    epilog="""\b
Examples:
  $ wds-index build out
  $ wds-index build 'out/train-{000000..000146}.tar' --column cls --column json:width,json:height
  $ wds-index build 'https://example.org/val-{00..07}.tar' -o val.wdsindex"""
)
@click.argument("shards", nargs=-1, required=True)
@click.option("-o", "--output", callback=_index_path, help="The index. Default: beside the shards, named by them.")
@click.option(
    "--column", "columns", metavar="FIELD[:KEY]", multiple=True, callback=split_commas,
    help="Lift a column: cls, or json:width for a value of a JSON field. Repeat it, or use commas.",
)  # fmt: skip
@click.option("--no-columns", is_flag=True, help="Drop the columns that the index has. Default: keep them.")
@click.option(
    "--checksum", type=click.Choice(["none", "shard", "sample"]),
    help="Keep checksums of shards, or of every sample too; all bytes are read. Default: as the index does.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Read every shard, also those that have not changed.")
@click.option("--workers", type=click.IntRange(1), metavar="N", help="Default: the number of cores.")
@click.option("--json", "as_json", is_flag=True, help="Print path, shards, samples, reused and seconds as JSON.")
def build(
    shards: tuple[str, ...], output: str | None, columns: tuple[str, ...], no_columns: bool,
    checksum: Level | None, force: bool, workers: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Index SHARDS: a folder, brace patterns, URLs, or an index, whose shards are looked at again.

    Headers only are read, of the shards whose size or mtime have changed since the index was written. In a folder,
    every set of shards gets an index of its own, or all of them one with -o. The paths of the indexes are printed.
    """
    reports = []
    for job in _jobs(shards, output):
        began = time.monotonic()
        previous, before = _previous(job, force)
        kept = [] if no_columns or before is None else before.lifted()
        lift = list(dict.fromkeys([*kept, *columns]))
        report = _build(job, lift, checksum, previous, before, workers) | {
            "seconds": round(time.monotonic() - began, 3)
        }
        reports.append(report)
        shape = f"{report['shards']:,} shards ({report['reused']:,} unchanged), {report['samples']:,} samples"
        done = f"{shape}, in {report['seconds']:.1f} s" if report["written"] else f"up to date: {shape}"
        talk(f"{job.index}: {done}")
        for name in columns:
            if name in report["empty"]:
                talk(f"{job.index}: no sample has anything for the column {name}")
    if as_json:
        emit_json({"indexes": reports})
    else:
        emit([report["path"] for report in reports])


def _jobs(names: tuple[str, ...], output: str | None) -> list[ShardSet]:
    """The shards to index, each lot with the path of its index."""
    from wdstools import sets, urls
    from wdstools.index import Index

    if "-" in names:
        raise click.UsageError("an index names its shards: stdin has no name")
    if output is None and all(os.path.isdir(name) or name.endswith(SUFFIX) for name in names):
        found = []
        for name in names:
            if name.endswith(SUFFIX):
                found.append(sets.ShardSet(_of_index(Index.load(name)), name))
            else:
                found += sets.shard_sets(sets.list_shards([name], compressed=False))
        return found
    shards = sets.list_shards(names, compressed=False)
    path = output or urls.index_name([urls.escape(url) for url in shards])
    if urls.scheme(path) != "file":
        raise click.UsageError(f"{path} cannot be written: say with -o where the index goes")
    return [sets.ShardSet(shards, urls.local_path(path) or path)]


def _of_index(index: Index) -> list[str]:
    from wdstools import urls

    for url in index.shards.url:
        if urls.scheme(url) == "pipe":  # whoever wrote the index chose the command
            raise UrlError(f"{index.name}: names commands ({url}): give its shards instead of the index to run them")
    return index.shards.url


def _previous(job: ShardSet, force: bool) -> tuple[Index | None, Index | None]:
    """(the index whose rows may be taken over, the index that is there)."""
    from wdstools import sets
    from wdstools.shardtable import canonical

    before, state = sets.load_index(job.index)
    if before is not None and not force:
        given = set(map(canonical, job.shards))
        left = [url for url in before.shards.url if canonical(url) not in given and os.path.exists(canonical(url))]
        if left:
            raise DestinationError(
                f"{job.index} has {len(left)} more shards, such as {left[0]}: "
                "give all of them, write elsewhere with -o, or leave them out with --force"
            )
        try:
            before.validate()
        except IndexFileError as error:
            before, state.reason = None, str(error)
    if state.reason:
        talk(f"{state.reason}; it is built anew, without the columns that it may have had")
    return (None if force else before), before


def _build(
    job: ShardSet, lift: list[str], checksum: Level | None, previous: Index | None, before: Index | None,
    workers: int | None,
) -> dict[str, Any]:  # fmt: skip
    from wdstools.build import refresh
    from wdstools.checksums import level_of

    if checksum is None and before is not None:  # with --force there is no previous one
        checksum = level_of(before)

    def metadata(shards: Shards) -> dict[str, str]:
        """What a writer said of the shards in the index before holds if they are the same."""
        return before.metadata if before is not None and before.shards.is_like(shards) else {}

    with progress(len(job.shards), "shards", "index") as bar:
        built = refresh(
            job.index, job.shards, lift=lift, checksum=checksum, workers=workers, previous=previous, metadata=metadata,
            progress=lambda _: bar.update(1),
        )  # fmt: skip
    index = built.index
    empty = [name for name in lift if index.table.column(name).null_count == len(index)]
    return {
        "path": job.index, "shards": len(index.shards), "samples": len(index), "reused": built.reused,
        "columns": lift, "empty": empty, "written": built.written,
    }  # fmt: skip


@click.command(
    epilog="""\b
Examples:
  $ wds-index merge all.wdsindex train.wdsindex val.wdsindex"""
)
@click.argument("out", callback=_index_path)
@click.argument("indexes", nargs=-1, required=True, metavar="INDEX...")
@click.option("--overwrite", is_flag=True, help="Replace OUT.")
def merge(out: str, indexes: tuple[str, ...], overwrite: bool) -> None:
    """Put INDEXes of different shards together, in the order given, as OUT. Columns that only some have stay."""
    from wdstools.index import Index
    from wdstools.merge import merge_files

    if os.path.lexists(out) and not overwrite:
        raise DestinationError(f"{out}: is there already; --overwrite replaces it")
    merge_files(indexes, out)
    merged = Index.load(out)
    talk(f"{out}: {len(merged.shards):,} shards, {len(merged):,} samples")
