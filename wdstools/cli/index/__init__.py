"""`wds-index`: build, list, query, check, merge and exchange the indexes of shards; repair shards."""

from __future__ import annotations

import click

from wdstools.cli.common import run, tell_log
from wdstools.cli.index.check import check
from wdstools.cli.index.exchange import export, import_
from wdstools.cli.index.make import build, merge
from wdstools.cli.index.repair import repair
from wdstools.cli.index.show import get, info, ls


@click.group(
    "wds-index",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  $ wds-index build out --column cls
  $ wds-index ls out --where "cls = 3" --limit 10
  $ wds-index get out n01514668/n01514668_123 jpg > picture.jpg
  $ wds-index check out
  $ wds-index repair out mended""",
)
def command() -> None:
    """Build, list, query, check and merge the indexes of shards; check and repair the shards.

    TARGET is an index file (.wdsindex), the folder of one, or shards: names, brace patterns, URLs. Shards without an
    index get one in memory for the moment. Every command has --help with examples of its own.
    """
    tell_log()


for subcommand in (build, ls, get, info, check, repair, merge, export, import_):
    command.add_command(subcommand)


def main() -> None:
    """The entry point."""
    run(command)
