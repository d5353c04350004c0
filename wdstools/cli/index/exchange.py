"""`wds-index export` and `import`: the indexes of other tools, written from ours and read into one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from wdstools.cli.common import emit, emit_json, progress, talk
from wdstools.errors import DestinationError, NotFoundError

if TYPE_CHECKING:
    from wdstools.index import Index

SUFFIX = ".wdsindex"
FORMATS = ("dali", "energon", "wids", "lhotse", "aistore", "ratarmount", "parquet")  # as in interop.formats


@click.command(
    epilog="""\b
Examples:
  $ wds-index export out --to dali
  $ wds-index export out --to wids -o out/shardindex.json
  $ wds-index export 'out/train-{000000..000146}.tar' --to energon
  $ wds-index export out --to aistore -o for-aistore

\b
Where the files go, where the reader looks for them:
  dali        X.idx beside each shard X.tar
  energon     .nv-meta/ in the folder of the shards, and X.tar.idx beside each
  wids        shardindex.json in the folder of the shards; reads them for their md5
  lhotse      X.tar.idx beside each shard, of pairs of members
  aistore     X.tar.idx, in a folder given with -o: the content of ais://.sys-shardidx
  ratarmount  X.tar.index.sqlite beside each shard
  parquet     NAME.parquet beside NAME.wdsindex"""
)
@click.argument("target")
@click.option("--to", "format", type=click.Choice(FORMATS), required=True, help="Whose index to write.")
@click.option(
    "-o",
    "--output",
    metavar="DIR|FILE",
    help="Elsewhere: a folder; the file of wids, parquet; Energon's dataset folder.",
)
@click.option("--overwrite", is_flag=True, help="Replace files of the same format. Those of another one never are.")
@click.option("--workers", type=click.IntRange(1), metavar="N", help="Default: the number of cores.")
@click.option("--json", "as_json", is_flag=True, help="Print format, shards, samples, paths and notes as JSON.")
def export(target: str, format: str, output: str | None, overwrite: bool, workers: int | None, as_json: bool) -> None:
    """Write the index of TARGET for another tool. The paths of the files are printed.

    TARGET: an index, a folder with one, or shards; all shards of the index are written. Their headers are read where
    the format has what our index does not, and compared with it, so that a stale index is an error. Files appear whole
    or not at all. X.tar.idx is Energon's or Lhotse's: what is there is looked at, and never replaced by the other.
    """
    from wdstools.interop.foreign import Options
    from wdstools.interop.formats import FORMATS as ALL

    index = _index(target)
    with progress(len(index.shards), "shards", "export") as bar:
        written = ALL[format].export(index, Options(output, overwrite, workers, bar.update))
    for note in written.notes:
        talk(note)
    if as_json:
        counts = {"shards": len(index.shards), "samples": len(index)}
        emit_json({"format": format, **counts, "paths": written.paths, "notes": written.notes})
    else:
        emit(written.paths)


def _index(target: str) -> Index:
    """The index of a target, built for the moment where there is none. Raises DestinationError for a folder with the
    shards of several."""
    from wdstools import build, sets
    from wdstools.index import Index

    if target.endswith(SUFFIX):
        return Index.load(target)
    found = sets.shard_sets(sets.list_shards([target], compressed=False))
    if len(found) > 1:
        several = ", ".join(one.index for one in found[:3])
        raise DestinationError(f"{target}: has several sets of shards, one index each: give one of {several}, ...")
    index, state = sets.load_index(found[0].index)
    if index is not None:
        state = sets.state(index, found[0].shards)
    if index is None or state.kind != "fresh" or len(index.shards) != len(found[0].shards):
        if index is not None:
            talk(f"{found[0].index}: {state}, or has other shards: headers are read instead")
        return build.build(found[0].shards)
    return index


@click.command(
    "import",
    epilog="""\b
Examples:
  $ wds-index import --from dali out
  $ wds-index import --from energon out -o out/train.wdsindex
  $ wds-index import --from wids https://example.org/shardindex.json -o train.wdsindex
  $ wds-index import --from ratarmount 'out/train-{000000..000146}.tar' --indexes cache""",
)
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option("--from", "format", type=click.Choice(FORMATS), required=True, help="Whose index to read.")
@click.option("-o", "--output", help="The index, NAME.wdsindex. Default: beside the shards, named by them.")
@click.option("--indexes", metavar="DIR", help="The folder of the foreign indexes. Default: beside the shards.")
@click.option("--overwrite", is_flag=True, help="Replace the index that is there.")
@click.option("--workers", type=click.IntRange(1), metavar="N", help="Default: the number of cores.")
@click.option("--json", "as_json", is_flag=True, help="Print path, shards, samples and how shards were read as JSON.")
def import_(
    sources: tuple[str, ...], format: str, output: str | None, indexes: str | None, overwrite: bool,
    workers: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Make an index from another tool's. Its path is printed.

    SOURCE: shards (dali, energon, lhotse, aistore, ratarmount), whose foreign indexes are looked for beside them or in
    --indexes; or the file of wids or Parquet; or the folder that Energon prepared. Our index is made of the headers of
    the shards and compared with what was imported, and what differs is an error that names both files. Of remote
    shards, the headers alone are read where the format tells where they are, and else everything.
    """
    from wdstools import urls
    from wdstools.interop.claims import import_claims
    from wdstools.interop.foreign import Options
    from wdstools.interop.formats import FORMATS as ALL
    from wdstools.interop.formats import claim_sources

    if output is not None and not output.endswith(SUFFIX):
        raise click.BadParameter(f"{output!r}: the name of an index ends with {SUFFIX}")
    claims = claim_sources(format, sources, indexes)
    if not claims:
        raise NotFoundError(f"{' '.join(sources)}: describes no shards")
    path = output or urls.index_name([urls.escape(claim.url) for claim in claims])
    if urls.scheme(path) != "file":
        raise click.UsageError(f"{path} cannot be written: say with -o where the index goes")
    if os.path.lexists(path) and not overwrite:
        raise DestinationError(f"{path}: is there already; --overwrite replaces it")
    with progress(len(claims), "shards", "import") as bar:
        imported = import_claims(path, claims, Options(workers=workers, progress=bar.update))
    how: dict[str, Any] = {name: getattr(imported, name) for name in ("ranges", "headers", "whole")}
    if not ALL[format].tells or imported.whole:
        talk(f"{format} does not tell where all headers are: {_told(how)}")
    talk(f"{path}: {len(claims):,} shards, {len(imported.index):,} samples")
    if as_json:
        emit_json({"path": path, "format": format, "shards": len(claims), "samples": len(imported.index), "read": how})
    else:
        emit([path])


def _told(how: dict[str, int]) -> str:
    said = {"ranges": "by ranges", "headers": "all headers", "whole": "whole"}
    return ", ".join(f"{count:,} shards were read, {said[name]}" for name, count in how.items() if count)
