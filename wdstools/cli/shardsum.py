"""`shardsum`: many shard names in, a few brace patterns out."""

from __future__ import annotations

import os

import click

from wdstools.braces import collapse, duplicates, missing
from wdstools.cli.common import emit, emit_json, read_stdin, run


@click.command(
    "shardsum",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  $ ls /data/imagenet | shardsum
  train-{000000..001281}.tar
  val-{000000..000049}.tar
  $ shardsum --missing shards/*.tar
  shards/train-{000017..000018}.tar
  $ find . -name '*.tar' -print0 | shardsum -0 --json
  $ shardsum -l /data/imagenet
  $ shardsum -l 'out/train-{000000..000146}.tar' --json""",
)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("-l", "--long", is_flag=True, help="Print a table of what is in the shards of folders and patterns.")
@click.option("-0", "--null", "nul", is_flag=True, help="Names on stdin end with NUL, as find -print0 writes them.")
@click.option("--missing", "only_missing", is_flag=True, help="Print the numbers missing inside each series instead.")
@click.option("--json", "as_json", is_flag=True, help="Print patterns, count, missing and duplicates as JSON.")
def command(names: tuple[str, ...], long: bool, nul: bool, only_missing: bool, as_json: bool) -> int:
    """Summarise the names of shards: one brace pattern a line.

    NAMEs are taken as they are; without any, they are read from stdin, one a line. The patterns expand to exactly
    the given names in bash, webdataset and wdstools; characters that are special there are escaped by a backslash.

    With -l, NAMEs are folders, shards or brace patterns (without any: the current folder; -: names on stdin), and a
    table tells of every set: shards, samples, members, bytes, fields with their mean size, numbers that are missing,
    and the index: fresh, stale (shards changed, new or gone), unreadable or none. Counts come from a fresh index,
    and else from the headers of the shards.
    """
    if long:
        if only_missing:
            raise click.UsageError("-l has the missing numbers anyway: leave --missing out")
        from wdstools.cli.table import show  # the library behind it takes a while to load

        return show(_read_names("\0" if nul else "\n") if names == ("-",) else names or (".",), as_json)
    given = list(names) or _read_names("\0" if nul else "\n")
    twice = duplicates(given)
    if as_json:
        count = len(set(given))
        emit_json({"patterns": collapse(given), "count": count, "missing": missing(given), "duplicates": twice})
        return 0
    if twice:
        click.echo(f"shardsum: {len(twice)} name(s) given more than once, such as {twice[0]!r}", err=True)
    emit(missing(given) if only_missing else collapse(given))
    return 0


def _read_names(end: str) -> list[str]:
    return [name for name in os.fsdecode(read_stdin()).split(end) if name]


def main() -> None:
    """The entry point."""
    run(command)
