"""`wds-bench`: measures what a user's own machine wants."""

from __future__ import annotations

import click

from wdstools.cli.bench.io import io
from wdstools.cli.common import run


@click.group(
    "wds-bench",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  $ wds-bench io /data/imagenet
  $ wds-bench io --quick --html report.html '/data/imagenet/train-{000000..000146}.tar'""",
)
def command() -> None:
    """Measure this machine with shards of your own, and say which settings they want."""


command.add_command(io)


def main() -> None:
    """The entry point."""
    run(command)
