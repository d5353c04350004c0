"""`wds-cat`: the bytes of any URL to stdout."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any, NoReturn

import click

from wdstools import urls
from wdstools.cli.common import progress, run, say
from wdstools.errors import StoreError, WdsError
from wdstools.failures import hide

if TYPE_CHECKING:
    from wdstools.passing import Outlet
    from wdstools.store import Stores

Span = tuple[int, int | None]
IDLE = 30.0  # seconds without a byte of a remote store


def _span(ctx: click.Context, param: click.Parameter, value: str | None) -> Span | None:
    if value is None:
        return None
    match = re.fullmatch(r"([0-9]{1,18})-([0-9]{1,18})?", value)
    if match is None or (match[2] and int(match[2]) < int(match[1])):
        raise click.BadParameter(f"{value!r} is no range; write 0-512 for the first 512 bytes, 512- for the rest")
    return int(match[1]), int(match[2]) if match[2] else None


def _options(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in value:
        name, equals, text = item.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"{item!r} is no option; write it as KEY=VALUE, such as anon=true")
        found[name] = text
        if text in ("true", "false", "null") or text[:1] in ("{", "["):
            import json

            try:
                found[name] = json.loads(text)
            except ValueError as error:
                raise click.BadParameter(f"{item!r}: no JSON: {error}") from error
    return found


@click.command(
    "wds-cat",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  $ wds-cat s3://bucket/train-000000.tar | tar t
  $ wds-cat --verify 'https://host/train-{000000..000146}.tar' > train.tar
  $ wds-cat --range 512-1024 gs://bucket/train-000000.tar | xxd
  $ wds-cat --storage-option anon=true --timeout 10 s3://bucket/train-000000.tar > train-000000.tar
In Python, for webdataset:
  WebDataset("pipe:wds-cat s3://bucket/train-{000000..000146}.tar")""",
)
@click.argument("names", nargs=-1, required=True, metavar="URL...")
@click.option(
    "-l", "--literal", is_flag=True, help="Take URLs as they are: braces and backslashes are part of the name."
)
@click.option(
    "--range", "span", metavar="A-B", callback=_span, help="Bytes A to B of one URL, B excluded; A-: to its end."
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    help="Give up after as many seconds without a byte [30; none for pipe: and -].",
)
@click.option("--total", type=click.FloatRange(0, min_open=True), help="Give up after as many seconds in all.")
@click.option("--verify/--no-verify", help="Compare every shard with its index while it passes; off by default.")
@click.option(
    "--index", "index_path", metavar="FILE", help="The index for --verify, instead of the one beside the shards."
)
@click.option(
    "--storage-option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    callback=_options,
    help="For the store, as fsspec spells it: anon=true, endpoint_url=...; more than once.",
)
@click.option(
    "--cache", metavar="FOLDER:SIZE", help="Keep what is remote in blocks on a local disk: /nvme/cache:200GB."
)
@click.option("-q", "--quiet", is_flag=True, help="No progress bar; there is none anyway where stderr is no terminal.")
def command(
    names: tuple[str, ...],
    literal: bool,
    span: Span | None,
    timeout: float | None,
    total: float | None,
    verify: bool,
    index_path: str | None,
    options: dict[str, Any],
    cache: str | None,
    quiet: bool,
) -> None:
    """Write the bytes of URLs to stdout, one after the other.

    A URL is a path, file:, http(s):, s3:, gs:, az:, whatever fsspec opens, pipe: or -, which is stdin; braces are
    expanded. Bytes come as they are: a compressed shard stays compressed. What a network breaks off is continued
    where it broke off, if the object is still the same one.

    Exit status 0: every byte is there (or whoever reads wanted no more). 1: not so, and the reason, the URL and the
    byte at which it stopped are on stderr; what was written until then is right, but not all. With --verify, a shard
    that is no whole tar, or whose samples do not lie where the index says, is exit 1 too: this is known for certain
    at the end of the shard, when its bytes have passed, so wait for the exit status before using them.
    """
    shards = list(names) if literal else urls.expand(names)
    if span is not None and (verify or len(shards) != 1):
        raise click.UsageError("--range is for one URL, without --verify")
    if index_path is not None and not verify:
        raise click.UsageError("--index is for --verify")
    from wdstools.passing import Outlet
    from wdstools.store import Retries, Stores

    stores = Stores(options, cache=cache, retries=Retries(idle=timeout or IDLE))
    with progress(None, "B", "wds-cat", disable=quiet) if sys.stderr.isatty() else _NoBar() as bar:
        outlet = Outlet(_stdout(), bar.update)
        place = [""]
        if total is not None:
            _alarm(total, place, outlet)
        for number, url in enumerate(shards):
            place[0] = hide(url)
            bar.set_description(f"{number + 1}/{len(shards)}" if len(shards) > 1 else "wds-cat", refresh=False)
            _cat(url, outlet, stores, span, timeout, (verify, index_path), None if bar.disable else bar)


class _NoBar:
    """What progress() gives, where there is no terminal and tqdm need not be loaded."""

    disable = True

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, n: int) -> None:
        pass

    def set_description(self, text: str, refresh: bool = True) -> None:
        pass


def _cat(
    url: str,
    outlet: Outlet,
    stores: Stores,
    span: Span | None,
    idle: float | None,
    verify: tuple[bool, str | None],
    bar: Any,
) -> None:
    """Pass one URL on. Every error names it, and the byte at which it stopped."""
    from wdstools import passing

    began = outlet.nbytes
    try:
        if bar is not None:
            _expect(bar, url, stores, span)
        if verify[0]:
            from wdstools.cli.verifying import send_verified

            send_verified(url, outlet, stores, idle, verify[1])
        elif span is not None:
            passing.send_range(url, *span, outlet, stores, idle)
        else:
            passing.send(url, outlet, stores, idle)
    except BrokenPipeError:  # whoever reads wanted no more
        raise
    except (WdsError, OSError) as error:
        raise _stopped(url, (span or (0,))[0] + outlet.nbytes - began, error) from error


def _stopped(url: str, at: int, error: Exception) -> StoreError:
    url, reason = hide(url), " ".join(say(error).split())
    return StoreError(f"{reason if url in reason else f'{url}: {reason}'} (stopped at byte {at})")


def _expect(bar: Any, url: str, stores: Stores, span: Span | None) -> None:
    """Tell the bar how much is to come, where that is known."""
    nbytes = None
    if span is not None and span[1] is not None:
        nbytes = span[1] - span[0]
    elif url != "-" and urls.scheme(url) != "pipe":
        store, path = stores.of(url)
        nbytes = store.size(path).nbytes - (span or (0,))[0]
    bar.total = None if nbytes is None else bar.n + nbytes


def _stdout() -> int:
    if sys.stdout is None:
        raise OSError("stdout is closed")
    return sys.stdout.fileno()


def _alarm(total: float, place: list[str], outlet: Outlet) -> None:
    """End the command by an error after as many seconds, whatever it waits for then. `place`: the URL that is read."""
    late = f"not done after {total:g} seconds"

    def end(signum: int, frame: object) -> NoReturn:
        hard.cancel()
        signal.signal(signal.SIGALRM, lambda *_: kill())  # for an error that got lost on its way
        signal.setitimer(signal.ITIMER_REAL, 10)
        raise StoreError(late)

    def kill() -> None:
        click.echo(f"wds-cat: {place[0]}: {late} (stopped after {outlet.nbytes} bytes in all)", err=True)
        os._exit(1)

    hard = threading.Timer(total + 0.2, kill)  # no signal is heeded while the main thread waits in foreign code
    hard.daemon = True
    hard.start()
    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, total)


def main() -> None:
    """The entry point."""
    try:
        run(command)
    except SystemExit as done:
        # threads that still wait for a server are not waited for
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(done.code if isinstance(done.code, int) else 1)
