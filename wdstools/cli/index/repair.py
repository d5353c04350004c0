"""`wds-index repair`: the samples that damaged shards still have, as new shards."""

from __future__ import annotations

import click

from wdstools.cli.common import emit, emit_json, progress, talk

TOLD = 20  # losses that are told one by one


@click.command(
    epilog="""\b
Examples:
  $ wds-index repair out/train-000017.tar mended
  $ wds-index repair out/ mended --keep first
  $ wds-index repair 's3://bucket/train-{000000..000146}.tar' mended --json"""
)
@click.argument("shards", nargs=-1, required=True)
@click.argument("out")
@click.option(
    "--keep", type=click.Choice(["first", "last", "rename"]),
    help="Of samples with one key, write the first or the last, or all, under new keys.",
)  # fmt: skip
@click.option("--partial", is_flag=True, help="Write samples with damaged members, too, without these.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written and what was not as JSON.")
def repair(shards: tuple[str, ...], out: str, keep: str | None, partial: bool, as_json: bool) -> int:
    """Write every intact sample of SHARDS into new shards in the folder OUT, with their index; print their paths.

    SHARDS are folders, patterns, URLs, or an index, whose shards are taken; they are only read. OUT must not be there,
    or be empty. Behind damage, members are looked for by the checksums of their headers. Members of one key in one
    shard are put together, needless PAX headers left out, the end marker is written anew.

    A sample with a damaged member, or one that may have lost some, is not written unless --partial. What could not be
    saved is told on stderr, in OUT/repair.json, and with --json. A payload with changed bytes and a good header is not
    found to be damaged: check --checksums and check --decode find such.

    Exit status: 0 all samples were saved, 1 some were not (what could be is written), 2 wrong usage.
    """
    from wdstools import sets
    from wdstools.doctor.repair import repair as run
    from wdstools.doctor.repaired import REPORT
    from wdstools.index import SUFFIX, Index

    names: list[str] = []
    for name in shards:
        names += Index.load(name).shards.url if name.endswith(SUFFIX) else sets.list_shards([name])
    names = list(dict.fromkeys(names))
    with progress(2 * len(names), "shards", "repair") as bar:
        done = run(names, out, keep=keep, partial=partial, progress=bar.update)
    for lost in done.lost[:TOLD]:
        what = lost.member or "unknown members"
        size = "" if lost.nbytes is None else f" ({lost.nbytes:,} bytes)"
        talk(f"lost: {lost.shard}: {what!r} at byte {lost.offset}{size}: {lost.reason}")
    if len(done.lost) > TOLD:
        talk(f"lost: and {len(done.lost) - TOLD:,} others, see {out}/{REPORT}")
    parts = [f"{len(done.shards):,} shards, {done.samples:,} samples"]
    parts += [f"{len(done.dropped):,} duplicates left out"] if done.dropped else []
    parts += [f"{len(done.renamed):,} renamed"] if done.renamed else []
    parts += [f"{len(done.partial):,} of them partial"] if done.partial else []
    parts += [f"{len(done.lost):,} losses, in {out}/{REPORT}"] if done.lost else ["nothing lost"]
    talk(f"{out}: {'; '.join(parts)}")
    if as_json:
        emit_json(done.to_json())
    else:
        emit([*done.shards, *done.indexes])
    return 1 if done.lost else 0
